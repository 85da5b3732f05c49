//! What an app may send: rates, quotas of the day, and that one app's excess is not another's.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};
use support::{APP, AppCredentials, DEADLINE, Node, Options, poll_until, rumqtt};

async fn start(allowance: &str) -> Node {
    let config = format!("[limits.allowance]\n{allowance}");
    Node::start_with(Options { config: Some(config), ..Options::default() }).await
}

/// An app server of one app.
struct Sender {
    client: reqwest::Client,
    url: String,
    secret: String,
}

impl Sender {
    fn new(node: &Node, app: &AppCredentials) -> Self {
        let url = format!("{}/v1/apps/{}/messages", node.https_url(), app.app_id);
        Self { client: node.https_client(), url, secret: app.app_secret.clone() }
    }

    async fn send(&self, target: &Value) -> (u16, HeaderMap, Value) {
        self.send_payload(target, 1).await
    }

    async fn send_payload(
        &self,
        target: &Value,
        payload: impl Into<Value>,
    ) -> (u16, HeaderMap, Value) {
        let body = json!({"target": target, "payload": payload.into()});
        let request = self.client.post(&self.url).bearer_auth(&self.secret).json(&body);
        let answer = request.send().await.expect("an answer");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        (status, headers, answer.json().await.expect("JSON"))
    }

    /// What is left of a bound, asked without using anything of it.
    async fn left(&self, name: &str) -> u64 {
        let body = json!({"target": {"all": true}, "payload": 1, "dry_run": true});
        let request = self.client.post(&self.url).bearer_auth(&self.secret).json(&body);
        left(request.send().await.expect("an answer").headers(), name).expect("such a bound")
    }

    async fn until_left(&self, name: &str, wanted: u64) {
        let is_left = async || (self.left(name).await == wanted).then_some(());
        assert!(poll_until(DEADLINE, is_left).await.is_some(), "{} left", self.left(name).await);
    }
}

/// What is left of a bound, by the answer.
fn left(headers: &HeaderMap, name: &str) -> Option<u64> {
    let text = headers.get("ratelimit")?.to_str().ok()?;
    let one = text.split(", ").find_map(|one| one.strip_prefix(&format!("\"{name}\";r=")))?;
    one.split(';').next()?.parse().ok()
}

