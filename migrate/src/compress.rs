//! Packing of pages, and whether it pays.

use std::time::Duration;

use xen_proto::frame::PAGE_SIZE;

use crate::{
    domain::Page,
    wire::{Breach, Encoding, MAX_BATCH_PAGES, feature},
};

/// Zstandard's fastest level with its usual format: on memory a third better than LZ4 for about
/// the same time.
const ZSTD_LEVEL: i32 = 1;

/// Packs batches of pages, with buffers and tables that are used again and again.
pub(crate) struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    packed: Vec<u8>,
}

impl Packer {
    pub(crate) fn new() -> Self {
        Self { zstd: None, packed: Vec::new() }
    }

    /// `None` if the pages do not get smaller that way.
    pub(crate) fn pack(&mut self, encoding: Encoding, pages: &[Page]) -> Option<&[u8]> {
        let bytes = pages.as_flattened();
        let room =
            lz4::block::compress_bound(bytes.len()).ok()?.max(zstd::zstd_safe::compress_bound(bytes.len()));
        if self.packed.len() < room {
            self.packed.resize(room, 0);
        }
        let len = match encoding {
            Encoding::Raw => None,
            Encoding::Lz4 => lz4::block::compress_to_buffer(bytes, None, false, &mut self.packed).ok(),
            Encoding::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
                }
                self.zstd.as_mut()?.compress_to_buffer(bytes, &mut self.packed[..]).ok()
            }
        };
        len.filter(|len| *len < bytes.len()).map(|len| &self.packed[..len])
    }
}

/// Unpacks what [`Packer`] packed, or what an enemy did.
pub(crate) struct Unpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    pages: Vec<Page>,
}

impl Unpacker {
    pub(crate) fn new() -> Self {
        Self { zstd: None, pages: Vec::new() }
    }

    /// `count` pages with any content.
    pub(crate) fn blank(&mut self, count: usize) -> &mut [Page] {
        if self.pages.len() < count {
            self.pages.resize(count, [0; PAGE_SIZE]);
        }
        &mut self.pages[..count]
    }

    /// Unpacks `count` pages, neither more nor less.
    pub(crate) fn unpack(
        &mut self,
        encoding: Encoding,
        content: &[u8],
        count: usize,
    ) -> Result<&mut [Page], Breach> {
        debug_assert!(count <= MAX_BATCH_PAGES);
        self.blank(count);
        let pages = &mut self.pages[..count];
        let bytes = pages.as_flattened_mut();
        let len = match encoding {
            Encoding::Raw => {
                let fits = content.len() == bytes.len();
                fits.then(|| bytes.copy_from_slice(content)).map(|()| content.len())
            }
            Encoding::Lz4 => unpack_lz4(content, bytes),
            Encoding::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Decompressor::new().ok();
                }
                self.zstd.as_mut().and_then(|zstd| zstd.decompress_to_buffer(content, bytes).ok())
            }
        };
        if len == Some(pages.as_flattened().len()) { Ok(pages) } else { Err(Breach::Compression) }
    }
}

/// Unpacks a block into `bytes`; how many of them it has filled, unless it is none, or larger.
fn unpack_lz4(block: &[u8], bytes: &mut [u8]) -> Option<usize> {
    let len = i32::try_from(bytes.len()).ok()?;
    // Without the length it would be looked for in the block.
    lz4::block::decompress_to_buffer(block, Some(len), bytes).ok()
}

/// Which compression to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// LZ4, Zstandard or none, whichever takes the least time on this link.
    #[default]
    Adaptive,
    /// None.
    None,
    /// LZ4 for everything that gets smaller.
    Lz4,
    /// Zstandard for everything that gets smaller.
    Zstd,
}

