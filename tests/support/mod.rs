//! A real node for integration tests: the built binary on free ports and a
//! directory of its own, with the calls of an app server and of an operator.
//!
//! `Node::start().await` is ready to use; dropping it ends the process and
//! removes its directory. A failed test prints the end of the node's log.
#![allow(dead_code, reason = "every test crate uses its own part of it")]
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

pub mod client;
pub mod dialogue;
pub mod postgres;
pub mod rumqtt;
pub mod script;
pub mod sync;
pub mod takeover;
pub mod tools;
pub mod wait;

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Once,
    time::{Duration, Instant},
};

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

/// The app that every node has.
pub const APP: &str = "demo";

/// Longer than anything that a node does; for waits that end with an event.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How a node is started; `Options::default()` is a plain one.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Further arguments of `carillon serve`.
    pub args: Vec<String>,
    /// Environment variables, like `FAILPOINTS`.
    pub env: Vec<(String, String)>,
    /// A command that starts the node in its own process, like `strace -D -f -o FILE`:
    /// the process that it is started as must become the node.
    pub wrapper: Vec<String>,
    /// The text of a config file.
    pub config: Option<String>,
}

/// A running (or ended) node.
pub struct Node {
    options: Options,
    home: tempfile::TempDir,
    child: Option<Child>,
    admin: Admin,
    app: AppCredentials,
    http: reqwest::Client,
}

/// `<data>/admin.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Admin {
    /// The admin port.
    pub url: String,
    /// The operator's bearer.
    pub token: String,
    /// Where the node listens.
    pub listen: Listen,
}

/// The addresses of a node.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Listen {
    pub mqtt: SocketAddr,
    pub mqtts: SocketAddr,
    pub ws: SocketAddr,
    pub https: SocketAddr,
    pub admin: SocketAddr,
}

/// `<data>/demo-app.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct AppCredentials {
    pub app_id: String,
    pub app_key: String,
    pub app_secret: String,
}

/// A device account with its first registration.
#[derive(Clone, Debug, Deserialize)]
pub struct Device {
    pub device_id: String,
    pub secret: String,
    pub regid: String,
}

/// An answer of the API.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

impl Node {
    /// Starts a node and waits until it is ready.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// Starts a node with arguments, environment or a wrapper.
    pub async fn start_with(options: Options) -> Self {
        Self::start_at(tempfile::tempdir().expect("a temporary directory"), options).await
    }

