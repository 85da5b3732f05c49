//! Frames without a connection: the same calls, positions and deltas, one request at a time.

mod edge_support;

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;
use carillon::{
    config::Config,
    edge::{farewell::Farewell, visit::Error},
    service::{
        accept::Accept,
        bind::By,
        send::{Send, Target},
    },
};
use carillon_wire::{
    idl::{self, ResultCode},
    mqtt::{Connect, Packet},
};
use edge_support::{
    Account, Client, Node, up,
    visitor::{Visitor, bring, encoded, result},
};
use futures_util::future::join;

fn texts(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|n| n.to_string()).collect()
}

async fn send_all(node: &Node, account: &Account, numbers: std::ops::Range<usize>) {
    for n in numbers {
        node.send(account, &n.to_string()).await;
    }
}

fn resume(digest: i64) -> idl::Up {
    idl::Up { resume: Some(idl::Resume { digest, dictionary: None }), ..up(0) }
}

fn bind(request: i64, regid: &str, alias: &str) -> idl::Up {
    let (regid, alias_name) = (regid.to_owned(), alias.to_owned());
    idl::Up { bind: Some(idl::Bind { regid, alias_name, token: None }), ..up(request) }
}

/// The messages that a connection gets until nothing more is due, acknowledged.
async fn messages(client: &mut Client, until: &str) -> Vec<String> {
    let entries = client.entries_until(until).await.into_iter();
    let payloads = entries.filter_map(|entry| entry.payload);
    payloads.map(|payload| String::from_utf8(payload).unwrap()).collect()
}

#[tokio::test]
async fn a_device_without_a_connection_registers_binds_receives_and_acknowledges() {
    let node = Node::start().await;
    let bare = node.bare_device().await;
    let mut visitor = Visitor::new(&node, &bare);
    let register = idl::Up { register_app: Some(node.register()), ..up(1) };
    let (answers, frames) = visitor.visit(std::slice::from_ref(&register)).await;
    let regid = result(&answers, 1).regid.clone().unwrap();
    assert_eq!(
        answers[1].resumed.as_ref().unwrap().regids.as_ref().unwrap(),
        std::slice::from_ref(&regid)
    );
    assert_eq!((frames, visitor.held.len()), (1, 2), "own queue and all begin");

    let (answers, _) = visitor.visit(&[bind(2, &regid, "ann")]).await;
    assert_eq!(result(&answers, 2).code, ResultCode::OK);
    for n in 0..3 {
        node.send_to_alias("ann", &n.to_string()).await;
    }
    visitor.catch_up().await;
    assert_eq!(visitor.messages, texts(0..3));
    assert_eq!(visitor.visit(&[register]).await.1, 0, "what was stated does not come again");

    let view = node.service.registration(&node.app, &regid).unwrap();
    assert!(!view.online);
    for pointer in view.pointers {
        assert_eq!(pointer.acked, pointer.head, "{}", pointer.queue);
    }
}

#[tokio::test]
async fn s9_w4_what_was_not_acknowledged_comes_again_byte_for_byte() {
    let mut config = Config::default();
    config.edge.frame_entries_max = 64;
    let node = Node::start_with(config).await;
    let account = node.device().await;
    let mut visitor = Visitor::new(&node, &account);
    visitor.catch_up().await;
    send_all(&node, &account, 0..200).await;
    let stated = vec![encoded(&visitor.stated())];
    let first = bring(&node, &account, stated.clone()).await.unwrap();
    assert!(first.len() > 2, "200 messages are several frames");
    assert_eq!(bring(&node, &account, stated.clone()).await.unwrap(), first);
    visitor.catch_up().await;
    assert_eq!(visitor.messages, texts(0..200));
    // The stated position wins, backward too.
    assert_eq!(bring(&node, &account, stated).await.unwrap(), first);
}

#[tokio::test]
async fn i13_two_devices_of_one_alias_have_a_pointer_each() {
    let node = Node::start().await;
    let (ann, bob) = (node.device().await, node.device().await);
    let (mut one, mut other) = (Visitor::new(&node, &ann), Visitor::new(&node, &bob));
    for visitor in [&mut one, &mut other] {
        let regid = visitor.account.regid.clone().unwrap();
        visitor.visit(&[bind(2, &regid, "ann")]).await;
        visitor.catch_up().await;
    }
    let behind = |account: &Account| {
        let regid = account.regid.as_deref().unwrap();
        let view = node.service.registration(&node.app, regid).unwrap();
        let pointer = view.pointers.into_iter().find(|one| one.queue == "alias/ann").unwrap();
        let seq = |position: &str| position.split_once(':').unwrap().1.parse::<u64>().unwrap();
        seq(&pointer.head) - seq(&pointer.acked)
    };
    for n in 0..10 {
        node.send_to_alias("ann", &n.to_string()).await;
    }
    one.catch_up().await;
    assert_eq!((behind(&ann), behind(&bob)), (0, 10), "who is away is where he was");
    for n in 10..13 {
        node.send_to_alias("ann", &n.to_string()).await;
    }
    other.catch_up().await;
    assert_eq!((behind(&ann), behind(&bob)), (3, 0));
    one.catch_up().await;
    assert_eq!((&one.messages, &other.messages), (&texts(0..13), &texts(0..13)));
}

