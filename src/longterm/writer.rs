//! The storage writer: one consumer of all queues with collections, in commit order.
//!
//! Owners write beside their entries what is to be folded; the writer folds it, and only when
//! that is durable in the long-term store it removes the record. What a crash leaves between the
//! two is folded already and is found so. It waits for nobody but the long-term store, and
//! nobody waits for it: while it is far behind, new changes are refused elsewhere.

mod rewind;

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use super::{Advance, Answer, Commit, Error, Fold, LongTerm, Step};
use crate::{
    base::{
        clock::{Clock, day_of},
        ids::{QueueId, Shard, random_bytes},
        metrics::Metrics,
    },
    crash_point,
    queue::{
        collection::append::Ask,
        position::{Position, Seq},
        reader::{Reader, Take},
        store::{self, Batch, Key, Space, decode},
        unfolded::{self, Backlog, Unfolded},
        writer,
    },
};

/// Shards that are folded in one call, and of each at most so many records and bytes.
const SHARDS_AT_ONCE: usize = 64;
const RECORDS_AT_ONCE: usize = 512;
const BYTES_AT_ONCE: usize = 1 << 20;
/// Entries that are read at once.
const READ: Take = Take { entries: 256, bytes: 256 << 10 };
/// How long the first entry waits for others.
const GATHER: Duration = Duration::from_millis(20);
/// How long it waits after a failure at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often it tells how far behind it is, while it waits for the long-term store.
const TELL_PERIOD: Duration = Duration::from_secs(5);
/// How often it looks for old history while there is nothing to fold.
const TRIM_PERIOD: Duration = Duration::from_secs(3_600);
/// Queues of which it is remembered where they stand.
const POSITIONS_MAX: usize = 65_536;

/// Makes changes of a queue's items that the queue lost, if the items did not change since.
pub type Again = Box<dyn Fn(QueueId, Vec<Ask>) -> Answer<'static, ()> + Send + Sync>;

/// What the writer works with.
pub struct StorageWriter {
    /// Reads what is durable.
    pub reader: Reader,
    /// Removes the records of what is folded.
    pub writer: writer::Handle,
    /// Where it folds.
    pub longterm: Arc<dyn LongTerm>,
    /// Makes lost changes again.
    pub again: Again,
    /// What there is to do.
    pub backlog: Arc<Backlog>,
    /// Today.
    pub clock: Clock,
    /// Days of history that are kept; 0: all.
    pub history_days: u32,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
}

/// What it remembers of the long-term store; forgotten when that fails.
#[derive(Default)]
struct Known {
    pointers: HashMap<Shard, Commit>,
    positions: HashMap<QueueId, Position>,
}

/// The next commits of one shard.
struct Turn {
    fold: Fold,
    records: Vec<Key>,
    entries: u64,
    /// Whether the shard has more.
    has_more: bool,
}

impl StorageWriter {
    /// Folds until it is aborted.
    pub async fn run(self) {
        self.tell();
        let (mut known, mut wait, mut trimmed) = (Known::default(), RETRY_FIRST, 0);
        loop {
            let shards = self.backlog.take();
            if shards.is_empty() {
                self.trim(&mut trimmed).await;
                tokio::select! {
                    () = self.backlog.grown() => tokio::time::sleep(GATHER).await,
                    () = tokio::time::sleep(TRIM_PERIOD) => {}
                }
                continue;
            }
            self.backlog.waits_since(self.clock.unix_ms());
            let Err(error) = self.watched(self.fold_all(&shards, &mut known)).await else {
                wait = RETRY_FIRST;
                self.measure(&[]);
                self.trim(&mut trimmed).await;
                continue;
            };
            known = Known::default();
            self.metrics.longterm.failures.increment(1);
            tracing::warn!(%error, "cannot fold, trying again");
            self.measure(&shards);
            let share = u32::from(u16::from_le_bytes(random_bytes())) + 1;
            tokio::time::sleep(wait / 2 + wait / 2 * share / (1 << 16)).await;
            wait = (wait * 2).min(RETRY_MAX);
            shards.into_iter().for_each(|shard| self.backlog.look_at(shard));
        }
    }

