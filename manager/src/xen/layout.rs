//! Where everything goes in a new domain's memory, and its page tables.
//!
//! The domain's first pages are mapped from `VIRT_BASE` on, in this order (`xen.h`, "start of
//! day"):
//!
//! ```text
//! kernel | boot module | p2m list | start info | xenstore ring | console page | page tables | boot stack | rest
//! ```
//!
//! A capsule finds all of its memory mapped, so that its library OS need not build a page
//! table. One that has less than its largest memory finds p2m list and page tables for all of it:
//! what it lacks is a hole behind what it has. Other kernels get what Xen's own builder gives them: at least 512 KiB behind the
//! boot stack, up to the next border of 4 MiB. All pages are 4 KiB pages; those of the page
//! tables are read-only.

use std::ops::Range;

use xen_proto::frame::{ENTRIES, Mfn, PAGE_SHIFT, PAGE_SIZE, Pte, table_index};

use crate::image::Kernel;

/// Behind the boot stack of a kernel that is not ours.
const PADDING_PAGES: u64 = (512 << 10) / PAGE_SIZE as u64;
/// Where the initial mapping of a kernel that is not ours ends.
const END_ALIGN_PAGES: u64 = (4 << 20) / PAGE_SIZE as u64;
/// What a capsule needs for its heap at the very least.
const LEAST_HEAP_PAGES: u64 = 16;

/// Why a kernel does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It needs at least this many pages.
    TooSmall(u64),
    /// It can use at most this many pages.
    TooLarge(u64),
}

/// The pages of a domain, as numbers from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Virtual address of page 0.
    pub virt_base: u64,
    /// Pages of the domain.
    pub nr_pages: u64,
    /// Pages that the kernel's segments touch.
    pub kernel: Range<u64>,
    /// Pages for the boot module.
    pub module: Range<u64>,
    /// Pages of the p2m list.
    pub p2m: Range<u64>,
    /// The start-info page.
    pub start_info: u64,
    /// The xenstore ring's page.
    pub store: u64,
    /// The console page.
    pub console: u64,
    /// Page tables: the top one, then those of level 3, 2, 1.
    pub tables: Range<u64>,
    /// The boot stack, one page.
    pub stack: u64,
    /// Pages that are mapped.
    pub mapped: u64,
}

impl Layout {
    /// Lays out a domain of `nr_pages`, of which the first `populated` have memory.
    ///
    /// # Errors
    /// If the kernel needs more pages, or its address space has no room for so many.
    pub fn new(kernel: &Kernel, module_pages: u64, nr_pages: u64, populated: u64) -> Result<Self, Error> {
        // What lies between VIRT_BASE and Xen, or the end of the address space.
        let room = (if kernel.virt_base >> 63 == 0 { 1 << 47 } else { 0u64 }).wrapping_sub(kernel.virt_base);
        if nr_pages > room >> PAGE_SHIFT {
            return Err(Error::TooLarge(room >> PAGE_SHIFT));
        }
        let layout = Self::unchecked(kernel, module_pages, nr_pages);
        let heap = if kernel.is_capsule { LEAST_HEAP_PAGES } else { 0 };
        if layout.mapped.max(layout.stack + 1 + heap) > nr_pages {
            return Err(Error::TooSmall(Self::least_pages(kernel, module_pages)));
        }
        if populated < nr_pages && layout.stack + 1 + heap > populated {
            return Err(Error::TooSmall(layout.stack + 1 + heap));
        }
        Ok(layout)
    }

    /// The least number of pages that a domain of `kernel` needs.
    pub fn least_pages(kernel: &Kernel, module_pages: u64) -> u64 {
        let heap = if kernel.is_capsule { LEAST_HEAP_PAGES } else { 0 };
        let mut least = kernel.pages().end;
        // More pages need a longer p2m list and more tables: goes up until it fits.
        loop {
            let layout = Self::unchecked(kernel, module_pages, least);
            let needed = (layout.stack + 1 + heap).max(layout.mapped);
            if needed <= least {
                return least;
            }
            least = needed;
        }
    }

