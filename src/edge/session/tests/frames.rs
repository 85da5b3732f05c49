//! Frames.

use carillon_wire::{frame, idl, mqtt::Disconnect};

use super::{
    super::frames::{Ticket, Unknown},
    *,
};
use crate::{
    base::metrics::UpKind,
    queue::{entry::Priority, plan::Jump},
    service::seals::Registered,
};

fn up(rig: &mut Rig, up: &idl::Up, qos: Qos, packet_id: u16) {
    let mut payload = Vec::new();
    frame::encode_up(up, &mut payload).unwrap();
    let publish = Publish {
        qos,
        topic: "up".into(),
        packet_id,
        payload: payload.into(),
        ..Publish::default()
    };
    rig.packet(Packet::Publish(publish));
}

fn empty() -> idl::Up {
    carillon_wire::frame::empty_up()
}

pub(super) fn resume(rig: &mut Rig, registrations: &[Registration]) {
    resume_with(rig, None, registrations);
}

pub(super) fn resume_with(rig: &mut Rig, dictionary: Option<i32>, registrations: &[Registration]) {
    let resume = Some(idl::Resume { digest: 0, dictionary });
    up(rig, &idl::Up { resume, ..empty() }, Qos::AtMostOnce, 0);
    let Some(Call::Resume(ticket, 0)) = rig.out.call.take() else { panic!("a resume is a call") };
    let standings = registrations.iter().map(|r| rig.standing(r)).collect();
    rig.input(Input::Answer(Answer::Resumed(ticket, Some(standings))));
}

pub(super) fn downs(packets: Vec<Packet>) -> Vec<(u16, idl::Down)> {
    publishes(packets)
        .into_iter()
        .map(|p| (p.packet_id, frame::decode_down(&p.payload).unwrap()))
        .collect()
}

fn ranges(down: &idl::Down) -> Vec<(idl::QueueKind, i64, i64, usize)> {
    let deltas = &down.deltas.as_ref().expect("deltas").deltas;
    deltas.iter().map(|d| (d.queue.kind, d.from_seq, d.to_seq, d.entries.len())).collect()
}

#[test]
fn i7_deltas_flow_after_resumed_and_not_before() {
    let mut rig = Rig::v5();
    rig.own(1, "a");
    rig.append(&topic("x"), message("b"));
    assert_eq!(rig.subscribe(&[("down", Qos::AtLeastOnce)], &[]), [1]);
    assert!(downs(rig.pump()).is_empty());
    resume(&mut rig, &[registration(1, "demo", &["x"])]);
    let seen = downs(rig.pump());
    assert_eq!(seen[0].1.resumed, Some(idl::Resumed { regids: None }));
    assert_eq!(
        ranges(&seen[1].1),
        [(idl::QueueKind::OWN, 1, 1, 1), (idl::QueueKind::TOPIC, 1, 1, 1)]
    );
    assert_eq!(seen.len(), 2);
    rig.ack(seen[1].0);
    assert_eq!((rig.stored(&own(1)), rig.stored(&topic("x"))), (1, 1));
}

#[test]
fn s26_who_has_everything_is_told_so_in_24_bytes() {
    let mut rig = Rig::v5();
    rig.subscribe(&[("down", Qos::AtLeastOnce)], &[]);
    let all = [1, 2, 3].map(|byte| registration(byte, "demo", &["x", "y"]));
    resume(&mut rig, &all);
    let seen = publishes(rig.pump());
    assert_eq!(seen.len(), 1);
    assert!(seen[0].payload.len() <= 24, "{} bytes", seen[0].payload.len());
    let down = frame::decode_down(&seen[0].payload).unwrap();
    assert_eq!(down.resumed, Some(idl::Resumed { regids: None }));
}

#[test]
fn a_device_whose_digest_differs_is_asked_for_its_positions() {
    let mut rig = Rig::v5();
    up(
        &mut rig,
        &idl::Up { resume: Some(idl::Resume { digest: 5, dictionary: None }), ..empty() },
        Qos::AtLeastOnce,
        3,
    );
    let Some(Call::Resume(ticket, 5)) = rig.out.call.take() else { panic!("a resume is a call") };
    assert_eq!(rig.read(), [], "an uplink is acknowledged after it was performed");
    rig.input(Input::Answer(Answer::Resumed(ticket, None)));
    let packets = rig.read();
    assert_eq!(packets.last(), Some(&Packet::PubAck(Ack { packet_id: 3, reason: 0 })));
    assert!(downs(packets)[0].1.ask_positions.is_some());
}

