//! Callbacks against a real node: what app servers are told is signed, told again until it is
//! taken, and none is missing, whatever happens to the endpoint or the node.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

#[path = "callbacks/hook.rs"]
mod hook;
mod support;

use std::{collections::BTreeSet, time::Duration};

use carillon::base::ids::{AppId, QueueName};
use carillon_sdk::{Credentials, Device as SdkDevice, Endpoint, MemoryStore, Received};
use hook::{Hook, Reaction};
use reqwest::Method;
use serde_json::{Value, json};
use support::{APP, DEADLINE, Device, Node, Options, poll_until, rumqtt};
use tokio::{sync::mpsc, time::timeout};

const CONFIG: &str = "
[callbacks]
allow_private = true
batch_delay_ms = 20
timeout_ms = 500
retry_first_ms = 20
retry_max_ms = 100
batch_events_max = 8
";

async fn node_with(more: &str) -> Node {
    let config = Some(format!("{CONFIG}{more}"));
    Node::start_with(Options { config, ..Options::default() }).await
}

/// Sends a message that asks for these events; its id.
async fn send(node: &Node, hook: &Hook, regids: &[&str], events: &[&str]) -> String {
    let callback = json!({"url": hook.url(), "events": events});
    let sent = post(node, json!({"target": {"regids": regids}, "callback": callback})).await;
    sent["id"].as_str().expect("an id").to_owned()
}

async fn post(node: &Node, mut message: Value) -> Value {
    message["payload"] = json!({"n": 1});
    let path = format!("/v1/apps/{APP}/messages");
    let sent = node.call(Method::POST, &path, Some(message)).await;
    assert_eq!(sent.status, 202, "{}", sent.body);
    sent.body
}

/// Until the metrics have this line, and no event waits any more.
async fn shows(node: &Node, line: &str) {
    let shown = poll_until(DEADLINE, async || {
        let metrics = node.metrics().await;
        let is_quiet = metrics.contains("carillon_callback_events_pending 0\n");
        (is_quiet && metrics.contains(line)).then_some(())
    });
    assert!(shown.await.is_some(), "{line}\n{}", node.metrics().await);
}

/// Ids of the events that these messages lead to.
fn ids(kind: &str, messages: &[String], device: &Device) -> BTreeSet<String> {
    messages.iter().map(|message| format!("{kind}.{message}.{}", device.regid)).collect()
}

#[tokio::test]
async fn x10_events_are_signed_and_told_until_the_endpoint_takes_them() {
    let node = node_with("").await;
    let hook = Hook::start(&node.app().app_secret).await;
    hook.react(&[Reaction::Status(500), Reaction::Hang, Reaction::Status(302)]);
    let device = node.create_device().await;
    let mut client = rumqtt::connect_v5(&node, &device, &["push"]);
    client.ready().await;
    let stranger = "a".repeat(32);
    let mut sent = Vec::new();
    for _ in 0..20 {
        let to = [device.regid.as_str(), stranger.as_str()];
        sent.push(send(&node, &hook, &to, &["acked", "invalid"]).await);
    }
    // Nobody wants to hear of this one's acknowledgement.
    send(&node, &hook, &[&device.regid], &["clicked"]).await;
    client.messages(21).await;

    let mut wanted = ids("acked", &sent, &device);
    wanted.extend(sent.iter().map(|message| format!("invalid.{message}.{stranger}")));
    hook.wait_for(&wanted).await;
    assert_eq!(hook.taken(), wanted, "and nothing else");
    let requests = hook.requests();
    assert!(requests.iter().all(|request| request.events <= 8), "{requests:?}");
    assert!(requests.iter().any(|request| request.attempt > 1), "{requests:?}");
    let taken: Vec<_> = requests.iter().filter(|r| r.is_taken).map(|r| &r.delivery).collect();
    let distinct: BTreeSet<_> = taken.iter().collect();
    assert_eq!(distinct.len(), taken.len(), "each delivery has its own id");
    client.stop().await;

    shows(&node, "carillon_callback_events_total{outcome=\"delivered\"} 40").await;
}

