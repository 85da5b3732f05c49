//! The one writer of the store: group commit.
//!
//! Jobs that arrive while a commit runs are merged into the next one; an idle
//! writer commits at once. The first failure is the last commit: after a failed
//! sync the kernel may have dropped the data, and a retry would lie.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::store::{
    Batch, Error, Space, Store,
    mark::{Facts, Mark},
};
use crate::{
    base::{
        metrics::Metrics,
        tasks::{self, Alarm},
    },
    crash_point,
};

/// Writes that one commit takes on; the job that passes it is the last.
const COMMIT_WRITES: usize = 1_024;
/// Jobs that may wait for the writer.
const JOBS_MAX: usize = 1_024;
/// The key of the commit stamp in `Space::Meta`.
pub const STAMP: &[u8] = b"stamp";

/// Called when a job is durable, or will never be.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

enum Job {
    Commit(Batch, Done),
    /// The mark may be due.
    Tick,
    /// The mark is due: the node stops.
    Mark(Done),
}

/// How others reach the writer. Cheap to clone.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Job>);

impl Handle {
    /// Hands over a batch; `done` hears of its end. Waits while the writer is
    /// far behind.
    pub async fn submit(&self, batch: Batch, done: Done) {
        if let Err(mpsc::error::SendError(Job::Commit(_, done))) =
            self.0.send(Job::Commit(batch, done)).await
        {
            done(Err(Error::Closed));
        }
    }

    /// Makes a batch durable.
    ///
    /// # Errors
    /// [`Error`]; the batch may or may not be there after a restart then.
    pub async fn commit(&self, batch: Batch) -> Result<(), Error> {
        let (tell, told) = oneshot::channel();
        self.submit(batch, Box::new(|result| drop(tell.send(result)))).await;
        told.await.unwrap_or(Err(Error::Closed))
    }

    /// Writes the mark for all that is durable now: before the node stops.
    pub async fn mark(&self) {
        let (tell, told) = oneshot::channel();
        let done: Done = Box::new(|result| drop(tell.send(result)));
        if self.0.send(Job::Mark(done)).await.is_ok() {
            let _ = told.await;
        }
    }
}

/// What the writer needs.
pub struct Writer {
    /// Where it writes.
    pub store: Arc<dyn Store>,
    /// The mark beside the store; none in tests.
    pub mark: Option<Mark>,
    /// The newest epoch of any shard, for the mark.
    pub epoch: Box<dyn Fn() -> u32 + Send>,
    /// Whether a commit waits for the disk.
    pub fsync: bool,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// The stamp of the newest commit in the store.
    pub stamp: u64,
    /// Raised when a commit fails.
    pub alarm: Alarm,
}

impl Writer {
    /// Starts the writer on a thread of its own.
    pub fn start(self) -> Handle {
        let (sender, jobs) = mpsc::channel(JOBS_MAX);
        let handle = Handle(sender);
        tasks::thread("writer", self.alarm.clone(), move || {
            let mut state = State { writer: self, marked: None };
            let mut jobs = jobs;
            while let Some(first) = jobs.blocking_recv() {
                state.turn(first, &mut jobs);
            }
        });
        tasks::spawn("mark", tick_marks(handle.clone()));
        handle
    }

    /// Starts the writer as a task that takes `pace()` of virtual time for each
    /// sync: for simulations.
    pub fn start_paced(self, pace: impl Fn() -> Duration + Send + 'static) -> Handle {
        let (sender, mut jobs) = mpsc::channel(JOBS_MAX);
        let handle = Handle(sender);
        tasks::spawn("writer", async move {
            let mut state = State { writer: self, marked: None };
            while let Some(first) = jobs.recv().await {
                let gathered = collect(first, &mut jobs);
                let written = state.write(gathered.batch);
                tokio::time::sleep(pace()).await;
                state.sync(written, gathered.done);
                gathered.marked.into_iter().for_each(|done| done(Ok(())));
            }
        });
        handle
    }
}

