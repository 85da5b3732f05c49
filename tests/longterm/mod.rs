//! Small folds, and how the stores are reached.
#![allow(dead_code, reason = "every test crate uses its own part of it")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use carillon::{
    base::ids::{MessageId, QueueId},
    longterm::{Advance, Commit, Fold, Item, LongTerm, Name, Step, postgres::Postgres},
    queue::{
        collection::{
            change::{Hlc, Kind, Origin, Stamp, Value},
            item,
        },
        entry::{Body, Change, Entry, Message},
        log::Log,
        position::{Epoch, Position, Seq},
        reader::Take,
        store::{Range, Space, Store, decode},
    },
};

use crate::support::postgres::Postgres as Server;

pub const TIMEOUT: Duration = Duration::from_secs(20);
pub const ALL: Take = Take { entries: 10_000, bytes: usize::MAX };

pub fn queue(shard: u16, number: u8) -> QueueId {
    let mut id = [number; 20];
    id[..2].copy_from_slice(&shard.to_be_bytes());
    QueueId(id)
}

pub fn name(collection: &str, key: &str) -> Name {
    Name { collection: collection.parse().unwrap(), key: key.into() }
}

pub fn at(seq: u64) -> Position {
    Position { epoch: Epoch(3), seq: Seq(seq) }
}

pub fn commit(number: u64) -> Commit {
    match number {
        0 => Commit::NONE,
        number => Commit { epoch: Epoch(3), number },
    }
}

pub fn message(seq: u64) -> Step {
    let id = MessageId([seq as u8; 15]);
    entry(seq, Body::Message(Message::new(id, format!("message {seq}").into())))
}

fn entry(seq: u64, body: Body) -> Step {
    let entry = Arc::new(Entry { position: at(seq), at_ms: seq, body });
    Step { day: day(seq), entry }
}

pub fn day(seq: u64) -> u32 {
    20_000 + (seq / 10) as u32
}

/// A change as an app server makes it.
pub fn change(name: Name, kind: Kind, value: Value) -> Change {
    Change {
        collection: name.collection,
        key: name.key,
        kind,
        value,
        stamp: Stamp { clock: Hlc::at(7), origin: Origin::Server },
        is_as_made: true,
        born: Seq(1),
        lived_before: false,
        bytes_so_far: 0,
    }
}

pub fn changed(seq: u64, change: Change) -> Step {
    entry(seq, Body::Change(change))
}

pub fn put_in(seq: u64, name: Name, value: &str) -> Step {
    changed(seq, change(name, Kind::Update, Value::json(value.to_owned())))
}

pub fn put(seq: u64, key: &str, value: &str) -> Step {
    put_in(seq, name("notes", key), value)
}

pub fn delete_in(seq: u64, name: Name) -> Step {
    changed(seq, change(name, Kind::Delete, Value::default()))
}

pub fn delete(seq: u64, key: &str) -> Step {
    delete_in(seq, name("notes", key))
}

pub fn fold(queue: QueueId, number: u64, steps: Vec<Step>) -> Vec<Fold> {
    let queues = vec![Advance { queue, steps }];
    let (after, upto) = (commit(number - 1), commit(number));
    vec![Fold { shard: queue.shard(), after, upto, queues }]
}

pub fn keys_of(items: &[Item]) -> Vec<&str> {
    items.iter().map(|item| &*item.name.key).collect()
}

pub async fn value(store: &dyn LongTerm, queue: QueueId, key: &str) -> Option<String> {
    let item = store.item(queue, name("notes", key)).await.unwrap();
    item.map(|item| String::from_utf8(item.value.bytes.to_vec()).unwrap())
}

pub fn reached(server: &Server) -> Arc<Postgres> {
    Arc::new(Postgres::new(&server.url(), None, TIMEOUT).unwrap())
}

/// The items of a fold, which are those of its queue.
pub async fn folded_as_queued(
    store: &dyn Store,
    longterm: &dyn LongTerm,
    queue: QueueId,
) -> Vec<Item> {
    let mut live = BTreeMap::new();
    let items = Range::prefix(queue.as_bytes());
    for (key, stored) in store.scan(Space::Items, &items, 100_000).unwrap() {
        let (collection, key) = item::item_of(&key).unwrap();
        let item: item::Item = decode(&stored).unwrap();
        if !item.head.is_deleted {
            live.insert(Name { collection, key }, item.position());
        }
    }
    let folded = longterm.newest(queue, None, ALL).await.unwrap();
    let positions = folded.iter().map(|item| (item.name.clone(), item.position));
    assert_eq!(positions.collect::<BTreeMap<_, _>>(), live, "{queue}");
    folded
}

/// The fold of a queue is what the queue's items say, and its history has no hole.
pub async fn fold_equals_queue(store: &dyn Store, longterm: &dyn LongTerm, queue: QueueId) {
    let folded = folded_as_queued(store, longterm, queue).await;
    let head = store.get(Space::Heads, queue.as_bytes()).unwrap();
    let head = head.map_or(Seq(0), |head| decode::<Log>(&head).unwrap().head());
    let history = longterm.history(queue, Seq(0), ALL).await.unwrap();
    let seqs: Vec<u64> = history.iter().map(|past| past.entry.position.seq.0).collect();
    assert_eq!(seqs, (1..=head.0).collect::<Vec<_>>(), "{queue}");
    for item in folded {
        let entry = &history[item.position.seq.0 as usize - 1].entry;
        let Body::Change(change) = &entry.body else { panic!("{item:?} is of {entry:?}") };
        assert_eq!((&change.value, entry.position), (&item.value, item.position));
    }
}