#[tokio::test]
async fn no_event_is_missing_after_kills_and_none_is_told_of_nothing() {
    let mut node = node_with("").await;
    let hook = Hook::start(&node.app().app_secret).await;
    hook.react_always(Reaction::Status(503));
    let device = node.create_device().await;
    let mut sent = Vec::new();
    for round in 0..3 {
        let mut client = rumqtt::connect_v5(&node, &device, &["push"]);
        client.ready().await;
        for _ in 0..10 {
            sent.push(send(&node, &hook, &[&device.regid], &["acked"]).await);
        }
        client.messages(10).await;
        if round == 1 {
            hook.react_always(Reaction::Status(200));
        }
        node.kill9();
        drop(client);
        node.restart().await;
    }
    let mut client = rumqtt::connect_v5(&node, &device, &["push"]);
    client.ready().await;
    let wanted = ids("acked", &sent, &device);
    hook.wait_for(&wanted).await;
    assert_eq!(hook.taken(), wanted);
    client.stop().await;
}

#[tokio::test]
async fn a_dead_endpoint_keeps_nobody_else_from_their_events_and_is_given_up() {
    let node = node_with("requests_max = 2\ngive_up_after_s = 1\n").await;
    let secret = &node.app().app_secret;
    let (dead, live) = (Hook::start(secret).await, Hook::start(secret).await);
    dead.react_always(Reaction::Hang);
    let device = node.create_device().await;
    let mut client = rumqtt::connect_v5(&node, &device, &["push"]);
    client.ready().await;
    let mut lost = 0;
    let mut sent = Vec::new();
    for _ in 0..10 {
        send(&node, &dead, &[&device.regid], &["acked"]).await;
        lost += 1;
        sent.push(send(&node, &live, &[&device.regid], &["acked"]).await);
    }
    client.messages(20).await;
    live.wait_for(&ids("acked", &sent, &device)).await;
    let line = format!("carillon_callback_events_total{{outcome=\"given_up\"}} {lost}");
    shows(&node, &line).await;
    assert!(dead.requests().len() > 1, "it was tried again");
    client.stop().await;
}

#[tokio::test]
async fn x4_followers_that_a_message_did_not_reach_in_time_are_reported() {
    let node = node_with("").await;
    let hook = Hook::start(&node.app().app_secret).await;
    let (here, away) = (node.create_device().await, node.create_device().await);
    for device in [&here, &away] {
        node.subscribe(&device.regid, "news").await;
        node.bind(&device.regid, "ann").await;
        node.bind(&device.regid, "bob").await;
    }
    let mut client = rumqtt::connect_v5(&node, &here, &["push"]);
    client.ready().await;
    let callback = json!({"url": hook.url(), "events": ["expired", "acked"]});
    let mut sent = Vec::new();
    for target in [
        json!({"topic": "news"}),
        json!({"aliases": ["ann", "bob"]}),
        json!({"regids": [here.regid, away.regid]}),
    ] {
        let message = json!({"target": target, "ttl_s": 1, "callback": callback});
        sent.push(post(&node, message).await["id"].as_str().expect("an id").to_owned());
    }
    client.messages(3).await;
    // Who comes later did not miss it.
    let late = node.create_device().await;
    node.subscribe(&late.regid, "news").await;
    let mut wanted = ids("expired", &sent, &away);
    wanted.extend(ids("acked", &sent, &here));
    hook.wait_for(&wanted).await;
    assert_eq!(hook.taken(), wanted);
    client.stop().await;
}

