//! Keys of registrations and of the app are changed while the node is killed, at each step and at random moments. Afterwards
//! whoever had a key reads all that is his, whoever changed it too, and what comes again under one key is the same bytes.
#![cfg(feature = "sim")]
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod dice;
mod support;
mod wirelab;

use std::{collections::BTreeMap, os::unix::process::ExitStatusExt, time::Duration};

use carillon::base::crash_point;
use carillon_wire::{
    frame, idl,
    seal::{
        AppKey, BodyHash, Item, PrivateKey, PublicKey, Queue, RegistrationKey, WRAPPED_KEY_BYTES,
    },
};
use dice::{Dice, number_from_env};
use reqwest::Method;
use serde_json::{Value, json};
use support::{APP, DEADLINE, Device, Node, Options, poll_until};
use wirelab::{
    bytes::Publish,
    frames::{self, Framed},
    seen::Seen,
};

const SIGABRT: i32 = 6;
/// Random kills of one run of the gate; the slow set asks for more.
const KILLS: u64 = 8;

/// A device with a sealed registration, which knows every key that it ever had.
struct Phone {
    device: Device,
    app: AppKey,
    private: PrivateKey,
    number: u32,
    keys: BTreeMap<u32, RegistrationKey>,
    /// What it is to read, in the order of each queue.
    own: Vec<String>,
    all: Vec<String>,
}

/// A message as it came: kind of its queue and seq, under which number, and the bytes.
type Came = BTreeMap<(i32, i64, i32), (Vec<u8>, Vec<u8>)>;

impl Phone {
    async fn register(node: &Node, app: AppKey) -> Result<Self, idl::ResultCode> {
        let body = json!({"app_id": APP, "app_key": node.app().app_key});
        let made = node.call(Method::POST, "/v1/devices", Some(body)).await;
        assert_eq!(made.status, 201, "{}", made.body);
        let text = |field: &str| made.body[field].as_str().unwrap().to_owned();
        let (device_id, secret) = (text("device_id"), text("secret"));
        let device = Device { device_id, secret, regid: String::new() };
        let private = PrivateKey::random().unwrap();
        let (keys, own, all) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut phone = Self { device, app, private, number: 1, keys, own, all };
        let mut framed = phone.come(node).await;
        let register = frames::register(APP, &node.app().app_key);
        let seal = Some(phone.offer());
        let register = register.register_app.map(|register| idl::Register { seal, ..register });
        let result = framed.ask(idl::Up { register_app: register, ..frames::nothing() }).await;
        if result.code != idl::ResultCode::OK {
            return Err(result.code);
        }
        phone.device.regid = result.regid.unwrap();
        phone.has_agreed(&result.seal.unwrap());
        Ok(phone)
    }

    fn offer(&self) -> idl::SealOffer {
        let public_key = self.private.public().unwrap().0.to_vec();
        idl::SealOffer { app_key: self.app.id as i32, public_key }
    }

    fn has_agreed(&mut self, answer: &idl::SealAnswer) {
        let key = RegistrationKey::of_device(&self.private, &self.app.public, &self.device.regid)
            .unwrap();
        assert_eq!(answer.number, self.number as i32);
        assert_eq!(answer.confirmation, key.confirmation(self.number).unwrap());
        self.keys.insert(self.number, key);
    }

    /// Makes the next pair, and what asks for it. The same again until it is answered.
    fn next_key(&mut self, app: AppKey) -> idl::Up {
        let present = self.keys[&self.number].clone();
        (self.app, self.private) = (app, PrivateKey::random().unwrap());
        self.number += 1;
        let public = PublicKey(self.private.public().unwrap().0);
        let proof = present.rekey_proof(self.number, app.id, &public).unwrap().to_vec();
        let rekey = idl::Rekey { regid: self.device.regid.clone(), seal: self.offer(), proof };
        idl::Up { rekey: Some(rekey), ..frames::nothing() }
    }

    /// Connects as a device that has read nothing yet.
    async fn come(&self, node: &Node) -> Framed {
        let mut framed = Framed::mute(node, &self.device).await;
        framed.say(&frames::resume(0)).await;
        let (id, down) = framed.down().await;
        framed.wire.ack(id).await;
        if down.ask_positions.is_some() {
            let regid = self.device.regid.clone();
            let nothing =
                idl::RegistrationPositions { regid, positions: Vec::new(), gathered: None };
            framed.say(&frames::positions(vec![nothing])).await;
            let (id, down) = framed.down().await;
            assert!(down.resumed.is_some(), "{down:?}");
            framed.wire.ack(id).await;
        }
        framed
    }

