//! The gateway, brokers that people use, and the floors: started one after the other, measured in the same way by the
//! same generator, and shown side by side.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use crate::credentials::Credentials;
use crate::crew::Crew;
use crate::histogram::Percentiles;
use crate::mqtt::Version;
use crate::order::{Choice, Cut, Open, Setup, Speech, Tls, TopicOf};
use crate::peers::{Kind, Peer};
use crate::report::{Output, Table, number};
use crate::target::{Server, Sources};
use crate::{connect, disk, fanout, idle, lanes, storm, unicast};

/// Measure the gateway, other brokers and the floors side by side.
#[derive(Debug, Args)]
pub struct Compare {
    /// The gateway's program; the default is `carillon` beside this one
    #[arg(long, value_name = "PATH")]
    gateway: Option<PathBuf>,
    /// Which servers; the default is all that are here
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Kind>,
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    output: Output,
}

/// What is measured on each server.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Devices
    #[arg(long, default_value_t = 19_000)]
    pub devices: usize,
    /// Devices of a storm; the default is as many as there are, at most 10,000
    #[arg(long)]
    pub storm_devices: Option<usize>,
    /// Runs of each server; the medians are shown
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Measure fan-out too
    #[arg(long)]
    pub fanout: bool,
    /// Measure unicast too
    #[arg(long)]
    pub unicast: bool,
    /// Measure how long a message takes at a fixed rate too, beside raw fdatasync
    #[arg(long)]
    pub latency: bool,
    /// Measure how long a message takes beside broadcasts to all, too
    #[arg(long)]
    pub lanes: bool,
    /// Messages of a fan-out
    #[arg(long, default_value_t = 20)]
    pub fanout_messages: u32,
    /// QoS of a fan-out; the gateway's is 1
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub fanout_qos: u8,
    /// Messages of the unicast
    #[arg(long, default_value_t = 200_000)]
    pub unicast_messages: usize,
    /// Messages a second of --latency
    #[arg(long, value_name = "PER_SECOND", default_value_t = 5_000.0)]
    pub latency_rate: f64,
    /// Messages of --latency
    #[arg(long, default_value_t = 50_000)]
    pub latency_messages: u32,
    /// Single messages of --lanes, 200 a second, alone and beside broadcasts
    #[arg(long, default_value_t = 1_200)]
    pub lanes_messages: u32,
    /// The gateway's devices SUBSCRIBE `push` where the default is to speak frames
    #[arg(long)]
    pub plain: bool,
    /// Connects in flight
    #[arg(long, default_value_t = 200)]
    pub at_once: usize,
    /// How long memory has to settle before it is read
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub settle: f64,
}

/// What one run of one server gave.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub idle: idle::Outcome,
    pub connect: connect::Outcome,
    pub storm: storm::Outcome,
    pub fanout: Option<fanout::Outcome>,
    pub unicast: Option<unicast::Outcome>,
    pub latency: Option<Latency>,
    pub lanes: Option<lanes::Outcome>,
}

/// A message to a random device at a fixed rate, and the disk before.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    pub unicast: unicast::Outcome,
    pub fdatasync: Option<Percentiles>,
}

/// One server.
#[derive(Clone, Debug, Serialize)]
pub struct Column {
    pub server: Kind,
    /// Why there is nothing, or less than was asked for.
    pub note: Option<String>,
    pub runs: Vec<Run>,
    pub medians: Vec<(&'static str, Option<f64>)>,
}

impl Compare {
    pub async fn run(self) -> anyhow::Result<()> {
        let kinds = if self.peers.is_empty() { Kind::ALL.to_vec() } else { self.peers.clone() };
        let gateway = self.gateway.as_deref();
        let columns = measure_all(&kinds, &self.plan, gateway, &self.output).await?;
        let result = json!({ "kind": "compare", "devices": self.plan.devices, "results": columns });
        let title = format!("{} devices, medians of {}", self.plan.devices, self.plan.runs);
        self.output.tell(&[table(&title, &columns)], &result)?;
        let is_any = columns.iter().any(|column| !column.runs.is_empty());
        ensure!(is_any, "nothing could be measured");
        Ok(())
    }
}

/// One server after the other; one that fails does not stop the rest.
pub async fn measure_all(
    kinds: &[Kind],
    plan: &Plan,
    gateway: Option<&Path>,
    output: &Output,
) -> anyhow::Result<Vec<Column>> {
    ensure!(plan.devices >= 10, "--devices must be at least 10");
    ensure!(plan.runs >= 1, "--runs must be at least 1");
    let is_time = Duration::try_from_secs_f64(plan.settle);
    let settle = is_time.context("--settle is no time")?;
    let mut columns = Vec::new();
    for kind in kinds {
        let mut column =
            Column { server: *kind, note: None, runs: Vec::new(), medians: Vec::new() };
        for run in 0..plan.runs {
            let stage = Stage { kind: *kind, plan, gateway, settle, run, output };
            match stage.measure().await {
                Ok(run) => column.runs.push(run),
                Err(error) => {
                    column.note = Some(format!("{error:#}"));
                    break;
                }
            }
        }
        column.medians = medians(&column.runs);
        columns.push(column);
    }
    Ok(columns)
}

struct Stage<'a> {
    kind: Kind,
    plan: &'a Plan,
    gateway: Option<&'a Path>,
    settle: Duration,
    run: usize,
    output: &'a Output,
}

