//! Files with secrets.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::TlsError;

/// Replaces a file that only its owner may read. After a crash the old one is there or the new one.
///
/// # Errors
/// When the disk fails.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), TlsError> {
    let half = path.with_extension("half");
    let write = || {
        match fs::remove_file(&half) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&half)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&half, path)?;
        // The name is on the disk when its directory is.
        match path.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => File::open(directory)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().map_err(|source| {
        // A full disk is not to be fuller, and nobody wants half a secret.
        let _ = fs::remove_file(&half);
        TlsError::File { action: "write", path: path.to_owned(), source }
    })
}

/// Makes a file that only its owner may read, unless somebody else makes it at the same time: then
/// theirs stays.
pub(crate) fn create_secret(path: &Path, bytes: &[u8]) -> Result<(), TlsError> {
    let half = path.with_extension(format!("{}.new", std::process::id()));
    write_secret(&half, bytes)?;
    let linked = fs::hard_link(&half, path);
    let removed = fs::remove_file(&half);
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => removed,
    }
    .map_err(|source| TlsError::File { action: "write", path: path.to_owned(), source })
}

/// A file's text; nothing when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<String>, TlsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TlsError::File { action: "read", path: path.to_owned(), source }),
    }
}
