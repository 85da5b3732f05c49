//! Delivery to one registration: where it stands, what comes next, how far it is.

use std::sync::Arc;

use super::{
    Error, Service,
    judge::Verdict,
    records::{Positions, Registration},
    snapshots::Gather,
    spread,
};
pub use crate::queue::{plan::Claim, reader::Take};
use crate::{
    base::{
        ids::{Queue, QueueId, QueueName, RegId},
        metrics::{ResumeReason, Skip},
        tasks,
    },
    queue::{
        entry::{Body, Entry},
        log::Log,
        plan::{Jump, Stand, plan},
        position::{self, Epoch, Position, Seq, Tag},
        reader::Run,
    },
    route::Nudge,
};

/// One queue that a connected registration follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Following {
    /// The queue.
    pub queue: Queue,
    /// Where the following began.
    pub since: Position,
    /// The own queue's control entry that began it, 0 if it came with the registration.
    pub control: Seq,
}

impl Following {
    /// Everything that a registration follows, its own queue first. `named` gives a
    /// queue its shared form.
    pub fn all_of(registration: &Registration, named: impl Fn(&QueueName) -> Queue) -> Vec<Self> {
        let own = Self {
            queue: QueueName::Own(registration.regid).into(),
            since: registration.since,
            control: Seq(0),
        };
        let mut all = Vec::with_capacity(1 + registration.follows.len());
        all.push(own);
        all.extend(registration.follows.iter().map(|follow| Self {
            queue: named(&follow.queue),
            since: follow.since,
            control: follow.control,
        }));
        all
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
    pub reason: ResumeReason,
    /// The stored pointer is there already.
    pub is_stored: bool,
    /// A snapshot comes before them.
    pub gather: Option<Gather>,
}

/// What is stated of a registration's place in a queue.
#[derive(Clone, Copy, Debug)]
pub struct Stated {
    /// Where it is.
    pub claim: Claim,
    /// There it has chunks of a snapshot, and not all.
    pub gather: Option<Gather>,
}

impl From<Claim> for Stated {
    fn from(claim: Claim) -> Self {
        Self { claim, gather: None }
    }
}

/// What comes next for a registration: `(after..to]` of one queue, in one epoch.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The entries that concern it; numbers in the range without one are skipped.
    pub entries: Vec<Arc<Entry>>,
    /// The end of the range.
    pub to: Position,
    /// Those that are for it and not given. Counted when its pointer passes them, and so once.
    pub skipped: Vec<(Seq, Skip)>,
    /// The queue had no more: what comes later is news.
    pub is_all: bool,
    /// Retention has dropped changes of the range: a snapshot has them.
    pub is_torn: bool,
}

/// What a look into a queue finds.
#[derive(Clone, Debug)]
pub enum Next {
    /// Nothing new.
    Nothing,
    /// Nothing yet: not before this time, in milliseconds since 1970.
    NotBefore(u64),
    /// Something.
    Pulled(Pulled),
}

