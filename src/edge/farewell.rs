//! How a node parts with its devices: paced, each told when and where to come back.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::Edge;
use crate::route::Reasons;

/// The terms of one drain. The default ends all connections at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Farewell {
    /// Connections that are ended in a second; 0 ends all at once.
    pub per_s: u32,
    /// Devices are told to come back within this time, in milliseconds, evenly.
    pub reconnect_ms: u32,
    /// `host:port` where they shall go instead.
    pub server: Option<String>,
}

impl Edge {
    /// Lets no new connection in and tells those that are here to leave, at the pace of the
    /// farewell. Returns when the last one has been told.
    pub async fn drain(&self, farewell: Farewell) {
        let per_s = farewell.per_s;
        // From here on, whoever takes a new place on the wheel is told at once.
        if self.farewell.set(farewell).is_err() {
            return;
        }
        let staying = self.wheel.all();
        let batch = (u64::from(per_s) * TICK.as_millis() as u64 / 1_000).max(1) as usize;
        let mut ticks = interval(if per_s == 0 { TICK } else { tick(per_s, batch) });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let batch = if per_s == 0 { usize::MAX } else { batch };
        for some in staying.chunks(batch) {
            ticks.tick().await;
            some.iter().for_each(|nudge| nudge.nudge(Reasons::DRAIN));
        }
        self.notify_if_empty();
    }
}

/// Between two batches.
fn tick(per_s: u32, batch: usize) -> Duration {
    Duration::from_secs_f64(batch as f64 / f64::from(per_s))
}

/// Connections are told in batches about so far apart.
const TICK: Duration = Duration::from_millis(10);
