//! Page types, and page tables on their way between two machines.
//!
//! Page tables of a PV domain hold machine frames, which mean nothing elsewhere. The source
//! replaces them by the domain's own page numbers ([`canonicalise`]), the destination by the
//! machine frames that it gave these pages ([`localise`]).

use xen_proto::frame::{ENTRIES, Mfn, PAGE_SHIFT, Pfn, Pte};

use crate::domain::Page;

/// Level of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Maps pages.
    L1 = 1,
    /// Points to tables of level 1.
    L2 = 2,
    /// Points to tables of level 2.
    L3 = 3,
    /// The top.
    L4 = 4,
}

/// What Xen knows a page as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PageType {
    /// Memory without restriction.
    #[default]
    #[doc(alias = "NOTAB")]
    Data,
    /// A page table.
    Table {
        /// Its level.
        level: Level,
        /// Whether Xen keeps it as a table even if no other points to it.
        pinned: bool,
    },
    /// There is no memory, or none that the domain owns.
    #[doc(alias = "XTAB")]
    Absent,
}

impl PageType {
    const PINNED: u8 = 8;

    /// As four bits of a PAGES record; `None` for [`PageType::Absent`], which is not in one.
    pub const fn to_bits(self) -> Option<u8> {
        match self {
            Self::Data => Some(0),
            Self::Table { level, pinned } => Some(level as u8 | if pinned { Self::PINNED } else { 0 }),
            Self::Absent => None,
        }
    }

    /// From four bits of a PAGES record; `None` if they mean nothing.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        let level = match bits & !Self::PINNED {
            0 if bits == 0 => return Some(Self::Data),
            1 => Level::L1,
            2 => Level::L2,
            3 => Level::L3,
            4 => Level::L4,
            _ => return None,
        };
        Some(Self::Table { level, pinned: bits & Self::PINNED != 0 })
    }

    /// The level, if it is a page table.
    pub const fn level(self) -> Option<Level> {
        match self {
            Self::Table { level, .. } => Some(level),
            Self::Data | Self::Absent => None,
        }
    }
}

/// What is wrong with an entry of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    /// It leads to memory that is not the domain's.
    #[error("entry {index} leads outside the domain (frame {frame:#x})")]
    Outside {
        /// Its place in the table.
        index: usize,
        /// The frame in it, machine or pfn.
        frame: u64,
    },
    /// It maps a large page, which PV domains do not have.
    #[error("entry {index} maps a large page")]
    LargePage {
        /// Its place in the table.
        index: usize,
    },
    /// It is in the part of the top table that belongs to Xen.
    #[error("entry {index} is one of Xen's own")]
    Reserved {
        /// Its place in the table.
        index: usize,
    },
}

/// Bits 12 to 51.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Bit 7 maps a large page at levels above 1; at level 1 it is an attribute.
const PSE: u64 = 1 << 7;
/// Slots of the top table that are Xen's (`__HYPERVISOR_VIRT_START`).
const XEN_SLOTS: std::ops::Range<usize> = 256..272;
/// Set by the processor, and not kept on the way.
const ACCESSED_DIRTY: u64 = Pte::ACCESSED | Pte::DIRTY;

fn entries(page: &mut Page) -> impl Iterator<Item = (usize, &mut [u8; 8])> {
    page.as_chunks_mut::<8>().0.iter_mut().enumerate()
}

fn translate(page: &mut Page, level: Level, frame_of: impl Fn(u64) -> Option<u64>) -> Result<(), BadEntry> {
    for (index, bytes) in entries(page) {
        let entry = u64::from_le_bytes(*bytes);
        if !Pte(entry).is_present() {
            continue;
        }
        if level > Level::L1 && entry & PSE != 0 {
            return Err(BadEntry::LargePage { index });
        }
        let frame = Pte(entry).mfn().0;
        let new = frame_of(frame).filter(|new| *new <= FRAME >> PAGE_SHIFT);
        let new = new.ok_or(BadEntry::Outside { index, frame })?;
        *bytes = (entry & !FRAME | new << PAGE_SHIFT).to_le_bytes();
    }
    Ok(())
}

