//! The gateway's devices: each an SDK with a replica of its own in SQLite, one after the other in one process.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{Write, stdin, stdout};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use carillon_sdk::collections::Shelf;
use carillon_sdk::{Collections, Credentials, Device, Endpoint, QueueName, RegId, Status, Value};
use clap::Args;
use tokio::time::sleep;

use super::client::{Answer, Order};
use super::corpus::{COLLECTIONS, Item};
use super::gateway::ALIAS;
use crate::credentials;

/// Started by `sync`.
#[derive(Debug, Args)]
pub struct SyncDevice {
    /// MQTT
    target: SocketAddr,
    /// Devices
    credentials: PathBuf,
    /// How many of them
    count: usize,
    /// Where their replicas are
    folder: PathBuf,
}

impl SyncDevice {
    pub async fn run(self) -> anyhow::Result<()> {
        let devices = credentials::Credentials::read(&self.credentials, self.count, 0, 1)?;
        let mut opened = HashMap::new();
        for line in stdin().lines() {
            let order: Order = serde_json::from_str(&line?)?;
            let at = order.device();
            ensure!(at < devices.count(), "there is no device {at}");
            let replica = match opened.entry(at) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let path = self.folder.join(format!("{at}.sqlite"));
                    entry.insert(Replica::open(devices.device(at), path)?)
                }
            };
            let mut line = serde_json::to_vec(&replica.obey(order, self.target).await?)?;
            line.push(b'\n');
            stdout().write_all(&line)?;
        }
        Ok(())
    }
}

impl Order {
    fn device(&self) -> usize {
        match self {
            Self::Pull { device, .. }
            | Self::Edit { device, .. }
            | Self::Push { device }
            | Self::Show { device, .. } => *device,
        }
    }
}

/// One device.
struct Replica {
    credentials: Credentials,
    regid: RegId,
    collections: Collections,
}

impl Replica {
    fn open(device: credentials::Device<'_>, path: PathBuf) -> anyhow::Result<Self> {
        let credentials = Credentials {
            device_id: device.device_id.to_owned(),
            secret: device.secret.to_owned(),
        };
        let collections = Collections::open(path)?;
        Ok(Self { credentials, regid: RegId::from(device.regid), collections })
    }

    fn shelf(&self) -> Shelf {
        self.collections.of(&self.regid, ALIAS)
    }

    async fn obey(&self, order: Order, target: SocketAddr) -> anyhow::Result<Answer> {
        let start = Instant::now();
        let mut answer = Answer::default();
        match order {
            Order::Pull { until, item, .. } => {
                let device = self.connect(target).await?;
                // A snapshot is there all at once, some time after the position that its binding gave.
                while self.position(&device).await? < until || !self.holds(&item)? {
                    wait(&device, start).await?;
                }
                answer.seconds = start.elapsed().as_secs_f64();
                device.shutdown().await;
            }
            Order::Push { .. } => {
                let device = self.connect(target).await?;
                while self.shelf().pending()? > 0 {
                    wait(&device, start).await?;
                }
                answer.seconds = start.elapsed().as_secs_f64();
                device.shutdown().await;
            }
            Order::Edit { edits, .. } => {
                answer.items = Some(edits.len() as u64);
                for Item { collection, key, value } in edits {
                    self.shelf().put(&collection, &key, Value::json(value.to_string()))?;
                }
                answer.seconds = start.elapsed().as_secs_f64();
            }
            Order::Show { collection, key, .. } => {
                let shelf = self.shelf();
                let mut items = 0;
                for collection in COLLECTIONS {
                    items += shelf.items(collection)?.len() as u64;
                }
                answer.value = self.value(&collection, &key)?;
                answer.items = Some(items);
            }
        }
        Ok(answer)
    }

    fn holds(&self, item: &Item) -> anyhow::Result<bool> {
        Ok(self.value(&item.collection, &item.key)?.as_ref() == Some(&item.value))
    }

    fn value(&self, collection: &str, key: &str) -> anyhow::Result<Option<serde_json::Value>> {
        let item = self.shelf().get(collection, key)?;
        let value = item.map(|item| serde_json::from_slice(&item.value.bytes)).transpose();
        value.context("a value that is no JSON")
    }

    async fn connect(&self, target: SocketAddr) -> anyhow::Result<Device> {
        let endpoint: Endpoint = format!("tcp://{target}").parse()?;
        let collections = self.collections.clone();
        let device = Device::builder_with_store(endpoint, self.credentials.clone(), collections);
        Ok(device.connect_with(|_| async {}).await?)
    }

    /// Up to where it has everything of the alias.
    async fn position(&self, device: &Device) -> anyhow::Result<u64> {
        let positions = device.positions().await.context("the device has stopped")?;
        let queue = QueueName::Alias(ALIAS.to_owned());
        let position = positions.get(&self.regid).and_then(|queues| queues.get(&queue));
        Ok(position.map_or(0, |position| position.seq))
    }
}

async fn wait(device: &Device, since: Instant) -> anyhow::Result<()> {
    if let Status::Stopped(reason) = device.status() {
        bail!("the device has stopped: {reason}");
    }
    ensure!(since.elapsed() < GIVE_UP_AFTER, "a device is not there after {GIVE_UP_AFTER:?}");
    sleep(LOOK_EVERY).await;
    Ok(())
}

const LOOK_EVERY: Duration = Duration::from_millis(1);
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);
