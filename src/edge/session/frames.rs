//! Frames: uplink structs on `up`, their answers on `down`.

use std::collections::VecDeque;

use carillon_wire::{
    frame, idl,
    mqtt::{
        Ack, Packet, Publish, PublishHead, Qos, Version, encode_publish, publish_bytes, reason,
    },
};

use super::{
    Call, Mode, Output, Session,
    deltas::Draft,
    down,
    feeds::{Begin, Standing, Use},
    filter::{Filter, Wanted},
};
use crate::{
    base::metrics::UpKind,
    edge::close::{CloseReason, Ignored},
    service::{self, seals::Registered},
};

/// Where answers to an uplink PUBLISH go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// 0 for QoS 0.
    pub packet_id: u16,
    /// As published.
    pub qos: Qos,
    /// As the device numbered it.
    pub request: i64,
    /// For the metric.
    pub kind: UpKind,
}

/// What an uplink frame asks for, besides resuming.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Register an app.
    Register(idl::Register),
    /// End a registration.
    Unregister(idl::Unregister),
    /// Bind an alias.
    Bind(idl::Bind),
    /// Unbind an alias.
    Unbind(idl::Unbind),
    /// Subscribe to topics.
    Subscribe(idl::Subscribe),
    /// Unsubscribe from topics.
    Unsubscribe(idl::Unsubscribe),
    /// Change a registration's key.
    Rekey(idl::Rekey),
    /// Say what filters look at.
    Describe(idl::Describe),
    /// Something happened to a message.
    Event(idl::Event),
    /// Say when messages are taken.
    Accept(idl::Accept),
}

/// A regID that a device states and does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// As stated.
    pub regid: String,
    /// It was the device's, which stayed away for too long.
    pub has_expired: bool,
}

/// A `Down` for which the client has no room yet.
#[derive(Debug)]
struct Reply {
    frame: Vec<u8>,
    uplink: Option<Ticket>,
}

/// What most connections have nothing of.
#[derive(Debug, Default)]
struct Rare {
    pending: VecDeque<Reply>,
    /// Uplink packet ids of QoS 2 that are not released.
    received: Vec<u16>,
}

/// The state of a connection that uses frames.
#[derive(Debug)]
pub struct Frames {
    /// Of `down`; implied to be 1 by the first `up`.
    qos: Option<Qos>,
    /// The device has resumed: deltas flow.
    pub(super) is_attached: bool,
    /// The device has not stated all positions yet.
    expects_more: bool,
    /// Replies of QoS 1 on their way. Their packet ids stand for nothing, so they are only counted.
    pub(super) unacknowledged: u16,
    /// Absent while nothing waits.
    rare: Option<Box<Rare>>,
    /// When the device last reported on its network, as `beats` stamps it; 0: never.
    pub(super) reported: u16,
    is_alias_told: bool,
    /// The device has the dictionary of packed frames.
    pub(super) can_unpack: bool,
    pub(super) draft: Option<Box<Draft>>,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            qos: Some(Qos::AtLeastOnce),
            is_attached: false,
            expects_more: false,
            unacknowledged: 0,
            rare: None,
            reported: 0,
            is_alias_told: false,
            can_unpack: false,
            draft: None,
        }
    }
}

impl Frames {
    /// Answers one filter of a SUBSCRIBE.
    pub fn subscribe(&mut self, wanted: Result<Wanted, u8>) -> u8 {
        match wanted {
            Ok(Wanted { filter: Filter::Down, qos, .. }) => {
                let qos = qos.min(Qos::AtLeastOnce);
                self.qos = Some(qos);
                qos as u8
            }
            Ok(_) => reason::NOT_AUTHORIZED,
            Err(code) => code,
        }
    }

    /// Answers one filter of an UNSUBSCRIBE.
    pub fn unsubscribe(&mut self, text: &str) -> u8 {
        if text != DOWN {
            return reason::NO_SUBSCRIPTION;
        }
        (self.is_attached, self.draft) = (false, None);
        match self.qos.take() {
            Some(_) => reason::SUCCESS,
            None => reason::NO_SUBSCRIPTION,
        }
    }

    /// Whether anything may be sent on `down`.
    pub fn is_subscribed(&self) -> bool {
        self.qos.is_some()
    }

    /// The QoS of what is sent on `down`, if anything is.
    pub(super) fn qos(&self) -> Option<Qos> {
        self.qos
    }

