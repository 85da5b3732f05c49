//! What is kept: named spaces of keys and values, written in atomic batches.
//!
//! `write` makes a batch visible, `sync` makes all that was written durable.
//! Only the writer calls either, so that nothing is answered before it is safe.

pub mod embedded;
pub mod mark;
pub mod memory;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use smallvec::SmallVec;

/// A set of keys with a purpose of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// The store's own facts: format, stamp, epochs.
    Meta,
    /// Apps by id.
    Apps,
    /// Devices by id, with their registrations and what these follow.
    Devices,
    /// regID → device id.
    Registrations,
    /// (queue, regID): who follows a shared queue.
    Members,
    /// All positions of a registration, by regID.
    Pointers,
    /// The log of each queue, by queue id.
    Heads,
    /// Messages to several queues whose appends are not all done, by message id.
    Pending,
    /// Events for app servers that wait, and who gets them.
    Callbacks,
    /// regIDs of each app that are no more; devices by the day when they were last here.
    Feedback,
    /// Messages that are not due yet, in the order of their times; and which are an app's.
    Scheduled,
    /// Message id → how it was recalled, for messages of days that are held.
    Recalls,
    /// (queue, collection, 0, key) → the item without its value.
    Items,
    /// Queue → what each of its collections holds in all.
    Collections,
    /// (shard, commit, queue) → what the storage writer has not folded yet.
    Unfolded,
    /// The long-term store's: of each queue its live items, newest first and by name, and where
    /// it is folded to.
    Folded,
    /// (queue, regID) → the newest edits that it uploaded to it, and what became of them.
    Uploads,
    /// (queue, seq) → entry, for entries of one day.
    Entries(u32),
    /// Message id → where it went; (message id, queue) → position; and call → where its plain
    /// messages went. One day's.
    Messages(u32),
    /// (app and idempotency key, place in the call) → the answer of then; and what each app
    /// has used. One day's.
    Once(u32),
    /// (queue, collapse key) → the newest seq with it, among entries of one day.
    Collapse(u32),
    /// The long-term store's: (queue, seq) → entry, for entries of one day.
    History(u32),
}

impl Space {
    /// The spaces that are not a day's.
    pub const FIXED: [Self; 17] = [
        Self::Meta,
        Self::Apps,
        Self::Devices,
        Self::Registrations,
        Self::Members,
        Self::Pointers,
        Self::Heads,
        Self::Pending,
        Self::Callbacks,
        Self::Feedback,
        Self::Scheduled,
        Self::Recalls,
        Self::Items,
        Self::Collections,
        Self::Unfolded,
        Self::Folded,
        Self::Uploads,
    ];

    /// The spaces of a day.
    pub const fn of_day(day: u32) -> [Self; 5] {
        [
            Self::Entries(day),
            Self::Messages(day),
            Self::Once(day),
            Self::Collapse(day),
            Self::History(day),
        ]
    }

    /// Whose it is, if it is a day's.
    pub const fn day(self) -> Option<u32> {
        match self {
            Self::Entries(day)
            | Self::Messages(day)
            | Self::Once(day)
            | Self::Collapse(day)
            | Self::History(day) => Some(day),
            Self::Meta
            | Self::Apps
            | Self::Devices
            | Self::Registrations
            | Self::Members
            | Self::Pointers
            | Self::Heads
            | Self::Pending
            | Self::Callbacks
            | Self::Feedback
            | Self::Scheduled
            | Self::Recalls
            | Self::Items
            | Self::Collections
            | Self::Unfolded
            | Self::Folded
            | Self::Uploads => None,
        }
    }
}

/// Writes that become visible and durable together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// In order; a later write of a key wins.
    pub writes: Vec<Write>,
}

/// A key of a record; ours fit beside their values without a heap allocation.
pub type Key = SmallVec<[u8; 40]>;

