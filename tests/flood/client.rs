//! A device or a stranger on a socket of its own, from any loopback address.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use carillon_wire::mqtt::{Connect, Decoder, Disconnect, Packet, Qos, Subscribe, Version, encode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::DEADLINE;
use crate::support::Device;

/// How it went, where it did not go well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// CONNACK with this code, and the advice in it.
    Refused { code: u8, retry: bool },
    /// DISCONNECT with this code.
    Disconnected(u8),
    /// Closed without a word.
    Closed,
}

pub struct Client {
    pub stream: TcpStream,
    version: Version,
    decoder: Decoder,
    input: BytesMut,
    /// When the node wants this one back.
    pub retry_after: Option<Duration>,
}

impl Client {
    /// Opens a socket from 127.0.1.x, or from wherever the system likes.
    pub async fn open(to: SocketAddr, from: Option<u8>) -> io::Result<Self> {
        Self::open_as(to, from, Version::V5).await
    }

    pub async fn open_as(to: SocketAddr, from: Option<u8>, version: Version) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if let Some(last) = from {
            socket.bind((Ipv4Addr::new(127, 0, 1, last), 0).into())?;
        }
        Ok(Self::over(socket.connect(to).await?, version))
    }

    pub fn over(stream: TcpStream, version: Version) -> Self {
        stream.set_nodelay(true).expect("a TCP socket");
        let decoder = Decoder::client(version, 1 << 20);
        Self { stream, version, decoder, input: BytesMut::new(), retry_after: None }
    }

    /// CONNECT, and what CONNACK says.
    pub async fn connect(&mut self, device: &Device) -> Result<(), Ended> {
        self.connect_with(&device.device_id, &device.secret).await
    }

    pub async fn connect_with(&mut self, id: &str, secret: &str) -> Result<(), Ended> {
        self.say_connect(id, secret).await;
        match self.hear().await? {
            Packet::ConnAck(ack) if ack.reason == 0 => Ok(()),
            Packet::ConnAck(ack) => {
                let advice = ack.user.iter().find(|(name, _)| name == "retry-after-ms");
                let advice = advice.map(|(_, ms)| ms.parse().expect("milliseconds"));
                self.retry_after = advice.map(Duration::from_millis);
                Err(Ended::Refused { code: ack.reason, retry: self.retry_after.is_some() })
            }
            other => panic!("CONNECT was answered by {other:?}"),
        }
    }

    /// CONNECT, without waiting for CONNACK.
    pub async fn say_connect(&mut self, id: &str, secret: &str) {
        let connect = Connect {
            version: self.version,
            clean_start: false,
            session_expiry_s: 3_600,
            keep_alive_s: 300,
            client_id: id.to_owned(),
            username: Some(id.to_owned()),
            password: Some(Bytes::copy_from_slice(secret.as_bytes())),
            ..Connect::default()
        };
        self.say(&[Packet::Connect(Box::new(connect))]).await;
    }

    /// SUBSCRIBE to `push`.
    pub async fn subscribe(&mut self) {
        self.say(&[subscribe(&["push"])]).await;
    }

    /// Whether the other end still listens is seen by what it answers.
    pub async fn say(&mut self, packets: &[Packet]) {
        let mut out = BytesMut::new();
        for packet in packets {
            encode(self.version, packet, &mut out).expect("a packet of ours");
        }
        self.say_bytes(&out).await;
    }

    pub async fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = timeout(DEADLINE, self.stream.write_all(bytes)).await.expect("it is read");
    }

    /// The next packet, or how it ended.
    pub async fn hear(&mut self) -> Result<Packet, Ended> {
        loop {
            match self.decoder.decode(&mut self.input).expect("MQTT") {
                Some(Packet::Disconnect(end)) => return Err(Ended::Disconnected(end.reason)),
                Some(packet) => return Ok(packet),
                None => {}
            }
            let read = timeout(DEADLINE, self.stream.read_buf(&mut self.input)).await;
            match read.expect("an answer, or an end") {
                Ok(0) | Err(_) => return Err(Ended::Closed),
                Ok(_) => {}
            }
        }
    }

    /// What came until the end, and how it ended.
    pub async fn hear_out(&mut self) -> (Vec<Packet>, Ended) {
        let mut heard = Vec::new();
        loop {
            match self.hear().await {
                Ok(packet) => heard.push(packet),
                Err(ended) => return (heard, ended),
            }
        }
    }

    /// Leaves in good order.
    pub async fn leave(mut self) {
        self.say(&[Packet::Disconnect(Disconnect::default())]).await;
        let _ = self.hear_out().await;
    }
}

/// SUBSCRIBE to these at QoS 1.
pub fn subscribe(filters: &[&str]) -> Packet {
    let filters = filters.iter().map(|name| ((*name).to_owned(), Qos::AtLeastOnce)).collect();
    Packet::Subscribe(Subscribe { packet_id: 1, filters, subscription_id: None })
}
