//! The business calls: one file each. No MQTT and no HTTP in them.
//!
//! [`Service`] is what the doors hold. It owns the registry's rules, the node's
//! presence and the pointers that are not yet on disk; queues it reaches only
//! through `route`.

pub mod accept;
pub mod allowance;
mod append;
pub mod apps;
pub mod attributes;
mod batch;
pub mod bind;
pub mod caches;
pub mod collections;
pub mod deliver;
mod ended;
pub mod error;
pub mod feedback;
pub mod identify;
pub mod items;
mod judge;
mod left;
pub mod members;
pub mod once;
pub mod pointers;
pub mod presence;
pub mod recall;
pub mod receipts;
pub mod records;
pub mod register;
pub mod repair;
mod resolve;
pub mod revoke;
pub mod schedule;
pub mod seals;
pub mod seen;
pub mod send;
pub mod slow;
pub mod snapshots;
pub mod spread;
pub mod topics;
pub mod trace;
pub mod uploads;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

pub use error::Error;

use crate::{
    base::{clock::Clock, keys::NodeKeys, metrics::Metrics},
    config,
    longterm::LongTerm,
    queue::unfolded::Backlog,
    route::Router,
};

/// Sends to several queues whose appends are on their way, at most.
const SENDS_IN_FLIGHT: usize = 256;

/// All business calls of one node.
pub struct Service {
    router: Router,
    keys: Arc<NodeKeys>,
    clock: Clock,
    limits: ArcSwap<config::Limits>,
    retention_days: u32,
    metrics: Arc<Metrics>,
    pointers: pointers::Pointers,
    presence: presence::Presence,
    members: members::Members,
    left_queues: left::LeftQueues,
    caches: Arc<caches::Caches>,
    receipts: receipts::Receipts,
    schedule: schedule::Schedule,
    feedback: feedback::Feedback,
    seen: seen::Seen,
    recalls: recall::Recalls,
    in_flight: Arc<Semaphore>,
    running: once::Running,
    allowances: allowance::Allowances,
    slow: slow::SlowLog,
    turns: collections::Turns,
    uploads: uploads::Uploads,
    storage: Storage,
}

/// Long-term storage, as the calls see it.
pub struct Storage {
    /// Where folded collections are read.
    pub longterm: Arc<dyn LongTerm>,
    /// How far its writer is behind.
    pub backlog: Arc<Backlog>,
    /// How far it may be.
    pub bounds: config::LongTerm,
}

impl Service {
    /// The calls over a router.
    pub fn new(
        router: Router,
        keys: Arc<NodeKeys>,
        clock: Clock,
        config: &config::Config,
        metrics: Arc<Metrics>,
        caches: Arc<caches::Caches>,
        storage: Storage,
    ) -> Arc<Self> {
        Arc::new(Self {
            router,
            keys,
            clock,
            limits: ArcSwap::from_pointee(config.limits.clone()),
            retention_days: config.store.retention_days,
            metrics,
            pointers: pointers::Pointers::default(),
            presence: presence::Presence::default(),
            members: members::Members::default(),
            left_queues: left::LeftQueues::default(),
            caches,
            receipts: receipts::Receipts::new(&config.callbacks),
            schedule: schedule::Schedule::default(),
            feedback: feedback::Feedback::default(),
            seen: seen::Seen::default(),
            recalls: recall::Recalls::default(),
            in_flight: Arc::new(Semaphore::new(SENDS_IN_FLIGHT)),
            running: once::Running::default(),
            allowances: allowance::Allowances::default(),
            slow: slow::SlowLog::default(),
            turns: collections::Turns::default(),
            uploads: uploads::Uploads::default(),
            storage,
        })
    }

    /// Bounds for the calls from now on; what is over them stays.
    pub fn reconfigure(&self, limits: config::Limits) {
        self.limits.store(Arc::new(limits));
    }

    /// Where it counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.clock.unix_ms()
    }
}
