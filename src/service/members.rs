//! How many registrations follow a shared queue: derived, counted once, then kept while there is
//! room.
//!
//! A change is in the store a moment before it is durable and told here, so a count that is taken
//! meanwhile may have it twice or not at all. Such a count is taken again when it is asked for,
//! but never for more than a hundredth of the time.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quick_cache::sync;
use tokio::time::Instant;

use super::{Error, Service};
use crate::{
    base::ids::{QueueId, RegId},
    queue::store::{Range, Space},
};

/// Queues whose counts are kept.
const QUEUES_MAX: usize = 65_536;
/// Records of one scan.
const PAGE: usize = 4_096;
/// A change that was in the store is told here by then.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// A count is taken again after so many times the time that it took.
const REST: u32 = 100;

/// Counts of the queues that were asked for lately. Who takes one holds it meanwhile: if it is put
/// out by others, the next one begins anew.
pub struct Members(sync::Cache<QueueId, Arc<Mutex<Count>>>);

impl Default for Members {
    fn default() -> Self {
        Self(sync::Cache::new(QUEUES_MAX))
    }
}

impl Members {
    /// That of a queue, as whoever asks for it needs it.
    fn of(&self, queue: &QueueId) -> Arc<Mutex<Count>> {
        let new = || Ok::<_, Infallible>(Arc::new(Mutex::new(Count::none())));
        match self.0.get_or_insert_with(queue, new) {
            Ok(count) => count,
            Err(never) => match never {},
        }
    }

    fn changed(&self, queue: &QueueId, change: impl Fn(usize) -> usize) {
        if let Some(count) = self.0.peek(queue) {
            lock(&count).changed(change);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.len()
    }
}

fn lock(count: &Mutex<Count>) -> MutexGuard<'_, Count> {
    count.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One count, and what it is worth.
pub struct Count {
    members: usize,
    /// When it was taken, and how long that took. `None` until the first one is there.
    taken: Option<(Instant, Duration)>,
    /// How many are being taken now.
    under_way: u32,
    /// Changes that a count may have missed or may have twice.
    doubts: u64,
    /// How many of them there were when this one began.
    doubts_before: u64,
}

impl Count {
    fn none() -> Self {
        Self { members: 0, taken: None, under_way: 0, doubts: 0, doubts_before: 0 }
    }

    /// What is known, unless it is to be counted.
    fn known(&self, now: Instant) -> Option<usize> {
        let (at, took) = self.taken?;
        let is_in_doubt = self.doubts != self.doubts_before && self.under_way == 0;
        (!is_in_doubt || now < at + took * REST).then_some(self.members)
    }

    fn changed(&mut self, change: impl Fn(usize) -> usize) {
        self.members = change(self.members);
        let is_firm = self.taken.is_some_and(|(at, _)| at.elapsed() > TOLD_WITHIN);
        if self.under_way > 0 || !is_firm {
            self.doubts += 1;
        }
    }
}

impl Service {
    /// How many registrations follow a shared queue now.
    pub(super) fn members(&self, queue: &QueueId) -> Result<usize, Error> {
        let (since, count) = (Instant::now(), self.members.of(queue));
        let doubts = {
            let mut count = lock(&count);
            if let Some(known) = count.known(since) {
                return Ok(known);
            }
            count.under_way += 1;
            count.doubts
        };
        let counted = self.count_members(queue);
        let mut count = lock(&count);
        count.under_way = count.under_way.saturating_sub(1);
        if let Ok(members) = counted {
            (count.members, count.doubts_before) = (members, doubts);
            let now = Instant::now();
            count.taken = Some((now, now.duration_since(since)));
        }
        counted
    }

    fn count_members(&self, queue: &QueueId) -> Result<usize, Error> {
        let mut count = 0;
        let mut after = None;
        loop {
            let page = self.members_after(queue, after, PAGE)?;
            count += page.len();
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(*last),
                _ => return Ok(count),
            }
        }
    }

    /// The registrations that follow a shared queue, in their order, behind `after`.
    pub(super) fn members_after(
        &self,
        queue: &QueueId,
        after: Option<RegId>,
        limit: usize,
    ) -> Result<Vec<RegId>, Error> {
        let from = match after {
            Some(regid) => [queue.as_bytes(), regid.as_bytes(), &[0]].concat(),
            None => queue.as_bytes().to_vec(),
        };
        let range = Range::prefix_after(queue.as_bytes(), from);
        let records = self.router.scan(Space::Members, &range, limit)?;
        Ok(records.iter().filter_map(|(key, _)| RegId::from_slice(key.get(20..)?)).collect())
    }

    pub(super) fn member_added(&self, queue: &QueueId) {
        self.members.changed(queue, |members| members + 1);
    }

    pub(super) fn member_removed(&self, queue: &QueueId) {
        self.members.changed(queue, |members| members.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_however_many_queues_are_kept_for_a_bounded_number() {
        let members = Members::default();
        let queue = |number: u32| {
            let mut id = [0; 20];
            id[..4].copy_from_slice(&number.to_be_bytes());
            QueueId(id)
        };
        let held = members.of(&queue(0));
        for number in 1..3 * QUEUES_MAX as u32 {
            lock(&members.of(&queue(number))).members = 1;
        }
        assert!(members.len() <= QUEUES_MAX, "{}", members.len());
        // Who still counts one that was put out disturbs nobody.
        members.0.remove(&queue(0));
        let next = members.of(&queue(0));
        assert!(!Arc::ptr_eq(&held, &next));
        members.changed(&queue(0), |_| 5);
        assert_eq!((lock(&held).members, lock(&next).members), (0, 5));
    }
}
