//! Collections over HTTP: an app whose aliases are safe, and the demo app, whose are not.

use reqwest::Method;
use serde_json::json;

use crate::api::*;

const COLLECTION: &str = "/v1/apps/kept/collections/notes";
const CHANGES: &str = "/v1/apps/kept/aliases/ann%20%C3%A9/changes";
const SNAPSHOT: &str = "/v1/apps/kept/aliases/ann%20%C3%A9/snapshot";

/// The calls as an app makes them, each with its refusals.
pub async fn all(api: &mut Api) {
    let made = api.node.cli(&["app", "create", "kept", "--alias-policy", "server"]).await;
    let app: crate::support::AppCredentials = serde_json::from_str(&made).unwrap();
    let bearer = format!("Bearer {}", app.app_secret);
    let as_app = |ask: Ask| ask.bearing(&bearer);
    policy(api).await;
    declare(api, &as_app).await;
    change(api, &as_app).await;
    read(api, &as_app).await;
    refused(api, &as_app).await;
    let end = as_app(Ask::new(Method::DELETE, COLLECTION));
    api.ask(END, end.clone(), 204).await;
    api.problem(END, end, 404, "not_found", "collection").await;
    let late = as_app(Ask::post(CHANGES, json!({"changes": [note("a", json!({"value": 1}))]})));
    api.problem(CHANGE, late, 404, "not_found", "changes[0]: no such collection").await;
}

fn note(key: &str, more: serde_json::Value) -> serde_json::Value {
    let mut note = json!({"collection": "notes", "key": key});
    note.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    note
}

/// Any device may bind the aliases of the demo app.
async fn policy(api: &mut Api) {
    let change = json!({"changes": [note("a", json!({"value": 1}))]});
    for (operation, ask) in [
        (DECLARE, Ask::put("/v1/apps/demo/collections/notes", json!({"rule": "newest"}))),
        (DECLARED, Ask::get("/v1/apps/demo/collections/notes")),
        (CHANGE, Ask::post("/v1/apps/demo/aliases/ann/changes", change)),
        (LIST_CHANGES, Ask::get("/v1/apps/demo/aliases/ann/changes")),
        (SHOW_SNAPSHOT, Ask::get("/v1/apps/demo/aliases/ann/snapshot")),
    ] {
        api.problem(operation, ask, 403, "collections_need_policy", "alias policy").await;
    }
}

async fn declare(api: &mut Api, as_app: &impl Fn(Ask) -> Ask) {
    api.problem(DECLARED, as_app(Ask::get(COLLECTION)), 404, "not_found", "collection").await;
    for rule in ["newest", "merge"] {
        let declared =
            api.ask(DECLARE, as_app(Ask::put(COLLECTION, json!({"rule": rule}))), 200).await;
        assert_eq!(declared, json!({"name": "notes", "rule": rule}));
        assert_eq!(api.ask(DECLARED, as_app(Ask::get(COLLECTION)), 200).await, declared);
    }
    let other = json!({"rule": "loudest"});
    api.problem(DECLARE, as_app(Ask::put(COLLECTION, other)), 400, "invalid_request", "").await;
    let long = format!("/v1/apps/kept/collections/{}", "n".repeat(65));
    for (operation, ask) in [
        (DECLARE, Ask::put(&long, json!({"rule": "merge"}))),
        (DECLARED, Ask::get(&long)),
        (END, Ask::new(Method::DELETE, &long)),
    ] {
        api.problem(operation, as_app(ask), 422, "out_of_bounds", "collection").await;
    }
}

