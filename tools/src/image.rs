//! Images on their way from the user's files to a node.

pub mod kernel;
pub mod resolve;

use crate::client::{Client, Result};
use crate::progress;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest file that is read as an image.
pub const MAX_IMAGE: u64 = 512 << 20;
/// Piece in which an image is sent.
const PIECE: usize = 256 * 1024;

/// A file that cannot be used as an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Nothing has that name.
    #[error("no image {name}: looked for {looked}; `fcap build` makes images")]
    NotFound {
        /// What was asked for.
        name: String,
        /// Where it might have been.
        looked: String,
    },
    /// The file is there, and cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is too long.
    #[error("{} has {len} bytes, an image at most {MAX_IMAGE}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// A compressed Linux kernel does not unpack.
    #[error("the kernel {} does not unpack", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        source: kernel::KernelError,
    },
}

/// An image, ready to be sent.
#[derive(Clone, Debug)]
pub struct LocalImage {
    /// What people call it: the file's name.
    pub name: String,
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    bytes: Arc<[u8]>,
}

impl LocalImage {
    /// Reads a file. A compressed Linux kernel (bzImage) is unpacked into the ELF file inside.
    ///
    /// # Errors
    /// When it cannot be read or unpacked, or is longer than [`MAX_IMAGE`].
    pub fn read(path: &Path) -> std::result::Result<Self, ImageError> {
        let mut bytes = read_bounded(path)?;
        if kernel::is_bzimage(&bytes) {
            bytes = kernel::unpack(&bytes)
                .map_err(|source| ImageError::Kernel { path: path.to_owned(), source })?;
        }
        Ok(Self::of(path, bytes))
    }

    /// Reads a file as it is: an initrd.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than [`MAX_IMAGE`].
    pub fn read_data(path: &Path) -> std::result::Result<Self, ImageError> {
        Ok(Self::of(path, read_bounded(path)?))
    }

    fn of(path: &Path, bytes: Vec<u8>) -> Self {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Self { name, digest: digest(&bytes), bytes: bytes.into() }
    }

    /// Gives it to a node that has not got it.
    ///
    /// # Errors
    /// When the node cannot be asked or does not take it.
    pub async fn ensure_on(&self, node: &Client) -> Result<()> {
        if node.has_image(&self.digest).await? {
            return Ok(());
        }
        let progress = progress::transfer(&format!("sending {}", self.name), self.bytes.len() as u64);
        let meter = progress.clone();
        let bytes = Arc::clone(&self.bytes);
        let pieces = (0..bytes.len()).step_by(PIECE).map(move |start| {
            let piece = bytes[start..bytes.len().min(start + PIECE)].to_vec();
            meter.inc(piece.len() as u64);
            Ok::<_, std::convert::Infallible>(piece)
        });
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
        let sent = node.put_image(&self.digest, self.bytes.len() as u64, body).await;
        progress.finish_and_clear();
        sent.map(drop)
    }
}

fn read_bounded(path: &Path) -> std::result::Result<Vec<u8>, ImageError> {
    let failed = |source| ImageError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    if len > MAX_IMAGE {
        return Err(ImageError::TooLarge { path: path.to_owned(), len });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    // The file may be a pipe, or grow.
    file.take(MAX_IMAGE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_IMAGE {
        return Err(ImageError::TooLarge { path: path.to_owned(), len: bytes.len() as u64 });
    }
    Ok(bytes)
}

/// The name of some bytes: `sha256:` and 64 hex digits.
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256sum() {
        assert_eq!(digest(b"abc"), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_directory_is_no_image() {
        assert!(matches!(LocalImage::read(Path::new("/")), Err(ImageError::Read { .. })));
    }
}
