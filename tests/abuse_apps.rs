//! Two apps on one device and one connection: what one does, suffers or ends is not the other's.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use std::collections::BTreeMap;

use carillon_wire::idl::ResultCode;
use reqwest::Method;
use serde_json::{Value, json};
use support::{APP, AppCredentials, Device, Node, Options};
use wirelab::{
    bytes::Version,
    frames::{self, Framed, payloads},
    lab::{Witness, create_app, revoke, send_numbers, try_send},
    wire::{Wire, device_connect},
};

use Version::V5;

const OTHER: &str = "other";

/// A device with a registration of `demo` and one of `other`.
struct Shared {
    node: Node,
    device: Device,
    other: AppCredentials,
    /// The regID of `other`; that of `demo` is the device's.
    regid: String,
}

impl Shared {
    async fn new(config: &str) -> Self {
        let options = Options { config: Some(config.to_owned()), ..Options::default() };
        let node = Node::start_with(options).await;
        let other = create_app(&node, OTHER).await;
        let device = node.create_device().await;
        let mut framed = Framed::connect(&node, &device).await;
        let result = framed.ask(frames::register(OTHER, &other.app_key)).await;
        let regid = result.regid.expect("a registration");
        framed.wire.disconnect().await;
        Self { node, device, other, regid }
    }

    async fn framed(&self) -> Framed {
        Framed::connect(&self.node, &self.device).await
    }
}

/// A call at the public door.
async fn ask(node: &Node, method: Method, path: &str, secret: &str, body: Value) -> (u16, Value) {
    let url = format!("{}{path}", node.https_url());
    let request = node.https_client().request(method, url).bearer_auth(secret);
    let request = if body.is_null() { request } else { request.json(&body) };
    let answer = support::answer(request).await;
    (answer.status.as_u16(), answer.body)
}

#[tokio::test]
async fn an_app_neither_sees_nor_touches_the_others_registration() {
    let shared = Shared::new("").await;
    let node = &shared.node;
    let (mine, theirs) = (&shared.device.regid, &shared.regid);
    let (demo, other) = (&node.app().app_secret, &shared.other.app_secret);
    let mut framed = shared.framed().await;
    let calls: [(Method, &str); 6] = [
        (Method::GET, ""),
        (Method::DELETE, ""),
        (Method::PUT, "/aliases/ann"),
        (Method::DELETE, "/aliases/ann"),
        (Method::PUT, "/topics/news"),
        (Method::DELETE, "/topics/news"),
    ];
    for (app, secret, regid) in [(APP, demo, theirs), (OTHER, other, mine)] {
        for (method, rest) in &calls {
            let path = format!("/v1/apps/{app}/registrations/{regid}{rest}");
            let (status, body) = ask(node, method.clone(), &path, secret, Value::Null).await;
            assert_eq!((status, &body["code"]), (404, &json!("not_found")), "{method} {path}");
        }
        let send = json!({"target": {"regids": [regid]}, "payload": "x"});
        let path = format!("/v1/apps/{app}/messages");
        let (status, body) = ask(node, Method::POST, &path, secret, send).await;
        assert_eq!((status, &body["code"]), (404, &json!("not_found")), "{body}");
        let path = format!("/v1/apps/{app}/topics/news:subscribe");
        let (_, body) = ask(node, Method::POST, &path, secret, json!({"regids": [regid]})).await;
        assert_eq!(body["done"], json!(0), "{body}");
    }
    for (app, secret) in [(APP, other), (OTHER, demo), (APP, &node.app().app_key)] {
        let path = format!("/v1/apps/{app}/registrations/{mine}");
        let (status, _) = ask(node, Method::GET, &path, secret, Value::Null).await;
        assert_eq!(status, 401, "another app's secret");
    }
    for regid in [mine, theirs] {
        let app = if regid == mine { APP } else { OTHER };
        let view = node.registration_for(app, regid).await;
        assert_eq!((&view["topics"], &view["aliases"]), (&json!([]), &json!([])));
    }
    assert_eq!(framed.ask(frames::bind(theirs, "ann", None)).await.code, ResultCode::OK);
}