/// Replaces machine frames by pfns, and removes Xen's own slots from a top table.
///
/// # Errors
/// If an entry has no place in a domain that can move. The page is spoilt then.
pub fn canonicalise(
    page: &mut Page,
    level: Level,
    pfn_of: impl Fn(Mfn) -> Option<Pfn>,
) -> Result<(), BadEntry> {
    if level == Level::L4 {
        page[XEN_SLOTS.start * 8..XEN_SLOTS.end * 8].fill(0);
    }
    translate(page, level, |mfn| pfn_of(Mfn(mfn)).map(|pfn| pfn.0))
}

/// Replaces pfns by machine frames.
///
/// # Errors
/// If an entry leads outside the domain, maps a large page or is Xen's. The page is spoilt then.
pub fn localise(page: &mut Page, level: Level, mfn_of: impl Fn(Pfn) -> Option<Mfn>) -> Result<(), BadEntry> {
    if level == Level::L4
        && let Some((index, _)) =
            entries(page).find(|(index, entry)| XEN_SLOTS.contains(index) && **entry != [0; 8])
    {
        return Err(BadEntry::Reserved { index });
    }
    translate(page, level, |pfn| mfn_of(Pfn(pfn)).map(|mfn| mfn.0))
}

/// The first entry of a canonical level 1 table that maps consecutive pages with the same flags,
/// which is all that needs to be sent of it. Accessed and dirty bits do not count, and are set
/// in the answer.
///
/// A domain's unused memory is mapped by such tables.
pub fn linear(page: &Page) -> Option<u64> {
    let entries = page.as_chunks::<8>().0;
    let first = u64::from_le_bytes(entries[0]) | ACCESSED_DIRTY;
    let as_expected = |(index, entry): (usize, &[u8; 8])| {
        u64::from_le_bytes(*entry) | ACCESSED_DIRTY == linear_entry(first, index)
    };
    (begins_linear(first) && entries.iter().enumerate().all(as_expected)).then_some(first)
}

/// Writes the table of which [`linear`] found the first entry. `None`, and nothing is written, if
/// no such table begins with it.
pub fn expand_linear(first: u64, page: &mut Page) -> Option<()> {
    begins_linear(first).then(|| {
        for (index, entry) in entries(page) {
            *entry = linear_entry(first, index).to_le_bytes();
        }
    })
}

/// Whether there are so many frames, so that counting never reaches the flags above.
fn begins_linear(first: u64) -> bool {
    Pte(first).is_present()
        && first & ACCESSED_DIRTY == ACCESSED_DIRTY
        && Pte(first).mfn().0 + ENTRIES as u64 <= FRAME >> PAGE_SHIFT
}

fn linear_entry(first: u64, index: usize) -> u64 {
    first + ((index as u64) << PAGE_SHIFT)
}

