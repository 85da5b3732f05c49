//! The embedded store: fjall, with a keyspace for each day of entries.
//!
//! Rules that keep it whole, from measurements and its issue tracker: no
//! `clear()`, no ingestion, no key-value separation; days are dropped whole;
//! what its journal could lose silently, the commit mark shows.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::unix::fs::DirBuilderExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{PoisonError, RwLock},
};

use bytes::Bytes;
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode,
    config::{CompressionPolicy, FilterPolicy},
};

use super::{Batch, Error, Range, Record, Space, Store};
use crate::base::keys::sync_dir;

/// Memory that one keyspace gathers before it writes a table.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// All journals together; tables are written early enough to stay below.
const JOURNAL_BYTES: u64 = 128 << 20;
/// Tables that are kept open: fewer than the files that sockets leave (`base::net`).
const CACHED_FILES: usize = 192;

/// A fjall database in one directory.
pub struct EmbeddedStore {
    database: Database,
    keyspaces: RwLock<HashMap<Space, Keyspace>>,
}

impl EmbeddedStore {
    /// Opens or creates the database in `dir`.
    ///
    /// # Errors
    /// If another process holds it, or its files are damaged: then nothing is
    /// changed, and an operator decides.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, Error> {
        let is_new = match dir.read_dir() {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(unusable(&error)),
        };
        if is_new {
            Self::create(dir, cache_bytes)?;
        }
        Self::open_in(dir, cache_bytes)
    }

    /// Creates a database beside its place and moves it there: one that is half made
    /// cannot be opened, nor told from a damaged one.
    fn create(dir: &Path, cache_bytes: u64) -> Result<(), Error> {
        let partial = dir.with_extension("partial");
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unusable(&error)),
            _ => {}
        }
        // Messages and hashes of secrets are for the node alone.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&partial);
        made.map_err(|error| unusable(&error))?;
        drop(Self::open_in(&partial, cache_bytes)?);
        fs::rename(&partial, dir).and_then(|()| sync_dir(dir)).map_err(|error| unusable(&error))
    }

    fn open_in(dir: &Path, cache_bytes: u64) -> Result<Self, Error> {
        let builder = Database::builder(dir)
            .cache_size(cache_bytes)
            .journal_compression(CompressionType::None)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(2)
            .max_cached_files(Some(CACHED_FILES));
        // Some damage of a journal is met by an assertion of the library's.
        let database = catch_unwind(AssertUnwindSafe(|| builder.open()))
            .map_err(|_| Error::Damaged("its files cannot be read".into()))?
            .map_err(|error| failed("open its files", &error))?;
        let store = Self { database, keyspaces: RwLock::default() };
        for space in Space::FIXED {
            store.open_keyspace(space)?;
        }
        for name in store.database.list_keyspace_names() {
            if let Some(space) = day_space(&name) {
                store.open_keyspace(space)?;
            }
        }
        Ok(store)
    }

    fn keyspace(&self, space: Space) -> Option<Keyspace> {
        self.keyspaces.read().unwrap_or_else(PoisonError::into_inner).get(&space).cloned()
    }

    fn open_keyspace(&self, space: Space) -> Result<Keyspace, Error> {
        let keyspace = self
            .database
            .keyspace(&name_of(space), || options(space))
            .map_err(|error| failed("open a keyspace", &error))?;
        let mut keyspaces = self.keyspaces.write().unwrap_or_else(PoisonError::into_inner);
        keyspaces.insert(space, keyspace.clone());
        Ok(keyspace)
    }
}

fn unusable(error: &io::Error) -> Error {
    Error::Engine { step: "use its directory", cause: error.to_string() }
}

fn failed(step: &'static str, error: &fjall::Error) -> Error {
    Error::Engine { step, cause: error.to_string() }
}