fn retry_after(headers: &HeaderMap) -> u64 {
    headers["retry-after"].to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn x11_a_bound_of_the_day_survives_a_restart_and_says_what_is_left() {
    let mut node = start("targets_per_day = 5\nbroadcasts_per_day = 2\n").await;
    let device = node.create_device().await;
    let app = node.app().clone();
    let one = json!({"regids": [device.regid]});
    let three = json!({"regids": [device.regid, "a".repeat(32), "b".repeat(32)]});
    let sender = Sender::new(&node, &app);
    let (status, headers, _) = sender.send(&one).await;
    assert_eq!((status, left(&headers, "targets-day")), (202, Some(4)));
    let policy = headers["ratelimit-policy"].to_str().unwrap();
    assert!(policy.contains("\"targets-day\";q=5;w=86400"), "{policy}");
    // What is refused for another reason is not counted.
    let (status, headers, _) = sender.send(&json!({"regids": ["c".repeat(32)]})).await;
    assert_eq!((status, left(&headers, "targets-day")), (404, Some(4)));
    assert_eq!(sender.send(&three).await.0, 202);
    assert_eq!(sender.send(&json!({"topic": "t"})).await.0, 202);
    // An orderly end writes what is written lazily.
    assert!(node.terminate().await.success());
    node.restart().await;
    let sender = Sender::new(&node, &app);
    let (status, headers, problem) = sender.send(&three).await;
    assert_eq!((status, &problem["code"]), (429, &json!("quota_exceeded")), "{problem}");
    assert_eq!(left(&headers, "targets-day"), Some(1));
    assert!((1..=86_400).contains(&retry_after(&headers)));
    assert_eq!(sender.send(&one).await.0, 202, "what fits is taken");
    assert_eq!(sender.send(&one).await.0, 429);
    // Broadcasts have a quota of their own, and so has every app.
    let (status, headers, _) = sender.send(&json!({"all": true})).await;
    assert_eq!((status, left(&headers, "broadcasts-day")), (202, Some(0)));
    assert_eq!(sender.send(&json!({"all": true})).await.0, 429);
    let other = node.create_app("other").await;
    assert_eq!(Sender::new(&node, &other).send(&json!({"all": true})).await.0, 202);
}

#[tokio::test]
async fn x11_a_quota_refuses_by_what_was_delivered_and_what_was_accepted_is_delivered() {
    let node = start("deliveries_per_day = 4\nbroadcast_deliveries_per_day = 1\n").await;
    let device = node.create_device().await;
    node.bind(&device.regid, "ann").await;
    let sender = Sender::new(&node, node.app());
    let (one, all) = (json!({"regids": [device.regid]}), json!({"all": true}));
    for _ in 0..5 {
        let (status, headers, _) = sender.send(&one).await;
        assert_eq!(
            (status, left(&headers, "deliveries-day")),
            (202, Some(4)),
            "none was delivered"
        );
    }
    assert_eq!(sender.send(&json!({"aliases": ["ann"]})).await.0, 202);
    let mut client = rumqtt::connect_v5(&node, &device, &["push"]);
    client.ready().await;
    client.messages(6).await;
    sender.until_left("deliveries-day", 0).await;
    for target in [&one, &json!({"aliases": ["ann"]})] {
        let (status, headers, problem) = sender.send(target).await;
        assert_eq!((status, &problem["code"]), (429, &json!("quota_exceeded")), "{problem}");
        assert!(headers["ratelimit-policy"].to_str().unwrap().contains("\"deliveries-day\";q=4"));
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let to_midnight = 86_400 - now_s % 86_400;
        assert!(retry_after(&headers).abs_diff(to_midnight) <= 60, "midnight, UTC");
    }
    // Broadcasts have a quota of their own, in which every device counts.
    assert_eq!(sender.send(&all).await.0, 202);
    client.message().await;
    sender.until_left("broadcast-deliveries-day", 0).await;
    let (status, _, problem) = sender.send(&all).await;
    assert_eq!((status, &problem["code"]), (429, &json!("quota_exceeded")), "{problem}");
    let other = node.create_app("other").await;
    assert_eq!(Sender::new(&node, &other).send(&all).await.0, 202, "another app has its own");
    client.stop().await;
}

#[tokio::test]
async fn deliveries_are_counted_once_whatever_kills_lead_to_redelivery() {
    let mut node = start("deliveries_per_day = 1000\n").await;
    let device = node.create_device().await;
    let mut sent = 0;
    for round in 1..=4 {
        let sender = Sender::new(&node, node.app());
        let mut client = rumqtt::connect_v5(&node, &device, &["push"]);
        client.ready().await;
        for _ in 0..10 {
            assert_eq!(sender.send(&json!({"regids": [device.regid]})).await.0, 202);
        }
        sent += 10;
        client.messages(round * 2).await;
        let counted = 1_000 - sender.left("deliveries-day").await;
        assert!(counted <= sent, "{counted} of {sent}");
        node.kill9();
        drop(client);
        node.restart().await;
        let sender = Sender::new(&node, node.app());
        let after = 1_000 - sender.left("deliveries-day").await;
        assert!((counted..=sent).contains(&after), "{counted}, then {after} of {sent}");
    }
    let mut client = rumqtt::connect_v5(&node, &device, &["push"]);
    client.ready().await;
    let sender = Sender::new(&node, node.app());
    sender.until_left("deliveries-day", 1_000 - sent).await;
    client.stop().await;
    assert!(node.terminate().await.success());
    node.restart().await;
    let sender = Sender::new(&node, node.app());
    assert_eq!(sender.left("deliveries-day").await, 1_000 - sent);
}

#[tokio::test]
async fn x11_a_rate_refuses_and_says_when() {
    let node = start("targets_per_s = 1\ntargets_burst = 3\nbroadcasts_per_s = 0\n").await;
    let device = node.create_device().await;
    let sender = Sender::new(&node, node.app());
    let one = json!({"regids": [device.regid]});
    let all = join_all((0..20).map(|_| sender.send(&one))).await;
    let refused: Vec<_> = all.iter().filter(|(status, ..)| *status == 429).collect();
    assert!(refused.len() >= 10, "{} of 20", refused.len());
    for (_, headers, problem) in refused {
        assert_eq!(problem["code"], "rate_limited");
        assert!((1..=3).contains(&retry_after(headers)));
    }
    let all = json!({"all": true});
    let broadcasts = join_all((0..20).map(|_| sender.send(&all))).await;
    assert!(broadcasts.iter().all(|(status, ..)| *status == 202), "no bound");
    assert!(broadcasts.iter().all(|(_, headers, _)| left(headers, "broadcasts").is_none()));
}

#[tokio::test]
async fn one_app_has_bounds_of_its_own_and_a_reload_changes_them() {
    let common = "[limits.allowance]\ntargets_per_s = 0\nbroadcasts_per_s = 0\n";
    let own = "[limits.apps.own]
targets_per_s = 1
targets_burst = 7
targets_per_day = 70
deliveries_per_day = 71
broadcasts_per_s = 2
broadcasts_burst = 9
broadcasts_per_day = 90
broadcast_deliveries_per_day = 91
payload_bytes_max = 3
";
    let config = Some(format!("{common}{own}"));
    let node = Node::start_with(Options { config, ..Options::default() }).await;
    let (own, other) = (node.create_app("own").await, node.create_app("other").await);
    let (own, other) = (Sender::new(&node, &own), Sender::new(&node, &other));
    let all = json!({"all": true});
    let (status, headers, _) = own.send(&all).await;
    assert_eq!(status, 202);
    let policy = "\"targets\";q=7;w=7, \"deliveries-day\";q=71;w=86400, \
        \"targets-day\";q=70;w=86400, \"broadcasts\";q=9;w=5, \
        \"broadcast-deliveries-day\";q=91;w=86400, \"broadcasts-day\";q=90;w=86400";
    assert_eq!(headers["ratelimit-policy"], policy);
    assert_eq!(own.send_payload(&all, "12").await.0, 422, "\"12\" has four bytes");
    let (status, headers, _) = other.send(&all).await;
    assert_eq!((status, left(&headers, "targets")), (202, None));
    assert_eq!(other.send_payload(&all, "12").await.0, 202);

    let file = node.data().parent().unwrap().join("carillon.toml");
    let now =
        "[limits.apps.own]\nbroadcasts_per_day = 2\n[limits.apps.other]\nbroadcasts_per_day = 0\n";
    std::fs::write(&file, format!("{common}{now}")).unwrap();
    assert!(node.cli(&["reload"]).await.contains("limits.apps"));
    assert_eq!(own.send_payload(&all, "12").await.0, 202, "as every other app again");
    let (status, headers, problem) = own.send(&all).await;
    assert_eq!((status, &problem["code"]), (429, &json!("quota_exceeded")), "the third of two");
    assert_eq!(left(&headers, "broadcasts-day"), Some(0));
    let (status, headers, _) = other.send(&all).await;
    assert_eq!((status, left(&headers, "broadcasts-day")), (202, None), "no bound");

    std::fs::write(&file, format!("{common}[limits.apps.own]\npayload_bytes_max = 0\n")).unwrap();
    let refused = node.call(Method::POST, "/admin/v1/reload", None).await;
    let said = refused.body.to_string();
    assert!(said.contains("carillon.toml:5: limits.apps.own.payload_bytes_max: 1 to"), "{said}");
    assert_eq!(own.send(&all).await.0, 429, "what was refused changes nothing");
}

#[tokio::test]
async fn x8_a_partly_bad_list_sends_the_good_ones_and_names_the_bad() {
    let node = Node::start().await;
    let other = node.create_app("other").await;
    let sender = Sender::new(&node, node.app());
    let mut regids: Vec<String> = Vec::new();
    let made = node.cli(&["device", "create", "--app", APP, "--count", "998"]).await;
    regids.extend(made.lines().skip(1).map(|row| row.rsplit(',').next().unwrap().to_owned()));
    let foreign = node.cli(&["device", "create", "--app", "other"]).await;
    let foreign = foreign.lines().nth(1).unwrap().rsplit(',').next().unwrap().to_owned();
    regids.extend([foreign.clone(), "nonsense".into()]);
    let (status, _, body) = sender.send(&json!({"regids": regids})).await;
    assert_eq!((status, &body["target"]["matched"]), (202, &json!(998)));
    assert_eq!(body["invalid"], json!([foreign, "nonsense"]));
    regids.push("one too many".into());
    assert_eq!(sender.send(&json!({"regids": regids})).await.0, 422);
    // The other app saw nothing of it.
    let theirs = Sender::new(&node, &other).send(&json!({"regids": [foreign]})).await;
    assert_eq!(theirs.0, 202);
}

#[tokio::test]
async fn the_slowest_sends_are_shown_without_their_payloads() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let id = node.send(json!({"regids": [device.regid]}), json!("secret-payload")).await;
    let shown = node.call(Method::GET, "/admin/v1/slow", None).await;
    let slowest = shown.body["slowest"].as_array().unwrap();
    let one = slowest.iter().find(|one| one["id"] == id.as_str()).expect("the only send");
    assert_eq!(
        (&one["app"], &one["kind"], &one["matched"]),
        (&json!(APP), &json!("regids"), &json!(1))
    );
    assert!(one["durable_us"].as_u64().unwrap() > 0);
    assert!(!shown.body.to_string().contains("secret-payload"));
}

