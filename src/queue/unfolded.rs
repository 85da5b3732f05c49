//! What the storage writer has not folded yet: a record for each commit and queue, written with
//! the entries and removed when they are folded.
//!
//! The [`Backlog`] is the same in memory: which shards have records, and how far behind it is.
//! It only hints; what it says too little is found in the records.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{
    collection::change::Hlc,
    position::{Epoch, Seq},
    store::{Error, Key, Range, Space, Store, decode},
};
use crate::base::{
    clock::day_of,
    ids::{QueueId, SHARDS, Shard},
};

/// One commit of a shard: later ones are greater, also in a later epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Commit {
    /// The shard's epoch when it was made.
    pub epoch: Epoch,
    /// A hybrid clock, so that it grows over restarts too.
    pub number: u64,
}

impl Commit {
    /// Before all.
    pub const NONE: Self = Self { epoch: Epoch(0), number: 0 };

    /// The next one of a shard that stands here.
    pub fn next(self, epoch: Epoch, now_ms: u64) -> Self {
        Self { epoch, number: Hlc(self.number).next(now_ms).0 }
    }
}

/// What a commit appended to one queue.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unfolded {
    /// The first of its entries.
    pub from: Seq,
    /// The last one.
    pub to: Seq,
    /// When the first was accepted, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Unfolded {
    /// How many entries.
    pub fn entries(&self) -> u64 {
        self.to.0 - self.from.0 + 1
    }
}

/// The key of a record in [`Space::Unfolded`]: a shard's lie together, in commit order.
pub fn key(commit: Commit, queue: &QueueId) -> Key {
    let mut key = Key::from_slice(&queue.shard().0.to_be_bytes());
    key.extend_from_slice(&commit.epoch.0.to_be_bytes());
    key.extend_from_slice(&commit.number.to_be_bytes());
    key.extend_from_slice(queue.as_bytes());
    key
}

/// The records of a shard.
pub fn of_shard(shard: Shard) -> Range {
    Range::prefix(&shard.0.to_be_bytes())
}

/// What [`key`] was made of, with its shard.
///
/// # Errors
/// [`Error::Damaged`] if it was something else.
pub fn parse(key: &[u8]) -> Result<(Shard, Commit, QueueId), Error> {
    fn split<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
        let (first, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(*first)
    }
    let parts = |mut rest: &[u8]| {
        let shard = Shard(u16::from_be_bytes(split(&mut rest)?));
        let epoch = Epoch(u32::from_be_bytes(split(&mut rest)?));
        let number = u64::from_be_bytes(split(&mut rest)?);
        Some((shard, Commit { epoch, number }, QueueId::from_slice(rest)?))
    };
    parts(key).ok_or_else(|| Error::Damaged("the key of what is not folded".into()))
}

/// The oldest day that has an entry that is not folded.
///
/// # Errors
/// [`Error`] if the store cannot be read.
pub fn oldest_day(store: &dyn Store) -> Result<Option<u32>, Error> {
    let mut oldest = None;
    each(store, |_, _, unfolded| {
        let day = day_of(unfolded.at_ms);
        oldest = Some(oldest.map_or(day, |oldest: u32| oldest.min(day)));
    })?;
    Ok(oldest)
}

/// Visits every record.
fn each(store: &dyn Store, mut visit: impl FnMut(Shard, Commit, Unfolded)) -> Result<(), Error> {
    let mut range = Range::prefix(&[]);
    loop {
        let page = store.scan(Space::Unfolded, &range, PAGE)?;
        for (key, value) in &page {
            let (shard, commit, _) = parse(key)?;
            visit(shard, commit, decode(value)?);
        }
        let Some((last, _)) = page.last().filter(|_| page.len() == PAGE) else { return Ok(()) };
        range.from = [last.as_ref(), &[0]].concat();
    }
}

/// How far the storage writer is behind.
pub struct Backlog {
    /// A bit for each shard that may have records.
    shards: [AtomicU64; WORDS],
    grown: Notify,
    entries: AtomicI64,
    /// When the oldest entry was accepted; 0 if there is none.
    oldest_ms: AtomicU64,
    /// The greatest number of a commit that the last run left.
    newest: u64,
}

impl Default for Backlog {
    fn default() -> Self {
        let shards = std::array::from_fn(|_| AtomicU64::new(0));
        Self { shards, grown: Notify::new(), entries: 0.into(), oldest_ms: 0.into(), newest: 0 }
    }
}

impl Backlog {
    /// Counts the records of a store.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be read.
    pub fn of(store: &dyn Store) -> Result<Self, Error> {
        let (mut backlog, mut oldest, mut newest) = (Self::default(), 0, 0);
        each(store, |shard, commit, unfolded| {
            newest = newest.max(commit.number);
            backlog.grow(shard, unfolded.entries());
            oldest = if oldest == 0 { unfolded.at_ms } else { unfolded.at_ms.min(oldest) };
        })?;
        backlog.set_oldest_ms(oldest);
        backlog.newest = newest;
        Ok(backlog)
    }

