//! Sealed frames: what opens is what was sealed, whatever was changed on the way.

use carillon_wire::{
    digest::kind_byte,
    frame, idl,
    seal::{
        BodyHash, EntryKey, EntrySecret, Item, Queue, RegistrationKey, WRAPPED_KEY_BYTES,
        WrappingKey,
    },
};

const REGID: &str = "mzxw6ytboi4dcmrtgq2tmnzyhe";
const NUMBER: i32 = 1;

fn key() -> RegistrationKey {
    RegistrationKey::from_bytes([7; 32])
}

fn secret() -> EntrySecret {
    EntrySecret::from_bytes([9; 32])
}

/// A frame with sealed entries of the own queue and of a topic.
pub fn down() -> idl::Down {
    let topic = || idl::Queue { kind: idl::QueueKind::TOPIC, name: Some("news".into()) };
    let own = idl::Queue { kind: idl::QueueKind::OWN, name: None };
    let deltas = vec![delta(own, 1), delta(topic(), 3), delta(topic(), 3)];
    let deltas = idl::Deltas { regid: REGID.into(), deltas, digests: None };
    idl::Down { deltas: Some(deltas), ..idl::Down::default() }
}

fn delta(queue: idl::Queue, epoch: i32) -> idl::Delta {
    let is_own = queue.kind == idl::QueueKind::OWN;
    let (mut entries, mut wrapped) = (Vec::new(), Vec::new());
    for seq in 1..3 {
        let mut entry = bare(seq);
        let place = Place::of(&queue, epoch);
        let content = idl::Content { payload: Some(b"{\"a\":1}".to_vec()), notification: None };
        let content = frame::encode_content(&content);
        let (sealed, with) = seal(&place, &entry, content);
        entry.sealed = Some(sealed);
        wrapped.extend(with);
        entries.push(entry);
    }
    idl::Delta {
        queue,
        epoch,
        from_seq: 1,
        to_seq: 2,
        tag: vec![5; 8],
        entries,
        jump: None,
        wrapped_keys: (!is_own).then_some(wrapped),
        key_number: Some(NUMBER),
    }
}

fn bare(seq: i64) -> idl::Entry {
    idl::Entry {
        seq,
        id: Some((0..15).collect()),
        time_ms: Some(1_700_000_000_000),
        payload: None,
        notification: None,
        follow: None,
        unfollow: None,
        recall: None,
        sealed: None,
        change: None,
    }
}

/// Where an entry stands.
struct Place<'a> {
    queue: Queue<'a>,
    is_own: bool,
}

impl<'a> Place<'a> {
    fn of(queue: &'a idl::Queue, epoch: i32) -> Self {
        let kind = kind_byte(queue.kind).unwrap_or_default();
        let name = queue.name.as_deref().unwrap_or_default();
        let queue = Queue { kind, name, epoch: epoch as u32 };
        Self { is_own: kind == 1, queue }
    }
}

fn item(entry: &idl::Entry) -> Item<'_> {
    let id = entry.id.as_deref().unwrap_or_default();
    Item { seq: entry.seq as u64, id, time_ms: entry.time_ms.unwrap_or_default() }
}

/// As the gateway does it.
fn seal(place: &Place<'_>, entry: &idl::Entry, content: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let (queue, item) = (&place.queue, item(entry));
    if place.is_own {
        let own = key().own(queue).expect("a key");
        return (own.seal(REGID, queue, &item, content).expect("short"), Vec::new());
    }
    let entry_key = secret().entry_key(queue, &item).expect("a key");
    let sealed = entry_key.seal(queue, &item, content).expect("short");
    let (mut wrapped, hash) = (Vec::new(), BodyHash::of(&sealed));
    let by = key().wrapping(queue).expect("a key");
    by.wrap(REGID, queue, &item, &hash, &entry_key, &mut wrapped).expect("short");
    (sealed, wrapped)
}

/// Opens every sealed entry as a device does. What opens is sealed again and must be the same.
pub fn judge(down: &idl::Down) {
    for delta in down.deltas.iter().flat_map(|deltas| &deltas.deltas) {
        let place = Place::of(&delta.queue, delta.epoch);
        let mut keys = delta.wrapped_keys.as_deref().unwrap_or_default().chunks(WRAPPED_KEY_BYTES);
        for entry in &delta.entries {
            let Some(sealed) = &entry.sealed else { continue };
            let wrapped = keys.next().and_then(|bytes| bytes.try_into().ok());
            let Some(content) = open(&place, entry, sealed, wrapped) else { continue };
            let (again, with) = seal(&place, entry, content);
            assert_eq!(again, *sealed, "it opened, so it was sealed like this");
            if let (Some(wrapped), false) = (wrapped, place.is_own) {
                assert_eq!(with, wrapped, "and its key was wrapped like this");
            }
        }
    }
}

fn open(
    place: &Place<'_>,
    entry: &idl::Entry,
    sealed: &[u8],
    wrapped: Option<&[u8; WRAPPED_KEY_BYTES]>,
) -> Option<Vec<u8>> {
    let (queue, item) = (&place.queue, item(entry));
    if place.is_own {
        return key().own(queue).ok()?.open(REGID, queue, &item, sealed.to_vec()).ok();
    }
    let by: WrappingKey = key().wrapping(queue).ok()?;
    let hash = BodyHash::of(sealed);
    let entry_key: EntryKey = by.unwrap(REGID, queue, &item, &hash, wrapped?).ok()?;
    entry_key.open(queue, &item, sealed.to_vec()).ok()
}
