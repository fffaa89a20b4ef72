//! Xen's table from machine frames to the owners' page numbers.
//!
//! It is the truth about what a frame is to its domain, but for frames that a domain may change
//! the entries of: its own. So an entry counts only if the domain's own list leads back to the
//! frame.

use std::io;

use xen_proto::frame::PAGE_SIZE;

use super::sys::{Foreign, Hypercalls, M2P_PIECE, Mapping};

/// The hypervisor as an owner of memory (`DOMID_XEN`).
const DOMID_XEN: u32 = 0x7ff2;
/// Frames of a piece of the table.
const PIECE_FRAMES: u64 = M2P_PIECE * 8 / PAGE_SIZE as u64;

/// The table, mapped.
#[derive(Debug)]
pub struct M2p {
    table: Mapping,
    entries: u64,
}

impl M2p {
    /// Maps it.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn map(hypercalls: &Hypercalls, foreign: &std::sync::Arc<Foreign>) -> io::Result<Self> {
        let (pieces, entries) = hypercalls.m2p_frames()?;
        let used = (entries * 8).div_ceil(PAGE_SIZE as u64);
        let frames = pieces.iter().flat_map(|&first| first..first + PIECE_FRAMES);
        let frames: Vec<u64> = frames.take(used as usize).collect();
        Ok(Self { table: foreign.map_to_read(DOMID_XEN, &frames)?, entries })
    }

    /// What the owner of the frame calls it; nonsense for frames of nobody.
    pub fn get(&self, mfn: u64) -> Option<u64> {
        // Frames that are no domain's memory have entries with high bits.
        let pfn = (mfn < self.entries).then(|| self.table.read_u64(mfn as usize * 8))?;
        (pfn >> 40 == 0).then_some(pfn)
    }
}
