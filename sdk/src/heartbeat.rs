//! When to ping, and when silence means that the connection is dead. Pure; the caller brings the time.
//!
//! The interval is fixed: what the device asked for, or what the gateway granted instead. An adaptive one, learned for
//! each network, is to take this type's place with the same questions.

use std::time::Duration;

use tokio::time::Instant;

/// The timer of one connection.
#[derive(Debug)]
pub struct Heartbeat {
    interval: Duration,
    /// When something was last written.
    sent_at: Instant,
    /// When a ping was written that nothing has answered.
    pinged_at: Option<Instant>,
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

/// How long a ping may stay without any packet from the gateway.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);

impl Heartbeat {
    /// From now on.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, sent_at: now, pinged_at: None }
    }

    /// The gateway granted another interval.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Something was written.
    pub fn sent(&mut self, now: Instant) {
        self.sent_at = now;
    }

    /// Any packet came: the connection lives.
    pub fn heard(&mut self) {
        self.pinged_at = None;
    }

    /// When to ask [`Heartbeat::due`] again.
    pub fn wake_at(&self) -> Instant {
        match self.pinged_at {
            Some(at) => at + ANSWER_WITHIN,
            None => self.sent_at + self.interval,
        }
    }

    /// What is due now. A ping counts as sent.
    pub fn due(&mut self, now: Instant) -> Due {
        match self.pinged_at {
            _ if now < self.wake_at() => Due::Nothing,
            Some(_) => Due::Dead,
            None => {
                (self.pinged_at, self.sent_at) = (Some(now), now);
                Due::Ping
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pings_after_silence_and_gives_up_without_an_answer() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut heartbeat = Heartbeat::new(60 * second, start);
        assert_eq!(heartbeat.due(start + 59 * second), Due::Nothing);
        heartbeat.sent(start + 30 * second);
        assert_eq!(heartbeat.due(start + 60 * second), Due::Nothing);
        assert_eq!(heartbeat.due(start + 90 * second), Due::Ping);
        heartbeat.heard();
        assert_eq!(heartbeat.due(start + 150 * second), Due::Ping);
        assert_eq!(heartbeat.due(start + 159 * second), Due::Nothing);
        assert_eq!(heartbeat.due(start + 160 * second), Due::Dead);
    }
}
