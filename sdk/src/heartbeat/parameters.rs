//! The numbers of the algorithm, and the words that it shares with the app.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::names::NotAName;

/// Everything that can be tuned. The defaults are those of the algorithm's public source (docs/HEARTBEAT.md).
///
/// Values that contradict each other are put right when they are used: see [`Parameters::checked`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The interval that any network is expected to survive: of each connection's first heartbeats, and while the app
    /// is active. 210 s.
    pub min: Duration,
    /// No heartbeat is later than this less `success_step`. 600 s.
    pub max: Duration,
    /// How much longer the next interval is that is tried. 60 s.
    pub step: Duration,
    /// The distance that is kept from what is not known to survive. 20 s.
    pub success_step: Duration,
    /// So many failures at an interval prove that it does not survive. 2.
    pub failures_max: u32,
    /// So many successes at an interval lead to the next longer one. 5.
    pub successes: u32,
    /// The first heartbeats of each connection that use `min`. 3.
    pub link_tests: u32,
    /// So many failures in a row at `min` mean that the network is bad: it gets a lower minimum. 6.
    pub bad_network_failures: u32,
    /// No network's minimum is below this. 60 s.
    pub floor: Duration,
    /// A ping without any packet from the gateway for so long means that the connection is dead. 8 s.
    pub answer_within: Duration,
    /// A settled interval is tried a little longer after this time. 7 days.
    pub probe_after: Duration,
    /// The gateway hears a report no more often. 60 s.
    pub report_every: Duration,
}

impl Default for Parameters {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            min: seconds(210),
            max: seconds(600),
            step: seconds(60),
            success_step: seconds(20),
            failures_max: 2,
            successes: 5,
            link_tests: 3,
            bad_network_failures: 6,
            floor: seconds(60),
            answer_within: seconds(8),
            probe_after: seconds(7 * 86_400),
            report_every: seconds(60),
        }
    }
}

impl Parameters {
    /// The nearest values that make sense: nothing is zero, `floor` ≤ `min` ≤ [`Parameters::top`].
    #[must_use]
    pub fn checked(mut self) -> Self {
        let least = Duration::from_millis(1);
        self.floor = self.floor.max(least);
        self.min = self.min.max(self.floor);
        self.max = self.max.max(self.min + self.success_step);
        self.step = self.step.max(least);
        self.answer_within = self.answer_within.max(least);
        for count in [&mut self.failures_max, &mut self.successes, &mut self.bad_network_failures] {
            *count = (*count).max(1);
        }
        self
    }

    /// The longest interval that is used.
    pub fn top(&self) -> Duration {
        self.max - self.success_step
    }
}

/// Whether somebody uses the app now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppState {
    /// It is on the screen: heartbeats keep to the minimum, so that a lost connection is found soon.
    Active,
    /// It is not.
    #[default]
    Inactive,
}

/// The app's name for the network that the device is on: 1 to 64 bytes, without control characters.
///
/// It should be equal for all devices of one operator or access point, because the gateway learns by it; the gateway
/// needs no meaning in it. A hash does, where the name of an access point should not leave the device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkLabel(String);

impl NetworkLabel {
    /// In bytes.
    pub const BYTES_MAX: usize = 64;

    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetworkLabel {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let is_valid = (1..=Self::BYTES_MAX).contains(&text.len());
        let is_plain = !text.chars().any(char::is_control);
        if is_valid && is_plain { Ok(Self(text.to_owned())) } else { Err(NotAName) }
    }
}

impl fmt::Display for NetworkLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
