//! Where a node listens, and behind which balancers.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Rule;

/// A listening address, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Bind {
    /// Listen here; port 0 takes a free one.
    At(SocketAddr),
    /// Do not listen.
    Off,
}

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse()
            .map(Self::At)
            .map_err(|_| format!("`{text}` is neither ADDR:PORT, like 127.0.0.1:1883, nor `off`"))
    }
}

impl TryFrom<String> for Bind {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Bind> for String {
    fn from(bind: Bind) -> String {
        bind.to_string()
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(addr) => addr.fmt(f),
            Self::Off => f.write_str("off"),
        }
    }
}

/// Where the node listens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// MQTT over TCP.
    pub mqtt: Bind,
    /// MQTT over TLS.
    pub mqtts: Bind,
    /// MQTT over WebSocket.
    pub ws: Bind,
    /// The API of app servers.
    pub https: Bind,
    /// Metrics, health, and the operator's calls.
    pub admin: Bind,
    /// Certificate chain, PEM; empty: a local CA under the data directory makes one.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
    /// Connections that the kernel may hold for each listener before they are accepted.
    pub backlog: u32,
    /// Balancers: their connections must begin with a PROXY protocol v2 header.
    pub proxy_from: Vec<Network>,
    /// The doors at which that holds.
    pub proxy_doors: Vec<String>,
}

impl Default for Listen {
    fn default() -> Self {
        let local = |port| Bind::At(SocketAddr::from(([127, 0, 0, 1], port)));
        Self {
            mqtt: local(1883),
            mqtts: local(8883),
            ws: local(8083),
            https: local(8443),
            admin: local(9464),
            certificate: PathBuf::new(),
            private_key: PathBuf::new(),
            backlog: 32_768,
            proxy_from: Vec::new(),
            proxy_doors: PROXY_DOORS.map(str::to_owned).to_vec(),
        }
    }
}

/// The addresses of a network, like `10.0.0.0/8`, or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Network(IpNet);

impl Network {
    /// The addresses that share `bits` bits with this one; with more than there are, itself.
    pub fn new(address: IpAddr, bits: u8) -> Self {
        Self(IpNet::new(address, bits).map_or_else(|_| address.into(), |net| net.trunc()))
    }

    /// Whether this address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let single = || text.parse::<IpAddr>().map(IpNet::from);
        let network = text.parse().or_else(|_| single());
        network
            .map(|network: IpNet| Self(network.trunc()))
            .map_err(|_| format!("`{text}` is no network like 10.0.0.0/8 and no address"))
    }
}

impl From<Network> for IpNet {
    fn from(network: Network) -> Self {
        network.0
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.0.to_string()
    }
}

impl Listen {
    pub(super) fn rules(&self) -> Vec<Rule> {
        let is_set = |path: &Path| !path.as_os_str().is_empty();
        vec![
            Rule(self.backlog >= 1, "listen.backlog", "at least 1"),
            Rule(
                is_set(&self.certificate) == is_set(&self.private_key),
                "listen.certificate",
                "goes together with listen.private_key: set both or none",
            ),
            Rule(
                self.proxy_doors.iter().all(|door| PROXY_DOORS.contains(&door.as_str())),
                "listen.proxy_doors",
                "some of mqtt, mqtts, ws and https",
            ),
        ]
    }
}

/// The doors that may stand behind a balancer: the admin door is for loopback.
const PROXY_DOORS: [&str; 4] = ["mqtt", "mqtts", "ws", "https"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_with_and_without_its_length() {
        let read = |text: &str| Network::try_from(text.to_owned()).map(String::from);
        assert_eq!(read("10.9.9.9/8").unwrap(), "10.0.0.0/8");
        assert_eq!(read("192.0.2.7").unwrap(), "192.0.2.7/32");
        assert_eq!(read("2001:db8::/32").unwrap(), "2001:db8::/32");
        assert!(read("10.0.0.0/33").is_err() && read("balancer").is_err());
    }

    #[test]
    fn a_network_has_its_addresses_and_no_others() {
        let cases = [
            ("127.0.0.0/8", "127.0.1.9", true),
            ("127.0.0.0/8", "::ffff:127.0.1.9", true),
            ("127.0.0.0/8", "128.0.0.1", false),
            ("192.0.2.1", "192.0.2.2", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ];
        for (network, address, is_in) in cases {
            let network = Network::try_from(network.to_owned()).unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), is_in, "{network:?} {address}");
        }
    }
}