#[tokio::test]
async fn a_trace_shows_when_a_message_was_pushed_and_acknowledged() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let mut client = rumqtt::connect_v5(&node, &device, &["push"]);
    client.ready().await;
    let message = json!({"target": {"regids": [device.regid]}, "receipts": true});
    let id = post(&node, message).await["id"].as_str().expect("an id").to_owned();
    client.message().await;
    let path = format!("/v1/apps/{APP}/messages/{id}");
    let counted = poll_until(DEADLINE, async || {
        let state = node.call(Method::GET, &path, None).await.body;
        (state["counts"]["receipts"]["acked"] == 1).then_some(state)
    });
    let state = counted.await.expect("a receipt");
    assert_eq!(state["counts"]["receipts"], json!({"acked": 1, "clicked": 0, "is_partial": false}));
    let trace = format!("{path}/trace?regid={}", device.regid);
    let trace = node.call(Method::GET, &trace, None).await.body;
    let milestones = trace["milestones"].as_array().expect("milestones");
    let names: Vec<_> = milestones.iter().map(|m| m["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["accepted", "durable", "pushed", "acked", "passed"], "{trace}");
    let times: Vec<_> = milestones.iter().map(|m| m["at_ms"].as_u64().expect("a time")).collect();
    assert!(times.is_sorted(), "{trace}");
    client.stop().await;
}

#[tokio::test]
async fn what_is_no_callback_is_refused_and_leaves_nothing() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let path = format!("/v1/apps/{APP}/messages");
    for (callback, status) in [
        (json!({"url": "http://example.org/", "events": ["acked"]}), 422),
        (json!({"url": "https://127.0.0.1/", "events": ["acked"]}), 422),
        (json!({"url": "https://169.254.169.254/", "events": ["acked"]}), 422),
        (json!({"url": "https://u:p@example.org/", "events": ["acked"]}), 422),
        (
            json!({"url": format!("https://example.org/{}", "x".repeat(1_024)), "events": ["acked"]}),
            422,
        ),
        (json!({"url": "https://example.org/", "events": []}), 422),
        (json!({"url": "https://example.org/", "events": ["acked", "seen"]}), 400),
        (json!({"url": "https://example.org/"}), 400),
        (json!({"url": "https://example.org/", "events": ["acked"], "param": 1}), 400),
        (json!("https://example.org/"), 400),
    ] {
        let message = json!({
            "target": {"regids": [device.regid]}, "payload": 1, "callback": callback,
        });
        let refused = node.call(Method::POST, &path, Some(message)).await;
        assert_eq!(refused.status, status, "{callback}: {}", refused.body);
    }
    let registration = node.registration(&device.regid).await;
    assert_eq!(registration["pointers"][0]["head"], registration["pointers"][0]["acked"]);
}

/// The names of what happened to a message on its way to a registration.
async fn steps(node: &Node, message: &str, regid: &str) -> Vec<String> {
    let path = format!("/v1/apps/{APP}/messages/{message}/trace?regid={regid}");
    let trace = node.call(Method::GET, &path, None).await.body;
    let milestones = trace["milestones"].as_array().unwrap_or_else(|| panic!("{trace}"));
    milestones.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test]
