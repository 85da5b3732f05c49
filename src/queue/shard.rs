//! The task that owns many queues: it gives the numbers and orders all changes.
//!
//! A change is a closure that runs on the owner with a [`Txn`]; its writes are
//! durable together, and only then is it answered and are its entries visible.
//! `Owner` is the deciding part without tasks or awaits; [`start`] runs it.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::{mpsc, oneshot};

use super::{
    entry::{Entry, Priority},
    epochs::Epochs,
    log::Log,
    store::{self, Batch, Key, Space, Store, decode},
    txn::{Appended, Scratch, Txn},
    unfolded::{self, Backlog, Unfolded},
    view::Views,
    writer,
};
use crate::{
    base::{
        clock::Clock,
        ids::QueueId,
        maps::Owned,
        metrics::Metrics,
        tasks::{self, Alarm},
    },
    crash_point,
};

/// Changes that may wait for an owner.
const CHANGES_MAX: usize = 4_096;
/// Writes that one commit of an owner takes on; the change that passes it is the last.
const COMMIT_WRITES: usize = 1_024;
/// Commits of one owner on their way: one is written while the next gathers.
const COMMITS_MAX: usize = 2;

/// What the owner of a shard can answer instead of a result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Others changed the same at the same time, again and again.
    #[error("too many change the same at once")]
    Contended,
    /// The owner is gone: the node stops.
    #[error("the node is stopping")]
    Stopped,
}

/// Hears that a queue has new entries, and how urgent the most urgent of them is.
pub type Grown = Arc<dyn Fn(&QueueId, Priority) + Send + Sync>;
/// Hears that a record has changed.
pub type Changed = Arc<dyn Fn(Space, &[u8]) + Send + Sync>;
/// Called when the outcome of a change is durable, or will never be.
type Reply = Box<dyn FnOnce(Result<(), Error>) + Send>;
/// Decides a change; returns whether to keep its writes, and whom to tell.
type Change = Box<dyn FnOnce(&mut Txn<'_>) -> (Verdict, Reply) + Send>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Keep,
    Discard,
}

/// How others reach the owner. Cheap to clone.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Change>);

impl Handle {
    /// Runs a change on the owner and waits until what it wrote is durable. A
    /// refusal discards its writes.
    ///
    /// # Errors
    /// What the change refused with, or [`Error`].
    pub async fn run<T, E>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.begin(change).await.await
    }

    /// The first half of [`Handle::run`]: when this returns, the change has its
    /// place in the owner's order; the future that it returns waits for the rest.
    pub async fn begin<T, E>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E> + Send + 'static,
    ) -> Begun<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let change: Change = Box::new(move |txn| {
            let outcome = change(txn);
            let verdict = if outcome.is_ok() { Verdict::Keep } else { Verdict::Discard };
            let reply: Reply = Box::new(move |durable| {
                let answer = match durable {
                    Ok(()) => outcome,
                    Err(error) => outcome.and(Err(error.into())),
                };
                drop(tell.send(answer));
            });
            (verdict, reply)
        });
        // A closed channel drops the change, and with it the sender of the answer.
        let _ = self.0.send(change).await;
        Begun(told)
    }
}

/// A change that has its place in the owner's order; resolves when it is durable.
pub struct Begun<T, E>(oneshot::Receiver<Result<T, E>>);

impl<T, E: From<Error>> Future for Begun<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let told = Pin::new(&mut self.0).poll(cx);
        told.map(|answer| answer.unwrap_or_else(|_| Err(Error::Stopped.into())))
    }
}

/// What an owner works with.
#[derive(Clone)]
pub struct Parts {
    /// Where it reads what it does not hold.
    pub store: Arc<dyn Store>,
    /// Where it publishes.
    pub views: Arc<Views>,
    /// Its shards' epochs.
    pub epochs: Arc<Epochs>,
    /// Today.
    pub clock: Clock,
    /// Entries that it keeps in memory, in bytes.
    pub tail_bytes: u64,
    /// Hears which queues have new entries.
    pub grown: Grown,
    /// Hears of each record of the registry that has changed: it can be read, and nobody
    /// was told yet.
    pub changed: Changed,
    /// Hears what the storage writer has to do.
    pub backlog: Arc<Backlog>,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Raised if it panics.
    pub alarm: Alarm,
}

/// A change's writes with what to publish once they are durable.
#[derive(Default)]
struct Commit {
    batch: Batch,
    entries: Vec<(QueueId, Arc<Entry>)>,
    replies: Vec<Reply>,
    /// Records of the registry that it changes.
    changed: Vec<(Space, Key)>,
    /// The queues that it appends to, with their logs as of this commit.
    logs: Owned<QueueId, Log>,
    /// What of it the storage writer has to fold.
    unfolded: Vec<(QueueId, Unfolded)>,
}

