//! One conformance test for both long-term stores, and what each must bear.

mod dice;
mod longterm;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use carillon::{
    base::ids::{QueueId, RegId, Shard},
    longterm::{
        Advance, Commit, Error, Fold, Item, Keys, LongTerm, Name, Step, embedded::Embedded,
    },
    queue::{
        collection::change::{Format, Hlc, Kind, Origin, Value},
        entry::Body,
        position::{Epoch, Seq},
        reader::Take,
    },
};
use dice::Dice;
use longterm::{
    ALL, at, change, changed, commit, delete, delete_in, fold, keys_of, message, name, put, put_in,
    queue, reached, value,
};
use support::postgres::Postgres as Server;

async fn it_folds_in_order(store: &dyn LongTerm) {
    let queue = queue(1, 1);
    assert_eq!(store.position(queue).await.unwrap(), None);
    assert_eq!(store.pointer(queue.shard()).await.unwrap(), Commit::NONE);
    let steps = vec![put(1, "a", "1"), put(2, "b", "1"), put(3, "a", "2"), message(4)];
    store.fold(fold(queue, 1, steps)).await.unwrap();
    assert_eq!(value(store, queue, "a").await.as_deref(), Some("2"));
    assert_eq!(store.position(queue).await.unwrap(), Some(at(4)));
    assert_eq!(store.pointer(queue.shard()).await.unwrap(), commit(1));

    let steps = vec![delete(5, "b"), put(6, "c", "1"), delete(7, "c"), delete(8, "never there")];
    store.fold(fold(queue, 2, steps)).await.unwrap();
    let live = store.newest(queue, None, ALL).await.unwrap();
    assert_eq!(keys_of(&live), ["a"]);
    assert_eq!(live[0].position, at(3), "where it was changed, not where the fold is");
    assert_eq!(value(store, queue, "b").await, None);
    assert_eq!(store.position(queue).await.unwrap(), Some(at(8)));

    store.fold(fold(queue, 3, vec![put(9, "b", "again")])).await.unwrap();
    assert_eq!(value(store, queue, "b").await.as_deref(), Some("again"));
}

async fn a_page_goes_on_where_the_last_ended_while_items_move(store: &dyn LongTerm) {
    let queue = queue(2, 1);
    let steps = (1..=9).map(|seq| put(seq, &format!("k{seq}"), "x")).collect();
    store.fold(fold(queue, 1, steps)).await.unwrap();
    let three = Take { entries: 3, bytes: usize::MAX };
    let first = store.newest(queue, None, three).await.unwrap();
    assert_eq!(keys_of(&first), ["k9", "k8", "k7"]);

    // One that was seen, one that was not, and one that is deleted.
    let steps = vec![put(10, "k8", "y"), put(11, "k5", "y"), delete(12, "k4")];
    store.fold(fold(queue, 2, steps)).await.unwrap();
    let next = store.newest(queue, Some(first[2].position.seq), three).await.unwrap();
    assert_eq!(keys_of(&next), ["k6", "k3", "k2"]);
    let last = store.newest(queue, Some(next[2].position.seq), three).await.unwrap();
    assert_eq!(keys_of(&last), ["k1"]);
    assert!(store.newest(queue, Some(Seq(1)), three).await.unwrap().is_empty());
    assert!(store.newest(queue, Some(Seq(0)), three).await.unwrap().is_empty());
    let all = store.newest(queue, None, ALL).await.unwrap();
    assert_eq!(keys_of(&all), ["k5", "k8", "k9", "k7", "k6", "k3", "k2", "k1"]);
}

async fn a_page_ends_at_its_bytes_and_has_at_least_one_item(store: &dyn LongTerm) {
    let queue = queue(3, 1);
    let steps = (1..=4).map(|seq| put(seq, &format!("k{seq}"), "ten bytes.")).collect();
    store.fold(fold(queue, 1, steps)).await.unwrap();
    for (bytes, items) in [(0, 1), (1, 1), (10, 1), (11, 2), (20, 2), (21, 3), (99, 4)] {
        let take = Take { entries: 9, bytes };
        assert_eq!(store.newest(queue, None, take).await.unwrap().len(), items, "{bytes} bytes");
        let keys = Keys { collection: "notes".parse().unwrap(), from: "".into(), to: None };
        assert_eq!(store.by_key(queue, keys, take).await.unwrap().len(), items, "{bytes} bytes");
    }
}

