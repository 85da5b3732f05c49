//! A node whose app has a key, devices, and a tap on their wire.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use carillon::{
    base::{metrics::Transport, tasks},
    edge::Edge,
    queue::entry::Notification,
    service::{
        seals::SealChange,
        send::{Send, Target},
    },
};
use carillon_sdk::{AppKey, BoxStream, Credentials, Device, MemoryStore, Message, Received, RegId};
use carillon_wire::{idl, mqtt::Connect, seal::PrivateKey};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    time::timeout,
};

use crate::edge_support::{Account, Client, Node, message, up};

pub const SECRET: &str = "\"nobody else reads this\"";
pub const TITLE: &str = "nor this title";
pub const WITHIN: Duration = Duration::from_secs(60);

/// What stands between a device and the node: it hears everything, and may change a message on its way.
#[derive(Default)]
pub struct Tap {
    pub heard: Mutex<Vec<u8>>,
    /// The next sealed message is changed so many times, once a connection.
    pub damages: Mutex<u32>,
}

impl Tap {
    async fn pass(self: Arc<Self>, mut device: DuplexStream, mut node: DuplexStream) {
        let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            let (count, is_up) = tokio::select! {
                count = device.read(&mut up) => (count.unwrap_or(0), true),
                count = node.read(&mut down) => (count.unwrap_or(0), false),
            };
            if count == 0 {
                return;
            }
            let passed = if is_up {
                self.heard.lock().unwrap().extend_from_slice(&up[..count]);
                node.write_all(&up[..count]).await
            } else {
                self.heard.lock().unwrap().extend_from_slice(&down[..count]);
                self.damage(&mut down[..count]);
                device.write_all(&down[..count]).await
            };
            if passed.is_err() {
                return;
            }
        }
    }

    /// Changes a bit of what looks like a sealed entry: a long field 9 of binary type.
    fn damage(&self, bytes: &mut [u8]) {
        let mut damages = self.damages.lock().unwrap();
        // Entry: time_ms ends, then the header of `sealed`, six behind field 3, and its length.
        let head = bytes.windows(2).rposition(|two| two[0] == 0x68 && two[1] > 30 && two[1] < 127);
        if let (Some(head), true) = (head, *damages > 0) {
            bytes[head + 10] ^= 1;
            *damages -= 1;
        }
    }

    pub fn has_heard(&self, text: &str) -> bool {
        let heard = self.heard.lock().unwrap();
        heard.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

/// A node whose app has a key.
pub struct Scene {
    pub node: Node,
    pub key: AppKey,
}

/// A device of the SDK behind a tap.
pub struct Phone {
    pub device: Device,
    pub inbox: mpsc::Receiver<Received>,
    pub tap: Arc<Tap>,
}

impl Scene {
    pub async fn set(demanded: bool) -> Self {
        let node = Node::start().await;
        let key = seal(&node, SealChange { demanded: Some(demanded), ..Default::default() }).await;
        Self { node, key }
    }

    pub async fn phone(&self) -> Phone {
        let account = self.node.bare_device().await;
        self.phone_of(&account, &MemoryStore::default()).await
    }

    pub async fn phone_of(&self, account: &Account, store: &MemoryStore) -> Phone {
        let tap = Arc::new(Tap::default());
        let (to, inbox) = mpsc::channel(1024);
        let connector = connector(self.node.edge.clone(), tap.clone());
        let credentials =
            Credentials { device_id: account.id.clone(), secret: account.secret.clone() };
        let device = Device::builder_with_store(connector, credentials, store.clone())
            .seed(7)
            .connect_with(move |received| {
                to.try_send(received).unwrap();
                async {}
            })
            .await
            .unwrap();
        device.online().await.unwrap();
        Phone { device, inbox, tap }
    }

    pub async fn register(&self, phone: &Phone) -> RegId {
        let register = self.node.register();
        let registered =
            phone.device.register_sealed(&register.app_id, &register.app_key, &self.key).await;
        registered.unwrap()
    }

    pub async fn send(&self, target: Target, text: &str) {
        let notification = Some(Notification { title: Some(TITLE.into()), ..Default::default() });
        let send = Send { notification, ..message(target, text) };
        self.node.service.send(&self.node.app, send).await.unwrap();
    }

    pub async fn send_own(&self, regid: &RegId, text: &str) {
        self.send(Target::Regids(vec![regid.to_string()]), text).await;
    }

    /// A connection of raw frames, resumed, and its offer.
    pub async fn raw(&self, account: &Account) -> (Client, idl::SealOffer, PrivateKey) {
        let mut client = self.node.connect(account, Connect::default()).await;
        client.resume(client.digest()).await;
        assert!(client.down().await.resumed.is_some());
        let (offer, private) = self.offer();
        (client, offer, private)
    }

    pub fn offer(&self) -> (idl::SealOffer, PrivateKey) {
        let private = PrivateKey::random().unwrap();
        let public_key = private.public().unwrap().0.to_vec();
        (idl::SealOffer { app_key: self.key.id as i32, public_key }, private)
    }

    pub async fn ask_register(
        &self,
        client: &mut Client,
        seal: Option<idl::SealOffer>,
    ) -> idl::Result {
        let register = Some(idl::Register { seal, ..self.node.register() });
        client.up(idl::Up { register_app: register, ..up(1) }).await;
        result(client).await
    }
}

impl Phone {
    pub async fn message(&mut self) -> Message {
        match timeout(WITHIN, self.inbox.recv()).await.expect("a message").unwrap() {
            Received::Message(message) => message,
            other => panic!("a message expected, not {other:?}"),
        }
    }

    pub fn has_more(&mut self) -> bool {
        self.inbox.try_recv().is_ok()
    }
}

pub fn connector(
    edge: Arc<Edge>,
    tap: Arc<Tap>,
) -> impl Fn() -> std::future::Ready<io::Result<BoxStream>> + std::marker::Send + Sync + 'static {
    move || {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (to_node, at_node) = tokio::io::duplex(1 << 16);
        tasks::spawn("tap", tap.clone().pass(theirs, to_node));
        tasks::spawn("connection", edge.clone().serve_stream(at_node, None, Transport::Tcp));
        std::future::ready(Ok(Box::new(ours) as BoxStream))
    }
}

pub async fn seal(node: &Node, change: SealChange) -> AppKey {
    let state = node.service.seal_app("demo", change).await.unwrap();
    state.keys.last().unwrap().parse().unwrap()
}

pub async fn result(client: &mut Client) -> idl::Result {
    loop {
        if let Some(result) = client.down().await.result {
            return result;
        }
    }
}

/// The sealed entries of the next deltas that have any, with their delta.
pub async fn sealed_delta(client: &mut Client) -> idl::Delta {
    loop {
        let deltas = client.down().await.deltas.map(|deltas| deltas.deltas).unwrap_or_default();
        for delta in deltas {
            if delta.entries.iter().any(|entry| entry.sealed.is_some()) {
                return delta;
            }
        }
    }
}
