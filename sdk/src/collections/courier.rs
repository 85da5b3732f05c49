//! Takes edits to the gateway, and asks it for what differs: one errand at a time, while there is a connection.
//!
//! What to ask is decided from the tables alone; an answer is durable before the next question. An errand that was cut
//! off is asked again: both kinds may be repeated.

use std::collections::BTreeMap;
use std::time::Duration;

use carillon_wire::frame::{empty_up, epoch_to_idl, seq_to_idl};
use carillon_wire::idl;
use carillon_wire::ranges::KeyRange;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::repairs::RANGES_MAX;
use super::tables::{EditRow, Flag, ShelfRow, Tables};
use super::work::Work;
use super::{Collections, Comparison, Error, Happening};
use crate::backoff::Backoff;
use crate::calls::{Call, CallError, Refusal, Request};
use crate::connection::Command;
use crate::driver::Status;
use crate::items::Side;
use crate::names::RegId;
use crate::random::Random;

/// What to ask the gateway.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Errand {
    shelf: i64,
    kind: Kind,
    pub up: idl::Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Up to which cseq the gateway has uploads of ours: a device that lost its storage does not know.
    Learn,
    Upload,
    Repair,
}

/// What is next.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    Ask(Box<Errand>),
    /// Nothing, unless something happens or this has passed.
    Wait(Duration),
}

/// What an answer means for the errands behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    GoOn,
    /// Nothing more for this shelf for now.
    Later,
}

impl Collections {
    /// What to ask the gateway next, but for shelves that have to wait.
    pub(crate) fn next_errand(&self, is_waiting: impl Fn(i64) -> bool) -> Result<Next, Error> {
        let now_ms = (self.inner.now_ms)();
        self.transact(|work| {
            let shelves = work.tables.shelves()?;
            for shelf in shelves.iter().filter(|shelf| !is_waiting(shelf.id)) {
                if let Some(errand) = upload(work.tables, shelf)? {
                    return Ok(Next::Ask(Box::new(errand)));
                }
            }
            if let Some(errand) = work.repair(&shelves)? {
                return Ok(Next::Ask(Box::new(errand)));
            }
            work.refresh(&shelves, now_ms)
        })
    }

    /// The gateway's answer.
    pub(crate) fn answered(&self, errand: &Errand, result: idl::Result) -> Result<Verdict, Error> {
        self.transact(|work| match errand.kind {
            Kind::Learn => work.on_learned(errand, result),
            Kind::Upload => work.on_uploaded(errand, result),
            Kind::Repair => {
                match result.code {
                    idl::ResultCode::OK => work.repaired(result.ranges.unwrap_or_default())?,
                    code => {
                        if let Some(ended) = work.repairs.give_up() {
                            work.compared(ended, Comparison::Refused(Refusal::from_idl(code)))?;
                        }
                    }
                }
                Ok(Verdict::GoOn)
            }
        })
    }
}

/// The first edits without an answer that have their base in one epoch.
fn upload(tables: Tables<'_>, shelf: &ShelfRow) -> Result<Option<Errand>, Error> {
    let edits = tables.unanswered(shelf.id, EDITS_MAX)?;
    let Some(first) = edits.first() else { return Ok(None) };
    let epoch = first.epoch;
    let (kind, edits) = match shelf.base {
        None => (Kind::Learn, Vec::new()),
        Some(base) => {
            let (mut bytes, mut next) = (0, first.number);
            let fits = |edit: &&EditRow| {
                let value = edit.value.as_ref().map_or(0, |value| value.bytes.len());
                bytes += value + edit.key.len() + edit.collection.len() + EDIT_OVERHEAD;
                // What has come back as an item in between is sent no more: the gateway takes no holes.
                let is_next = edit.number == next;
                next += 1;
                let fits = bytes <= UPLOAD_BYTES_MAX || edit.number == first.number;
                is_next && fits && edit.epoch == epoch
            };
            let edits = edits.iter().take_while(fits).map(|edit| edit.to_idl(base));
            (Kind::Upload, edits.collect())
        }
    };
    let upload = idl::Upload {
        regid: shelf.regid.clone(),
        alias_name: shelf.alias.clone(),
        epoch: epoch_to_idl(epoch),
        edits,
    };
    let up = idl::Up { upload: Some(upload), ..empty_up() };
    Ok(Some(Errand { shelf: shelf.id, kind, up }))
}

