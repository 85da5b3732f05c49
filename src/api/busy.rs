//! How much work the API has in hand: over a bound it refuses at once.
//!
//! What waits inside is waited for by its caller, who gives up and asks again: beyond the
//! point where the store keeps up, more work in hand only makes all of it late. Sends of high
//! priority have some room of their own, so that an overload of the others keeps none of them out.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    base::{
        http::{Code, Problem},
        metrics::Metrics,
    },
    config,
};

/// The bound of one door.
pub(super) struct Busy {
    free: Arc<Semaphore>,
    /// Over that, for what is urgent.
    free_high: Arc<Semaphore>,
    refused: AtomicU64,
    metrics: Arc<Metrics>,
}

impl Busy {
    pub(super) fn new(config: &config::Api, metrics: Arc<Metrics>) -> Self {
        let room = |calls: usize| Arc::new(Semaphore::new(calls.min(Semaphore::MAX_PERMITS)));
        let (free, free_high) = (room(config.calls_max), room(config.calls_high_max));
        Self { free, free_high, refused: AtomicU64::new(0), metrics }
    }

    /// Room for one call that changes something; to be asked once its body is read.
    pub(super) fn take(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.take_for(false)
    }

    /// The same for a send, which may use the room of the urgent ones if it is one.
    pub(super) fn take_for(&self, is_high: bool) -> Result<OwnedSemaphorePermit, Problem> {
        let free = self.free.clone().try_acquire_owned();
        let room = free.or_else(|full| match is_high {
            true => self.free_high.clone().try_acquire_owned(),
            false => Err(full),
        });
        room.map_err(|_| self.refusal())
    }

    fn refusal(&self) -> Problem {
        self.metrics.api.overloaded.increment(1);
        // Spread, so that they do not all come back together.
        let after_s = 1 + self.refused.fetch_add(1, Ordering::Relaxed) % RETRY_SPREAD_S;
        let detail = "more calls are in hand than the gateway takes at once";
        Problem { retry_after_s: Some(after_s), ..Problem::new(Code::Overloaded, detail) }
    }
}

const RETRY_SPREAD_S: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::http::Retry;

    fn of(calls_max: usize, calls_high_max: usize) -> Busy {
        let config = config::Api { calls_max, calls_high_max, ..config::Api::default() };
        Busy::new(&config, Arc::new(Metrics::new()))
    }

    #[test]
    fn over_the_bound_a_call_is_refused_at_once_and_told_when_to_come_back() {
        let busy = of(2, 0);
        let (first, _second) = (busy.take().unwrap(), busy.take().unwrap());
        let refusals: Vec<_> = (0..3).map(|_| busy.take().unwrap_err()).collect();
        assert!(refusals.iter().all(|problem| problem.code.row().status.as_u16() == 503));
        let times: Vec<_> = refusals.iter().map(Problem::retry).collect();
        assert_eq!(times, [Retry::AfterS(1), Retry::AfterS(2), Retry::AfterS(3)]);
        drop(first);
        assert!(busy.take().is_ok());
    }

    #[test]
    fn what_is_urgent_has_room_when_the_others_have_none_but_not_without_bound() {
        let busy = of(1, 1);
        let all = busy.take_for(false).unwrap();
        assert!(busy.take_for(false).is_err());
        let high = busy.take_for(true).unwrap();
        assert!(busy.take_for(true).is_err() && busy.take().is_err());
        drop(all);
        // Where there is room for anybody, that is used first.
        let _any = busy.take_for(true).unwrap();
        assert!(busy.take().is_err());
        drop(high);
        assert!(busy.take_for(true).is_ok());
    }
}
