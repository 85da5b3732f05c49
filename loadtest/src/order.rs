//! What the coordinator says to its worker processes and what they answer: one JSON object a line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};
use carillon_wire::seal::AppKey;
use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;
use crate::mqtt::Version;

/// To a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// The first one: who the devices are.
    Setup(Box<Setup>),
    Open(Open),
    /// Ends all connections at once.
    Cut(Cut),
    /// What is delivered from now on is counted.
    Watch(Watch),
    /// What was delivered since.
    Tally,
}

/// From a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Report {
    /// The setup is done; the worker's anonymous memory before it.
    Ready {
        bytes_before: u64,
    },
    /// Of what is going on, a few times a second.
    Progress(Progress),
    Opened(Box<Opened>),
    Cut,
    Watching,
    /// This message of a fan-out has reached all devices of the worker.
    Fanned {
        n: u32,
    },
    Tally(Box<Tally>),
    /// The end.
    Failed {
        error: String,
    },
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub open: usize,
    pub delivered: u64,
}

/// Which devices, and how they speak. A worker with `first` w of `step` s has the devices w, w + s, w + 2s…
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    pub target: SocketAddr,
    /// Further servers, which share the devices with it.
    pub others: Vec<SocketAddr>,
    pub speech: Speech,
    pub version: Version,
    pub keep_alive_s: u16,
    /// Local addresses, taken in turn; empty leaves the choice to the kernel.
    pub sources: Vec<IpAddr>,
    pub devices: usize,
    pub first: usize,
    pub step: usize,
    pub tls: Option<Tls>,
    /// MQTT over WebSocket, without TLS.
    pub is_websocket: bool,
    /// Devices that speak frames register with a key, and open what is sealed.
    pub seal: Option<Seal>,
    /// One attempt to connect, until it is resumed or subscribed.
    pub timeout_ms: u64,
}