/// Owns queues: the deciding part.
pub(super) struct Owner {
    pub(super) parts: Parts,
    /// Logs with appends that are not durable yet: the newest, and how many commits.
    pub(super) active: Owned<QueueId, (Log, u32)>,
    /// Records that are not durable yet, with the number of their commit.
    pub(super) staged: Owned<(Space, Key), (Option<bytes::Bytes>, u64)>,
    gathering: Commit,
    sealed: u64,
    /// The newest commit that the storage writer has to fold.
    folding: unfolded::Commit,
    in_memory: VecDeque<(QueueId, u64)>,
    in_memory_bytes: u64,
}

impl Owner {
    fn new(parts: Parts) -> Self {
        Self {
            folding: parts.backlog.newest(),
            parts,
            active: Owned::default(),
            staged: Owned::default(),
            gathering: Commit::default(),
            sealed: 0,
            in_memory: VecDeque::new(),
            in_memory_bytes: 0,
        }
    }

    /// The newest log of a queue, durable or not.
    pub(super) fn log(&self, queue: &QueueId) -> Result<Log, store::Error> {
        if let Some((log, _)) = self.active.get(queue) {
            return Ok(log.clone());
        }
        if let Some(log) = self.parts.views.with(queue, |view| view.log.clone()) {
            return Ok(log);
        }
        let stored = self.parts.store.get(Space::Heads, queue.as_bytes())?;
        stored.map_or(Ok(Log::default()), |bytes| decode(&bytes))
    }

    /// Decides one change and gathers its writes.
    fn stage(&mut self, change: Change) {
        let mut txn = Txn::new(self);
        let (verdict, reply) = change(&mut txn);
        let scratch = txn.finish();
        match verdict {
            Verdict::Keep if !scratch.is_empty() => self.keep(scratch),
            // A refusal, or an answer that wrote nothing. It may rest on writes
            // that are on their way, so it waits for the commit all the same.
            Verdict::Keep | Verdict::Discard => {}
        }
        self.gathering.replies.push(reply);
    }

    fn keep(&mut self, scratch: Scratch) {
        for (queue, Appended { before, after }) in scratch.logs {
            let active = self.active.entry(queue).or_insert_with(|| (after.clone(), 0));
            active.0.clone_from(&after);
            if self.gathering.logs.insert(queue, after).is_none() {
                active.1 += 1;
                // Readers must look into the view before the store shows the append.
                // Without a view nothing is on its way, so `before` is durable.
                self.parts.views.begin(queue, || before);
            }
        }
        let registry = scratch.own.keys().filter(|(space, _)| is_registry(*space));
        self.gathering.changed.extend(registry.cloned());
        let sealed = self.sealed;
        self.staged.extend(scratch.own.into_iter().map(|(key, value)| (key, (value, sealed))));
        self.gathering.batch.extend(scratch.batch);
        self.gathering.entries.extend(scratch.entries);
    }

    /// Takes what was gathered, for the writer.
    fn seal(&mut self) -> (Commit, Batch) {
        let mut commit = std::mem::take(&mut self.gathering);
        let mut batch = std::mem::take(&mut commit.batch);
        for (queue, log) in &commit.logs {
            batch.put(Space::Heads, queue.as_bytes(), store::encode(log));
        }
        commit.unfolded = unfolded_of(&commit);
        if !commit.unfolded.is_empty() {
            self.folding = self.folding.next(self.folding.epoch, self.parts.clock.unix_ms());
        }
        for (queue, unfolded) in &commit.unfolded {
            let epoch = self.parts.epochs.current(queue.shard());
            let at = unfolded::Commit { epoch, ..self.folding };
            batch.put(Space::Unfolded, unfolded::key(at, queue), store::encode(unfolded));
        }
        self.sealed += 1;
        (commit, batch)
    }

    /// The writer is done with a commit: publish and answer, or refuse.
    fn finish(&mut self, number: u64, commit: Commit, result: Result<(), store::Error>) {
        self.staged.retain(|_, (_, of)| *of != number);
        // Also after a failure: nobody knows then what the store shows.
        for (space, key) in &commit.changed {
            (self.parts.changed)(*space, key);
        }
        if let Err(error) = result {
            for reply in commit.replies {
                reply(Err(error.clone().into()));
            }
            return;
        }
        crash_point!("shard::before_publish");
        let grown = self.publish(commit.logs, commit.entries);
        for (queue, unfolded) in &commit.unfolded {
            self.parts.backlog.grow(queue.shard(), unfolded.entries());
        }
        for reply in commit.replies {
            reply(Ok(()));
        }
        for (queue, priority) in grown {
            (self.parts.grown)(&queue, priority);
        }
    }

