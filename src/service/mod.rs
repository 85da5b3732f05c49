//! The business calls: one file each. No MQTT and no HTTP in them.
//!
//! [`Service`] is what the doors hold. It owns the registry's rules, the node's
//! presence and the pointers that are not yet on disk; queues it reaches only
//! through `route`.

pub mod apps;
pub mod bind;
pub mod deliver;
pub mod error;
pub mod identify;
pub mod pointers;
pub mod presence;
pub mod records;
pub mod register;
pub mod send;
pub mod trace;

use std::sync::Arc;

pub use error::Error;

use crate::{
    base::{clock::Clock, keys::NodeKeys, metrics::Metrics},
    config::Limits,
    route::Router,
};

/// All business calls of one node.
pub struct Service {
    pub(crate) router: Router,
    pub(crate) keys: Arc<NodeKeys>,
    pub(crate) clock: Clock,
    pub(crate) limits: Limits,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) pointers: pointers::Pointers,
    pub(crate) presence: presence::Presence,
}

impl Service {
    /// Milliseconds since 1970, by the node's clock.
    pub fn now_ms(&self) -> u64 {
        self.clock.unix_ms()
    }
}
