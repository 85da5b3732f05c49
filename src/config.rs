//! The whole configuration, typed; parsed once, checked once.
//!
//! `config/carillon.toml` explains every key and is proved equal to the defaults.

mod allowance;
mod callbacks;
mod drain;
mod gate;
mod listen;
mod log;
mod longterm;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::{
    allowance::{Allowance, AppLimits},
    callbacks::Callbacks,
    drain::Drain,
    gate::Gate,
    listen::{Bind, Listen, Network},
    log::{Log, LogFormat},
    longterm::{LongTerm, LongTermStore},
};

/// Everything that an operator can set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the node listens.
    pub listen: Listen,
    /// Where and how it stores.
    pub store: Store,
    /// Where folded collections and history are kept.
    pub longterm: LongTerm,
    /// The device's side.
    pub edge: Edge,
    /// The app server's side.
    pub api: Api,
    /// Bounds of the registry and of messages.
    pub limits: Limits,
    /// How events reach app servers.
    pub callbacks: Callbacks,
    /// How connections end when the node does.
    pub drain: Drain,
    /// Logs.
    pub log: Log,
}

/// Where and how the node stores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// The data directory.
    pub data: PathBuf,
    /// Whether a commit waits for the disk before it is answered.
    pub fsync: bool,
    /// Days for which entries are kept.
    pub retention_days: u32,
    /// The store's cache of blocks.
    pub cache_bytes: u64,
    /// Newest entries kept in memory.
    pub tail_bytes: u64,
    /// Tasks that own the queues.
    pub shard_tasks: usize,
    /// Registrations of which it is remembered whose they are.
    pub registrations_cached: usize,
    /// Devices whose records are kept in memory.
    pub devices_cached: usize,
    /// How often changed pointers are written.
    pub pointer_flush_ms: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            data: "data".into(),
            fsync: true,
            retention_days: 7,
            cache_bytes: 64 << 20,
            tail_bytes: 64 << 20,
            shard_tasks: 1,
            registrations_cached: 100_000,
            devices_cached: 4_096,
            pointer_flush_ms: 500,
        }
    }
}

/// The device's side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Edge {
    /// Connections at once, all transports together.
    pub connections_max: usize,
    /// How far the connections' threads stand back behind the others.
    pub nice: u8,
    /// Handshakes at once.
    pub handshakes_max: usize,
    /// Of these, so many at once in their TLS part.
    pub tls_handshakes_max: usize,
    /// From accept to CONNECT, TLS and WebSocket included.
    pub handshake_timeout_ms: u64,
    /// The largest CONNECT.
    pub connect_bytes_max: u32,
    /// The largest later packet from a device.
    pub packet_bytes_max: u32,
    /// The shortest keep-alive that is granted.
    pub keep_alive_min_s: u16,
    /// The longest, also given to who asks for none.
    pub keep_alive_max_s: u16,
    /// Networks whose idle timeouts are remembered.
    pub heartbeat_networks_max: usize,
    /// Devices of a small network whose experience is passed on.
    pub heartbeat_voices_min: usize,
    /// Unacknowledged pushes on a connection.
    pub window: u16,
    /// Of these, for one registration.
    pub window_per_registration: u16,
    /// Entries in one frame.
    pub frame_entries_max: usize,
    /// Frames of at least so many bytes are packed for devices that can unpack; 0: none.
    pub pack_bytes_min: usize,
    /// How long the unacknowledged packet ids of a plain session may outlive its connection.
    pub session_expiry_max_s: u32,
    /// How many such sessions are kept.
    pub parked_sessions_max: usize,
    /// What the kernel may keep for a device that does not read; 0: as it likes.
    pub send_buffer_bytes: usize,
    /// A device that takes nothing for longer ends its connection.
    pub write_timeout_ms: u64,
    /// Bounds of what comes in.
    pub gate: Gate,
}

impl Default for Edge {
    fn default() -> Self {
        Self {
            connections_max: 1_000_000,
            nice: 5,
            handshakes_max: 16_384,
            tls_handshakes_max: 1_024,
            handshake_timeout_ms: 10_000,
            connect_bytes_max: 8 << 10,
            packet_bytes_max: 160 << 10,
            keep_alive_min_s: 10,
            keep_alive_max_s: 1_200,
            heartbeat_networks_max: 10_000,
            heartbeat_voices_min: 2,
            window: 32,
            window_per_registration: 16,
            frame_entries_max: 256,
            pack_bytes_min: 8 << 10,
            session_expiry_max_s: 7_200,
            parked_sessions_max: 100_000,
            send_buffer_bytes: 64 << 10,
            write_timeout_ms: 30_000,
            gate: Gate::default(),
        }
    }
}