    /// Makes the entries visible. Returns the queues that grew, and for whom it is most urgent.
    fn publish(
        &mut self,
        mut logs: Owned<QueueId, Log>,
        mut entries: Vec<(QueueId, Arc<Entry>)>,
    ) -> Vec<(QueueId, Priority)> {
        self.parts.metrics.queue.entries.increment(entries.len() as u64);
        for (queue, entry) in &entries {
            let bytes = entry.body.bytes() as u64;
            self.in_memory.push_back((*queue, bytes));
            self.in_memory_bytes += bytes;
        }
        // Stable: the entries of one queue stay in their order.
        entries.sort_by_key(|(queue, _)| *queue);
        let mut grown = Vec::with_capacity(logs.len());
        for group in entries.chunk_by(|(one, _), (next, _)| one == next) {
            let [(queue, first), ..] = group else { continue };
            let Some(log) = logs.remove(queue) else { continue };
            self.parts.views.publish(queue, log, group.iter().map(|(_, entry)| entry));
            if let Some((_, commits)) = self.active.get_mut(queue) {
                *commits -= 1;
                if *commits == 0 {
                    self.active.remove(queue);
                }
            }
            let priorities = group.iter().map(|(_, entry)| entry.body.priority());
            grown.push((*queue, priorities.min().unwrap_or(first.body.priority())));
        }
        assert!(logs.is_empty(), "a log changes by appends only");
        while self.in_memory_bytes > self.parts.tail_bytes {
            let Some((queue, bytes)) = self.in_memory.pop_front() else {
                break;
            };
            self.in_memory_bytes -= bytes;
            self.parts.views.evict(&queue);
        }
        self.parts.metrics.queue.tail_bytes.set(self.in_memory_bytes as f64);
        grown
    }
}

/// What a commit appended to queues with collections.
fn unfolded_of(commit: &Commit) -> Vec<(QueueId, Unfolded)> {
    let mut all: BTreeMap<QueueId, Unfolded> = BTreeMap::new();
    for (queue, entry) in &commit.entries {
        if commit.logs.get(queue).is_some_and(Log::is_folded) {
            let (seq, at_ms) = (entry.position.seq, entry.at_ms);
            all.entry(*queue).or_insert(Unfolded { from: seq, to: seq, at_ms }).to = seq;
        }
    }
    all.into_iter().collect()
}

/// Whether a space is the registry's, of which others keep records in memory.
fn is_registry(space: Space) -> bool {
    matches!(space, Space::Apps | Space::Devices | Space::Registrations)
}

/// Whether changes read records of this space back, so that they must see those
/// that are still on their way.
pub(super) fn is_read_back(space: Space) -> bool {
    match space {
        Space::Apps | Space::Devices | Space::Registrations => true,
        Space::Pending | Space::Scheduled => true,
        Space::Messages(_) | Space::Recalls => true,
        Space::Items | Space::Collections | Space::Uploads => true,
        Space::Meta | Space::Members | Space::Pointers | Space::Heads => false,
        Space::Entries(_) | Space::Collapse(_) => false,
        Space::Callbacks | Space::Feedback => false,
        Space::Unfolded | Space::Folded | Space::History(_) => false,
        // Only one call with a key runs at a time.
        Space::Once(_) => false,
    }
}

/// Starts an owner. It ends when all handles are gone and its last commit is done.
pub fn start(parts: Parts, writer: writer::Handle) -> Handle {
    let (sender, changes) = mpsc::channel(CHANGES_MAX);
    let alarm = parts.alarm.clone();
    tasks::spawn_vital("shard", alarm, run(Owner::new(parts), changes, writer));
    Handle(sender)
}

type Finished = (u64, Commit, Result<(), store::Error>);

async fn run(mut owner: Owner, mut changes: mpsc::Receiver<Change>, writer: writer::Handle) {
    // Room for every commit on its way, so that the writer never waits for an owner.
    let (finished, mut finishes) = mpsc::channel::<Finished>(COMMITS_MAX);
    let mut on_their_way = 0;
    let mut is_open = true;
    while is_open || on_their_way > 0 {
        // Finished commits first: they free the bound and answer people.
        tokio::select! {
            biased;
            Some((number, commit, result)) = finishes.recv() => {
                on_their_way -= 1;
                owner.finish(number, commit, result);
            }
            change = changes.recv(), if is_open && on_their_way < COMMITS_MAX => {
                let Some(change) = change else { is_open = false; continue };
                owner.stage(change);
                while owner.gathering.batch.writes.len() < COMMIT_WRITES
                    && let Ok(change) = changes.try_recv()
                {
                    owner.stage(change);
                }
                let number = owner.sealed;
                let (commit, batch) = owner.seal();
                let finished = finished.clone();
                on_their_way += 1;
                let done = move |result| drop(finished.try_send((number, commit, result)));
                writer.submit(batch, Box::new(done)).await;
            }
        }
    }
}
