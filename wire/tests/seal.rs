//! Sealed payloads: the document's vectors, damage, and keys that never meet a nonce twice.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use carillon_wire::seal::{
    AppKey, BodyHash, EntrySecret, Item, PrivateKey, PublicKey, Queue, RegistrationKey,
    WRAPPED_KEY_BYTES, is_proof,
};
use carillon_wire::{frame, idl};
use proptest::prelude::*;

const REGID: &str = "mzxw6ytboi4dcmrtgq2tmnzyhe";
const OWN: Queue<'_> = Queue { kind: 1, name: "", epoch: 7 };
const TOPIC: Queue<'_> = Queue { kind: 3, name: "news", epoch: 7 };

fn counting<const N: usize>(from: u8) -> [u8; N] {
    std::array::from_fn(|i| from + i as u8)
}

fn app() -> PrivateKey {
    PrivateKey::from_bytes(counting(0))
}

fn device() -> PrivateKey {
    PrivateKey::from_bytes(counting(32))
}

fn key() -> RegistrationKey {
    RegistrationKey::of_device(&device(), &app().public().unwrap(), REGID).unwrap()
}

fn secret() -> EntrySecret {
    EntrySecret::from_bytes(counting(64))
}

fn item(id: &[u8]) -> Item<'_> {
    Item { seq: 42, id, time_ms: 1_700_000_000_000 }
}

fn shared(plaintext: Vec<u8>, item: &Item<'_>) -> (Vec<u8>, [u8; WRAPPED_KEY_BYTES]) {
    let entry = secret().entry_key(&TOPIC, item).unwrap();
    let body = entry.seal(&TOPIC, item, plaintext).unwrap();
    let mut wrapped = Vec::new();
    let wrapping = key().wrapping(&TOPIC).unwrap();
    wrapping.wrap(REGID, &TOPIC, item, &BodyHash::of(&body), &entry, &mut wrapped).unwrap();
    (body, wrapped.try_into().unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_vectors_in_the_protocol_document_are_what_the_code_makes() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/PROTOCOL.md");
    let document = std::fs::read_to_string(document).unwrap();
    let documented = |name: &str| {
        let row = document.lines().find(|line| line.starts_with(&format!("| {name} | `")));
        let row = row.unwrap_or_else(|| panic!("the document has no {name}"));
        row.split('`').nth(1).unwrap().to_owned()
    };
    let content = idl::Content { payload: Some(b"{\"a\":1}".to_vec()), notification: None };
    let (plaintext, id) = (frame::encode_content(&content), counting::<15>(1));
    let own = key().own(&OWN).unwrap().seal(REGID, &OWN, &item(&id), plaintext.clone()).unwrap();
    let (body, wrapped) = shared(plaintext, &item(&id));
    let device_public = device().public().unwrap();
    let made = [
        ("app public key", app().public().unwrap().0.to_vec()),
        ("device public key", device_public.0.to_vec()),
        ("registration key", key().to_bytes().to_vec()),
        ("confirmation of number 1", key().confirmation(1).unwrap().to_vec()),
        (
            "proof for number 2, app key 5, the same public key",
            key().rekey_proof(2, 5, &device_public).unwrap().to_vec(),
        ),
        ("sealed body of the own queue", own),
        ("sealed body of the topic", body),
        ("wrapped key", wrapped.to_vec()),
    ];
    for (name, value) in made {
        assert_eq!(documented(name), hex(&value), "{name}");
    }
}

#[test]
fn both_ends_agree_and_nobody_else_does() {
    let (app, device, other) = (app(), device(), PrivateKey::random().unwrap());
    let ours = RegistrationKey::of_app(&app, &device.public().unwrap(), REGID).unwrap();
    assert!(ours == key());
    let theirs = RegistrationKey::of_device(&other, &app.public().unwrap(), REGID).unwrap();
    assert!(theirs != ours, "another pair");
    let elsewhere = RegistrationKey::of_app(&app, &device.public().unwrap(), "r2").unwrap();
    assert!(elsewhere != ours, "another registration");
    assert!(is_proof(&ours.confirmation(1).unwrap(), &key().confirmation(1).unwrap()));
    assert!(!is_proof(&ours.confirmation(1).unwrap(), &ours.confirmation(2).unwrap()));
    assert!(!is_proof(&ours.confirmation(1).unwrap(), &[]));
}

#[test]
fn public_keys_of_low_order_are_refused() {
    for low in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        assert!(RegistrationKey::of_app(&app(), &PublicKey(low), REGID).is_err());
        assert!(RegistrationKey::of_device(&device(), &PublicKey(low), REGID).is_err());
    }
}

