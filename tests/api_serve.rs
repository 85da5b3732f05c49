//! The loop that serves HTTP: TLS and its protocols, bounds, slow clients, drain.

#![allow(clippy::disallowed_methods, reason = "tests start tasks and read their settings")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::{Router, extract::Extension, routing::get};
use carillon::base::{
    clock::Clock,
    http::{
        Peer,
        envelope::Envelope,
        serve::{Bounds, Face, serve},
    },
    net,
    proxy::Balancers,
    tasks,
    tls::{Identity, Inside},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

struct Door {
    at: SocketAddr,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
    /// Lets `/held` answer.
    release: Arc<Notify>,
}

fn bounds() -> Bounds {
    Bounds {
        connections_max: 100,
        connections_per_address_max: 0,
        head_bytes_max: 8_192,
        head_timeout: Duration::from_millis(300),
    }
}

fn open(tls: Option<Arc<rustls::ServerConfig>>, bounds: Bounds) -> Door {
    let listener = net::listen(SocketAddr::from(([127, 0, 0, 1], 0)), 64).unwrap();
    let at = listener.local_addr().unwrap();
    let release = Arc::new(Notify::new());
    let held = release.clone();
    let router = Router::new()
        .route("/peer", get(|Extension(Peer(ip)): Extension<Peer>| async move { ip.to_string() }))
        .route("/held", get(|| async move { held.notified().await }));
    let envelope = Envelope {
        request_timeout: Duration::from_secs(5),
        body_bytes_max: 1 << 20,
        metrics: None,
    };
    let router = envelope.around(router);
    let (stop, told) = watch::channel(false);
    let (balancers, unlimited) = (Balancers::default(), Vec::new());
    let face = Face { tls, router, bounds, balancers, unlimited };
    let served = tasks::spawn("door", serve(listener, Arc::new(ArcSwap::from_pointee(face)), told));
    Door { at, stop, served, release }
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    rest(stream).await
}

async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    // A reset ends an answer as well.
    let _ =
        timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_request_is_answered_with_its_peer_and_a_trace_id() {
    let door = open(None, bounds());
    let answer = ask(&mut TcpStream::connect(door.at).await.unwrap(), "/peer").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("trace-id: ") && answer.ends_with("127.0.0.1"), "{answer}");
}

#[tokio::test]
async fn who_is_refused_before_the_body_is_read_may_send_it_and_go_on() {
    let door = open(None, bounds());
    let mut stream = TcpStream::connect(door.at).await.unwrap();
    stream
        .write_all(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        .await
        .unwrap();
    // Long enough for an answer that does not wait.
    let mut byte = [0];
    let early = timeout(Duration::from_millis(200), stream.read(&mut byte)).await;
    assert!(early.is_err(), "the answer came before the body");
    stream.write_all(b"unwanted!").await.unwrap();
    let answers = ask(&mut stream, "/peer").await;
    assert!(answers.starts_with("HTTP/1.1 404"), "{answers}");
    assert!(answers.contains("HTTP/1.1 200"), "{answers}");
}

#[tokio::test]
async fn a_slow_or_silent_or_endless_head_ends_the_connection() {
    let door = open(None, bounds());
    for head in ["", "GET /peer HTTP/1.1\r\nhost"] {
        let mut stream = TcpStream::connect(door.at).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        assert!(!rest(&mut stream).await.contains("200 OK"));
    }
    let mut stream = TcpStream::connect(door.at).await.unwrap();
    let endless = format!("GET /peer HTTP/1.1\r\nx: {}", "y".repeat(20_000));
    let _ = stream.write_all(endless.as_bytes()).await;
    assert!(!rest(&mut stream).await.contains("200 OK"));
}

#[tokio::test]
async fn over_the_bound_a_connection_waits_for_a_place() {
    let door = open(None, Bounds { connections_max: 1, ..bounds() });
    let first = TcpStream::connect(door.at).await.unwrap();
    let mut second = TcpStream::connect(door.at).await.unwrap();
    let mut waiting = Box::pin(ask(&mut second, "/peer"));
    assert!(timeout(Duration::from_millis(100), &mut waiting).await.is_err());
    drop(first);
    assert!(waiting.await.contains("200 OK"));
}

#[tokio::test]
async fn a_drain_ends_running_calls_and_idle_connections() {
    let door = open(None, Bounds { head_timeout: Duration::from_secs(60), ..bounds() });
    let mut busy = TcpStream::connect(door.at).await.unwrap();
    busy.write_all(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut idle = TcpStream::connect(door.at).await.unwrap();
    idle.write_all(b"GET /peer HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    // Its answer shows that it is accepted, and `busy` before it.
    assert!(idle.read(&mut [0; 1_024]).await.unwrap() > 0);
    door.stop.send(true).unwrap();
    assert_eq!(rest(&mut idle).await, "");
    assert!(!door.served.is_finished());
    door.release.notify_one();
    assert!(rest(&mut busy).await.contains("200 OK"));
    timeout(Duration::from_secs(5), door.served).await.unwrap().unwrap();
    assert!(TcpStream::connect(door.at).await.is_err());
}

async fn connect_tls(
    door: &Door,
    ca: CertificateDer<'static>,
    protocols: &[&[u8]],
) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(door.at).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(client)).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn tls_speaks_what_was_agreed_and_silence_does_not_stop_others() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::local(dir.path(), &[], Clock::system().unix_ms()).unwrap();
    let ca = CertificateDer::from_pem_file(dir.path().join("ca.pem")).unwrap();
    let door = open(Some(identity.server_config(Inside::Http).unwrap()), bounds());
    let mut silent = TcpStream::connect(door.at).await.unwrap();

    for protocols in [&[][..], &[&b"http/1.1"[..]]] {
        let mut one = connect_tls(&door, ca.clone(), protocols).await;
        assert!(ask(&mut one, "/peer").await.contains("200 OK"));
    }
    let mut two = connect_tls(&door, ca, &[b"h2", b"http/1.1"]).await;
    assert_eq!(two.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    two.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    two.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "the first frame is SETTINGS");

    assert_eq!(rest(&mut silent).await, "", "its handshake has timed out");
}
