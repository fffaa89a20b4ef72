//! What capsules are made of: files named by their digest.
//!
//! `images/HEX` is the file, `images/HEX.json` what was found out about it; the former is
//! there before the latter, and without the latter it is nothing. All of them together are
//! bounded, and where the files are nothing but memory, so is what they leave of it: when a new
//! one needs the room, those go that no capsule uses, the longest unused first.
//!
//! Images are read where they are, in their files ([`crate::mapped`]): there is no copy of them,
//! neither for parsing them nor for building domains of them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fcap_api::Image as Info;
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::daemon::blocking;
use crate::error::{Error, Result};
use crate::mapped;
use crate::store::is_in_memory;
use crate::toolstack::{Image, Toolstack};

/// How long an upload may stand still, or wait for its turn.
const PIECE_TIME: Duration = Duration::from_secs(60);
/// Uploads at the same time; others wait.
const UPLOADS: usize = 4;
/// Memory that images leave to everything else, where they are kept in memory.
const MEMORY_LEFT: u64 = 32 << 20;

/// The node's images.
pub struct Images {
    dir: PathBuf,
    max_bytes: u64,
    toolstack: Arc<dyn Toolstack>,
    /// Whether the files are nothing but memory.
    in_memory: bool,
    turns: Semaphore,
    uploads: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<String, Entry>,
    /// Counts uses, to know which was last.
    uses: u64,
    /// Bytes that uploads under way have room for.
    reserved: u64,
    /// Of these, what is there already.
    arrived: u64,
}

struct Entry {
    info: Info,
    used: u64,
    parsed: Option<Arc<dyn Image>>,
}

/// Checks a digest and gives its hex part.
fn hex(digest: &str) -> Result<&str> {
    let hex = digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')));
    hex.ok_or_else(|| {
        let shown: String = digest.chars().take(80).collect();
        Error::BadRequest(format!("{shown:?} is no digest: that is sha256: and 64 lower-case hex digits"))
    })
}