/// The app server's side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Connections at once.
    pub connections_max: usize,
    /// Of these, so many of one address; 0: no bound.
    pub connections_per_address_max: u32,
    /// Calls at once that change something.
    pub calls_max: usize,
    /// Further ones, which only sends of high priority get; 0: none.
    pub calls_high_max: usize,
    /// The largest request body.
    pub body_bytes_max: usize,
    /// The largest request head.
    pub head_bytes_max: usize,
    /// For the head of a request.
    pub head_timeout_ms: u64,
    /// For a whole request.
    pub request_timeout_ms: u64,
    /// Device accounts that one address may create in a minute.
    pub devices_per_address_per_minute: u32,
    /// Device accounts that one app may create in a minute.
    pub devices_per_app_per_minute: u32,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            connections_per_address_max: 1_000,
            calls_max: 1_024,
            calls_high_max: 256,
            body_bytes_max: 6 << 20,
            head_bytes_max: 16 << 10,
            head_timeout_ms: 10_000,
            request_timeout_ms: 30_000,
            devices_per_address_per_minute: 60,
            devices_per_app_per_minute: 6_000,
        }
    }
}

/// Bounds of the registry and of messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Registrations on one device.
    pub registrations_per_device: usize,
    /// Aliases of one registration.
    pub aliases_per_registration: usize,
    /// Registrations that bind one alias.
    pub registrations_per_alias: usize,
    /// Topics of one registration.
    pub topics_per_registration: usize,
    /// regIDs or aliases of one send.
    pub targets_per_send: usize,
    /// A message's payload.
    pub payload_bytes_max: usize,
    /// How long a message lives if its sender does not say; at most the retention.
    pub ttl_default_s: u64,
    /// Messages of one app that wait for their time.
    pub scheduled_per_app: usize,
    /// Days without a connection after which a device's registrations end; 0: never.
    pub registration_expires_days: u32,
    /// Days for which `feedback/invalid` keeps a regID.
    pub feedback_days: u32,
    /// Edits of items that one registration uploads in a second; 0: no bound.
    pub edits_per_s: u32,
    /// Of these, so many at once.
    pub edits_burst: u32,
    /// How much one app may send.
    pub allowance: Allowance,
    /// What single apps may instead, by their names.
    pub apps: BTreeMap<String, AppLimits>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            registrations_per_device: 32,
            aliases_per_registration: 20,
            registrations_per_alias: 1_000,
            topics_per_registration: 100,
            targets_per_send: 1_000,
            payload_bytes_max: 4_096,
            ttl_default_s: 7 * 86_400,
            scheduled_per_app: 100_000,
            registration_expires_days: 90,
            feedback_days: 30,
            edits_per_s: 100,
            edits_burst: 10_000,
            allowance: Allowance::default(),
            apps: BTreeMap::new(),
        }
    }
}

/// A configuration that cannot be used; the text says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// It is not TOML, or a key is unknown or has a wrong value; the text has the line.
    #[error("{path}:{line}: {message}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The reason.
        message: String,
    },
    /// A value is out of its range.
    #[error("{key}: {rule}")]
    OutOfRange {
        /// The key, with its section.
        key: Cow<'static, str>,
        /// What it may be.
        rule: &'static str,
    },
}

