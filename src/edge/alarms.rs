//! Who is to look at its queues at a later time: one structure for all connections.
//!
//! A wheel of short ticks. A connection has one alarm at most, the earliest that it asked for;
//! the tick is in its nudge, so that who waits for hours stays where it is and is not woken
//! before. A lost alarm costs time, never a message: heartbeats look too.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::Edge;
use crate::{
    base::{ids::RegId, metrics::timing::Held},
    route::{Nudge, OneOf, Reasons, shrink},
    service::{
        accept::Opening,
        deliver::{Next, Pulled},
    },
};

/// One tick of the wheel.
const TICK: Duration = Duration::from_millis(100);
/// Ticks around the wheel.
const SLOTS: u32 = 1_024;
/// How long the task of an edge that has no alarms sleeps before it looks whether it is needed.
const REST: Duration = Duration::from_secs(60);

/// All alarms of a node.
pub(super) struct Alarms {
    slots: Box<[Mutex<HashSet<OneOf>>]>,
    count: AtomicUsize,
    is_first: Notify,
}

impl Default for Alarms {
    fn default() -> Self {
        let slots = (0..SLOTS).map(|_| Mutex::default()).collect();
        Self { slots, count: AtomicUsize::new(0), is_first: Notify::new() }
    }
}

impl Alarms {
    /// The connection is woken at this tick or before. Only its own task asks.
    fn put(&self, nudge: &Arc<Nudge>, tick: u32) {
        let before = nudge.alarm();
        if before != 0 && before <= tick {
            return;
        }
        self.remove(nudge);
        nudge.set_alarm(tick);
        self.slot(tick).insert(OneOf(nudge.clone()));
        if self.count.fetch_add(1, Ordering::AcqRel) == 0 {
            self.is_first.notify_one();
        }
    }

    /// The connection is over.
    pub(super) fn remove(&self, nudge: &Arc<Nudge>) {
        let tick = nudge.alarm();
        if tick == 0 {
            return;
        }
        let mut slot = self.slot(tick);
        if slot.remove(&OneOf(nudge.clone())) {
            nudge.set_alarm(0);
            shrink(&mut slot);
            drop(slot);
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A tick has come: wakes all whose alarm it is.
    fn ring(&self, now: u32) {
        let mut slot = self.slot(now);
        let before = slot.len();
        slot.retain(|one| {
            let is_due = one.0.alarm() <= now;
            if is_due {
                one.0.set_alarm(0);
                one.0.nudge(Reasons::ALL_QUEUES);
            }
            !is_due
        });
        let rung = before - slot.len();
        shrink(&mut slot);
        drop(slot);
        self.count.fetch_sub(rung, Ordering::AcqRel);
    }

    fn slot(&self, tick: u32) -> MutexGuard<'_, HashSet<OneOf>> {
        let slot = &self.slots[(tick % SLOTS) as usize];
        slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Edge {
    /// Whether a registration takes nothing now; then its connection is woken when it does.
    pub(super) fn is_held(&self, regid: &RegId, nudge: &Arc<Nudge>) -> bool {
        let held = &self.metrics.timing.held;
        match self.service.opening(regid) {
            Ok(Opening::Open) => false,
            Ok(Opening::Paused) => {
                held.of(Held::Paused).increment(1);
                true
            }
            Ok(Opening::At(unix_ms)) => {
                held.of(Held::Hours).increment(1);
                self.wake_at(unix_ms, nudge);
                true
            }
            // The look into the queues says what is wrong.
            Err(_) => false,
        }
    }

    /// What a look found; the connection is woken for what it does not see yet.
    pub(super) fn seen(&self, next: Next, nudge: &Arc<Nudge>) -> Option<Pulled> {
        match next {
            Next::Nothing => None,
            Next::NotBefore(unix_ms) => {
                self.metrics.timing.held.of(Held::Rate).increment(1);
                self.wake_at(unix_ms, nudge);
                None
            }
            Next::Pulled(pulled) => Some(pulled),
        }
    }

    /// The connection is woken soon after a time, in milliseconds since 1970.
    pub(super) fn wake_at(&self, unix_ms: u64, nudge: &Arc<Nudge>) {
        let ahead = Duration::from_millis(unix_ms.saturating_sub(self.service.now_ms()));
        let due = (self.started.elapsed() + ahead).as_millis() / TICK.as_millis() + 1;
        self.alarms.put(nudge, u32::try_from(due).unwrap_or(u32::MAX));
    }

    fn now_tick(&self) -> u32 {
        (self.started.elapsed().as_millis() / TICK.as_millis()) as u32
    }
}

/// Rings what is due while the edge is there.
pub(super) async fn run(edge: Weak<Edge>) {
    let mut done = None;
    loop {
        let Some(strong) = edge.upgrade() else { return };
        let alarms = strong.alarms.clone();
        let (now, started) = (strong.now_tick(), strong.started);
        drop(strong);
        // A late tick must not skip a slot; once around is all of them.
        let first = done.map_or(now, |done: u32| done + 1).max(now.saturating_sub(SLOTS - 1));
        (first..=now).for_each(|tick| alarms.ring(tick));
        done = Some(now);
        if alarms.count.load(Ordering::Acquire) > 0 {
            let next: Instant = started + TICK * (now + 1);
            sleep_until(next).await;
            continue;
        }
        tokio::select! {
            () = alarms.is_first.notified() => {}
            () = sleep(REST) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks_of(alarms: &Alarms, ticks: std::ops::Range<u32>, nudge: &Nudge) -> Vec<u32> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let rings = |tick: &u32| {
            alarms.ring(*tick);
            nudge.poll_reasons(&mut cx).is_ready()
        };
        ticks.filter(rings).collect()
    }

    #[test]
    fn a_connection_is_woken_once_at_the_earliest_time_that_it_asked_for() {
        let (alarms, nudge) = (Alarms::default(), Arc::new(Nudge::default()));
        alarms.put(&nudge, 900);
        alarms.put(&nudge, 70);
        alarms.put(&nudge, 500);
        assert_eq!(alarms.count.load(Ordering::Relaxed), 1);
        assert_eq!(ticks_of(&alarms, 1..5_000, &nudge), [70]);
        assert_eq!((alarms.count.load(Ordering::Relaxed), Arc::strong_count(&nudge)), (0, 1));
    }

    #[test]
    fn who_waits_for_many_rounds_is_not_woken_before_and_who_left_never() {
        let (alarms, nudge) = (Alarms::default(), Arc::new(Nudge::default()));
        alarms.put(&nudge, 10 * SLOTS + 3);
        assert_eq!(ticks_of(&alarms, 1..11 * SLOTS, &nudge), [10 * SLOTS + 3]);
        alarms.put(&nudge, 20 * SLOTS);
        alarms.remove(&nudge);
        assert_eq!((alarms.count.load(Ordering::Relaxed), Arc::strong_count(&nudge)), (0, 1));
    }
}
