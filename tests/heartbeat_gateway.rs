//! Heartbeats at the gateway: reports and their answers, and keep-alives lowered for networks that kill idle gaps.

#[path = "edge_support/mod.rs"]
mod edge_support;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use carillon::config;
use carillon_wire::{
    idl,
    mqtt::{self, ConnAck, Connect, Packet, Publish, Version},
};
use edge_support::{Account, Client, Node, up};
use tokio::time::{Instant, advance};

/// Connects from an address; the client and CONNACK.
async fn connect_from(
    node: &Node,
    account: &Account,
    peer: &str,
    connect: Connect,
) -> (Client, ConnAck) {
    let mut client = Client::new(node.stream(Some(peer.parse().unwrap())));
    client.send_connect(account, connect).await;
    let Some(Packet::ConnAck(connack)) = client.next().await else { panic!("no CONNACK") };
    assert_eq!(connack.reason, 0);
    (client, *connack)
}

fn asking(keep_alive_s: u16, version: Version) -> Connect {
    Connect { keep_alive_s, version, ..Connect::default() }
}

/// CONNECT and a frame in one piece.
fn connect_and_up(account: &Account, frame: &idl::Up) -> BytesMut {
    let mut payload = Vec::new();
    carillon_wire::frame::encode_up(frame, &mut payload).unwrap();
    let publish = Publish { topic: "up".into(), payload: payload.into(), ..Publish::default() };
    let connect = Connect {
        client_id: account.id.clone(),
        password: Some(Bytes::from(account.secret.clone())),
        ..asking(600, Version::V5)
    };
    let mut bytes = BytesMut::new();
    for packet in [Packet::Connect(Box::new(connect)), Packet::Publish(publish)] {
        mqtt::encode(Version::V5, &packet, &mut bytes).unwrap();
    }
    bytes
}

async fn report(client: &mut Client, network: &str, survived_s: i32) -> idl::ResultCode {
    let report = idl::HeartbeatReport {
        network: network.into(),
        survived_s: Some(survived_s),
        died_s: None,
    };
    client.up(idl::Up { heartbeat: Some(report), ..up(5) }).await;
    let result = client.down().await.result.expect("a result");
    assert_eq!(result.request, 5);
    result.code
}

#[tokio::test(start_paused = true)]
async fn reports_are_answered_and_advice_reaches_the_next_device() {
    let node = Node::start().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let account = node.device().await;
        let mut client = node.connect(&account, asking(600, Version::V5)).await;
        assert_eq!(report(&mut client, "wifi:home", 0).await, idl::ResultCode::INVALID);
        clients.push(client);
    }
    for client in &mut clients[..2] {
        assert_eq!(report(client, "wifi:home", 400).await, idl::ResultCode::OK);
        assert_eq!(report(client, "wifi:home", 400).await, idl::ResultCode::LIMIT);
    }
    let newcomer = &mut clients[2];
    assert_eq!(report(newcomer, "wifi:home", 1).await, idl::ResultCode::OK);
    let advice = newcomer.down().await.advice.expect("advice");
    assert_eq!(advice.heartbeat_s, Some(390));
    advance(Duration::from_secs(61)).await;
    assert_eq!(report(newcomer, "wifi:other", 1).await, idl::ResultCode::OK);
    newcomer.ping().await;
}

#[tokio::test(start_paused = true)]
async fn a_reload_lowers_what_is_advised() {
    let node = Node::start().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let account = node.device().await;
        clients.push(node.connect(&account, asking(600, Version::V5)).await);
    }
    for client in &mut clients[..2] {
        assert_eq!(report(client, "wifi:home", 500).await, idl::ResultCode::OK);
    }
    node.edge.reconfigure(config::Edge { keep_alive_max_s: 300, ..config::Edge::default() });
    assert_eq!(report(&mut clients[2], "wifi:home", 1).await, idl::ResultCode::OK);
    let advice = clients[2].down().await.advice.expect("advice");
    assert_eq!(advice.heartbeat_s, Some(300));
}

#[tokio::test(start_paused = true)]
async fn a_network_that_kills_idle_connections_gets_a_shorter_keep_alive() {
    let node = Node::start().await;
    // Ten devices fall silent, as behind a NAT that has forgotten them.
    let mut lost = Vec::new();
    for n in 0..10 {
        let account = node.device().await;
        let peer = format!("192.0.2.{n}");
        let (client, connack) =
            connect_from(&node, &account, &peer, asking(600, Version::V5)).await;
        assert_eq!(connack.server_keep_alive_s, None, "nothing is known");
        lost.push((account, client));
    }
    let at = Instant::now();
    advance(Duration::from_secs(880)).await;
    for (_, client) in &mut lost {
        assert!(matches!(client.next().await, Some(Packet::Disconnect(_))));
    }
    assert!(at.elapsed() >= Duration::from_secs(900));

    let account = node.device().await;
    let told = |connack: ConnAck| connack.server_keep_alive_s;
    let v5 = || asking(600, Version::V5);
    let (client, connack) = connect_from(&node, &account, "192.0.3.1", v5()).await;
    assert_eq!(told(connack), None, "another network");
    drop(client);
    let (client, connack) =
        connect_from(&node, &account, "192.0.2.99", asking(200, v5().version)).await;
    assert_eq!(told(connack), None, "it asks for less");
    drop(client);
    let (client, connack) =
        connect_from(&node, &account, "192.0.2.99", asking(600, Version::V311)).await;
    assert_eq!(told(connack), None, "it cannot be told");
    drop(client);
    let (mut client, connack) = connect_from(&node, &account, "192.0.2.99", v5()).await;
    assert_eq!(told(connack), Some(210));
    let at = Instant::now();
    advance(Duration::from_secs(310)).await;
    assert!(matches!(client.next().await, Some(Packet::Disconnect(_))));
    let took = at.elapsed().as_secs();
    assert!((315..=318).contains(&took), "1.5 times what was granted: {took}");

    // Who speaks frames behind CONNECT without waiting can be advised later.
    let mut both = Client::new(node.stream(Some("192.0.2.100".parse().unwrap())));
    let resume = idl::Up { resume: Some(idl::Resume { digest: 0, dictionary: None }), ..up(0) };
    both.send_raw(&connect_and_up(&account, &resume)).await;
    let Some(Packet::ConnAck(connack)) = both.next().await else { panic!("no CONNACK") };
    assert_eq!(told(*connack), None);
}

#[tokio::test(start_paused = true)]
async fn survivals_speak_for_a_network_too() {
    let node = Node::start().await;
    let mut clients = Vec::new();
    for n in 0..20 {
        let account = node.device().await;
        let peer = format!("2001:db8:1:{n}::1");
        let (client, _) = connect_from(&node, &account, &peer, asking(600, Version::V5)).await;
        clients.push(client);
    }
    for _ in 0..5 {
        advance(Duration::from_secs(590)).await;
        for client in &mut clients {
            client.ping().await;
        }
    }
    // Two devices that are switched off do not make the network a bad one.
    let mut gone = clients.split_off(18);
    for _ in 0..2 {
        advance(Duration::from_secs(450)).await;
        for client in &mut clients {
            client.ping().await;
        }
    }
    for client in &mut gone {
        assert!(matches!(client.next().await, Some(Packet::Disconnect(_))));
    }
    let account = node.device().await;
    let (_client, connack) =
        connect_from(&node, &account, "2001:db8:1::7", asking(600, Version::V5)).await;
    assert_eq!(connack.server_keep_alive_s, None);
}
