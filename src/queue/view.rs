//! What is durable of each queue that moved lately: its log and newest entries.
//!
//! The owner publishes here after the sync; readers never see more than that.
//! A queue without a view stands as the store says. A queue with writes on
//! their way always has a view, so that a reader who finds none can trust the
//! store if there is still none after the read.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use super::{entry::Entry, log::Log};
use crate::base::{ids::QueueId, maps::Shared};

/// The views of all queues of this node.
#[derive(Default)]
pub struct Views {
    map: Shared<QueueId, View>,
    oldest_day: AtomicU32,
}

/// What is durable of one queue.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Its log.
    pub(super) log: Log,
    /// Its newest entries, contiguous up to the head.
    pub(super) tail: VecDeque<Arc<Entry>>,
    /// Commits on their way that append to it.
    pending: u32,
}

impl Views {
    /// The oldest day that retention still holds, as days since 1970.
    pub fn oldest_day(&self) -> u32 {
        self.oldest_day.load(Ordering::Acquire)
    }

    /// Moves the oldest day; it never goes back.
    pub fn set_oldest_day(&self, day: u32) {
        self.oldest_day.fetch_max(day, Ordering::AcqRel);
    }

    /// Looks at a queue's view, if it has one.
    pub(super) fn with<T>(&self, queue: &QueueId, look: impl FnOnce(&View) -> T) -> Option<T> {
        self.map.get(queue).map(|view| look(&view))
    }

    /// A commit that appends to the queue is about to be written: from now on
    /// readers look here. `durable` is its log without that commit.
    pub(super) fn begin(&self, queue: QueueId, durable: impl FnOnce() -> Log) {
        let fresh = || View { log: durable(), ..View::default() };
        self.map.entry(queue).or_insert_with(fresh).pending += 1;
    }

    /// That commit is durable: its entries are visible from now on.
    pub(super) fn publish<'a>(
        &self,
        queue: &QueueId,
        log: Log,
        entries: impl Iterator<Item = &'a Arc<Entry>>,
    ) {
        if let Some(mut view) = self.map.get_mut(queue) {
            assert!(log.head() >= view.log.head(), "a queue's head never goes back");
            view.log = log;
            view.tail.extend(entries.cloned());
            view.pending -= 1;
        }
    }

    /// Forgets the oldest entry in memory of a queue, and the view with its last one.
    pub(super) fn evict(&self, queue: &QueueId) {
        if let Some(mut view) = self.map.get_mut(queue) {
            view.tail.pop_front();
        }
        self.map.remove_if(queue, |_, view| view.tail.is_empty() && view.pending == 0);
    }
}
