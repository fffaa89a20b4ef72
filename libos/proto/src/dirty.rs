//! Tracking of changed pages with the guest's help.
//!
//! The processor keeps a dirty bit for each page of a paravirtualized guest in the guest's own
//! page tables. A guest that is asked to collects and clears these bits and leaves a bitmap for
//! the host: no page faults, no help of the hypervisor. And it knows which of its pages need
//! not be sent at all.
//!
//! # Protocol
//! The host sets [`HOST_TRACK`](crate::console::HOST_TRACK). The guest then takes memory for a
//! *tracking page* and three bitmaps, fills them, and writes the frame of the tracking page to
//! [`TRACKING`](crate::console::TRACKING) of the console page. From then on:
//!
//! 1. To begin a round, the host increments [`REQUEST`] and sends an event on the console's port.
//! 2. The guest fills the bitmaps anew, sets [`ANSWER`] to the value of [`REQUEST`], and sends
//!    an event. It writes the bitmaps at no other time, so the host may read them while
//!    the two are equal, and must have read what it needs before it increments [`REQUEST`].
//! 3. A guest that suspends itself ([`suspend`](crate::suspend)) fills them for the last time and
//!    sets [`LAST`] to 1. The host must not ask for a round between [`HOST_SUSPEND`] and then.
//!    If [`LAST`] is 0 in a suspended domain, nothing is known about its pages.
//!
//! When [`HOST_TRACK`](crate::console::HOST_TRACK) is cleared, the guest sets
//! [`TRACKING`](crate::console::TRACKING) to 0 and gives the memory back. Until then, also right
//! after it has come to a new domain, the frame there is an old one: the host must see 0 before it
//! asks for tracking.
//! In a new domain there is no tracking until it is asked for again; the tracking page and the
//! bitmaps are themselves void.
//!
//! # Meaning
//! | bitmap | a bit says |
//! |---|---|
//! | dirty | the page has changed since the previous round; before the first one, nothing |
//! | void | its content does not matter: memory that is not in use. Any content will do in the copy |
//! | always | others than the guest's processor change it (Xen, backends, the manager), which leaves no trace |
//!
//! Always are the pages of console, xenstore and start info, and those that others may write
//! through a grant. Page tables are dirty when the guest has changed what they map, not when
//! accessed and dirty bits change. Void are also the list of machine frames, which whoever
//! rebuilds the domain writes anew, and the frames behind mappings of shared info and grant table.
//!
//! So [`send_now`] says what is worth sending while the guest runs, and [`send_last`] what
//! must be sent when it is suspended. A page that is void in one round and in use in the next is
//! dirty then if anything was written to it. Pages are read by the host after [`ANSWER`], so what is
//! written meanwhile is sent twice rather than missed.
//!
//! Everything here is the guest's word: the host copies, and checks with [`Tracking::parse`].
//! A guest that lies loses its own memory at worst.
//!
//! [`HOST_SUSPEND`]: crate::console::HOST_SUSPEND

use crate::frame::{PAGE_SIZE, Pfn};
use core::{
    fmt,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

/// `u32` in the tracking page, written by the guest: number of the round that the bitmaps hold.
pub const ANSWER: usize = 32;
/// `u32` in the tracking page, written by the guest: 1 while it is suspended with its last round
/// in the bitmaps.
pub const LAST: usize = 36;
/// `u32` in the tracking page, written by the host: number of the round that is wanted.
pub const REQUEST: usize = 64;

/// "fcapdirt" in memory order.
const MAGIC: u64 = u64::from_le_bytes(*b"fcapdirt");
/// Bytes at the beginning of the tracking page that [`Tracking`] fills.
pub const HEAD_LEN: usize = 32;

/// Where the bitmaps are: the head of the tracking page.
///
/// Layout, little endian: `u64` magic, `u64` pages, `u32` first frame of each bitmap: dirty,
/// void, always. Each bitmap is in as many consecutive frames as it needs, one bit a page in
/// 64-bit words, lowest first. Bits for pages that there are not mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracking {
    /// Pages that the bitmaps have bits for, from frame 0 on. Later ones are not in use.
    pub pages: u64,
    /// First frame of the bitmap "dirty".
    pub dirty: Pfn,
    /// First frame of the bitmap "void".
    pub void: Pfn,
    /// First frame of the bitmap "always".
    pub always: Pfn,
}

