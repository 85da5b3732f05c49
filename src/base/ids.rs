//! The names of things, as types that cannot be mixed up.
//!
//! Device ids and regIDs begin with two bytes that place them on a virtual
//! shard, so that a device and its registrations always share one owner.

use std::{fmt, str::FromStr, sync::Arc};

use aws_lc_rs::{digest, rand};
use carillon_wire::names;
use data_encoding::{Encoding, Specification};
use serde::{Deserialize, Serialize};

/// Virtual shards; fixed for ever, because ids carry their placement.
pub const SHARDS: u16 = 1024;

/// A virtual shard: what owns a queue or a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shard(pub u16);

/// A text that is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}: {rule}")]
pub struct ParseError {
    /// What was to be read, in the API's words.
    pub kind: &'static str,
    /// What a valid one looks like.
    pub rule: &'static str,
}

static BASE32: std::sync::LazyLock<Encoding> = std::sync::LazyLock::new(|| {
    let mut spec = Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.encoding().expect("a constant, valid alphabet")
});

/// Fills an array with bytes from the operating system's generator.
///
/// # Panics
/// If the operating system has no randomness to give: nothing safe can follow.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Lower-case base32 without padding: safe in shells, URLs and file names.
pub fn base32(bytes: &[u8]) -> String {
    BASE32.encode(bytes)
}

/// The bytes of a [`base32`] text, if it is one.
pub fn from_base32(text: &str) -> Option<Vec<u8>> {
    BASE32.decode(text.as_bytes()).ok()
}

macro_rules! binary_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $kind:literal, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// The raw bytes, as stored.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }

            /// From stored bytes; `None` if their number is wrong.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base32(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                from_base32(text)
                    .and_then(|bytes| Self::from_slice(&bytes))
                    .ok_or(ParseError { kind: $kind, rule: $rule })
            }
        }
    };
}

binary_id!(
    /// A device account; MQTT client id and user name. 16 characters.
    DeviceId, 10, "device_id", "16 characters of a-z and 2-7"
);
binary_id!(
    /// A registration's public name. 32 characters, 144 of its bits random.
    RegId, 20, "regid", "32 characters of a-z and 2-7"
);
binary_id!(
    /// A message: 48 bits of milliseconds since 1970, 56 random bits that the messages of one
    /// call share, and its place in the call.
    MessageId, 15, "message id", "24 characters of a-z and 2-7"
);
binary_id!(
    /// A queue. An own queue's id is its regID; the others are a hash of app, kind and name.
    QueueId, 20, "queue id", "32 characters of a-z and 2-7"
);

fn placement(bytes: &[u8]) -> Shard {
    Shard(u16::from_be_bytes([bytes[0], bytes[1]]) % SHARDS)
}

impl DeviceId {
    /// A new, random id; its placement is random too.
    pub fn random() -> Self {
        Self(random_bytes())
    }

    /// The shard that owns the device and all its registrations.
    pub fn shard(&self) -> Shard {
        placement(&self.0)
    }
}

impl RegId {
    /// A new regID on the shard of its device.
    pub fn random(device: &DeviceId) -> Self {
        let mut bytes: [u8; 20] = random_bytes();
        bytes[..2].copy_from_slice(&device.0[..2]);
        Self(bytes)
    }

    /// The shard that owns the registration and its own queue.
    pub fn shard(&self) -> Shard {
        placement(&self.0)
    }
}

impl QueueId {
    /// The shard that owns the queue.
    pub fn shard(&self) -> Shard {
        placement(&self.0)
    }
}

impl MessageId {
    /// A new id that sorts by the given time, of the message with this place in a call that
    /// bears these random bytes.
    pub fn of_call(unix_ms: u64, call: &[u8; 7], place: u16) -> Self {
        let mut bytes = [0; 15];
        bytes[..6].copy_from_slice(&unix_ms.to_be_bytes()[2..]);
        bytes[6..13].copy_from_slice(call);
        bytes[13..].copy_from_slice(&place.to_be_bytes());
        Self(bytes)
    }

    /// What it shares with the other messages of its call and time.
    pub fn of_its_call(&self) -> &[u8] {
        &self.0[..13]
    }

    /// Its place in its call.
    pub fn place(&self) -> u16 {
        u16::from_be_bytes([self.0[13], self.0[14]])
    }

