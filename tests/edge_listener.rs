//! The listeners, over real sockets on free ports.

mod edge_support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use carillon::{
    base::{metrics::Transport, net, proxy::Balancers, tasks},
    config::Config,
    edge::Door,
};
use carillon_wire::mqtt::{self, Connect, Decoder, Packet, Version};
use edge_support::Node;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

fn serve(node: &Node, transport: Transport) -> (SocketAddr, watch::Sender<bool>) {
    let listener = net::listen(([127, 0, 0, 1], 0).into(), 128).unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let (balancers, early) = (Balancers::default(), Vec::new());
    let door = Door { listener, transport, tls: None, balancers, early };
    tasks::spawn("edge", Arc::clone(&node.edge).serve(door, stopped));
    (addr, stop)
}

async fn connect_bytes(node: &Node) -> BytesMut {
    let account = node.device().await;
    let connect = Connect {
        client_id: account.id,
        password: Some(account.secret.into()),
        ..Connect::default()
    };
    let mut bytes = BytesMut::new();
    mqtt::encode(Version::V5, &Packet::Connect(Box::new(connect)), &mut bytes).unwrap();
    bytes
}

fn is_connack(bytes: &[u8]) -> bool {
    let mut bytes = BytesMut::from(bytes);
    let packet = Decoder::client(Version::V5, u32::MAX).decode(&mut bytes).unwrap();
    matches!(packet, Some(Packet::ConnAck(connack)) if connack.reason == 0)
}

#[tokio::test]
async fn a_device_connects_over_tcp() {
    let node = Node::start().await;
    let (addr, stop) = serve(&node, Transport::Tcp);
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(&connect_bytes(&node).await).await.unwrap();
    let mut answer = BytesMut::new();
    stream.read_buf(&mut answer).await.unwrap();
    assert!(is_connack(&answer));
    assert_eq!(node.edge.connections(), 1);
    drop(stream);
    node.quiet().await;
    stop.send_replace(true);
}

#[tokio::test]
async fn a_device_connects_over_websocket_with_its_bytes_cut_anywhere() {
    let node = Node::start().await;
    let (addr, _stop) = serve(&node, Transport::WebSocket);
    let mut request = format!("ws://{addr}/mqtt").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("x, mqtt"));
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut socket, response) = client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "mqtt");
    for byte in connect_bytes(&node).await {
        socket.send(Message::Binary(vec![byte].into())).await.unwrap();
    }
    let Some(Ok(Message::Binary(answer))) = socket.next().await else { panic!("binary expected") };
    assert!(is_connack(&answer));
    socket.send(Message::Ping(vec![1].into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong(vec![1].into()));
    socket.close(None).await.unwrap();
    node.quiet().await;
}

/// A WebSocket that has been accepted, without anything of the client's own.
async fn upgraded(addr: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!(
        "GET /mqtt HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: mqtt\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    stream
}

/// What a stranger may make us hold is the same as over TCP: the length of his message, which
/// is that of a later packet, does not count.
#[tokio::test]
async fn a_stranger_s_long_message_is_refused_at_its_beginning() {
    let mut config = Config::default();
    config.edge.handshake_timeout_ms = 3_600_000;
    let node = Node::start_with(config).await;
    let (addr, _stop) = serve(&node, Transport::WebSocket);
    let mut stream = upgraded(addr).await;
    // One masked frame of 100,000 bytes, of which the first are those of as long a CONNECT.
    let head = [0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0x86, 0xA0, 0, 0, 0, 0];
    let connect = b"\x10\x90\x8D\x06\0\x04MQTT\x05\x02\0\x3C\0\0\x06device";
    stream.write_all(&[&head[..], connect].concat()).await.unwrap();
    let mut answer = Vec::new();
    let heard = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(60), heard).await.expect("an answer").unwrap();
    // CONNACK 0x95 in a frame, and the end of the WebSocket.
    assert_eq!(answer, b"\x82\x05\x20\x03\0\x95\0\x88\0");
    node.quiet().await;
}

#[tokio::test]
async fn a_websocket_request_without_an_end_is_refused() {
    let mut config = Config::default();
    config.edge.handshake_timeout_ms = 3_600_000;
    let node = Node::start_with(config).await;
    let (addr, _stop) = serve(&node, Transport::WebSocket);
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET /mqtt HTTP/1.1\r\nX: {}", "x".repeat(9_000));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer);
    // A reset, if the rest had come before it was closed.
    let _ = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it is closed");
    node.quiet().await;
}

#[tokio::test]
async fn a_websocket_for_something_else_is_refused() {
    let node = Node::start().await;
    let (addr, _stop) = serve(&node, Transport::WebSocket);
    let stream = TcpStream::connect(addr).await.unwrap();
    assert!(client_async(format!("ws://{addr}/"), stream).await.is_err());
    tokio::time::timeout(Duration::from_secs(5), node.edge.drained()).await.unwrap();
}
