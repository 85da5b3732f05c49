//! `callbacks`: how events reach app servers.

use serde::{Deserialize, Serialize};

use super::Rule;

/// How events reach app servers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Callbacks {
    /// Whether endpoints may be on private or loopback addresses, and there without TLS.
    pub allow_private: bool,
    /// Different callback URLs of one app.
    pub endpoints_per_app: usize,
    /// Events in one request.
    pub batch_events_max: usize,
    /// How long the first event of a request waits for others.
    pub batch_delay_ms: u64,
    /// For one request, from the connection to the end of the answer.
    pub timeout_ms: u64,
    /// Requests at once, to all endpoints; one to each.
    pub requests_max: usize,
    /// The first wait after a request that failed; it doubles from then on.
    pub retry_first_ms: u64,
    /// The longest wait.
    pub retry_max_ms: u64,
    /// An event that is older when its request fails is dropped.
    pub give_up_after_s: u64,
    /// Events that may wait for one endpoint.
    pub backlog_max: u64,
}

impl Default for Callbacks {
    fn default() -> Self {
        Self {
            allow_private: false,
            endpoints_per_app: 100,
            batch_events_max: 500,
            batch_delay_ms: 200,
            timeout_ms: 10_000,
            requests_max: 64,
            retry_first_ms: 1_000,
            retry_max_ms: 600_000,
            give_up_after_s: 86_400,
            backlog_max: 1_000_000,
        }
    }
}

impl Callbacks {
    pub(super) fn rules(&self, retention_days: u32) -> Vec<Rule> {
        vec![
            Rule(
                (1..=10_000).contains(&self.endpoints_per_app),
                "callbacks.endpoints_per_app",
                "1 to 10000",
            ),
            Rule(
                (1..=10_000).contains(&self.batch_events_max),
                "callbacks.batch_events_max",
                "1 to 10000",
            ),
            Rule(self.batch_delay_ms <= 60_000, "callbacks.batch_delay_ms", "at most 60000"),
            Rule(
                (100..=120_000).contains(&self.timeout_ms),
                "callbacks.timeout_ms",
                "100 to 120000",
            ),
            Rule((2..=4_096).contains(&self.requests_max), "callbacks.requests_max", "2 to 4096"),
            Rule(
                (1..=self.retry_max_ms).contains(&self.retry_first_ms),
                "callbacks.retry_first_ms",
                "1 to callbacks.retry_max_ms",
            ),
            Rule(
                (1..=u64::from(retention_days) * 86_400).contains(&self.give_up_after_s),
                "callbacks.give_up_after_s",
                "1 to the retention in seconds",
            ),
            Rule(self.backlog_max >= 1, "callbacks.backlog_max", "at least 1"),
        ]
    }
}
