//! How a capsule ends, and what it says then.
//!
//! The end goes to the console for people, and to the status area of the console
//! page for the manager, whose `EndKind` is written last: what is there is whole.
//! Then the domain powers off, for every kind of end; a domain that Xen reports as
//! crashed has not come this way.

use crate::{arch, console, hypercall, mm::SharedPage, mm::heap, single::Single};
use core::{
    cell::Cell,
    fmt::{self, Write},
    panic::PanicInfo,
    sync::atomic::Ordering,
};
use xen_proto::console::{
    BACKTRACE, BACKTRACE_LEN, BACKTRACE_MAX, END_KIND, EXIT_CODE, EndKind, MESSAGE, MESSAGE_LEN, MESSAGE_MAX,
};

/// Exit codes of ends that the application has not chosen, as shells have them.
pub(crate) mod code {
    /// A panic, as in Rust programs elsewhere.
    pub(crate) const PANICKED: i32 = 101;
    /// 128 + SIGABRT.
    pub(crate) const OUT_OF_MEMORY: i32 = 134;
    /// 128 + SIGSEGV.
    pub(crate) const FAULT: i32 = 139;
    /// 128 + SIGTERM.
    pub(crate) const STOPPED: i32 = 143;
}

/// Return addresses, innermost first.
struct Backtrace {
    addresses: [u64; BACKTRACE_MAX],
    len: usize,
}

impl Backtrace {
    const EMPTY: Self = Self { addresses: [0; BACKTRACE_MAX], len: 0 };

    fn push(&mut self, address: u64) -> bool {
        if let Some(place) = self.addresses.get_mut(self.len) {
            *place = address;
            self.len += 1;
        }
        self.len < BACKTRACE_MAX
    }

    /// `innermost`, if known, then the callers from `frame` on.
    fn new(innermost: Option<u64>, frame: usize) -> Self {
        let mut backtrace = Self::EMPTY;
        if let Some(address) = innermost {
            backtrace.push(address);
        }
        arch::walk_stack(frame, |address| backtrace.push(address as u64));
        backtrace
    }

    fn addresses(&self) -> &[u64] {
        &self.addresses[..self.len]
    }
}

/// Text of at most `MESSAGE_MAX` bytes; the rest is lost.
struct Message {
    bytes: [u8; MESSAGE_MAX],
    len: usize,
}

impl Message {
    fn new(text: fmt::Arguments<'_>) -> Self {
        let mut message = Self { bytes: [0; MESSAGE_MAX], len: 0 };
        // It fails when it is full, or when the `Display` of a panic does.
        let _ = message.write_fmt(text);
        message
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let space = MESSAGE_MAX - self.len;
        let count = text.floor_char_boundary(space);
        self.bytes[self.len..self.len + count].copy_from_slice(&text.as_bytes()[..count]);
        self.len += count;
        if count < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Ends the capsule; the manager learns `kind` and `code`.
pub(crate) fn end(kind: EndKind, code: i32) -> ! {
    if let Some(page) = console::status_page() {
        write_end(page, kind, code);
    }
    hypercall::power_off()
}

fn write_end(page: SharedPage, kind: EndKind, code: i32) {
    page.u32(EXIT_CODE).store(code as u32, Ordering::Relaxed);
    page.u32(END_KIND).store(kind as u32, Ordering::Release);
}

/// Ends the capsule with a report.
fn report(kind: EndKind, code: i32, message: &Message, backtrace: &Backtrace) -> ! {
    if let Some(page) = console::status_page() {
        page.write(MESSAGE, message.bytes());
        page.u32(MESSAGE_LEN).store(message.len as u32, Ordering::Relaxed);
        for (at, &address) in backtrace.addresses().iter().enumerate() {
            page.u64(BACKTRACE + at * 8).store(address, Ordering::Relaxed);
        }
        page.u32(BACKTRACE_LEN).store(backtrace.len as u32, Ordering::Relaxed);
        write_end(page, kind, code);
    }
    hypercall::power_off()
}

fn print_backtrace(backtrace: &Backtrace) {
    for address in backtrace.addresses() {
        console::print(format_args!("  at {address:#x}\n"));
    }
}

/// Whether an end is being reported already: a failure of that is not shown on the console.
fn is_second() -> bool {
    static REPORTING: Single<Cell<bool>> = Single::new(Cell::new(false));
    REPORTING.replace(true)
}

// Capsules are compiled with `panic = "abort"`. When the workspace is checked as a whole, a
// dependency may have `std` switched on for others, which has a handler of its own.
#[cfg_attr(panic = "abort", panic_handler)]
#[cfg_attr(not(panic = "abort"), expect(dead_code, reason = "it is std that panics"))]
fn panic(info: &PanicInfo<'_>) -> ! {
    // `alloc` has no other way to say so than a panic of this text.
    let no_memory = heap::is_exhausted() && {
        let start = Message::new(format_args!("{}", info.message()));
        start.bytes().starts_with(b"memory allocation of ")
    };
    let (kind, code) = match no_memory {
        true => (EndKind::OutOfMemory, code::OUT_OF_MEMORY),
        false => (EndKind::Panicked, code::PANICKED),
    };
    let backtrace = Backtrace::new(None, arch::frame_pointer());
    if is_second() {
        report(kind, code, &Message::new(format_args!("panicked while reporting a panic")), &backtrace)
    }
    let message = if no_memory {
        console::print(format_args!("out of memory: {}\n", info.message()));
        Message::new(format_args!("{}", info.message()))
    } else {
        console::print(format_args!("{info}\n"));
        Message::new(format_args!("{info}"))
    };
    print_backtrace(&backtrace);
    report(kind, code, &message, &backtrace)
}

/// Ends the capsule after a processor exception at `rip`.
pub(crate) fn fault(what: fmt::Arguments<'_>, rip: u64, frame: usize) -> ! {
    let backtrace = Backtrace::new(Some(rip), frame);
    if !is_second() {
        console::print(format_args!("{what}\n"));
        print_backtrace(&backtrace);
    }
    report(EndKind::Fault, code::FAULT, &Message::new(what), &backtrace)
}
