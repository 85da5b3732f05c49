//! Collections on the device: what the gateway holds of an alias, readable and changeable while offline.
//!
//! Everything is in one SQLite file, the device's positions too, so that an item and the position that it came with are
//! durable together or not at all. What the app changes is visible at once and waits in a queue until the gateway has
//! answered. Owns the file; must never know connections: frames come as steps, and what to ask the gateway goes out
//! as errands.

mod answers;
mod courier;
mod edits;
mod repairs;
mod shelf;
#[cfg(feature = "sim")]
mod simulated;
mod tables;
#[cfg(test)]
mod tests;
mod work;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinError;

use courier::Courier;
pub use shelf::{ItemView, Shelf};
#[cfg(feature = "sim")]
pub use simulated::Held;

use crate::calls::Refusal;
use crate::device::Device;
use crate::items::{Steps, Value};
use crate::names::RegId;
use crate::random::Random;
use crate::store::{BoxFuture, PositionStore};
use repairs::Repairs;
use tables::Tables;
use work::{Handler, Work};

/// The collections of a device, and its positions, in one file. Clones are handles of the same one.
///
/// Calls write to the disk and return when that is done; from async code on a slow disk use a blocking task.
#[derive(Clone)]
pub struct Collections {
    inner: Arc<Inner>,
}

/// Something happened to collections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The app sees another value of an item.
    Changed(ItemChange),
    /// Too much changed at once to say it one by one: read again what is shown.
    Replaced {
        /// Whose collections.
        regid: RegId,
        /// Of which alias.
        alias: String,
    },
    /// The gateway has decided about an edit.
    Settled {
        /// Whose edit.
        regid: RegId,
        /// In which alias's collections.
        alias: String,
        /// In which of them.
        collection: String,
        /// Of which item.
        key: String,
        /// What [`Shelf::put`] returned.
        number: u64,
        /// What became of it.
        outcome: Outcome,
    },
    /// The app's handler failed on an item, and failed again when the item had been fetched anew: it is passed over.
    /// [`ItemView::is_skipped`] marks it.
    Skipped {
        /// Whose item.
        regid: RegId,
        /// In which alias's collections.
        alias: String,
        /// In which of them.
        collection: String,
        /// Which.
        key: String,
        /// What the handler said.
        reason: String,
    },
    /// The gateway takes no edits now; they stay in the queue and are sent again later.
    Refused {
        /// Whose edits.
        regid: RegId,
        /// Of which alias.
        alias: String,
        /// Why.
        refusal: Refusal,
        /// For humans.
        message: String,
    },
    /// What [`Shelf::compare`] or [`Shelf::fetch`] asked for has ended.
    Compared {
        /// Whose collection.
        regid: RegId,
        /// Of which alias.
        alias: String,
        /// Which.
        collection: String,
        /// How.
        outcome: Comparison,
    },
    /// The registration does not follow the alias any more: its items, and edits that were not uploaded, are deleted.
    Forgotten {
        /// Which registration.
        regid: RegId,
        /// Which alias.
        alias: String,
    },
}

/// The app sees another value of an item than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemChange {
    /// Whose item.
    pub regid: RegId,
    /// In which alias's collections.
    pub alias: String,
    /// In which of them.
    pub collection: String,
    /// Which.
    pub key: String,
    /// What it was; `None`: it was not there.
    pub old: Option<Value>,
    /// What it is; `None`: it is not there any more.
    pub new: Option<Value>,
    /// Who changed it.
    pub who: Who,
}

/// Who changed an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// This device's app.
    Here,
    /// An app server or another device.
    Elsewhere,
}

/// What became of an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It stands as it was made.
    Applied,
    /// It stands together with what others made of the item.
    Merged,
    /// It is kept under a key of its own.
    Copied,
    /// What others made of the item stays.
    Lost,
    /// The collection cannot take it; the text says why.
    Invalid(String),
}

/// How a comparison with the gateway's items ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// What differed is taken over.
    Complete,
    /// It took more exchanges than one may: what came is taken over, something may differ still. Ask again.
    Cut,
    /// The gateway did not help.
    Refused(Refusal),
}