#[test]
fn a_following_is_not_sent_before_its_control_entry() {
    let mut rig = Rig::v5();
    let mut record = registration(1, "demo", &["x"]);
    record.follows[1].control = Seq(2);
    record.control = Seq(2);
    rig.append(&topic("x"), message("early"));
    rig.own(1, "first");
    resume(&mut rig, std::slice::from_ref(&record));
    let seen = downs(rig.pump());
    assert_eq!(ranges(&seen[1].1), [(idl::QueueKind::OWN, 1, 1, 1)]);
    rig.append(&own(1), Body::Follow { queue: topic("x"), since: at(0) });
    let seen = downs(rig.pump());
    assert_eq!(
        ranges(&seen[0].1),
        [(idl::QueueKind::OWN, 2, 2, 1), (idl::QueueKind::TOPIC, 1, 1, 1)]
    );
}

#[test]
fn a_jump_is_told_even_when_there_is_nothing_new() {
    let mut rig = Rig::v5();
    let mut standing = rig.standing(&registration(1, "demo", &[]));
    standing.starts[1] = Start {
        after: at(7),
        jump: Some(Jump::New),
        reason: ResumeReason::New,
        is_stored: false,
        gather: None,
    };
    let ticket = Ticket { packet_id: 0, qos: Qos::AtMostOnce, request: 0, kind: UpKind::Positions };
    up(
        &mut rig,
        &idl::Up {
            positions: Some(idl::Positions { registrations: vec![], more: None }),
            ..empty()
        },
        Qos::AtMostOnce,
        0,
    );
    rig.out.call = None;
    rig.input(Input::Answer(Answer::Positioned(
        ticket,
        vec![standing],
        vec![Unknown { regid: "gone".into(), has_expired: false }],
    )));
    let seen = downs(rig.pump());
    assert!(seen[0].1.resumed.is_some());
    assert_eq!(seen[1].1.ended, Some(idl::Ended { regid: "gone".into(), reason: None }));
    let delta = &seen[2].1.deltas.as_ref().unwrap().deltas[0];
    assert_eq!((delta.from_seq, delta.to_seq, delta.jump), (8, 7, Some(idl::JumpReason::NEW)));
    rig.ack(seen[2].0);
    assert_eq!(rig.stored(&QueueName::All(app("demo"))), 7);
}

#[test]
fn i11_a_frame_is_bounded_in_entries_and_bytes() {
    let mut rig = Rig::v5();
    rig.bounds.frame_entries_max = 64;
    (0..100).for_each(|_| rig.own_one("small"));
    resume(&mut rig, &[registration(1, "demo", &[])]);
    let seen = downs(rig.pump());
    assert_eq!(ranges(&seen[1].1), [(idl::QueueKind::OWN, 1, 64, 64)]);
    assert_eq!(ranges(&seen[2].1), [(idl::QueueKind::OWN, 65, 100, 36)]);

    let mut rig = Rig::v5();
    let (large, larger) = ("x".repeat(10 << 10), "x".repeat(40 << 10));
    (0..4).for_each(|_| rig.own_one(&large));
    (0..2).for_each(|_| rig.own_one(&larger));
    resume(&mut rig, &[registration(1, "demo", &[])]);
    let seen = downs(rig.pump());
    assert_eq!(ranges(&seen[1].1), [(idl::QueueKind::OWN, 1, 3, 3)]);
    assert_eq!(ranges(&seen[2].1), [(idl::QueueKind::OWN, 4, 4, 1)]);
    assert_eq!(ranges(&seen[3].1), [(idl::QueueKind::OWN, 5, 5, 1)], "one alone may be larger");
    assert_eq!(ranges(&seen[4].1), [(idl::QueueKind::OWN, 6, 6, 1)]);
}

