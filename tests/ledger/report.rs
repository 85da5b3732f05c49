//! What a history amounts to, and what it breaks.

use std::{fmt, time::Duration};

/// What a history can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// I1, I3: what was accepted reaches every device that followed.
    Lost,
    /// I2: first deliveries of a queue come in its order, which is that of the sends.
    Order,
    /// A position never means two messages.
    Meaning,
    /// A message has one place in a queue.
    OnePlace,
    /// A device has a message once, by one queue.
    Once,
    /// I3: what was not acknowledged comes again, before anything behind it.
    PassedOver,
    /// I4: what was acknowledged durably never comes again.
    AckedAgain,
    /// I8: only what was sent, only to those who follow.
    Stranger,
    /// What was refused never arrives.
    Refused,
    /// Answer and deliveries name a message by the same id.
    Identity,
    /// A redelivery within an MQTT session says so.
    Dup,
    /// What was taken back is not given to a device that comes after.
    TakenBack,
    /// Nor is what a newer message has taken the place of.
    Superseded,
    /// A device with frames that has a message learns that it is taken back.
    Untold,
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: Rule,
    pub at: Duration,
    pub text: String,
}

/// What a history amounts to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub violations: Vec<Violation>,
    /// Accepted messages that have not reached a device that follows: (device, message).
    pub owed: Vec<(usize, u64)>,
    pub attempts: usize,
    pub accepted: usize,
    pub refused: usize,
    pub deliveries: usize,
    pub redeliveries: usize,
    pub acks: usize,
    pub connections: usize,
    pub kills: usize,
    /// Connections that were refused at the door.
    pub unreached: usize,
    /// Devices that were told that the node goes away, each time.
    pub sent_away: usize,
    /// Answered recalls.
    pub recalls: usize,
    /// Copies that did not arrive because they were taken back, or a newer message took their place.
    pub withheld: usize,
    pub superseded: usize,
    /// How old an acknowledgement must be to survive a kill, on this machine now.
    pub forgiven: Duration,
}

impl Report {
    /// Everything that is wrong once the history is over: what is still owed is lost.
    pub fn faults(&self) -> Vec<Violation> {
        let lost = self.owed.iter().map(|(device, message)| Violation {
            rule: Rule::Lost,
            at: Duration::MAX,
            text: format!("message {message} never reached device {device}"),
        });
        self.violations.iter().cloned().chain(lost).collect()
    }

    /// Panics with the first faults if there are any.
    pub fn assert_clean(&self) {
        let faults = self.faults();
        let first: Vec<String> = faults.iter().take(20).map(|fault| format!("{fault:?}")).collect();
        assert!(faults.is_empty(), "{self}\n{} faults:\n{}", faults.len(), first.join("\n"));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attempts, accepted, deliveries, redeliveries, kills, .. } = self;
        write!(
            f,
            "kills {kills}, sends {attempts}, accepted {accepted}, deliveries {deliveries}, \
             redeliveries {redeliveries}, recalls {}, copies that they held back {}, superseded \
             {}, acks {}, connections {}, sent away {}, refused at the door {}, forgiven {:?}, \
             losses {}, other faults {}",
            self.recalls,
            self.withheld,
            self.superseded,
            self.acks,
            self.connections,
            self.sent_away,
            self.unreached,
            self.forgiven,
            self.owed.len(),
            self.violations.len(),
        )
    }
}
