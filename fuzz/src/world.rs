//! What a session sees of the node: registrations, queues, stored pointers. And of its
//! device: a client that reads its bytes and keeps the rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use carillon::{
    base::{
        ids::{AppId, MessageId, QueueId, QueueName, RegId},
        metrics::ResumeReason,
    },
    edge::session::{Effect, Want, feeds::Standing, snapshots::Asked},
    queue::{
        collection::{
            change::{Hlc, Value},
            item::{Total, Totals},
        },
        entry::{Body, Entry, Message},
        filter::Attributes,
        plan::Jump,
        position::{Epoch, Position, Seq},
    },
    service::{
        deliver::{Following, Pulled, Start},
        items::ItemView,
        records::{Follow, Registration},
        seals::Sealing,
        snapshots::{Chunk, Gather, Part, Rest},
    },
};
use carillon_wire::mqtt::{Decoder, Packet, Qos, Version};

use super::script::Script;

const EPOCH: Epoch = Epoch(1);

fn at(seq: u64) -> Position {
    Position { epoch: EPOCH, seq: Seq(seq) }
}

fn followings(registration: &Registration) -> Vec<Following> {
    Following::all_of(registration, |name| name.clone().into())
}

fn app(name: &str) -> AppId {
    name.parse().expect("an app")
}

/// The node's side.
#[derive(Default)]
pub struct World {
    pub registrations: Vec<Registration>,
    queues: BTreeMap<QueueId, Vec<Arc<Entry>>>,
    /// By registration and queue, as `Effect::Acknowledge` moves them.
    stored: BTreeMap<(RegId, QueueId), u64>,
    /// What the session follows by its effects.
    followed: BTreeSet<QueueId>,
    /// Registrations that have hours or a pause, and whether they take nothing now.
    gated: BTreeMap<RegId, bool>,
}

impl World {
    /// One registration for each of two apps.
    pub fn new() -> Self {
        let mut world = Self::default();
        world.register(1, "demo");
        world.register(2, "other");
        world
    }

    /// A registration that follows `all`.
    pub fn register(&mut self, byte: u8, name: &str) {
        let queue = QueueName::All(app(name));
        let regid = RegId([byte; 20]);
        if self.registrations.iter().any(|one| one.regid == regid) {
            return;
        }
        self.registrations.push(Registration {
            regid,
            app: app(name),
            since: at(0),
            control: Seq(0),
            follows: vec![Follow { queue, since: at(0), control: Seq(0) }],
            accept: None,
            seal: None,
            attributes: Attributes::default(),
        });
    }

    /// A registration gets a pause or hours, or is rid of them.
    pub fn pause(&mut self, which: usize) {
        let Some(registration) = self.registrations.get(which) else { return };
        if self.gated.remove(&registration.regid).is_none() {
            self.gated.insert(registration.regid, true);
        }
    }

    /// The hours of a registration that has some begin or end.
    pub fn turn(&mut self, which: usize) {
        let Some(registration) = self.registrations.get(which) else { return };
        self.gated.entry(registration.regid).and_modify(|is_held| *is_held = !*is_held);
    }

    /// Whether a registration takes nothing now.
    pub fn is_held(&self, regid: &RegId) -> bool {
        self.gated.get(regid).copied().unwrap_or(false)
    }

    /// A registration ends. Its name may come back, which in life none does; nothing of it is
    /// known then.
    pub fn unregister(&mut self, which: usize) {
        let gone = self.registrations.remove(which).regid;
        self.stored.retain(|(regid, _), _| *regid != gone);
        self.gated.remove(&gone);
        self.queues.remove(&QueueName::Own(gone).id());
    }