/// Whether a page is all zero.
pub fn is_zero(page: &Page) -> bool {
    // In blocks, so that pages with content are told by their first bytes while zero pages are
    // read as fast as memory is.
    page.as_chunks::<128>().0.iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xen_proto::frame::PAGE_SIZE;

    use super::*;

    const NR_PAGES: u64 = 600;
    const LEVELS: [Level; 4] = [Level::L1, Level::L2, Level::L3, Level::L4];

    fn table(entry: impl Fn(u64) -> u64) -> Page {
        let mut page = [0; PAGE_SIZE];
        entries(&mut page).for_each(|(index, bytes)| *bytes = entry(index as u64).to_le_bytes());
        page
    }

    fn pfn_of(mfn: Mfn) -> Option<Pfn> {
        mfn.0.checked_sub(0x1000).filter(|pfn| *pfn < NR_PAGES).map(Pfn)
    }

    fn mfn_of(pfn: Pfn) -> Option<Mfn> {
        (pfn.0 < NR_PAGES).then_some(Mfn(0x5_0000 + pfn.0))
    }

    #[test]
    fn frames_become_pages_and_then_other_frames() {
        for level in LEVELS {
            let flags = Pte::table(Mfn(0)).0 | 1 << 63 | if level == Level::L1 { PSE } else { 0 };
            let mut page = table(|index| match index {
                256..272 if level == Level::L4 => 0,
                7 => 0x1234_5000,
                _ => (0x1000 + index) << 12 | flags,
            });
            canonicalise(&mut page, level, pfn_of).unwrap();
            localise(&mut page, level, mfn_of).unwrap();
            let expected = table(|index| match index {
                256..272 if level == Level::L4 => 0,
                7 => 0x1234_5000,
                _ => (0x5_0000 + index) << 12 | flags,
            });
            assert_eq!(page, expected);
        }
    }

    #[test]
    fn xens_slots_do_not_travel() {
        let mut page = table(|index| if XEN_SLOTS.contains(&(index as usize)) { u64::MAX } else { 0 });
        assert_eq!(localise(&mut page, Level::L4, mfn_of), Err(BadEntry::Reserved { index: 256 }));
        canonicalise(&mut page, Level::L4, pfn_of).unwrap();
        assert!(is_zero(&page));
    }

    #[test]
    fn entries_that_lead_outside_are_found_on_both_sides() {
        let mut page = table(|index| if index == 9 { 0xfff << 12 | 1 } else { 0 });
        let outside = Err(BadEntry::Outside { index: 9, frame: 0xfff });
        assert_eq!(canonicalise(&mut page.clone(), Level::L1, pfn_of), outside);
        assert_eq!(localise(&mut page, Level::L1, mfn_of), outside);
    }

    #[test]
    fn large_pages_are_refused_above_level_1() {
        for level in &LEVELS[1..] {
            let mut page = table(|index| if index == 3 { 5 << 12 | PSE | 1 } else { 0 });
            assert_eq!(localise(&mut page, *level, mfn_of), Err(BadEntry::LargePage { index: 3 }));
        }
    }

    #[test]
    fn a_table_of_consecutive_pages_is_one_entry() {
        let flags = Pte::PRESENT | Pte::WRITABLE;
        let page = table(|index| (index + 17) << 12 | flags | if index % 3 == 0 { Pte::DIRTY } else { 0 });
        let first = linear(&page).unwrap();
        let mut again = [0; PAGE_SIZE];
        expand_linear(first, &mut again).unwrap();
        assert_eq!(again, table(|index| (index + 17) << 12 | flags | ACCESSED_DIRTY));
        let read_only_page = table(|index| (index + 17) << 12 | if index == 80 { 1 } else { flags });
        assert_eq!(linear(&read_only_page), None);
        assert_eq!(linear(&[0; PAGE_SIZE]), None);
    }

    #[test]
    fn types_survive_as_four_bits() {
        for bits in 0..16 {
            if let Some(page_type) = PageType::from_bits(bits) {
                assert_eq!(page_type.to_bits(), Some(bits));
            }
        }
        assert_eq!(PageType::Absent.to_bits(), None);
        assert_eq!((0..=255).filter_map(PageType::from_bits).count(), 9);
    }

    #[test]
    fn one_bit_makes_a_page_not_zero() {
        let mut page = [0; PAGE_SIZE];
        assert!(is_zero(&page));
        for at in [0, 1, 127, 128, 2000, PAGE_SIZE - 1] {
            page[at] = 4;
            assert!(!is_zero(&page));
            page[at] = 0;
        }
    }

    proptest! {
        #[test]
        fn any_table_is_read_without_panic(entry: u64, at in 0usize..ENTRIES, first: u64) {
            let mut page = [0; PAGE_SIZE];
            page[at * 8..at * 8 + 8].copy_from_slice(&entry.to_le_bytes());
            for level in LEVELS {
                let _ = canonicalise(&mut page.clone(), level, pfn_of);
                let _ = localise(&mut page.clone(), level, mfn_of);
            }
            if expand_linear(first, &mut page).is_some() {
                prop_assert_eq!(linear(&page), Some(first));
            }
        }
    }
}
