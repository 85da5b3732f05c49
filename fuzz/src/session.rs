//! The session machine: any sequence of inputs, with a node and a device around it that
//! hold it to its promises.
//!
//! Input: what was agreed (4 bytes), then steps: what happens (1 byte) and its details.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use carillon::{
    base::ids::QueueId,
    config,
    edge::{
        close::CloseReason,
        farewell::Farewell,
        session::{
            Answer, Call, Context, Input, Output, Parked, Session, filter,
            handshake::{self, Granted},
        },
    },
    queue::position::Position,
    route::Reasons,
    service::{
        self,
        uploads::{Fate, KEPT_MAX, Uploaded, Verdict},
    },
};
use carillon_wire::{
    frame, idl,
    mqtt::{
        Ack, Connect, Decoder, Disconnect, Packet, Publish, Qos, Subscribe, Unsubscribe, Version,
        encode,
    },
};

use super::{
    script::Script,
    world::{Client, World},
};

pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let mut rig = Rig::new(&mut script);
    for _ in 0..STEPS_MAX {
        if script.is_empty() {
            break;
        }
        rig.step(&mut script);
        if rig.is_closed {
            rig.come_back(&mut script);
        }
    }
}

struct Rig {
    bounds: config::Edge,
    connect: Connect,
    session: Option<Session>,
    out: Output,
    now_s: u64,
    world: World,
    client: Client,
    /// Reads what the device says, so that steps can be bytes as well.
    server: Decoder,
    /// Packet ids that a restored session may send again.
    resent: BTreeSet<u16>,
    is_closed: bool,
    /// Once the node drains.
    farewell: Option<Farewell>,
}

fn agreed(script: &mut Script<'_>) -> Connect {
    let version = if script.is_yes() { Version::V5 } else { Version::V311 };
    let is_v5 = version == Version::V5;
    let clean_start = script.is_yes();
    let receive_max = if is_v5 { [1, 3, 16, u16::MAX][script.below(4)] } else { u16::MAX };
    let packet_max = [None, Some(64), Some(400), Some(100_000)][script.below(4)];
    Connect {
        version,
        clean_start,
        keep_alive_s: 60,
        client_id: "d".into(),
        password: Some(Bytes::new()),
        session_expiry_s: if clean_start { 0 } else { 3_600 },
        receive_max,
        max_packet_bytes: packet_max.filter(|_| is_v5),
        topic_alias_max: if is_v5 { 4 } else { 0 },
        ..Connect::default()
    }
}

fn client_of(connect: &Connect) -> Client {
    let bytes_max = connect.max_packet_bytes.unwrap_or(u32::MAX);
    Client::new(connect.version, connect.receive_max, bytes_max)
}

/// The decoder of a server that has taken this CONNECT.
fn server_of(connect: &Connect) -> Decoder {
    let (mut decoder, mut bytes) = (Decoder::server(1 << 20), BytesMut::new());
    let username = Some("d".to_owned());
    let packet = Packet::Connect(Box::new(Connect { username, ..connect.clone() }));
    encode(connect.version, &packet, &mut bytes).expect("a CONNECT");
    decoder.decode(&mut bytes).expect("a CONNECT");
    decoder
}

impl Rig {
    fn new(script: &mut Script<'_>) -> Self {
        let (connect, bounds) = (agreed(script), config::Edge::default());
        let Granted { terms, .. } = handshake::judge(&connect, &bounds).expect("a good CONNECT");
        Self {
            session: Some(Session::new(terms, 0)),
            client: client_of(&connect),
            server: server_of(&connect),
            bounds,
            connect,
            out: Output::default(),
            now_s: 0,
            world: World::new(),
            resent: BTreeSet::new(),
            is_closed: false,
            farewell: None,
        }
    }

