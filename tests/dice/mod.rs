//! Random numbers from a seed, and what a person or the slow set says from outside.
#![allow(dead_code, reason = "every test crate uses its own part of it")]
#![allow(clippy::disallowed_methods, reason = "tests read their settings")]

use std::{
    ops::Range,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Random numbers from a seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// From `CARILLON_SEED`, else from the time; prints it.
    pub fn of_this_run(test: &str) -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
        let seed = number_from_env("CARILLON_SEED").unwrap_or_else(|| now() as u64 % 1_000_000_007);
        println!("{test}: CARILLON_SEED={seed}");
        Self::new(seed)
    }

    /// From a number.
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Dice of their own for somebody else.
    pub fn fork(&mut self) -> Self {
        Self::new(self.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number of a range that is not empty.
    pub fn of(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// A number below `end`, which is not 0 and at most 2³¹: of the upper bits, which are the better ones.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 33) % end
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        self.of(0..len as u64) as usize
    }

    /// True so many times of a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.of(0..100) < percent
    }

    /// A time of a range of milliseconds.
    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.of(range.start * 1_000..range.end * 1_000))
    }

    /// `count` different numbers below `len`, or all of them.
    pub fn pick(&mut self, count: usize, len: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..len).collect();
        for at in 0..count.min(len) {
            let other = at + self.index(len - at);
            all.swap(at, other);
        }
        all.truncate(count);
        all
    }
}

/// A number that the slow set or a person gives from outside.
pub fn number_from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")))
}

/// The seeds of a run: `CARILLON_SEED` alone, or `CARILLON_SEEDS` of them, or so many.
pub fn seeds(count: u64) -> Range<u64> {
    match number_from_env("CARILLON_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_from_env("CARILLON_SEEDS").unwrap_or(count),
    }
}
