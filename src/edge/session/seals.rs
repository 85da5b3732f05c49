//! Sealing entries on their way into a frame.
//!
//! Pure: the same entry for the same registration is the same bytes each time. A body that many follow is sealed once
//! for all of them who are served by this thread; only its key is wrapped for each.

use std::{cell::RefCell, collections::VecDeque, sync::Arc};

use bytes::Bytes;
use carillon_wire::{
    frame, idl,
    limits::STRING_BYTES_MAX,
    seal::{self, BodyHash, EntryKey, Item, OwnKey, Refused, WrappingKey},
};

use super::down;
use crate::{
    base::{
        crash_point::fails,
        ids::{QueueName, RegId},
        metrics::SealedIn,
    },
    queue::{
        entry::{Body, Entry, Message},
        position::Epoch,
    },
    service::seals::Sealer,
};

/// Seals the entries of one delta.
pub struct DeltaSealer<'a> {
    sealer: &'a Sealer,
    regid: String,
    queue: &'a QueueName,
    epoch: Epoch,
    /// Derived for the first entry that needs it.
    key: Option<Key>,
    /// The wrapped keys so far.
    pub wrapped: Vec<u8>,
    /// Something was sealed.
    pub is_used: bool,
}

enum Key {
    Own(OwnKey),
    Wrapping(WrappingKey),
}

/// A shared entry that is sealed: its bytes in a frame, and what its followers get the key by.
#[derive(Clone)]
struct SharedEntry {
    bytes: Bytes,
    key: EntryKey,
    hash: BodyHash,
}

/// What became of an entry.
pub enum Outcome {
    /// The entry as it goes into the frame.
    Sealed(Bytes),
    /// Its body would be longer than a field of a frame may be.
    Oversize,
    /// It is a control entry, which goes as it is.
    Control,
    /// It would have to be sealed, and there is no way to: it does not go.
    Unsealed,
}

impl<'a> DeltaSealer<'a> {
    /// For the entries of one queue and epoch.
    pub fn new(sealer: &'a Sealer, regid: &RegId, queue: &'a QueueName, epoch: Epoch) -> Self {
        let (key, wrapped, is_used) = (None, Vec::new(), false);
        Self { sealer, regid: regid.to_string(), queue, epoch, key, wrapped, is_used }
    }

    /// The number of the key, if anything was sealed.
    pub fn number(&self) -> Option<u32> {
        self.is_used.then_some(self.sealer.number)
    }

    /// Seals one entry; its wrapped key joins [`DeltaSealer::wrapped`].
    ///
    /// # Errors
    /// The cipher refuses: the entry must not go out in any form.
    pub fn seal(&mut self, entry: &Arc<Entry>) -> Result<Outcome, Refused> {
        let message = match &entry.body {
            Body::Message(message) => message,
            Body::Change(_) => return Ok(Outcome::Unsealed),
            Body::Follow { .. } | Body::Unfollow { .. } | Body::Recall(_) => {
                return Ok(Outcome::Control);
            }
        };
        let item = item(entry, message);
        let queue = queue(self.queue, self.epoch);
        if self.key.is_none() {
            let key = &self.sealer.key;
            self.key = Some(match self.queue {
                QueueName::Own(_) => Key::Own(key.own(&queue)?),
                QueueName::Alias(..) | QueueName::Topic(..) | QueueName::All(_) => {
                    Key::Wrapping(key.wrapping(&queue)?)
                }
            });
        }
        let bytes = match &self.key {
            Some(Key::Own(key)) => {
                unless(fails("seal::own"))?;
                let content = frame::encode_content(&down::content(message));
                let sealed = key.seal(&self.regid, &queue, &item, content)?;
                if sealed.len() > STRING_BYTES_MAX {
                    return Ok(Outcome::Oversize);
                }
                encode(entry, sealed)
            }
            Some(Key::Wrapping(key)) => {
                let Some(shared) = shared(self.sealer, self.queue, entry, message)? else {
                    return Ok(Outcome::Oversize);
                };
                unless(fails("seal::wrap"))?;
                let (hash, entry_key) = (&shared.hash, &shared.key);
                key.wrap(&self.regid, &queue, &item, hash, entry_key, &mut self.wrapped)?;
                shared.bytes
            }
            None => return Err(Refused),
        };
        self.is_used = true;
        Ok(Outcome::Sealed(bytes))
    }
}

/// Where its sealed entries are counted.
pub fn kind_of(queue: &QueueName) -> SealedIn {
    match queue {
        QueueName::Own(_) => SealedIn::Own,
        QueueName::Alias(..) => SealedIn::Alias,
        QueueName::Topic(..) => SealedIn::Topic,
        QueueName::All(_) => SealedIn::All,
    }
}

/// A shared entry; `None` if it is too long.
fn shared(
    sealer: &Sealer,
    name: &QueueName,
    entry: &Arc<Entry>,
    message: &Message,
) -> Result<Option<SharedEntry>, Refused> {
    let known = RECENT.with_borrow(|recent| {
        let is_same = |(known, _): &&(Arc<Entry>, SharedEntry)| Arc::ptr_eq(known, entry);
        recent.iter().find(is_same).map(|(_, sealed)| sealed.clone())
    });
    if known.is_some() {
        return Ok(known);
    }
    unless(fails("seal::shared"))?;
    let (queue, item) = (queue(name, entry.position.epoch), item(entry, message));
    let key = sealer.entries.entry_key(&queue, &item)?;
    let sealed = key.seal(&queue, &item, frame::encode_content(&down::content(message)))?;
    if sealed.len() > STRING_BYTES_MAX {
        return Ok(None);
    }
    let fresh = SharedEntry { hash: BodyHash::of(&sealed), bytes: encode(entry, sealed), key };
    RECENT.with_borrow_mut(|recent| {
        recent.truncate(RECENT_MAX - 1);
        recent.push_front((entry.clone(), fresh.clone()));
    });
    Ok(Some(fresh))
}

/// What a test wants to go wrong.
fn unless(fails: bool) -> Result<(), Refused> {
    if fails { Err(Refused) } else { Ok(()) }
}

fn encode(entry: &Entry, sealed: Vec<u8>) -> Bytes {
    let entry = down::entry(entry, None);
    let entry = idl::Entry { payload: None, notification: None, sealed: Some(sealed), ..entry };
    frame::encode_entry(&entry)
}

fn queue(name: &QueueName, epoch: Epoch) -> seal::Queue<'_> {
    let text = down::queue_name(name).unwrap_or_default();
    seal::Queue { kind: name.kind(), name: text, epoch: epoch.0 }
}

fn item<'a>(entry: &Entry, message: &'a Message) -> Item<'a> {
    let time_ms = i64::try_from(entry.at_ms).unwrap_or_default();
    Item { seq: entry.position.seq.0, id: message.id.as_bytes(), time_ms }
}

thread_local! {
    /// Newest first.
    static RECENT: RefCell<VecDeque<(Arc<Entry>, SharedEntry)>> = const { RefCell::new(VecDeque::new()) };
}

/// Entries that are fanned out at the same time.
const RECENT_MAX: usize = 8;