async fn keys_are_in_the_order_of_their_bytes(store: &dyn LongTerm) {
    let (one, other) = (queue(4, 1), queue(4, 2));
    let keys = ["!", "B", "a", "a b", "a!", "aa", "é", "z", "\u{10ffff}", "日本"];
    let steps = keys.iter().zip(1..).map(|(key, seq)| put(seq, key, "x")).collect();
    let beside = vec![put(1, "of another queue", "x")];
    let mut folds = fold(one, 1, steps);
    folds[0].queues.push(Advance { queue: other, steps: beside });
    folds[0].queues[0].steps.push(put_in(11, name("notes2", "b"), "x"));
    folds[0].queues[0].steps.push(put_in(12, name("note", "b"), "x"));
    store.fold(folds).await.unwrap();

    let read = async |from: &str, to: Option<&str>, entries| {
        let keys = Keys {
            collection: "notes".parse().unwrap(),
            from: from.into(),
            to: to.map(Into::into),
        };
        let items = store.by_key(one, keys, Take { entries, bytes: usize::MAX }).await.unwrap();
        items.iter().map(|item| item.name.key.to_string()).collect::<Vec<_>>()
    };
    let sorted: Vec<_> = keys.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    assert_eq!(read("", None, 99).await, sorted);
    assert_eq!(read("", None, 2).await, ["!", "B"]);
    assert_eq!(read("a", Some("b"), 99).await, ["a", "a b", "a!", "aa"]);
    assert_eq!(read("a", Some("a"), 99).await, [""; 0]);
    assert_eq!(read("b", Some("a"), 99).await, [""; 0]);
    assert_eq!(read("z", None, 99).await, ["z", "é", "日本", "\u{10ffff}"]);
    assert_eq!(value(store, one, "a b").await.as_deref(), Some("x"));
}

async fn an_item_comes_back_as_it_was_put(store: &dyn LongTerm) {
    let queue = queue(5, 1);
    let bytes = (0..=255).cycle().take(64 << 10).collect::<Vec<u8>>();
    let odd = Value { format: Format::Thrift, bytes: bytes.into() };
    let mut odd = change(name("c", "odd"), Kind::New, odd);
    odd.stamp.clock = Hlc(u64::MAX);
    odd.stamp.origin = Origin::Device { regid: RegId([9; 20]), cseq: u64::MAX };
    odd.born = Seq(u64::MAX);
    let empty = change(name("c", "empty"), Kind::New, Value::json(""));
    let plain = change(name("c", "plain"), Kind::Update, Value::json("{}"));
    let mut items = Vec::new();
    for (number, change) in (1..).zip([odd, empty, plain]) {
        let name = Name { collection: change.collection.clone(), key: change.key.clone() };
        let (stamp, born, value) = (change.stamp, change.born, change.value.clone());
        store.fold(fold(queue, number, vec![changed(number, change)])).await.unwrap();
        let item = Item { name: name.clone(), position: at(number), stamp, born, value };
        assert_eq!(store.item(queue, name).await.unwrap().as_ref(), Some(&item));
        items.insert(0, item);
    }
    assert_eq!(store.newest(queue, None, ALL).await.unwrap(), items);
}

async fn history_has_every_entry_until_its_day_is_dropped(store: &dyn LongTerm) {
    let queue = queue(6, 1);
    let steps = (1..=25).map(|seq| match seq % 3 {
        0 => message(seq),
        1 => put(seq, "a", "x"),
        _ => delete(seq, "a"),
    });
    let steps: Vec<Step> = steps.collect();
    store.fold(fold(queue, 1, steps.clone())).await.unwrap();
    let seqs = async |after, take| {
        let past = store.history(queue, Seq(after), take).await.unwrap();
        for one in &past {
            let of = &steps[one.entry.position.seq.0 as usize - 1];
            assert_eq!((one.day, &one.entry), (of.day, of.entry.as_ref()));
        }
        past.iter().map(|past| past.entry.position.seq.0).collect::<Vec<_>>()
    };
    let bytes = steps[7].entry.to_stored().len() + 1;
    assert_eq!(seqs(0, ALL).await, (1..=25).collect::<Vec<_>>());
    assert_eq!(seqs(7, Take { entries: 4, bytes: usize::MAX }).await, [8, 9, 10, 11]);
    assert_eq!(seqs(7, Take { entries: 9, bytes }).await, [8, 9]);
    assert!(seqs(25, ALL).await.is_empty());
    store.trim_history(20_001).await.unwrap();
    store.trim_history(20_001).await.unwrap();
    assert_eq!(seqs(0, ALL).await, (10..=25).collect::<Vec<_>>());
    assert_eq!(value(store, queue, "a").await.as_deref(), Some("x"), "items stay");
}

