//! How many registrations follow a shared queue: derived, counted once, then kept.

use dashmap::DashMap;

use super::{Error, Service};
use crate::{
    base::ids::{QueueId, RegId},
    queue::store::{Range, Space},
};

/// Records of one scan.
const PAGE: usize = 4_096;

/// Counts of the queues that were asked for.
pub type Members = DashMap<QueueId, usize>;

impl Service {
    /// How many registrations follow a shared queue now.
    pub(super) fn members(&self, queue: &QueueId) -> Result<usize, Error> {
        if let Some(count) = self.members.get(queue) {
            return Ok(*count);
        }
        let mut count = 0;
        let mut after = None;
        loop {
            let page = self.members_after(queue, after, PAGE)?;
            count += page.len();
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(*last),
                _ => break,
            }
        }
        // Names that nobody follows are without number.
        if count > 0 {
            self.members.insert(*queue, count);
        }
        Ok(count)
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
            *count += 1;
        }
    }

    pub(super) fn member_removed(&self, queue: &QueueId) {
        if let Some(mut count) = self.members.get_mut(queue) {
            *count = count.saturating_sub(1);
        }
    }
}
