//! What the endpoint of a callback must be told, and what it may be told besides.
//!
//! A message that asks, asks for every kind of event. What is neither owed nor possible of a message that is known
//! is told wrongly. Of a message whose answer was lost nobody knows the id: nothing is said of it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Every kind.
pub const KINDS: [&str; 4] = ["acked", "clicked", "expired", "invalid"];

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Ids of the messages that ask.
    asking: BTreeSet<String>,
    /// Their ids by the senders' numbers.
    ids: HashMap<u64, String>,
    owed: BTreeSet<String>,
    possible: BTreeSet<String>,
}

impl Events {
    /// Whether the message with this number asks, if it is to regIDs.
    pub fn asks(message: u64) -> bool {
        message.is_multiple_of(3)
    }

    /// A message that asks was accepted.
    pub fn accepted(&self, message: Option<u64>, id: &str) {
        let mut state = self.state();
        state.asking.insert(id.to_owned());
        state.ids.extend(message.map(|message| (message, id.to_owned())));
    }

    /// This must be told.
    pub fn owe(&self, kind: &str, id: &str, regid: &str) {
        self.state().owed.insert(name(kind, id, regid));
    }

    /// This may be told.
    pub fn allow(&self, kind: &str, id: &str, regid: &str) {
        self.state().possible.insert(name(kind, id, regid));
    }

    /// A message need not arrive any more, so that nobody need acknowledge it.
    pub fn excuse(&self, message: u64) {
        let mut state = self.state();
        let Some(id) = state.ids.get(&message) else { return };
        let acked = name("acked", id, "");
        let excused: Vec<String> = state
            .owed
            .range(acked.clone()..)
            .take_while(|e| e.starts_with(&acked))
            .cloned()
            .collect();
        for event in excused {
            state.owed.remove(&event);
            state.possible.insert(event);
        }
    }

    /// Ids of the events that must be told.
    pub fn owed(&self) -> BTreeSet<String> {
        self.state().owed.clone()
    }

    /// Holds what was told against what could be told. Gives how many events of each kind are owed.
    #[track_caller]
    pub fn judge(&self, told: &BTreeSet<String>) -> [(&'static str, usize); 4] {
        let state = self.state();
        let missing: Vec<_> = state.owed.difference(told).collect();
        assert!(missing.is_empty(), "{} events are missing: {missing:?}", missing.len());
        let is_wrong = |event: &&String| {
            let message = event.split('.').nth(1).unwrap_or_default();
            let is_known = state.owed.contains(*event) || state.possible.contains(*event);
            state.asking.contains(message) && !is_known
        };
        let wrong: Vec<_> = told.iter().filter(is_wrong).collect();
        assert!(wrong.is_empty(), "{} events are wrong: {wrong:?}", wrong.len());
        KINDS.map(|kind| {
            let is_it = |event: &&String| event.starts_with(kind);
            (kind, state.owed.iter().filter(is_it).count())
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(kind: &str, id: &str, regid: &str) -> String {
    format!("{kind}.{id}.{regid}")
}
