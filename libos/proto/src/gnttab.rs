//! The grant table, version 1: how a domain lets another one use its pages.

use crate::{DomId, frame::Mfn};

/// Bytes of an entry.
pub const ENTRY_LEN: usize = 8;
/// Entries in one frame of the table.
pub const ENTRIES_PER_FRAME: u32 = 512;
/// The first reference that is free for us; those before belong to the toolstack.
#[doc(alias = "GNTTAB_NR_RESERVED_ENTRIES")]
pub const FIRST_FREE: GrantRef = GrantRef(8);

/// Number of an entry; the other domain maps the page with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "grant_ref_t")]
pub struct GrantRef(pub u32);

/// The entry's `flags`: the page may be used.
#[doc(alias = "GTF_permit_access")]
pub const PERMIT_ACCESS: u16 = 1;
/// The entry's `flags`: for reading alone.
#[doc(alias = "GTF_readonly")]
pub const READ_ONLY: u16 = 4;
/// The entry's `flags`: it is being read; set by Xen.
#[doc(alias = "GTF_reading")]
pub const READING: u16 = 8;
/// The entry's `flags`: it is being written; set by Xen.
#[doc(alias = "GTF_writing")]
pub const WRITING: u16 = 16;

/// What an entry says, without the flags, which are written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Who may use the page.
    pub domid: DomId,
    /// The page; must be below 2^32.
    pub frame: Mfn,
}

impl Entry {
    /// What an entry read as one word says, besides its flags.
    pub fn parse(entry: u64) -> Self {
        Self { domid: DomId((entry >> 16) as u16), frame: Mfn(entry >> 32) }
    }

    /// The entry as one little-endian word with `flags`; `None` if the frame does not fit.
    pub fn emit(self, flags: u16) -> Option<u64> {
        let frame = u32::try_from(self.frame.0).ok()?;
        Some(u64::from(flags) | u64::from(self.domid.0) << 16 | u64::from(frame) << 32)
    }
}

/// The flags of an entry read as one word.
pub fn flags(entry: u64) -> u16 {
    entry as u16
}

/// Whether the other domain (or a backend for it) has the page mapped.
pub fn in_use(flags: u16) -> bool {
    flags & (READING | WRITING) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_flags_domain_and_frame() {
        let entry = Entry { domid: DomId(3), frame: Mfn(0x1234_5678) };
        let word = entry.emit(PERMIT_ACCESS | READ_ONLY).unwrap();
        assert_eq!(word.to_le_bytes(), [5, 0, 3, 0, 0x78, 0x56, 0x34, 0x12]);
        assert_eq!(flags(word), 5);
        assert_eq!(Entry::parse(word), entry);
        assert_eq!(Entry { domid: DomId(0), frame: Mfn(1 << 32) }.emit(1), None);
    }
}
