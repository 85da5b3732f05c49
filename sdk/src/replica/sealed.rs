//! What sealing adds to the replica: messages are opened before anything of their frame is applied.

use carillon_wire::idl;
use carillon_wire::seal::{AppKey, Item, PrivateKey};

use super::delta::{Body, Delta};
use super::{Fault, Outcome, Replica};
use crate::names::{QueueName, Received, RegId};
use crate::seals::{Agreed, Offered, Pair, Rekeying, Seal, SealedBody, Trouble};
use crate::state::Registration;

/// Messages that did not open, by place, with how often.
pub type Unopened = Vec<((RegId, QueueName, u32, u64), u32)>;

/// What becomes of a frame of one registration.
pub enum Opening {
    /// Its messages are open, or passed over.
    Done,
    /// It waits for a key.
    Withheld,
}

impl Replica {
    /// What is offered for an app: the pair that its registration has, else one that was offered before, else a new
    /// one. `None`: the system gives no randomness.
    pub fn offer(&mut self, app_id: &str, app: &AppKey) -> Option<Offered> {
        let seals = self.state.registrations.values().filter_map(|one| one.seal.as_ref());
        if let Some(offered) = seals.filter_map(|seal| seal.offered(app_id)).next() {
            return Some(offered);
        }
        let known = self.state.pairs.get(app_id).filter(|pair| pair.app == *app);
        let pair = match known {
            Some(pair) => pair.clone(),
            None => Pair { app: *app, private: PrivateKey::random().ok()? },
        };
        let offered = Offered::of_pair(app_id, &pair).ok()?;
        self.state.pairs.insert(app_id.to_owned(), pair);
        self.is_dirty = true;
        Some(offered)
    }

    /// The gateway gave this device a registration with a key.
    pub fn sealed(&mut self, regid: RegId, agreed: Agreed) -> Outcome {
        self.registered(regid.clone());
        self.state.pairs.remove(&agreed.app_id);
        self.is_dirty = true;
        let registration = self.state.registrations.entry(regid.clone()).or_default();
        // It is never made again without a key.
        registration.app = None;
        registration.seal.get_or_insert_with(|| Seal::new(agreed));
        self.take_up(&regid)
    }

    /// Begins to change a registration's key, or goes on with it; `None` without one.
    pub fn rekey(&mut self, regid: &RegId, app: &AppKey) -> Option<Rekeying> {
        let registration = self.state.registrations.get_mut(regid)?;
        self.is_dirty = true;
        registration.seal.as_mut()?.rekey(regid, app).ok()
    }

    /// The gateway has the next key.
    pub fn rekeyed(&mut self, regid: &RegId) -> Outcome {
        if let Some(seal) = self.seal_mut(regid) {
            seal.rekeyed();
        }
        self.take_up(regid)
    }

    /// The gateway does not want the next key.
    pub fn not_rekeyed(&mut self, regid: &RegId) -> Outcome {
        if let Some(seal) = self.seal_mut(regid) {
            seal.not_rekeyed();
        }
        Outcome::default()
    }

    fn seal_mut(&mut self, regid: &RegId) -> Option<&mut Seal> {
        self.is_dirty = true;
        self.state.registrations.get_mut(regid)?.seal.as_mut()
    }

    /// What waited for a key is asked for again.
    fn take_up(&mut self, regid: &RegId) -> Outcome {
        let mut outcome = Outcome::default();
        if self.link.withheld.remove(regid) {
            outcome.send.extend(self.ask(regid));
        }
        outcome
    }

