//! The log of events for app servers, one for each endpoint, and who gets them.
//!
//! Numbers come from one counter of the node: see `numbers`. A consumer stops before the smallest
//! that is not durable yet.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use aws_lc_rs::digest;
use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub use super::numbers::Claim;
use super::{Event, Events, numbers::Numbers};
use crate::{
    base::{
        clock::day_of,
        ids::AppId,
        metrics::{CallbackOutcome, Metrics},
    },
    config,
    queue::store::{Batch, Range, Space, decode, encode},
    route::Router,
    service::Error,
};

/// Endpoints or events of one scan.
const PAGE: usize = 4_096;
/// The key of the newest start whose numbers may be given.
const START: &[u8] = b"s";

/// An app's callback URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EndpointId(pub [u8; 16]);

impl EndpointId {
    /// The same for the same app and URL.
    pub fn of(app: &AppId, url: &str) -> Self {
        let text = [app.as_str().as_bytes(), &[0], url.as_bytes()].concat();
        let mut id = [0; 16];
        id.copy_from_slice(&digest::digest(&digest::SHA256, &text).as_ref()[..16]);
        Self(id)
    }

    fn record_key(&self) -> Vec<u8> {
        [b"e", self.0.as_slice()].concat()
    }

    fn pointer_key(&self) -> Vec<u8> {
        [b"p", self.0.as_slice()].concat()
    }

    fn event_key(&self, number: u64) -> Vec<u8> {
        [b"l", self.0.as_slice(), &number.to_be_bytes()].concat()
    }
}

/// What is stored of an endpoint.
#[derive(Serialize, Deserialize)]
struct Stored {
    app: AppId,
    url: String,
    used_day: u32,
}

/// An endpoint on this node.
#[derive(Debug)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// Whose it is.
    pub app: AppId,
    /// Where it is.
    pub url: String,
    /// The day that its stored record names; 0 while there is none.
    used_day: AtomicU64,
    /// Events that wait.
    pub(super) backlog: AtomicU64,
    /// All up to this number are delivered or given up.
    pub(super) pointer: AtomicU64,
    /// Something was appended since its worker looked.
    pub(super) is_wanted: AtomicBool,
    /// It has a worker.
    pub(super) is_served: AtomicBool,
}

impl Endpoint {
    fn new(id: EndpointId, app: AppId, url: String) -> Self {
        Self {
            id,
            app,
            url,
            used_day: AtomicU64::new(0),
            backlog: AtomicU64::new(0),
            pointer: AtomicU64::new(0),
            is_wanted: AtomicBool::new(false),
            is_served: AtomicBool::new(false),
        }
    }

    /// Whether nothing is owed to it, and no message that names it is held.
    fn is_over(&self, today: u32, kept_days: u32) -> bool {
        let used_day = self.used_day.load(Ordering::Relaxed);
        let is_old = used_day.saturating_add(kept_days.into()) < u64::from(today);
        is_old && self.backlog.load(Ordering::Relaxed) == 0
    }
}

/// Those that messages name which are held or on their way. Whoever has work with one holds it.
type Endpoints = DashMap<EndpointId, Arc<Endpoint>>;

/// All endpoints and the numbers of their events.
pub struct Log {
    endpoints: Arc<Endpoints>,
    /// Held by who adds one, so that no two count the same room.
    adding: Mutex<()>,
    numbers: Arc<Numbers>,
    woken: Mutex<Vec<Arc<Endpoint>>>,
    pub(super) is_wanted: Notify,
    pub(super) config: config::Callbacks,
}

/// An event with its number.
pub type Numbered = (u64, Event);

impl Log {
    /// An empty one; [`Log::open`] reads what is stored.
    pub fn new(config: config::Callbacks) -> Self {
        Self {
            endpoints: Arc::default(),
            adding: Mutex::default(),
            numbers: Arc::default(),
            woken: Mutex::default(),
            is_wanted: Notify::new(),
            config,
        }
    }

