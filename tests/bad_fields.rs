//! Each field of each request that the served document knows, of another type, out of its range,
//! missing or unknown: refused with a documented code, and nothing is done.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]
#![allow(dead_code, reason = "every test crate uses its own part of it")]

#[path = "support/api.rs"]
mod api;
#[path = "support/broken.rs"]
mod broken;
#[path = "support/openapi.rs"]
mod openapi;
mod support;

use api::*;
use reqwest::Method;
use serde_json::{Value, json};
use support::{AppCredentials, Node};

const KINDS: [&str; 4] = ["acked", "clicked", "expired", "invalid"];
const HOOK: &str = "https://app.example.org/hook";

/// Everything that a request could have changed.
async fn state(api: &Api) -> Vec<Value> {
    let registration = format!("registrations/{}", api.device.regid);
    let mut state = Vec::new();
    for path in [&registration, "scheduled", "topics/news", "topics/sport", "feedback/invalid"] {
        let answer = api.node.call(Method::GET, &format!("/v1/apps/demo/{path}"), None).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        state.push(answer.body);
    }
    for path in ["collections/notes", "aliases/ann/snapshot", "aliases/ann/changes"] {
        state.push(api.node.call(Method::GET, &format!("/v1/apps/kept/{path}"), None).await.body);
    }
    // How many registrations there are.
    let all = json!({"target": {"all": true}, "payload": 1, "dry_run": true});
    let all = api.node.call(Method::POST, "/v1/apps/demo/messages", Some(all)).await;
    state.push(all.body["target"].clone());
    state
}

/// Messages that between them have every field.
fn messages(regid: &str) -> Vec<Value> {
    let send_at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let whole = json!({
        "target": {"regids": [regid]}, "payload": {"n": 1}, "ttl_s": 60, "receipts": true,
        "notification": {"title": "t", "body": "b"}, "send_at": send_at.to_string(),
        "callback": {"url": HOOK, "events": KINDS}, "priority": "high", "dry_run": false,
        "filter": {
            "app_version": [">=2.1"], "locale": ["de"], "model": ["m"], "network": ["wifi"]
        },
        "collapse_key": "k",
    });
    let short = |target: Value| json!({"target": target, "payload_b64": "AP8="});
    let mut broadcast = short(json!({"topic": "news"}));
    broadcast["max_rate_per_s"] = json!(5);
    vec![
        whole,
        broadcast,
        short(json!({"aliases": ["ann"]})),
        short(json!({"condition": "'news' in topics"})),
        short(json!({"all": true})),
    ]
}

/// Bodies of every operation that takes one, with every field.
fn bodies(api: &Api, kept: &str) -> Vec<(&'static str, Ask, Value)> {
    let regid = &api.device.regid;
    let registration = format!("/v1/apps/demo/registrations/{regid}");
    let account = json!({"app_id": "demo", "app_key": api.app.app_key, "register": true});
    let hours = json!({"start_minute": 480, "end_minute": 1320, "zone": "Europe/Berlin"});
    let says = json!({"app_version": "2", "locale": "de", "model": "m", "network": "wifi"});
    let batch = json!({"messages": messages(regid)});
    let list = json!({"regids": [regid]});
    let item = json!({
        "collection": "notes", "key": "k", "value": {"n": 1}, "format": "json", "base": "1:0"
    });
    let ended = json!({"collection": "notes", "key": "k", "delete": true});
    let ask = |method: Method, path: &str| Ask::new(method, path);
    let (put, post) = (Method::PUT, Method::POST);
    let mut all = vec![
        (DEVICES, ask(post.clone(), "/v1/devices").nobody(), account),
        (BATCH, ask(post.clone(), "/v1/apps/demo/messages:batch"), batch),
        (
            ACCEPT,
            ask(put.clone(), &format!("{registration}/accept")),
            json!({"paused": false, "hours": hours}),
        ),
        (DESCRIBE, ask(put.clone(), &format!("{registration}/attributes")), says),
        (SUBSCRIBE, ask(post.clone(), "/v1/apps/demo/topics/sport:subscribe"), list.clone()),
        (UNSUBSCRIBE, ask(post.clone(), "/v1/apps/demo/topics/news:unsubscribe"), list),
        (
            DECLARE,
            ask(put, "/v1/apps/kept/collections/notes").bearing(kept),
            json!({"rule": "merge"}),
        ),
    ];
    for item in [item, ended] {
        let changes = ask(post.clone(), "/v1/apps/kept/aliases/ann/changes").bearing(kept);
        all.push((CHANGE, changes, json!({"changes": [item]})));
    }
    all.extend(
        messages(regid).into_iter().map(|m| (SEND, ask(post.clone(), "/v1/apps/demo/messages"), m)),
    );
    all
}