async fn a_fold_that_begins_elsewhere_changes_nothing(store: &dyn LongTerm) {
    let queue = queue(7, 1);
    store.fold(fold(queue, 1, vec![put(1, "a", "1")])).await.unwrap();
    let stale = store.fold(fold(queue, 1, vec![put(1, "a", "twice"), put(2, "b", "1")])).await;
    assert!(matches!(stale, Err(Error::Moved(shard)) if shard == queue.shard()), "{stale:?}");
    let early = store.fold(fold(queue, 3, vec![put(2, "b", "1")])).await;
    assert!(matches!(early, Err(Error::Moved(_))), "{early:?}");
    assert_eq!(value(store, queue, "a").await.as_deref(), Some("1"));
    assert_eq!(value(store, queue, "b").await, None);
    assert_eq!(store.position(queue).await.unwrap(), Some(at(1)));
    assert_eq!(store.pointer(queue.shard()).await.unwrap(), commit(1));
    assert_eq!(store.history(queue, Seq(0), ALL).await.unwrap().len(), 1);

    let later = Commit { epoch: Epoch(4), number: 1 };
    let queues = vec![Advance { queue, steps: vec![put(2, "b", "1")] }];
    let fold = Fold { shard: queue.shard(), after: commit(1), upto: later, queues };
    store.fold(vec![fold]).await.unwrap();
    assert_eq!(store.pointer(queue.shard()).await.unwrap(), later);
}

async fn a_queue_that_lost_entries_is_taken_back(store: &dyn LongTerm) {
    let (lost, other) = (queue(11, 1), queue(11, 2));
    let steps = vec![put(1, "a", "1"), put(2, "b", "1"), put(3, "c", "1"), message(4)];
    let mut folds = fold(lost, 1, steps.clone());
    folds[0].queues.push(Advance { queue: other, steps: vec![put(9, "other", "1")] });
    store.fold(folds).await.unwrap();
    let before = store.newest(lost, None, ALL).await.unwrap();
    let after = vec![put(5, "a", "2"), delete(6, "b"), put(7, "new", "1")];
    store.fold(fold(lost, 2, after)).await.unwrap();
    store.rewind(lost, at(4), steps[..2].to_vec()).await.unwrap();
    assert_eq!(store.newest(lost, None, ALL).await.unwrap(), before);
    assert_eq!(value(store, lost, "a").await.as_deref(), Some("1"));
    assert_eq!(value(store, lost, "new").await, None);
    assert_eq!(store.position(lost).await.unwrap(), Some(at(4)));
    assert_eq!(store.history(lost, Seq(0), ALL).await.unwrap().len(), 4);
    assert_eq!(value(store, other, "other").await.as_deref(), Some("1"));
    store.fold(fold(lost, 3, vec![put(5, "a", "3"), put(6, "d", "1")])).await.unwrap();
    assert_eq!(keys_of(&store.newest(lost, None, ALL).await.unwrap()), ["d", "a", "c", "b"]);
    store.rewind(lost, at(0), Vec::new()).await.unwrap();
    assert!(store.newest(lost, None, ALL).await.unwrap().is_empty());
}

async fn random_folds_end_as_their_model(store: &dyn LongTerm) {
    let mut dice = Dice::new(42);
    let mut models: BTreeMap<QueueId, (u64, BTreeMap<Name, Item>)> = BTreeMap::new();
    for number in 1..=40 {
        let mut folds = Vec::new();
        for shard in [8, 9] {
            let mut queues = Vec::new();
            for queue in [queue(shard, 1), queue(shard, 2)] {
                let (head, items) = models.entry(queue).or_default();
                let mut steps = Vec::new();
                for _ in 0..dice.below(8) {
                    *head += 1;
                    let name =
                        name(["c", "d"][dice.below(2) as usize], &dice.below(12).to_string());
                    let step = match dice.below(4) {
                        0 => delete_in(*head, name.clone()),
                        _ => put_in(*head, name.clone(), &format!("{queue}{head}")),
                    };
                    let Body::Change(change) = &step.entry.body else { unreachable!() };
                    match change.kind {
                        Kind::Delete => drop(items.remove(&name)),
                        Kind::New | Kind::Update => {
                            let (position, value) = (at(*head), change.value.clone());
                            let (stamp, born) = (change.stamp, change.born);
                            let item = Item { name: name.clone(), position, stamp, born, value };
                            items.insert(name, item);
                        }
                    }
                    steps.push(step);
                }
                queues.push(Advance { queue, steps });
            }
            let (after, upto) = (commit(number - 1), commit(number));
            folds.push(Fold { shard: Shard(shard), after, upto, queues });
        }
        store.fold(folds).await.unwrap();
        for (queue, (head, items)) in &models {
            let mut expected: Vec<Item> = items.values().cloned().collect();
            expected.sort_by_key(|item| std::cmp::Reverse(item.position.seq));
            assert_eq!(store.newest(*queue, None, ALL).await.unwrap(), expected);
            let position = store.position(*queue).await.unwrap();
            assert_eq!(position, (*head > 0).then(|| at(*head)));
            let of_c = |item: &&Item| item.name.collection.as_str() == "c";
            let by_key: Vec<Item> = items.values().filter(of_c).cloned().collect();
            let keys = Keys { collection: "c".parse().unwrap(), from: "".into(), to: None };
            assert_eq!(store.by_key(*queue, keys, ALL).await.unwrap(), by_key);
        }
    }
}

