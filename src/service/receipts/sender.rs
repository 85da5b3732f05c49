//! Posts events to app servers: at least once, in batches, one request at a time to each
//! endpoint.
//!
//! An endpoint has a worker while something waits for it. A worker holds no events while it
//! waits for the next attempt: it reads them again from the log. Endpoints that fail share
//! half of the requests, so that they cannot keep the others from theirs.

use std::{
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde::Serialize;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use super::{
    Event,
    log::{Endpoint, Numbered},
    signature,
};
use crate::{
    base::{
        ids::random_bytes,
        metrics::{CallbackAttempt, CallbackOutcome},
        webhook::{Failure, Webhook},
    },
    service::{Error, Service},
};

/// How often a worker looks again at events whose write is on its way.
const HELD_BACK: Duration = Duration::from_millis(10);
/// After an error of the store.
const TROUBLE: Duration = Duration::from_secs(1);

/// The body of one request.
#[derive(Serialize)]
struct Body<'a> {
    app: &'a str,
    delivery: &'a str,
    events: Vec<Told<'a>>,
}

/// One event as the app server reads it.
#[derive(Serialize)]
struct Told<'a> {
    id: String,
    r#type: &'static str,
    message: String,
    regid: &'a str,
    at_ms: u64,
}

/// What the workers share.
struct Shop {
    webhook: OnceLock<Result<Webhook, String>>,
    /// Requests at once.
    requests: Semaphore,
    /// Of these, to endpoints that failed the last time.
    retries: Semaphore,
}

/// How one request ended.
enum Attempt {
    Taken,
    Failed,
}

impl Service {
    /// Posts events until it is aborted.
    pub async fn run_callbacks(self: Arc<Self>) {
        let max = self.receipts.log.config.requests_max;
        let shop = Shop {
            webhook: OnceLock::new(),
            requests: Semaphore::new(max),
            retries: Semaphore::new((max / 2).max(1)),
        };
        let log = &self.receipts.log;
        let mut workers = FuturesUnordered::new();
        loop {
            for endpoint in log.take_woken() {
                workers.push(self.serve(&shop, endpoint));
            }
            tokio::select! {
                () = log.is_wanted.notified() => {}
                Some(()) = workers.next() => {}
            }
        }
    }

    /// Posts what waits for one endpoint, until nothing does.
    async fn serve(&self, shop: &Shop, endpoint: Arc<Endpoint>) {
        let config = &self.receipts.log.config;
        let mut failures = 0;
        loop {
            endpoint.is_wanted.store(false, Ordering::SeqCst);
            let is_full =
                || endpoint.backlog.load(Ordering::Relaxed) >= config.batch_events_max as u64;
            if failures == 0 && !is_full() {
                sleep(Duration::from_millis(config.batch_delay_ms)).await;
            }
            while let Some(wait) = self.post_next(shop, &endpoint, &mut failures).await {
                sleep(wait).await;
            }
            if endpoint.is_wanted.load(Ordering::SeqCst) {
                continue;
            }
            endpoint.is_served.store(false, Ordering::SeqCst);
            // What came between the two lines above has seen a worker.
            let is_missed = endpoint.is_wanted.load(Ordering::SeqCst);
            if !is_missed || endpoint.is_served.swap(true, Ordering::SeqCst) {
                return;
            }
        }
    }

    /// One request. Gives how long to wait before the next one, or `None` if nothing waits.
    async fn post_next(
        &self,
        shop: &Shop,
        endpoint: &Arc<Endpoint>,
        failures: &mut u32,
    ) -> Option<Duration> {
        match self.try_next(shop, endpoint, *failures).await {
            Ok(Next::Nothing) => None,
            Ok(Next::GivenUp) => Some(Duration::ZERO),
            Ok(Next::HeldBack) => Some(HELD_BACK),
            Ok(Next::Taken) => {
                *failures = 0;
                Some(Duration::ZERO)
            }
            Ok(Next::Failed) => {
                *failures = failures.saturating_add(1);
                Some(self.backoff(*failures))
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read or move the log of callbacks");
                Some(TROUBLE)
            }
        }
    }

    async fn try_next(
        &self,
        shop: &Shop,
        endpoint: &Arc<Endpoint>,
        failures: u32,
    ) -> Result<Next, Error> {
        // Room first: what waits for it holds no events.
        let _retry = match failures {
            0 => None,
            _ => shop.retries.acquire().await.ok(),
        };
        let _room = shop.requests.acquire().await.ok();
        let (mut events, is_held_back) = self.receipts.log.next(&self.router, endpoint)?;
        if failures > 0 && self.give_up(endpoint, &mut events).await? {
            return Ok(Next::GivenUp);
        }
        if events.is_empty() {
            return Ok(if is_held_back { Next::HeldBack } else { Next::Nothing });
        }
        match self.post(shop, endpoint, &events, failures).await {
            Attempt::Failed => Ok(Next::Failed),
            Attempt::Taken => {
                let metrics = &self.metrics.receipts;
                let now_ms = self.now_ms();
                for (_, event) in &events {
                    let lag = Duration::from_millis(now_ms.saturating_sub(event.at_ms));
                    metrics.callback_lag_seconds.record(lag);
                }
                crate::crash_point!("callbacks::before_pass");
                self.receipts.log.pass(&self.router, endpoint, &events, &self.metrics).await?;
                metrics.callbacks.of(CallbackOutcome::Delivered).increment(events.len() as u64);
                Ok(Next::Taken)
            }
        }
    }

