//! The heap: all memory that nothing else uses, in one piece.

use crate::{arch, single::Single, start::Info};
use core::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    ops::Range,
    ptr::NonNull,
};
use talc::{
    TalcCell,
    base::binning::{Binning, DefaultBinning},
    source::Manual,
};
use xen_proto::frame::{PAGE_SIZE, Pfn};

#[global_allocator]
static HEAP: Heap = Heap {
    talc: Single::new(TalcCell::new(Manual)),
    exhausted: Single::new(Cell::new(false)),
    pages: Single::new(Cell::new((Pfn(0), Pfn(0)))),
};

struct Heap {
    talc: Single<TalcCell<Manual>>,
    /// The last allocation failed.
    exhausted: Single<Cell<bool>>,
    /// The first page, and the one behind the last.
    pages: Single<Cell<(Pfn, Pfn)>>,
}

impl Heap {
    fn noted(&self, allocation: *mut u8) -> *mut u8 {
        self.exhausted.set(allocation.is_null());
        allocation
    }
}

// SAFETY: passes everything on to an allocator.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the same contract.
        self.noted(unsafe { self.talc.alloc(layout) })
    }

    unsafe fn dealloc(&self, allocation: *mut u8, layout: Layout) {
        // SAFETY: the same contract.
        unsafe { self.talc.dealloc(allocation, layout) }
    }

    unsafe fn realloc(&self, allocation: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the same contract.
        self.noted(unsafe { self.talc.realloc(allocation, layout, size) })
    }
}

/// Maps all memory and makes a heap of what is free, without touching it.
///
/// # Safety
/// To be called once, before anything is allocated.
///
/// # Panics
/// If there is not even room for the allocator's own data.
pub(crate) unsafe fn init(info: Info) {
    // SAFETY: nothing uses memory beyond what the builder has placed.
    let Range { start, end } = unsafe { arch::map_missing(first_free(info)) };
    let len = end.0.saturating_sub(start.0) as usize * PAGE_SIZE;
    let base = core::ptr::with_exposed_provenance_mut(arch::address_of(start));
    // SAFETY: the range is mapped, and it is nobody else's.
    let heap = unsafe { HEAP.talc.claim(base, len) };
    heap.expect("the domain has memory for a heap: give it more");
    HEAP.pages.set((start, end));
}

/// The first frame behind everything that the builder has placed.
///
/// Builders differ in the order of what they place, so the largest end counts. The
/// boot stack is not in use any more, and usually the last.
fn first_free(info: Info) -> Pfn {
    unsafe extern "C" {
        static __end: u8;
    }
    let in_space = |(start, len): (usize, usize)| if start >= arch::BASE { start + len } else { 0 };
    let behind = |frame: Pfn| arch::address_of(frame) + PAGE_SIZE;
    let end = [
        (&raw const __end).addr(),
        info.end(),
        in_space(info.module()),
        in_space((info.frame_list(), info.nr_pages() as usize * size_of::<u64>())),
        info.page_tables() + info.nr_page_tables() as usize * PAGE_SIZE,
        behind(arch::own_frame(info.store_mfn())),
        behind(arch::own_frame(info.console_mfn())),
    ]
    .into_iter()
    .fold(0, usize::max);
    arch::frame_at(end.next_multiple_of(PAGE_SIZE))
}

/// The first page of the heap: all before hold the image and what the builder has placed.
pub(crate) fn first_page() -> Pfn {
    HEAP.pages.get().0
}