impl Service {
    /// Where a registration stands in the queues that it follows. `claim` gives what is
    /// claimed of each, knowing where it stands in its own queue once that is settled.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn stands(
        &self,
        regid: &RegId,
        followings: &[Following],
        claim: impl Fn(&Following, Option<Seq>) -> Stated,
    ) -> Result<Vec<Start>, Error> {
        let positions = self.positions(regid)?;
        let mut starts: Vec<Start> = Vec::with_capacity(followings.len());
        for (at, following) in followings.iter().enumerate() {
            let own = starts.first().map(|own| own.after.seq);
            let start = self.stand(&positions, following, claim(following, own))?;
            self.make_up(regid, &positions, (followings, at), &start)?;
            starts.push(start);
        }
        Ok(starts)
    }

    fn stand(&self, positions: &Positions, of: &Following, stated: Stated) -> Result<Start, Error> {
        let Stated { claim, gather } = stated;
        let log = self.router.log(&of.queue.id())?;
        let stored = positions.of(&of.queue.id());
        let stand = Stand { claim, stored, since: of.since };
        let plan = plan(&log, self.router.oldest_day(), stand);
        if plan.proves_loss
            && let Claim::At { position, .. } = claim
        {
            self.raise_epoch(of.queue.id(), position.epoch);
        }
        let reason = match (plan.is_forged, plan.jump, claim) {
            (true, ..) => ResumeReason::Forged,
            (_, Some(Jump::New), _) => ResumeReason::New,
            (_, Some(Jump::EpochChanged), _) => ResumeReason::EpochChanged,
            (_, Some(Jump::Overflow), _) => ResumeReason::Overflow,
            (_, Some(Jump::Ahead), _) => ResumeReason::Ahead,
            (_, Some(Jump::Smaller), _) => ResumeReason::Continued,
            (_, None, Claim::Stored) => ResumeReason::Stored,
            (_, None, Claim::Nothing | Claim::At { .. }) => ResumeReason::Continued,
        };
        let current = self.router.epoch(of.queue.id().shard());
        let after =
            Position { epoch: epoch_at(&log, plan.after, current, claim, of), seq: plan.after };
        let is_stored = after == raised(stored, of);
        let gather = match gather {
            Some(_) if plan.jump.is_none() => gather,
            _ => {
                let reason = self.to_gather(of, &log, &plan, claim, stored)?;
                reason.map(|reason| Gather { reason, place: None })
            }
        };
        Ok(Start { after, jump: plan.jump, reason, is_stored, gather })
    }

    /// A device proved that entries of this queue were lost: alarm, and a new
    /// epoch for its shard unless it has one already.
    fn raise_epoch(&self, queue: QueueId, proven: Epoch) {
        let shard = queue.shard();
        if self.router.epoch(shard) > proven {
            return;
        }
        self.metrics.queue.losses.increment(1);
        tracing::error!(shard = shard.0, "a device proved that acknowledged entries were lost");
        let router = self.router.clone();
        tasks::spawn("raise_epoch", async move {
            let raised = router.run(shard, move |txn| {
                if txn.epoch(shard) <= proven {
                    txn.advance_epoch(shard);
                }
                Ok::<_, Error>(())
            });
            if let Err(error) = raised.await {
                tracing::error!(%error, "cannot give a shard its new epoch");
            }
        });
    }

    /// What the resume digest holds of a following: the stored pointer, raised to `since`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn stored_position(&self, regid: &RegId, of: &Following) -> Result<Position, Error> {
        Ok(raised(self.positions(regid)?.of(&of.queue.id()), of))
    }

    /// The same for all followings of a registration, in their order.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn stored_positions(
        &self,
        regid: &RegId,
        all: &[Following],
    ) -> Result<Vec<Position>, Error> {
        let positions = self.positions(regid)?;
        Ok(all.iter().map(|of| raised(positions.of(&of.queue.id()), of)).collect())
    }

    /// Where the queue's newest visible entry is.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn head(&self, queue: &QueueId) -> Result<Position, Error> {
        Ok(self.router.head(queue)?)
    }

    /// What follows `after` in `all[at]`, or `None` if there is nothing to be had now.
    ///
    /// # Errors
    /// As [`Service::look`].
    pub fn pull(
        &self,
        all: &[Following],
        at: usize,
        after: Seq,
        take: Take,
    ) -> Result<Option<Pulled>, Error> {
        Ok(match self.look(all, at, after, take)? {
            Next::Pulled(pulled) => Some(pulled),
            Next::Nothing | Next::NotBefore(_) => None,
        })
    }

    /// What follows `after` in `all[at]`. `all` is everything that the registration follows,
    /// its own queue first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn look(
        &self,
        all: &[Following],
        at: usize,
        after: Seq,
        take: Take,
    ) -> Result<Next, Error> {
        let now_ms = self.now_ms();
        let mut looked = Looked { after, ..Looked::default() };
        loop {
            let room = Take {
                entries: take.entries.saturating_sub(looked.given.len()),
                bytes: take.bytes.saturating_sub(looked.bytes),
            };
            let run = self.router.read_on(&all[at].queue.id(), looked.end(), room)?;
            let Run { mut entries, is_cut } = run;
            if looked.to.is_none() && entries.first().is_some_and(|e| e.position.seq > after.next())
            {
                looked.is_torn = self.router.log(&all[at].queue.id())?.is_folded();
            }
            // The queue ends before what this follower does not see yet.
            let not_before_ms = spread::cut(&mut entries, all, now_ms);
            looked.is_all = !is_cut && not_before_ms.is_none();
            let is_other = |of: Position| looked.to.is_some_and(|to| to.epoch != of.epoch);
            let last = entries.last().map(|entry| entry.position);
            match (last, looked.to) {
                (None, None) => {
                    return Ok(not_before_ms.map_or(Next::Nothing, Next::NotBefore));
                }
                (None, Some(to)) => return Ok(looked.pulled(to)),
                (Some(last), Some(to)) if is_other(last) => {
                    looked.is_all = false;
                    return Ok(looked.pulled(to));
                }
                (Some(last), _) => looked.to = Some(last),
            }
            let coalesced = self.judge_all(entries, all, at, now_ms, &mut looked)?;
            // What is left out makes room for what follows.
            let is_enough = looked.given.len() >= take.entries
                || looked.bytes > take.bytes
                || looked.count >= LOOK_MAX;
            if let Some(to) = looked.to
                && (coalesced == 0 || is_enough)
            {
                return Ok(looked.pulled(to));
            }
        }
    }

    /// Judges entries that follow what was looked at. Returns how many were coalesced.
    fn judge_all(
        &self,
        entries: Vec<Arc<Entry>>,
        all: &[Following],
        at: usize,
        now_ms: u64,
        looked: &mut Looked,
    ) -> Result<usize, Error> {
        let mut coalesced = 0;
        for entry in entries {
            looked.count += 1;
            let verdict = match self.judge(&entry, all, at, now_ms)? {
                Verdict::Deliver if comes_and_goes(&entry, looked.after, &looked.given) => {
                    Verdict::Skip(Skip::Coalesced)
                }
                verdict => verdict,
            };
            match verdict {
                Verdict::Deliver => {
                    looked.bytes += entry.body.bytes();
                    looked.given.push(entry);
                }
                Verdict::Elsewhere => {}
                Verdict::Skip(why) => {
                    coalesced += usize::from(why == Skip::Coalesced);
                    looked.skipped.push((entry.position.seq, why));
                }
            }
        }
        Ok(coalesced)
    }

    /// The tag of a position, for deltas in frames.
    pub fn tag(&self, queue: &QueueId, position: Position) -> Tag {
        position::tag(&self.keys, queue, position)
    }

    /// Everything that a registration follows, its own queue first.
    pub fn followings(&self, registration: &Registration) -> Vec<Following> {
        Following::all_of(registration, |name| self.router.followers().named(name))
    }

    /// From now on `nudge` hears of new entries of the queue.
    pub fn follow(&self, queue: &Queue, nudge: &Arc<Nudge>) {
        self.router.followers().add(queue, nudge);
    }

    /// No longer.
    pub fn unfollow(&self, queue: QueueId, nudge: &Arc<Nudge>) {
        self.router.followers().remove(queue, nudge);
    }
}

