//! Bad input to the send API has its documented code and no effect: no queue grows.
//! Every documented status is provoked in `api_live`.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]
#![allow(dead_code, reason = "every test crate uses its own part of it")]

#[path = "support/api.rs"]
mod api;
#[path = "support/openapi.rs"]
mod openapi;
mod support;

use api::*;
use serde_json::{Value, json};

/// Where the queues of the registration end.
async fn heads(api: &Api) -> Vec<Value> {
    let seen = api.node.registration(&api.device.regid).await;
    let pointers = seen["pointers"].as_array().expect("pointers");
    pointers.iter().map(|one| one["head"].clone()).collect()
}

#[tokio::test]
async fn bad_input_has_its_code_and_no_effect() {
    let mut api = Api::start().await;
    api.node.bind(&api.device.regid, "ann").await;
    api.node.subscribe(&api.device.regid, "news").await;
    let theirs = api.registration_of_the_other_app().await;
    let revoked = api.bearer.clone();
    let before = heads(&api).await;
    let to = |target: Value| json!({"target": target, "payload": 1});
    let own = json!({"regids": [api.device.regid]});
    let with = |field: &str, value: Value| {
        let mut message = json!({"target": own, "payload": 1});
        message[field] = value;
        message
    };
    let cases = [
        (to(json!({"regids": []})), 422, "out_of_bounds"),
        (to(json!({"regids": vec!["a"; 1_001]})), 422, "out_of_bounds"),
        (to(json!({"regids": "one"})), 400, "invalid_request"),
        (to(json!({"regids": ["a".repeat(32)]})), 404, "not_found"),
        (to(json!({"regids": [theirs]})), 404, "not_found"),
        (to(json!({"aliases": ["", "ann"]})), 422, "out_of_bounds"),
        (to(json!({"topic": "#"})), 422, "out_of_bounds"),
        (to(json!({"all": false})), 422, "out_of_bounds"),
        (to(json!({"topic": "news", "all": true})), 400, "invalid_request"),
        (to(json!({"everybody": true})), 400, "invalid_request"),
        (with("ttl_s", json!(0)), 422, "out_of_bounds"),
        (with("ttl_s", json!(-1)), 422, "out_of_bounds"),
        (with("ttl_s", json!(1_u64 << 60)), 422, "out_of_bounds"),
        (with("ttl_s", json!("soon")), 400, "invalid_request"),
        (with("payload", json!("x".repeat(5_000))), 422, "out_of_bounds"),
        (with("payload_b64", json!("AP8=")), 400, "invalid_request"),
        (with("notification", json!({"title": 5})), 400, "invalid_request"),
        (with("notification", json!({"title": "x".repeat(5_000)})), 422, "out_of_bounds"),
        (with("urgency", json!("high")), 400, "invalid_request"),
    ];
    for (message, status, code) in &cases {
        api.problem(SEND, Ask::send(message.clone()), *status, code, "").await;
        // The same in a batch, and with a key, which is then still free.
        let batch = Ask::post("/v1/apps/demo/messages:batch", json!({"messages": [message]}));
        let fared = api.ask(BATCH, batch.keyed("key"), 200).await;
        let is = fared["accepted"] == 0 && fared["results"][0]["code"] == *code;
        api.want(is, || format!("{message} in a batch: {fared}"));
    }
    for text in
        [&b"\xff\xfe"[..], b"{\"target\":{\"topic\":\"\xc3\x28\"},\"payload\":1}", b"{", b""]
    {
        let ask = Ask::post_bytes("/v1/apps/demo/messages", text);
        api.problem(SEND, ask, 400, "invalid_request", "").await;
    }
    api.node.cli(&["app", "rotate-secret", "demo", "--revoke-older"]).await;
    let ask = Ask::send(to(json!({"all": true}))).bearing(&revoked);
    api.problem(SEND, ask, 401, "unauthorized", "").await;
    assert!(api.failures.is_empty(), "{}", api.failures.join("\n"));
    assert_eq!(heads(&api).await, before, "something was sent");
}
