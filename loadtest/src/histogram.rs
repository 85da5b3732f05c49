//! Latencies in buckets: small enough to send between processes, exact to one part in 64.

use serde::{Deserialize, Serialize};

/// Microseconds, in buckets that grow with the value; only those that hold something are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    buckets: std::collections::BTreeMap<u32, u64>,
    max_us: u64,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

impl Histogram {
    pub fn add(&mut self, us: u64) {
        *self.buckets.entry(bucket(us)).or_default() += 1;
        self.max_us = self.max_us.max(us);
    }

    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            *self.buckets.entry(*bucket).or_default() += count;
        }
        self.max_us = self.max_us.max(other.max_us);
    }

    pub fn count(&self) -> u64 {
        self.buckets.values().sum()
    }

    /// `None` of nothing.
    pub fn percentiles(&self) -> Option<Percentiles> {
        let count = self.count();
        let at = |share: f64| {
            let rank = ((count as f64 * share).ceil() as u64).clamp(1, count);
            let mut below = 0;
            let found = self.buckets.iter().find(|(_, held)| {
                below += **held;
                below >= rank
            });
            found.map_or(self.max_us, |(bucket, _)| upper(*bucket).min(self.max_us))
        };
        (count > 0).then(|| Percentiles {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.max_us,
        })
    }
}

/// Values below 128 have a bucket each; from there on, 64 buckets share each doubling.
fn bucket(us: u64) -> u32 {
    let shift = (u64::BITS - us.leading_zeros()).saturating_sub(7);
    (shift << 6) + (us >> shift) as u32
}

/// The largest value of a bucket.
fn upper(bucket: u32) -> u64 {
    if bucket < 128 {
        return u64::from(bucket);
    }
    let shift = (bucket >> 6) - 1;
    let lower = u64::from(bucket - (shift << 6)) << shift;
    lower + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_in_a_bucket_that_ends_at_most_one_part_in_64_above() {
        for us in (0..3000).chain([65_535, 65_536, 1 << 40, (1 << 50) - 1]) {
            let upper = upper(bucket(us));
            assert!(upper >= us && upper - us <= us / 64, "{us} {upper}");
            assert!(us == 0 || bucket(us - 1) <= bucket(us));
        }
    }

    #[test]
    fn percentiles_of_two_merged_halves_are_those_of_the_whole() {
        let (mut odd, mut even) = (Histogram::default(), Histogram::default());
        for us in 1..=100 {
            if us % 2 == 0 { even.add(us) } else { odd.add(us) }
        }
        odd.merge(&even);
        let percentiles = odd.percentiles().unwrap();
        assert_eq!((percentiles.p50_us, percentiles.p90_us, percentiles.p99_us), (50, 90, 99));
        assert_eq!((percentiles.max_us, odd.count()), (100, 100));
        assert_eq!(Histogram::default().percentiles(), None);
    }
}