    fn look<R>(&mut self, look: impl FnOnce(&mut Session, &Context<'_>, &mut Output) -> R) -> R {
        let tag = |_: &QueueId, position: Position| position.seq.0.to_be_bytes();
        let world = &self.world;
        let cx = Context {
            bounds: &self.bounds,
            now_s: self.now_s,
            unix_ms: 10_000,
            dice: 7,
            farewell: self.farewell.as_ref(),
            tag: &tag,
            totals: &|queue| world.totals(queue),
            is_held: &|regid| world.is_held(regid),
        };
        let session = self.session.as_mut().expect("a session");
        let done = look(session, &cx, &mut self.out);
        self.out.effects.drain(..).for_each(|effect| self.world.effect(effect));
        done
    }

    fn input(&mut self, input: Input) {
        if self.out.close.is_none() {
            self.look(|session, cx, out| session.step(cx, input, out));
        }
    }

    fn packet(&mut self, packet: Packet) {
        if let Packet::PubAck(ack) = &packet {
            self.client.acknowledges(ack.packet_id);
        }
        self.input(Input::Packet(packet));
    }

    /// One thing that happens, and everything that a connection does about it.
    fn step(&mut self, script: &mut Script<'_>) {
        self.happen(script);
        while let Some(call) = self.out.call.take() {
            let answer = self.answer(call, script);
            self.input(Input::Answer(answer));
        }
        self.pump(script);
        self.client.read(&mut self.out.bytes, &mut self.resent);
        if self.out.close.is_some() {
            self.is_closed = true;
            return;
        }
        self.input(Input::Written);
        let session = self.session.as_ref().expect("a session");
        self.world.hears(session.heard());
        self.out.clear();
    }

    fn happen(&mut self, script: &mut Script<'_>) {
        match script.below(19) {
            0 => self.packet(Packet::PingReq),
            1 => self.subscribe(script),
            2 => {
                let filters = vec![FILTERS[script.below(FILTERS.len())].to_owned()];
                self.packet(Packet::Unsubscribe(Unsubscribe { packet_id: 3, filters }));
            }
            3 => {
                let open = self.client.open.iter().nth(script.below(8)).copied();
                let packet_id = open.unwrap_or(1 + u16::from(script.byte()));
                self.packet(Packet::PubAck(Ack { packet_id, reason: 0 }));
            }
            4 => self.uplink(script),
            5 => self.packet(Packet::PubRel(Ack { packet_id: script.number().max(1), reason: 0 })),
            6 | 7 => {
                let (which, queue) = (script.below(3), script.below(8));
                self.world.send(which, queue, 3 * script.below(200));
                self.input(Input::Nudged(NEWS));
            }
            8 => self.input(Input::Nudged(Reasons(
                (u64::from(script.byte()) | ANY_QUEUE) & !Reasons::DRAIN.0,
            ))),
            9 => self.now_s += u64::from(script.byte()),
            10 => {
                let expiry = script.is_yes().then(|| u32::from(script.byte()));
                let session_expiry_s = expiry.filter(|_| self.connect.version == Version::V5);
                self.packet(Packet::Disconnect(Disconnect {
                    session_expiry_s,
                    ..Disconnect::default()
                }));
            }
            11 => self.raw(script.bytes()),
            12 => {
                let (which, name) = (script.below(2), TOPICS[script.below(TOPICS.len())]);
                self.world.toggle(which, name);
                self.input(Input::Nudged(Reasons(Reasons::REFRESH.0 | NEWS.0)));
            }
            13 => {
                let which = script.below(2);
                if which < self.world.registrations.len() {
                    self.world.unregister(which);
                } else {
                    self.world.register(1, "demo");
                }
                self.input(Input::Nudged(Reasons::REFRESH));
            }
            14 => self.packet(Packet::PingResp),
            15 => self.input(Input::Nudged(Reasons::TICK)),
            16 => self.drain(script),
            // Its hours begin or end, of which only the clock tells.
            17 => {
                self.world.turn(script.below(2));
                self.input(Input::Nudged(NEWS));
            }
            _ => {
                self.world.pause(script.below(2));
                self.input(Input::Nudged(Reasons(Reasons::REFRESH.0 | NEWS.0)));
            }
        }
    }

    /// The node goes away, which ends the connection whatever else there is to do.
    fn drain(&mut self, script: &mut Script<'_>) {
        let server = [None, Some("a.example:1883".to_owned()), Some("x".repeat(300))];
        let farewell = Farewell {
            per_s: 0,
            reconnect_ms: u32::from(script.byte()) << 8,
            server: server[script.below(3)].clone(),
        };
        self.farewell = Some(farewell);
        let was_open = self.out.close.is_none();
        self.input(Input::Nudged(Reasons(Reasons::DRAIN.0 | (u64::from(script.byte()) & !ENDS))));
        assert!(!was_open || self.out.close == Some(CloseReason::Draining), "it stays");
    }

    fn subscribe(&mut self, script: &mut Script<'_>) {
        let qos = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];
        let filters = (0..1 + script.below(3))
            .map(|_| (FILTERS[script.below(FILTERS.len())].to_owned(), qos[script.below(3)]))
            .collect();
        self.packet(Packet::Subscribe(Subscribe { packet_id: 2, filters, subscription_id: None }));
    }