fn with_body(ask: &Ask, body: &Value) -> Ask {
    let content_type = "application/json".to_owned();
    Ask { body: Some(body.to_string().into_bytes()), content_type, ..ask.clone() }
}

/// What the document says of the body of an operation.
fn schema<'a>(document: &'a Value, operation: &str) -> &'a Value {
    let (method, path) = operation.split_once(' ').expect("method and path");
    &document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
}

/// An app whose aliases have collections, with one; its credential.
async fn kept(node: &Node) -> String {
    let made = node.cli(&["app", "create", "kept", "--alias-policy", "server"]).await;
    let app: AppCredentials = serde_json::from_str(&made).expect("an app's credentials");
    let path = "/v1/apps/kept/collections/notes";
    let declared = node.call(Method::PUT, path, Some(json!({"rule": "newest"}))).await;
    assert_eq!(declared.status, 200, "{}", declared.body);
    format!("Bearer {}", app.app_secret)
}

async fn scene() -> (Api, Value, String) {
    let api = Api::start_with("[api]\ndevices_per_address_per_minute = 1000000\n").await;
    api.node.bind(&api.device.regid, "ann").await;
    api.node.subscribe(&api.device.regid, "news").await;
    let kept = kept(&api.node).await;
    let url = format!("{}/openapi.json", api.node.https_url());
    let document = api.client.get(url).send().await.expect("an answer").json().await.expect("JSON");
    (api, document, kept)
}

#[tokio::test]
async fn each_field_that_is_wrong_has_a_documented_code_and_no_effect() {
    let (mut api, document, kept) = scene().await;
    let before = state(&api).await;
    let (mut count, mut refused) = (0, Vec::new());
    for (operation, ask, sample) in bodies(&api, &kept) {
        let broken = broken::all(&document, schema(&document, operation), &sample);
        assert!(broken.len() > 3, "{operation}: the schema is found");
        for (why, body) in broken {
            count += 1;
            if operation == SEND {
                refused.push(body.clone());
            }
            let (status, said) = api.any(operation, with_body(&ask, &body)).await;
            // A list that is bad in part does the good part; here there is none.
            let is_nothing = status == 200 && said["done"] == 0;
            let is = matches!(status, 400 | 403 | 404 | 413 | 422) || is_nothing;
            api.want(is, || format!("{operation} {why}: {status} {said}"));
        }
    }
    for messages in refused.chunks(500) {
        let batch = Ask::post("/v1/apps/demo/messages:batch", json!({"messages": messages}));
        let fared = api.ask(BATCH, batch, 200).await;
        let results = fared["results"].as_array().cloned().unwrap_or_default();
        let all = results.iter().all(|one| one["state"] == "refused" && one["code"].is_string());
        api.want(all && fared["accepted"] == 0, || format!("in a batch: {fared}"));
    }
    println!(
        "{count} requests with one fault each, {} messages of them in batches too",
        refused.len()
    );
    assert!(api.failures.is_empty(), "{}\n{}", api.failures.len(), api.failures.join("\n"));
    assert_eq!(state(&api).await, before, "something was done");
    // What they were made from is right.
    for (operation, ask, sample) in bodies(&api, &kept) {
        let (status, said) = api.any(operation, with_body(&ask, &sample)).await;
        assert!((200..300).contains(&status), "{operation} {sample}: {status} {said}");
    }
    assert!(api.failures.is_empty(), "{}", api.failures.join("\n"));
}

