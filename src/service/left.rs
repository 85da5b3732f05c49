//! Queues that registrations left lately, and how far they had come there.
//!
//! A message to several queues is taken from the first of them that a registration follows. Who has
//! taken it there and leaves that queue must not take it again from the next one, where it may
//! still wait. Kept in memory, for a bounded number: who is not known here, or left before a
//! restart, may get what waits for it a second time, as after a lost acknowledgement.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use quick_cache::sync;

use super::Service;
use crate::{
    base::ids::{QueueId, RegId},
    queue::position::Position,
};

/// Registrations that are kept.
const REGISTRATIONS_MAX: usize = 16_384;
/// Queues of each: the newest.
const QUEUES_MAX: usize = 16;

/// A part of a queue that a registration had while it followed it.
#[derive(Clone, Copy, Debug)]
struct Left {
    queue: QueueId,
    since: Position,
    to: Position,
}

/// What each registration had, oldest first.
pub struct LeftQueues {
    of: sync::Cache<RegId, Arc<[Left]>>,
    /// Whether there is any: asked for each delivery of a shared message, without a lock.
    is_any: AtomicBool,
}

impl Default for LeftQueues {
    fn default() -> Self {
        Self { of: sync::Cache::new(REGISTRATIONS_MAX), is_any: AtomicBool::new(false) }
    }
}

impl Service {
    /// A registration that stands at `to` has left a queue.
    pub(super) fn left(&self, regid: &RegId, queue: QueueId, since: Position, to: Position) {
        if to.seq <= since.seq {
            return;
        }
        let before = self.left_queues.of.get(regid);
        let mut all = before.map(|before| before.to_vec()).unwrap_or_default();
        all.push(Left { queue, since, to });
        let old = all.len().saturating_sub(QUEUES_MAX);
        self.left_queues.of.insert(*regid, all.split_off(old).into());
        self.left_queues.is_any.store(true, Ordering::Release);
    }

    /// Whether a registration left some queue lately.
    pub(super) fn has_left(&self, regid: &RegId) -> bool {
        self.left_queues.is_any.load(Ordering::Acquire) && self.left_queues.of.get(regid).is_some()
    }

    /// Whether a registration had the entry at a place of a queue before it left that.
    pub(super) fn had(&self, regid: &RegId, queue: &QueueId, place: Position) -> bool {
        let had = |left: &Left| {
            left.queue == *queue
                && (left.since.seq < place.seq && place.seq <= left.to.seq)
                && place.epoch <= left.to.epoch
        };
        self.left_queues.of.get(regid).is_some_and(|all| all.iter().any(had))
    }
}
