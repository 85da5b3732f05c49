//! What a device keeps durably: where it stands in every queue, the ids of the last messages, and what it has learned
//! of networks.
//!
//! Owns the file's format, JSON with a version. It must never read damage as emptiness: what is not a whole state of
//! this device is an error.

use std::collections::{BTreeMap, HashSet, VecDeque};

use carillon_wire::digest::{Digest, position_hash};
use serde::{Deserialize, Serialize};

use crate::heartbeat::StoredRecord;
use crate::names::{MessageId, Position, QueueName, RegId, base32};

/// Message ids that a registration remembers, so that a message that comes again is not given to the app again.
pub const RECENT_IDS_MAX: usize = 1024;

/// Why stored bytes are not the state of this device.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not JSON of this shape.
    #[error("state is damaged")]
    Json(#[source] serde_json::Error),
    /// A field has a value that cannot be; the text names it.
    #[error("state is damaged: {0}")]
    Field(&'static str),
    /// Written by a later version of this library.
    #[error("state has the unknown version {0}")]
    Version(u32),
    /// The file of another device.
    #[error("state belongs to another device")]
    OtherDevice,
}

/// Everything durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub registrations: BTreeMap<RegId, Registration>,
    /// Intervals of heartbeats. They are checked by who uses them: nothing is lost with them.
    pub networks: Vec<StoredRecord>,
}

/// One registration's part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    pub positions: BTreeMap<QueueName, Position>,
    pub recent: Recent,
}

impl State {
    /// The digest of all positions.
    pub fn digest(&self) -> Digest {
        self.registrations
            .iter()
            .flat_map(|(regid, registration)| {
                registration.positions.iter().map(|(queue, at)| hash(regid, queue, *at))
            })
            .collect()
    }

    /// The bytes to be stored.
    pub fn to_bytes(&self, device_id: &str) -> Vec<u8> {
        let file = File {
            version: VERSION,
            device_id: device_id.to_owned(),
            networks: self.networks.clone(),
            registrations: self
                .registrations
                .iter()
                .map(|(regid, registration)| (regid.to_string(), registration.to_file()))
                .collect(),
        };
        serde_json::to_vec(&file).expect("maps with text keys are always JSON")
    }

    /// Reads what [`State::to_bytes`] wrote.
    pub fn from_bytes(device_id: &str, bytes: &[u8]) -> Result<Self, StateError> {
        let file: File = serde_json::from_slice(bytes).map_err(StateError::Json)?;
        if file.version != VERSION {
            return Err(StateError::Version(file.version));
        }
        if file.device_id != device_id {
            return Err(StateError::OtherDevice);
        }
        let registrations = file
            .registrations
            .into_iter()
            .map(|(regid, stored)| Ok((RegId::from(regid), Registration::from_file(stored)?)))
            .collect::<Result<_, StateError>>()?;
        Ok(Self { registrations, networks: file.networks })
    }
}

impl Registration {
    fn to_file(&self) -> FileRegistration {
        let positions = self.positions.iter().map(|(queue, at)| FilePosition {
            queue: queue.to_string(),
            epoch: at.epoch,
            seq: at.seq,
            tag: at.tag.map(|tag| base32().encode(&tag)),
        });
        FileRegistration {
            positions: positions.collect(),
            recent: self.recent.iter().map(MessageId::to_string).collect(),
        }
    }

    fn from_file(stored: FileRegistration) -> Result<Self, StateError> {
        let mut registration = Self::default();
        for stored in stored.positions {
            let queue = stored.queue.parse();
            let queue = queue.map_err(|_| StateError::Field("queue"))?;
            let tag = stored.tag.map(|tag| parse_tag(&tag)).transpose()?;
            if i32::try_from(stored.epoch).is_err() || i64::try_from(stored.seq).is_err() {
                return Err(StateError::Field("position"));
            }
            let at = Position { epoch: stored.epoch, seq: stored.seq, tag };
            registration.positions.insert(queue, at);
        }
        for id in stored.recent {
            let id = id.parse().map_err(|_| StateError::Field("recent"))?;
            registration.recent.insert(&id);
        }
        Ok(registration)
    }
}

/// The last [`RECENT_IDS_MAX`] message ids, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recent {
    order: VecDeque<MessageId>,
    known: HashSet<MessageId>,
}

impl Recent {
    /// Remembers an id and forgets the oldest beyond the bound. False if it was known.
    pub fn insert(&mut self, id: &MessageId) -> bool {
        if !self.known.insert(id.clone()) {
            return false;
        }
        self.order.push_back(id.clone());
        if self.order.len() > RECENT_IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    fn iter(&self) -> impl Iterator<Item = &MessageId> {
        self.order.iter()
    }
}

fn hash(regid: &RegId, queue: &QueueName, at: Position) -> u64 {
    let (kind, name) = queue.for_digest();
    position_hash(regid.as_str(), kind, name, at.epoch, at.seq)
}

fn parse_tag<const N: usize>(text: &str) -> Result<[u8; N], StateError> {
    let bytes = base32().decode(text.as_bytes());
    let bytes = bytes.map_err(|_| StateError::Field("tag"))?;
    bytes.try_into().map_err(|_| StateError::Field("tag"))
}

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    device_id: String,
    registrations: BTreeMap<String, FileRegistration>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    networks: Vec<StoredRecord>,
}

#[derive(Serialize, Deserialize)]
struct FileRegistration {
    positions: Vec<FilePosition>,
    recent: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct FilePosition {
    queue: String,
    epoch: u32,
    seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}
