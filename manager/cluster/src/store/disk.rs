//! The file of an embedded store: redb, one durable transaction a step.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::state::{HISTORY, State, Step};
use super::{Change, Entry, Lease, Result, StoreError};

/// Version of what is in the tables.
const SCHEMA: u64 = 1;
/// Schema, last revision and the oldest whose changes are kept.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Key to [`Entry`], as JSON.
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
/// Revision and place within it to [`Change`], as JSON.
const CHANGES: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("changes");
/// Lease to its time in milliseconds.
const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");

/// An open file. Nobody else can have it at the same time.
pub(super) struct Disk {
    database: Database,
    path: PathBuf,
}

impl Disk {
    /// Opens the file, or makes it, and reads all that is in it.
    pub(super) fn open(path: &Path) -> Result<(Self, State)> {
        if !path.exists() {
            create(path)?;
        }
        let opened = guarded(path, || Database::builder().open(path).map_err(|error| refused(path, error)))?;
        let disk = Self { database: opened, path: path.to_owned() };
        let state = guarded(path, || disk.read())?;
        Ok((disk, state))
    }

    fn damaged(&self, error: impl std::fmt::Display) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), reason: error.to_string() }
    }

    fn read(&self) -> Result<State> {
        let damaged = |error: redb::Error| self.damaged(error);
        let read = self.database.begin_read().map_err(|error| damaged(error.into()))?;
        let meta = read.open_table(META).map_err(|error| damaged(error.into()))?;
        let number = |name: &str| -> Result<u64> {
            let value = meta.get(name).map_err(|error| damaged(error.into()))?;
            value.map(|value| value.value()).ok_or_else(|| self.damaged(format!("it has no {name}")))
        };
        let found = number("schema")?;
        if found > SCHEMA {
            return Err(StoreError::Newer { path: self.path.clone(), found, known: SCHEMA });
        }
        let mut state =
            State { revision: number("revision")?, oldest: number("oldest")?, ..State::default() };
        let entries = read.open_table(ENTRIES).map_err(|error| damaged(error.into()))?;
        for row in entries.iter().map_err(|error| damaged(error.into()))? {
            let (key, value) = row.map_err(|error| damaged(error.into()))?;
            let entry: Entry = serde_json::from_slice(value.value()).map_err(|error| self.damaged(error))?;
            state.entries.insert(key.value().to_owned(), entry);
        }
        let changes = read.open_table(CHANGES).map_err(|error| damaged(error.into()))?;
        let mut history = VecDeque::new();
        for row in changes.iter().map_err(|error| damaged(error.into()))? {
            let (_, value) = row.map_err(|error| damaged(error.into()))?;
            let change: Change =
                serde_json::from_slice(value.value()).map_err(|error| self.damaged(error))?;
            history.push_back(change);
        }
        state.history = history;
        let leases = read.open_table(LEASES).map_err(|error| damaged(error.into()))?;
        for row in leases.iter().map_err(|error| damaged(error.into()))? {
            let (lease, ttl) = row.map_err(|error| damaged(error.into()))?;
            state.leases.insert(Lease(lease.value()), Duration::from_millis(ttl.value()));
        }
        Ok(state)
    }

    /// Makes a step durable.
    pub(super) fn write(&self, step: &Step) -> Result<()> {
        self.try_write(step).map_err(|error| StoreError::Disk {
            action: "write",
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }

    fn try_write(&self, step: &Step) -> std::result::Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        {
            let mut entries = write.open_table(ENTRIES)?;
            let mut changes = write.open_table(CHANGES)?;
            let mut leases = write.open_table(LEASES)?;
            let mut meta = write.open_table(META)?;
            for (lease, ttl) in &step.leases {
                match ttl {
                    Some(ttl) => {
                        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                        leases.insert(lease.0, ttl)?;
                    }
                    None => drop(leases.remove(lease.0)?),
                }
            }
            for (place, change) in (0..).zip(&step.changes) {
                match &change.entry {
                    Some(entry) => drop(entries.insert(change.key.as_str(), json(entry).as_slice())?),
                    None => drop(entries.remove(change.key.as_str())?),
                }
                changes.insert((change.revision, place), json(change).as_slice())?;
                meta.insert("revision", change.revision)?;
            }
            let mut kept = redb::ReadableTableMetadata::len(&changes)?;
            while kept > HISTORY as u64
                && let Some((place, _)) = changes.pop_first()?
            {
                meta.insert("oldest", place.value().0 + 1)?;
                kept -= 1;
            }
        }
        write.commit()?;
        Ok(())
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("what is kept is serialized")
}

/// redb panics where some of a file's pages are not what they should be.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let reason = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it makes no sense");
        Err(StoreError::Damaged { path: path.to_owned(), reason: reason.to_owned() })
    })
}

/// Under another name until it is whole: a file that is there is a store, or damaged. Of two who make
/// it at the same time one succeeds, and the other finds it there.
fn create(path: &Path) -> Result<()> {
    let failed = |reason: String| StoreError::Disk { action: "make", path: path.to_owned(), reason };
    let folder = path.parent().unwrap_or(Path::new("."));
    let half = tempfile::NamedTempFile::new_in(folder).map_err(|error| failed(error.to_string()))?;
    let half = half.into_temp_path();
    let make = || -> std::result::Result<(), redb::Error> {
        let database = Database::create(&half)?;
        let write = database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            meta.insert("schema", SCHEMA)?;
            meta.insert("revision", 0)?;
            meta.insert("oldest", 0)?;
            write.open_table(ENTRIES)?;
            write.open_table(CHANGES)?;
            write.open_table(LEASES)?;
        }
        write.commit()?;
        Ok(())
    };
    make().map_err(|error| failed(error.to_string()))?;
    match half.persist_noclobber(path) {
        Err(error) if error.error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(failed(error.error.to_string()))
        }
        _ => Ok(()),
    }
}

fn refused(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
        DatabaseError::Storage(redb::StorageError::Io(error))
            if !matches!(
                error.kind(),
                std::io::ErrorKind::InvalidData
                    | std::io::ErrorKind::UnexpectedEof
                    | std::io::ErrorKind::InvalidInput
            ) =>
        {
            StoreError::Disk { action: "read", path: path.to_owned(), reason: error.to_string() }
        }
        error => StoreError::Damaged { path: path.to_owned(), reason: error.to_string() },
    }
}
