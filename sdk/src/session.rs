//! The protocol machine of one connection: packets, finished frames, calls and time go in; bytes and work come out.
//!
//! Pure but for the clock's values that it is given. It must never know sockets, tasks or what positions mean.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use carillon_wire::limits::FRAME_PACKET_BYTES_MAX;
use carillon_wire::mqtt::{
    self, Ack, ConnAck, Connect, Disconnect, Packet, Publish, PublishHead, Qos, Version, reason,
};
use carillon_wire::{frame, idl};
use tokio::time::Instant;

use crate::applier::{Finished, Frame};
use crate::calls::{self, Call, CallError, Effect};
use crate::close::End;
use crate::heartbeat::{AppState, Due, Heartbeat, NetworkLabel, StoredRecord};
use crate::names::{App, RegId};

/// What the session is told at its start.
#[derive(Clone, Debug)]
pub struct Terms {
    pub device_id: String,
    pub secret: String,
    /// What CONNECT states: no silence of ours is longer.
    pub keep_alive: Duration,
    /// PUBLISHes that the gateway may have unacknowledged.
    pub receive_max: u16,
}

/// What a packet means for the applier.
pub enum Given {
    Nothing,
    Frame { frame: Frame, packet_id: Option<u16> },
    Registered(RegId, App),
    Unregistered(RegId),
}

/// See the module.
pub struct Session<'a> {
    phase: Phase,
    /// To be written by the caller, who takes it.
    pub out: BytesMut,
    /// In order; an acknowledgement waits for the frames before it.
    outgoing: VecDeque<Outgoing>,
    /// Packet ids of `up` frames that are not acknowledged, and when they were sent, oldest first.
    in_flight: VecDeque<(u16, Instant)>,
    next_id: u16,
    /// As CONNACK said.
    in_flight_max: usize,
    packet_bytes_max: usize,
    calls: BTreeMap<i64, PendingCall>,
    next_number: i64,
    /// `Resume` and `Positions` without an answer, and until when one must come.
    unanswered: u32,
    answer_by: Instant,
    heartbeat: &'a mut Heartbeat,
    parting: Parting,
}

/// What the gateway said of the time after this connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parting {
    /// Stay away for so long.
    pub after: Option<Duration>,
    /// Come back there, `host:port`.
    pub server: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// CONNECT is sent.
    Connecting,
    /// CONNACK has come.
    Accepted,
    /// The first `Resumed` has come.
    Online,
}

enum Outgoing {
    Up(Bytes),
    Ack(u16),
}

struct PendingCall {
    effect: Effect,
    reply: tokio::sync::oneshot::Sender<calls::Answer>,
}

impl<'a> Session<'a> {
    /// Writes CONNECT and, right behind it, the first frame.
    pub fn new(
        terms: &Terms,
        heartbeat: &'a mut Heartbeat,
        resume: &idl::Up,
        now: Instant,
    ) -> Result<Self, End> {
        heartbeat.link_up(terms.keep_alive, now);
        let connect = Packet::Connect(Box::new(Connect {
            version: Version::V5,
            clean_start: true,
            keep_alive_s: u16::try_from(terms.keep_alive.as_secs()).unwrap_or(u16::MAX),
            client_id: terms.device_id.clone(),
            username: Some(terms.device_id.clone()),
            password: Some(Bytes::copy_from_slice(terms.secret.as_bytes())),
            receive_max: terms.receive_max,
            max_packet_bytes: Some(FRAME_PACKET_BYTES_MAX),
            ..Connect::default()
        }));
        let mut session = Self {
            phase: Phase::Connecting,
            out: BytesMut::new(),
            outgoing: VecDeque::new(),
            in_flight: VecDeque::new(),
            next_id: 0,
            in_flight_max: 1,
            packet_bytes_max: usize::MAX,
            calls: BTreeMap::new(),
            next_number: 0,
            unanswered: 0,
            answer_by: now + ANSWER_WITHIN,
            heartbeat,
            parting: Parting::default(),
        };
        mqtt::encode(Version::V5, &connect, &mut session.out).map_err(End::Wire)?;
        session.state(resume, now)?;
        Ok(session)
    }

    /// Whether the app may call.
    pub fn is_online(&self) -> bool {
        self.phase == Phase::Online
    }

    /// Whether more frames may be queued; the caller takes no call and no finished frame until then.
    pub fn has_room(&self) -> bool {
        self.outgoing.len() < OUTGOING_MAX
    }

