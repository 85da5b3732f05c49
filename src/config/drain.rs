//! How connections end when the node stops, or another process takes over.

use serde::{Deserialize, Serialize};

use super::Rule;

/// Drains: at a stop, and when a new process takes over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// The process has ended so long after the drain began, in seconds.
    pub deadline_s: u64,
    /// The last connection is ended so long after the first one at most, in seconds.
    pub spread_s: u64,
    /// The same when a new process takes over, in milliseconds.
    pub takeover_spread_ms: u64,
    /// Connections that are ended in a second, if the spread does not ask for more.
    pub pace: u32,
    /// Devices are told to come back within this time, in seconds, evenly.
    pub reconnect_s: u32,
    /// `host:port` of the node that devices shall go to; empty: to come back here.
    pub server: String,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            deadline_s: 30,
            spread_s: 10,
            takeover_spread_ms: 500,
            pace: 2_000,
            reconnect_s: 5,
            server: String::new(),
        }
    }
}

impl Drain {
    pub(super) fn rules(&self) -> Vec<Rule> {
        vec![
            Rule((1..=3_600).contains(&self.deadline_s), "drain.deadline_s", "1 to 3600"),
            Rule(self.spread_s < self.deadline_s, "drain.spread_s", "less than drain.deadline_s"),
            Rule(
                self.takeover_spread_ms < self.deadline_s * 1_000,
                "drain.takeover_spread_ms",
                "less than drain.deadline_s",
            ),
            Rule(self.pace >= 1, "drain.pace", "at least 1"),
            Rule(self.reconnect_s <= 3_600, "drain.reconnect_s", "0 to 3600"),
            Rule(
                self.server.is_empty() || is_host_and_port(&self.server),
                "drain.server",
                "host:port, or empty",
            ),
        ]
    }
}

fn is_host_and_port(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    text.len() <= SERVER_BYTES_MAX
        && parts.is_some_and(|(host, port)| {
            let is_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic());
            is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

/// A name in the DNS has 253 bytes at most.
const SERVER_BYTES_MAX: usize = 253 + ":65535".len();
