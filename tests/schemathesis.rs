//! Property-based tests of the API by schemathesis, from the document that the node serves:
//! no answer is a 5xx, none is undocumented, bodies and headers are as documented. What is there
//! is found: each operation succeeds, too.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;

use std::{collections::BTreeSet, fs, time::Duration};

use carillon_wire::{frame, idl};
use data_encoding::{BASE64, HEXLOWER};
use reqwest::Method;
use serde_json::{Value, json};
use support::{AppCredentials, Node, Options, script, tools};

/// Every answer is held against these.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance";
/// Longer than a loaded machine takes; the examples are bounded by their number.
const PATIENCE: Duration = Duration::from_secs(300);
/// Registrations that may be ended.
const SPARE: &str = "300";

#[tokio::test]
async fn whatever_the_document_allows_or_forbids_is_answered_as_documented() {
    // The devices of strangers are bounded by a minute: documented, and seen elsewhere. The
    // connection may rest while examples are made.
    let config = "[api]\ndevices_per_address_per_minute = 1000000\nhead_timeout_ms = 120000\n";
    let options = Options { config: Some(config.to_owned()), ..Options::default() };
    let node = Node::start_with(options).await;
    let known = known(&node).await;
    let seen = node.data().join("seen");
    let mut command = tokio::process::Command::new(tools::schemathesis());
    command
        .arg("run")
        .arg(format!("{}/openapi.json", node.https_url()))
        .arg("--tls-verify")
        .arg(node.ca_file())
        .args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing"])
        .args(["--generation-deterministic", "--max-examples", "20"])
        .args(["--no-color", "--continue-on-failure"])
        .args(["--workers", "1", "--request-timeout", "20", "--request-retries", "2"])
        .args(["--warnings", "off", "--suppress-health-check", "all"])
        .env("CARILLON_KNOWN", known.to_string())
        .env("CARILLON_SEEN", &seen)
        .env("SCHEMATHESIS_HOOKS", "schemathesis_hooks")
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign"))
        .current_dir(node.data());
    let output = script::output(command, PATIENCE).await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    let missing =
        never_succeeded(&node, &fs::read_to_string(seen).expect("what was answered")).await;
    assert!(missing.is_empty(), "these never succeeded: {missing:?}");
}

/// Who asks, and what there is.
async fn known(node: &Node) -> Value {
    // Aliases of this app have collections.
    let app = node.cli(&["app", "create", "kept", "--alias-policy", "server"]).await;
    let app: AppCredentials = serde_json::from_str(&app).expect("an app's credentials");
    let account = json!({"app_id": app.app_id, "app_key": app.app_key, "register": true});
    let device = made(node, Method::POST, "/v1/devices", account).await;
    let text = |field: &str| device[field].as_str().expect("text").to_owned();
    let (regid, basic) = (text("regid"), format!("{}:{}", text("device_id"), text("secret")));
    let of_app = format!("/v1/apps/{}", app.app_id);
    let registration = format!("{of_app}/registrations/{regid}");
    for binding in ["aliases/ann", "topics/news"] {
        made(node, Method::PUT, &format!("{registration}/{binding}"), Value::Null).await;
    }
    let collection = format!("{of_app}/collections/notes");
    made(node, Method::PUT, &collection, json!({"rule": "newest"})).await;
    let message = json!({"target": {"topic": "news"}, "payload": 1, "receipts": true});
    let message = made(node, Method::POST, &format!("{of_app}/messages"), message).await;
    let spare = node.cli(&["device", "create", "--app", "kept", "--count", SPARE]).await;
    let spare: Vec<&str> =
        spare.lines().skip(1).filter_map(|line| line.rsplit(',').next()).collect();
    let there = json!({
        "app": app.app_id, "regid": regid, "id": message["id"],
        "alias": "ann", "topic": "news", "collection": "notes",
    });
    json!({
        "bearer": format!("Bearer {}", app.app_secret),
        "basic": format!("Basic {}", BASE64.encode(basic.as_bytes())),
        "app_key": app.app_key,
        "frames": HEXLOWER.encode(&resume()),
        "there": there,
        "spare": spare,
    })
}

async fn made(node: &Node, method: Method, path: &str, body: Value) -> Value {
    let made = node.call(method, path, (!body.is_null()).then_some(body)).await;
    assert!(made.status.is_success(), "{path}: {}", made.body);
    made.body
}

/// A frame that resumes.
fn resume() -> Vec<u8> {
    let resume = Some(idl::Resume { digest: 0, dictionary: None });
    let (mut up, mut body) = (Vec::new(), Vec::new());
    frame::encode_up(&idl::Up { resume, ..frame::empty_up() }, &mut up).expect("it fits");
    frame::put_frame(&up, &mut body);
    body
}

/// The operations of the document without a 2xx among the answers.
async fn never_succeeded(node: &Node, seen: &str) -> Vec<String> {
    let url = format!("{}/openapi.json", node.https_url());
    let document = node.https_client().get(url).send().await.expect("the document");
    let document: Value = document.json().await.expect("JSON");
    let succeeded: BTreeSet<&str> = seen
        .lines()
        .filter_map(|line| line.strip_prefix('2')?.split_once(' '))
        .map(|of| of.1)
        .collect();
    println!("{} calls, {} operations succeeded", seen.lines().count(), succeeded.len());
    let paths = document["paths"].as_object().expect("paths");
    let operations = paths.iter().flat_map(|(path, methods)| {
        methods.as_object().expect("methods").keys().map(move |method| format!("{method} {path}"))
    });
    // The document was read just now.
    let others = operations.filter(|operation| operation != "get /openapi.json");
    others.filter(|operation| !succeeded.contains(operation.as_str())).collect()
}
