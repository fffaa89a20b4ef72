//! Packs the web site of `httpd` into an archive: the folder `www`, or the one that the
//! environment variable `HTTPD_ROOT` names.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=HTTPD_ROOT");
    let root = env::var_os("HTTPD_ROOT").map_or_else(|| PathBuf::from("www"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", root.display());
    let target = env::var_os("OUT_DIR").map(PathBuf::from).ok_or(io::ErrorKind::NotFound)?;
    let mut archive = tar::Builder::new(fs::File::create(target.join("www.tar"))?);
    pack(&mut archive, &root, Path::new(""))?;
    archive.into_inner()?.sync_all()
}

/// Adds the files of a folder, in the order of their names.
fn pack(archive: &mut tar::Builder<fs::File>, folder: &Path, name: &Path) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        if path.is_dir() {
            pack(archive, &path, &name)?;
            continue;
        }
        let modified = fs::metadata(&path)?.modified()?.duration_since(std::time::UNIX_EPOCH);
        let body = fs::read(&path)?;
        let mut header = tar::Header::new_ustar();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(modified.map_or(0, |since| since.as_secs()));
        archive.append_data(&mut header, &name, &body[..])?;
    }
    Ok(())
}
