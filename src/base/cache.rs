//! A bounded map of what was read and is asked for again, never older than its source.
//!
//! Whoever changes the source calls [`Cache::forget`] once the change can be read, and before
//! anybody is told of it. A read that began before that may still hold the older value, so it
//! is kept only if nothing was forgotten beside it meanwhile.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use metrics::Counter;
use quick_cache::sync;

/// Keys share so many gates: a change beside a read only costs another read.
const GATES: usize = 64;

/// Values by key. Values are cheap to clone.
pub struct Cache<K, V> {
    kept: sync::Cache<K, V>,
    /// How often something was forgotten, for the keys of each gate.
    gates: [Mutex<u64>; GATES],
    hasher: RandomState,
    hits: Counter,
    misses: Counter,
}

impl<K: Clone + Eq + Hash, V: Clone> Cache<K, V> {
    /// An empty cache of at most `max` values that counts where it is told to.
    pub fn new(max: usize, hits: Counter, misses: Counter) -> Self {
        Self {
            kept: sync::Cache::new(max),
            gates: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            hits,
            misses,
        }
    }

    /// The value of a key: what is kept, or what `read` finds in the source. That there is
    /// none is not kept.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn get_or_read<E>(
        &self,
        key: &K,
        read: impl FnOnce() -> Result<Option<V>, E>,
    ) -> Result<Option<V>, E> {
        if let Some(kept) = self.kept.get(key) {
            self.hits.increment(1);
            return Ok(Some(kept));
        }
        self.misses.increment(1);
        let before = *self.gate(key);
        let found = read()?;
        if let Some(value) = &found {
            // Held while it is put in, so that a change comes before or after, not between.
            let gate = self.gate(key);
            if *gate == before {
                self.kept.insert(key.clone(), value.clone());
            }
        }
        Ok(found)
    }

    /// The value of a key if it is kept; counted as a hit then.
    pub fn peek(&self, key: &K) -> Option<V> {
        let kept = self.kept.get(key)?;
        self.hits.increment(1);
        Some(kept)
    }

    /// The source has changed for this key: who asks from now on reads it.
    pub fn forget(&self, key: &K) {
        let mut gate = self.gate(key);
        *gate += 1;
        self.kept.remove(key);
    }

    /// How many values are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    fn gate(&self, key: &K) -> MutexGuard<'_, u64> {
        let at = self.hasher.hash_one(key) as usize % GATES;
        self.gates[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> Cache<u32, u32> {
        Cache::new(100, Counter::noop(), Counter::noop())
    }

    fn read(cache: &Cache<u32, u32>, key: u32, source: Option<u32>) -> Option<u32> {
        cache.get_or_read(&key, || Ok::<_, ()>(source)).unwrap()
    }

    #[test]
    fn what_was_read_is_read_again_only_after_it_changed() {
        let cache = cache();
        assert_eq!(read(&cache, 1, Some(10)), Some(10));
        assert_eq!(read(&cache, 1, Some(11)), Some(10));
        cache.forget(&1);
        assert_eq!(read(&cache, 1, Some(11)), Some(11));
    }

    #[test]
    fn a_read_that_a_change_overtakes_is_not_kept() {
        let cache = cache();
        let late = cache.get_or_read(&1, || {
            // The source is read, then it changes, and only then the reader goes on.
            cache.forget(&1);
            Ok::<_, ()>(Some(10))
        });
        assert_eq!(late, Ok(Some(10)));
        assert_eq!(read(&cache, 1, Some(11)), Some(11));
    }

    #[test]
    fn what_is_not_there_is_asked_for_again() {
        let cache = cache();
        assert_eq!(read(&cache, 1, None), None);
        assert_eq!(read(&cache, 1, Some(11)), Some(11));
    }

    #[test]
    fn it_holds_no_more_than_it_may() {
        let cache = cache();
        for key in 0..10_000 {
            assert_eq!(read(&cache, key, Some(key)), Some(key));
        }
        assert!(!cache.is_empty() && cache.len() <= 200, "{}", cache.len());
    }
}
