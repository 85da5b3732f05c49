//! Bounds of the node itself: connections, TLS handshakes, and those who leave before their turn.

use std::{net::SocketAddr, sync::Arc};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    flood::{
        DEADLINE, Scene,
        client::{Client, Ended},
    },
    support::poll_until,
};

#[tokio::test]
async fn a_full_node_says_when_to_come_back() {
    // Eight of these are those who behave.
    let scene = Scene::with("connections_max = 10\n", "").await;
    let mut held = Vec::new();
    for number in 0..13 {
        let device = scene.node.create_device().await;
        let mut client = Client::open(scene.mqtt(), None).await.expect("a socket");
        let ended = client.connect(&device).await;
        let full = Err(Ended::Refused { code: 0x89, retry: true });
        assert_eq!(ended, if number < 2 { Ok(()) } else { full }, "{number}");
        if number < 2 {
            held.push(client);
        } else {
            assert!(client.retry_after.is_some_and(|after| after.as_secs() >= 1));
        }
    }
    assert_eq!(scene.refused("connections").await, 11);
    held.pop().expect("one of them").leave().await;
    // The device is gone a moment before its room is free.
    let device = scene.node.create_device().await;
    let next = async || {
        let mut next = Client::open(scene.mqtt(), None).await.expect("a socket");
        let is_in = next.connect(&device).await.is_ok();
        next.leave().await;
        is_in.then_some(())
    };
    assert!(poll_until(DEADLINE, next).await.is_some());
    drop(held);
    let left = async || (scene.metric("carillon_connections").await == 8).then_some(());
    assert!(poll_until(DEADLINE, left).await.is_some());
    scene.end_well().await;
}

/// Who is refused for something else takes nothing of the rate at which the node accepts.
#[tokio::test]
async fn the_accept_rate_is_for_those_who_get_in() {
    let gate = "connections_per_address_max = 1\naccepts_per_s = 1\naccepts_burst = 60\n";
    let scene = Scene::with("", gate).await;
    let device = scene.node.create_device().await;
    let mut held = Client::open(scene.mqtt(), Some(1)).await.expect("a socket");
    assert_eq!(held.connect(&device).await, Ok(()));
    for _ in 0..100 {
        let mut more = Client::open(scene.mqtt(), Some(1)).await.expect("a socket");
        let refused = Err(Ended::Refused { code: 0x97, retry: true });
        assert_eq!(more.connect(&device).await, refused);
    }
    assert_eq!(scene.refused("accept_rate").await, 0);
    scene.end_well().await;
}

/// One TLS handshake at a time: who holds it and says no more gives way to who waits, and who
/// has gone meanwhile is served none.
#[tokio::test]
async fn tls_handshakes_have_places_of_their_own() {
    let edge = "tls_handshakes_max = 1\nhandshake_timeout_ms = 600000\n";
    let scene = Scene::with(edge, "").await;
    let mqtts = scene.node.listen().mqtts;
    let mut silent = Vec::new();
    for _ in 0..2 {
        let mut client = Client::open(mqtts, None).await.expect("a socket");
        client.say_bytes(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3]).await;
        silent.push(client);
    }
    let seen = async |result: &str, count: usize| {
        let is = async || (scene.handshakes(result).await == count).then_some(());
        poll_until(DEADLINE, is).await.is_some()
    };
    assert!(seen("evicted", 1).await, "one waits for the other");
    // Gone before its turn, for which the second one gives way.
    drop(Client::open(mqtts, None).await.expect("a socket"));
    assert!(seen("gave_up", 1).await);
    assert!(seen("evicted", 2).await);
    shake_hands(&scene, mqtts).await;
    assert_eq!(scene.handshakes("timeout").await, 0);
    drop(silent);
    scene.end_well().await;
}

async fn shake_hands(scene: &Scene, to: SocketAddr) {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(scene.node.ca_file()).expect("the local CA");
    roots.add(ca).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(to).await.expect("the node listens");
    let shaking = TlsConnector::from(Arc::new(config)).connect(to.ip().into(), stream);
    timeout(DEADLINE, shaking).await.expect("in time").expect("TLS");
}
