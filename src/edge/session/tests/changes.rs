//! Changes of collections on their way to devices.

use carillon_wire::idl;

use super::{
    super::snapshots::Asked,
    frames::{downs, resume},
    *,
};
use crate::{
    queue::{
        collection::change::{Format, Hlc, Kind, Origin, Stamp, Value},
        entry::Change,
        plan::Jump,
    },
    service::snapshots::{Chunk, Gather, Part, Place, Rest},
};

fn alias() -> QueueName {
    QueueName::Alias(app("demo"), "ann".parse().unwrap())
}

fn follower(byte: u8) -> Registration {
    let mut record = registration(byte, "demo", &[]);
    record.follows.push(Follow { queue: alias(), since: at(0), control: Seq(0) });
    record
}

/// As the registration 1 made it with its 7th change.
fn change(kind: Kind, value: Value, is_as_made: bool) -> Body {
    let origin = Origin::Device { regid: RegId([1; 20]), cseq: 7 };
    Body::Change(Change {
        collection: "notes".parse().unwrap(),
        key: "n1".into(),
        kind,
        value,
        stamp: Stamp { clock: Hlc(5), origin },
        is_as_made,
        born: Seq(1),
        lived_before: false,
        bytes_so_far: 0,
    })
}

/// The changes that the device of a registration is given.
fn given(byte: u8) -> Vec<idl::Change> {
    let mut rig = Rig::v5();
    let json = Value::json("1");
    rig.append(&alias(), change(Kind::New, json.clone(), true));
    rig.append(&alias(), change(Kind::Update, json, false));
    let thrift = Value { format: Format::Thrift, bytes: Bytes::from_static(b"\0") };
    rig.append(&alias(), change(Kind::Update, thrift, false));
    rig.append(&alias(), change(Kind::Delete, Value::default(), true));
    resume(&mut rig, &[follower(byte)]);
    let seen = downs(rig.pump());
    let deltas = seen.into_iter().filter_map(|(_, down)| down.deltas);
    let entries = deltas.flat_map(|all| all.deltas).flat_map(|delta| delta.entries);
    entries.map(|entry| entry.change.unwrap()).collect()
}

#[test]
fn a_device_is_given_changes_and_its_own_without_their_value() {
    let (own, others) = (given(1), given(2));
    assert!(own.iter().all(|change| change.cseq == Some(7)));
    assert!(others.iter().all(|change| change.cseq.is_none() && change.clock == Some(5)));
    let values = |all: &[idl::Change]| all.iter().map(|one| one.value.clone()).collect::<Vec<_>>();
    let (json, thrift) = (Some(b"1".to_vec()), Some(b"\0".to_vec()));
    assert_eq!(values(&own), [None, json.clone(), thrift.clone(), None]);
    assert_eq!(values(&others), [json.clone(), json, thrift, None]);
    assert_eq!(others[2].format, Some(idl::ValueFormat::THRIFT));
    assert_eq!((others[0].format, others[3].kind), (None, idl::ChangeKind::DELETE));
}

#[test]
fn plain_clients_are_given_the_messages_between_changes() {
    let mut rig = Rig::v5();
    rig.append(&alias(), change(Kind::New, Value::json("1"), true));
    rig.append(&alias(), message("hello"));
    rig.append(&alias(), change(Kind::Update, Value::json("2"), true));
    assert_eq!(rig.subscribe(&[("push", Qos::AtLeastOnce)], &[follower(1)]), [1]);
    let publishes = publishes(rig.pump());
    assert_eq!(texts(&publishes), ["hello"]);
    rig.ack(publishes[0].packet_id);
    assert_eq!(rig.stored(&alias()), 3, "its pointer passes them");
}

/// What the session asks for once the device of registration 1 fell below what is held.
fn torn(rig: &mut Rig) -> Box<Asked> {
    rig.append(&alias(), change(Kind::New, Value::json("1"), true));
    rig.append(&alias(), change(Kind::Update, Value::json("2"), true));
    resume(rig, &[follower(1)]);
    rig.is_torn = true;
    assert!(downs(rig.pump()).iter().all(|(_, down)| down.deltas.is_none()));
    asked(rig)
}

