//! What a device knows of one network, and the rules by which it learns. Pure.
//!
//! The rules are those of a published state machine with its counting repaired (docs/HEARTBEAT.md). A record must never
//! know connections: which heartbeats are a connection's first ones is told.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Parameters;

/// One network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The interval that is in use or tried once a connection has proved itself.
    pub interval: Duration,
    /// The minimum here: `Parameters::min`, or less on a network that does not even survive that.
    pub base: Duration,
    /// The search is over.
    pub is_settled: bool,
    /// Where `interval` comes from.
    pub source: Source,
    /// Heartbeats in a row that survived `interval`.
    successes: u32,
    /// Heartbeats that did not, since the last that did.
    failures: u32,
    /// Failures in a row at `base`.
    base_failures: u32,
    /// The interval that was last proved not to survive.
    failed_at: Option<Duration>,
    /// When `interval` was last changed, in seconds since 1970.
    modified_s: u64,
    /// When the network was last used, in seconds since 1970.
    pub used_s: u64,
}

/// Where an interval comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The device's own search.
    Own,
    /// The gateway's advice.
    Advised,
}

/// How a connection was lost behind a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// No answer came in time.
    Silence,
    /// The stream broke.
    Broken,
}

/// What a failure showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing new.
    Nothing,
    /// The interval does not survive; the record has another one.
    TooLong,
    /// Not even the minimum survives; this network's own is lower now, unless it is at the floor.
    BadNetwork,
}

impl Record {
    /// Nothing is known yet.
    pub fn new(parameters: &Parameters, now_s: u64) -> Self {
        Self {
            interval: parameters.min,
            base: parameters.min,
            is_settled: false,
            source: Source::Own,
            successes: 0,
            failures: 0,
            base_failures: 0,
            failed_at: None,
            modified_s: now_s,
            used_s: now_s,
        }
    }

    /// One of a connection's first heartbeats, at the minimum, was answered.
    pub fn survived_base(&mut self) {
        self.base_failures = 0;
    }

    /// One of a connection's first heartbeats, at the minimum, was not answered.
    pub fn failed_base(&mut self, parameters: &Parameters, now_s: u64) -> Finding {
        self.base_failures += 1;
        if self.base_failures < parameters.bad_network_failures {
            return Finding::Nothing;
        }
        self.base_failures = 0;
        let lower = self.base.saturating_sub(parameters.step).max(parameters.floor);
        if lower < self.base {
            self.failed_at = Some(self.base);
            self.base = lower;
            self.settle(lower, Source::Own, now_s);
        }
        Finding::BadNetwork
    }

    /// A heartbeat at `interval` was answered. It counts twice in a row only: the first at a new interval may have had
    /// luck. Returns whether the interval has changed.
    pub fn survived(&mut self, is_repeated: bool, parameters: &Parameters, now_s: u64) -> bool {
        self.failures = 0;
        if self.interval >= parameters.min {
            self.base = parameters.min;
        }
        if self.failed_at.is_some_and(|failed| failed <= self.interval) {
            self.failed_at = None;
        }
        if is_repeated {
            self.successes += 1;
        }
        if self.is_settled {
            return self.probe(parameters, now_s);
        }
        if self.successes < parameters.successes {
            return false;
        }
        let top = parameters.top();
        match self.interval >= top {
            true => self.settle(top, Source::Own, now_s),
            false => self.search((self.interval + parameters.step).min(top), now_s),
        }
        true
    }

    /// A heartbeat at `interval` was not answered.
    pub fn failed(&mut self, lost: Lost, parameters: &Parameters, now_s: u64) -> Finding {
        if lost == Lost::Silence {
            self.successes = 0;
        }
        self.failures += 1;
        if self.interval <= self.base || self.failures < parameters.failures_max {
            return Finding::Nothing;
        }
        self.failed_at = Some(self.interval);
        if self.is_settled {
            // The network has changed: all is open again.
            self.search(self.base, now_s);
        } else {
            let back = parameters.step + parameters.success_step;
            self.settle(self.interval.saturating_sub(back).max(self.base), Source::Own, now_s);
        }
        Finding::TooLong
    }

