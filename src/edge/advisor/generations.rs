//! A bounded map that forgets what was not used for long: two generations, the older one dropped as a whole.

use std::collections::HashMap;

/// At most twice `half` values.
#[derive(Debug)]
pub struct Generations<V> {
    young: HashMap<u64, V>,
    old: HashMap<u64, V>,
    half: usize,
}

impl<V> Generations<V> {
    /// Room for `max` values, at least 2. What was used among the last half of that many is always there.
    pub fn new(max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (max / 2).max(1) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// A value, which thereby was used.
    pub fn of_mut(&mut self, key: u64) -> Option<&mut V> {
        if let Some(value) = self.old.remove(&key) {
            self.insert(key, value);
        }
        self.young.get_mut(&key)
    }

    /// A value, without using it.
    pub fn peek(&self, key: u64) -> Option<&V> {
        self.young.get(&key).or_else(|| self.old.get(&key))
    }

    /// A new value.
    pub fn insert(&mut self, key: u64, value: V) {
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: u64) -> Option<V> {
        self.young.remove(&key).or_else(|| self.old.remove(&key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut map = Generations::new(10);
        map.insert(0, 0);
        for n in 1..1_000 {
            map.insert(n, n);
            assert!(map.len() <= 10);
            assert_eq!(map.of_mut(0).copied(), Some(0));
        }
        assert!(map.peek(1).is_none());
        assert_eq!((map.remove(999), map.peek(999)), (Some(999), None));
    }
}
