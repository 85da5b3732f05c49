//! The gateway's end of a duplex stream, driven by hand.

#![allow(dead_code, reason = "each test file takes what it needs")]

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use carillon_sdk::{BoxStream, Credentials, Device, MemoryStore, Received};
use carillon_wire::mqtt::{Ack, ConnAck, Decoder, Packet, Publish, Qos, Version, encode};
use carillon_wire::{frame, idl};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Accepts the device's streams.
pub struct Gateway {
    streams: mpsc::Receiver<DuplexStream>,
}

/// One connection.
pub struct Peer {
    stream: DuplexStream,
    decoder: Decoder,
    buf: BytesMut,
    next_id: u16,
}

/// What the handler was called with.
pub type Given = Arc<Mutex<Vec<Received>>>;

/// A connector, as the SDK wants one, and the gateway that it reaches.
pub fn gateway()
-> (impl Fn() -> std::future::Ready<io::Result<BoxStream>> + Send + Sync + 'static, Gateway) {
    let (to, streams) = mpsc::channel(16);
    let connector = move || {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let opened = match to.try_send(theirs) {
            Ok(()) => Ok(Box::new(ours) as BoxStream),
            Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
        };
        std::future::ready(opened)
    };
    (connector, Gateway { streams })
}

/// A device on a gateway, whose handler only remembers.
pub async fn device(store: &MemoryStore) -> (Device, Gateway, Given) {
    let (connector, gateway) = gateway();
    let given = Given::default();
    let remember = given.clone();
    let device = Device::builder_with_store(connector, credentials(), store.clone())
        .seed(7)
        .connect_with(move |received| {
            remember.lock().unwrap().push(received);
            async {}
        })
        .await
        .unwrap();
    (device, gateway, given)
}

pub fn credentials() -> Credentials {
    Credentials { device_id: "d1".into(), secret: "s1".into() }
}

impl Gateway {
    /// The next connection, without a word yet.
    pub async fn accept(&mut self) -> Peer {
        let stream = timeout(Duration::from_secs(3600), self.streams.recv()).await;
        Peer {
            stream: stream.unwrap().unwrap(),
            decoder: Decoder::server(1 << 20),
            buf: BytesMut::new(),
            next_id: 0,
        }
    }

    /// The next connection, accepted and resumed.
    pub async fn online(&mut self, regids: &[&str]) -> Peer {
        let mut peer = self.accept().await;
        peer.recv().await;
        peer.recv_up().await;
        peer.resumed(regids).await;
        peer
    }
}

impl Peer {
    /// The next packet; `None` at the end of the stream.
    pub async fn try_recv(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.buf).unwrap() {
                return Some(packet);
            }
            match self.stream.read_buf(&mut self.buf).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub async fn recv(&mut self) -> Packet {
        self.try_recv().await.unwrap()
    }

    /// The next packet must be an `up` frame; it is acknowledged, and so is CONNECT before the first one.
    pub async fn recv_up(&mut self) -> idl::Up {
        let Packet::Publish(publish) = self.recv().await else {
            panic!("not a PUBLISH");
        };
        assert_eq!((publish.topic.as_str(), publish.qos), ("up", Qos::AtLeastOnce));
        let up = frame::decode_up(&publish.payload).unwrap();
        let packet_id = publish.packet_id;
        // Nothing may come before CONNACK.
        if up.resume.is_some() {
            self.send(Packet::ConnAck(Box::default())).await;
        }
        self.send(Packet::PubAck(Ack { packet_id, reason: 0 })).await;
        up
    }

    /// The next packet must be PUBACK.
    pub async fn recv_ack(&mut self) -> u16 {
        match self.recv().await {
            Packet::PubAck(ack) => ack.packet_id,
            other => panic!("not a PUBACK: {other:?}"),
        }
    }

    pub async fn send(&mut self, packet: Packet) {
        let mut out = BytesMut::new();
        encode(Version::V5, &packet, &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
    }

    /// Publishes a frame; its packet id.
    pub async fn down(&mut self, down: idl::Down) -> u16 {
        self.next_id += 1;
        let mut payload = Vec::new();
        frame::encode_down(&down, &mut payload).unwrap();
        self.send(Packet::Publish(Publish {
            qos: Qos::AtLeastOnce,
            topic: "down".into(),
            packet_id: self.next_id,
            payload: Bytes::from(payload),
            ..Publish::default()
        }))
        .await;
        self.next_id
    }

    /// Answers `Resume` or `Positions`, and takes the PUBACK.
    pub async fn resumed(&mut self, regids: &[&str]) {
        let regids = regids.iter().map(|&regid| regid.to_owned()).collect();
        let resumed = Some(idl::Resumed { regids: Some(regids) });
        let id = self.down(idl::Down { resumed, ..empty() }).await;
        assert_eq!(self.recv_ack().await, id);
    }

    /// A message at that place of the own queue of `r1`, which continues or jumps.
    pub async fn message(&mut self, seq: i64, jump: Option<idl::JumpReason>) -> u16 {
        let entry = idl::Entry {
            change: None,
            seq,
            id: Some(format!("m{seq}").into_bytes()),
            time_ms: Some(1),
            payload: Some(b"{}".to_vec()),
            notification: None,
            follow: None,
            unfollow: None,
            sealed: None,
            recall: None,
        };
        let delta = idl::Delta {
            queue: idl::Queue { kind: idl::QueueKind::OWN, name: None },
            epoch: 1,
            from_seq: seq,
            to_seq: seq,
            tag: vec![0; 8],
            entries: vec![entry],
            jump,
            wrapped_keys: None,
            key_number: None,
        };
        let deltas = Some(idl::Deltas { digests: None, regid: "r1".into(), deltas: vec![delta] });
        self.down(idl::Down { deltas, ..empty() }).await
    }
}

/// A `Down` of no kind.
pub fn empty() -> idl::Down {
    idl::Down::default()
}

/// CONNACK with a reason.
pub fn refusal(reason: u8) -> Packet {
    Packet::ConnAck(Box::new(ConnAck { reason, ..ConnAck::default() }))
}
