//! Shared notes: two devices and an app server change them, the devices also offline, and all end with the same.
//!
//! ```text
//! cargo run -p carillon-sdk --features collections --example notes            # with a gateway of its own
//! cargo run -p carillon-sdk --features collections --example notes -- data    # with the one that runs on ./data
//! ```
//!
//! Notes are a collection of the alias `family`, whose rule is `merge`: of a note that two edited at the same time, each
//! field is what its newest change made it. The app server is the binary's `app create` and three calls over HTTP.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use carillon_sdk::collections::Shelf;
use carillon_sdk::{Collections, Credentials, Device, Endpoint, RegId, Value};
use reqwest::Method;
use serde_json::{Value as Json, json};
use tokio::time::timeout;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let here = std::env::current_exe()?;
    let binary = here.parent().and_then(Path::parent).context("no target folder")?.join("carillon");
    if !binary.exists() {
        let built = Command::new("cargo").args(["build", "--bin", "carillon"]).status()?;
        ensure!(built.success() && binary.exists(), "the gateway could not be built");
    }
    if let Some(data) = std::env::args().nth(1) {
        return story(&binary, Path::new(&data)).await;
    }
    let home = tempfile::tempdir()?;
    let gateway = Gateway::start(&binary, home.path())?;
    let data = home.path().join("data");
    timeout(WITHIN, gateway.ready(&data)).await.context("the gateway does not get ready")??;
    story(&binary, &data).await
}

/// What happens, with a gateway that runs on this data directory.
pub async fn story(binary: &Path, data: &Path) -> anyhow::Result<()> {
    timeout(WITHIN, tell(binary, data)).await.context("the story does not come to its end")?
}

async fn tell(binary: &Path, data: &Path) -> anyhow::Result<()> {
    let server = AppServer::new(binary, data)?;
    server.call(Method::PUT, "/collections/notes", json!({"rule": "merge"})).await?;
    let homes = tempfile::tempdir()?;
    let mut phone = Installation::new(&server, homes.path().join("phone.db")).await?;
    let mut tablet = Installation::new(&server, homes.path().join("tablet.db")).await?;

    println!("The app server writes two notes.");
    server.write("shopping", json!({"text": "milk", "done": false})).await?;
    server.write("garden", json!({"text": "water the roses"})).await?;
    phone.go_online(&server).await?;
    tablet.go_online(&server).await?;
    for device in [&phone, &tablet] {
        device.until("both are there", |notes| notes.len() == 2).await?;
    }
    phone.print("phone")?;

    println!(
        "Both go offline and edit: the same note, and notes of their own. So does the app server."
    );
    phone.go_offline().await;
    tablet.go_offline().await;
    phone.notes.patch("notes", "shopping", json_value(&json!({"text": "milk, bread"})))?;
    phone.notes.put("notes", "call", json_value(&json!({"text": "call the plumber"})))?;
    tablet.notes.patch("notes", "shopping", json_value(&json!({"done": true})))?;
    tablet.notes.delete("notes", "garden")?;
    server.write("shopping", json!({"by": "the shop"})).await?;
    phone.print("phone, offline")?;
    tablet.print("tablet, offline")?;

    println!("They come back.");
    phone.go_online(&server).await?;
    tablet.go_online(&server).await?;
    let merged = json!({"text": "milk, bread", "done": true, "by": "the shop"});
    for device in [&phone, &tablet] {
        device.notes.uploaded().await?;
        let is_merged = |notes: &[(String, Json)]| {
            let keys: Vec<&str> = notes.iter().map(|(key, _)| key.as_str()).collect();
            keys == ["call", "shopping"] && notes[1].1 == merged
        };
        device.until("all edits are merged", is_merged).await?;
    }
    phone.print("phone")?;
    tablet.print("tablet")?;
    let kept = server.call(Method::GET, "/aliases/family/snapshot", Json::Null).await?;
    ensure!(kept["items"].as_array().map(Vec::len) == Some(2), "the app server has others: {kept}");
    println!("The app server has the same two.");
    phone.go_offline().await;
    tablet.go_offline().await;
    Ok(())
}

fn json_value(document: &Json) -> Value {
    Value::json(document.to_string())
}

/// The app on one device: it has a database, and sometimes a connection.
struct Installation {
    collections: Collections,
    notes: Shelf,
    credentials: Credentials,
    device: Option<Device>,
}

impl Installation {
    /// An account of its own, and the alias of the family.
    async fn new(server: &AppServer, database: PathBuf) -> anyhow::Result<Self> {
        let ask = json!({"app_id": server.app_id, "app_key": server.app_key, "register": true});
        let made = server.ask(Method::POST, "/v1/devices", ask).await?;
        let text = |name: &str| made[name].as_str().map(str::to_owned).context("no account");
        let regid = text("regid")?;
        server
            .call(Method::PUT, &format!("/registrations/{regid}/aliases/family"), Json::Null)
            .await?;
        let collections = Collections::open(database)?;
        let notes = collections.of(&RegId::from(regid.as_str()), "family");
        let credentials = Credentials { device_id: text("device_id")?, secret: text("secret")? };
        Ok(Self { collections, notes, credentials, device: None })
    }