async fn change(api: &mut Api, as_app: &impl Fn(Ask) -> Ask) {
    let changes = json!({"changes": [
        note("a", json!({"value": {"text": "milk"}})),
        note("b", json!({"value": {"text": "bread", "n": null}})),
        note("b", json!({"delete": true})),
        note("a", json!({"value": {"done": true}, "base": "1:0"})),
        note("c", json!({"value": [1, 2]})),
        note("d", json!({"value": "CgAA", "format": "thrift"})),
    ]});
    let ask = as_app(Ask::post(CHANGES, changes)).keyed("first");
    let told = api.ask(CHANGE, ask.clone(), 200).await;
    let results = told["results"].as_array().unwrap();
    let words: Vec<_> = results.iter().map(|one| one["outcome"].as_str().unwrap()).collect();
    // Their maker knew of all of them: one party.
    assert_eq!(words, ["applied", "merged", "applied", "merged", "invalid", "invalid"], "{told}");
    assert_eq!((&results[0]["seq"], &results[3]["seq"]), (&json!(1), &json!(4)));
    assert!(results[4]["detail"].as_str().unwrap().contains("JSON object"), "{told}");
    assert_eq!(api.ask(CHANGE, ask.clone(), 200).await, told, "the answer of the first time");
    let other = Ask { body: Some(br#"{"changes":[]}"#.to_vec()), ..ask };
    api.problem(CHANGE, other, 422, "out_of_bounds", "changes").await;
    let (mut is_told_to_wait, elsewhere) = (false, "/v1/apps/kept/aliases/bob/changes");
    for turn in 0..200 {
        let one = json!({"changes": [note("b", json!({"delete": true}))]});
        let ask = as_app(Ask::post(elsewhere, one)).keyed(&format!("both-{turn}"));
        let both = futures_util::future::join(api.request(ask.clone()), api.request(ask.clone()));
        for answer in <[_; 2]>::from(both.await) {
            let (status, _) = api.check_response(CHANGE, &ask.to_string(), answer).await;
            is_told_to_wait |= status == 409;
        }
        if is_told_to_wait {
            break;
        }
    }
    api.want(is_told_to_wait, || "no call with a key waited for another".into());
}

async fn read(api: &mut Api, as_app: &impl Fn(Ask) -> Ask) {
    let page = api.ask(LIST_CHANGES, as_app(Ask::get(CHANGES)), 200).await;
    assert_eq!((&page["since"], &page["is_more"]), (&json!(4), &json!(false)), "{page}");
    let changes = page["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 1, "`b` came and went: {page}");
    assert_eq!(changes[0]["value"], json!({"text": "milk", "done": true}), "{page}");
    let path = format!("{CHANGES}?epoch={}&since=2&limit=1", page["epoch"]);
    let first = api.ask(LIST_CHANGES, as_app(Ask::get(&path)), 200).await;
    assert_eq!((&first["changes"][0]["kind"], &first["is_more"]), (&json!("delete"), &json!(true)));
    for gone in ["epoch=1&since=5", "epoch=7&since=4"] {
        let ask = as_app(Ask::get(&format!("{CHANGES}?{gone}")));
        api.problem(LIST_CHANGES, ask, 410, "position_gone", "snapshot").await;
    }
    let one = json!({"changes": [note("e", json!({"value": {}}))]});
    api.ask(CHANGE, as_app(Ask::post(CHANGES, one)), 200).await;
    let whole = api.ask(SHOW_SNAPSHOT, as_app(Ask::get(SNAPSHOT)), 200).await;
    assert_eq!(whole["items"].as_array().map(Vec::len), Some(2), "{whole}");
    assert_eq!((&whole["since"], whole.get("next")), (&json!(5), None));
    let mut path = format!("{SNAPSHOT}?limit=1");
    let mut items = Vec::new();
    loop {
        let page = api.ask(SHOW_SNAPSHOT, as_app(Ask::get(&path)), 200).await;
        items.extend(page["items"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        path = format!("{SNAPSHOT}?limit=1&after={next}");
    }
    assert_eq!(json!(items), whole["items"]);
}

async fn refused(api: &mut Api, as_app: &impl Fn(Ask) -> Ask) {
    for (change, status, code, words) in [
        (note("", json!({"value": 1})), 422, "out_of_bounds", "key"),
        (note("a\u{7}", json!({"value": 1})), 422, "out_of_bounds", "key"),
        (note(&"k".repeat(257), json!({"value": 1})), 422, "out_of_bounds", "key"),
        (
            note("a", json!({"value": 1, "collection": "no/tes"})),
            422,
            "out_of_bounds",
            "collection",
        ),
        (note("a", json!({"value": 1, "base": "1"})), 422, "out_of_bounds", "base"),
        (note("a", json!({"value": 1, "base": "1:-1"})), 422, "out_of_bounds", "base"),
        (note("a", json!({"value": "=", "format": "thrift"})), 422, "out_of_bounds", "value"),
        (note("a", json!({"delete": true, "format": "json"})), 422, "out_of_bounds", "format"),
        (note("a", json!({"value": 1, "delete": true})), 400, "invalid_request", "exactly one"),
        (note("a", json!({})), 400, "invalid_request", "exactly one"),
        (note("a", json!({"value": 1, "format": "xml"})), 400, "invalid_request", "xml"),
        (note("a", json!({"valeu": 1})), 400, "invalid_request", "valeu"),
        (note("a", json!({"value": 1, "collection": "other"})), 404, "not_found", "collection"),
    ] {
        let good = note("good", json!({"value": {}}));
        let ask = as_app(Ask::post(CHANGES, json!({"changes": [good, change]})));
        api.problem(CHANGE, ask, status, code, words).await;
    }
    let many = json!({"changes": vec![note("a", json!({"delete": true})); 1_001]});
    api.problem(CHANGE, as_app(Ask::post(CHANGES, many)), 422, "out_of_bounds", "changes").await;
    let nobody = format!("/v1/apps/kept/aliases/{}", "a".repeat(129));
    let one = json!({"changes": [note("a", json!({"delete": true}))]});
    for (operation, ask, field) in [
        (CHANGE, Ask::post(&format!("{nobody}/changes"), one), "alias"),
        (LIST_CHANGES, Ask::get(&format!("{nobody}/changes")), "alias"),
        (LIST_CHANGES, Ask::get(&format!("{CHANGES}?since=3")), "epoch"),
        (LIST_CHANGES, Ask::get(&format!("{CHANGES}?limit=0")), "limit"),
        (SHOW_SNAPSHOT, Ask::get(&format!("{nobody}/snapshot")), "alias"),
        (SHOW_SNAPSHOT, Ask::get(&format!("{SNAPSHOT}?limit=1001")), "limit"),
        (SHOW_SNAPSHOT, Ask::get(&format!("{SNAPSHOT}?after=x")), "after"),
    ] {
        api.problem(operation, as_app(ask), 422, "out_of_bounds", field).await;
    }
    let whole = api.ask(SHOW_SNAPSHOT, as_app(Ask::get(SNAPSHOT)), 200).await;
    assert_eq!(whole["items"].as_array().map(Vec::len), Some(2), "nothing happened: {whole}");
    for (operation, path) in [
        (LIST_CHANGES, format!("{CHANGES}?since=x")),
        (SHOW_SNAPSHOT, format!("{SNAPSHOT}?sinse=1")),
    ] {
        api.problem(operation, as_app(Ask::get(&path)), 400, "invalid_request", "").await;
    }
}
