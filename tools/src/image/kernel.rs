//! Linux's own package of its kernel, the bzImage, taken apart.
//!
//! A distribution's `vmlinuz` is a real-mode header, a decompressor, and the compressed ELF kernel.
//! Xen starts the ELF file. Where it lies is in the header (`Documentation/x86/boot.rst` of Linux,
//! fields from protocol 2.08 on). The file is anybody's: every offset is checked, output is bounded.

use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use elf::file::Class;
use std::io::Read;

/// Offset of the number of 512-byte sectors of the real-mode part after the first.
const SETUP_SECTS: usize = 0x1f1;
/// Offset of the mark "HdrS".
const MAGIC: usize = 0x202;
/// Offset of the boot protocol's version.
const VERSION: usize = 0x206;
/// Offset of the payload's offset from the protected-mode part.
const PAYLOAD_OFFSET: usize = 0x248;
/// Offset of the payload's length.
const PAYLOAD_LENGTH: usize = 0x24c;
/// First protocol version with a payload in the header.
const FIRST_VERSION: u16 = 0x0208;
/// Size of an ELF file's header.
const HEADER: usize = 64;
/// Size of a program header.
const SEGMENT: usize = 56;
/// Where segments begin in a compacted file.
const PAGE: usize = 4096;
/// Largest kernel that comes out.
const MAX_KERNEL: u64 = 256 << 20;
/// Memory that a decompressor may use.
const MAX_DECODER_MEMORY: u64 = 512 << 20;

/// A kernel that does not unpack.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The header's version is too old.
    #[error("its boot protocol {0:#06x} is older than 2.08 (Linux 2.6.26)")]
    TooOld(u16),
    /// The header points outside the file.
    #[error("its header says the payload is outside the file, so it is damaged or cut off")]
    Outside,
    /// Packed in a way that we do not unpack.
    #[error("it is packed with {0}; unpack it with Linux's scripts/extract-vmlinux first")]
    Packing(&'static str),
    /// The compressed data is broken.
    #[error("its payload is damaged: {0}")]
    Damaged(std::io::Error),
    /// More comes out than any kernel has.
    #[error("its payload is larger than {MAX_KERNEL} bytes")]
    TooLarge,
    /// What comes out is no ELF file.
    #[error("its payload is not an ELF file")]
    NotElf,
}

/// Whether a file is a bzImage.
pub fn is_bzimage(file: &[u8]) -> bool {
    file.get(MAGIC..MAGIC + 4) == Some(b"HdrS") && file.get(0x1fe..0x200) == Some(&[0x55, 0xaa])
}

/// Takes the ELF kernel out of a bzImage.
///
/// # Errors
/// When the header lies, or the payload is damaged or packed in an unusual way.
pub fn unpack(file: &[u8]) -> Result<Vec<u8>, KernelError> {
    let payload = payload(file)?;
    let kernel = match payload {
        [0x1f, 0x8b, ..] => bounded(flate2::bufread::GzDecoder::new(payload))?,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let stream = liblzma::stream::Stream::new_stream_decoder(MAX_DECODER_MEMORY, 0)
                .map_err(|error| KernelError::Damaged(error.into()))?;
            bounded(liblzma::bufread::XzDecoder::new_stream(payload, stream))?
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            // One frame: Linux appends the kernel's length.
            bounded(
                zstd::stream::read::Decoder::with_buffer(payload)
                    .map_err(KernelError::Damaged)?
                    .single_frame(),
            )?
        }
        [0x7f, b'E', b'L', b'F', ..] => payload.to_vec(),
        [b'B', b'Z', b'h', ..] => return Err(KernelError::Packing("bzip2")),
        [0x5d, 0, 0, ..] => return Err(KernelError::Packing("lzma")),
        [0x89, b'L', b'Z', b'O', ..] => return Err(KernelError::Packing("lzo")),
        [0x02, 0x21, 0x4c, 0x18, ..] => return Err(KernelError::Packing("lz4")),
        _ => return Err(KernelError::Packing("something unknown")),
    };
    if kernel.starts_with(b"\x7fELF") {
        Ok(compact(&kernel).unwrap_or(kernel))
    } else {
        Err(KernelError::NotElf)
    }
}

/// The same kernel in about half the bytes: without sections, without gaps between segments, and
/// without the zeros at the ends of segments (Linux has its bss in the file). None for a file that
/// is built otherwise than usual; it is sent as it is.
fn compact(kernel: &[u8]) -> Option<Vec<u8>> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(kernel).ok()?;
    let usual = file.ehdr.class == Class::ELF64 && usize::from(file.ehdr.e_phentsize) == SEGMENT;
    let segments = file.segments().filter(|_| usual)?;
    let table = usize::try_from(file.ehdr.e_phoff).ok()?;
    let mut out = kernel.get(..HEADER)?.to_vec();
    put(&mut out, 0x20, HEADER as u64); // e_phoff
    put(&mut out, 0x28, 0); // e_shoff
    out[0x3c..0x40].fill(0); // e_shnum, e_shstrndx
    out.extend_from_slice(kernel.get(table..table.checked_add(segments.len() * SEGMENT)?)?);
    for (i, segment) in segments.iter().enumerate() {
        let start = usize::try_from(segment.p_offset).ok()?;
        let len = usize::try_from(segment.p_filesz).ok()?;
        let mut content = kernel.get(start..start.checked_add(len)?)?;
        if segment.p_type == PT_LOAD {
            let used = content.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            content = &content[..used];
        }
        out.resize(out.len().next_multiple_of(PAGE), 0);
        let entry = HEADER + i * SEGMENT;
        let offset = out.len() as u64;
        put(&mut out, entry + 0x08, offset); // p_offset
        put(&mut out, entry + 0x20, content.len() as u64); // p_filesz
        put(&mut out, entry + 0x30, PAGE as u64); // p_align
        out.extend_from_slice(content);
    }
    Some(out)
}