    /// Starts a node over the directory of another one, which has ended.
    pub async fn start_at(home: tempfile::TempDir, options: Options) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let listen = Listen { mqtt: free, mqtts: free, ws: free, https: free, admin: free };
        let mut node = Self {
            options,
            home,
            child: None,
            admin: Admin { url: String::new(), token: String::new(), listen },
            app: AppCredentials {
                app_id: String::new(),
                app_key: String::new(),
                app_secret: String::new(),
            },
            http: http_client(None),
        };
        node.run().await;
        node
    }

    /// Starts the ended node again, on the same directory and the same ports.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "the node still runs");
        self.run().await;
    }

    /// Starts the ended node again with other options.
    pub async fn restart_with(&mut self, options: Options) {
        self.options = options;
        self.restart().await;
    }

    /// Starts the process without waiting: for nodes that are expected to end by themselves.
    pub fn spawn(&mut self) {
        let _ = fs::remove_file(self.data().join("admin.json"));
        self.child = Some(self.command().spawn().expect("the node's binary starts"));
    }

    /// Ends the process as a crash does.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a process of ours");
            child.wait().expect("a process of ours");
        }
    }

    /// Asks the process to end, waits for it and gives its exit status.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_for_exit().await
    }

    /// Waits until the process has ended by itself.
    pub async fn wait_for_exit(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running node");
        let ended = poll_until(DEADLINE, async || child.try_wait().expect("a process of ours"));
        match ended.await {
            Some(status) => status,
            None => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the node did not end in {DEADLINE:?}");
            }
        }
    }

    /// Sends the process a signal by its name, like `TERM` or `STOP`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(sent.expect("kill is there").success(), "SIG{name} could not be sent");
    }

    /// The id of the node's process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running node").id()
    }

    /// Whether the process is there.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("ours").is_none())
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The certificate that signs the node's own.
    pub fn ca_file(&self) -> PathBuf {
        self.data().join("tls/ca.pem")
    }

    /// What the node has logged so far, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// Where the node listens.
    pub fn listen(&self) -> &Listen {
        &self.admin.listen
    }

    /// The admin port and the operator's token.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// The demo app.
    pub fn app(&self) -> &AppCredentials {
        &self.app
    }

    /// The API as app servers see it.
    pub fn https_url(&self) -> String {
        format!("https://{}", self.admin.listen.https)
    }

    /// A client that trusts the node's certificate.
    pub fn https_client(&self) -> reqwest::Client {
        let pem = fs::read(self.ca_file()).expect("the node's CA");
        http_client(Some(reqwest::Certificate::from_pem(&pem).expect("a PEM certificate")))
    }

    /// A call of the operator's, over the admin port.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let request = self
            .http
            .request(method, format!("{}{path}", self.admin.url))
            .bearer_auth(&self.admin.token);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        answer(request).await
    }

    /// Creates another app; its devices may bind aliases by themselves.
    pub async fn create_app(&self, app: &str) -> AppCredentials {
        let made = self.cli(&["app", "create", app]).await;
        serde_json::from_str(&made).expect("an app's credentials")
    }

    /// Runs a subcommand of the binary against this node and gives what it prints.
    pub async fn cli(&self, words: &[&str]) -> String {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_carillon"));
        command.args(words).arg("--data").arg(self.data());
        let output = script::output(command, DEADLINE).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "carillon {words:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Creates a device with a registration of the demo app.
    pub async fn create_device(&self) -> Device {
        let key = &self.app.app_key;
        let body = json!({"app_id": APP, "app_key": key, "register": true});
        let made = self.call(Method::POST, "/v1/devices", Some(body)).await;
        assert_eq!(made.status, 201, "{}", made.body);
        serde_json::from_value(made.body).expect("a device")
    }

    /// Sends a payload and gives the message's id; it is durable then.
    pub async fn send(&self, target: Value, payload: Value) -> String {
        self.send_for(APP, target, payload).await
    }

    /// Sends a payload for another app.
    pub async fn send_for(&self, app: &str, target: Value, payload: Value) -> String {
        let body = json!({"target": target, "payload": payload, "ttl_s": 3600});
        let path = format!("/v1/apps/{app}/messages");
        let sent = self.call(Method::POST, &path, Some(body)).await;
        assert_eq!(sent.status, 202, "{}", sent.body);
        sent.body["id"].as_str().expect("an id").to_owned()
    }

    /// Binds an alias to a registration.
    pub async fn bind(&self, regid: &str, alias: &str) {
        self.change(Method::PUT, regid, "aliases", alias).await;
    }

    /// Unbinds an alias.
    pub async fn unbind(&self, regid: &str, alias: &str) {
        self.change(Method::DELETE, regid, "aliases", alias).await;
    }

    /// Subscribes a registration to a topic.
    pub async fn subscribe(&self, regid: &str, topic: &str) {
        self.change(Method::PUT, regid, "topics", topic).await;
    }

    /// Ends a subscription.
    pub async fn unsubscribe(&self, regid: &str, topic: &str) {
        self.change(Method::DELETE, regid, "topics", topic).await;
    }

    /// A registration of the demo app as its app sees it.
    pub async fn registration(&self, regid: &str) -> Value {
        self.registration_for(APP, regid).await
    }

    /// A registration of another app.
    pub async fn registration_for(&self, app: &str, regid: &str) -> Value {
        let path = format!("/v1/apps/{app}/registrations/{regid}");
        let view = self.call(Method::GET, &path, None).await;
        assert_eq!(view.status, 200, "{}", view.body);
        view.body
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        let url = format!("{}/metrics", self.admin.url);
        let got = self.http.get(url).bearer_auth(&self.admin.token).send().await;
        got.and_then(reqwest::Response::error_for_status).expect("/metrics").text().await.unwrap()
    }

    /// What `/metrics` has under this name with its labels; 0 if it is not there.
    pub async fn counter(&self, name: &str) -> u64 {
        let metrics = self.metrics().await;
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    async fn change(&self, method: Method, regid: &str, kind: &str, name: &str) {
        let path = format!("/v1/apps/{APP}/registrations/{regid}/{kind}/{name}");
        let done = self.call(method, &path, None).await;
        assert_eq!(done.status, 204, "{}", done.body);
    }

    async fn run(&mut self) {
        self.spawn();
        self.wait_until_ready("").await;
    }

    /// Waits until the process serves, with another token than the one `before`.
    async fn wait_until_ready(&mut self, before: &str) {
        let data = self.data();
        let mut child = self.child.take().expect("just started");
        let started = poll_until(DEADLINE, async || {
            if let Some(status) = child.try_wait().expect("a process of ours") {
                return Some(Err(status));
            }
            let admin: Admin = read_json(&data.join("admin.json"))?;
            if admin.token == before {
                return None;
            }
            let ready = self.http.get(format!("{}/readyz", admin.url)).send().await.ok()?;
            ready.status().is_success().then_some(Ok(admin))
        })
        .await;
        self.child = Some(child);
        match started {
            Some(Ok(admin)) => self.admin = admin,
            Some(Err(status)) => {
                self.child = None;
                panic!("the node ended at its start: {status}\n{}", self.log());
            }
            None => panic!("the node was not ready in {DEADLINE:?}\n{}", self.log()),
        }
        self.app = read_json(&data.join("demo-app.json")).expect("demo-app.json");
    }

    fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_carillon").to_owned();
        let mut words = self.options.wrapper.iter().cloned().chain([binary]);
        let mut command = Command::new(words.next().expect("the binary at least"));
        command.args(words).arg("serve").arg("--data").arg(self.data());
        if let Some(text) = &self.options.config {
            let file = self.home.path().join("carillon.toml");
            fs::write(&file, text).expect("the config file");
            command.arg("--config").arg(file);
        }
        let listen = &self.admin.listen;
        for (flag, address) in [
            ("--mqtt", listen.mqtt),
            ("--mqtts", listen.mqtts),
            ("--ws", listen.ws),
            ("--https", listen.https),
            ("--admin", listen.admin),
        ] {
            command.arg(flag).arg(address.to_string());
        }
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log");
        command
            .args(&self.options.args)
            .envs(self.options.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        command
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("node.log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(40)..];
            eprintln!("--- the end of the node's log ---\n{}\n---", end.join("\n"));
        }
    }
}

impl Answer {
    /// The stable code of a problem.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

/// Asks again and again, quickly, until there is an answer or the time is over.
pub async fn poll_until<T>(within: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(answer) = ask().await {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sends a request; a body that is no JSON becomes a JSON string.
pub async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let text = response.text().await.expect("a whole answer");
    let body = if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    };
    Answer { status, body }
}

/// Copies a directory with all that is in it.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// How a process ended, in one word for a message.
pub fn how_ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn http_client(ca: Option<reqwest::Certificate>) -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
    reqwest::Client::builder()
        .no_proxy()
        .timeout(DEADLINE)
        .tls_certs_only(ca)
        .build()
        .expect("a client")
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