async fn what_was_filtered_collapsed_or_recalled_did_not_expire() {
    let node = node_with("").await;
    let hook = Hook::start(&node.app().app_secret).await;
    let (german, english) = (node.create_device().await, node.create_device().await);
    for (device, locale) in [(&german, "de-AT"), (&english, "en")] {
        node.subscribe(&device.regid, "news").await;
        let path = format!("/v1/apps/{APP}/registrations/{}/attributes", device.regid);
        let said = node.call(Method::PUT, &path, Some(json!({"locale": locale}))).await;
        assert_eq!(said.status, 204, "{}", said.body);
    }
    let callback = json!({"url": hook.url(), "events": ["expired"]});
    let to_news = async |more: Value| {
        let mut message =
            json!({"target": {"topic": "news"}, "ttl_s": 1, "callback": callback.clone()});
        message.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap());
        post(&node, message).await["id"].as_str().expect("an id").to_owned()
    };
    let filtered = to_news(json!({"filter": {"locale": ["de"]}})).await;
    let recalled = to_news(json!({})).await;
    let path = format!("/v1/apps/{APP}/messages/{recalled}");
    assert_eq!(node.call(Method::DELETE, &path, None).await.status, 200);
    let collapsed = to_news(json!({"collapse_key": "k"})).await;
    to_news(json!({"collapse_key": "k", "ttl_s": 3_600})).await;
    let condition = json!({"condition": "'news' in topics && 'sport' in topics"});
    let unmet = to_news(json!({"target": condition})).await;
    // It expires last: all that comes before it is told of by then.
    let last = to_news(json!({"ttl_s": 3})).await;
    let mut wanted = ids("expired", &[filtered.clone(), last.clone()], &german);
    wanted.extend(ids("expired", std::slice::from_ref(&last), &english));
    hook.wait_for(&wanted).await;
    assert_eq!(hook.taken(), wanted);

    let (german, english) = (german.regid.as_str(), english.regid.as_str());
    for (message, regid, fate) in [
        (&filtered, german, "expired"),
        (&filtered, english, "filtered"),
        (&recalled, german, "recalled"),
        (&collapsed, english, "collapsed"),
        (&unmet, german, "condition"),
        (&last, german, "expired"),
    ] {
        assert_eq!(steps(&node, message, regid).await, ["accepted", "durable", fate]);
    }
}

#[tokio::test]
async fn what_is_recalled_or_collapsed_after_its_time_had_expired() {
    let node = node_with("").await;
    let hook = Hook::start(&node.app().app_secret).await;
    let away = node.create_device().await;
    node.subscribe(&away.regid, "news").await;
    let callback = json!({"url": hook.url(), "events": ["expired"]});
    let to_news = async |ttl_s: u64, key: &str| {
        let target = json!({"topic": "news"});
        let message = json!({"target": target, "ttl_s": ttl_s, "callback": callback.clone(), "collapse_key": key});
        post(&node, message).await["id"].as_str().expect("an id").to_owned()
    };
    // The first of these was collapsed in time.
    to_news(1, "k").await;
    let expired = [to_news(1, "k").await, to_news(1, "r").await];
    for id in &expired {
        let path = format!("/v1/apps/{APP}/messages/{id}");
        let is = async || {
            let state = node.call(Method::GET, &path, None).await.body;
            (state["state"] == "expired").then_some(())
        };
        assert!(poll_until(DEADLINE, is).await.is_some());
    }
    to_news(3_600, "k").await;
    let path = format!("/v1/apps/{APP}/messages/{}", expired[1]);
    assert_eq!(node.call(Method::DELETE, &path, None).await.status, 200);
    let last = to_news(1, "last").await;
    let wanted = ids("expired", &[&expired[..], &[last]].concat(), &away);
    hook.wait_for(&wanted).await;
    assert_eq!(hook.taken(), wanted, "and nothing else");
    assert_eq!(steps(&node, &expired[0], &away.regid).await, ["accepted", "durable", "expired"]);
    let recalled = ["accepted", "durable", "expired", "recalled"];
    assert_eq!(steps(&node, &expired[1], &away.regid).await, recalled);
}

