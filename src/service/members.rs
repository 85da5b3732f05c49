//! How many registrations follow a shared queue: derived, counted once, then kept.
//!
//! A change is in the store a moment before it is durable and told here, so a count that is taken
//! meanwhile may have it twice or not at all. Such a count is taken again when it is asked for,
//! but never for more than a hundredth of the time.

use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;

use super::{Error, Service};
use crate::{
    base::ids::{QueueId, RegId},
    queue::store::{Range, Space},
};

/// Records of one scan.
const PAGE: usize = 4_096;
/// A change that was in the store is told here by then.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// A count is taken again after so many times the time that it took.
const REST: u32 = 100;

/// Counts of the queues that were asked for.
pub type Members = DashMap<QueueId, Count>;

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
        let since = Instant::now();
        if let Some(known) = self.members.get(queue).and_then(|count| count.known(since)) {
            return Ok(known);
        }
        let doubts = {
            let mut count = self.members.entry(*queue).or_insert_with(Count::none);
            count.under_way += 1;
            count.doubts
        };
        let counted = self.count_members(queue);
        if let Some(mut count) = self.members.get_mut(queue) {
            count.under_way = count.under_way.saturating_sub(1);
            if let Ok(members) = counted {
                (count.members, count.doubts_before) = (members, doubts);
                let now = Instant::now();
                count.taken = Some((now, now.duration_since(since)));
            }
        }
        // Names that nobody follows are without number.
        self.members.remove_if(queue, |_, count| count.members == 0 && count.under_way == 0);
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
        if let Some(mut count) = self.members.get_mut(queue) {
            count.changed(|members| members + 1);
        }
    }

    pub(super) fn member_removed(&self, queue: &QueueId) {
        if let Some(mut count) = self.members.get_mut(queue) {
            count.changed(|members| members.saturating_sub(1));
        }
    }
}
