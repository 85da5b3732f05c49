//! Everything below the doors: store, writer, owners, router, service.
//!
//! The node builds it over the embedded store, tests and the simulation over the
//! memory store; both get the same parts, wired here and nowhere else.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle};

use crate::{
    base::{
        clock::Clock,
        keys::NodeKeys,
        metrics::Metrics,
        tasks::{self, Alarm},
    },
    config::Config,
    longterm::{
        LongTerm,
        writer::{Again, StorageWriter},
    },
    queue::{
        epochs::Epochs,
        reader::Reader,
        retention::Retention,
        shard::{self, Grown, Parts},
        store::{self, Store, mark::Mark},
        unfolded::Backlog,
        view::Views,
        writer::{self, Writer},
    },
    route::{Followers, Router},
    service::{Service, Storage, caches::Caches},
};

/// How the writer runs.
pub enum Pace {
    /// On a thread of its own.
    Threaded,
    /// As a task that takes this much virtual time for each sync: simulations.
    Paced(Box<dyn Fn() -> Duration + Send>),
}

/// What a core is built over.
pub struct Foundation {
    /// Where it stores.
    pub store: Arc<dyn Store>,
    /// The mark beside the store.
    pub mark: Option<Mark>,
    /// The node's secrets.
    pub keys: Arc<NodeKeys>,
    /// Its time.
    pub clock: Clock,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// How the writer runs.
    pub pace: Pace,
    /// Where folded collections and history are kept.
    pub longterm: Arc<dyn LongTerm>,
}

/// The running parts below the doors.
pub struct Core {
    /// The business calls.
    pub service: Arc<Service>,
    /// Turns true when the node can no longer keep its promises: a commit failed, or a
    /// vital task panicked.
    pub failed: watch::Receiver<bool>,
    background: Vec<JoinHandle<()>>,
}

impl Core {
    /// Builds the parts bottom-up and completes what a crash left undone.
    ///
    /// # Errors
    /// [`store::Error`] if the store cannot be read or written.
    pub async fn build(config: &Config, foundation: Foundation) -> Result<Self, store::Error> {
        let Foundation { store, mark, keys, clock, metrics, pace, longterm } = foundation;
        let (alarm, failed) = Alarm::new();
        // What a killed process wrote and did not sync is there again, and becomes visible:
        // so it must be durable first.
        store.sync()?;
        let (epochs, recovered) =
            Epochs::open(store.as_ref(), mark.as_ref().and_then(Mark::facts))?;
        if recovered.is_cut {
            metrics.queue.losses.increment(1);
            tracing::error!("the store is behind its commit mark: acknowledged entries were lost");
        }
        let epochs = Arc::new(epochs);
        let newest = epochs.clone();
        let writer = Writer {
            store: store.clone(),
            mark,
            epoch: Box::new(move || newest.newest()),
            fsync: config.store.fsync,
            metrics: metrics.clone(),
            stamp: recovered.stamp,
            alarm: alarm.clone(),
        };
        let writer = match pace {
            Pace::Threaded => writer.start(),
            Pace::Paced(pace) => writer.start_paced(pace),
        };
        let views = Arc::new(Views::default());
        let retention = Retention {
            store: store.clone(),
            writer: writer.clone(),
            views: views.clone(),
            clock,
            days: config.store.retention_days,
            metrics: metrics.clone(),
        };
        retention.sweep().await?;

        let backlog = Arc::new(Backlog::of(store.as_ref())?);
        let (metrics_too, alarm_too) = (metrics.clone(), alarm.clone());
        let parts =
            Owned { store, views, epochs, clock, backlog, metrics: metrics_too, alarm: alarm_too };
        let storage = parts.storage(config, longterm.clone());
        let caches = Arc::new(Caches::new(&config.store, &metrics));
        let router = parts.clone().start(config, writer.clone(), &caches);
        let followers = router.followers().clone();
        let service = Service::new(router, keys, clock, config, metrics, caches, storage);
        complete(&service).await?;
        let again = service.clone().changes_again();
        let storage_writer = parts.storage_writer(config, writer, longterm, again);
        let period = Duration::from_millis(config.store.pointer_flush_ms);
        let flushes = service.clone().flush_periodically(period);
        let background = vec![
            tasks::spawn_vital("pointers", alarm.clone(), flushes),
            tasks::spawn_vital("crowds", alarm.clone(), followers.wake_crowds()),
            tasks::spawn_vital("schedule", alarm.clone(), service.clone().send_due_messages()),
            tasks::spawn_vital("retention", alarm.clone(), retention.run()),
            tasks::spawn_vital("storage writer", alarm, storage_writer.run()),
            tasks::spawn("callbacks", service.clone().run_callbacks()),
            tasks::spawn("seen", service.clone().keep_seen()),
            tasks::spawn("feedback", service.clone().keep_feedback()),
            tasks::spawn("expired messages", service.clone().sweep_expired()),
        ];
        Ok(Self { service, failed, background })
    }