#[tokio::test]
async fn messages_to_a_registration_that_ends_before_it_has_them_are_invalid() {
    let node = node_with("").await;
    let hook = Hook::start(&node.app().app_secret).await;
    let (away, revoked, here) =
        (node.create_device().await, node.create_device().await, node.create_device().await);
    let all = [away.regid.as_str(), &revoked.regid, &here.regid];
    let mut client = rumqtt::connect_v5(&node, &here, &["push"]);
    client.ready().await;
    let mut sent = vec![send(&node, &hook, &all, &["invalid"]).await];
    sent.push(send(&node, &hook, &all, &["acked", "invalid"]).await);
    let recalled = send(&node, &hook, &all, &["invalid"]).await;
    let path = format!("/v1/apps/{APP}/messages/{recalled}");
    assert_eq!(node.call(Method::DELETE, &path, None).await.status, 200);
    client.messages(2).await;
    node.wait_until_acknowledged(&here.regid).await;
    for device in [&away, &here] {
        let path = format!("/v1/apps/{APP}/registrations/{}", device.regid);
        assert_eq!(node.call(Method::DELETE, &path, None).await.status, 204);
    }
    node.cli(&["device", "revoke", &revoked.device_id]).await;
    let mut wanted = ids("acked", &sent[1..], &here);
    for device in [&away, &revoked] {
        wanted.extend(ids("invalid", &sent, device));
    }
    hook.wait_for(&wanted).await;
    shows(&node, "carillon_callback_events_total{outcome=\"delivered\"} 5").await;
    assert_eq!(hook.taken(), wanted, "and nothing of what arrived or was recalled");

    let got = ["accepted", "durable", "pushed", "acked", "passed"];
    for device in [&away, &revoked] {
        for message in &sent {
            let steps = steps(&node, message, &device.regid).await;
            assert_eq!(steps, ["accepted", "durable", "invalid"]);
        }
    }
    assert_eq!(steps(&node, &sent[1], &here.regid).await, got);
    assert_eq!(steps(&node, &sent[0], &here.regid).await, ["accepted", "durable", "passed"]);
    let path = format!("/v1/apps/{APP}/messages/{}/trace?regid={}", sent[0], "a".repeat(32));
    assert_eq!(node.call(Method::GET, &path, None).await.status, 404);
}

#[tokio::test]
async fn whatever_was_to_bring_it_a_message_to_a_registration_that_ended_is_invalid() {
    let mut node = node_with("").await;
    let hook = Hook::start(&node.app().app_secret).await;
    let (away, here) = (node.create_device().await, node.create_device().await);
    for device in [&away, &here] {
        node.bind(&device.regid, "ann").await;
        node.bind(&device.regid, "bob").await;
        node.subscribe(&device.regid, "news").await;
        node.subscribe(&device.regid, "left").await;
    }
    let callback = json!({"url": hook.url(), "events": ["acked", "invalid"]});
    let ask = |target: Value| json!({"target": target, "callback": callback});
    let mut client = rumqtt::connect_v5(&node, &here, &["push"]);
    client.ready().await;
    let mut sent = Vec::new();
    for target in
        [json!({"aliases": ["ann", "bob"]}), json!({"topic": "news"}), json!({"all": true})]
    {
        sent.push(post(&node, ask(target)).await["id"].as_str().unwrap().to_owned());
    }
    // What it left by itself is no loss.
    let left = post(&node, ask(json!({"topic": "left"}))).await["id"].as_str().unwrap().to_owned();
    node.unsubscribe(&away.regid, "left").await;
    client.messages(4).await;
    node.wait_until_acknowledged(&here.regid).await;
    // One is due while the node is there, one while it is away.
    let mut later = Vec::new();
    for in_s in [1, 4] {
        let send_at = (jiff::Timestamp::now() + Duration::from_secs(in_s)).to_string();
        let mut message = ask(json!({"regids": [away.regid, here.regid]}));
        message["send_at"] = json!(send_at);
        later.push(post(&node, message).await["id"].as_str().unwrap().to_owned());
    }
    let path = format!("/v1/apps/{APP}/registrations/{}", away.regid);
    assert_eq!(node.call(Method::DELETE, &path, None).await.status, 204);
    client.messages(1).await;
    let mut wanted = ids("invalid", &sent, &away);
    wanted.extend(ids("acked", &sent, &here));
    wanted.extend(ids("acked", &[left], &here));
    for message in &later[..1] {
        wanted.extend(ids("invalid", std::slice::from_ref(message), &away));
        wanted.extend(ids("acked", std::slice::from_ref(message), &here));
    }
    hook.wait_for(&wanted).await;
    client.stop().await;
    node.kill9();
    node.restart().await;
    wanted.extend(ids("invalid", &later[1..], &away));
    hook.wait_for(&wanted).await;
    // On a slow machine the last one was due before the kill.
    wanted.extend(ids("acked", &later[1..], &here));
    assert!(hook.taken().is_subset(&wanted), "and nothing else: {:?}", hook.taken());
}

