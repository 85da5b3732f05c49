//! The ledger: what senders and devices saw, kept outside the node.
//!
//! Senders and devices note every event as it happens to them: attempts, answers,
//! deliveries, acknowledgements, kills. [`check`] then judges the whole history
//! against the promises. Nothing here knows how the node works inside.
#![allow(dead_code, reason = "every test crate uses its own part of it")]
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod api;
pub mod check;
pub mod device;
#[path = "../dice/mod.rs"]
pub mod dice;
pub mod events;
pub mod fleet;
pub mod frames;
pub mod line;
pub mod report;
pub mod rounds;
mod sends;
mod skips;
pub mod trace;

use std::{
    collections::HashMap,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

#[allow(unused_imports, reason = "every test crate uses its own part of it")]
pub use self::dice::{Dice, number_from_env};
use self::report::Report;

/// A queue by the numbers that the test gave to devices and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Queue {
    /// A device's own.
    Own(usize),
    /// The alias `a<number>`.
    Alias(usize),
    /// The topic `t<number>`.
    Topic(usize),
    /// Everybody's.
    All,
}

/// A place in a queue, as devices are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    pub epoch: u32,
    pub seq: u64,
}

/// Something that happened to a sender, to a device or to the node.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A sender is about to send this message.
    Attempted { message: u64, to: Vec<Queue> },
    /// That message has a time, so that its place is not in the order of the sends.
    Scheduled { message: u64 },
    /// It takes the place of an earlier one in its queue, once it is there: that one may arrive or not.
    Supersedes { message: u64, earlier: u64 },
    /// It is taken back from now on: it may arrive or not.
    Recalling { message: u64 },
    /// That was answered with 2xx: it is not given to a device that comes after.
    Recalled { message: u64 },
    /// A device with frames was told that the message with this id is taken back.
    ToldOfRecall { device: usize, id: String },
    /// It was answered with 2xx and this id.
    Accepted { message: u64, id: String },
    /// It was answered with 4xx: it must never arrive.
    Refused { message: u64 },
    /// A device is asked to follow a queue, or no longer.
    Asked { device: usize, queue: Queue, follow: bool },
    /// That was answered with 2xx.
    Changed { device: usize, queue: Queue, follow: bool },
    /// A device is about to connect.
    Connecting { device: usize },
    /// Its CONNECT was answered.
    Connected { device: usize, session_present: bool },
    /// A device was refused at the door, before it could say anything.
    Unreached { device: usize },
    /// A device was told that the node goes away, and hangs up.
    SentAway { device: usize },
    /// A PUBLISH reached a device.
    Delivered(Delivery),
    /// A device has written an acknowledgement to its socket.
    Acked { device: usize, queue: Queue, position: Position },
    /// A device keeps a position itself: up to there nothing may come again.
    Kept { device: usize, queue: Queue, position: Position },
    /// A device has written a ping behind its acknowledgements.
    Pinged { device: usize },
    /// The ping was answered: the node has read these acknowledgements.
    Ponged { device: usize },
    /// The node is about to be killed, or was found dead.
    Killed,
    /// It is dead for certain.
    Dead,
    /// The node is ready.
    Ready,
}

/// One PUBLISH as a device saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub device: usize,
    pub queue: Queue,
    pub position: Position,
    /// The number in the payload.
    pub message: u64,
    /// The id in the properties.
    pub id: String,
    pub dup: bool,
}

/// An event with its time since the ledger was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Noted {
    pub at: Duration,
    pub event: Event,
}

/// Takes notes for all who take part. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    opened: Instant,
    history: Arc<Mutex<Vec<Noted>>>,
}

impl Ledger {
    /// An empty one; time counts from now.
    pub fn open() -> Self {
        Self { opened: Instant::now(), history: Arc::default() }
    }

    /// Notes an event that happens now.
    pub fn note(&self, event: Event) {
        let mut history = self.history();
        // Under the lock, so that the order of the history is that of its times.
        let at = self.opened.elapsed();
        history.push(Noted { at, event });
    }

    /// Judges everything noted so far.
    pub fn check(&self) -> Report {
        // Not under the lock: a long history takes long, and devices that wait for their notes
        // are too late for the node.
        let mut judged = std::mem::take(&mut *self.history());
        let report = check::check(&judged);
        let mut history = self.history();
        judged.append(&mut history);
        *history = judged;
        report
    }

    /// Judges everything noted so far, as the end of the history. What is wrong ends the
    /// test; the history is written down then.
    pub fn judge(&self) -> Report {
        let report = self.check();
        if !report.faults().is_empty() {
            let file =
                concat!(env!("CARGO_TARGET_TMPDIR"), "/", env!("CARGO_CRATE_NAME"), ".ledger");
            let lines: Vec<String> = self
                .history()
                .iter()
                .map(|noted| format!("{:?} {:?}\n", noted.at, noted.event))
                .collect();
            std::fs::write(file, lines.concat()).expect("the target folder");
            eprintln!("the history is in {file}");
        }
        report.assert_clean();
        report
    }

    /// Events that were noted so far.
    pub fn len(&self) -> usize {
        self.history().len()
    }

    /// Messages that were attempted so far; the next one has a higher number.
    pub fn attempted(&self) -> u64 {
        let number = |noted: &Noted| match noted.event {
            Event::Attempted { message, .. } => Some(message),
            _ => None,
        };
        self.history().iter().filter_map(number).max().unwrap_or(0)
    }

    /// Messages that were accepted so far.
    pub fn accepted(&self) -> usize {
        let accepted = |noted: &&Noted| matches!(noted.event, Event::Accepted { .. });
        self.history().iter().filter(accepted).count()
    }

    /// How long each device that was sent away was without a connection, the shortest first.
    pub fn gaps(&self) -> Vec<Duration> {
        let (mut away, mut gaps) = (HashMap::new(), Vec::new());
        for Noted { at, event } in self.history().iter() {
            match event {
                Event::SentAway { device } => drop(away.insert(*device, *at)),
                Event::Connected { device, .. } => {
                    gaps.extend(away.remove(device).map(|since| *at - since));
                }
                _ => {}
            }
        }
        gaps.sort_unstable();
        gaps
    }

    fn history(&self) -> MutexGuard<'_, Vec<Noted>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// The alias or topic.
    pub fn name(self) -> String {
        match self {
            Self::Own(device) => format!("own of {device}"),
            Self::Alias(number) => format!("a{number}"),
            Self::Topic(number) => format!("t{number}"),
            Self::All => "all".into(),
        }
    }

    /// Reads the user property `queue` of a PUBLISH to `device`.
    pub fn from_property(device: usize, text: &str) -> Option<Self> {
        let number = |text: &str, prefix: &str| text.strip_prefix(prefix)?.parse().ok();
        match text {
            "own" => Some(Self::Own(device)),
            "all" => Some(Self::All),
            _ => number(text, "alias/a")
                .map(Self::Alias)
                .or_else(|| number(text, "topic/t").map(Self::Topic)),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.seq)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(epoch, seq)| {
            Some(Self { epoch: epoch.parse().ok()?, seq: seq.parse().ok()? })
        });
        parsed.ok_or_else(|| format!("`{text}` is no position"))
    }
}
