//! The long-term store in a store of our own, in a folder of its own.
//!
//! Of each queue it keeps under its id: the live items by descending number, the number of each
//! by name, and the position. History lies by days.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Mutex;

use super::{
    Advance, Answer, Commit, Error, Fold, Item, Keys, LongTerm, Name, Past, Step, fold::taken,
};
use crate::{
    base::{
        ids::{QueueId, Shard},
        tasks,
    },
    queue::{
        entry::Entry,
        position::{Position, Seq},
        reader::Take,
        store::{
            self, Batch, Key, Range, Space, Store, decode, embedded::EmbeddedStore, encode,
            memory::MemoryStore,
        },
    },
};

/// The embedded long-term store.
pub struct Embedded {
    store: Arc<dyn Store>,
    /// Held while something is folded: a batch is not seen whole while it is written.
    folding: Arc<Mutex<()>>,
    /// Whether it waits for a disk.
    is_on_disk: bool,
    /// A write or sync failed: the disk may hold anything until it is opened again.
    is_closed: Arc<AtomicBool>,
}

impl Embedded {
    /// Opens or creates the database in `dir`.
    ///
    /// # Errors
    /// If another process holds it, or its files are damaged.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, store::Error> {
        let store = EmbeddedStore::open(dir, cache_bytes)?;
        // What a killed process wrote and did not sync is there again.
        store.sync()?;
        Ok(Self { is_on_disk: true, ..Self::over(Arc::new(store)) })
    }

    /// For tests and simulations: it forgets all.
    pub fn in_memory() -> Self {
        Self::over(Arc::new(MemoryStore::default()))
    }

    fn over(store: Arc<dyn Store>) -> Self {
        Self { store, folding: Arc::default(), is_on_disk: false, is_closed: Arc::default() }
    }

    /// Makes a batch and writes it; nobody reads or folds meanwhile.
    async fn write(
        &self,
        make: impl FnOnce(&dyn Store) -> Result<Batch, Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (store, is_closed) = (self.store.clone(), self.is_closed.clone());
        let folding = self.folding.clone().lock_owned().await;
        // On a disk it runs to its end, whoever waits.
        let work = move || {
            let _folding = folding;
            if is_closed.load(Ordering::Acquire) {
                return Err(store::Error::Closed.into());
            }
            let batch = make(store.as_ref())?;
            let written = store.write(&batch).and_then(|()| store.sync());
            is_closed.store(written.is_err(), Ordering::Release);
            Ok(written?)
        };
        if self.is_on_disk { tasks::blocking(work).await } else { work() }
    }
}

/// What of a queue a key names.
const NEWEST: u8 = b'n';
const BY_NAME: u8 = b'k';
const POSITION: u8 = b'p';

fn key_of(queue: &QueueId, kind: u8) -> Key {
    let mut key = Key::from_slice(queue.as_bytes());
    key.push(kind);
    key
}

fn newest_key(queue: &QueueId, seq: Seq) -> Key {
    let mut key = key_of(queue, NEWEST);
    key.extend_from_slice(&(!seq.0).to_be_bytes());
    key
}

fn name_key(queue: &QueueId, collection: &str, item: &str) -> Key {
    let mut key = key_of(queue, BY_NAME);
    key.extend_from_slice(collection.as_bytes());
    key.push(0);
    key.extend_from_slice(item.as_bytes());
    key
}

fn past_key(queue: &QueueId, seq: Seq) -> Key {
    let mut key = Key::from_slice(queue.as_bytes());
    key.extend_from_slice(&seq.0.to_be_bytes());
    key
}

fn pointer_key(shard: Shard) -> Key {
    let mut key = Key::from_slice(b"pointer");
    key.extend_from_slice(&shard.0.to_be_bytes());
    key
}

fn stored_seq(bytes: &[u8]) -> Result<Seq, Error> {
    let seq = bytes.try_into().map(u64::from_be_bytes);
    seq.map(Seq).map_err(|_| Error::Damaged("an item's number".into()))
}