    /// What the gateway said of the time afterwards.
    pub fn parting(self) -> Parting {
        self.parting
    }

    /// A packet came.
    pub fn packet(&mut self, packet: Packet, now: Instant) -> Result<Given, End> {
        self.heartbeat.heard(now);
        match (self.phase, packet) {
            (Phase::Connecting, Packet::ConnAck(ack)) => self.accepted(&ack, now)?,
            (Phase::Connecting, _) => return Err(End::Fault("a packet before CONNACK")),
            (_, Packet::Publish(publish)) => {
                let given = self.publish(publish, now)?;
                self.report(now)?;
                return Ok(given);
            }
            (_, Packet::PubAck(ack)) => self.acknowledged(ack)?,
            (_, Packet::PingResp) => {}
            (_, Packet::Disconnect(disconnect)) => {
                if let Some(server) = &disconnect.server_reference {
                    self.sent_to(server);
                }
                return Err(End::Disconnected(disconnect.reason));
            }
            (_, Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::ConnAck(_)) => {
                return Err(End::Fault("an answer without a question"));
            }
            (_, Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) | Packet::Auth) => {
                return Err(End::Fault("a packet that was not agreed"));
            }
            (_, Packet::Connect(_) | Packet::Subscribe(_) | Packet::Unsubscribe(_))
            | (_, Packet::PingReq) => {
                return Err(End::Fault("a packet that only a client sends"));
            }
        }
        self.pump(now);
        self.report(now)?;
        Ok(Given::Nothing)
    }

    /// The applier is done with a frame.
    pub fn finished(&mut self, finished: Finished, now: Instant) -> Result<(), End> {
        for up in &finished.send {
            self.state(up, now)?;
        }
        self.outgoing.extend(finished.ack.map(Outgoing::Ack));
        self.pump(now);
        Ok(())
    }

    /// The app asks for something.
    pub fn call(&mut self, call: Call, now: Instant) {
        let Call { request, reply } = call;
        if !self.is_online() {
            return drop(reply.send(Err(CallError::Offline)));
        }
        if self.calls.len() >= CALLS_MAX {
            self.calls.retain(|_, pending| !pending.reply.is_closed());
        }
        if self.calls.len() >= CALLS_MAX {
            return drop(reply.send(Err(CallError::Busy)));
        }
        self.next_number += 1;
        let effect = request.effect();
        let up = request.into_up(self.next_number);
        match self.encode(&up) {
            Ok(frame) => self.outgoing.push_back(Outgoing::Up(frame)),
            Err(_) => return drop(reply.send(Err(CallError::TooLarge))),
        }
        self.calls.insert(self.next_number, PendingCall { effect, reply });
        self.pump(now);
    }

    /// When to call [`Session::tick`].
    pub fn wake_at(&self) -> Instant {
        let heartbeat = self.heartbeat.wake_at();
        self.overdue_at().map_or(heartbeat, |at| at.min(heartbeat))
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) -> Result<(), End> {
        if self.overdue_at().is_some_and(|at| now >= at) {
            return Err(End::NoAnswer);
        }
        match self.heartbeat.due(now) {
            Due::Nothing => {}
            Due::Ping => self.out.extend_from_slice(&PINGREQ),
            Due::Dead => return Err(End::NoAnswer),
        }
        Ok(())
    }

    /// Until when something must come: CONNACK, an answer to what was stated, a PUBACK.
    fn overdue_at(&self) -> Option<Instant> {
        let is_awaited = self.phase == Phase::Connecting || self.unanswered > 0;
        let answer = is_awaited.then_some(self.answer_by);
        let puback = self.in_flight.front().map(|(_, sent_at)| *sent_at + ANSWER_WITHIN);
        answer.into_iter().chain(puback).min()
    }

    /// What was in `out` has been written.
    pub fn written(&mut self, now: Instant) {
        self.heartbeat.sent(now);
    }

    /// Says goodbye, as the last packet.
    pub fn disconnect(&mut self, reason: u8) {
        let disconnect = Disconnect { reason, ..Disconnect::default() };
        // A reason that cannot be said is left out: the connection ends all the same.
        let _ = mqtt::encode(Version::V5, &Packet::Disconnect(disconnect), &mut self.out);
    }

    fn accepted(&mut self, ack: &ConnAck, now: Instant) -> Result<(), End> {
        if ack.reason != reason::SUCCESS {
            let after = ack.user.iter().find(|(name, _)| name == RETRY_AFTER_MS);
            let after = after.and_then(|(_, ms)| ms.parse().ok());
            self.parting.after = after.and_then(within_bounds);
            return Err(End::Refused(ack.reason));
        }
        self.phase = Phase::Accepted;
        self.in_flight_max = usize::from(ack.receive_max.unwrap_or(u16::MAX)).min(IN_FLIGHT_MAX);
        if let Some(bytes) = ack.max_packet_bytes {
            self.packet_bytes_max = bytes as usize;
        }
        if let Some(seconds) = ack.server_keep_alive_s {
            let interval = match seconds {
                0 => NO_KEEP_ALIVE,
                seconds => Duration::from_secs(seconds.into()),
            };
            self.heartbeat.granted(interval, now);
        }
        self.answer_by = now + ANSWER_WITHIN;
        Ok(())
    }

    fn acknowledged(&mut self, ack: Ack) -> Result<(), End> {
        let found = self.in_flight.iter().position(|(id, _)| *id == ack.packet_id);
        let found = found.ok_or(End::Fault("PUBACK of an unknown packet id"))?;
        self.in_flight.remove(found);
        match ack.reason {
            0..reason::UNSPECIFIED => Ok(()),
            _ => Err(End::Fault("a frame was refused by PUBACK")),
        }
    }

    fn publish(&mut self, publish: Publish, now: Instant) -> Result<Given, End> {
        if publish.topic != DOWN {
            return Err(End::Fault("a PUBLISH to another topic than down"));
        }
        let packet_id = match publish.qos {
            Qos::AtMostOnce => None,
            Qos::AtLeastOnce => Some(publish.packet_id),
            Qos::ExactlyOnce => return Err(End::Fault("QoS 2")),
        };
        let down = frame::open_down(&publish.payload).map_err(End::Frame)?;
        let given = self.down(down, packet_id, now)?;
        if !matches!(given, Given::Frame { .. }) {
            self.outgoing.extend(packet_id.map(Outgoing::Ack));
        }
        self.pump(now);
        Ok(given)
    }

    fn down(
        &mut self,
        down: idl::Down,
        packet_id: Option<u16>,
        now: Instant,
    ) -> Result<Given, End> {
        let frame = match down {
            idl::Down { result: Some(result), .. } => return Ok(self.result(result, packet_id)),
            idl::Down { deltas: Some(deltas), .. } => Frame::Deltas(deltas),
            idl::Down { snapshot: Some(chunk), .. } => Frame::Snapshot(chunk),
            idl::Down { resumed: Some(resumed), .. } => {
                self.answered(now)?;
                self.phase = Phase::Online;
                self.heartbeat.online();
                Frame::Resumed(resumed)
            }
            idl::Down { ask_positions: Some(_), .. } => {
                self.answered(now)?;
                Frame::AskPositions
            }
            idl::Down { ended: Some(ended), .. } => Frame::from(ended),
            idl::Down { advice: Some(advice), .. } => {
                self.advised(&advice, now);
                return Ok(Given::Nothing);
            }
            // A kind that we do not know yet: acknowledged and ignored.
            _ => return Ok(Given::Nothing),
        };
        Ok(Given::Frame { frame, packet_id })
    }

    fn advised(&mut self, advice: &idl::Advice, now: Instant) {
        if let Some(ms) = advice.reconnect_after_ms {
            self.parting.after = within_bounds(ms);
        }
        if let Some(server) = &advice.server {
            self.sent_to(server);
        }
        let heartbeat_s = advice.heartbeat_s.and_then(|s| u64::try_from(s).ok());
        let heartbeat_s = heartbeat_s.filter(|s| *s > 0);
        if let Some(seconds) = heartbeat_s {
            self.heartbeat.advise(Duration::from_secs(seconds), now);
        }
    }

    fn sent_to(&mut self, server: &str) {
        self.parting.server =
            Some(server.to_owned()).filter(|server| server.len() <= SERVER_BYTES_MAX);
    }

    /// Tells the gateway how idle gaps fared, if there is news.
    fn report(&mut self, now: Instant) -> Result<(), End> {
        if !self.is_online() || !self.has_room() {
            return Ok(());
        }
        let Some(report) = self.heartbeat.take_report(now) else { return Ok(()) };
        let frame = self.encode(&idl::Up { heartbeat: Some(report), ..frame::empty_up() })?;
        self.outgoing.push_back(Outgoing::Up(frame));
        self.pump(now);
        Ok(())
    }

    /// What was learned of networks, if it is to be saved.
    pub fn take_networks(&mut self) -> Option<Vec<StoredRecord>> {
        self.heartbeat.learner().take_unsaved()
    }

    /// The device is on another network: the connection belongs to the old one.
    pub fn network_changed(&mut self, label: Option<NetworkLabel>) -> Result<(), End> {
        self.heartbeat.change_network(label)
    }

    /// The app is in use, or is not any more.
    pub fn app_became(&mut self, app: AppState) {
        self.heartbeat.learner().set_app(app);
    }

    fn result(&mut self, result: idl::Result, packet_id: Option<u16>) -> Given {
        let Some(pending) = self.calls.remove(&result.request) else {
            return Given::Nothing;
        };
        let (given, answer) = pending.effect.settle(result, packet_id);
        // The caller may have given up.
        let _ = pending.reply.send(answer);
        given
    }

    fn answered(&mut self, now: Instant) -> Result<(), End> {
        let left = self.unanswered.checked_sub(1);
        self.unanswered = left.ok_or(End::Fault("an answer without a question"))?;
        self.answer_by = now + ANSWER_WITHIN;
        Ok(())
    }

    /// Queues a `Resume` or `Positions`.
    fn state(&mut self, up: &idl::Up, now: Instant) -> Result<(), End> {
        let frame = self.encode(up)?;
        self.outgoing.push_back(Outgoing::Up(frame));
        self.unanswered += 1;
        self.answer_by = now + ANSWER_WITHIN;
        self.pump(now);
        Ok(())
    }

    fn encode(&self, up: &idl::Up) -> Result<Bytes, End> {
        let mut frame = Vec::new();
        frame::encode_up(up, &mut frame).map_err(End::Frame)?;
        if mqtt::publish_bytes(&head(1), frame.len()) > self.packet_bytes_max {
            return Err(End::Fault("a frame beyond the gateway's maximum packet size"));
        }
        Ok(frame.into())
    }

    /// Writes what may be written, in order.
    fn pump(&mut self, now: Instant) {
        while let Some(first) = self.outgoing.front() {
            match first {
                Outgoing::Ack(packet_id) => {
                    let [high, low] = packet_id.to_be_bytes();
                    self.out.extend_from_slice(&[PUBACK, 2, high, low]);
                }
                Outgoing::Up(_) if self.in_flight.len() >= self.in_flight_max => return,
                Outgoing::Up(frame) => {
                    let frame = frame.clone();
                    let packet_id = self.take_id();
                    mqtt::encode_publish(&head(packet_id), &frame, &mut self.out);
                    self.in_flight.push_back((packet_id, now));
                }
            }
            self.outgoing.pop_front();
        }
    }

    fn take_id(&mut self) -> u16 {
        loop {
            self.next_id = self.next_id.checked_add(1).unwrap_or(1);
            // At most IN_FLIGHT_MAX ids are taken, so this ends.
            if self.in_flight.iter().all(|(id, _)| *id != self.next_id) {
                return self.next_id;
            }
        }
    }
}

