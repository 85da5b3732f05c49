//! Which ranges of a collection are compared with the gateway next. Pure: whoever calls brings what is held.
//!
//! One repair at a time. What deltas changed after a range was stated is left as they made it: the answer may be older.

use std::collections::{BTreeMap, BTreeSet};

use carillon_wire::ranges::{Bounds, ITEMS_MAX, KeyRange, STATED_MAX};

/// Why a repair runs. Of two reasons for one collection the later one here is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The app's handler failed on the items.
    Refresh,
    /// A digest differs.
    Digest,
    /// The app wants to be sure.
    Compare,
    /// The app wants all items again, also those that seem to be the same.
    Fetch,
}

impl Purpose {
    /// Only what differs comes.
    pub fn states_what_is_held(self) -> bool {
        matches!(self, Self::Digest | Self::Compare)
    }

    /// The app is told when it ends.
    pub fn is_asked_for(self) -> bool {
        matches!(self, Self::Compare | Self::Fetch)
    }

    /// Of others the next digest finds the rest.
    fn rounds_max(self) -> u32 {
        match self {
            Self::Fetch | Self::Compare => ASKED_ROUNDS_MAX,
            Self::Refresh | Self::Digest => ROUNDS_MAX,
        }
    }
}

/// Collections that differ, and the repair that runs.
#[derive(Debug, Default)]
pub struct Repairs {
    needed: BTreeMap<(i64, String), Purpose>,
    running: Option<Repair>,
}

/// A repair of one collection.
#[derive(Clone, Debug)]
pub struct Repair {
    pub shelf: i64,
    pub collection: String,
    pub purpose: Purpose,
    /// Keys that the app's handler failed on.
    pub refreshed: Vec<String>,
    /// To be stated.
    left: Vec<Bounds>,
    /// Stated and not answered: without an answer it is stated again.
    stated: Vec<Bounds>,
    /// Changed since the last statement.
    touched: BTreeSet<String>,
    rounds: u32,
    /// How often the whole may still be stated again, to see that all is equal. Under writes the gateway is always
    /// ahead: then there is no end to it.
    confirmations_left: u32,
    /// An answer had items since the whole was last stated.
    has_changed: bool,
    /// A bound ended it: something may differ still.
    pub is_cut: bool,
}

impl Repairs {
    /// A collection is to be repaired.
    pub fn need(&mut self, shelf: i64, collection: &str, purpose: Purpose) {
        // What the app asks for it is told the end of.
        if self.needed.len() < NEEDED_MAX || purpose.is_asked_for() {
            let needed = self.needed.entry((shelf, collection.to_owned())).or_insert(purpose);
            *needed = purpose.max(*needed);
        }
    }

    /// A delta changed an item.
    pub fn touch(&mut self, shelf: i64, collection: &str, key: &str) {
        if let Some(running) = &mut self.running
            && (running.shelf, running.collection.as_str()) == (shelf, collection)
        {
            running.touched.insert(key.to_owned());
        }
    }

    /// Nothing is held of a shelf any more.
    pub fn forget(&mut self, shelf: i64) {
        self.needed.retain(|(needed, _), _| *needed != shelf);
        if self.running.as_ref().is_some_and(|running| running.shelf == shelf) {
            self.running = None;
        }
    }

    /// The repair that goes on, or one that begins if any is needed: only of shelves that are ready for it.
    pub fn next(&mut self, is_ready: impl Fn(i64) -> bool) -> Option<&mut Repair> {
        if let Some(running) = self.running.as_ref().filter(|running| !is_ready(running.shelf)) {
            self.interrupt(running.shelf);
        }
        if self.running.is_none() {
            let needed = self.needed.keys().find(|(shelf, _)| is_ready(*shelf))?.clone();
            let ((shelf, collection), purpose) = self.needed.remove_entry(&needed)?;
            let everything = vec![Bounds::everything()];
            self.running = Some(Repair::new(shelf, collection, purpose, everything));
        }
        self.running.as_mut()
    }

    /// The items of a shelf become others altogether: an answer that is on its way is of no use any more, and the repair
    /// begins again. What the app's handler failed on is marked in the items.
    pub fn interrupt(&mut self, shelf: i64) {
        if let Some(stopped) = self.running.take_if(|running| running.shelf == shelf)
            && stopped.purpose != Purpose::Refresh
        {
            self.need(stopped.shelf, &stopped.collection, stopped.purpose);
        }
    }

