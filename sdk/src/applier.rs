//! The task that owns the replica, its store and the app's handler: one frame after the other, in order.
//!
//! For each frame: apply, give the messages to the app and wait for its handler, make the positions durable, and only
//! then hand back what is to be sent and acknowledged. Frames that wait are taken together under one save. Work is
//! never cancelled: what a dead connection left here is finished, so that the app is given nothing twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use carillon_wire::idl;
use carillon_wire::seal::AppKey;
use tokio::sync::{mpsc, oneshot};

use crate::heartbeat::StoredRecord;
use crate::items::Steps;
use crate::names::{App, Position, QueueName, Received, RegId};
use crate::replica::{Fault, Outcome, Replica};
use crate::restore::Restored;
use crate::seals::{Agreed, Offered, Rekeying};
use crate::state::Restore;
use crate::store::{BoxFuture, PositionStore};

/// The app's code.
pub type Handler = Box<dyn FnMut(Received) -> BoxFuture<'static, ()> + Send>;

/// All positions, by registration and queue.
pub type Positions = BTreeMap<RegId, BTreeMap<QueueName, Position>>;

/// What the applier is given.
pub enum Work {
    /// A new connection: answers its first frame once all is durable.
    Begin(oneshot::Sender<Result<idl::Up, Failure>>),
    /// A frame that concerns positions, from the connection that owns `done`.
    Frame { frame: Frame, packet_id: Option<u16>, done: mpsc::Sender<Done> },
    /// A call gave us this registration.
    Registered(RegId, App),
    /// What became of the successor of a registration that ended.
    Restored(Restored),
    /// A pair is to be offered for an app.
    Offer { app_id: String, app: AppKey, reply: oneshot::Sender<Option<Offered>> },
    /// A registration's key is to be changed.
    Rekey { regid: RegId, app: AppKey, reply: oneshot::Sender<Option<Rekeying>> },
    /// A call ended this registration.
    Unregistered(RegId),
    /// What was learned of networks.
    Networks(Vec<StoredRecord>),
    /// Where the device stands.
    Positions(oneshot::Sender<Positions>),
}

/// The kinds of `Down` that concern positions.
pub enum Frame {
    Deltas(idl::Deltas),
    Snapshot(idl::SnapshotChunk),
    Resumed(idl::Resumed),
    AskPositions,
    Ended(RegId),
    /// A call gave us this registration, with a key.
    Sealed(RegId, Box<Agreed>),
    /// A call changed its key.
    Rekeyed(RegId),
    /// A call that should have was refused.
    NotRekeyed(RegId),
    Expired(RegId),
}

impl From<idl::Ended> for Frame {
    fn from(ended: idl::Ended) -> Self {
        let regid = RegId::from(ended.regid);
        match ended.reason {
            Some(idl::EndReason::EXPIRED) => Self::Expired(regid),
            Some(_) | None => Self::Ended(regid),
        }
    }
}

/// One [`Work::Frame`] is finished: first send, then acknowledge.
pub type Done = Result<Finished, Failure>;

/// What the connection is to do.
#[derive(Debug, Default)]
pub struct Finished {
    pub send: Vec<idl::Up>,
    pub ack: Option<u16>,
}

/// Why the connection cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// It cannot be trusted.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The positions could not be made durable; nothing was acknowledged.
    #[error("cannot save positions: {0}")]
    Store(Arc<std::io::Error>),
}

/// See the module.
pub struct Applier<S> {
    pub device_id: String,
    pub replica: Replica,
    pub store: S,
    pub handler: Handler,
    pub inbox: mpsc::Receiver<Work>,
    /// Takes what is to be registered again, once that is durable. What finds no room waits for the next start.
    pub restores: mpsc::Sender<Restore>,
    /// What is not durable yet. Nothing of it is dropped when a save fails: the next one has it.
    pub steps: Steps,
}

/// Answers that wait for the save.
#[derive(Default)]
struct Held {
    begun: Option<(oneshot::Sender<Result<idl::Up, Failure>>, idl::Up)>,
    done: Vec<(mpsc::Sender<Done>, Done)>,
    /// Nothing is offered that would be forgotten in a crash.
    offers: Vec<(oneshot::Sender<Option<Offered>>, Option<Offered>)>,
    rekeys: Vec<(oneshot::Sender<Option<Rekeying>>, Option<Rekeying>)>,
}

