//! What a sealed registration takes and what not.

use carillon_wire::seal::{
    AppKey, BodyHash, EntrySecret, Item, PrivateKey, Queue, RegistrationKey,
};
use carillon_wire::{frame as wire, idl};

use super::tests::{delta, entry, frame, jump, topic};
use super::*;
use crate::seals::Agreed;

const R: &str = "r1";
const NEW: idl::JumpReason = idl::JumpReason::NEW;

/// The gateway's end of one registration.
struct Gateway {
    app: PrivateKey,
    entries: EntrySecret,
    key: RegistrationKey,
    number: u32,
}

/// A replica whose registration is sealed.
fn sealed() -> (Gateway, Replica) {
    let app = PrivateKey::random().unwrap();
    let mut replica = Replica::default();
    replica.begin();
    let agreed = agree(&mut replica, &app);
    let key = agreed.key.key.clone();
    assert_eq!(replica.sealed(R.into(), agreed), Outcome::default());
    (Gateway { app, entries: EntrySecret::random().unwrap(), key, number: 1 }, replica)
}

fn app_key(app: &PrivateKey) -> AppKey {
    AppKey { id: 1, public: app.public().unwrap() }
}

fn agree(replica: &mut Replica, app: &PrivateKey) -> Agreed {
    let offered = replica.offer("demo", &app_key(app)).unwrap();
    let key = RegistrationKey::of_app(app, &offered.public, R).unwrap();
    let confirmation = key.confirmation(1).unwrap().to_vec();
    let wrong = idl::SealAnswer { number: 1, confirmation: vec![0; 16] };
    assert_eq!(offered.clone().agree(&R.into(), Some(&wrong)), None, "somebody else answers");
    assert_eq!(offered.clone().agree(&R.into(), None), None);
    offered.agree(&R.into(), Some(&idl::SealAnswer { number: 1, confirmation })).unwrap()
}

impl Gateway {
    /// One sealed message.
    fn delta(&self, name: &QueueName, epoch: u32, seq: u64) -> idl::Delta {
        let id = format!("id{epoch}.{seq}").into_bytes();
        let item = Item { seq, id: &id, time_ms: 5 };
        let (kind, text) = name.for_digest();
        let queue = Queue { kind, name: text, epoch };
        let content = idl::Content { payload: Some(b"text".to_vec()), notification: None };
        let content = wire::encode_content(&content);
        let (sealed, wrapped_keys) = if *name == QueueName::Own {
            (self.key.own(&queue).unwrap().seal(R, &queue, &item, content).unwrap(), None)
        } else {
            let entry = self.entries.entry_key(&queue, &item).unwrap();
            let body = entry.seal(&queue, &item, content).unwrap();
            let mut wrapped = Vec::new();
            let wrapping = self.key.wrapping(&queue).unwrap();
            wrapping.wrap(R, &queue, &item, &BodyHash::of(&body), &entry, &mut wrapped).unwrap();
            (body, Some(wrapped))
        };
        let one = idl::Entry {
            id: Some(id.clone()),
            time_ms: Some(5),
            sealed: Some(sealed),
            ..entry(seq)
        };
        let delta = delta(name, epoch, (seq, seq), vec![one]);
        idl::Delta { wrapped_keys, key_number: Some(self.number as i32), ..delta }
    }
}

fn given(replica: &mut Replica, deltas: Vec<idl::Delta>) -> Vec<Received> {
    replica.deltas(frame(deltas)).unwrap().deliver
}

fn texts(received: &[Received]) -> usize {
    let text = |one: &&Received| matches!(one, Received::Message(m) if m.payload == "text");
    received.iter().filter(text).count()
}

#[test]
fn own_and_shared_messages_open_once_and_a_replay_gives_nothing_whatever_it_claims() {
    for name in [QueueName::Own, topic("news")] {
        let (gateway, mut replica) = sealed();
        let old: Vec<idl::Delta> = (1..=1500).map(|seq| gateway.delta(&name, 1, seq)).collect();
        assert_eq!(texts(&given(&mut replica, vec![jump(NEW, old[0].clone())])), 1);
        assert_eq!(texts(&given(&mut replica, old[1..].to_vec())), 1499);
        // Ids of the first ones are forgotten by now; what was opened is not.
        for played in [&old[0], &old[700], &old[1499]] {
            assert_eq!(given(&mut replica, vec![jump(NEW, played.clone())]), []);
        }
        let epoch_2 = jump(idl::JumpReason::EPOCH_CHANGED, gateway.delta(&name, 2, 1));
        assert_eq!(texts(&given(&mut replica, vec![epoch_2.clone()])), 1);
        assert_eq!(given(&mut replica, vec![jump(NEW, old[5].clone()), epoch_2]), []);
        let stored = replica.unsaved().unwrap().to_bytes("d");
        let mut after = Replica::new(State::from_bytes("d", &stored).unwrap());
        after.begin();
        assert_eq!(given(&mut after, vec![jump(NEW, old[1499].clone())]), []);
    }
}

