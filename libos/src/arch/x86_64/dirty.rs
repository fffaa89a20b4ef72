//! Pages that were written, as the processor notes it in the page tables.
//!
//! The processor sets the accessed bit of every entry by which it finds a page, and the
//! dirty bit of the last one when it writes. Where the entry that points to a level 1 table
//! has no accessed bit, nothing has been used through that table, and it need not be looked
//! at: the cost follows memory in use.
//!
//! The bits are cleared by Xen, many with one hypercall. What the processor has in its TLB
//! it does not look up again, so the TLB is emptied in between:
//!
//! 1. Accessed bits are cleared, and the tables remembered that had one. The TLB is emptied.
//!    A page that is written from here on sets the bit again, if only for the next time.
//! 2. Dirty bits of these tables are collected and cleared. The TLB is emptied.
//!    A page that is written from here on sets its dirty bit again; what was written to it
//!    before, while its bit was clear already, is seen by whoever reads the page later.

use super::paging::{Table, Updates, index, usable_frames};
use crate::hypercall;
use xen_proto::frame::{ENTRIES, Pfn, Pte};

/// Level 1 tables that serve the most memory that there can be.
const TABLES_MAX: usize = 1024;

/// Whether collecting leaves bits clear.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The next collection finds what is written after this.
    Clear,
    /// Nothing changes.
    Leave,
}

/// Collects the pages that have been written since their dirty bits were last cleared.
///
/// `visit` gets 64 pages at a time: the number of their word in a bitmap, and their bits,
/// not all zero. It returns the bits of those pages that it has taken note of, whose dirty
/// bits may be cleared; the others stay dirty. Pages below `image_end` are always looked at.
pub(crate) fn collect_dirty(image_end: Pfn, then: Then, mut visit: impl FnMut(usize, u64) -> u64) {
    let mut updates = Updates::new();
    let used = take_accessed(image_end, then, &mut updates);
    for first in (0..usable_frames()).step_by(ENTRIES) {
        let chunk = first as usize / ENTRIES;
        if used[chunk / 64] & 1 << (chunk % 64) == 0 {
            continue;
        }
        let Some(table) = Table::find(Pfn(first), 1) else { continue };
        for word in 0..ENTRIES / 64 {
            let at = |bit: u32| word * 64 + bit as usize;
            let dirty = (0..64).fold(0u64, |dirty, bit| {
                let set = table.read(at(bit)).0 & Pte::DIRTY != 0;
                dirty | u64::from(set) << bit
            });
            if dirty == 0 {
                continue;
            }
            let mut taken = visit(chunk * (ENTRIES / 64) + word, dirty) & dirty;
            while then == Then::Clear && taken != 0 {
                let at = at(taken.trailing_zeros());
                updates.push(table.entry_address(at), table.read(at).without(Pte::DIRTY));
                taken &= taken - 1;
            }
        }
    }
    if then == Then::Clear {
        updates.send();
        hypercall::flush_tlb();
    }
}

/// Which level 1 tables have been used, one bit for each.
fn take_accessed(image_end: Pfn, then: Then, updates: &mut Updates) -> [u64; TABLES_MAX / 64] {
    let mut used = [0; TABLES_MAX / 64];
    for first in (0..usable_frames()).step_by(ENTRIES) {
        let chunk = first as usize / ENTRIES;
        let Some(table) = Table::find(Pfn(first), 2) else { continue };
        let at = index(Pfn(first), 2);
        let entry = table.read(at);
        let accessed = entry.0 & Pte::ACCESSED != 0;
        if accessed || first < image_end.0 {
            used[chunk / 64] |= 1 << (chunk % 64);
        }
        if accessed && then == Then::Clear {
            updates.push(table.entry_address(at), entry.without(Pte::ACCESSED));
        }
    }
    if then == Then::Clear {
        updates.send();
        hypercall::flush_tlb();
    }
    used
}