fn name_of(space: Space) -> String {
    match space {
        Space::Meta => "meta".into(),
        Space::Apps => "apps".into(),
        Space::Devices => "devices".into(),
        Space::Registrations => "registrations".into(),
        Space::Members => "members".into(),
        Space::Pointers => "pointers".into(),
        Space::Heads => "heads".into(),
        Space::Pending => "pending".into(),
        Space::Callbacks => "callbacks".into(),
        Space::Feedback => "feedback".into(),
        Space::Scheduled => "scheduled".into(),
        Space::Recalls => "recalls".into(),
        Space::Items => "items".into(),
        Space::Collections => "collections".into(),
        Space::Unfolded => "unfolded".into(),
        Space::Folded => "folded".into(),
        Space::Uploads => "uploads".into(),
        Space::Entries(day) => format!("entries.{day}"),
        Space::Messages(day) => format!("messages.{day}"),
        Space::Once(day) => format!("once.{day}"),
        Space::Collapse(day) => format!("collapse.{day}"),
        Space::History(day) => format!("history.{day}"),
    }
}

fn day_space(name: &str) -> Option<Space> {
    let (kind, day) = name.split_once('.')?;
    let day = day.parse().ok()?;
    match kind {
        "entries" => Some(Space::Entries(day)),
        "messages" => Some(Space::Messages(day)),
        "once" => Some(Space::Once(day)),
        "collapse" => Some(Space::Collapse(day)),
        "history" => Some(Space::History(day)),
        _ => None,
    }
}

fn options(space: Space) -> KeyspaceCreateOptions {
    let options = KeyspaceCreateOptions::default()
        .manual_journal_persist(true)
        .max_memtable_size(MEMTABLE_BYTES)
        .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4));
    match space {
        // Read by ranges, where a filter does not help.
        Space::Entries(_) | Space::History(_) | Space::Members => {
            options.filter_policy(FilterPolicy::disabled())
        }
        _ => options,
    }
}

impl Store for EmbeddedStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let Some(keyspace) = self.keyspace(space) else {
            return Ok(None);
        };
        let value = keyspace.get(key).map_err(|error| failed("read", &error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, space: Space, range: &Range, limit: usize) -> Result<Vec<Record>, Error> {
        let Some(keyspace) = self.keyspace(space) else {
            return Ok(Vec::new());
        };
        let guards = match &range.to {
            Some(to) if *to <= range.from => return Ok(Vec::new()),
            Some(to) => keyspace.range(range.from.as_slice()..to.as_slice()),
            None => keyspace.range(range.from.as_slice()..),
        };
        let record = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().map_err(|error| failed("scan", &error))?;
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        };
        guards.take(limit).map(record).collect()
    }

    fn write(&self, batch: &Batch) -> Result<(), Error> {
        let mut writes =
            fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.writes.len())
                .durability(Some(PersistMode::Buffer));
        let mut last: Option<(Space, Keyspace)> = None;
        for write in &batch.writes {
            let keyspace = match last.take() {
                Some((space, keyspace)) if space == write.space => keyspace,
                _ => match self.keyspace(write.space) {
                    Some(keyspace) => keyspace,
                    None => self.open_keyspace(write.space)?,
                },
            };
            match &write.value {
                Some(value) => writes.insert(&keyspace, write.key.as_slice(), &value[..]),
                None => writes.remove(&keyspace, write.key.as_slice()),
            }
            last = Some((write.space, keyspace));
        }
        writes.commit().map_err(|error| failed("write", &error))
    }

    fn sync(&self) -> Result<(), Error> {
        self.database.persist(PersistMode::SyncData).map_err(|error| failed("sync", &error))
    }

    fn days(&self) -> Vec<u32> {
        let keyspaces = self.keyspaces.read().unwrap_or_else(PoisonError::into_inner);
        let days: BTreeSet<u32> = keyspaces.keys().filter_map(|space| space.day()).collect();
        days.into_iter().collect()
    }

    fn drop_day(&self, day: u32) -> Result<(), Error> {
        Space::of_day(day).into_iter().try_for_each(|space| self.drop_space(space))
    }

    fn drop_space(&self, space: Space) -> Result<(), Error> {
        let removed = {
            let mut keyspaces = self.keyspaces.write().unwrap_or_else(PoisonError::into_inner);
            keyspaces.remove(&space)
        };
        let Some(keyspace) = removed else { return Ok(()) };
        self.database.delete_keyspace(keyspace).map_err(|error| failed("drop a day", &error))
    }

    fn disk_bytes(&self) -> u64 {
        self.database.disk_space().unwrap_or(0)
    }
}