    fn uplink(&mut self, script: &mut Script<'_>) {
        let regid = self.world.registrations.first().map_or(String::new(), |r| r.regid.to_string());
        let none = idl::Up::default;
        let up = match script.below(12) {
            0 | 1 => Some(idl::Up {
                resume: Some(idl::Resume { digest: 0, dictionary: None }),
                ..none()
            }),
            2 => {
                let positions =
                    idl::Positions { registrations: Vec::new(), more: Some(script.is_yes()) };
                Some(idl::Up { positions: Some(positions), ..none() })
            }
            3 => {
                let bind = idl::Bind { regid, alias_name: "a".into(), token: None };
                Some(idl::Up { bind: Some(bind), request: Some(1), ..none() })
            }
            4 => Some(idl::Up { unregister: Some(idl::Unregister { regid }), ..none() }),
            5..10 => Some(later(script.below(5), regid)),
            _ => None,
        };
        let mut payload = Vec::new();
        match up {
            Some(up) => frame::encode_up(&up, &mut payload).expect("a frame"),
            None => payload = script.bytes().to_vec(),
        }
        let qos = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce][script.below(3)];
        let topic = if script.byte() < 240 { "up" } else { "elsewhere" }.to_owned();
        let packet_id = if qos == Qos::AtMostOnce { 0 } else { 1 + u16::from(script.byte()) };
        let payload = Bytes::from(payload);
        self.packet(Packet::Publish(Publish {
            topic,
            payload,
            qos,
            packet_id,
            ..Publish::default()
        }));
    }

    /// Bytes of the device, as the connection reads them.
    fn raw(&mut self, bytes: &[u8]) {
        let mut unread = BytesMut::from(bytes);
        // A real connection would wait for the rest; here each piece begins a packet.
        let mut server = self.server.clone();
        while self.out.close.is_none() && self.out.call.is_none() {
            match server.decode(&mut unread) {
                Ok(Some(packet)) => self.packet(packet),
                Ok(None) => return,
                Err(error) => self.input(Input::Undecodable(error)),
            }
        }
    }

    fn answer(&mut self, call: Call, script: &mut Script<'_>) -> Answer {
        if script.byte() == 255 {
            return Answer::Failed;
        }
        match call {
            Call::Resume(ticket, _) => {
                let standings = script.is_yes().then(|| self.world.standings());
                Answer::Resumed(ticket, standings)
            }
            Call::Positions(ticket, _) => {
                Answer::Positioned(ticket, self.world.standings(), Vec::new())
            }
            Call::Refresh => Answer::Refreshed(self.world.standings()),
            Call::Subscribe(packet_id, wanted) => {
                let registrations = &self.world.registrations;
                let resolve =
                    |one: Result<_, u8>| one.and_then(|one| filter::resolve(one, registrations));
                let results = wanted.into_iter().map(resolve).collect();
                Answer::Subscribed(packet_id, results, self.world.standings())
            }
            Call::Unsubscribe(packet_id, taken) => {
                Answer::Unsubscribed(packet_id, taken, self.world.standings())
            }
            Call::Report(ticket, ..) => {
                Answer::Advised(ticket, script.is_yes().then(|| 1 + u16::from(script.byte())))
            }
            Call::Repair(ticket, _) => {
                let refused = || Err(service::Error::NotFound { what: "registration" });
                Answer::Repaired(ticket, if script.is_yes() { Ok(Vec::new()) } else { refused() })
            }
            Call::Upload(ticket, upload) => Answer::Uploaded(ticket, uploaded(&upload, script)),
            Call::Chunk(asked) => {
                let part = self.world.part(&asked, script);
                Answer::Chunk(asked, part)
            }
            Call::Request(ticket, _) => {
                let refused = || Err(service::Error::NotFound { what: "registration" });
                Answer::Requested(ticket, if script.is_yes() { Ok(None) } else { refused() })
            }
        }
    }

    /// Pulls as the connection does.
    fn pump(&mut self, script: &mut Script<'_>) {
        for turn in 0.. {
            assert!(turn < TURNS_MAX, "a session must come to rest");
            let want = self.look(|session, cx, out| session.want(cx, out));
            let Some(want) = want else {
                let Some(call) = self.out.call.take() else { return };
                let answer = self.answer(call, script);
                self.input(Input::Answer(answer));
                continue;
            };
            assert!(self.out.close.is_none(), "nothing is wanted after the end");
            let session = self.session.as_ref().expect("a session");
            assert!(!self.world.is_held(&want.regid), "it takes nothing now");
            let queue = session.followings(want.feed)[want.at].queue.id();
            let pulled = self.world.pull(&queue, &want);
            self.look(|session, cx, out| session.fed(cx, want, pulled, out));
        }
    }

    /// The connection has ended; the device opens another one.
    fn come_back(&mut self, script: &mut Script<'_>) {
        let parked = self.session.take().and_then(Session::into_parked);
        self.out.clear();
        self.out.bytes.clear();
        self.world.forget_followed();
        self.now_s += 1;
        (self.is_closed, self.farewell) = (false, None);
        let parked: Option<Parked> = parked.filter(|_| script.is_yes());
        if parked.is_none() {
            self.connect = agreed(script);
        }
        let Granted { terms, .. } =
            handshake::judge(&self.connect, &self.bounds).expect("a good CONNECT");
        (self.client, self.server) = (client_of(&self.connect), server_of(&self.connect));
        self.resent.clear();
        let session = match parked {
            None => Session::new(terms, self.now_s),
            Some(parked) => {
                let standings = self.world.standings();
                Session::restored(terms, self.now_s, parked, standings, &mut self.out)
            }
        };
        self.session = Some(session);
        self.out.effects.drain(..).for_each(|effect| self.world.effect(effect));
    }
}

