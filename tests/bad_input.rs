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
use reqwest::Method;
use serde_json::{Value, json};

/// Where the queues of the registration end.
async fn heads(api: &Api) -> Vec<Value> {
    let seen = api.node.registration(&api.device.regid).await;
    let pointers = seen["pointers"].as_array().expect("pointers");
    pointers.iter().map(|one| one["head"].clone()).collect()
}

const HOOK: &str = "https://app.example.org/hook";

fn in_days(days: i64) -> String {
    (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days)).to_string()
}

type Case = (Value, u16, &'static str);

/// Alone, in a batch, and with a key, which is then still free.
async fn refused(api: &mut Api, cases: &[Case]) {
    for (message, status, code) in cases {
        api.problem(SEND, Ask::send(message.clone()), *status, code, "").await;
        let batch = Ask::post("/v1/apps/demo/messages:batch", json!({"messages": [message]}));
        let fared = api.ask(BATCH, batch.keyed("key"), 200).await;
        let is = fared["accepted"] == 0 && fared["results"][0]["code"] == *code;
        api.want(is, || format!("{message} in a batch: {fared}"));
    }
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
    refused(&mut api, &cases).await;
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

#[tokio::test]
async fn options_out_of_their_bounds_have_their_codes_and_no_effect() {
    let mut api = Api::start().await;
    let before = heads(&api).await;
    let regid = api.device.regid.clone();
    let with = |field: &str, value: Value| {
        let mut message = json!({"target": {"regids": [regid]}, "payload": 1});
        message[field] = value;
        message
    };
    let broadcast = |field: &str, value: Value| {
        let mut message = json!({"target": {"all": true}, "payload": 1});
        message[field] = value;
        message
    };
    let hook = |url: &str| json!({"url": url, "events": ["acked"]});
    let cases = [
        (with("priority", json!("urgent")), 400, "invalid_request"),
        (with("priority", json!(1)), 400, "invalid_request"),
        (with("collapse_key", json!("")), 422, "out_of_bounds"),
        (with("collapse_key", json!("x".repeat(65))), 422, "out_of_bounds"),
        (with("collapse_key", json!(7)), 400, "invalid_request"),
        (with("send_at", json!("tomorrow")), 422, "out_of_bounds"),
        (with("send_at", json!("2020-01-01T00:00:00Z")), 422, "out_of_bounds"),
        (with("send_at", json!(in_days(31))), 422, "out_of_bounds"),
        (with("send_at", json!(1_700_000_000)), 400, "invalid_request"),
        (with("max_rate_per_s", json!(5)), 422, "out_of_bounds"),
        (broadcast("max_rate_per_s", json!(0)), 422, "out_of_bounds"),
        (broadcast("max_rate_per_s", json!(-1)), 422, "out_of_bounds"),
        (broadcast("max_rate_per_s", json!(1_u64 << 40)), 422, "out_of_bounds"),
        (broadcast("max_rate_per_s", json!("fast")), 400, "invalid_request"),
        (with("filter", json!({"shoe_size": ["43"]})), 400, "invalid_request"),
        (with("filter", json!({"locale": "de"})), 400, "invalid_request"),
        (with("filter", json!({"app_version": ["about 2"]})), 422, "out_of_bounds"),
        (with("filter", json!({"model": ["x".repeat(65)]})), 422, "out_of_bounds"),
        (with("filter", json!({"network": vec!["a"; 1_000]})), 422, "out_of_bounds"),
        (with("callback", json!({"url": HOOK})), 400, "invalid_request"),
        (with("callback", json!({"url": HOOK, "events": []})), 422, "out_of_bounds"),
        (with("callback", json!({"url": HOOK, "events": ["opened"]})), 400, "invalid_request"),
        (with("callback", hook("http://app.example.org/")), 422, "out_of_bounds"),
        (with("callback", hook("https://127.0.0.1/")), 422, "out_of_bounds"),
        (with("callback", hook("https://me:pw@app.example.org/")), 422, "out_of_bounds"),
        (with("callback", hook("not a url")), 422, "out_of_bounds"),
    ];
    refused(&mut api, &cases).await;
    let scheduled = api.node.call(Method::GET, "/v1/apps/demo/scheduled", None).await;
    assert_eq!(scheduled.body["scheduled"], json!([]), "{}", scheduled.body);
    assert!(api.failures.is_empty(), "{}", api.failures.join("\n"));
    assert_eq!(heads(&api).await, before, "something was sent");
}