impl Images {
    /// Opens the images in `dir`, which are at most `max_bytes` together.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open_dir(dir: PathBuf, max_bytes: u64, toolstack: Arc<dyn Toolstack>) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let mut entries = HashMap::new();
        let mut strays = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(hex) = name.strip_suffix(".json") else {
                strays.push(path);
                continue;
            };
            match serde_json::from_slice::<Info>(&fs::read(&path)?) {
                Ok(info) if info.digest == format!("sha256:{hex}") && dir.join(hex).exists() => {
                    entries.insert(info.digest.clone(), Entry { info, used: 0, parsed: None });
                }
                _ => strays.push(path),
            }
        }
        // Halves of what was being written, or removed, when the daemon was killed.
        strays.retain(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            !entries.contains_key(&format!("sha256:{name}"))
        });
        strays.iter().try_for_each(fs::remove_file)?;
        let inner = Mutex::new(Inner { entries, ..Inner::default() });
        let in_memory = is_in_memory(&File::open(&dir)?)?;
        let turns = Semaphore::new(UPLOADS);
        Ok(Self { dir, max_bytes, toolstack, in_memory, turns, uploads: AtomicU64::new(0), inner })
    }

    /// What all images may have together, in bytes.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// All images, by digest.
    pub fn list(&self) -> Vec<Info> {
        let inner = self.inner.lock().unwrap();
        let mut images: Vec<_> = inner.entries.values().map(|entry| entry.info.clone()).collect();
        images.sort_by(|a, b| a.digest.cmp(&b.digest));
        images
    }

    /// What is known of an image.
    ///
    /// # Errors
    /// When there is none of this digest, or it is not one.
    pub fn get(&self, digest: &str) -> Result<Info> {
        hex(digest)?;
        let inner = self.inner.lock().unwrap();
        inner.entries.get(digest).map(|entry| entry.info.clone()).ok_or_else(|| missing(digest))
    }

    /// The parsed image, to make capsules of.
    ///
    /// # Errors
    /// When there is none of this digest, or it cannot be read.
    pub async fn open(&self, digest: &str) -> Result<Arc<dyn Image>> {
        hex(digest)?;
        {
            let mut inner = self.inner.lock().unwrap();
            inner.uses += 1;
            let uses = inner.uses;
            let entry = inner.entries.get_mut(digest).ok_or_else(|| missing(digest))?;
            entry.used = uses;
            if let Some(parsed) = &entry.parsed {
                return Ok(parsed.clone());
            }
        }
        let (bytes, toolstack) = (self.bytes(digest)?, self.toolstack.clone());
        let parsed = blocking(move || toolstack.parse_image(bytes)).await??;
        if let Some(entry) = self.inner.lock().unwrap().entries.get_mut(digest) {
            entry.parsed = Some(parsed.clone());
        }
        Ok(parsed)
    }

    /// The bytes of an image.
    ///
    /// # Errors
    /// When there is none of this digest, or it cannot be read.
    pub fn bytes(&self, digest: &str) -> Result<Bytes> {
        let path = self.dir.join(hex(digest)?);
        match map(&path) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(digest)),
            Err(error) => Err(Error::disk(format!("read image {digest}"))(error)),
        }
    }

    /// Takes in an image. `size` is what was announced; `in_use` says which ones must stay.
    ///
    /// # Errors
    /// When it is too large, has another digest, cannot be run, or there is no room; then
    /// nothing of it is left.
    pub async fn put<E: std::fmt::Display>(
        &self,
        digest: &str,
        size: Option<u64>,
        mut body: impl Stream<Item = std::result::Result<Bytes, E>> + Unpin,
        in_use: impl Fn(&str) -> bool,
    ) -> Result<Info> {
        hex(digest)?;
        if let Some(size) = size {
            self.check_size(size)?;
        }
        let turn = tokio::time::timeout(PIECE_TIME, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| {
            Error::NoRoom("the node is busy with other uploads of images; try again later".into())
        })?;
        // One that is held already is only checked.
        let mut upload = if self.get(digest).is_ok() { None } else { Some(Upload::new(self)?) };
        if let (Some(upload), Some(size)) = (&mut upload, size) {
            upload.reserve(size, digest, &in_use)?;
        }
        let (mut hasher, mut len) = (Sha256::new(), 0);
        let stalled = |_| Error::BadRequest("the rest of the image does not come".into());
        while let Some(piece) = tokio::time::timeout(PIECE_TIME, body.next()).await.map_err(stalled)? {
            let piece = piece.map_err(|error| Error::BadRequest(format!("the image broke off: {error}")))?;
            len += piece.len() as u64;
            self.check_size(len)?;
            hasher.update(&piece);
            if let Some(upload) = &mut upload {
                if len > upload.reserved {
                    upload.reserve(len - upload.reserved, digest, &in_use)?;
                }
                upload.write(&piece).map_err(Error::disk(format!("store image {digest}")))?;
            }
        }
        let found = hasher.finalize();
        let found = found.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"));
        if found != digest {
            return Err(Error::BadRequest(format!("the bytes have digest {found}, not {digest}")));
        }
        let Some(upload) = upload else { return self.get(digest) };
        if upload.len == 0 {
            return Err(Error::BadImage("the image is empty".into()));
        }
        let bytes = map(&upload.path).map_err(Error::disk(format!("read image {digest}")))?;
        let toolstack = self.toolstack.clone();
        let parsed = blocking(move || toolstack.parse_image(bytes)).await??;
        let min_memory_kib = parsed.min_memory_kib();
        let info = Info {
            digest: digest.to_owned(),
            size: upload.len,
            kind: parsed.kind(),
            min_memory_kib: (min_memory_kib > 0).then_some(min_memory_kib),
        };
        self.keep(&upload, &info).map_err(Error::disk(format!("store image {digest}")))?;
        {
            let mut inner = self.inner.lock().unwrap();
            inner.uses += 1;
            let used = inner.uses;
            let entry = Entry { info: info.clone(), used, parsed: Some(parsed) };
            inner.entries.insert(digest.to_owned(), entry);
        }
        Ok(info)
    }

    fn keep(&self, upload: &Upload<'_>, info: &Info) -> io::Result<()> {
        let hex = hex(&info.digest).map_err(io::Error::other)?;
        let facts = serde_json::to_vec(info).map_err(io::Error::other)?;
        let temporary = upload.path.with_extension("json-part");
        let path = self.dir.join(hex);
        let result = fs::write(&temporary, facts)
            .and_then(|()| fs::rename(&upload.path, &path))
            .and_then(|()| fs::rename(&temporary, path.with_extension("json")));
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    fn check_size(&self, size: u64) -> Result<()> {
        if size > self.max_bytes {
            let (size, most) = (size >> 10, self.max_bytes >> 10);
            return Err(Error::TooLarge(format!(
                "the image has {size} KiB or more, the node takes {most} KiB"
            )));
        }
        Ok(())
    }

    /// Keeps room for `more` bytes, and removes images for it that no capsule uses.
    fn reserve(&self, more: u64, arriving: &str, in_use: &impl Fn(&str) -> bool) -> Result<()> {
        let mut inner = self.inner.lock().unwrap();
        while let Some(lacking) = self.lacking(&inner, more)? {
            let unused = inner.entries.values().filter(|entry| !in_use(&entry.info.digest));
            let oldest = unused.min_by_key(|entry| entry.used).map(|entry| entry.info.digest.clone());
            let Some(oldest) = oldest else {
                return Err(Error::NoRoom(format!(
                    "the node has not enough room for images: {arriving} needs {} KiB, and {lacking}; \
                     remove capsules whose images are not needed, or use a larger node",
                    more.div_ceil(1024)
                )));
            };
            self.drop_entry(&mut inner, &oldest)?;
        }
        inner.reserved += more;
        Ok(())
    }

    /// Why there is no room for `more` bytes; None if there is.
    fn lacking(&self, inner: &Inner, more: u64) -> Result<Option<String>> {
        let held: u64 = inner.entries.values().map(|entry| entry.info.size).sum();
        if held + inner.reserved + more > self.max_bytes {
            let most = self.max_bytes >> 10;
            return Ok(Some(format!("all together may have {most} KiB, of which capsules use the rest")));
        }
        if !self.in_memory {
            return Ok(None);
        }
        let available = available_memory().map_err(Error::disk("find out how much memory is left"))?;
        let promised = inner.reserved - inner.arrived;
        let left = available.saturating_sub(MEMORY_LEFT + promised);
        Ok((more > left).then(|| format!("dom0 has memory for {} KiB", left >> 10)))
    }

    /// Removes an image that no capsule uses.
    ///
    /// # Errors
    /// When there is none of this digest.
    pub fn delete(&self, digest: &str) -> Result<()> {
        hex(digest)?;
        let mut inner = self.inner.lock().unwrap();
        if !inner.entries.contains_key(digest) {
            return Err(missing(digest));
        }
        self.drop_entry(&mut inner, digest)
    }

    fn drop_entry(&self, inner: &mut Inner, digest: &str) -> Result<()> {
        let path = self.dir.join(hex(digest)?);
        let removed = fs::remove_file(path.with_extension("json")).and_then(|()| fs::remove_file(&path));
        removed.map_err(Error::disk(format!("remove image {digest}")))?;
        inner.entries.remove(digest);
        Ok(())
    }
}

