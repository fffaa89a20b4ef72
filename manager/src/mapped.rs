//! Files as memory: read where they are, and only what is looked at.
//!
//! Images are large and a node's memory is small; where the state directory is itself nothing but
//! memory, a copy of an image would be there twice.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use bytes::Bytes;

/// The content of a file, which from now on only this process may change, and does not.
///
/// It stays as long as something of it is held, whether the file is removed meanwhile or not.
///
/// # Errors
/// When the file cannot be mapped.
pub fn map(file: &File) -> io::Result<Bytes> {
    // SAFETY: a mapping is sound as long as nobody changes or truncates its file. Callers map
    // files of the state directory, which belongs to this daemon alone (it holds its lock), once
    // they are written to their ends; later the daemon at most removes their names.
    let mapping = unsafe { memmap2::Mmap::map(file) }?;
    Ok(Bytes::from_owner(mapping))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_that_is_removed_is_read_to_its_end() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        assert!(map(file.as_file()).unwrap().is_empty());
        file.write_all(&[7; 10_000]).unwrap();
        let bytes = map(file.as_file()).unwrap();
        file.close().unwrap();
        assert_eq!(bytes, vec![7; 10_000]);
    }
}
