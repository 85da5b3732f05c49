//! One connection: says bytes, hears packets.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    bytes::{Connect, PINGREQ, PUBACK, Version, ack, disconnect, subscribe, unsubscribe},
    seen::{self, ConnAck, Push, Seen},
};
use crate::support::{Device, Node};

/// Longer than anything that the gateway does before it answers or closes.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Any stream of bytes.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A client that does what the test says and nothing by itself.
pub struct Wire {
    stream: Box<dyn Stream>,
    version: Version,
    unread: Vec<u8>,
    last_id: u16,
    aliases: HashMap<u16, String>,
    is_closed: bool,
}

impl Wire {
    /// A TCP connection that has said nothing yet.
    pub async fn open(address: SocketAddr, version: Version) -> Self {
        let stream = TcpStream::connect(address).await.expect("the gateway listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Self::over(stream, version)
    }

    /// The same over any stream.
    pub fn over(stream: impl Stream + 'static, version: Version) -> Self {
        Self {
            stream: Box::new(stream),
            version,
            unread: Vec::new(),
            last_id: 0,
            aliases: HashMap::new(),
            is_closed: false,
        }
    }

    /// Sends this CONNECT and gives what CONNACK says.
    pub async fn greet(address: SocketAddr, connect: &Connect) -> (Self, ConnAck) {
        let mut wire = Self::open(address, connect.version).await;
        wire.send(connect.bytes()).await;
        let connack = wire.connack().await;
        (wire, connack)
    }

    /// Sends this CONNECT, which must be accepted.
    pub async fn connect(node: &Node, connect: &Connect) -> Self {
        let (wire, connack) = Self::greet(node.listen().mqtt, connect).await;
        assert_eq!(connack.code, 0, "{connack:?}");
        wire
    }

    /// This device with a clean session.
    pub async fn clean(node: &Node, device: &Device, version: Version) -> Self {
        Self::connect(node, &device_connect(device, version)).await
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Says this. Whether the gateway still listens is seen by what it answers.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let said = async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        };
        let _ = timeout(DEADLINE, said).await.expect("the gateway reads within the deadline");
    }