/// Why the head of a tracking page cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// It does not begin as it should.
    Magic,
    /// It has bits for no page, or for more than the domain has.
    Pages,
    /// A bitmap is not all in the domain's memory.
    Bitmap,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Magic => "the tracking page does not begin as one",
            Self::Pages => "the tracking page has bits for another number of pages",
            Self::Bitmap => "a bitmap of the tracking page is outside of the domain",
        })
    }
}

impl core::error::Error for Invalid {}

impl Tracking {
    /// Reads the head of the tracking page of a domain with `frames` frames.
    ///
    /// # Errors
    /// If it is not one, or lies.
    pub fn parse(head: &[u8; HEAD_LEN], frames: u64) -> Result<Self, Invalid> {
        let u64_at = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| head[at + i]));
        let pfn_at = |at: usize| Pfn(u32::from_le_bytes(core::array::from_fn(|i| head[at + i])).into());
        if u64_at(0) != MAGIC {
            return Err(Invalid::Magic);
        }
        let tracking = Self { pages: u64_at(8), dirty: pfn_at(16), void: pfn_at(20), always: pfn_at(24) };
        if tracking.pages == 0 || tracking.pages > frames {
            return Err(Invalid::Pages);
        }
        for first in [tracking.dirty, tracking.void, tracking.always] {
            if first.0 + bitmap_frames(tracking.pages) > frames {
                return Err(Invalid::Bitmap);
            }
        }
        Ok(tracking)
    }

    /// The head of the tracking page.
    ///
    /// # Panics
    /// If a bitmap begins beyond 16 TiB.
    pub fn emit(&self) -> [u8; HEAD_LEN] {
        let mut head = [0; HEAD_LEN];
        head[..8].copy_from_slice(&MAGIC.to_le_bytes());
        head[8..16].copy_from_slice(&self.pages.to_le_bytes());
        for (bytes, first) in head[16..28].chunks_exact_mut(4).zip([self.dirty, self.void, self.always]) {
            let first = u32::try_from(first.0).expect("a frame below 16 TiB");
            bytes.copy_from_slice(&first.to_le_bytes());
        }
        head
    }
}

/// Words of a bitmap for `pages` pages.
pub const fn bitmap_words(pages: u64) -> usize {
    pages.div_ceil(u64::BITS as u64) as usize
}

/// Frames of a bitmap for `pages` pages.
pub const fn bitmap_frames(pages: u64) -> u64 {
    (bitmap_words(pages) as u64 * 8).div_ceil(PAGE_SIZE as u64)
}

/// Of 64 pages, those worth sending while the guest runs, from the words of the three bitmaps.
pub const fn send_now(dirty: u64, void: u64, always: u64) -> u64 {
    dirty & !void & !always
}

/// Of 64 pages, those to be sent while the guest is suspended, from the words of the last round.
pub const fn send_last(dirty: u64, void: u64, always: u64) -> u64 {
    (dirty | always) & !void
}

/// The pages whose bits are set in `words`, the first of which is for frame 0, in order.
pub fn pages(words: impl IntoIterator<Item = u64>) -> impl Iterator<Item = Pfn> {
    let mut words = words.into_iter().zip((0..).step_by(u64::BITS as usize));
    let (mut word, mut first) = (0u64, 0u64);
    core::iter::from_fn(move || {
        while word == 0 {
            (word, first) = words.next()?;
        }
        let bit = word.trailing_zeros();
        word &= word - 1;
        Some(Pfn(first + u64::from(bit)))
    })
}

/// A bitmap that the guest writes and the host reads.
///
/// The words are atomics, because the other side could look at any time; without order among
/// each other, because [`ANSWER`] brings that.
#[derive(Clone, Copy, Debug)]
pub struct Bitmap<'a> {
    words: &'a [AtomicU64],
}

impl<'a> Bitmap<'a> {
    /// The bitmap in `words`.
    pub fn new(words: &'a [AtomicU64]) -> Self {
        Self { words }
    }