fn put(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn payload(file: &[u8]) -> Result<&[u8], KernelError> {
    let version = u16::from_le_bytes(field(file, VERSION)?);
    if version < FIRST_VERSION {
        return Err(KernelError::TooOld(version));
    }
    let sectors = match field::<1>(file, SETUP_SECTS)? {
        [0] => 4, // As the boot protocol has it.
        [sectors] => usize::from(sectors),
    };
    let offset = u32::from_le_bytes(field(file, PAYLOAD_OFFSET)?) as usize;
    let length = u32::from_le_bytes(field(file, PAYLOAD_LENGTH)?) as usize;
    let start = (sectors + 1) * 512 + offset;
    file.get(start..).and_then(|rest| rest.get(..length)).ok_or(KernelError::Outside)
}

fn field<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N], KernelError> {
    file.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(KernelError::Outside)
}

fn bounded(source: impl Read) -> Result<Vec<u8>, KernelError> {
    let mut out = Vec::new();
    source.take(MAX_KERNEL + 1).read_to_end(&mut out).map_err(KernelError::Damaged)?;
    if out.len() as u64 > MAX_KERNEL { Err(KernelError::TooLarge) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    fn kernel() -> Vec<u8> {
        b"\x7fELF".iter().copied().chain((0..100_000u32).map(|i| (i % 251) as u8)).collect()
    }

    /// A bzImage around `payload`, with the length appended as Linux does it.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 512 * 3 + 64];
        file[SETUP_SECTS] = 2;
        file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        file[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        file[VERSION..VERSION + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        file[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&64u32.to_le_bytes());
        let length = payload.len() as u32 + 4;
        file[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        file.extend_from_slice(payload);
        file.extend_from_slice(&(kernel().len() as u32).to_le_bytes());
        file.extend_from_slice(b"the rest of the file");
        file
    }

    fn xz() -> Vec<u8> {
        let mut packer = liblzma::write::XzEncoder::new(Vec::new(), 1);
        packer.write_all(&kernel()).unwrap();
        packer.finish().unwrap()
    }

    #[test]
    fn every_usual_packing_is_unpacked() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&kernel()).unwrap();
        let zstd = zstd::stream::encode_all(&kernel()[..], 1).unwrap();
        for payload in [gzip.finish().unwrap(), xz(), zstd] {
            let file = bzimage(&payload);
            assert!(is_bzimage(&file));
            assert_eq!(unpack(&file).unwrap(), kernel());
        }
    }

    #[test]
    fn a_compacted_kernel_has_the_same_content_where_it_matters() {
        // Two segments and a note, far apart, the second one with zeros at its end.
        let parts: [(u32, u64, &[u8]); 3] =
            [(1, 0x2000, b"code"), (1, 0x9000, b"data\0\0\0\0"), (4, 0x5000, b"note")];
        let mut kernel = vec![0; 0xa000];
        kernel[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        kernel[16] = 2; // e_type
        put(&mut kernel, 0x20, 0x1000); // e_phoff
        kernel[0x34..0x3a].copy_from_slice(&[64, 0, 56, 0, 3, 0]);
        for (i, (kind, offset, content)) in parts.iter().enumerate() {
            let entry = 0x1000 + i * SEGMENT;
            kernel[entry..entry + 4].copy_from_slice(&kind.to_le_bytes());
            put(&mut kernel, entry + 0x08, *offset);
            put(&mut kernel, entry + 0x20, content.len() as u64);
            put(&mut kernel, entry + 0x28, content.len() as u64);
            let start = *offset as usize;
            kernel[start..start + content.len()].copy_from_slice(content);
        }
        let small = compact(&kernel).unwrap();
        assert!(small.len() <= 4 * PAGE);
        let file = ElfBytes::<LittleEndian>::minimal_parse(&small).unwrap();
        let segments = file.segments().unwrap();
        for (segment, (kind, _, content)) in segments.iter().zip(parts) {
            let mut found = file.segment_data(&segment).unwrap().to_vec();
            found.resize(segment.p_memsz as usize, 0);
            assert_eq!((segment.p_type, &found[..]), (kind, content));
        }
        kernel[0x20..0x28].fill(0xff);
        assert_eq!(compact(&kernel), None);
    }

    #[test]
    fn what_cannot_be_unpacked_says_why() {
        assert!(matches!(unpack(&bzimage(b"BZh9")), Err(KernelError::Packing("bzip2"))));
        assert!(matches!(unpack(&bzimage(b"????")), Err(KernelError::Packing(_))));
        let mut cut = bzimage(&xz());
        cut.truncate(512 * 3 + 64 + 100);
        assert!(matches!(unpack(&cut), Err(KernelError::Outside)));
        let mut old = bzimage(&xz());
        old[VERSION] = 0x01;
        assert!(matches!(unpack(&old), Err(KernelError::TooOld(0x0201))));
        let mut damaged = bzimage(&xz());
        damaged[512 * 3 + 64 + 40] ^= 0xff;
        assert!(matches!(unpack(&damaged), Err(KernelError::Damaged(_))));
        assert!(!is_bzimage(b"\x7fELF"));
    }

    proptest! {
        #[test]
        fn no_file_panics(at in 0usize..700, bytes: Vec<u8>) {
            let mut file = bzimage(&xz());
            let end = file.len().min(at + bytes.len());
            file[at..end].copy_from_slice(&bytes[..end - at]);
            let _ = unpack(&file);
            let _ = unpack(&bytes);
            let _ = compact(&bytes);
        }
    }
}
