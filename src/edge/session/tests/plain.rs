//! Plain use.

use super::*;

fn ready(rig: &mut Rig) {
    assert_eq!(
        rig.subscribe(&[("push", Qos::AtLeastOnce)], &[registration(1, "demo", &["x"])]),
        [1]
    );
}

#[test]
fn a_message_arrives_as_sent_with_id_queue_and_position() {
    let mut rig = Rig::v5();
    rig.append(&topic("x"), message("hello"));
    ready(&mut rig);
    let publishes = publishes(rig.pump());
    assert_eq!(texts(&publishes), ["hello"]);
    let publish = &publishes[0];
    assert_eq!(
        (publish.topic.as_str(), publish.qos, publish.retain),
        ("push", Qos::AtLeastOnce, false)
    );
    let id = MessageId([3; 15]).to_string();
    let expected = [("id", id.as_str()), ("queue", "topic/x"), ("position", "1:1")];
    let expected: Vec<_> =
        expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    assert_eq!(publish.user, expected);
    rig.ack(publish.packet_id);
    assert_eq!((rig.stored(&topic("x")), &rig.out.acked.at_ms[..]), (1, &[1_001][..]));
}

#[test]
fn acknowledgements_out_of_order_move_the_pointer_over_the_prefix() {
    let mut rig = Rig::v5();
    ready(&mut rig);
    ["a", "b", "c"].iter().for_each(|text| rig.own_one(text));
    let publishes = publishes(rig.pump());
    rig.ack(publishes[2].packet_id);
    rig.ack(publishes[1].packet_id);
    assert_eq!(rig.stored(&own(1)), 0);
    rig.ack(publishes[0].packet_id);
    assert_eq!(rig.stored(&own(1)), 3);
}

#[test]
fn no_more_is_sent_than_the_client_takes() {
    let mut rig = Rig::with(Connect { clean_start: false, receive_max: 3, ..Connect::default() });
    ready(&mut rig);
    (0..10).for_each(|i| rig.own_one(&i.to_string()));
    let first = publishes(rig.pump());
    assert_eq!(texts(&first), ["0", "1", "2"]);
    rig.ack(first[0].packet_id);
    assert_eq!(texts(&publishes(rig.pump())), ["3"]);
}

#[test]
fn one_slow_app_does_not_block_the_others() {
    let mut rig = Rig::v5();
    let two = [registration(1, "demo", &[]), registration(2, "other", &[])];
    assert_eq!(
        rig.subscribe(&[("push/demo", Qos::AtLeastOnce), ("push/other", Qos::AtLeastOnce)], &two),
        [1, 1]
    );
    (0..100).for_each(|_| rig.own_one("slow"));
    assert_eq!(publishes(rig.pump()).len(), usize::from(rig.bounds.window_per_registration));
    rig.own(2, "quick");
    assert_eq!(texts(&publishes(rig.pump())), ["quick"]);
}

#[test]
fn quality_0_is_acknowledged_by_the_write() {
    let mut rig = Rig::v5();
    assert_eq!(rig.subscribe(&[("push", Qos::AtMostOnce)], &[registration(1, "demo", &[])]), [0]);
    rig.own(1, "a");
    rig.own(1, "b");
    assert_eq!(publishes(rig.pump()).len(), 2);
    assert_eq!(rig.stored(&own(1)), 0);
    rig.input(Input::Written);
    assert_eq!(rig.stored(&own(1)), 2);
}

#[test]
fn a_clean_start_begins_at_the_heads() {
    let mut rig = Rig::with(Connect::default());
    rig.own(1, "old");
    ready(&mut rig);
    assert_eq!(rig.stored(&own(1)), 1);
    rig.own(1, "new");
    assert_eq!(texts(&publishes(rig.pump())), ["new"]);
}

#[test]
fn a_topic_that_is_subscribed_too_comes_under_its_own_name() {
    let mut rig = Rig::v5();
    let filters = [("push", Qos::AtLeastOnce), ("topic/x", Qos::AtMostOnce)];
    rig.subscribe(&filters, &[registration(1, "demo", &["x", "y"])]);
    rig.append(&topic("x"), message("one"));
    rig.append(&topic("y"), message("two"));
    let mut seen: Vec<_> = publishes(rig.pump()).into_iter().map(|p| (p.topic, p.qos)).collect();
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        seen,
        [("push".to_owned(), Qos::AtLeastOnce), ("topic/x".to_owned(), Qos::AtMostOnce)]
    );
}

#[test]
fn with_a_topic_alone_the_other_queues_stay_where_they_are() {
    let mut rig = Rig::v5();
    rig.own(1, "mine");
    rig.append(&topic("x"), message("news"));
    rig.subscribe(&[("topic/x", Qos::AtLeastOnce)], &[registration(1, "demo", &["x"])]);
    let publishes = publishes(rig.pump());
    assert_eq!(texts(&publishes), ["news"]);
    rig.ack(publishes[0].packet_id);
    assert_eq!((rig.stored(&own(1)), rig.stored(&topic("x"))), (0, 1));
    // The own queue is still watched: it says that the topic is no longer followed.
    rig.append(&own(1), Body::Unfollow { queue: topic("x") });
    rig.pump();
    rig.append(&topic("x"), message("more"));
    assert_eq!(publishes_of(&mut rig), 0);
}