    /// Everything that it is to read, opened with the key that the gateway names.
    async fn read(&self, node: &Node) -> Came {
        let mut framed = self.come(node).await;
        let (mut came, mut texts) = (Came::new(), BTreeMap::new());
        let all = poll_until(DEADLINE, async || {
            let mut deltas = Vec::new();
            while let Some(early) = framed.early_deltas().await {
                deltas.push(early);
            }
            for seen in framed.wire.settle().await {
                let Seen::Publish(push) = seen else { panic!("{seen:?}") };
                framed.wire.ack(push.id).await;
                deltas.extend(frames::decode(&push).deltas);
            }
            for delta in deltas.into_iter().flat_map(|deltas| deltas.deltas) {
                self.open(&delta, &mut came, &mut texts);
            }
            (texts.len() >= self.own.len() + self.all.len()).then_some(())
        });
        assert!(all.await.is_some(), "{texts:?}, not {:?} and {:?}", self.own, self.all);
        let of = |kind: idl::QueueKind| -> Vec<&String> {
            texts.iter().filter(|((of, _), _)| *of == kind.0).map(|(_, text)| text).collect()
        };
        assert_eq!(of(idl::QueueKind::OWN), self.own.iter().collect::<Vec<_>>());
        assert_eq!(of(idl::QueueKind::ALL), self.all.iter().collect::<Vec<_>>());
        came
    }

    fn open(&self, delta: &idl::Delta, came: &mut Came, texts: &mut BTreeMap<(i32, i64), String>) {
        let wrapped = delta.wrapped_keys.as_deref().unwrap_or_default();
        let mut wrapped = wrapped.chunks(WRAPPED_KEY_BYTES);
        for entry in &delta.entries {
            assert_eq!(
                (&entry.payload, &entry.notification),
                (&None, &None),
                "in clear: {entry:?}"
            );
            let Some(sealed) = entry.sealed.clone() else { continue };
            let number = delta.key_number.unwrap();
            let key = &self.keys[&(number as u32)];
            let (regid, id) = (self.device.regid.as_str(), entry.id.clone().unwrap());
            let item =
                Item { seq: entry.seq as u64, id: &id, time_ms: entry.time_ms.unwrap_or_default() };
            let kind = delta.queue.kind;
            let epoch = delta.epoch as u32;
            let (content, wrapped) = if kind == idl::QueueKind::OWN {
                let queue = Queue { kind: 1, name: "", epoch };
                let own = key.own(&queue).unwrap();
                (own.open(regid, &queue, &item, sealed.clone()), Vec::new())
            } else {
                let (queue, wrapped) =
                    (Queue { kind: 4, name: "", epoch }, wrapped.next().unwrap());
                let (hash, by) = (BodyHash::of(&sealed), key.wrapping(&queue).unwrap());
                let bytes = wrapped.try_into().unwrap();
                let entry_key = by.unwrap(regid, &queue, &item, &hash, bytes).unwrap();
                (entry_key.open(&queue, &item, sealed.clone()), wrapped.to_vec())
            };
            let content = frame::decode_content(&content.expect("it opens")).unwrap();
            let text = String::from_utf8(content.payload.unwrap()).unwrap();
            let place = (kind.0, entry.seq);
            assert_eq!(*texts.entry(place).or_insert_with(|| text.clone()), text);
            came.insert((kind.0, entry.seq, number), (sealed, wrapped));
        }
    }
}

struct Scene {
    node: Node,
    app: AppKey,
    /// It never changes its key.
    old: Phone,
    /// It does.
    new: Phone,
    sent: u32,
}

impl Scene {
    async fn set() -> Self {
        let node = Node::start().await;
        let app = seal(&node, json!({"demanded": true})).await;
        let old = Phone::register(&node, app).await.unwrap();
        let new = Phone::register(&node, app).await.unwrap();
        Self { node, app, old, new, sent: 0 }
    }

    async fn send(&mut self) {
        self.sent += 1;
        let (all, regids) = (format!("all {}", self.sent), [&mut self.old, &mut self.new]);
        for phone in regids {
            let text = format!("own {}", self.sent);
            self.node.send(json!({"regids": [phone.device.regid]}), json!(text)).await;
            phone.own.push(json!(text).to_string());
            phone.all.push(json!(all).to_string());
        }
        self.node.send(json!({"all": true}), json!(all)).await;
    }

