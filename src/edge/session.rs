//! The protocol machine of one connection: an input goes in, bytes and effects come out.
//!
//! It owns what a connection knows: mode, subscriptions, window, how far each queue is.
//! It never awaits and never looks at a clock or a socket; `connection.rs` feeds it
//! and does what it asks for.

mod beats;
mod calls;
pub mod deltas;
mod digests;
pub mod down;
mod farewell;
pub mod feeds;
pub mod filter;
pub mod frames;
pub mod handshake;
pub mod marks;
mod output;
mod packing;
pub mod plain;
pub mod rate;
mod seals;
pub mod snapshots;
mod standing;
mod subscribe;
#[cfg(test)]
mod tests;
pub mod window;

use carillon_wire::mqtt::{self, Ack, Disconnect, Packet, Version};

pub use self::{
    calls::{Answer, Call},
    output::{Now, Output, Packed, Tally},
};
use self::{
    feeds::{Begin, Feeds, News, Standing, Use},
    filter::Subscription,
    frames::Frames,
    handshake::Terms,
    plain::Plain,
    snapshots::Given,
    window::{InFlight, Note, Window},
};
use super::{
    advisor::{Report, ReportResult},
    close::{CloseReason, Ignored},
    farewell::Farewell,
};
use crate::{
    base::{
        ids::{Queue, QueueId, RegId},
        metrics::{ResumeReason, SealRefusal},
    },
    config,
    queue::{
        collection::item::Totals,
        position::{Position, Seq, Tag},
    },
    route::Reasons,
    service::{
        allowance::Delivered,
        deliver::{Following, Pulled, Take},
    },
};

/// Everything that a step may know of the world, as values.
pub struct Context<'a> {
    /// The configured bounds.
    pub bounds: &'a config::Edge,
    /// Seconds on a clock that never runs backwards.
    pub now_s: u64,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// A random number, for jitter.
    pub dice: u32,
    /// The terms on which the node parts with its devices, once it drains.
    pub farewell: Option<&'a Farewell>,
    /// The tag of a position.
    pub tag: &'a dyn Fn(&QueueId, Position) -> Tag,
    /// What the collections of a queue hold, where it has some.
    pub totals: &'a dyn Fn(&QueueId) -> Option<Totals>,
    /// Whether a registration that has pauses or hours takes nothing now.
    pub is_held: &'a dyn Fn(&RegId) -> bool,
}

/// What happens to a connection.
#[derive(Debug)]
pub enum Input {
    /// A whole packet came.
    Packet(Packet),
    /// Bytes came that are no packet.
    Undecodable(mqtt::Error),
    /// The connection was nudged.
    Nudged(Reasons),
    /// A call that the session asked for was answered.
    Answer(Answer),
    /// Everything in `Output::bytes` has reached the socket.
    Written,
}

/// What is to be done at once, in order, without an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// A pointer moves.
    Acknowledge {
        /// Whose.
        regid: RegId,
        /// In which queue.
        queue: QueueId,
        /// How far.
        position: Position,
        /// What was delivered by that.
        delivered: Option<Delivered>,
    },
    /// A message that asks for a receipt was acknowledged. Before the pointer moves over it.
    Receipt(Note),
    /// Hear of new entries of a queue.
    Follow(Queue),
    /// No longer.
    Unfollow(QueueId),
    /// A gap fared like this.
    Idle(Report),
    /// What became of a report that goes no further.
    Reported(ReportResult),
    /// Delivery of a queue begins: where the device stood, for the metric.
    Stands(ResumeReason),
    /// A chunk of a snapshot went out.
    Gave(Given),
    /// A device waited in vain for a snapshot, and goes on with deltas.
    GaveUp,
    /// Look again at this time, in milliseconds since 1970.
    Wake(u64),
}

/// A look into a queue that the session has room for.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// Whose.
    pub regid: RegId,
    /// The place of the registration's feed: see [`Session::followings`].
    pub feed: usize,
    /// The place of the queue in the followings.
    pub at: usize,
    /// What comes after this.
    pub after: Seq,
    /// How much.
    pub take: Take,
    is_resend: bool,
}

/// What outlives a plain connection with a persistent session.
#[derive(Clone, Debug)]
pub struct Parked {
    /// What was subscribed.
    pub subscriptions: Vec<Subscription>,
    /// What was not acknowledged.
    pub items: Vec<InFlight>,
    /// The newest packet id given.
    pub last_id: u16,
}

#[derive(Debug)]
enum Mode {
    Undecided,
    Plain(Plain),
    Frames(Frames),
}

/// The protocol state of one connection whose CONNECT was accepted.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    last_rx_s: u64,
    mode: Mode,
    window: Window,
    feeds: Feeds,
}

impl Session {
    /// A session without a past.
    pub fn new(terms: Terms, now_s: u64) -> Self {
        let (window, feeds) = (Window::default(), Feeds::default());
        Self { terms, last_rx_s: now_s, mode: Mode::Undecided, window, feeds }
    }

