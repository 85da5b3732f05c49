//! `docs/API.md` is true: its blocks run as they stand, and traces tell what its table says.

mod support;

use std::{collections::BTreeMap, fs, process::Stdio, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use support::{APP, DEADLINE, Device, Node, poll_until, rumqtt, script};

const MESSAGES: &str = "/v1/apps/demo/messages";

fn document() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/API.md")).expect("the document")
}

/// All blocks of one language, one after the other.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let begins = text.split(&fence).skip(1);
    begins.map(|rest| rest.split("```").next().expect("a block").to_owned()).collect()
}

/// Runs the blocks of a document as an app server of this app; gives what they print.
async fn run(node: &Node, text: &str, secret: &str, regid: &str) -> String {
    let blocks = blocks(text, "sh");
    let mut command = tokio::process::Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", &blocks.concat()])
        .env("API", node.https_url())
        .env("CA", node.ca_file())
        .env("SECRET", secret)
        .env("REGID", regid)
        .stdin(Stdio::null());
    let output = script::output(command, Duration::from_secs(60)).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    said
}

#[tokio::test]
async fn the_blocks_about_collections_run_as_they_stand() {
    let node = Node::start().await;
    let made = node.cli(&["app", "create", "kept", "--alias-policy", "server"]).await;
    let made: Value = serde_json::from_str(&made).expect("an app's credentials");
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/SYNC.md")).unwrap();
    let said = run(&node, &text, made["app_secret"].as_str().unwrap(), "").await;
    for wanted in [
        r#"{"results":[{"outcome":"applied","seq":1},{"outcome":"applied","seq":2}]}"#,
        r#""value":{"done":true,"text":"milk"}"#,
        r#""kind":"delete""#,
    ] {
        assert!(said.contains(wanted), "no {wanted} in {said}");
    }
}

#[tokio::test]
async fn the_blocks_run_as_they_stand() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let mut client = rumqtt::connect_v5(&node, &device, &["push"]);
    client.ready().await;
    assert!(blocks(&document(), "sh").len() > 4, "the blocks are found");
    let said = run(&node, &document(), &node.app().app_secret, &device.regid).await;
    let accepted = said.lines().filter(|line| line.contains("\"state\":\"accepted\"")).count();
    assert!(accepted >= 9, "{said}");
    for wanted in ["\"state\":\"dry_run\"", "\"state\":\"recalled\"", "\"milestones\":["] {
        assert!(said.contains(wanted), "no {wanted} in {said}");
    }
    let first = client.message().await;
    assert_eq!(first.payload, r#"{"n":1}"#);
    client.stop().await;
}

/// A device that is away, and one that is here.
struct Scene {
    node: Node,
    away: Device,
    here: Device,
}

impl Scene {
    async fn send(&self, to: &Device, mut message: Value) -> String {
        let target = message.as_object_mut().expect("an object");
        target.entry("target").or_insert(json!({"regids": [to.regid]}));
        target.insert("payload".into(), json!(1));
        let sent = self.node.call(Method::POST, MESSAGES, Some(message)).await;
        assert_eq!(sent.status, 202, "{}", sent.body);
        sent.body["id"].as_str().expect("an id").to_owned()
    }

    /// The names of the milestones, once they are these.
    async fn trace(&self, id: &str, to: &Device, wanted: &[&str]) -> Value {
        let path = format!("{MESSAGES}/{id}/trace?regid={}", to.regid);
        let mut last = Value::Null;
        let is = async || {
            last = self.node.call(Method::GET, &path, None).await.body;
            let steps = last["milestones"].as_array().expect("milestones");
            steps
                .iter()
                .map(|step| step["name"].as_str().unwrap())
                .eq(wanted.iter().copied())
                .then_some(())
        };
        let found = poll_until(DEADLINE, is).await;
        assert!(found.is_some(), "{wanted:?} never became of {last:#}");
        last
    }
}

/// Names and fields of a trace, without what differs from run to run.
fn shape(trace: &Value) -> (Vec<String>, Vec<Value>) {
    let fields = trace.as_object().expect("an object").keys().cloned().collect();
    let milestone = |one: &Value| {
        let mut one = one.clone();
        for varies in ["at_ms", "position"] {
            if let Some(value) = one.get_mut(varies) {
                *value = json!(value.is_string());
            }
        }
        one
    };
    let milestones = trace["milestones"].as_array().expect("milestones");
    (fields, milestones.iter().map(milestone).collect())
}

/// The rows of the table: what happened, and the milestones.
fn rows(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let table = text.split("| what happened | milestones |").nth(1).expect("the table");
    table.lines().skip(2).take_while(|line| line.starts_with('|')).filter_map(row).collect()
}

fn row(line: &str) -> Option<(&str, Vec<&str>)> {
    let (what, steps) = line.trim_matches('|').split_once('|')?;
    Some((what.trim(), steps.split('`').filter(|step| !step.trim().is_empty()).collect()))
}

#[tokio::test]
async fn traces_tell_what_the_table_says() {
    let text = document();
    let mut rows = rows(&text);
    let node = Node::start().await;
    let (away, here) = (node.create_device().await, node.create_device().await);
    for device in [&away, &here] {
        node.subscribe(&device.regid, "news").await;
    }
    let mut client = rumqtt::connect_v5(&node, &here, &["push"]);
    client.ready().await;
    let scene = Scene { node, away, here };
    let (away, here) = (&scene.away, &scene.here);
    let mut row = |what: &str| rows.remove(what).unwrap_or_else(|| panic!("no row `{what}`"));

    let exact = scene.send(here, json!({"receipts": true})).await;
    let trace = scene.trace(&exact, here, &row("delivered, with `receipts`")).await;
    let written = blocks(&text, "json").into_iter().find(|block| block.contains("milestones"));
    let written: Value = serde_json::from_str(&written.expect("an example")).expect("JSON");
    assert_eq!(shape(&written), shape(&trace), "the example is what a gateway answers: {trace:#}");
    let plain = scene.send(here, json!({})).await;
    scene.trace(&plain, here, &row("delivered, without")).await;
    let waits = scene.send(away, json!({})).await;
    scene.trace(&waits, away, &row("the device is away")).await;
    let short = scene.send(away, json!({"ttl_s": 1})).await;
    scene.trace(&short, away, &row("its time was over first")).await;
    let old = scene.send(away, json!({"collapse_key": "k"})).await;
    scene.send(away, json!({"collapse_key": "k"})).await;
    scene.trace(&old, away, &row("a newer one has its `collapse_key`")).await;
    let german = scene.send(away, json!({"filter": {"locale": ["de"]}})).await;
    scene.trace(&german, away, &row("the device says something else of itself")).await;
    let condition = json!({"condition": "'news' in topics && !('news' in topics)"});
    let never = scene.send(away, json!({"target": condition})).await;
    scene.trace(&never, away, &row("the condition does not hold for it")).await;
    let back = scene.send(away, json!({})).await;
    let path = format!("{MESSAGES}/{back}");
    assert_eq!(scene.node.call(Method::DELETE, &path, None).await.status, 200);
    scene.trace(&back, away, &row("taken back before it went out")).await;
    let elsewhere = scene.send(away, json!({"target": {"topic": "sport"}})).await;
    scene.trace(&elsewhere, away, &row("it does not follow what it was sent to")).await;
    let path = format!("/v1/apps/{APP}/registrations/{}", away.regid);
    assert_eq!(scene.node.call(Method::DELETE, &path, None).await.status, 204);
    scene.trace(&waits, away, &row("the registration ended first")).await;
    assert!(rows.is_empty(), "nothing shows {rows:?}");
    client.stop().await;
}
