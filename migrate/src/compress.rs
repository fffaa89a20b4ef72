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
    lz4: lz4_flex::block::CompressTable,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    packed: Vec<u8>,
}

impl Packer {
    pub(crate) fn new() -> Self {
        Self { lz4: lz4_flex::block::CompressTable::default(), zstd: None, packed: Vec::new() }
    }

    /// `None` if the pages do not get smaller that way.
    pub(crate) fn pack(&mut self, encoding: Encoding, pages: &[Page]) -> Option<&[u8]> {
        let bytes = pages.as_flattened();
        let room = lz4_flex::block::get_maximum_output_size(bytes.len())
            .max(zstd::zstd_safe::compress_bound(bytes.len()));
        if self.packed.len() < room {
            self.packed.resize(room, 0);
        }
        let len = match encoding {
            Encoding::Raw => None,
            Encoding::Lz4 => {
                lz4_flex::block::compress_into_with_table(bytes, &mut self.packed, &mut self.lz4).ok()
            }
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
            Encoding::Lz4 => lz4_flex::block::decompress_into(content, bytes).ok(),
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

/// Which compression to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// LZ4 as long as it saves more time on the link than it takes.
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
#[derive(Clone, Debug)]
pub(crate) struct Chooser {
    compression: Compression,
    /// Seconds for each byte put on the link.
    send_cost: Average,
    /// Seconds to pack a byte.
    pack_cost: Average,
    /// Bytes left of each byte packed.
    ratio: Average,
    batches: u32,
}

/// Sending is learned with every batch, packing only with those that are packed: one of so many
/// is packed in any case.
const PROBE_EVERY: u32 = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Average(Option<f64>);

impl Average {
    fn add(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |average| average + (value - average) / 8.0));
    }
}

impl Chooser {
    pub(crate) fn new(compression: Compression) -> Self {
        Self {
            compression,
            send_cost: Average::default(),
            pack_cost: Average::default(),
            ratio: Average::default(),
            batches: 0,
        }
    }

    /// Leaves out what the other side cannot unpack.
    pub(crate) fn restrict(&mut self, features: u32) {
        let needed = match self.compression {
            Compression::None => 0,
            Compression::Adaptive | Compression::Lz4 => feature::LZ4,
            Compression::Zstd => feature::ZSTD,
        };
        if features & needed != needed {
            self.compression = Compression::None;
        }
    }

    /// How to pack the next batch.
    pub(crate) fn choose(&mut self) -> Encoding {
        match self.compression {
            Compression::None => Encoding::Raw,
            Compression::Lz4 => Encoding::Lz4,
            Compression::Zstd => Encoding::Zstd,
            Compression::Adaptive => {
                self.batches = self.batches.wrapping_add(1);
                let pays = match (self.send_cost.0, self.pack_cost.0, self.ratio.0) {
                    (Some(send), Some(pack), Some(ratio)) => pack < send * (1.0 - ratio),
                    // The first batches tell what the link gives.
                    (None, ..) => false,
                    _ => true,
                };
                if pays || self.batches.is_multiple_of(PROBE_EVERY) { Encoding::Lz4 } else { Encoding::Raw }
            }
        }
    }

    /// What packing a batch took; `packed` equals `bytes` if it did not get smaller.
    pub(crate) fn packed(&mut self, bytes: usize, packed: usize, took: Duration) {
        self.pack_cost.add(took.as_secs_f64() / bytes as f64);
        self.ratio.add(packed as f64 / bytes as f64);
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

    /// The share of batches that are packed on a link with so many MB/s, if packing runs at
    /// 400 MB/s and halves the size.
    fn packed_share(link_mb: f64) -> f64 {
        let mut chooser = Chooser::new(Compression::Adaptive);
        let size = 1 << 20;
        let mut packed = 0;
        for _ in 0..1000 {
            let len = match chooser.choose() {
                Encoding::Raw => size,
                _ => {
                    packed += 1;
                    chooser.packed(size, size / 2, Duration::from_secs_f64(size as f64 / 400e6));
                    size / 2
                }
            };
            chooser.sent(len, Duration::from_secs_f64(len as f64 / (link_mb * 1e6)));
        }
        f64::from(packed) / 1000.0
    }

    #[test]
    fn a_slow_link_gets_packed_pages_and_a_fast_one_does_not() {
        assert!(packed_share(10.0) > 0.95);
        assert!(packed_share(100.0) > 0.95);
        assert!(packed_share(2000.0) < 0.1);
    }
}
