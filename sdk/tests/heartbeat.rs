//! The adaptive heartbeat of a whole device, against a gateway that is played by hand, in paused time.

mod support;

use std::time::Duration;

use carillon_sdk::{AppState, Device, MemoryStore, NetworkLabel};
use carillon_wire::mqtt::{ConnAck, Packet};
use carillon_wire::{frame, idl};
use support::{Gateway, Peer, credentials, empty, gateway};
use tokio::time::Instant;

fn label(text: &str) -> NetworkLabel {
    text.parse().unwrap()
}

async fn device(store: &MemoryStore) -> (Device, Gateway) {
    let (connector, gateway) = gateway();
    let device = Device::builder_with_store(connector, credentials(), store.clone())
        .network(label("cell:1"))
        .seed(7)
        .connect_with(|_| async {})
        .await
        .unwrap();
    (device, gateway)
}

/// The next connection, resumed, and the report that comes on it, answered with advice if there is any.
async fn online(gateway: &mut Gateway, heartbeat_s: Option<i32>) -> (Peer, idl::HeartbeatReport) {
    let mut peer = gateway.accept().await;
    peer.recv().await;
    peer.recv_up().await;
    let report = report(&mut peer, heartbeat_s).await;
    (peer, report)
}

/// Lets a device go online, and answers the report that it sends then with advice if there is any.
async fn report(peer: &mut Peer, heartbeat_s: Option<i32>) -> idl::HeartbeatReport {
    let resumed = Some(idl::Resumed { regids: Some(Vec::new()) });
    let resumed = peer.down(idl::Down { resumed, ..empty() }).await;
    // The acknowledgement waits for the device's store.
    let report = peer.recv_up().await.heartbeat.expect("a report");
    assert_eq!(peer.recv_ack().await, resumed);
    let result = frame::bare_result(0, idl::ResultCode::OK);
    let down = idl::Down { result: Some(result), ..empty() };
    let id = peer.down(down).await;
    assert_eq!(peer.recv_ack().await, id);
    if heartbeat_s.is_some() {
        let advice = idl::Advice { reconnect_after_ms: None, server: None, heartbeat_s };
        let advice = Some(advice);
        let id = peer.down(idl::Down { advice, ..empty() }).await;
        assert_eq!(peer.recv_ack().await, id);
    }
    report
}

/// Waits for a ping and answers it, taking reports on the way; after how much silence it came.
async fn beat(peer: &mut Peer) -> u64 {
    let mut quiet_since = Instant::now();
    loop {
        match peer.recv().await {
            Packet::PingReq => break,
            Packet::Publish(publish) => {
                let packet_id = publish.packet_id;
                peer.send(Packet::PubAck(carillon_wire::mqtt::Ack { packet_id, reason: 0 })).await;
                quiet_since = Instant::now();
            }
            other => panic!("{other:?}"),
        }
    }
    peer.send(Packet::PingResp).await;
    quiet_since.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn advice_is_followed_once_the_link_has_proved_itself_and_kept_over_a_restart() {
    let store = MemoryStore::default();
    let (device, mut gateway) = device(&store).await;
    let (mut peer, first) = online(&mut gateway, Some(300)).await;
    assert_eq!((first.network.as_str(), first.survived_s, first.died_s), ("cell:1", None, None));
    let mut intervals = Vec::new();
    for _ in 0..5 {
        intervals.push(beat(&mut peer).await);
    }
    assert_eq!(intervals, [210, 210, 210, 300, 300]);
    drop(peer);
    device.shutdown().await;

    let (device, mut gateway) = self::device(&store).await;
    let (mut peer, _) = online(&mut gateway, None).await;
    for _ in 0..3 {
        beat(&mut peer).await;
    }
    assert_eq!(beat(&mut peer).await, 300);
    device.app_became(AppState::Active).await;
    assert_eq!(beat(&mut peer).await, 210, "an active app keeps to the minimum");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_behind_a_ping_is_reported_by_the_next() {
    let (_device, mut gateway) = device(&MemoryStore::default()).await;
    let (mut peer, _) = online(&mut gateway, None).await;
    let start = Instant::now();
    assert_eq!(peer.recv().await, Packet::PingReq);
    assert_eq!(peer.try_recv().await, None, "nothing more without an answer");
    assert_eq!(start.elapsed().as_secs(), 218);
    let (_peer, second) = online(&mut gateway, None).await;
    assert_eq!((second.survived_s, second.died_s), (None, Some(210)));
}

#[tokio::test(start_paused = true)]
async fn server_keep_alive_is_the_ceiling() {
    let (_device, mut gateway) = device(&MemoryStore::default()).await;
    let mut peer = gateway.accept().await;
    let Packet::Connect(connect) = peer.recv().await else { panic!("not CONNECT") };
    assert_eq!(connect.keep_alive_s, 600);
    let server_keep_alive_s = Some(90);
    peer.send(Packet::ConnAck(Box::new(ConnAck { server_keep_alive_s, ..ConnAck::default() })))
        .await;
    let Packet::Publish(resume) = peer.recv().await else { panic!("not Resume") };
    let packet_id = resume.packet_id;
    peer.send(Packet::PubAck(carillon_wire::mqtt::Ack { packet_id, reason: 0 })).await;
    report(&mut peer, None).await;
    assert_eq!(beat(&mut peer).await, 90);
}

#[tokio::test(start_paused = true)]
async fn another_network_gets_a_new_connection_at_once() {
    let (device, mut gateway) = device(&MemoryStore::default()).await;
    let (mut peer, _) = online(&mut gateway, None).await;
    device.network_changed(Some(label("cell:1"))).await;
    assert_eq!(beat(&mut peer).await, 210, "the same network changes nothing");
    let start = Instant::now();
    device.network_changed(Some(label("wifi:1"))).await;
    while peer.try_recv().await.is_some() {}
    let (_peer, report) = online(&mut gateway, None).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(report.network, "wifi:1");
    device.network_changed(None).await;
    let mut peer = gateway.online(&[]).await;
    assert_eq!(beat(&mut peer).await, 210, "without a name there is no report");
}

#[tokio::test(start_paused = true)]
async fn a_fixed_interval_turns_adaptation_off() {
    let (connector, mut gateway) = gateway();
    let _device = Device::builder_with_store(connector, credentials(), MemoryStore::default())
        .heartbeat_every(Duration::from_secs(45))
        .connect_with(|_| async {})
        .await
        .unwrap();
    let mut peer = gateway.online(&[]).await;
    for _ in 0..5 {
        assert_eq!(beat(&mut peer).await, 45);
    }
}
