//! The device's copy of where it stands: which entries are new, what is acknowledged, what must be asked.
//!
//! Pure: frames go in, what to give to the app and what to send come out. It owns the durable [`State`] and the few
//! facts that live as long as one connection. It must never know sockets, files or clocks; whoever calls it gives the
//! messages to the app, makes the state durable, and only then acknowledges.

mod delta;
mod gathering;
#[cfg(test)]
mod model;
mod sealed;
#[cfg(test)]
mod sealed_tests;
mod stated;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use carillon_wire::idl;

use crate::heartbeat::StoredRecord;
use crate::items::{Side, Steps, What};
use crate::names::{App, Position, QueueName, Received, RegId};
use crate::restore::Restored;
use crate::state::{Registration, Restore, State};
use delta::{Delta, Fit};
pub use gathering::{Gathering, Missing};
use sealed::{Opening, Unopened};

/// The gateway broke the protocol; the connection must end. The text names the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the gateway broke the protocol: {0}")]
pub struct Fault(pub &'static str);

/// What follows from one frame.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// To be given to the app, in this order.
    pub deliver: Vec<Received>,
    /// To be sent before the frame is acknowledged.
    pub send: Vec<idl::Up>,
    /// To be made durable together with the positions.
    pub steps: Steps,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Replica {
    state: State,
    /// The state has changed since it was last saved.
    is_dirty: bool,
    /// Restores that were passed on.
    passed: BTreeSet<RegId>,
    /// Messages that are not sealed are not taken, whoever they are for.
    sealed_only: bool,
    unopened: Unopened,
    link: Link,
}

/// What is true of the present connection only.
#[derive(Debug, Default)]
struct Link {
    /// What the gateway has been told and has not answered by `Resumed` or `AskPositions`, oldest first.
    unanswered: VecDeque<Stated>,
    /// Registrations whose positions are among them: their gaps need no second question.
    asked: BTreeSet<RegId>,
    /// Questions about a queue in a row without any progress in it.
    gaps: BTreeMap<(RegId, QueueName), u32>,
    /// Queues that a control entry ended: their late deltas are dropped.
    unfollowed: BTreeSet<(RegId, QueueName)>,
    /// Registrations that ended: their late deltas are dropped.
    ended: BTreeSet<RegId>,
    /// Registrations whose deltas wait for a key.
    withheld: BTreeSet<RegId>,
}

/// What the gateway was told.
#[derive(Debug)]
enum Stated {
    /// The digest of everything.
    Digest,
    /// All positions in one frame: the answer lists all registrations.
    Everything,
    /// Positions of these.
    Some(Vec<RegId>),
}

impl Replica {
    /// With the state that was stored.
    pub fn new(state: State) -> Self {
        Self { state, ..Self::default() }
    }

    /// The same, and nothing is taken that is not sealed.
    pub fn sealed_only(state: State) -> Self {
        Self { state, sealed_only: true, ..Self::default() }
    }

    /// A new connection begins: its first frame.
    pub fn begin(&mut self) -> idl::Up {
        self.link = Link::default();
        self.link.unanswered.push_back(Stated::Digest);
        let digest = self.state.digest().to_idl();
        stated::up_resume(digest)
    }

    /// Applies a frame of deltas: all that fit, and a question for the others.
    ///
    /// # Errors
    /// A frame that cannot be, of which nothing is applied; or no progress although the gateway was told where we
    /// stand.
    pub fn deltas(&mut self, frame: idl::Deltas) -> Result<Outcome, Fault> {
        let regid = RegId::from(frame.regid);
        let deltas = frame.deltas.into_iter().filter_map(Delta::from_idl);
        let mut deltas = deltas.collect::<Result<Vec<_>, Fault>>()?;
        if self.link.ended.contains(&regid) {
            return Ok(Outcome::default());
        }
        let mut outcome = Outcome::default();
        match self.open(&regid, &mut deltas, &mut outcome)? {
            Opening::Done => {}
            Opening::Withheld => return Ok(outcome),
        }
        let (mut has_gap, mut has_applied) = (false, false);
        self.is_dirty = true;
        let registration = self.state.registrations.entry(regid.clone()).or_default();
        for delta in deltas {
            let key = (regid.clone(), delta.queue.clone());
            match delta.fit(registration, self.link.unfollowed.contains(&key)) {
                Fit::After(last, side) => {
                    has_applied = true;
                    self.link.gaps.remove(&key);
                    let whose = (&regid, &mut *registration);
                    apply(&mut self.link, whose, delta, (last, side), &mut outcome);
                }
                Fit::Late => {}
                Fit::Gap => {
                    has_gap = true;
                    // What came before it in this frame is applied: that is progress.
                    match self.link.count_gap(key) {
                        Err(fault) if !has_applied => return Err(fault),
                        Ok(()) | Err(_) => {}
                    }
                }
            }
        }
        Self::digests(&regid, frame.digests, &mut outcome);
        if has_gap {
            outcome.send.extend(self.ask(&regid));
        }
        Ok(outcome)
    }

    /// The gateway agrees; it may name all registrations that it holds for this device.
    ///
    /// # Errors
    /// It answers what was not asked.
    pub fn resumed(&mut self, frame: idl::Resumed) -> Result<Outcome, Fault> {
        let mut outcome = Outcome::default();
        let listed = frame.regids.map(|regids| {
            let regids = regids.into_iter().map(RegId::from);
            regids.collect::<BTreeSet<RegId>>()
        });
        match (self.link.answered()?, listed) {
            (Stated::Digest | Stated::Everything, Some(listed)) => {
                self.keep_only(&listed, &mut outcome);
            }
            // The digests agree. They say nothing of a registration that has no position yet.
            (Stated::Digest, None) if self.has_bare() => self.state_everything(&mut outcome),
            (Stated::Digest | Stated::Everything | Stated::Some(_), _) => {}
        }
        Ok(outcome)
    }

    /// The digests differ: states everything.
    ///
    /// # Errors
    /// It answers what was not asked.
    pub fn ask_positions(&mut self) -> Result<Outcome, Fault> {
        self.link.answered()?;
        let mut outcome = Outcome::default();
        self.state_everything(&mut outcome);
        Ok(outcome)
    }

    /// A registration of which nothing has come yet.
    fn has_bare(&self) -> bool {
        self.state.registrations.values().any(|known| known.positions.is_empty())
    }

    fn state_everything(&mut self, outcome: &mut Outcome) {
        let frames = stated::everything(&self.state);
        let is_one = frames.len() == 1;
        let last = frames.len() - 1;
        for (at, regids) in frames.into_iter().enumerate() {
            self.link.asked.extend(regids.iter().cloned());
            outcome.send.push(stated::up_positions(&self.state, &regids, at < last));
            self.link.unanswered.push_back(match is_one {
                true => Stated::Everything,
                false => Stated::Some(regids),
            });
        }
    }

    /// A registration is no more, because the device stayed away. It is to be made again, if we know how.
    pub fn expired(&mut self, regid: RegId) -> Outcome {
        let known = self.state.registrations.get(&regid);
        let Some(restore) = known.and_then(|known| known.to_restore(&regid)) else {
            return self.ended(regid);
        };
        self.state.restores.push(restore);
        // Its collections are kept for its successor.
        self.forget(&regid, &mut Outcome::default());
        Outcome::default()
    }

    /// A registration is no more.
    pub fn ended(&mut self, regid: RegId) -> Outcome {
        let mut outcome = Outcome::default();
        if self.forget(&regid, &mut outcome) {
            outcome.deliver.push(Received::Ended { regid });
        }
        outcome
    }

    /// The gateway gave this device a registration.
    pub fn registered(&mut self, regid: RegId) {
        self.link.ended.remove(&regid);
        if !self.state.registrations.contains_key(&regid) {
            self.is_dirty = true;
            self.state.registrations.insert(regid, Registration::default());
        }
    }

    /// The same, for an app that we know.
    pub fn registered_for(&mut self, regid: RegId, app: App) {
        self.registered(regid.clone());
        if let Some(registration) = self.state.registrations.get_mut(&regid) {
            self.is_dirty |= registration.app.as_ref() != Some(&app);
            registration.app = Some(app);
        }
    }

    /// Registrations that are to be made again and were not passed on since the start. The state that has them is
    /// durable.
    pub fn take_restores(&mut self) -> Vec<Restore> {
        let restores = self.state.restores.iter();
        let new: Vec<Restore> =
            restores.filter(|one| !self.passed.contains(&one.expired)).cloned().collect();
        self.passed.extend(new.iter().map(|one| one.expired.clone()));
        new
    }

    /// A registration was made again, or cannot be.
    pub fn restored(&mut self, restored: Restored) -> Outcome {
        let Restored { expired, successor } = restored;
        let mut outcome = Outcome::default();
        let found = self.state.restores.iter().position(|one| one.expired == expired);
        self.passed.remove(&expired);
        let Some(found) = found else { return outcome };
        let restore = self.state.restores.remove(found);
        self.is_dirty = true;
        for alias in restore.aliases {
            let queue = QueueName::Alias(alias.clone());
            let what = match &successor {
                Some((regid, left)) if !left.contains(&queue) => What::Renamed(regid.clone()),
                Some(_) | None => What::Forgotten,
            };
            outcome.step(&expired, &alias, [what]);
        }
        outcome.deliver.push(match successor {
            Some((regid, left)) => Received::Renewed { expired, regid, left },
            None => Received::Ended { regid: expired },
        });
        outcome
    }

    /// The app gave a registration back; it need not be told.
    pub fn unregistered(&mut self, regid: &RegId) -> Outcome {
        let mut outcome = Outcome::default();
        self.forget(regid, &mut outcome);
        outcome
    }

    /// Where the device stands in all queues of all registrations.
    pub fn positions(&self) -> BTreeMap<RegId, BTreeMap<QueueName, Position>> {
        let registrations = self.state.registrations.iter();
        registrations
            .map(|(regid, registration)| (regid.clone(), registration.positions.clone()))
            .collect()
    }

    /// What was learned of networks: kept beside the positions.
    pub fn learned(&mut self, networks: Vec<StoredRecord>) {
        self.state.networks = networks;
        self.is_dirty = true;
    }

    /// The state, if it has changed since it was last saved.
    pub fn unsaved(&self) -> Option<&State> {
        self.is_dirty.then_some(&self.state)
    }

    /// The state as it is now is durable.
    pub fn saved(&mut self) {
        self.is_dirty = false;
    }

    fn keep_only(&mut self, listed: &BTreeSet<RegId>, outcome: &mut Outcome) {
        let known = self.state.registrations.keys().cloned();
        let known: BTreeSet<RegId> = known.collect();
        for regid in known.difference(listed) {
            self.forget(regid, outcome);
            let regid = regid.clone();
            outcome.deliver.push(Received::Ended { regid });
        }
        for regid in listed.difference(&known) {
            self.registered(regid.clone());
        }
    }

    /// False if it was not known.
    fn forget(&mut self, regid: &RegId, outcome: &mut Outcome) -> bool {
        if self.link.ended.len() < ENDED_MAX {
            self.link.ended.insert(regid.clone());
        }
        let Some(known) = self.state.registrations.remove(regid) else { return false };
        self.is_dirty = true;
        for queue in known.positions.keys() {
            outcome.forgotten(regid, queue);
        }
        true
    }

    /// States the positions of one registration, unless they are on their way.
    fn ask(&mut self, regid: &RegId) -> Option<idl::Up> {
        if !self.link.asked.insert(regid.clone()) {
            return None;
        }
        let regids = vec![regid.clone()];
        let up = stated::up_positions(&self.state, &regids, false);
        self.link.unanswered.push_back(Stated::Some(regids));
        Some(up)
    }
}

impl Link {
    /// Takes what `Resumed` or `AskPositions` answers.
    fn answered(&mut self) -> Result<Stated, Fault> {
        let stated = self.unanswered.pop_front();
        let stated = stated.ok_or(Fault("an answer without a question"))?;
        match &stated {
            Stated::Digest | Stated::Everything => self.asked.clear(),
            Stated::Some(regids) => self.asked.retain(|regid| !regids.contains(regid)),
        }
        Ok(stated)
    }

    fn count_gap(&mut self, key: (RegId, QueueName)) -> Result<(), Fault> {
        if self.asked.contains(&key.0) {
            return Ok(());
        }
        let gaps = self.gaps.entry(key).or_default();
        *gaps += 1;
        match *gaps {
            ..=GAPS_MAX => Ok(()),
            _ => Err(Fault("gaps again and again although positions were stated")),
        }
    }

    fn remember_unfollowed(&mut self, regid: &RegId, queue: QueueName) {
        if self.unfollowed.len() < UNFOLLOWED_MAX {
            self.unfollowed.insert((regid.clone(), queue));
        }
    }
}

/// Takes the entries behind `last`, all of them if there is none, and moves the position.
fn apply(
    link: &mut Link,
    (regid, registration): (&RegId, &mut Registration),
    delta: Delta,
    (last, side): (Option<Position>, Side),
    outcome: &mut Outcome,
) {
    let is_own = delta.queue == QueueName::Own;
    let next = delta.position_after(last);
    for entry in delta.entries {
        if last.is_some_and(|last| entry.seq <= last.seq) {
            continue;
        }
        if let (Some(seal), delta::Body::Message(_) | delta::Body::Unopened) =
            (&mut registration.seal, &entry.body)
        {
            seal.opened(&delta.queue, delta.epoch, entry.seq);
        }
        match entry.body {
            delta::Body::Message(body) if registration.recent.insert(&body.id) => {
                let message = body.into_message(regid, &delta.queue, entry.seq);
                outcome.deliver.push(Received::Message(message));
            }
            delta::Body::Recall(id) => {
                // A copy that a crash of the gateway brings again is not shown any more.
                registration.recent.insert(&id);
                outcome.deliver.push(Received::Recalled { regid: regid.clone(), id });
            }
            delta::Body::Follow { queue, at } if is_own => {
                link.unfollowed.remove(&(regid.clone(), queue.clone()));
                // A snapshot for who followed it before is not continued: the next one begins.
                registration.gathering.remove(&queue);
                registration.positions.insert(queue, at);
            }
            delta::Body::Unfollow { queue } if is_own => {
                registration.positions.remove(&queue);
                registration.gathering.remove(&queue);
                outcome.forgotten(regid, &queue);
                link.remember_unfollowed(regid, queue);
            }
            delta::Body::Change(change) => {
                if let QueueName::Alias(alias) = &delta.queue {
                    let what = What::Changed { side, seq: entry.seq, change: *change };
                    outcome.step(regid, alias, [what]);
                }
            }
            delta::Body::Message(_)
            | delta::Body::Sealed(..)
            | delta::Body::Unopened
            | delta::Body::Known
            | delta::Body::Follow { .. }
            | delta::Body::Unfollow { .. } => {}
        }
    }
    let steps = registration.moved(&delta.queue, side, next);
    if let QueueName::Alias(alias) = &delta.queue {
        outcome.step(regid, alias, steps);
    }
}

/// Questions about one queue without progress before the connection is given up.
const GAPS_MAX: u32 = 3;
/// Unfollowed queues that one connection remembers.
const UNFOLLOWED_MAX: usize = 4096;
/// Ended registrations that one connection remembers.
const ENDED_MAX: usize = 1024;
