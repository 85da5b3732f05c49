//! In which order the followers of queues that grew are woken, and how many at a time.
//!
//! Whoever follows a queue alone is woken at once. A crowd is woken in portions: as those who
//! were woken take up their work, the next are. So a message to one device never waits behind
//! the tasks of a whole broadcast. Of the crowds that wait, the most urgent goes first, and
//! those of one lane take turns.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{Nudge, Reasons};
use crate::{
    base::{
        ids::QueueId,
        metrics::{Metrics, engine::Lane},
    },
    queue::entry::Priority,
};

/// Woken and not yet at work, at most.
const WOKEN_MAX: usize = 64;
/// From so many on the next portion is woken.
const WOKEN_LOW: usize = 32;
/// Woken of one crowd before the next of its lane has its turn.
const TURN: usize = 32;

/// The crowds that wait.
pub(super) struct Lanes {
    waiting: Mutex<Waiting>,
    /// Followers who were woken by a portion and have not taken up their work.
    woken: AtomicUsize,
    /// Who took up work since the last look.
    served: AtomicUsize,
    /// Crowds that wait: read without the lock.
    crowds: AtomicUsize,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Waiting {
    /// By [`Priority`].
    lanes: [VecDeque<Crowd>; 3],
    /// Followers in each.
    depths: [usize; 3],
}

/// Those who are still to be woken because a queue grew.
struct Crowd {
    queue: QueueId,
    reasons: Reasons,
    nudges: Vec<Arc<Nudge>>,
    /// Some of them were woken already.
    is_begun: bool,
}

impl Lanes {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            waiting: Mutex::default(),
            woken: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
            crowds: AtomicUsize::new(0),
            metrics,
        }
    }

    /// A queue grew that these follow. `nudges` is not asked if they wait already.
    pub(super) fn add(
        &self,
        queue: &QueueId,
        priority: Priority,
        nudges: impl FnOnce() -> Vec<Arc<Nudge>>,
    ) {
        let at = priority as usize;
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let is_same = |crowd: &Crowd| crowd.queue == *queue && !crowd.is_begun;
            if waiting.lanes[at].iter().any(is_same) {
                return;
            }
            let reasons = match priority {
                Priority::High => Reasons(Reasons::new_in(queue).0 | Reasons::URGENT.0),
                Priority::Normal | Priority::Low => Reasons::new_in(queue),
            };
            let nudges = nudges();
            if nudges.is_empty() {
                return;
            }
            let crowd = Crowd { queue: *queue, reasons, nudges, is_begun: false };
            waiting.depths[at] += crowd.nudges.len();
            waiting.lanes[at].push_back(crowd);
            self.crowds.fetch_add(1, Ordering::AcqRel);
            self.show(&waiting);
        }
        self.wake();
    }

    /// One who was woken by a portion takes up its work, or is gone.
    pub(super) fn served(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
        let less = |woken: usize| Some(woken.saturating_sub(1));
        let before = self.woken.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if before.is_ok_and(|before| before <= WOKEN_LOW + 1)
            && self.crowds.load(Ordering::Acquire) > 0
        {
            self.wake();
        }
    }

    /// Once a second: goes on where nobody took up work although somebody was woken. No
    /// message depends on how well the others count.
    pub(super) fn look(&self) {
        if self.served.swap(0, Ordering::Relaxed) == 0 && self.crowds.load(Ordering::Acquire) > 0 {
            self.woken.store(0, Ordering::Release);
            self.wake();
        }
    }

    /// Wakes as many as there is room for. Who finds somebody at it leaves it to them: they
    /// look again when they are done.
    fn wake(&self) {
        while self.woken.load(Ordering::Acquire) <= WOKEN_LOW {
            let Ok(mut waiting) = self.waiting.try_lock() else { return };
            while self.woken.load(Ordering::Acquire) < WOKEN_MAX
                && let Some(at) = waiting.lanes.iter().position(|lane| !lane.is_empty())
            {
                self.wake_some(&mut waiting, at);
            }
            self.show(&waiting);
            drop(waiting);
            if self.crowds.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }

    /// The first crowd of a lane has its turn.
    fn wake_some(&self, waiting: &mut Waiting, at: usize) {
        let Some(mut crowd) = waiting.lanes[at].pop_front() else { return };
        crowd.is_begun = true;
        let some = crowd.nudges.len().saturating_sub(TURN);
        let turn = crowd.nudges.drain(some..);
        waiting.depths[at] -= turn.len();
        // Counted first: they may be at work before this is done.
        self.woken.fetch_add(turn.len(), Ordering::AcqRel);
        let idle = turn.filter(|nudge| !nudge.nudge_paced(crowd.reasons)).count();
        let less = |woken: usize| Some(woken.saturating_sub(idle));
        let _ = self.woken.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if crowd.nudges.is_empty() {
            self.crowds.fetch_sub(1, Ordering::AcqRel);
        } else {
            waiting.lanes[at].push_back(crowd);
        }
    }

    fn show(&self, waiting: &Waiting) {
        for (lane, depth) in [Lane::High, Lane::Normal, Lane::Low].into_iter().zip(waiting.depths) {
            self.metrics.engine.lane_followers.of(lane).set(depth as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: QueueId = QueueId([1; 20]);
    const OTHER: QueueId = QueueId([2; 20]);

    fn crowd(count: usize) -> Vec<Arc<Nudge>> {
        (0..count).map(|_| Arc::default()).collect()
    }

    fn lanes() -> Lanes {
        Lanes::new(Arc::new(Metrics::new()))
    }

    /// Those who were woken take up their work; how many they were.
    fn serve(lanes: &Lanes, nudges: &[Arc<Nudge>]) -> usize {
        let woken: Vec<_> = nudges.iter().filter(|nudge| nudge.take().0 != 0).collect();
        woken.iter().for_each(|_| lanes.served());
        woken.len()
    }

    #[test]
    fn a_crowd_is_woken_in_portions_and_to_the_last() {
        let (lanes, all) = (lanes(), crowd(10_000));
        lanes.add(&TOPIC, Priority::Low, || all.clone());
        let (mut served, mut turns) = (0, 0);
        while served < all.len() {
            let now = serve(&lanes, &all);
            assert!((1..=WOKEN_MAX).contains(&now), "{now} at once after {served}");
            (served, turns) = (served + now, turns + 1);
        }
        assert!(turns >= all.len() / WOKEN_MAX);
        assert_eq!(serve(&lanes, &all), 0);
        assert_eq!(lanes.crowds.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn the_urgent_goes_before_a_crowd_that_has_begun() {
        let (lanes, low, high) = (lanes(), crowd(5_000), crowd(300));
        lanes.add(&TOPIC, Priority::Low, || low.clone());
        lanes.add(&OTHER, Priority::High, || high.clone());
        serve(&lanes, &low);
        let mut urgent = 0;
        while urgent < high.len() {
            let now = serve(&lanes, &high);
            assert!(now > 0, "{urgent} of {}", high.len());
            urgent += now;
            assert!(serve(&lanes, &low) <= WOKEN_MAX);
        }
    }

    #[test]
    fn crowds_of_one_lane_take_turns() {
        let (lanes, large, small) = (lanes(), crowd(50_000), crowd(100));
        lanes.add(&TOPIC, Priority::Low, || large.clone());
        lanes.add(&OTHER, Priority::Low, || small.clone());
        let mut served = 0;
        for _ in 0..5 {
            serve(&lanes, &large);
            served += serve(&lanes, &small);
        }
        assert_eq!(served, small.len());
    }

    #[test]
    fn who_grows_twice_before_it_begins_is_woken_once_and_afterwards_again() {
        let (lanes, first, all) = (lanes(), crowd(WOKEN_MAX), crowd(200));
        lanes.add(&OTHER, Priority::Low, || first.clone());
        lanes.add(&TOPIC, Priority::Low, || all.clone());
        lanes.add(&TOPIC, Priority::Low, || unreachable!("they wait already"));
        serve(&lanes, &first);
        assert!(serve(&lanes, &all) > 0);
        lanes.add(&TOPIC, Priority::Low, || all.clone());
        let again: usize = std::iter::repeat_with(|| serve(&lanes, &all)).take(9).sum();
        assert!(again >= all.len(), "{again}");
    }

    #[test]
    fn those_who_left_or_hang_stop_nobody() {
        let (lanes, all) = (lanes(), crowd(3_000));
        // A third leaves before it is woken, a third while it is, a third never works.
        for nudge in &all[..1_000] {
            assert_eq!(nudge.leave(), Reasons(0));
        }
        lanes.add(&TOPIC, Priority::Low, || all.clone());
        for _ in 0..3_000 / WOKEN_LOW + 1 {
            for nudge in &all[1_000..2_000] {
                if nudge.leave().has(Reasons::PACED) {
                    lanes.served();
                }
            }
            lanes.look();
        }
        assert_eq!(lanes.crowds.load(Ordering::SeqCst), 0);
        assert!(all[2_000..].iter().all(|nudge| nudge.take().has(Reasons::DELIVER)));
    }
}
