//! A delta as a value that cannot be wrong, and the rule that says whether it fits.

use bytes::Bytes;
use carillon_wire::frame::{epoch_from_idl, seq_from_idl, tag_from_idl};
use carillon_wire::idl;
use carillon_wire::limits::TAG_BYTES;
use carillon_wire::seal::WRAPPED_KEY_BYTES;

use super::Fault;
use crate::items::{Change, Side};
use crate::names::{Message, MessageId, Notification, Position, QueueName, RegId};
use crate::seals::SealedBody;
use crate::state::Registration;

/// The part `[from..to]` of one queue.
#[derive(Debug)]
pub struct Delta {
    pub queue: QueueName,
    pub epoch: u32,
    /// The number of the key that sealed entries have.
    pub key_number: Option<u32>,
    /// At most `to + 1`.
    from: u64,
    to: u64,
    tag: [u8; TAG_BYTES],
    /// It does not continue what we stated.
    is_jump: bool,
    /// Ascending, inside of `[from..to]`.
    pub entries: Vec<Entry>,
}

/// One entry that we understand.
#[derive(Debug)]
pub struct Entry {
    pub seq: u64,
    pub body: Body,
}

/// What an entry says.
#[derive(Debug)]
pub enum Body {
    Message(MessageBody),
    /// Not opened yet.
    Sealed(MessageBody, SealedBody),
    /// Passed over: it cannot be opened.
    Unopened,
    /// It was opened before.
    Known,
    Follow {
        queue: QueueName,
        at: Position,
    },
    Unfollow {
        queue: QueueName,
    },
    Recall(MessageId),
    Change(Box<Change>),
}

/// A message without its place.
#[derive(Debug)]
pub struct MessageBody {
    pub id: MessageId,
    pub time_ms: i64,
    payload: Bytes,
    notification: Option<Notification>,
}

/// Whether a delta may be applied.
#[derive(Debug, PartialEq, Eq)]
pub enum Fit {
    /// The entries behind this position; all of them if there is none.
    After(Option<Position>, Side),
    /// Of a queue that has just been unfollowed.
    Late,
    /// It does not continue what we have.
    Gap,
}

impl Delta {
    /// `None` for a queue of a kind that we do not know.
    pub fn from_idl(delta: idl::Delta) -> Option<Result<Self, Fault>> {
        let queue = QueueName::from_idl(delta.queue.clone())?;
        Some(Self::checked(queue, delta))
    }

    fn checked(queue: QueueName, delta: idl::Delta) -> Result<Self, Fault> {
        let epoch = epoch_from_idl(delta.epoch).map_err(|_| Fault("epoch"))?;
        let from = seq_from_idl(delta.from_seq).map_err(|_| Fault("from_seq"))?;
        let to = seq_from_idl(delta.to_seq).map_err(|_| Fault("to_seq"))?;
        let tag = tag_from_idl(&delta.tag).map_err(|_| Fault("tag"))?;
        if from > to + 1 || from == 0 {
            return Err(Fault("a range that ends before it begins"));
        }
        let key_number = delta.key_number.and_then(|number| u32::try_from(number).ok());
        let wrapped = delta.wrapped_keys.unwrap_or_default();
        let (wrapped, rest) = wrapped.as_chunks::<WRAPPED_KEY_BYTES>();
        if !rest.is_empty() {
            return Err(Fault("wrapped keys"));
        }
        let mut wrapped = wrapped.iter();
        let mut entries = Vec::with_capacity(delta.entries.len());
        let mut seq_min = from;
        for entry in delta.entries {
            let seq = seq_from_idl(entry.seq).map_err(|_| Fault("seq"))?;
            if seq < seq_min || seq > to {
                return Err(Fault("an entry out of order or outside of its range"));
            }
            seq_min = seq + 1;
            let key = if entry.sealed.is_some() { wrapped.next() } else { None };
            if let Some(body) = Body::from_idl(entry, key)? {
                entries.push(Entry { seq, body });
            }
        }
        let is_jump = delta.jump.is_some();
        Ok(Self { queue, epoch, key_number, from, to, tag, is_jump, entries })
    }

