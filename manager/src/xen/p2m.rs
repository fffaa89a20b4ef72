//! A guest's list of its memory: which machine frame is behind each of its pages.
//!
//! The guest publishes in its shared-info page where the list is (`xen.h`, `struct
//! arch_shared_info`): either one array at a virtual address, to be found through its page
//! tables, or a tree of frames. Whatever it says there, it can only ever name frames, and only
//! its own can be mapped.

use std::{io, sync::Arc};

use xen_proto::{
    balloon::NO_FRAME,
    frame::{ENTRIES, PAGE_SIZE, Pte, table_index},
};

use super::{
    m2p::M2p,
    shared_info::Arch,
    sys::{Foreign, Mapping},
};

/// Entries of the list in a page.
const PER_PAGE: u64 = (PAGE_SIZE / 8) as u64;

/// The list as it was read.
#[derive(Clone, Debug, Default)]
pub struct P2m {
    /// Frame of each page; [`P2m::NONE`] for pages without memory.
    frames: Vec<u64>,
    /// Pages that the list itself is in, in its order.
    pub own_pages: Vec<u64>,
}

impl P2m {
    /// No frame.
    pub const NONE: u64 = NO_FRAME;

    /// Reads the list of a domain that has at most `most` pages.
    ///
    /// # Errors
    /// If the guest does not say where it is, or says nonsense.
    pub fn read(foreign: &Arc<Foreign>, domid: u32, arch: &Arch, m2p: &M2p, most: u64) -> io::Result<Self> {
        let entries = arch.max_pfn;
        if entries == 0 || entries > most {
            return Err(nonsense(format!("its list of memory has {entries} entries")));
        }
        let pages = entries.div_ceil(PER_PAGE);
        let own_frames = match (arch.p2m_cr3, arch.frame_list_list) {
            (0, 0 | u64::MAX) => return Err(nonsense("it does not say where its list of memory is".into())),
            (0, top) => tree(foreign, domid, top, pages)?,
            (cr3, _) => linear(foreign, domid, cr3 >> 12, arch.p2m_vaddr, pages)?,
        };
        let mapping = foreign.map_to_read(domid, &own_frames)?;
        let mut bytes = vec![0; entries as usize * 8];
        mapping.read(0, &mut bytes);
        let mut frames: Vec<u64> = bytes.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)).collect();
        for (pfn, frame) in (0u64..).zip(&mut frames) {
            if m2p.get(*frame) != Some(pfn) {
                *frame = Self::NONE;
            }
        }
        let list = Self { frames, own_pages: Vec::new() };
        let own_pages = own_frames.iter().map(|&frame| list.page_of(m2p, frame)).collect::<Option<_>>();
        let own_pages =
            own_pages.ok_or_else(|| nonsense("its list of memory is not in its memory".into()))?;
        Ok(Self { own_pages, ..list })
    }

    /// Pages, with and without memory.
    pub fn len(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The frame behind a page.
    pub fn frame(&self, page: u64) -> Option<u64> {
        self.frames.get(usize::try_from(page).ok()?).copied().filter(|&frame| frame != Self::NONE)
    }

    /// The pages that have memory, each with its frame.
    pub fn present(&self) -> Vec<(u64, u64)> {
        let pages = (0u64..).zip(self.frames.iter().copied());
        pages.filter(|&(_, frame)| frame != Self::NONE).collect()
    }

    /// Which of the pages a frame is behind.
    pub fn page_of(&self, m2p: &M2p, frame: u64) -> Option<u64> {
        m2p.get(frame).filter(|&page| self.frame(page) == Some(frame))
    }

    /// The pages that have memory, as first ones and counts.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (page, _) in (0u64..).zip(&self.frames).filter(|&(_, &frame)| frame != Self::NONE) {
            match ranges.last_mut() {
                Some((first, count)) if *first + *count == page => *count += 1,
                _ => ranges.push((page, 1)),
            }
        }
        ranges
    }
}

fn nonsense(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn words(mapping: &Mapping) -> [u64; ENTRIES] {
    std::array::from_fn(|index| mapping.read_u64(index * 8))
}

/// Frames of an array of so many pages at `address`, through the tables below `top`.
fn linear(foreign: &Arc<Foreign>, domid: u32, top: u64, address: u64, pages: u64) -> io::Result<Vec<u64>> {
    let unmapped = || nonsense(format!("its list of memory is not mapped at {address:#x}"));
    if !address.is_multiple_of(PAGE_SIZE as u64) {
        return Err(unmapped());
    }
    let mut frames = Vec::with_capacity(pages as usize);
    // The lowest table looked at, and which part of the address space it covers.
    let mut table: Option<(u64, [u64; ENTRIES])> = None;
    for page in 0..pages {
        let address = address.checked_add(page << 12).ok_or_else(unmapped)? as usize;
        let part = address as u64 >> 21;
        let entries = match &table {
            Some((covered, entries)) if *covered == part => entries,
            _ => {
                let mut frame = top;
                for level in (2..=4).rev() {
                    let upper = foreign.map_to_read(domid, &[frame])?;
                    let entry = Pte(upper.read_u64(table_index(address, level) * 8));
                    if !entry.is_present() {
                        return Err(unmapped());
                    }
                    frame = entry.mfn().0;
                }
                let lowest = words(&foreign.map_to_read(domid, &[frame])?);
                &table.insert((part, lowest)).1
            }
        };
        let entry = Pte(entries[table_index(address, 1)]);
        if !entry.is_present() {
            return Err(unmapped());
        }
        frames.push(entry.mfn().0);
    }
    Ok(frames)
}

/// Frames of the list's pages, from a tree of frames.
fn tree(foreign: &Arc<Foreign>, domid: u32, top: u64, pages: u64) -> io::Result<Vec<u64>> {
    if pages > (ENTRIES * ENTRIES) as u64 {
        return Err(nonsense("its tree of memory is too small for it".into()));
    }
    let top = words(&foreign.map_to_read(domid, &[top])?);
    let mut frames = Vec::with_capacity(pages as usize);
    for &middle in top.iter().take(pages.div_ceil(ENTRIES as u64) as usize) {
        frames.extend(words(&foreign.map_to_read(domid, &[middle])?));
    }
    frames.truncate(pages as usize);
    Ok(frames)
}