#[test]
fn an_entry_above_the_clients_maximum_is_passed_over() {
    let mut rig = Rig::with(Connect {
        clean_start: false,
        max_packet_bytes: Some(500),
        ..Connect::default()
    });
    rig.own(1, &"x".repeat(600));
    rig.own(1, "fits");
    resume(&mut rig, &[registration(1, "demo", &[])]);
    let seen = downs(rig.pump());
    assert_eq!(ranges(&seen[1].1), [(idl::QueueKind::OWN, 1, 2, 1)]);
    assert_eq!(rig.out.ignored, [Ignored::Oversize]);
}

#[test]
fn what_is_no_frame_is_answered_and_acknowledged() {
    let mut rig = Rig::v5();
    let payload = Bytes::from_static(&[0xFF; 9]);
    let publish = Publish {
        qos: Qos::AtLeastOnce,
        topic: "up".into(),
        packet_id: 8,
        payload,
        ..Publish::default()
    };
    rig.packet(Packet::Publish(publish));
    let packets = rig.read();
    assert_eq!(packets.last(), Some(&Packet::PubAck(Ack { packet_id: 8, reason: 0 })));
    let result = downs(packets).remove(0).1.result.unwrap();
    assert_eq!((result.request, result.code), (0, idl::ResultCode::MALFORMED));
    up(&mut rig, &idl::Up { request: Some(4), ..empty() }, Qos::AtMostOnce, 0);
    let result = downs(rig.read()).remove(0).1.result.unwrap();
    assert_eq!((result.request, result.code), (4, idl::ResultCode::UNKNOWN_KIND));
    assert_eq!(rig.out.unknown_ups, 2);
}

fn register(rig: &mut Rig, request: i64, packet_id: u16) {
    let register =
        idl::Register { app_id: "demo".into(), app_key: "k".into(), seal: None, attributes: None };
    let asked = idl::Up { request: Some(request), register_app: Some(register), ..empty() };
    up(rig, &asked, Qos::AtLeastOnce, packet_id);
    let Some(Call::Request(ticket, _)) = rig.out.call.take() else { panic!("a request is a call") };
    rig.input(Input::Answer(Answer::Requested(
        ticket,
        Ok(Some(Registered { regid: RegId([1; 20]), seal: None })),
    )));
}

#[test]
fn a_registration_made_on_the_connection_is_read_and_announced() {
    let mut rig = Rig::v5();
    resume(&mut rig, &[]);
    register(&mut rig, 9, 1);
    assert!(matches!(rig.out.call.take(), Some(Call::Refresh)));
    let standing = rig.standing(&registration(1, "demo", &[]));
    rig.input(Input::Answer(Answer::Refreshed(vec![standing])));
    let seen = downs(rig.pump());
    assert_eq!(
        seen[1].1.result.as_ref().map(|r| (r.request, r.code)),
        Some((9, idl::ResultCode::OK))
    );
    let deltas = &seen[2].1.deltas.as_ref().unwrap().deltas;
    assert!(
        deltas.iter().all(|delta| delta.jump == Some(idl::JumpReason::NEW)) && deltas.len() == 2
    );
    rig.input(Input::Answer(Answer::Refreshed(Vec::new())));
    assert!(downs(rig.pump())[0].1.ended.is_some());
}

#[test]
fn replies_wait_for_the_clients_receive_maximum_and_hold_their_pubacks() {
    let mut rig = Rig::with(Connect { receive_max: 1, ..Connect::default() });
    for i in 1..=17 {
        register(&mut rig, i64::from(i), i);
    }
    let packets = rig.read();
    assert_eq!(packets.len(), 2, "one result and its PUBACK: {packets:?}");
    let first = downs(packets).remove(0).0;
    let one_more = idl::Up { request: Some(99), ..empty() };
    let mut full = Vec::new();
    frame::encode_up(&one_more, &mut full).unwrap();
    rig.ack(first);
    assert_eq!(rig.read().len(), 2);
    register(&mut rig, 18, 18);
    up(&mut rig, &one_more, Qos::AtLeastOnce, 19);
    assert_eq!(rig.out.close, Some(CloseReason::ReceiveMaxExceeded));
}

