//! How sends and deliveries are made fast: caches, and the lanes of wake-ups.

use std::collections::HashMap;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::{CounterBy, Label};
use crate::labels;

labels! {
    /// What a cache keeps.
    CacheKind {
        /// Apps with their secrets and settings, by name.
        Apps = "apps",
        /// Devices with their registrations and what these follow, by id.
        Devices = "devices",
        /// The device and the app of a registration, by regID.
        Registrations = "registrations",
        /// What a registration was told to follow or when to take messages: a hit is what was so
        /// already and is not written again.
        Settings = "settings",
    }
}

labels! {
    /// A lane of wake-ups.
    Lane {
        /// For what is sent with `high`.
        High = "high",
        /// With `normal`.
        Normal = "normal",
        /// With `low`.
        Low = "low",
    }
}

/// One gauge for each value of a label.
pub struct GaugeBy<L: Label>(HashMap<L, Gauge>);

impl<L: Label> GaugeBy<L> {
    /// The gauge of one value.
    pub fn of(&self, label: L) -> &Gauge {
        &self.0[&label]
    }
}

/// Caches and lanes.
pub struct EngineMetrics {
    /// Lookups that a cache answered.
    pub cache_hits: CounterBy<CacheKind>,
    /// Lookups that went to the store.
    pub cache_misses: CounterBy<CacheKind>,
    /// Followers of queues that grew who are not woken yet, because others are at work.
    pub lane_followers: GaugeBy<Lane>,
    /// Queues that grew while all of their followers waited in a lane already.
    pub lane_joins: Counter,
    /// From the entry's time (its acceptance, one commit before it is durable) to its first push
    /// on a connection; time offline is in it.
    pub durable_to_pushed_seconds: Histogram,
    /// From there to its acknowledgement.
    pub pushed_to_acked_seconds: Histogram,
}

impl EngineMetrics {
    pub(super) fn new() -> Self {
        let lookups = |result: &'static str| {
            CounterBy::with(
                |kind: CacheKind| counter!("carillon_cache_lookups_total", "cache" => kind.label(), "result" => result),
            )
        };
        let depth =
            |lane: &Lane| (*lane, gauge!("carillon_lane_followers", "lane" => lane.label()));
        let lane_followers = GaugeBy(Lane::ALL.iter().map(depth).collect());
        // They are there from the start, at 0.
        lane_followers.0.values().for_each(|gauge| gauge.set(0.0));
        Self {
            cache_hits: lookups("hit"),
            cache_misses: lookups("miss"),
            lane_followers,
            lane_joins: counter!("carillon_lane_joins_total"),
            durable_to_pushed_seconds: histogram!("carillon_durable_to_pushed_seconds"),
            pushed_to_acked_seconds: histogram!("carillon_pushed_to_acked_seconds"),
        }
    }
}