/// A8: tenant A sends at ten times its rate; tenant B notices nothing. Prints the times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_over_its_quota_does_not_harm_another() {
    let node = start("targets_per_s = 200\ntargets_burst = 200\n").await;
    let (a, b) = (node.create_app("a").await, node.create_app("b").await);
    let mut regids = Vec::new();
    for app in ["a", "b"] {
        let made = node.cli(&["device", "create", "--app", app]).await;
        regids.push(made.lines().nth(1).unwrap().rsplit(',').next().unwrap().to_owned());
    }
    let (to_a, to_b) = (json!({"regids": [regids[0]]}), json!({"regids": [regids[1]]}));
    let (greedy, modest) = (Sender::new(&node, &a), Sender::new(&node, &b));
    let alone = measure(&modest, &to_b).await;
    let (is_over, sent, refused) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let flood = async {
        // Two thousand a second, in steps of twenty.
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while !is_over.load(Ordering::Relaxed) {
            tick.tick().await;
            for (status, ..) in join_all((0..20).map(|_| greedy.send(&to_a))).await {
                let count = if status == 202 { &sent } else { &refused };
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let measured = async {
        let beside = measure(&modest, &to_b).await;
        is_over.store(true, Ordering::Relaxed);
        beside
    };
    let (beside, ()) = tokio::join!(measured, flood);
    let (sent, refused) = (sent.into_inner(), refused.into_inner());
    println!(
        "tenant B alone: p50 {:?}, p99 {:?}; beside A ({sent} sent, {refused} refused): p50 {:?}, p99 {:?}, {} of {COUNT} accepted",
        alone.p50, alone.p99, beside.p50, beside.p99, beside.accepted
    );
    assert_eq!((alone.accepted, beside.accepted), (COUNT, COUNT));
    assert!(refused > 0, "A was not over its rate: {sent} sent");
}

struct Measured {
    accepted: usize,
    p50: Duration,
    p99: Duration,
}

const COUNT: usize = 300;

/// Sends one after the other at a hundred a second.
async fn measure(sender: &Sender, target: &Value) -> Measured {
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let (mut accepted, mut times) = (0, Vec::with_capacity(COUNT));
    for _ in 0..COUNT {
        tick.tick().await;
        let since = Instant::now();
        accepted += usize::from(sender.send(target).await.0 == 202);
        times.push(since.elapsed());
    }
    times.sort_unstable();
    Measured { accepted, p50: times[COUNT / 2], p99: times[COUNT * 99 / 100] }
}
