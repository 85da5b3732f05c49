//! Sync: an app server fills collections and changes them; devices fetch everything, resume after changes that they
//! missed, and upload edits. The same items and the same work for the gateway and for PouchDB server.
//!
//! - `corpus`: the items.
//! - `gateway`, `couch`: the servers, and who changes items there.
//! - `client`: the devices' process, and what it and the server spend; `device` is that process for the gateway.
//! - `tell`: the table.

mod client;
mod corpus;
mod couch;
mod device;
mod gateway;
mod tell;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

pub use self::device::SyncDevice;

use self::client::{Answer, Client, Order};
use self::corpus::{Corpus, Item};
use self::couch::Couch;
use self::gateway::Gateway;
use crate::peers::{Kind, check_modules};
use crate::process;
use crate::report::{Line, Output};

/// Fill collections, then let devices fetch them, resume, and upload edits.
#[derive(Debug, Args)]
pub struct Sync {
    /// The gateway's program; the default is `carillon` beside this one
    #[arg(long, value_name = "PATH")]
    gateway: Option<PathBuf>,
    /// A file of further settings for the gateway: another long-term store, say
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Measure another server too
    #[arg(long, value_enum)]
    peer: Option<Other>,
    /// Where `scripts/couch` has installed PouchDB server
    #[arg(long, value_name = "FOLDER", default_value = "target/couch")]
    modules: PathBuf,
    /// Documents that PouchDB asks for at a time; its own default is 100, and it is cheaper with more
    #[arg(long, default_value_t = 1_000)]
    couch_batch: usize,
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    output: Output,
}

/// What is measured of each server.
#[derive(Clone, Debug, Args)]
struct Plan {
    /// Devices, one after the other; they follow one alias
    #[arg(long, default_value_t = 5)]
    devices: usize,
    /// Items that the app keeps
    #[arg(long, default_value_t = 10_000)]
    items: usize,
    /// Items that change while devices are away
    #[arg(long, default_value_t = 1_000)]
    missed: usize,
    /// How often they do
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Changes of one call of the app server
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=1000))]
    call: u16,
    /// Calls of the app server at a time while it makes the items
    #[arg(long, default_value_t = 1)]
    calls_at_once: usize,
    /// Edits that a device makes while it is away, and uploads; 0: none
    #[arg(long, default_value_t = 1_000)]
    edits: usize,
}

/// Servers besides the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Other {
    /// PouchDB server, which speaks CouchDB's replication
    Couch,
}

enum Side {
    Gateway(Gateway),
    Couch(Couch),
}

/// A call that is on its way.
type Call = Pin<Box<dyn Future<Output = anyhow::Result<Changed>> + Send>>;

/// What a call has led to.
enum Changed {
    /// The seq of its last change.
    UpTo(u64),
    /// What the next change of a document must name.
    Revs(Vec<(String, String)>),
}

/// What one server gave.
#[derive(Clone, Debug, Serialize)]
struct Column {
    server: &'static str,
    changes: Changes,
    whole: Cost,
    resume: Cost,
    upload: Option<Cost>,
}

/// The app server's part.
#[derive(Clone, Debug, Serialize)]
struct Changes {
    changes: usize,
    seconds: f64,
    /// Until they were in long-term storage too.
    folded_seconds: Option<f64>,
    /// With folding.
    server_cpu_s: f64,
    /// Bytes of the items as JSON.
    item_bytes: usize,
}

/// What one kind of a device's work costs; CPU and bytes are the mean of one.
#[derive(Clone, Debug, Default, Serialize)]
struct Cost {
    times: usize,
    items_each: usize,
    seconds_median: f64,
    seconds_max: f64,
    server_cpu_s: f64,
    client_cpu_s: f64,
    bytes_up: f64,
    bytes_down: f64,
}

impl Sync {
    pub async fn run(self) -> anyhow::Result<()> {
        let Plan { devices, items, missed, rounds, edits, .. } = self.plan;
        ensure!(devices > 0 && rounds > 0, "--devices and --rounds must be at least 1");
        ensure!((1..=items).contains(&missed), "--missed must be 1 to --items {items}");
        ensure!(edits <= items, "--edits must be at most --items {items}");
        if let Some(Other::Couch) = self.peer {
            check_modules(&self.modules)?;
        }
        let mut columns = vec![self.measure(Side::Gateway(self.start().await?)).await?];
        if let Some(Other::Couch) = self.peer {
            let couch = Couch::start(&self.modules, self.couch_batch).await?;
            columns.push(self.measure(Side::Couch(couch)).await?);
        }
        let result = json!({ "kind": "sync", "results": columns });
        self.output.tell(&[tell::table(&columns)], &result)
    }

    async fn start(&self) -> anyhow::Result<Gateway> {
        let program = Kind::Carillon.program(self.gateway.as_deref())?;
        let settings = self.settings.as_ref().map(std::fs::read_to_string).transpose();
        let settings = settings.context("--settings")?.unwrap_or_default();
        Gateway::start(&program, self.plan.devices, &settings).await
    }

