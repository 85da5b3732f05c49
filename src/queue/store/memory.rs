//! The store of tests: maps in memory, and a power cut on demand.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{Batch, Error, Range, Record, Space, Store};

type Map = BTreeMap<(Space, Vec<u8>), Bytes>;

/// A store that forgets, at a crash, all that was not synced.
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    visible: Map,
    unsynced: Vec<Batch>,
    durable: Map,
    is_failing: bool,
}

impl MemoryStore {
    /// What a power cut leaves: everything synced, and of the rest the first
    /// `kept` batches, as a disk that wrote some of its cache.
    pub fn crash(&self, kept: usize) {
        let mut state = self.state();
        let state = &mut *state;
        for batch in state.unsynced.drain(..).take(kept) {
            apply(&mut state.durable, &batch);
        }
        state.visible = state.durable.clone();
        state.is_failing = false;
    }

    /// How many batches a power cut could lose now.
    pub fn unsynced(&self) -> usize {
        self.state().unsynced.len()
    }

    /// From now on every write and sync fails.
    pub fn fail(&self) {
        self.state().is_failing = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apply(map: &mut Map, batch: &Batch) {
    for write in &batch.writes {
        let key = (write.space, write.key.to_vec());
        match &write.value {
            Some(value) => map.insert(key, value.clone()),
            None => map.remove(&key),
        };
    }
}

impl State {
    fn check(&self, step: &'static str) -> Result<(), Error> {
        if self.is_failing {
            return Err(Error::Engine { step, cause: "told to fail".into() });
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error> {
        Ok(self.state().visible.get(&(space, key.to_vec())).cloned())
    }

    fn scan(&self, space: Space, range: &Range, limit: usize) -> Result<Vec<Record>, Error> {
        let state = self.state();
        let records = state
            .visible
            .range((space, range.from.clone())..)
            .take_while(|((at, key), _)| {
                *at == space && range.to.as_ref().is_none_or(|to| key < to)
            })
            .take(limit)
            .map(|((_, key), value)| (Bytes::copy_from_slice(key), value.clone()))
            .collect();
        Ok(records)
    }

    fn write(&self, batch: &Batch) -> Result<(), Error> {
        let mut state = self.state();
        state.check("write")?;
        apply(&mut state.visible, batch);
        state.unsynced.push(batch.clone());
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        let mut state = self.state();
        state.check("sync")?;
        let state = &mut *state;
        for batch in state.unsynced.drain(..) {
            apply(&mut state.durable, &batch);
        }
        Ok(())
    }

    fn days(&self) -> Vec<u32> {
        let state = self.state();
        let mut days: Vec<u32> =
            state.visible.keys().filter_map(|(space, _)| space.day()).collect();
        days.sort_unstable();
        days.dedup();
        days
    }

    fn drop_day(&self, day: u32) -> Result<(), Error> {
        Space::of_day(day).into_iter().try_for_each(|space| self.drop_space(space))
    }

    fn drop_space(&self, space: Space) -> Result<(), Error> {
        let mut state = self.state();
        state.visible.retain(|(of, _), _| *of != space);
        state.durable.retain(|(of, _), _| *of != space);
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        self.state().durable.iter().map(|((_, key), value)| (key.len() + value.len()) as u64).sum()
    }
}