#[test]
fn an_apps_key_is_read_as_it_is_shown() {
    let key = AppKey { id: 5, public: app().public().unwrap() };
    assert_eq!(key.to_string().parse(), Ok(key));
    let text = key.to_string();
    for wrong in ["", "5", "5-", &text[1..], &text[..text.len() - 1], "x-00", "-1-00"] {
        assert!(wrong.parse::<AppKey>().is_err(), "{wrong}");
    }
    assert!(format!("4294967295-{}", &text[2..]).parse::<AppKey>().is_err());
}

#[test]
fn no_key_is_printed() {
    let secret = hex(&key().to_bytes());
    for text in [format!("{:?}", key()), format!("{:?}", app()), format!("{:?}", super_secret())] {
        assert!(text.ends_with("(…)") && !text.contains(&secret[..8]), "{text}");
    }
}

fn super_secret() -> EntrySecret {
    EntrySecret::random().unwrap()
}

/// Everything that a receiver looks at when it opens an entry.
#[derive(Clone)]
struct Seen {
    regid: String,
    kind: u8,
    name: String,
    epoch: u32,
    seq: u64,
    id: Vec<u8>,
    time_ms: i64,
    sealed: Vec<u8>,
    wrapped: Vec<u8>,
}

impl Seen {
    fn open(&self) -> Option<Vec<u8>> {
        let queue = Queue { kind: self.kind, name: &self.name, epoch: self.epoch };
        let item = Item { seq: self.seq, id: &self.id, time_ms: self.time_ms };
        let Ok(wrapped) = <&[u8; WRAPPED_KEY_BYTES]>::try_from(&self.wrapped[..]) else {
            let own = key().own(&queue).unwrap();
            return own.open(&self.regid, &queue, &item, self.sealed.clone()).ok();
        };
        let wrapping = key().wrapping(&queue).unwrap();
        let hash = BodyHash::of(&self.sealed);
        let entry = wrapping.unwrap(&self.regid, &queue, &item, &hash, wrapped).ok()?;
        entry.open(&queue, &item, self.sealed.clone()).ok()
    }

    /// The same with one bit changed.
    fn damaged(&self, field: usize, bit: usize) -> Self {
        let mut seen = self.clone();
        let flip = |bytes: &mut Vec<u8>| {
            let at = bit % (8 * bytes.len());
            bytes[at / 8] ^= 1 << (at % 8);
        };
        match field {
            0 => flip(&mut seen.sealed),
            1 => seen.seq ^= 1 << (bit % 64),
            2 => seen.epoch ^= 1 << (bit % 32),
            3 => seen.time_ms ^= 1 << (bit % 64),
            4 => flip(&mut seen.id),
            5 => seen.kind ^= 1 << (bit % 8),
            6 => seen.regid.push('x'),
            7 => seen.name.push('x'),
            8 => seen.sealed.truncate(bit % seen.sealed.len()),
            _ if seen.wrapped.is_empty() => flip(&mut seen.sealed),
            _ => flip(&mut seen.wrapped),
        }
        seen
    }
}

fn sealed(queue: &Queue<'_>, plaintext: Vec<u8>) -> Seen {
    let id = counting::<15>(1);
    let (sealed, wrapped) = match queue.kind {
        1 => {
            let own = key().own(queue).unwrap();
            (own.seal(REGID, queue, &item(&id), plaintext).unwrap(), Vec::new())
        }
        _ => {
            let (body, wrapped) = shared(plaintext, &item(&id));
            (body, wrapped.to_vec())
        }
    };
    let item = item(&id);
    Seen {
        regid: REGID.to_owned(),
        kind: queue.kind,
        name: queue.name.to_owned(),
        epoch: queue.epoch,
        seq: item.seq,
        id: id.to_vec(),
        time_ms: item.time_ms,
        sealed,
        wrapped,
    }
}

