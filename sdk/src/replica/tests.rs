//! The rules of docs/PROTOCOL.md §4.4, one by one.

use carillon_wire::idl;

use super::*;
use crate::names::MessageId;

const R: &str = "r1";

pub(crate) fn queue(name: &QueueName) -> idl::Queue {
    name.to_idl()
}

pub(crate) fn topic(name: &str) -> QueueName {
    QueueName::Topic(name.to_owned())
}

pub(crate) fn entry(seq: u64) -> idl::Entry {
    idl::Entry {
        change: None,
        seq: seq as i64,
        id: None,
        time_ms: None,
        payload: None,
        notification: None,
        follow: None,
        unfollow: None,
        sealed: None,
        recall: None,
    }
}

pub(crate) fn message(seq: u64, id: &str) -> idl::Entry {
    idl::Entry {
        id: Some(id.as_bytes().to_vec()),
        payload: Some(id.as_bytes().to_vec()),
        ..entry(seq)
    }
}

pub(crate) fn follow(seq: u64, name: &QueueName, epoch: u32, since: u64) -> idl::Entry {
    let (epoch, since) = (epoch as i32, since as i64);
    let queue = queue(name);
    idl::Entry { follow: Some(idl::Follow { queue, epoch, since }), ..entry(seq) }
}

pub(crate) fn unfollow(seq: u64, name: &QueueName) -> idl::Entry {
    let queue = queue(name);
    idl::Entry { unfollow: Some(idl::Unfollow { queue }), ..entry(seq) }
}

pub(crate) fn delta(
    name: &QueueName,
    epoch: u32,
    (from, to): (u64, u64),
    entries: Vec<idl::Entry>,
) -> idl::Delta {
    idl::Delta {
        queue: queue(name),
        epoch: epoch as i32,
        from_seq: from as i64,
        to_seq: to as i64,
        tag: tag(epoch, to).to_vec(),
        entries,
        jump: None,
        wrapped_keys: None,
        key_number: None,
    }
}

pub(crate) fn tag(epoch: u32, to: u64) -> [u8; 8] {
    (u64::from(epoch) << 48 | to).to_be_bytes()
}

pub(crate) fn jump(reason: idl::JumpReason, delta: idl::Delta) -> idl::Delta {
    let jump = Some(reason);
    idl::Delta { jump, ..delta }
}

pub(crate) fn frame(deltas: Vec<idl::Delta>) -> idl::Deltas {
    let regid = R.to_owned();
    idl::Deltas { digests: None, regid, deltas }
}

pub(crate) fn ids(outcome: &Outcome) -> Vec<String> {
    let messages = outcome.deliver.iter().filter_map(|received| match received {
        Received::Message(message) => Some(message.id.as_bytes().to_vec()),
        Received::Ended { .. }
        | Received::Renewed { .. }
        | Received::Recalled { .. }
        | Received::Unopened { .. }
        | Received::KeyMissing { .. } => None,
    });
    messages.map(|id| String::from_utf8(id).unwrap()).collect()
}

/// Online, with one registration that stands at (1, 5) in its own queue and in `news`.
fn replica() -> Replica {
    let mut replica = Replica::new(State::default());
    replica.begin();
    resumed(&mut replica, Some(&[R]));
    let own = jump(NEW, delta(&QueueName::Own, 1, (1, 5), vec![]));
    let news = jump(NEW, delta(&topic("news"), 1, (1, 5), vec![]));
    replica.deltas(frame(vec![own, news])).unwrap();
    replica
}

fn resumed(replica: &mut Replica, regids: Option<&[&str]>) -> Outcome {
    let regids = regids.map(|regids| regids.iter().map(|&regid| regid.to_owned()).collect());
    replica.resumed(idl::Resumed { regids }).unwrap()
}

fn at(replica: &Replica, name: &QueueName) -> Option<(u32, u64)> {
    let positions = replica.positions();
    let at = positions.get(&RegId::from(R))?.get(name)?;
    Some((at.epoch, at.seq))
}

fn stated(outcome: &Outcome) -> Vec<&idl::RegistrationPositions> {
    let positions = outcome.send.iter().filter_map(|up| up.positions.as_ref());
    positions.flat_map(|stated| &stated.registrations).collect()
}

const NEW: idl::JumpReason = idl::JumpReason::NEW;

