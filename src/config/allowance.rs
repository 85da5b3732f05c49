//! `limits.allowance` and `limits.apps`: how much one app may send.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Limits, Rule};

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

/// What one app may instead of `limits.allowance` and `limits.payload_bytes_max`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AppLimits {
    /// As in [`Allowance`].
    pub targets_per_s: Option<u32>,
    /// As in [`Allowance`].
    pub targets_burst: Option<u32>,
    /// As in [`Allowance`].
    pub targets_per_day: Option<u64>,
    /// As in [`Allowance`].
    pub deliveries_per_day: Option<u64>,
    /// As in [`Allowance`].
    pub broadcasts_per_s: Option<u32>,
    /// As in [`Allowance`].
    pub broadcasts_burst: Option<u32>,
    /// As in [`Allowance`].
    pub broadcasts_per_day: Option<u64>,
    /// As in [`Allowance`].
    pub broadcast_deliveries_per_day: Option<u64>,
    /// As in [`Limits`].
    pub payload_bytes_max: Option<usize>,
}

impl AppLimits {
    fn over(&self, usual: &Allowance) -> Allowance {
        let Allowance { targets_per_s, targets_burst, broadcasts_per_s, broadcasts_burst, .. } =
            *usual;
        let broadcast_deliveries = self.broadcast_deliveries_per_day;
        Allowance {
            targets_per_s: self.targets_per_s.unwrap_or(targets_per_s),
            targets_burst: self.targets_burst.unwrap_or(targets_burst),
            targets_per_day: self.targets_per_day.unwrap_or(usual.targets_per_day),
            deliveries_per_day: self.deliveries_per_day.unwrap_or(usual.deliveries_per_day),
            broadcasts_per_s: self.broadcasts_per_s.unwrap_or(broadcasts_per_s),
            broadcasts_burst: self.broadcasts_burst.unwrap_or(broadcasts_burst),
            broadcasts_per_day: self.broadcasts_per_day.unwrap_or(usual.broadcasts_per_day),
            broadcast_deliveries_per_day: broadcast_deliveries
                .unwrap_or(usual.broadcast_deliveries_per_day),
        }
    }
}

impl Limits {
    /// How much an app may send.
    pub fn allowance_of(&self, app: &str) -> Cow<'_, Allowance> {
        match self.apps.get(app) {
            Some(own) => Cow::Owned(own.over(&self.allowance)),
            None => Cow::Borrowed(&self.allowance),
        }
    }

    /// The largest payload of an app.
    pub fn payload_bytes_max_of(&self, app: &str) -> usize {
        let own = self.apps.get(app).and_then(|own| own.payload_bytes_max);
        own.unwrap_or(self.payload_bytes_max)
    }

    /// The first key of `limits.apps` that is wrong, with its rule.
    pub(super) fn wrong_app(&self) -> Option<(String, &'static str)> {
        self.apps.keys().find_map(|app| {
            if !is_app(app) {
                return Some((
                    format!("limits.apps.{app}"),
                    "1 to 32 characters of a-z, 0-9, - and _",
                ));
            }
            let payload = payload_rule(self.payload_bytes_max_of(app));
            let mut rules = self.allowance_of(app).rules().into_iter().chain([payload]);
            let Rule(_, key, rule) = rules.find(|rule| !rule.0)?;
            let name = key.rsplit('.').next().unwrap_or(key);
            Some((format!("limits.apps.{app}.{name}"), rule))
        })
    }
}

/// Whether an app may have this name.
fn is_app(name: &str) -> bool {
    let is_allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
    (1..=32).contains(&name.len()) && name.bytes().all(is_allowed)
}

pub(super) fn payload_rule(bytes: usize) -> Rule {
    Rule((1..=64 << 10).contains(&bytes), "limits.payload_bytes_max", "1 to 65536")
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
