//! Processor exceptions: each is the end of the capsule, with a report.

use crate::{end, hypercall, shared_info};
use core::arch::global_asm;
use xen_proto::hypercall::{FLAT_CODE, TrapInfo};

/// The exceptions that a program can cause: vector, name, whether Xen pushes an error code.
///
/// Left out are debugging, and NMI and machine check: their handlers would be
/// called while events are masked. A double fault does not reach a guest; when the
/// stack is exhausted, Xen ends the domain itself.
const EXCEPTIONS: [(u8, &str, bool); 10] = [
    (0, "division error", false),
    (6, "invalid instruction", false),
    (7, "no floating point unit", false),
    (11, "segment not present", true),
    (12, "stack fault", true),
    (13, "protection fault", true),
    (14, "page fault", true),
    (16, "floating point error", false),
    (17, "misaligned access", true),
    (19, "SIMD floating point error", false),
];
const PAGE_FAULT: u8 = 14;
/// Bytes from one of the stubs below to the next.
const STUB_LEN: u64 = 16;

// One stub for each vector up to the last of the table. Xen has pushed, from the
// stack pointer up: rcx, r11, (error code,) rip, cs, rflags, rsp, ss.
global_asm!(
    ".pushsection .text.trap_stubs, \"ax\", @progbits",
    ".p2align 4",
    "trap_stubs:",
    ".set vector, 0",
    ".rept 20",
    "    .p2align 4",
    "    mov edi, vector",
    "    jmp 2f",
    "    .set vector, vector + 1",
    ".endr",
    "2:  mov rsi, rsp",
    "    mov rdx, rbp",
    "    and rsp, -16",
    "    call {trap}",
    "    ud2",
    ".popsection",
    trap = sym trap,
);

unsafe extern "C" {
    static trap_stubs: u8;
}

/// Registers the handlers.
pub(crate) fn install_traps() {
    let mut table = [TrapInfo::default(); EXCEPTIONS.len() + 1];
    let stubs = (&raw const trap_stubs).addr() as u64;
    for (entry, (vector, ..)) in table.iter_mut().zip(EXCEPTIONS) {
        let address = stubs + u64::from(vector) * STUB_LEN;
        *entry = TrapInfo { vector, flags: TrapInfo::MASK_EVENTS, cs: FLAT_CODE, address };
    }
    // SAFETY: the table ends with a zero entry, and the stubs never return.
    unsafe { hypercall::set_trap_table(&table) }.expect("trap handlers are registered");
}

/// Reports the exception and ends the capsule.
///
/// The code that was interrupted is never continued, so what the frame has
/// overwritten below its stack pointer does not matter.
extern "C" fn trap(vector: u32, frame: *const u64, frame_pointer: usize) -> ! {
    let (vector, name, has_error) = EXCEPTIONS
        .into_iter()
        .find(|&(known, ..)| u32::from(known) == vector)
        .unwrap_or((0, "exception", false));
    let rip_at = if has_error { 3 } else { 2 };
    // SAFETY: the stub passes the stack pointer, at which Xen has pushed at least
    // `rip_at + 5` words.
    let word = |at: usize| unsafe { frame.add(at).read() };
    let rip = word(rip_at);
    let error = if has_error { word(2) } else { 0 };
    if vector == PAGE_FAULT {
        let address = shared_info::fault_address();
        let access = if error & 2 != 0 { "writing" } else { "reading" };
        end::fault(
            format_args!("page fault {access} {address:#x} at rip={rip:#x}, error code {error:#x}"),
            rip,
            frame_pointer,
        )
    }
    end::fault(format_args!("{name} at rip={rip:#x}, error code {error:#x}"), rip, frame_pointer)
}