#[test]
fn what_continues_is_applied() {
    let mut replica = replica();
    let next = delta(&QueueName::Own, 1, (6, 9), vec![message(7, "a"), message(9, "b")]);
    let outcome = replica.deltas(frame(vec![next])).unwrap();
    assert_eq!(ids(&outcome), ["a", "b"]);
    assert!(outcome.send.is_empty());
    assert_eq!(at(&replica, &QueueName::Own), Some((1, 9)));
}

#[test]
fn of_an_overlap_only_the_suffix_is_applied() {
    let mut replica = replica();
    let overlap = delta(&QueueName::Own, 1, (4, 7), vec![message(5, "old"), message(6, "a")]);
    let outcome = replica.deltas(frame(vec![overlap])).unwrap();
    assert_eq!(ids(&outcome), ["a"]);
    assert_eq!(at(&replica, &QueueName::Own), Some((1, 7)));

    let older = delta(&QueueName::Own, 1, (2, 3), vec![message(3, "older")]);
    let outcome = replica.deltas(frame(vec![older])).unwrap();
    assert!(outcome.deliver.is_empty() && outcome.send.is_empty());
    assert_eq!(at(&replica, &QueueName::Own), Some((1, 7)));
    let own = replica.positions()[&RegId::from(R)][&QueueName::Own];
    assert_eq!(own.tag, Some(tag(1, 7)), "the tag of the delta that ended here");
}

#[test]
fn a_gap_is_not_applied_and_asked_once() {
    for (epoch, from) in [(1, 7), (2, 6)] {
        let mut replica = replica();
        let gap = || delta(&QueueName::Own, epoch, (from, 9), vec![message(9, "a")]);
        let news = delta(&topic("news"), 1, (6, 6), vec![message(6, "n")]);
        let outcome = replica.deltas(frame(vec![gap(), news])).unwrap();
        assert_eq!(ids(&outcome), ["n"], "what fits is applied");
        assert_eq!(stated(&outcome)[0].regid, R);
        assert_eq!(stated(&outcome)[0].positions.len(), 2);
        assert_eq!(at(&replica, &QueueName::Own), Some((1, 5)));

        let again = replica.deltas(frame(vec![gap()])).unwrap();
        assert_eq!(again, Outcome::default(), "the question is on its way");
        resumed(&mut replica, Some(&[R]));
        let later = replica.deltas(frame(vec![gap()])).unwrap();
        assert_eq!(later.send.len(), 1, "the answer has come, and still a gap");
    }
}

#[test]
fn endless_gaps_end_the_connection() {
    let mut replica = replica();
    let gap = || frame(vec![delta(&QueueName::Own, 1, (9, 9), vec![])]);
    for _ in 0..GAPS_MAX {
        assert_eq!(replica.deltas(gap()).unwrap().send.len(), 1);
        resumed(&mut replica, None);
    }
    assert!(replica.deltas(gap()).is_err());
}

#[test]
fn a_jump_is_applied_wherever_we_stand() {
    let mut replica = replica();
    let back = delta(&QueueName::Own, 2, (3, 4), vec![message(4, "a")]);
    let outcome = replica.deltas(frame(vec![jump(idl::JumpReason::AHEAD, back)]));
    assert_eq!(ids(&outcome.unwrap()), ["a"]);
    assert_eq!(at(&replica, &QueueName::Own), Some((2, 4)));

    let empty = delta(&QueueName::Own, 3, (5, 4), vec![]);
    replica.deltas(frame(vec![jump(idl::JumpReason::EPOCH_CHANGED, empty)])).unwrap();
    assert_eq!(at(&replica, &QueueName::Own), Some((3, 4)), "only the position moves");
}

#[test]
fn a_message_that_comes_by_two_queues_or_again_is_given_once() {
    let mut replica = replica();
    let own = delta(&QueueName::Own, 1, (6, 6), vec![message(6, "a")]);
    let news = delta(&topic("news"), 1, (6, 6), vec![message(6, "a")]);
    let outcome = replica.deltas(frame(vec![own, news])).unwrap();
    assert_eq!(ids(&outcome), ["a"]);
    let again = delta(&topic("news"), 2, (6, 7), vec![message(6, "a"), message(7, "b")]);
    let outcome = replica.deltas(frame(vec![jump(idl::JumpReason::EPOCH_CHANGED, again)]));
    assert_eq!(ids(&outcome.unwrap()), ["b"]);
}