fn pointer_of(store: &dyn Store, shard: Shard) -> Result<Commit, Error> {
    let stored = store.get(Space::Meta, &pointer_key(shard))?;
    Ok(stored.map_or(Ok(Commit::NONE), |bytes| decode(&bytes))?)
}

fn write_folds(store: &dyn Store, folds: &[Fold]) -> Result<Batch, Error> {
    let mut batch = Batch::default();
    for fold in folds {
        if pointer_of(store, fold.shard)? != fold.after {
            return Err(Error::Moved(fold.shard));
        }
        for advance in &fold.queues {
            write_advance(store, &mut batch, advance)?;
        }
        batch.put(Space::Meta, pointer_key(fold.shard), encode(&fold.upto));
    }
    Ok(batch)
}

/// Writes what a queue is without the entries after `to`.
fn write_rewind(store: &dyn Store, restored: &Advance, to: Position) -> Result<Batch, Error> {
    let (mut batch, queue) = (Batch::default(), &restored.queue);
    let lost = Range {
        from: key_of(queue, NEWEST).to_vec(),
        // A greater number has a lesser key.
        to: Some(newest_key(queue, to.seq).to_vec()),
    };
    for (key, stored) in store.scan(Space::Folded, &lost, usize::MAX)? {
        let Name { collection, key: item } = decode::<Item>(&stored)?.name;
        batch.remove(Space::Folded, Key::from_slice(&key));
        batch.remove(Space::Folded, name_key(queue, collection.as_str(), &item));
    }
    let past = Range::prefix_after(queue.as_bytes(), past_key(queue, to.seq.next()).to_vec());
    for day in store.days() {
        for (key, _) in store.scan(Space::History(day), &past, usize::MAX)? {
            batch.remove(Space::History(day), Key::from_slice(&key));
        }
    }
    write_items(store, &mut batch, restored)?;
    batch.put(Space::Folded, key_of(queue, POSITION), encode(&to));
    Ok(batch)
}

fn write_advance(store: &dyn Store, batch: &mut Batch, advance: &Advance) -> Result<(), Error> {
    write_items(store, batch, advance)?;
    for Step { day, entry } in &advance.steps {
        let key = past_key(&advance.queue, entry.position.seq);
        batch.put(Space::History(*day), key, entry.to_stored());
    }
    if let Some(position) = advance.position() {
        batch.put(Space::Folded, key_of(&advance.queue, POSITION), encode(&position));
    }
    Ok(())
}

fn write_items(store: &dyn Store, batch: &mut Batch, advance: &Advance) -> Result<(), Error> {
    let queue = &advance.queue;
    for ((collection, key), (position, change)) in advance.latest() {
        let by_name = name_key(queue, collection, key);
        if let Some(old) = store.get(Space::Folded, &by_name)? {
            batch.remove(Space::Folded, newest_key(queue, stored_seq(&old)?));
        }
        match Item::made_by(position, change) {
            None => batch.remove(Space::Folded, by_name),
            Some(item) => {
                batch.put(Space::Folded, newest_key(queue, position.seq), encode(&item));
                batch.put(Space::Folded, by_name, position.seq.0.to_be_bytes().to_vec());
            }
        }
    }
    Ok(())
}

/// The item that a record of its name leads to.
fn item_at(store: &dyn Store, queue: &QueueId, seq: &[u8]) -> Result<Item, Error> {
    let key = newest_key(queue, stored_seq(seq)?);
    let stored = store.get(Space::Folded, &key)?;
    let stored = stored.ok_or_else(|| Error::Damaged("an item without its value".into()))?;
    Ok(decode(&stored)?)
}

