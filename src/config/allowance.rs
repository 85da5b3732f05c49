//! `limits.allowance`: how much one app may send.

use serde::{Deserialize, Serialize};

use super::Rule;

/// How much one app may send. 0: as much as it likes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allowance {
    /// regIDs and aliases that it may send to in a second.
    pub targets_per_s: u32,
    /// How many of them at once.
    pub targets_burst: u32,
    /// How many in a day.
    pub targets_per_day: u64,
    /// How many messages to them devices may have handled in a day, before it may send no more.
    pub deliveries_per_day: u64,
    /// Messages to topics, conditions and everybody in a second.
    pub broadcasts_per_s: u32,
    /// How many of them at once.
    pub broadcasts_burst: u32,
    /// How many in a day.
    pub broadcasts_per_day: u64,
    /// How many of them devices may have handled in a day, before it may send no more.
    pub broadcast_deliveries_per_day: u64,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            targets_per_s: 200_000,
            targets_burst: 400_000,
            targets_per_day: 1_000_000_000,
            deliveries_per_day: 1_000_000_000,
            broadcasts_per_s: 1_000,
            broadcasts_burst: 10_000,
            broadcasts_per_day: 1_000_000,
            broadcast_deliveries_per_day: 10_000_000_000,
        }
    }
}

impl Allowance {
    pub(super) fn rules(&self) -> Vec<Rule> {
        let rate = |per_s: u32| per_s <= 10_000_000;
        let burst = |burst: u32| (1..=100_000_000).contains(&burst);
        vec![
            Rule(rate(self.targets_per_s), "limits.allowance.targets_per_s", "at most 10000000"),
            Rule(burst(self.targets_burst), "limits.allowance.targets_burst", "1 to 100000000"),
            Rule(
                rate(self.broadcasts_per_s),
                "limits.allowance.broadcasts_per_s",
                "at most 10000000",
            ),
            Rule(
                burst(self.broadcasts_burst),
                "limits.allowance.broadcasts_burst",
                "1 to 100000000",
            ),
        ]
    }
}
