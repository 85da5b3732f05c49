//! A device without a network: its replica and its collections, and frames for them.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use carillon_wire::ranges::{Answer, KeyRange};
use carillon_wire::{frame, idl};

use crate::collections::courier::{Errand, Next, Verdict};
use crate::collections::{Collections, Shelf};
use crate::items::{Item, Side, Value};
use crate::names::{QueueName, RegId};
use crate::replica::Replica;
use crate::replica::tests as frames;
use crate::state::State;

pub const ALIAS: &str = "alice";
const R: &str = "r1";

pub struct Desk {
    pub replica: Replica,
    pub collections: Collections,
    pub clock: Arc<AtomicU64>,
    pub directory: Arc<tempfile::TempDir>,
    file: &'static str,
}

impl Desk {
    /// Online, at this seq of epoch 1 of the alias.
    pub fn at(seq: u64) -> Self {
        let mut desk = Self::new();
        desk.take(deltas(vec![frames::jump(
            idl::JumpReason::NEW,
            delta(1, (seq + 1, seq), vec![]),
        )]));
        desk
    }

    pub fn new() -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        Self::open(directory, Arc::new(AtomicU64::new(1_000_000)), "device.db")
    }

    fn open(directory: Arc<tempfile::TempDir>, clock: Arc<AtomicU64>, file: &'static str) -> Self {
        let collections = open(&directory.path().join(file), &clock);
        let state = collections.load_state().unwrap();
        let state =
            state.map_or_else(State::default, |bytes| State::from_bytes("d", &bytes).unwrap());
        let mut replica = Replica::new(state);
        replica.begin();
        let regids = Some(vec![R.to_owned()]);
        replica.resumed(idl::Resumed { regids }).unwrap();
        Self { replica, collections, clock, directory, file }
    }

    /// As a process that was killed starts again.
    pub fn reopen(&mut self) {
        let again = Self::open(self.directory.clone(), self.clock.clone(), self.file);
        *self = again;
    }

    /// Applies a frame and makes it durable; what is to be sent.
    pub fn take(&mut self, frame: idl::Deltas) -> Vec<idl::Up> {
        let outcome = self.replica.deltas(frame).unwrap();
        self.commit(&outcome.steps);
        outcome.send
    }

    pub fn chunk(&mut self, chunk: idl::SnapshotChunk) -> Vec<idl::Up> {
        let outcome = self.replica.snapshot(chunk).unwrap();
        self.commit(&outcome.steps);
        outcome.send
    }

    /// Applies a frame, and is killed before it is durable.
    pub fn lose(&mut self, frame: idl::Deltas) {
        self.replica.deltas(frame).unwrap();
    }

    fn commit(&mut self, steps: &crate::items::Steps) {
        if let Some(state) = self.replica.unsaved() {
            self.collections.commit_steps(&state.to_bytes("d"), steps).unwrap();
            self.replica.saved();
        }
    }

    /// What a process leaves that is killed inside the transaction of a frame.
    pub fn copied_inside_of(&mut self, frame: idl::Deltas) -> Desk {
        let directory = self.directory.clone();
        let handler = move |_: &_| {
            for end in ["", "-wal"] {
                let path = |name: &str| directory.path().join(format!("{name}{end}"));
                std::fs::copy(path("device.db"), path("killed.db")).map_err(|e| e.to_string())?;
            }
            Err("killed".to_owned())
        };
        let mut twin = Self::open(self.directory.clone(), self.clock.clone(), self.file);
        twin.collections.handle_with(handler).unwrap();
        let outcome = twin.replica.deltas(frame).unwrap();
        let state = twin.replica.unsaved().unwrap().to_bytes("d");
        let rolled_back = twin.collections.transact(|work| {
            for step in &outcome.steps.0 {
                work.step(step)?;
            }
            work.tables.set_state(&state)?;
            Err::<(), _>(crate::collections::Error::Version(-1))
        });
        assert!(rolled_back.is_err());
        Self::open(self.directory.clone(), self.clock.clone(), "killed.db")
    }

    pub fn shelf(&self) -> Shelf {
        self.collections.of(&RegId::from(R), ALIAS)
    }

    pub fn put(&self, key: &str, value: &str) -> u64 {
        self.shelf().put("notes", key, Value::json(value.to_owned())).unwrap()
    }

    pub fn delete(&self, key: &str) -> u64 {
        self.shelf().delete("notes", key).unwrap()
    }

    /// `a=1 b=2`.
    pub fn items(&self) -> String {
        text(&self.shelf())
    }

    pub fn position(&self) -> Option<(u32, u64)> {
        let positions = self.replica.positions();
        let queues = positions.get(&RegId::from(R))?;
        let at = queues.get(&QueueName::Alias(ALIAS.into()))?;
        Some((at.epoch, at.seq))
    }

    /// What is to be asked of the gateway now.
    pub fn errand(&self) -> Option<Errand> {
        match self.collections.next_errand(|_| false).unwrap() {
            Next::Ask(errand) => Some(*errand),
            Next::Wait(_) => None,
        }
    }

    pub fn answer(&self, errand: &Errand, result: idl::Result) -> Verdict {
        self.collections.answered(errand, result).unwrap()
    }

    /// As if the gateway had said that it has no uploads of ours.
    pub fn learn(&self) {
        let errand = self.errand().unwrap();
        assert!(errand.up.upload.as_ref().unwrap().edits.is_empty());
        self.answer(&errand, next(1));
    }

    /// Keys and seqs of the items.
    pub fn rows(&self) -> Vec<(String, u64)> {
        self.collections
            .read(|tables| {
                let shelf = tables.shelf(R, ALIAS)?.unwrap();
                Ok(tables.seqs(
                    shelf.copy(Side::Items),
                    "notes",
                    &carillon_wire::ranges::Bounds::everything(),
                )?)
            })
            .unwrap()
    }

    /// Makes an item another one, behind everybody's back.
    pub fn spoil(&self, key: &str, value: Option<&str>) {
        let spoilt = self.collections.transact(|work| {
            let copy = work.tables.shelf(R, ALIAS)?.unwrap().copy(Side::Items);
            let value = value.map(|value| Value::json(value.to_owned()));
            match value {
                Some(value) => {
                    let (collection, key) = ("notes".into(), key.into());
                    work.tables.put(copy, &Item { collection, key, seq: 1, value, clock: 0 })?
                }
                None => work.tables.delete(copy, "notes", key, 0)?,
            }
            Ok(())
        });
        spoilt.unwrap();
    }

    pub fn pass_ms(&self, ms: u64) {
        self.clock.fetch_add(ms, Ordering::Relaxed);
    }
}