#[tokio::test]
async fn x10_a_click_on_a_device_is_told_signed_and_once_also_after_a_kill() {
    let mut node = node_with("").await;
    let hook = Hook::start(&node.app().app_secret).await;
    // The endpoint takes nothing before the node was killed.
    hook.react_always(Reaction::Status(503));
    let device = node.create_device().await;
    let (given, mut received) = mpsc::channel(16);
    let endpoint: Endpoint = format!("tcp://{}", node.listen().mqtt).parse().expect("an endpoint");
    let (device_id, secret) = (device.device_id.clone(), device.secret.clone());
    let phone = SdkDevice::builder_with_store(
        endpoint,
        Credentials { device_id, secret },
        MemoryStore::default(),
    )
    .connect_with(move |received| {
        let given = given.clone();
        async move { given.send(received).await.expect("somebody listens") }
    })
    .await
    .expect("a fresh state");
    let mut clicked = Vec::new();
    for events in [&["clicked"][..], &["acked", "clicked"], &["acked"]] {
        let id = send(&node, &hook, &[&device.regid], events).await;
        let message =
            timeout(DEADLINE, received.recv()).await.expect("in time").expect("a message");
        let Received::Message(message) = message else { panic!("{message:?}") };
        assert_eq!(message.id.to_string(), id);
        // Somebody taps twice.
        for _ in 0..2 {
            phone.clicked(&message.regid, &message.id).await.expect("the node took it");
        }
        clicked.push(id);
    }
    phone.shutdown().await;
    // The last receipt is on the disk, and so are those before it.
    let written = poll_until(DEADLINE, async || {
        let steps = steps(&node, &clicked[2], &device.regid).await;
        steps.contains(&"acked".to_owned()).then_some(())
    });
    written.await.expect("a receipt");
    node.kill9();
    hook.react_always(Reaction::Status(200));
    node.restart().await;
    let mut wanted = ids("clicked", &clicked[..2], &device);
    wanted.extend(ids("acked", &clicked[1..], &device));
    hook.wait_for(&wanted).await;
    assert_eq!(hook.taken(), wanted, "and nothing that was not asked for");
    let trace = steps(&node, &clicked[0], &device.regid).await;
    assert!(trace.contains(&"clicked".to_owned()), "{trace:?}");
}

/// The keys of a recall and of a receipt lie side by side; a queue's id may begin with any byte.
#[tokio::test]
async fn a_message_that_was_recalled_is_counted_whatever_its_queues_are_called() {
    let mut node = Node::start().await;
    let app: AppId = APP.parse().expect("an app");
    let begins_with_r = |topic: &String| {
        let queue = QueueName::Topic(app.clone(), topic.parse().expect("a topic"));
        queue.id().as_bytes()[0] == b'r'
    };
    let topic = (0..).map(|n| format!("t{n}")).find(begins_with_r).expect("one of 256");
    let message = json!({"target": {"topic": topic}, "receipts": true});
    let id = post(&node, message).await["id"].as_str().expect("an id").to_owned();
    let path = format!("/v1/apps/{APP}/messages/{id}");
    assert_eq!(node.call(Method::DELETE, &path, None).await.status, 200);
    // Its entry is appended a moment later, in good order at the latest.
    node.terminate().await;
    node.restart().await;
    let state = node.call(Method::GET, &path, None).await;
    assert_eq!((state.status.as_u16(), &state.body["state"]), (200, &json!("recalled")));
    assert_eq!(state.body["counts"]["receipts"]["acked"], 0);
}