    /// Drops what is too old after a failure. Returns whether anything was.
    async fn give_up(
        &self,
        endpoint: &Endpoint,
        events: &mut Vec<Numbered>,
    ) -> Result<bool, Error> {
        let limit_ms = self.receipts.log.config.give_up_after_s * 1_000;
        let now_ms = self.now_ms();
        let is_old = |(_, event): &&Numbered| now_ms.saturating_sub(event.at_ms) >= limit_ms;
        let old = events.iter().take_while(is_old).count();
        if old == 0 {
            return Ok(false);
        }
        events.truncate(old);
        self.receipts.log.pass(&self.router, endpoint, events, &self.metrics).await?;
        self.metrics.receipts.callbacks.of(CallbackOutcome::GivenUp).increment(old as u64);
        tracing::warn!(app = %endpoint.app, events = old, "callbacks are given up");
        Ok(true)
    }

    async fn post(
        &self,
        shop: &Shop,
        endpoint: &Endpoint,
        events: &[Numbered],
        failures: u32,
    ) -> Attempt {
        let attempts = &self.metrics.receipts.attempts;
        let config = &self.receipts.log.config;
        let timeout = Duration::from_millis(config.timeout_ms);
        let webhook = shop.webhook.get_or_init(|| Webhook::new(self.receipts.reach, timeout));
        let (Ok(webhook), Ok(Some(app))) = (webhook, self.app_record(&endpoint.app)) else {
            tracing::warn!(app = %endpoint.app, "callbacks cannot be sent: no TLS or no such app");
            attempts.of(CallbackAttempt::Unreachable).increment(1);
            return Attempt::Failed;
        };
        let delivery = delivery_of(events);
        let body = body(endpoint, &delivery, events);
        let headers = [
            (signature::HEADER, signature::header(&app, self.now_ms() / 1_000, &body)),
            ("carillon-delivery", delivery),
            ("carillon-attempt", (failures + 1).to_string()),
        ];
        let since = Instant::now();
        let (attempt, result) = match webhook.post(&endpoint.url, &headers, body).await {
            Ok(200..=299) => (Attempt::Taken, CallbackAttempt::Taken),
            Ok(_) => (Attempt::Failed, CallbackAttempt::Refused),
            Err(Failure::Timeout) => (Attempt::Failed, CallbackAttempt::Timeout),
            Err(Failure::Unreachable) => (Attempt::Failed, CallbackAttempt::Unreachable),
        };
        attempts.of(result).increment(1);
        tracing::trace!(took = ?since.elapsed(), ?result, events = events.len(), "callback");
        attempt
    }

    /// Exponential, with jitter of half of it.
    fn backoff(&self, failures: u32) -> Duration {
        let config = &self.receipts.log.config;
        let doubled = config.retry_first_ms.saturating_mul(1 << failures.saturating_sub(1).min(30));
        let whole = doubled.min(config.retry_max_ms);
        let half = whole / 2;
        Duration::from_millis(half + u64::from_le_bytes(random_bytes()) % (whole - half + 1))
    }
}

/// What one look at the log led to.
enum Next {
    /// Nothing waits.
    Nothing,
    /// What waits is not durable yet.
    HeldBack,
    /// A request was taken.
    Taken,
    /// A request failed.
    Failed,
    /// What waited was too old.
    GivenUp,
}

/// The same for the same events, also after a restart.
fn delivery_of(events: &[Numbered]) -> String {
    let number = |event: Option<&Numbered>| event.map_or(0, |(number, _)| *number);
    format!("{:x}-{:x}", number(events.first()), number(events.last()))
}

fn body(endpoint: &Endpoint, delivery: &str, events: &[Numbered]) -> Vec<u8> {
    let events = events.iter().map(|(_, event)| tell(event)).collect();
    let body = Body { app: endpoint.app.as_str(), delivery, events };
    serde_json::to_vec(&body).unwrap_or_default()
}

/// The id of an event is made of what it says, so that it is the same whenever it is told.
fn tell(event: &Event) -> Told<'_> {
    let Event { kind, message, regid, at_ms } = event;
    let (message, at_ms) = (message.to_string(), *at_ms);
    let id = format!("{}.{message}.{regid}", kind.name());
    Told { id, r#type: kind.name(), message, regid, at_ms }
}