/// Decides for each batch whether to pack it, by what packing and sending have taken so far.
///
/// Packing pays if it takes less time than the bytes that it saves would take on the link. That
/// counts both as if they ran one after the other, which they do on a node with one processor,
/// where it matters most.
///
/// The first batches are packed in any case. On a fast link that costs some milliseconds in all;
/// on a slow one they would fill the socket's buffer, which says nothing about the link, and
/// everything else would wait behind them.
#[derive(Clone, Debug)]
pub(crate) struct Chooser {
    compression: Compression,
    /// Seconds for each byte put on the link.
    send_cost: Average,
    /// What each encoding costs that may be chosen; the one that packs better comes first.
    packers: Vec<(Encoding, Cost)>,
    batches: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Seconds to pack a byte, when nobody else wanted the processor.
    time: Least,
    /// Bytes left of each byte packed.
    ratio: Average,
}

/// So many batches are packed to begin with.
const FIRST_BATCHES: usize = 4;
/// Sending is learned with every batch, packing only with those that are packed: one of so many
/// is packed in any case.
const PROBE_EVERY: usize = 16;

/// One that packs better takes so many times as long, at least.
const HEAVIER: f64 = 2.0;

#[derive(Clone, Copy, Debug, Default)]
struct Average(Option<f64>);

impl Average {
    fn add(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |average| average + (value - average) / 4.0));
    }
}

/// The least of late: others that run in between make it more, nothing makes it less.
#[derive(Clone, Copy, Debug, Default)]
struct Least(Option<f64>);

impl Least {
    fn add(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |least| value.min(least * 1.1)));
    }
}

impl Chooser {
    pub(crate) fn new(compression: Compression) -> Self {
        let packers = match compression {
            Compression::Adaptive => &[Encoding::Zstd, Encoding::Lz4][..],
            Compression::None => &[],
            Compression::Lz4 => &[Encoding::Lz4],
            Compression::Zstd => &[Encoding::Zstd],
        };
        let packers = packers.iter().map(|&encoding| (encoding, Cost::default())).collect();
        Self { compression, send_cost: Average::default(), packers, batches: 0 }
    }

    /// Leaves out what the other side cannot unpack.
    pub(crate) fn restrict(&mut self, features: u32) {
        self.packers.retain(|(encoding, _)| match encoding {
            Encoding::Raw => true,
            Encoding::Lz4 => features & feature::LZ4 != 0,
            Encoding::Zstd => features & feature::ZSTD != 0,
        });
    }

    /// How to pack the next batch.
    pub(crate) fn choose(&mut self) -> Encoding {
        let Some(&(best, _)) = self.packers.first() else { return Encoding::Raw };
        if self.compression != Compression::Adaptive {
            return best;
        }
        let batch = self.batches;
        self.batches = batch.wrapping_add(1);
        let Some(send) = self.send_cost.0 else { return self.cheapest() };
        if batch < FIRST_BATCHES {
            return self.in_turn(batch, send);
        }
        if batch.is_multiple_of(PROBE_EVERY) {
            // By turns, so that something is known of all of them.
            return self.in_turn(batch / PROBE_EVERY, send);
        }
        let costs = self.packers.iter().filter_map(|(encoding, cost)| {
            // Seconds for each byte, packed and sent.
            Some((*encoding, cost.time.0? + send * cost.ratio.0?))
        });
        let least = costs.min_by(|(_, one), (_, other)| one.total_cmp(other));
        least.filter(|(_, cost)| *cost < send).map_or(Encoding::Raw, |(encoding, _)| encoding)
    }

    fn cheapest(&self) -> Encoding {
        self.packers.last().map_or(Encoding::Raw, |(encoding, _)| *encoding)
    }

    /// The one whose turn it is to be tried, of those that may gain something.
    fn in_turn(&self, turn: usize, send: f64) -> Encoding {
        let may_gain =
            |at: &usize| match self.packers.get(at + 1).map(|(_, cost)| (cost.time.0, cost.ratio.0)) {
                // All that it could save is what the cheaper one leaves.
                Some((Some(time), Some(ratio))) => send * ratio > HEAVIER * time,
                Some(_) => false,
                None => true,
            };
        let worth: Vec<usize> = (0..self.packers.len()).filter(may_gain).collect();
        worth.get(turn % worth.len().max(1)).map_or(Encoding::Raw, |&at| self.packers[at].0)
    }