async fn tick_marks(handle: Handle) {
    // Holding only a weak sender, so that the writer ends with its users.
    let jobs = handle.0.downgrade();
    drop(handle);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        let Some(jobs) = jobs.upgrade() else { return };
        if jobs.send(Job::Tick).await.is_err() {
            return;
        }
    }
}

/// The first job and all that wait behind it, up to the bound of one commit.
fn collect(first: Job, jobs: &mut mpsc::Receiver<Job>) -> Gathered {
    let mut gathered = Gathered::default();
    let mut next = Some(first);
    while let Some(job) = next {
        match job {
            Job::Commit(writes, done) => {
                gathered.batch.extend(writes);
                gathered.done.push(done);
            }
            Job::Tick => {}
            Job::Mark(done) => gathered.marked.push(done),
        }
        let has_room = gathered.batch.writes.len() < COMMIT_WRITES;
        next = if has_room { jobs.try_recv().ok() } else { None };
    }
    gathered
}

/// One turn's work.
#[derive(Default)]
struct Gathered {
    batch: Batch,
    done: Vec<Done>,
    /// Who waits for the mark behind it.
    marked: Vec<Done>,
}

/// When the mark is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    /// At most once a second.
    EachSecond,
    /// Now.
    Now,
}

struct State {
    writer: Writer,
    /// When the mark was written last, and what it said.
    marked: Option<(Instant, u64)>,
}

/// A batch on its way: how many records, since when.
struct Written {
    records: usize,
    result: Result<(), Error>,
    since: Instant,
}

impl State {
    fn turn(&mut self, first: Job, jobs: &mut mpsc::Receiver<Job>) {
        let Gathered { batch, done, marked } = collect(first, jobs);
        if !done.is_empty() {
            let written = self.write(batch);
            self.sync(written, done);
        }
        self.mark(if marked.is_empty() { Due::EachSecond } else { Due::Now });
        marked.into_iter().for_each(|done| done(Ok(())));
    }

    fn write(&mut self, mut batch: Batch) -> Written {
        let (since, records) = (Instant::now(), batch.writes.len());
        let result = if self.writer.alarm.is_raised() {
            Err(Error::Closed)
        } else if records == 0 {
            Ok(())
        } else {
            self.writer.stamp += 1;
            batch.put(Space::Meta, STAMP, self.writer.stamp.to_le_bytes().to_vec());
            batch.sort();
            crash_point!("writer::before_commit");
            self.writer.store.write(&batch)
        };
        Written { records, result, since }
    }

    fn sync(&mut self, written: Written, done: Vec<Done>) {
        let Written { records, mut result, since } = written;
        if result.is_ok() && records > 0 && self.writer.fsync {
            crash_point!("writer::before_sync");
            result = self.writer.store.sync();
            crash_point!("writer::after_sync");
        }
        if let Err(error) = &result
            && !matches!(error, Error::Closed)
        {
            tracing::error!(%error, "a commit failed, nothing is acknowledged any more");
            self.writer.metrics.queue.commit_failures.increment(1);
            self.writer.alarm.raise();
        }
        if records > 0 {
            let metrics = &self.writer.metrics.queue;
            metrics.commits.increment(1);
            metrics.commit_records.increment(records as u64);
            metrics.commit_seconds.record(since.elapsed());
        }
        for tell in done {
            tell(result.clone());
        }
    }

    /// Writes the mark if it is due and says too little.
    fn mark(&mut self, due: Due) {
        let stamp = self.writer.stamp;
        let is_due = self.marked.is_none_or(|(at, said)| {
            said < stamp && (due == Due::Now || at.elapsed() >= Duration::from_secs(1))
        });
        if !is_due || self.writer.alarm.is_raised() || !self.writer.fsync {
            return;
        }
        let Some(mark) = &mut self.writer.mark else {
            return;
        };
        if let Err(error) = mark.write(Facts { stamp, epoch: (self.writer.epoch)() }) {
            tracing::error!(%error, "cannot write the commit mark, stopping as after a failed commit");
            self.writer.alarm.raise();
        }
        self.marked = Some((Instant::now(), stamp));
    }
}
