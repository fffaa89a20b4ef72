//! Linux's `bzImage`: a compressed ELF kernel behind a boot loader's header
//! (`Documentation/x86/boot.rst` in Linux's sources).

use std::io::Read;

use super::Error;

/// Most bytes that a kernel may have once it is unpacked.
const MAX_UNPACKED: u64 = 256 << 20;

/// The compressed kernel inside a bzImage; `None` for files that are something else.
pub(super) fn payload(bytes: &[u8]) -> Result<Option<&[u8]>, Error> {
    if bytes.get(0x1fe..0x200) != Some(&[0x55, 0xaa]) || bytes.get(0x202..0x206) != Some(b"HdrS") {
        return Ok(None);
    }
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let header = || {
        let version = u16::from_le_bytes(bytes.get(0x206..0x208)?.try_into().ok()?);
        Some((version, bytes.get(0x1f1)?, word(0x248)?, word(0x24c)?))
    };
    let (version, &sectors, offset, len) =
        header().ok_or(Error::Truncated("it ends within the bzImage header"))?;
    if version < 0x208 {
        return Err(Error::Unpack("its boot protocol is older than 2.08".into()));
    }
    // 0 stands for 4, by the protocol.
    let sectors = if sectors == 0 { 4 } else { usize::from(sectors) };
    let start = (sectors + 1) * 512 + offset as usize;
    let payload = bytes.get(start..).and_then(|rest| rest.get(..len as usize));
    payload.map(Some).ok_or(Error::Truncated("it ends within the compressed kernel"))
}

/// Unpacks a kernel.
pub(super) fn unpack(payload: &[u8]) -> Result<Vec<u8>, Error> {
    let reader: Box<dyn Read + '_> = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(liblzma::read::XzDecoder::new(payload)),
        [0x1f, 0x8b, ..] => Box::new(flate2::read::GzDecoder::new(payload)),
        [0x7f, b'E', b'L', b'F', ..] => Box::new(payload),
        _ => {
            return Err(Error::Unpack(
                "only xz and gzip are known here; use a kernel packed with one of them, or its vmlinux"
                    .into(),
            ));
        }
    };
    // Linux's build appends the unpacked size, which spares a growing vector's moves. If it
    // lies, it gets no more than anybody.
    let size = payload.last_chunk().map_or(0, |&size| u64::from(u32::from_le_bytes(size)));
    let mut unpacked = Vec::new();
    unpacked
        .try_reserve_exact(size.min(MAX_UNPACKED) as usize)
        .map_err(|_| Error::Unpack("there is no memory for it".into()))?;
    reader
        .take(MAX_UNPACKED + 1)
        .read_to_end(&mut unpacked)
        .map_err(|error| Error::Unpack(format!("{error}; copy the image again")))?;
    unpacked.shrink_to_fit();
    if unpacked.len() as u64 > MAX_UNPACKED {
        return Err(Error::Unpack("it is larger than 256 MiB".into()));
    }
    Ok(unpacked)
}