impl<S: PositionStore> Applier<S> {
    /// Runs until nobody can send work any more and all of it is done.
    pub async fn run(mut self) {
        self.pass_restores();
        while let Some(work) = self.inbox.recv().await {
            let mut held = Held::default();
            self.step(work, &mut held).await;
            while held.done.len() < TOGETHER_MAX
                && let Ok(work) = self.inbox.try_recv()
            {
                self.step(work, &mut held).await;
            }
            self.finish(held).await;
        }
    }

    async fn step(&mut self, work: Work, held: &mut Held) {
        match work {
            Work::Begin(reply) => held.begun = Some((reply, self.replica.begin())),
            Work::Frame { frame, packet_id, done } => {
                let result = match self.frame(frame) {
                    Ok(outcome) => Ok(Finished { send: self.give(outcome).await, ack: packet_id }),
                    Err(fault) => Err(Failure::from(fault)),
                };
                held.done.push((done, result));
            }
            Work::Registered(regid, app) => self.replica.registered_for(regid, app),
            Work::Restored(restored) => {
                let outcome = self.replica.restored(restored);
                self.give(outcome).await;
            }
            Work::Offer { app_id, app, reply } => {
                held.offers.push((reply, self.replica.offer(&app_id, &app)));
            }
            Work::Rekey { regid, app, reply } => {
                held.rekeys.push((reply, self.replica.rekey(&regid, &app)));
            }
            Work::Unregistered(regid) => {
                let outcome = self.replica.unregistered(&regid);
                self.give(outcome).await;
            }
            Work::Networks(networks) => self.replica.learned(networks),
            // The caller may have gone; then nobody wants to know.
            Work::Positions(reply) => drop(reply.send(self.replica.positions())),
        }
    }

    fn frame(&mut self, frame: Frame) -> Result<Outcome, Fault> {
        Ok(match frame {
            Frame::Deltas(deltas) => self.replica.deltas(deltas)?,
            Frame::Snapshot(chunk) => self.replica.snapshot(chunk)?,
            Frame::Resumed(resumed) => self.replica.resumed(resumed)?,
            Frame::AskPositions => self.replica.ask_positions()?,
            Frame::Ended(regid) => self.replica.ended(regid),
            Frame::Expired(regid) => self.replica.expired(regid),
            Frame::Sealed(regid, agreed) => self.replica.sealed(regid, *agreed),
            Frame::Rekeyed(regid) => self.replica.rekeyed(&regid),
            Frame::NotRekeyed(regid) => self.replica.not_rekeyed(&regid),
        })
    }

    /// Gives the app what is for it; what is to be sent.
    async fn give(&mut self, outcome: Outcome) -> Vec<idl::Up> {
        let Outcome { deliver, send, steps } = outcome;
        self.steps.0.extend(steps.0);
        for received in deliver {
            (self.handler)(received).await;
        }
        send
    }

    /// Saves, then answers. A connection that is gone is not told.
    async fn finish(&mut self, held: Held) {
        let saved = self.save().await;
        for (reply, done) in held.done {
            let done = saved.clone().and(done);
            let _ = reply.send(done).await;
        }
        for (reply, offered) in held.offers {
            let _ = reply.send(offered.filter(|_| saved.is_ok()));
        }
        for (reply, rekeying) in held.rekeys {
            let _ = reply.send(rekeying.filter(|_| saved.is_ok()));
        }
        if let Some((reply, up)) = held.begun {
            let _ = reply.send(saved.map(|()| up));
        }
    }

    fn pass_restores(&mut self) {
        for restore in self.replica.take_restores() {
            if self.restores.try_send(restore).is_err() {
                return;
            }
        }
    }

    async fn save(&mut self) -> Result<(), Failure> {
        let Some(state) = self.replica.unsaved() else {
            return Ok(());
        };
        let value = state.to_bytes(&self.device_id);
        let steps = Arc::new(std::mem::take(&mut self.steps));
        match self.store.commit(value, steps.clone()).await {
            Ok(()) => {
                self.replica.saved();
                self.pass_restores();
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "positions cannot be saved, nothing is acknowledged");
                self.steps = Arc::try_unwrap(steps).unwrap_or_else(|steps| Steps(steps.0.clone()));
                Err(Failure::Store(Arc::new(error)))
            }
        }
    }
}

/// Frames that are taken under one save.
const TOGETHER_MAX: usize = 16;