#[test]
fn recent_ids_are_bounded_and_stored() {
    let mut state = State::default();
    let registration = state.registrations.entry(RegId::from(R)).or_default();
    for id in 0..RECENT {
        let id = MessageId::from_bytes(&(id as u32).to_be_bytes()).unwrap();
        assert!(registration.recent.insert(&id));
    }
    let mut stored = State::from_bytes("d", &state.to_bytes("d")).unwrap();
    assert_eq!(stored, state);
    let registration = stored.registrations.get_mut(&RegId::from(R)).unwrap();
    let first = MessageId::from_bytes(&0u32.to_be_bytes()).unwrap();
    let last = MessageId::from_bytes(&(RECENT as u32 - 1).to_be_bytes()).unwrap();
    assert!(!registration.recent.insert(&last));
    assert!(registration.recent.insert(&first), "the oldest is forgotten");
}

const RECENT: usize = crate::state::RECENT_IDS_MAX + 10;

#[test]
fn control_entries_change_what_is_followed() {
    let mut replica = replica();
    let (chess, news) = (topic("chess"), topic("news"));
    let control = vec![follow(6, &chess, 4, 100), unfollow(7, &news)];
    let own = delta(&QueueName::Own, 1, (6, 7), control);
    let chess_next = delta(&chess, 4, (101, 101), vec![message(101, "c")]);
    let outcome = replica.deltas(frame(vec![own, chess_next])).unwrap();
    assert_eq!(ids(&outcome), ["c"]);
    assert_eq!(at(&replica, &news), None);

    let late = delta(&news, 1, (6, 6), vec![message(6, "late")]);
    let outcome = replica.deltas(frame(vec![late])).unwrap();
    assert_eq!(outcome, Outcome::default(), "dropped without a question");

    let own = delta(&QueueName::Own, 1, (8, 8), vec![follow(8, &news, 1, 6)]);
    let next = delta(&news, 1, (7, 7), vec![message(7, "n")]);
    let outcome = replica.deltas(frame(vec![own, next])).unwrap();
    assert_eq!(ids(&outcome), ["n"], "followed anew from since");
}

#[test]
fn a_control_entry_outside_of_the_own_queue_means_nothing() {
    let mut replica = replica();
    let control = vec![unfollow(6, &QueueName::Own)];
    let news = delta(&topic("news"), 1, (6, 6), control);
    replica.deltas(frame(vec![news])).unwrap();
    assert_eq!(at(&replica, &QueueName::Own), Some((1, 5)));
}

#[test]
fn the_gateways_list_of_registrations_wins() {
    let mut replica = replica();
    replica.begin();
    let outcome = resumed(&mut replica, Some(&["r2"]));
    let regid = RegId::from(R);
    assert_eq!(outcome.deliver, [Received::Ended { regid }]);
    assert!(replica.positions().contains_key(&RegId::from("r2")));
    let late = delta(&QueueName::Own, 1, (6, 6), vec![message(6, "late")]);
    assert_eq!(replica.deltas(frame(vec![late])).unwrap(), Outcome::default());
}

#[test]
fn an_ended_registration_is_told_once() {
    let mut replica = replica();
    let regid = RegId::from(R);
    assert_eq!(replica.ended(regid.clone()).deliver.len(), 1);
    assert_eq!(replica.ended(regid.clone()), Outcome::default());
    assert!(replica.positions().is_empty());
    replica.registered(regid);
    let first = jump(NEW, delta(&QueueName::Own, 1, (1, 1), vec![message(1, "a")]));
    assert_eq!(ids(&replica.deltas(frame(vec![first])).unwrap()), ["a"]);
}

#[test]
fn everything_is_stated_when_asked() {
    let mut replica = replica();
    replica.registered(RegId::from("r0"));
    replica.begin();
    let outcome = replica.ask_positions().unwrap();
    let stated = stated(&outcome);
    assert_eq!((stated[0].regid.as_str(), stated[0].positions.len()), ("r0", 0));
    assert_eq!((stated[1].regid.as_str(), stated[1].positions.len()), ("r1", 2));
    assert_eq!(stated[1].positions[0].tag, Some(tag(1, 5).to_vec()));
    assert!(replica.ask_positions().is_ok());
    replica.resumed(idl::Resumed { regids: None }).unwrap();
    assert!(replica.ask_positions().is_err(), "nothing was stated since");
}

