//! One message to all devices: deliveries a second, what they cost, and when the last device has it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::api::{Access, Api, topic_name};
use crate::clock;
use crate::credentials::Credentials;
use crate::crew::Crew;
use crate::histogram::{Histogram, Percentiles};
use crate::order::{Open, Speech, TopicOf, Watch};
use crate::publisher::{Publisher, payload};
use crate::report::{Output, Table, number};
use crate::target::{Server, Target};

/// Publish to one topic that all devices follow.
#[derive(Debug, Args)]
pub struct Fanout {
    /// Devices
    #[arg(long, default_value_t = 1000)]
    devices: usize,
    /// Messages; each is sent when all devices have the one before
    #[arg(long, default_value_t = 20)]
    messages: u32,
    /// QoS of a broker's subscriptions, 0 or 1; a gateway's is 1
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    qos: u8,
    /// Bytes of a payload
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    output: Output,
}

/// Who publishes.
pub enum Source {
    Broker(Arc<Mutex<Publisher>>),
    Gateway(Api),
}

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub messages: u32,
    pub bytes: usize,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub devices: usize,
    pub messages: u32,
    pub delivered: u64,
    pub seconds: f64,
    pub deliveries_per_s: f64,
    pub server_cpu_s_per_million: Option<f64>,
    pub generator_cpu_s_per_million: f64,
    pub lost: u64,
    pub doubled: u64,
    pub strange: u64,
    pub connections_lost: usize,
    /// From the publisher to each device.
    pub latency: Option<Percentiles>,
    /// From the publisher to the last device of each message.
    pub to_last: Option<Percentiles>,
}

impl Fanout {
    pub async fn run(self) -> anyhow::Result<()> {
        ensure!(self.messages > 0, "no messages: give --messages at least 1");
        let server = self.target.server(self.devices, TopicOf::All, self.qos)?;
        let source = Source::of(&server, &self.access, &self.target).await?;
        let line = self.output.line("fanout");
        let mut crew = Crew::start(&server.setup, server.processes, line).await?;
        crew.open_all(Open { retries_max: 20, ..server.open(self.devices) }).await?;
        let plan = Plan { messages: self.messages, bytes: self.bytes };
        let outcome = measure(&mut crew, &server, &source, plan).await?;
        crew.stop().await?;
        let result = json!({ "kind": "fanout", "result": outcome });
        self.output.tell(&[outcome.table()], &result)?;
        outcome.check()
    }
}

impl Source {
    /// Makes sure that all devices follow the topic, and connects.
    async fn of(server: &Server, access: &Access, target: &Target) -> anyhow::Result<Self> {
        server.check_can_send()?;
        match &server.setup.speech {
            Speech::Broker { .. } => Self::broker(server).await,
            Speech::Plain { credentials } | Speech::Frames { credentials } => {
                let api = access.client(target.ca.as_ref(), target.allow_remote)?;
                let devices = Credentials::read(credentials, server.setup.devices, 0, 1)?;
                api.subscribe_all(&devices, 1).await?;
                Ok(Self::Gateway(api))
            }
        }
    }

    pub async fn broker(server: &Server) -> anyhow::Result<Self> {
        let (target, version) = (server.setup.target, server.setup.version);
        let publisher = spawn_blocking(move || Publisher::connect(target, version, 0)).await??;
        Ok(Self::Broker(Arc::new(Mutex::new(publisher))))
    }

    pub async fn publish(&self, payload: String) -> anyhow::Result<()> {
        match self {
            Self::Gateway(api) => api.send_topic(&topic_name(0), &payload).await,
            Self::Broker(publisher) => {
                let publisher = publisher.clone();
                let topic = TopicOf::All.name(0);
                let publish = move || lock(&publisher).publish(&topic, &payload);
                spawn_blocking(publish).await.context("the publisher has panicked")?
            }
        }
    }
}

fn lock(publisher: &Mutex<Publisher>) -> MutexGuard<'_, Publisher> {
    publisher.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The devices are open before and after. The first message warms up and is not counted.
pub async fn measure(
    crew: &mut Crew,
    server: &Server,
    source: &Source,
    plan: Plan,
) -> anyhow::Result<Outcome> {
    round(crew, source, Plan { messages: 1, ..plan }).await?;
    crew.tally().await?;
    let before = (server.cpu_seconds()?, crew.cpu_seconds()?);
    let sent_us = round(crew, source, plan).await?;
    // What is doubled may come behind what was owed.
    tokio::time::sleep(LATE).await;
    let after = (server.cpu_seconds()?, crew.cpu_seconds()?);
    let tally = crew.tally().await?;
    let mut to_last = Histogram::default();
    for (sent, last) in sent_us.iter().zip(&tally.last_of_us) {
        to_last.add(last.saturating_sub(*sent));
    }
    let had = tally.delivered - tally.doubled - tally.strange;
    let seconds = tally.last_us.saturating_sub(sent_us[0]) as f64 / 1e6;
    let per_million = |seconds: f64| seconds / had as f64 * 1e6;
    Ok(Outcome {
        devices: server.setup.devices,
        messages: plan.messages,
        delivered: tally.delivered,
        seconds,
        deliveries_per_s: had as f64 / seconds,
        server_cpu_s_per_million: server.known(per_million(after.0 - before.0)),
        generator_cpu_s_per_million: per_million(after.1 - before.1),
        lost: tally.lost,
        doubled: tally.doubled,
        strange: tally.strange,
        connections_lost: tally.connections_lost,
        latency: tally.latency.percentiles(),
        to_last: to_last.percentiles(),
    })
}

/// Publishes one message after the other; when each was sent.
async fn round(crew: &mut Crew, source: &Source, plan: Plan) -> anyhow::Result<Vec<u64>> {
    crew.watch(Watch::Fanout { messages: plan.messages }).await?;
    let mut sent_us = Vec::new();
    let mut is_slow = false;
    for n in 0..plan.messages {
        sent_us.push(clock::unix_us());
        source.publish(payload(n, plan.bytes)).await?;
        // A server that loses some would make each message wait so long.
        let within = if is_slow { Duration::from_secs(1) } else { ALL_WITHIN };
        is_slow = !crew.fanned(n, within).await?;
    }
    Ok(sent_us)
}

impl Outcome {
    pub fn table(&self) -> Table {
        let Self { devices, messages, delivered, seconds, .. } = self;
        let title =
            format!("{messages} messages to {devices} devices: {delivered} in {seconds:.2} s");
        let mut table = Table::new(title);
        table.row("deliveries/s", [number(Some(self.deliveries_per_s), 0)]);
        table.row("server, CPU s per million", [number(self.server_cpu_s_per_million, 1)]);
        let generator = Some(self.generator_cpu_s_per_million);
        table.row("generator, CPU s per million", [number(generator, 1)]);
        table.row("lost", [self.lost.to_string()]);
        table.row("doubled", [self.doubled.to_string()]);
        table.row("strange", [self.strange.to_string()]);
        table.row("connections lost", [self.connections_lost.to_string()]);
        table.percentiles(&[("to a device", self.latency), ("to the last", self.to_last)]);
        table
    }

    fn check(&self) -> anyhow::Result<()> {
        let is_clean = (self.lost, self.doubled, self.strange) == (0, 0, 0);
        ensure!(is_clean, "messages were lost, doubled or strange");
        Ok(())
    }
}

const ALL_WITHIN: Duration = Duration::from_secs(30);
const LATE: Duration = Duration::from_millis(500);
