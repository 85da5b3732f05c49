//! The adaptive heartbeat: when to ping, when silence means that the connection is dead, and what each network bears.
//!
//! `record` holds the rules for one network, `networks` the bounded set of them, `learner` what a device does with both;
//! here is the timer of a connection, which asks the learner and tells it. All is pure: the caller brings the times.
//! docs/HEARTBEAT.md tells the story.

mod learner;
mod networks;
mod parameters;
mod record;

use std::time::Duration;

use carillon_wire::idl;
use tokio::time::Instant;

use crate::close::End;

pub use learner::Learner;
pub use networks::NETWORKS_MAX;
pub use parameters::{AppState, NetworkLabel, Parameters};
pub use record::{Finding, Lost, Record, Source, StoredRecord};

/// The heartbeat of a device, over all of its connections.
#[derive(Debug)]
pub struct Heartbeat {
    learner: Learner,
    /// When seconds since 1970 were `unix_s`.
    started: Instant,
    unix_s: u64,
    /// When something was last written.
    sent_at: Instant,
    /// When something last came.
    heard_at: Instant,
    ping: Option<Ping>,
    /// The longest silence of this connection that was answered.
    longest: Duration,
    /// The silence behind which the connection before was found dead.
    died: Option<Duration>,
    report: Report,
}

/// A ping that nothing has answered.
#[derive(Clone, Copy, Debug)]
struct Ping {
    at: Instant,
    /// The interval that led to it.
    used: Duration,
    /// The silence before it.
    gap: Duration,
    /// The silence was one of both sides, and not much longer than planned: its fate says something of `used`.
    is_test: bool,
}

/// What the gateway was told on this connection.
#[derive(Clone, Copy, Debug, Default)]
struct Report {
    is_wanted: bool,
    at: Option<Instant>,
    longest: Duration,
    /// Heartbeats that were answered since.
    successes: u32,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// Send PINGREQ.
    Ping,
    /// Nothing came back: the connection is dead.
    Dead,
}

impl Heartbeat {
    /// Of a device that begins now, at `unix_s` seconds since 1970.
    pub fn new(learner: Learner, now: Instant, unix_s: u64) -> Self {
        Self {
            learner,
            started: now,
            unix_s,
            sent_at: now,
            heard_at: now,
            ping: None,
            longest: Duration::ZERO,
            died: None,
            report: Report::default(),
        }
    }

    /// What the app and the store have to do with.
    pub fn learner(&mut self) -> &mut Learner {
        &mut self.learner
    }

    /// The device is on that network now.
    ///
    /// # Errors
    /// [`End::NetworkChanged`] if it was on another one: its connection does not belong there.
    pub(crate) fn change_network(&mut self, label: Option<NetworkLabel>) -> Result<(), End> {
        if self.learner.network() == label.as_ref() {
            return Ok(());
        }
        // What died there says nothing of here.
        (self.ping, self.died) = (None, None);
        self.learner.set_network(label);
        Err(End::NetworkChanged)
    }

    /// A connection begins; CONNECT states `keep_alive`.
    pub fn link_up(&mut self, keep_alive: Duration, now: Instant) {
        self.learner.link_up(keep_alive, self.unix_s(now));
        (self.sent_at, self.heard_at, self.ping) = (now, now, None);
        (self.longest, self.report) = (Duration::ZERO, Report::default());
    }

    /// CONNACK grants another keep-alive.
    pub fn granted(&mut self, keep_alive: Duration, now: Instant) {
        self.learner.granted(keep_alive, self.unix_s(now));
    }

    /// The gateway advises an interval.
    pub fn advise(&mut self, interval: Duration, now: Instant) {
        self.learner.advise(interval, self.unix_s(now));
    }

    /// The gateway can be told something from now on.
    pub fn online(&mut self) {
        self.report.is_wanted = true;
    }

    /// Something was written: the next heartbeat moves on.
    pub fn sent(&mut self, now: Instant) {
        self.sent_at = now;
    }

    /// Any packet came: the connection lives.
    pub fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        let Some(ping) = self.ping.take() else { return };
        self.report.successes += 1;
        if !ping.is_test {
            return;
        }
        self.longest = self.longest.max(ping.gap);
        self.learner.survived(ping.used, self.unix_s(now));
        self.report.is_wanted |= self.longest >= self.report.longest + NEWS
            || self.learner.is_proved()
            || self.report.successes >= REPORT_SUCCESSES;
    }

    /// The connection has ended: `lost` tells how, if the other side did not say why.
    pub fn link_down(&mut self, lost: Option<Lost>, now: Instant) {
        let (Some(ping), Some(lost)) = (self.ping.take(), lost) else { return };
        if !ping.is_test {
            return;
        }
        self.died = Some(ping.gap);
        if self.learner.failed(ping.used, lost, self.unix_s(now)) == Finding::BadNetwork {
            tracing::info!("heartbeats at the shortest interval fail on this network");
        }
    }

    /// When to ask [`Heartbeat::due`] again.
    pub fn wake_at(&self) -> Instant {
        match self.ping {
            Some(ping) => ping.at + self.learner.parameters().answer_within,
            None => self.sent_at + self.learner.interval(),
        }
    }

    /// What is due now. A ping counts as sent.
    pub fn due(&mut self, now: Instant) -> Due {
        if now < self.wake_at() {
            return Due::Nothing;
        }
        if self.ping.is_some() {
            return Due::Dead;
        }
        let used = self.learner.interval();
        let gap = now - self.sent_at;
        let slack = self.learner.parameters().answer_within.min(used / 4);
        let is_quiet = self.heard_at <= self.sent_at + slack;
        let is_timely = gap <= used + self.learner.parameters().success_step;
        let is_test = is_quiet && is_timely;
        (self.ping, self.sent_at) = (Some(Ping { at: now, used, gap, is_test }), now);
        Due::Ping
    }

    /// The silence before the ping that nothing has answered yet.
    pub fn silence_before_ping(&self) -> Option<Duration> {
        self.ping.map(|ping| ping.gap)
    }

    /// What the gateway is to be told now, if anything. It counts as told.
    pub fn take_report(&mut self, now: Instant) -> Option<idl::HeartbeatReport> {
        let every = self.learner.parameters().report_every;
        let is_early = self.report.at.is_some_and(|at| now < at + every);
        if !self.report.is_wanted || is_early {
            return None;
        }
        let network = self.learner.network()?.to_string();
        // The gateway takes no gap above the keep-alive.
        let ceiling = self.learner.ceiling();
        let whole_s =
            |gap: Duration| i32::try_from(gap.min(ceiling).as_secs()).ok().filter(|s| *s > 0);
        let survived_s = whole_s(self.longest);
        let died_s = self.died.take().and_then(whole_s);
        self.report =
            Report { is_wanted: false, at: Some(now), longest: self.longest, successes: 0 };
        Some(idl::HeartbeatReport { network, survived_s, died_s })
    }

    fn unix_s(&self, now: Instant) -> u64 {
        self.unix_s + now.saturating_duration_since(self.started).as_secs()
    }
}

/// A silence that is longer by so much than the last reported one is reported.
const NEWS: Duration = Duration::from_secs(5);
/// So many heartbeats without a report are reported too: the gateway weighs survivals against deaths.
const REPORT_SUCCESSES: u32 = 6;

#[cfg(test)]
mod tests;