    /// When it was made, in milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        let b = &self.0;
        u64::from_be_bytes([0, 0, b[0], b[1], b[2], b[3], b[4], b[5]])
    }

    /// The shard that owns the message's record.
    pub fn shard(&self) -> Shard {
        placement(&self.0[11..])
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:expr, $allowed:expr, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Its text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                let allowed: fn(char) -> bool = $allowed;
                if text.is_empty() || text.len() > $max || !text.chars().all(allowed) {
                    return Err(ParseError { kind: $kind, rule: $rule });
                }
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseError;

            fn try_from(text: String) -> Result<Self, ParseError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

text_id!(
    /// A tenant's name.
    AppId, "app_id", 32,
    |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_',
    "1 to 32 characters of a-z, 0-9, - and _"
);
text_id!(
    /// The app's own name for a user or account.
    Alias, "alias", 128,
    |c| !c.is_control() && c != '\u{feff}',
    "1 to 128 bytes of UTF-8 without control characters"
);
text_id!(
    /// A name that registrations subscribe to.
    Topic, "topic", 128,
    |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~' | '%' | ':'),
    "1 to 128 characters of a-z, A-Z, 0-9, - _ . ~ % and :"
);

text_id!(
    /// A collection of an app.
    CollectionName, "collection", names::COLLECTION.bytes_max, names::COLLECTION.allowed, names::COLLECTION.says
);
text_id!(
    /// An item of a collection.
    ItemKey, "key", names::KEY.bytes_max, names::KEY.allowed, names::KEY.says
);

/// A queue by the name that its users know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum QueueName {
    /// The queue of one registration.
    Own(RegId),
    /// The queue of an alias of an app.
    Alias(AppId, Alias),
    /// The queue of a topic of an app.
    Topic(AppId, Topic),
    /// The one queue that every registration of an app follows.
    All(AppId),
}

impl QueueName {
    /// The id under which the queue is stored and placed.
    pub fn id(&self) -> QueueId {
        match self {
            Self::Own(regid) => QueueId(regid.0),
            Self::Alias(app, alias) => hashed(b'a', app, alias.as_str()),
            Self::Topic(app, topic) => hashed(b't', app, topic.as_str()),
            Self::All(app) => hashed(b'*', app, ""),
        }
    }

    /// Its app, if its name says so.
    pub fn app(&self) -> Option<&AppId> {
        match self {
            Self::Own(_) => None,
            Self::Alias(app, _) | Self::Topic(app, _) | Self::All(app) => Some(app),
        }
    }

    /// The kind's number on the wire and in the digest (`QueueKind` of the IDL).
    pub fn kind(&self) -> u8 {
        match self {
            Self::Own(_) => 1,
            Self::Alias(..) => 2,
            Self::Topic(..) => 3,
            Self::All(_) => 4,
        }
    }

    /// What the wire calls it besides its kind; empty for `Own` and `All`.
    pub fn wire_name(&self) -> &str {
        match self {
            Self::Alias(_, alias) => alias.as_str(),
            Self::Topic(_, topic) => topic.as_str(),
            Self::Own(_) | Self::All(_) => "",
        }
    }
}

/// `own`, `alias/NAME`, `topic/NAME`, `all`: how answers and plain messages show it.
impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(_) => f.write_str("own"),
            Self::Alias(_, alias) => write!(f, "alias/{alias}"),
            Self::Topic(_, topic) => write!(f, "topic/{topic}"),
            Self::All(_) => f.write_str("all"),
        }
    }
}

/// A queue's name with its id, which is worked out once. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue(Arc<(QueueName, QueueId)>);

impl Queue {
    /// Its name.
    pub fn name(&self) -> &QueueName {
        &self.0.0
    }

    /// Its id.
    pub fn id(&self) -> QueueId {
        self.0.1
    }
}

impl From<QueueName> for Queue {
    fn from(name: QueueName) -> Self {
        let id = name.id();
        Self(Arc::new((name, id)))
    }
}

fn hashed(kind: u8, app: &AppId, name: &str) -> QueueId {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[kind]);
    context.update(app.as_str().as_bytes());
    context.update(&[0]);
    context.update(name.as_bytes());
    let full = context.finish();
    let mut id = [0; 20];
    id.copy_from_slice(&full.as_ref()[..20]);
    QueueId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text_form() {
        let device = DeviceId::random();
        let regid = RegId::random(&device);
        assert_eq!(device.to_string().parse(), Ok(device));
        assert_eq!(regid.to_string().parse(), Ok(regid));
        assert_eq!(regid.shard(), device.shard());
        assert_eq!(QueueName::Own(regid).id().shard(), device.shard());
        assert_eq!((device.to_string().len(), regid.to_string().len()), (16, 32));
        let id = MessageId::of_call(1_700_000_000_123, &random_bytes(), 499);
        assert_eq!((id.unix_ms(), id.place()), (1_700_000_000_123, 499));
        assert_eq!((id.to_string().len(), id.to_string().parse()), (24, Ok(id)));
    }

    #[test]
    fn queues_of_different_kinds_and_apps_have_different_ids() {
        let (one, two): (AppId, AppId) = ("one".parse().unwrap(), "two".parse().unwrap());
        let ids = [
            QueueName::All(one.clone()).id(),
            QueueName::All(two.clone()).id(),
            QueueName::Topic(one.clone(), "x".parse().unwrap()).id(),
            QueueName::Alias(one, "x".parse().unwrap()).id(),
            QueueName::Topic(two, "x".parse().unwrap()).id(),
        ];
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }

    #[test]
    fn names_out_of_their_alphabet_are_refused() {
        assert!("Demo".parse::<AppId>().is_err());
        assert!("".parse::<AppId>().is_err());
        assert!("a+b@example.org".parse::<Alias>().is_ok());
        assert!("a\u{0}".parse::<Alias>().is_err());
        assert!("a/b".parse::<Topic>().is_err());
        assert!("x".repeat(129).parse::<Topic>().is_err());
    }
}
