//! A4: who has recorded what an app server or a device said under TLS gets nothing by saying it again: no connection, no
//! message, no place of the device. On plain TCP a CONNECT is as good as its password: docs/SECURITY.md says so.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::Certificate;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use support::{APP, DEADLINE, Device, Node, poll_until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use wirelab::{
    bytes::{PINGREQ, Version},
    seen::Seen,
    wire::{Wire, device_connect},
};

/// What stands on the way and records what clients say.
struct Recorder {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Bytes that it says by itself to the node, on the newest connection.
    inject: tokio::sync::mpsc::Sender<Vec<u8>>,
}

impl Recorder {
    async fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (inject, mut injected) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
        let all = heard.clone();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut node = TcpStream::connect(target).await.unwrap();
                let at = {
                    let mut all = all.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
                loop {
                    tokio::select! {
                        Some(bytes) = injected.recv() => node.write_all(&bytes).await.unwrap(),
                        count = client.read(&mut up) => match count {
                            Ok(count) if count > 0 => {
                                all.lock().unwrap()[at].extend_from_slice(&up[..count]);
                                node.write_all(&up[..count]).await.unwrap();
                            }
                            _ => break,
                        },
                        count = node.read(&mut down) => match count {
                            Ok(count) if count > 0 => client.write_all(&down[..count]).await.unwrap(),
                            _ => break,
                        },
                    }
                }
            }
        });
        Self { address, heard, inject }
    }

    /// What clients said, connection by connection.
    fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().unwrap().clone()
    }
}

/// TLS records, whole ones.
fn records(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    while let [_, _, _, high, low, ..] = bytes {
        let (record, rest) = bytes.split_at(5 + usize::from(u16::from_be_bytes([*high, *low])));
        records.push(record);
        bytes = rest;
    }
    records
}

fn connector(node: &Node, version: &'static rustls::SupportedProtocolVersion) -> TlsConnector {
    let pem = fs::read(node.ca_file()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

async fn tls(connector: &TlsConnector, address: SocketAddr) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    connector.connect(ServerName::from(address.ip()), stream).await.unwrap()
}

async fn here(stream: TlsStream<TcpStream>, device: &Device) -> Wire {
    let mut wire = Wire::over(stream, Version::V5);
    wire.send(device_connect(device, Version::V5).bytes()).await;
    assert_eq!(wire.connack().await.code, 0);
    assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
    wire
}

/// Says this to a door and gives what it answers until it closes.
async fn say(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    let heard = async {
        // It may close before it has all.
        let _ = stream.write_all(bytes).await;
        let _ = stream.read_to_end(&mut answer).await;
    };
    timeout(DEADLINE, heard).await.expect("it closes");
    answer
}

async fn metric(node: &Node, series: &str) -> f64 {
    let text = node.metrics().await;
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
}

const OPENED: &str = "carillon_connections_opened_total{transport=\"tls\"}";
const BROKEN: &str = "carillon_handshakes_total{result=\"transport\"}";

#[tokio::test]
async fn recorded_connections_of_a_device_open_none() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let recorder = Recorder::before(node.listen().mqtts).await;
    let mut resumed = 0;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let connector = connector(&node, version);
        // The later ones resume by a ticket: their first flight is bound to it.
        for _ in 0..3 {
            let stream = tls(&connector, recorder.address).await;
            let kind = stream.get_ref().1.handshake_kind();
            resumed += usize::from(kind == Some(rustls::HandshakeKind::Resumed));
            let mut wire = here(stream, &device).await;
            node.send(json!({"regids": [device.regid]}), json!("once")).await;
            assert_eq!(wire.take(1).await[0].payload, b"\"once\"");
            wire.disconnect().await;
        }
    }
    assert!(resumed >= 2, "{resumed} of 6 resumed");
    let heard = recorder.heard();
    assert_eq!(heard.len(), 6);
    let mut wire =
        here(tls(&connector(&node, &rustls::version::TLS13), node.listen().mqtts).await, &device)
            .await;
    let (opened, broken) = (metric(&node, OPENED).await, metric(&node, BROKEN).await);
    for bytes in &heard {
        say(node.listen().mqtts, bytes).await;
        // Without its first flight too.
        say(node.listen().mqtts, &records(bytes)[1..].concat()).await;
    }
    let all = poll_until(DEADLINE, async || {
        (metric(&node, BROKEN).await == broken + 2.0 * heard.len() as f64).then_some(())
    });
    assert!(all.await.is_some(), "each was refused: {}", metric(&node, BROKEN).await - broken);
    assert_eq!(metric(&node, OPENED).await, opened, "none of them became a connection");
    assert_eq!(wire.ping().await, [], "and the device keeps its place");
}

