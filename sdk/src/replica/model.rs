//! A naive gateway that loses, repeats and reorders its own memory, against the replica: whatever happens, each
//! message is given to the app exactly once, and a quiet gateway drains in bounded turns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::tests::{delta, follow, frame, ids, jump, message, topic, unfollow};
use super::*;
use crate::random::Random;

/// One queue as the gateway has it.
struct Log {
    epoch: u32,
    entries: Vec<Content>,
}

#[derive(Clone)]
enum Content {
    Message(String),
    Follow(QueueName, u32, u64),
    Unfollow(QueueName),
    Skipped,
}

enum Down {
    Deltas(idl::Deltas),
    Resumed,
}

struct World {
    random: Random,
    logs: BTreeMap<QueueName, Log>,
    /// What the registration follows, and how far the gateway has sent; `None`: the device has no position.
    sent: BTreeMap<QueueName, Option<(u32, u64)>>,
    wire: VecDeque<Down>,
    replica: Replica,
    stored: Vec<u8>,
    given: Vec<String>,
    /// What the device must get.
    owed: BTreeSet<String>,
    count: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let names = [QueueName::Own, QueueName::All, topic("a"), topic("b")];
        let log = |name| (name, Log { epoch: 1, entries: Vec::new() });
        let mut world = Self {
            random: Random::seeded(seed),
            logs: names.into_iter().map(log).collect(),
            sent: [(QueueName::Own, None), (QueueName::All, None)].into(),
            wire: VecDeque::new(),
            replica: Replica::new(State::default()),
            stored: State::default().to_bytes("d"),
            given: Vec::new(),
            owed: BTreeSet::new(),
            count: 0,
        };
        world.reconnect();
        world
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.next() % bound
    }

    fn any_queue(&mut self) -> QueueName {
        let at = self.below(self.logs.len() as u64) as usize;
        self.logs.keys().nth(at).unwrap().clone()
    }

    fn act(&mut self) {
        match self.below(100) {
            0..25 => self.append(),
            25..30 => {
                let queue = self.any_queue();
                self.log(&queue).entries.push(Content::Skipped);
            }
            30..35 => self.change_following(),
            35..60 => self.send(),
            60..64 => self.lose(),
            64..67 => self.raise_epoch(),
            67..94 => self.deliver(),
            94..97 => self.reconnect(),
            _ => self.crash(),
        }
    }

    fn log(&mut self, queue: &QueueName) -> &mut Log {
        self.logs.get_mut(queue).unwrap()
    }

    /// One message, into one or two queues.
    fn append(&mut self) {
        self.count += 1;
        let id = format!("m{}", self.count);
        for _ in 0..=self.below(2) {
            let queue = self.any_queue();
            self.log(&queue).entries.push(Content::Message(id.clone()));
            if self.sent.contains_key(&queue) {
                self.owed.insert(id.clone());
            }
        }
    }

    /// Only of a topic of which all has been given, so that what is owed stays simple to say.
    fn change_following(&mut self) {
        let name = if self.below(2) == 0 { "a" } else { "b" };
        let queue = topic(name);
        let (epoch, head) = (self.logs[&queue].epoch, self.logs[&queue].entries.len() as u64);
        if !self.sent.contains_key(&queue) {
            let control = Content::Follow(queue.clone(), epoch, head);
            self.log(&QueueName::Own).entries.push(control);
            self.sent.insert(queue, Some((epoch, head)));
            return;
        }
        if self.held(&queue) == head {
            self.log(&QueueName::Own).entries.push(Content::Unfollow(queue.clone()));
            self.sent.remove(&queue);
        }
    }

    /// A delta of one followed queue: as it should be, or with an overlap.
    fn send(&mut self) {
        let at = self.below(self.sent.len() as u64) as usize;
        let queue = self.sent.keys().nth(at).unwrap().clone();
        let overlap = self.below(8).saturating_sub(4);
        let share = self.below(4) + 1;
        self.push(&queue, overlap, share);
    }

    fn push(&mut self, queue: &QueueName, overlap: u64, share: u64) {
        if !self.is_open(queue) {
            return;
        }
        let log = &self.logs[queue];
        let head = log.entries.len() as u64;
        let (after, is_jump) = match self.sent[queue] {
            Some((epoch, seq)) if epoch == log.epoch => (seq, false),
            // Behind what the device has for sure: a jump would hide what was lost on the way.
            Some((_, seq)) => (seq.min(self.held(queue)).saturating_sub(3), true),
            None => (0, true),
        };
        let after = if is_jump { after } else { after.saturating_sub(overlap) };
        let to = after + (head - after).div_ceil(share);
        if to == after && !is_jump {
            return;
        }
        let entries = (after..to).filter_map(|at| match &log.entries[at as usize] {
            Content::Message(id) => Some(message(at + 1, id)),
            Content::Follow(queue, epoch, since) => Some(follow(at + 1, queue, *epoch, *since)),
            Content::Unfollow(queue) => Some(unfollow(at + 1, queue)),
            Content::Skipped => None,
        });
        let epoch = log.epoch;
        let mut delta = delta(queue, epoch, (after + 1, to), entries.collect());
        if is_jump {
            delta = jump(idl::JumpReason::NEW, delta);
        }
        self.wire.push_back(Down::Deltas(frame(vec![delta])));
        self.sent.insert(queue.clone(), Some((epoch, to)));
    }

    fn held(&self, queue: &QueueName) -> u64 {
        let positions = self.replica.positions();
        let at = positions.values().find_map(|queues| queues.get(queue));
        at.map_or(0, |at| at.seq)
    }

    /// A topic's deltas wait until the control entry that began it has been sent.
    fn is_open(&self, queue: &QueueName) -> bool {
        let own = &self.logs[&QueueName::Own].entries;
        let sent = self.sent[&QueueName::Own].map_or(0, |(_, seq)| seq as usize);
        own[sent..].iter().all(|content| match content {
            Content::Follow(followed, ..) => followed != queue,
            Content::Message(_) | Content::Unfollow(_) | Content::Skipped => true,
        })
    }

    /// A frame disappears, which MQTT does not do: a gap follows.
    fn lose(&mut self) {
        let at = self.below(4) as usize;
        if let Some(Down::Deltas(_)) = self.wire.get(at) {
            self.wire.remove(at);
        }
    }

    fn raise_epoch(&mut self) {
        let queue = self.any_queue();
        self.log(&queue).epoch += 1;
    }

    fn deliver(&mut self) {
        let Some(down) = self.wire.pop_front() else {
            return;
        };
        let resumed = idl::Resumed { regids: Some(vec!["r1".into()]) };
        let outcome = match down {
            Down::Deltas(deltas) => self.replica.deltas(deltas),
            Down::Resumed => self.replica.resumed(resumed),
        };
        self.handle(outcome.unwrap());
    }

    fn handle(&mut self, outcome: Outcome) {
        self.given.extend(ids(&outcome));
        if let Some(state) = self.replica.unsaved() {
            self.stored = state.to_bytes("d");
            self.replica.saved();
        }
        for up in outcome.send {
            for stated in up.positions.unwrap().registrations {
                self.adopt(&stated.positions);
            }
            self.wire.push_back(Down::Resumed);
        }
    }

    /// What the device states wins.
    fn adopt(&mut self, stated: &[idl::Position]) {
        for (queue, sent) in &mut self.sent {
            let position = stated.iter().find(|position| position.queue == queue.to_idl());
            *sent = position.map(|position| (position.epoch as u32, position.seq as u64));
        }
    }

    fn reconnect(&mut self) {
        self.wire.clear();
        assert!(self.replica.begin().resume.is_some());
        let outcome = self.replica.ask_positions().unwrap();
        self.handle(outcome);
    }

    fn crash(&mut self) {
        self.replica = Replica::new(State::from_bytes("d", &self.stored).unwrap());
        self.reconnect();
    }

    /// No more losses: everything must arrive in bounded turns.
    fn drain(&mut self) {
        self.reconnect();
        for _ in 0..20 {
            for queue in self.sent.keys().cloned().collect::<Vec<_>>() {
                self.push(&queue, 0, 1);
            }
            while !self.wire.is_empty() {
                self.deliver();
            }
        }
    }
}

#[test]
fn each_message_is_given_exactly_once_whatever_happens() {
    for seed in 0..600 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.act();
        }
        world.drain();
        let given: BTreeSet<String> = world.given.iter().cloned().collect();
        assert_eq!(given.len(), world.given.len(), "seed {seed}: given twice");
        let missing: Vec<&String> = world.owed.difference(&given).collect();
        assert!(missing.is_empty(), "seed {seed}: missing {missing:?}");
        for (queue, at) in &world.replica.positions()[&RegId::from("r1")] {
            let log = &world.logs[queue];
            assert_eq!((at.epoch, at.seq), (log.epoch, log.entries.len() as u64), "seed {seed}");
            assert!(world.sent.contains_key(queue), "seed {seed}");
        }
    }
}
