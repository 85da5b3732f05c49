//! How sends and deliveries are made fast: caches, and the lanes of wake-ups.

use metrics::counter;

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
    }
}

/// Caches and lanes.
pub struct EngineMetrics {
    /// Lookups that a cache answered.
    pub cache_hits: CounterBy<CacheKind>,
    /// Lookups that went to the store.
    pub cache_misses: CounterBy<CacheKind>,
}

impl EngineMetrics {
    pub(super) fn new() -> Self {
        let lookups = |result: &'static str| {
            CounterBy::with(
                |kind: CacheKind| counter!("carillon_cache_lookups_total", "cache" => kind.label(), "result" => result),
            )
        };
        Self { cache_hits: lookups("hit"), cache_misses: lookups("miss") }
    }
}
