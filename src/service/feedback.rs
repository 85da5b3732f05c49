//! regIDs of an app that are no more, so that its servers stop sending to them.
//!
//! A list for each app in the order of time, read with a cursor and kept for so many days.
//! What ended is written with its end. A regID that a send named and that never was the app's
//! is listed once, a moment later; how many of these there can be is bounded.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use super::{Error, Service, ended::Ended, receipts::log::Claim};
use crate::{
    base::{
        clock::{DAY_MS, day_of},
        ids::{AppId, RegId},
        metrics::InvalidReason,
    },
    queue::store::{Batch, Range, Record, Space, decode, encode},
};

/// Unknown regIDs of one app that are listed in a day.
const UNKNOWN_PER_DAY: u32 = 10_000;
/// Those of one app that wait to be listed.
const WAITING_MAX: usize = 10_000;
/// How often they are written.
const PERIOD: Duration = Duration::from_secs(1);
/// How often old entries are looked for.
const SWEEP: Duration = Duration::from_secs(600);
/// Old entries that one step removes.
const STEP: usize = 500;

/// An entry of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalid {
    /// The regID.
    pub regid: RegId,
    /// Why.
    pub reason: Why,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// Why a regID is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// Its registration was ended.
    Unregistered,
    /// Its device did not connect for too long.
    Expired,
    /// A send named it, and it is not the app's.
    Unknown,
}

impl Why {
    /// Its name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unregistered => "unregistered",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
        }
    }

    fn label(self) -> InvalidReason {
        match self {
            Self::Unregistered => InvalidReason::Unregistered,
            Self::Expired => InvalidReason::Expired,
            Self::Unknown => InvalidReason::Unknown,
        }
    }
}

/// A place in an app's list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(u64);

impl Cursor {
    /// Reads what [`Cursor`]'s text form is.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| is_hex).map(Self)
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Oldest first.
    pub invalid: Vec<Invalid>,
    /// Where the next page begins.
    pub next: Cursor,
    /// There is more now.
    pub is_more: bool,
}

/// Unknown regIDs that wait to be listed.
#[derive(Default)]
pub struct Feedback {
    waiting: Mutex<HashMap<AppId, Vec<RegId>>>,
}

