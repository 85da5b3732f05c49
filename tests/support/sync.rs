//! A node whose app has a collection, and what a device that follows an alias holds of it.

use std::collections::BTreeMap;

use carillon_wire::{
    digest::{Digest, item_hash},
    idl,
    ranges::{Bounds, KeyRange},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{AppCredentials, Device, Node, Options};

/// The app.
pub const APP: &str = "kept";
/// Its collection.
pub const NOTES: &str = "notes";
/// The alias.
pub const ALIAS: &str = "ann";

/// A node with a device that follows [`ALIAS`] of an app with a collection.
pub struct Scene {
    pub node: Node,
    pub app: AppCredentials,
    pub device: Device,
}

/// What a device holds: key to seq.
pub type Copy = BTreeMap<String, u64>;

impl Scene {
    pub async fn new() -> Self {
        Self::with(Options::default(), "newest").await
    }

    /// With a node of these options, and a collection with this rule.
    pub async fn with(options: Options, rule: &str) -> Self {
        let node = Node::start_with(options).await;
        let made = node.cli(&["app", "create", APP, "--alias-policy", "signed"]).await;
        let app: AppCredentials = serde_json::from_str(&made).unwrap();
        let path = format!("/v1/apps/{APP}/collections/{NOTES}");
        let declared = node.call(Method::PUT, &path, Some(json!({"rule": rule}))).await;
        assert_eq!(declared.status, 200, "{}", declared.body);
        let device = new_device(&node, &app).await;
        let scene = Self { node, app, device };
        scene.bind(&scene.device).await;
        scene
    }

    /// Another device, which does not follow the alias yet.
    pub async fn new_device(&self) -> Device {
        new_device(&self.node, &self.app).await
    }

    /// Makes a device follow the alias.
    pub async fn bind(&self, device: &Device) {
        let path = format!("/v1/apps/{APP}/registrations/{}/aliases/{ALIAS}", device.regid);
        assert_eq!(self.node.call(Method::PUT, &path, None).await.status, 204);
    }

    /// Changes items, all of which must be possible.
    pub async fn change(&self, changes: Vec<Value>) {
        let path = format!("/v1/apps/{APP}/aliases/{ALIAS}/changes");
        let done = self.node.call(Method::POST, &path, Some(json!({"changes": changes}))).await;
        assert_eq!(done.status, 200, "{}", done.body);
    }

    pub async fn fill(&self, count: usize) {
        for from in (0..count).step_by(1_000) {
            self.change((from..count.min(from + 1_000)).map(|n| set(&key(n), n)).collect()).await;
        }
    }
}

/// A device with a registration.
async fn new_device(node: &Node, app: &AppCredentials) -> Device {
    let body = json!({"app_id": APP, "app_key": app.app_key, "register": true});
    let made = node.call(Method::POST, "/v1/devices", Some(body)).await;
    serde_json::from_value(made.body).unwrap()
}

/// The key of the n-th item.
pub fn key(n: usize) -> String {
    format!("note {n:06}")
}

/// A change that gives an item its n-th value.
pub fn set(key: &str, n: usize) -> Value {
    json!({"collection": NOTES, "key": key, "value": {"text": format!("of {n}, {}", n * 7)}})
}

/// Applies what is there of aliases; the position then.
pub fn apply(copy: &mut Copy, deltas: &idl::Deltas) -> i64 {
    let mut at = 0;
    for delta in deltas.deltas.iter().filter(|delta| delta.queue.kind == idl::QueueKind::ALIAS) {
        at = delta.to_seq;
        for entry in &delta.entries {
            let Some(change) = &entry.change else { continue };
            if change.kind == idl::ChangeKind::DELETE {
                copy.remove(&change.key);
            } else {
                copy.insert(change.key.clone(), entry.seq as u64);
            }
        }
    }
    at
}

/// The digest of what is held.
pub fn digest_of(copy: &Copy) -> i64 {
    let hashes = copy.iter().map(|(key, seq)| item_hash(NOTES, key, *seq));
    hashes.collect::<Digest>().to_idl()
}

/// What is held within bounds.
pub fn range(copy: &Copy, bounds: Bounds) -> KeyRange {
    let items: Vec<_> = copy.iter().filter(|(key, _)| bounds.contains(key)).collect();
    KeyRange::of(NOTES, bounds, items.into_iter().map(|(key, seq)| (key, *seq)))
}