    /// Writes what is written lazily and stops the background tasks.
    pub async fn stop(self) {
        for task in self.background {
            task.abort();
            // What it had in hand is unwritten again once it is gone.
            drop(task.await);
        }
        if let Err(error) = self.service.settle().await {
            tracing::warn!(%error, "cannot flush the last pointers");
        }
    }
}

/// What the owners and readers of queues share.
#[derive(Clone)]
struct Owned {
    store: Arc<dyn Store>,
    views: Arc<Views>,
    epochs: Arc<Epochs>,
    clock: Clock,
    backlog: Arc<Backlog>,
    metrics: Arc<Metrics>,
    alarm: Alarm,
}

impl Owned {
    /// Long-term storage as the calls see it.
    fn storage(&self, config: &Config, longterm: Arc<dyn LongTerm>) -> Storage {
        Storage { longterm, backlog: self.backlog.clone(), bounds: config.longterm.clone() }
    }

    /// What folds.
    fn storage_writer(
        self,
        config: &Config,
        writer: writer::Handle,
        longterm: Arc<dyn LongTerm>,
        again: Again,
    ) -> StorageWriter {
        let Self { store, views, epochs, clock, backlog, metrics, alarm: _ } = self;
        let reader = Reader::new(store, views, epochs);
        let history_days = config.longterm.history_days;
        StorageWriter { reader, writer, longterm, again, backlog, clock, history_days, metrics }
    }

    /// Starts the owners; what they publish wakes the followers.
    fn start(self, config: &Config, writer: writer::Handle, caches: &Arc<Caches>) -> Router {
        let Self { store, views, epochs, clock, backlog, metrics, alarm } = self;
        let followers = Arc::new(Followers::new(metrics.clone()));
        let woken = followers.clone();
        let grown: Grown = Arc::new(move |queue, priority| woken.nudge(queue, priority));
        let caches = caches.clone();
        let parts = Parts {
            store: store.clone(),
            views: views.clone(),
            epochs: epochs.clone(),
            clock,
            tail_bytes: config.store.tail_bytes / config.store.shard_tasks as u64,
            grown,
            changed: Arc::new(move |space, key| caches.changed(space, key)),
            backlog,
            metrics,
            alarm,
        };
        let owner = |_| shard::start(parts.clone(), writer.clone());
        let owners = (0..config.store.shard_tasks).map(owner).collect();
        Router::new(owners, Reader::new(store, views, epochs), writer, followers)
    }
}

/// Completes what the last run left undone.
async fn complete(service: &Arc<Service>) -> Result<(), store::Error> {
    service.open_receipts().await.map_err(only_store)?;
    let completed = service.complete_pending().await.map_err(only_store)?;
    if completed > 0 {
        tracing::info!(completed, "appends that the last run left undone are done");
    }
    service.load_recalls().await.map_err(only_store)?;
    let ended = service.complete_revocations().await.map_err(only_store)?;
    if ended > 0 {
        tracing::info!(ended, "registrations of revoked apps are ended");
    }
    service.load_schedule().map_err(only_store)?;
    Ok(())
}

fn only_store(error: crate::service::Error) -> store::Error {
    match error {
        crate::service::Error::Unavailable(shard::Error::Store(error)) => error,
        other => store::Error::Damaged(other.to_string()),
    }
}
