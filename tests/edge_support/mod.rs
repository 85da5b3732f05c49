//! A node without sockets, and a client that speaks its bytes.

#![allow(dead_code, reason = "each test file takes what it needs")]

pub mod team;
pub mod visitor;

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use carillon::{
    base::{
        clock::Clock,
        ids::AppId,
        keys::NodeKeys,
        metrics::{Metrics, Transport},
        tasks,
    },
    config::Config,
    edge::Edge,
    longterm::{LongTerm, embedded::Embedded},
    node::core::{Core, Foundation, Pace},
    queue::{
        store::{Space, Store, memory::MemoryStore},
        writer::STAMP,
    },
    service::{
        Service,
        apps::NewApp,
        records::AliasPolicy,
        register::FirstRegistration,
        send::{Send, Target, Timing},
    },
};
use carillon_wire::{
    digest::{Digest, kind_byte, position_hash},
    frame, idl,
    mqtt::{self, Ack, Connect, Decoder, Packet, Publish, Qos, Subscribe, Unsubscribe, Version},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// A device as its maker knows it.
pub struct Account {
    pub id: String,
    pub secret: String,
    pub regid: Option<String>,
}

/// A whole node over memory.
pub struct Node {
    pub edge: Arc<Edge>,
    pub service: Arc<Service>,
    pub app: AppId,
    new_app: NewApp,
    store: Arc<MemoryStore>,
    pub longterm: Arc<dyn LongTerm>,
    _core: Core,
    data: tempfile::TempDir,
}

impl Node {
    pub async fn start() -> Self {
        Self::start_with(Config::default()).await
    }

    pub async fn start_with(config: Config) -> Self {
        Self::start_at(config, Clock::system()).await
    }

    /// At another time.
    pub async fn start_at(config: Config, clock: Clock) -> Self {
        let (data, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
        let longterm: Arc<dyn LongTerm> = Arc::new(Embedded::in_memory());
        let (core, edge) = Self::build(config, clock, (&store, &longterm), &data).await;
        let service = core.service.clone();
        let new_app = service.create_app("demo", AliasPolicy::Open).await.unwrap();
        let app = new_app.app_id.clone();
        Self { edge, service, app, new_app, store, longterm, _core: core, data }
    }

    /// The same node at a later time, after a stop in good order.
    pub async fn again_at(self, config: Config, clock: Clock) -> Self {
        let Self { app, new_app, store, longterm, _core, data, .. } = self;
        _core.stop().await;
        let (core, edge) = Self::build(config, clock, (&store, &longterm), &data).await;
        let service = core.service.clone();
        Self { edge, service, app, new_app, store, longterm, _core: core, data }
    }

    async fn build(
        config: Config,
        clock: Clock,
        (store, longterm): (&Arc<MemoryStore>, &Arc<dyn LongTerm>),
        data: &tempfile::TempDir,
    ) -> (Core, Arc<Edge>) {
        let metrics = Arc::new(Metrics::new());
        let foundation = Foundation {
            store: store.clone(),
            mark: None,
            keys: Arc::new(NodeKeys::load_or_create(&data.path().join("keys")).unwrap()),
            clock,
            metrics: metrics.clone(),
            pace: Pace::Paced(Box::new(|| Duration::ZERO)),
            longterm: longterm.clone(),
        };
        let core = Core::build(&config, foundation).await.unwrap();
        let edge = Edge::new(core.service.clone(), config.edge, metrics);
        (core, edge)
    }

    /// From now on nothing can be written.
    pub fn fail_store(&self) {
        self.store.fail();
    }

    /// A number that grows with each commit.
    pub fn commits(&self) -> Option<Bytes> {
        self.store.get(Space::Meta, STAMP).unwrap()
    }

    /// A device with a registration.
    pub async fn device(&self) -> Account {
        self.account(FirstRegistration::Yes).await
    }

    /// A device without one.
    pub async fn bare_device(&self) -> Account {
        self.account(FirstRegistration::No).await
    }

    async fn account(&self, first: FirstRegistration) -> Account {
        let key = self.new_app.app_key.reveal();
        let new = self.service.create_device("demo", key, first).await.unwrap();
        Account {
            id: new.device_id.to_string(),
            secret: new.secret.reveal().to_owned(),
            regid: new.regid.map(|regid| regid.to_string()),
        }
    }

    pub fn register(&self) -> idl::Register {
        let app_key = self.new_app.app_key.reveal().to_owned();
        idl::Register { app_id: "demo".into(), app_key, seal: None, attributes: None }
    }

    /// A stream to the edge.
    pub fn open(&self) -> Client {
        Client::new(self.stream(None))
    }

    /// The same, but it takes eight bytes at a time: not even CONNACK fits.
    pub fn open_narrow(&self) -> Client {
        Client::new(self.stream_of(8, None))
    }

    /// A stream to the edge from an address.
    pub fn stream(&self, peer: Option<IpAddr>) -> DuplexStream {
        self.stream_of(16 << 10, peer)
    }

    fn stream_of(&self, bytes: usize, peer: Option<IpAddr>) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(bytes);
        tasks::spawn("connection", self.edge.clone().serve_stream(theirs, peer, Transport::Tcp));
        ours
    }

    /// A device that is connected.
    pub async fn connect(&self, account: &Account, connect: Connect) -> Client {
        let mut client = self.open();
        client.send_connect(account, connect).await;
        match client.next().await {
            Some(Packet::ConnAck(connack)) => {
                assert_eq!(connack.reason, 0);
                client.session_present = connack.session_present;
            }
            other => panic!("CONNACK expected, not {other:?}"),
        }
        client
    }

    pub async fn send(&self, account: &Account, text: &str) {
        let regid = account.regid.clone().expect("registered");
        self.send_to(Target::Regids(vec![regid]), text).await;
    }

    pub async fn send_to_alias(&self, alias: &str, text: &str) {
        self.send_to(Target::Aliases(vec![alias.into()]), text).await;
    }

    pub async fn send_to_topic(&self, topic: &str, text: &str) {
        self.send_to(Target::Topic(topic.into()), text).await;
    }

    async fn send_to(&self, target: Target, text: &str) {
        self.send_timed(target, text, None, Timing::default()).await;
    }

    /// With a life and a time of its own.
    pub async fn send_timed(&self, target: Target, text: &str, ttl_s: Option<u64>, timing: Timing) {
        let payload = Bytes::copy_from_slice(text.as_bytes());
        let send = Send { ttl_s, timing, ..Send::new(target, payload) };
        self.service.send(&self.app, send).await.unwrap();
    }

    /// Until a registration has an alias.
    pub async fn wait_for_alias(&self, regid: &str, alias: &str) {
        for _ in 0..1_000 {
            let view = self.service.registration(&self.app, regid).unwrap();
            if view.aliases.iter().any(|bound| bound == alias) {
                return;
            }
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{alias} was never bound");
    }

    /// Until no connection is left.
    pub async fn quiet(&self) {
        tokio::time::timeout(Duration::from_secs(5), self.edge.drained()).await.unwrap();
    }
}

/// A message without any options.
pub fn message(target: Target, text: &str) -> Send {
    Send::new(target, Bytes::copy_from_slice(text.as_bytes()))
}

/// The device's end of a stream.
pub struct Client {
    stream: DuplexStream,
    decoder: Option<Decoder>,
    version: Version,
    unread: BytesMut,
    pub session_present: bool,
    pub positions: std::collections::HashMap<(String, u8, String), (u32, u64)>,
}

impl Client {
    /// On a stream that speaks MQTT.
    pub fn new(stream: DuplexStream) -> Self {
        Self {
            stream,
            decoder: None,
            version: Version::V5,
            unread: BytesMut::new(),
            session_present: false,
            positions: std::collections::HashMap::new(),
        }
    }

    /// The other end may have closed meanwhile; what comes next shows it.
    pub async fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    pub async fn send(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        mqtt::encode(self.version, packet, &mut bytes).unwrap();
        self.send_raw(&bytes).await;
    }

    pub async fn send_connect(&mut self, account: &Account, connect: Connect) {
        self.version = connect.version;
        let connect = Connect {
            client_id: account.id.clone(),
            username: Some(account.id.clone()),
            password: Some(Bytes::from(account.secret.clone())),
            ..connect
        };
        self.send(&Packet::Connect(Box::new(connect))).await;
    }

    /// The next packet; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Packet> {
        let version = self.version;
        let decoder = self.decoder.get_or_insert_with(|| Decoder::client(version, u32::MAX));
        loop {
            if let Some(packet) = decoder.decode(&mut self.unread).unwrap() {
                return Some(packet);
            }
            let read = self.stream.read_buf(&mut self.unread);
            match tokio::time::timeout(Duration::from_secs(60), read).await.expect("an answer") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub async fn send_subscribe(&mut self, filters: &[(&str, Qos)]) {
        let filters = filters.iter().map(|(text, qos)| ((*text).to_owned(), *qos)).collect();
        self.send(&Packet::Subscribe(Subscribe { packet_id: 1, filters, subscription_id: None }))
            .await;
    }

    pub async fn subscribe(&mut self, filters: &[(&str, Qos)]) -> Vec<u8> {
        self.send_subscribe(filters).await;
        match self.next().await {
            Some(Packet::SubAck(ack)) => ack.reasons,
            other => panic!("SUBACK expected, not {other:?}"),
        }
    }

    pub async fn unsubscribe(&mut self, filters: &[&str]) -> Vec<u8> {
        let filters = filters.iter().map(|text| (*text).to_owned()).collect();
        self.send(&Packet::Unsubscribe(Unsubscribe { packet_id: 2, filters })).await;
        match self.next().await {
            Some(Packet::UnsubAck(ack)) => ack.reasons,
            other => panic!("UNSUBACK expected, not {other:?}"),
        }
    }

    pub async fn ping(&mut self) {
        self.send(&Packet::PingReq).await;
        assert_eq!(self.next().await, Some(Packet::PingResp));
    }

    pub async fn publish(&mut self) -> Publish {
        let next = self.next().await;
        publish_of(next.clone()).unwrap_or_else(|| panic!("PUBLISH expected, not {next:?}"))
    }

    pub async fn ack(&mut self, packet_id: u16) {
        self.send(&Packet::PubAck(Ack { packet_id, reason: 0 })).await;
    }

    pub async fn up(&mut self, up: idl::Up) {
        let mut payload = Vec::new();
        frame::encode_up(&up, &mut payload).unwrap();
        let payload = Bytes::from(payload);
        self.send(&Packet::Publish(Publish { topic: "up".into(), payload, ..Publish::default() }))
            .await;
    }

    pub async fn resume(&mut self, digest: i64) {
        self.up(idl::Up { resume: Some(idl::Resume { digest, dictionary: None }), ..up(0) }).await;
    }

    /// The next frame, acknowledged; its deltas move the client's positions.
    pub async fn down(&mut self) -> idl::Down {
        let publish = self.publish().await;
        assert_eq!(publish.topic, "down");
        let down = frame::decode_down(&publish.payload).unwrap();
        if let Some(deltas) = &down.deltas {
            for delta in &deltas.deltas {
                self.apply(&deltas.regid, delta);
            }
        }
        self.ack(publish.packet_id).await;
        down
    }

    fn apply(&mut self, regid: &str, delta: &idl::Delta) {
        let mut set = |queue: &idl::Queue, epoch: i32, seq: i64| {
            let name = queue.name.clone().unwrap_or_default();
            let key = (regid.to_owned(), kind_byte(queue.kind).unwrap(), name);
            self.positions.insert(key, (epoch as u32, seq as u64))
        };
        let before = set(&delta.queue, delta.epoch, delta.to_seq);
        if delta.jump.is_none() {
            assert_eq!(before.map(|(_, seq)| seq as i64 + 1), Some(delta.from_seq), "{delta:?}");
        }
        for entry in &delta.entries {
            if let Some(follow) = &entry.follow {
                set(&follow.queue, follow.epoch, follow.since);
            }
        }
    }

    /// Takes the first deltas of a new registration: both its queues, with a jump.
    pub async fn settle_new(&mut self, regid: &str) {
        let deltas = self.down().await.deltas.expect("deltas of a new registration");
        assert_eq!(deltas.regid, regid);
        assert!(deltas.deltas.iter().all(|delta| delta.jump == Some(idl::JumpReason::NEW)));
        assert_eq!(deltas.deltas.len(), 2);
    }

    /// All entries up to the message with this text.
    pub async fn entries_until(&mut self, text: &str) -> Vec<idl::Entry> {
        let mut entries = Vec::new();
        loop {
            let deltas = self.down().await.deltas.map(|deltas| deltas.deltas).unwrap_or_default();
            entries.extend(deltas.into_iter().flat_map(|delta| delta.entries));
            let is_it = |entry: &idl::Entry| entry.payload.as_deref() == Some(text.as_bytes());
            if entries.iter().any(is_it) {
                return entries;
            }
        }
    }

    pub fn digest(&self) -> i64 {
        let hash = |((regid, kind, name), (epoch, seq)): (&(String, u8, String), &(u32, u64))| {
            position_hash(regid, *kind, name, *epoch, *seq)
        };
        self.positions.iter().map(hash).collect::<Digest>().to_idl()
    }
}

pub fn publish_of(packet: Option<Packet>) -> Option<Publish> {
    match packet {
        Some(Packet::Publish(publish)) => Some(publish),
        _ => None,
    }
}

pub fn is_closed(packet: Option<Packet>) -> bool {
    packet.is_none()
}

/// An uplink frame of no kind yet.
pub fn up(request: i64) -> idl::Up {
    idl::Up { request: Some(request), ..idl::Up::default() }
}
