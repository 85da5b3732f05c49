//! Whole connections over in-memory streams: the real service over the memory store.

#![allow(clippy::disallowed_methods, reason = "tests start tasks and read their settings")]

mod edge_support;

use std::time::Duration;

use carillon::{edge::farewell::Farewell, service::bind::By};
use carillon_wire::{
    idl,
    mqtt::{Connect, Packet, Publish, Qos, Version},
};
use edge_support::{Node, is_closed, publish_of};

const PUSH: &[(&str, Qos)] = &[("push", Qos::AtLeastOnce)];

fn persistent(version: Version) -> Connect {
    let session_expiry_s = if version == Version::V5 { 600 } else { u32::MAX };
    Connect { version, clean_start: false, session_expiry_s, ..Connect::default() }
}

#[tokio::test]
async fn a_message_reaches_a_stock_client_once() {
    let node = Node::start().await;
    let device = node.device().await;
    let mut client = node.connect(&device, persistent(Version::V311)).await;
    assert_eq!(client.subscribe(PUSH).await, [1]);
    node.send(&device, "hello").await;
    let publish = client.publish().await;
    assert_eq!((&publish.payload[..], publish.dup), (&b"hello"[..], false));
    client.ack(publish.packet_id).await;
    client.ping().await;
    drop(client);
    node.quiet().await;
    let mut client = node.connect(&device, persistent(Version::V311)).await;
    assert!(client.session_present);
    node.send(&device, "again").await;
    assert_eq!(&client.publish().await.payload[..], b"again");
}

#[tokio::test]
async fn packets_behind_connect_are_handled_in_order() {
    let node = Node::start().await;
    let device = node.device().await;
    let mut client = node.open();
    client.send_connect(&device, persistent(Version::V5)).await;
    client.send_subscribe(PUSH).await;
    client.send(&Packet::PingReq).await;
    let kinds: Vec<_> = [client.next().await, client.next().await, client.next().await].into();
    assert!(matches!(
        kinds[..],
        [Some(Packet::ConnAck(_)), Some(Packet::SubAck(_)), Some(Packet::PingResp)]
    ));
}

#[tokio::test]
async fn a_wrong_secret_is_refused_and_the_stream_closed() {
    let node = Node::start().await;
    let mut device = node.device().await;
    device.secret = "wrong".into();
    for (version, code) in [(Version::V5, 0x86), (Version::V311, 0x86)] {
        let mut client = node.open();
        client.send_connect(&device, Connect { version, ..Connect::default() }).await;
        let Some(Packet::ConnAck(connack)) = client.next().await else {
            panic!("CONNACK expected")
        };
        assert_eq!(connack.reason, code);
        assert!(is_closed(client.next().await));
    }
    node.quiet().await;
}

#[tokio::test]
async fn a_second_connection_takes_over_and_gets_what_was_not_acknowledged_again() {
    let node = Node::start().await;
    let device = node.device().await;
    let mut first = node.connect(&device, persistent(Version::V5)).await;
    first.subscribe(PUSH).await;
    node.send(&device, "one").await;
    let sent = first.publish().await;
    let mut second = node.connect(&device, persistent(Version::V5)).await;
    let Some(Packet::Disconnect(goodbye)) = first.next().await else {
        panic!("DISCONNECT expected")
    };
    assert_eq!(goodbye.reason, 0x8E);
    assert!(second.session_present);
    let again = second.publish().await;
    assert_eq!((again.packet_id, again.dup, &again.payload), (sent.packet_id, true, &sent.payload));
    second.ack(again.packet_id).await;
    node.send(&device, "two").await;
    let next = second.publish().await;
    assert_eq!((&next.payload[..], next.dup), (&b"two"[..], false));
}

#[tokio::test]
async fn a_device_uses_frames_from_registration_to_resume() {
    let node = Node::start().await;
    let device = node.bare_device().await;
    let mut client = node.open();
    client.send_connect(&device, Connect::default()).await;
    client.resume(0).await;
    assert!(matches!(client.next().await, Some(Packet::ConnAck(_))));
    assert_eq!(client.down().await.resumed.unwrap().regids, None);
    client.up(idl::Up { register_app: Some(node.register()), ..edge_support::up(1) }).await;
    let regid = client.down().await.result.unwrap().regid.expect("a regid");
    client.settle_new(&regid).await;
    let bind = idl::Bind { regid: regid.clone(), alias_name: "user".into(), token: None };
    client.up(idl::Up { bind: Some(bind), ..edge_support::up(2) }).await;
    node.wait_for_alias(&regid, "user").await;
    node.send_to_alias("user", "hi").await;
    let entries = client.entries_until("hi").await;
    assert!(entries.iter().any(|entry| entry.follow.is_some()));
    client.ping().await;
    let digest = client.digest();
    let positions = std::mem::take(&mut client.positions);
    drop(client);
    node.quiet().await;

    let mut client = node.open();
    client.positions = positions;
    client.send_connect(&device, Connect::default()).await;
    client.resume(digest).await;
    client.next().await;
    assert_eq!(client.down().await.resumed.unwrap().regids, None);
    node.send_to_alias("user", "more").await;
    client.entries_until("more").await;
    let by = By::App(&node.app);
    node.service.unregister(&regid, by).await.unwrap();
    assert_eq!(client.down().await.ended, Some(idl::Ended { regid, reason: None }));
}

