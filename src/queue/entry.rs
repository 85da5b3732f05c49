//! What a queue holds: messages, changes of items, and changes of what a registration follows.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    collection::change::{Kind, Stamp, Value},
    condition::Condition,
    filter::Filter,
    position::{Epoch, Position, Seq},
};
use crate::base::ids::{CollectionName, MessageId, QueueName};

/// One immutable entry, shared by all who deliver it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its place: `position.epoch` is the epoch of its append.
    pub position: Position,
    /// When it was accepted, in milliseconds since 1970.
    pub at_ms: u64,
    /// What it says.
    pub body: Body,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// Something an app server sent.
    Message(Message),
    /// The registration follows one more queue, from `since` on. Own queues only.
    Follow {
        /// The queue that it follows from now on.
        queue: QueueName,
        /// Where its following begins.
        since: Position,
    },
    /// The registration no longer follows a queue. Own queues only.
    Unfollow {
        /// The queue that it followed.
        queue: QueueName,
    },
    /// A message that was in this queue is taken back.
    Recall(Recall),
    /// An item of a collection changed. Queues of aliases only.
    Change(Change),
}

/// An item of a collection changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The item's collection.
    pub collection: CollectionName,
    /// The item's key in it.
    pub key: Box<str>,
    /// What happened to it.
    pub kind: Kind,
    /// What it is now; empty if it was deleted.
    pub value: Value,
    /// When and by whom.
    pub stamp: Stamp,
    /// The item stands as that one made it.
    pub is_as_made: bool,
    /// The change that created the item in the life that this belongs to.
    pub born: Seq,
    /// There was an item of this key before that.
    pub lived_before: bool,
    /// The bytes of all changes of the queue so far, this one too.
    pub bytes_so_far: u64,
}

impl Change {
    /// Whether who stands at `position` never had the item that this deletes. Who had it from a
    /// life before may hold it still: the delete of then may have been left out for what followed.
    pub fn ends_unseen(&self, position: Seq) -> bool {
        self.kind == Kind::Delete && !self.lived_before && position < self.born
    }

    /// Whether it is about the same item.
    pub fn is_of_item_of(&self, other: &Self) -> bool {
        self.key == other.key && self.collection == other.collection
    }

    /// Under which a newer change of the item takes its place. No message has such a key.
    pub fn collapse_key(&self) -> Vec<u8> {
        [&[0xff], self.collection.as_str().as_bytes(), &[0], self.key.as_bytes()].concat()
    }

    /// What it adds to [`Change::bytes_so_far`].
    pub fn bytes(&self) -> usize {
        self.collection.as_str().len() + self.key.len() + self.value.bytes.len()
    }
}

/// A message is taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    /// Which.
    pub id: MessageId,
    /// Where it is in this queue: who follows it since then never had it from here.
    pub seq: Option<Seq>,
    /// As [`Message::is_shared`].
    pub is_shared: bool,
    /// As [`Message::audience`].
    pub audience: Option<Box<Audience>>,
}

/// Something an app server sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// The same in every queue that the message was appended to.
    pub id: MessageId,
    /// As sent: compact JSON, or bytes.
    #[serde(with = "bytes_field")]
    pub payload: Bytes,
    /// What the device may show by itself.
    pub notification: Option<Notification>,
    /// It is not delivered from this time on, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// It was sent to several shared queues: a registration that follows more
    /// than one of them takes it from the first in the order of the send.
    pub is_shared: bool,
    /// Each registration that acknowledges it gets a receipt.
    pub wants_receipt: bool,
    /// Followers see it one after the other, the last one so many milliseconds after its append.
    pub spread_ms: u64,
    /// How urgent it is.
    pub priority: Priority,
    /// Whom of the followers it is for; all of them without one.
    pub audience: Option<Box<Audience>>,
    /// A newer entry of the queue with the same key takes its place.
    pub collapse_key: Option<Box<str>>,
}

/// How urgent a message is: it chooses whose followers are woken first, and between queues on
/// a connection; never between entries of one queue.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before everything else.
    High,
    /// What is sent to registrations and aliases, unless it says otherwise.
    #[default]
    Normal,
    /// Broadcasts, unless they say otherwise.
    Low,
}