    /// The registration follows one more topic, or no longer; its own queue says so.
    pub fn toggle(&mut self, which: usize, name: &str) {
        let count = self.registrations.len();
        if count == 0 {
            return;
        }
        let which = which % count;
        let topic = name.parse().expect("a topic");
        let queue = QueueName::Topic(self.registrations[which].app.clone(), topic);
        let own = QueueName::Own(self.registrations[which].regid);
        let known = self.registrations[which].follows.iter().position(|one| one.queue == queue);
        let since = at(self.head(&queue.id()));
        let control = match known {
            Some(_) => self.append(&own, Body::Unfollow { queue: queue.clone() }),
            None => self.append(&own, Body::Follow { queue: queue.clone(), since }),
        };
        let registration = &mut self.registrations[which];
        registration.control = Seq(control);
        match known {
            Some(at) => drop(registration.follows.remove(at)),
            None => registration.follows.push(Follow { queue, since, control: Seq(control) }),
        }
    }

    /// A message to one of the queues of a registration.
    pub fn send(&mut self, which: usize, queue: usize, length: usize) {
        let count = self.registrations.len();
        if count == 0 {
            return;
        }
        let followings = followings(&self.registrations[which % count]);
        let queue = followings[queue % followings.len()].queue.name().clone();
        let message = Message::new(MessageId([7; 15]), Bytes::from(vec![b'x'; length]));
        self.append(&queue, Body::Message(message));
    }

    fn append(&mut self, queue: &QueueName, body: Body) -> u64 {
        let entries = self.queues.entry(queue.id()).or_default();
        let seq = entries.len() as u64 + 1;
        entries.push(Arc::new(Entry { position: at(seq), at_ms: 1_000 + seq, body }));
        seq
    }

    fn head(&self, queue: &QueueId) -> u64 {
        self.queues.get(queue).map_or(0, |entries| entries.len() as u64)
    }

    /// All registrations, each where its stored pointers are.
    pub fn standings(&self) -> Vec<Standing> {
        self.registrations.iter().map(|registration| self.standing(registration)).collect()
    }

    fn standing(&self, registration: &Registration) -> Standing {
        let followings = followings(registration);
        let start = |following: &Following| {
            let stored = self.stored.get(&(registration.regid, following.queue.id())).copied();
            let after = stored.unwrap_or(0).max(following.since.seq.0);
            let has_items = self.totals(&following.queue.id()).is_some();
            let is_bare = has_items && stored.is_none();
            let gather = is_bare.then_some(Gather { reason: Jump::New, place: None });
            let reason = ResumeReason::Stored;
            Start { after: at(after), jump: None, reason, is_stored: false, gather }
        };
        Standing {
            regid: registration.regid,
            control: registration.control,
            starts: followings.iter().map(start).collect(),
            heads: followings.iter().map(|one| at(self.head(&one.queue.id()))).collect(),
            followings,
            is_named: true,
            is_gated: self.gated.contains_key(&registration.regid),
            sealing: Sealing::Open,
        }
    }

    /// The queues that have collections: those of one topic.
    pub fn totals(&self, queue: &QueueId) -> Option<Totals> {
        let of = |name: &str| QueueName::Topic(app(name), "c".parse().expect("a topic")).id();
        let collection = "c".parse().expect("a collection");
        let total = Total { collection, items: 1, bytes: 1, digest: 1, last: Seq(0) };
        let totals = Totals { bytes_so_far: 1, collections: vec![total] };
        ["demo", "other"].into_iter().any(|name| of(name) == *queue).then_some(totals)
    }

    /// What comes next of a snapshot.
    pub fn part(&self, asked: &Asked, script: &mut Script<'_>) -> Part {
        let head = self.head(&asked.followings[asked.at].queue.id());
        let (rest, ahead) = (script.below(4), script.below(3) as u64);
        let (reason, after) = (asked.gather.reason, asked.after.seq.0);
        let (at, begins) = match asked.gather.place {
            Some(place) => (place.at, false),
            None => (at((after + ahead).min(head.max(after))), true),
        };
        let value = Value::json(vec![b'x'; 50 * script.below(40)]);
        let (collection, seq, clock) = ("c".parse().expect("a collection"), Seq(1), Hlc(1));
        let item = ItemView { collection, key: "k".into(), seq, value, clock };
        let fits = item.value.bytes.len() + 100 < asked.room;
        let items = if fits { vec![item] } else { Vec::new() };
        let rest = match rest {
            0 => return Part::Later,
            1 => return Part::Deltas,
            2 => Rest::Before(Seq(1)),
            _ => Rest::Until(at.seq),
        };
        Part::Chunk(Chunk { reason, at, begins, items, rest })
    }