#[test]
fn quality_2_is_bounded_for_3_1_1_and_refused_for_5() {
    let mut rig = Rig::v5();
    up(&mut rig, &empty(), Qos::ExactlyOnce, 1);
    assert_eq!(rig.out.close, Some(CloseReason::QosNotSupported));
    let mut rig = Rig::v311();
    for id in 1..=16 {
        up(&mut rig, &empty(), Qos::ExactlyOnce, id);
    }
    let count = rig.out.unknown_ups;
    up(&mut rig, &empty(), Qos::ExactlyOnce, 16);
    assert_eq!(
        (rig.out.unknown_ups, rig.out.close),
        (count, None),
        "a repeated one is not performed again"
    );
    rig.packet(Packet::PubRel(Ack { packet_id: 1, reason: 0 }));
    up(&mut rig, &empty(), Qos::ExactlyOnce, 17);
    assert_eq!(rig.out.close, None);
    up(&mut rig, &empty(), Qos::ExactlyOnce, 18);
    assert_eq!(rig.out.close, Some(CloseReason::QuotaExceeded));
}

#[test]
fn other_topics_and_topic_aliases_are_refused() {
    let foreign =
        |qos, packet_id| Publish { qos, topic: "x".into(), packet_id, ..Publish::default() };
    let mut rig = Rig::v5();
    rig.packet(Packet::Publish(foreign(Qos::AtLeastOnce, 4)));
    assert_eq!(rig.read(), [Packet::PubAck(Ack { packet_id: 4, reason: 0x87 })]);
    rig.packet(Packet::Publish(foreign(Qos::AtMostOnce, 0)));
    assert_eq!((rig.out.ignored.len(), rig.out.close), (2, None));
    let aliased = Publish { topic_alias: Some(1), ..foreign(Qos::AtMostOnce, 0) };
    rig.packet(Packet::Publish(aliased));
    assert_eq!(rig.out.close, Some(CloseReason::TopicAliasInvalid));
    let mut rig = Rig::v311();
    rig.packet(Packet::Publish(foreign(Qos::AtLeastOnce, 4)));
    assert_eq!(rig.out.close, Some(CloseReason::TopicNotAllowed));
}

#[test]
fn positions_at_any_time_reset_window_and_pointers() {
    let mut rig = Rig::v5();
    rig.own(1, "a");
    let record = [registration(1, "demo", &[])];
    resume(&mut rig, &record);
    let first = downs(rig.pump());
    let ticket = Ticket { packet_id: 0, qos: Qos::AtMostOnce, request: 0, kind: UpKind::Positions };
    let standings = vec![rig.standing(&record[0])];
    rig.input(Input::Answer(Answer::Positioned(ticket, standings, Vec::new())));
    let second = downs(rig.pump());
    assert_eq!(ranges(&second[1].1), ranges(&first[1].1));
    rig.ack(first[1].0);
    assert_eq!(rig.stored(&own(1)), 0, "a late acknowledgement of a forgotten frame moves nothing");
    rig.ack(second[1].0);
    assert_eq!(rig.stored(&own(1)), 1);
}

#[test]
fn positions_of_one_registration_leave_the_others_alone() {
    let mut rig = Rig::v5();
    rig.own(1, "a");
    rig.own(2, "b");
    let records = [registration(1, "demo", &[]), registration(2, "other", &[])];
    resume(&mut rig, &records);
    let first = downs(rig.pump());
    let ticket = Ticket { packet_id: 0, qos: Qos::AtMostOnce, request: 0, kind: UpKind::Positions };
    let mut standings = vec![rig.standing(&records[0]), rig.standing(&records[1])];
    standings[1].is_named = false;
    rig.input(Input::Answer(Answer::Positioned(ticket, standings, Vec::new())));
    let second = downs(rig.pump());
    let named = |downs: &[(u16, idl::Down)]| -> Vec<String> {
        downs.iter().filter_map(|(_, down)| down.deltas.as_ref().map(|d| d.regid.clone())).collect()
    };
    assert_eq!(named(&first).len(), 2);
    assert_eq!(named(&second), [records[0].regid.to_string()]);
    let other = first.iter().find(|(_, down)| {
        down.deltas.as_ref().is_some_and(|deltas| deltas.regid == records[1].regid.to_string())
    });
    rig.ack(other.unwrap().0);
    assert_eq!(rig.stored(&own(2)), 1, "what was on its way to the other still counts");
}

