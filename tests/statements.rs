//! Statements X-1… of sending that no other test bears; docs/API.md lists all of them.

mod support;

use reqwest::Method;
use serde_json::{Value, json};
use support::{APP, DEADLINE, Device, Node, poll_until, rumqtt};

const MESSAGES: &str = "/v1/apps/demo/messages";

async fn post(node: &Node, message: Value) -> (u16, Value) {
    let sent = node.call(Method::POST, MESSAGES, Some(message)).await;
    (sent.status.as_u16(), sent.body)
}

#[tokio::test]
async fn x1_only_a_live_secret_of_the_app_opens_its_calls() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let (app, other) = (node.app().clone(), node.create_app("other").await);
    let client = node.https_client();
    let message = json!({"target": {"regids": [device.regid]}, "payload": 1});
    let send = async |app: &str, credential: Option<String>| {
        let url = format!("{}/v1/apps/{app}/messages", node.https_url());
        let mut request = client.post(url).json(&message);
        if let Some(credential) = credential {
            request = request.header("authorization", credential);
        }
        let answer = request.send().await.expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.expect("JSON"))
    };
    let right = format!("Bearer {}", app.app_secret);
    let wrong = [
        None,
        Some(String::new()),
        Some("Bearer ".to_owned()),
        Some("Bearer wrong".to_owned()),
        Some(app.app_secret.clone()),
        Some(format!("key={}", app.app_secret)),
        Some(format!("Key={}", app.app_secret)),
        Some(format!("Basic {}", app.app_secret)),
        Some(format!("Bearer {} {}", app.app_secret, app.app_secret)),
        Some(format!("Bearer {}", app.app_key)),
        Some(format!("Bearer {}", device.secret)),
        Some(format!("Bearer {}", other.app_secret)),
    ];
    for credential in wrong {
        let (status, said) = send(APP, credential.clone()).await;
        assert_eq!((status, &said["code"]), (401, &json!("unauthorized")), "{credential:?}");
    }
    for app in ["other", "nobody"] {
        let (status, said) = send(app, Some(right.clone())).await;
        assert_eq!((status, &said["code"]), (401, &json!("unauthorized")), "{app}");
    }
    let own = &node.registration(&device.regid).await["pointers"][0];
    assert_eq!(own["head"], own["acked"], "nothing was sent");
    assert_eq!(send(APP, Some(right)).await.0, 202);
}

#[tokio::test]
async fn x2_an_alias_is_on_every_device_that_it_was_bound_to() {
    let node = Node::start().await;
    let (one, other) = (node.create_device().await, node.create_device().await);
    let (mut at_one, mut at_other) =
        (rumqtt::connect_v5(&node, &one, &["push"]), rumqtt::connect_v5(&node, &other, &["push"]));
    at_one.ready().await;
    at_other.ready().await;
    let to_ann = json!({"aliases": ["ann"]});
    node.bind(&one.regid, "ann").await;
    node.bind(&other.regid, "ann").await;
    node.send(to_ann.clone(), json!("both")).await;
    // It leaves one device only when it is told so.
    node.unbind(&one.regid, "ann").await;
    node.send(to_ann, json!("the other")).await;
    node.send(json!({"regids": [one.regid]}), json!("last")).await;
    for (client, wanted) in
        [(&mut at_one, ["\"both\"", "\"last\""]), (&mut at_other, ["\"both\"", "\"the other\""])]
    {
        let mut got = [client.message().await.payload, client.message().await.payload];
        // They come by different queues.
        got.sort();
        assert_eq!(got, wanted);
    }
    at_one.stop().await;
    at_other.stop().await;
}

#[tokio::test]
async fn x8_a_payload_and_a_list_may_be_as_long_as_is_said_and_no_longer() {
    let node = Node::start().await;
    let device = node.create_device().await;
    // As its compact text a JSON string has two quotes.
    let payload = |bytes: usize| json!("x".repeat(bytes - 2));
    let to = |count: usize| json!({"regids": vec![device.regid.clone(); count]});
    for (target, payload, wanted) in [
        (to(1), payload(4_096), 202),
        (to(1), payload(4_097), 422),
        (to(1_000), payload(2), 202),
        (to(1_001), payload(2), 422),
    ] {
        let (status, said) = post(&node, json!({"target": target, "payload": payload})).await;
        assert_eq!(status, wanted, "{said}");
        assert!(status == 202 || said["code"] == "out_of_bounds", "{said}");
    }
    let mut client = rumqtt::connect_v5(&node, &device, &["push"]);
    client.ready().await;
    assert_eq!(client.message().await.payload.len(), 4_096, "it arrives whole");
    client.stop().await;
}

/// Counts of a message as `GET messages/{id}` has them, once so many acknowledged it.
async fn counts(node: &Node, id: &str, acked: u64) -> Value {
    let path = format!("{MESSAGES}/{id}");
    let mut last = Value::Null;
    let are = poll_until(DEADLINE, async || {
        last = node.call(Method::GET, &path, None).await.body["counts"].clone();
        (last["receipts"]["acked"] == acked && last["passed"] == acked).then_some(())
    });
    assert!(are.await.is_some(), "{last}");
    last
}

/// Of how many of these registrations the trace of a message has each of the milestones.
async fn traced(node: &Node, id: &str, devices: &[Device], names: [&str; 4]) -> [usize; 4] {
    let mut found = [0; 4];
    for device in devices {
        let path = format!("{MESSAGES}/{id}/trace?regid={}", device.regid);
        let trace = node.call(Method::GET, &path, None).await.body;
        let milestones = trace["milestones"].as_array().expect("milestones");
        for (count, name) in found.iter_mut().zip(names) {
            *count += usize::from(milestones.iter().any(|one| one["name"] == name));
        }
    }
    found
}

#[tokio::test]
async fn x15_counts_and_traces_of_a_message_say_the_same() {
    let node = Node::start().await;
    let mut devices = Vec::new();
    for _ in 0..5 {
        let device = node.create_device().await;
        node.subscribe(&device.regid, "news").await;
        devices.push(device);
    }
    let mut clients: Vec<_> =
        devices[..3].iter().map(|device| rumqtt::connect_v5(&node, device, &["push"])).collect();
    for client in &mut clients {
        client.ready().await;
    }
    let message = json!({"target": {"topic": "news"}, "payload": 1, "receipts": true});
    let (status, sent) = post(&node, message).await;
    assert_eq!((status, &sent["target"]["matched"]), (202, &json!(5)), "{sent}");
    let id = sent["id"].as_str().expect("an id");
    let names = ["durable", "acked", "passed", "pending"];
    for here in 3..=5 {
        let counts = counts(&node, id, here as u64).await;
        assert_eq!((&counts["queues"], &counts["appended"]), (&json!(1), &json!(1)), "{counts}");
        assert_eq!((&counts["followers"], &counts["is_partial"]), (&json!(5), &json!(false)));
        assert_eq!(traced(&node, id, &devices, names).await, [5, here, here, 5 - here]);
        if let Some(next) = devices.get(here) {
            let mut client = rumqtt::connect_v5(&node, next, &["push"]);
            client.ready().await;
            clients.push(client);
        }
    }
    for client in clients {
        client.stop().await;
    }
}