#[tokio::test]
async fn a_wrong_digest_is_settled_by_positions() {
    let node = Node::start().await;
    let device = node.device().await;
    node.send(&device, "one").await;
    let mut client = node.open();
    client.send_connect(&device, Connect::default()).await;
    client.resume(12_345).await;
    client.next().await;
    assert!(client.down().await.ask_positions.is_some());
    let positions = idl::Positions { registrations: vec![], more: None };
    client.up(idl::Up { positions: Some(positions), ..edge_support::up(0) }).await;
    assert!(client.down().await.resumed.is_some());
    client.entries_until("one").await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_closed_in_time() {
    let node = Node::start().await;
    let device = node.device().await;
    let mut silent = node.open();
    assert!(is_closed(silent.next().await), "no CONNECT within the deadline");
    let connect = Connect { keep_alive_s: 10, ..Connect::default() };
    let mut client = node.connect(&device, connect).await;
    let at = tokio::time::Instant::now();
    let Some(Packet::Disconnect(goodbye)) = client.next().await else {
        panic!("DISCONNECT expected")
    };
    assert_eq!(goodbye.reason, 0x8D);
    let took = at.elapsed();
    assert!((Duration::from_secs(15)..Duration::from_secs(20)).contains(&took), "{took:?}");
    node.quiet().await;
}

#[tokio::test]
async fn who_is_taken_over_with_something_unwritten_is_told_all_the_same() {
    let node = Node::start().await;
    let device = node.device().await;
    let mut first = node.open_narrow();
    first.send_connect(&device, persistent(Version::V5)).await;
    let mut second = node.open();
    second.send_connect(&device, persistent(Version::V5)).await;
    // Both are done with what they can do.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(first.next().await, Some(Packet::ConnAck(_))));
    let Some(Packet::Disconnect(goodbye)) = first.next().await else {
        panic!("DISCONNECT expected")
    };
    assert_eq!(goodbye.reason, 0x8E);
    assert!(matches!(second.next().await, Some(Packet::ConnAck(_))));
}

#[tokio::test(start_paused = true)]
async fn who_is_taken_over_and_takes_nothing_does_not_hold_up_the_next() {
    let node = Node::start().await;
    let device = node.device().await;
    let mut first = node.open_narrow();
    first.send_connect(&device, persistent(Version::V5)).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let at = tokio::time::Instant::now();
    node.connect(&device, persistent(Version::V5)).await;
    assert!(at.elapsed() < Duration::from_millis(500), "{:?}", at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_is_closed_in_time() {
    let node = Node::start().await;
    let device = node.device().await;
    let connect = Connect { clean_start: false, keep_alive_s: 600, ..Connect::default() };
    let mut client = node.connect(&device, connect).await;
    client.subscribe(&[("push", Qos::AtMostOnce)]).await;
    for _ in 0..40 {
        node.send(&device, &"x".repeat(4_000)).await;
    }
    let at = tokio::time::Instant::now();
    node.edge.drained().await;
    assert!(at.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn a_drain_ends_every_connection() {
    let node = Node::start().await;
    let (one, two) = (node.device().await, node.device().await);
    let mut plain = node.connect(&one, persistent(Version::V5)).await;
    let mut frames = node.connect(&two, Connect::default()).await;
    frames.resume(1).await;
    frames.down().await;
    node.edge.drain(Farewell::default()).await;
    let Some(Packet::Disconnect(goodbye)) = plain.next().await else {
        panic!("DISCONNECT expected")
    };
    assert_eq!(goodbye.reason, 0x8B);
    assert!(frames.down().await.advice.is_some());
    assert!(matches!(frames.next().await, Some(Packet::Disconnect(_))));
    node.edge.drained().await;
    assert!(is_closed(node.open().next().await));
}

#[tokio::test]
async fn a_topic_is_followed_by_subscribing_to_it() {
    let node = Node::start().await;
    let device = node.device().await;
    node.send_to_topic("news", "before").await;
    let mut client = node.connect(&device, persistent(Version::V5)).await;
    assert_eq!(
        client.subscribe(&[("topic/news", Qos::AtLeastOnce), ("topic/+", Qos::AtMostOnce)]).await,
        [1, 0xA2]
    );
    node.send_to_topic("news", "after").await;
    let publish: Publish = client.publish().await;
    assert_eq!((publish.topic.as_str(), &publish.payload[..]), ("topic/news", &b"after"[..]));
    assert!(publish.user.contains(&("queue".into(), "topic/news".into())));
    client.ack(publish.packet_id).await;
    assert_eq!(client.unsubscribe(&["topic/news", "topic/none"]).await, [0, 0x11]);
    node.send_to_topic("news", "late").await;
    client.send(&Packet::PingReq).await;
    assert!(publish_of(client.next().await).is_none(), "nobody follows it any more");
}

#[tokio::test]
async fn hostile_bytes_end_a_connection_and_nothing_else() {
    let node = Node::start().await;
    for bytes in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x10, 0xFF, 0xFF, 0xFF, 0xFF], &[0xC0, 0x00], &[0x00]]
    {
        let mut client = node.open();
        client.send_raw(bytes).await;
        assert!(is_closed(client.next().await));
    }
    let device = node.device().await;
    let mut client = node.connect(&device, Connect::default()).await;
    client.send_raw(&[0x60, 0x02, 0x00, 0x01]).await;
    let Some(Packet::Disconnect(goodbye)) = client.next().await else {
        panic!("DISCONNECT expected")
    };
    assert!([0x81, 0x82].contains(&goodbye.reason));
    node.quiet().await;
}
