//! Shared maps that give back what a crowd left.

use std::hash::{BuildHasher, Hash};

use dashmap::DashMap;
use foldhash::fast::RandomState;

/// A map of one owner whose keys are ids. Its hash is fast, and seeded so that nobody can
/// prepare keys that collide.
pub type Owned<K, V> = std::collections::HashMap<K, V, RandomState>;
/// The same, shared between tasks.
pub type Shared<K, V> = DashMap<K, V, RandomState>;

/// Gives back the room of a map that could hold four times as much as it does; a small one
/// stays. Entries are moved, a shard at a time: for once in a while.
pub fn shrink<K: Eq + Hash, V, S: BuildHasher + Clone>(map: &DashMap<K, V, S>) {
    if map.capacity() > SMALL && map.len() < map.capacity() / 4 {
        map.shrink_to_fit();
    }
}

/// Entries that are not worth the work.
const SMALL: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crowd_left_is_given_back() {
        let map: DashMap<u32, u32> = (0..20_000).map(|key| (key, key)).collect();
        let full = map.capacity();
        let third = u32::try_from(full / 3).unwrap();
        map.retain(|key, _| *key < third);
        shrink(&map);
        // What was removed among others counts as taken until the next growth.
        assert!(map.capacity() > full / 2, "a crowd of a third may grow again");
        map.retain(|key, _| *key < 100);
        shrink(&map);
        assert!(map.capacity() < full / 8, "{} of {full}", map.capacity());
        assert!((0..100).all(|key| map.get(&key).is_some_and(|value| *value == key)));
    }
}