    /// Opens all messages of a frame. Nothing is applied yet.
    ///
    /// # Errors
    /// One does not open: the connection is not to be trusted, and the message comes again on the next one.
    pub(super) fn open(
        &mut self,
        regid: &RegId,
        deltas: &mut [Delta],
        outcome: &mut Outcome,
    ) -> Result<Opening, Fault> {
        if self.link.withheld.contains(regid) {
            return Ok(Opening::Withheld);
        }
        let mut none = Registration::default();
        let registration = self.state.registrations.get_mut(regid).unwrap_or(&mut none);
        for delta in deltas {
            let (queue, epoch, number) = (delta.queue.clone(), delta.epoch, delta.key_number);
            for entry in &mut delta.entries {
                let at = Place { regid, queue: &queue, epoch, seq: entry.seq };
                let is_known = |seal: &Seal| {
                    seal.is_opened(&queue, epoch, entry.seq) && is_message(&entry.body)
                };
                if registration.seal.as_ref().is_some_and(is_known) {
                    entry.body = Body::Known;
                    continue;
                }
                match open(
                    registration.seal.as_mut(),
                    self.sealed_only,
                    &at,
                    number,
                    &mut entry.body,
                ) {
                    Ok(()) => {}
                    Err(Trouble::NoKey) => {
                        self.link.withheld.insert(regid.clone());
                        outcome.deliver.push(Received::KeyMissing { regid: regid.clone() });
                        return Ok(Opening::Withheld);
                    }
                    Err(Trouble::Bad) if count(&mut self.unopened, &at) < TRIES_MAX => {
                        return Err(Fault("a message that cannot be opened"));
                    }
                    Err(Trouble::Bad) => {
                        let (regid, queue, seq) = (regid.clone(), queue.clone(), entry.seq);
                        tracing::error!(%queue, seq, "a message that cannot be opened is passed over");
                        entry.body = Body::Unopened;
                        outcome.deliver.push(Received::Unopened { regid, queue, seq });
                    }
                }
            }
        }
        Ok(Opening::Done)
    }
}

struct Place<'a> {
    regid: &'a RegId,
    queue: &'a QueueName,
    epoch: u32,
    seq: u64,
}

fn is_message(body: &Body) -> bool {
    match body {
        Body::Message(_) | Body::Sealed(..) | Body::Unopened | Body::Known => true,
        Body::Follow { .. } | Body::Unfollow { .. } | Body::Recall(_) | Body::Change(_) => false,
    }
}

fn open(
    seal: Option<&mut Seal>,
    sealed_only: bool,
    at: &Place<'_>,
    number: Option<u32>,
    body: &mut Body,
) -> Result<(), Trouble> {
    let (mut message, sealed) = match (std::mem::replace(body, Body::Known), &seal) {
        (Body::Sealed(message, sealed), _) => (message, sealed),
        // What has to be sealed and is not was not sent by the gateway.
        (Body::Message(_), Some(_)) => return Err(Trouble::Bad),
        (Body::Message(_), None) if sealed_only => return Err(Trouble::NoKey),
        (other, _) => {
            *body = other;
            return Ok(());
        }
    };
    let content = opened(seal.ok_or(Trouble::NoKey)?, at, number, &message, &sealed)?;
    message.opened(content);
    *body = Body::Message(message);
    Ok(())
}

fn opened(
    seal: &mut Seal,
    at: &Place<'_>,
    number: Option<u32>,
    message: &super::delta::MessageBody,
    sealed: &SealedBody,
) -> Result<idl::Content, Trouble> {
    let item = Item { seq: at.seq, id: message.id.as_bytes(), time_ms: message.time_ms };
    seal.open(at.regid, at.queue, at.epoch, &item, number, sealed)
}

/// How often this one has not opened, with this time.
fn count(unopened: &mut Unopened, at: &Place<'_>) -> u32 {
    let key = (at.regid.clone(), at.queue.clone(), at.epoch, at.seq);
    if let Some((_, times)) = unopened.iter_mut().find(|(known, _)| *known == key) {
        *times += 1;
        return *times;
    }
    if unopened.len() >= UNOPENED_MAX {
        unopened.remove(0);
    }
    unopened.push((key, 1));
    1
}

/// How often a message may fail to open before it is passed over.
const TRIES_MAX: u32 = 3;
/// Messages that did not open that are remembered.
const UNOPENED_MAX: usize = 64;
