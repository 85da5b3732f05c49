//! Seeded randomness for the tests that mutate bytes.

#![allow(dead_code, reason = "each test takes what it needs")]

/// SplitMix64: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    /// Prints the seed, so that a failure can be repeated.
    pub fn seeded(seed: u64) -> Self {
        println!("seed {seed:#x}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// One to four small damages: a byte changed, a bit flipped, bytes inserted, removed or repeated.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                bytes.push(self.next() as u8);
                continue;
            }
            let at = self.below(bytes.len());
            match self.below(6) {
                0 => bytes[at] = self.next() as u8,
                1 => bytes[at] ^= 1 << self.below(8),
                2 => bytes.insert(at, [0x00, 0x7F, 0x80, 0xFF][self.below(4)]),
                3 => drop(bytes.remove(at)),
                4 => bytes.truncate(at),
                _ => {
                    let end = (at + 1 + self.below(8)).min(bytes.len());
                    bytes.extend_from_within(at..end);
                }
            }
        }
    }
}