#[tokio::test]
async fn names_of_one_app_are_not_names_of_the_other() {
    let shared = Shared::new("").await;
    let (mine, theirs) = (shared.device.regid.clone(), shared.regid.clone());
    let mut framed = shared.framed().await;
    for up in [frames::bind(&mine, "ann", None), frames::subscribe(&theirs, &["news"])] {
        assert_eq!(framed.ask(up).await.code, ResultCode::OK);
    }
    for app in [APP, OTHER] {
        for (kind, target) in [
            ("alias", json!({"aliases": ["ann"]})),
            ("topic", json!({"topic": "news"})),
            ("all", json!({"all": true})),
        ] {
            try_send(&shared.node, app, target, json!(format!("{kind} of {app}"))).await;
        }
    }
    let wanted = [
        (mine.clone(), "\"alias of demo\""),
        (mine, "\"all of demo\""),
        (theirs.clone(), "\"all of other\""),
        (theirs, "\"topic of other\""),
    ];
    let mut wanted: Vec<_> = wanted.map(|(regid, text)| (regid, text.to_owned())).into();
    let mut got = framed.messages(4).await;
    wanted.sort();
    got.sort();
    assert_eq!(got, wanted);
    let deltas = framed.wire.settle().await;
    assert_eq!(deltas, [], "each reached one registration");
}

