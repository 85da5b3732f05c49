//! Changes of collections on their way to devices.

use carillon_wire::idl;

use super::{
    frames::{downs, resume},
    *,
};
use crate::queue::{
    collection::change::{Format, Hlc, Kind, Origin, Stamp, Value},
    entry::Change,
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