fn asked(rig: &mut Rig) -> Box<Asked> {
    match rig.out.call.take() {
        Some(Call::Chunk(asked)) => asked,
        other => panic!("a chunk is asked for, not {other:?}"),
    }
}

fn part(begins: bool, rest: Rest) -> Part {
    Part::Chunk(Chunk { reason: Jump::Overflow, at: at(1), begins, items: Vec::new(), rest })
}

#[test]
fn who_fell_below_what_is_held_is_given_chunks_and_the_last_one_moves_the_pointer() {
    let mut rig = Rig::v5();
    let first = torn(&mut rig);
    assert_eq!(first.gather, Gather { reason: Jump::Overflow, place: None });
    rig.input(Input::Answer(Answer::Chunk(first, part(true, Rest::Before(Seq(1))))));
    let chunks = downs(rig.pump());
    assert_eq!(chunks[0].1.snapshot.as_ref().map(|chunk| chunk.begins), Some(Some(true)));
    let second = asked(&mut rig);
    assert_eq!(second.gather.place, Some(Place { at: at(1), before: Seq(1) }));
    rig.input(Input::Answer(Answer::Chunk(second, part(false, Rest::Until(Seq(2))))));
    let seen = downs(rig.pump());
    assert_eq!(seen[0].1.snapshot.as_ref().and_then(|chunk| chunk.until_seq), Some(2));
    let deltas = &seen[1].1.deltas.as_ref().unwrap().deltas;
    assert_eq!((deltas[0].from_seq, deltas[0].jump), (2, None), "they go on at the snapshot");
    rig.ack(chunks[0].0);
    assert_eq!(rig.stored(&alias()), 0);
    rig.ack(seen[0].0);
    assert_eq!(rig.stored(&alias()), 1);
    rig.ack(seen[1].0);
    assert_eq!(rig.stored(&alias()), 2);
}

#[test]
fn without_long_term_storage_a_device_waits_and_then_goes_on_with_what_is_held() {
    let mut rig = Rig::v5();
    let mut first = torn(&mut rig);
    rig.input(Input::Answer(Answer::Chunk(first.clone(), Part::Later)));
    assert!(downs(rig.pump()).is_empty() && rig.out.call.is_none(), "not at once");
    first.gather.reason = Jump::New;
    rig.input(Input::Answer(Answer::Chunk(first.clone(), Part::Deltas)));
    assert!(downs(rig.pump()).is_empty(), "the answer to what is not asked any more");
    first.gather.reason = Jump::Overflow;
    rig.input(Input::Answer(Answer::Chunk(first, Part::Deltas)));
    let seen = downs(rig.pump());
    let deltas = &seen[0].1.deltas.as_ref().unwrap().deltas;
    assert_eq!(deltas[0].jump, Some(idl::JumpReason::OVERFLOW));
}

#[test]
fn who_waited_for_long_term_storage_long_enough_goes_on_and_is_counted() {
    let mut rig = Rig::v5();
    let asked = torn(&mut rig);
    let mut waits = 0;
    let seen = loop {
        rig.input(Input::Answer(Answer::Chunk(asked.clone(), Part::Later)));
        let seen = downs(rig.pump());
        if !seen.is_empty() {
            break seen;
        }
        assert_eq!(rig.given_up, 0);
        waits += 1;
        assert!(waits < 100, "for ever");
    };
    assert_eq!((waits, rig.given_up), (24, 1));
    let deltas = &seen[0].1.deltas.as_ref().unwrap().deltas;
    assert_eq!(deltas[0].jump, Some(idl::JumpReason::OVERFLOW));
}

#[test]
fn a_snapshot_where_the_following_began_moves_the_stored_pointer_there() {
    let mut rig = Rig::v5();
    let asked = torn(&mut rig);
    let Part::Chunk(last) = part(true, Rest::Until(Seq(0))) else { return };
    let last = Chunk { at: at(0), ..last };
    rig.input(Input::Answer(Answer::Chunk(asked, Part::Chunk(last))));
    let seen = downs(rig.pump());
    assert!(!rig.stored.contains_key(&alias().id()));
    rig.ack(seen[0].0);
    assert_eq!(rig.stored.get(&alias().id()), Some(&0), "a device that has items is not bare");
}