impl Stage<'_> {
    async fn measure(&self) -> anyhow::Result<Run> {
        let plan = self.plan;
        let program = self.kind.program(self.gateway)?;
        let line = self.output.line(&format!("{} {}", self.kind.name(), self.run + 1));
        line.show("starts");
        let peer = Peer::start(self.kind, &program, plan.devices).await?;
        if let Some(gateway) = &peer.gateway {
            let devices = Credentials::read(&gateway.credentials, plan.devices, 0, 1)?;
            gateway.api.subscribe_all(&devices, 1).await?;
            gateway.api.bind_all(&devices, &line).await?;
        }
        let server = self.server(&peer, plan.devices, TopicOf::Each);
        let mut crew = Crew::start(&server.setup, server.processes, line.clone()).await?;
        let from = plan.devices * 5 / 19;
        let idle = idle::Plan {
            from,
            to: plan.devices,
            settle: self.settle,
            hold: Duration::ZERO,
            // A store's caches are no connection's. The others keep what was once freed, and
            // would seem to need nothing.
            is_warm: peer.gateway.is_some(),
        };
        let idle = idle::measure(&mut crew, &server, idle).await.context("idle")?;
        let connect = connect::measure(&mut crew, &server).await.context("connect")?;
        sleep(self.settle).await;
        let unicast = self.unicast(&mut crew, &server, &peer).await.context("unicast")?;
        crew.stop().await?;
        sleep(self.settle).await;
        let storm = self.storm(&peer, &line).await.context("storm")?;
        let fanout = self.fanout(&peer, &line).await.context("fanout")?;
        let latency = self.latency(&peer, &line).await.context("latency")?;
        let lanes = self.lanes(&peer, &line).await.context("lanes")?;
        Ok(Run { idle, connect, storm, fanout, unicast, latency, lanes })
    }

    async fn storm(
        &self,
        peer: &Peer,
        line: &crate::report::Line,
    ) -> anyhow::Result<storm::Outcome> {
        let devices = self.plan.storm_devices.unwrap_or(STORM_MAX).clamp(1, self.plan.devices);
        let mut server = self.server(peer, devices, TopicOf::Each);
        server.setup.timeout_ms = STORM_TIMEOUT_MS;
        let mut crew = Crew::start(&server.setup, server.processes, line.clone()).await?;
        crew.open_all(Open { retries_max: 20, ..server.open(devices) }).await?;
        sleep(self.settle).await;
        let plan = storm::Plan { cut: Cut::Rst, retries: STORM_RETRIES, honour_advice: false };
        let outcome = storm::measure(&mut crew, &server, plan).await?;
        crew.stop().await?;
        sleep(self.settle).await;
        Ok(outcome)
    }

    async fn fanout(
        &self,
        peer: &Peer,
        line: &crate::report::Line,
    ) -> anyhow::Result<Option<fanout::Outcome>> {
        if !self.plan.fanout || self.kind == Kind::FloorTokio {
            return Ok(None);
        }
        let devices = self.plan.devices;
        let server = self.server(peer, devices, TopicOf::All);
        let source = match &peer.gateway {
            Some(gateway) => fanout::Source::Gateway(gateway.api.clone()),
            None => fanout::Source::broker(&server).await?,
        };
        let mut crew = Crew::start(&server.setup, server.processes, line.clone()).await?;
        crew.open_all(Open { retries_max: 20, ..server.open(devices) }).await?;
        sleep(self.settle).await;
        let plan = fanout::Plan { messages: self.plan.fanout_messages, bytes: BYTES };
        let outcome = fanout::measure(&mut crew, &server, &source, plan).await?;
        crew.stop().await?;
        Ok(Some(outcome))
    }

    /// The floors cannot: they send everything to everybody.
    fn can_unicast(&self) -> bool {
        !matches!(self.kind, Kind::FloorMio | Kind::FloorTokio)
    }

    async fn unicast(
        &self,
        crew: &mut Crew,
        server: &Server,
        peer: &Peer,
    ) -> anyhow::Result<Option<unicast::Outcome>> {
        if !self.plan.unicast || !self.can_unicast() {
            return Ok(None);
        }
        let batch = if peer.gateway.is_some() { BATCH.min(self.plan.devices) } else { 1 };
        let sends = u32::try_from(self.plan.unicast_messages.div_ceil(batch))?;
        let choice = Choice { seed: 1, batch, sends, devices: self.plan.devices, from: 0 };
        let plan = unicast::Plan { choice, rate: None, bytes: BYTES, drain: DRAIN };
        let sender = self.sender(peer, REQUESTS)?;
        unicast::measure(crew, server, &sender, plan).await.map(Some)
    }

    fn sender(&self, peer: &Peer, concurrency: usize) -> anyhow::Result<unicast::Sender> {
        let Some(gateway) = &peer.gateway else {
            return Ok(unicast::Sender::Broker { publishers: 4, window: 50 });
        };
        let devices = Credentials::read(&gateway.credentials, self.plan.devices, 0, 1)?;
        let (api, devices) = (gateway.api.clone(), devices.into());
        Ok(unicast::Sender::Gateway { api, devices, concurrency })
    }

    async fn latency(
        &self,
        peer: &Peer,
        line: &crate::report::Line,
    ) -> anyhow::Result<Option<Latency>> {
        if !self.plan.latency || !self.can_unicast() {
            return Ok(None);
        }
        let devices = self.plan.devices.min(LATENCY_DEVICES_MAX);
        let server = self.server(peer, devices, TopicOf::Each);
        let mut crew = Crew::start(&server.setup, server.processes, line.clone()).await?;
        crew.open_all(Open { retries_max: 20, ..server.open(devices) }).await?;
        sleep(self.settle).await;
        let fdatasync = disk::measure(peer.dir())?;
        let sends = self.plan.latency_messages;
        let choice = Choice { seed: 1, batch: 1, sends, devices, from: 0 };
        let rate = Some(self.plan.latency_rate);
        let plan = unicast::Plan { choice, rate, bytes: BYTES, drain: DRAIN };
        let sender = self.sender(peer, REQUESTS_AT_RATE)?;
        let unicast = unicast::measure(&mut crew, &server, &sender, plan).await?;
        crew.stop().await?;
        Ok(Some(Latency { unicast, fdatasync }))
    }

    async fn lanes(
        &self,
        peer: &Peer,
        line: &crate::report::Line,
    ) -> anyhow::Result<Option<lanes::Outcome>> {
        if !self.plan.lanes || !self.can_unicast() {
            return Ok(None);
        }
        let server = self.server(peer, self.plan.devices, TopicOf::All);
        let sender = match &peer.gateway {
            None => lanes::Sender::Broker(fanout::Source::broker(&server).await?),
            Some(gateway) => {
                let devices = Credentials::read(&gateway.credentials, self.plan.devices, 0, 1)?;
                let priorities = ["high", "low"].map(str::to_owned);
                let (api, devices) = (gateway.api.clone(), devices.into());
                lanes::Sender::Gateway { api, devices, priorities }
            }
        };
        let witnesses = LANES_WITNESSES.min(self.plan.devices / 2);
        let messages = self.plan.lanes_messages;
        let (rate, within) = (LANES_RATE, LANES_WITHIN);
        let plan = lanes::Plan { witnesses, messages, rate, within, bytes: BYTES };
        lanes::measure(&server, &sender, plan, line.clone()).await.map(Some)
    }

    fn server(&self, peer: &Peer, devices: usize, topic: TopicOf) -> Server {
        let speech = match (&peer.gateway, self.plan.plain) {
            (None, _) => Speech::Broker { topic, qos: self.plan.fanout_qos },
            (Some(gateway), true) => Speech::Plain { credentials: gateway.credentials.clone() },
            (Some(gateway), false) => Speech::Frames { credentials: gateway.credentials.clone() },
        };
        let is_tls = self.kind == Kind::CarillonTls;
        let ca = peer.gateway.as_ref().filter(|_| is_tls).map(|gateway| gateway.ca.clone());
        let setup = Setup {
            target: peer.addr,
            others: Vec::new(),
            speech,
            version: Version::V311,
            keep_alive_s: 300,
            sources: Sources::loopback(200).0,
            devices,
            first: 0,
            step: 1,
            tls: ca.map(|ca| Tls { ca, resume: true }),
            is_websocket: false,
            seal: None,
            timeout_ms: 15_000,
        };
        Server { setup, processes: 1, at_once: self.plan.at_once, pids: vec![peer.pid()] }
    }
}