    /// Begins to fetch items that the app's handler failed on, at most [`RANGES_MAX`].
    pub fn refresh(&mut self, shelf: i64, collection: &str, keys: Vec<String>) {
        let bounds = keys.iter().map(|key| Bounds::one(key)).collect();
        let mut repair = Repair::new(shelf, collection.to_owned(), Purpose::Refresh, bounds);
        repair.refreshed = keys;
        self.running = Some(repair);
    }

    /// Whether a repair runs.
    pub fn running(&self) -> Option<&Repair> {
        self.running.as_ref()
    }

    /// Ranges that differ are to be stated next, those of one answer. The repair, if that was the end of it.
    pub fn answered(&mut self, differing: Vec<Bounds>, has_changed: bool) -> Option<Repair> {
        let running = self.running.as_mut()?;
        running.stated.clear();
        running.rounds += 1;
        running.has_changed |= has_changed;
        running.left.extend(differing);
        let may_go_on = running.rounds < running.purpose.rounds_max();
        let is_to_be_confirmed =
            running.left.is_empty() && running.purpose.states_what_is_held() && running.has_changed;
        if running.left.is_empty() && !is_to_be_confirmed {
            return self.running.take();
        }
        if !may_go_on || is_to_be_confirmed && running.confirmations_left == 0 {
            running.is_cut = true;
            return self.running.take();
        }
        if is_to_be_confirmed {
            running.has_changed = false;
            running.confirmations_left -= 1;
            running.left.push(Bounds::everything());
        }
        None
    }

    /// The gateway does not help: the repair ends.
    pub fn give_up(&mut self) -> Option<Repair> {
        self.running.take()
    }
}

impl Repair {
    fn new(shelf: i64, collection: String, purpose: Purpose, left: Vec<Bounds>) -> Self {
        Self {
            shelf,
            collection,
            purpose,
            refreshed: Vec::new(),
            left,
            stated: Vec::new(),
            touched: BTreeSet::new(),
            rounds: 0,
            confirmations_left: CONFIRMATIONS_MAX,
            has_changed: false,
            is_cut: false,
        }
    }

    /// What to state next; `held` gives what is here.
    pub fn state<E>(
        &mut self,
        mut held: impl FnMut(&Bounds) -> Result<Vec<(String, u64)>, E>,
    ) -> Result<Vec<KeyRange>, E> {
        if self.stated.is_empty() {
            self.left.sort_by(|one, other| one.first.cmp(&other.first));
            let count = self.left.len().min(RANGES_MAX);
            self.stated = self.left.drain(..count).collect();
        }
        // The handler has had what a delta brought.
        self.refreshed.retain(|key| !self.touched.contains(key));
        self.touched.clear();
        let mut ranges = Vec::new();
        for bounds in self.stated.iter().cloned() {
            if !self.purpose.states_what_is_held() {
                ranges.push(KeyRange::unlike_any(bounds));
                continue;
            }
            let is_whole = bounds == Bounds::everything();
            let items = held(&bounds)?;
            let listed = || items.iter().map(|(key, seq)| (key, *seq));
            let range = KeyRange::of(&self.collection, bounds, listed());
            // One exchange less: a whole collection has many ranges in any case, unless it is only confirmed.
            match is_whole && self.rounds == 0 && range.items > ITEMS_MAX {
                true => ranges.extend(range.split(&self.collection, listed())),
                false => ranges.push(range),
            }
        }
        Ok(ranges)
    }

    /// Whether the answer may say something about an item.
    pub fn is_open(&self, key: &str) -> bool {
        !self.touched.contains(key)
    }
}

/// Collections that wait for their repair; the next digest finds more.
const NEEDED_MAX: usize = 1024;
/// Ranges of one statement.
pub const RANGES_MAX: usize = STATED_MAX;
/// See [`Repair`].
const CONFIRMATIONS_MAX: u32 = 2;
/// Exchanges of one repair.
const ROUNDS_MAX: u32 = 64;
/// The same where the app waits for the end, and all items may come, a frame of them at a time.
const ASKED_ROUNDS_MAX: u32 = 1 << 16;
