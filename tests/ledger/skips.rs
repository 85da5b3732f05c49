//! What need not arrive, or must not: messages that are taken back, and messages in whose place a newer one came.

use std::{collections::HashMap, time::Duration};

use super::{
    Delivery,
    check::{Messages, Places},
    report::{Rule, Violation},
};

/// What befell a message.
#[derive(Default)]
pub(super) struct Fate {
    /// A recall was begun.
    pub(super) is_recalling: bool,
    /// A recall was answered.
    recalled: Option<Duration>,
    /// The next one with its collapse key.
    newer: Option<u64>,
}

/// Follows what was taken back or superseded.
#[derive(Default)]
pub(super) struct Skips {
    fates: HashMap<u64, Fate>,
    /// Who was told of which recall, by the message's id.
    told: HashMap<(usize, String), Duration>,
    /// Deliveries that were wrong if a newer message stood behind them in the queue.
    doubtful: Vec<Doubt>,
}

struct Doubt {
    at: Duration,
    delivery: Delivery,
    /// When its connection began.
    since: Duration,
}

/// Why a message has not arrived, though it was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excuse {
    Recalled,
    Superseded,
}

impl Skips {
    pub(super) fn recalling(&mut self, message: u64) {
        self.fates.entry(message).or_default().is_recalling = true;
    }

    pub(super) fn recalled(&mut self, at: Duration, message: u64) {
        self.fates.entry(message).or_default().recalled = Some(at);
    }

    pub(super) fn supersedes(&mut self, message: u64, earlier: u64) {
        self.fates.entry(earlier).or_default().newer = Some(message);
    }

    pub(super) fn told(&mut self, at: Duration, device: usize, id: &str) {
        self.told.entry((device, id.to_owned())).or_insert(at);
    }

    /// Whether a message may be left out.
    pub(super) fn may_skip(&self, message: u64) -> bool {
        self.fates.get(&message).is_some_and(|fate| fate.is_recalling || fate.newer.is_some())
    }

    /// A delivery on a connection that began at `since`. A copy that was given before the connection began may come
    /// again within its MQTT session; it says so.
    pub(super) fn delivered(
        &mut self,
        at: Duration,
        since: Duration,
        delivery: &Delivery,
    ) -> Option<Violation> {
        let fate = self.fates.get(&delivery.message)?;
        if delivery.dup {
            return None;
        }
        if fate.newer.is_some() {
            self.doubtful.push(Doubt { at, delivery: delivery.clone(), since });
        }
        let recalled = fate.recalled.filter(|recalled| *recalled < since)?;
        let Delivery { device, queue, message, .. } = delivery;
        let text = format!(
            "message {message} of {queue:?}, recalled at {recalled:?}, came to device {device}, \
             connected at {since:?}"
        );
        Some(Violation { rule: Rule::TakenBack, at, text })
    }

    /// Superseded messages that came to devices which connected when the newer ones were there.
    pub(super) fn late(&self, messages: &Messages, places: &Places) -> Vec<Violation> {
        let mut late = Vec::new();
        for Doubt { at, delivery, since } in &self.doubtful {
            let Delivery { device, queue, position, message, .. } = *delivery;
            let is_there = |newer: &u64| {
                let accepted = messages.get(newer).and_then(|newer| newer.accepted);
                let place = places.get(&(queue, *newer));
                accepted.is_some_and(|accepted| accepted < *since)
                    && place.is_some_and(|place| *place > position)
            };
            if let Some(newer) = self.newer_than(message).find(is_there) {
                let text = format!(
                    "message {message} of {queue:?} came to device {device}, connected at \
                     {since:?}, when {newer} was there"
                );
                late.push(Violation { rule: Rule::Superseded, at: *at, text });
            }
        }
        late
    }

    /// Why a device need not have an accepted message, given what else it has of its queue.
    pub(super) fn excuse(&self, message: u64, has: impl Fn(u64) -> bool) -> Option<Excuse> {
        let is_recalling =
            |message: u64| self.fates.get(&message).is_some_and(|fate| fate.is_recalling);
        if is_recalling(message) {
            return Some(Excuse::Recalled);
        }
        // The newest one must be there itself, unless it was taken back.
        let mut newer = self.newer_than(message);
        newer.any(|newer| has(newer) || is_recalling(newer)).then_some(Excuse::Superseded)
    }

    /// Whether a device that has a message must know that it was taken back: this was answered before `until`.
    pub(super) fn is_untold(&self, device: usize, message: u64, id: &str, until: Duration) -> bool {
        let recalled = self.fates.get(&message).and_then(|fate| fate.recalled);
        recalled.is_some_and(|recalled| recalled < until)
            && !self.told.contains_key(&(device, id.to_owned()))
    }

    /// How many recalls were answered.
    pub(super) fn recalls(&self) -> usize {
        self.fates.values().filter(|fate| fate.recalled.is_some()).count()
    }

    fn newer_than(&self, message: u64) -> impl Iterator<Item = u64> {
        let next = |message: &u64| self.fates.get(message).and_then(|fate| fate.newer);
        std::iter::successors(next(&message), next)
    }
}
