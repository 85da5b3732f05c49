//! A drain of a whole node: who is told what, in which order, and how the process ends.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod dice;
#[path = "drain/many.rs"]
mod many;
mod support;

use std::{net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use carillon_wire::{
    frame, idl,
    mqtt::{Connect, Decoder, Packet, Publish, Qos, Version, encode},
};
use reqwest::{Method, StatusCode};
use serde_json::json;
use support::{APP, DEADLINE, Device, Node, Options, poll_until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, rustls};

/// A device that says hello and then listens.
struct Caller {
    stream: TcpStream,
    decoder: Decoder,
    input: BytesMut,
    version: Version,
}

impl Caller {
    async fn connect(at: SocketAddr, device: &Device, version: Version) -> Self {
        Self::connect_as(at, device, Connect { version, ..Connect::default() }).await
    }

    async fn connect_as(at: SocketAddr, device: &Device, connect: Connect) -> Self {
        let stream = TcpStream::connect(at).await.expect("the node listens");
        let version = connect.version;
        let decoder = Decoder::client(version, 1 << 20);
        let mut caller = Self { stream, decoder, input: BytesMut::new(), version };
        let connect = Connect {
            client_id: device.device_id.clone(),
            username: Some(device.device_id.clone()),
            password: Some(Bytes::from(device.secret.clone())),
            ..connect
        };
        caller.say(&Packet::Connect(Box::new(connect))).await;
        assert!(matches!(caller.hear().await, Some(Packet::ConnAck(ack)) if ack.reason == 0));
        caller
    }

    /// From now on it speaks frames.
    async fn resume(&mut self) {
        let resume = Some(idl::Resume { digest: 0, dictionary: None });
        self.up(idl::Up { resume, ..frame::empty_up() }).await;
        self.down().await;
    }

    async fn up(&mut self, up: idl::Up) {
        let mut payload = Vec::new();
        frame::encode_up(&up, &mut payload).unwrap();
        let (qos, topic) = (Qos::AtMostOnce, "up".to_owned());
        let publish = Publish { qos, topic, payload: payload.into(), ..Publish::default() };
        self.say(&Packet::Publish(publish)).await;
    }

    async fn say(&mut self, packet: &Packet) {
        let mut output = BytesMut::new();
        encode(self.version, packet, &mut output).unwrap();
        self.stream.write_all(&output).await.unwrap();
    }

    /// The next packet, or the end.
    async fn hear(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).expect("MQTT") {
                return Some(packet);
            }
            let read = timeout(DEADLINE, self.stream.read_buf(&mut self.input)).await;
            if read.expect("something in time").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn down(&mut self) -> idl::Down {
        match self.hear().await {
            Some(Packet::Publish(publish)) => frame::decode_down(&publish.payload).unwrap(),
            other => panic!("a frame expected, not {other:?}"),
        }
    }
}

async fn start(drain: &str) -> Node {
    let config = Some(format!("[drain]\n{drain}\n"));
    Node::start_with(Options { config, ..Options::default() }).await
}

async fn readyz(node: &Node) -> StatusCode {
    node.call(Method::GET, "/readyz", None).await.status
}

#[tokio::test]
async fn each_device_is_told_where_to_go_as_its_version_can_hear() {
    let mut node = start("server = \"other.example:8883\"\nreconnect_s = 3600\npace = 3").await;
    let (one, two, three) =
        (node.create_device().await, node.create_device().await, node.create_device().await);
    let at = node.listen().mqtt;
    let mut five = Caller::connect(at, &one, Version::V5).await;
    let mut frames = Caller::connect(at, &two, Version::V5).await;
    frames.resume().await;
    let mut old = Caller::connect(at, &three, Version::V311).await;
    node.signal("TERM");

    let Some(Packet::Disconnect(end)) = five.hear().await else { panic!("DISCONNECT expected") };
    assert_eq!((end.reason, end.server_reference.as_deref()), (0x9C, Some("other.example:8883")));
    let advice = frames.down().await.advice.expect("advice");
    assert_eq!(advice.server.as_deref(), Some("other.example:8883"));
    assert!((0..1_000).contains(&advice.reconnect_after_ms.expect("a time")));
    assert!(matches!(frames.hear().await, Some(Packet::Disconnect(end)) if end.reason == 0x9C));
    assert_eq!(old.hear().await, None);
    assert!(node.wait_for_exit().await.success());
    assert_eq!(node.log().matches("close_reason=\"draining\"").count(), 3);
}

#[tokio::test]
async fn readiness_falls_first_and_what_was_asked_is_answered() {
    let mut node = start("pace = 4").await;
    let mut devices = Vec::new();
    for _ in 0..4 {
        let device = node.create_device().await;
        devices.push(Caller::connect(node.listen().mqtt, &device, Version::V5).await);
    }
    let device = node.create_device().await;
    let body = json!({"target": {"regids": [device.regid]}, "payload": 1}).to_string();
    let (mut call, rest) = half_a_call(&node, &body).await;
    assert_eq!(readyz(&node).await, 200);
    let ordered: serde_json::Value = serde_json::from_str(&node.cli(&["drain"]).await).unwrap();
    assert_eq!(ordered["draining"], true);

    // The devices are sent away one after the other: the admin door tells of it meanwhile.
    assert_eq!(readyz(&node).await, 503);
    let refused = async || TcpStream::connect(node.listen().mqtt).await.err();
    poll_until(DEADLINE, refused).await.expect("nobody is let in");
    for device in &mut devices {
        assert!(matches!(device.hear().await, Some(Packet::Disconnect(end)) if end.reason == 0x8B));
    }
    call.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = String::new();
    drop(timeout(DEADLINE, call.read_to_string(&mut answer)).await.expect("an answer in time"));
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    assert!(node.wait_for_exit().await.success());
    assert!(node.log().contains("audit: the operator orders a drain"));
}

/// A send of which the node has everything but the end of its body.
async fn half_a_call(
    node: &Node,
    body: &str,
) -> (tokio_rustls::client::TlsStream<TcpStream>, String) {
    let mut roots = rustls::RootCertStore::empty();
    let ca = rustls::pki_types::pem::PemObject::from_pem_file(node.ca_file()).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let at = node.listen().https;
    let stream = TcpStream::connect(at).await.unwrap();
    let connector = TlsConnector::from(Arc::new(tls));
    let mut stream = connector.connect(at.ip().into(), stream).await.unwrap();
    let (first, rest) = body.split_at(body.len() / 2);
    let head = format!(
        "POST /v1/apps/{APP}/messages HTTP/1.1\r\nhost: {at}\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{first}",
        node.app().app_secret,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    (stream, rest.to_owned())
}

#[tokio::test]
async fn a_second_signal_ends_the_node_at_once() {
    let mut node = start("pace = 1\nspread_s = 3000\ndeadline_s = 3600").await;
    let mut devices = Vec::new();
    for _ in 0..3 {
        let device = node.create_device().await;
        devices.push(Caller::connect(node.listen().mqtt, &device, Version::V5).await);
    }
    // A handshake that never ends holds the drain up as well.
    let _silent = TcpStream::connect(node.listen().mqtt).await.unwrap();
    node.signal("INT");
    poll_until(DEADLINE, async || (readyz(&node).await == 503).then_some(())).await.unwrap();
    node.signal("TERM");
    assert_eq!(node.wait_for_exit().await.code(), Some(1));
    assert!(node.log().contains("SIGTERM ended the drain"));
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline() {
    let mut node = start("deadline_s = 1\nspread_s = 0").await;
    let _silent = TcpStream::connect(node.listen().mqtt).await.unwrap();
    let device = node.create_device().await;
    let body = json!({"target": {"regids": [device.regid]}, "payload": 1}).to_string();
    let _call = half_a_call(&node, &body).await;
    // Neither says another word.
    assert!(node.terminate().await.success());
    assert!(node.log().contains("did not end within the drain's deadline"));
}
