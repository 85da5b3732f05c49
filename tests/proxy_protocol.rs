//! Behind a balancer that speaks the PROXY protocol, version 2.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;

use std::{net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use carillon_wire::mqtt::{Connect, Packet, Version, encode};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::json;
use support::{APP, DEADLINE, Device, Node, Options, poll_until};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What a balancer says of a client at 192.0.2.`last`.
fn header(last: u8) -> Vec<u8> {
    let addresses = [192, 0, 2, last, 127, 0, 0, 1, 0x1F, 0x90, 0x07, 0x5B];
    [SIGNATURE, &[0x21, 0x11, 0, 12], &addresses].concat()
}

/// A balancer's check of its own.
fn local() -> Vec<u8> {
    [SIGNATURE, &[0x20, 0, 0, 0]].concat()
}

async fn start(config: &str) -> Node {
    Node::start_with(Options { config: Some(config.into()), ..Options::default() }).await
}

fn connect(device: &Device) -> Vec<u8> {
    let connect = Connect {
        client_id: device.device_id.clone(),
        password: Some(Bytes::from(device.secret.clone())),
        ..Connect::default()
    };
    let mut bytes = BytesMut::new();
    encode(Version::V5, &Packet::Connect(Box::new(connect)), &mut bytes).unwrap();
    bytes.to_vec()
}

/// Whether CONNACK with success is the first thing that comes; an end is a no.
async fn is_let_in(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut head = [0; 4];
    let read = timeout(DEADLINE, stream.read_exact(&mut head)).await.expect("an answer in time");
    read.is_ok() && head[0] == 0x20 && head[3] == 0
}

async fn says(at: SocketAddr, bytes: &[u8]) -> bool {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    is_let_in(&mut stream).await
}

async fn handshakes(node: &Node, result: &str, count: usize) {
    let line = format!("carillon_handshakes_total{{result=\"{result}\"}} {count}");
    let is = async || node.metrics().await.lines().any(|one| one == line).then_some(());
    assert!(poll_until(DEADLINE, is).await.is_some(), "never: {line}\n{}", node.metrics().await);
}

async fn tls(node: &Node, mut stream: TcpStream, first: &[u8]) -> Option<TlsStream<TcpStream>> {
    stream.write_all(first).await.unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(node.ca_file()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = std::net::IpAddr::from([127, 0, 0, 1]).into();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()
}

#[tokio::test]
async fn a_balancer_must_say_whom_it_serves() {
    let node = start("[listen]\nproxy_from = [\"127.0.0.1\", \"10.0.0.0/8\"]\n").await;
    let device = node.create_device().await;
    let (mqtt, mqtts) = (node.listen().mqtt, node.listen().mqtts);
    let connect = connect(&device);
    assert!(says(mqtt, &[header(7), connect.clone()].concat()).await);
    assert!(says(mqtt, &[local(), connect.clone()].concat()).await);
    handshakes(&node, "accepted", 2).await;
    assert!(!says(mqtt, &connect).await);
    let mut old = header(7);
    old[12] = 0x11;
    assert!(!says(mqtt, &[old, connect.clone()].concat()).await);
    handshakes(&node, "transport", 2).await;

    // A header in pieces, with TLS behind it, or without.
    let mut stream = TcpStream::connect(mqtt).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in [header(7), connect.clone()].concat() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(is_let_in(&mut stream).await);
    let stream = TcpStream::connect(mqtts).await.unwrap();
    let mut stream = tls(&node, stream, &header(7)).await.expect("TLS behind the header");
    stream.write_all(&connect).await.unwrap();
    assert!(is_let_in(&mut stream).await);
    let bare = TcpStream::connect(mqtts).await.unwrap();
    assert!(tls(&node, bare, b"").await.is_none());
}

#[tokio::test]
async fn a_header_from_anybody_else_is_a_broken_packet() {
    let node = start("[listen]\nproxy_from = [\"10.0.0.0/8\"]\n").await;
    let device = node.create_device().await;
    let connect = connect(&device);
    assert!(!says(node.listen().mqtt, &[header(7), connect.clone()].concat()).await);
    handshakes(&node, "malformed", 1).await;
    assert!(says(node.listen().mqtt, &connect).await);
    let stream = TcpStream::connect(node.listen().https).await.unwrap();
    assert!(tls(&node, stream, &header(7)).await.is_none());
}

#[tokio::test]
async fn only_the_named_doors_are_behind_the_balancer() {
    let node = start("[listen]\nproxy_from = [\"127.0.0.1\"]\nproxy_doors = [\"https\"]\n").await;
    let device = node.create_device().await;
    assert!(says(node.listen().mqtt, &connect(&device)).await);
    let bare = TcpStream::connect(node.listen().https).await.unwrap();
    assert!(tls(&node, bare, b"").await.is_none());
}

#[tokio::test]
async fn a_silent_balancer_is_under_the_deadline_of_handshakes() {
    let node =
        start("[listen]\nproxy_from = [\"127.0.0.1\"]\n[edge]\nhandshake_timeout_ms = 100\n").await;
    let mut stream = TcpStream::connect(node.listen().mqtt).await.unwrap();
    stream.write_all(&SIGNATURE[..5]).await.unwrap();
    assert!(!is_let_in(&mut stream).await);
    handshakes(&node, "timeout", 1).await;
}

#[tokio::test]
async fn limits_by_address_go_by_the_client() {
    let node = start(
        "[listen]\nproxy_from = [\"127.0.0.1\"]\n[api]\ndevices_per_address_per_minute = 2\n",
    )
    .await;
    let create = async |last| {
        let stream = TcpStream::connect(node.listen().https).await.unwrap();
        let mut stream = tls(&node, stream, &header(last)).await.expect("TLS behind the header");
        post(&mut stream, &node).await
    };
    assert_eq!([create(1).await, create(1).await, create(1).await], [201, 201, 429]);
    assert_eq!([create(2).await, create(2).await, create(2).await], [201, 201, 429]);
}

/// Over it they are closed before TLS, and counted; another address and the operator are served.
#[tokio::test]
async fn an_address_has_its_share_of_the_connections_of_app_servers() {
    let node =
        start("[listen]\nproxy_from = [\"127.0.0.1\"]\n[api]\nconnections_per_address_max = 2\n")
            .await;
    let https = node.listen().https;
    let open = async |last| {
        let stream = TcpStream::connect(https).await.unwrap();
        tls(&node, stream, &header(last)).await
    };
    let (one, mut two) = (open(1).await.expect("TLS"), open(1).await.expect("TLS"));
    assert!(open(1).await.is_none() && open(1).await.is_none());
    let counted = async |reason: &str, count: usize| {
        let line = format!("carillon_api_refused_connections_total{{reason=\"{reason}\"}} {count}");
        let is = async || node.metrics().await.lines().any(|one| one == line).then_some(());
        assert!(poll_until(DEADLINE, is).await.is_some(), "never: {line}");
    };
    counted("address_connections", 2).await;
    let mut other = open(2).await.expect("TLS");
    assert_eq!((post(&mut other, &node).await, post(&mut two, &node).await), (201, 201));
    // Who leaves makes room, a moment later.
    drop(one);
    assert!(poll_until(DEADLINE, async || open(1).await).await.is_some());
    // No header; no TLS.
    let bare = TcpStream::connect(https).await.unwrap();
    assert!(tls(&node, bare, b"").await.is_none());
    counted("balancer", 1).await;
    let mut stream = TcpStream::connect(https).await.unwrap();
    stream.write_all(&[&header(3)[..], b"GET / HTTP/1.1\r\n\r\n"].concat()).await.unwrap();
    counted("tls", 1).await;
}

/// Creates a device, and gives the status.
async fn post(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), node: &Node) -> u16 {
    let body = json!({"app_id": APP, "app_key": node.app().app_key, "register": true}).to_string();
    let head = format!(
        "POST /v1/devices HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    drop(timeout(DEADLINE, stream.read_to_string(&mut answer)).await.expect("an end in time"));
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}