    /// One change, of the key of `new` or of the app's, during which the node dies by `fault`, or is killed after a while.
    async fn change(&mut self, is_rekey: bool, fault: Option<&str>, after: Duration) {
        self.send().await;
        let before = (self.old.read(&self.node).await, self.new.read(&self.node).await);
        if let Some(point) = fault {
            self.node.kill9();
            let env = vec![("FAILPOINTS".to_owned(), format!("{point}=return"))];
            self.node.restart_with(Options { env, ..Options::default() }).await;
        }
        let rekey = is_rekey.then(|| self.new.next_key(self.app));
        let former = self.app;
        let mut framed = self.new.come(&self.node).await;
        let asked = async {
            match &rekey {
                Some(rekey) => {
                    let publish = Publish::new(framed.wire.version(), "up", frames::encode(rekey));
                    framed.wire.send(publish.qos(1, 1_000).bytes()).await;
                }
                None => {
                    let change = json!({"new_key": true, "revoke_older": true});
                    let _ = ask_seal(&self.node, change).await;
                }
            }
            while framed.wire.next().await != Seen::Closed {}
        };
        match fault {
            Some(point) => {
                asked.await;
                let status = self.node.wait_for_exit().await;
                assert_eq!(status.signal(), Some(SIGABRT), "at {point}: {}", self.node.log());
            }
            None => {
                let pid = self.node.pid().to_string();
                let kill = async {
                    tokio::time::sleep(after).await;
                    std::process::Command::new("kill").args(["-9", &pid]).status().unwrap();
                };
                tokio::join!(asked, kill);
                self.node.wait_for_exit().await;
            }
        }
        self.node.restart_with(Options::default()).await;
        match &rekey {
            // The answer was lost: the same is asked again.
            Some(rekey) => {
                let mut framed = self.new.come(&self.node).await;
                let result = framed.ask(rekey.clone()).await;
                assert_eq!(result.code, idl::ResultCode::OK, "{result:?}");
                self.new.has_agreed(&result.seal.unwrap());
            }
            None => {
                self.app = seal(&self.node, json!({"new_key": true, "revoke_older": true})).await;
                assert!(self.app.id > former.id, "no id is given twice");
                let refused = Phone::register(&self.node, former).await.err();
                assert_eq!(refused, Some(idl::ResultCode::NOT_FOUND), "the older one is revoked");
            }
        }
        self.all_read(before).await;
    }

    /// Old and new devices read all that is theirs, and what they read before in the same bytes.
    async fn all_read(&mut self, before: (Came, Came)) {
        let mut late = Phone::register(&self.node, self.app).await.unwrap();
        self.send().await;
        late.all.extend(self.new.all.last().cloned());
        late.read(&self.node).await;
        for (phone, before) in [(&self.old, before.0), (&self.new, before.1)] {
            let after = phone.read(&self.node).await;
            assert_eq!(phone.read(&self.node).await, after, "it comes again in the same bytes");
            for (place, bytes) in before {
                // Under another key it is other bytes, which were opened.
                let again = after.get(&place);
                assert!(again.is_none_or(|again| *again == bytes), "{place:?} under one key");
                assert!(again.is_some() || place.2 < phone.number as i32, "{place:?} is gone");
            }
        }
        assert!(self.old.read(&self.node).await.keys().all(|(.., number)| *number == 1));
    }
}

async fn ask_seal(node: &Node, change: Value) -> reqwest::Result<reqwest::Response> {
    let admin = node.admin();
    let url = format!("{}/admin/v1/apps/{APP}/seal", admin.url);
    reqwest::Client::new().post(url).bearer_auth(&admin.token).json(&change).send().await
}

/// Changes the app's keys and gives the newest.
async fn seal(node: &Node, change: Value) -> AppKey {
    let answer = ask_seal(node, change).await.unwrap().error_for_status().unwrap();
    let state: Value = answer.json().await.unwrap();
    state["keys"].as_array().unwrap().last().unwrap().as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_whatever_kills_the_node_meanwhile() {
    let mut dice = Dice::of_this_run("keys");
    let mut scene = Scene::set().await;
    for point in crash_point::OF_KEYS {
        scene.change(point.ends_with("rekey"), Some(point), Duration::ZERO).await;
    }
    let kills = number_from_env("CARILLON_KILLS").unwrap_or(KILLS);
    for number in 0..kills {
        let after = dice.millis(0..12);
        scene.change(number % 2 == 0, None, after).await;
    }
    assert!(scene.new.number > 2, "its key was changed");
}
