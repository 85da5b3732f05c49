//! A device of the demo app in one of three ways of use: frames, plain MQTT 3.1.1, plain MQTT 5.
//! It acknowledges what it gets, and goes away and comes back where it was.
#![allow(dead_code, reason = "every test crate uses its own part of it")]

use std::collections::BTreeMap;

use carillon_wire::idl;

use crate::{
    support::{DEADLINE, Device, Node, poll_until},
    wirelab::{
        bytes::Version,
        frames::{self, Framed},
        seen::{Push, Seen},
        wire::{Wire, device_connect},
    },
};

/// How a device uses its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Frames,
    Plain(Version),
}

/// All of them.
pub const KINDS: [Kind; 3] = [Kind::Frames, Kind::Plain(Version::V311), Kind::Plain(Version::V5)];

enum Link {
    Away,
    Frames(Framed),
    Plain(Wire),
}

/// Kind of a queue and its name.
type QueueKey = (i32, Option<String>);

/// What a device has got since it was asked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Got {
    /// Payloads of messages, as they came.
    pub messages: Vec<String>,
    /// Recall entries.
    pub recalls: usize,
}

/// A device with one registration.
pub struct Phone {
    pub regid: String,
    pub kind: Kind,
    device: Device,
    link: Link,
    /// Of frames: where it stands.
    positions: BTreeMap<QueueKey, idl::Position>,
    /// Of plain use: what it subscribes.
    filters: Vec<String>,
}

impl Phone {
    /// A new device, connected.
    pub async fn new(node: &Node, kind: Kind) -> Self {
        let mut phone = Self::away(node, kind).await;
        phone.come(node).await;
        phone
    }

    /// A new device that was never connected.
    pub async fn away(node: &Node, kind: Kind) -> Self {
        let device = node.create_device().await;
        Self {
            regid: device.regid.clone(),
            kind,
            device,
            link: Link::Away,
            positions: BTreeMap::new(),
            filters: vec!["push".to_owned()],
        }
    }

    pub fn is_here(&self) -> bool {
        !matches!(self.link, Link::Away)
    }

    /// Connects and goes on where it was.
    pub async fn come(&mut self, node: &Node) {
        match self.kind {
            Kind::Frames => {
                let mut framed = Framed::mute(node, &self.device).await;
                framed.say(&frames::resume(0)).await;
                let (id, down) = framed.down().await;
                framed.wire.ack(id).await;
                assert!(down.ask_positions.is_some(), "{down:?}");
                let positions = self.positions.values().cloned().collect();
                let regid = self.regid.clone();
                let stated = idl::RegistrationPositions { gathered: None, regid, positions };
                framed.say(&frames::positions(vec![stated])).await;
                let (id, down) = framed.down().await;
                framed.wire.ack(id).await;
                assert!(down.resumed.is_some(), "{down:?}");
                self.link = Link::Frames(framed);
            }
            Kind::Plain(version) => {
                let connect = device_connect(&self.device, version).persistent(3_600);
                let (mut wire, connack) = Wire::greet(node.listen().mqtt, &connect).await;
                assert_eq!(connack.code, 0);
                // A session that is there has its subscriptions, and may deliver at once.
                if !connack.is_present {
                    let filters: Vec<&str> = self.filters.iter().map(String::as_str).collect();
                    let codes = wire.subscribe(&filters, 1).await;
                    assert!(codes.iter().all(|code| *code == 1), "{codes:?}");
                }
                self.link = Link::Plain(wire);
            }
        }
    }

    /// Disconnects.
    pub async fn go(&mut self, node: &Node) {
        match std::mem::replace(&mut self.link, Link::Away) {
            Link::Away => {}
            Link::Frames(framed) => framed.wire.disconnect().await,
            Link::Plain(wire) => wire.disconnect().await,
        }
        node.wait_until_online(&self.regid, false).await;
    }

    /// Comes, is given what there is, and goes without a word.
    pub async fn peek(&mut self, node: &Node) {
        self.come(node).await;
        match &mut self.link {
            Link::Away => {}
            Link::Frames(framed) => drop(framed.wire.settle().await),
            Link::Plain(wire) => drop(wire.settle().await),
        }
        self.go(node).await;
    }

