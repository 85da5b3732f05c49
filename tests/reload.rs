//! A reload of a whole node: what can change does, what is wrong changes nothing, and no
//! connection ends by it.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use carillon::base::{clock::Clock, tls::Identity};
use carillon_wire::mqtt::{Connect, Decoder, Packet, Version, encode};
use reqwest::Method;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use support::{APP, DEADLINE, Device, Node, Options, poll_until, rumqtt, script};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

async fn start(config: &str) -> Node {
    Node::start_with(Options { config: Some(config.into()), ..Options::default() }).await
}

fn file(node: &Node) -> PathBuf {
    node.data().parent().expect("a home").join("carillon.toml")
}

/// `carillon reload`: what changed, or what it says instead.
async fn reload(node: &Node, config: &str) -> Result<Value, String> {
    fs::write(file(node), config).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_carillon"));
    command.arg("reload").arg("--data").arg(node.data());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = script::output(command, DEADLINE).await;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.code() {
        Some(0) => Ok(serde_json::from_slice::<Value>(&output.stdout).unwrap()["changed"].take()),
        Some(1) => Err(said(&output.stderr)),
        other => panic!("{other:?}: {}", said(&output.stderr)),
    }
}

async fn metric(node: &Node, name: &str) -> f64 {
    let metrics = node.metrics().await;
    let values = metrics.lines().filter(|line| line.starts_with(name));
    values.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

async fn payload_of(node: &Node, regid: &str, bytes: usize) -> u16 {
    let body = json!({"target": {"regids": [regid]}, "payload": "x".repeat(bytes)});
    let path = format!("/v1/apps/{APP}/messages");
    node.call(Method::POST, &path, Some(body)).await.status.as_u16()
}

#[tokio::test]
async fn limits_and_the_log_change_and_connections_stay() {
    let node = start("").await;
    let device = node.create_device().await;
    let mut client = rumqtt::connect_v5(&node, &device, &["push"]);
    client.ready().await;
    assert_eq!(payload_of(&node, &device.regid, 100).await, 202);
    client.message().await;

    let changed = reload(&node, "[limits]\npayload_bytes_max = 50\n[api]\nbody_bytes_max = 1024\n");
    assert_eq!(changed.await.unwrap(), json!(["api.body_bytes_max", "limits.payload_bytes_max"]));
    assert_eq!(payload_of(&node, &device.regid, 100).await, 422);
    assert_eq!(payload_of(&node, &device.regid, 2_000).await, 413);
    assert_eq!(payload_of(&node, &device.regid, 10).await, 202);
    client.message().await;

    // The same by the signal; what the file no longer says has its default again.
    fs::write(file(&node), "[log]\nfilter = \"carillon=debug\"\n").unwrap();
    node.signal("HUP");
    let log = async || node.log().contains("\"log.filter\"").then_some(());
    poll_until(DEADLINE, log).await.expect("the reload is logged");
    assert_eq!(payload_of(&node, &device.regid, 100).await, 202);
    client.message().await;
    drop(TcpStream::connect(node.listen().https).await.unwrap());
    let debug = async || node.log().contains("DEBUG").then_some(());
    poll_until(DEADLINE, debug).await.expect("the new filter lets more through");
    assert_eq!(metric(&node, "carillon_connections_closed_total").await, 0.0);
    assert_eq!(metric(&node, "carillon_reloads_total{result=\"done\"}").await, 2.0);
    client.stop().await;
}

#[tokio::test]
async fn bounds_of_strangers_change_and_connections_stay() {
    let node = start("").await;
    let [first, second, third] =
        [node.create_device().await, node.create_device().await, node.create_device().await];
    let mut client = rumqtt::connect_v5(&node, &first, &["push"]);
    client.ready().await;
    let bounds = "[edge.gate]\nunlimited_networks = []\nconnections_per_address_max = 1\n";
    assert_eq!(reload(&node, bounds).await.unwrap(), json!(["edge.gate"]));
    let mut newer = rumqtt::connect_v5(&node, &second, &["push"]);
    newer.ready().await;
    // Quota exceeded: those who came while there was no bound do not count.
    let refused = rumqtt::connect_v5(&node, &third, &["push"]).refused().await;
    assert!(refused.contains("QuotaExceeded"), "{refused}");
    for (device, client) in [(&first, &mut client), (&second, &mut newer)] {
        assert_eq!(payload_of(&node, &device.regid, 10).await, 202);
        client.message().await;
    }
    newer.stop().await;
    client.stop().await;
}

#[tokio::test]
async fn whatever_is_wrong_is_named_and_nothing_changes() {
    let node = start("[limits]\npayload_bytes_max = 50\n").await;
    let device = node.create_device().await;
    let damaged = node.data().join("damaged.pem");
    fs::write(&damaged, "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    let pair = format!("certificate = \"{0}\"\nprivate_key = \"{0}\"", damaged.display());
    let cases = [
        ("[edge]\n\nwindwo = 4\n", vec!["carillon.toml:3: ", "windwo"]),
        ("[edge]\nwindow = 0\n", vec!["carillon.toml:2: edge.window: at least 1"]),
        ("[log]\nfilter = \"=,\"\n", vec!["carillon.toml:2: log.filter: "]),
        ("[listen]\ncertificate = \"a\"\n", vec!["carillon.toml:2: listen.certificate"]),
        (&format!("[listen]\n{pair}\n"), vec!["carillon.toml:2: ", "damaged.pem"]),
        (
            "[store]\nretention_days = 9\n[limits]\npayload_bytes_max = 60\n[edge]\nhandshakes_max = 9\n",
            vec![
                "carillon.toml:2: store.retention_days needs a restart",
                "carillon.toml:6: edge.handshakes_max needs a restart",
            ],
        ),
    ];
    for (count, (config, expected)) in cases.iter().enumerate() {
        let said = reload(&node, config).await.expect_err("a refusal");
        for words in expected {
            assert!(said.contains(words), "{config:?}: {said}");
        }
        let refused = metric(&node, "carillon_reloads_total{result=\"refused\"}").await;
        assert_eq!(refused, count as f64 + 1.0);
        assert_eq!(payload_of(&node, &device.regid, 55).await, 422, "the old limit stays");
    }
    fs::remove_file(file(&node)).unwrap();
    node.signal("HUP");
    let logged = async || node.log().contains("cannot read").then_some(());
    poll_until(DEADLINE, logged).await.expect("a signal's refusal is logged");
    assert!(node.log().contains("the configuration stays as it is"));
}

/// A certificate of a CA of its own, in one file with its key; the CA's is beside it.
fn issue(dir: &Path) -> PathBuf {
    Identity::local(dir, &[], Clock::system().unix_ms()).unwrap();
    dir.join("server.pem")
}

async fn trusting(ca: &Path, node: &Node, port: u16) -> Option<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let at = std::net::SocketAddr::new(node.listen().mqtts.ip(), port);
    let stream = TcpStream::connect(at).await.unwrap();
    TlsConnector::from(Arc::new(tls)).connect(at.ip().into(), stream).await.ok()
}

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_ends_no_old_one() {
    let certificates = tempfile::tempdir().unwrap();
    let (one, two) = (certificates.path().join("one"), certificates.path().join("two"));
    let shown = certificates.path().join("shown.pem");
    fs::copy(issue(&one), &shown).unwrap();
    let listen = |path: &Path| {
        format!("[listen]\ncertificate = \"{0}\"\nprivate_key = \"{0}\"\n", path.display())
    };
    let node = start(&listen(&shown)).await;
    let (mqtts, https) = (node.listen().mqtts.port(), node.listen().https.port());
    let ca = |dir: &Path| dir.join("ca.pem");
    let device = node.create_device().await;
    let mut old = device_over_tls(&node, &ca(&one), &device).await;

    // The same file, with what it holds replaced: its path does not change.
    fs::copy(issue(&two), &shown).unwrap();
    assert!(trusting(&ca(&two), &node, mqtts).await.is_none());
    assert_eq!(reload(&node, &listen(&shown)).await.unwrap(), json!(["listen.certificate"]));
    for port in [mqtts, https] {
        assert!(trusting(&ca(&two), &node, port).await.is_some());
        assert!(trusting(&ca(&one), &node, port).await.is_none());
    }
    ping(&mut old).await;

    // A chain and a key that do not fit each other: the new one stays.
    let halves = format!(
        "[listen]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n",
        one.join("server.pem").display(),
        shown.display()
    );
    let said = reload(&node, &halves).await.expect_err("a refusal");
    assert!(said.contains("carillon.toml:2: ") && said.contains("cannot be used"), "{said}");
    assert!(trusting(&ca(&two), &node, mqtts).await.is_some());
    assert_eq!(reload(&node, &listen(&shown)).await.unwrap(), json!([]));
    ping(&mut old).await;
    assert_eq!(metric(&node, "carillon_connections_closed_total").await, 0.0);
}

/// A device over TLS that says hello.
async fn device_over_tls(node: &Node, ca: &Path, device: &Device) -> TlsStream<TcpStream> {
    let mut stream = trusting(ca, node, node.listen().mqtts.port()).await.expect("TLS");
    let connect = Connect {
        client_id: device.device_id.clone(),
        password: Some(Bytes::from(device.secret.clone())),
        ..Connect::default()
    };
    let mut bytes = BytesMut::new();
    encode(Version::V5, &Packet::Connect(Box::new(connect)), &mut bytes).unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut decoder = Decoder::client(Version::V5, 1 << 20);
    let mut input = BytesMut::new();
    loop {
        if let Some(Packet::ConnAck(ack)) = decoder.decode(&mut input).unwrap() {
            assert_eq!(ack.reason, 0);
            return stream;
        }
        assert_ne!(stream.read_buf(&mut input).await.unwrap(), 0, "CONNACK comes");
    }
}

async fn ping(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(&[0xC0, 0]).await.unwrap();
    let mut answer = [0; 2];
    timeout(DEADLINE, stream.read_exact(&mut answer)).await.expect("in time").unwrap();
    assert_eq!(answer, [0xD0, 0]);
}
