//! A3: what is revoked is cut at once, connected or not, and nothing that waited for it is
//! sent afterwards.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use std::{sync::Arc, time::Duration};

use carillon::{
    base::{clock::Clock, ids::QueueName, keys::NodeKeys, metrics::Metrics},
    config::Config,
    node::core::{Core, Foundation, Pace},
    queue::store::{Range, Space, Store, memory::MemoryStore},
    service::records::AliasPolicy,
};
use carillon_wire::idl::ResultCode;
use reqwest::Method;
use serde_json::{Value, json};
use support::{APP, Node};
use wirelab::{
    bytes::Version,
    frames::{self, Framed},
    lab::{Witness, create_app, devices_of, send_numbers, try_send},
    wire::{Wire, device_connect},
};

use Version::V5;

const NOT_AUTHORIZED: u8 = 0x87;
const OTHER: &str = "other";

#[tokio::test]
async fn a_revoked_device_is_cut_and_gets_nothing_more() {
    let mut node = Node::start().await;
    let mut witness = Witness::new(&node).await;
    let device = node.create_device().await;
    let mut wire = Wire::connect(&node, &device_connect(&device, V5)).await;
    assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
    // More than a window: the rest is queued.
    send_numbers(&node, &device.regid, 0..100).await;
    assert_eq!(wire.push().await.text(), "0");

    let said = node.cli(&["device", "revoke", &device.device_id]).await;
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap(), json!({"registrations": 1}));
    wire.must_end(NOT_AUTHORIZED).await;

    for start in 1..=2 {
        let (mut refused, connack) =
            Wire::greet(node.listen().mqtt, &device_connect(&device, V5)).await;
        assert_ne!(connack.code, 0, "its secret is worth nothing");
        assert_eq!(refused.until_closed().await, []);
        let sent = try_send(&node, APP, json!({"regids": [device.regid]}), json!("late")).await;
        assert_eq!(sent["code"], "not_found", "{sent}");
        if start == 1 {
            witness.is_served(&node).await;
            assert!(node.terminate().await.success());
            node.restart().await;
        }
    }
    let path = format!("/admin/v1/devices/{}", device.device_id);
    assert_eq!(node.call(Method::DELETE, &path, None).await.status, 404, "it is no more");
}

#[tokio::test]
async fn a_revoked_app_ends_everywhere_and_no_other_app_does() {
    let node = Node::start().await;
    let other = create_app(&node, OTHER).await;
    let device = node.create_device().await;
    let plain = devices_of(&node, OTHER, 1).await.remove(0);
    let mut framed = Framed::connect(&node, &device).await;
    let result = framed.ask(frames::register(OTHER, &other.app_key)).await;
    let theirs = result.regid.expect("a registration");
    let mut wire = Wire::connect(&node, &device_connect(&plain, V5)).await;
    assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
    for number in 0..100 {
        node.send_for(OTHER, json!({"all": true}), json!(number)).await;
    }
    assert_eq!(wire.push().await.text(), "0");

    let said = node.cli(&["app", "revoke", OTHER]).await;
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap(), json!({"registrations": 2}));
    wire.must_end(NOT_AUTHORIZED).await;
    // What was sent before the end may come before it, and nothing behind it.
    loop {
        let (id, down) = framed.down().await;
        framed.wire.ack(id).await;
        if let Some(ended) = down.ended {
            assert_eq!(ended.regid, theirs);
            break;
        }
    }
    let secret = other.app_secret.as_str();
    let body = json!({"target": {"all": true}, "payload": 1});
    let url = format!("{}/v1/apps/{OTHER}/messages", node.https_url());
    let request = node.https_client().post(url).bearer_auth(secret).json(&body);
    assert_eq!(support::answer(request).await.status, 401);
    let sent = try_send(&node, OTHER, json!({"all": true}), json!("by the operator")).await;
    assert_eq!(sent["code"], "not_found", "{sent}");
    let result = framed.ask(frames::register(OTHER, &other.app_key)).await;
    assert_eq!(result.code, ResultCode::NOT_FOUND);
    let made = json!({"app_id": OTHER, "app_key": other.app_key});
    assert_eq!(node.call(Method::POST, "/v1/devices", Some(made)).await.status, 404);
    let again = node.call(Method::POST, "/admin/v1/apps", Some(json!({"app_id": OTHER}))).await;
    assert_eq!(again.status, 409, "the name is not given again: {}", again.body);

    node.send(json!({"regids": [device.regid]}), json!("still here")).await;
    let got = framed.messages(1).await;
    assert_eq!(got, [(device.regid.clone(), "\"still here\"".to_owned())]);
}

#[tokio::test]
async fn a_changed_key_ends_no_registration_and_makes_none() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let said = node.cli(&["app", "rotate-key", APP]).await;
    let key = serde_json::from_str::<Value>(&said).unwrap()["app_key"].clone();
    let make = async |key: &Value| {
        let body = json!({"app_id": APP, "app_key": key, "register": true});
        node.call(Method::POST, "/v1/devices", Some(body)).await.status.as_u16()
    };
    assert_eq!(make(&json!(node.app().app_key)).await, 404);
    assert_eq!(make(&key).await, 201);
    let mut framed = Framed::connect(&node, &device).await;
    node.send(json!({"regids": [device.regid]}), json!(1)).await;
    assert_eq!(framed.messages(1).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_revocation_that_a_stop_interrupts_goes_on_at_the_next_start() {
    let store = Arc::new(MemoryStore::default());
    let build = async |store: &Arc<MemoryStore>| {
        let foundation = Foundation {
            store: store.clone(),
            mark: None,
            keys: Arc::new(NodeKeys::ephemeral()),
            clock: Clock::starting_at(1_700_000_000_000),
            metrics: Arc::new(Metrics::new()),
            pace: Pace::Paced(Box::new(|| Duration::from_millis(10))),
            longterm: Arc::new(carillon::longterm::embedded::Embedded::in_memory()),
        };
        Core::build(&Config::default(), foundation).await.expect("a memory store")
    };
    let core = build(&store).await;
    let app = core.service.create_app("app", AliasPolicy::Open).await.unwrap().app_id;
    core.service.create_devices(&app, 1_500).await.unwrap();
    let members = || {
        let range = Range::prefix(QueueName::All(app.clone()).id().as_bytes());
        store.scan(Space::Members, &range, 2_000).unwrap().len()
    };
    // Long enough for the app's end, too short for both pages of registrations.
    let short = Duration::from_millis(15);
    assert!(tokio::time::timeout(short, core.service.revoke_app("app")).await.is_err());
    core.stop().await;
    assert!((1..=1_500).contains(&members()), "interrupted, {} left", members());
    let core = build(&store).await;
    assert_eq!(members(), 0);
    assert!(core.service.app("app").is_err());
}
