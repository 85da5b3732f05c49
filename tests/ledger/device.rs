//! A plain MQTT 5 device with a persistent session that notes everything that
//! happens to it, and comes back until it is told to stop.

use std::{
    io,
    net::SocketAddr,
    ops::Range,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use carillon_wire::mqtt::{
    Ack, Connect, Decoder, Packet, Publish, Qos, Subscribe, Version, encode, reason,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{sleep, sleep_until, timeout},
};

use super::{Delivery, Dice, Event, Ledger, Queue};

/// Who a device is.
#[derive(Clone, Debug)]
pub struct Account {
    pub device_id: String,
    pub secret: String,
    pub regid: String,
}

/// How a device behaves.
#[derive(Clone, Debug)]
pub struct Habit {
    /// How long it takes to acknowledge, in milliseconds.
    pub ack_after_ms: Range<u64>,
    /// Whether a later message may be acknowledged before an earlier one.
    pub in_order: bool,
    /// How long its connections last, in milliseconds; for ever if none.
    pub life_ms: Option<Range<u64>>,
    /// Unacknowledged messages that it takes.
    pub receive_max: u16,
}

/// One device for the whole test.
pub struct Device {
    pub number: usize,
    pub account: Account,
    pub habit: Habit,
    /// How long it is away between two connections, in milliseconds.
    pub pause_ms: Range<u64>,
    /// The node's MQTT port, the same after each restart.
    pub address: SocketAddr,
    pub ledger: Ledger,
    pub dice: Dice,
}

/// A ping for each message would cost more than the messages.
const PING_AFTER: Duration = Duration::from_millis(40);
/// A silent device pings now and then, to keep its connection.
const PING_ANYWAY: Duration = Duration::from_secs(10);
/// A node that lives answers within this.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

impl Habit {
    /// The habit of the device with this number: every kind in turn.
    pub fn of(number: usize) -> Self {
        let steady = Self { ack_after_ms: 0..1, in_order: true, life_ms: None, receive_max: 100 };
        match number % 6 {
            0 | 1 => steady,
            2 => Self { ack_after_ms: 10..50, ..steady },
            3 => Self { ack_after_ms: 0..80, in_order: false, ..steady },
            4 => Self { ack_after_ms: 0..30, life_ms: Some(50..1_500), ..steady },
            _ => Self { life_ms: Some(200..3_000), in_order: false, receive_max: 3, ..steady },
        }
    }
}

impl Device {
    /// Connects again and again until it is told to stop.
    pub async fn live(mut self, mut stop: watch::Receiver<bool>) {
        let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
        tokio::pin!(stopped);
        loop {
            tokio::select! {
                () = &mut stopped => return,
                () = self.converse() => {}
            }
            let pause = self.dice.millis(self.pause_ms.clone());
            tokio::select! {
                () = &mut stopped => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// One connection, from CONNECT to its end, whoever ends it.
    async fn converse(&mut self) {
        let mut link = match Link::open(self.address).await {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return self.ledger.note(Event::Unreached { device: self.number });
            }
            Err(_) => return,
        };
        let greeted = timeout(ANSWER_DEADLINE, self.greet(&mut link));
        // A node that dies or is not ready yet ends it: come back later.
        if let Ok(Ok(())) = greeted.await {
            let _ = self.receive(link).await;
        }
    }

    /// CONNECT and SUBSCRIBE.
    ///
    /// # Errors
    /// The node refused for now, or ended the connection.
    pub async fn greet(&mut self, link: &mut Link) -> io::Result<()> {
        let connect = Connect {
            clean_start: false,
            keep_alive_s: 30,
            client_id: self.account.device_id.clone(),
            username: Some(self.account.device_id.clone()),
            password: Some(Bytes::from(self.account.secret.clone())),
            session_expiry_s: 3_600,
            receive_max: self.habit.receive_max,
            ..Connect::default()
        };
        self.ledger.note(Event::Connecting { device: self.number });
        link.send(&[Packet::Connect(Box::new(connect))]).await?;
        match link.next().await? {
            Packet::ConnAck(ack) if ack.reason == 0 => {
                let session_present = ack.session_present;
                self.ledger.note(Event::Connected { device: self.number, session_present });
            }
            other => panic!("device {}: CONNECT was answered with {other:?}", self.number),
        }
        let filters = vec![("push".to_owned(), Qos::AtLeastOnce)];
        let subscribe = Subscribe { packet_id: 1, filters, subscription_id: None };
        link.send(&[Packet::Subscribe(subscribe)]).await
    }

    async fn receive(&mut self, mut link: Link) -> io::Result<()> {
        let mut acks = Acks::new();
        let end = self.habit.life_ms.clone().map(|life| Instant::now() + self.dice.millis(life));
        loop {
            let wake = [acks.due(), end].into_iter().flatten().min();
            tokio::select! {
                packet = link.next() => self.take(packet?, &mut acks)?,
                () = sleep_until_some(wake) => {}
            }
            if end.is_some_and(|end| end <= Instant::now()) {
                return self.leave(link).await;
            }
            self.acknowledge(&mut link, &mut acks).await?;
        }
    }

    /// Half of the times in good order, half of the times by vanishing.
    async fn leave(&mut self, mut link: Link) -> io::Result<()> {
        if self.dice.percent(50) {
            link.send(&[Packet::Disconnect(Default::default())]).await?;
        }
        Ok(())
    }

    fn take(&mut self, packet: Packet, acks: &mut Acks) -> io::Result<()> {
        match packet {
            Packet::Publish(publish) => {
                let delivery = self.delivery(&publish);
                let mut due = Instant::now() + self.dice.millis(self.habit.ack_after_ms.clone());
                if let Some(last) = acks.waiting.last().filter(|_| self.habit.in_order) {
                    due = due.max(last.due);
                }
                acks.waiting.push(Waiting {
                    due,
                    packet_id: publish.packet_id,
                    event: Event::Acked {
                        device: self.number,
                        queue: delivery.queue,
                        position: delivery.position,
                    },
                });
                self.ledger.note(Event::Delivered(delivery));
            }
            Packet::PingResp => {
                acks.is_ping_open = false;
                self.ledger.note(Event::Ponged { device: self.number });
            }
            Packet::SubAck(ack) => assert_eq!(ack.reasons, [1], "device {}", self.number),
            Packet::Disconnect(end) if end.reason == reason::SERVER_SHUTTING_DOWN => {
                self.ledger.note(Event::SentAway { device: self.number });
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            other => panic!("device {} was sent {other:?}", self.number),
        }
        Ok(())
    }

    fn delivery(&self, publish: &Publish) -> Delivery {
        let property = |name: &str| {
            let found = publish.user.iter().find(|(key, _)| key == name);
            found
                .map(|(_, value)| value.as_str())
                .unwrap_or_else(|| panic!("no {name}: {publish:?}"))
        };
        let (queue, position) = (property("queue"), property("position"));
        Delivery {
            device: self.number,
            queue: Queue::from_property(self.number, queue).unwrap_or_else(|| panic!("`{queue}`")),
            position: position.parse().expect("a position"),
            message: message_of(&publish.payload),
            id: property("id").to_owned(),
            dup: publish.dup,
        }
    }

    async fn acknowledge(&mut self, link: &mut Link, acks: &mut Acks) -> io::Result<()> {
        let (mut packets, mut events) = (Vec::new(), Vec::new());
        let now = Instant::now();
        for waiting in acks.take_due(now) {
            packets.push(Packet::PubAck(Ack { packet_id: waiting.packet_id, reason: 0 }));
            events.push(waiting.event);
        }
        acks.unpinged |= !packets.is_empty();
        if acks.ping_due().is_some_and(|due| due <= now) {
            packets.push(Packet::PingReq);
            events.push(Event::Pinged { device: self.number });
            (acks.unpinged, acks.is_ping_open, acks.last_ping) = (false, true, now);
        }
        if packets.is_empty() {
            return Ok(());
        }
        link.send(&packets).await?;
        events.into_iter().for_each(|event| self.ledger.note(event));
        Ok(())
    }
}

/// The number in a payload: `{"m":17,…}`.
pub fn message_of(payload: &[u8]) -> u64 {
    let payload: serde_json::Value = serde_json::from_slice(payload).expect("a payload of ours");
    payload["m"].as_u64().expect("a number of ours")
}

/// Acknowledgements that are still to be written, and pings.
struct Acks {
    waiting: Vec<Waiting>,
    /// Some are written that no ping has followed yet.
    unpinged: bool,
    /// A ping is not answered yet.
    is_ping_open: bool,
    /// When the last ping was written, at first the beginning of the connection.
    last_ping: Instant,
}

struct Waiting {
    due: Instant,
    packet_id: u16,
    event: Event,
}

impl Acks {
    fn new() -> Self {
        let last_ping = Instant::now();
        Self { waiting: Vec::new(), unpinged: false, is_ping_open: false, last_ping }
    }

    fn due(&self) -> Option<Instant> {
        let acks = self.waiting.iter().map(|waiting| waiting.due);
        acks.chain(self.ping_due()).min()
    }

    fn ping_due(&self) -> Option<Instant> {
        let after = if self.unpinged { PING_AFTER } else { PING_ANYWAY };
        (!self.is_ping_open).then(|| self.last_ping + after)
    }

    fn take_due(&mut self, now: Instant) -> Vec<Waiting> {
        let (mut due, waiting): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|waiting| waiting.due <= now);
        self.waiting = waiting;
        due.sort_by_key(|waiting| waiting.due);
        due
    }
}

/// One connection.
pub struct Link {
    stream: TcpStream,
    decoder: Decoder,
    input: BytesMut,
}

impl Link {
    /// Opens a connection; nothing is sent.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let decoder = Decoder::client(Version::V5, 1 << 20);
        Ok(Self { stream, decoder, input: BytesMut::new() })
    }

    /// Waits for the answer to a ping; an end in its place is an error.
    pub async fn ping(&mut self) -> io::Result<()> {
        self.send(&[Packet::PingReq]).await?;
        loop {
            match self.next().await? {
                Packet::PingResp => return Ok(()),
                Packet::Disconnect(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
                _ => {}
            }
        }
    }

    async fn send(&mut self, packets: &[Packet]) -> io::Result<()> {
        let mut output = BytesMut::new();
        for packet in packets {
            encode(Version::V5, packet, &mut output).expect("a packet of ours");
        }
        self.stream.write_all(&output).await
    }

    /// The next packet. May be dropped at its await.
    async fn next(&mut self) -> io::Result<Packet> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).expect("MQTT") {
                return Ok(packet);
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

async fn sleep_until_some(wake: Option<Instant>) {
    match wake {
        Some(wake) => sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}