    /// The layout for `nr_pages`, which may be too few.
    fn unchecked(kernel: &Kernel, module_pages: u64, nr_pages: u64) -> Self {
        let pages = kernel.pages();
        let module = pages.end..pages.end + module_pages;
        let p2m = module.end..module.end + (nr_pages * 8).div_ceil(PAGE_SIZE as u64);
        let start_info = p2m.end;
        let first_table = start_info + 3;
        let (tables, mapped) = if kernel.is_capsule {
            (table_pages(kernel.virt_base, nr_pages), nr_pages)
        } else {
            let mut tables = 4;
            loop {
                let base = kernel.virt_base >> PAGE_SHIFT;
                let end = base + first_table + tables + 1 + PADDING_PAGES;
                // Up to the boundary, but a domain that ends before it is not too small for that.
                let mapped = (end.next_multiple_of(END_ALIGN_PAGES) - base).min(nr_pages.max(end - base));
                match table_pages(kernel.virt_base, mapped) {
                    needed if needed <= tables => break (tables, mapped),
                    needed => tables = needed,
                }
            }
        };
        Self {
            virt_base: kernel.virt_base,
            nr_pages,
            kernel: pages,
            module,
            p2m,
            start_info,
            store: start_info + 1,
            console: start_info + 2,
            tables: first_table..first_table + tables,
            stack: first_table + tables,
            mapped,
        }
    }

    /// Virtual address of a page.
    pub fn address(&self, page: u64) -> u64 {
        self.virt_base.wrapping_add(page << PAGE_SHIFT)
    }

    /// The page tables' contents, page after page, as entries.
    ///
    /// `p2m` has the machine frame of each page that has memory; behind them nothing is mapped.
    pub fn tables(&self, p2m: &[u64]) -> Vec<u64> {
        let first = self.virt_base >> PAGE_SHIFT;
        let last = first + self.mapped - 1;
        let mut entries = vec![0; (self.tables.end - self.tables.start) as usize * ENTRIES];
        // Number of the first table of the level that is being filled.
        let mut level_start = 0;
        for level in (1..=4).rev() {
            // The tables of a level lie one behind the other, and so do their entries.
            let begin = level_start as usize * ENTRIES + table_index(self.virt_base as usize, level);
            level_start += spans(first, last, level);
            let slots = &mut entries[begin..];
            if level == 1 {
                for ((slot, &mfn), page) in slots.iter_mut().zip(p2m).zip(0..self.mapped) {
                    let pte = if self.tables.contains(&page) { Pte::read_only } else { Pte::data };
                    *slot = pte(Mfn(mfn)).0;
                }
            } else {
                let children = (self.tables.start + level_start) as usize;
                let count = spans(first, last, level - 1) as usize;
                for (slot, &mfn) in slots.iter_mut().zip(&p2m[children..children + count]) {
                    *slot = Pte::table(Mfn(mfn)).0;
                }
            }
        }
        entries
    }
}

/// How many tables of `level` map the virtual pages from `first` to `last`.
///
/// In pages, because the address behind the last page may be 2^64.
fn spans(first: u64, last: u64, level: u32) -> u64 {
    let shift = 9 * level;
    (last >> shift) - (first >> shift) + 1
}

