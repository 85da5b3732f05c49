//! The fleet's experience of networks: which idle gaps survive, and what is advised to the next device.
//!
//! Pure but for a lock: times are values. It owns what is known of each network, in bounded memory, and knows neither
//! sessions nor packets. Nothing of it is kept over a restart: the fleet tells it again.

mod generations;
pub mod network;

use std::{
    hash::Hasher,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use siphasher::sip::SipHasher13;

use self::{
    generations::Generations,
    network::{Heard, Network},
};
use crate::base::ids::DeviceId;
pub use crate::base::metrics::{HeartbeatAdvice as Advice, HeartbeatReport as ReportResult};

/// The numbers of the advisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Networks that are remembered.
    pub networks_max: usize,
    /// In a small network, devices that must have survived an interval before another one hears of it.
    pub voices_min: usize,
    /// What any network is expected to survive, in seconds.
    pub safe_s: u16,
    /// Nothing below is advised, in seconds.
    pub floor_s: u16,
    /// Nothing above is tried, in seconds.
    pub top_s: u16,
    /// How far advice stays below what survived, in seconds.
    pub margin_s: u16,
    /// The first step of a search, in seconds. It is halved at each failure.
    pub step_s: u16,
    /// A search that needs smaller steps is over, in seconds.
    pub fine_s: u16,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            networks_max: 10_000,
            voices_min: 2,
            safe_s: 210,
            floor_s: 60,
            top_s: 1_200,
            margin_s: 10,
            step_s: 120,
            fine_s: 15,
        }
    }
}

/// How gaps fared for one device, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The longest that survived.
    pub survived_s: Option<u16>,
    /// One that did not.
    pub died_s: Option<u16>,
}

/// The key of a network: a keyed hash, so that nobody can choose what collides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkKey(u64);

/// A network as an address shows it, small enough for a connection to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressKey(u32);

/// See the module.
#[derive(Debug)]
pub struct Advisor {
    keys: (u64, u64),
    memory: Mutex<Memory>,
}

#[derive(Debug)]
struct Memory {
    rules: Rules,
    /// Networks that several devices have named or used.
    known: Generations<Network>,
    /// The others. A stranger who invents names pushes out only these.
    fresh: Generations<Network>,
}

impl Advisor {
    /// An advisor that knows nothing; `keys` are secret and random.
    pub fn new(rules: Rules, keys: (u64, u64)) -> Self {
        let fresh = rules.networks_max / 5;
        let known = rules.networks_max - fresh;
        let (known, fresh) = (Generations::new(known), Generations::new(fresh));
        Self { keys, memory: Mutex::new(Memory { rules, known, fresh }) }
    }

    /// From now on nothing above is tried or advised, in seconds.
    pub fn set_top(&self, top_s: u16) {
        self.memory().rules.top_s = top_s;
    }

    /// The key of a network as a device names it.
    pub fn named(&self, name: &str) -> NetworkKey {
        NetworkKey(self.hash(b'n', name.as_bytes()) | NAMED)
    }

    /// The key of an address: its /24, or its /48 in IPv6.
    pub fn at_address(&self, address: IpAddr) -> AddressKey {
        let hash = match address.to_canonical() {
            IpAddr::V4(v4) => self.hash(b'4', &v4.octets()[..3]),
            IpAddr::V6(v6) => self.hash(b'6', &v6.octets()[..6]),
        };
        AddressKey((hash as u32).max(1))
    }

    /// A device tells how gaps fared on its network.
    pub fn hear(&self, key: NetworkKey, device: &DeviceId, report: Report, now_s: u64) -> Heard {
        let (device, now_s) = (self.device(device), clip(now_s));
        let mut memory = self.memory();
        let rules = memory.rules;
        let is_known = memory.known.peek(key.0).is_some();
        let generations = if is_known { &mut memory.known } else { &mut memory.fresh };
        if generations.peek(key.0).is_none() {
            generations.insert(key.0, Network::new(key.0 as u32, &rules, now_s));
        }
        let Some(network) = generations.of_mut(key.0) else { return Heard::Aside };
        let heard = network.hear(device, report, &rules, now_s);
        if !is_known
            && network.voices() >= KNOWN_VOICES
            && let Some(network) = memory.fresh.remove(key.0)
        {
            memory.known.insert(key.0, network);
        }
        heard
    }

    /// The interval for a device that reports, in seconds.
    pub fn advice(&self, key: NetworkKey, device: &DeviceId, now_s: u64) -> Option<u16> {
        let device = self.device(device);
        let memory = self.memory();
        memory.network(key)?.advice(device, &memory.rules, clip(now_s))
    }

    /// The keep-alive for a device that asks for one and cannot be advised later, in seconds; `None`: as it asks.
    pub fn cap(&self, key: NetworkKey, device: &DeviceId, asked_s: u16, now_s: u64) -> Option<u16> {
        let device = self.device(device);
        let memory = self.memory();
        memory.network(key)?.cap(device, asked_s, &memory.rules, clip(now_s))
    }

    /// Networks that are remembered now.
    pub fn networks(&self) -> usize {
        let memory = self.memory();
        memory.known.len() + memory.fresh.len()
    }

    fn device(&self, device: &DeviceId) -> u32 {
        self.hash(b'd', device.as_bytes()) as u32
    }

    fn hash(&self, kind: u8, bytes: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.keys.0, self.keys.1);
        hasher.write_u8(kind);
        hasher.write(bytes);
        hasher.finish()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn network(&self, key: NetworkKey) -> Option<&Network> {
        self.known.peek(key.0).or_else(|| self.fresh.peek(key.0))
    }
}

impl AddressKey {
    /// The network, if the address is known.
    pub fn network(self) -> Option<NetworkKey> {
        (self.0 > 0).then_some(NetworkKey(u64::from(self.0)))
    }
}

fn clip(now_s: u64) -> u32 {
    u32::try_from(now_s).unwrap_or(u32::MAX)
}

/// Keeps names and addresses apart.
const NAMED: u64 = 1 << 63;
/// A network of so many devices is not one that a single stranger has made up.
const KNOWN_VOICES: usize = 3;

#[cfg(test)]
mod tests;