fn open(path: &Path, clock: &Arc<AtomicU64>) -> Collections {
    let clock = clock.clone();
    Collections::open_with(path, move || clock.load(Ordering::Relaxed), "OFF").unwrap()
}

/// The gateway expects this cseq.
pub fn next(cseq: i64) -> idl::Result {
    idl::Result { next_cseq: Some(cseq), ..ok() }
}

pub fn text(shelf: &Shelf) -> String {
    let items = shelf.items("notes").unwrap().into_iter();
    let items =
        items.map(|item| format!("{}={}", item.key, String::from_utf8_lossy(&item.value.bytes)));
    items.collect::<Vec<_>>().join(" ")
}

pub fn value(text: &str) -> Option<Value> {
    Some(Value::json(text.to_owned()))
}

pub fn alias() -> QueueName {
    QueueName::Alias(ALIAS.into())
}

pub fn delta(epoch: u32, range: (u64, u64), entries: Vec<idl::Entry>) -> idl::Delta {
    frames::delta(&alias(), epoch, range, entries)
}

pub fn deltas(deltas: Vec<idl::Delta>) -> idl::Deltas {
    frames::frame(deltas)
}

pub fn change(seq: u64, key: &str, value: Option<&str>) -> idl::Entry {
    let kind = if value.is_some() { idl::ChangeKind::UPDATE } else { idl::ChangeKind::DELETE };
    let change = idl::Change {
        collection: "notes".into(),
        key: key.into(),
        kind,
        value: value.map(|value| value.as_bytes().to_vec()),
        format: None,
        clock: Some(seq as i64),
        cseq: None,
    };
    idl::Entry { change: Some(change), ..frames::entry(seq) }
}

