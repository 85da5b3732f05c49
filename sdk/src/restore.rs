//! The task that makes registrations again which ended because the device had stayed away.
//!
//! It asks as an app would, one call after the other, until it has an answer to each; all of them may be repeated.
//! What is to be done is durable before it comes here, so that a process that dies goes on with it at its next start.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::applier::Work;
use crate::backoff::Backoff;
use crate::calls::{CallError, Refusal};
use crate::connection::Command;
use crate::device::Device;
use crate::driver::Status;
use crate::names::{QueueName, RegId};
use crate::random::Random;
use crate::state::Restore;

/// What became of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The registration that had ended.
    pub expired: RegId,
    /// Its successor, with what it could not take over; absent if the gateway gives none.
    pub successor: Option<(RegId, Vec<QueueName>)>,
}

/// See the module. It holds the device weakly: a device that nobody wants stops.
pub struct Restorer {
    pub restores: mpsc::Receiver<Restore>,
    pub commands: mpsc::WeakSender<Command>,
    pub applier: mpsc::WeakSender<Work>,
    pub status: watch::Receiver<Status>,
    pub random: Random,
}

/// The call may be repeated later.
struct Later;

impl Restorer {
    /// Runs until the device has stopped.
    pub async fn run(mut self) {
        while let Some(restore) = self.restores.recv().await {
            let mut backoff = Backoff::new(self.random.clone());
            let restored = loop {
                if !self.is_online().await {
                    return;
                }
                match self.restore(&restore).await {
                    Ok(restored) => break restored,
                    Err(Later) => sleep(backoff.next_delay().max(PAUSE)).await,
                }
            };
            let Some(applier) = self.applier.upgrade() else { return };
            if applier.send(Work::Restored(restored)).await.is_err() {
                return;
            }
        }
    }

    /// Waits until calls can be made. False if they never can again.
    async fn is_online(&mut self) -> bool {
        let settled = |status: &Status| matches!(status, Status::Online | Status::Stopped(_));
        matches!(self.status.wait_for(settled).await.as_deref(), Ok(Status::Online))
    }

    async fn restore(&self, restore: &Restore) -> Result<Restored, Later> {
        let device = Device {
            commands: self.commands.upgrade().ok_or(Later)?,
            applier: self.applier.clone(),
            status: self.status.clone(),
        };
        let Restore { expired, app, aliases, topics } = restore;
        let registered = device.register(&app.app_id, &app.app_key).await;
        let Some(regid) = unless_later(registered)? else {
            return Ok(Restored { expired: expired.clone(), successor: None });
        };
        let mut left = Vec::new();
        for alias in aliases {
            if unless_later(device.bind(&regid, alias, None).await)?.is_none() {
                left.push(QueueName::Alias(alias.clone()));
            }
        }
        // In parts: a frame has its bound.
        for topics in topics.chunks(TOPICS) {
            let names: Vec<&str> = topics.iter().map(String::as_str).collect();
            if unless_later(device.subscribe(&regid, &names).await)?.is_none() {
                left.extend(topics.iter().cloned().map(QueueName::Topic));
            }
        }
        Ok(Restored { expired: expired.clone(), successor: Some((regid, left)) })
    }
}

/// An answer, or `None` for a no that stays one.
fn unless_later<T>(answer: Result<T, CallError>) -> Result<Option<T>, Later> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(CallError::Refused { refusal: Refusal::Unavailable, .. }) => Err(Later),
        Err(
            CallError::Refused { .. }
            | CallError::TooLarge
            | CallError::Incomplete
            | CallError::NotConfirmed
            | CallError::NotSealed,
        ) => Ok(None),
        Err(CallError::Offline | CallError::Timeout | CallError::Busy) => Err(Later),
    }
}

/// Topics of one call.
const TOPICS: usize = 16;
/// Between two attempts, at least.
const PAUSE: Duration = Duration::from_millis(500);
