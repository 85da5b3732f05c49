//! A device that uses frames: says `Up`, hears `Down`.

use std::collections::VecDeque;

use carillon_wire::{
    frame,
    idl::{self, Down, Up},
};

use super::{
    bytes::{Publish, Version},
    seen::{Push, Seen},
    wire::{Wire, device_connect},
};
use crate::support::{Device, Node};

/// A frames connection. What comes on `down` is acknowledged only when the test says so.
pub struct Framed {
    pub wire: Wire,
    request: i64,
    early: VecDeque<(u16, Down)>,
}

impl Framed {
    /// Connects and resumes as a device that has no positions.
    pub async fn connect(node: &Node, device: &Device) -> Self {
        let mut framed = Self::mute(node, device).await;
        framed.say(&resume(0)).await;
        let (id, down) = framed.down().await;
        framed.wire.ack(id).await;
        if down.ask_positions.is_some() {
            framed.say(&positions(vec![])).await;
            let (id, down) = framed.down().await;
            assert!(down.resumed.is_some(), "{down:?}");
            framed.wire.ack(id).await;
        }
        framed
    }

    /// Connects and says nothing.
    pub async fn mute(node: &Node, device: &Device) -> Self {
        let connect = device_connect(device, Version::V5);
        Self::over(Wire::connect(node, &connect).await)
    }

    /// Over a connection that has said nothing behind CONNECT.
    pub fn over(wire: Wire) -> Self {
        Self { wire, request: 0, early: VecDeque::new() }
    }

    /// Publishes an `Up`; its PUBACK must say that it arrived.
    pub async fn say(&mut self, up: &Up) {
        let bytes = encode(up);
        self.say_bytes(&bytes).await;
    }

    /// The same for any bytes.
    pub async fn say_bytes(&mut self, payload: &[u8]) {
        let id = self.wire.id();
        let publish = Publish::new(self.wire.version(), "up", payload).qos(1, id);
        self.wire.send(publish.bytes()).await;
        loop {
            match self.wire.next().await {
                Seen::PubAck { id: acked, code } => {
                    assert_eq!((acked, code), (id, 0));
                    return;
                }
                Seen::Publish(push) => self.early.push_back((push.id, decode(&push))),
                other => panic!("not PUBACK: {other:?}"),
            }
        }
    }

    /// The answer to this request; deltas that come before it wait.
    pub async fn ask(&mut self, up: Up) -> idl::Result {
        self.request += 1;
        let up = Up { request: Some(self.request), ..up };
        self.say(&up).await;
        let result = self.result().await;
        assert_eq!(result.request, self.request);
        result
    }

    /// The next `Result`, acknowledged.
    pub async fn result(&mut self) -> idl::Result {
        let mut at = 0;
        loop {
            while let Some((id, down)) = self.early.get_mut(at) {
                if let Some(result) = down.result.take() {
                    let id = *id;
                    self.early.remove(at);
                    self.wire.ack(id).await;
                    return result;
                }
                at += 1;
            }
            let next = self.hear().await;
            self.early.push_back(next);
        }
    }

    /// The next `Down` with its packet id.
    pub async fn down(&mut self) -> (u16, Down) {
        match self.early.pop_front() {
            Some(early) => early,
            None => self.hear().await,
        }
    }

    /// The next deltas, with their packet id.
    pub async fn deltas(&mut self) -> (u16, idl::Deltas) {
        let (id, down) = self.down().await;
        (id, down.deltas.clone().unwrap_or_else(|| panic!("not deltas: {down:?}")))
    }

    /// The payloads of the next `count` messages, each frame acknowledged. Control entries pass.
    pub async fn messages(&mut self, count: usize) -> Vec<(String, String)> {
        let mut messages = Vec::new();
        while messages.len() < count {
            let (id, deltas) = self.deltas().await;
            messages.extend(payloads(&deltas));
            self.wire.ack(id).await;
        }
        messages
    }

    async fn hear(&mut self) -> (u16, Down) {
        let push = self.wire.push().await;
        (push.id, decode(&push))
    }
}

/// What a PUBLISH on `down` says.
pub fn decode(push: &Push) -> Down {
    frame::decode_down(&push.payload).expect("a valid Down")
}

/// An `Up` as bytes.
pub fn encode(up: &Up) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_up(up, &mut bytes).expect("an Up that fits");
    bytes
}

/// The messages of a frame: regID and payload as text.
pub fn payloads(deltas: &idl::Deltas) -> Vec<(String, String)> {
    let entries = deltas.deltas.iter().flat_map(|delta| &delta.entries);
    let texts = entries.filter_map(|entry| entry.payload.as_deref());
    let message = |bytes| (deltas.regid.clone(), String::from_utf8_lossy(bytes).into_owned());
    texts.map(message).collect()
}

/// An `Up` of no kind.
pub fn nothing() -> Up {
    carillon_wire::frame::empty_up()
}

pub fn resume(digest: i64) -> Up {
    Up { resume: Some(idl::Resume { digest, dictionary: None }), ..nothing() }
}

pub fn positions(registrations: Vec<idl::RegistrationPositions>) -> Up {
    Up { positions: Some(idl::Positions { registrations, more: None }), ..nothing() }
}

pub fn register(app_id: &str, app_key: &str) -> Up {
    let (app_id, app_key) = (app_id.to_owned(), app_key.to_owned());
    Up {
        register_app: Some(idl::Register { app_id, app_key, seal: None, attributes: None }),
        ..nothing()
    }
}

pub fn unregister(regid: &str) -> Up {
    Up { unregister: Some(idl::Unregister { regid: regid.to_owned() }), ..nothing() }
}

pub fn bind(regid: &str, alias: &str, token: Option<&str>) -> Up {
    let (regid, alias_name) = (regid.to_owned(), alias.to_owned());
    let token = token.map(str::to_owned);
    Up { bind: Some(idl::Bind { regid, alias_name, token }), ..nothing() }
}

pub fn unbind(regid: &str, alias: &str) -> Up {
    let (regid, alias_name) = (regid.to_owned(), alias.to_owned());
    Up { unbind: Some(idl::Unbind { regid, alias_name }), ..nothing() }
}

pub fn subscribe(regid: &str, topics: &[&str]) -> Up {
    let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
    Up { subscribe: Some(idl::Subscribe { regid: regid.to_owned(), topics }), ..nothing() }
}

pub fn unsubscribe(regid: &str, topics: &[&str]) -> Up {
    let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
    Up { unsubscribe: Some(idl::Unsubscribe { regid: regid.to_owned(), topics }), ..nothing() }
}

impl Framed {
    /// Deltas that came before an answer, acknowledged; other frames stay.
    pub async fn early_deltas(&mut self) -> Option<idl::Deltas> {
        let at = self.early.iter().position(|(_, down)| down.deltas.is_some())?;
        let (id, down) = self.early.remove(at)?;
        self.wire.ack(id).await;
        down.deltas
    }
}