    /// Replies that wait.
    fn pending(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.pending.len())
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn tidy(&mut self) {
        self.rare.take_if(|rare| rare.pending.is_empty() && rare.received.is_empty());
    }

    /// Whether deltas may be sent now: they never overtake replies.
    pub(super) fn is_flowing(&self) -> bool {
        self.is_attached && self.qos.is_some() && self.pending() == 0
    }
}

impl Session {
    pub(super) fn uplink(&mut self, publish: Publish, out: &mut Output) {
        let is_v5 = self.terms.version == Version::V5;
        if publish.topic_alias.is_some() {
            return self.close(CloseReason::TopicAliasInvalid, out);
        }
        if is_v5 && publish.qos == Qos::ExactlyOnce {
            return self.close(CloseReason::QosNotSupported, out);
        }
        if matches!(self.mode, Mode::Undecided) && publish.topic == UP {
            self.mode = Mode::Frames(Frames::default());
        }
        if publish.topic != UP {
            return self.foreign(&publish, out);
        }
        let Mode::Frames(frames) = &mut self.mode else {
            return self.close(CloseReason::ProtocolError, out);
        };
        if frames.pending() >= PENDING_MAX {
            return self.close(CloseReason::ReceiveMaxExceeded, out);
        }
        if publish.qos == Qos::ExactlyOnce {
            let received = &mut frames.rare().received;
            if received.contains(&publish.packet_id) {
                return self.received(publish.packet_id, out);
            }
            if received.len() >= RECEIVED_MAX {
                return self.close(CloseReason::QuotaExceeded, out);
            }
            received.push(publish.packet_id);
        }
        self.frame(&publish, out);
    }

    /// A PUBLISH to a topic that is not ours.
    fn foreign(&mut self, publish: &Publish, out: &mut Output) {
        match (self.terms.version, publish.qos) {
            (Version::V311, _) => self.close(CloseReason::TopicNotAllowed, out),
            (Version::V5, Qos::AtMostOnce) => out.ignored.push(Ignored::ForeignTopic),
            (Version::V5, Qos::AtLeastOnce | Qos::ExactlyOnce) => {
                out.ignored.push(Ignored::ForeignTopic);
                self.puback(publish.packet_id, reason::NOT_AUTHORIZED, out);
            }
        }
    }

    fn frame(&mut self, publish: &Publish, out: &mut Output) {
        out.tally.uplinks += 1;
        let ticket = |request: i64, kind: UpKind| Ticket {
            packet_id: publish.packet_id,
            qos: publish.qos,
            request,
            kind,
        };
        let up = match frame::decode_up(&publish.payload) {
            Ok(up) => up,
            Err(error) => {
                out.unknown_ups += 1;
                let reply = down::refused(0, idl::ResultCode::MALFORMED, &error.to_string());
                return self.reply(reply, Some(ticket(0, UpKind::Unknown)), out);
            }
        };
        let request = up.request.unwrap_or(0);
        match only_kind(up) {
            Some(Kind::Resume(resume)) => {
                self.set_dictionary(resume.dictionary);
                out.call = Some(Call::Resume(ticket(request, UpKind::Resume), resume.digest));
            }
            Some(Kind::Positions(positions)) => {
                let ticket = ticket(request, UpKind::Positions);
                if let Mode::Frames(frames) = &mut self.mode {
                    frames.expects_more = positions.more == Some(true);
                }
                out.call = Some(Call::Positions(ticket, positions.registrations));
            }
            Some(Kind::Report(report)) => {
                self.reported(ticket(request, UpKind::Heartbeat), report, out);
            }
            Some(Kind::Repair(repair)) => {
                out.call = Some(Call::Repair(ticket(request, UpKind::Repair), repair));
            }
            Some(Kind::Upload(upload)) => {
                out.call = Some(Call::Upload(ticket(request, UpKind::Upload), upload));
            }
            Some(Kind::Request(kind, asked)) => {
                out.call = Some(Call::Request(ticket(request, kind), asked));
            }
            None => {
                out.unknown_ups += 1;
                let reply = down::refused(
                    request,
                    idl::ResultCode::UNKNOWN_KIND,
                    "exactly one known kind must be set",
                );
                self.reply(reply, Some(ticket(request, UpKind::Unknown)), out);
            }
        }
    }