#[tokio::test]
async fn a_record_that_comes_twice_ends_the_connection_and_does_nothing() {
    let node = Node::start().await;
    let device = node.create_device().await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let recorder = Recorder::before(node.listen().mqtts).await;
        let stream = tls(&connector(&node, version), recorder.address).await;
        let mut wire = here(stream, &device).await;
        // What is said again is a subscription to a topic.
        assert_eq!(wire.subscribe(&["topic/news"], 1).await, [1]);
        let last = records(&recorder.heard()[0]).last().unwrap().to_vec();
        assert_eq!(wire.unsubscribe(&["topic/news"]).await, [0]);
        recorder.inject.send(last).await.unwrap();
        let seen = wire.until_closed().await;
        assert!(seen.iter().all(|one| matches!(one, Seen::Disconnect { .. })), "{seen:?}");
        node.wait_until_online(&device.regid, false).await;
        assert_eq!(node.registration(&device.regid).await["topics"], json!([]));
    }
}

#[tokio::test]
async fn recorded_calls_of_an_app_server_send_nothing() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let recorder = Recorder::before(node.listen().https).await;
    let pem = fs::read(node.ca_file()).unwrap();
    let head = async || node.registration(&device.regid).await["pointers"][0]["head"].clone();
    for version in [reqwest::tls::Version::TLS_1_3, reqwest::tls::Version::TLS_1_2] {
        let client = reqwest::Client::builder()
            .add_root_certificate(Certificate::from_pem(&pem).unwrap())
            .min_tls_version(version)
            .max_tls_version(version)
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(30))
            .build()
            .unwrap();
        let url = format!("https://{}/v1/apps/{APP}/messages", recorder.address);
        let body = json!({"target": {"regids": [device.regid]}, "payload": 1});
        let sent = client.post(url).bearer_auth(&node.app().app_secret).json(&body).send().await;
        assert_eq!(sent.unwrap().status(), 202);
    }
    let before: Value = head().await;
    let heard = recorder.heard();
    assert_eq!(heard.len(), 2);
    for bytes in heard {
        for _ in 0..5 {
            let answer = say(node.listen().https, &bytes).await;
            assert!(!answer.windows(4).any(|part| part == b"HTTP"), "nothing readable comes back");
        }
    }
    assert_eq!(head().await, before, "no further message");
}

#[tokio::test]
async fn on_plain_tcp_a_recorded_connect_takes_the_devices_place() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let recorder = Recorder::before(node.listen().mqtt).await;
    let connect = device_connect(&device, Version::V5);
    let (mut wire, connack) = Wire::greet(recorder.address, &connect).await;
    assert_eq!(connack.code, 0);
    wire.ping().await;
    let (mut thief, _) = (Wire::open(node.listen().mqtt, Version::V5).await, ());
    thief.send(&recorder.heard()[0]).await;
    assert_eq!(
        thief.connack().await.code,
        0,
        "SECURITY.md says why plain TCP is for trusted lines"
    );
    wire.must_end(0x8E).await;
    thief.send(PINGREQ).await;
}
