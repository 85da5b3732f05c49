//! A gateway as `sync` uses it: an app with collections, its devices, and one alias that all of them follow.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::Url;
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;

use super::client::Client;
use super::corpus::{COLLECTIONS, Item};
use super::{Call, Changed};
use crate::api::Api;
use crate::credentials::Credentials;
use crate::peers::{Kind, Peer};

/// Whose collections.
pub const ALIAS: &str = "ann";

/// See the module.
pub struct Gateway {
    pub peer: Peer,
    api: Api,
    metrics: Url,
    credentials: PathBuf,
    devices: usize,
    /// The seq of the last change.
    pub head: u64,
}

impl Gateway {
    pub async fn start(program: &Path, devices: usize, settings: &str) -> anyhow::Result<Self> {
        let peer = Peer::start_with(Kind::Carillon, program, 1, settings).await?;
        let data = peer.dir().join("data");
        let made = operate(program, &data, &["app", "create", APP, "--alias-policy", "server"])?;
        #[derive(Deserialize)]
        struct App {
            app_secret: String,
        }
        let App { app_secret } = serde_json::from_slice(&made)?;
        let count = devices.to_string();
        let made = operate(program, &data, &["device", "create", "--app", APP, "--count", &count])?;
        let credentials = peer.dir().join("sync.csv");
        std::fs::write(&credentials, made)?;
        #[derive(Deserialize)]
        struct Admin {
            url: String,
        }
        let Admin { url } = serde_json::from_slice(&std::fs::read(data.join("admin.json"))?)?;
        let metrics = format!("{url}/metrics").parse()?;
        let api = &peer.gateway.as_ref().context("no gateway")?.api;
        let api = api.of(APP, &app_secret);
        for collection in COLLECTIONS {
            api.declare(collection).await?;
        }
        Ok(Self { peer, api, metrics, credentials, devices, head: 0 })
    }

    /// Lets all devices follow the alias.
    pub async fn follow(&self) -> anyhow::Result<()> {
        let devices = Credentials::read(&self.credentials, self.devices, 0, 1)?;
        for at in 0..devices.count() {
            self.api.bind(devices.device(at).regid, ALIAS).await?;
        }
        Ok(())
    }

    /// The app server changes items: durable when this returns.
    pub fn call(&self, items: &[Item]) -> anyhow::Result<Call> {
        let (api, body) = (self.api.clone(), json!({ "changes": items }).to_string());
        Ok(Box::pin(async move { api.change(ALIAS, body).await.map(Changed::UpTo) }))
    }

    /// Waits until the storage writer has nothing to do.
    pub async fn folded(&self) -> anyhow::Result<()> {
        loop {
            let page = self.api.page(self.metrics.clone()).await?;
            let folded = page.lines().find_map(|line| line.strip_prefix(FOLDED));
            let folded: f64 = folded.map_or(Ok(0.0), |number| number.trim().parse())?;
            if folded as u64 >= self.head {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        Client::start(self.peer.addr, |addr| {
            let folder = self.peer.dir().join("replicas");
            std::fs::create_dir(&folder)?;
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("sync-device").arg(addr.to_string()).arg(&self.credentials);
            command.arg(self.devices.to_string()).arg(folder);
            Ok(command)
        })
    }
}

/// A subcommand of the operator's.
fn operate(program: &Path, data: &Path, args: &[&str]) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new(program);
    command.args(args).arg("--data").arg(data).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().with_context(|| program.display().to_string())?;
    ensure!(output.status.success(), "`carillon {}` failed", args.join(" "));
    Ok(output.stdout)
}

const APP: &str = "kept";
const FOLDED: &str = "carillon_longterm_folded_entries_total";
const LOOK_EVERY: Duration = Duration::from_millis(5);