    pub(super) fn resumed(
        &mut self,
        ticket: Ticket,
        standings: Option<Vec<Standing>>,
        out: &mut Output,
    ) {
        match standings {
            None => self.reply(down::ask_positions(), Some(ticket), out),
            Some(standings) => {
                // Where deltas flow already, what is in flight stays.
                if !matches!(&self.mode, Mode::Frames(frames) if frames.is_attached) {
                    self.attach(standings, Begin::Reset, out);
                }
                self.reply(down::resumed(None), Some(ticket), out);
            }
        }
    }

    pub(super) fn positioned(
        &mut self,
        ticket: Ticket,
        mut standings: Vec<Standing>,
        unknown: Vec<Unknown>,
        out: &mut Output,
    ) {
        if matches!(&self.mode, Mode::Frames(frames) if frames.expects_more) {
            // What is not named yet begins with the last of them.
            standings.retain(|one| one.is_named || self.feeds.index_of(&one.regid).is_some());
        }
        let regids = self.attach(standings, Begin::Restated, out);
        // Before `Resumed`, which says by itself that the others are no more.
        let (expired, others): (Vec<_>, Vec<_>) =
            unknown.into_iter().partition(|one| one.has_expired);
        for Unknown { regid, .. } in expired {
            self.reply(down::ended(regid, Some(idl::EndReason::EXPIRED)), None, out);
        }
        self.reply(down::resumed(Some(regids)), Some(ticket), out);
        for Unknown { regid, .. } in others {
            self.reply(down::ended(regid, None), None, out);
        }
    }

    fn attach(&mut self, standings: Vec<Standing>, begin: Begin, out: &mut Output) -> Vec<String> {
        if let Mode::Frames(frames) = &mut self.mode {
            (frames.is_attached, frames.draft) = (true, None);
        }
        let regids = standings.iter().map(|standing| standing.regid.to_string()).collect();
        self.feeds.merge(standings, &|_, _| Use::Deliver, begin, &mut self.window, out);
        regids
    }

    pub(super) fn requested(
        &mut self,
        ticket: Ticket,
        result: Result<Option<Registered>, service::Error>,
        out: &mut Output,
    ) {
        self.reply(down::result(ticket.request, &result), Some(ticket), out);
        let is_attached = matches!(&self.mode, Mode::Frames(frames) if frames.is_attached);
        let changes = matches!(ticket.kind, UpKind::Register | UpKind::Unregister | UpKind::Rekey);
        if result.is_ok() && changes && is_attached && out.close.is_none() {
            out.call = Some(Call::Refresh);
        }
    }

    /// The client released an uplink of QoS 2.
    pub(super) fn released(&mut self, packet_id: u16, out: &mut Output) {
        if self.terms.version == Version::V5 {
            return self.close(CloseReason::ProtocolError, out);
        }
        if let Mode::Frames(frames) = &mut self.mode {
            frames.rare().received.retain(|id| *id != packet_id);
            frames.tidy();
        }
        let ack = Ack { packet_id, reason: reason::SUCCESS };
        out.packet(self.terms.version, &Packet::PubComp(ack));
    }

    fn received(&mut self, packet_id: u16, out: &mut Output) {
        let ack = Ack { packet_id, reason: reason::SUCCESS };
        out.packet(self.terms.version, &Packet::PubRec(ack));
    }

    /// Answers on `down` as soon as the client has room, and then acknowledges the uplink:
    /// so a client that keeps to our Receive Maximum never fills what is pending.
    pub(super) fn reply(&mut self, down: idl::Down, uplink: Option<Ticket>, out: &mut Output) {
        let mut frame = Vec::new();
        if let Err(error) = frame::encode_down(&down, &mut frame) {
            // Replies are made to fit: this is a defect of ours, and not the device's.
            tracing::error!(%error, "a connection ends because a reply fits no frame");
            return self.close(CloseReason::Unavailable, out);
        }
        if let Mode::Frames(frames) = &mut self.mode {
            frames.rare().pending.push_back(Reply { frame, uplink });
        }
        self.flush_replies(out);
    }

    pub(super) fn flush_replies(&mut self, out: &mut Output) {
        loop {
            let credit = self.credit();
            let Mode::Frames(frames) = &mut self.mode else { return };
            if frames.qos == Some(Qos::AtLeastOnce) && credit == 0 {
                return;
            }
            let next = frames.rare.as_mut().and_then(|rare| rare.pending.pop_front());
            let Some(Reply { frame, uplink }) = next else { return frames.tidy() };
            let packet_id = self.next_down_id();
            if self.publish_down(packet_id, &frame, out)
                && packet_id != 0
                && let Mode::Frames(frames) = &mut self.mode
            {
                frames.unacknowledged += 1;
            }
            if let Some(ticket) = uplink {
                self.acknowledge_uplink(ticket, out);
            }
        }
    }

