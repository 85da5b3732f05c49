//! Which interval a device uses next, and what it makes of each heartbeat's fate. Pure: times are brought in as values.

use std::time::Duration;

use super::networks::Networks;
use super::record::{Finding, Lost, Record, StoredRecord};
use super::{AppState, NetworkLabel, Parameters};

/// The state machine of one device over all of its networks and connections.
///
/// The order of calls: [`Learner::link_up`], then [`Learner::interval`] before each heartbeat and
/// [`Learner::survived`] or [`Learner::failed`] behind it. A connection that ended for another reason than a
/// heartbeat without an answer says nothing.
#[derive(Clone, Debug)]
pub struct Learner {
    parameters: Parameters,
    networks: Networks,
    label: Option<NetworkLabel>,
    app: AppState,
    forced: Option<Duration>,
    ceiling: Duration,
    /// Heartbeats of this connection that were answered.
    link_successes: u32,
    /// The interval of this connection's last heartbeat.
    previous: Option<Duration>,
    is_dirty: bool,
}

impl Learner {
    /// With what was stored, at a time in seconds since 1970.
    pub fn new(parameters: Parameters, stored: &[StoredRecord], now_s: u64) -> Self {
        let parameters = parameters.checked();
        Self {
            networks: Networks::load(stored, &parameters, now_s),
            parameters,
            label: None,
            app: AppState::default(),
            forced: None,
            ceiling: Duration::MAX,
            link_successes: 0,
            previous: None,
            is_dirty: false,
        }
    }

    /// The checked parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The app wants this interval and no other; `None`: the learned one.
    pub fn force(&mut self, interval: Option<Duration>) {
        self.forced = interval;
    }

    /// Whether the app is in use.
    pub fn set_app(&mut self, app: AppState) {
        self.app = app;
    }

    /// The network that the device is on; `None` if nothing is known of it: then the minimum is used.
    pub fn set_network(&mut self, label: Option<NetworkLabel>) {
        self.label = label;
    }

    /// The network that the device is on.
    pub fn network(&self) -> Option<&NetworkLabel> {
        self.label.as_ref()
    }

    /// What is known of the present network.
    pub fn record(&self) -> Option<&Record> {
        self.networks.of(self.label.as_ref()?)
    }

    /// A connection begins, on which no heartbeat may be later than `ceiling`.
    pub fn link_up(&mut self, ceiling: Duration, now_s: u64) {
        (self.ceiling, self.link_successes, self.previous) = (ceiling, 0, None);
        if let Some(label) = &self.label {
            self.is_dirty |= self.networks.enter(label, &self.parameters, now_s);
        }
    }

    /// The gateway granted another keep-alive than was asked for: the new ceiling, and, if it is lower, advice.
    pub fn granted(&mut self, ceiling: Duration, now_s: u64) {
        let is_lower = ceiling < self.ceiling;
        self.ceiling = ceiling;
        if is_lower && ceiling < self.parameters.top() {
            self.advise(ceiling, now_s);
        }
    }

    /// No heartbeat of this connection is later.
    pub fn ceiling(&self) -> Duration {
        self.ceiling
    }

    /// Until when the next heartbeat must come if nothing else is sent.
    pub fn interval(&self) -> Duration {
        self.planned().min(self.ceiling)
    }

    /// Whether the next heartbeat is the first behind the connection's test.
    pub fn is_proved(&self) -> bool {
        self.link_successes == self.parameters.link_tests
    }

    /// A heartbeat after `used` of silence was answered.
    pub fn survived(&mut self, used: Duration, now_s: u64) {
        self.link_successes += 1;
        let is_repeated = self.previous.replace(used) == Some(used);
        let is_test = self.link_successes <= self.parameters.link_tests;
        let Some((record, parameters)) = self.present() else { return };
        if is_test && used == record.base {
            return record.survived_base();
        }
        if used == record.interval {
            self.is_dirty |= record.survived(is_repeated, &parameters, now_s);
        }
    }

    /// A heartbeat after `used` of silence was not answered, and the connection is lost.
    pub fn failed(&mut self, used: Duration, lost: Lost, now_s: u64) -> Finding {
        let is_test = self.link_successes <= self.parameters.link_tests;
        let Some((record, parameters)) = self.present() else { return Finding::Nothing };
        // Only a heartbeat at the minimum belongs to the connection's test. The first behind it is counted, or a
        // network that survives the minimum and no more would cost a connection for ever.
        let finding = match is_test && used == record.base {
            true => record.failed_base(&parameters, now_s),
            false if used == record.interval => record.failed(lost, &parameters, now_s),
            false => return Finding::Nothing,
        };
        self.is_dirty = true;
        finding
    }

    /// The gateway advises an interval for the present network.
    pub fn advise(&mut self, advised: Duration, now_s: u64) {
        let Some((record, parameters)) = self.present() else { return };
        self.is_dirty |= record.advise(advised, &parameters, now_s);
    }

    /// The records, if they have changed since the last call.
    pub fn take_unsaved(&mut self) -> Option<Vec<StoredRecord>> {
        std::mem::take(&mut self.is_dirty).then(|| self.networks.to_stored())
    }

    fn planned(&self) -> Duration {
        if let Some(forced) = self.forced {
            return forced;
        }
        let Some(record) = self.record() else { return self.parameters.min };
        let is_test = self.link_successes < self.parameters.link_tests;
        if is_test || self.app == AppState::Active { record.base } else { record.interval }
    }

    /// The present network's record, unless the app's own interval is used: that says nothing of the network.
    fn present(&mut self) -> Option<(&mut Record, Parameters)> {
        if self.forced.is_some() {
            return None;
        }
        let record = self.networks.of_mut(self.label.as_ref()?)?;
        Some((record, self.parameters))
    }
}