/// Why collections cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database says no.
    #[error("cannot use the database of collections")]
    Database(#[from] rusqlite::Error),
    /// Written by a later version of this library.
    #[error("the database of collections has the unknown version {0}: update the app")]
    Version(i64),
    /// A value is longer than an item may be.
    #[error("a value has at most {VALUE_BYTES_MAX} bytes, not {0}")]
    TooLarge(usize),
    /// A name is out of its bounds.
    #[error("a {what} has {rule}")]
    Name {
        /// Of what.
        what: &'static str,
        /// Its bounds.
        rule: &'static str,
    },
    /// [`Shelf::patch`] takes a JSON object.
    #[error("what is to be merged into an item must be a JSON object")]
    NotAnObject,
    /// The app's handler of changes may not call back: what it is told is not durable yet.
    #[error("collections cannot be used from inside their handler of changes")]
    InHandler,
}

struct Inner {
    path: PathBuf,
    database: Mutex<Database>,
    /// Which thread has it.
    holder: Mutex<Option<ThreadId>>,
    told: broadcast::Sender<Happening>,
    /// There may be something to ask the gateway.
    errands: Notify,
    now_ms: Box<dyn Fn() -> u64 + Send + Sync>,
    /// A simulation: all is done on the caller's thread.
    is_simulated: bool,
}

struct Database {
    connection: Connection,
    handler: Option<Handler>,
    repairs: Repairs,
}

impl Collections {
    /// Opens the file, or makes it. Only one process may have it open.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Version`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path.as_ref(), unix_ms, "FULL")
    }

    fn open_with(
        path: &Path,
        now_ms: impl Fn() -> u64 + Send + Sync + 'static,
        synchronous: &str,
    ) -> Result<Self, Error> {
        Ok(Self { inner: Arc::new(Inner::open(path, now_ms, synchronous)?) })
    }

    /// What happens from now on. Who reads too slowly is told how much he missed, and reads again what he shows.
    pub fn changes(&self) -> broadcast::Receiver<Happening> {
        self.inner.told.subscribe()
    }

    /// Calls the app for each change that was made elsewhere, before it is durable: a change that the app has not
    /// handled when the process dies comes again. An error says that the app cannot handle the item: then it is fetched
    /// once more, and passed over if that does not help. The handler must not use the collections, and be quick.
    ///
    /// # Errors
    /// [`Error::InHandler`].
    pub fn handle_with(
        &self,
        handler: impl FnMut(&ItemChange) -> Result<(), String> + Send + 'static,
    ) -> Result<(), Error> {
        self.inner.lock()?.database.handler = Some(Box::new(handler));
        Ok(())
    }

    /// The collections of one alias, as one registration has them.
    pub fn of(&self, regid: &RegId, alias: &str) -> Shelf {
        Shelf::new(self.clone(), regid.clone(), alias)
    }

    /// Those of all aliases that are here: for an app that starts offline.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn shelves(&self) -> Result<Vec<Shelf>, Error> {
        let shelves = self.read(|tables| Ok(tables.shelves()?))?;
        let shelf = |row: tables::ShelfRow| self.of(&RegId::from(row.regid), &row.alias);
        Ok(shelves.into_iter().map(shelf).collect())
    }

    /// Runs `work` in one transaction, and tells the app what it led to.
    fn transact<T>(
        &self,
        work: impl FnOnce(&mut Work<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut locked = self.inner.lock()?;
        let Database { connection, handler, repairs } = &mut *locked.database;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut doing = Work {
            tables: Tables(&transaction),
            handler: handler.as_mut(),
            repairs,
            told: Vec::new(),
        };
        let done = work(&mut doing)?;
        let told = doing.told;
        transaction.commit()?;
        self.tell(told);
        Ok(done)
    }

    fn read<T>(&self, read: impl FnOnce(Tables<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let locked = self.inner.lock()?;
        read(Tables(&locked.database.connection))
    }

    fn tell(&self, told: Vec<Happening>) {
        let is_much = told.len() > TOLD_MAX / 2;
        let mut replaced: Vec<(RegId, String)> = Vec::new();
        for happening in told {
            match happening {
                Happening::Changed(change) if is_much => {
                    let place = (change.regid, change.alias);
                    if !replaced.contains(&place) {
                        replaced.push(place);
                    }
                }
                // Nobody listens: then nobody wants to know.
                other => drop(self.inner.told.send(other)),
            }
        }
        for (regid, alias) in replaced {
            drop(self.inner.told.send(Happening::Replaced { regid, alias }));
        }
    }

    /// Runs work that waits for the disk where async code does not wait for it.
    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<Result<T, Error>, JoinError> {
        if self.inner.is_simulated {
            return Ok(work(self));
        }
        let collections = self.clone();
        tokio::task::spawn_blocking(move || work(&collections)).await
    }

    fn load_state(&self) -> Result<Option<Vec<u8>>, Error> {
        self.read(|tables| Ok(tables.state()?))
    }

    fn commit_steps(&self, state: &[u8], steps: &Steps) -> Result<(), Error> {
        self.transact(|work| {
            for step in &steps.0 {
                work.step(step)?;
            }
            Ok(work.tables.set_state(state)?)
        })?;
        if !steps.0.is_empty() {
            self.inner.errands.notify_one();
        }
        Ok(())
    }
}

impl std::fmt::Debug for Collections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Collections({})", self.inner.path.display())
    }
}

