//! A device against a gateway that is played by hand, over memory and in paused time.

#![allow(clippy::disallowed_methods, reason = "tests start tasks and read their settings")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use carillon_sdk::{
    CallError, Device, MemoryStore, PositionStore, Received, Refusal, RegId, StartError, Status,
    StopReason,
};
use carillon_wire::digest::{Digest, position_hash};
use carillon_wire::mqtt::{Disconnect, Packet, Version};
use carillon_wire::{frame, idl};
use support::{Gateway, credentials, device, empty, gateway, refusal};
use tokio::sync::Semaphore;
use tokio::time::Instant;

const NEW: Option<idl::JumpReason> = Some(idl::JumpReason::NEW);

#[tokio::test(start_paused = true)]
async fn resume_comes_behind_connect_without_waiting() {
    let (device, mut gateway, _) = device(&MemoryStore::default()).await;
    let mut peer = gateway.accept().await;
    let Packet::Connect(connect) = peer.recv().await else {
        panic!("not CONNECT");
    };
    assert_eq!(connect.version, Version::V5);
    assert!(connect.clean_start);
    assert_eq!(connect.client_id, "d1");
    assert_eq!(connect.username.as_deref(), Some("d1"));
    assert_eq!(connect.password.as_deref(), Some(b"s1".as_slice()));
    let up = peer.recv_up().await;
    assert_eq!(up.resume, Some(idl::Resume { digest: 0, dictionary: Some(1) }));
    peer.resumed(&[]).await;
    device.online().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_is_acknowledged_when_handled_and_durable_and_resumed_from_there() {
    let store = MemoryStore::default();
    let (connector, mut gateway) = gateway();
    let handled = Arc::new(Semaphore::new(0));
    let gate = handled.clone();
    let device = Device::builder_with_store(connector, credentials(), store.clone())
        .connect_with(move |_| {
            let gate = gate.clone();
            async move { gate.acquire().await.unwrap().forget() }
        })
        .await
        .unwrap();
    let mut peer = gateway.online(&["r1"]).await;
    let before = store.value();
    let id = peer.message(1, NEW).await;
    let early = tokio::time::timeout(Duration::from_secs(5), peer.recv()).await;
    assert!(early.is_err(), "not before the handler has returned");
    assert_eq!(store.value(), before);
    handled.add_permits(1);
    assert_eq!(peer.recv_ack().await, id);
    let saved = String::from_utf8(store.value().unwrap()).unwrap();
    assert!(saved.contains(r#""seq":1"#), "{saved}");

    drop(peer);
    let mut peer = gateway.accept().await;
    peer.recv().await;
    let digest: Digest = [position_hash("r1", 1, "", 1, 1)].into_iter().collect();
    let stated = peer.recv_up().await.resume.unwrap();
    assert_eq!(stated.digest, digest.to_idl());
    drop(device);
}

#[tokio::test(start_paused = true)]
async fn a_message_in_hand_when_the_link_breaks_is_not_given_twice() {
    let store = MemoryStore::default();
    let (connector, mut gateway) = gateway();
    let (given, mut count) = tokio::sync::mpsc::channel(8);
    let device = Device::builder_with_store(connector, credentials(), store)
        .connect_with(move |_| {
            let given = given.clone();
            async move {
                tokio::time::sleep(Duration::from_secs(30)).await;
                given.send(()).await.unwrap();
            }
        })
        .await
        .unwrap();
    let mut peer = gateway.online(&["r1"]).await;
    peer.message(1, NEW).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(peer);
    let mut peer = gateway.online(&["r1"]).await;
    // The acknowledgement was lost, so the gateway sends it again.
    let id = peer.message(1, None).await;
    assert_eq!(peer.recv_ack().await, id);
    assert_eq!(device.shutdown().await, StopReason::Shutdown);
    assert_eq!(count.recv().await, Some(()));
    assert_eq!(count.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn positions_are_sent_before_the_puback_of_a_gap() {
    let (device, mut gateway, given) = device(&MemoryStore::default()).await;
    let mut peer = gateway.online(&["r1"]).await;
    let id = peer.message(5, None).await;
    let up = peer.recv_up().await;
    assert_eq!(up.positions.unwrap().registrations[0].regid, "r1");
    assert_eq!(peer.recv_ack().await, id);
    peer.resumed(&["r1"]).await;
    peer.message(5, NEW).await;
    peer.recv_ack().await;
    assert_eq!(given.lock().unwrap().len(), 1);
    let positions = device.positions().await.unwrap();
    assert_eq!(positions[&RegId::from("r1")].len(), 1);
}

#[tokio::test(start_paused = true)]
async fn all_positions_are_stated_when_the_gateway_asks() {
    let (_device, mut gateway, _) = device(&MemoryStore::default()).await;
    let mut peer = gateway.accept().await;
    peer.recv().await;
    peer.recv_up().await;
    let ask = idl::Down { ask_positions: Some(idl::AskPositions {}), ..empty() };
    let id = peer.down(ask).await;
    assert!(peer.recv_up().await.positions.is_some());
    assert_eq!(peer.recv_ack().await, id);
}

#[tokio::test(start_paused = true)]
async fn a_call_gets_its_answer() {
    let (device, mut gateway, _) = device(&MemoryStore::default()).await;
    assert_eq!(device.register("a", "k").await, Err(CallError::Offline));
    let mut peer = gateway.online(&[]).await;
    device.online().await.unwrap();

    let caller = device.clone();
    let asked = tokio::spawn(async move { caller.register("a", "k").await });
    let up = peer.recv_up().await;
    assert_eq!(up.register_app.unwrap().app_id, "a");
    answer(&mut peer, up.request.unwrap(), idl::ResultCode::OK, Some("r9")).await;
    assert_eq!(asked.await.unwrap(), Ok(RegId::from("r9")));
    let positions = device.positions().await.unwrap();
    assert!(positions.contains_key(&RegId::from("r9")));

    let caller = device.clone();
    let asked = tokio::spawn(async move { caller.bind(&RegId::from("r9"), "x", None).await });
    let up = peer.recv_up().await;
    answer(&mut peer, up.request.unwrap(), idl::ResultCode::FORBIDDEN, None).await;
    let refused = asked.await.unwrap().unwrap_err();
    assert!(matches!(refused, CallError::Refused { refusal: Refusal::Forbidden, .. }));

    let late = device.subscribe(&RegId::from("r9"), &["t"]).await;
    assert_eq!(late, Err(CallError::Timeout));
    let caller = device.clone();
    let asked = tokio::spawn(async move { caller.unregister(&RegId::from("r9")).await });
    peer.recv_up().await;
    peer.recv_up().await;
    drop(peer);
    assert_eq!(asked.await.unwrap(), Err(CallError::Offline));
}

async fn answer(
    peer: &mut support::Peer,
    request: i64,
    code: idl::ResultCode,
    regid: Option<&str>,
) {
    let regid = regid.map(str::to_owned);
    let result = Some(idl::Result { regid, ..frame::bare_result(request, code) });
    let id = peer.down(idl::Down { result, ..empty() }).await;
    assert_eq!(peer.recv_ack().await, id);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_was_taken_over_stops() {
    let (device, mut gateway, _) = device(&MemoryStore::default()).await;
    let mut peer = gateway.online(&[]).await;
    peer.send(disconnect(0x8E)).await;
    assert_eq!(device.stopped().await, StopReason::TakenOver);
    assert_eq!(device.online().await, Err(StopReason::TakenOver));
}

#[tokio::test(start_paused = true)]
async fn refused_credentials_stop_a_device_and_a_busy_gateway_does_not() {
    for reason in [0x86, 0x87] {
        let (device, mut gateway, _) = device(&MemoryStore::default()).await;
        let mut peer = gateway.accept().await;
        peer.send(refusal(0x89)).await;
        let mut peer = gateway.accept().await;
        peer.send(refusal(reason)).await;
        assert_eq!(device.stopped().await, StopReason::Refused { reason });
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_stays_away_for_as_long_as_it_was_advised() {
    let (device, mut gateway, _) = device(&MemoryStore::default()).await;
    let mut peer = gateway.online(&[]).await;
    let reconnect_after_ms = Some(90_000);
    let advice = Some(idl::Advice { reconnect_after_ms, server: None, heartbeat_s: None });
    peer.down(idl::Down { advice, ..empty() }).await;
    peer.recv_ack().await;
    let start = Instant::now();
    peer.send(disconnect(0x8B)).await;
    drop(peer);
    gateway.accept().await;
    assert!(start.elapsed() >= Duration::from_secs(90));
    assert!(start.elapsed() <= Duration::from_secs(91));
    assert_eq!(device.status(), Status::Connecting);
}

#[tokio::test(start_paused = true)]
async fn silence_after_a_ping_ends_the_connection() {
    let (_device, mut gateway, _) = device(&MemoryStore::default()).await;
    let start = Instant::now();
    let mut peer = gateway.online(&[]).await;
    assert_eq!(peer.recv().await, Packet::PingReq);
    assert_eq!(start.elapsed().as_secs(), 210);
    peer.send(Packet::PingResp).await;
    assert_eq!(peer.recv().await, Packet::PingReq);
    assert_eq!(start.elapsed().as_secs(), 420);
    assert_eq!(peer.try_recv().await, None);
    assert_eq!(start.elapsed().as_secs(), 428);
}

#[tokio::test(start_paused = true)]
async fn no_connack_is_not_waited_for_forever() {
    let (device, mut gateway, _) = device(&MemoryStore::default()).await;
    let start = Instant::now();
    let mut peer = gateway.accept().await;
    while peer.try_recv().await.is_some() {}
    assert_eq!(start.elapsed().as_secs(), 15);
    assert_eq!(device.shutdown().await, StopReason::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn shutdown_finishes_what_is_in_hand() {
    let store = MemoryStore::default();
    let (device, mut gateway, given) = device(&store).await;
    let mut peer = gateway.online(&["r1"]).await;
    let first = peer.message(1, NEW).await;
    assert_eq!(peer.recv_ack().await, first);
    let goodbye = tokio::spawn(async move { device.shutdown().await });
    assert_eq!(peer.recv().await, Packet::Disconnect(Disconnect::default()));
    assert_eq!(goodbye.await.unwrap(), StopReason::Shutdown);
    assert_eq!(given.lock().unwrap().len(), 1);
}

async fn device_with_a_slow_handler() -> (Device, Gateway) {
    let (connector, gateway) = gateway();
    let device = Device::builder_with_store(connector, credentials(), MemoryStore::default())
        .connect_with(|_| tokio::time::sleep(Duration::from_secs(3600)))
        .await
        .unwrap();
    (device, gateway)
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_a_slow_handler_and_its_acknowledgement() {
    let (device, mut gateway) = device_with_a_slow_handler().await;
    let mut peer = gateway.online(&["r1"]).await;
    let id = peer.message(1, NEW).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let goodbye = tokio::spawn(async move { device.shutdown().await });
    assert_eq!(peer.recv_ack().await, id);
    assert_eq!(peer.recv().await, Packet::Disconnect(Disconnect::default()));
    assert_eq!(goodbye.await.unwrap(), StopReason::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_dies_meanwhile_does_not_undo_a_shutdown() {
    let (device, mut gateway) = device_with_a_slow_handler().await;
    let mut peer = gateway.online(&["r1"]).await;
    peer.message(1, NEW).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let goodbye = tokio::spawn(async move { device.shutdown().await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The handler is still busy; its acknowledgement finds nobody.
    drop(peer);
    assert_eq!(goodbye.await.unwrap(), StopReason::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn a_frame_without_puback_ends_the_connection() {
    let (device, mut gateway, _) = device(&MemoryStore::default()).await;
    let mut peer = gateway.online(&[]).await;
    device.online().await.unwrap();
    let start = Instant::now();
    let caller = device.clone();
    let asked = tokio::spawn(async move { caller.subscribe(&RegId::from("r1"), &["t"]).await });
    assert!(matches!(peer.recv().await, Packet::Publish(_)));
    assert_eq!(peer.try_recv().await, None);
    assert_eq!(start.elapsed().as_secs(), 15);
    assert!(asked.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_ended_registration_is_told_to_the_app() {
    let (device, mut gateway, given) = device(&MemoryStore::default()).await;
    let mut peer = gateway.online(&["r1"]).await;
    let ended = Some(idl::Ended { regid: "r1".into(), reason: None });
    let id = peer.down(idl::Down { ended, ..empty() }).await;
    assert_eq!(peer.recv_ack().await, id);
    let regid = RegId::from("r1");
    assert_eq!(*given.lock().unwrap(), [Received::Ended { regid }]);
    assert!(device.positions().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_frame_of_an_unknown_kind_is_acknowledged_and_ignored() {
    let (device, mut gateway, _) = device(&MemoryStore::default()).await;
    let mut peer = gateway.online(&[]).await;
    let id = peer.down(empty()).await;
    assert_eq!(peer.recv_ack().await, id);
    assert_eq!(device.status(), Status::Online);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_stops_the_device_without_an_acknowledgement() {
    let (connector, mut gateway) = gateway();
    let device = Device::builder_with_store(connector, credentials(), MemoryStore::default())
        .connect_with(|_| async { panic!("on purpose") })
        .await
        .unwrap();
    let mut peer = gateway.online(&["r1"]).await;
    peer.message(1, NEW).await;
    assert_eq!(device.stopped().await, StopReason::HandlerPanicked);
    assert!(!matches!(peer.try_recv().await, Some(Packet::PubAck(_))));
}

#[tokio::test]
async fn a_damaged_state_is_not_taken_for_an_empty_one() {
    let mut store = MemoryStore::default();
    store.save(b"{".to_vec()).await.unwrap();
    let (connector, _gateway) = gateway();
    let started = Device::builder_with_store(connector, credentials(), store.clone())
        .connect_with(|_| async {})
        .await;
    assert!(matches!(started, Err(StartError::State(_))));
    assert_eq!(store.value().as_deref(), Some(b"{".as_slice()));
}

fn disconnect(reason: u8) -> Packet {
    Packet::Disconnect(Disconnect { reason, ..Disconnect::default() })
}
