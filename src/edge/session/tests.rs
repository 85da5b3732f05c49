//! The session fed with plain data: packets and queue entries in, packets and effects out.

mod beats;
mod changes;
mod frames;
mod packing;
mod plain;

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use carillon_wire::mqtt::{Connect, Decoder, Disconnect, Publish, Qos, Subscribe};

use super::{feeds::Standing, handshake, *};
use crate::{
    base::{
        ids::{AppId, MessageId, QueueName},
        metrics::ResumeReason,
    },
    queue::{
        entry::{Body, Entry, Message},
        filter::Attributes,
        position::Epoch,
    },
    service::{
        deliver::Start,
        records::{Follow, Registration},
        seals::Sealing,
    },
};

/// A device's session, the queues that it reads, and the client that reads its bytes.
struct Rig {
    session: Session,
    out: Output,
    bounds: config::Edge,
    now_s: u64,
    dice: u32,
    farewell: Option<Farewell>,
    queues: HashMap<QueueId, Vec<Arc<Entry>>>,
    stored: HashMap<QueueId, u64>,
    client: Decoder,
    /// What is pulled next lacks what retention dropped.
    is_torn: bool,
    /// Snapshots that the device waited for in vain.
    given_up: u32,
}

const EPOCH: Epoch = Epoch(1);

fn app(name: &str) -> AppId {
    name.parse().unwrap()
}

fn at(seq: u64) -> Position {
    Position { epoch: EPOCH, seq: Seq(seq) }
}

fn topic(name: &str) -> QueueName {
    QueueName::Topic(app("demo"), name.parse().unwrap())
}

/// A registration of `demo` that follows `all` and these topics, with 1 as the newest control entry.
fn registration(byte: u8, app_name: &str, topics: &[&str]) -> Registration {
    let follow = |queue| Follow { queue, since: at(0), control: Seq(0) };
    let topics = topics.iter().map(|name| QueueName::Topic(app(app_name), name.parse().unwrap()));
    Registration {
        regid: RegId([byte; 20]),
        app: app(app_name),
        since: at(0),
        control: Seq(0),
        follows: std::iter::once(QueueName::All(app(app_name))).chain(topics).map(follow).collect(),
        accept: None,
        seal: None,
        attributes: Attributes::default(),
    }
}

fn message(text: &str) -> Body {
    Body::Message(Message::new(MessageId([3; 15]), Bytes::copy_from_slice(text.as_bytes())))
}

impl Rig {
    fn with(connect: Connect) -> Self {
        let bounds = config::Edge::default();
        let connect = Connect { client_id: "d".into(), password: Some(Bytes::new()), ..connect };
        let granted = handshake::judge(&connect, &bounds).unwrap();
        Self {
            session: Session::new(granted.terms, 0),
            out: Output::default(),
            bounds,
            now_s: 0,
            dice: 7,
            farewell: None,
            queues: HashMap::new(),
            stored: HashMap::new(),
            client: Decoder::client(connect.version, u32::MAX),
            is_torn: false,
            given_up: 0,
        }
    }

    fn v5() -> Self {
        Self::with(Connect { clean_start: false, ..Connect::default() })
    }

    fn v311() -> Self {
        let session_expiry_s = u32::MAX;
        Self::with(Connect {
            version: Version::V311,
            clean_start: false,
            session_expiry_s,
            ..Connect::default()
        })
    }

    /// Appends an entry to a queue and nudges.
    fn append(&mut self, queue: &QueueName, body: Body) -> u64 {
        let entries = self.queues.entry(queue.id()).or_default();
        let seq = entries.len() as u64 + 1;
        entries.push(Arc::new(Entry { position: at(seq), at_ms: 1_000 + seq, body }));
        self.session.feeds.touch();
        seq
    }

    fn own(&mut self, byte: u8, text: &str) -> u64 {
        self.append(&QueueName::Own(RegId([byte; 20])), message(text))
    }

    fn own_one(&mut self, text: &str) {
        self.own(1, text);
    }

    fn standing(&self, registration: &Registration) -> Standing {
        let followings = Following::all_of(registration, |name| name.clone().into());
        let start = |following: &Following| Start {
            after: at(self
                .stored
                .get(&following.queue.id())
                .copied()
                .unwrap_or(following.since.seq.0)),
            jump: None,
            reason: ResumeReason::Stored,
            is_stored: false,
            gather: None,
        };
        let head = |following: &Following| {
            at(self.queues.get(&following.queue.id()).map_or(0, Vec::len) as u64)
        };
        Standing {
            regid: registration.regid,
            control: registration.control,
            starts: followings.iter().map(start).collect(),
            heads: followings.iter().map(head).collect(),
            followings,
            is_named: true,
            is_gated: registration.accept.is_some(),
            sealing: Sealing::Open,
        }
    }