/// What may become of an upload.
fn uploaded(upload: &idl::Upload, script: &mut Script<'_>) -> Result<Uploaded, service::Error> {
    let verdict = match script.byte() % 5 {
        0 => Verdict::Taken,
        1 => Verdict::TooFast,
        2 => Verdict::Behind,
        3 => Verdict::OutOfStep,
        _ => return Err(service::Error::NotFound { what: "registration" }),
    };
    let fate = || Fate { outcome: Err("x".repeat(120).into()), seq: None };
    let fates = upload.edits.iter().take(KEPT_MAX).map(|_| (u64::MAX >> 1, fate())).collect();
    Ok(Uploaded { verdict, fates, next: 1 })
}

/// All the bits that stand for queues.
const ANY_QUEUE: u64 = !0xFF;
/// What ends a connection before a drain does.
const ENDS: u64 = Reasons::TAKEN_OVER.0 | Reasons::REVOKED.0;
const NEWS: Reasons = Reasons(Reasons::DELIVER.0 | ANY_QUEUE);
const STEPS_MAX: usize = 400;
const TURNS_MAX: usize = 10_000;
const FILTERS: [&str; 8] =
    ["push", "push/demo", "push/other", "topic/demo/a", "topic/other/b", "down", "topic/a", "x/#"];
const TOPICS: [&str; 3] = ["a", "b", "c"];

/// A request of one of the kinds from 12 on.
fn later(kind: usize, regid: String) -> idl::Up {
    let mut up = idl::Up { request: Some(2), ..idl::Up::default() };
    let alias_name = "a".to_owned();
    match kind {
        0 => {
            let (paused, start_minute, end_minute, zone) = (Some(true), None, None, None);
            up.accept = Some(idl::Accept { regid, paused, start_minute, end_minute, zone });
        }
        1 => {
            let (message, kind) = (vec![1; 15], idl::EventKind::CLICKED);
            up.event = Some(idl::Event { regid, message, kind });
        }
        2 => {
            let seal = idl::SealOffer { app_key: 1, public_key: vec![9; 32] };
            up.rekey = Some(idl::Rekey { regid, seal, proof: vec![1; 16] });
        }
        3 => up.upload = Some(idl::Upload { regid, alias_name, epoch: 1, edits: Vec::new() }),
        _ => {
            let (collection, ranges) = ("c".to_owned(), Vec::new());
            let (epoch, seq) = (1, 1);
            up.repair = Some(idl::Repair { regid, alias_name, collection, epoch, seq, ranges });
        }
    }
    up
}
