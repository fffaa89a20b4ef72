//! Dirty bits of a guest's page tables, read and cleared from dom0.
//!
//! A PV guest's page tables are the real ones: the processor sets the dirty bit of the entry
//! through which a page is written. So a look at all tables of the lowest level shows what was
//! written since the last one, without help of the guest and without shadow page tables. The
//! domain must be held meanwhile.
//!
//! The bits do not tell of writes by others: by Xen (page tables and descriptors, which it changes
//! for the guest), by backends through grants, by the toolstack. Nor do they tell of writes
//! through an entry that was made and removed between two looks, as Linux makes one to change its
//! own code when it suspends; entries that a look has seen and the next one finds changed count as
//! written through, which covers mappings that last. So they say well what to send while the guest
//! runs, but not that a page is unchanged: whoever relies on that has to compare.

use std::{collections::HashMap, io};

use xen_proto::frame::{ENTRIES, PAGE_SIZE, Pte};

use super::{
    builder::Host,
    m2p::M2p,
    p2m::P2m,
    sys::{DOM0, Mapping, TYPES_MAX},
};

/// Tables that are mapped at a time.
const BATCH: usize = 256;
/// Entries that are changed at a time.
const UPDATES: usize = 1024;
/// References to a grant table's entries in a frame.
const GRANTS_PER_FRAME: usize = PAGE_SIZE / xen_proto::gnttab::ENTRY_LEN;

/// Level of the table that a frame of this type (`XEN_DOMCTL_PFINFO_*`) is; 0 for other pages.
pub fn level(page_type: u32) -> u8 {
    // Above are pages that are none of the domain's.
    match page_type >> 28 {
        kind @ (1..=4 | 9..=12) => (kind & 7) as u8,
        _ => 0,
    }
}

/// What is remembered between two looks, and how to look.
#[derive(Debug, Default)]
pub struct DirtyBits {
    /// Writable entries of each table of the lowest level: index and frame.
    writable: HashMap<u64, Box<[u64; ENTRIES]>>,
}

impl DirtyBits {
    /// Reports the pages that were written since the last look, and looks for new writes from now
    /// on. The domain is held.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn look(
        &mut self,
        host: &Host,
        domid: u32,
        p2m: &P2m,
        m2p: &M2p,
        report: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        let mut lowest = Vec::new();
        // Rewriting an entry of the second level has Xen flush what processors remember.
        let mut second = None;
        for pages in p2m.present().chunks(TYPES_MAX) {
            let frames: Vec<u64> = pages.iter().map(|&(_, frame)| frame).collect();
            let types = host.hypercalls.page_types(domid, &frames)?;
            for (frame, page_type) in frames.into_iter().zip(types) {
                match level(page_type) {
                    1 => lowest.push(frame),
                    2 => second = Some(frame),
                    _ => {}
                }
            }
        }
        let mut writable = HashMap::with_capacity(lowest.len());
        let mut updates = Vec::new();
        for frames in lowest.chunks(BATCH) {
            let (tables, there) = host.foreign.map_what_is_there(domid, frames)?;
            for (index, (&frame, there)) in frames.iter().zip(there).enumerate() {
                if !there {
                    continue;
                }
                let now = read_table(&tables, index);
                let before = self.writable.remove(&frame);
                let mut seen = |mfn: u64| p2m.page_of(m2p, mfn).into_iter().for_each(&mut *report);
                for (entry, &value) in now.iter().enumerate() {
                    let pte = Pte(value);
                    let is_writable = pte.is_present() && value & Pte::WRITABLE != 0;
                    let old = before.as_ref().map_or(0, |before| before[entry]);
                    if old != 0 && (!is_writable || pte.mfn().0 != Pte(old).mfn().0) {
                        seen(Pte(old).mfn().0);
                    }
                    if pte.is_present() && value & Pte::DIRTY != 0 {
                        seen(pte.mfn().0);
                        updates.push((frame << 12 | (entry as u64) << 3, value & !Pte::DIRTY));
                    }
                }
                let kept = now.map(|value| if value & 3 == 3 { value } else { 0 });
                writable.insert(frame, Box::new(kept));
            }
        }
        // Tables that are no tables any more.
        for before in std::mem::take(&mut self.writable).into_values() {
            for &old in before.iter().filter(|&&old| old != 0) {
                p2m.page_of(m2p, Pte(old).mfn().0).into_iter().for_each(&mut *report);
            }
        }
        self.writable = writable;
        if !updates.is_empty() {
            if let Some(frame) = second
                && let Some(flush) = flush(host, domid, frame)?
            {
                updates.push(flush);
            }
            for updates in updates.chunks(UPDATES) {
                host.hypercalls.mmu_update(domid, updates)?;
            }
        }
        Ok(())
    }
}

fn read_table(tables: &Mapping, index: usize) -> [u64; ENTRIES] {
    let mut bytes = [0; PAGE_SIZE];
    tables.read(index * PAGE_SIZE, &mut bytes);
    let words = bytes.as_chunks().0;
    std::array::from_fn(|entry| u64::from_le_bytes(words[entry]))
}

/// An update of a table of the second level that changes nothing.
fn flush(host: &Host, domid: u32, frame: u64) -> io::Result<Option<(u64, u64)>> {
    let table = host.foreign.map_to_read(domid, &[frame])?;
    let entries = read_table(&table, 0);
    let found = entries.iter().position(|&value| Pte(value).is_present());
    Ok(found.map(|entry| (frame << 12 | (entry as u64) << 3, entries[entry])))
}

/// Reports the pages that others may write to by the domain's grants.
///
/// # Errors
/// If Xen refuses.
pub fn granted(host: &Host, domid: u32, p2m: &P2m, m2p: &M2p, report: &mut dyn FnMut(u64)) -> io::Result<()> {
    let frames = host.hypercalls.grant_frames(domid)?;
    let table = host.foreign.map(domid, &frames)?;
    for index in 0..frames.len() * GRANTS_PER_FRAME {
        let word = table.read_u64(index * xen_proto::gnttab::ENTRY_LEN);
        // GTF_permit_access without GTF_readonly.
        if word & 0x7 == 1 && word >> 16 & 0xffff == u64::from(DOM0) {
            p2m.page_of(m2p, word >> 32).into_iter().for_each(&mut *report);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_have_a_level() {
        for (kind, expected) in
            [(0, 0), (1, 1), (4, 4), (5, 0), (9, 1), (0xc, 4), (0xd, 0), (0xe, 0), (0xf, 0)]
        {
            assert_eq!(level(kind << 28), expected);
        }
    }
}
