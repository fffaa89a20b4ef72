//! The console: two byte rings in a page that the host reads and writes, and the
//! status area behind them.
//!
//! Nothing is stored here: the page itself has all the state, so that output
//! works from the first instruction to the last.

use crate::{
    evtchn::{self, Id},
    mm::SharedPage,
    start,
    suspend::{Resume, Subsystem},
};
use alloc::vec::Vec;
use core::{
    fmt,
    future::poll_fn,
    sync::atomic::{Ordering, fence},
    task::{Context, Poll},
};
use xen_proto::{
    console::{
        HOST_EOF, HOST_FLAGS, HOST_NO_STORE, HOST_STDIN, IN, IN_CONS, IN_LEN, IN_PROD, OUT, OUT_CONS,
        OUT_LEN, OUT_PROD, STATUS, STATUS_MAGIC,
    },
    ring,
};

fn page() -> SharedPage {
    start::info().console()
}

/// Tells the host that there is something new in the page.
pub(crate) fn notify() {
    evtchn::notify(Id::Console);
}

/// The page, if the host has a status area in it.
pub(crate) fn status_page() -> Option<SharedPage> {
    let page = page();
    (page.u64(STATUS).load(Ordering::Relaxed) == STATUS_MAGIC).then_some(page)
}

fn output_space(page: SharedPage) -> usize {
    let prod = page.u32(OUT_PROD).load(Ordering::Relaxed);
    let cons = page.u32(OUT_CONS).load(Ordering::Acquire);
    // With an index that makes no sense, output may be garbled, but goes on.
    OUT_LEN - ring::used(prod, cons, OUT_LEN).unwrap_or(0)
}

/// Puts as much of `bytes` into the ring as fits, and returns how much.
fn write_some(bytes: &[u8]) -> usize {
    let page = page();
    let count = bytes.len().min(output_space(page));
    let mut prod = page.u32(OUT_PROD).load(Ordering::Relaxed);
    let mut rest = &bytes[..count];
    while !rest.is_empty() {
        let span = ring::span(prod, rest.len(), OUT_LEN);
        let (now, later) = rest.split_at(span.len());
        page.write(OUT + span.start, now);
        prod = prod.wrapping_add(now.len() as u32);
        rest = later;
    }
    page.u32(OUT_PROD).store(prod, Ordering::Release);
    count
}

/// Writes everything, blocking the capsule while the ring is full.
fn write_all(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        bytes = &bytes[write_some(bytes)..];
        if !bytes.is_empty() {
            notify();
            if evtchn::block_until(Id::Console, || output_space(page()) > 0).is_err() {
                // There is no console: output goes nowhere.
                return;
            }
        }
    }
}

struct Output;

impl fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write_all(text.as_bytes());
        Ok(())
    }
}

/// Writes formatted text and tells the host about it once.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    // An error can only come from a `Display` that fails, which std lets panic; here
    // it may be a panic that is being reported.
    let _ = fmt::write(&mut Output, text);
    notify();
}

/// Writes some of `bytes`, without blocking others; returns how many.
pub(crate) async fn write(bytes: &[u8]) -> usize {
    poll_fn(|cx| {
        let written = write_some(bytes);
        if written == 0 && !bytes.is_empty() {
            evtchn::wake_on(Id::Console, cx.waker());
            return Poll::Pending;
        }
        notify();
        Poll::Ready(written)
    })
    .await
}

