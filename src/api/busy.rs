//! How much work the API has in hand: over a bound it refuses at once.
//!
//! What waits inside is waited for by its caller, who gives up and asks again: beyond the
//! point where the store keeps up, more work in hand only makes all of it late.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::base::{
    http::{Code, Problem},
    metrics::Metrics,
};

/// The bound of one door.
pub(super) struct Busy {
    free: Arc<Semaphore>,
    refused: AtomicU64,
    metrics: Arc<Metrics>,
}

impl Busy {
    pub(super) fn new(calls_max: usize, metrics: Arc<Metrics>) -> Self {
        let free = Arc::new(Semaphore::new(calls_max.min(Semaphore::MAX_PERMITS)));
        Self { free, refused: AtomicU64::new(0), metrics }
    }

    /// Room for one call that changes something; to be asked once its body is read.
    pub(super) fn take(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.free.clone().try_acquire_owned().map_err(|_| {
            self.metrics.api.overloaded.increment(1);
            // Spread, so that they do not all come back together.
            let after_s = 1 + self.refused.fetch_add(1, Ordering::Relaxed) % RETRY_SPREAD_S;
            let detail = "more calls are in hand than the gateway takes at once";
            Problem { retry_after_s: Some(after_s), ..Problem::new(Code::Overloaded, detail) }
        })
    }
}

const RETRY_SPREAD_S: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::http::Retry;

    #[test]
    fn over_the_bound_a_call_is_refused_at_once_and_told_when_to_come_back() {
        let busy = Busy::new(2, Arc::new(Metrics::new()));
        let (first, _second) = (busy.take().unwrap(), busy.take().unwrap());
        let refusals: Vec<_> = (0..3).map(|_| busy.take().unwrap_err()).collect();
        assert!(refusals.iter().all(|problem| problem.code.row().status.as_u16() == 503));
        let times: Vec<_> = refusals.iter().map(Problem::retry).collect();
        assert_eq!(times, [Retry::AfterS(1), Retry::AfterS(2), Retry::AfterS(3)]);
        drop(first);
        assert!(busy.take().is_ok());
    }
}
