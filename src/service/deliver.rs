//! Delivery to one registration: where it stands, what comes next, how far it is.

use std::sync::Arc;

use super::{Error, Service, records::Follow};
use crate::{
    base::ids::{QueueId, QueueName, RegId},
    queue::{
        entry::Entry,
        plan::{Jump, Stated},
        position::{Position, Seq, Tag},
    },
    route::Nudge,
};

/// One queue that a connected registration follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Following {
    /// Its name.
    pub queue: QueueName,
    /// The same as an id.
    pub id: QueueId,
    /// Where the following began.
    pub since: Position,
    /// The own queue's control entry that began it, 0 if it came with the registration.
    pub control: Seq,
}

impl From<&Follow> for Following {
    fn from(follow: &Follow) -> Self {
        Self {
            id: follow.queue.id(),
            queue: follow.queue.clone(),
            since: follow.since,
            control: follow.control,
        }
    }
}

/// Where deltas to a registration begin in one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// They begin after this position.
    pub after: Position,
    /// Set if the device stood elsewhere.
    pub jump: Option<Jump>,
    /// For the metric.
    pub reason: crate::base::metrics::ResumeReason,
}

/// How much to take of a queue at once.
#[derive(Clone, Copy, Debug)]
pub struct Take {
    /// At most so many entries.
    pub entries: usize,
    /// Stops at the entry that passes this many bytes of bodies.
    pub bytes: usize,
}

/// What comes next for a registration: `(after..to]` of one queue, in one epoch.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The entries that concern it; numbers in the range without one are skipped.
    pub entries: Vec<Arc<Entry>>,
    /// The end of the range.
    pub to: Position,
}

impl Service {
    /// Where a registration stands in one of its queues. `stated` is what the
    /// device says; without it the stored pointer answers.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn stand(&self, _regid: &RegId, _of: &Following, _stated: Option<Stated>) -> Result<Start, Error> {
        todo!()
    }

    /// The stored pointer of a registration in a queue (raised to `since`): what the digest is made of.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn stored_position(&self, _regid: &RegId, _of: &Following) -> Result<Position, Error> {
        todo!()
    }

    /// Where the queue's newest visible entry is.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn head(&self, _queue: &QueueId) -> Result<Position, Error> {
        todo!()
    }

    /// What follows `after` in `all[at]`, or `None` if there is nothing new. `all` is
    /// everything that the registration follows, its own queue first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn pull(&self, _regid: &RegId, _all: &[Following], _at: usize, _after: Seq, _take: Take) -> Result<Option<Pulled>, Error> {
        todo!()
    }

    /// The registration has handled everything up to `position`. Written within a second.
    pub fn acknowledge(&self, _regid: &RegId, _queue: QueueId, _position: Position) {
        todo!()
    }

    /// The tag of a position, for deltas in frames.
    pub fn tag(&self, _queue: &QueueId, _position: Position) -> Tag {
        todo!()
    }

    /// From now on `nudge` hears of new entries of the queue.
    pub fn follow(&self, queue: QueueId, nudge: &Arc<Nudge>) {
        self.router.followers.add(queue, nudge);
    }

    /// No longer.
    pub fn unfollow(&self, queue: QueueId, nudge: &Arc<Nudge>) {
        self.router.followers.remove(queue, nudge);
    }
}
