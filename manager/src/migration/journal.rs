//! What is on disk of moves: one file for each attempt that a later daemon must know of.
//!
//! | file in `migrations/` | says |
//! |---|---|
//! | `ATTEMPT.out` | the source has handed a capsule over, and may not run it until it hears otherwise: its claim |
//! | `ATTEMPT.begun` | a capsule is arriving; its domain may be complete, but has never run |
//! | `ATTEMPT.in` | the destination has taken it: its claim, with all that it has to know of the capsule |
//!
//! Files are written whole, and are on the disk before the next step is taken.
//!
//! A claim of a destination stays until its source has heard of it, which may be never: the capsule
//! may have left meanwhile, or be arriving once more. By then it says nothing of what is here.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::CapsuleId;
use crate::store::Saved;

/// Number of an attempt.
pub type Attempt = [u8; 16];

/// The directory.
#[derive(Clone, Debug)]
pub struct Journal {
    directory: PathBuf,
}

/// The source's claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Out {
    /// The capsule.
    pub capsule: CapsuleId,
    /// Name of the other node.
    pub node: String,
    /// Where it is.
    pub address: String,
    /// By what it is known: a fingerprint, or its name in the cluster.
    #[serde(alias = "fingerprint")]
    pub peer: String,
}

/// That a capsule is arriving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The capsule.
    pub capsule: CapsuleId,
}

/// The destination's claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct In {
    /// What is to be kept of the capsule.
    pub saved: Saved,
    /// By what the source is known, the only one that may ask for it.
    pub source: String,
}

/// Everything that is found.
#[derive(Debug, Default)]
pub struct Found {
    /// Capsules that were handed over.
    pub out: Vec<(Attempt, Out)>,
    /// Capsules that were arriving.
    pub begun: Vec<(Attempt, Begun)>,
    /// Capsules that were taken.
    pub taken: Vec<(Attempt, In)>,
}

impl Found {
    /// Those claims whose capsule is here because of them, and is not kept yet: neither has the
    /// capsule been taken up since, nor has another attempt brought what there is of it.
    pub fn taken_now(&self, kept: &[CapsuleId]) -> impl Iterator<Item = &(Attempt, In)> {
        self.taken.iter().filter(|(attempt, claim)| {
            let id = claim.saved.config.id;
            let another = |(other, begun): &(Attempt, Begun)| begun.capsule == id && other != attempt;
            !kept.contains(&id) && !self.begun.iter().any(another)
        })
    }
}

/// An attempt's number in 32 hex digits.
pub fn name(attempt: &Attempt) -> String {
    CapsuleId(*attempt).to_string()
}

/// The number in 32 hex digits.
pub fn parse_name(text: &str) -> Option<Attempt> {
    text.parse::<CapsuleId>().ok().map(|id| id.0)
}