/// Calls `visit` with all pages that are free, in ranges, in no order.
///
/// The allocator does not say which they are, so its lists are read here, as version 5.1 has
/// them (its file `src/base/chunk.rs`): the heap begins with one pointer for each size of
/// gap, to the first of such gaps; a gap begins with a pointer to the next one, and has its
/// size in its fourth word and in its last one. Should another version have it otherwise,
/// the two sizes do not agree, and nothing is found.
pub(crate) fn free_pages(visit: &mut dyn FnMut(Range<Pfn>)) {
    const HEADER: usize = 4 * size_of::<usize>();
    let (first, end) = HEAP.pages.get();
    let heap = arch::address_of(first)..arch::address_of(end);
    let word = |address: usize| {
        let inside = heap.contains(&address) && address.is_multiple_of(size_of::<usize>());
        // SAFETY: a word of the heap, all of which is mapped. What is read may be anything, and is checked.
        inside.then(|| unsafe { core::ptr::with_exposed_provenance::<usize>(address).read_volatile() })
    };
    for bin in DefaultBinning::size_to_bin(PAGE_SIZE)..DefaultBinning::BIN_COUNT {
        let mut next = word(heap.start + bin as usize * size_of::<usize>());
        while let Some(gap) = next.filter(|&gap| gap != 0) {
            let Some(size) = word(gap.saturating_add(HEADER - size_of::<usize>())) else { break };
            let end = gap.saturating_add(size);
            if word(end.wrapping_sub(size_of::<usize>())) != Some(size) {
                break;
            }
            let pages = (gap + HEADER).next_multiple_of(PAGE_SIZE)..end - size_of::<usize>();
            if pages.start < pages.end {
                visit(arch::frame_at(pages.start)..arch::frame_at(pages.end));
            }
            next = word(gap);
        }
    }
}

/// The first frame behind the heap.
pub(crate) fn end() -> Pfn {
    HEAP.pages.get().1
}

/// The layout of pages that were taken from the heap.
fn layout(pages: &Range<Pfn>) -> Layout {
    let len = (pages.end.0 - pages.start.0) as usize * PAGE_SIZE;
    Layout::from_size_align(len, PAGE_SIZE).expect("a part of memory")
}

/// Takes pages from the heap that follow each other, as many as there are in one piece, but not
/// more than `most`. What they hold is anything.
pub(crate) fn take_pages(most: u64) -> Option<Range<Pfn>> {
    let mut count = 0;
    free_pages(&mut |pages| count = count.max(pages.end.0 - pages.start.0));
    count = count.min(most);
    while count > 0 {
        let layout = layout(&(Pfn(0)..Pfn(count)));
        // Not through `HEAP`: that there are not so many is no failure of the application.
        // SAFETY: the layout has a size.
        if let Some(pages) = NonNull::new(unsafe { HEAP.talc.alloc(layout) }) {
            let first = arch::frame_at(pages.addr().get());
            return Some(first..Pfn(first.0 + count));
        }
        count /= 2;
    }
    None
}

/// Gives the last `count` of pages back that [`take_pages`] gave, or that this left of them;
/// returns those that remain.
///
/// # Safety
/// They must be mapped, and nothing may use them any more.
pub(crate) unsafe fn return_pages(pages: &Range<Pfn>, count: u64) -> Option<Range<Pfn>> {
    let address = core::ptr::with_exposed_provenance_mut(arch::address_of(pages.start));
    let rest = pages.start..Pfn(pages.end.0 - count);
    if rest.is_empty() {
        // SAFETY: they came from the heap with this layout.
        unsafe { HEAP.talc.dealloc(address, layout(pages)) };
        return None;
    }
    // SAFETY: the same; what is left has a size.
    let shrunk = unsafe { HEAP.talc.realloc(address, layout(pages), layout(&rest).size()) };
    assert!(shrunk == address, "what shrinks stays where it is");
    Some(rest)
}

/// Adds the frames from the heap's end up to `end` to it.
///
/// # Safety
/// They must be mapped, and nobody else's.
pub(crate) unsafe fn extend(end: Pfn) {
    let (first, old) = HEAP.pages.get();
    let address = |frame| core::ptr::with_exposed_provenance_mut(arch::address_of(frame));
    let old_end = NonNull::new(address(old)).expect("frames are not mapped at 0");
    // SAFETY: the heap ends there, at the border of a page, and the caller gives it what is behind.
    unsafe { HEAP.talc.extend(old_end, address(end)) };
    HEAP.pages.set((first, end));
}

/// Whether the last allocation failed, which tells such a panic from others.
pub(crate) fn is_exhausted() -> bool {
    HEAP.exhausted.get()
}