    /// What packing a batch took; `packed` equals `bytes` if it did not get smaller.
    pub(crate) fn packed(&mut self, encoding: Encoding, bytes: usize, packed: usize, took: Duration) {
        if let Some((_, cost)) = self.packers.iter_mut().find(|(other, _)| *other == encoding) {
            cost.time.add(took.as_secs_f64() / bytes as f64);
            cost.ratio.add(packed as f64 / bytes as f64);
        }
    }

    /// What it took to put bytes on the link.
    pub(crate) fn sent(&mut self, bytes: usize, took: Duration) {
        self.send_cost.add(took.as_secs_f64() / bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pages(seed: u64, count: usize, distinct: u64) -> Vec<Page> {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % distinct
        };
        (0..count).map(|_| std::array::from_fn(|_| next() as u8)).collect()
    }

    proptest! {
        #[test]
        fn pages_come_back_as_they_were(seed: u64, count in 1usize..5, distinct in 1u64..=256) {
            let pages = pages(seed, count, distinct);
            let (mut packer, mut unpacker) = (Packer::new(), Unpacker::new());
            for encoding in [Encoding::Lz4, Encoding::Zstd] {
                if let Some(packed) = packer.pack(encoding, &pages) {
                    prop_assert!(packed.len() < count * PAGE_SIZE);
                    prop_assert_eq!(&*unpacker.unpack(encoding, packed, count).unwrap(), &pages[..]);
                    // With a wrong count it is refused, not cut or filled up.
                    prop_assert_eq!(unpacker.unpack(encoding, packed, count + 1), Err(Breach::Compression));
                    prop_assert_eq!(unpacker.unpack(encoding, packed, count - 1), Err(Breach::Compression));
                } else {
                    // LZ4 finds repetitions, but has no codes for bytes that are frequent.
                    prop_assert!(distinct > 2);
                }
            }
        }

        #[test]
        fn any_bytes_are_unpacked_without_panic(bytes: Vec<u8>, count in 0usize..3) {
            for encoding in [Encoding::Raw, Encoding::Lz4, Encoding::Zstd] {
                let _ = Unpacker::new().unpack(encoding, &bytes, count);
            }
        }
    }

    /// How many of a thousand batches are packed how on a link with so many MB/s, if LZ4 runs at
    /// 400 MB/s and halves the size, and Zstandard at 200 MB/s and leaves a third.
    fn chosen(link_mb: f64) -> [usize; 3] {
        let mut chooser = Chooser::new(Compression::Adaptive);
        let size = 1 << 20;
        let seconds = |bytes: usize, mb: f64| Duration::from_secs_f64(bytes as f64 / (mb * 1e6));
        let mut chosen = [0; 3];
        for _ in 0..1000 {
            let encoding = chooser.choose();
            let (len, speed) = match encoding {
                Encoding::Raw => (size, None),
                Encoding::Lz4 => (size / 2, Some(400.0)),
                Encoding::Zstd => (size / 3, Some(200.0)),
            };
            chosen[encoding as usize] += 1;
            if let Some(speed) = speed {
                chooser.packed(encoding, size, len, seconds(size, speed));
            }
            chooser.sent(len, seconds(len, link_mb));
        }
        chosen
    }

    #[test]
    fn the_slower_the_link_the_more_pages_are_packed() {
        let [_, _, zstd] = chosen(10.0);
        assert!(zstd > 950, "{zstd}");
        // What LZ4 leaves is sent sooner than Zstandard would be done.
        let [_, lz4, zstd] = chosen(150.0);
        assert!(lz4 > 900 && zstd == 0, "{lz4} {zstd}");
        let [raw, ..] = chosen(2000.0);
        assert!(raw > 900, "{raw}");
    }

    #[test]
    fn what_the_other_side_cannot_unpack_is_not_chosen() {
        let mut chooser = Chooser::new(Compression::Adaptive);
        chooser.restrict(feature::LZ4);
        assert_eq!(chooser.choose(), Encoding::Lz4);
        chooser.restrict(0);
        assert_eq!(chooser.choose(), Encoding::Raw);
    }
}