    fn input(&mut self, input: Input) {
        let tag = |_: &QueueId, position: Position| position.seq.0.to_be_bytes();
        let (bounds, farewell) = (self.bounds.clone(), self.farewell.clone());
        let (now_s, unix_ms, dice, farewell) = (self.now_s, 10_000, self.dice, farewell.as_ref());
        let cx = Context {
            bounds: &bounds,
            now_s,
            unix_ms,
            dice,
            farewell,
            tag: &tag,
            totals: &|_| None,
            is_held: &|_| false,
        };
        self.session.step(&cx, input, &mut self.out);
        self.settle();
    }

    fn packet(&mut self, packet: Packet) {
        self.input(Input::Packet(packet));
    }

    /// Stores what was acknowledged, as the service would.
    fn settle(&mut self) {
        for effect in self.out.effects.drain(..) {
            match effect {
                Effect::Acknowledge { queue, position, .. } => {
                    self.stored.insert(queue, position.seq.0);
                }
                Effect::GaveUp => self.given_up += 1,
                _ => {}
            }
        }
    }

    /// Pulls as the connection does, and gives what the client reads.
    fn pump(&mut self) -> Vec<Packet> {
        let tag = |_: &QueueId, position: Position| position.seq.0.to_be_bytes();
        let (bounds, farewell) = (self.bounds.clone(), self.farewell.clone());
        let (now_s, unix_ms, dice, farewell) = (self.now_s, 10_000, self.dice, farewell.as_ref());
        let cx = Context {
            bounds: &bounds,
            now_s,
            unix_ms,
            dice,
            farewell,
            tag: &tag,
            totals: &|_| None,
            is_held: &|_| false,
        };
        for turn in 0.. {
            assert!(turn < 10_000, "a session must come to rest");
            let want = self.session.want(&cx, &mut self.out);
            self.settle();
            let Some(want) = want else { break };
            let queue = self.session.followings(want.feed)[want.at].queue.id();
            let all = self.queues.get(&queue).map_or(&[][..], Vec::as_slice);
            let next = all.iter().skip(want.after.0 as usize).take(want.take.entries);
            let entries: Vec<_> = next.cloned().collect();
            let pulled = entries.last().map(|last| last.position).map(|to| Pulled {
                entries,
                to,
                skipped: Vec::new(),
                is_all: all.last().is_some_and(|last| last.position == to),
                is_torn: std::mem::take(&mut self.is_torn),
            });
            self.session.fed(&cx, want, pulled, &mut self.out);
            self.settle();
        }
        self.read()
    }

    fn read(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some(packet) = self.client.decode(&mut self.out.bytes).unwrap() {
            packets.push(packet);
        }
        packets
    }

    /// SUBSCRIBE with these filters, answered with these registrations; gives SUBACK's codes.
    fn subscribe(&mut self, filters: &[(&str, Qos)], registrations: &[Registration]) -> Vec<u8> {
        let filters = filters.iter().map(|(text, qos)| ((*text).to_owned(), *qos)).collect();
        self.packet(Packet::Subscribe(Subscribe { packet_id: 1, filters, subscription_id: None }));
        if let Some(Call::Subscribe(packet_id, wanted)) = self.out.call.take() {
            let results = wanted
                .into_iter()
                .map(|w| w.and_then(|w| super::filter::resolve(w, registrations)));
            let standings = registrations.iter().map(|r| self.standing(r)).collect();
            self.input(Input::Answer(Answer::Subscribed(packet_id, results.collect(), standings)));
        }
        match self.read().pop() {
            Some(Packet::SubAck(ack)) => ack.reasons,
            other => panic!("SUBACK expected, not {other:?}"),
        }
    }

    fn ack(&mut self, packet_id: u16) {
        self.packet(Packet::PubAck(Ack { packet_id, reason: 0 }));
    }

    fn stored(&self, queue: &QueueName) -> u64 {
        self.stored.get(&queue.id()).copied().unwrap_or(0)
    }
}

fn own(byte: u8) -> QueueName {
    QueueName::Own(RegId([byte; 20]))
}

fn publishes(packets: Vec<Packet>) -> Vec<Publish> {
    let publish = |packet| match packet {
        Packet::Publish(publish) => Some(publish),
        _ => None,
    };
    packets.into_iter().filter_map(publish).collect()
}

fn texts(publishes: &[Publish]) -> Vec<&str> {
    publishes.iter().map(|p| std::str::from_utf8(&p.payload).unwrap()).collect()
}

