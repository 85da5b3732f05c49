//! What a change on an owner can read and write.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    entry::{Body, Entry},
    log::Log,
    position::{Epoch, Position, Seq},
    reader::{collapse_key, entry_key},
    shard::{Owner, is_read_back},
    store::{Batch, Error, Key, Space, Write},
};
use crate::base::{
    clock::day_of,
    ids::{QueueId, Shard},
    maps::Owned,
};

/// One change: it sees all earlier changes of its owner, durable or not, and its
/// own writes. They are kept together or not at all.
pub struct Txn<'a> {
    owner: &'a Owner,
    scratch: Scratch,
}

/// What a change wrote.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) batch: Batch,
    pub(super) logs: Owned<QueueId, Appended>,
    pub(super) entries: Vec<(QueueId, Arc<Entry>)>,
    /// Its records that changes read back, by their newest value.
    pub(super) own: Owned<(Space, Key), Option<Bytes>>,
}

/// A queue's log before and after a change.
pub(super) struct Appended {
    pub(super) before: Log,
    pub(super) after: Log,
}

impl Scratch {
    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.logs.is_empty()
    }
}

impl<'a> Txn<'a> {
    pub(super) fn new(owner: &'a Owner) -> Self {
        Self { owner, scratch: Scratch::default() }
    }

    pub(super) fn finish(self) -> Scratch {
        self.scratch
    }

    /// A record, as this change sees it.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be read.
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let named = (space, Key::from_slice(key));
        if let Some(value) = self.scratch.own.get(&named) {
            return Ok(value.clone());
        }
        if let Some((value, _)) = self.owner.staged.get(&named) {
            return Ok(value.clone());
        }
        self.owner.parts.store.get(space, key)
    }

    /// Sets a record.
    pub fn put(&mut self, space: Space, key: impl Into<Key>, value: impl Into<Bytes>) {
        self.write(space, key.into(), Some(value.into()));
    }

    /// Writes a batch along. Of spaces only that no change reads back.
    pub fn put_all(&mut self, batch: Batch) {
        self.scratch.batch.extend(batch);
    }

    /// Sets a record that no change reads before it is durable: nobody knows its key.
    pub fn put_unread(&mut self, space: Space, key: impl Into<Key>, value: impl Into<Bytes>) {
        self.scratch.batch.put(space, key, value);
    }

    /// Removes a record.
    pub fn remove(&mut self, space: Space, key: impl Into<Key>) {
        self.write(space, key.into(), None);
    }

    /// Takes over writes that were prepared before.
    pub fn extend(&mut self, batch: Batch) {
        for Write { space, key, value } in batch.writes {
            self.write(space, key, value);
        }
    }

    fn write(&mut self, space: Space, key: Key, value: Option<Bytes>) {
        if is_read_back(space) {
            self.scratch.own.insert((space, key.clone()), value.clone());
        }
        self.scratch.batch.writes.push(Write { space, key, value });
    }

    /// Appends an entry to a queue of this owner.
    ///
    /// # Errors
    /// [`Error`] if the queue's log cannot be read.
    pub fn append(&mut self, queue: QueueId, body: Body) -> Result<Position, Error> {
        let now_ms = self.now_ms();
        let epoch = self.epoch(queue.shard());
        let oldest_day = self.owner.parts.views.oldest_day();
        let before = self.log(&queue)?;
        let mut log = before.clone();
        // A clock that was set back must not send an entry to an older day, nor to one
        // that retention has dropped.
        let day = day_of(now_ms).max(log.newest_day().unwrap_or(0)).max(oldest_day);
        log.trim(oldest_day);
        let position = log.append(day, epoch);
        if matches!(body, Body::Change(_)) {
            log.fold();
        }
        if let Some(key) = body.collapse_key() {
            let (key, seq) = (collapse_key(&queue, &key), position.seq.0.to_be_bytes());
            self.scratch.batch.put(Space::Collapse(day), key, seq.to_vec());
        }
        let entry = Arc::new(Entry { position, at_ms: now_ms, body });
        let key = entry_key(&queue, position.seq);
        self.scratch.batch.put(Space::Entries(day), key, entry.to_stored());
        self.scratch.entries.push((queue, entry));
        self.keep(queue, before, log);
        Ok(position)
    }

    /// Where a queue of this owner stands, with what is on its way.
    ///
    /// # Errors
    /// [`Error`] if the queue's log cannot be read.
    pub fn head(&self, queue: &QueueId) -> Result<Position, Error> {
        Ok(self.log(queue)?.head_position(self.epoch(queue.shard())))
    }

    /// Up to which entry of a queue of this owner somebody had seen who stands at a position.
    ///
    /// # Errors
    /// [`Error`] if the queue's log cannot be read.
    pub fn seen_at(&self, queue: &QueueId, position: Position) -> Result<Seq, Error> {
        Ok(self.log(queue)?.seen_at(position))
    }

    /// Gives a shard of this owner a new epoch.
    pub fn advance_epoch(&mut self, shard: Shard) -> Epoch {
        self.owner.parts.epochs.advance(shard, &mut self.scratch.batch)
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.owner.parts.clock.unix_ms()
    }

    /// The epoch in which a shard of this owner appends now.
    pub fn epoch(&self, shard: Shard) -> Epoch {
        self.owner.parts.epochs.current(shard)
    }

    fn log(&self, queue: &QueueId) -> Result<Log, Error> {
        match self.scratch.logs.get(queue) {
            Some(appended) => Ok(appended.after.clone()),
            None => self.owner.log(queue),
        }
    }

    fn keep(&mut self, queue: QueueId, before: Log, after: Log) {
        match self.scratch.logs.get_mut(&queue) {
            Some(appended) => appended.after = after,
            None => drop(self.scratch.logs.insert(queue, Appended { before, after })),
        }
    }
}
