//! When messages go out and are taken, over HTTP.

use reqwest::Method;
use serde_json::json;

use crate::api::*;

pub async fn accept(api: &mut Api, registration: &str) {
    let path = format!("{registration}/accept");
    let put = |body| Ask { method: Method::PUT, ..Ask::post(&path, body) };
    let hours = |start: i64, end: i64, zone: &str| json!({"hours": {"start_minute": start, "end_minute": end, "zone": zone}});
    api.ask(ACCEPT, put(hours(1_320, 480, "Europe/Berlin")), 204).await;
    let seen = api.ask(REGISTRATION, Ask::get(registration), 200).await;
    assert_eq!(seen["accept"]["hours"]["zone"], "Europe/Berlin", "{seen}");
    api.ask(ACCEPT, put(json!({"paused": true})), 204).await;
    let seen = api.ask(REGISTRATION, Ask::get(registration), 200).await;
    assert_eq!(seen["accept"], json!({"paused": true, "open": false}), "{seen}");
    for (body, field) in [
        (hours(-1, 5, "UTC"), "hours.start_minute"),
        (hours(1, 1_440, "UTC"), "hours.end_minute"),
        (hours(5, 5, "UTC"), "hours.end_minute"),
        (hours(5, 6, "Berlin"), "hours.zone"),
    ] {
        api.problem(ACCEPT, put(body), 422, "out_of_bounds", field).await;
    }
    api.problem(ACCEPT, put(json!({"pause": true})), 400, "invalid_request", "pause").await;
    api.ask(ACCEPT_ALWAYS, Ask::new(Method::DELETE, &path), 204).await;
    let seen = api.ask(REGISTRATION, Ask::get(registration), 200).await;
    assert!(seen["accept"].is_null(), "{seen}");
}

pub async fn scheduled(api: &mut Api, regid: &str) {
    let in_an_hour = (jiff::Timestamp::now() + jiff::Span::new().hours(1)).to_string();
    let later = json!({"target": {"regids": [regid]}, "payload": 1, "send_at": in_an_hour});
    let sent = api.ask(SEND, Ask::send(later.clone()), 202).await;
    assert_eq!(sent["state"], "scheduled", "{sent}");
    let others = json!({"messages": [later, later]});
    let fared = api.ask(BATCH, Ask::post("/v1/apps/demo/messages:batch", others), 200).await;
    assert_eq!(fared["results"][0]["state"], "scheduled", "{fared}");
    let path = "/v1/apps/demo/scheduled?limit=2";
    let page = api.ask(SCHEDULED, Ask::get(path), 200).await;
    assert_eq!(page["scheduled"].as_array().map(Vec::len), Some(2), "{page}");
    let next = format!("{path}&after={}", page["next"].as_str().unwrap());
    let page = api.ask(SCHEDULED, Ask::get(&next), 200).await;
    assert_eq!(
        (page["scheduled"].as_array().map(Vec::len), &page["next"]),
        (Some(1), &json!(null))
    );
    let message = format!("/v1/apps/demo/messages/{}", sent["id"].as_str().unwrap());
    assert_eq!(api.ask(MESSAGE, Ask::get(&message), 200).await["state"], "scheduled");
    for _ in 0..2 {
        let taken = api.ask(TAKE_BACK, Ask::new(Method::DELETE, &message), 200).await;
        assert_eq!(taken["state"], "cancelled");
    }
    assert_eq!(api.ask(MESSAGE, Ask::get(&message), 200).await["state"], "cancelled");
    let trace = format!("{message}/trace?regid={regid}");
    assert_eq!(api.ask(TRACE, Ask::get(&trace), 200).await["milestones"][1]["name"], "cancelled");
    let broadcast = json!({"target": {"topic": "news"}, "payload": 1, "max_rate_per_s": 10});
    api.ask(SEND, Ask::send(broadcast), 202).await;
}
