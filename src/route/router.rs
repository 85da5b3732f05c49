//! The one way to queues and stored records: which owner, on which node.
//!
//! Today every shard is local. A shard that lives on another node will be told
//! apart here, and only here.

use std::sync::Arc;

use bytes::Bytes;

use super::Followers;
use crate::{
    base::ids::{QueueId, Shard},
    queue::{
        entry::Entry,
        log::Log,
        position::{Epoch, Position, Seq},
        reader::{Reader, Run, Take},
        shard,
        store::{self, Batch, Range, Record, Space},
        txn::Txn,
        writer,
    },
};

/// What upper floors hold. Cheap to clone.
#[derive(Clone)]
pub struct Router {
    owners: Arc<[shard::Handle]>,
    reader: Reader,
    writer: writer::Handle,
    followers: Arc<Followers>,
}

impl Router {
    /// A router over the owners of this node, at least one.
    pub fn new(
        owners: Vec<shard::Handle>,
        reader: Reader,
        writer: writer::Handle,
        followers: Arc<Followers>,
    ) -> Self {
        assert!(!owners.is_empty(), "a node has at least one owner");
        Self { owners: owners.into(), reader, writer, followers }
    }

    /// Who on this node follows what.
    pub fn followers(&self) -> &Arc<Followers> {
        &self.followers
    }

    /// Runs a change on the owner of a shard; durable when this returns.
    ///
    /// # Errors
    /// What the change refused with, or [`shard::Error`].
    pub async fn run<T, E>(
        &self,
        shard: Shard,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<shard::Error> + Send + 'static,
    {
        self.owners[self.owner(shard)].run(change).await
    }

    /// The first half of [`Router::run`]: when this returns, the change has its
    /// place in the owner's order.
    pub async fn begin<T, E>(
        &self,
        shard: Shard,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E> + Send + 'static,
    ) -> shard::Begun<T, E>
    where
        T: Send + 'static,
        E: From<shard::Error> + Send + 'static,
    {
        self.owners[self.owner(shard)].begin(change).await
    }

    /// Groups items by the owner of their shard, with a shard of each group; the
    /// order within a group is kept.
    pub fn by_owner<T>(
        &self,
        items: impl IntoIterator<Item = T>,
        shard: impl Fn(&T) -> Shard,
    ) -> Vec<(Shard, Vec<T>)> {
        let mut groups: Vec<Option<(Shard, Vec<T>)>> = Vec::new();
        groups.resize_with(self.owners.len(), || None);
        for item in items {
            let shard = shard(&item);
            groups[self.owner(shard)].get_or_insert_with(|| (shard, Vec::new())).1.push(item);
        }
        groups.into_iter().flatten().collect()
    }

    /// Makes records durable that no owner orders.
    ///
    /// # Errors
    /// [`store::Error`].
    pub async fn commit(&self, batch: Batch) -> Result<(), store::Error> {
        self.writer.commit(batch).await
    }

    /// Marks what is durable now, before the node stops.
    pub async fn mark(&self) {
        self.writer.mark().await;
    }

    /// A stored record.
    ///
    /// # Errors
    /// [`store::Error`].
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, store::Error> {
        self.reader.store().get(space, key)
    }

    /// Stored records of a range.
    ///
    /// # Errors
    /// [`store::Error`].
    pub fn scan(
        &self,
        space: Space,
        range: &Range,
        limit: usize,
    ) -> Result<Vec<Record>, store::Error> {
        self.reader.store().scan(space, range, limit)
    }

    /// The durable log of a queue.
    ///
    /// # Errors
    /// [`store::Error`].
    pub fn log(&self, queue: &QueueId) -> Result<Log, store::Error> {
        self.reader.log(queue)
    }

    /// The newest durable position of a queue.
    ///
    /// # Errors
    /// [`store::Error`].
    pub fn head(&self, queue: &QueueId) -> Result<Position, store::Error> {
        self.reader.head(queue)
    }

    /// Durable entries of a queue after `after`, all of one epoch.
    ///
    /// # Errors
    /// [`store::Error`].
    pub fn read(
        &self,
        queue: &QueueId,
        after: Seq,
        take: Take,
    ) -> Result<Vec<Arc<Entry>>, store::Error> {
        self.reader.read(queue, after, take)
    }

    /// The same, and whether there was more.
    ///
    /// # Errors
    /// [`store::Error`].
    pub fn read_on(&self, queue: &QueueId, after: Seq, take: Take) -> Result<Run, store::Error> {
        self.reader.read_on(queue, after, take)
    }

    /// Whether a newer visible entry of the queue has the collapse key of the one at `seq`.
    ///
    /// # Errors
    /// [`store::Error`].
    pub fn is_collapsed(
        &self,
        queue: &QueueId,
        key: &[u8],
        seq: Seq,
    ) -> Result<bool, store::Error> {
        self.reader.is_collapsed(queue, key, seq)
    }

    /// The oldest day that is held.
    pub fn oldest_day(&self) -> u32 {
        self.reader.oldest_day()
    }

    /// The epoch in which a shard appends now.
    pub fn epoch(&self, shard: Shard) -> Epoch {
        self.reader.epoch(shard)
    }

    fn owner(&self, shard: Shard) -> usize {
        usize::from(shard.0) % self.owners.len()
    }
}