impl Error {
    fn wrong(path: &Path, text: &str, cause: &toml::de::Error) -> Self {
        let before = cause.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        Self::Wrong { path: path.to_owned(), line, message: cause.message().replace('\n', "; ") }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error`], with the line of a wrong key.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path)
            .map_err(|cause| Error::Unreadable { path: path.to_owned(), cause })?;
        let config: Self =
            toml::from_str(&text).map_err(|cause| Error::wrong(path, &text, &cause))?;
        config.check()?;
        Ok(config)
    }

    /// Checks the ranges that types cannot.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for the first value out of its range.
    pub fn check(&self) -> Result<(), Error> {
        let rules = self.listen.rules().into_iter().chain(self.store.rules());
        let rules = rules.chain(self.longterm.rules());
        let rules =
            rules.chain(self.edge.rules()).chain(self.edge.gate.rules()).chain(self.api.rules());
        let rules = rules.chain(self.limits.allowance.rules()).chain(self.drain.rules());
        let rules = rules.chain(self.callbacks.rules(self.store.retention_days));
        let mut rules = rules.chain(self.limits.rules(self.store.retention_days));
        let wrong = rules.find(|rule| !rule.0).map(|Rule(_, key, rule)| (key.into(), rule));
        let wrong_app = || self.limits.wrong_app().map(|(key, rule)| (key.into(), rule));
        match wrong.or_else(wrong_app) {
            Some((key, rule)) => Err(Error::OutOfRange { key, rule }),
            None => Ok(()),
        }
    }
}

/// Whether it holds, for which key, and what the key may be.
struct Rule(bool, &'static str, &'static str);

impl Store {
    fn rules(&self) -> Vec<Rule> {
        vec![
            Rule((1..=366).contains(&self.retention_days), "store.retention_days", "1 to 366"),
            Rule((1..=64).contains(&self.shard_tasks), "store.shard_tasks", "1 to 64"),
            Rule(
                (1..=100_000_000).contains(&self.registrations_cached),
                "store.registrations_cached",
                "1 to 100000000",
            ),
            Rule(
                (1..=10_000_000).contains(&self.devices_cached),
                "store.devices_cached",
                "1 to 10000000",
            ),
            Rule(
                (1..=1_000).contains(&self.pointer_flush_ms),
                "store.pointer_flush_ms",
                "1 to 1000",
            ),
            Rule(self.cache_bytes >= 1 << 20, "store.cache_bytes", "at least 1048576"),
        ]
    }
}

impl Edge {
    fn rules(&self) -> Vec<Rule> {
        vec![
            Rule(self.connections_max >= 1, "edge.connections_max", "at least 1"),
            Rule(self.nice <= 19, "edge.nice", "at most 19"),
            Rule(self.handshakes_max >= 1, "edge.handshakes_max", "at least 1"),
            Rule(self.tls_handshakes_max >= 1, "edge.tls_handshakes_max", "at least 1"),
            Rule(self.handshake_timeout_ms >= 100, "edge.handshake_timeout_ms", "at least 100"),
            Rule(self.connect_bytes_max >= 256, "edge.connect_bytes_max", "at least 256"),
            Rule(
                (128 << 10..=256 << 20).contains(&self.packet_bytes_max),
                "edge.packet_bytes_max",
                "131072 to 268435456",
            ),
            Rule(
                (1..=self.keep_alive_max_s).contains(&self.keep_alive_min_s),
                "edge.keep_alive_min_s",
                "1 to edge.keep_alive_max_s",
            ),
            Rule(
                (10..=1_000_000).contains(&self.heartbeat_networks_max),
                "edge.heartbeat_networks_max",
                "10 to 1000000",
            ),
            Rule(
                (1..=7).contains(&self.heartbeat_voices_min),
                "edge.heartbeat_voices_min",
                "1 to 7",
            ),
            Rule(self.window >= 1, "edge.window", "at least 1"),
            Rule(
                (1..=self.window).contains(&self.window_per_registration),
                "edge.window_per_registration",
                "1 to edge.window",
            ),
            Rule(
                (1..=4_096).contains(&self.frame_entries_max),
                "edge.frame_entries_max",
                "1 to 4096",
            ),
            Rule(
                self.pack_bytes_min == 0 || (512..=128 << 10).contains(&self.pack_bytes_min),
                "edge.pack_bytes_min",
                "0, or 512 to 131072",
            ),
            Rule(
                self.send_buffer_bytes == 0 || (4_096..=16 << 20).contains(&self.send_buffer_bytes),
                "edge.send_buffer_bytes",
                "0, or 4096 to 16777216",
            ),
            Rule(self.write_timeout_ms >= 100, "edge.write_timeout_ms", "at least 100"),
        ]
    }
}

impl Api {
    fn rules(&self) -> Vec<Rule> {
        vec![
            Rule(self.connections_max >= 1, "api.connections_max", "at least 1"),
            Rule(self.calls_max >= 1, "api.calls_max", "at least 1"),
            Rule(self.head_bytes_max >= 8_192, "api.head_bytes_max", "at least 8192"),
            Rule(self.body_bytes_max >= 1_024, "api.body_bytes_max", "at least 1024"),
            Rule(self.head_timeout_ms >= 100, "api.head_timeout_ms", "at least 100"),
            Rule(self.request_timeout_ms >= 100, "api.request_timeout_ms", "at least 100"),
        ]
    }
}

impl Limits {
    fn rules(&self, retention_days: u32) -> Vec<Rule> {
        let bindings = self.aliases_per_registration + self.topics_per_registration;
        vec![
            Rule(
                (1..=1_000).contains(&self.targets_per_send),
                "limits.targets_per_send",
                "1 to 1000",
            ),
            Rule(
                (1..=100_000).contains(&self.registrations_per_alias),
                "limits.registrations_per_alias",
                "1 to 100000",
            ),
            allowance::payload_rule(self.payload_bytes_max),
            Rule(
                (1..=u64::from(retention_days) * 86_400).contains(&self.ttl_default_s),
                "limits.ttl_default_s",
                "1 to the retention in seconds",
            ),
            Rule(
                self.registration_expires_days == 0
                    || (2..=3_650).contains(&self.registration_expires_days),
                "limits.registration_expires_days",
                "0, or 2 to 3650",
            ),
            Rule(self.edits_per_s <= 10_000, "limits.edits_per_s", "0 to 10000"),
            Rule((1..=1_000_000).contains(&self.edits_burst), "limits.edits_burst", "1 to 1000000"),
            Rule((1..=366).contains(&self.feedback_days), "limits.feedback_days", "1 to 366"),
            Rule(
                bindings <= 4_000,
                "limits.topics_per_registration",
                "with the aliases at most 4000",
            ),
        ]
    }
}
