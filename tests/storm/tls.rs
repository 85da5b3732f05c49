//! O5: every TLS device loses the node at once, and all come back at once.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use carillon_wire::mqtt::{Connect, Decoder, Packet, Version, encode};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    flood::{DEADLINE, crowd, size, witness::p99},
    support::{Device, Node},
    wirelab::lab::devices,
};

/// Every handshake is a full one: as bad as devices can be.
fn connector(node: &Node) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(node.ca_file()).expect("the CA")).expect("a CA");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.resumption = Resumption::disabled();
    TlsConnector::from(Arc::new(config))
}

/// One attempt: in, or `None`.
async fn attempt(
    to: SocketAddr,
    tls: &TlsConnector,
    device: &Device,
) -> Option<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await.ok()?;
    let mut stream = tls.connect(to.ip().into(), stream).await.ok()?;
    let connect = Connect {
        client_id: device.device_id.clone(),
        username: Some(device.device_id.clone()),
        password: Some(Bytes::from(device.secret.clone())),
        ..Connect::default()
    };
    let mut bytes = BytesMut::new();
    encode(Version::V5, &Packet::Connect(Box::new(connect)), &mut bytes).expect("a CONNECT");
    stream.write_all(&bytes).await.ok()?;
    let (mut decoder, mut input) = (Decoder::client(Version::V5, 1 << 20), BytesMut::new());
    loop {
        if let Some(packet) = decoder.decode(&mut input).expect("MQTT") {
            let is_in = matches!(&packet, Packet::ConnAck(ack) if ack.reason == 0);
            return is_in.then_some(stream);
        }
        if stream.read_buf(&mut input).await.ok()? == 0 {
            return None;
        }
    }
}

/// Attempts until it is in, without any jitter; how many it took, and how long.
async fn come(
    to: SocketAddr,
    tls: TlsConnector,
    device: Device,
) -> (TlsStream<TcpStream>, usize, Duration) {
    let at = Instant::now();
    for attempts in 1.. {
        if let Ok(Some(stream)) = timeout(DEADLINE, attempt(to, &tls, &device)).await {
            return (stream, attempts, at.elapsed());
        }
        sleep(Duration::from_secs(1)).await;
    }
    unreachable!("there is no last attempt")
}

/// In the slow set 18,000.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_tls_devices_that_lost_the_node_are_back() {
    let storm = size(60, 18_000);
    let mut node = Node::start().await;
    let accounts = devices(&node, storm).await;
    let (to, tls) = (node.listen().mqtts, connector(&node));
    let all = |at_once: usize| {
        let (accounts, tls) = (accounts.clone(), tls.clone());
        crowd(storm, at_once, move |number| come(to, tls.clone(), accounts[number].clone()))
    };
    let connected = all(200).await;
    node.kill9();
    drop(connected);
    node.restart().await;
    let at = Instant::now();
    let back = all(storm).await;
    let took = at.elapsed();
    let times: Vec<Duration> = back.iter().map(|(_, _, took)| *took).collect();
    let attempts: usize = back.iter().map(|(_, attempts, _)| attempts).sum();
    let worst = back.iter().map(|(_, attempts, _)| *attempts).max().expect("some");
    println!(
        "{storm} TLS devices that lost the node are back after {took:?}, p99 {} ms, {attempts} \
         attempts, {worst} of one",
        p99(&times)
    );
    assert_eq!(node.counter("carillon_connections ").await, storm as u64);
    assert!(attempts <= 3 * storm, "{attempts} attempts: they spiral");
    let accepted = node.counter("carillon_handshakes_total{result=\"accepted\"}").await;
    assert!(accepted <= 2 * storm as u64, "{accepted} devices were looked up");
    let log = node.log();
    assert!(!log.contains("panicked"), "{log}");
}
