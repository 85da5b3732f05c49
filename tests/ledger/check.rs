//! The checker: judges a history against the promises of delivery.
//!
//! It owns the rules and nothing else: a pure function of what was noted. Where
//! the history leaves something open (an attempt without an answer, a change that
//! a kill cut off), both outcomes are right.

use std::{collections::HashMap, fmt, time::Duration};

use super::{
    Delivery, Event, Noted, Position, Queue,
    line::{Arrival, FORGIVEN, Kill, Line},
};

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
    /// How old an acknowledgement must be to survive a kill, on this machine now.
    pub forgiven: Duration,
}

/// Judges a history.
pub fn check(history: &[Noted]) -> Report {
    let mut checker = Checker { forgiven: FORGIVEN + longest_ping(history), ..Checker::default() };
    for Noted { at, event } in history {
        checker.see(*at, event);
    }
    checker.check_order_of_sends();
    checker.find_owed();
    checker.report.forgiven = checker.forgiven;
    checker.report
}

/// How slow the node was at worst.
fn longest_ping(history: &[Noted]) -> Duration {
    let (mut pinged, mut longest) = (HashMap::new(), Duration::ZERO);
    for Noted { at, event } in history {
        match event {
            Event::Pinged { device } => drop(pinged.insert(*device, *at)),
            Event::Ponged { device } => {
                longest =
                    longest.max(pinged.get(device).map_or(Duration::ZERO, |since| *at - *since));
            }
            _ => {}
        }
    }
    longest
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
             redeliveries {redeliveries}, acks {}, connections {}, sent away {}, refused at the \
             door {}, forgiven {:?}, losses {}, other faults {}",
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

#[derive(Default)]
struct Checker {
    forgiven: Duration,
    report: Report,
    messages: HashMap<u64, Message>,
    followings: HashMap<(usize, Queue), Following>,
    meanings: HashMap<(Queue, Position), u64>,
    places: HashMap<(Queue, u64), Position>,
    devices: HashMap<usize, Device>,
    kills: Vec<Kill>,
    ready_at: Duration,
}

struct Message {
    to: Vec<Queue>,
    attempted: Duration,
    accepted: Option<Duration>,
    refused: bool,
    is_scheduled: bool,
    may_skip: bool,
    id: Option<String>,
}

/// When a device followed a queue, as far as the history can tell.
#[derive(Default)]
struct Following {
    /// Times in which it may have followed.
    may: Vec<(Duration, Duration)>,
    may_since: Option<Duration>,
    surely_since: Option<Duration>,
}

#[derive(Default)]
struct Device {
    /// By which queue each message came.
    received: HashMap<u64, Queue>,
    connected_at: Duration,
    lines: HashMap<Queue, Line>,
    acked: Vec<(Queue, Position)>,
    /// When the last ping was written, and what was acknowledged before it.
    pinged: (Duration, Vec<(Queue, Position)>),
}

impl Checker {
    fn see(&mut self, at: Duration, event: &Event) {
        match event {
            Event::Attempted { message, to } => self.attempted(at, *message, to),
            Event::Accepted { message, id } => self.accepted(at, *message, id),
            Event::Scheduled { message } => {
                self.messages.entry(*message).and_modify(|m| m.is_scheduled = true);
            }
            Event::MaySkip { message } => self.may_skip(*message),
            Event::Refused { message } => {
                self.report.refused += 1;
                self.messages.entry(*message).and_modify(|m| m.refused = true);
            }
            Event::Asked { device, queue, follow } => self.asked(at, *device, *queue, *follow),
            Event::Changed { device, queue, follow } => self.changed(at, *device, *queue, *follow),
            Event::Connected { device, session_present } => {
                self.report.connections += 1;
                self.device(*device).connected(at, *session_present);
            }
            Event::Delivered(delivery) => self.delivered(at, delivery),
            Event::Acked { device, queue, position } => {
                self.report.acks += 1;
                self.device(*device).acked(*queue, *position);
            }
            Event::Kept { device, queue, position } => {
                self.report.acks += 1;
                self.device(*device).lines.entry(*queue).or_default().keep(*position);
            }
            Event::Pinged { device } => {
                let device = self.device(*device);
                device.pinged = (at, std::mem::take(&mut device.acked));
            }
            Event::Ponged { device } => self.device(*device).ponged(at),
            Event::Unreached { .. } => self.report.unreached += 1,
            Event::SentAway { .. } => self.report.sent_away += 1,
            Event::Killed => self.killed(at),
            Event::Dead => self.kills.last_mut().expect("a kill before").1 = at,
            Event::Ready => self.ready_at = at,
        }
    }

    /// A message need not arrive any more, nor come again.
    fn may_skip(&mut self, message: u64) {
        let Some(known) = self.messages.get_mut(&message) else { return };
        known.may_skip = true;
        for queue in &known.to {
            let Some(position) = self.places.get(&(*queue, message)) else { continue };
            let lines = self.devices.values_mut().filter_map(|device| device.lines.get_mut(queue));
            lines.for_each(|line| line.acknowledge(*position));
        }
    }

    fn device(&mut self, device: usize) -> &mut Device {
        self.devices.entry(device).or_default()
    }

    fn fault(&mut self, rule: Rule, at: Duration, text: String) {
        self.report.violations.push(Violation { rule, at, text });
    }

    fn attempted(&mut self, attempted: Duration, message: u64, to: &[Queue]) {
        self.report.attempts += 1;
        let fresh = Message {
            to: to.to_vec(),
            attempted,
            accepted: None,
            refused: false,
            is_scheduled: false,
            may_skip: false,
            id: None,
        };
        assert!(self.messages.insert(message, fresh).is_none(), "{message} is attempted twice");
    }

    fn accepted(&mut self, at: Duration, message: u64, id: &str) {
        self.report.accepted += 1;
        let known = self.messages.get_mut(&message).expect("an attempt before the answer");
        known.accepted = Some(at);
        self.identify(at, message, id);
    }

    fn identify(&mut self, at: Duration, message: u64, id: &str) {
        let Some(known) = self.messages.get_mut(&message) else { return };
        let first = known.id.get_or_insert_with(|| id.to_owned()).clone();
        if first != id {
            self.fault(Rule::Identity, at, format!("message {message} is {first} and {id}"));
        }
    }

    fn asked(&mut self, at: Duration, device: usize, queue: Queue, follow: bool) {
        let following = self.followings.entry((device, queue)).or_default();
        let is_fresh = following.may_since.is_none();
        following.asked(at, follow);
        let line = self.device(device).lines.entry(queue).or_default();
        if !follow {
            line.excuse();
        } else if is_fresh {
            line.begin_anew();
        }
    }

    fn changed(&mut self, at: Duration, device: usize, queue: Queue, follow: bool) {
        let following = self.followings.entry((device, queue)).or_default();
        // An end without an answer may have come true; then this following began anew.
        let is_anew = follow && following.surely_since.is_none();
        following.changed(at, follow);
        if is_anew {
            self.device(device).lines.entry(queue).or_default().excuse();
        }
    }

    fn killed(&mut self, at: Duration) {
        self.report.kills += 1;
        for line in self.devices.values_mut().flat_map(|device| device.lines.values_mut()) {
            line.survive(at, &self.kills, self.forgiven);
        }
        self.kills.push((at, at));
    }

    fn delivered(&mut self, at: Duration, delivery: &Delivery) {
        let Delivery { device, queue, position, message, .. } = *delivery;
        self.check_sent(at, delivery);
        self.identify(at, message, &delivery.id);
        let meant = *self.meanings.entry((queue, position)).or_insert(message);
        if meant != message {
            let text = format!("{position} of {queue:?} is message {meant} and {message}");
            self.fault(Rule::Meaning, at, text);
        }
        let place = *self.places.entry((queue, message)).or_insert(position);
        if place != position {
            let text = format!("message {message} is at {place} and {position} of {queue:?}");
            self.fault(Rule::OnePlace, at, text);
        }
        let by = *self.device(device).received.entry(message).or_insert(queue);
        if by != queue {
            let text = format!("message {message} came to device {device} by {by:?} and {queue:?}");
            self.fault(Rule::Once, at, text);
        }
        self.check_line(at, delivery);
    }

    fn check_sent(&mut self, at: Duration, delivery: &Delivery) {
        let Delivery { device, queue, message, .. } = *delivery;
        let Some(known) = self.messages.get(&message) else {
            return self.fault(Rule::Stranger, at, format!("nobody sent message {message}"));
        };
        let appended = (known.attempted, known.accepted.unwrap_or(at));
        let following = self.followings.get(&(device, queue));
        let may_follow = following.is_some_and(|following| following.may_during(appended));
        let is_refused = known.refused;
        if !known.to.contains(&queue) || !may_follow {
            let text = format!("device {device} got message {message} by {queue:?}");
            self.fault(Rule::Stranger, at, text);
        }
        if is_refused {
            self.fault(Rule::Refused, at, format!("message {message} was refused"));
        }
    }

    fn check_line(&mut self, at: Duration, delivery: &Delivery) {
        let Delivery { device, queue, position, dup, .. } = *delivery;
        let device_state = self.devices.entry(device).or_default();
        let line = device_state.lines.entry(queue).or_default();
        let before = line.newest_on_connection.replace(position);
        let is_resent = line.newest_in_session.is_some_and(|newest| position <= newest);
        line.newest_in_session = line.newest_in_session.max(Some(position));
        let passed_over = line.passed_over(position, device_state.connected_at);
        // What a node delivers first after its start says what it still knew.
        let is_fresh = self.ready_at < device_state.connected_at;
        if let Some((_, dead)) = self.kills.last().filter(|kill| is_fresh && kill.1 < self.ready_at)
        {
            line.survived(position, *dead);
        }
        let arrival = line.arrive(at, position, &self.kills, self.forgiven);
        if self.messages.get(&delivery.message).is_some_and(|message| message.may_skip) {
            line.acknowledge(position);
        }
        let told = || format!("device {device}: {position} of {queue:?} at {at:?}");
        if let Some(before) = before.filter(|before| *before >= position) {
            let text = format!("{} behind {before} of the same connection", told());
            self.fault(Rule::Order, at, text);
        }
        if let Some(missing) = passed_over {
            self.fault(Rule::PassedOver, at, format!("{} without {missing} before it", told()));
        }
        match arrival {
            Arrival::First => self.report.deliveries += 1,
            Arrival::Again => {
                self.report.redeliveries += 1;
                if is_resent && !dup {
                    self.fault(Rule::Dup, at, told());
                }
            }
            Arrival::Late => self.fault(Rule::Order, at, format!("{} came too late", told())),
            Arrival::AckedAgain(acked) => {
                let text = format!("{}, {acked}, kills: {:?}", told(), self.kills);
                self.fault(Rule::AckedAgain, at, text);
            }
        }
    }

    /// A message that was sent after another one was answered stands behind it.
    fn check_order_of_sends(&mut self) {
        let mut queues: HashMap<Queue, Vec<(Position, u64)>> = HashMap::new();
        for ((queue, message), position) in &self.places {
            queues.entry(*queue).or_default().push((*position, *message));
        }
        for (queue, mut places) in queues {
            places.sort_unstable();
            let mut latest = (Duration::ZERO, 0);
            for (position, message) in places {
                let Some(known) = self.messages.get(&message) else { continue };
                if known.is_scheduled {
                    continue;
                }
                let (attempted, accepted) = (known.attempted, known.accepted);
                if let Some(accepted) = accepted.filter(|accepted| *accepted < latest.0) {
                    let text = format!(
                        "message {message}, answered at {accepted:?}, is at {position} of {queue:?} \
                         behind {}, attempted at {:?}",
                        latest.1, latest.0
                    );
                    self.fault(Rule::Order, accepted, text);
                }
                latest = latest.max((attempted, message));
            }
        }
    }

    fn find_owed(&mut self) {
        let mut followers: HashMap<Queue, Vec<(usize, Duration)>> = HashMap::new();
        for ((device, queue), following) in &self.followings {
            if let Some(since) = following.surely_since {
                followers.entry(*queue).or_default().push((*device, since));
            }
        }
        for (number, message) in &self.messages {
            if message.accepted.is_none() || message.may_skip {
                continue;
            }
            let followers = message.to.iter().filter_map(|queue| followers.get(queue)).flatten();
            for (device, _) in followers.filter(|(_, since)| *since <= message.attempted) {
                let came = |device: &Device| device.received.contains_key(number);
                if !self.devices.get(device).is_some_and(came) {
                    self.report.owed.push((*device, *number));
                }
            }
        }
        // A message that was sent to several queues of a device is owed to it once.
        self.report.owed.sort_unstable();
        self.report.owed.dedup();
    }
}

impl Following {
    fn asked(&mut self, at: Duration, follow: bool) {
        if follow {
            self.may_since.get_or_insert(at);
        } else {
            self.surely_since = None;
        }
    }

    fn changed(&mut self, at: Duration, follow: bool) {
        if follow {
            self.surely_since.get_or_insert(at);
        } else if let Some(since) = self.may_since.take() {
            self.may.push((since, at));
        }
    }

    fn may_during(&self, (from, to): (Duration, Duration)) -> bool {
        let past = self.may.iter().any(|(since, until)| *since <= to && from <= *until);
        past || self.may_since.is_some_and(|since| since <= to)
    }
}

impl Device {
    fn acked(&mut self, queue: Queue, position: Position) {
        self.acked.push((queue, position));
        self.lines.entry(queue).or_default().acknowledge(position);
    }

    fn connected(&mut self, at: Duration, session_present: bool) {
        self.connected_at = at;
        self.acked.clear();
        self.pinged.1.clear();
        for line in self.lines.values_mut() {
            line.newest_on_connection = None;
            if !session_present {
                line.newest_in_session = None;
            }
        }
    }

    fn ponged(&mut self, at: Duration) {
        let since = self.pinged.0;
        for (queue, position) in std::mem::take(&mut self.pinged.1) {
            let line = self.lines.get_mut(&queue).expect("a delivery before its acknowledgement");
            line.confirm(position, (since, at));
        }
    }
}
