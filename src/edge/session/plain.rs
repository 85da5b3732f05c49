//! Plain use: any MQTT client subscribes to `push` or `topic/<name>` and takes one
//! PUBLISH a message.

use bytes::Bytes;
use carillon_wire::mqtt::{PublishHead, Qos, Version, encode_publish, publish_bytes, reason};

use super::{
    Context, Mode, Output, Session, Want,
    feeds::{Begin, News, Standing, Use},
    filter::Subscription,
    window::{Acked, Cover, InFlight, Moved, Note, Stage, skipped_in},
};
use crate::{
    base::{
        ids::{QueueName, RegId},
        metrics::Skipped,
    },
    edge::close::Ignored,
    queue::{
        entry::{Body, Entry, Message},
        position::{Position, Seq},
    },
    service::deliver::{Following, Pulled, Take},
};

/// The subscriptions of one connection.
#[derive(Debug, Default)]
pub struct Plain {
    /// With whether the topic alias was told to the client.
    subscriptions: Vec<(Subscription, bool)>,
}

impl Plain {
    /// The subscriptions of a parked session.
    pub fn restored(subscriptions: Vec<Subscription>) -> Self {
        Self { subscriptions: subscriptions.into_iter().map(|s| (s, false)).collect() }
    }

    /// Whether nothing is subscribed.
    pub fn is_empty(&self) -> bool {
        self.subscriptions.is_empty()
    }

    /// Whether the client answers everything that it is sent.
    pub fn is_acknowledging(&self) -> bool {
        self.subscriptions.iter().all(|(subscription, _)| subscription.qos == Qos::AtLeastOnce)
    }

    /// All of them.
    pub fn into_subscriptions(self) -> Vec<Subscription> {
        self.subscriptions.into_iter().map(|(subscription, _)| subscription).collect()
    }

    /// Drops those of registrations that are no more.
    pub fn retain(&mut self, standings: &[Standing]) {
        let count = self.subscriptions.len();
        self.subscriptions
            .retain(|(s, _)| standings.iter().any(|one| one.regid == s.regid && one.is_open()));
        if self.subscriptions.len() != count {
            self.subscriptions.iter_mut().for_each(|(_, is_told)| *is_told = false);
        }
    }

    /// Adds a subscription, or replaces the one with the same text.
    pub fn add(&mut self, subscription: Subscription) {
        match self.subscriptions.iter_mut().find(|(old, _)| old.text == subscription.text) {
            Some((old, _)) => *old = subscription,
            None => {
                self.subscriptions.reserve_exact(1);
                self.subscriptions.push((subscription, false));
            }
        }
    }

    /// Removes a subscription; otherwise UNSUBACK's reason code.
    ///
    /// # Errors
    /// If there is none with this text.
    pub fn take(&mut self, text: &str) -> Result<Subscription, u8> {
        let index = self.subscriptions.iter().position(|(s, _)| *s.text == *text);
        let index = index.ok_or(reason::NO_SUBSCRIPTION)?;
        let (taken, _) = self.subscriptions.remove(index);
        // Aliases are places, and these have moved.
        self.subscriptions.iter_mut().for_each(|(_, is_told)| *is_told = false);
        Ok(taken)
    }

    /// What is done with each queue.
    pub fn usage(&self) -> impl Fn(&RegId, &QueueName) -> Use + '_ {
        |regid, queue| match (self.place_of(regid, queue), queue) {
            (Some(_), _) => Use::Deliver,
            (None, QueueName::Own(_))
                if self.subscriptions.iter().any(|(s, _)| s.regid == *regid) =>
            {
                Use::Watch
            }
            (None, _) => Use::Off,
        }
    }

    /// The subscription by which a queue is delivered: its own one, otherwise `push`.
    fn place_of(&self, regid: &RegId, queue: &QueueName) -> Option<usize> {
        let of_topic = |s: &Subscription| match queue {
            QueueName::Topic(_, topic) => s.topic.as_ref() == Some(topic),
            QueueName::Own(_) | QueueName::Alias(..) | QueueName::All(_) => false,
        };
        let find = |fits: &dyn Fn(&Subscription) -> bool| {
            self.subscriptions.iter().position(|(s, _)| s.regid == *regid && fits(s))
        };
        find(&of_topic).or_else(|| find(&|s| s.topic.is_none()))
    }
}