fn map(path: &Path) -> io::Result<Bytes> {
    mapped::map(&File::open(path)?)
}

/// Memory in bytes that programs can still get, by the kernel's estimate.
fn available_memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    let kib: Option<u64> = line.and_then(|kib| kib.parse().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))
}

fn missing(digest: &str) -> Error {
    Error::NoSuchImage(digest.to_owned())
}

/// A file that goes unless it is renamed.
struct Upload<'a> {
    images: &'a Images,
    path: PathBuf,
    file: File,
    len: u64,
    /// Bytes that there is room for.
    reserved: u64,
}

impl<'a> Upload<'a> {
    fn new(images: &'a Images) -> Result<Self> {
        let number = images.uploads.fetch_add(1, Ordering::Relaxed);
        let path = images.dir.join(format!("upload-{number}.part"));
        let file = File::create(&path).map_err(Error::disk("store an image"))?;
        Ok(Self { images, path, file, len: 0, reserved: 0 })
    }

    fn reserve(&mut self, more: u64, digest: &str, in_use: &impl Fn(&str) -> bool) -> Result<()> {
        self.images.reserve(more, digest, in_use)?;
        self.reserved += more;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        self.images.inner.lock().unwrap().arrived += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let mut inner = self.images.inner.lock().unwrap();
        inner.reserved -= self.reserved;
        inner.arrived -= self.len;
    }
}