#[test]
fn a_digest_says_nothing_of_a_registration_that_has_no_position() {
    let mut replica = replica();
    replica.begin();
    let agreed = || idl::Resumed { regids: None };
    assert!(replica.resumed(agreed()).unwrap().send.is_empty());
    replica.registered(RegId::from("r0"));
    replica.begin();
    let outcome = replica.resumed(agreed()).unwrap();
    assert_eq!(stated(&outcome).len(), 2, "it asks which ones the gateway has");
    let listed = idl::Resumed { regids: Some(vec!["r1".into()]) };
    let outcome = replica.resumed(listed).unwrap();
    assert!(matches!(&outcome.deliver[..], [Received::Ended { regid }] if regid.as_str() == "r0"));
}

#[test]
fn a_device_that_has_nothing_states_an_empty_list() {
    let mut replica = Replica::new(State::default());
    replica.begin();
    let outcome = replica.ask_positions().unwrap();
    assert_eq!(outcome.send.len(), 1);
    assert!(stated(&outcome).is_empty());
}

#[test]
fn positions_beyond_a_frame_are_divided() {
    let mut state = State::default();
    for number in 0..40 {
        let registration = state.registrations.entry(RegId::from(format!("r{number}")));
        let registration = registration.or_default();
        for name in 0..200 {
            let at = Position { epoch: 1, seq: 1, tag: Some([0; 8]) };
            registration.positions.insert(topic(&format!("{name:064}")), at);
        }
    }
    let mut replica = Replica::new(state);
    replica.begin();
    let outcome = replica.ask_positions().unwrap();
    assert!(outcome.send.len() > 1);
    assert_eq!(stated(&outcome).len(), 40);
    for up in &outcome.send {
        assert!(carillon_wire::frame::encode_up(up, &mut Vec::new()).is_ok());
    }
}

#[test]
fn frames_that_cannot_be_are_refused_whole() {
    let own = |range, entries| delta(&QueueName::Own, 1, range, entries);
    let bad_tag = idl::Delta { tag: vec![1], ..own((6, 6), vec![]) };
    let bad = [
        own((8, 6), vec![]),
        own((0, 6), vec![]),
        own((6, 7), vec![message(8, "x")]),
        own((6, 7), vec![message(7, "x"), message(6, "y")]),
        own((6, 6), vec![message(6, &"x".repeat(65))]),
        idl::Delta { epoch: -1, ..own((6, 6), vec![]) },
        bad_tag,
    ];
    for bad in bad {
        let mut replica = replica();
        let good = delta(&topic("news"), 1, (6, 6), vec![message(6, "n")]);
        assert!(replica.deltas(frame(vec![good, bad])).is_err());
        assert_eq!(at(&replica, &topic("news")), Some((1, 5)));
    }
}

#[test]
fn unknown_queues_and_entries_are_skipped() {
    let mut replica = replica();
    let queue = idl::Queue { kind: idl::QueueKind(9), name: None };
    let unknown = idl::Delta { queue, ..delta(&QueueName::Own, 1, (1, 1), vec![]) };
    let own = delta(&QueueName::Own, 1, (6, 7), vec![entry(6), message(7, "a")]);
    let outcome = replica.deltas(frame(vec![unknown, own])).unwrap();
    assert_eq!(ids(&outcome), ["a"]);
}

#[test]
fn damaged_state_is_an_error() {
    let bytes = replica().unsaved().unwrap().to_bytes("d");
    assert!(State::from_bytes("d", &bytes).is_ok());
    assert!(State::from_bytes("other", &bytes).is_err());
    for end in 0..bytes.len() {
        assert!(State::from_bytes("d", &bytes[..end]).is_err());
    }
}

#[test]
fn a_recalled_message_is_not_shown_again() {
    let mut replica = replica();
    let recall = idl::Entry { recall: Some(b"a".to_vec()), ..entry(6) };
    let next = delta(&QueueName::Own, 1, (6, 7), vec![recall, message(7, "a")]);
    let outcome = replica.deltas(frame(vec![next])).unwrap();
    let id = crate::MessageId::from_bytes(b"a").unwrap();
    assert_eq!(outcome.deliver, [Received::Recalled { regid: RegId::from(R), id }]);
    assert_eq!(at(&replica, &QueueName::Own), Some((1, 7)));
}
