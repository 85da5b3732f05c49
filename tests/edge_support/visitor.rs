//! A device that holds no connection: it brings frames, takes others away, and keeps positions.

use std::collections::BTreeMap;

use bytes::Bytes;
use carillon::edge::visit::Error;
use carillon_wire::{digest::kind_byte, frame, idl};

use super::{Account, Client, Node, up};

/// What it holds of one queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    pub queue: idl::Queue,
    pub epoch: i32,
    pub seq: i64,
    pub tag: Option<Vec<u8>>,
}

/// What a queue is to the device: regID, kind, name.
pub type Key = (String, u8, String);

/// The device.
pub struct Visitor<'a> {
    pub node: &'a Node,
    pub account: &'a Account,
    pub held: BTreeMap<Key, Held>,
    /// Every message that was applied, as text.
    pub messages: Vec<String>,
    /// Every change that was applied, with its seq.
    pub changes: Vec<(i64, idl::Change)>,
}

impl<'a> Visitor<'a> {
    pub fn new(node: &'a Node, account: &'a Account) -> Self {
        let (held, messages, changes) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { node, account, held, messages, changes }
    }

    /// Brings these frames, and applies nothing of what they lead to.
    pub async fn ask(&self, ups: &[idl::Up]) -> Result<Vec<idl::Down>, Error> {
        let downs = bring(self.node, self.account, ups.iter().map(encoded).collect()).await?;
        Ok(downs.iter().map(|down| frame::decode_down(down).expect("a Down")).collect())
    }

    /// States its positions behind these frames, and applies what comes. Gives the answers, and
    /// how many frames of deltas and snapshots came.
    pub async fn visit(&mut self, ups: &[idl::Up]) -> (Vec<idl::Down>, usize) {
        let ups: Vec<_> = ups.iter().cloned().chain([self.stated()]).collect();
        let downs = self.ask(&ups).await.unwrap();
        let (mut answers, mut frames) = (Vec::new(), 0);
        for down in downs {
            frames += usize::from(down.deltas.is_some() || down.snapshot.is_some());
            if let Some(chunk) = down.snapshot {
                self.gather(chunk);
            } else if let Some(frame) = down.deltas {
                frame.deltas.iter().for_each(|delta| self.apply(&frame.regid, delta));
            } else {
                answers.push(down);
            }
        }
        (answers, frames)
    }

    /// Its changes become the snapshot's items. It is taken to come with one visit, or once more.
    fn gather(&mut self, chunk: idl::SnapshotChunk) {
        if chunk.begins == Some(true) {
            self.changes.clear();
        }
        for item in chunk.items {
            let idl::Item { collection, key, seq, value, format, clock } = item;
            let (kind, value, cseq) = (idl::ChangeKind::NEW, Some(value), None);
            let change = idl::Change { collection, key, kind, value, format, clock, cseq };
            self.changes.push((seq, change));
        }
        if chunk.until_seq.is_some() {
            let name = chunk.queue.name.clone().unwrap_or_default();
            let key = (chunk.regid, kind_byte(chunk.queue.kind).unwrap(), name);
            let (queue, epoch, tag) = (chunk.queue, chunk.epoch, Some(chunk.tag));
            self.held.insert(key, Held { queue, epoch, seq: chunk.at_seq, tag });
        }
    }

    /// Visits until nothing more comes.
    pub async fn catch_up(&mut self) {
        for _ in 0..1_000 {
            if self.visit(&[]).await.1 == 0 {
                return;
            }
        }
        panic!("the answers do not end");
    }

    /// Its positions as a frame.
    pub fn stated(&self) -> idl::Up {
        let mut registrations: Vec<idl::RegistrationPositions> = Vec::new();
        for ((regid, ..), held) in &self.held {
            let Held { queue, epoch, seq, tag } = held.clone();
            let position = idl::Position { queue, epoch, seq, tag };
            match registrations.last_mut().filter(|last| last.regid == *regid) {
                Some(last) => last.positions.push(position),
                None => registrations.push(idl::RegistrationPositions {
                    regid: regid.clone(),
                    positions: vec![position],
                    gathered: None,
                }),
            }
        }
        idl::Up { positions: Some(idl::Positions { registrations, more: None }), ..up(0) }
    }

    fn apply(&mut self, regid: &str, delta: &idl::Delta) {
        let key = |queue: &idl::Queue| {
            let name = queue.name.clone().unwrap_or_default();
            (regid.to_owned(), kind_byte(queue.kind).unwrap(), name)
        };
        let at = key(&delta.queue);
        if delta.jump.is_none() {
            let held = self.held.get(&at).unwrap_or_else(|| panic!("no position: {delta:?}"));
            assert_eq!((held.epoch, held.seq + 1), (delta.epoch, delta.from_seq), "{delta:?}");
        }
        let (queue, epoch) = (delta.queue.clone(), delta.epoch);
        let tag = Some(delta.tag.clone());
        self.held.insert(at, Held { queue, epoch, seq: delta.to_seq, tag });
        for entry in &delta.entries {
            if let Some(follow) = &entry.follow {
                let (queue, epoch, seq) = (follow.queue.clone(), follow.epoch, follow.since);
                self.held.insert(key(&queue), Held { queue, epoch, seq, tag: None });
            }
            if let Some(unfollow) = &entry.unfollow {
                self.held.remove(&key(&unfollow.queue));
            }
            if let Some(payload) = &entry.payload {
                self.messages.push(String::from_utf8(payload.clone()).unwrap());
            }
            if let Some(change) = &entry.change {
                self.changes.push((entry.seq, change.clone()));
            }
        }
    }

    /// A connection's client takes its positions over.
    pub fn hand_over(&self, client: &mut Client) {
        let of = |held: &Held| (held.epoch as u32, held.seq as u64);
        client.positions = self.held.iter().map(|(key, held)| (key.clone(), of(held))).collect();
    }
}

/// Brings any bytes as frames.
pub async fn bring(node: &Node, account: &Account, ups: Vec<Bytes>) -> Result<Vec<Bytes>, Error> {
    node.edge.visit(None, &account.id, account.secret.as_bytes())?.exchange(ups).await
}

/// An `Up` as bytes.
pub fn encoded(up: &idl::Up) -> Bytes {
    let mut bytes = Vec::new();
    frame::encode_up(up, &mut bytes).unwrap();
    bytes.into()
}

/// The result that answers this request.
pub fn result(downs: &[idl::Down], request: i64) -> &idl::Result {
    let results = downs.iter().filter_map(|down| down.result.as_ref());
    results.into_iter().find(|result| result.request == request).expect("a result")
}