    async fn measure(&self, side: Side) -> anyhow::Result<Column> {
        let server = side.name();
        let client = side.client()?;
        let line = self.output.line(server);
        let mut run = Run { plan: &self.plan, side, client, corpus: Corpus::new(), line };
        let changes = run.fill().await.context("fill")?;
        let last = run.corpus.item(self.plan.items - 1, 0);
        let whole = run.pulls(self.plan.items, &last).await.context("fetch everything")?;
        let resume = run.resumes().await.context("resume")?;
        let upload = match self.plan.edits {
            0 => None,
            _ => Some(run.uploads().await.context("upload")?),
        };
        run.client.stop().await?;
        Ok(Column { server, changes, whole, resume, upload })
    }
}

/// One server while it is measured.
struct Run<'a> {
    plan: &'a Plan,
    side: Side,
    client: Client,
    corpus: Corpus,
    line: Line,
}

impl Run<'_> {
    /// The app server makes all items.
    async fn fill(&mut self) -> anyhow::Result<Changes> {
        let items: Vec<Item> = (0..self.plan.items).map(|at| self.corpus.item(at, 0)).collect();
        let values = items.iter().map(|item| item.value.to_string().len());
        let item_bytes = values.sum();
        self.side.quiet().await?;
        let cpu = process::cpu_seconds(self.side.pid())?;
        let start = Instant::now();
        self.change(&items, self.plan.calls_at_once).await?;
        let seconds = start.elapsed().as_secs_f64();
        let mut folded_seconds = None;
        if let Side::Gateway(gateway) = &self.side {
            gateway.folded().await?;
            folded_seconds = Some(start.elapsed().as_secs_f64());
            // What is there already comes as a snapshot.
            gateway.follow().await?;
        }
        let server_cpu_s = process::cpu_seconds(self.side.pid())? - cpu;
        Ok(Changes { changes: items.len(), seconds, folded_seconds, server_cpu_s, item_bytes })
    }

    async fn change(&mut self, items: &[Item], at_once: usize) -> anyhow::Result<()> {
        let mut calls = JoinSet::new();
        for (at, part) in items.chunks(self.plan.call.into()).enumerate() {
            self.line.show(&format!("{} changes", at * usize::from(self.plan.call)));
            if calls.len() >= at_once.max(1) {
                self.side.note(calls.join_next().await.context("no call")???);
            }
            calls.spawn(self.side.call(part)?);
        }
        while let Some(changed) = calls.join_next().await {
            self.side.note(changed??);
        }
        Ok(())
    }

    /// Every device fetches what it misses.
    async fn pulls(&mut self, items_each: usize, last: &Item) -> anyhow::Result<Cost> {
        self.side.quiet().await?;
        let until = self.side.head();
        let pull = |device| Order::Pull { device, until, item: last.clone() };
        let cost = self.orders((0..self.plan.devices).map(pull).collect(), items_each).await?;
        for device in 0..self.plan.devices {
            self.is_there(device, last).await?;
        }
        Ok(cost)
    }

    /// Items change, and every device fetches them; several times.
    async fn resumes(&mut self) -> anyhow::Result<Cost> {
        let Plan { items, missed, rounds, .. } = *self.plan;
        let mut costs = Vec::new();
        for round in 0..rounds {
            // Others each time, if there are so many.
            let numbers = (0..missed).map(|at| (round * missed + at) % items);
            let changed: Vec<Item> =
                numbers.map(|number| self.corpus.item(number, round + 1)).collect();
            self.change(&changed, 1).await?;
            let last = changed.last().context("nothing changed")?;
            costs.push(self.pulls(missed, last).await?);
        }
        Ok(Cost::of(costs))
    }

    /// Every device edits items while it is away, and uploads them.
    async fn uploads(&mut self) -> anyhow::Result<Cost> {
        let Plan { items, rounds, devices, edits: count, .. } = *self.plan;
        let mut costs = Vec::new();
        for device in 0..devices {
            // What PouchDB has to compare before it can tell edits is no part of it.
            self.client.ask(&Order::Push { device }).await?;
            let numbers = (0..count).map(|at| (device * count + at) % items);
            let edition = 1 + rounds + device;
            let edits: Vec<Item> =
                numbers.map(|number| self.corpus.item(number, edition)).collect();
            let last = edits.last().context("no edits")?.clone();
            self.client.ask(&Order::Edit { device, edits }).await?;
            self.side.quiet().await?;
            costs.push(self.orders(vec![Order::Push { device }], count).await?);
            self.side.note_edits(count);
            let until = self.side.head();
            for device in 0..devices {
                let item = last.clone();
                self.client.ask(&Order::Pull { device, until, item }).await?;
                self.is_there(device, &last).await?;
            }
        }
        Ok(Cost::of(costs))
    }

    async fn orders(&mut self, orders: Vec<Order>, items_each: usize) -> anyhow::Result<Cost> {
        let pid = self.side.pid();
        let before = self.client.spent(pid)?;
        let mut seconds = Vec::new();
        for (at, order) in orders.iter().enumerate() {
            self.line.show(&format!("device {at} of {}", orders.len()));
            let Answer { seconds: took, items, .. } = self.client.ask(order).await?;
            if let Some(items) = items {
                ensure!(items == items_each as u64, "{items} items instead of {items_each}");
            }
            seconds.push(took);
        }
        let after = self.client.spent(pid)?;
        seconds.sort_by(f64::total_cmp);
        let each = |total: f64| total / orders.len() as f64;
        Ok(Cost {
            times: orders.len(),
            items_each,
            seconds_median: seconds[seconds.len() / 2],
            seconds_max: seconds[seconds.len() - 1],
            server_cpu_s: each(after.server_cpu_s - before.server_cpu_s),
            client_cpu_s: each(after.client_cpu_s - before.client_cpu_s),
            bytes_up: each((after.bytes_up - before.bytes_up) as f64),
            bytes_down: each((after.bytes_down - before.bytes_down) as f64),
        })
    }

    /// A device holds as many items as the app, and this one as it is.
    async fn is_there(&mut self, device: usize, item: &Item) -> anyhow::Result<()> {
        let Item { collection, key, value } = item.clone();
        let shown = self.client.ask(&Order::Show { device, collection, key }).await?;
        let count = shown.items.unwrap_or_default();
        ensure!(
            count == self.plan.items as u64 && shown.value.map(couch::without_own) == Some(value),
            "device {device} holds {count} items, or others than the app: the run says nothing"
        );
        Ok(())
    }
}