    /// A session that goes on where a parked one stopped.
    pub fn restored(
        terms: Terms,
        now_s: u64,
        parked: Parked,
        standings: Vec<Standing>,
        out: &mut Output,
    ) -> Self {
        let mut session = Self::new(terms, now_s);
        let mut plain = Plain::restored(parked.subscriptions);
        plain.retain(&standings);
        let mut fresh = Window::default();
        session.feeds.merge(standings, &plain.usage(), Begin::Stored, &mut fresh, out);
        session.window = Window::restored(parked.items, parked.last_id);
        session.feeds.restore(&mut session.window);
        session.mode = Mode::Plain(plain);
        session
    }

    /// What is parked when the connection ends, if anything is.
    pub fn into_parked(self) -> Option<Parked> {
        match self.mode {
            Mode::Plain(plain) if self.terms.expiry_s > 0 && !plain.is_empty() => {
                let (items, last_id) = self.window.into_parts();
                Some(Parked { subscriptions: plain.into_subscriptions(), items, last_id })
            }
            Mode::Plain(_) | Mode::Frames(_) | Mode::Undecided => None,
        }
    }

    /// What was agreed in the handshake.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// How the connection is used, for its log line.
    pub fn mode(&self) -> &'static str {
        match self.mode {
            Mode::Undecided => "undecided",
            Mode::Plain(_) => "plain",
            Mode::Frames(_) => "frames",
        }
    }

    /// When the connection ends if nothing comes until then, in seconds.
    pub fn deadline_s(&self) -> u64 {
        self.last_rx_s + u64::from(self.terms.silence_max_s)
    }

    /// The queues of which the connection hears.
    pub fn heard(&self) -> impl Iterator<Item = QueueId> {
        self.feeds.heard()
    }

    /// Everything that a registration follows.
    pub fn followings(&self, feed: usize) -> &[Following] {
        &self.feeds.at(feed).followings
    }

    /// The one door: what happened goes in, what is to be done comes out.
    pub fn step(&mut self, cx: &Context<'_>, input: Input, out: &mut Output) {
        // A frame that is being filled names its feed by place: it goes out before places change.
        self.finish(cx, out);
        match input {
            Input::Packet(packet) => {
                self.note_gap(cx.now_s, out);
                self.last_rx_s = cx.now_s;
                self.packet(packet, out);
            }
            Input::Undecodable(error) => self.close(CloseReason::of_error(&error), out),
            Input::Nudged(reasons) => self.nudged(cx, reasons, out),
            Input::Answer(answer) => self.answer(cx, answer, out),
            Input::Written => {
                let moved = self.window.written(&mut out.acked);
                self.moved(moved, out);
            }
        }
    }

    /// A queue that there is room for and that may have something new. Ends the frame
    /// that is being filled when there is none left for it.
    pub fn want(&mut self, cx: &Context<'_>, out: &mut Output) -> Option<Want> {
        if out.close.is_some() {
            return None;
        }
        match self.mode {
            Mode::Undecided => None,
            Mode::Plain(_) => self.want_plain(cx),
            Mode::Frames(_) => self.want_frames(cx, out),
        }
    }

    /// What the queue had.
    pub fn fed(&mut self, cx: &Context<'_>, want: Want, pulled: Option<Pulled>, out: &mut Output) {
        match self.mode {
            Mode::Undecided => {}
            Mode::Plain(_) => self.fed_plain(cx, want, pulled, out),
            Mode::Frames(_) => self.fed_frames(cx, want, pulled, out),
        }
    }

    /// The connection ends, and the device is told why where its version can say it.
    pub fn close(&mut self, reason: CloseReason, out: &mut Output) {
        if out.close.is_some() {
            return;
        }
        out.close = Some(reason);
        if let (Version::V5, Some(code)) = (self.terms.version, reason.code()) {
            let disconnect = Disconnect { reason: code, ..Disconnect::default() };
            out.packet(Version::V5, &Packet::Disconnect(disconnect));
        }
    }

    fn packet(&mut self, packet: Packet, out: &mut Output) {
        match packet {
            Packet::Publish(publish) => self.uplink(publish, out),
            Packet::PubAck(ack) => self.acked(ack.packet_id, out),
            Packet::PubRel(ack) => self.released(ack.packet_id, out),
            Packet::Subscribe(subscribe) => self.subscribe(subscribe, out),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe, out),
            Packet::PingReq => {
                out.packet(self.terms.version, &Packet::PingResp);
                self.feeds.touch();
            }
            Packet::Disconnect(disconnect) => self.disconnected(&disconnect, out),
            Packet::PubRec(_)
            | Packet::PubComp(_)
            | Packet::Auth
            | Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp => self.close(CloseReason::ProtocolError, out),
        }
    }

    fn nudged(&mut self, cx: &Context<'_>, reasons: Reasons, out: &mut Output) {
        if reasons.has(Reasons::TAKEN_OVER) {
            self.note_silence(cx.now_s, out);
            return self.close(CloseReason::TakenOver, out);
        }
        if reasons.has(Reasons::REVOKED) {
            return self.close(CloseReason::Revoked, out);
        }
        if reasons.has(Reasons::DRAIN) {
            return self.part(cx, out);
        }
        if reasons.has(Reasons::TICK) && cx.now_s > self.deadline_s() {
            self.note_silence(cx.now_s, out);
            return self.close(CloseReason::KeepAliveTimeout, out);
        }
        if reasons.has(Reasons::DELIVER) {
            self.feeds.touch_some(News::Some, |queue| reasons.concern(queue));
            if reasons.are_urgent() {
                self.feeds.touch_some(News::Urgent, |queue| reasons.are_urgent_for(queue));
            }
        }
        let is_attached = match &self.mode {
            Mode::Undecided => false,
            Mode::Plain(_) => true,
            Mode::Frames(frames) => frames.is_attached,
        };
        if reasons.has(Reasons::REFRESH) && is_attached {
            out.call = Some(Call::Refresh);
        }
    }

    fn answer(&mut self, cx: &Context<'_>, answer: Answer, out: &mut Output) {
        match answer {
            Answer::Resumed(ticket, standings) => self.resumed(ticket, standings, out),
            Answer::Positioned(ticket, standings, unknown) => {
                self.positioned(ticket, standings, unknown, out);
            }
            Answer::Refreshed(standings) => self.refreshed(standings, out),
            Answer::Subscribed(packet_id, results, standings) => {
                self.subscribed(packet_id, results, standings, out);
            }
            Answer::Unsubscribed(packet_id, results, standings) => {
                self.unsubscribed(packet_id, results, standings, out);
            }
            Answer::Requested(ticket, result) => self.requested(ticket, result, out),
            Answer::Repaired(ticket, result) => {
                self.reply(down::repaired(ticket.request, result), Some(ticket), out);
            }
            Answer::Uploaded(ticket, result) => {
                self.reply(down::uploaded(ticket.request, &result), Some(ticket), out);
            }
            Answer::Chunk(asked, part) => self.chunk(cx, *asked, part, out),
            Answer::Advised(ticket, advised_s) => self.advised(ticket, advised_s, out),
            Answer::Failed => self.close(CloseReason::Unavailable, out),
        }
    }

    fn refreshed(&mut self, standings: Vec<Standing>, out: &mut Output) {
        let is_empty = standings.is_empty();
        match &mut self.mode {
            Mode::Undecided => {}
            Mode::Plain(plain) => {
                let is_sealed = !is_empty && standings.iter().all(|standing| !standing.is_open());
                plain.retain(&standings);
                self.feeds.merge(standings, &plain.usage(), Begin::Stored, &mut self.window, out);
                if is_empty {
                    self.close(CloseReason::Unregistered, out);
                }
                if is_sealed {
                    out.seal_refusals.push(SealRefusal::PlainUse);
                    self.close(CloseReason::Sealed, out);
                }
            }
            Mode::Frames(_) => {
                let all = |_: &_, _: &_| Use::Deliver;
                let gone =
                    self.feeds.merge(standings, &all, Begin::Announced, &mut self.window, out);
                for regid in gone {
                    self.reply(down::ended(regid.to_string(), None), None, out);
                }
            }
        }
    }

    /// Whether nothing of a feed may be sent now.
    fn is_held(&self, cx: &Context<'_>, feed: usize) -> bool {
        let feed = self.feeds.at(feed);
        feed.is_gated && (cx.is_held)(&feed.regid)
    }

    fn acked(&mut self, packet_id: u16, out: &mut Output) {
        match self.window.ack(packet_id, &mut out.acked) {
            Some(moved) => {
                out.tally.acks += 1;
                self.moved(moved, out);
            }
            None if self.reply_acked() => {}
            None => out.ignored.push(Ignored::UnknownAck),
        }
        self.flush_replies(out);
    }

    fn moved(&mut self, moved: Vec<window::Moved>, out: &mut Output) {
        if !out.acked.notes.is_empty() {
            out.effects.extend(out.acked.notes.drain(..).map(Effect::Receipt));
        }
        for moved in moved {
            self.feeds.acknowledge(moved, out);
        }
    }

    fn disconnected(&mut self, disconnect: &Disconnect, out: &mut Output) {
        match disconnect.session_expiry_s {
            Some(1..) if self.terms.expiry_s == 0 => {
                return self.close(CloseReason::ProtocolError, out);
            }
            Some(asked) => self.terms.expiry_s = asked.min(self.terms.expiry_s_max),
            None => {}
        }
        self.close(CloseReason::ClientDisconnect, out);
    }

    fn puback(&self, packet_id: u16, reason: u8, out: &mut Output) {
        out.packet(self.terms.version, &Packet::PubAck(Ack { packet_id, reason }));
    }

    /// How many more PUBLISHes of QoS 1 the client takes now.
    fn credit(&self) -> usize {
        let replies = match &self.mode {
            Mode::Frames(frames) => usize::from(frames.unacknowledged),
            Mode::Plain(_) | Mode::Undecided => 0,
        };
        usize::from(self.terms.receive_max).saturating_sub(self.window.unacknowledged() + replies)
    }
}