#[tokio::test]
async fn each_parameter_that_is_wrong_has_a_documented_code_and_no_effect() {
    let (mut api, document, kept) = scene().await;
    let before = state(&api).await;
    let mut count = 0;
    for (operation, ask) in api.one_of_each() {
        // Where the demo app may not, the other one may.
        let ask = match ask.path.contains("/collections/") || ask.path.contains("/aliases/a/") {
            true => Ask { path: ask.path.replace("/demo/", "/kept/"), ..ask.bearing(&kept) },
            false => ask,
        };
        let (method, path) = operation.split_once(' ').expect("method and path");
        let parameters = document["paths"][path][method]["parameters"].as_array();
        for parameter in parameters.into_iter().flatten() {
            let parameter = broken::resolve(&document, parameter);
            for (why, wrong) in wrong(&document, path, &ask, parameter) {
                count += 1;
                let (status, said) = api.any(operation, wrong.clone()).await;
                let is = matches!(status, 400 | 401 | 404 | 405 | 422);
                api.want(is, || format!("{wrong} {}{why}: {status} {said}", parameter["name"]));
            }
        }
    }
    println!("{count} requests with one wrong parameter each");
    assert!(count > 100, "the parameters are found");
    assert!(api.failures.is_empty(), "{}\n{}", api.failures.len(), api.failures.join("\n"));
    assert_eq!(state(&api).await, before, "something was done");
}

/// Requests in which this parameter is wrong.
fn wrong(document: &Value, template: &str, ask: &Ask, parameter: &Value) -> Vec<(String, Ask)> {
    let schema = broken::resolve(document, &parameter["schema"]);
    let name = parameter["name"].as_str().expect("a name");
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let all = broken::all(document, schema, &Value::Null).into_iter();
    // In a request everything is a text, and some texts look like numbers.
    let values = all.filter(|(_, value)| schema["type"] != "string" || value.is_string());
    let mut wrong: Vec<(String, Ask)> = Vec::new();
    for (why, value) in values.map(|(why, value)| (why, text(&value))) {
        let mut ask = ask.clone();
        match parameter["in"].as_str().expect("a place") {
            // An empty segment is another path.
            "path" if value.is_empty() => continue,
            "path" => ask.path = replaced(template, &ask.path, name, &escaped(&value)),
            "query" => {
                let path = ask.path.split('?').next().expect("a path");
                ask.path = format!("{path}?{name}={}", escaped(&value));
            }
            "header" if value.is_ascii() => ask.key = Some(value),
            "header" => continue,
            other => panic!("a parameter in the {other}"),
        }
        wrong.push((why, ask));
    }
    if parameter["in"] == "query" {
        let join = if ask.path.contains('?') { '&' } else { '?' };
        let path = format!("{}{join}unheard_of=1", ask.path);
        wrong.push((": an unknown one beside it".to_owned(), Ask { path, ..ask.clone() }));
        if parameter["required"] == true {
            let path = ask.path.split('?').next().expect("a path").to_owned();
            wrong.push((": missing".to_owned(), Ask { path, ..ask.clone() }));
        }
    }
    if name == "Idempotency-Key" {
        for key in ["a b".to_owned(), "k".repeat(256)] {
            wrong.push((": no key".to_owned(), ask.clone().keyed(&key)));
        }
    }
    wrong
}

/// The path with another value in the place of `{name}` of the template.
fn replaced(template: &str, path: &str, name: &str, value: &str) -> String {
    let hole = format!("{{{name}}}");
    let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
    let parts = template.split('/').zip(path.split('/'));
    let parts: Vec<String> = parts
        .map(|(of, is)| if of.contains(&hole) { of.replace(&hole, value) } else { is.to_owned() })
        .collect();
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    parts.join("/") + &query
}

fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' => char::from(byte).to_string(),
            _ => format!("%{byte:02x}"),
        })
        .collect()
}