impl Cost {
    /// Of several rounds: the median of medians, the means.
    fn of(rounds: Vec<Self>) -> Self {
        let mut medians: Vec<f64> = rounds.iter().map(|round| round.seconds_median).collect();
        medians.sort_by(f64::total_cmp);
        let mean = |of: fn(&Self) -> f64| rounds.iter().map(of).sum::<f64>() / rounds.len() as f64;
        Self {
            times: rounds.iter().map(|round| round.times).sum(),
            items_each: rounds.first().map_or(0, |round| round.items_each),
            seconds_median: medians.get(medians.len() / 2).copied().unwrap_or_default(),
            seconds_max: rounds.iter().map(|round| round.seconds_max).fold(0.0, f64::max),
            server_cpu_s: mean(|round| round.server_cpu_s),
            client_cpu_s: mean(|round| round.client_cpu_s),
            bytes_up: mean(|round| round.bytes_up),
            bytes_down: mean(|round| round.bytes_down),
        }
    }
}

impl Side {
    fn name(&self) -> &'static str {
        match self {
            Self::Gateway(_) => "carillon",
            Self::Couch(_) => "pouchdb server",
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Gateway(gateway) => gateway.peer.pid(),
            Self::Couch(couch) => couch.peer.pid(),
        }
    }

    fn head(&self) -> u64 {
        match self {
            Self::Gateway(gateway) => gateway.head,
            Self::Couch(_) => 0,
        }
    }

    /// One call of the app server.
    fn call(&self, items: &[Item]) -> anyhow::Result<Call> {
        match self {
            Self::Gateway(gateway) => gateway.call(items),
            Self::Couch(couch) => couch.call(items),
        }
    }

    /// Takes what a call has led to.
    fn note(&mut self, changed: Changed) {
        match (self, changed) {
            (Self::Gateway(gateway), Changed::UpTo(seq)) => gateway.head = gateway.head.max(seq),
            (Self::Couch(couch), Changed::Revs(revs)) => couch.revs.extend(revs),
            (Self::Gateway(_), Changed::Revs(_)) | (Self::Couch(_), Changed::UpTo(_)) => {}
        }
    }

    /// Takes that a device has uploaded so many.
    fn note_edits(&mut self, edits: usize) {
        if let Self::Gateway(gateway) = self {
            gateway.head += edits as u64;
        }
    }

    fn client(&self) -> anyhow::Result<Client> {
        match self {
            Self::Gateway(gateway) => gateway.client(),
            Self::Couch(couch) => couch.client(),
        }
    }

    /// Waits until the server has done what it does afterwards.
    async fn quiet(&self) -> anyhow::Result<()> {
        let (mut calm, mut before) = (0, process::cpu_seconds(self.pid())?);
        while calm < CALM_LOOKS {
            sleep(LOOK_EVERY).await;
            let now = process::cpu_seconds(self.pid())?;
            calm = if now - before > CALM_CPU_S { 0 } else { calm + 1 };
            before = now;
        }
        Ok(())
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// One step of what the kernel shows.
const CALM_CPU_S: f64 = 0.011;
const CALM_LOOKS: usize = 6;