impl Journal {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, attempt: &Attempt, extension: &str) -> PathBuf {
        self.directory.join(format!("{}.{extension}", name(attempt)))
    }

    /// Writes a file of an attempt; it is on the disk when this returns.
    ///
    /// # Errors
    /// If that is not certain.
    pub fn write<T: Serialize>(&self, attempt: &Attempt, extension: &str, value: &T) -> io::Result<()> {
        let path = self.path(attempt, extension);
        let temporary = self.directory.join(format!(".{}.{extension}", name(attempt)));
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(value).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        self.flush()
    }

    /// Removes a file of an attempt, which may be absent; it is gone from the disk when this
    /// returns.
    ///
    /// # Errors
    /// If that is not certain.
    pub fn remove(&self, attempt: &Attempt, extension: &str) -> io::Result<()> {
        match fs::remove_file(self.path(attempt, extension)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.flush(),
        }
    }

    /// Reads a file of an attempt.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read<T: DeserializeOwned>(&self, attempt: &Attempt, extension: &str) -> io::Result<Option<T>> {
        match fs::read(self.path(attempt, extension)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What an earlier daemon left.
    ///
    /// # Errors
    /// When it cannot be read: then nothing may be decided.
    pub fn load(&self) -> io::Result<Found> {
        let mut found = Found::default();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
            if file.starts_with('.') {
                fs::remove_file(&path)?;
                continue;
            }
            let Some((attempt, extension)) =
                file.split_once('.').and_then(|(attempt, extension)| Some((parse_name(attempt)?, extension)))
            else {
                continue;
            };
            let text = fs::read(&path)?;
            let broken = |error| io::Error::other(format!("{}: {error}", path.display()));
            match extension {
                "out" => found.out.push((attempt, serde_json::from_slice(&text).map_err(broken)?)),
                "begun" => found.begun.push((attempt, serde_json::from_slice(&text).map_err(broken)?)),
                "in" => found.taken.push((attempt, serde_json::from_slice(&text).map_err(broken)?)),
                _ => tracing::warn!(path = %path.display(), "no move's file, left alone"),
            }
        }
        Ok(found)
    }

    fn flush(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_found_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path().join("migrations")).unwrap();
        let out = Out {
            capsule: CapsuleId([1; 16]),
            node: "other".into(),
            address: "127.0.0.1:1".into(),
            peer: "f".into(),
        };
        journal.write(&[7; 16], "out", &out).unwrap();
        journal.write(&[8; 16], "begun", &Begun { capsule: CapsuleId([2; 16]) }).unwrap();
        fs::write(journal.directory().join(".half"), b"{").unwrap();
        let found = journal.load().unwrap();
        assert_eq!(found.out, [([7; 16], out.clone())]);
        assert_eq!(found.begun, [([8; 16], Begun { capsule: CapsuleId([2; 16]) })]);
        assert_eq!(journal.read(&[7; 16], "out").unwrap(), Some(out));
        journal.remove(&[7; 16], "out").unwrap();
        journal.remove(&[7; 16], "out").unwrap();
        journal.remove(&[8; 16], "begun").unwrap();
        assert!(journal.load().unwrap().out.is_empty());
        assert_eq!(fs::read_dir(journal.directory()).unwrap().count(), 0);
    }

    fn claim(id: CapsuleId) -> In {
        let saved = serde_json::json!({
            "config": {
                "id": id, "name": "web", "image": "", "image_name": "", "kind": "capsule", "args": [],
                "env": {}, "labels": {}, "memory_kib": 4096, "vcpus": 1, "cpu_cap": 0, "weight": 256,
                "restart": fcap_api::RestartPolicy::No, "remove": false, "stdin": false, "created_ms": 0
            },
            "progress": crate::store::Progress::default()
        });
        In { saved: serde_json::from_value(saved).unwrap(), source: "node1".into() }
    }

    #[test]
    fn a_claim_says_nothing_of_what_came_or_comes_after_it() {
        let (id, old, new) = (CapsuleId([1; 16]), [7; 16], [8; 16]);
        let begun = Begun { capsule: id };
        let claims = |found: &Found, kept: &[CapsuleId]| {
            found.taken_now(kept).map(|(attempt, _)| *attempt).collect::<Vec<_>>()
        };
        let mut found = Found { taken: vec![(old, claim(id))], ..Found::default() };
        assert_eq!(claims(&found, &[]), [old]);
        assert!(claims(&found, &[id]).is_empty(), "it is kept, as it has been since");
        found.begun = vec![(old, begun.clone())];
        assert_eq!(claims(&found, &[]), [old]);
        found.begun = vec![(new, begun)];
        assert!(claims(&found, &[]).is_empty(), "what is here of it is half of a later one");
        found.taken.push((new, claim(id)));
        assert_eq!(claims(&found, &[]), [new]);
    }

    #[test]
    fn a_claim_that_cannot_be_read_is_an_error_and_not_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path().to_owned()).unwrap();
        fs::write(directory.path().join(format!("{}.out", name(&[7; 16]))), b"{").unwrap();
        assert!(journal.load().is_err());
    }
}