#[tokio::test]
async fn s5_forged_positions_move_nothing_and_cost_what_others_cost() {
    let node = Node::start().await;
    let account = node.device().await;
    let mut visitor = Visitor::new(&node, &account);
    visitor.catch_up().await;
    send_all(&node, &account, 0..100).await;
    visitor.catch_up().await;
    send_all(&node, &account, 100..110).await;
    let stated = vec![encoded(&visitor.stated())];
    let honest = bring(&node, &account, stated.clone()).await.unwrap();
    node.service.flush_pointers().await.unwrap();
    let held = visitor.held.clone();
    let commits = node.commits();
    for n in 1..500 {
        for one in visitor.held.values_mut() {
            one.seq = 1_000 * n;
            one.epoch += i32::try_from(n % 3).unwrap();
            one.tag = Some(vec![n as u8; 8]);
        }
        let forged = vec![encoded(&visitor.stated())];
        let given = bring(&node, &account, forged).await.unwrap();
        // Begun anew where the pointer stands: nothing is given that honest ones are not.
        let bytes = |frames: &[Bytes]| frames.iter().map(Bytes::len).sum::<usize>();
        assert!(bytes(&given) < bytes(&honest) + 100, "{} bytes", bytes(&given));
        visitor.held = held.clone();
    }
    node.service.flush_pointers().await.unwrap();
    assert_eq!(node.commits(), commits, "no epoch, no pointer");
    assert_eq!(bring(&node, &account, stated).await.unwrap(), honest);
}

#[tokio::test]
async fn a_digest_that_fits_begins_at_once_and_another_one_is_asked() {
    let node = Node::start().await;
    let account = node.device().await;
    let mut visitor = Visitor::new(&node, &account);
    visitor.catch_up().await;
    send_all(&node, &account, 0..2).await;
    let mut client = node.open();
    visitor.hand_over(&mut client);
    // Only the positions that were stated last are stored: the digest is that of what came before.
    let downs = visitor.ask(&[resume(client.digest())]).await.unwrap();
    assert!(downs[0].resumed.is_some() && downs[1].deltas.is_some(), "{downs:?}");
    let downs = visitor.ask(&[resume(client.digest() + 1)]).await.unwrap();
    assert!(matches!(&downs[..], [idl::Down { ask_positions: Some(_), .. }]), "{downs:?}");
}

#[tokio::test]
async fn a_device_goes_on_over_a_connection_and_back_without_loss_or_double() {
    let node = Node::start().await;
    let account = node.device().await;
    let mut visitor = Visitor::new(&node, &account);
    visitor.catch_up().await;
    send_all(&node, &account, 0..100).await;
    visitor.catch_up().await;
    send_all(&node, &account, 100..110).await;

    let mut client = node.connect(&account, Connect::default()).await;
    visitor.hand_over(&mut client);
    client.resume(client.digest()).await;
    assert!(client.down().await.resumed.is_some(), "the acknowledged positions are stored");
    assert_eq!(messages(&mut client, "109").await, texts(100..110));
    client.send(&Packet::Disconnect(Default::default())).await;
    node.quiet().await;

    // Its positions went on meanwhile; it states those that it has.
    send_all(&node, &account, 110..120).await;
    for (key, held) in &mut visitor.held {
        let (epoch, seq) = client.positions[key];
        (held.epoch, held.seq, held.tag) = (epoch as i32, seq as i64, None);
    }
    visitor.catch_up().await;
    assert_eq!(visitor.messages, [texts(0..100), texts(110..120)].concat());
}

