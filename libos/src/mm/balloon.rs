//! The balloon: memory that is given back to the node while the capsule runs, and taken again.
//!
//! The protocol is in [`xen_proto::balloon`]. What is given back is taken from the heap like any
//! other allocation, in pieces as large as there are; so what the application uses stays where
//! it is, and whatever is free can go. A capsule that was built with less than its largest memory
//! has room behind the heap's end besides.

use super::heap;
use crate::{arch, console, hypercall, single::Single, start};
use alloc::vec::Vec;
use core::{cell::RefCell, ops::Range, sync::atomic::Ordering};
use xen_proto::{
    balloon::Change,
    console::{HOST_SUSPEND, HOST_TRACK, MEMORY_ANSWER, MEMORY_REQUEST, MEMORY_TARGET},
    frame::{Mfn, PAGE_SIZE, Pfn},
};

/// Free pages that stay: the library OS needs some itself, to track changed pages for a move or
/// to connect to its network anew.
const KEPT: u64 = 64;
/// Pages with which Xen is asked at once.
const BATCH: usize = 128;

/// What was taken from the heap and given back.
static GIVEN: Single<RefCell<Vec<Range<Pfn>>>> = Single::new(RefCell::new(Vec::new()));

/// Answers the host, if it asks for other memory, unless its `flags` say that it copies the capsule.
pub(crate) fn serve(flags: u32) {
    let Some(page) = console::status_page() else { return };
    let request = page.u32(MEMORY_REQUEST).load(Ordering::Acquire);
    let answer = page.u32(MEMORY_ANSWER);
    if request == answer.load(Ordering::Relaxed) || flags & (HOST_SUSPEND | HOST_TRACK) != 0 {
        return;
    }
    let target = page.u32(MEMORY_TARGET).load(Ordering::Relaxed);
    match Change::new(target, hypercall::current_reservation(), arch::usable_frames()) {
        Change::GiveBack(pages) => give_back(pages),
        Change::Take(pages) => take(pages),
        Change::Nothing => {}
    }
    answer.store(request, Ordering::Release);
    console::notify();
}

fn count(pages: &Range<Pfn>) -> u64 {
    pages.end.0 - pages.start.0
}

/// Gives so many pages back, or as many as are free.
fn give_back(pages: u64) {
    let mut free = 0;
    heap::free_pages(&mut |pages| free += count(&pages));
    let mut left = pages.min(free.saturating_sub(KEPT));
    let mut given = GIVEN.borrow_mut();
    while left > 0 && given.try_reserve(1).is_ok() {
        let Some(pages) = heap::take_pages(left) else { return };
        left -= count(&pages);
        release(&pages);
        given.push(pages);
    }
}

/// Gives pages to Xen that are nobody's.
fn release(pages: &Range<Pfn>) {
    for first in (pages.start.0..pages.end.0).step_by(BATCH) {
        let batch = Pfn(first)..Pfn(pages.end.0.min(first + BATCH as u64));
        let mut frames = [0; BATCH];
        let frames = &mut frames[..count(&batch) as usize];
        for (frame, pfn) in frames.iter_mut().zip((first..).map(Pfn)) {
            let page = core::ptr::with_exposed_provenance_mut::<u8>(arch::address_of(pfn));
            // Xen gives it to somebody else as it is.
            // SAFETY: the page is mapped and nobody's.
            unsafe { page.write_bytes(0, PAGE_SIZE) };
            *frame = start::machine_frame(pfn).0;
        }
        // SAFETY: nobody uses the pages, and nobody will before they are filled again.
        unsafe { arch::unmap_frames(batch.clone()) };
        // SAFETY: the same, and they are not mapped any more.
        let gone = unsafe { hypercall::decrease_reservation(frames) };
        assert!(gone == frames.len(), "Xen takes pages that nothing refers to");
        (batch.start.0..batch.end.0).for_each(|pfn| start::set_machine_frame(Pfn(pfn), None));
    }
}

/// Takes so many pages, or as many as Xen gives.
fn take(pages: u64) {
    let mut left = pages;
    let mut given = GIVEN.borrow_mut();
    while left > 0
        && let Some(hole) = given.pop()
    {
        let wanted = left.min(count(&hole));
        let taken = fill(Pfn(hole.end.0 - wanted)..hole.end, Edge::End);
        // SAFETY: the last ones are mapped again, and they were nobody's.
        let rest = if taken > 0 { unsafe { heap::return_pages(&hole, taken) } } else { Some(hole) };
        given.extend(rest);
        if taken < wanted {
            return;
        }
        left -= taken;
    }
    let end = heap::end();
    let most = Pfn(arch::usable_frames().min(end.0 + left));
    let taken = fill(end..most, Edge::Start);
    // SAFETY: they are mapped now, and behind the heap nothing is anybody's.
    unsafe { heap::extend(Pfn(end.0 + taken)) };
}

/// Where memory for a hole that may not suffice goes first.
#[derive(Clone, Copy)]
enum Edge {
    Start,
    End,
}

/// Takes memory for the frames of a hole, one behind the other from the edge on; returns for how
/// many there was some.
fn fill(hole: Range<Pfn>, edge: Edge) -> u64 {
    let all = count(&hole);
    let mut done = 0;
    while done < all {
        let mut frames = [0; BATCH];
        let frames = &mut frames[..BATCH.min((all - done) as usize)];
        let number = |at: u64| match edge {
            Edge::Start => hole.start.0 + at,
            Edge::End => hole.end.0 - 1 - at,
        };
        frames.iter_mut().zip(done..).for_each(|(frame, at)| *frame = number(at));
        let got = hypercall::populate(frames);
        for (&frame, at) in frames[..got].iter().zip(done..) {
            start::set_machine_frame(Pfn(number(at)), Some(Mfn(frame)));
        }
        let (from, to) = (done, done + got as u64);
        arch::map_frames(match edge {
            Edge::Start => Pfn(hole.start.0 + from)..Pfn(hole.start.0 + to),
            Edge::End => Pfn(hole.end.0 - to)..Pfn(hole.end.0 - from),
        });
        done = to;
        if got < frames.len() {
            break;
        }
    }
    done
}
