//! Idle deadlines: one wheel for all connections, no timer for each.
//!
//! Every live connection sits in exactly one slot. When its second comes it is
//! nudged; it then looks at the clock itself and takes a new place. The wheel
//! knows no session and closes nothing.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use crate::route::{Nudge, OneOf, Reasons, shrink};

/// Seconds around the wheel. What is due later comes round once more.
const SLOTS: usize = 2_048;

type Slot = Mutex<HashSet<OneOf>>;

/// All deadlines of a node.
pub struct Wheel {
    slots: Box<[Slot]>,
}

/// A place on the wheel: where a connection must be looked for when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place(u16);

impl Default for Wheel {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| Slot::default()).collect() }
    }
}

impl Wheel {
    /// The connection is nudged soon after `due_s`.
    pub fn put(&self, nudge: &Arc<Nudge>, now_s: u64, due_s: u64) -> Place {
        let ahead = due_s.saturating_sub(now_s).clamp(1, SLOTS as u64 - 2);
        let slot = (now_s + ahead + 1) as usize % SLOTS;
        self.lock(slot).insert(OneOf(nudge.clone()));
        Place(slot as u16)
    }

    /// The connection is over.
    pub fn remove(&self, place: Place, nudge: &Arc<Nudge>) {
        let mut slot = self.lock(usize::from(place.0));
        slot.remove(&OneOf(nudge.clone()));
        shrink(&mut slot);
    }

    /// A second has come: wakes all whose deadline may have passed. Returns how many.
    pub fn turn(&self, now_s: u64) -> usize {
        let due = std::mem::take(&mut *self.lock(now_s as usize % SLOTS));
        due.iter().for_each(|one| one.0.nudge(Reasons::TICK));
        due.len()
    }

    /// Every connection that has a place now.
    pub fn all(&self) -> Vec<Arc<Nudge>> {
        let mut all = Vec::new();
        for slot in 0..SLOTS {
            all.extend(self.lock(slot).iter().map(|one| one.0.clone()));
        }
        all
    }

    fn lock(&self, slot: usize) -> std::sync::MutexGuard<'_, HashSet<OneOf>> {
        self.slots[slot].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_woken_once_and_not_before_its_second() {
        let (wheel, nudge) = (Wheel::default(), Arc::new(Nudge::default()));
        wheel.put(&nudge, 100, 130);
        let woken: Vec<u64> = (101..200).filter(|s| wheel.turn(*s) == 1).collect();
        assert_eq!(woken, [131]);
    }

    #[test]
    fn a_deadline_beyond_the_wheel_comes_round_early_and_may_be_put_again() {
        let (wheel, nudge) = (Wheel::default(), Arc::new(Nudge::default()));
        wheel.put(&nudge, 5, 1_000_000);
        let woken = (6..10_000).find(|s| wheel.turn(*s) == 1);
        assert_eq!(woken, Some(5 + SLOTS as u64 - 1));
    }

    #[test]
    fn who_left_is_not_woken() {
        let (wheel, nudge) = (Wheel::default(), Arc::new(Nudge::default()));
        let place = wheel.put(&nudge, 0, 10);
        wheel.remove(place, &nudge);
        assert_eq!((0..100).map(|s| wheel.turn(s)).sum::<usize>(), 0);
        assert_eq!(Arc::strong_count(&nudge), 1);
    }
}