    async fn go_online(&mut self, server: &AppServer) -> anyhow::Result<()> {
        let (endpoint, store) = (server.mqtt.clone(), self.collections.clone());
        let device = Device::builder_with_store(endpoint, self.credentials.clone(), store);
        let device = device.connect_with(|_| async {}).await?;
        device.online().await?;
        self.device = Some(device);
        Ok(())
    }

    async fn go_offline(&mut self) {
        if let Some(device) = self.device.take() {
            device.shutdown().await;
        }
    }

    fn read(&self) -> anyhow::Result<Vec<(String, Json)>> {
        let items = self.notes.items("notes")?.into_iter();
        items.map(|note| Ok((note.key, serde_json::from_slice(&note.value.bytes)?))).collect()
    }

    fn print(&self, who: &str) -> anyhow::Result<()> {
        for (key, note) in self.read()? {
            println!("  {who:16} {key:10} {note}");
        }
        Ok(())
    }

    /// Listens to changes until this holds.
    async fn until(
        &self,
        what: &str,
        holds: impl Fn(&[(String, Json)]) -> bool,
    ) -> anyhow::Result<()> {
        let mut changes = self.collections.changes();
        while !holds(&self.read()?) {
            let changed = timeout(Duration::from_secs(30), changes.recv()).await;
            // Who listens too slowly is told so, and reads again.
            drop(changed.with_context(|| format!("{what}: never; {:?}", self.read()))?);
        }
        Ok(())
    }
}

/// What an app server does.
struct AppServer {
    app_id: String,
    app_key: String,
    secret: String,
    url: String,
    mqtt: Endpoint,
    http: reqwest::Client,
}

impl AppServer {
    /// Creates an app whose aliases only its server binds. The calls go to the gateway's admin port, which is in the
    /// clear; over HTTPS they are the same.
    fn new(binary: &Path, data: &Path) -> anyhow::Result<Self> {
        let unique = std::process::id().to_string();
        let app_id = format!("notes-{unique}");
        let made = Command::new(binary)
            .args(["app", "create", &app_id, "--alias-policy", "server", "--data"])
            .arg(data)
            .output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let made: Json = serde_json::from_slice(&made.stdout)?;
        let admin: Json = serde_json::from_slice(&std::fs::read(data.join("admin.json"))?)?;
        let text = |json: &Json| json.as_str().map(str::to_owned).context("no such field");
        let mqtt = format!("tcp://{}", text(&admin["listen"]["mqtt"])?).parse()?;
        let (app_key, secret) = (text(&made["app_key"])?, text(&admin["token"])?);
        Ok(Self { app_id, app_key, secret, url: text(&admin["url"])?, mqtt, http: http()? })
    }

    /// Changes the fields of a note.
    async fn write(&self, key: &str, fields: Json) -> anyhow::Result<Json> {
        let change = json!({"collection": "notes", "key": key, "value": fields});
        self.call(Method::POST, "/aliases/family/changes", json!({"changes": [change]})).await
    }

    async fn call(&self, method: Method, path: &str, body: Json) -> anyhow::Result<Json> {
        self.ask(method, &format!("/v1/apps/{}{path}", self.app_id), body).await
    }

    async fn ask(&self, method: Method, path: &str, body: Json) -> anyhow::Result<Json> {
        let request = self.http.request(method, format!("{}{path}", self.url));
        let request = request.bearer_auth(&self.secret);
        let request = if body.is_null() { request } else { request.json(&body) };
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{path}: {status} {text}");
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }
}

fn http() -> anyhow::Result<reqwest::Client> {
    // Another one may be there already: that is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Ok(reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only(None::<reqwest::Certificate>)
        .build()?)
}

/// A gateway of our own.
struct Gateway(Child);

impl Gateway {
    fn start(binary: &Path, home: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(binary);
        command.arg("serve").arg("--data").arg(home.join("data"));
        for door in ["--mqtt", "--mqtts", "--ws", "--https", "--admin"] {
            command.args([door, "127.0.0.1:0"]);
        }
        let log = std::fs::File::create(home.join("gateway.log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Self(command.stdin(Stdio::null()).spawn().context("the gateway does not start")?))
    }

    async fn ready(&self, data: &Path) -> anyhow::Result<()> {
        let http = http()?;
        loop {
            if let Ok(admin) = std::fs::read(data.join("admin.json"))
                && let Ok(admin) = serde_json::from_slice::<Json>(&admin)
                && let Some(url) = admin["url"].as_str()
                && let Ok(answer) = http.get(format!("{url}/readyz")).send().await
                && answer.status().is_success()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // If it has ended by itself, that is what was wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// For all of it, with a debug build.
const WITHIN: Duration = Duration::from_secs(120);