    /// Reads the endpoints, forgets those that are out of use, and begins numbers that are
    /// larger than all before.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn open(&self, router: &Router, today: u32, kept_days: u32) -> Result<u64, Error> {
        let start = router.get(Space::Callbacks, START)?;
        let start: u32 = start.map_or(Ok(0), |bytes| decode(&bytes))?;
        let start = start.saturating_add(1);
        let mut batch = Batch::default();
        batch.put(Space::Callbacks, START, encode(&start));
        let (mut pending, mut from) = (0, b"e".to_vec());
        loop {
            let page = router.scan(Space::Callbacks, &Range::prefix_after(b"e", from), PAGE)?;
            let Some((last, _)) = page.last() else { break };
            from = [last.as_ref(), &[0]].concat();
            for (key, bytes) in page {
                let (Some(id), Ok(stored)) =
                    (key.get(1..).and_then(|id| id.try_into().ok()), decode::<Stored>(&bytes))
                else {
                    tracing::error!("the record of a callback endpoint is damaged");
                    continue;
                };
                let endpoint = Endpoint::new(EndpointId(id), stored.app, stored.url);
                endpoint.used_day.store(stored.used_day.into(), Ordering::Relaxed);
                let waiting = self.count(router, &endpoint)?;
                if endpoint.is_over(today, kept_days) {
                    batch.remove(Space::Callbacks, endpoint.id.record_key());
                    batch.remove(Space::Callbacks, endpoint.id.pointer_key());
                    continue;
                }
                pending += waiting;
                let endpoint = Arc::new(endpoint);
                self.endpoints.insert(endpoint.id, endpoint.clone());
                if waiting > 0 {
                    self.wake(&endpoint);
                }
            }
        }
        router.commit(batch).await?;
        self.numbers.begin(start);
        Ok(pending)
    }

    /// Takes the numbers of the next start too, before those of this one are used up, so that
    /// the next run begins behind all of this one's. For once a second.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn reserve(&self, router: &Router) -> Result<(), Error> {
        let Some(start) = self.numbers.to_reserve() else { return Ok(()) };
        let mut batch = Batch::default();
        batch.put(Space::Callbacks, START, encode(&start));
        router.commit(batch).await?;
        self.numbers.reserved(start);
        Ok(())
    }

    /// Reads an endpoint's pointer and counts what waits behind it.
    fn count(&self, router: &Router, endpoint: &Endpoint) -> Result<u64, Error> {
        let pointer = router.get(Space::Callbacks, &endpoint.id.pointer_key())?;
        let pointer: u64 = pointer.map_or(Ok(0), |bytes| decode(&bytes))?;
        endpoint.pointer.store(pointer, Ordering::Relaxed);
        let (mut count, mut after) = (0, pointer);
        loop {
            let page = self.scan(router, endpoint, after, PAGE)?;
            count += page.len() as u64;
            match page.last() {
                Some((last, _)) if page.len() == PAGE => after = *last,
                _ => break,
            }
        }
        endpoint.backlog.store(count, Ordering::Relaxed);
        Ok(count)
    }

    /// An endpoint that a send names, and whether its record is to be written with the message.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub fn endpoint(&self, app: &AppId, url: &str, used_ms: u64) -> Result<Used, Error> {
        let id = EndpointId::of(app, url);
        let endpoint = self.known(&id).map_or_else(|| self.add(id, app, url), Ok)?;
        // A scheduled message uses it on its day.
        let day = day_of(used_ms);
        let is_new = endpoint.used_day.load(Ordering::Relaxed) < u64::from(day);
        Ok(Used { id, endpoint: Some(endpoint), endpoints: self.endpoints.clone(), day, is_new })
    }

    fn add(&self, id: EndpointId, app: &AppId, url: &str) -> Result<Arc<Endpoint>, Error> {
        let _one = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.known(&id) {
            return Ok(known);
        }
        let max = self.config.endpoints_per_app;
        if self.endpoints.iter().filter(|one| one.app == *app).count() >= max {
            return Err(Error::Limit { what: "callback URLs of an app", max });
        }
        let endpoint = Arc::new(Endpoint::new(id, app.clone(), url.to_owned()));
        self.endpoints.insert(id, endpoint.clone());
        Ok(endpoint)
    }

    /// Forgets the endpoints that are out of use. Their records go at the next start, or serve
    /// who names them again.
    pub fn sweep(&self, today: u32, kept_days: u32) {
        let is_held = |one: &Arc<Endpoint>| Arc::strong_count(one) > 1;
        self.endpoints.retain(|_, one| is_held(one) || !one.is_over(today, kept_days));
    }

    /// Whether an app has endpoints.
    pub fn is_used_by(&self, app: &AppId) -> bool {
        self.endpoints.iter().any(|one| one.app == *app)
    }

    /// An endpoint that is known.
    pub fn known(&self, id: &EndpointId) -> Option<Arc<Endpoint>> {
        self.endpoints.get(id).map(|endpoint| endpoint.clone())
    }

    /// Numbers for records whose readers use [`Log::stable`].
    pub fn claim(&self, count: u64) -> Claim {
        self.numbers.claim(count)
    }

    /// All numbers below are durable, or will never be used.
    pub fn stable(&self) -> u64 {
        self.numbers.stable()
    }

    /// Adds events to a batch. When that is durable, [`Log::became_durable`] must be told.
    pub fn append(
        &self,
        endpoint: &Arc<Endpoint>,
        events: Vec<Event>,
        batch: &mut Batch,
        metrics: &Metrics,
    ) -> Option<Appended> {
        let metrics = &metrics.receipts;
        let room = self.config.backlog_max.saturating_sub(endpoint.backlog.load(Ordering::Relaxed));
        let taken = events.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if taken < events.len() {
            let lost = (events.len() - taken) as u64;
            metrics.callbacks.of(CallbackOutcome::Overflow).increment(lost);
        }
        if taken == 0 {
            return None;
        }
        let claim = self.numbers.claim(taken as u64);
        for (number, event) in (claim.first..).zip(events.into_iter().take(taken)) {
            batch.put(Space::Callbacks, endpoint.id.event_key(number), encode(&event));
        }
        Some(Appended { endpoint: endpoint.clone(), count: taken as u64, claim })
    }

    /// Events are durable: their endpoint has something to do.
    pub fn became_durable(&self, appended: Appended, metrics: &Metrics) {
        let Appended { endpoint, count, claim } = appended;
        endpoint.backlog.fetch_add(count, Ordering::Relaxed);
        metrics.receipts.callbacks_pending.increment(count as f64);
        // Only now may they be passed.
        drop(claim);
        self.wake(&endpoint);
    }

    /// There is something for an endpoint, and it is durable.
    fn wake(&self, endpoint: &Arc<Endpoint>) {
        endpoint.is_wanted.store(true, Ordering::SeqCst);
        if !endpoint.is_served.swap(true, Ordering::SeqCst) {
            let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
            woken.push(endpoint.clone());
            drop(woken);
            self.is_wanted.notify_one();
        }
    }

    pub(super) fn take_woken(&self) -> Vec<Arc<Endpoint>> {
        std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The next events of an endpoint, and whether more wait for a write to become durable.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(super) fn next(
        &self,
        router: &Router,
        endpoint: &Endpoint,
    ) -> Result<(Vec<Numbered>, bool), Error> {
        // Before the scan: what is written behind it may be durable by its end.
        let stable = self.numbers.stable();
        let after = endpoint.pointer.load(Ordering::Relaxed);
        let mut events = self.scan(router, endpoint, after, self.config.batch_events_max)?;
        let count = events.len();
        events.retain(|(number, _)| *number < stable);
        let is_held_back = events.len() < count;
        Ok((events, is_held_back))
    }

    fn scan(
        &self,
        router: &Router,
        endpoint: &Endpoint,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Numbered>, Error> {
        let prefix = [b"l", endpoint.id.0.as_slice()].concat();
        let from = endpoint.id.event_key(after.saturating_add(1));
        let page = router.scan(Space::Callbacks, &Range::prefix_after(&prefix, from), limit)?;
        let event = |(key, bytes): (bytes::Bytes, bytes::Bytes)| {
            let number = key.get(17..).and_then(|number| number.try_into().ok());
            Some((u64::from_be_bytes(number?), decode::<Event>(&bytes).ok()?))
        };
        Ok(page.into_iter().filter_map(event).collect())
    }

    /// The pointer passes events, for good.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; they come again then.
    pub(super) async fn pass(
        &self,
        router: &Router,
        endpoint: &Endpoint,
        passed: &[Numbered],
        metrics: &Metrics,
    ) -> Result<(), Error> {
        let Some((last, _)) = passed.last() else { return Ok(()) };
        let mut batch = Batch::default();
        for (number, _) in passed {
            batch.remove(Space::Callbacks, endpoint.id.event_key(*number));
        }
        batch.put(Space::Callbacks, endpoint.id.pointer_key(), encode(last));
        router.commit(batch).await?;
        endpoint.pointer.store(*last, Ordering::Relaxed);
        let less = |backlog: u64| Some(backlog.saturating_sub(passed.len() as u64));
        let _ = endpoint.backlog.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        metrics.receipts.callbacks_pending.decrement(passed.len() as f64);
        Ok(())
    }
}

/// An endpoint that a send names. A new one is forgotten with this unless that became durable.
pub struct Used {
    id: EndpointId,
    /// There until this is dropped.
    endpoint: Option<Arc<Endpoint>>,
    endpoints: Arc<Endpoints>,
    day: u32,
    is_new: bool,
}

impl Used {
    /// Which.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Adds events of it to the batch of the message.
    pub fn append(
        &self,
        log: &Log,
        events: Vec<Event>,
        batch: &mut Batch,
        metrics: &Metrics,
    ) -> Option<Appended> {
        log.append(self.endpoint.as_ref()?, events, batch, metrics)
    }

    /// The record of a new one, or of one that was not used as late: durable with the message.
    pub fn put(&self, batch: &mut Batch) {
        if self.is_new
            && let Some(endpoint) = self.endpoint.as_deref()
        {
            let Endpoint { id, app, url, .. } = endpoint;
            let stored = Stored { app: app.clone(), url: url.clone(), used_day: self.day };
            batch.put(Space::Callbacks, id.record_key(), encode(&stored));
        }
    }

    /// The record is durable.
    pub fn became_durable(&self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.used_day.fetch_max(self.day.into(), Ordering::Relaxed);
        }
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        drop(self.endpoint.take());
        // Another send that is on its way holds it; the last one looks.
        let is_nobodys = |one: &Arc<Endpoint>| {
            one.used_day.load(Ordering::Relaxed) == 0 && Arc::strong_count(one) == 1
        };
        if self.is_new {
            self.endpoints.remove_if(&self.id, |_, one| is_nobodys(one));
        }
    }
}

/// Events of a batch that is being written. If it never becomes durable, they never were.
pub struct Appended {
    endpoint: Arc<Endpoint>,
    count: u64,
    claim: Claim,
}

/// What a message's record says of its callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallbackOf {
    /// Where events go.
    pub endpoint: EndpointId,
    /// Which.
    pub events: Events,
}