/// A key's new value, or its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Where the key lives.
    pub space: Space,
    /// The key.
    pub key: Key,
    /// `None` removes it.
    pub value: Option<Bytes>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, space: Space, key: impl Into<Key>, value: impl Into<Bytes>) {
        self.writes.push(Write { space, key: key.into(), value: Some(value.into()) });
    }

    /// Removes a key.
    pub fn remove(&mut self, space: Space, key: impl Into<Key>) {
        self.writes.push(Write { space, key: key.into(), value: None });
    }

    /// Takes over the writes of another batch, behind its own.
    pub fn extend(&mut self, other: Self) {
        self.writes.extend(other.writes);
    }

    /// Puts the writes in the order of their keys, and drops those that a later one of the
    /// same key undoes: neighbours cost the store less than what lies anywhere.
    pub fn sort(&mut self) {
        let order = |a: &Write, b: &Write| (a.space, &a.key).cmp(&(b.space, &b.key));
        // Stable: of one key, the last stays last.
        self.writes.sort_by(order);
        self.writes.dedup_by(|later, kept| {
            let is_same = order(later, kept).is_eq();
            if is_same {
                kept.value = later.value.take();
            }
            is_same
        });
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// A key with its value.
pub type Record = (Bytes, Bytes);

/// Which keys a scan visits, ascending: `from` included, `to` not.
#[derive(Clone, Debug)]
pub struct Range {
    /// The first key.
    pub from: Vec<u8>,
    /// The key before which it ends; `None` is the end of the space.
    pub to: Option<Vec<u8>>,
}

impl Range {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        Self::prefix_after(prefix, prefix.to_vec())
    }

    /// All keys that begin with `prefix`, from the key `from` on.
    pub fn prefix_after(prefix: &[u8], from: Vec<u8>) -> Self {
        let mut to = prefix.to_vec();
        while let Some(last) = to.pop() {
            if last < u8::MAX {
                to.push(last + 1);
                return Self { from, to: Some(to) };
            }
        }
        Self { from, to: None }
    }
}

/// Where queues and the registry live.
pub trait Store: Send + Sync + 'static {
    /// The value of a key.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be read.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error>;

    /// At most `limit` records of a range, ascending. A day's space that does
    /// not exist is empty.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be read.
    fn scan(&self, space: Space, range: &Range, limit: usize) -> Result<Vec<Record>, Error>;

    /// Makes a batch visible. After a crash all of it is there or nothing; while
    /// this runs, a reader may see a part of it.
    ///
    /// # Errors
    /// [`Error`]; the batch may or may not be there then, and the store must be
    /// treated as lost until it is opened again.
    fn write(&self, batch: &Batch) -> Result<(), Error>;

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// [`Error`]; as with `write`, nothing may be acknowledged any more.
    fn sync(&self) -> Result<(), Error>;

    /// The days that have a space of their own, ascending.
    fn days(&self) -> Vec<u32>;

    /// Drops the spaces of a day.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be written.
    fn drop_day(&self, day: u32) -> Result<(), Error>;

    /// Drops one space of a day; it may not exist.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be written.
    fn drop_space(&self, space: Space) -> Result<(), Error>;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;
}

/// The store cannot do what it must.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The engine failed; what it said.
    #[error("the store failed to {step}: {cause}")]
    Engine {
        /// What was being done.
        step: &'static str,
        /// What the engine said.
        cause: String,
    },
    /// A record cannot be understood: the files are damaged or from a newer version.
    #[error("a stored record is damaged: {0}")]
    Damaged(String),
    /// An earlier write failed; nothing is acknowledged until a restart.
    #[error("the store is closed after a failed write; restart the node")]
    Closed,
}

/// The stored form of a record.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    encode_about(record, USUAL_BYTES)
}

/// The same of one that takes about so many bytes.
pub fn encode_about<T: Serialize>(record: &T, bytes: usize) -> Vec<u8> {
    let room = Vec::with_capacity(bytes);
    postcard::to_extend(record, room).expect("our records always have a postcard form")
}

/// What most records take.
const USUAL_BYTES: usize = 64;

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`Error::Damaged`] if the bytes are something else.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    postcard::from_bytes(bytes).map_err(|error| Error::Damaged(error.to_string()))
}