type Figure = (&'static str, fn(&Run) -> Option<f64>);

/// The rows of the table.
const FIGURES: [Figure; 23] = [
    ("bytes per idle connection", |run| run.idle.bytes_per_connection),
    ("MiB with all", |run| mib(run.idle.bytes_to)),
    ("MiB after all closed", |run| mib(run.idle.bytes_after)),
    ("idle connections lost", |run| Some(run.idle.connections_lost as f64)),
    ("connects/s", |run| Some(run.connect.connects_per_s)),
    ("CPU us per connect", |run| run.connect.server_cpu_us_per_connect),
    ("p99 ms to resumed", |run| run.connect.ready.map(|p| ms(p.p99_us))),
    ("storm: all back, s", |run| Some(run.storm.seconds)),
    ("storm: p50 ms", |run| run.storm.ready.map(|p| ms(p.p50_us))),
    ("storm: failed", |run| Some(run.storm.failed as f64)),
    ("fan-out: deliveries/s", |run| Some(run.fanout.as_ref()?.deliveries_per_s)),
    ("fan-out: CPU s per million", |run| run.fanout.as_ref()?.server_cpu_s_per_million),
    ("fan-out: p50 ms to the last", |run| Some(ms(run.fanout.as_ref()?.to_last?.p50_us))),
    ("unicast: messages/s", |run| Some(run.unicast.as_ref()?.messages_per_s)),
    ("unicast: CPU s per million", |run| run.unicast.as_ref()?.server_cpu_s_per_million),
    ("at a rate: p50 ms", |run| Some(ms(run.latency.as_ref()?.unicast.latency?.p50_us))),
    ("at a rate: p99 ms", |run| Some(ms(run.latency.as_ref()?.unicast.latency?.p99_us))),
    ("fdatasync before: p50 ms", |run| Some(ms(run.latency.as_ref()?.fdatasync?.p50_us))),
    ("fdatasync before: p99 ms", |run| Some(ms(run.latency.as_ref()?.fdatasync?.p99_us))),
    ("beside broadcasts: p99 ms", |run| Some(ms(run.lanes.as_ref()?.beside?.p99_us))),
    ("beside broadcasts: % that came while they ran", |run| {
        let lanes = run.lanes.as_ref()?;
        Some(100.0 * lanes.in_time as f64 / f64::from(lanes.messages))
    }),
    ("beside broadcasts: deliveries of them/s", |run| {
        Some(run.lanes.as_ref()?.broadcast_deliveries_per_s)
    }),
    ("lost, doubled, strange", |run| {
        let fanout = run.fanout.as_ref().map_or(0, |out| out.lost + out.doubled + out.strange);
        let rated = run.latency.as_ref().map(|latency| &latency.unicast);
        let unicasts = run.unicast.iter().chain(rated);
        let unicast: u64 = unicasts.map(|out| out.lost + out.doubled + out.strange).sum();
        let lanes = run.lanes.as_ref().map_or(0, |out| out.lost + out.doubled);
        Some((fanout + unicast + lanes) as f64)
    }),
];

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

fn mib(bytes: Option<u64>) -> Option<f64> {
    bytes.map(|bytes| bytes as f64 / f64::from(1 << 20))
}

fn medians(runs: &[Run]) -> Vec<(&'static str, Option<f64>)> {
    let of = |(name, figure): &Figure| (*name, median(runs.iter().filter_map(figure).collect()));
    FIGURES.iter().map(of).collect()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 0 => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}

/// Side by side: a column for each server, and below why one is empty.
pub fn table(title: &str, columns: &[Column]) -> Table {
    let mut table = Table::new(title);
    table.row("", columns.iter().map(|column| column.server.name()));
    for (at, (name, _)) in FIGURES.iter().enumerate() {
        let values: Vec<Option<f64>> = columns.iter().map(|column| column.medians[at].1).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        let cell = |value: &Option<f64>| {
            let decimals = if value.is_some_and(|value| value < 100.0) { 2 } else { 0 };
            number(*value, decimals)
        };
        table.row(*name, values.iter().map(cell));
    }
    for column in columns {
        if let Some(note) = &column.note {
            table.note(&format!("{}: {note}", column.server.name()));
        }
    }
    table
}

const STORM_MAX: usize = 10_000;
/// A server that cannot take a storm must not hold up the others: it has about a minute.
const STORM_TIMEOUT_MS: u64 = 10_000;
const STORM_RETRIES: u8 = 4;
/// Messages of one call to a gateway, and calls at a time.
const BATCH: usize = 500;
const REQUESTS: usize = 8;
const REQUESTS_AT_RATE: usize = 64;
const LATENCY_DEVICES_MAX: usize = 2_000;
const LANES_WITNESSES: usize = 200;
const LANES_RATE: f64 = 200.0;
/// A server that lets nothing past its broadcasts must not hold up the others.
const LANES_WITHIN: Duration = Duration::from_secs(60);
const DRAIN: Duration = Duration::from_secs(10);
/// Of a payload.
const BYTES: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
