//! A delta as a value that cannot be wrong, and the rule that says whether it fits.

use bytes::Bytes;
use carillon_wire::frame::{epoch_from_idl, seq_from_idl, tag_from_idl};
use carillon_wire::idl;
use carillon_wire::limits::TAG_BYTES;

use super::Fault;
use crate::names::{Message, MessageId, Notification, Position, QueueName, RegId};
use crate::state::Registration;

/// The part `[from..to]` of one queue.
#[derive(Debug)]
pub struct Delta {
    pub queue: QueueName,
    epoch: u32,
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
    Follow { queue: QueueName, at: Position },
    Unfollow { queue: QueueName },
}

/// A message without its place.
#[derive(Debug)]
pub struct MessageBody {
    pub id: MessageId,
    time_ms: i64,
    payload: Bytes,
    notification: Option<Notification>,
}

/// Whether a delta may be applied.
#[derive(Debug, PartialEq, Eq)]
pub enum Fit {
    /// The entries behind this position; all of them if there is none.
    After(Option<Position>),
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
        let mut entries = Vec::with_capacity(delta.entries.len());
        let mut seq_min = from;
        for entry in delta.entries {
            let seq = seq_from_idl(entry.seq).map_err(|_| Fault("seq"))?;
            if seq < seq_min || seq > to {
                return Err(Fault("an entry out of order or outside of its range"));
            }
            seq_min = seq + 1;
            if let Some(body) = Body::from_idl(entry)? {
                entries.push(Entry { seq, body });
            }
        }
        Ok(Self { queue, epoch, from, to, tag, is_jump: delta.jump.is_some(), entries })
    }

    /// The rule of docs/PROTOCOL.md §4.4.
    pub fn fit(&self, registration: &Registration, is_unfollowed: bool) -> Fit {
        if is_unfollowed {
            return Fit::Late;
        }
        if self.is_jump {
            return Fit::After(None);
        }
        match registration.positions.get(&self.queue) {
            Some(last) if last.epoch == self.epoch && self.from <= last.seq + 1 => {
                Fit::After(Some(*last))
            }
            Some(_) | None => Fit::Gap,
        }
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
    fn from_idl(entry: idl::Entry) -> Result<Option<Self>, Fault> {
        if let Some(id) = entry.id {
            let id = MessageId::from_bytes(&id).ok_or(Fault("a message id"))?;
            return Ok(Some(Self::Message(MessageBody {
                id,
                time_ms: entry.time_ms.unwrap_or(0),
                payload: entry.payload.unwrap_or_default().into(),
                notification: entry.notification.map(|shown| Notification {
                    title: shown.title,
                    body: shown.body,
                    extra: shown.extra,
                }),
            })));
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
