//! Many connections that do nothing: what one costs the server in memory, and what is left when they are gone.

use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use crate::api::Access;
use crate::credentials::Credentials;
use crate::crew::Crew;
use crate::histogram::Percentiles;
use crate::order::{Cut, Open, TopicOf};
use crate::report::{Output, Table, number};
use crate::target::{Server, Target};

/// Hold many connections and read the server's memory.
#[derive(Debug, Args)]
pub struct Idle {
    /// Connections at which the slope begins
    #[arg(long, default_value_t = 5000)]
    from: usize,
    /// Connections at which it ends
    #[arg(long, default_value_t = 19_000)]
    to: usize,
    /// How long memory has to settle before it is read
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    settle: f64,
    /// How long to hold the connections besides
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    hold: f64,
    /// Before: bind an alias to each registration and subscribe it to a topic, through --api
    #[arg(long)]
    follow: bool,
    /// Before: open all and close them, so that the slope holds no cache of a store and nothing that is written at a device's first connect
    #[arg(long)]
    warm: bool,
    /// How many topics the registrations share, with --follow
    #[arg(long, default_value_t = 1)]
    topics: usize,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    output: Output,
}

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub from: usize,
    pub to: usize,
    pub settle: Duration,
    pub hold: Duration,
    /// All are opened and closed once before.
    pub is_warm: bool,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub from: usize,
    pub to: usize,
    /// Anonymous memory of the server with none, `from` and `to` connections and after all have closed.
    pub bytes_before: Option<u64>,
    pub bytes_from: Option<u64>,
    pub bytes_to: Option<u64>,
    pub bytes_after: Option<u64>,
    pub bytes_per_connection: Option<f64>,
    /// That ended before they were told to.
    pub connections_lost: usize,
    pub generator_bytes_per_device: f64,
    /// While the connections of the slope were opened.
    pub connack: Option<Percentiles>,
    pub ready: Option<Percentiles>,
}

impl Idle {
    pub async fn run(self) -> anyhow::Result<()> {
        ensure!(self.from < self.to, "--from {} must be less than --to {}", self.from, self.to);
        let server = self.target.server(self.to, TopicOf::Each, 1)?;
        let line = self.output.line("idle");
        if self.follow {
            let credentials = self.target.credentials.as_ref();
            let credentials =
                credentials.context("--follow is for a gateway: give --credentials")?;
            let devices = Credentials::read(credentials, self.to, 0, 1)?;
            let api = self.access.client(self.target.ca.as_ref(), self.target.allow_remote)?;
            api.subscribe_all(&devices, self.topics).await?;
            api.bind_all(&devices, &line).await?;
        }
        let seconds =
            |seconds: f64| Duration::try_from_secs_f64(seconds).context("--settle, --hold");
        let (settle, hold) = (seconds(self.settle)?, seconds(self.hold)?);
        let plan = Plan { from: self.from, to: self.to, settle, hold, is_warm: self.warm };
        let mut crew = Crew::start(&server.setup, server.processes, line).await?;
        let outcome = measure(&mut crew, &server, plan).await?;
        crew.stop().await?;
        let result = json!({ "kind": "idle", "result": outcome });
        self.output.tell(&[outcome.table()], &result)?;
        let lost = outcome.connections_lost;
        ensure!(lost == 0, "{lost} connections did not last");
        Ok(())
    }
}

/// The devices are closed before and after.
pub async fn measure(crew: &mut Crew, server: &Server, plan: Plan) -> anyhow::Result<Outcome> {
    let bytes = || server.anonymous_bytes();
    let open = |to| Open { retries_max: 20, ..server.open(to) };
    if plan.is_warm {
        crew.open_all(open(plan.to)).await?;
        sleep(plan.settle).await;
        crew.cut(Cut::Disconnect).await?;
        sleep(plan.settle).await;
    }
    let bytes_before = bytes()?;
    let mut opened = crew.open_all(open(plan.from)).await?;
    sleep(plan.settle).await;
    let bytes_from = bytes()?;
    opened.merge(&crew.open_all(open(plan.to)).await?);
    sleep(plan.settle).await;
    let bytes_to = bytes()?;
    let generator_bytes_per_device = crew.bytes_per_device(plan.to)?;
    sleep(plan.hold).await;
    // What has to be opened again did not last.
    let again = crew.open(open(plan.to)).await?;
    let connections_lost = again.opened + again.failed;
    crew.cut(Cut::Disconnect).await?;
    sleep(plan.settle).await;
    let slope = bytes_from
        .zip(bytes_to)
        .map(|(from, to)| (to as f64 - from as f64) / (plan.to - plan.from) as f64);
    Ok(Outcome {
        from: plan.from,
        to: plan.to,
        bytes_before,
        bytes_from,
        bytes_to,
        bytes_after: bytes()?,
        bytes_per_connection: slope,
        connections_lost,
        generator_bytes_per_device,
        connack: opened.connack.percentiles(),
        ready: opened.ready.percentiles(),
    })
}

impl Outcome {
    pub fn table(&self) -> Table {
        let mut table = Table::new(format!("{} idle connections", self.to));
        table.row("server, bytes each", [number(self.bytes_per_connection, 0)]);
        for (what, bytes) in [
            ("none".to_owned(), self.bytes_before),
            (self.from.to_string(), self.bytes_from),
            (self.to.to_string(), self.bytes_to),
            ("all closed".to_owned(), self.bytes_after),
        ] {
            let mib = bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
            table.row(format!("server, MiB with {what}"), [number(mib, 1)]);
        }
        table.row("connections lost", [self.connections_lost.to_string()]);
        table.row("generator, bytes each", [number(Some(self.generator_bytes_per_device), 0)]);
        table.percentiles(&[("to CONNACK", self.connack), ("to resumed", self.ready)]);
        table
    }
}