#[tokio::test]
async fn visits_beside_a_live_connection_take_nothing_from_it() {
    let node = Node::start().await;
    let account = node.device().await;
    let mut client = node.connect(&account, Connect::default()).await;
    client.resume(0).await;
    client.down().await;
    client.up(Visitor::new(&node, &account).stated()).await;
    assert!(client.down().await.resumed.is_some());
    client.settle_new(account.regid.as_ref().unwrap()).await;

    let mut visitor = Visitor::new(&node, &account);
    for round in 0..10 {
        send_all(&node, &account, round * 10..round * 10 + 10).await;
        if round % 2 == 0 {
            visitor.catch_up().await;
        }
        let last = (round * 10 + 9).to_string();
        assert_eq!(messages(&mut client, &last).await, texts(round * 10..round * 10 + 10));
    }
    visitor.catch_up().await;
    assert_eq!(visitor.messages, texts(0..100), "each hears all of it");
    let view = node.service.registration(&node.app, account.regid.as_ref().unwrap()).unwrap();
    assert!(view.online, "the connection was not taken over");
    // What the visit changes, the connection hears of.
    let subscribe =
        idl::Subscribe { regid: account.regid.clone().unwrap(), topics: vec!["news".into()] };
    visitor.visit(&[idl::Up { subscribe: Some(subscribe), ..up(9) }]).await;
    node.send_to_topic("news", "fresh").await;
    assert_eq!(messages(&mut client, "fresh").await, ["fresh"]);
}

#[tokio::test]
async fn two_visits_of_one_device_at_once_are_both_answered_in_full() {
    let node = Node::start().await;
    let account = node.device().await;
    let mut visitor = Visitor::new(&node, &account);
    visitor.catch_up().await;
    send_all(&node, &account, 0..300).await;
    let stated = || vec![encoded(&visitor.stated())];
    let both = join(bring(&node, &account, stated()), bring(&node, &account, stated())).await;
    let (one, other) = (both.0.unwrap(), both.1.unwrap());
    assert_eq!(one, other);
    visitor.catch_up().await;
    assert_eq!(visitor.messages, texts(0..300));
}

#[tokio::test]
async fn s8_an_answer_is_bounded_and_every_one_advances() {
    let mut config = Config::default();
    (config.limits.payload_bytes_max, config.edge.window_per_registration) = (60_100, 32);
    let node = Node::start_with(config).await;
    let account = node.device().await;
    let mut visitor = Visitor::new(&node, &account);
    visitor.catch_up().await;
    let regid = account.regid.clone().unwrap();
    for n in 0..100 {
        let target = Target::Regids(vec![regid.clone()]);
        let payload = Bytes::from(format!("{n} {}", "x".repeat(60_000)));
        node.service.send(&node.app, Send::new(target, payload)).await.unwrap();
    }
    let mut visits = 0;
    loop {
        let downs = bring(&node, &account, vec![encoded(&visitor.stated())]).await.unwrap();
        let bytes: usize = downs.iter().map(Bytes::len).sum();
        assert!(bytes < 1_400_000, "{bytes} bytes in one answer");
        let before = visitor.messages.len();
        visitor.visit(&[]).await;
        if visitor.messages.len() == before {
            break;
        }
        visits += 1;
    }
    assert!((5..=20).contains(&visits), "{visits} visits");
    let numbers: Vec<_> =
        visitor.messages.iter().filter_map(|text| Some(text.split_once(' ')?.0)).collect();
    assert_eq!(numbers, texts(0..100));
}

#[tokio::test]
async fn a_bad_frame_gets_its_code_and_the_others_are_answered() {
    let node = Node::start().await;
    let account = node.device().await;
    let visitor = Visitor::new(&node, &account);
    let twice = idl::Up { resume: resume(0).resume, ..bind(5, "x", "y") };
    let ups = [&b"\xff\xff"[..], &encoded(&twice), &encoded(&up(6)), &encoded(&visitor.stated())];
    let ups = ups.map(Bytes::copy_from_slice).to_vec();
    let downs = bring(&node, &account, ups).await.unwrap();
    let downs: Vec<_> =
        downs.iter().map(|down| carillon_wire::frame::decode_down(down).unwrap()).collect();
    let codes: Vec<_> =
        downs.iter().filter_map(|down| down.result.as_ref().map(|r| (r.request, r.code))).collect();
    assert_eq!(
        codes,
        [(0, ResultCode::MALFORMED), (5, ResultCode::UNKNOWN_KIND), (6, ResultCode::UNKNOWN_KIND)]
    );
    assert!(downs[3].resumed.is_some() && downs[4].deltas.is_some(), "{downs:?}");
}

