//! One conformance test for every store.

use std::sync::Arc;

use bytes::Bytes;
use carillon::queue::store::{
    Batch, Range, Space, Store, embedded::EmbeddedStore, memory::MemoryStore,
};

fn put(batch: &mut Batch, space: Space, key: &str, value: &str) {
    batch.put(space, key.as_bytes(), value.as_bytes().to_vec());
}

fn text(value: Option<Bytes>) -> Option<String> {
    value.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
}

fn keys(store: &dyn Store, space: Space, range: &Range, limit: usize) -> Vec<String> {
    let records = store.scan(space, range, limit).unwrap();
    records.into_iter().map(|(key, _)| text(Some(key)).unwrap()).collect()
}

fn a_store_keeps_what_it_is_given(store: &dyn Store) {
    let mut batch = Batch::default();
    put(&mut batch, Space::Apps, "a", "1");
    put(&mut batch, Space::Apps, "a", "2");
    put(&mut batch, Space::Heads, "a", "other space");
    store.write(&batch).unwrap();
    store.sync().unwrap();
    assert_eq!(text(store.get(Space::Apps, b"a").unwrap()), Some("2".into()));
    assert_eq!(text(store.get(Space::Heads, b"a").unwrap()), Some("other space".into()));
    assert_eq!(store.get(Space::Apps, b"b").unwrap(), None);

    let mut batch = Batch::default();
    batch.remove(Space::Apps, b"a".as_slice());
    batch.remove(Space::Apps, b"never there".as_slice());
    store.write(&batch).unwrap();
    assert_eq!(store.get(Space::Apps, b"a").unwrap(), None);
    store.write(&Batch::default()).unwrap();
}

fn a_scan_is_ordered_bounded_and_within_its_range(store: &dyn Store) {
    let mut batch = Batch::default();
    for key in ["p3", "p1", "q", "p2", "o", "p"] {
        put(&mut batch, Space::Members, key, "");
    }
    store.write(&batch).unwrap();
    let prefix = Range::prefix(b"p");
    assert_eq!(keys(store, Space::Members, &prefix, 9), ["p", "p1", "p2", "p3"]);
    assert_eq!(keys(store, Space::Members, &prefix, 2), ["p", "p1"]);
    let after = Range::prefix_after(b"p", b"p2".to_vec());
    assert_eq!(keys(store, Space::Members, &after, 9), ["p2", "p3"]);
    let all = Range::prefix(b"");
    assert_eq!(keys(store, Space::Members, &all, 9).len(), 6);
    assert!(keys(store, Space::Members, &Range::prefix(&[255]), 9).is_empty());
    assert!(keys(store, Space::Entries(5), &all, 9).is_empty(), "a day that is not there is empty");
}

fn days_come_with_writes_and_go_whole(store: &dyn Store) {
    let mut batch = Batch::default();
    put(&mut batch, Space::Entries(7), "x", "old");
    put(&mut batch, Space::Messages(7), "x", "old");
    put(&mut batch, Space::Entries(8), "x", "new");
    store.write(&batch).unwrap();
    store.sync().unwrap();
    assert_eq!(store.days(), [7, 8]);
    store.drop_day(7).unwrap();
    assert_eq!(store.days(), [8]);
    assert_eq!(store.get(Space::Entries(7), b"x").unwrap(), None);
    assert_eq!(store.get(Space::Messages(7), b"x").unwrap(), None);
    assert_eq!(text(store.get(Space::Entries(8), b"x").unwrap()), Some("new".into()));
    store.drop_day(7).unwrap();
}

fn readers_and_the_writer_share_it(store: Arc<dyn Store>) {
    let writer = store.clone();
    let thread = std::thread::spawn(move || {
        for n in 1..=200_u64 {
            let mut batch = Batch::default();
            batch.put(Space::Pending, b"n".as_slice(), n.to_be_bytes().to_vec());
            batch.put(Space::Pointers, b"n".as_slice(), n.to_be_bytes().to_vec());
            writer.write(&batch).unwrap();
        }
    });
    let number = |space| {
        let bytes = store.get(space, b"n").unwrap();
        bytes.map_or(0, |bytes| u64::from_be_bytes(bytes.as_ref().try_into().unwrap()))
    };
    let mut seen = (0, 0);
    while !thread.is_finished() {
        let now = (number(Space::Pending), number(Space::Pointers));
        assert!(now.0 >= seen.0 && now.1 >= seen.1, "a key never goes back: {seen:?}, {now:?}");
        seen = now;
    }
    thread.join().unwrap();
    assert_eq!((number(Space::Pending), number(Space::Pointers)), (200, 200));
}

fn conforms(store: Arc<dyn Store>) {
    a_store_keeps_what_it_is_given(store.as_ref());
    a_scan_is_ordered_bounded_and_within_its_range(store.as_ref());
    days_come_with_writes_and_go_whole(store.as_ref());
    readers_and_the_writer_share_it(store);
}

#[test]
fn the_memory_store_conforms() {
    conforms(Arc::new(MemoryStore::default()));
}

#[test]
fn the_embedded_store_conforms_and_remembers() {
    let dir = tempfile::tempdir().unwrap();
    conforms(Arc::new(EmbeddedStore::open(dir.path(), 8 << 20).unwrap()));
    let again = EmbeddedStore::open(dir.path(), 8 << 20).unwrap();
    assert_eq!(again.days(), [8], "a dropped day stays dropped");
    assert_eq!(text(again.get(Space::Entries(8), b"x").unwrap()), Some("new".into()));
    assert_eq!(keys(&again, Space::Members, &Range::prefix(b"p"), 9), ["p", "p1", "p2", "p3"]);
    assert!(EmbeddedStore::open(dir.path(), 8 << 20).is_err(), "two holders of one directory");
}
