//! TLS and WebSocket for a [`Wire`](super::wire::Wire), cut as the test wants.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use data_encoding::BASE64;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::rng::Rng;
use crate::support::Node;

/// TLS to the node's own door, its certificate verified.
pub async fn tls(node: &Node) -> TlsStream<TcpStream> {
    let pem = fs::read(node.ca_file()).expect("the node's CA");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).expect("PEM")).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = node.listen().mqtts;
    let stream = TcpStream::connect(address).await.expect("the gateway listens");
    let name = ServerName::from(address.ip());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a TLS handshake")
}

/// How a stream of bytes is cut into WebSocket messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A message for each write.
    Whole,
    /// A message, its fragments and pings in between wherever the seed says.
    Anywhere(u64),
}

/// A WebSocket to the node's door, as a stream of bytes.
pub async fn websocket(node: &Node, cut: Cut) -> DuplexStream {
    let mut stream = upgrade(node.listen().ws, "/mqtt", Some("mqtt")).await.expect("an upgrade");
    stream.set_nodelay(true).expect("a TCP socket");
    let (near, far) = tokio::io::duplex(256 << 10);
    tokio::spawn(async move {
        let (mut from_test, to_test) = tokio::io::split(far);
        let (reader, mut writer) = stream.split();
        let down = unframe(reader, to_test);
        let up = enframe(&mut from_test, &mut writer, cut);
        tokio::select! { () = down => {}, () = up => {} }
    });
    near
}

/// The HTTP part of a WebSocket; the status if it is refused.
pub async fn upgrade(
    address: SocketAddr,
    path: &str,
    protocol: Option<&str>,
) -> Result<TcpStream, String> {
    let mut stream = TcpStream::connect(address).await.expect("the gateway listens");
    let protocol = protocol.map_or(String::new(), |p| format!("Sec-WebSocket-Protocol: {p}\r\n"));
    let key = BASE64.encode(&[7; 16]);
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{protocol}\r\n"
    );
    stream.write_all(head.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte).await {
            Ok(1) => answer.push(byte[0]),
            _ => break,
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if answer.starts_with("HTTP/1.1 101") { Ok(stream) } else { Err(answer) }
}

/// A masked frame of a client.
pub fn frame(opcode: u8, is_last: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![u8::from(is_last) << 7 | opcode];
    match payload.len() {
        short @ 0..=125 => frame.push(0x80 | short as u8),
        middle @ 126..=65_535 => {
            frame.push(0x80 | 126);
            frame.extend((middle as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    let mask = [0x12, 0xA4, 0x5C, 0xE1];
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

async fn enframe(
    from_test: &mut ReadHalf<DuplexStream>,
    to_node: &mut tokio::net::tcp::WriteHalf<'_>,
    cut: Cut,
) {
    let mut rng = match cut {
        Cut::Whole => None,
        Cut::Anywhere(seed) => Some(Rng::new(seed)),
    };
    let mut buffer = [0; 8 << 10];
    loop {
        let count = from_test.read(&mut buffer).await.unwrap_or(0);
        if count == 0 {
            return;
        }
        let frames = match &mut rng {
            None => frame(BINARY, true, &buffer[..count]),
            Some(rng) => cut_anywhere(rng, &buffer[..count]),
        };
        if to_node.write_all(&frames).await.is_err() {
            return;
        }
    }
}

fn cut_anywhere(rng: &mut Rng, mut bytes: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    let mut opcode = BINARY;
    while !bytes.is_empty() {
        let length = (1 + rng.below(24)).min(bytes.len());
        let (part, left) = bytes.split_at(length);
        bytes = left;
        // What is left is another fragment of this message, or a message of its own.
        let is_last = bytes.is_empty() || rng.one_in(2);
        frames.extend(frame(opcode, is_last, part));
        opcode = if is_last { BINARY } else { CONTINUATION };
        if rng.one_in(4) {
            frames.extend(frame(PING, true, b"?"));
        }
        if is_last && rng.one_in(4) {
            frames.extend(frame(BINARY, true, b""));
        }
    }
    frames
}

async fn unframe(
    mut from_node: tokio::net::tcp::ReadHalf<'_>,
    mut to_test: WriteHalf<DuplexStream>,
) {
    while let Some((opcode, payload)) = read_frame(&mut from_node).await {
        match opcode {
            BINARY | CONTINUATION => {
                if to_test.write_all(&payload).await.is_err() {
                    return;
                }
            }
            PONG => {}
            CLOSE => return,
            other => panic!("the gateway sent a WebSocket frame of type {other}"),
        }
    }
}

async fn read_frame(from: &mut tokio::net::tcp::ReadHalf<'_>) -> Option<(u8, Vec<u8>)> {
    let first = from.read_u8().await.ok()?;
    let length = match from.read_u8().await.ok()? {
        126 => usize::from(from.read_u16().await.ok()?),
        127 => usize::try_from(from.read_u64().await.ok()?).expect("a length"),
        short => {
            assert!(short < 126, "a server never masks");
            usize::from(short)
        }
    };
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await.ok()?;
    Some((first & 0x0F, payload))
}

const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Lets the gateway read what was just sent, so that what is sent next comes in another read.
/// The write has woken its reader already; a moment that is too short makes a test of cuts
/// weaker, never wrong.
pub async fn let_it_read() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
