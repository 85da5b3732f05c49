//! Canaries: secrets and payloads are planted, everything is driven at the loudest log level, and
//! then everything that the node said is searched for them.
//!
//! Said: stdout, the log, `/metrics`, each refusal, the subcommands' errors, the last words of a crash.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use std::time::{SystemTime, UNIX_EPOCH};

use carillon::service::apps::alias_token;
use carillon_wire::idl::ResultCode;
use data_encoding::{BASE64, HEXLOWER};
use reqwest::Method;
use serde_json::{Value, json};
use support::{APP, Device, Node, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wirelab::{
    bytes::{
        Connect, PUBACK, Publish, VERSIONS, Version, Will, ack, auth_method, packet, subscribe,
        user_property,
    },
    frames::{self, Framed},
    lab::{create_app, send_numbers},
    transport::{self, Cut},
    wire::{Wire, device_connect},
};

use Version::V5;

/// A payload that nobody else says.
const PAYLOAD: &str = "canary4payload4kqzjxvw";
const TITLE: &str = "canary4title4mwpzyrtk";
const BODY: &str = "canary4body4hgbnvqpl";
const BINARY: &str = "canary4binary4sdfkjwe";
/// A wrong secret: somebody's right one elsewhere.
const WRONG: &str = "canary4wrong4plmoknijb";
const UPLINK: &str = "canary4uplink4zaqxswcd";
/// Who is called so is known by it.
const ALIAS: &str = "canary4alias4@example.org";

/// What must not be said, and what was said to the asker.
#[derive(Default)]
struct Canaries {
    secrets: Vec<(String, String)>,
    ids: Vec<String>,
    refusals: Vec<String>,
}

impl Canaries {
    fn new() -> Self {
        let planted = [PAYLOAD, TITLE, BODY, BINARY, WRONG, UPLINK];
        let secrets = planted.map(|text| (text.to_owned(), text.to_owned()));
        Self { secrets: secrets.into(), ids: vec![ALIAS.to_owned()], refusals: Vec::new() }
    }

    fn secret(&mut self, what: &str, text: &str) {
        self.secrets.push((what.to_owned(), text.to_owned()));
    }

    fn device(&mut self, device: &Device) {
        self.secret("device secret", &device.secret);
        self.ids.extend([device.device_id.clone(), device.regid.clone()]);
    }

    /// Where something that must not be said is said, in whatever form.
    fn hits(&self, place: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (what, secret) in &self.secrets {
            for form in forms(secret) {
                found.extend(text.lines().filter(|line| line.contains(&form)).map(|line| {
                    let line: String = line.chars().take(400).collect();
                    format!("{place}: {what}: {line}")
                }));
            }
        }
        found
    }

    /// Lines for operators that name somebody in full.
    fn names(&self, log: &str) -> Vec<String> {
        let is_loud = |line: &&str| {
            ["INFO", "WARN", "ERROR"].iter().any(|level| line.contains(level))
                && !["DEBUG", "TRACE"].iter().any(|level| line.contains(level))
        };
        let names = |line: &&str| self.ids.iter().any(|id| line.contains(id.as_str()));
        log.lines().filter(is_loud).filter(names).map(str::to_owned).collect()
    }
}

/// A text as logs may show it.
fn forms(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let list = bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    // What base64 makes of it depends on where it begins; a part in the middle is always there.
    let base64 =
        (0..3).map(|skip| BASE64.encode(&bytes[skip..skip + (bytes.len() - skip) / 3 * 3]));
    [text.to_owned(), HEXLOWER.encode(bytes), list].into_iter().chain(base64).collect()
}

/// Everything that was driven, and what was said.
struct Flight {
    node: Node,
    canaries: Canaries,
    device: Device,
}

impl Flight {
    async fn begin(format: &str) -> Self {
        let config = format!(
            "[log]\nfilter = \"trace\"\nformat = \"{format}\"\n\
             [api]\nbody_bytes_max = 65536\nhead_timeout_ms = 1000\n\
             [edge]\nhandshake_timeout_ms = 1000\n"
        );
        let node = Node::start_with(Options { config: Some(config), ..Options::default() }).await;
        let mut canaries = Canaries::new();
        let app = node.app().clone();
        canaries.secret("app key", &app.app_key);
        canaries.secret("app secret", &app.app_secret);
        canaries.secret("admin token", &node.admin().token);
        let device = node.create_device().await;
        canaries.device(&device);
        Self { node, canaries, device }
    }

    /// A call at the public door. What it refuses is kept.
    async fn ask(&mut self, method: Method, path: &str, bearer: &str, body: &str) -> Value {
        let url = format!("{}{path}", self.node.https_url());
        let request = self.node.https_client().request(method, url).bearer_auth(bearer);
        let request = request.header("content-type", "application/json").body(body.to_owned());
        // Who sends too much may hear the end before the answer.
        let Ok(answer) = request.send().await else { return Value::Null };
        let is_refused = !answer.status().is_success();
        let text = answer.text().await.unwrap_or_default();
        let body = serde_json::from_str(&text).unwrap_or_default();
        if is_refused {
            self.canaries.refusals.push(text);
        }
        body
    }

    /// Everything searched.
    async fn land(mut self) {
        let metrics = self.node.metrics().await;
        self.node.signal("TERM");
        assert!(self.node.wait_for_exit().await.success());
        let log = self.node.log();
        assert!(log.contains("TRACE"), "the log is at its loudest");
        let canaries = &self.canaries;
        let refusals = canaries.refusals.join("\n");
        assert!(canaries.refusals.len() > 15, "refusals were provoked");
        let mut hits = canaries.hits("log", &log);
        hits.extend(canaries.hits("metrics", &metrics));
        hits.extend(canaries.hits("refusal", &refusals));
        hits.extend(canaries.names(&metrics).iter().map(|line| format!("metrics: {line}")));
        hits.extend(canaries.names(&log).iter().map(|line| format!("name in full: {line}")));
        let count = hits.len();
        hits.truncate(20);
        assert!(hits.is_empty(), "{count} hits, the first:\n{}", hits.join("\n"));
        println!(
            "count: {} lines of log, {} secrets, 0 hits",
            log.lines().count(),
            canaries.secrets.len()
        );
    }
}

#[tokio::test]
async fn no_secret_and_no_payload_is_ever_said() {
    for format in ["text", "json"] {
        let mut flight = Flight::begin(format).await;
        calls(&mut flight).await;
        refused_calls(&mut flight).await;
        operators(&mut flight).await;
        plain(&mut flight).await;
        frames_of_all_kinds(&mut flight).await;
        garbage(&mut flight).await;
        flight.land().await;
    }
}

fn message(target: &Value) -> Value {
    json!({
        "target": target,
        "payload": {"text": PAYLOAD},
        "notification": {"title": TITLE, "body": BODY, "image": BODY},
    })
}

/// What an app server does all day.
async fn calls(flight: &mut Flight) {
    let secret = flight.node.app().app_secret.clone();
    let regid = flight.device.regid.clone();
    let registration = format!("/v1/apps/demo/registrations/{regid}");
    let alias = format!("{registration}/aliases/{ALIAS}");
    for (method, path) in [
        (Method::PUT, alias.clone()),
        (Method::PUT, format!("{registration}/topics/news")),
        (Method::GET, registration.clone()),
    ] {
        flight.ask(method, &path, &secret, "").await;
    }
    for target in [
        json!({"regids": [regid]}),
        json!({"aliases": [ALIAS]}),
        json!({"topic": "news"}),
        json!({"all": true}),
    ] {
        let body = message(&target).to_string();
        let sent = flight.ask(Method::POST, "/v1/apps/demo/messages", &secret, &body).await;
        let id = sent["id"].as_str().expect("an id").to_owned();
        flight.ask(Method::GET, &format!("/v1/apps/demo/messages/{id}"), &secret, "").await;
        let trace = format!("/v1/apps/demo/messages/{id}/trace?regid={regid}");
        flight.ask(Method::GET, &trace, &secret, "").await;
        flight.canaries.ids.push(id);
    }
    let binary = json!({"target": {"all": true}, "payload_b64": BASE64.encode(BINARY.as_bytes())});
    flight.ask(Method::POST, "/v1/apps/demo/messages", &secret, &binary.to_string()).await;
    flight.ask(Method::DELETE, &alias, &secret, "").await;
    let app_key = &flight.node.app().app_key;
    let body = json!({"app_id": APP, "app_key": app_key, "register": true}).to_string();
    let made = flight.ask(Method::POST, "/v1/devices", "", &body).await;
    flight.canaries.device(&serde_json::from_value(made).expect("a device"));
}

/// What is refused, with the canary where it hurts.
async fn refused_calls(flight: &mut Flight) {
    let secret = flight.node.app().app_secret.clone();
    let whole = message(&json!({"all": true})).to_string();
    let long = json!({"target": {"all": true}, "payload": PAYLOAD.repeat(300)}).to_string();
    let huge = json!({"target": {"all": true}, "payload": PAYLOAD.repeat(4_000)}).to_string();
    let bodies = [
        whole[..whole.len() - 10].to_owned(),
        format!("{whole}{PAYLOAD}"),
        format!("\"{PAYLOAD}\""),
        format!("[\"{PAYLOAD}\"]"),
        PAYLOAD.to_owned(),
        json!({"target": PAYLOAD, "payload": PAYLOAD}).to_string(),
        json!({"target": {"regids": [PAYLOAD, WRONG]}, "payload": PAYLOAD}).to_string(),
        json!({"target": {"all": PAYLOAD}, "payload": PAYLOAD}).to_string(),
        json!({"target": {"all": true}, "payload_b64": PAYLOAD}).to_string(),
        json!({"target": {"all": true}, "payload": PAYLOAD, "payload_b64": "eA=="}).to_string(),
        json!({"target": {"all": true}, "payload": PAYLOAD, "ttl_s": PAYLOAD}).to_string(),
        json!({"target": {"all": true}, "payload": PAYLOAD, "ttl_s": -1}).to_string(),
        json!({"target": {"all": true}, "payload": PAYLOAD, "notification": TITLE}).to_string(),
        json!({"target": {"all": true}, "payload": 1, "notification": {"title": [TITLE]}})
            .to_string(),
        json!({"target": {"all": true}, "payload": PAYLOAD, "nonsense": 1}).to_string(),
        long,
        huge,
    ];
    for body in bodies {
        flight.ask(Method::POST, "/v1/apps/demo/messages", &secret, &body).await;
    }
    for bearer in [WRONG, "", &flight.node.app().app_key.clone(), &flight.device.secret.clone()] {
        flight.ask(Method::POST, "/v1/apps/demo/messages", bearer, &whole).await;
        flight.ask(Method::GET, "/v1/apps/nobody/messages/x", bearer, "").await;
    }
    for body in [
        json!({"app_id": APP, "app_key": WRONG}),
        json!({"app_id": APP, "app_key": [WRONG]}),
        json!({"app_id": APP, "app_key": WRONG, "register": WRONG}),
    ] {
        flight.ask(Method::POST, "/v1/devices", WRONG, &body.to_string()).await;
    }
    for path in ["/v1/nothing", "/v1/apps/demo/messages/not-an-id", "/metrics", "/admin/v1/apps"] {
        flight.ask(Method::GET, path, &secret, "").await;
        flight.ask(Method::PATCH, path, &secret, PAYLOAD).await;
    }
}

/// The admin door and the subcommands, right and wrong.
async fn operators(flight: &mut Flight) {
    let app = create_app(&flight.node, "second").await;
    flight.canaries.secret("app key", &app.app_key);
    flight.canaries.secret("app secret", &app.app_secret);
    let rotated = flight.node.cli(&["app", "rotate-secret", "second"]).await;
    let rotated: Value = serde_json::from_str(&rotated).expect("a new secret");
    flight.canaries.secret("app secret", rotated["app_secret"].as_str().expect("a secret"));
    let csv = flight.node.cli(&["device", "create", "--app", "second", "--count", "3"]).await;
    for line in csv.lines().skip(1) {
        let words: Vec<&str> = line.split(',').collect();
        flight.canaries.secret("device secret", words[1]);
        flight.canaries.ids.extend([words[0].to_owned(), words[2].to_owned()]);
    }
    flight.node.cli(&["send", "--app", "second", "--all", &json!(PAYLOAD).to_string()]).await;
    let url = flight.node.admin().url.clone();
    let data = flight.node.data();
    let wrong: [&[&str]; 4] = [
        &["app", "list", "--url", &url, "--token", WRONG],
        &["send", "--app", "nobody", "--all", PAYLOAD],
        &["app", "create", "second"],
        &["device", "create", "--app", WRONG],
    ];
    for words in wrong {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_carillon"));
        command.args(words);
        if !words.contains(&"--url") {
            command.arg("--data").arg(&data);
        }
        let output = support::script::output(command, support::DEADLINE).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{words:?}");
        // Its own words may be repeated to who typed them, but for the token.
        if words.contains(&WRONG) && words[0] == "app" {
            assert!(!said.contains(WRONG), "{said}");
        }
    }
    for (path, token) in [("/admin/v1/apps", WRONG), ("/v1/apps/demo/messages/x", WRONG)] {
        let client = reqwest::Client::new();
        let answer = support::answer(client.get(format!("{url}{path}")).bearer_auth(token)).await;
        assert_eq!(answer.status, 401);
        flight.canaries.refusals.push(answer.body.to_string());
    }
}

/// Plain MQTT at each door.
async fn plain(flight: &mut Flight) {
    let device = flight.device.clone();
    for version in VERSIONS {
        for secret in [WRONG, "", &device.secret[..20]] {
            let connect = Connect::new(version, &device.device_id, secret);
            let (_, connack) = Wire::greet(flight.node.listen().mqtt, &connect).await;
            assert_ne!(connack.code, 0);
        }
        let will = Will { topic: b"t".to_vec(), payload: UPLINK.into(), ..Will::default() };
        let connect =
            Connect { will: Some(will), ..device_connect(&device, version) }.persistent(60);
        for door in 0..3 {
            let mut wire = match door {
                0 => Wire::open(flight.node.listen().mqtt, version).await,
                1 => Wire::over(transport::tls(&flight.node).await, version),
                _ => {
                    Wire::over(transport::websocket(&flight.node, Cut::Anywhere(3)).await, version)
                }
            };
            wire.send(connect.bytes()).await;
            assert_eq!(wire.connack().await.code, 0);
            let filters: [(&[u8], u8); 3] =
                [(b"topic/news", 1), (b"push", 1), (WRONG.as_bytes(), 1)];
            wire.send(subscribe(version, 9, &filters)).await;
            send_numbers(&flight.node, &device.regid, 0..2).await;
            let target = json!({"topic": "news"});
            let path = "/v1/apps/demo/messages";
            flight.node.call(Method::POST, path, Some(message(&target))).await;
            wire.settle().await;
            wire.send(ack(PUBACK, 1)).await;
            wire.send(Publish::new(version, UPLINK, UPLINK).qos(1, 1).bytes()).await;
            wire.settle_or_end().await;
        }
    }
    let method = device_connect(&device, V5).with(auth_method(WRONG));
    Wire::greet(flight.node.listen().mqtt, &method).await;
}

/// Frames, right and wrong.
async fn frames_of_all_kinds(flight: &mut Flight) {
    let node = &flight.node;
    let body = json!({"app_id": "signed", "alias_policy": "signed"});
    let made = node.call(Method::POST, "/admin/v1/apps", Some(body)).await.body;
    let text = |name: &str| made[name].as_str().expect("a text").to_owned();
    let (key, secret) = (text("app_key"), text("app_secret"));
    let device = node.create_device().await;
    let mut framed = Framed::connect(node, &device).await;
    let regid = framed.ask(frames::register("signed", &key)).await.regid.expect("a regid");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let token = alias_token(&secret, &regid, ALIAS, now + 60_000);
    let old = alias_token(&secret, &regid, ALIAS, now - 60_000);
    let mut codes = Vec::new();
    for up in [
        frames::bind(&regid, ALIAS, Some(&token)),
        frames::bind(&regid, ALIAS, Some(&old)),
        frames::bind(&regid, ALIAS, Some(WRONG)),
        frames::bind(&regid, ALIAS, None),
        frames::bind(WRONG, ALIAS, Some(&token)),
        frames::register("signed", WRONG),
        frames::register(WRONG, WRONG),
        frames::subscribe(&regid, &["no such name", UPLINK]),
        frames::unregister(WRONG),
        frames::unbind(&regid, ALIAS),
    ] {
        let result = framed.ask(up).await;
        codes.push(result.code);
        flight.canaries.refusals.push(result.message.unwrap_or_default());
    }
    assert_eq!((codes[0], codes[9]), (ResultCode::OK, ResultCode::OK));
    assert!(codes[1..9].iter().all(|code| *code != ResultCode::OK), "{codes:?}");
    for bytes in [UPLINK.as_bytes(), &[&[0x1C, 0x18][..], UPLINK.as_bytes()].concat()] {
        framed.say_bytes(bytes).await;
        let result = framed.result().await;
        flight.canaries.refusals.push(result.message.unwrap_or_default());
    }
    let message = message(&json!({"regids": [regid]}));
    node.call(Method::POST, "/v1/apps/signed/messages", Some(message)).await;
    assert_eq!(framed.messages(1).await.len(), 1);
    framed.wire.disconnect().await;
    for (what, text) in [("app key", &key), ("app secret", &secret), ("token", &token)] {
        flight.canaries.secret(what, text);
    }
    flight.canaries.secret("token", &old);
    flight.canaries.device(&device);
    flight.canaries.ids.push(regid);
}

/// What is no protocol at all, with canaries in it.
async fn garbage(flight: &mut Flight) {
    let device = &flight.device;
    let listen = *flight.node.listen();
    let good = device_connect(device, V5);
    let connect = good.clone().with(user_property(UPLINK, UPLINK));
    let broken = [
        packet(0x10, &[&connect.body()[..], UPLINK.as_bytes()].concat()),
        packet(0x10, UPLINK.as_bytes()),
        [&good.bytes()[..], &subscribe(V5, 1, &[(UPLINK.as_bytes(), 3)])].concat(),
        [&good.bytes()[..], UPLINK.as_bytes()].concat(),
        [&good.bytes()[..], &Publish::new(V5, "", UPLINK).bytes()].concat(),
        [UPLINK.as_bytes(), b"\r\n\r\n"].concat(),
        format!("GET /{WRONG} HTTP/1.1\r\nauthorization: Bearer {WRONG}\r\n\r\n").into_bytes(),
        format!("POST /v1/devices HTTP/1.1\r\ncontent-length: 100\r\n\r\n{WRONG}").into_bytes(),
    ];
    for address in [listen.mqtt, listen.mqtts, listen.ws, listen.https, listen.admin] {
        for bytes in &broken {
            let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said).await;
            let said = String::from_utf8_lossy(&said).into_owned();
            flight.canaries.refusals.push(said);
        }
    }
    for (path, protocol) in [(WRONG, "mqtt"), ("/mqtt", WRONG)] {
        let refused = transport::upgrade(listen.ws, &format!("/{path}"), Some(protocol)).await;
        flight.canaries.refusals.extend(refused.err());
    }
    let mut stream = transport::upgrade(listen.ws, "/mqtt", Some("mqtt")).await.expect("upgraded");
    let text = transport::frame(transport::TEXT, true, UPLINK.as_bytes());
    stream.write_all(&text).await.expect("it is there");
    let _ = stream.read(&mut [0; 100]).await;
}

