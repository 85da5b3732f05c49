//! What WebSocket has besides messages comes too fast.

use bytes::{Bytes, BytesMut};
use carillon_wire::mqtt::{Connect, Decoder, Packet, Version, encode};
use futures_util::{SinkExt, StreamExt};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::{
    flood::{DEADLINE, Scene},
    support::{Device, poll_until},
};

type Socket = WebSocketStream<TcpStream>;

/// A device that was let in.
async fn connected(scene: &Scene, device: &Device) -> Socket {
    let addr = scene.node.listen().ws;
    let mut request = format!("ws://{addr}/mqtt").into_client_request().expect("a request");
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("mqtt"));
    let stream = TcpStream::connect(addr).await.expect("the node listens");
    let (mut socket, _) = client_async(request, stream).await.expect("a WebSocket");
    let connect = Connect {
        client_id: device.device_id.clone(),
        password: Some(Bytes::from(device.secret.clone())),
        ..Connect::default()
    };
    let mut bytes = BytesMut::new();
    encode(Version::V5, &Packet::Connect(Box::new(connect)), &mut bytes).expect("a packet");
    socket.send(Message::Binary(bytes.freeze())).await.expect("it is read");
    assert!(matches!(next(&mut socket).await, Some(Packet::ConnAck(ack)) if ack.reason == 0));
    socket
}

/// The next packet, or `None` at the end.
async fn next(socket: &mut Socket) -> Option<Packet> {
    loop {
        match timeout(DEADLINE, socket.next()).await.expect("an answer") {
            Some(Ok(Message::Binary(bytes))) => {
                let mut bytes = BytesMut::from(&bytes[..]);
                return Decoder::client(Version::V5, 1 << 20).decode(&mut bytes).expect("MQTT");
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(_) | Err(_)) | None => return None,
        }
    }
}

/// Empty frames, masked with zeros.
fn frames(first: u8, count: usize) -> Vec<u8> {
    [first, 0x80, 0, 0, 0, 0].repeat(count)
}

const GATE: &str = "packets_per_s = 1\npackets_burst = 100\n";

#[tokio::test]
async fn a_flood_of_frames_without_data_ends_its_connection() {
    let scene = Scene::with("", GATE).await;
    let mut told = 0;
    // Pings, pongs, empty messages, and a message of empty frames without end.
    let begun = [frames(0x02, 1), frames(0x00, 999)].concat();
    let floods = [frames(0x89, 1_000), frames(0x8A, 1_000), frames(0x82, 1_000), begun];
    for (number, flood) in floods.iter().enumerate() {
        let device = scene.node.create_device().await;
        let mut socket = connected(&scene, &device).await;
        // It may be closed while this is written, and a reset may overtake the last word.
        let _ = socket.get_mut().write_all(flood).await;
        match next(&mut socket).await {
            Some(Packet::Disconnect(end)) => {
                assert_eq!(end.reason, 0x96, "{number}");
                told += 1;
            }
            other => assert_eq!(other, None, "{number}"),
        }
        let ended = async || (scene.ended("packet_rate").await == number + 1).then_some(());
        assert!(poll_until(DEADLINE, ended).await.is_some(), "flood {number} goes on");
    }
    assert!(told > 0, "nobody was told");
    // Within its bounds a device may ping.
    let device = scene.node.create_device().await;
    let mut socket = connected(&scene, &device).await;
    socket.get_mut().write_all(&frames(0x89, 90)).await.expect("it is read");
    let ping = Message::Binary(Bytes::from_static(b"\xC0\0"));
    socket.send(ping).await.expect("it is read");
    assert_eq!(next(&mut socket).await, Some(Packet::PingResp));
    scene.end_well().await;
}