/// Whom of a queue's followers a message is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audience {
    /// Over the topics that a registration follows when it is delivered.
    pub condition: Option<Condition>,
    /// Over what its device says of itself then.
    pub filter: Option<Filter>,
}

impl Message {
    /// A message without any option.
    pub fn new(id: MessageId, payload: Bytes) -> Self {
        Self {
            id,
            payload,
            notification: None,
            expires_ms: None,
            is_shared: false,
            priority: Priority::Normal,
            wants_receipt: false,
            spread_ms: 0,
            audience: None,
            collapse_key: None,
        }
    }
}

impl Audience {
    fn bytes(&self) -> usize {
        let condition = self.condition.as_ref().map_or(0, Condition::bytes);
        condition + self.filter.as_ref().map_or(0, Filter::bytes)
    }
}

/// What the device may show by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// The bold line.
    pub title: Option<String>,
    /// The text.
    pub body: Option<String>,
    /// Further fields, as one JSON object.
    pub extra: Option<String>,
}

impl Body {
    /// Its size in memory and roughly on disk, in bytes.
    pub fn bytes(&self) -> usize {
        const FIXED: usize = 96;
        let variable = match self {
            Self::Message(message) => {
                let text = |t: &Option<String>| t.as_ref().map_or(0, String::len);
                let notification = message
                    .notification
                    .as_ref()
                    .map_or(0, |n| text(&n.title) + text(&n.body) + text(&n.extra));
                let audience = message.audience.as_ref().map_or(0, |audience| audience.bytes());
                message.payload.len() + notification + audience
            }
            Self::Recall(recall) => recall.audience.as_ref().map_or(0, |a| a.bytes()),
            Self::Follow { queue, .. } | Self::Unfollow { queue } => queue.wire_name().len(),
            Self::Change(change) => change.bytes(),
        };
        FIXED + variable
    }

    /// How urgent it is for those who follow the queue.
    pub fn priority(&self) -> Priority {
        match self {
            Self::Message(message) => message.priority,
            Self::Follow { .. } | Self::Unfollow { .. } => Priority::Normal,
            Self::Recall(_) | Self::Change(_) => Priority::Normal,
        }
    }

    /// Under which a newer entry of the queue takes its place, if one may.
    pub fn collapse_key(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Self::Message(message) => {
                message.collapse_key.as_ref().map(|key| Cow::Borrowed(key.as_bytes()))
            }
            Self::Change(change) => Some(Cow::Owned(change.collapse_key())),
            Self::Follow { .. } | Self::Unfollow { .. } | Self::Recall(_) => None,
        }
    }

    /// Whether it still concerns anybody at the given time.
    pub fn is_live(&self, now_ms: u64) -> bool {
        match self {
            Self::Message(message) => message.expires_ms.is_none_or(|at| now_ms < at),
            Self::Follow { .. } | Self::Unfollow { .. } => true,
            Self::Recall(_) | Self::Change(_) => true,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Stored<B> {
    epoch: Epoch,
    at_ms: u64,
    body: B,
}

impl Entry {
    /// The bytes that the store keeps under (queue, seq).
    pub fn to_stored(&self) -> Vec<u8> {
        let Self { position, at_ms, body } = self;
        let stored = Stored { epoch: position.epoch, at_ms: *at_ms, body };
        super::store::encode_about(&stored, body.bytes())
    }

    /// Reads what [`Entry::to_stored`] wrote under `seq`.
    ///
    /// # Errors
    /// If the bytes are not an entry: the store is damaged.
    pub fn from_stored(seq: Seq, bytes: &[u8]) -> Result<Self, super::store::Error> {
        let stored: Stored<Body> = super::store::decode(bytes)?;
        Ok(Self {
            position: Position { epoch: stored.epoch, seq },
            at_ms: stored.at_ms,
            body: stored.body,
        })
    }
}

/// Bytes as one field, without a copy for each of them.
pub(super) mod bytes_field {
    use bytes::Bytes;
    use serde::{Deserializer, Serializer, de};

    pub(in crate::queue) fn serialize<S: Serializer>(
        bytes: &Bytes,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(in crate::queue) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Bytes, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes::copy_from_slice(bytes))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}
