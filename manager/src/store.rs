//! What survives a restart of the daemon: a few files for each capsule.
//!
//! | file in `capsules/` | holds |
//! |---|---|
//! | `ID.spec` | what it was made with, and what is wanted of it ([`Saved`]) |
//! | `ID.end` | how its last run ended ([`SavedEnd`]) |
//! | `ID.log-*` | what it wrote ([`crate::log`]) |
//! | `.ID.*` | being written |
//!
//! The order of writes makes it safe to be killed between any two of them: the spec is there
//! before the domain, the end before the domain goes, and the spec goes first once the domain
//! is gone; what has no spec is nothing. Files are replaced whole. They are no more and no
//! deeper than need be, as making a capsule waits for them. On a real disk they are
//! flushed a moment later, all together and in nobody's way: after a crash of the whole node
//! the domains are gone anyway, so nothing is lost with the last moment's writes that could
//! still be used.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use fcap_api::End;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::capsule::config::Config;
use crate::error::{Error, Result};
use crate::id::CapsuleId;
use crate::log::Log;

/// `RAMFS_MAGIC` of Linux's `magic.h`: what an initramfs is without tmpfs.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
/// How long flushing waits for more to flush.
const FLUSH_DELAY: Duration = Duration::from_millis(200);

/// A capsule as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// What it was made with.
    pub config: Config,
    /// What is wanted of it.
    pub progress: Progress,
}

/// What is wanted of a capsule, and how often it was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Number of the present or last run; 0 before the first start.
    pub run: u32,
    /// When that run was started.
    pub started_ms: Option<u64>,
    /// Restarts by its policy.
    pub restarts: u32,
    /// Restarts by its policy in a row, without a longer run in between.
    pub streak: u32,
    /// The operator asked for its end.
    pub stopped: bool,
    /// The operator holds it.
    pub paused: bool,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEnd {
    /// Number of the run.
    pub run: u32,
    /// Its end.
    pub end: End,
}

/// A capsule as it was found.
pub struct Loaded {
    /// What was kept of it.
    pub saved: Saved,
    /// How its last run ended, if that was kept.
    pub end: Option<SavedEnd>,
    /// Starts of the segments of its log.
    pub log: Vec<u64>,
}

/// The daemon's directory.
pub struct Store {
    root: PathBuf,
    /// Wakes the flusher; none where there is no disk below.
    flush: Option<mpsc::SyncSender<()>>,
    /// Held as long as the daemon lives, so that no second one uses the directory.
    _lock: Flock<File>,
    #[cfg(test)]
    pub(crate) failpoint: crate::daemon::tests::Failpoint,
}

impl Store {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// When it cannot be used, or another daemon does.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        use anyhow::Context;
        fs::create_dir_all(root.join("capsules"))
            .with_context(|| format!("failed to make {}", root.display()))?;
        let lock = File::create(root.join("lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| errno)
            .with_context(|| format!("another fcapd uses {}", root.display()))?;
        let in_memory = is_in_memory(&lock)?;
        let flush = if in_memory { None } else { Some(start_flusher(File::open(root)?)?) };
        Ok(Self {
            root: root.to_owned(),
            flush,
            _lock: lock,
            #[cfg(test)]
            failpoint: Default::default(),
        })
    }

    /// Where the images are.
    pub fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Where what is known of moves is.
    pub fn migrations_dir(&self) -> PathBuf {
        self.root.join("migrations")
    }

    /// Where the files of a capsule's log are, but for the extension.
    pub fn log_base(&self, id: CapsuleId) -> PathBuf {
        self.path(id, "log")
    }

    /// Keeps a capsule.
    ///
    /// # Errors
    /// When the disk is full or fails; what was kept before is still there.
    pub fn save(&self, saved: &Saved) -> Result<()> {
        let id = saved.config.id;
        self.write(&self.path(id, "spec"), saved)
            .map_err(Error::disk(format!("keep the spec of capsule {id}")))
    }

    /// Keeps a run's end.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn save_end(&self, id: CapsuleId, end: &SavedEnd) -> Result<()> {
        self.write(&self.path(id, "end"), end).map_err(Error::disk(format!("keep the end of capsule {id}")))
    }

