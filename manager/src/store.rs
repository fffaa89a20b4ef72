//! What survives a restart of the daemon, one directory for each capsule.
//!
//! | file | holds |
//! |---|---|
//! | `capsules/ID/spec.json` | what it was made with, and what is wanted of it ([`Saved`]) |
//! | `capsules/ID/end.json` | how its last run ended ([`SavedEnd`]) |
//! | `capsules/ID/log-*` | what it wrote ([`crate::log`]) |
//! | `capsules/.gone-ID` | being removed |
//!
//! The order of writes makes it safe to be killed between any two of them: the spec is there
//! before the domain, the end before the domain goes, and the directory gets out of the way
//! in one rename once the domain is gone. Files are replaced whole. On a real disk they are
//! flushed a moment later, all together and in nobody's way: after a crash of the whole node
//! the domains are gone anyway, so nothing is lost with the last moment's writes that could
//! still be used.

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

    /// Where a capsule's log is.
    pub fn log_dir(&self, id: CapsuleId) -> PathBuf {
        self.capsule_dir(id)
    }

    /// Keeps a capsule.
    ///
    /// # Errors
    /// When the disk is full or fails; what was kept before is still there.
    pub fn save(&self, saved: &Saved) -> Result<()> {
        let id = saved.config.id;
        self.write(&self.capsule_dir(id), "spec.json", saved)
            .map_err(Error::disk(format!("keep the spec of capsule {id}")))
    }

    /// Keeps a run's end.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn save_end(&self, id: CapsuleId, end: &SavedEnd) -> Result<()> {
        self.write(&self.capsule_dir(id), "end.json", end)
            .map_err(Error::disk(format!("keep the end of capsule {id}")))
    }

    /// Removes what is kept of a capsule.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove(&self, id: CapsuleId) -> Result<()> {
        self.hit();
        let gone = self.capsules_dir().join(format!(".gone-{id}"));
        let removed = match fs::rename(self.capsule_dir(id), &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                self.hit();
                fs::remove_dir_all(&gone)
            }
        };
        removed.map_err(Error::disk(format!("remove the files of capsule {id}")))
    }

    /// All capsules that are kept. Files that cannot be read are reported and left alone.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub fn load(&self) -> io::Result<Vec<(Saved, Option<SavedEnd>)>> {
        let mut capsules = Vec::new();
        for entry in fs::read_dir(self.capsules_dir())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(".gone-") {
                fs::remove_dir_all(&path)?;
                continue;
            }
            match read::<Saved>(&path.join("spec.json")) {
                Ok(Some(saved)) if saved.config.id.to_string() == name => {
                    let end = read(&path.join("end.json")).unwrap_or_else(|error| {
                        tracing::warn!(capsule = name, %error, "end.json cannot be read");
                        None
                    });
                    capsules.push((saved, end));
                }
                // It was being made, and nobody was told of it.
                Ok(None) if name.parse::<CapsuleId>().is_ok() => fs::remove_dir_all(&path)?,
                Ok(_) => tracing::warn!(path = %path.display(), "no capsule's directory, left alone"),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a capsule's spec cannot be read")
                }
            }
        }
        capsules.sort_by_key(|(saved, _)| (saved.config.created_ms, saved.config.id));
        Ok(capsules)
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
        self.write(&self.root, name, value).map_err(Error::disk(format!("keep {name}")))
    }

    fn capsules_dir(&self) -> PathBuf {
        self.root.join("capsules")
    }

    fn capsule_dir(&self, id: CapsuleId) -> PathBuf {
        self.capsules_dir().join(id.to_string())
    }

    fn write<T: Serialize>(&self, dir: &Path, name: &str, value: &T) -> io::Result<()> {
        self.hit();
        let temporary = dir.join(format!(".{name}"));
        let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
        let create = || File::create(&temporary);
        let result = create()
            .or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => fs::create_dir(dir).and_then(|()| create()),
                _ => Err(error),
            })
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| {
                self.hit();
                fs::rename(&temporary, dir.join(name))
            });
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
            // Succeeds only when nothing else is in it: when it was made just now.
            let _ = fs::remove_dir(dir);
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