/// What a device that speaks frames hears at a drain: advice and DISCONNECT.
fn parted(rig: &mut Rig, farewell: Farewell) -> (idl::Advice, Disconnect) {
    resume(rig, &[]);
    rig.read();
    rig.farewell = Some(farewell);
    rig.input(Input::Nudged(Reasons::DRAIN));
    let mut packets = rig.read();
    let Some(Packet::Disconnect(end)) = packets.pop() else { panic!("DISCONNECT comes last") };
    (downs(packets).remove(0).1.advice.unwrap(), end)
}

#[test]
fn a_draining_node_advises_before_it_says_goodbye() {
    let advised = |dice: u32| {
        let mut rig = Rig { dice, ..Rig::v5() };
        let (advice, end) =
            parted(&mut rig, Farewell { reconnect_ms: 5_000, ..Farewell::default() });
        assert_eq!((end.reason, end.server_reference, advice.server), (0x8B, None, None));
        advice.reconnect_after_ms.unwrap()
    };
    assert_eq!([7, 4_999, 5_000, u32::MAX].map(advised), [7, 4_999, 0, 2_295]);
}

#[test]
fn a_draining_node_names_the_other_server_where_it_can() {
    let farewell = Farewell { server: Some("other.example:8883".into()), ..Farewell::default() };
    let (advice, end) = parted(&mut Rig::v5(), farewell.clone());
    assert_eq!(advice.server.as_deref(), Some("other.example:8883"));
    assert_eq!((end.reason, end.server_reference), (0x9C, farewell.server.clone()));
    // A device that takes short packets only is told so much.
    let end_of = |max_packet_bytes| {
        let mut rig = Rig::with(Connect { max_packet_bytes, ..Connect::default() });
        rig.farewell = Some(farewell.clone());
        rig.input(Input::Nudged(Reasons::DRAIN));
        rig.read()
    };
    assert!(matches!(&end_of(Some(33))[..], [Packet::Disconnect(end)] if end.reason == 0x8B));
    assert!(matches!(&end_of(Some(34))[..], [Packet::Disconnect(end)] if end.reason == 0x9C));
}

#[test]
fn the_window_of_one_registration_is_bounded() {
    let mut rig = Rig::v5();
    rig.bounds.frame_entries_max = 1;
    (0..100).for_each(|_| rig.own_one("a"));
    rig.own(2, "b");
    resume(&mut rig, &[registration(1, "demo", &[]), registration(2, "other", &[])]);
    let seen = downs(rig.pump());
    let share = usize::from(rig.bounds.window_per_registration);
    assert_eq!(seen.len(), 1 + share + 1);
}

#[test]
fn what_is_urgent_goes_before_the_rest_of_a_registration() {
    let mut rig = Rig::v5();
    let others = [own(1), topic("sport")].map(|one| one.id());
    let [news, more] = others.each_ref().map(|one| Reasons::new_in(one, Priority::Normal));
    // All of them at once, as one look finds them.
    let urgent = |name: &str| {
        Reasons(Reasons::new_in(&topic(name).id(), Priority::High).0 | news.0 | more.0)
    };
    // Some share a bit, and are as urgent then.
    let is_alone = |name: &&str| !others.iter().any(|one| urgent(name).are_urgent_for(one));
    let alarm = ["alarm", "fire", "flood", "storm", "theft", "quake"].into_iter().find(is_alone);
    let alarm = alarm.expect("one of them");
    let one = registration(1, "demo", &["sport", alarm]);
    resume(&mut rig, std::slice::from_ref(&one));
    rig.pump();
    rig.own_one("own");
    rig.append(&topic("sport"), message("sport"));
    rig.append(&topic(alarm), message("alarm"));
    rig.input(Input::Nudged(urgent(alarm)));
    let seen = downs(rig.pump());
    let first = seen[0].1.deltas.as_ref().expect("deltas").deltas[0].queue.clone();
    assert_eq!(first.name.as_deref(), Some(alarm));
    let kinds: Vec<_> = ranges(&seen[0].1).into_iter().map(|(kind, ..)| kind).collect();
    use idl::QueueKind;
    assert_eq!(kinds, [QueueKind::TOPIC, QueueKind::OWN, QueueKind::TOPIC]);
}
