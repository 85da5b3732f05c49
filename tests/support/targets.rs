//! Whom messages are for, over HTTP: conditions, filters, recalls, topics.

use reqwest::Method;
use serde_json::json;

use crate::api::*;

pub async fn succeed(api: &mut Api, registration: &str) {
    let attributes = json!({"app_version": "2.1", "locale": "de-AT"});
    api.ask(DESCRIBE, Ask::put(&format!("{registration}/attributes"), attributes.clone()), 204)
        .await;
    let seen = api.ask(REGISTRATION, Ask::get(registration), 200).await;
    assert_eq!(seen["attributes"], attributes);
    let whole = json!({
        "target": {"topic": "news"}, "payload": 1, "collapse_key": "k",
        "filter": {"app_version": [">=2", "<3"], "locale": ["de"], "model": [], "network": ["wifi"]},
    });
    let sent = api.ask(SEND, Ask::send(whole), 202).await;
    let message = format!("/v1/apps/demo/messages/{}", sent["id"].as_str().unwrap());
    for _ in 0..2 {
        let recalled = api.ask(TAKE_BACK, Ask::new(Method::DELETE, &message), 200).await;
        assert_eq!(recalled["state"], "recalled");
    }
    let dry = json!({"target": {"topic": "news"}, "payload": 1, "dry_run": true});
    let sent = api.ask(SEND, Ask::send(dry), 202).await;
    assert_eq!(sent["state"], "dry_run");
    let message = format!("/v1/apps/demo/messages/{}", sent["id"].as_str().unwrap());
    api.problem(MESSAGE, Ask::get(&message), 404, "not_found", "").await;
    let count = api.ask(TOPIC, Ask::get("/v1/apps/demo/topics/news"), 200).await;
    assert_eq!(count["members"], 1);
    let members = api.ask(MEMBERS, Ask::get("/v1/apps/demo/topics/news/members"), 200).await;
    assert_eq!((&members["members"][0], members.get("next")), (&json!(api.device.regid), None));
}

pub async fn out_of_bounds(api: &mut Api, registration: &str) {
    let ask = Ask::put(&format!("{registration}/attributes"), json!({"model": "m".repeat(65)}));
    api.problem(DESCRIBE, ask, 422, "out_of_bounds", "model").await;
    for (operation, path, field) in [
        (TOPIC, "sp%20ort", "topic"),
        (MEMBERS, "news/members?limit=0", "limit"),
        (MEMBERS, "news/members?limit=1001", "limit"),
        (MEMBERS, "news/members?after=x", "after"),
    ] {
        let ask = Ask::get(&format!("/v1/apps/demo/topics/{path}"));
        api.problem(operation, ask, 422, "out_of_bounds", field).await;
    }
}
