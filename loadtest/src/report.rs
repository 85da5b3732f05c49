//! How results are told: percentiles for people, JSON for comparisons.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

impl Percentiles {
    /// `None` of nothing. Sorts in place.
    pub fn of(latencies_us: &mut [u64]) -> Option<Self> {
        latencies_us.sort_unstable();
        let max_us = *latencies_us.last()?;
        let at = |share: f64| {
            let rank = (latencies_us.len() as f64 * share).ceil() as usize;
            latencies_us[rank.clamp(1, latencies_us.len()) - 1]
        };
        Some(Self {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us,
        })
    }

    /// One line for each.
    pub fn print(&self) {
        let Self { p50_us, p90_us, p99_us, p999_us, max_us } = *self;
        let rows = [
            ("p50", p50_us),
            ("p90", p90_us),
            ("p99", p99_us),
            ("p99.9", p999_us),
            ("max", max_us),
        ];
        for (name, us) in rows {
            println!("  {name:>6} {:>10.2} ms", us as f64 / 1e3);
        }
    }
}

/// Writes the results to a file, if one was asked for.
pub fn write(path: Option<&Path>, result: &Value) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let mut text = serde_json::to_string_pretty(result)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let mut values: Vec<u64> = (1..=1000).rev().collect();
        let percentiles = Percentiles::of(&mut values).unwrap();
        assert_eq!((percentiles.p50_us, percentiles.p90_us), (500, 900));
        assert_eq!((percentiles.p99_us, percentiles.p999_us, percentiles.max_us), (990, 999, 1000));
        assert_eq!(Percentiles::of(&mut [7]).unwrap().p50_us, 7);
        assert_eq!(Percentiles::of(&mut []), None);
    }
}