/// A look at a queue, so far.
#[derive(Default)]
struct Looked {
    after: Seq,
    to: Option<Position>,
    count: usize,
    bytes: usize,
    given: Vec<Arc<Entry>>,
    skipped: Vec<(Seq, Skip)>,
    /// The queue has no more.
    is_all: bool,
    is_torn: bool,
}

impl Looked {
    fn end(&self) -> Seq {
        self.to.map_or(self.after, |to| to.seq)
    }

    fn pulled(self, to: Position) -> Next {
        let Self { given: entries, skipped, is_all, is_torn, .. } = self;
        Next::Pulled(Pulled { entries, to, skipped, is_all, is_torn })
    }
}

/// Entries of one look, where most are coalesced.
const LOOK_MAX: usize = 1_024;

/// Whether an entry ends an item that who stands at `after` never had, nor is `given`.
pub(super) fn comes_and_goes(entry: &Entry, after: Seq, given: &[Arc<Entry>]) -> bool {
    let Body::Change(change) = &entry.body else { return false };
    let is_same = |other: &Arc<Entry>| match &other.body {
        Body::Change(other) => other.is_of_item_of(change),
        _ => false,
    };
    change.ends_unseen(after) && !given.iter().any(is_same)
}

/// A pointer is never behind where its following began.
fn raised(stored: Option<Position>, of: &Following) -> Position {
    stored.filter(|stored| stored.seq >= of.since.seq).unwrap_or(of.since)
}

/// The epoch of the place where deltas begin. Where the log has no entry there,
/// the consumer's own word stands, so that both sides keep the same position.
fn epoch_at(log: &Log, after: Seq, current: Epoch, claim: Claim, of: &Following) -> Epoch {
    let stated = match claim {
        Claim::At { position, .. } if position.seq == after => Some(position.epoch),
        _ if of.since.seq == after => Some(of.since.epoch),
        _ => None,
    };
    match after {
        Seq(0) => stated.unwrap_or(current),
        _ => log.epoch_at(after).or(stated).unwrap_or(current),
    }
}