impl Setup {
    /// The server of device `number`.
    pub fn target_of(&self, number: usize) -> SocketAddr {
        match number % (self.others.len() + 1) {
            0 => self.target,
            other => self.others[other - 1],
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Speech {
    /// An anonymous client of any broker, with one subscription.
    Broker { topic: TopicOf, qos: u8 },
    /// A device of the gateway with a stock client: SUBSCRIBE `push`.
    Plain { credentials: PathBuf },
    /// A device of the gateway: CONNECT and the `Resume` frame behind it.
    Frames { credentials: PathBuf },
}

/// With what devices register to have their messages sealed: `APP,APP_KEY,ID-HEX`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    pub app: String,
    pub app_key: String,
    /// As `carillon app seal` prints it.
    public_key: String,
}

impl Seal {
    pub fn key(&self) -> anyhow::Result<AppKey> {
        Ok(self.public_key.parse()?)
    }
}

impl FromStr for Seal {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = text.split(',').collect();
        let [app, app_key, public_key] = words[..] else { bail!("APP,APP_KEY,ID-HEX is wanted") };
        let text = |text: &str| text.to_owned();
        let seal = Self { app: text(app), app_key: text(app_key), public_key: text(public_key) };
        seal.key().context("the app's public key, as `carillon app seal` prints it, is wanted")?;
        Ok(seal)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TopicOf {
    /// `load/<number>` for each.
    Each,
    /// `load/all`.
    All,
}

impl TopicOf {
    pub fn name(self, device: usize) -> String {
        match self {
            Self::Each => format!("load/{device}"),
            Self::All => "load/all".to_owned(),
        }
    }

    /// The client id of a broker's device. The same device may be there for each kind at once.
    pub fn client_id(self, device: usize) -> String {
        match self {
            Self::Each => format!("load-{device}"),
            Self::All => format!("load-all-{device}"),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tls {
    /// The CA that signed the server's certificate, as PEM.
    pub ca: PathBuf,
    /// Keep session tickets, and use them.
    pub resume: bool,
}

/// Open all devices below `to` that are not open.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Open {
    /// A number of the whole run, not of the worker.
    pub to: usize,
    pub at_once: usize,
    /// Attempts after the first one, for each device.
    pub retries_max: u8,
    /// Wait as long as the server said, not as long as we think.
    pub honour_advice: bool,
    /// Latencies count from the order, not from each attempt.
    pub from_order: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Cut {
    /// As a process that dies
    Fin,
    /// As a cable that is cut and mended: the server hears a reset
    Rst,
    /// As MQTT wants it: DISCONNECT, then FIN
    Disconnect,
}

/// What came of an [`Open`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Opened {
    pub opened: usize,
    pub failed: usize,
    pub retries: usize,
    /// Attempts that the server, or its kernel, turned away.
    pub refused: usize,
    pub timed_out: usize,
    /// TLS handshakes that used a session ticket.
    pub tls_resumed: usize,
    /// Devices whose digest the gateway did not agree with.
    pub asked_positions: usize,
    /// Times that the server said when to come back.
    pub advised: usize,
    /// To CONNACK.
    pub connack: Histogram,
    /// To SUBACK or `Resumed`.
    pub ready: Histogram,
    /// From the order to the last one.
    pub us: u64,
    /// Of those that failed: one reason.
    pub error: Option<String>,
}

impl Opened {
    pub fn merge(&mut self, other: &Self) {
        self.opened += other.opened;
        self.failed += other.failed;
        self.retries += other.retries;
        self.refused += other.refused;
        self.timed_out += other.timed_out;
        self.tls_resumed += other.tls_resumed;
        self.asked_positions += other.asked_positions;
        self.advised += other.advised;
        self.connack.merge(&other.connack);
        self.ready.merge(&other.ready);
        self.us = self.us.max(other.us);
        self.error = self.error.take().or_else(|| other.error.clone());
    }
}

/// What is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Watch {
    /// So many messages for every device, numbered from 0.
    Fanout { messages: u32 },
    /// To some devices each, as [`Choice`] says.
    Unicast(Choice),
}

/// Who receives which message of a unicast run: the same for senders and judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub seed: u64,
    /// Devices that one send goes to.
    pub batch: usize,
    pub sends: u32,
    pub devices: usize,
    /// The number of the first message; lower ones are others' messages.
    pub from: u32,
}

/// What came.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    pub delivered: u64,
    pub lost: u64,
    pub doubled: u64,
    /// For another device, or with a number that was not sent.
    pub strange: u64,
    /// From the sender's stamp to the device.
    pub latency: Histogram,
    /// When the last one came, in microseconds since 1970.
    pub last_us: u64,
    /// The same for each message of a fan-out.
    pub last_of_us: Vec<u64>,
    /// Connections that ended meanwhile.
    pub connections_lost: usize,
}

impl Tally {
    pub fn merge(&mut self, other: &Self) {
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.strange += other.strange;
        self.latency.merge(&other.latency);
        self.last_us = self.last_us.max(other.last_us);
        self.last_of_us.resize(self.last_of_us.len().max(other.last_of_us.len()), 0);
        for (last, other) in self.last_of_us.iter_mut().zip(&other.last_of_us) {
            *last = (*last).max(*other);
        }
        self.connections_lost += other.connections_lost;
    }
}

impl Choice {
    /// The different devices of send `n`.
    pub fn devices(&self, n: u32) -> Vec<usize> {
        let mut random = self.seed.wrapping_mul(GOLDEN).wrapping_add(u64::from(n) << 20);
        let count = self.batch.min(self.devices);
        let mut chosen = std::collections::HashSet::with_capacity(count);
        let mut order = Vec::with_capacity(count);
        while order.len() < count {
            random = random.wrapping_add(GOLDEN);
            let at = (mix(random) % self.devices as u64) as usize;
            if chosen.insert(at) {
                order.push(at);
            }
        }
        order
    }
}

/// splitmix64's finaliser: bits that look random.
pub fn mix(value: u64) -> u64 {
    let z = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_of_a_send_are_different_and_repeatable() {
        let choice = Choice { seed: 1, batch: 500, sends: 1, devices: 600, from: 0 };
        let chosen = choice.devices(7);
        let different: std::collections::HashSet<_> = chosen.iter().collect();
        assert_eq!(different.len(), 500);
        assert_eq!(chosen, choice.devices(7));
        assert_ne!(chosen, Choice { seed: 2, ..choice }.devices(7));
    }
}