impl EditRow {
    fn to_idl(&self, base: i64) -> idl::Edit {
        let value = self.value.as_ref();
        idl::Edit {
            cseq: base.saturating_add(self.number),
            collection: self.collection.clone(),
            key: self.key.clone(),
            value: value.map(|value| value.bytes.to_vec()),
            format: value.map(|value| idl::ValueFormat(value.format.number())),
            base_seq: seq_to_idl(self.base_seq),
            clock: self.clock.cast_signed(),
        }
    }
}

impl Work<'_> {
    /// What the running repair states next; one begins if a collection differs.
    fn repair(&mut self, shelves: &[ShelfRow]) -> Result<Option<Errand>, Error> {
        let ready: BTreeMap<i64, &ShelfRow> = shelves
            .iter()
            .filter(|shelf| shelf.at.is_some() && !shelf.is_gathering)
            .map(|shelf| (shelf.id, shelf))
            .collect();
        let Some(repair) = self.repairs.next(|shelf| ready.contains_key(&shelf)) else {
            return Ok(None);
        };
        let shelf = ready[&repair.shelf];
        let (epoch, seq) = shelf.at.unwrap_or_default();
        let (tables, copy) = (self.tables, shelf.copy(Side::Items));
        let collection = repair.collection.clone();
        let ranges = repair.state(|bounds| tables.seqs(copy, &collection, bounds))?;
        let repair = idl::Repair {
            regid: shelf.regid.clone(),
            alias_name: shelf.alias.clone(),
            collection,
            epoch: epoch_to_idl(epoch),
            seq: seq_to_idl(seq),
            ranges: ranges.iter().map(KeyRange::to_idl).collect(),
        };
        let up = idl::Up { repair: Some(repair), ..empty_up() };
        Ok(Some(Errand { shelf: shelf.id, kind: Kind::Repair, up }))
    }

    /// Items that the app's handler failed on are fetched once more, all of a collection together and not too often.
    fn refresh(&mut self, shelves: &[ShelfRow], now_ms: u64) -> Result<Next, Error> {
        let since = now_ms.wrapping_sub(self.tables.refreshed_ms()?);
        for shelf in shelves.iter().filter(|shelf| !shelf.is_gathering && shelf.at.is_some()) {
            let flagged = self.tables.flagged(shelf.copy(Side::Items), Flag::Refresh)?;
            let Some((collection, _)) = flagged.first().cloned() else { continue };
            // A clock that was set back has waited long enough.
            if let Some(left) = REFRESH_SPACING_MS.checked_sub(since).filter(|left| *left > 0) {
                return Ok(Next::Wait(Duration::from_millis(left)));
            }
            let keys = flagged.into_iter().filter(|(of, _)| *of == collection);
            let keys = keys.map(|(_, key)| key).take(RANGES_MAX).collect();
            self.tables.set_refreshed_ms(now_ms)?;
            self.repairs.refresh(shelf.id, &collection, keys);
            return Ok(match self.repair(shelves)? {
                Some(errand) => Next::Ask(Box::new(errand)),
                None => Next::Wait(IDLE),
            });
        }
        Ok(Next::Wait(IDLE))
    }

    fn on_learned(&mut self, errand: &Errand, result: idl::Result) -> Result<Verdict, Error> {
        if result.code != idl::ResultCode::OK {
            return self.refused(errand, result);
        }
        self.learned(errand.shelf, result.next_cseq)
    }

    fn on_uploaded(&mut self, errand: &Errand, mut result: idl::Result) -> Result<Verdict, Error> {
        let results = result.edits.take().unwrap_or_default();
        let is_progress = !results.is_empty();
        self.uploaded(errand.shelf, results)?;
        if result.code == idl::ResultCode::RENUMBER {
            return self.learned(errand.shelf, result.next_cseq);
        }
        if result.code != idl::ResultCode::OK {
            return self.refused(errand, result);
        }
        Ok(if is_progress { Verdict::GoOn } else { Verdict::Later })
    }

    /// Edits are never given up: they are sent again.
    fn refused(&mut self, errand: &Errand, result: idl::Result) -> Result<Verdict, Error> {
        if let Some(shelf) = self.tables.shelf_of(errand.shelf)? {
            self.told.push(Happening::Refused {
                regid: RegId::from(shelf.regid),
                alias: shelf.alias,
                refusal: Refusal::from_idl(result.code),
                message: result.message.unwrap_or_default(),
            });
        }
        Ok(Verdict::Later)
    }
}