    /// What the service pulls for a session.
    pub fn pull(&self, queue: &QueueId, want: &Want) -> Option<Pulled> {
        let entries = self.queues.get(queue)?;
        let next = entries.iter().skip(want.after.0 as usize).take(want.take.entries.max(1));
        let taken: Vec<_> = next.cloned().collect();
        let to = taken.last()?.position;
        let is_all = entries.last().is_some_and(|last| last.position == to);
        Some(Pulled { entries: taken, to, skipped: Vec::new(), is_all, is_torn: false })
    }

    /// Does what a session wants done, and judges it.
    pub fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Acknowledge { regid, queue, position, .. } => {
                assert!(position.seq.0 <= self.head(&queue), "acknowledged before it was there");
                let stored = self.stored.entry((regid, queue)).or_default();
                assert!(*stored <= position.seq.0, "a pointer went back");
                *stored = position.seq.0;
            }
            Effect::Follow(queue) => drop(self.followed.insert(queue.id())),
            Effect::Unfollow(queue) => drop(self.followed.remove(&queue)),
            Effect::Stands(_)
            | Effect::Idle(_)
            | Effect::Reported(_)
            | Effect::Receipt(_)
            | Effect::Gave(_)
            | Effect::GaveUp
            | Effect::Wake(_) => {}
        }
    }

    /// What a session says it hears is what it asked to hear.
    pub fn hears(&self, heard: impl Iterator<Item = QueueId>) {
        assert_eq!(heard.collect::<BTreeSet<_>>(), self.followed, "followers and session differ");
    }

    /// The connection has ended, and with it what it followed.
    pub fn forget_followed(&mut self) {
        self.followed.clear();
    }
}

/// The device's side: reads every byte, and holds the session to MQTT.
pub struct Client {
    decoder: Decoder,
    receive_max: usize,
    /// QoS 1 packet ids that were sent and not acknowledged.
    pub open: BTreeSet<u16>,
    /// Whether it acknowledged only what it was sent: replies are only counted, so that
    /// another one may get more of them than it takes. That is its own affair.
    is_fair: bool,
    is_closed: bool,
}

impl Client {
    pub fn new(version: Version, receive_max: u16, max_packet_bytes: u32) -> Self {
        let decoder = Decoder::client(version, max_packet_bytes);
        let receive_max = usize::from(receive_max);
        Self { decoder, receive_max, open: BTreeSet::new(), is_fair: true, is_closed: false }
    }

    /// It says that it has taken this packet.
    pub fn acknowledges(&mut self, packet_id: u16) {
        self.is_fair &= self.open.remove(&packet_id);
    }

    /// Reads what was written, which must be whole packets within what was agreed.
    pub fn read(&mut self, bytes: &mut BytesMut, resent: &mut BTreeSet<u16>) {
        while !bytes.is_empty() {
            let packet = self.decoder.decode(bytes).expect("our output is MQTT");
            let packet = packet.expect("our output is whole packets");
            assert!(!self.is_closed, "after DISCONNECT came {packet:?}");
            match packet {
                Packet::Publish(publish) if publish.qos == Qos::AtLeastOnce => {
                    let id = publish.packet_id;
                    let is_again = publish.dup && resent.remove(&id);
                    assert!(self.open.insert(id) || is_again, "packet id {id} is in use");
                    let is_in_bounds = self.open.len() <= self.receive_max || !self.is_fair;
                    assert!(is_in_bounds, "over Receive Maximum");
                }
                Packet::Publish(publish) => assert_eq!(publish.qos, Qos::AtMostOnce),
                Packet::Disconnect(_) => self.is_closed = true,
                _ => {}
            }
        }
    }
}