/// Our own edit, which stands as it was made.
pub fn own(seq: u64, key: &str, cseq: i64) -> idl::Entry {
    let mut entry = change(seq, key, Some(""));
    let change = entry.change.as_mut().unwrap();
    (change.value, change.cseq) = (None, Some(cseq));
    entry
}

pub fn ok() -> idl::Result {
    frame::bare_result(0, idl::ResultCode::OK)
}

/// What an upload that is taken as it is leads to, from this seq on.
pub fn result(cseq: i64, outcome: idl::EditOutcome, seq: Option<u64>) -> idl::EditResult {
    idl::EditResult { cseq, outcome, seq: seq.map(|seq| seq as i64), message: None }
}

pub fn collection_digest(seq: u64, rows: Vec<(String, u64)>) -> idl::CollectionDigest {
    let range = KeyRange::of("notes", carillon_wire::ranges::Bounds::everything(), rows);
    idl::CollectionDigest {
        queue: alias().to_idl(),
        epoch: 1,
        collection: "notes".into(),
        seq: seq as i64,
        items: range.items as i64,
        digest: range.digest.to_idl(),
    }
}

/// `k<seq>` for each seq, in the order of keys.
pub fn rows(seqs: std::ops::Range<u64>) -> Vec<(String, u64)> {
    let mut rows: Vec<_> = seqs.map(|seq| (format!("k{seq}"), seq)).collect();
    rows.sort();
    rows
}

/// From `key seq`.
pub fn rows_of(texts: &[&str]) -> Vec<(String, u64)> {
    let row = |text: &&str| {
        let (key, seq) = text.split_once(' ').unwrap();
        (key.to_owned(), seq.parse().unwrap())
    };
    texts.iter().map(row).collect()
}

/// What a gateway that holds these rows answers; each value is `v`.
pub fn repaired(repair: &idl::Repair, held: &[(String, u64)]) -> Vec<idl::RepairedRange> {
    let value = |_: &str| "v".to_owned();
    let mut answer = Vec::new();
    for stated in &repair.ranges {
        answer.extend(repaired_range(&repair.collection, stated, held, value));
    }
    answer
}

pub fn repaired_range(
    collection: &str,
    stated: &idl::KeyRange,
    held: &[(String, u64)],
    value: impl Fn(&str) -> String,
) -> Option<idl::RepairedRange> {
    let stated = KeyRange::from_idl(stated.clone()).unwrap();
    let held: Vec<_> = held.iter().filter(|(key, _)| stated.bounds.contains(key)).collect();
    let listed = || held.iter().map(|(key, seq)| (key, *seq));
    let ours = KeyRange::of(collection, stated.bounds.clone(), listed());
    let range = stated.to_idl();
    let item = |(key, seq): &&(String, u64)| {
        Box::new(idl::Item {
            collection: collection.to_owned(),
            key: key.clone(),
            seq: *seq as i64,
            value: value(key).into_bytes(),
            format: None,
            clock: None,
        })
    };
    match ours.answer(&stated) {
        Answer::Equal => None,
        Answer::Items => {
            let items = Some(held.iter().map(item).collect());
            Some(idl::RepairedRange { range, items, parts: None })
        }
        Answer::Parts => {
            let parts = ours.split(collection, listed());
            let parts = Some(parts.iter().map(KeyRange::to_idl).collect());
            Some(idl::RepairedRange { range, items: None, parts })
        }
    }
}

/// Fails on every value that has this in it, and counts.
pub fn fail_on(desk: &Desk, what: &'static str) -> Arc<Mutex<u32>> {
    let count = Arc::new(Mutex::new(0));
    let counted = count.clone();
    let handler = move |change: &crate::collections::ItemChange| {
        let new =
            change.new.as_ref().map(|value| String::from_utf8_lossy(&value.bytes).into_owned());
        if new.is_some_and(|new| new.contains(what)) {
            *counted.lock().unwrap() += 1;
            return Err(format!("cannot handle {what}"));
        }
        Ok(())
    };
    desk.collections.handle_with(handler).unwrap();
    count
}