    /// The gateway advises an interval. It is where the device starts, and what it follows as long as it follows
    /// advice; what the device has found out itself only gives way to a longer interval, or when it just failed. Returns
    /// whether the interval has changed.
    pub fn advise(&mut self, advised: Duration, parameters: &Parameters, now_s: u64) -> bool {
        let advised = advised.clamp(parameters.floor, parameters.top());
        if self.failed_at.is_some_and(|failed| failed <= advised) {
            return false;
        }
        let is_own = self.is_settled && self.source == Source::Own;
        let is_trusted = !is_own || advised > self.interval || self.failures > 0;
        if !is_trusted || (self.is_settled && advised == self.interval) {
            return false;
        }
        self.base = advised.min(parameters.min);
        self.settle(advised, Source::Advised, now_s);
        true
    }

    /// A settled interval that has held for long is tried a little longer.
    fn probe(&mut self, parameters: &Parameters, now_s: u64) -> bool {
        let is_due = now_s >= self.modified_s.saturating_add(parameters.probe_after.as_secs());
        if !is_due || self.interval >= parameters.top() {
            return false;
        }
        self.failed_at = None;
        self.search((self.interval + parameters.success_step).min(parameters.top()), now_s);
        true
    }

    fn settle(&mut self, interval: Duration, source: Source, now_s: u64) {
        self.change(interval, now_s);
        (self.is_settled, self.source) = (true, source);
    }

    fn search(&mut self, interval: Duration, now_s: u64) {
        self.change(interval, now_s);
        (self.is_settled, self.source) = (false, Source::Own);
    }

    fn change(&mut self, interval: Duration, now_s: u64) {
        (self.interval, self.modified_s) = (interval, now_s);
        (self.successes, self.failures) = (0, 0);
    }
}

/// A record in the device's state, in milliseconds and seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRecord {
    /// The label.
    pub network: String,
    interval_ms: u64,
    base_ms: u64,
    is_settled: bool,
    source: Source,
    #[serde(default)]
    failures: u32,
    #[serde(default)]
    failed_at_ms: Option<u64>,
    #[serde(default)]
    modified_s: u64,
    #[serde(default)]
    used_s: u64,
}

impl StoredRecord {
    /// A record as it is stored.
    pub fn of(network: &str, record: &Record) -> Self {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            network: network.to_owned(),
            interval_ms: ms(record.interval),
            base_ms: ms(record.base),
            is_settled: record.is_settled,
            source: record.source,
            failures: record.failures,
            failed_at_ms: record.failed_at.map(ms),
            modified_s: record.modified_s,
            used_s: record.used_s,
        }
    }

    /// The record, its values put into their ranges; `None` without a time, or from a time that has not come yet.
    pub fn load(&self, parameters: &Parameters, now_s: u64) -> Option<Record> {
        let is_dated = |at_s: u64| at_s > 0 && at_s <= now_s.saturating_add(CLOCK_SLACK_S);
        if !is_dated(self.modified_s) || !is_dated(self.used_s) {
            return None;
        }
        let base = Duration::from_millis(self.base_ms).clamp(parameters.floor, parameters.min);
        let interval = Duration::from_millis(self.interval_ms).clamp(base, parameters.top());
        Some(Record {
            interval,
            base,
            is_settled: self.is_settled,
            source: self.source,
            successes: 0,
            failures: self.failures.min(parameters.failures_max - 1),
            base_failures: 0,
            failed_at: self.failed_at_ms.map(Duration::from_millis),
            modified_s: self.modified_s,
            used_s: self.used_s,
        })
    }
}

/// A device's clock may have been set back a little.
const CLOCK_SLACK_S: u64 = 600;
