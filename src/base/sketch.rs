//! Numbers of many addresses in memory of a fixed size.
//!
//! Each address has a cell in each of two rows, found by a keyed hash; what is known of
//! it is the smaller of the two. Nothing is ever evicted and nothing can be filled up:
//! whoever has a great many addresses disturbs another one only by being heavy in both
//! of its cells, and cannot know which these are.

use std::{
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use siphasher::sip::SipHasher13;

use super::{gcra::Rate, ids::random_bytes};

/// The two cells of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells([u16; 2]);

/// Finds the cells of addresses, with a key of its own.
pub struct Hash2([u8; 16]);

impl Default for Hash2 {
    fn default() -> Self {
        Self::new()
    }
}

impl Hash2 {
    /// With a new key.
    pub fn new() -> Self {
        Self(random_bytes())
    }

    /// One subscriber has a whole /64 of IPv6 addresses.
    pub fn cells(&self, address: IpAddr) -> Cells {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        match address.to_canonical() {
            IpAddr::V4(v4) => v4.to_bits().hash(&mut hasher),
            IpAddr::V6(v6) => (v6.to_bits() >> 64).hash(&mut hasher),
        }
        let hash = hasher.finish();
        Cells([hash as u16, (hash >> 16) as u16])
    }
}

/// Two rows of numbers.
struct Rows([Box<[AtomicU32]>; 2]);

impl Rows {
    fn new() -> Self {
        let row = || Box::new([const { AtomicU32::new(0) }; 1 << u16::BITS]);
        Self([row(), row()])
    }

    fn of(&self, Cells(at): Cells) -> [&AtomicU32; 2] {
        [&self.0[0][usize::from(at[0])], &self.0[1][usize::from(at[1])]]
    }
}

/// How many things each address has; never too few.
pub struct Counts(Rows);

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

impl Counts {
    /// Nobody has any.
    pub fn new() -> Self {
        Self(Rows::new())
    }

    /// One more, unless that is more than `max`.
    pub fn add(&self, cells: Cells, max: u32) -> bool {
        let before = self.0.of(cells).map(|cell| cell.fetch_add(1, Ordering::Relaxed));
        if before[0].min(before[1]) < max {
            return true;
        }
        self.remove(cells);
        false
    }

    /// One less of what was added.
    pub fn remove(&self, cells: Cells) {
        for cell in self.0.of(cells) {
            cell.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// How fast each address takes; never too slow.
pub struct Rates(Rows);

impl Default for Rates {
    fn default() -> Self {
        Self::new()
    }
}

impl Rates {
    /// Nobody has taken any.
    pub fn new() -> Self {
        Self(Rows::new())
    }

    /// Takes one at the time `now`, in ticks.
    ///
    /// # Errors
    /// When it can be taken. Races between threads let one more through, never one less.
    pub fn take(&self, rate: Rate, cells: Cells, now: u32) -> Result<(), Duration> {
        let cells = self.0.of(cells);
        let taken = cells.map(|cell| rate.take(cell.load(Ordering::Relaxed), now, 1));
        if let [Err(one), Err(other)] = taken {
            return Err(one.min(other));
        }
        for (cell, taken) in cells.into_iter().zip(taken) {
            // A cell that refuses has a share of somebody else and stays as it is.
            if let Ok(paid_at) = taken {
                cell.store(paid_at, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Whether one can be taken; nothing is.
    ///
    /// # Errors
    /// When it can.
    pub fn check(&self, rate: Rate, cells: Cells, now: u32) -> Result<(), Duration> {
        let checked = self.0.of(cells);
        match checked.map(|cell| rate.check(cell.load(Ordering::Relaxed), now)) {
            [Err(one), Err(other)] => Err(one.min(other)),
            [Ok(()), _] | [_, Ok(())] => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(subscriber: u64, host: u64) -> IpAddr {
        let bits = u128::from(0x2001_0db8_u64 << 32 | subscriber) << 64 | u128::from(host);
        IpAddr::V6(bits.into())
    }

    #[test]
    fn a_64_is_one_address_and_so_is_a_mapped_one() {
        let hash = Hash2::new();
        assert_eq!(hash.cells(v6(1, 1)), hash.cells(v6(1, u64::MAX)));
        assert_ne!(hash.cells(v6(1, 1)), hash.cells(v6(2, 1)));
        let (v4, mapped) = ("192.0.2.1".parse().unwrap(), "::ffff:192.0.2.1".parse().unwrap());
        assert_eq!(hash.cells(v4), hash.cells(mapped));
    }

    #[test]
    fn a_hundred_thousand_flooding_networks_do_not_shut_out_the_others() {
        let (hash, counts) = (Hash2::new(), Counts::new());
        let (rates, rate) = (Rates::new(), Rate::new(1, Duration::from_secs(1), 2));
        for attacker in 0..100_000 {
            let cells = hash.cells(v6(attacker, 1));
            assert!(counts.add(cells, u32::MAX));
            let _ = rates.take(rate, cells, 0);
        }
        // With a map of exact entries the first newcomer would find it full. Here each cell
        // holds one and a half of the attackers' on average, and none holds many.
        let others = (0..1_000)
            .map(|other| hash.cells(IpAddr::from([192, 0, (other >> 8) as u8, other as u8])));
        let welcome =
            others.filter(|cells| counts.add(*cells, 16) && rates.check(rate, *cells, 0).is_ok());
        let welcome = welcome.count();
        assert!(welcome > 600, "{welcome} of 1000");
    }

    #[test]
    fn what_was_added_is_removed_and_the_bound_is_exact() {
        let (hash, counts) = (Hash2::new(), Counts::new());
        let cells = hash.cells(IpAddr::from([192, 0, 2, 1]));
        for _ in 0..3 {
            assert!(counts.add(cells, 2));
            assert!(counts.add(cells, 2));
            assert!(!counts.add(cells, 2));
            counts.remove(cells);
            counts.remove(cells);
        }
    }
}