    /// The bits of 64 pages, the number of whose first is 64 times `index`; 0 if there are none.
    pub fn word(&self, index: usize) -> u64 {
        self.words.get(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Sets bits of 64 pages, the number of whose first is 64 times `index`, if there are any.
    pub fn insert_word(&self, index: usize, bits: u64) {
        if let Some(word) = self.words.get(index) {
            // There is one writer.
            word.store(word.load(Ordering::Relaxed) | bits, Ordering::Relaxed);
        }
    }

    /// Clears all bits.
    pub fn clear(&self) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// Whether the bit of `page` is set; not if there is none.
    pub fn contains(&self, page: Pfn) -> bool {
        self.word((page.0 / 64) as usize) & 1 << (page.0 % 64) != 0
    }

    /// Sets the bit of `page`, if there is one.
    pub fn insert(&self, page: Pfn) {
        self.insert_word((page.0 / 64) as usize, 1 << (page.0 % 64));
    }

    /// Sets the bits of a range of pages, as far as there are any.
    pub fn insert_range(&self, pages: Range<Pfn>) {
        let (mut from, end) = (pages.start.0, pages.end.0.min(self.words.len() as u64 * 64));
        while from < end {
            let next = end.min((from / 64 + 1) * 64);
            let ones = u64::MAX >> (64 - (next - from));
            self.insert_word((from / 64) as usize, ones << (from % 64));
            from = next;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, vec::Vec};

    fn words(bitmap: &[AtomicU64]) -> Vec<u64> {
        bitmap.iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn a_bitmap_of_512_mib_has_four_frames() {
        assert_eq!((bitmap_words(131_072), bitmap_frames(131_072)), (2048, 4));
        assert_eq!((bitmap_words(1), bitmap_frames(1)), (1, 1));
        assert_eq!(bitmap_frames(8 * 4096 + 1), 2);
    }

    #[test]
    fn void_pages_are_never_sent_and_others_changes_last() {
        let (dirty, void, always) = (0b0011_0011, 0b0000_1111, 0b0101_0101);
        assert_eq!(send_now(dirty, void, always), 0b0010_0000);
        assert_eq!(send_last(dirty, void, always), 0b0111_0000);
    }

    #[test]
    fn a_head_that_lies_is_refused() {
        let good = Tracking { pages: 1000, dirty: Pfn(10), void: Pfn(11), always: Pfn(999) };
        assert_eq!(Tracking::parse(&good.emit(), 1000), Ok(good));
        assert_eq!(Tracking::parse(&good.emit(), 999), Err(Invalid::Pages));
        let outside = Tracking { always: Pfn(1000), ..good };
        assert_eq!(Tracking::parse(&outside.emit(), 1000), Err(Invalid::Bitmap));
        let none = Tracking { pages: 0, ..good };
        assert_eq!(Tracking::parse(&none.emit(), 1000), Err(Invalid::Pages));
        assert_eq!(Tracking::parse(&[0; HEAD_LEN], 1000), Err(Invalid::Magic));
    }

    proptest! {
        #[test]
        fn any_head_is_read_without_panic(rest: [u8; HEAD_LEN - 8], frames: u64) {
            let mut head = [0; HEAD_LEN];
            head[..8].copy_from_slice(&MAGIC.to_le_bytes());
            head[8..].copy_from_slice(&rest);
            if let Ok(tracking) = Tracking::parse(&head, frames) {
                prop_assert!(tracking.pages <= frames);
                prop_assert!(tracking.void.0 + bitmap_frames(tracking.pages) <= frames);
            }
        }

        #[test]
        fn bits_come_back_as_they_were_set(
            single in proptest::collection::vec(0u64..700, 0..20),
            ranges in proptest::collection::vec((0u64..700, 0u64..200), 0..5),
        ) {
            let storage: Vec<AtomicU64> = (0..10).map(|_| AtomicU64::new(0)).collect();
            let bitmap = Bitmap::new(&storage);
            let mut expected = BTreeSet::new();
            for &page in &single {
                bitmap.insert(Pfn(page));
                expected.insert(page);
            }
            for &(from, len) in &ranges {
                bitmap.insert_range(Pfn(from)..Pfn(from + len));
                expected.extend(from..from + len);
            }
            expected.retain(|&page| page < 640);
            let found: Vec<u64> = pages(words(&storage)).map(|page| page.0).collect();
            prop_assert_eq!(&found, &expected.iter().copied().collect::<Vec<_>>());
            for page in 0..800 {
                prop_assert_eq!(bitmap.contains(Pfn(page)), expected.contains(&page));
            }
            bitmap.clear();
            prop_assert_eq!(pages(words(&storage)).count(), 0);
        }
    }
}
