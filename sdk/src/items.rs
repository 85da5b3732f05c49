//! Items of collections as values, and what frames do to them.
//!
//! The replica decides the [`Steps`]; whoever keeps collections carries them out in the transaction that moves the
//! position. A store without collections drops them.

use bytes::Bytes;
use carillon_wire::idl;

use crate::names::RegId;

/// The value of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// How it is written.
    pub format: Format,
    /// At most 64 KiB.
    pub bytes: Bytes,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// A JSON document.
    #[default]
    Json,
    /// A Thrift struct of the app's own.
    Thrift,
    /// One that this version does not know.
    Other(i32),
}

impl Value {
    /// A JSON document.
    pub fn json(document: impl Into<Bytes>) -> Self {
        Self { format: Format::Json, bytes: document.into() }
    }

    /// A Thrift struct.
    pub fn thrift(bytes: impl Into<Bytes>) -> Self {
        Self { format: Format::Thrift, bytes: bytes.into() }
    }

    pub(crate) fn from_idl(format: Option<idl::ValueFormat>, bytes: Vec<u8>) -> Self {
        Self { format: Format::from_idl(format), bytes: bytes.into() }
    }
}

impl Format {
    pub(crate) fn from_idl(format: Option<idl::ValueFormat>) -> Self {
        format.map_or(Self::Json, |format| Self::from_number(format.0))
    }

    /// The number of the IDL.
    #[cfg(feature = "collections")]
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Json => idl::ValueFormat::JSON.0,
            Self::Thrift => idl::ValueFormat::THRIFT.0,
            Self::Other(number) => number,
        }
    }

    pub(crate) fn from_number(number: i32) -> Self {
        match idl::ValueFormat(number) {
            idl::ValueFormat::JSON => Self::Json,
            idl::ValueFormat::THRIFT => Self::Thrift,
            idl::ValueFormat(other) => Self::Other(other),
        }
    }
}

/// What frames did to collections, in order.
#[derive(Debug, Default, PartialEq)]
pub struct Steps(pub(crate) Vec<Step>);

/// One of them, in the collections of one alias of one registration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub regid: RegId,
    pub alias: String,
    pub what: What,
}

/// See [`Step`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    /// One entry.
    Changed { side: Side, seq: u64, change: Change },
    /// The items are at this position.
    Moved { epoch: u32, seq: u64 },
    /// A snapshot begins, beside the items; one that was begun is void.
    Began,
    /// Items of it.
    Gathered(Vec<Item>),
    /// It takes the place of the items, which are at this position then.
    Switched { epoch: u32, seq: u64 },
    /// It will not be continued.
    Voided,
    /// What the gateway holds of a collection.
    Digest(CollectionDigest),
    /// The registration has another name now, and follows the alias from its beginning.
    Renamed(RegId),
    /// The registration does not follow the alias any more.
    Forgotten,
}

/// Which of the two copies that there are while a snapshot is gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// What the app sees.
    Items,
    /// What takes its place.
    Gathered,
}

/// A change of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub collection: String,
    pub key: String,
    pub to: To,
    pub clock: u64,
    /// Our own edit led to it.
    pub cseq: Option<i64>,
}

/// What an item becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Value(Value),
    /// What our edit made it.
    Own,
    Deleted,
}

/// An item as it stands at the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub collection: String,
    pub key: String,
    pub seq: u64,
    pub value: Value,
    pub clock: u64,
}

/// What the gateway says that a collection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CollectionDigest {
    pub collection: String,
    pub epoch: u32,
    pub seq: u64,
    pub items: u64,
    pub digest: i64,
}

impl Change {
    pub(crate) fn from_idl(change: idl::Change) -> Self {
        let to = match (change.kind, change.value) {
            (idl::ChangeKind::DELETE, _) => To::Deleted,
            (_, Some(value)) => To::Value(Value::from_idl(change.format, value)),
            (_, None) => To::Own,
        };
        let clock = clock_from_idl(change.clock);
        let idl::Change { collection, key, cseq, .. } = change;
        Self { collection, key, to, clock, cseq }
    }
}

impl Item {
    /// `None` if its seq cannot be one.
    pub(crate) fn from_idl(item: idl::Item) -> Option<Self> {
        Some(Self {
            collection: item.collection,
            key: item.key,
            seq: u64::try_from(item.seq).ok()?,
            value: Value::from_idl(item.format, item.value),
            clock: clock_from_idl(item.clock),
        })
    }
}

impl CollectionDigest {
    /// `None` if a number cannot be one.
    pub(crate) fn from_idl(digest: idl::CollectionDigest) -> Option<Self> {
        Some(Self {
            collection: digest.collection,
            epoch: u32::try_from(digest.epoch).ok()?,
            seq: u64::try_from(digest.seq).ok()?,
            items: u64::try_from(digest.items).ok()?,
            digest: digest.digest,
        })
    }
}

/// 64 bits without a sign, which the wire carries with one.
fn clock_from_idl(clock: Option<i64>) -> u64 {
    clock.map_or(0, i64::cast_unsigned)
}
