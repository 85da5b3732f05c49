//! The checker: judges a history against the promises of delivery.
//!
//! It owns the rules and nothing else: a pure function of what was noted. Where
//! the history leaves something open (an attempt without an answer, a change that
//! a kill cut off), both outcomes are right.

use std::{collections::HashMap, time::Duration};

use super::{
    Delivery, Event, Noted, Position, Queue,
    line::{Arrival, FORGIVEN, Kill, Line},
    report::{Report, Rule, Violation},
    skips::{Excuse, Skips},
};

/// Judges a history.
pub fn check(history: &[Noted]) -> Report {
    let mut checker = Checker { forgiven: FORGIVEN + longest_ping(history), ..Checker::default() };
    for Noted { at, event } in history {
        checker.see(*at, event);
    }
    checker.check_order_of_sends();
    checker.find_owed();
    checker.find_untold();
    let Checker { mut report, skips, messages, places, forgiven, .. } = checker;
    report.violations.extend(skips.late(&messages, &places));
    (report.recalls, report.forgiven) = (skips.recalls(), forgiven);
    report
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

#[derive(Default)]
struct Checker {
    forgiven: Duration,
    report: Report,
    messages: Messages,
    skips: Skips,
    followings: HashMap<(usize, Queue), Following>,
    meanings: HashMap<(Queue, Position), u64>,
    places: Places,
    devices: HashMap<usize, Device>,
    kills: Vec<Kill>,
    ready_at: Duration,
}

/// By their numbers.
pub(super) type Messages = HashMap<u64, Message>;
/// Where each message is.
pub(super) type Places = HashMap<(Queue, u64), Position>;

pub(super) struct Message {
    to: Vec<Queue>,
    attempted: Duration,
    pub(super) accepted: Option<Duration>,
    refused: bool,
    is_scheduled: bool,
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
    /// It speaks frames, and so keeps its positions.
    hears_of_recalls: bool,
    /// By which queue each message came.
    received: HashMap<u64, Queue>,
    /// When its connection began: what the node gave it is read later.
    connecting_at: Duration,
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
            Event::Supersedes { message, earlier } => {
                self.skips.supersedes(*message, *earlier);
                self.may_skip(*earlier);
            }
            Event::Recalling { message } => {
                self.skips.recalling(*message);
                self.may_skip(*message);
            }
            Event::Recalled { message } => self.skips.recalled(at, *message),
            Event::ToldOfRecall { device, id } => self.skips.told(at, *device, id),
            Event::Refused { message } => {
                self.report.refused += 1;
                self.messages.entry(*message).and_modify(|m| m.refused = true);
            }
            Event::Asked { device, queue, follow } => self.asked(at, *device, *queue, *follow),
            Event::Changed { device, queue, follow } => self.changed(at, *device, *queue, *follow),
            Event::Connecting { device } => self.device(*device).connecting_at = at,
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
                let device = self.device(*device);
                device.hears_of_recalls = true;
                device.lines.entry(*queue).or_default().keep(*position);
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
        let Some(known) = self.messages.get(&message) else { return };
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
        if self.skips.may_skip(delivery.message) {
            line.acknowledge(position);
        }
        let skipped = self.skips.delivered(at, device_state.connecting_at, delivery);
        self.report.violations.extend(skipped);
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

    /// A recall that was answered before the last start is in the queues since then.
    fn find_untold(&mut self) {
        for (number, device) in self.devices.iter().filter(|(_, device)| device.hears_of_recalls) {
            for (message, queue) in &device.received {
                let Some(known) = self.messages.get(message) else { continue };
                let following = self.followings.get(&(*number, *queue));
                let follows = following.is_some_and(|one| one.surely_since_before(known.attempted));
                let id = known.id.as_deref().unwrap_or_default();
                if follows && self.skips.is_untold(*number, *message, id, self.ready_at) {
                    let text = format!("device {number} has message {message}, which is recalled");
                    let at = self.ready_at;
                    self.report.violations.push(Violation { rule: Rule::Untold, at, text });
                }
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
            if message.accepted.is_none() {
                continue;
            }
            let followers = message.to.iter().filter_map(|queue| followers.get(queue)).flatten();
            for (device, _) in followers.filter(|(_, since)| *since <= message.attempted) {
                let has = |number: u64| {
                    let received = self.devices.get(device).map(|device| &device.received);
                    received.is_some_and(|received| received.contains_key(&number))
                };
                if has(*number) {
                    continue;
                }
                match self.skips.excuse(*number, has) {
                    None => self.report.owed.push((*device, *number)),
                    Some(Excuse::Recalled) => self.report.withheld += 1,
                    Some(Excuse::Superseded) => self.report.superseded += 1,
                }
            }
        }
        // A message that was sent to several queues of a device is owed to it once.
        self.report.owed.sort_unstable();
        self.report.owed.dedup();
    }
}

impl Following {
    fn surely_since_before(&self, at: Duration) -> bool {
        self.surely_since.is_some_and(|since| since <= at)
    }

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