#[test]
fn who_is_silent_for_one_and_a_half_keep_alives_is_closed() {
    let mut rig = Rig::with(Connect { keep_alive_s: 20, ..Connect::default() });
    rig.now_s = 25;
    rig.packet(Packet::PingReq);
    assert_eq!(rig.read(), [Packet::PingResp]);
    rig.now_s = 55;
    rig.input(Input::Nudged(Reasons::TICK));
    assert_eq!(rig.out.close, None);
    rig.now_s = 56;
    rig.input(Input::Nudged(Reasons::TICK));
    assert_eq!(rig.out.close, Some(CloseReason::KeepAliveTimeout));
    assert_eq!(
        rig.read(),
        [Packet::Disconnect(Disconnect { reason: 0x8D, ..Disconnect::default() })]
    );
}

#[test]
fn a_taken_over_connection_says_so_and_does_nothing_else() {
    let mut rig = Rig::v5();
    rig.input(Input::Nudged(Reasons(
        Reasons::TAKEN_OVER.0 | Reasons::DELIVER.0 | Reasons::REFRESH.0,
    )));
    assert_eq!(rig.out.close, Some(CloseReason::TakenOver));
    assert!(rig.out.call.is_none());
    assert_eq!(
        rig.read(),
        [Packet::Disconnect(Disconnect { reason: 0x8E, ..Disconnect::default() })]
    );
}

#[test]
fn a_version_without_a_code_is_closed_without_a_word() {
    let mut rig = Rig::v311();
    rig.input(Input::Nudged(Reasons::TAKEN_OVER));
    assert_eq!(rig.out.close, Some(CloseReason::TakenOver));
    assert_eq!(rig.read(), []);
}

#[test]
fn the_first_use_decides_and_the_other_is_refused() {
    let one = [registration(1, "demo", &[])];
    let mut rig = Rig::v5();
    assert_eq!(rig.subscribe(&[("a/b/c/d", Qos::AtLeastOnce)], &one), [0x8F]);
    assert_eq!(rig.session.mode(), "undecided");
    assert_eq!(
        rig.subscribe(&[("push", Qos::ExactlyOnce), ("down", Qos::AtLeastOnce)], &one),
        [1, 0x87]
    );
    assert_eq!(rig.session.mode(), "plain");
    let up =
        Publish { qos: Qos::AtLeastOnce, topic: "up".into(), packet_id: 5, ..Publish::default() };
    rig.packet(Packet::Publish(up));
    assert_eq!(rig.out.close, Some(CloseReason::ProtocolError));

    let mut rig = Rig::v5();
    assert_eq!(
        rig.subscribe(&[("down", Qos::ExactlyOnce), ("push", Qos::AtLeastOnce)], &one),
        [1, 0x87]
    );
    assert_eq!(rig.session.mode(), "frames");
}

#[test]
fn each_filter_is_judged_on_its_own() {
    let filters =
        ["$share/g/push", "push/#", "topic/+", "up", "topic/a b", "push/other", "topic/x"];
    let filters: Vec<_> = filters.iter().map(|text| (*text, Qos::AtMostOnce)).collect();
    let mut rig = Rig::v5();
    let codes = rig.subscribe(&filters, &[registration(1, "demo", &["x"])]);
    assert_eq!(codes, [0x9E, 0xA2, 0xA2, 0x8F, 0x8F, 0x87, 0]);
    let two = [registration(1, "demo", &["x"]), registration(2, "other", &[])];
    let filters = [
        ("push", Qos::AtLeastOnce),
        ("push/other", Qos::AtLeastOnce),
        ("topic/demo/x", Qos::AtMostOnce),
    ];
    assert_eq!(Rig::v5().subscribe(&filters, &two), [0x8F, 1, 0]);
    let many = vec![("push", Qos::AtMostOnce); 66];
    let codes = Rig::v5().subscribe(&many, &two[..1]);
    assert_eq!((codes[63], codes[64], codes[65]), (0, 0x97, 0x97));
}

#[test]
fn packets_that_only_a_server_sends_and_pubrec_end_the_connection() {
    for packet in [Packet::PingResp, Packet::Auth, Packet::PubRec(Ack { packet_id: 1, reason: 0 })]
    {
        let mut rig = Rig::v5();
        rig.packet(packet);
        assert_eq!(rig.out.close, Some(CloseReason::ProtocolError));
    }
}

#[test]
fn an_acknowledgement_of_nothing_is_counted_and_ignored() {
    let mut rig = Rig::v5();
    rig.ack(77);
    assert_eq!((rig.out.close, &rig.out.ignored[..]), (None, &[Ignored::UnknownAck][..]));
}

#[test]
fn a_session_that_was_to_end_at_once_cannot_be_prolonged() {
    let mut rig = Rig::v5();
    rig.packet(Packet::Disconnect(Disconnect {
        session_expiry_s: Some(9),
        ..Disconnect::default()
    }));
    assert_eq!(rig.out.close, Some(CloseReason::ProtocolError));
}
