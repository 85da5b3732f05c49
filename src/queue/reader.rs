//! Reading queues: the newest entries from memory, the rest from the store.
//!
//! A reader sees only what is durable, whatever the store shows already.

use std::sync::Arc;

use super::{
    entry::Entry,
    epochs::Epochs,
    log::Log,
    position::{Epoch, Position, Seq},
    store::{Error, Key, Range, Space, Store, decode},
    view::{View, Views},
};
use crate::base::ids::{QueueId, Shard};

/// Reads what is durable. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    store: Arc<dyn Store>,
    views: Arc<Views>,
    epochs: Arc<Epochs>,
}

/// How much to read at once.
#[derive(Clone, Copy, Debug)]
pub struct Take {
    /// At most so many entries; at least 1.
    pub entries: usize,
    /// It stops at the entry that passes this many bytes of bodies.
    pub bytes: usize,
}

/// What a read found.
#[derive(Debug)]
pub struct Run {
    /// The entries.
    pub entries: Vec<Arc<Entry>>,
    /// The queue had more behind them.
    pub is_cut: bool,
}

impl Run {
    fn of(entries: Vec<Arc<Entry>>, head: Seq) -> Self {
        let is_cut = entries.last().is_some_and(|last| last.position.seq < head);
        Self { entries, is_cut }
    }
}

impl Reader {
    /// A reader over the parts that the owners write.
    pub fn new(store: Arc<dyn Store>, views: Arc<Views>, epochs: Arc<Epochs>) -> Self {
        Self { store, views, epochs }
    }

    /// The store behind it, for records that are not queues.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The oldest day that is held.
    pub fn oldest_day(&self) -> u32 {
        self.views.oldest_day()
    }

    /// The epoch in which a shard appends now.
    pub fn epoch(&self, shard: Shard) -> Epoch {
        self.epochs.current(shard)
    }

    /// The durable log of a queue; an empty one if it never had an entry.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be read.
    pub fn log(&self, queue: &QueueId) -> Result<Log, Error> {
        let in_view = || self.views.with(queue, |view| view.log.clone());
        if let Some(log) = in_view() {
            return Ok(log);
        }
        let stored = self.store.get(Space::Heads, queue.as_bytes())?;
        // What was read may be on its way to the disk only now; then there is a view.
        match in_view() {
            Some(log) => Ok(log),
            None => stored.map_or(Ok(Log::default()), |bytes| decode(&bytes)),
        }
    }

    /// The newest durable position of a queue.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be read.
    pub fn head(&self, queue: &QueueId) -> Result<Position, Error> {
        let current = self.epochs.current(queue.shard());
        if let Some(head) = self.views.with(queue, |view| view.log.head_position(current)) {
            return Ok(head);
        }
        Ok(self.log(queue)?.head_position(current))
    }

    /// The entries after `after`, contiguous from the first that is held, all of
    /// one epoch. Empty if there is nothing newer.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be read or an entry is missing or damaged.
    pub fn read(&self, queue: &QueueId, after: Seq, take: Take) -> Result<Vec<Arc<Entry>>, Error> {
        Ok(self.read_on(queue, after, take)?.entries)
    }

