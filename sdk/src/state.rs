//! What a device keeps durably: where it stands in every queue, the ids of the last messages, and what it has learned
//! of networks.
//!
//! Owns the file's format, JSON with a version. It must never read damage as emptiness: what is not a whole state of
//! this device is an error.

use std::collections::{BTreeMap, HashSet, VecDeque};

use carillon_wire::digest::{Digest, position_hash};
use serde::{Deserialize, Serialize};

use crate::heartbeat::StoredRecord;
use crate::names::{App, MessageId, Position, QueueName, RegId, base32};
use crate::replica::{Gathering, Missing};
use crate::seals::{FilePair, FileSeal, Pair, Seal};

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
    /// Offered and not answered, by app.
    pub pairs: BTreeMap<String, Pair>,
    /// Registrations that ended because the device stayed away, until they are made again.
    pub restores: Vec<Restore>,
}

/// A registration that is to be made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The one that ended.
    #[serde(with = "as_text")]
    pub expired: RegId,
    pub app: App,
    pub aliases: Vec<String>,
    pub topics: Vec<String>,
}

/// One registration's part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    pub positions: BTreeMap<QueueName, Position>,
    /// Queues of aliases in which a snapshot has begun and is not in the place of the items yet.
    pub gathering: BTreeMap<QueueName, Gathering>,
    pub recent: Recent,
    /// Whose it is, if this device registered it.
    pub app: Option<App>,
    /// Set if its messages are sealed: then nothing else is taken.
    pub seal: Option<Seal>,
}

impl State {
    /// The digest of all positions.
    pub fn digest(&self) -> Digest {
        self.registrations
            .iter()
            .flat_map(|(regid, registration)| {
                let positions = registration.positions.iter();
                let positions = positions.map(|(queue, at)| hash(regid, queue, *at));
                // Then the gateway asks, and learns what of a snapshot is there.
                let gathering = registration.gathering.iter();
                positions.chain(gathering.map(|(queue, one)| !hash(regid, queue, one.at)))
            })
            .collect()
    }

    /// The bytes to be stored.
    pub fn to_bytes(&self, device_id: &str) -> Vec<u8> {
        let file = File {
            version: VERSION,
            device_id: device_id.to_owned(),
            networks: self.networks.clone(),
            restores: self.restores.clone(),
            pairs: self.pairs.iter().map(|(app, pair)| (app.clone(), pair.to_file())).collect(),
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
        let pair = |(app, stored)| Some((app, Pair::from_file(stored)?));
        let pairs = file.pairs.into_iter().map(pair).collect::<Option<_>>();
        let pairs = pairs.ok_or(StateError::Field("pairs"))?;
        Ok(Self { registrations, networks: file.networks, restores: file.restores, pairs })
    }
}

impl Registration {
    /// What it takes to make it again, if the device knows its app.
    pub fn to_restore(&self, regid: &RegId) -> Option<Restore> {
        let (mut aliases, mut topics) = (Vec::new(), Vec::new());
        for queue in self.positions.keys() {
            match queue {
                QueueName::Alias(name) => aliases.push(name.clone()),
                QueueName::Topic(name) => topics.push(name.clone()),
                QueueName::Own | QueueName::All => {}
            }
        }
        Some(Restore { expired: regid.clone(), app: self.app.clone()?, aliases, topics })
    }

    fn to_file(&self) -> FileRegistration {
        let positions = self.positions.iter().map(|(queue, at)| FilePosition::new(queue, *at));
        FileRegistration {
            positions: positions.collect(),
            gathering: self.gathering.iter().map(FileGathering::from).collect(),
            recent: self.recent.iter().map(MessageId::to_string).collect(),
            app: self.app.clone(),
            seal: self.seal.as_ref().map(Seal::to_file),
        }
    }

    fn from_file(stored: FileRegistration) -> Result<Self, StateError> {
        let mut registration = Self { app: stored.app, ..Self::default() };
        for stored in stored.positions {
            let (queue, at) = stored.parse()?;
            registration.positions.insert(queue, at);
        }
        for stored in stored.gathering {
            let (queue, gathering) = stored.parse()?;
            registration.gathering.insert(queue, gathering);
        }
        for id in stored.recent {
            let id = id.parse().map_err(|_| StateError::Field("recent"))?;
            registration.recent.insert(&id);
        }
        if let Some(stored) = stored.seal {
            let seal = Seal::from_file(stored).ok_or(StateError::Field("seal"))?;
            registration.seal = Some(seal);
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    restores: Vec<Restore>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pairs: BTreeMap<String, FilePair>,
}

#[derive(Serialize, Deserialize)]
struct FileRegistration {
    positions: Vec<FilePosition>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gathering: Vec<FileGathering>,
    recent: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    app: Option<App>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<FileSeal>,
}

#[derive(Serialize, Deserialize)]
struct FilePosition {
    queue: String,
    epoch: u32,
    seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct FileGathering {
    at: FilePosition,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reached: Option<FilePosition>,
    #[serde(default)]
    until: u64,
}

impl FilePosition {
    fn new(queue: &QueueName, at: Position) -> Self {
        let Position { epoch, seq, tag } = at;
        let tag = tag.map(|tag| base32().encode(&tag));
        Self { queue: queue.to_string(), epoch, seq, tag }
    }

    fn parse(self) -> Result<(QueueName, Position), StateError> {
        let queue = self.queue.parse();
        let queue = queue.map_err(|_| StateError::Field("queue"))?;
        let tag = self.tag.map(|tag| parse_tag(&tag)).transpose()?;
        if i32::try_from(self.epoch).is_err() || i64::try_from(self.seq).is_err() {
            return Err(StateError::Field("position"));
        }
        Ok((queue, Position { epoch: self.epoch, seq: self.seq, tag }))
    }
}

impl From<(&QueueName, &Gathering)> for FileGathering {
    fn from((queue, gathering): (&QueueName, &Gathering)) -> Self {
        let at = FilePosition::new(queue, gathering.at);
        match &gathering.missing {
            Missing::Chunks(cursor) => {
                Self { at, cursor: Some(base32().encode(cursor)), reached: None, until: 0 }
            }
            Missing::Deltas { reached, until } => {
                let reached = Some(FilePosition::new(queue, *reached));
                Self { at, cursor: None, reached, until: *until }
            }
        }
    }
}

impl FileGathering {
    fn parse(self) -> Result<(QueueName, Gathering), StateError> {
        let (queue, at) = self.at.parse()?;
        let missing = match (self.cursor, self.reached) {
            (Some(cursor), None) => {
                let cursor = base32().decode(cursor.as_bytes());
                Missing::Chunks(cursor.map_err(|_| StateError::Field("cursor"))?)
            }
            (None, Some(reached)) => {
                Missing::Deltas { reached: reached.parse()?.1, until: self.until }
            }
            (Some(_), Some(_)) | (None, None) => return Err(StateError::Field("gathering")),
        };
        Ok((queue, Gathering { at, missing }))
    }
}

/// A regID as its text.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::names::RegId;

    pub(super) fn serialize<S: Serializer>(regid: &RegId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(regid.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<RegId, D::Error> {
        String::deserialize(from).map(RegId::from)
    }
}