    /// Removes what is kept of a capsule, but for its log.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove(&self, id: CapsuleId) -> Result<()> {
        for extension in ["spec", "end"] {
            self.hit();
            match fs::remove_file(self.path(id, extension)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::disk(format!("remove the files of capsule {id}"))(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All capsules that are kept, the oldest first. What is left of others is removed; files
    /// that cannot be read are reported and left alone.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn load(&self) -> io::Result<Vec<Loaded>> {
        let mut files: BTreeMap<CapsuleId, Vec<String>> = BTreeMap::new();
        for entry in fs::read_dir(self.capsules_dir())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let parts = name.split_once('.').and_then(|(id, extension)| Some((id.parse().ok()?, extension)));
            match parts {
                Some((id, extension)) => files.entry(id).or_default().push(extension.to_owned()),
                None if name.starts_with('.') => fs::remove_file(&path)?,
                None => tracing::warn!(path = %path.display(), "no capsule's file, left alone"),
            }
        }
        let mut capsules = Vec::new();
        for (id, extensions) in files {
            match read::<Saved>(&self.path(id, "spec")) {
                Ok(Some(saved)) if saved.config.id == id => {
                    let end = read(&self.path(id, "end")).unwrap_or_else(|error| {
                        tracing::warn!(capsule = %id, %error, "how it ended cannot be read");
                        None
                    });
                    let log =
                        extensions.iter().filter_map(|extension| Log::segment_start(extension)).collect();
                    capsules.push(Loaded { saved, end, log });
                }
                Ok(Some(_)) => tracing::warn!(capsule = %id, "its spec is another one's"),
                Err(error) if extensions.len() > 1 => {
                    tracing::warn!(capsule = %id, %error, "its spec cannot be read");
                }
                // It was being removed; or it was being made, and nobody was told of it.
                Ok(None) | Err(_) => {
                    extensions.iter().try_for_each(|extension| fs::remove_file(self.path(id, extension)))?;
                }
            }
        }
        capsules.sort_by_key(|loaded| (loaded.saved.config.created_ms, loaded.saved.config.id));
        Ok(capsules)
    }

    /// Where a file of the daemon itself is that is neither read nor written here.
    pub fn own(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Reads a file of the daemon itself.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_own<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        read(&self.root.join(name))
    }

    /// Replaces a file of the daemon itself.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn write_own<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        self.write(&self.root.join(name), value).map_err(Error::disk(format!("keep {name}")))
    }

    fn capsules_dir(&self) -> PathBuf {
        self.root.join("capsules")
    }

    fn path(&self, id: CapsuleId, extension: &str) -> PathBuf {
        self.root.join(format!("capsules/{id}.{extension}"))
    }

    fn write<T: Serialize>(&self, path: &Path, value: &T) -> io::Result<()> {
        self.hit();
        let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
        // One that is not there yet needs no other file to be replaced by.
        let (written, file) = match File::options().write(true).create_new(true).open(path) {
            Ok(file) => (path.to_owned(), Ok(file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let temporary = path.with_file_name(format!(".{name}"));
                let file = File::create(&temporary);
                (temporary, file)
            }
            Err(error) => return Err(error),
        };
        self.hit();
        let result = file.and_then(|mut file| file.write_all(&bytes)).and_then(|()| {
            self.hit();
            if written == path { Ok(()) } else { fs::rename(&written, path) }
        });
        if result.is_err() {
            let _ = fs::remove_file(&written);
        }
        if let Some(flush) = &self.flush {
            // Full means that a flush is due already.
            let _ = flush.try_send(());
        }
        result
    }

    #[cfg(test)]
    fn hit(&self) {
        self.failpoint.hit();
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests stop the daemon here")]
    fn hit(&self) {}
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the file system is nothing but memory.
///
/// # Errors
/// When the system does not say.
pub fn is_in_memory(file: &File) -> io::Result<bool> {
    let kind = fstatfs(file)?.filesystem_type();
    Ok([TMPFS_MAGIC, RAMFS_MAGIC].contains(&kind))
}

fn start_flusher(directory: File) -> io::Result<mpsc::SyncSender<()>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let run = move || {
        while receiver.recv().is_ok() {
            std::thread::sleep(FLUSH_DELAY);
            let _ = receiver.try_recv();
            if let Err(error) = nix::unistd::syncfs(&directory) {
                tracing::warn!(%error, "failed to flush the state directory");
            }
        }
    };
    std::thread::Builder::new().name("flush".into()).spawn(run)?;
    Ok(sender)
}