#[test]
fn what_is_not_sealed_altered_or_for_another_queue_is_refused_twice_and_then_passed_over() {
    let (gateway, _) = sealed();
    let good = gateway.delta(&QueueName::Own, 1, 1);
    let readable =
        idl::Entry { id: Some(b"x".to_vec()), payload: Some(b"text".to_vec()), ..entry(1) };
    let mut altered = good.clone();
    altered.entries[0].sealed.as_mut().unwrap()[3] ^= 4;
    let mut other_id = good.clone();
    other_id.entries[0].id = Some(b"other".to_vec());
    let mut moved = gateway.delta(&topic("news"), 1, 1);
    moved.queue = super::tests::queue(&topic("olds"));
    let mut keyless = gateway.delta(&topic("news"), 1, 1);
    keyless.wrapped_keys = None;
    let readable = delta(&QueueName::Own, 1, (1, 1), vec![readable]);
    for bad in [readable, altered, other_id, moved, keyless] {
        let (_, mut replica) = sealed();
        // The same key as the gateway's.
        let agreed = Agreed {
            app_id: "demo".into(),
            app: app_key(&gateway.app),
            public: gateway.app.public().unwrap(),
            key: crate::seals::Numbered { number: 1, key: gateway.key.clone() },
        };
        replica.state.registrations.get_mut(&RegId::from(R)).unwrap().seal =
            Some(crate::seals::Seal::new(agreed));
        let before = replica.positions();
        for _ in 0..2 {
            let fault = replica.deltas(frame(vec![jump(NEW, bad.clone())])).unwrap_err();
            assert!(fault.0.contains("cannot be opened"), "{fault}");
            assert_eq!(replica.positions(), before, "nothing of the frame is applied");
            replica.begin();
        }
        let received = given(&mut replica, vec![jump(NEW, bad)]);
        assert!(matches!(received[..], [Received::Unopened { seq: 1, .. }]), "{received:?}");
    }
}

#[test]
fn what_is_sealed_with_an_unknown_key_waits_and_is_asked_for_with_the_key() {
    let (gateway, mut replica) = sealed();
    let stored = Registration { seal: None, ..Registration::default() };
    let seal =
        std::mem::replace(replica.state.registrations.get_mut(&RegId::from(R)).unwrap(), stored);
    let one = jump(NEW, gateway.delta(&QueueName::Own, 1, 1));
    let received = given(&mut replica, vec![one.clone()]);
    assert_eq!(received, [Received::KeyMissing { regid: R.into() }]);
    assert_eq!(given(&mut replica, vec![gateway.delta(&QueueName::Own, 1, 2)]), []);
    let positions = |replica: &Replica| replica.positions()[&RegId::from(R)].len();
    assert_eq!(replica.positions().get(&RegId::from(R)).map_or(0, |own| own.len()), 0);
    // The pair that was offered agrees the same key.
    let key = crate::seals::Numbered { number: 1, key: gateway.key.clone() };
    let (app_id, app) = ("demo".to_owned(), app_key(&gateway.app));
    let agreed = Agreed { app_id, app, public: app.public, key };
    let asked = replica.sealed(R.into(), agreed);
    assert_eq!(asked.send.len(), 1, "positions, so that it comes again");
    assert_eq!(texts(&given(&mut replica, vec![one])), 1);
    assert_eq!(positions(&replica), 1);
    drop(seal);
}

#[test]
fn a_key_is_changed_also_when_the_answer_is_lost() {
    let (mut gateway, mut replica) = sealed();
    let app = app_key(&gateway.app);
    let before = gateway.delta(&QueueName::Own, 1, 1);
    let asked = replica.rekey(&R.into(), &app).unwrap();
    assert_eq!(replica.rekey(&R.into(), &app).unwrap(), asked, "asked again, it is the same");
    let public = asked.rekey.seal.public_key[..].try_into().unwrap();
    let public = carillon_wire::seal::PublicKey(public);
    assert_eq!(asked.rekey.proof, gateway.key.rekey_proof(2, 1, &public).unwrap());
    gateway.key = RegistrationKey::of_app(&gateway.app, &public, R).unwrap();
    gateway.number = 2;
    assert_eq!(asked.confirmation, gateway.key.confirmation(2).unwrap());
    // What was on its way with the old key, then the new one, without an answer.
    assert_eq!(texts(&given(&mut replica, vec![jump(NEW, before)])), 1);
    let stored = replica.unsaved().unwrap().to_bytes("d");
    let mut replica = Replica::new(State::from_bytes("d", &stored).unwrap());
    replica.begin();
    assert_eq!(texts(&given(&mut replica, vec![gateway.delta(&QueueName::Own, 1, 2)])), 1);
    assert_ne!(replica.rekey(&R.into(), &app).unwrap(), asked, "that one is done");
}

#[test]
fn a_device_for_sealed_apps_alone_takes_nothing_readable() {
    let mut replica = Replica::sealed_only(State::default());
    replica.begin();
    let readable = super::tests::message(1, "text");
    let own = jump(NEW, delta(&QueueName::Own, 1, (1, 1), vec![readable]));
    assert_eq!(given(&mut replica, vec![own]), [Received::KeyMissing { regid: R.into() }]);
}