#[tokio::test]
async fn wrong_credentials_are_all_alike_and_count_against_their_address() {
    let mut config = Config::default();
    config.edge.gate.auth_failures_per_address_per_minute = 3;
    let node = Node::start_with(config).await;
    let account = node.device().await;
    let [address, other] = [7, 8].map(|last| Some(IpAddr::from([192, 0, 2, last])));
    let unknown = "a".repeat(account.id.len());
    let visit = |peer, id: &str, secret: &str| node.edge.visit(peer, id, secret.as_bytes()).err();
    for (id, secret) in [(&account.id, "wrong"), (&unknown, account.secret.as_str())] {
        assert!(matches!(visit(address, id, secret), Some(Error::Credentials)));
    }
    assert!(visit(address, &account.id, &account.secret).is_none(), "the right ones are let in");
    assert!(matches!(visit(address, "?", ""), Some(Error::Credentials)));
    let refused = visit(address, &account.id, &account.secret);
    assert!(matches!(refused, Some(Error::TooMuch { .. })), "{refused:?}");
    assert!(visit(other, &account.id, &account.secret).is_none(), "another address is free");
}

#[tokio::test]
async fn visits_share_the_rates_of_connections() {
    let mut config = Config::default();
    let gate = &mut config.edge.gate;
    (gate.connects_per_address_per_s, gate.connects_per_address_burst) = (1, 5);
    gate.requests_burst = 2;
    let node = Node::start_with(config).await;
    let account = node.device().await;
    let peer = Some(IpAddr::from([192, 0, 2, 7]));
    let fared: Vec<_> = (0..8)
        .map(|_| node.edge.visit(peer, &account.id, account.secret.as_bytes()).is_ok())
        .collect();
    assert_eq!(fared.iter().filter(|is_in| **is_in).count(), 5, "{fared:?}");

    let visitor = Visitor::new(&node, &account);
    assert_eq!(visitor.ask(&[up(1), up(2)]).await.unwrap().len(), 2);
    let too_much = visitor.ask(&[up(1), up(2), up(3)]).await;
    assert!(matches!(too_much, Err(Error::TooMuch { .. })), "{too_much:?}");
}

#[tokio::test]
async fn a_draining_node_lets_no_visitor_in_and_waits_for_those_who_are() {
    let node = Node::start().await;
    let account = node.device().await;
    let visit = node.edge.visit(None, &account.id, account.secret.as_bytes()).unwrap();
    node.edge.drain(Farewell::default()).await;
    let refused = node.edge.visit(None, &account.id, account.secret.as_bytes()).err();
    assert!(matches!(refused, Some(Error::Unavailable)), "{refused:?}");
    assert_eq!(node.edge.connections(), 1);
    let downs = visit.exchange(vec![encoded(&resume(1))]).await.unwrap();
    assert_eq!(downs.len(), 1);
    node.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_registration_is_given_nothing_by_a_visit_either() {
    let node = Node::start().await;
    let account = node.device().await;
    let regid = account.regid.clone().unwrap();
    let mut visitor = Visitor::new(&node, &account);
    visitor.catch_up().await;
    let set = async |is_paused| {
        let accept = Accept { is_paused, hours: None };
        node.service.set_accept(&regid, accept, By::App(&node.app)).await.unwrap();
    };
    set(true).await;
    node.send(&account, "later").await;
    visitor.catch_up().await;
    assert!(visitor.messages.is_empty());
    set(false).await;
    visitor.catch_up().await;
    assert_eq!(visitor.messages, ["later"]);
    tokio::time::sleep(Duration::from_secs(120)).await;
    node.quiet().await;
}

#[tokio::test]
async fn what_is_acknowledged_by_positions_counts_as_delivered_once() {
    let mut config = Config::default();
    config.limits.allowance.deliveries_per_day = 3;
    let node = Node::start_with(config).await;
    let account = node.device().await;
    let mut visitor = Visitor::new(&node, &account);
    visitor.catch_up().await;
    let send = async || {
        node.service.flush_pointers().await.unwrap();
        let target = Target::Regids(vec![account.regid.clone().unwrap()]);
        node.service.send(&node.app, Send::new(target, Bytes::from_static(b"x"))).await.is_ok()
    };
    assert!(send().await && send().await);
    let before = visitor.stated();
    visitor.catch_up().await;
    visitor.catch_up().await;
    assert!(send().await, "two of three are delivered");
    // Going back and on again would count twice what nobody was given twice, at worst.
    visitor.ask(&[before]).await.unwrap();
    assert!(send().await, "a position that goes back counts nothing");
    visitor.catch_up().await;
    visitor.catch_up().await;
    assert!(!send().await, "the quota is used up");
    assert_eq!(visitor.messages.len(), 4);
}