/// See the module. It holds the device weakly: a device that nobody wants stops.
pub(crate) struct Courier {
    pub collections: Collections,
    pub commands: mpsc::WeakSender<Command>,
    pub status: watch::Receiver<Status>,
    pub random: Random,
}

impl Courier {
    /// Runs until the device has stopped.
    pub async fn run(mut self) {
        let mut waiting: BTreeMap<i64, (Instant, Backoff)> = BTreeMap::new();
        let mut backoff = Backoff::new(self.random.clone());
        while self.is_online().await {
            let now = Instant::now();
            let is_waiting = |shelf| waiting.get(&shelf).is_some_and(|(until, _)| *until > now);
            let next = self.collections.next_errand(is_waiting);
            let asked = match next {
                Ok(Next::Ask(errand)) => self.ask(*errand).await,
                Ok(Next::Wait(time)) => {
                    let first = waiting.values().map(|(until, _)| *until).filter(|at| *at > now);
                    let first = first.min().map_or(time, |at| time.min(at - now));
                    self.rest(first).await;
                    continue;
                }
                Err(error) => Err(Some(error)),
            };
            match asked {
                Ok((shelf, Verdict::GoOn)) => drop(waiting.remove(&shelf)),
                Ok((shelf, Verdict::Later)) => {
                    let random = self.random.clone();
                    let entry = waiting.entry(shelf);
                    let (until, backoff) = entry.or_insert_with(|| (now, Backoff::new(random)));
                    *until = now + PAUSE + backoff.next_delay();
                }
                Err(error) => {
                    if let Some(error) = error {
                        tracing::error!(%error, "collections cannot be read or changed");
                    }
                    sleep(PAUSE + backoff.next_delay()).await;
                    continue;
                }
            }
            backoff = Backoff::new(self.random.clone());
        }
    }

    /// Waits until calls can be made. False if they never can again.
    async fn is_online(&mut self) -> bool {
        let settled = |status: &Status| matches!(status, Status::Online | Status::Stopped(_));
        matches!(self.status.wait_for(settled).await.as_deref(), Ok(Status::Online))
    }

    /// Until there may be an errand.
    async fn rest(&mut self, time: Duration) {
        let Self { collections, status, .. } = self;
        tokio::select! {
            () = collections.inner.errands.notified() => {}
            _ = status.changed() => {}
            () = sleep(time) => {}
        }
    }

    /// `Err(None)`: there was no answer.
    async fn ask(&self, errand: Errand) -> Result<(i64, Verdict), Option<Error>> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Collections(Box::new(errand.up.clone()));
        let asked = async {
            let commands = self.commands.upgrade().ok_or(CallError::Offline)?;
            let sent = commands.send(Command::Call(Call { request, reply })).await;
            drop(commands);
            sent.map_err(|_| CallError::Offline)?;
            answer.await.map_err(|_| CallError::Offline)?
        };
        let result = timeout(ANSWER_WITHIN, asked).await.map_err(|_| None)?.map_err(|_| None)?;
        let shelf = errand.shelf;
        let answered = move |collections: &Collections| collections.answered(&errand, *result);
        let verdict = self.collections.apart(answered).await.map_err(|_| None)?;
        Ok((shelf, verdict.map_err(Some)?))
    }
}

/// Edits of one upload: the gateway remembers the results of so many.
const EDITS_MAX: usize = 256;
/// An upload ends before this, unless its first edit is longer.
const UPLOAD_BYTES_MAX: usize = 96 << 10;
/// What an edit takes besides its texts, at most.
const EDIT_OVERHEAD: usize = 64;
/// Between two times that items are fetched because the app's handler failed.
const REFRESH_SPACING_MS: u64 = 5 * 60 * 1000;
/// Somebody wakes the courier before this.
const IDLE: Duration = Duration::from_secs(3600);
/// Between two attempts, at least.
const PAUSE: Duration = Duration::from_millis(500);
/// For the answer to an errand.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