    /// The rule of docs/PROTOCOL.md §4.4.
    pub fn fit(&self, registration: &Registration, is_unfollowed: bool) -> Fit {
        if is_unfollowed {
            return Fit::Late;
        }
        if self.is_jump {
            return Fit::After(None, Side::Items);
        }
        if let Some(reached) = registration.reached(self) {
            return Fit::After(Some(reached), Side::Gathered);
        }
        match registration.positions.get(&self.queue) {
            Some(last) if self.continues(*last) => Fit::After(Some(*last), Side::Items),
            Some(_) | None => Fit::Gap,
        }
    }

    /// Whether nothing is missing between a position and this.
    pub fn continues(&self, last: Position) -> bool {
        last.epoch == self.epoch && self.from <= last.seq + 1
    }

    /// Where we stand when it is applied. An overlap never moves a position back, and its tag proves only its own end.
    pub fn position_after(&self, last: Option<Position>) -> Position {
        match last {
            Some(last) if last.seq > self.to => last,
            Some(_) | None => Position { epoch: self.epoch, seq: self.to, tag: Some(self.tag) },
        }
    }
}

impl Body {
    /// `None` for what we do not know: it is skipped.
    fn from_idl(
        entry: idl::Entry,
        wrapped: Option<&[u8; WRAPPED_KEY_BYTES]>,
    ) -> Result<Option<Self>, Fault> {
        if let Some(id) = entry.id {
            let id = MessageId::from_bytes(&id).ok_or(Fault("a message id"))?;
            let message = MessageBody {
                id,
                time_ms: entry.time_ms.unwrap_or(0),
                payload: entry.payload.unwrap_or_default().into(),
                notification: entry.notification.map(|shown| Notification {
                    title: shown.title,
                    body: shown.body,
                    extra: shown.extra,
                }),
            };
            return Ok(Some(match entry.sealed {
                Some(sealed) => {
                    let body = SealedBody { sealed, wrapped: wrapped.copied() };
                    Self::Sealed(message, body)
                }
                None => Self::Message(message),
            }));
        }
        if let Some(id) = entry.recall {
            let id = MessageId::from_bytes(&id).ok_or(Fault("a message id"))?;
            return Ok(Some(Self::Recall(id)));
        }
        if let Some(change) = entry.change {
            return Ok(Some(Self::Change(Box::new(Change::from_idl(change)))));
        }
        if let Some(follow) = entry.follow {
            let epoch = epoch_from_idl(follow.epoch).map_err(|_| Fault("epoch"))?;
            let seq = seq_from_idl(follow.since).map_err(|_| Fault("since"))?;
            let tag = None;
            let at = Position { epoch, seq, tag };
            return Ok(QueueName::from_idl(follow.queue).map(|queue| Self::Follow { queue, at }));
        }
        let unfollow = entry.unfollow;
        let queue = unfollow.and_then(|unfollow| QueueName::from_idl(unfollow.queue));
        Ok(queue.map(|queue| Self::Unfollow { queue }))
    }
}

impl MessageBody {
    /// What was sealed takes the place of what was readable beside it.
    pub fn opened(&mut self, content: idl::Content) {
        self.payload = content.payload.unwrap_or_default().into();
        self.notification = content.notification.map(|shown| Notification {
            title: shown.title,
            body: shown.body,
            extra: shown.extra,
        });
    }

    /// With the place that it has.
    pub fn into_message(self, regid: &RegId, queue: &QueueName, seq: u64) -> Message {
        Message {
            regid: regid.clone(),
            queue: queue.clone(),
            seq,
            id: self.id,
            time_ms: self.time_ms,
            payload: self.payload,
            notification: self.notification,
        }
    }
}