/// Takes input off the ring.
///
/// `take` is offered the bytes in up to two pieces, one after the other, and says
/// how many of the piece it takes; if not all, it is not offered another one.
/// Returns how many were taken in all, 0 for the end of input.
fn poll_input(cx: &Context<'_>, mut take: impl FnMut(Piece) -> usize) -> Poll<usize> {
    let page = page();
    // The flags come first: what was sent before the end must be seen.
    let at_end = input_ends(page);
    let begin = page.u32(IN_CONS).load(Ordering::Relaxed);
    let prod = page.u32(IN_PROD).load(Ordering::Acquire);
    let available = ring::used(prod, begin, IN_LEN).unwrap_or(0);
    if available == 0 {
        if at_end {
            return Poll::Ready(0);
        }
        evtchn::wake_on(Id::Console, cx.waker());
        return Poll::Pending;
    }
    let mut taken = 0;
    while taken < available {
        let span = ring::span(begin.wrapping_add(taken as u32), available - taken, IN_LEN);
        let count = take(Piece { page, offset: IN + span.start, len: span.len() });
        taken += count;
        if count < span.len() {
            break;
        }
    }
    let cons = begin.wrapping_add(taken as u32);
    page.u32(IN_CONS).store(cons, Ordering::Release);
    fence(Ordering::SeqCst);
    // The host waits for space only when it has filled the ring. It is also told
    // when the ring is empty, so that nothing hangs should it wait earlier.
    let prod = page.u32(IN_PROD).load(Ordering::Relaxed);
    if prod == cons || prod.wrapping_sub(begin) as usize >= IN_LEN {
        notify();
    }
    Poll::Ready(taken)
}

/// Bytes in the ring that follow each other.
struct Piece {
    page: SharedPage,
    offset: usize,
    len: usize,
}

impl Piece {
    /// Copies from the beginning of the piece into `bytes`; returns how much.
    fn copy_to(&self, bytes: &mut [u8]) -> usize {
        let count = bytes.len().min(self.len);
        self.page.read(self.offset, &mut bytes[..count]);
        count
    }
}

/// The host's flags; none from a host that has no status area.
pub(crate) fn host_flags() -> u32 {
    status_page().map_or(0, |page| page.u32(HOST_FLAGS).load(Ordering::Acquire))
}

/// Whether no more input will come than is in the ring.
fn input_ends(page: SharedPage) -> bool {
    if page.u64(STATUS).load(Ordering::Relaxed) != STATUS_MAGIC {
        return false;
    }
    let flags = page.u32(HOST_FLAGS).load(Ordering::Acquire);
    flags & HOST_STDIN == 0 || flags & HOST_EOF != 0
}

/// Whether xenstored takes requests; it may be told of the capsule only when that runs.
pub(crate) fn store_is_known() -> bool {
    host_flags() & HOST_NO_STORE == 0
}

/// Waits until xenstored takes requests.
pub(crate) async fn store_known() {
    poll_fn(|cx| {
        if store_is_known() {
            return Poll::Ready(());
        }
        evtchn::wake_on(Id::Console, cx.waker());
        Poll::Pending
    })
    .await;
}

/// Reads some bytes; 0 at the end of input, or if there is no room in `bytes`.
pub(crate) async fn read(bytes: &mut [u8]) -> usize {
    if bytes.is_empty() {
        return 0;
    }
    poll_fn(|cx| {
        let mut filled = 0;
        poll_input(cx, |piece| {
            let count = piece.copy_to(&mut bytes[filled..]);
            filled += count;
            count
        })
    })
    .await
}

/// Appends input up to and with `delimiter` to `bytes`; returns how much, less at the end of input.
pub(crate) async fn read_until(delimiter: u8, bytes: &mut Vec<u8>) -> usize {
    let begin = bytes.len();
    loop {
        let mut found = false;
        let taken = poll_fn(|cx| {
            poll_input(cx, |piece| {
                let old = bytes.len();
                bytes.resize(old + piece.len, 0);
                piece.copy_to(&mut bytes[old..]);
                if let Some(at) = bytes[old..].iter().position(|&byte| byte == delimiter) {
                    bytes.truncate(old + at + 1);
                    found = true;
                }
                bytes.len() - old
            })
        })
        .await;
        if found || taken == 0 {
            return bytes.len() - begin;
        }
    }
}

/// The console, whose rings go along: the host is to look at them anew.
pub(crate) static SUBSYSTEM: Subsystem = Subsystem { resume, ..Subsystem::NOTHING };

fn resume(_: &Resume<'_>) {
    notify();
}
