//! A naive gateway with collections, a device that edits offline, cuts and kills between any two steps: at rest both
//! hold the same, each edit was applied once, and the app heard of all that it can see.

mod app;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use carillon_wire::idl;
use tokio::sync::broadcast::Receiver;

use super::desk::{self, Desk, alias, deltas, repaired_range};
use crate::collections::courier::Errand;
use crate::collections::{Happening, Outcome};
use crate::random::Random;
use crate::replica::tests as frames;

/// One change as the gateway keeps it.
#[derive(Clone)]
struct Entry {
    key: String,
    value: Option<String>,
    /// The change that created the item in its present life.
    born: u64,
    cseq: Option<i64>,
    /// It stands as the device made it.
    is_own: bool,
}

type Items = BTreeMap<String, (u64, String, u64)>;

/// What the gateway sends next.
#[derive(Clone)]
enum Sending {
    Deltas {
        after: u64,
    },
    /// `below`: chunks hold what is older than this.
    Chunks {
        at: u64,
        below: Option<u64>,
    },
}

enum Down {
    Deltas(idl::Deltas),
    Chunk(idl::SnapshotChunk),
    Resumed,
    Answer(Box<Errand>, idl::Result),
}

struct World {
    random: Random,
    epoch: u32,
    log: Vec<Entry>,
    items: Items,
    /// How far the storage writer is.
    fold: usize,
    results: BTreeMap<i64, idl::EditResult>,
    sending: Sending,
    wire: VecDeque<Down>,
    desk: Desk,
    changes: Receiver<Happening>,
    /// What the app has heard.
    heard: BTreeMap<String, String>,
    /// Values that were uploaded and taken, and what the app was told of edits.
    taken: Vec<String>,
    settled: BTreeMap<u64, Outcome>,
    edits: u64,
    count: u64,
    has_poison: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let desk = Desk::new();
        let changes = desk.collections.changes();
        let mut world = Self {
            random: Random::seeded(seed),
            epoch: 1,
            log: Vec::new(),
            items: Items::new(),
            fold: 0,
            results: BTreeMap::new(),
            sending: Sending::Deltas { after: 0 },
            wire: VecDeque::new(),
            desk,
            changes,
            heard: BTreeMap::new(),
            taken: Vec::new(),
            settled: BTreeMap::new(),
            edits: 0,
            count: 0,
            has_poison: seed.is_multiple_of(3),
        };
        world.handle();
        world.reconnect();
        world
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.next() % bound
    }

    fn head(&self) -> u64 {
        self.log.len() as u64
    }

    fn act(&mut self) {
        match self.below(100) {
            0..18 => self.change(),
            18..30 => self.edit(),
            30..50 => self.send(),
            50..75 => self.deliver(),
            75..87 => self.ask(),
            87..91 => self.reconnect(),
            91..95 => self.restart(),
            95..97 => {
                self.epoch += 1;
                self.reconnect();
            }
            97 => self.spoil(),
            98 => self.distrust(),
            _ => self.fold = (self.fold + self.below(8) as usize).min(self.log.len()),
        }
        self.hear();
    }

    fn any_key(&mut self) -> String {
        format!("k{}", self.below(12))
    }

    fn any_value(&mut self) -> String {
        self.count += 1;
        let poison = if self.has_poison && self.below(8) == 0 { " poison" } else { "" };
        format!("v{}{poison}", self.count)
    }

    /// An app server's, or another device's.
    fn change(&mut self) {
        let (key, value) = (self.any_key(), self.any_value());
        let value = (self.below(4) > 0).then_some(value);
        self.append(&key, value, None, false);
    }

    fn append(&mut self, key: &str, value: Option<String>, cseq: Option<i64>, is_own: bool) -> u64 {
        let seq = self.head() + 1;
        let before = self.items.get(key);
        let born = before.map_or(seq, |(_, _, born)| *born);
        match &value {
            Some(value) => drop(self.items.insert(key.to_owned(), (seq, value.clone(), born))),
            None => drop(self.items.remove(key)),
        }
        self.log.push(Entry { key: key.to_owned(), value, born, cseq, is_own });
        seq
    }

    fn edit(&mut self) {
        let (key, value) = (self.any_key(), self.any_value());
        self.edits += 1;
        match self.below(4) {
            0 => self.desk.delete(&key),
            _ => self.desk.put(&key, &value),
        };
    }

    /// One frame, as it should be or with an overlap.
    fn send(&mut self) {
        match self.sending.clone() {
            Sending::Chunks { at, below } => self.send_chunk(at, below),
            Sending::Deltas { after } => {
                let overlap = self.below(6).saturating_sub(3).min(after);
                let to = after + (self.head() - after).div_ceil(self.below(3) + 1);
                self.send_delta(after - overlap, to);
            }
        }
    }

    fn send_delta(&mut self, after: u64, to: u64) {
        let entries = (after..to).filter_map(|at| self.entry(after, at as usize)).collect();
        let mut frame = deltas(vec![desk::delta(self.epoch, (after + 1, to), entries)]);
        if to == self.head() && self.head() > 0 {
            let rows = self.items.iter().map(|(key, (seq, ..))| (key.clone(), *seq)).collect();
            let digest = desk::collection_digest(self.head(), rows);
            frame.digests =
                Some(vec![idl::CollectionDigest { epoch: self.epoch as i32, ..digest }]);
        }
        self.wire.push_back(Down::Deltas(frame));
        self.sending = Sending::Deltas { after: to };
    }

    /// Skips what a newer change of its item follows, and what was created and deleted behind the device's position.
    fn entry(&self, after: u64, at: usize) -> Option<idl::Entry> {
        let Entry { key, value, born, cseq, is_own } = &self.log[at];
        let is_followed = self.log[at + 1..].iter().any(|later| later.key == *key);
        if is_followed || (value.is_none() && *born > after) {
            return None;
        }
        let mut entry = desk::change(at as u64 + 1, key, value.as_deref());
        let change = entry.change.as_mut().unwrap();
        change.cseq = *cseq;
        if *is_own {
            change.value = None;
        }
        Some(entry)
    }

    fn send_chunk(&mut self, at: u64, below: Option<u64>) {
        let mut folded = Items::new();
        for (seq, entry) in self.log[..self.fold].iter().enumerate() {
            match &entry.value {
                Some(value) => {
                    folded.insert(entry.key.clone(), (seq as u64 + 1, value.clone(), 0));
                }
                None => drop(folded.remove(&entry.key)),
            }
        }
        let mut newest: Vec<_> = folded.into_iter().collect();
        newest.retain(|(_, (seq, ..))| below.is_none_or(|below| *seq < below));
        newest.sort_by_key(|(_, (seq, ..))| std::cmp::Reverse(*seq));
        let is_last = newest.len() <= 3;
        newest.truncate(3);
        let oldest = newest.last().map_or(0, |(_, (seq, ..))| *seq);
        let items = newest.into_iter().map(|(key, (seq, value, _))| idl::Item {
            collection: "notes".into(),
            key,
            seq: seq as i64,
            value: value.into_bytes(),
            format: None,
            clock: None,
        });
        self.wire.push_back(Down::Chunk(idl::SnapshotChunk {
            regid: "r1".into(),
            queue: alias().to_idl(),
            jump: idl::JumpReason::OVERFLOW,
            epoch: self.epoch as i32,
            at_seq: at as i64,
            tag: frames::tag(self.epoch, at).to_vec(),
            items: items.collect(),
            cursor: (!is_last).then(|| oldest.to_be_bytes().to_vec()),
            until_seq: is_last.then_some(self.log.len() as i64),
            begins: below.is_none().then_some(true),
        }));
        self.sending = match is_last {
            true => Sending::Deltas { after: at },
            false => Sending::Chunks { at, below: Some(oldest) },
        };
    }

    fn deliver(&mut self) {
        let Some(down) = self.wire.pop_front() else { return };
        if self.below(20) == 0 && !matches!(down, Down::Answer(..)) {
            self.lose(down);
            return self.restart();
        }
        let sent = self.apply(down);
        if self.below(20) == 0 {
            return self.restart();
        }
        self.stated(sent);
    }

    fn apply(&mut self, down: Down) -> Vec<idl::Up> {
        match down {
            Down::Deltas(frame) => self.desk.take(frame),
            Down::Chunk(chunk) => self.desk.chunk(chunk),
            Down::Resumed => {
                let regids = Some(vec!["r1".into()]);
                drop(self.desk.replica.resumed(idl::Resumed { regids }).unwrap());
                Vec::new()
            }
            Down::Answer(errand, result) => {
                self.desk.answer(&errand, result);
                Vec::new()
            }
        }
    }

    /// Applied, and killed before it is durable.
    fn lose(&mut self, down: Down) {
        match down {
            Down::Deltas(frame) => drop(self.desk.replica.deltas(frame).unwrap()),
            Down::Chunk(chunk) => drop(self.desk.replica.snapshot(chunk).unwrap()),
            Down::Resumed | Down::Answer(..) => {}
        }
    }

    fn stated(&mut self, sent: Vec<idl::Up>) {
        for up in sent {
            let registrations = up.positions.unwrap().registrations;
            for registration in registrations.iter().filter(|one| one.regid == "r1") {
                self.adopt(registration);
            }
            self.wire.push_back(Down::Resumed);
        }
    }

    /// What the device states wins.
    fn adopt(&mut self, stated: &idl::RegistrationPositions) {
        let gathered = stated.gathered.iter().flatten().next();
        if let Some(gathered) = gathered.filter(|one| one.epoch == self.epoch as i32) {
            let at = gathered.at_seq as u64;
            self.sending = match (&gathered.cursor, gathered.reached_seq) {
                (Some(cursor), _) => {
                    let below = u64::from_be_bytes(cursor[..].try_into().unwrap());
                    Sending::Chunks { at, below: Some(below) }
                }
                (None, reached) => Sending::Deltas { after: reached.unwrap() as u64 },
            };
            return;
        }
        let position = stated.positions.iter().find(|one| one.queue == alias().to_idl());
        let continues = position.filter(|one| one.epoch == self.epoch as i32);
        self.sending = match continues {
            Some(position) if self.below(6) > 0 => Sending::Deltas { after: position.seq as u64 },
            Some(_) | None => Sending::Chunks { at: self.fold as u64, below: None },
        };
    }

    fn reconnect(&mut self) {
        self.wire.clear();
        assert!(self.desk.replica.begin().resume.is_some());
        let outcome = self.desk.replica.ask_positions().unwrap();
        self.sending = Sending::Chunks { at: self.fold as u64, below: None };
        self.stated(outcome.send);
    }

    fn restart(&mut self) {
        self.hear();
        self.desk.reopen();
        self.changes = self.desk.collections.changes();
        self.handle();
        self.reconnect();
    }

    /// The app's handler cannot take poison.
    fn handle(&mut self) {
        desk::fail_on(&self.desk, "poison");
    }

    /// One question to the gateway; its answer may be lost.
    fn ask(&mut self) {
        self.desk.pass_ms(self.random.next() % 200_000);
        if self.wire.iter().any(|down| matches!(down, Down::Answer(..))) {
            return;
        }
        let Some(errand) = self.desk.errand() else { return };
        let mut result = desk::ok();
        if let Some(upload) = &errand.up.upload {
            result.edits = Some(self.upload(upload));
            let next = self.results.keys().max().map_or(1, |last| last + 1);
            result.next_cseq = upload.edits.is_empty().then_some(next);
        }
        if let Some(repair) = &errand.up.repair {
            result.ranges = Some(self.repair(repair));
        }
        self.wire.push_back(Down::Answer(Box::new(errand), result));
    }

    fn upload(&mut self, upload: &idl::Upload) -> Vec<idl::EditResult> {
        let edits = upload.edits.iter();
        edits.map(|edit| self.decide(edit)).collect()
    }

    /// Exactly once, with any outcome.
    fn decide(&mut self, edit: &idl::Edit) -> idl::EditResult {
        if let Some(known) = self.results.get(&edit.cseq) {
            return known.clone();
        }
        let highest = self.results.keys().last().copied().unwrap_or(0);
        assert_eq!(edit.cseq, highest + 1, "in order, with no hole");
        let (key, cseq) = (edit.key.as_str(), Some(edit.cseq));
        let value = edit.value.clone().map(|value| String::from_utf8(value).unwrap());
        self.taken.extend(value.clone());
        let (outcome, seq) = match (self.below(8), value) {
            (0, _) => (idl::EditOutcome::LOST, None),
            (1, _) => (idl::EditOutcome::INVALID, None),
            (2, Some(value)) => {
                let seq = self.append(key, Some(format!("{value} merged")), cseq, false);
                (idl::EditOutcome::MERGED, Some(seq))
            }
            (3, Some(value)) => {
                let seq = self.append(&format!("{key}~"), Some(value), cseq, false);
                (idl::EditOutcome::COPIED, Some(seq))
            }
            (_, value) => {
                let seq = self.append(key, value, cseq, true);
                (idl::EditOutcome::APPLIED, Some(seq))
            }
        };
        let result = desk::result(edit.cseq, outcome, seq);
        self.results.insert(edit.cseq, result.clone());
        result
    }

    fn repair(&mut self, repair: &idl::Repair) -> Vec<idl::RepairedRange> {
        let rows: Vec<_> = self.items.iter().map(|(key, (seq, ..))| (key.clone(), *seq)).collect();
        let value = |key: &str| self.items[key].1.clone();
        let ranges = repair.ranges.iter();
        ranges.filter_map(|range| repaired_range("notes", range, &rows, value)).collect()
    }

    /// No more changes and no more losses: a bounded number of turns must do.
    fn drain(&mut self) {
        self.fold = self.log.len();
        self.reconnect();
        for _ in 0..40 {
            self.drain_once();
        }
    }

    fn drain_once(&mut self) {
        self.desk.pass_ms(6 * 60 * 1000);
        self.ask();
        for _ in 0..8 {
            match self.sending.clone() {
                Sending::Chunks { at, below } => self.send_chunk(at, below),
                Sending::Deltas { after } if after < self.head() => {
                    self.send_delta(after, self.head())
                }
                Sending::Deltas { .. } => {}
            }
        }
        // The digest that every resume ends with.
        if matches!(self.sending, Sending::Deltas { .. }) && self.head() > 0 {
            self.send_delta(self.head(), self.head());
        }
        while let Some(down) = self.wire.pop_front() {
            let sent = self.apply(down);
            self.stated(sent);
        }
        self.hear();
    }
}

#[test]
fn i10_s14_s19_s20_device_and_gateway_are_equal_at_rest_whatever_happens() {
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..250 {
            world.act();
        }
        world.drain();
        let server: BTreeMap<_, _> =
            world.items.iter().map(|(key, (_, value, _))| (key.clone(), value.clone())).collect();
        assert_eq!(world.visible(), server, "seed {seed}: items");
        assert_eq!(world.heard, server, "seed {seed}: what the app heard");
        assert_eq!(world.desk.shelf().pending().unwrap(), 0, "seed {seed}: edits left");
        assert_eq!(world.results.len() as u64, world.edits, "seed {seed}: edits lost");
        let once: BTreeSet<_> = world.taken.iter().collect();
        assert_eq!(once.len(), world.taken.len(), "seed {seed}: taken twice");
        assert_eq!(world.settled.len() as u64, world.edits, "seed {seed}: the app was told");
        for item in world.desk.shelf().items("notes").unwrap() {
            let is_poison = String::from_utf8_lossy(&item.value.bytes).contains("poison");
            // Our own edits are not given to our own handler.
            assert!(!item.is_skipped || is_poison, "seed {seed}: {item:?}");
        }
    }
}

const SEEDS: u64 = 60;