    /// The device itself begins to follow a topic.
    pub async fn subscribe(&mut self, topic: &str) {
        let regid = self.regid.clone();
        match &mut self.link {
            Link::Away => panic!("it is away"),
            Link::Frames(framed) => {
                let result = framed.ask(frames::subscribe(&regid, &[topic])).await;
                assert_eq!(result.code, idl::ResultCode::OK);
            }
            Link::Plain(wire) => {
                let filter = format!("topic/{topic}");
                assert_eq!(wire.subscribe(&[&filter], 1).await, [1]);
                self.filters.push(filter);
            }
        }
    }

    /// The device itself leaves a topic that it subscribed to.
    pub async fn unsubscribe(&mut self, topic: &str) {
        let regid = self.regid.clone();
        match &mut self.link {
            Link::Away => panic!("it is away"),
            Link::Frames(framed) => {
                let result = framed.ask(frames::unsubscribe(&regid, &[topic])).await;
                assert_eq!(result.code, idl::ResultCode::OK);
            }
            Link::Plain(wire) => {
                let filter = format!("topic/{topic}");
                let codes = wire.unsubscribe(&[&filter]).await;
                assert!(codes.iter().all(|code| *code == 0), "{codes:?}");
                self.filters.retain(|one| *one != filter);
            }
        }
    }

    /// Waits for so many messages, and for whatever else there is.
    pub async fn take(&mut self, count: usize) -> Got {
        let mut got = Got::default();
        let all = poll_until(DEADLINE, async || {
            let more = self.take_some().await;
            let is_quiet = more == Got::default();
            got.messages.extend(more.messages);
            got.recalls += more.recalls;
            (is_quiet && got.messages.len() >= count).then_some(())
        });
        let is_whole = all.await.is_some();
        assert!(is_whole, "{:?} got {got:?} only, not {count}", self.kind);
        got.messages.sort();
        got
    }

    /// What is there now, acknowledged.
    async fn take_some(&mut self) -> Got {
        let mut got = Got::default();
        match &mut self.link {
            Link::Away => {}
            Link::Plain(wire) => {
                for push in wire.settled_pushes().await {
                    wire.ack(push.id).await;
                    got.messages.push(String::from_utf8(push.payload).expect("text"));
                }
            }
            Link::Frames(framed) => {
                let mut all = Vec::new();
                while let Some(deltas) = framed.early_deltas().await {
                    all.push(deltas);
                }
                let pushes = framed.wire.settle().await.into_iter().map(push_of);
                for push in pushes.collect::<Vec<_>>() {
                    framed.wire.ack(push.id).await;
                    all.extend(frames::decode(&push).deltas);
                }
                all.into_iter().for_each(|deltas| self.apply(deltas, &mut got));
            }
        }
        got
    }

    /// Applies deltas as the protocol says; a gap or a double fails the test.
    fn apply(&mut self, deltas: idl::Deltas, got: &mut Got) {
        assert_eq!(deltas.regid, self.regid);
        for delta in deltas.deltas {
            let key = |queue: &idl::Queue| (queue.kind.0, queue.name.clone());
            let known = self.positions.get(&key(&delta.queue)).map(|known| known.seq);
            if delta.jump.is_none() {
                assert_eq!(known.map(|seq| seq + 1), Some(delta.from_seq), "a gap");
            }
            let (queue, epoch, seq) = (delta.queue, delta.epoch, delta.to_seq);
            let tag = Some(delta.tag);
            self.positions.insert(key(&queue), idl::Position { queue, epoch, seq, tag });
            for entry in delta.entries {
                let text = entry.payload.map(|bytes| String::from_utf8(bytes).expect("text"));
                got.messages.extend(text);
                got.recalls += usize::from(entry.recall.is_some());
                if let Some(idl::Follow { queue, epoch, since: seq }) = entry.follow {
                    let position = idl::Position { queue: queue.clone(), epoch, seq, tag: None };
                    self.positions.insert(key(&queue), position);
                }
                if let Some(unfollow) = entry.unfollow {
                    self.positions.remove(&key(&unfollow.queue));
                }
            }
        }
    }
}

fn push_of(seen: Seen) -> Push {
    match seen {
        Seen::Publish(push) => push,
        other => panic!("not PUBLISH: {other:?}"),
    }
}