/// How many tables of all levels map `pages` from `virt_base` on.
fn table_pages(virt_base: u64, pages: u64) -> u64 {
    let first = virt_base >> PAGE_SHIFT;
    (1..=4).map(|level| spans(first, first + pages.max(1) - 1, level)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use crate::image::Segment;

    fn kernel(virt_base: u64, pages: Range<u64>, is_capsule: bool) -> Kernel {
        let memory = pages.start << PAGE_SHIFT..pages.end << PAGE_SHIFT;
        let segments = vec![Segment { file: 0..0, memory }];
        Kernel { virt_base, entry: pages.start << PAGE_SHIFT, hypercall_page: None, segments, is_capsule }
    }

    /// What the processor finds for `address`, walking tables whose frames are page numbers.
    fn walk(layout: &Layout, entries: &[u64], address: u64) -> Option<Pte> {
        let mut table = layout.tables.start;
        for level in (1..=4).rev() {
            let at = (table - layout.tables.start) as usize * ENTRIES + table_index(address as usize, level);
            let pte = Pte(*entries.get(at)?);
            if !pte.is_present() {
                return None;
            }
            if level == 1 {
                return Some(pte);
            }
            table = pte.mfn().0;
        }
        None
    }

    #[test]
    fn a_small_capsule_fits_into_its_least_memory() {
        let kernel = kernel(0xffff_ffff_8000_0000, 0..16, true);
        let least = Layout::least_pages(&kernel, 1);
        // Kernel, module, p2m, three single pages, four tables, stack, heap.
        assert_eq!(least, 16 + 1 + 1 + 3 + 4 + 1 + LEAST_HEAP_PAGES);
        let new = |pages| Layout::new(&kernel, 1, pages, pages);
        assert!(new(least).is_ok());
        assert_eq!(new(least - 1), Err(Error::TooSmall(least)));
    }

    #[test]
    fn memory_up_to_the_end_of_the_address_space_is_the_most() {
        let kernel = kernel(0xffff_ffff_8000_0000, 0..16, true);
        let new = |pages| Layout::new(&kernel, 1, pages, pages);
        assert!(new(1 << 19).is_ok());
        assert_eq!(new((1 << 19) + 1), Err(Error::TooLarge(1 << 19)));
    }

    #[test]
    fn a_kernel_for_which_some_memory_is_enough_has_enough_with_more() {
        let kernel = kernel(0x7f_ffff_f000, 429..495, false);
        let least = Layout::least_pages(&kernel, 387);
        for extra in 0..2000 {
            let pages = least + extra;
            assert!(Layout::new(&kernel, 387, pages, pages).is_ok(), "{extra} more than {least}");
        }
    }

    #[test]
    fn a_capsule_with_a_hole_needs_tables_and_list_for_its_largest_memory() {
        let kernel = kernel(0xffff_ffff_8000_0000, 0..16, true);
        let most = 16_384;
        let Err(Error::TooSmall(least)) = Layout::new(&kernel, 1, most, 64) else { panic!("too little") };
        let layout = Layout::new(&kernel, 1, most, least).unwrap();
        assert_eq!((layout.nr_pages, layout.mapped), (most, most));
        // 32 pages of the list, 32 tables of level 1.
        assert_eq!(least, 16 + 1 + 32 + 3 + (32 + 3) + 1 + LEAST_HEAP_PAGES);
        let p2m: Vec<u64> = (0..least).collect();
        let entries = layout.tables(&p2m);
        let last = walk(&layout, &entries, layout.address(least - 1)).unwrap();
        assert_eq!(last.mfn().0, least - 1);
        for page in [least, least + 1, most - 1] {
            assert_eq!(walk(&layout, &entries, layout.address(page)), None);
        }
    }

    proptest! {
        #[test]
        fn every_mapped_page_is_found_where_it_belongs(
            virt_base in prop_oneof![
                Just(0u64), Just(0xffff_ffff_8000_0000), Just(0xffff_ffff_8000_1000),
                Just(0x7f_ffff_f000), Just(0xffff_8800_0000_0000),
            ],
            start in 0u64..700,
            len in 1u64..300,
            module in 0u64..600,
            extra in 0u64..3000,
            is_capsule: bool,
        ) {
            let kernel = kernel(virt_base, start..start + len, is_capsule);
            let nr_pages = Layout::least_pages(&kernel, module) + extra;
            let layout = Layout::new(&kernel, module, nr_pages, nr_pages).unwrap();
            prop_assert!(layout.stack < layout.mapped && layout.mapped <= nr_pages);
            let p2m: Vec<u64> = (0..nr_pages).collect();
            let entries = layout.tables(&p2m);
            for page in 0..layout.mapped {
                let pte = walk(&layout, &entries, layout.address(page)).unwrap();
                prop_assert_eq!(pte.mfn().0, page);
                prop_assert_eq!(pte.0 & Pte::WRITABLE == 0, layout.tables.contains(&page));
            }
            prop_assert!(walk(&layout, &entries, layout.address(layout.mapped)).is_none());
            let leaves = entries.iter().filter(|&&entry| entry & Pte::USER == 0 && entry != 0).count();
            prop_assert_eq!(leaves as u64, layout.mapped);
        }
    }
}
