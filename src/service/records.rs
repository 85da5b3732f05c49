//! The stored forms of the registry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    accept::Accept,
    receipts::Asked,
    seals::{AppSeal, RegistrationSeal},
};
use crate::{
    base::{
        ids::{AppId, CollectionName, DeviceId, MessageId, QueueId, QueueName, RegId},
        keys::SecretHash,
    },
    queue::{
        collection::rule::Rule,
        entry::{Audience, Message},
        filter::Attributes,
        position::{Position, Seq},
    },
};

/// A tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct App {
    /// Its name.
    pub id: AppId,
    /// What devices show when they register.
    pub key: SecretHash,
    /// What app servers show; several may be live, for rotation. Newest last.
    pub secrets: Vec<AppSecret>,
    /// Who may bind an alias.
    pub alias_policy: AliasPolicy,
    /// It was ended: nobody speaks for it, and its name is not given again.
    pub is_revoked: bool,
    /// Its keys for sealed payloads.
    pub seal: AppSeal,
    /// The collections that its aliases may have.
    pub collections: BTreeMap<CollectionName, Rule>,
}

/// What is stored of an app secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppSecret {
    /// To recognise it.
    pub hash: SecretHash,
    /// To check the alias tokens that were signed with it.
    pub alias_key: [u8; 32],
    /// To sign callbacks.
    pub callback_key: [u8; 32],
}

/// Who may bind an alias to a registration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AliasPolicy {
    /// The device, by itself.
    #[default]
    Open,
    /// The device, with a token from the app server.
    Signed,
    /// The app server alone.
    Server,
}

/// A device with all that its registrations follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its secret.
    pub secret: SecretHash,
    /// One registration an app.
    pub registrations: Vec<Registration>,
    /// The day when it was last here, as days since 1970.
    pub seen_day: u32,
    /// Registrations that ended because it stayed away: the newest, to tell it why.
    pub expired: Vec<RegId>,
}

/// One app on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// Its public name.
    pub regid: RegId,
    /// Its app.
    pub app: AppId,
    /// Where its own queue began.
    pub since: Position,
    /// The own queue's newest control entry that this record contains.
    pub control: Seq,
    /// Everything else that it follows: `all`, aliases, topics.
    pub follows: Vec<Follow>,
    /// When it takes messages, if not always.
    pub accept: Option<Box<Accept>>,
    /// Its key, if its payloads are sealed.
    pub seal: Option<RegistrationSeal>,
    /// What its device says of itself.
    pub attributes: Attributes,
}

/// One queue that a registration follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Follow {
    /// The queue.
    pub queue: QueueName,
    /// Where its following began.
    pub since: Position,
    /// The own queue's control entry that says so; 0 for what came with the registration.
    pub control: Seq,
}

/// All positions of one registration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Positions(pub Vec<(QueueId, Position)>);

impl Positions {
    /// The position in one queue.
    pub fn of(&self, queue: &QueueId) -> Option<Position> {
        self.0.iter().find(|(id, _)| id == queue).map(|(_, position)| *position)
    }

    /// Sets the position in one queue.
    pub fn set(&mut self, queue: QueueId, position: Position) {
        match self.0.iter_mut().find(|(id, _)| *id == queue) {
            Some((_, old)) => *old = position,
            None => self.0.push((queue, position)),
        }
    }
}

/// A message as it was accepted: what the trace starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageRecord {
    /// Its app.
    pub app: AppId,
    /// When it was accepted, in milliseconds since 1970.
    pub at_ms: u64,
    /// From when on it is not delivered, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// The queues that it was sent to, in the order of the send.
    pub queues: Vec<QueueName>,
    /// Its place, if it was sent to one queue; several have a record each.
    pub place: Option<Position>,
    /// What its sender wants to be told.
    pub asked: Asked,
    /// When it was to be sent, if its sender said so, in milliseconds since 1970: the time in its id.
    pub due_ms: Option<u64>,
    /// When its sender took it back before it was due, in milliseconds since 1970.
    pub cancelled_ms: Option<u64>,
    /// Whom of the followers it is for.
    pub audience: Option<Box<Audience>>,
}

impl MessageRecord {
    /// Whether a registration may follow several of its queues, and then takes it from the first.
    pub fn is_shared(&self) -> bool {
        self.queues.len() > 1 && !matches!(self.queues[0], QueueName::Own(_))
    }

    /// Whether a line in the record of its call says all: it was sent to one queue, and asks
    /// for nothing.
    pub fn is_plain(&self) -> bool {
        self.queues.len() == 1
            && self.asked == Asked::default()
            && self.audience.is_none()
            && self.due_ms.is_none()
    }
}

/// The plain messages of one call that one owner appended: one record for all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallRecord {
    /// Their app.
    pub app: AppId,
    /// When they were accepted, in milliseconds since 1970.
    pub at_ms: u64,
    /// The messages.
    pub lines: Vec<Line>,
}

/// A plain message in the record of its call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Its place in the call: the end of its id.
    pub call_place: u16,
    /// As [`MessageRecord::expires_ms`].
    pub expires_ms: Option<u64>,
    /// Its queue.
    pub queue: QueueName,
    /// Its place in that.
    pub place: Position,
}

impl CallRecord {
    /// The record of one of its messages.
    pub fn record_of(self, id: &MessageId) -> Option<MessageRecord> {
        let line = self.lines.into_iter().find(|line| line.call_place == id.place())?;
        Some(MessageRecord {
            app: self.app,
            at_ms: self.at_ms,
            expires_ms: line.expires_ms,
            queues: vec![line.queue],
            place: Some(line.place),
            asked: Asked::default(),
            due_ms: None,
            cancelled_ms: None,
            audience: None,
        })
    }
}

/// A message that is not due yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduledMessage {
    /// What becomes its record.
    pub record: MessageRecord,
    /// What is appended.
    pub message: Message,
    /// Over how many followers a second it is spread.
    pub max_rate_per_s: Option<u32>,
}

/// A message to several queues whose appends are not all done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingMessage {
    /// What is appended.
    pub message: Message,
    /// Where to.
    pub queues: Vec<QueueName>,
}

/// Keys of the records of a message's call begin with this: behind all places in a call, so
/// that no other record is among them.
pub fn call_prefix(id: &MessageId) -> Vec<u8> {
    [id.of_its_call(), &[u8::MAX]].concat()
}

/// Key of the record of a message's call, of the owner with this number.
pub fn call_key(id: &MessageId, owner: u8) -> Vec<u8> {
    [call_prefix(id).as_slice(), &[owner]].concat()
}

/// Key of a message's place in one queue.
pub fn place_key(message: &MessageId, queue: &QueueId) -> Vec<u8> {
    [message.as_bytes(), queue.as_bytes()].concat()
}

/// Key of a follower of a shared queue.
pub fn member_key(queue: &QueueId, regid: &RegId) -> Vec<u8> {
    [queue.as_bytes(), regid.as_bytes()].concat()
}

/// The device of a regID, as stored in `Space::Registrations`.
pub fn device_of(stored: &[u8]) -> Option<DeviceId> {
    DeviceId::from_slice(stored)
}
