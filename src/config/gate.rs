//! What the device's side lets in: rates, shares of one address, memory.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Network, Rule};

/// Bounds of what comes in. 0 is no bound, where not said otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gate {
    /// Connections that the node takes in a second.
    pub accepts_per_s: u32,
    /// Of these, so many at once.
    pub accepts_burst: u32,
    /// Connections that one address opens in a second.
    pub connects_per_address_per_s: u32,
    /// Of these, so many at once.
    pub connects_per_address_burst: u32,
    /// Handshakes of one address at once.
    pub handshakes_per_address_max: u32,
    /// Connections of one address at once.
    pub connections_per_address_max: u32,
    /// Wrong credentials that one address shows in a minute; then it is not listened to.
    pub auth_failures_per_address_per_minute: u32,
    /// Addresses to which no bound of one address applies.
    pub unlimited_networks: Vec<Network>,
    /// From four fifths of it on, nobody new is let in; 0: what the system gives.
    pub memory_max_bytes: u64,
    /// Packets of one connection in a second, but for acknowledgements of our pushes.
    pub packets_per_s: u32,
    /// Of these, so many at once.
    pub packets_burst: u32,
    /// Of these, filters and frames that ask for something.
    pub requests_per_s: u32,
    /// So many of them at once.
    pub requests_burst: u32,
}

impl Default for Gate {
    fn default() -> Self {
        let loopback =
            [Network::new(IpAddr::from([127, 0, 0, 0]), 8), Network::new(LOOPBACK6, 128)];
        Self {
            accepts_per_s: 0,
            accepts_burst: 1_000,
            connects_per_address_per_s: 200,
            connects_per_address_burst: 2_000,
            handshakes_per_address_max: 128,
            connections_per_address_max: 20_000,
            auth_failures_per_address_per_minute: 60,
            unlimited_networks: loopback.to_vec(),
            memory_max_bytes: 0,
            packets_per_s: 50,
            packets_burst: 1_000,
            requests_per_s: 10,
            requests_burst: 500,
        }
    }
}

const LOOPBACK6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

impl Gate {
    pub(super) fn rules(&self) -> Vec<Rule> {
        let rate = |max| 0..=max;
        vec![
            Rule(
                rate(10_000).contains(&self.accepts_per_s),
                "edge.gate.accepts_per_s",
                "0 to 10000",
            ),
            Rule(
                (1..=100_000).contains(&self.accepts_burst),
                "edge.gate.accepts_burst",
                "1 to 100000",
            ),
            Rule(
                rate(10_000).contains(&self.connects_per_address_per_s),
                "edge.gate.connects_per_address_per_s",
                "0 to 10000",
            ),
            Rule(
                (1..=100_000).contains(&self.connects_per_address_burst),
                "edge.gate.connects_per_address_burst",
                "1 to 100000",
            ),
            Rule(
                rate(100_000).contains(&self.auth_failures_per_address_per_minute),
                "edge.gate.auth_failures_per_address_per_minute",
                "0 to 100000",
            ),
            Rule(
                self.memory_max_bytes == 0 || self.memory_max_bytes >= 64 << 20,
                "edge.gate.memory_max_bytes",
                "0, or at least 67108864",
            ),
            Rule(
                rate(10_000).contains(&self.packets_per_s),
                "edge.gate.packets_per_s",
                "0 to 10000",
            ),
            Rule(
                (1..=100_000).contains(&self.packets_burst),
                "edge.gate.packets_burst",
                "1 to 100000",
            ),
            Rule(
                rate(10_000).contains(&self.requests_per_s),
                "edge.gate.requests_per_s",
                "0 to 10000",
            ),
            Rule(
                (1..=100_000).contains(&self.requests_burst),
                "edge.gate.requests_burst",
                "1 to 100000",
            ),
        ]
    }
}
