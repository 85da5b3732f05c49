//! Room for handshakes. When there is none, the oldest gives way.
//!
//! A device completes its handshake in a few round trips; who holds a place for longer is
//! mostly somebody who says nothing. So a place is safe for [`SAFE`] only, once others
//! wait for it: silent sockets cannot hold all places until their deadline.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

/// The places of all handshakes.
pub(in crate::edge) struct Places {
    free: Arc<Semaphore>,
    max: usize,
    /// In the order of taking; places that were given back are still named for a while.
    taken: Mutex<VecDeque<Weak<Taken>>>,
}

struct Taken {
    at: Instant,
    evicted: Notify,
}

/// Room for one handshake, taken until it is dropped.
pub(in crate::edge) struct Place {
    taken: Arc<Taken>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(in crate::edge) fn new(max: usize) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(max)), max, taken: Mutex::default() }
    }

    /// A place, if one is free.
    pub(in crate::edge) fn take(&self) -> Option<Place> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(self.give(permit))
    }

    /// Waits for a place, which the oldest handshake gives up once it is old enough.
    /// Cancel-safe.
    pub(in crate::edge) async fn wait(&self) -> Place {
        loop {
            if let Some(place) = self.take() {
                return place;
            }
            let freed = timeout(self.evict(), self.free.clone().acquire_owned());
            if let Ok(Ok(permit)) = freed.await {
                return self.give(permit);
            }
        }
    }

    fn give(&self, permit: OwnedSemaphorePermit) -> Place {
        let taken = Arc::new(Taken { at: Instant::now(), evicted: Notify::new() });
        let mut queue = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= 2 * self.max + 16 {
            queue.retain(|taken| taken.strong_count() > 0);
        }
        queue.push_back(Arc::downgrade(&taken));
        Place { taken, _permit: permit }
    }

    /// Tells the oldest to give way if it is old enough. Returns how long to wait for a
    /// place before the next one may be told.
    fn evict(&self) -> Duration {
        let mut queue = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(oldest) = queue.pop_front() {
            let Some(taken) = oldest.upgrade() else { continue };
            let left = SAFE.saturating_sub(taken.at.elapsed());
            if !left.is_zero() {
                queue.push_front(oldest);
                return left;
            }
            taken.evicted.notify_one();
            break;
        }
        EVICTION
    }
}

impl Place {
    /// Whether it is needed for somebody else.
    pub(in crate::edge) fn patience(&self) -> Patience {
        Patience(self.taken.clone())
    }
}

/// How long a handshake may take when others wait.
pub(in crate::edge) struct Patience(Arc<Taken>);

impl Patience {
    /// Completes when the place is needed for somebody else. Cancel-safe.
    pub(in crate::edge) async fn over(&self) {
        self.0.evicted.notified().await;
    }
}

/// So long nobody has to give way. Longer than the handshakes of all places take together
/// when the processor is what they wait for: otherwise a storm would evict its own.
const SAFE: Duration = Duration::from_secs(2);
/// In which an evicted handshake must have gone.
const EVICTION: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_gives_way_and_not_before_its_time() {
        let places = Places::new(2);
        let (oldest, other) = (places.take().unwrap(), places.take().unwrap());
        assert!(places.take().is_none());
        let at = Instant::now();
        let leaves = async {
            oldest.patience().over().await;
            drop(oldest);
        };
        let (newest, ()) = tokio::join!(places.wait(), leaves);
        assert_eq!(at.elapsed(), SAFE);
        let patience = other.patience();
        let stays = timeout(EVICTION * 10, patience.over());
        assert!(stays.await.is_err(), "nobody waits any more");
        drop(newest);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_given_back_is_taken_at_once() {
        let places = Places::new(1);
        for _ in 0..1_000 {
            drop(places.wait().await);
        }
        assert!(places.taken.lock().unwrap().len() <= 2 + 16);
    }
}