    /// The commit that all later ones must be greater than, but for their epoch.
    pub fn newest(&self) -> Commit {
        Commit { number: self.newest, ..Commit::NONE }
    }

    /// A commit of a shard is durable.
    pub fn grow(&self, shard: Shard, entries: u64) {
        self.entries.fetch_add(entries.cast_signed(), Ordering::Relaxed);
        self.look_at(shard);
    }

    /// A shard may have records.
    pub fn look_at(&self, shard: Shard) {
        let word = &self.shards[usize::from(shard.0) / 64 % WORDS];
        word.fetch_or(1 << (shard.0 % 64), Ordering::Release);
        self.grown.notify_one();
    }

    /// Takes the shards that may have records.
    pub fn take(&self) -> Vec<Shard> {
        let words = self.shards.iter().map(|word| word.swap(0, Ordering::Acquire));
        let bits = (0..).zip(words).flat_map(|(at, word)| {
            (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| at * 64 + bit)
        });
        bits.map(Shard).collect()
    }

    /// Waits until a shard may have records.
    pub async fn grown(&self) {
        self.grown.notified().await;
    }

    /// Entries were folded, and their records are gone.
    pub fn shrink(&self, entries: u64) {
        self.entries.fetch_sub(entries.cast_signed(), Ordering::Relaxed);
    }

    /// Entries that are not folded.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed).try_into().unwrap_or(0)
    }

    /// When the oldest of them was accepted; 0: there is none.
    pub fn set_oldest_ms(&self, oldest_ms: u64) {
        self.oldest_ms.store(oldest_ms, Ordering::Relaxed);
    }

    /// Something waits since now, if nothing has waited for longer.
    pub fn waits_since(&self, now_ms: u64) {
        // It fails where something older waits.
        let _ = self.oldest_ms.compare_exchange(0, now_ms, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// How long the oldest of them has waited.
    pub fn age_ms(&self, now_ms: u64) -> u64 {
        match self.oldest_ms.load(Ordering::Relaxed) {
            0 => 0,
            oldest => now_ms.saturating_sub(oldest),
        }
    }
}

/// Records that are read at once.
const PAGE: usize = 1_024;
/// Words of a bit for each shard.
const WORDS: usize = SHARDS as usize / 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::store::{Batch, encode, memory::MemoryStore};

    fn queue(shard: u16) -> QueueId {
        let mut id = [7; 20];
        id[..2].copy_from_slice(&shard.to_be_bytes());
        QueueId(id)
    }

    #[test]
    fn keys_lie_by_shard_then_epoch_then_number() {
        let commit = |epoch, number| Commit { epoch: Epoch(epoch), number };
        let commits =
            [(1, commit(1, 300)), (1, commit(2, 5)), (1, commit(2, 256)), (2, commit(1, 1))];
        let keys: Vec<Key> = commits.iter().map(|(shard, at)| key(*at, &queue(*shard))).collect();
        assert!(keys.is_sorted());
        for ((shard, commit), key) in commits.into_iter().zip(&keys) {
            assert_eq!(parse(key).unwrap(), (Shard(shard), commit, queue(shard)));
        }
        assert!(parse(&keys[0][1..]).is_err());
        let later = commit(1, 1).next(Epoch(1), 9);
        assert!(later > commit(1, 1) && later.next(Epoch(1), 3) > later, "a clock set back");
    }

    #[test]
    fn a_backlog_is_counted_from_its_records() {
        let (store, mut batch) = (MemoryStore::default(), Batch::default());
        assert_eq!(oldest_day(&store).unwrap(), None);
        for number in 0..3_000 {
            let at_ms = 86_400_000 * if number == 2_500 { 11 } else { 12 };
            let unfolded = Unfolded { from: Seq(2), to: Seq(3), at_ms };
            let commit = Commit { epoch: Epoch(1), number };
            let key = key(commit, &queue((number % 1_024) as u16));
            batch.put(Space::Unfolded, key, encode(&unfolded));
        }
        store.write(&batch).unwrap();
        let backlog = Backlog::of(&store).unwrap();
        assert_eq!((backlog.entries(), backlog.newest().number), (6_000, 2_999));
        assert_eq!(oldest_day(&store).unwrap(), Some(11));
        assert_eq!(backlog.age_ms(86_400_000 * 12), 86_400_000);
        assert_eq!(backlog.take(), (0..1_024).map(Shard).collect::<Vec<_>>());
        assert!(backlog.take().is_empty());
        backlog.look_at(Shard(1_023));
        backlog.shrink(5_999);
        assert_eq!((backlog.take(), backlog.entries()), (vec![Shard(1_023)], 1));
    }
}