async fn a_reader_never_sees_less_than_the_position_says(store: Arc<dyn LongTerm>) {
    let queue = queue(10, 1);
    let writer = store.clone();
    let writing = async move {
        for number in 1..=60 {
            let keys = ["a", "b", "c", "d"];
            let put = |(at, key): (usize, &&str)| {
                put((number - 1) * 4 + 1 + at as u64, key, &number.to_string())
            };
            let steps = keys.iter().enumerate().map(put).collect();
            writer.fold(fold(queue, number, steps)).await.unwrap();
        }
    };
    let reading = async {
        loop {
            let Some(position) = store.position(queue).await.unwrap() else { continue };
            let found = store.newest(queue, None, ALL).await.unwrap();
            for item in &found {
                assert!(item.position.seq.0 + 4 > position.seq.0, "{position} but {item:?}");
            }
            if position.seq == Seq(240) {
                assert_eq!(found.len(), 4);
                return;
            }
        }
    };
    tokio::join!(writing, reading);
}

async fn conforms(store: Arc<dyn LongTerm>) {
    it_folds_in_order(store.as_ref()).await;
    a_page_goes_on_where_the_last_ended_while_items_move(store.as_ref()).await;
    a_page_ends_at_its_bytes_and_has_at_least_one_item(store.as_ref()).await;
    keys_are_in_the_order_of_their_bytes(store.as_ref()).await;
    an_item_comes_back_as_it_was_put(store.as_ref()).await;
    history_has_every_entry_until_its_day_is_dropped(store.as_ref()).await;
    a_fold_that_begins_elsewhere_changes_nothing(store.as_ref()).await;
    a_queue_that_lost_entries_is_taken_back(store.as_ref()).await;
    random_folds_end_as_their_model(store.as_ref()).await;
    a_reader_never_sees_less_than_the_position_says(store).await;
}

/// What [`conforms`] left, after a restart.
async fn is_all_there(store: &dyn LongTerm) {
    assert_eq!(value(store, queue(1, 1), "b").await.as_deref(), Some("again"));
    assert_eq!(store.position(queue(1, 1)).await.unwrap(), Some(at(9)));
    assert_eq!(store.pointer(Shard(1)).await.unwrap(), commit(3));
    assert_eq!(store.newest(queue(2, 1), None, ALL).await.unwrap().len(), 8);
    assert_eq!(store.history(queue(6, 1), Seq(0), ALL).await.unwrap().len(), 16);
    store.fold(fold(queue(1, 1), 4, vec![put(10, "d", "new")])).await.unwrap();
    assert_eq!(value(store, queue(1, 1), "d").await.as_deref(), Some("new"));
}

#[tokio::test]
async fn the_embedded_store_conforms_and_is_whole_when_it_is_opened_again() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("longterm");
    let open = || Arc::new(Embedded::open(&dir, 1 << 20).unwrap());
    conforms(open()).await;
    is_all_there(open().as_ref()).await;
}

#[tokio::test]
async fn the_embedded_store_conforms_over_memory() {
    conforms(Arc::new(Embedded::in_memory())).await;
}

#[tokio::test]
async fn postgres_conforms_and_is_whole_after_a_crash() {
    let mut server = Server::start();
    conforms(reached(&server)).await;
    server.crash();
    server.restart();
    is_all_there(reached(&server).as_ref()).await;
}