impl LongTerm for Embedded {
    fn fold(&self, folds: Vec<Fold>) -> Answer<'_, ()> {
        Box::pin(self.write(move |store| write_folds(store, &folds)))
    }

    fn pointer(&self, shard: Shard) -> Answer<'_, Commit> {
        Box::pin(async move {
            let _folding = self.folding.lock().await;
            pointer_of(self.store.as_ref(), shard)
        })
    }

    fn position(&self, queue: QueueId) -> Answer<'_, Option<Position>> {
        Box::pin(async move {
            let _folding = self.folding.lock().await;
            let stored = self.store.get(Space::Folded, &key_of(&queue, POSITION))?;
            Ok(stored.map(|bytes| decode(&bytes)).transpose()?)
        })
    }

    fn item(&self, queue: QueueId, name: Name) -> Answer<'_, Option<Item>> {
        Box::pin(async move {
            let _folding = self.folding.lock().await;
            let by_name = name_key(&queue, name.collection.as_str(), &name.key);
            let seq = self.store.get(Space::Folded, &by_name)?;
            seq.map(|seq| item_at(self.store.as_ref(), &queue, &seq)).transpose()
        })
    }

    fn by_key(&self, queue: QueueId, keys: Keys, take: Take) -> Answer<'_, Vec<Item>> {
        Box::pin(async move {
            let _folding = self.folding.lock().await;
            let all = name_key(&queue, keys.collection.as_str(), "");
            let from = name_key(&queue, keys.collection.as_str(), &keys.from);
            let mut range = Range::prefix_after(&all, from.to_vec());
            if let Some(to) = &keys.to {
                range.to = Some(name_key(&queue, keys.collection.as_str(), to).to_vec());
            }
            let found = self.store.scan(Space::Folded, &range, take.entries)?;
            let items = found.iter().map(|(_, seq)| item_at(self.store.as_ref(), &queue, seq));
            taken(items, take, Item::bytes)
        })
    }

    fn newest(&self, queue: QueueId, before: Option<Seq>, take: Take) -> Answer<'_, Vec<Item>> {
        Box::pin(async move {
            let from = match before {
                // The number before it; none is before the first.
                Some(Seq(0)) => return Ok(Vec::new()),
                Some(before) => newest_key(&queue, before.prev()),
                None => key_of(&queue, NEWEST),
            };
            let range = Range::prefix_after(&key_of(&queue, NEWEST), from.to_vec());
            let found = self.store.scan(Space::Folded, &range, take.entries)?;
            taken(found.iter().map(|(_, item)| Ok(decode(item)?)), take, Item::bytes)
        })
    }

    fn history(&self, queue: QueueId, after: Seq, take: Take) -> Answer<'_, Vec<Past>> {
        Box::pin(async move {
            let from = past_key(&queue, after.next()).to_vec();
            let range = Range::prefix_after(queue.as_bytes(), from);
            let mut all = Vec::new();
            // The days of a queue never go back.
            for day in self.store.days() {
                let left = take.entries - all.len();
                for (key, value) in self.store.scan(Space::History(day), &range, left)? {
                    let seq = stored_seq(key.get(QUEUE_BYTES..).unwrap_or_default())?;
                    all.push((value.len(), Past { day, entry: Entry::from_stored(seq, &value)? }));
                }
                if all.len() >= take.entries {
                    break;
                }
            }
            let fit = taken(all.into_iter().map(Ok), take, |(bytes, _)| *bytes)?;
            Ok(fit.into_iter().map(|(_, past)| past).collect())
        })
    }

    fn rewind(&self, queue: QueueId, to: Position, restored: Vec<Step>) -> Answer<'_, ()> {
        let restored = Advance { queue, steps: restored };
        Box::pin(self.write(move |store| write_rewind(store, &restored, to)))
    }

    fn trim_history(&self, oldest: u32) -> Answer<'_, ()> {
        Box::pin(async move {
            for day in self.store.days().into_iter().filter(|day| *day < oldest) {
                let store = self.store.clone();
                tasks::blocking(move || store.drop_day(day)).await?;
            }
            Ok(())
        })
    }
}

/// The bytes of a queue's id.
const QUEUE_BYTES: usize = 20;
