//! What operators see: Debian's Prometheus scrapes a node under a small load, every
//! panel of the dashboard shows something, and every alert rule can fire.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use support::{Device, Node, client::Client, poll_until, rumqtt, tools};
use tempfile::TempDir;

/// Until a panel has something to show: some scrapes and the load's first rounds.
const PANEL_DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn promtool_accepts_the_configuration_and_the_rules() {
    for words in [["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"]] {
        promtool(&words);
    }
}

#[test]
fn alerts_fire_when_they_must_and_only_then() {
    promtool(&["test", "rules", "alerts.test.yml"]);
}

#[tokio::test]
async fn every_panel_shows_something_and_every_rule_can_fire() {
    let node = Node::start().await;
    let prometheus = Prometheus::start(&node).await;
    let watching = async {
        prometheus.wait_for_scrapes(3).await;
        let mut dark = Vec::new();
        for (panel, expression) in expressions() {
            if !prometheus.shows_something(&expression).await {
                dark.push(format!("{panel}: {expression}"));
            }
        }
        assert!(dark.is_empty(), "panels that show nothing:\n{}", dark.join("\n"));
        rules_are_sound(&prometheus).await;
    };
    tokio::select! {
        () = watching => {}
        () = load(&node) => unreachable!("the load does not end"),
    }
}

async fn rules_are_sound(prometheus: &Prometheus) {
    let found = prometheus.get("/api/v1/rules", &[]).await;
    let groups = found["groups"].as_array().expect("groups");
    let rules: Vec<&Value> =
        groups.iter().flat_map(|group| group["rules"].as_array().expect("rules")).collect();
    assert!(rules.len() >= 10, "the rules were loaded");
    for rule in rules {
        let (name, query) = (&rule["name"], rule["query"].as_str().expect("a query"));
        assert_eq!(rule["health"], "ok", "{name}: {}", rule["lastError"]);
        assert_ne!(rule["state"], "firing", "{name} fires on a healthy node: {}", rule["alerts"]);
        for text in ["summary", "description", "runbook"] {
            assert!(rule["annotations"][text].is_string(), "{name} has no {text}");
        }
        assert!(
            ["page", "ticket"].map(Value::from).contains(&rule["labels"]["severity"]),
            "{name}"
        );
        let selectors = selectors(query);
        assert!(!selectors.is_empty(), "{name} looks at nothing of ours: {query}");
        for selector in selectors {
            let count = prometheus.query(&format!("count({selector})")).await;
            assert!(!count.is_empty(), "{name}: there is no such series: {selector}");
        }
    }
}

/// A small load that moves every metric: devices that come, follow, receive,
/// acknowledge and go, in frames and plain, and app servers that send.
async fn load(node: &Node) {
    let (plain, frames) = (node.create_device().await, node.create_device().await);
    node.bind(&plain.regid, "ann").await;
    node.subscribe(&plain.regid, "news").await;
    let https = node.https_client();
    loop {
        let mut device = rumqtt::connect_v5(node, &plain, &["push"]);
        device.ready().await;
        let frames_device = rumqtt::exchange_frames(node, &frames, &UP_FRAMES);
        for target in [
            json!({"regids": [plain.regid]}),
            json!({"aliases": ["ann"]}),
            json!({"topic": "news"}),
            json!({"all": true}),
        ] {
            send(node, &https, target).await;
        }
        device.messages(4).await;
        leave(node, &plain, device).await;
        leave(node, &frames, frames_device).await;
    }
}

/// Frames from docs/PROTOCOL.md: a resume, positions of a foreign registration, a subscription of one.
const UP_FRAMES: [&[u8]; 3] = [
    b"\x2c\x16\x00\x00\x00",
    b"\x3c\x19\x1c\x18\x02\x72\x31\x19\x0c\x00\x00\x00",
    b"\x16\x02\x7c\x18\x02\x72\x31\x19\x18\x04\x6e\x65\x77\x73\x00\x00",
];

async fn send(node: &Node, https: &reqwest::Client, target: Value) {
    let url = format!("{}/v1/apps/{}/messages", node.https_url(), support::APP);
    let body = json!({"target": target, "payload": {"hello": "world"}});
    let sent = https.post(url).bearer_auth(&node.app().app_secret).json(&body).send().await;
    assert_eq!(sent.expect("an answer").status(), 202);
}

async fn leave(node: &Node, device: &Device, client: Client) {
    client.stop().await;
    node.wait_until_online(&device.regid, false).await;
}

/// Each panel's title with each of its expressions, as Grafana would ask it.
fn expressions() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut expressions = Vec::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("an expression");
            let asked = expression.replace("$__rate_interval", "15s").replace("$instance", ".*");
            assert!(!asked.contains('$'), "{title}: an unknown variable in {expression}");
            expressions.push((title.to_owned(), asked));
        }
    }
    assert!(expressions.len() > 30, "the panels were found");
    expressions
}