    fn acknowledge_uplink(&mut self, ticket: Ticket, out: &mut Output) {
        match ticket.qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => self.puback(ticket.packet_id, reason::SUCCESS, out),
            Qos::ExactlyOnce => self.received(ticket.packet_id, out),
        }
    }

    /// A PUBACK that is not the window's: the one of a reply, if any is on its way.
    pub(super) fn reply_acked(&mut self) -> bool {
        match &mut self.mode {
            Mode::Frames(frames) if frames.unacknowledged > 0 => {
                frames.unacknowledged -= 1;
                true
            }
            Mode::Frames(_) | Mode::Plain(_) | Mode::Undecided => false,
        }
    }

    /// A packet id for the next PUBLISH on `down`; 0 for QoS 0.
    pub(super) fn next_down_id(&mut self) -> u16 {
        match &self.mode {
            Mode::Frames(frames) if frames.qos == Some(Qos::AtLeastOnce) => self.window.next_id(),
            Mode::Frames(_) | Mode::Plain(_) | Mode::Undecided => 0,
        }
    }

    /// Writes a PUBLISH on `down`, unless nothing is subscribed or it is too large for the client.
    pub(super) fn publish_down(&mut self, packet_id: u16, frame: &[u8], out: &mut Output) -> bool {
        let Mode::Frames(frames) = &mut self.mode else { return false };
        let Some(qos) = frames.qos else { return false };
        let has_alias = self.terms.alias_max > 0;
        let head = PublishHead {
            version: self.terms.version,
            dup: false,
            qos,
            retain: false,
            topic: if has_alias && frames.is_alias_told { "" } else { DOWN },
            packet_id,
            topic_alias: has_alias.then_some(1),
            user: &[],
            message_expiry_s: None,
        };
        if publish_bytes(&head, frame.len()) > self.terms.max_packet_bytes as usize {
            out.ignored.push(Ignored::Oversize);
            return false;
        }
        encode_publish(&head, frame, &mut out.bytes);
        frames.is_alias_told = has_alias;
        true
    }
}

enum Kind {
    Resume(idl::Resume),
    Positions(idl::Positions),
    Report(idl::HeartbeatReport),
    Repair(idl::Repair),
    Upload(idl::Upload),
    Request(UpKind, Request),
}

/// The one kind that is set, if exactly one is.
fn only_kind(up: idl::Up) -> Option<Kind> {
    let kinds = [
        up.resume.map(Kind::Resume),
        up.positions.map(Kind::Positions),
        up.heartbeat.map(Kind::Report),
        up.repair.map(Kind::Repair),
        up.upload.map(Kind::Upload),
        up.register_app.map(|r| Kind::Request(UpKind::Register, Request::Register(r))),
        up.unregister.map(|r| Kind::Request(UpKind::Unregister, Request::Unregister(r))),
        up.bind.map(|r| Kind::Request(UpKind::Bind, Request::Bind(r))),
        up.unbind.map(|r| Kind::Request(UpKind::Unbind, Request::Unbind(r))),
        up.subscribe.map(|r| Kind::Request(UpKind::Subscribe, Request::Subscribe(r))),
        up.unsubscribe.map(|r| Kind::Request(UpKind::Unsubscribe, Request::Unsubscribe(r))),
        up.event.map(|r| Kind::Request(UpKind::Event, Request::Event(r))),
        up.accept.map(|r| Kind::Request(UpKind::Accept, Request::Accept(r))),
        up.rekey.map(|r| Kind::Request(UpKind::Rekey, Request::Rekey(r))),
        up.describe.map(|r| Kind::Request(UpKind::Describe, Request::Describe(r))),
    ];
    let mut set = kinds.into_iter().flatten();
    let only = set.next()?;
    if set.next().is_some() {
        return None;
    }
    Some(only)
}

/// The uplink topic.
pub(in crate::edge) const UP: &str = "up";
/// The downlink topic.
const DOWN: &str = "down";
/// Replies that may wait for the client before its uplinks are no longer taken.
const PENDING_MAX: usize = 16;
/// Uplinks of QoS 2 that may be unreleased.
const RECEIVED_MAX: usize = 16;

/// What a PUBLISH on `down` costs besides its frame, at most, in bytes.
pub(super) const HEAD_BYTES: usize = 5 + 2 + DOWN.len() + 2 + 1 + 3;