impl Session {
    pub(super) fn subscribed(
        &mut self,
        packet_id: u16,
        results: Vec<Result<Subscription, u8>>,
        standings: Vec<Standing>,
        out: &mut Output,
    ) {
        let begin = if self.terms.is_clean { Begin::Head } else { Begin::Stored };
        let Mode::Plain(plain) = &mut self.mode else { return };
        let mut reasons = Vec::with_capacity(results.len());
        for result in results {
            reasons.push(match &result {
                Ok(subscription) => subscription.qos as u8,
                Err(code) => *code,
            });
            if let Ok(subscription) = result {
                plain.add(subscription);
            }
        }
        self.feeds.merge(standings, &plain.usage(), begin, &mut self.window, out);
        self.suback(packet_id, reasons, out);
    }

    pub(super) fn unsubscribed(
        &mut self,
        packet_id: u16,
        results: Vec<Result<Subscription, u8>>,
        standings: Vec<Standing>,
        out: &mut Output,
    ) {
        let Mode::Plain(plain) = &mut self.mode else { return };
        self.feeds.merge(standings, &plain.usage(), Begin::Stored, &mut self.window, out);
        let reasons = results.into_iter().map(|result| result.err().unwrap_or(reason::SUCCESS));
        self.unsuback(packet_id, reasons.collect(), out);
    }

    pub(super) fn want_plain(&mut self, cx: &Context<'_>) -> Option<Want> {
        while let Some(item) = self.first_resend(cx) {
            let (regid, cover) = (item.regid, item.cover?);
            if self.credit() == 0 {
                return None;
            }
            let place = self
                .feeds
                .index_of(&regid)
                .and_then(|feed| Some((feed, self.feeds.at(feed).lane_of(&cover.queue)?)));
            let Some((feed, at)) = place else {
                self.window.forget_queue(&regid, &cover.queue);
                continue;
            };
            let take = Take { entries: 1, bytes: TAKE_BYTES };
            // Not `cover.after`: what was skipped in between must not be taken for it.
            let after = cover.seq.prev();
            return Some(Want { regid, feed, at, after, take, is_resend: true });
        }
        let room =
            usize::from(cx.bounds.window).saturating_sub(self.window.len()).min(self.credit());
        let share = usize::from(cx.bounds.window_per_registration);
        for feed in self.feeds.turns() {
            let regid = self.feeds.at(feed).regid;
            let Some(at) = self.feeds.at(feed).next_lane(false) else { continue };
            if self.is_held(cx, feed) {
                continue;
            }
            let lane = self.feeds.at(feed).lanes[at];
            let room = match lane.usage {
                Use::Watch | Use::Off => TURN_ENTRIES,
                Use::Deliver => {
                    room.min(share.saturating_sub(self.window.of(&regid))).min(TURN_ENTRIES)
                }
            };
            if room > 0 {
                let take = Take { entries: room, bytes: TAKE_BYTES };
                let after = lane.pointer.sent();
                return Some(Want { regid, feed, at, after, take, is_resend: false });
            }
        }
        None
    }

    /// What is to be sent again first, of what may be sent now.
    fn first_resend(&self, cx: &Context<'_>) -> Option<&InFlight> {
        let is_held =
            |regid: &RegId| self.feeds.index_of(regid).is_some_and(|feed| self.is_held(cx, feed));
        self.window.first_resend(|regid| !is_held(regid))
    }