impl PositionStore for Collections {
    fn load(&mut self) -> BoxFuture<'_, io::Result<Option<Vec<u8>>>> {
        let collections = self.clone();
        Box::pin(async move {
            let loaded = collections.apart(Self::load_state).await.map_err(io::Error::other)?;
            loaded.map_err(io::Error::other)
        })
    }

    fn save(&mut self, value: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        self.commit(value, Arc::default())
    }

    fn commit(&mut self, value: Vec<u8>, steps: Arc<Steps>) -> BoxFuture<'_, io::Result<()>> {
        let collections = self.clone();
        Box::pin(async move {
            let committing = move |to: &Self| to.commit_steps(&value, &steps);
            let committed = collections.apart(committing).await.map_err(io::Error::other)?;
            committed.map_err(io::Error::other)
        })
    }

    fn beside(&self, device: &Device, seed: u64) -> Option<BoxFuture<'static, ()>> {
        let courier = Courier {
            collections: self.clone(),
            commands: device.commands.downgrade(),
            status: device.status.clone(),
            random: Random::seeded(seed),
        };
        Some(Box::pin(courier.run()))
    }
}

/// The database while one thread has it.
struct Locked<'a> {
    database: MutexGuard<'a, Database>,
    holder: &'a Mutex<Option<ThreadId>>,
}

impl Inner {
    fn open(
        path: &Path,
        now_ms: impl Fn() -> u64 + Send + Sync + 'static,
        synchronous: &str,
    ) -> Result<Self, Error> {
        let mut connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", synchronous)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        // Without it SQLite plans a statement again whenever its parameters change.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match version {
            0 => {
                let making = connection.transaction()?;
                making.execute_batch(tables::SCHEMA)?;
                making.commit()?;
            }
            tables::VERSION => {}
            other => return Err(Error::Version(other)),
        }
        let database = Database { connection, handler: None, repairs: Repairs::default() };
        Ok(Self {
            path: path.to_owned(),
            database: Mutex::new(database),
            holder: Mutex::new(None),
            told: broadcast::channel(TOLD_MAX).0,
            errands: Notify::new(),
            now_ms: Box::new(now_ms),
            is_simulated: false,
        })
    }

    /// Refuses who has it already, which only the app's handler can be.
    fn lock(&self) -> Result<Locked<'_>, Error> {
        let me = thread::current().id();
        let holder = || self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if *holder() == Some(me) {
            return Err(Error::InHandler);
        }
        // A panic of the app's handler has rolled its transaction back.
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        *holder() = Some(me);
        Ok(Locked { database, holder: &self.holder })
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Milliseconds since 1970. A clock before that is a broken one.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The largest value of an item.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// Happenings that a slow listener may have before him.
const TOLD_MAX: usize = 4096;
/// Prepared statements that are kept.
const STATEMENTS_MAX: usize = 64;