#[tokio::test]
async fn an_app_that_stalls_does_not_hold_the_other_up() {
    let shared = Shared::new("[edge]\nwindow = 12\nwindow_per_registration = 6\n").await;
    let node = &shared.node;
    let mut framed = shared.framed().await;
    // Six frames that nobody acknowledges: the app on the device hangs.
    let mut stalled = Vec::new();
    for number in 0..20 {
        send_numbers(node, &shared.device.regid, number..number + 1).await;
        if stalled.len() < 6 {
            let (id, deltas) = framed.deltas().await;
            match deltas.regid == shared.device.regid {
                true => stalled.push((id, deltas)),
                false => framed.wire.ack(id).await,
            }
        }
    }
    for number in 0..30 {
        let target = json!({"regids": [shared.regid]});
        node.send_for(OTHER, target, json!(number)).await;
        let (id, deltas) = framed.deltas().await;
        assert_eq!(payloads(&deltas), [(shared.regid.clone(), number.to_string())]);
        framed.wire.ack(id).await;
    }
    node.wait_until_acknowledged_for(OTHER, &shared.regid).await;
    let mut got: Vec<String> = Vec::new();
    for (id, deltas) in stalled {
        got.extend(payloads(&deltas).into_iter().map(|(_, text)| text));
        framed.wire.ack(id).await;
    }
    let left = 20 - got.len();
    got.extend(framed.messages(left).await.into_iter().map(|(_, text)| text));
    assert_eq!(got, (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
    node.wait_until_acknowledged(&shared.device.regid).await;
}

#[tokio::test]
async fn plain_use_of_two_apps_is_served_side_by_side() {
    let shared = Shared::new("[edge]\nwindow = 12\nwindow_per_registration = 6\n").await;
    let node = &shared.node;
    let mut wire = Wire::connect(node, &device_connect(&shared.device, V5)).await;
    let filters = ["push", "topic/x", "push/demo", "push/other", "topic/other/news"];
    assert_eq!(wire.subscribe(&filters, 1).await, [0x8F, 0x8F, 1, 1, 1]);
    send_numbers(node, &shared.device.regid, 0..20).await;
    let mut stalled = Vec::new();
    while stalled.len() < 6 {
        stalled.push(wire.push().await);
    }
    assert_eq!(wire.settle().await, [], "its share of the window is full");
    for number in 0..20 {
        let (target, topic) = match number % 2 {
            0 => (json!({"regids": [shared.regid]}), "push/other"),
            _ => (json!({"topic": "news"}), "topic/other/news"),
        };
        node.send_for(OTHER, target, json!(number)).await;
        let push = wire.take(1).await.remove(0);
        assert_eq!((push.topic.as_str(), push.text()), (topic, number.to_string()));
    }
    for push in &stalled {
        assert_eq!(push.topic, "push/demo");
        wire.ack(push.id).await;
    }
    let rest = wire.take(14).await;
    assert_eq!(rest.last().map(|push| push.text()), Some("19".to_owned()));
}

#[tokio::test]
async fn ending_one_registration_leaves_the_other_connected_and_served() {
    let shared = Shared::new("").await;
    let node = &shared.node;
    let mut witness = Witness::new(node).await;
    let mut framed = shared.framed().await;
    for app in [APP, OTHER] {
        try_send(node, app, json!({"all": true}), json!("before")).await;
    }
    assert_eq!(framed.messages(2).await.len(), 2);
    let mine = &shared.device.regid;
    revoke(node, APP, mine).await;
    loop {
        let (id, down) = framed.down().await;
        framed.wire.ack(id).await;
        if let Some(ended) = down.ended {
            assert_eq!(&ended.regid, mine);
            break;
        }
    }
    for number in 0..10 {
        try_send(node, APP, json!({"all": true}), json!("gone")).await;
        try_send(node, APP, json!({"regids": [mine]}), json!("gone")).await;
        node.send_for(OTHER, json!({"regids": [shared.regid]}), json!(number)).await;
        let got = framed.messages(1).await;
        assert_eq!(got, [(shared.regid.clone(), number.to_string())], "the same connection");
    }
    assert_eq!(framed.ask(frames::bind(mine, "ann", None)).await.code, ResultCode::NOT_FOUND);
    let result = framed.ask(frames::bind(&shared.regid, "ann", None)).await;
    assert_eq!(result.code, ResultCode::OK);

    // Plain: what is about the app that ended is over, the rest stays.
    let again = framed.ask(frames::register(APP, &node.app().app_key)).await;
    let mine = again.regid.expect("a new registration");
    framed.wire.disconnect().await;
    let mut wire = Wire::connect(node, &device_connect(&shared.device, V5)).await;
    assert_eq!(wire.subscribe(&["push/demo", "push/other"], 1).await, [1, 1]);
    revoke(node, APP, &mine).await;
    node.send_for(OTHER, json!({"aliases": ["ann"]}), json!("still here")).await;
    let push = wire.take(1).await.remove(0);
    assert_eq!((push.topic.as_str(), push.text()), ("push/other", "\"still here\"".into()));
    assert_eq!(wire.subscribe(&["push/demo", "push"], 1).await, [0x87, 1], "one is left");
    assert_eq!(wire.settle().await, []);
    witness.is_served(node).await;
}

#[tokio::test]
async fn limits_are_counted_for_each_app_and_device() {
    let config = "[limits]\nregistrations_per_device = 3\ntopics_per_registration = 4\naliases_per_registration = 2\n";
    let shared = Shared::new(config).await;
    let node = &shared.node;
    let mut framed = shared.framed().await;
    let mut codes: BTreeMap<&str, Vec<ResultCode>> = BTreeMap::new();
    for (app, regid) in [(APP, &shared.device.regid), (OTHER, &shared.regid)] {
        for topic in ["a", "b", "c", "d", "d", "e"] {
            let result = framed.ask(frames::subscribe(regid, &[topic])).await;
            codes.entry(app).or_default().push(result.code);
        }
        for alias in ["a", "b", "b", "c"] {
            let result = framed.ask(frames::bind(regid, alias, None)).await;
            codes.entry(app).or_default().push(result.code);
        }
    }
    let (ok, limit) = (ResultCode::OK, ResultCode::LIMIT);
    let wanted = vec![ok, ok, ok, ok, ok, limit, ok, ok, ok, limit];
    assert_eq!(codes, BTreeMap::from([(APP, wanted.clone()), (OTHER, wanted)]));
    for (app, code) in [("third", ok), ("fourth", limit)] {
        let app = create_app(node, app).await;
        let result = framed.ask(frames::register(&app.app_id, &app.app_key)).await;
        assert_eq!(result.code, code);
    }
    let wrong = framed.ask(frames::register("third", &shared.other.app_key)).await;
    assert_eq!(wrong.code, ResultCode::NOT_FOUND, "a key opens its own app");
}

#[tokio::test]
async fn i13_the_devices_of_one_alias_are_bounded_and_the_refusal_says_so() {
    let shared = Shared::new("[limits]\nregistrations_per_alias = 2\n").await;
    let (app, regid) = (&shared.other, &shared.regid);
    let mut framed = shared.framed().await;
    let mut regids = vec![regid.clone()];
    for _ in 0..2 {
        let device = shared.node.create_device().await;
        let mut framed = Framed::connect(&shared.node, &device).await;
        let result = framed.ask(frames::register(OTHER, &app.app_key)).await;
        regids.push(result.regid.expect("a registration"));
    }
    let bind = async |regid: &str, alias: &str| {
        let path = format!("/v1/apps/{OTHER}/registrations/{regid}/aliases/{alias}");
        ask(&shared.node, Method::PUT, &path, &app.app_secret, Value::Null).await
    };
    for regid in &regids[1..] {
        assert_eq!(bind(regid, "ann").await.0, 204);
    }
    assert_eq!(bind(&regids[1], "ann").await.0, 204, "it is bound already");
    let (status, problem) = bind(regid, "ann").await;
    assert_eq!((status, &problem["code"]), (422, &json!("limit_reached")), "{problem}");
    assert_eq!(problem["detail"], "at most 2 registrations of an alias");
    let refused = framed.ask(frames::bind(regid, "ann", None)).await;
    assert_eq!(refused.code, ResultCode::LIMIT);
    assert_eq!(bind(regid, "bob").await.0, 204, "another alias has room");
    let path = format!("/v1/apps/{OTHER}/registrations/{}/aliases/ann", regids[1]);
    ask(&shared.node, Method::DELETE, &path, &app.app_secret, Value::Null).await;
    assert_eq!(bind(regid, "ann").await.0, 204, "who left makes room");
}