    pub(super) fn fed_plain(
        &mut self,
        cx: &Context<'_>,
        want: Want,
        pulled: Option<Pulled>,
        out: &mut Output,
    ) {
        if want.is_resend {
            return self.resend(cx, want, pulled, out);
        }
        let Some(Pulled { entries, to, skipped, is_all, .. }) = pulled else {
            self.feeds.at_mut(want.feed).lanes[want.at].news = News::None;
            return;
        };
        let (regid, queue) = (want.regid, self.followings(want.feed)[want.at].clone());
        let is_delivered = self.feeds.at(want.feed).lanes[want.at].usage == Use::Deliver;
        let mut after = want.after;
        for entry in &entries {
            let Body::Message(message) = &entry.body else { continue };
            let reached = entry.position;
            let skipped = skipped_in(&skipped, after, reached.seq);
            let (queue_id, seq) = (queue.queue.id(), reached.seq);
            let cover = Cover { queue: queue_id, after, seq, to: reached, skipped, messages: 1 };
            if is_delivered && self.deliver(cx, &queue, (entry, message), (regid, cover), out) {
                after = reached.seq;
            }
        }
        let skipped = skipped_in(&skipped, after, to.seq);
        self.passed(want, &queue, after, (to, skipped), out);
        if is_all {
            self.feeds.at_mut(want.feed).lanes[want.at].news = News::None;
        }
        for entry in entries {
            self.apply(cx, want.feed, &entry, out);
        }
        if !self.feeds.is_empty() {
            self.feeds.at_mut(want.feed).rotate(want.at);
            self.feeds.pass(want.feed);
        }
    }

    /// A batch ends at `to`; what came after its last message held nothing to deliver.
    fn passed(
        &mut self,
        want: Want,
        queue: &Following,
        after: Seq,
        (to, skipped): (Position, Skipped),
        out: &mut Output,
    ) {
        let lane = &mut self.feeds.at_mut(want.feed).lanes[want.at];
        lane.pointer.send(to.seq);
        lane.epoch = to.epoch;
        lane.jump = None;
        let is_delivered = lane.usage == Use::Deliver;
        if is_delivered
            && after < to.seq
            && !self.window.extend(&want.regid, &queue.queue.id(), to, skipped)
        {
            out.acked.skipped.add(skipped);
            let (regid, queue) = (want.regid, queue.queue.id());
            self.feeds.acknowledge(Moved { regid, queue, to, messages: 0 }, out);
        }
    }

    /// A control entry of the own queue changes what the registration follows.
    pub(super) fn apply(&mut self, cx: &Context<'_>, feed: usize, entry: &Entry, out: &mut Output) {
        let seq = entry.position.seq;
        if seq <= self.feeds.at(feed).control {
            return;
        }
        let regid = self.feeds.at(feed).regid;
        match &entry.body {
            Body::Message(_) | Body::Recall(_) | Body::Change(_) => return,
            Body::Follow { queue, since } => {
                let following =
                    Following { queue: queue.clone().into(), since: *since, control: seq };
                let usage = match &self.mode {
                    Mode::Plain(plain) => plain.usage()(&regid, queue),
                    Mode::Frames(_) | Mode::Undecided => Use::Deliver,
                };
                self.feeds.follow(feed, following, usage, &mut self.window, out);
                self.gather_followed(cx, feed, &queue.id());
            }
            Body::Unfollow { queue } => {
                self.feeds.unfollow(feed, &queue.id(), &mut self.window, out);
            }
        }
        self.feeds.at_mut(feed).control = seq;
    }

    /// Sends one message for the first time. Returns whether it went out.
    fn deliver(
        &mut self,
        cx: &Context<'_>,
        queue: &Following,
        (entry, message): (&Entry, &Message),
        (regid, cover): (RegId, Cover),
        out: &mut Output,
    ) -> bool {
        let Some(qos) = self.qos_of(&regid, queue) else { return false };
        let packet_id = if qos == Qos::AtMostOnce { 0 } else { self.window.next_id() };
        if !self.publish(
            cx,
            queue,
            entry,
            message,
            Sending { regid, qos, packet_id, dup: false },
            out,
        ) {
            out.ignored.push(Ignored::Oversize);
            return false;
        }
        out.tally.pushes += 1;
        out.pushed_at_ms.push(entry.at_ms);
        self.window.push(InFlight {
            packet_id,
            regid,
            stage: Stage::Sent,
            cover: Some(cover),
            more: Vec::new(),
            at_ms: entry.at_ms,
            more_at_ms: Vec::new(),
            pushed_ms: cx.unix_ms,
            notes: message.wants_receipt.then(|| {
                let note = Note { message: message.id, regid, pushed_ms: cx.unix_ms };
                Box::new(vec![note])
            }),
        });
        true
    }