    /// Says this however long it takes; whether it was taken.
    pub async fn send_or_fail(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// No more is said; what is still to come can be heard.
    pub async fn end_of_speech(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The next packet, or [`Seen::Closed`].
    pub async fn next(&mut self) -> Seen {
        match timeout(DEADLINE, self.read()).await {
            Ok(seen) => seen,
            Err(_) => panic!("nothing came in {DEADLINE:?}; unread: {:02x?}", self.unread),
        }
    }

    async fn read(&mut self) -> Seen {
        loop {
            if let Some(seen) = seen::take(self.version, &mut self.unread) {
                if let Seen::Publish(push) = &seen
                    && let Some(alias) = push.alias()
                    && !push.topic.is_empty()
                {
                    self.aliases.insert(alias, push.topic.clone());
                }
                return seen;
            }
            let mut buffer = [0; 16 << 10];
            match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => {
                    assert!(self.unread.is_empty(), "cut in a packet: {:02x?}", self.unread);
                    self.is_closed = true;
                    return Seen::Closed;
                }
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
            }
        }
    }

    pub async fn connack(&mut self) -> ConnAck {
        match self.next().await {
            Seen::ConnAck(connack) => connack,
            other => panic!("not CONNACK: {other:?}"),
        }
    }

    /// The next packet, which must be a PUBLISH.
    pub async fn push(&mut self) -> Push {
        match self.next().await {
            Seen::Publish(push) => push,
            other => panic!("not PUBLISH: {other:?}"),
        }
    }

    /// The next PUBLISHes, each acknowledged at once if it asks for it.
    pub async fn take(&mut self, count: usize) -> Vec<Push> {
        let mut pushes = Vec::with_capacity(count);
        while pushes.len() < count {
            let push = self.push().await;
            if push.qos > 0 {
                self.ack(push.id).await;
            }
            pushes.push(push);
        }
        pushes
    }

    /// The topic of a PUBLISH, also if only its alias says it.
    pub fn topic_of(&self, push: &Push) -> String {
        match push.alias() {
            Some(alias) => self.aliases[&alias].clone(),
            None => push.topic.clone(),
        }
    }

    /// Everything up to the end of the stream.
    pub async fn until_closed(&mut self) -> Vec<Seen> {
        let mut all = Vec::new();
        loop {
            match self.next().await {
                Seen::Closed => return all,
                seen => all.push(seen),
            }
        }
    }

    /// The connection must end, and MQTT 5 be told why; what came before is dropped.
    pub async fn must_end(&mut self, code: u8) {
        let all = self.until_closed().await;
        if self.version == Version::V5 {
            assert_eq!(all.last(), Some(&Seen::Disconnect { code }), "{all:02x?}");
        }
    }

    /// Asks whether the gateway is there: what comes before the answer.
    pub async fn ping(&mut self) -> Vec<Seen> {
        self.send(PINGREQ).await;
        let mut before = Vec::new();
        loop {
            match self.next().await {
                Seen::PingResp => return before,
                Seen::Closed => panic!("closed instead of PINGRESP, after {before:02x?}"),
                seen => before.push(seen),
            }
        }
    }

    /// All that was to come when this was called: a ping makes the gateway look at each
    /// queue behind its answer, so that the answer to a second one comes later.
    pub async fn settle(&mut self) -> Vec<Seen> {
        let mut seen = self.ping().await;
        seen.extend(self.ping().await);
        seen
    }

    /// The PUBLISHes among what [`Wire::settle`] gives; there must be nothing else.
    pub async fn settled_pushes(&mut self) -> Vec<Push> {
        let push = |seen| match seen {
            Seen::Publish(push) => push,
            other => panic!("not PUBLISH: {other:?}"),
        };
        self.settle().await.into_iter().map(push).collect()
    }

    /// The codes of SUBACK. Nothing may come before it.
    pub async fn subscribe(&mut self, filters: &[&str], qos: u8) -> Vec<u8> {
        let filters: Vec<_> = filters.iter().map(|filter| (filter.as_bytes(), qos)).collect();
        let id = self.id();
        self.send(subscribe(self.version, id, &filters)).await;
        match self.next().await {
            Seen::SubAck { id: acked, codes } => {
                assert_eq!((acked, codes.len()), (id, filters.len()));
                codes
            }
            other => panic!("not SUBACK: {other:?}"),
        }
    }

    /// The codes of UNSUBACK; 3.1.1 has none. Nothing may come before it.
    pub async fn unsubscribe(&mut self, filters: &[&str]) -> Vec<u8> {
        let filters: Vec<_> = filters.iter().map(|filter| filter.as_bytes()).collect();
        let id = self.id();
        self.send(unsubscribe(self.version, id, &filters)).await;
        match self.next().await {
            Seen::UnsubAck { id: acked, codes } => {
                assert_eq!(acked, id);
                codes
            }
            other => panic!("not UNSUBACK: {other:?}"),
        }
    }

    /// Acknowledges a PUBLISH.
    pub async fn ack(&mut self, id: u16) {
        self.send(ack(PUBACK, id)).await;
    }

    /// Ends in good order; the gateway closes.
    pub async fn disconnect(mut self) {
        self.send(disconnect()).await;
        self.until_closed().await;
    }

    /// A packet id that was not used on this connection.
    pub fn id(&mut self) -> u16 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }
}

/// The CONNECT of a device with a clean session.
pub fn device_connect(device: &Device, version: Version) -> Connect {
    Connect::new(version, &device.device_id, &device.secret)
}

impl Wire {
    /// As [`Wire::settle`], for what may also end the connection.
    pub async fn settle_or_end(&mut self) -> Vec<Seen> {
        self.send([PINGREQ, PINGREQ].concat()).await;
        let (mut seen, mut answers) = (Vec::new(), 0);
        while answers < 2 {
            match self.next().await {
                Seen::PingResp => answers += 1,
                Seen::Closed => break,
                other => seen.push(other),
            }
        }
        seen
    }
}
