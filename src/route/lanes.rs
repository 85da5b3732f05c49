//! In which order the followers of queues that grew are woken, and how many at a time.
//!
//! Whoever follows a queue alone is woken at once. A crowd is woken in portions: as those who
//! were woken take up their work, the next are. So a message to one device never waits behind
//! the tasks of a whole broadcast. Of the crowds that wait, the most urgent goes first, and
//! those of one lane take turns. However often a queue grows, a lane holds its followers once: if
//! it grows while they are being woken, they are asked for anew behind that.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

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

/// In the order of the lanes.
const PRIORITIES: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

/// The crowds that wait.
pub(super) struct Lanes {
    waiting: Mutex<Waiting>,
    /// Followers who were woken by a portion and have not taken up their work.
    woken: AtomicUsize,
    /// Who took up work since the last look.
    served: AtomicUsize,
    /// Crowds that wait: read without the lock.
    crowds: AtomicUsize,
    /// Queues that grew and whose followers are to be added.
    grown: Mutex<Vec<(QueueId, Priority)>>,
    has_grown: Notify,
    metrics: Arc<Metrics>,
}

/// By [`Priority`].
#[derive(Default)]
struct Waiting([Line; 3]);

/// The crowds of one lane.
#[derive(Default)]
struct Line {
    /// Whose turn it is.
    turns: VecDeque<QueueId>,
    /// One for each of them.
    crowds: HashMap<QueueId, Crowd>,
    /// Followers in all of them.
    depth: usize,
}

/// Those who are still to be woken because a queue grew.
struct Crowd {
    reasons: Reasons,
    nudges: Vec<Arc<Nudge>>,
    /// Some of them were woken already.
    is_begun: bool,
    /// The queue has grown since.
    is_again: bool,
}

impl Lanes {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            waiting: Mutex::default(),
            woken: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
            crowds: AtomicUsize::new(0),
            grown: Mutex::default(),
            has_grown: Notify::new(),
            metrics,
        }
    }

    /// A queue grew that a crowd may follow: [`Lanes::grown`] gives it, each priority once.
    pub(super) fn grew(&self, queue: &QueueId, priority: Priority) {
        let mut grown = self.grown.lock().unwrap_or_else(PoisonError::into_inner);
        if !grown.contains(&(*queue, priority)) {
            grown.push((*queue, priority));
        }
        self.has_grown.notify_one();
    }

    /// Waits for queues that grew. Their followers are to be added.
    pub(super) async fn grown(&self) -> Vec<(QueueId, Priority)> {
        self.has_grown.notified().await;
        std::mem::take(&mut *self.grown.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A queue grew that these follow. `nudges` is not asked if they wait already.
    pub(super) fn add(
        &self,
        queue: &QueueId,
        priority: Priority,
        nudges: impl FnOnce() -> Vec<Arc<Nudge>>,
    ) {
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let Line { turns, crowds, depth } = &mut waiting.0[priority as usize];
            if let Some(crowd) = crowds.get_mut(queue) {
                crowd.is_again = crowd.is_begun;
                return self.metrics.engine.lane_joins.increment(1);
            }
            let nudges = nudges();
            if nudges.is_empty() {
                return;
            }
            let reasons = Reasons::new_in(queue, priority);
            *depth += nudges.len();
            crowds.insert(*queue, Crowd { reasons, nudges, is_begun: false, is_again: false });
            turns.push_back(*queue);
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
                && let Some(at) = waiting.0.iter().position(|line| !line.turns.is_empty())
            {
                self.wake_some(&mut waiting.0[at], PRIORITIES[at]);
            }
            self.show(&waiting);
            drop(waiting);
            if self.crowds.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }

    /// The first crowd of a lane has its turn.
    fn wake_some(&self, line: &mut Line, priority: Priority) {
        let Some(queue) = line.turns.pop_front() else { return };
        let Some(crowd) = line.crowds.get_mut(&queue) else { return };
        crowd.is_begun = true;
        let some = crowd.nudges.len().saturating_sub(TURN);
        let turn = crowd.nudges.drain(some..);
        line.depth -= turn.len();
        // Counted first: they may be at work before this is done.
        self.woken.fetch_add(turn.len(), Ordering::AcqRel);
        let idle = turn.filter(|nudge| !nudge.nudge_paced(crowd.reasons)).count();
        let less = |woken: usize| Some(woken.saturating_sub(idle));
        let _ = self.woken.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if !crowd.nudges.is_empty() {
            return line.turns.push_back(queue);
        }
        if crowd.is_again {
            self.grew(&queue, priority);
        }
        line.crowds.remove(&queue);
        self.crowds.fetch_sub(1, Ordering::AcqRel);
    }

    fn show(&self, waiting: &Waiting) {
        let lanes = [Lane::High, Lane::Normal, Lane::Low];
        for (lane, line) in lanes.into_iter().zip(&waiting.0) {
            self.metrics.engine.lane_followers.of(lane).set(line.depth as f64);
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

    /// Queues whose followers are to be asked for anew.
    fn grown(lanes: &Lanes) -> Vec<(QueueId, Priority)> {
        std::mem::take(&mut *lanes.grown.lock().unwrap())
    }

    #[test]
    fn who_grows_twice_before_it_begins_is_woken_once_and_afterwards_again() {
        let (lanes, first, all) = (lanes(), crowd(WOKEN_MAX), crowd(200));
        lanes.add(&OTHER, Priority::Low, || first.clone());
        lanes.add(&TOPIC, Priority::Low, || all.clone());
        lanes.add(&TOPIC, Priority::Low, || unreachable!("they wait already"));
        serve(&lanes, &first);
        let mut served = serve(&lanes, &all);
        assert!(served > 0);
        lanes.add(&TOPIC, Priority::Low, || unreachable!("they are asked for later"));
        assert_eq!(grown(&lanes), []);
        while served < all.len() {
            served += serve(&lanes, &all);
        }
        assert_eq!((served, grown(&lanes)), (all.len(), vec![(TOPIC, Priority::Low)]));
        lanes.add(&TOPIC, Priority::Low, || all.clone());
        let again: usize = std::iter::repeat_with(|| serve(&lanes, &all)).take(9).sum();
        assert_eq!((again, grown(&lanes)), (all.len(), vec![]));
    }

    #[test]
    fn a_queue_that_keeps_growing_is_held_once_and_leaves_the_others_their_turns() {
        let (lanes, all, small) = (lanes(), crowd(2_000), crowd(40));
        let depth = || lanes.waiting.lock().unwrap().0[Priority::Low as usize].depth;
        lanes.add(&TOPIC, Priority::Low, || all.clone());
        for round in 0..500 {
            lanes.add(&TOPIC, Priority::Low, || all.clone());
            assert!(depth() <= all.len(), "{} after {round}", depth());
            serve(&lanes, &all);
        }
        lanes.add(&OTHER, Priority::Low, || small.clone());
        let mut served = 0;
        for _ in 0..4 {
            serve(&lanes, &all);
            served += serve(&lanes, &small);
        }
        assert_eq!(served, small.len());
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
