//! Page frames, page-table entries and the arithmetic between them.
//!
//! A PV guest's page tables are the real ones: their entries hold machine
//! frames, and the guest translates with the p2m list it got at start of day and
//! with Xen's m2p table.

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;
/// Base 2 logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Entries in a page table of any level.
pub const ENTRIES: usize = 512;

/// A frame as the guest numbers its own: contiguous from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pfn(pub u64);

/// A frame as the machine numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mfn(pub u64);

impl Mfn {
    /// The frame that the byte at `address` is in.
    pub const fn at(address: u64) -> Self {
        Self(address >> PAGE_SHIFT)
    }

    /// Address of the frame's first byte.
    pub const fn address(self) -> u64 {
        self.0 << PAGE_SHIFT
    }
}

/// A page-table entry.
///
/// Entries that are not present are always 0: Xen may take others for an attack
/// on the processor (L1TF) and end the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pte(pub u64);

impl Pte {
    /// Maps nothing.
    pub const NONE: Self = Self(0);
    /// Bit 0.
    pub const PRESENT: u64 = 1 << 0;
    /// Bit 1.
    pub const WRITABLE: u64 = 1 << 1;
    /// Bit 2; Xen sets it in tables of level 2 and up.
    pub const USER: u64 = 1 << 2;
    /// Bit 5; set beforehand, it spares the processor a write.
    pub const ACCESSED: u64 = 1 << 5;
    /// Bit 6; set beforehand, it spares the processor a write.
    pub const DIRTY: u64 = 1 << 6;

    const FRAME: u64 = 0x000f_ffff_ffff_f000;

    /// Maps `mfn` as memory to read and write.
    pub const fn data(mfn: Mfn) -> Self {
        Self(mfn.address() | Self::PRESENT | Self::WRITABLE | Self::ACCESSED | Self::DIRTY)
    }

    /// Maps `mfn` as memory to read.
    pub const fn read_only(mfn: Mfn) -> Self {
        Self(mfn.address() | Self::PRESENT | Self::ACCESSED)
    }

    /// Points to the table of the next level in `mfn`.
    pub const fn table(mfn: Mfn) -> Self {
        Self(mfn.address() | Self::PRESENT | Self::WRITABLE | Self::USER | Self::ACCESSED | Self::DIRTY)
    }

    /// The same without some flags.
    pub const fn without(self, flags: u64) -> Self {
        Self(self.0 & !flags)
    }

    /// Whether it maps anything.
    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// The frame that it maps or points to.
    pub const fn mfn(self) -> Mfn {
        Mfn((self.0 & Self::FRAME) >> PAGE_SHIFT)
    }
}

/// Index of the entry for `vaddr` in its table of `level` (1 to 4).
pub const fn table_index(vaddr: usize, level: u32) -> usize {
    vaddr >> (PAGE_SHIFT + 9 * (level - 1)) & (ENTRIES - 1)
}

/// Bytes that one entry of a table of `level` (1 to 4) covers.
pub const fn entry_span(level: u32) -> usize {
    1 << (PAGE_SHIFT + 9 * (level - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_two_gib_begin_at_the_expected_entries() {
        let base = 0xffff_ffff_8000_0000;
        assert_eq!([4, 3, 2, 1].map(|level| table_index(base, level)), [511, 510, 0, 0]);
        let next = base + entry_span(3) + 5 * entry_span(2) + 7 * PAGE_SIZE;
        assert_eq!([4, 3, 2, 1].map(|level| table_index(next, level)), [511, 511, 5, 7]);
    }

    #[test]
    fn an_entry_gives_its_frame_back() {
        let mfn = Mfn(0x12_3456_789a);
        for pte in
            [Pte::data(mfn), Pte::read_only(mfn), Pte::table(mfn), Pte(Pte::data(mfn).0 | 1 << 63 | 1 << 52)]
        {
            assert_eq!(pte.mfn(), mfn);
            assert!(pte.is_present());
        }
        assert!(!Pte::NONE.is_present());
    }
}
