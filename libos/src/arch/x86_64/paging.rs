//! Page tables.
//!
//! A PV guest's page tables are the real ones. The guest may read them, and
//! changes them through Xen, which lets no table be mapped writable.

use crate::{hypercall, single::Single, start};
use core::{cell::Cell, ops::Range};
use xen_proto::{
    frame::{ENTRIES, Mfn, PAGE_SIZE, Pfn, Pte, entry_span, table_index},
    hypercall::MmuUpdate,
};

/// Virtual address of frame 0, `VIRT_BASE` of our notes.
pub(crate) const BASE: usize = 0xffff_ffff_8000_0000;

/// Most pages that fit above [`BASE`]; what a domain has beyond, stays unused.
///
/// 4 MiB at the very end are left out, so that no address computation wraps.
const PAGES_MAX: u64 = (0x8000_0000 - 0x40_0000) / PAGE_SIZE as u64;

/// Xen's table from machine frames to the guest's, readable by every PV guest.
const MACHINE_TO_PHYSICAL: usize = 0xffff_8000_0000_0000;

/// The frame that is mapped at `address`.
pub(crate) fn frame_at(address: usize) -> Pfn {
    Pfn((address.wrapping_sub(BASE) / PAGE_SIZE) as u64)
}

/// Address at which the domain's frame `pfn` is mapped.
pub(crate) fn address_of(pfn: Pfn) -> usize {
    BASE + pfn.0 as usize * PAGE_SIZE
}

/// The domain's number for its own frame `mfn`.
pub(crate) fn own_frame(mfn: Mfn) -> Pfn {
    let entry = core::ptr::with_exposed_provenance::<u64>(MACHINE_TO_PHYSICAL + mfn.0 as usize * 8);
    // SAFETY: Xen maps the table read-only into every PV guest, with an entry for
    // each machine frame, and `mfn` comes from Xen, the builder or a page table.
    Pfn(unsafe { entry.read_volatile() })
}

/// Maps `mfn`, which is not the domain's own memory, at `address` in place of what is there.
///
/// # Safety
/// The page at `address` must be the caller's alone, and nothing may refer to its content.
///
/// # Panics
/// If Xen refuses.
pub(crate) unsafe fn map_at(address: usize, mfn: Mfn) {
    // SAFETY: the caller gives the page away.
    let mapped = unsafe { hypercall::update_va_mapping(address, Pte::data(mfn)) };
    mapped.expect("a page is mapped");
    REMAPPED.set(true);
}

/// Takes away what [`map_at`] has mapped at `address`, and leaves nothing.
///
/// # Safety
/// Nothing may use the page at `address` until there is one again.
///
/// # Panics
/// If Xen refuses.
pub(crate) unsafe fn unmap(address: usize) {
    // SAFETY: as the caller promises.
    let unmapped = unsafe { hypercall::update_va_mapping(address, Pte::NONE) };
    unmapped.expect("a page is unmapped");
    REMAPPED.set(true);
}

/// Whether [`map_at`] or [`unmap`] has been used.
static REMAPPED: Single<Cell<bool>> = Single::new(Cell::new(false));

/// Whether mappings have changed since this was last asked.
pub(crate) fn take_remapped() -> bool {
    REMAPPED.take()
}

/// How many frames the domain has that can be used.
pub(crate) fn usable_frames() -> u64 {
    start::info().nr_pages().min(PAGES_MAX)
}

/// The top page table.
pub(crate) fn top_table() -> Mfn {
    start::machine_frame(frame_at(start::info().page_tables()))
}

/// The frame of the level 1 table that maps `pfn`.
pub(crate) fn table_of(pfn: Pfn) -> Option<Pfn> {
    Table::find(pfn, 1).map(|table| frame_at(table.address))
}

/// Maps all memory that the domain has when it starts, as far as its builder has not mapped it,
/// and returns the frames from `first_free` on that are free afterwards.
///
/// fcapd's builder maps everything, others map little more than the image. The
/// page tables that are missing are made of the free frames themselves.
///
/// # Safety
/// Nothing else may use the frames from `first_free` on, of which at least one
/// must be mapped if any memory is not.
pub(crate) unsafe fn map_missing(first_free: Pfn) -> Range<Pfn> {
    let end = Pfn(start::populated().min(usable_frames()));
    let mut mapper = Mapper { end, free: first_free, updates: Updates::new() };
    for chunk in (0..end.0).step_by(ENTRIES) {
        // SAFETY: as the caller promises.
        unsafe { mapper.map_chunk(Pfn(chunk)) };
    }
    mapper.updates.send();
    mapper.free..end
}

/// Maps `frames`, which have got memory.
///
/// # Panics
/// If there is no table for them: then their builder has not meant them to be used.
pub(crate) fn map_frames(frames: Range<Pfn>) {
    change_frames(frames, &|frame| Pte::data(start::machine_frame(frame)));
}

/// Maps nothing at `frames` any more.
///
/// # Safety
/// Nothing may use them before they are mapped again.
pub(crate) unsafe fn unmap_frames(frames: Range<Pfn>) {
    change_frames(frames, &|_| Pte::NONE);
    hypercall::flush_tlb();
}

fn change_frames(frames: Range<Pfn>, entry: &dyn Fn(Pfn) -> Pte) {
    let mut updates = Updates::new();
    for frame in (frames.start.0..frames.end.0).map(Pfn) {
        let table = Table::find(frame, 1).expect("the builder made tables for all frames");
        updates.push(table.entry_address(index(frame, 1)), entry(frame));
    }
    updates.send();
}