    /// The same, and whether there was more.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn read_on(&self, queue: &QueueId, after: Seq, take: Take) -> Result<Run, Error> {
        let from_memory = |view: &View| match view.tail.front() {
            _ if view.log.head() <= after => Some(Run::of(Vec::new(), after)),
            Some(oldest) if oldest.position.seq <= after.next() => {
                let skip = (after.next().0 - oldest.position.seq.0) as usize;
                let entries = taken(view.tail.range(skip..).cloned(), take);
                Some(Run::of(entries, view.log.head()))
            }
            _ => None,
        };
        if let Some(Some(run)) = self.views.with(queue, from_memory) {
            return Ok(run);
        }
        let log = self.log(queue)?;
        if log.head() <= after {
            return Ok(Run::of(Vec::new(), after));
        }
        Ok(Run::of(self.read_stored(queue, &log, after, take)?, log.head()))
    }

    /// Whether a newer visible entry of the queue has the collapse key of the one at `seq`.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be read.
    pub fn is_collapsed(&self, queue: &QueueId, key: &[u8], seq: Seq) -> Result<bool, Error> {
        if self.head(queue)?.seq <= seq {
            return Ok(false);
        }
        let log = self.log(queue)?;
        let stored = collapse_key(queue, key);
        // Newest day first: what it names is the newest of all.
        for (day, _) in log.days_from(seq, self.views.oldest_day()).into_iter().rev() {
            let Some(newest) = self.store.get(Space::Collapse(day), &stored)? else { continue };
            let newest = <[u8; 8]>::try_from(newest.as_ref()).map(u64::from_be_bytes);
            let newest = newest.map_err(|_| Error::Damaged("a collapse index".into()))?;
            return match Seq(newest) {
                newest if newest <= seq => Ok(false),
                newest if newest <= log.head() => Ok(true),
                // It names one that is on its way; others may have come before that.
                _ => self.is_collapsed_within(queue, key, seq),
            };
        }
        Ok(false)
    }

    fn is_collapsed_within(&self, queue: &QueueId, key: &[u8], seq: Seq) -> Result<bool, Error> {
        let take = Take { entries: COLLAPSE_LOOK, bytes: usize::MAX };
        let has_key = |entry: &Arc<Entry>| entry.body.collapse_key().as_deref() == Some(key);
        Ok(self.read(queue, seq, take)?.iter().any(has_key))
    }

    fn read_stored(
        &self,
        queue: &QueueId,
        log: &Log,
        after: Seq,
        take: Take,
    ) -> Result<Vec<Arc<Entry>>, Error> {
        let oldest_day = self.views.oldest_day();
        let first = after.max(log.floor(oldest_day)).next();
        let mut entries: Vec<Arc<Entry>> = Vec::new();
        for (day, from) in log.days_from(first, oldest_day) {
            let limit = take.entries.max(1) - entries.len();
            let range = Range::prefix_after(queue.as_bytes(), entry_key(queue, from).into_vec());
            for (key, value) in self.store.scan(Space::Entries(day), &range, limit)? {
                let seq = seq_of(&key)?;
                let expected = entries.last().map_or(first, |last| last.position.seq.next());
                if seq > log.head() {
                    break;
                }
                if seq != expected && self.views.oldest_day() != oldest_day {
                    // Retention dropped a day under the scan.
                    return self.read_stored(queue, log, after, take);
                }
                if seq != expected {
                    let text = format!("queue {queue} has {seq:?} where {expected:?} should be");
                    return Err(Error::Damaged(text));
                }
                entries.push(Arc::new(Entry::from_stored(seq, &value)?));
            }
            if entries.len() >= take.entries {
                break;
            }
        }
        if entries.is_empty() && first <= log.head() && self.views.oldest_day() == oldest_day {
            return Err(Error::Damaged(format!("queue {queue} has no {first:?}")));
        }
        Ok(taken(entries.into_iter(), take))
    }
}

/// Takes entries up to the bounds and up to the end of their epoch.
fn taken(entries: impl Iterator<Item = Arc<Entry>>, take: Take) -> Vec<Arc<Entry>> {
    let mut taken: Vec<Arc<Entry>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        let is_other = taken.first().is_some_and(|f| f.position.epoch != entry.position.epoch);
        if is_other || taken.len() >= take.entries.max(1) || bytes > take.bytes {
            break;
        }
        bytes += entry.body.bytes();
        taken.push(entry);
    }
    taken
}

/// Entries that are looked at for a collapse key whose newest one is still on its way.
const COLLAPSE_LOOK: usize = 256;

/// The key of a collapse key of a queue.
pub(super) fn collapse_key(queue: &QueueId, key: &[u8]) -> Key {
    let mut whole = Key::from_slice(queue.as_bytes());
    whole.extend_from_slice(key);
    whole
}

/// The key of an entry.
pub(super) fn entry_key(queue: &QueueId, seq: Seq) -> Key {
    let mut key = Key::from_slice(queue.as_bytes());
    key.extend_from_slice(&seq.0.to_be_bytes());
    key
}

fn seq_of(key: &[u8]) -> Result<Seq, Error> {
    key.get(20..)
        .and_then(|bytes| <[u8; 8]>::try_from(bytes).ok())
        .map(|bytes| Seq(u64::from_be_bytes(bytes)))
        .ok_or_else(|| Error::Damaged("the key of an entry".into()))
}