fn dashboard() -> Value {
    let text = fs::read_to_string(grafana().join("dashboards/carillon.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn no_panel_lies_on_another() {
    let dashboard = dashboard();
    let mut cells = BTreeMap::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let of = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        for x in of("x")..of("x") + of("w") {
            for y in of("y")..of("y") + of("h") {
                let other = cells.insert((x, y), &panel["title"]);
                assert_eq!(other, None, "{} is there too", panel["title"]);
            }
        }
    }
}

/// The selectors of our metrics in a query, with their label matchers.
fn selectors(query: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for (at, _) in query.match_indices("carillon_").chain(query.match_indices("up{")) {
        if query[..at].ends_with(is_name) {
            continue;
        }
        let rest = &query[at..];
        let name_ends = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let ends = match rest[name_ends..].starts_with('{') {
            true => name_ends + rest[name_ends..].find('}').expect("a closing brace") + 1,
            false => name_ends,
        };
        found.insert(rest[..ends].to_owned());
    }
    found
}

#[test]
fn selectors_are_found_with_their_matchers() {
    let query = r#"rate(carillon_a_total{x!="y"}[5m]) > 0 and carillon_b offset 5m < xcarillon_c"#;
    let found: Vec<_> = selectors(query).into_iter().collect();
    assert_eq!(found, [r#"carillon_a_total{x!="y"}"#, "carillon_b"]);
}

fn grafana() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana")
}

fn promtool(words: &[&str]) {
    let mut command = Command::new(tools::program("promtool"));
    let output = command.args(words).current_dir(grafana()).output().expect("promtool starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {words:?}:\n{said}");
}

/// A Prometheus of its own on a free port, with the shipped configuration made quick.
struct Prometheus {
    child: Child,
    http: reqwest::Client,
    url: String,
    _folder: TempDir,
}

impl Prometheus {
    async fn start(node: &Node) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        fs::write(&config, configuration(node)).unwrap();
        fs::copy(grafana().join("alerts.yml"), folder.path().join("alerts.yml")).unwrap();
        let log = folder.path().join("log");
        let child = Command::new(tools::program("prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .expect("prometheus starts");
        let http = node.https_client();
        let mut started = Self { child, http, url: String::new(), _folder: folder };
        let address = poll_until(PANEL_DEADLINE, async || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let (_, address) = said.split_once(r#"msg="Listening on" address="#)?;
            let (address, _) = address.split_once('\n')?;
            said.contains("ready to receive web requests").then(|| address.to_owned())
        });
        let Some(address) = address.await else {
            panic!("prometheus did not start:\n{}", fs::read_to_string(&log).unwrap_or_default());
        };
        started.url = format!("http://{address}");
        started
    }

    async fn wait_for_scrapes(&self, count: u32) {
        let query = format!(r#"count_over_time((up{{job="carillon"}} == 1)[1m:1s]) >= {count}"#);
        let scraped = async || (!self.query(&query).await.is_empty()).then_some(());
        let done = poll_until(PANEL_DEADLINE, scraped).await;
        assert!(done.is_some(), "no {count} scrapes in {PANEL_DEADLINE:?}");
    }

    /// Whether an expression gives at least one number before the deadline.
    async fn shows_something(&self, expression: &str) -> bool {
        let shows = async || {
            let values = self.query(expression).await;
            values.iter().any(|value| !value.is_nan()).then_some(())
        };
        poll_until(PANEL_DEADLINE, shows).await.is_some()
    }

    async fn query(&self, expression: &str) -> Vec<f64> {
        let found = self.get("/api/v1/query", &[("query", expression)]).await;
        let series = found["result"].as_array().expect("a vector");
        let value =
            |one: &Value| one["value"][1].as_str().expect("a value").parse().expect("a number");
        series.iter().map(value).collect()
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let url = format!("{}{path}", self.url);
        let url = reqwest::Url::parse_with_params(&url, query).expect("a URL");
        let answer = support::answer(self.http.get(url)).await;
        assert_eq!(answer.body["status"], "success", "{query:?}: {}", answer.body);
        answer.body["data"].clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The shipped configuration with this node as its target, and every second instead of every 15.
fn configuration(node: &Node) -> String {
    let shipped = fs::read_to_string(grafana().join("prometheus.yml")).unwrap();
    let admin = node.listen().admin.to_string();
    [("127.0.0.1:9464", admin.as_str()), ("_interval: 15s", "_interval: 1s")].into_iter().fold(
        shipped,
        |text, (from, to)| {
            assert!(text.contains(from), "no {from} in prometheus.yml");
            text.replace(from, to)
        },
    )
}
