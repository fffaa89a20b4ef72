//! Page tables.
//!
//! A PV guest's page tables are the real ones. The guest may read them, and
//! changes them through Xen, which lets no table be mapped writable.

use crate::{hypercall, start};
use core::ops::Range;
use xen_proto::{
    frame::{ENTRIES, Mfn, PAGE_SIZE, Pfn, Pte, entry_span, table_index},
    hypercall::MmuUpdate,
    start_info::StartInfo,
};

/// Virtual address of frame 0, `VIRT_BASE` of our notes.
pub(crate) const BASE: usize = 0xffff_ffff_8000_0000;

/// Most pages that fit above [`BASE`]; what a domain has beyond, stays unused.
///
/// 4 MiB at the very end are left out, so that no address computation wraps.
const PAGES_MAX: u64 = (0x8000_0000 - 0x40_0000) / PAGE_SIZE as u64;

/// Xen's table from machine frames to the guest's, readable by every PV guest.
const MACHINE_TO_PHYSICAL: usize = 0xffff_8000_0000_0000;

/// Address at which the domain's own frame `mfn` is mapped.
pub(crate) fn address_of_mfn(mfn: Mfn) -> usize {
    let entry = core::ptr::with_exposed_provenance::<u64>(MACHINE_TO_PHYSICAL + mfn.0 as usize * 8);
    // SAFETY: Xen maps the table read-only into every PV guest, with an entry for
    // each machine frame, and `mfn` comes from Xen, the builder or a page table.
    let pfn = Pfn(unsafe { entry.read_volatile() });
    BASE + pfn.0 as usize * PAGE_SIZE
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
}

/// Maps all memory of the domain, as far as its builder has not, and returns the
/// frames from `first_free` on that are free afterwards.
///
/// fcapd's builder maps everything, others map little more than the image. The
/// page tables that are missing are made of the free frames themselves.
///
/// # Safety
/// Nothing else may use the frames from `first_free` on, of which at least one
/// must be mapped if any memory is not.
pub(crate) unsafe fn map_missing(info: &StartInfo, first_free: Pfn) -> Range<Pfn> {
    let end = Pfn(info.nr_pages.min(PAGES_MAX));
    let mut mapper = Mapper { info, end, free: first_free, updates: Updates::new() };
    for chunk in (0..end.0).step_by(ENTRIES) {
        // SAFETY: as the caller promises.
        unsafe { mapper.map_chunk(Pfn(chunk)) };
    }
    mapper.updates.send();
    mapper.free..end
}

struct Mapper<'a> {
    info: &'a StartInfo,
    end: Pfn,
    /// The next frame to make a table of.
    free: Pfn,
    updates: Updates,
}

impl Mapper<'_> {
    /// Maps what is missing of the up to 512 frames from `first` on, which share a level 1 table.
    ///
    /// # Safety
    /// As [`map_missing`].
    unsafe fn map_chunk(&mut self, first: Pfn) {
        let frames = first.0..self.end.0.min(first.0 + ENTRIES as u64);
        match self.find(first, 1) {
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
                if self.find(first, 2).is_none() {
                    // SAFETY: passed on.
                    let table = unsafe { self.new_table(|_| Pte::NONE) };
                    let parent = self.find(first, 3).expect("the builder made the upper tables");
                    self.updates.push(parent.entry_address(index(first, 3)), table);
                    self.updates.send();
                }
                let contents = |index: usize| {
                    let pfn = first.0 + index as u64;
                    if pfn < frames.end { Pte::data(start::machine_frame(Pfn(pfn))) } else { Pte::NONE }
                };
                // SAFETY: passed on.
                let table = unsafe { self.new_table(contents) };
                let parent = self.find(first, 2).expect("it was made above");
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
        let own_mapping = match self.mapping(frame) {
            Some(mapping) => mapping,
            None => {
                // It may be among those that are about to be mapped.
                self.updates.send();
                self.mapping(frame).expect("a mapped page is free for a page table")
            }
        };
        self.free = Pfn(frame.0 + 1);
        let page = core::ptr::with_exposed_provenance_mut::<u64>(address(frame));
        for index in 0..ENTRIES {
            // SAFETY: the frame is mapped writable, and free as the caller promises.
            unsafe { page.add(index).write(contents(index).0) };
        }
        let mfn = start::machine_frame(frame);
        self.updates.push(own_mapping, Pte::read_only(mfn));
        Pte::table(mfn)
    }

    /// Machine address of the level 1 entry that maps `frame`, if there is one.
    fn mapping(&self, frame: Pfn) -> Option<u64> {
        let table = self.find(frame, 1)?;
        table.read(index(frame, 1)).is_present().then(|| table.entry_address(index(frame, 1)))
    }

    /// The table of `level` that serves `frame`, if there is one.
    fn find(&self, frame: Pfn, level: u32) -> Option<Table> {
        let mut table = Table { address: self.info.pt_base as usize };
        for above in (level + 1..=4).rev() {
            let entry = table.read(index(frame, above));
            entry.is_present().then_some(())?;
            table = Table { address: address_of_mfn(entry.mfn()) };
        }
        Some(table)
    }
}

/// A page table in use; it can be read.
struct Table {
    address: usize,
}

impl Table {
    fn read(&self, index: usize) -> Pte {
        let entries = core::ptr::with_exposed_provenance::<u64>(self.address);
        assert!(index < ENTRIES);
        // SAFETY: the initial page tables and ours are mapped, and `index` is in the table.
        Pte(unsafe { entries.add(index).read_volatile() })
    }

    fn entry_address(&self, index: usize) -> u64 {
        let pfn = Pfn(((self.address - BASE) / PAGE_SIZE) as u64);
        start::machine_frame(pfn).address() + index as u64 * 8
    }
}

/// Changes of page tables on their way to Xen, in order.
struct Updates {
    waiting: [MmuUpdate; 128],
    len: usize,
}

impl Updates {
    fn new() -> Self {
        Self { waiting: [MmuUpdate { entry: 0, value: 0 }; 128], len: 0 }
    }

    fn push(&mut self, entry: u64, value: Pte) {
        if self.len == self.waiting.len() {
            self.send();
        }
        self.waiting[self.len] = MmuUpdate { entry, value: value.0 };
        self.len += 1;
    }

    fn send(&mut self) {
        if self.len > 0 {
            // SAFETY: the updates map frames that were not mapped, and make the
            // frames that became tables read-only, which nothing else uses.
            let done = unsafe { hypercall::mmu_update(&self.waiting[..self.len]) };
            done.expect("page tables are extended");
            self.len = 0;
        }
    }
}

fn address(frame: Pfn) -> usize {
    BASE + frame.0 as usize * PAGE_SIZE
}

fn index(frame: Pfn, level: u32) -> usize {
    table_index(address(frame), level)
}

const _: () = assert!(entry_span(2) == ENTRIES * PAGE_SIZE && BASE.is_multiple_of(entry_span(3)));