fn publishes_of(rig: &mut Rig) -> usize {
    publishes(rig.pump()).len()
}

#[test]
fn control_entries_change_what_is_followed_and_are_not_delivered() {
    let mut rig = Rig::v5();
    ready(&mut rig);
    rig.append(&own(1), Body::Follow { queue: topic("new"), since: at(0) });
    assert_eq!(publishes_of(&mut rig), 0);
    assert_eq!(rig.stored(&own(1)), 1);
    rig.append(&topic("new"), message("first"));
    assert_eq!(publishes_of(&mut rig), 1);
    rig.append(&own(1), Body::Unfollow { queue: topic("new") });
    rig.pump();
    rig.append(&topic("new"), message("second"));
    assert_eq!(publishes_of(&mut rig), 0);
}

#[test]
fn what_the_client_cannot_take_is_skipped_and_passed() {
    let mut rig = Rig::with(Connect {
        clean_start: false,
        max_packet_bytes: Some(200),
        ..Connect::default()
    });
    ready(&mut rig);
    rig.own(1, &"x".repeat(300));
    assert_eq!(publishes_of(&mut rig), 0);
    assert_eq!((rig.stored(&own(1)), &rig.out.ignored[..]), (1, &[Ignored::Oversize][..]));
}

#[test]
fn topic_aliases_are_used_up_to_the_clients_maximum() {
    let mut rig =
        Rig::with(Connect { clean_start: false, topic_alias_max: 1, ..Connect::default() });
    ready(&mut rig);
    rig.own(1, "a");
    rig.own(1, "b");
    let seen: Vec<_> =
        publishes(rig.pump()).into_iter().map(|p| (p.topic, p.topic_alias)).collect();
    assert_eq!(seen, [("push".to_owned(), Some(1)), (String::new(), Some(1))]);
}

#[test]
fn a_parked_session_is_resent_with_its_packet_ids_before_anything_new() {
    let mut rig = Rig::v311();
    ready(&mut rig);
    ["a", "b", "c"].iter().for_each(|text| rig.own_one(text));
    let first = publishes(rig.pump());
    let ids: Vec<u16> = first.iter().map(|p| p.packet_id).collect();
    rig.ack(ids[1]);
    rig.own(1, "d");
    let parked = rig.session.into_parked().expect("a persistent session is parked");

    let mut again = Rig { stored: rig.stored, queues: rig.queues, ..Rig::v311() };
    let terms = *again.session.terms();
    let standings = vec![again.standing(&registration(1, "demo", &["x"]))];
    again.session = Session::restored(terms, 0, parked, standings, &mut again.out);
    again.settle();
    let second = publishes(again.pump());
    let seen: Vec<_> = second.iter().map(|p| (p.packet_id, p.dup)).collect();
    assert_eq!(texts(&second), ["a", "c", "d"]);
    assert_eq!(seen[..2], [(ids[0], true), (ids[2], true)]);
    assert!(!seen[2].1 && !ids.contains(&seen[2].0));
    assert_eq!(again.out.tally.redeliveries, 2);
    for (id, _) in seen {
        again.ack(id);
    }
    assert_eq!(again.stored(&own(1)), 4);
}

#[test]
fn a_parked_session_is_resent_also_where_a_following_began_anew() {
    let mut rig = Rig::v311();
    ready(&mut rig);
    rig.own_one("a");
    let first = publishes(rig.pump());
    let parked = rig.session.into_parked().unwrap();
    let mut again = Rig { stored: rig.stored, queues: rig.queues, ..Rig::v311() };
    let mut standing = again.standing(&registration(1, "demo", &["x"]));
    // The stored pointer is still that of the earlier following.
    standing.starts[0].jump = Some(crate::queue::plan::Jump::New);
    let terms = *again.session.terms();
    again.session = Session::restored(terms, 0, parked, vec![standing], &mut again.out);
    again.settle();
    let second = publishes(again.pump());
    assert_eq!((second.len(), second[0].packet_id, second[0].dup), (1, first[0].packet_id, true));
}

#[test]
fn a_resend_is_not_confused_by_what_was_skipped_before_it() {
    let mut rig = Rig::v311();
    ready(&mut rig);
    rig.append(&own(1), Body::Follow { queue: topic("new"), since: at(0) });
    rig.own(1, "a");
    let first = publishes(rig.pump());
    assert_eq!(first.len(), 1);
    let parked = rig.session.into_parked().unwrap();
    let mut again = Rig { stored: rig.stored, queues: rig.queues, ..Rig::v311() };
    let mut record = registration(1, "demo", &["x"]);
    record.control = Seq(1);
    let standings = vec![again.standing(&record)];
    again.session = Session::restored(*again.session.terms(), 0, parked, standings, &mut again.out);
    again.settle();
    let second = publishes(again.pump());
    assert_eq!(texts(&second), ["a"]);
    assert_eq!((second[0].packet_id, second[0].dup), (first[0].packet_id, true));
}

#[test]
fn without_any_registration_left_the_connection_ends() {
    let mut rig = Rig::v5();
    ready(&mut rig);
    rig.input(Input::Nudged(Reasons::REFRESH));
    assert!(matches!(rig.out.call.take(), Some(Call::Refresh)));
    rig.input(Input::Answer(Answer::Refreshed(Vec::new())));
    assert_eq!(rig.out.close, Some(CloseReason::Unregistered));
}
