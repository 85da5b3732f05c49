//! The listeners, over real sockets on free ports.

mod edge_support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use carillon::{
    base::{metrics::Transport, net, proxy::Balancers, tasks},
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

#[tokio::test]
async fn a_websocket_for_something_else_is_refused() {
    let node = Node::start().await;
    let (addr, _stop) = serve(&node, Transport::WebSocket);
    let stream = TcpStream::connect(addr).await.unwrap();
    assert!(client_async(format!("ws://{addr}/"), stream).await.is_err());
    tokio::time::timeout(Duration::from_secs(5), node.edge.drained()).await.unwrap();
}