#[tokio::test]
async fn a_crash_has_no_last_words_about_it() {
    for point in ["writer::before_sync", "shard::before_publish", "send::after_record"] {
        let mut options = Options { config: Some(LOUD.into()), ..Options::default() };
        let mut node = Node::start_with(options.clone()).await;
        let device = node.create_device().await;
        let mut canaries = Canaries::new();
        canaries.device(&device);
        canaries.secret("app secret", &node.app().app_secret);
        node.signal("TERM");
        node.wait_for_exit().await;
        options.env.push(("FAILPOINTS".into(), format!("{point}=1*off->return")));
        node.restart_with(options).await;
        canaries.secret("admin token", &node.admin().token);
        let path = "/v1/apps/demo/messages";
        let url = format!("{}{path}", node.admin().url);
        let body = message(&json!({"aliases": ["ann", "bob"]}));
        let client = reqwest::Client::new();
        for _ in 0..20 {
            let request = client.post(&url).bearer_auth(&node.admin().token).json(&body);
            if request.send().await.is_err() {
                break;
            }
        }
        assert!(!node.wait_for_exit().await.success(), "{point} was not reached");
        let log = node.log();
        assert!(log.contains(point), "{point} was reached");
        let mut hits = canaries.hits(point, &log);
        hits.extend(canaries.names(&log));
        assert!(hits.is_empty(), "{}", hits.join("\n"));
    }
}

const LOUD: &str = "[log]\nfilter = \"trace\"\n";