    /// Tells how far behind it is while it works.
    async fn watched<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(TELL_PERIOD, &mut work).await {
                return done;
            }
            self.tell();
        }
    }

    async fn fold_all(&self, shards: &[Shard], known: &mut Known) -> Result<(), Error> {
        for some in shards.chunks(SHARDS_AT_ONCE) {
            self.fold(some, known).await?;
        }
        Ok(())
    }

    /// Drops history that is too old, once a day.
    async fn trim(&self, trimmed: &mut u32) {
        let today = day_of(self.clock.unix_ms());
        if self.history_days == 0 || *trimmed == today {
            return;
        }
        match self.longterm.trim_history(today.saturating_sub(self.history_days)).await {
            Ok(()) => *trimmed = today,
            Err(error) => tracing::warn!(%error, "cannot drop old history, trying again"),
        }
    }

    /// Folds some of what shards have.
    async fn fold(&self, shards: &[Shard], known: &mut Known) -> Result<(), Error> {
        let mut turns = Vec::new();
        for shard in shards {
            turns.extend(self.gather(*shard, known).await?);
            tokio::task::yield_now().await;
        }
        let mut gone = Batch::default();
        for record in turns.iter().flat_map(|turn| &turn.records) {
            gone.remove(Space::Unfolded, record.clone());
        }
        if gone.is_empty() {
            return Ok(());
        }
        let folds: Vec<Fold> = turns.iter_mut().map(|turn| turn.take_fold()).collect();
        let moved: Vec<_> = folds.iter().flat_map(Fold::positions).collect();
        let pointers: Vec<_> = folds.iter().map(|fold| (fold.shard, fold.upto)).collect();
        let entries = folds.iter().map(Fold::entries).sum();
        crash_point!("longterm::before_fold");
        self.longterm.fold(folds).await?;
        crash_point!("longterm::after_fold");
        if known.positions.len() > POSITIONS_MAX {
            known.positions.clear();
        }
        known.positions.extend(moved);
        known.pointers.extend(pointers);
        self.writer.commit(gone).await?;
        crash_point!("longterm::after_removal");
        self.metrics.longterm.folded.increment(entries);
        for turn in turns {
            self.backlog.shrink(turn.entries);
            if turn.has_more {
                self.backlog.look_at(turn.fold.shard);
            }
        }
        Ok(())
    }

    /// The next commits of a shard that are durable; none if there are none.
    async fn gather(&self, shard: Shard, known: &mut Known) -> Result<Option<Turn>, Error> {
        let range = unfolded::of_shard(shard);
        let stored = self.reader.store().scan(Space::Unfolded, &range, RECORDS_AT_ONCE)?;
        if stored.is_empty() {
            return Ok(None);
        }
        let after = match known.pointers.get(&shard) {
            Some(pointer) => *pointer,
            None => self.longterm.pointer(shard).await?,
        };
        let (mut upto, mut entries, mut bytes) = (after, 0, 0);
        let mut records: Vec<Key> = Vec::new();
        let mut queues: BTreeMap<QueueId, (Seq, Vec<Step>)> = BTreeMap::new();
        let mut has_more = stored.len() == RECORDS_AT_ONCE;
        for (key, value) in stored {
            let (_, commit, queue) = unfolded::parse(&key)?;
            let part: Unfolded = decode(&value)?;
            // The owner tells of it when it is durable.
            if self.reader.log(&queue)?.head() < part.to {
                break;
            }
            if bytes >= BYTES_AT_ONCE {
                has_more = true;
                break;
            }
            let (reached, steps) = match queues.entry(queue) {
                Entry::Occupied(read) => read.into_mut(),
                Entry::Vacant(fresh) => {
                    fresh.insert((self.folded(&queue, part.from, known).await?, Vec::new()))
                }
            };
            bytes += self.read(&queue, reached, part.to, steps)?;
            upto = upto.max(commit);
            entries += part.entries();
            records.push(Key::from_slice(&key));
        }
        if upto == after {
            // The clock was set back: the pointer moves all the same.
            upto = after.next(after.epoch, 0);
        }
        let advances = queues.into_iter().filter(|(_, (_, steps))| !steps.is_empty());
        let advance = |(queue, (_, steps))| Advance { queue, steps };
        let fold = Fold { shard, after, upto, queues: advances.map(advance).collect() };
        Ok((!records.is_empty()).then_some(Turn { fold, records, entries, has_more }))
    }

    /// Up to where a queue is folded; before its first change, up to that.
    async fn folded(&self, queue: &QueueId, first: Seq, known: &Known) -> Result<Seq, Error> {
        if let Some(position) = known.positions.get(queue) {
            return Ok(position.seq);
        }
        let Some(position) = self.longterm.position(*queue).await? else {
            return Ok(first.prev());
        };
        // The queue may have lost what was folded: then that never was.
        let log = self.reader.log(queue)?;
        let held = log.seen_at(position);
        if held < position.seq {
            tracing::error!(%queue, %position, held = held.0, "the queue lost entries that were folded, taking them back");
            let epoch = log.epoch_at(held).unwrap_or(position.epoch);
            self.rewind(queue, Position { epoch, seq: held }).await?;
        }
        Ok(held)
    }

    /// Reads entries up to `to`; returns their bytes.
    fn read(
        &self,
        queue: &QueueId,
        reached: &mut Seq,
        to: Seq,
        steps: &mut Vec<Step>,
    ) -> Result<usize, store::Error> {
        let (log, mut bytes) = (self.reader.log(queue)?, 0);
        while *reached < to {
            let read = self.reader.read(queue, *reached, READ)?;
            let Some(last) = read.last() else { break };
            *reached = last.position.seq.min(to);
            for entry in read {
                let seq = entry.position.seq;
                if seq <= to {
                    bytes += entry.body.bytes();
                    let day = log.day_at(seq).or(log.newest_day()).unwrap_or(0);
                    steps.push(Step { day, entry });
                }
            }
        }
        Ok(bytes)
    }

    /// Looks how far behind it is. Without shards that wait, nothing is.
    fn measure(&self, waiting: &[Shard]) {
        let oldest = |shard: &Shard| {
            let range = unfolded::of_shard(*shard);
            let first = self.reader.store().scan(Space::Unfolded, &range, 1).ok()?.pop()?;
            decode::<Unfolded>(&first.1).ok().map(|unfolded| unfolded.at_ms)
        };
        self.backlog.set_oldest_ms(waiting.iter().filter_map(oldest).min().unwrap_or(0));
        self.tell();
    }

    fn tell(&self) {
        let metrics = &self.metrics.longterm;
        metrics.behind_entries.set(self.backlog.entries() as f64);
        metrics.behind_seconds.set(self.backlog.age_ms(self.clock.unix_ms()) as f64 / 1e3);
    }
}

impl Turn {
    /// Its fold, of which only the shard stays.
    fn take_fold(&mut self) -> Fold {
        let Fold { shard, after, upto, .. } = self.fold;
        Fold { shard, after, upto, queues: std::mem::take(&mut self.fold.queues) }
    }
}

impl Fold {
    fn positions(&self) -> impl Iterator<Item = (QueueId, Position)> {
        self.queues.iter().filter_map(|advance| Some((advance.queue, advance.position()?)))
    }

    fn entries(&self) -> u64 {
        self.queues.iter().map(|advance| advance.steps.len() as u64).sum()
    }
}