fn head(packet_id: u16) -> PublishHead<'static> {
    PublishHead {
        version: Version::V5,
        dup: false,
        qos: Qos::AtLeastOnce,
        retain: false,
        topic: UP,
        packet_id,
        topic_alias: None,
        user: &[],
        message_expiry_s: None,
    }
}

fn within_bounds(ms: i64) -> Option<Duration> {
    let ms = u64::try_from(ms).ok()?;
    Some(Duration::from_millis(ms).min(ADVICE_MAX))
}

const UP: &str = "up";
const DOWN: &str = "down";
const PINGREQ: [u8; 2] = [0xC0, 0];
const PUBACK: u8 = 0x40;
/// The user property of a CONNACK that refuses: when to come back.
const RETRY_AFTER_MS: &str = "retry-after-ms";
/// For CONNACK, and for the answer to `Resume` and `Positions`.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Calls without an answer.
const CALLS_MAX: usize = 64;
/// Frames and acknowledgements that wait for the gateway.
const OUTGOING_MAX: usize = 128;
/// Frames of ours that may be unacknowledged, whatever the gateway allows.
const IN_FLIGHT_MAX: usize = 16;
/// A host name, a colon and a port.
const SERVER_BYTES_MAX: usize = 260;
/// The longest that the gateway may send us away for.
const ADVICE_MAX: Duration = Duration::from_secs(3600);
/// The interval when the gateway turns keep-alive off.
const NO_KEEP_ALIVE: Duration = Duration::from_secs(3600);