proptest! {
    #[test]
    fn what_is_sealed_opens_and_any_bit_changed_is_refused(
        plaintext in prop::collection::vec(any::<u8>(), 0..600),
        is_own in any::<bool>(),
        field in 0..10usize,
        bit in any::<usize>(),
    ) {
        let seen = sealed(if is_own { &OWN } else { &TOPIC }, plaintext.clone());
        prop_assert_eq!(seen.open(), Some(plaintext));
        prop_assert_eq!(seen.damaged(field, bit).open(), None);
    }
}

#[test]
fn a_follower_cannot_put_another_body_under_the_key_that_all_followers_share() {
    let id = counting::<15>(1);
    let item = item(&id);
    let entry = secret().entry_key(&TOPIC, &item).unwrap();
    let (_, wrapped) = shared(b"true".to_vec(), &item);
    let forged = entry.seal(&TOPIC, &item, b"forged".to_vec()).unwrap();
    let wrapping = key().wrapping(&TOPIC).unwrap();
    let unwrapped = wrapping.unwrap(REGID, &TOPIC, &item, &BodyHash::of(&forged), &wrapped);
    assert!(unwrapped.is_err());
}

/// What a (key, nonce) does to zeros tells it apart from all others.
#[derive(Default)]
struct Met {
    streams: HashSet<u64>,
    records: HashMap<(u64, u64), [u8; 16]>,
}

impl Met {
    /// A record was sealed: once for each (stream, record), and again only as the same bytes.
    fn seal(&mut self, stream: u64, record: u64, sealed: &[u8]) {
        let first = sealed[..16].try_into().unwrap();
        if let Some(before) = self.records.get(&(stream, record)) {
            return assert_eq!(*before, first, "sealed again to other bytes");
        }
        let tells = u64::from_le_bytes(sealed[..8].try_into().unwrap());
        assert!(self.streams.insert(tells), "a nonce met its key twice");
        self.records.insert((stream, record), first);
    }

    /// Between records, never between one and its redelivery: bounds what is kept.
    fn forget_old(&mut self) {
        if self.records.len() > 10_000 {
            self.records.clear();
        }
    }
}

/// Registrations with rekeys, queues with new epochs, redelivery and restarts; a third each of own
/// bodies, shared bodies and wrapped keys.
fn meet(records: u64) {
    let (app, secret) = (PrivateKey::random().unwrap(), EntrySecret::random().unwrap());
    let same = secret.entry_key(&TOPIC, &item(&[0; 15])).unwrap();
    let mut met = Met::default();
    let (mut key, mut wrapped) = (None, Vec::new());
    for n in 0..records / 3 {
        let (registration, epoch, seq) = (n / 500, 1 + (n / 250 % 2) as u32, 1 + n % 250);
        if n % 500 == 0 {
            // A new registration, or a rekey of one.
            let device = PrivateKey::random().unwrap().public().unwrap();
            let regid = format!("r{}", registration / 2);
            key = Some(RegistrationKey::of_app(&app, &device, &regid).unwrap());
        }
        // A restart: everything is derived anew from what was kept.
        let kept = key.as_ref().map(RegistrationKey::to_bytes).unwrap();
        let key = RegistrationKey::from_bytes(kept);
        let own = Queue { epoch, ..OWN };
        let name = format!("t{registration}");
        let topic = Queue { epoch, name: &name, ..TOPIC };
        let id = [&[0; 7][..], &(n / 2 * 2).to_le_bytes()].concat();
        let item = Item { seq, ..item(&id) };
        met.forget_old();
        for _again in 0..1 + usize::from(n % 50 == 0) {
            let regid = "r";
            let body = key.own(&own).unwrap().seal(regid, &own, &item, vec![0; 16]).unwrap();
            met.seal(0, n, &body);
            let entry = secret.entry_key(&topic, &item).unwrap();
            let body = entry.seal(&topic, &item, vec![0; 16]).unwrap();
            met.seal(1, n, &body);
            wrapped.clear();
            let wrapping = key.wrapping(&topic).unwrap();
            let hash = BodyHash::of(&body);
            wrapping.wrap(regid, &topic, &item, &hash, &same, &mut wrapped).unwrap();
            met.seal(2, n, &wrapped);
        }
    }
    assert_eq!(met.streams.len() as u64, records / 3 * 3);
}

#[test]
fn no_key_meets_a_nonce_twice_in_a_hundred_thousand_records() {
    meet(100_000);
}

#[test]
#[ignore = "takes minutes: scripts/slow seal"]
fn no_key_meets_a_nonce_twice_in_ten_million_records() {
    meet(10_000_000);
}
