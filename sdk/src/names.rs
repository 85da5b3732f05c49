//! What the app sees: names, positions and received messages.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use carillon_wire::idl;
use carillon_wire::limits::TAG_BYTES;
use data_encoding::{Encoding, Specification};

/// The public name of one app on one device.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegId(String);

impl RegId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for RegId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for RegId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for RegId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RegId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegId({})", self.0)
    }
}

/// The identity of a message; displayed as the HTTPS API writes it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(Box<[u8]>);

impl MessageId {
    /// The longest id that is accepted, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// The id as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// `None` if it is empty or too long.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let is_valid = !bytes.is_empty() && bytes.len() <= Self::BYTES_MAX;
        is_valid.then(|| Self(bytes.into()))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32().encode(&self.0))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

impl FromStr for MessageId {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let bytes = base32().decode(text.as_bytes()).map_err(|_| NotAName)?;
        Self::from_bytes(&bytes).ok_or(NotAName)
    }
}

/// An app as a device shows it to the gateway.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct App {
    pub app_id: String,
    pub app_key: String,
}

impl fmt::Debug for App {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "App({})", self.app_id)
    }
}

/// A queue as one registration names it. Displayed as `own`, `alias/<name>`, `topic/<name>` or `all`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QueueName {
    /// The registration's own.
    Own,
    /// That of an alias.
    Alias(String),
    /// That of a topic.
    Topic(String),
    /// That of everybody who uses the app.
    All,
}

impl QueueName {
    /// `None` for a kind that we do not know, or without the name that its kind needs.
    pub(crate) fn from_idl(queue: idl::Queue) -> Option<Self> {
        match (queue.kind, queue.name) {
            (idl::QueueKind::OWN, None) => Some(Self::Own),
            (idl::QueueKind::ALIAS, Some(name)) => Some(Self::Alias(name)),
            (idl::QueueKind::TOPIC, Some(name)) => Some(Self::Topic(name)),
            (idl::QueueKind::ALL, None) => Some(Self::All),
            _ => None,
        }
    }

    pub(crate) fn to_idl(&self) -> idl::Queue {
        let (kind, name) = match self {
            Self::Own => (idl::QueueKind::OWN, None),
            Self::Alias(name) => (idl::QueueKind::ALIAS, Some(name.clone())),
            Self::Topic(name) => (idl::QueueKind::TOPIC, Some(name.clone())),
            Self::All => (idl::QueueKind::ALL, None),
        };
        idl::Queue { kind, name }
    }

    /// The kind and the name that the digest is made of.
    pub(crate) fn for_digest(&self) -> (u8, &str) {
        match self {
            Self::Own => (1, ""),
            Self::Alias(name) => (2, name),
            Self::Topic(name) => (3, name),
            Self::All => (4, ""),
        }
    }

    /// Bytes of its name.
    pub(crate) fn name_bytes(&self) -> usize {
        self.for_digest().1.len()
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("own"),
            Self::Alias(name) => write!(f, "alias/{name}"),
            Self::Topic(name) => write!(f, "topic/{name}"),
            Self::All => f.write_str("all"),
        }
    }
}

impl FromStr for QueueName {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        match (text, text.split_once('/')) {
            ("own", _) => Ok(Self::Own),
            ("all", _) => Ok(Self::All),
            (_, Some(("alias", name))) => Ok(Self::Alias(name.to_owned())),
            (_, Some(("topic", name))) => Ok(Self::Topic(name.to_owned())),
            _ => Err(NotAName),
        }
    }
}

/// Text that is not a name of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a name of this kind")]
pub struct NotAName;

/// How far the device has come in one queue: all up to and including `seq` is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// `seq` compares only inside one epoch.
    pub epoch: u32,
    /// The last entry that is handled.
    pub seq: u64,
    /// The gateway's proof that it gave this position, if it came with a delta that ended here.
    pub tag: Option<[u8; TAG_BYTES]>,
}

/// What a device says of itself: messages with a filter are for those whom it matches. Each at
/// most 64 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Numbers with dots: `2.10.3`.
    pub app_version: Option<String>,
    /// A language tag: `de-AT`.
    pub locale: Option<String>,
    /// The device's model.
    pub model: Option<String>,
    /// The kind of network, in the app's words: `wifi`.
    pub network: Option<String>,
}

/// What the app's handler is called with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message, once.
    Message(Message),
    /// A message that could not be opened, three times: it is passed over.
    Unopened {
        /// The registration that it was for.
        regid: RegId,
        /// The queue that it came by.
        queue: QueueName,
        /// Its place in that queue.
        seq: u64,
    },
    /// Messages are held back because they are sealed with a key that this device does not have, or are not sealed and
    /// have to be. Register again with the app's key: they come then.
    KeyMissing {
        /// The registration that they are for.
        regid: RegId,
    },
    /// The sender takes a message back: stop showing it. It may be one that never came.
    Recalled {
        /// The registration that it was for.
        regid: RegId,
        /// Which.
        id: MessageId,
    },
    /// A registration is no more: register again if the app still wants it.
    Ended {
        /// Which.
        regid: RegId,
    },
    /// A registration ended because the device had not connected for too long, and has a successor with its aliases
    /// and topics. Tell the app server the new name.
    Renewed {
        /// The one that ended.
        expired: RegId,
        /// Its successor.
        regid: RegId,
        /// What the gateway did not let the device take over: aliases that need a token of the app server.
        left: Vec<QueueName>,
    },
}

/// One message as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The registration that it is for.
    pub regid: RegId,
    /// The queue that it came by first.
    pub queue: QueueName,
    /// Its place in that queue.
    pub seq: u64,
    /// The id that the app server knows.
    pub id: MessageId,
    /// Milliseconds since 1970, when the gateway accepted it; 0 if it did not say.
    pub time_ms: i64,
    /// As sent: compact JSON, or the bytes of `payload_b64`.
    pub payload: Bytes,
    /// What to show, if the sender said so.
    pub notification: Option<Notification>,
}

/// What to show for a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notification {
    /// The first line.
    pub title: Option<String>,
    /// The rest.
    pub body: Option<String>,
    /// Further fields of the sender's, as one JSON object.
    pub extra: Option<String>,
}

/// Lower-case base32 without padding, as the HTTPS API writes ids.
pub(crate) fn base32() -> Encoding {
    let mut spec = Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.encoding().expect("a constant and valid alphabet")
}