impl Service {
    /// What of an app's list lies behind a place, at most `limit` entries.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn invalid_since(&self, app: &AppId, since: Cursor, limit: usize) -> Result<Page, Error> {
        // Before the scan, so that no entry that is being written is passed.
        let stable = self.receipts.log.stable();
        let from = entry_key(app, since.0.saturating_add(1));
        let range = Range::prefix_after(&entry_prefix(app), from);
        let mut records = self.router.scan(Space::Feedback, &range, limit + 1)?;
        let is_more = records.len() > limit;
        records.truncate(limit);
        let mut page = Page { invalid: Vec::new(), next: since, is_more };
        for record in &records {
            let (number, invalid) = read(record)?;
            if number >= stable {
                page.is_more = true;
                break;
            }
            page.next = Cursor(number);
            page.invalid.push(invalid);
        }
        Ok(page)
    }

    /// Lists regIDs with the change that ends them. The claim must live until it is durable.
    pub(super) fn list_invalid(&self, ended: &[(AppId, RegId, Ended)], batch: &mut Batch) -> Claim {
        let claim = self.receipts.log.claim(ended.len() as u64);
        for (number, (app, regid, ended)) in (claim.first..).zip(ended) {
            let invalid = Invalid { regid: *regid, reason: ended.why, at_ms: ended.at_ms };
            batch.put(Space::Feedback, entry_key(app, number), encode(&invalid));
            batch.put(Space::Feedback, mark_key(app, regid), encode(ended));
            self.metrics.receipts.feedback.of(ended.why.label()).increment(1);
        }
        claim
    }

    /// A send named these, and they are not the app's.
    pub(super) fn named_unknown(&self, app: &AppId, stated: &[String]) {
        let regids = stated.iter().filter_map(|text| text.parse::<RegId>().ok());
        let mut waiting = self.feedback.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let of = waiting.entry(app.clone()).or_default();
        let room = WAITING_MAX.saturating_sub(of.len());
        of.extend(regids.take(room));
    }

    /// Writes unknown regIDs, sees to the numbers of the list and of events, and removes what
    /// is old, until it is aborted.
    pub async fn keep_feedback(self: Arc<Self>) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listed: HashMap<AppId, u32> = HashMap::new();
        let (mut day, mut swept) = (0, None::<tokio::time::Instant>);
        loop {
            let now = tick.tick().await;
            if day_of(self.now_ms()) != day {
                day = day_of(self.now_ms());
                listed.clear();
            }
            if let Err(error) = self.list_unknown(&mut listed).await {
                tracing::warn!(%error, "cannot list unknown regIDs");
            }
            if let Err(error) = self.receipts.log.reserve(&self.router).await {
                tracing::warn!(%error, "cannot reserve numbers of events");
            }
            if swept.is_none_or(|at| now.duration_since(at) >= SWEEP) {
                swept = Some(now);
                if let Err(error) = self.sweep_feedback().await {
                    tracing::warn!(%error, "cannot remove old entries of the lists of regIDs");
                }
            }
        }
    }

    async fn list_unknown(&self, listed: &mut HashMap<AppId, u32>) -> Result<(), Error> {
        let waiting = {
            let mut waiting = self.feedback.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *waiting)
        };
        for (app, regids) in waiting {
            let count = listed.entry(app.clone()).or_default();
            let (mut new, mut seen) = (Vec::new(), HashSet::new());
            for regid in regids {
                let is_known = || self.router.get(Space::Feedback, &mark_key(&app, &regid));
                if *count >= UNKNOWN_PER_DAY || !seen.insert(regid) || is_known()?.is_some() {
                    continue;
                }
                *count += 1;
                new.push((app.clone(), regid));
                if new.len() >= STEP {
                    self.commit_unknown(&std::mem::take(&mut new)).await?;
                }
            }
            self.commit_unknown(&new).await?;
        }
        Ok(())
    }

    async fn commit_unknown(&self, new: &[(AppId, RegId)]) -> Result<(), Error> {
        if new.is_empty() {
            return Ok(());
        }
        let unknown = Ended::unknown(self.now_ms());
        let of = |(app, regid): &(AppId, RegId)| (app.clone(), *regid, unknown.clone());
        let (new, mut batch) = (new.iter().map(of).collect::<Vec<_>>(), Batch::default());
        let claim = self.list_invalid(&new, &mut batch);
        self.router.commit(batch).await?;
        drop(claim);
        Ok(())
    }

    /// Removes what is older than the lists are kept.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn sweep_feedback(&self) -> Result<(), Error> {
        let days = u64::from(self.limits.load().feedback_days);
        let oldest_ms = self.now_ms().saturating_sub(days * DAY_MS);
        for app in self.apps()? {
            let app = app.app_id;
            loop {
                let range = Range::prefix(&entry_prefix(&app));
                let records = self.router.scan(Space::Feedback, &range, STEP)?;
                let mut batch = Batch::default();
                for record in &records {
                    let (_, invalid) = read(record)?;
                    if invalid.at_ms >= oldest_ms {
                        break;
                    }
                    batch.remove(Space::Feedback, record.0.as_ref());
                    batch.remove(Space::Feedback, mark_key(&app, &invalid.regid));
                }
                let is_whole = batch.writes.len() == 2 * STEP;
                if !batch.is_empty() {
                    self.router.commit(batch).await?;
                }
                if !is_whole {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn entry_prefix(app: &AppId) -> Vec<u8> {
    [b"f", app.as_str().as_bytes(), &[0]].concat()
}

fn entry_key(app: &AppId, number: u64) -> Vec<u8> {
    [entry_prefix(app).as_slice(), &number.to_be_bytes()].concat()
}

/// Says that a regID is in the list of an app, and what is kept of it.
pub(super) fn mark_key(app: &AppId, regid: &RegId) -> Vec<u8> {
    [b"k", app.as_str().as_bytes(), &[0], regid.as_bytes()].concat()
}

fn read((key, value): &Record) -> Result<(u64, Invalid), Error> {
    let number = key.last_chunk::<8>().map_or(0, |number| u64::from_be_bytes(*number));
    Ok((number, decode(value)?))
}