    /// Sends what a parked session had sent, with its old packet id. What is no longer
    /// there counts as acknowledged.
    fn resend(&mut self, cx: &Context<'_>, want: Want, pulled: Option<Pulled>, out: &mut Output) {
        let Some((packet_id, cover)) = self
            .window
            .first_resend(|regid| *regid == want.regid)
            .map(|item| (item.packet_id, item.cover))
        else {
            return;
        };
        let queue = self.followings(want.feed)[want.at].clone();
        let entry = pulled.and_then(|pulled| pulled.entries.into_iter().next());
        let same = entry.filter(|entry| cover.is_some_and(|cover| cover.seq == entry.position.seq));
        self.window.resent(packet_id, same.as_ref().map_or(0, |entry| entry.at_ms));
        let sending = Sending { regid: want.regid, qos: Qos::AtLeastOnce, packet_id, dup: true };
        if let Some(entry) = same
            && let Body::Message(message) = &entry.body
            && self.publish(cx, &queue, &entry, message, sending, out)
        {
            out.tally.pushes += 1;
            out.tally.redeliveries += 1;
            return;
        }
        let mut acked = Acked::default();
        let moved = self.window.ack(packet_id, &mut acked).unwrap_or_default();
        out.acked.skipped.add(acked.skipped);
        self.moved(moved, out);
    }

    fn qos_of(&self, regid: &RegId, queue: &Following) -> Option<Qos> {
        let Mode::Plain(plain) = &self.mode else { return None };
        plain.place_of(regid, queue.queue.name()).map(|place| plain.subscriptions[place].0.qos)
    }

    /// Writes one PUBLISH, unless it is too large for the client.
    fn publish(
        &mut self,
        cx: &Context<'_>,
        queue: &Following,
        entry: &Entry,
        message: &Message,
        sending: Sending,
        out: &mut Output,
    ) -> bool {
        let Mode::Plain(plain) = &mut self.mode else { return false };
        let Some(place) = plain.place_of(&sending.regid, queue.queue.name()) else { return false };
        let (subscription, is_told) = &mut plain.subscriptions[place];
        let alias = u16::try_from(place + 1).ok().filter(|alias| *alias <= self.terms.alias_max);
        let texts = Texts::of(self.terms.version, queue.queue.name(), entry, message);
        let user = texts.user();
        let head = PublishHead {
            version: self.terms.version,
            dup: sending.dup,
            qos: sending.qos,
            retain: false,
            topic: if alias.is_some() && *is_told { "" } else { &subscription.text },
            packet_id: sending.packet_id,
            topic_alias: alias,
            user: user.as_ref().map_or(&[], |user| &user[..]),
            message_expiry_s: message.expires_ms.map(|at| seconds_until(at, cx.unix_ms)),
        };
        let payload: &Bytes = &message.payload;
        if publish_bytes(&head, payload.len()) > self.terms.max_packet_bytes as usize {
            return false;
        }
        encode_publish(&head, payload, &mut out.bytes);
        *is_told = alias.is_some();
        true
    }
}

#[derive(Clone, Copy)]
struct Sending {
    regid: RegId,
    qos: Qos,
    packet_id: u16,
    dup: bool,
}

/// The user properties of a PUBLISH; 3.1.1 has none.
struct Texts(Option<[String; 3]>);

impl Texts {
    fn of(version: Version, queue: &QueueName, entry: &Entry, message: &Message) -> Self {
        if version == Version::V311 {
            return Self(None);
        }
        let queue = queue.to_string();
        Self(Some([message.id.to_string(), queue, entry.position.to_string()]))
    }

    fn user(&self) -> Option<[(&str, &str); 3]> {
        let [id, queue, position] = self.0.as_ref()?;
        Some([("id", id.as_str()), ("queue", queue.as_str()), ("position", position.as_str())])
    }
}

/// Seconds until a message expires, at least one: it is not delivered later.
fn seconds_until(at_ms: u64, now_ms: u64) -> u32 {
    let seconds = at_ms.saturating_sub(now_ms).div_ceil(1_000).max(1);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Entries that a feed may take in one turn.
const TURN_ENTRIES: usize = 8;
/// Bytes of bodies behind which a feed takes nothing more in one turn.
const TAKE_BYTES: usize = 16 << 10;