struct Mapper {
    end: Pfn,
    /// The next frame to make a table of.
    free: Pfn,
    updates: Updates,
}

impl Mapper {
    /// Maps what is missing of the up to 512 frames from `first` on, which share a level 1 table.
    ///
    /// # Safety
    /// As [`map_missing`].
    unsafe fn map_chunk(&mut self, first: Pfn) {
        let frames = first.0..self.end.0.min(first.0 + ENTRIES as u64);
        match Table::find(first, 1) {
            Some(table) => {
                // Builders map upwards without holes.
                let mapped = |pfn: u64| table.read(pfn as usize % ENTRIES).is_present();
                if !mapped(frames.end - 1) {
                    for pfn in frames.skip_while(|&pfn| mapped(pfn)) {
                        let entry = table.entry_address(pfn as usize % ENTRIES);
                        self.updates.push(entry, Pte::data(start::machine_frame(Pfn(pfn))));
                    }
                }
            }
            None => {
                if Table::find(first, 2).is_none() {
                    // SAFETY: passed on.
                    let table = unsafe { self.new_table(|_| Pte::NONE) };
                    let parent = Table::find(first, 3).expect("the builder made the upper tables");
                    self.updates.push(parent.entry_address(index(first, 3)), table);
                    self.updates.send();
                }
                let contents = |index: usize| {
                    let pfn = first.0 + index as u64;
                    if pfn < frames.end { Pte::data(start::machine_frame(Pfn(pfn))) } else { Pte::NONE }
                };
                // SAFETY: passed on.
                let table = unsafe { self.new_table(contents) };
                let parent = Table::find(first, 2).expect("it was made above");
                self.updates.push(parent.entry_address(index(first, 2)), table);
            }
        }
    }

    /// Makes a table of a free frame and returns the entry that points to it.
    ///
    /// # Safety
    /// As [`map_missing`].
    unsafe fn new_table(&mut self, contents: impl Fn(usize) -> Pte) -> Pte {
        let frame = self.free;
        let own_mapping = match mapping(frame) {
            Some(mapping) => mapping,
            None => {
                // It may be among those that are about to be mapped.
                self.updates.send();
                mapping(frame).expect("a mapped page is free for a page table")
            }
        };
        self.free = Pfn(frame.0 + 1);
        let page = core::ptr::with_exposed_provenance_mut::<u64>(address_of(frame));
        for index in 0..ENTRIES {
            // SAFETY: the frame is mapped writable, and free as the caller promises.
            unsafe { page.add(index).write(contents(index).0) };
        }
        let mfn = start::machine_frame(frame);
        self.updates.push(own_mapping, Pte::read_only(mfn));
        Pte::table(mfn)
    }
}

/// Machine address of the level 1 entry that maps `frame`, if there is one.
fn mapping(frame: Pfn) -> Option<u64> {
    let table = Table::find(frame, 1)?;
    table.read(index(frame, 1)).is_present().then(|| table.entry_address(index(frame, 1)))
}

/// A page table in use; it can be read.
pub(super) struct Table {
    address: usize,
}

impl Table {
    /// The table of `level` that serves `frame`, if there is one.
    pub(super) fn find(frame: Pfn, level: u32) -> Option<Self> {
        let mut table = Self { address: start::info().page_tables() };
        for above in (level + 1..=4).rev() {
            let entry = table.read(index(frame, above));
            entry.is_present().then_some(())?;
            table = Self { address: address_of(own_frame(entry.mfn())) };
        }
        Some(table)
    }

    pub(super) fn read(&self, index: usize) -> Pte {
        let entries = core::ptr::with_exposed_provenance::<u64>(self.address);
        assert!(index < ENTRIES);
        // SAFETY: the initial page tables and ours are mapped, and `index` is in the table.
        Pte(unsafe { entries.add(index).read_volatile() })
    }

    pub(super) fn entry_address(&self, index: usize) -> u64 {
        start::machine_frame(frame_at(self.address)).address() + index as u64 * 8
    }
}

/// Changes of page tables on their way to Xen, in order.
///
/// They map frames that were not mapped, take away the mapping of frames or make them read-only
/// that nothing else uses, or change what the processor notes in accessed and dirty bits.
pub(super) struct Updates {
    waiting: [MmuUpdate; 128],
    len: usize,
}

impl Updates {
    pub(super) fn new() -> Self {
        Self { waiting: [MmuUpdate { entry: 0, value: 0 }; 128], len: 0 }
    }

    pub(super) fn push(&mut self, entry: u64, value: Pte) {
        if self.len == self.waiting.len() {
            self.send();
        }
        self.waiting[self.len] = MmuUpdate { entry, value: value.0 };
        self.len += 1;
    }

    pub(super) fn send(&mut self) {
        if self.len > 0 {
            // SAFETY: the updates are such as said above, so that memory in use keeps its mapping.
            let done = unsafe { hypercall::mmu_update(&self.waiting[..self.len]) };
            done.expect("page tables are changed");
            self.len = 0;
        }
    }
}

pub(super) fn index(frame: Pfn, level: u32) -> usize {
    table_index(address_of(frame), level)
}

const _: () = assert!(entry_span(2) == ENTRIES * PAGE_SIZE && BASE.is_multiple_of(entry_span(3)));
