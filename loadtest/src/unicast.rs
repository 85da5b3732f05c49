//! Messages to random devices: the rate, the cost, the latency, and that nothing is lost or doubled.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

use crate::api::{Access, Api};
use crate::clock;
use crate::credentials::Credentials;
use crate::crew::Crew;
use crate::disk;
use crate::echo::Echo;
use crate::histogram::{Histogram, Percentiles};
use crate::order::{Choice, Open, Speech, TopicOf, Watch};
use crate::publisher::{Pace, Publisher, payload_at, wait_until};
use crate::report::{Output, Table, number};
use crate::target::{Server, Target};

/// Send to random devices while they receive and acknowledge.
#[derive(Debug, Args)]
pub struct Unicast {
    /// Devices
    #[arg(long, default_value_t = 1000)]
    devices: usize,
    /// Messages to deliver, counted once for each device
    #[arg(long, default_value_t = 100_000)]
    messages: usize,
    /// Messages of one batch request to a gateway, at most 500; the default is 500, and 1 with --rate
    #[arg(long)]
    batch: Option<usize>,
    /// Requests at a time, each on a connection of its own, or publishers to a broker; the default is 8 (64 with --rate), or 4
    #[arg(long)]
    concurrency: Option<usize>,
    /// Unacknowledged messages of a publisher to a broker
    #[arg(long, default_value_t = 50)]
    window: usize,
    /// Sends a second, whatever comes back; the default is as fast as they are accepted
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// Measure appends with fdatasync in this directory too, before and behind the run
    #[arg(long, value_name = "DIR")]
    disk: Option<PathBuf>,
    /// Bytes of a payload
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// How long nothing may come before the rest is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    drain: u64,
    /// Chooses the devices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    output: Output,
}

/// Who sends.
pub enum Sender {
    /// So many publishers.
    Broker {
        publishers: u32,
        window: usize,
    },
    Gateway {
        api: Api,
        devices: Arc<Credentials>,
        concurrency: usize,
    },
}

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub choice: Choice,
    pub rate: Option<f64>,
    pub bytes: usize,
    pub drain: Duration,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub devices: usize,
    pub batch: usize,
    pub rate: Option<f64>,
    pub delivered: u64,
    pub seconds: f64,
    pub messages_per_s: f64,
    pub server_cpu_s_per_million: Option<f64>,
    pub generator_cpu_s_per_million: f64,
    pub lost: u64,
    pub doubled: u64,
    pub strange: u64,
    pub connections_lost: usize,
    pub latency: Option<Percentiles>,
    /// With a rate to a gateway: from when it was due until a connection took it, and was answered.
    pub began: Option<Percentiles>,
    pub answered: Option<Percentiles>,
    /// With a rate: one hop over loopback between two threads, meanwhile.
    pub echo: Option<Percentiles>,
}

impl Unicast {
    pub async fn run(self) -> anyhow::Result<()> {
        let server = self.target.server(self.devices, TopicOf::Each, 1)?;
        let sender = self.sender(&server)?;
        let plan = self.plan(&sender)?;
        let line = self.output.line("unicast");
        let mut crew = Crew::start(&server.setup, server.processes, line).await?;
        crew.open_all(Open { retries_max: 20, ..server.open(self.devices) }).await?;
        let mut disk = Vec::new();
        if let Some(dir) = &self.disk {
            disk.push(("fdatasync before", disk::measure(dir)?));
        }
        let outcome = measure(&mut crew, &server, &sender, plan).await?;
        crew.stop().await?;
        if let Some(dir) = &self.disk {
            disk.push(("fdatasync behind", disk::measure(dir)?));
        }
        let result = json!({ "kind": "unicast", "result": outcome, "fdatasync": disk });
        let mut table = outcome.table();
        if !disk.is_empty() {
            table.percentiles(&disk);
        }
        self.output.tell(&[table], &result)?;
        let is_clean = (outcome.lost, outcome.doubled, outcome.strange) == (0, 0, 0);
        ensure!(is_clean, "messages were lost, doubled or not for their receiver");
        Ok(())
    }

    fn sender(&self, server: &Server) -> anyhow::Result<Sender> {
        server.check_can_send()?;
        match &server.setup.speech {
            Speech::Broker { .. } => {
                let publishers = u32::try_from(self.concurrency.unwrap_or(PUBLISHERS).max(1))?;
                Ok(Sender::Broker { publishers, window: self.window })
            }
            Speech::Plain { credentials } | Speech::Frames { credentials } => {
                let api = self.access.client(self.target.ca.as_ref(), self.target.allow_remote)?;
                let devices = Arc::new(Credentials::read(credentials, self.devices, 0, 1)?);
                let usual = if self.rate.is_some() { CONNECTIONS } else { REQUESTS };
                let concurrency = self.concurrency.unwrap_or(usual).max(1);
                Ok(Sender::Gateway { api, devices, concurrency })
            }
        }
    }

    fn plan(&self, sender: &Sender) -> anyhow::Result<Plan> {
        let batch = match (sender, self.batch, self.rate) {
            (Sender::Broker { .. }, None, _) | (Sender::Gateway { .. }, None, Some(_)) => 1,
            (Sender::Gateway { .. }, None, None) => BATCH.min(self.devices),
            (Sender::Broker { .. }, Some(batch), _) => {
                ensure!(batch == 1, "--batch is for a gateway: a broker has no such call");
                batch
            }
            (Sender::Gateway { .. }, Some(batch), _) => batch,
        };
        ensure!((1..=self.devices).contains(&batch), "--batch must be 1 to {}", self.devices);
        ensure!(self.messages > 0, "no messages: give --messages at least 1");
        if let Some(rate) = self.rate {
            ensure!(rate.is_finite() && rate > 0.0, "--rate must be more than 0");
        }
        let sends = u32::try_from(self.messages.div_ceil(batch)).context("too many messages")?;
        let choice = Choice { seed: self.seed, batch, sends, devices: self.devices, from: 0 };
        let drain = Duration::from_secs(self.drain);
        Ok(Plan { choice, rate: self.rate, bytes: self.bytes, drain })
    }
}

/// The devices are open before and after.
pub async fn measure(
    crew: &mut Crew,
    server: &Server,
    sender: &Sender,
    plan: Plan,
) -> anyhow::Result<Outcome> {
    crew.watch(Watch::Unicast(plan.choice)).await?;
    let before = (server.cpu_seconds()?, crew.cpu_seconds()?);
    let start_us = clock::unix_us();
    let echo = plan.rate.map(|_| Echo::start()).transpose()?;
    let timely = sender.send_all(server, plan).await?;
    let owed = u64::from(plan.choice.sends) * plan.choice.batch as u64;
    crew.drained(owed, plan.drain).await?;
    // What is doubled may come behind what was owed.
    sleep(LATE).await;
    let after = (server.cpu_seconds()?, crew.cpu_seconds()?);
    let tally = crew.tally().await?;
    let seconds = tally.last_us.saturating_sub(start_us) as f64 / 1e6;
    let per_million = |seconds: f64| seconds / tally.delivered as f64 * 1e6;
    Ok(Outcome {
        devices: plan.choice.devices,
        batch: plan.choice.batch,
        rate: plan.rate,
        delivered: tally.delivered,
        seconds,
        messages_per_s: tally.delivered as f64 / seconds,
        server_cpu_s_per_million: server.known(per_million(after.0 - before.0)),
        generator_cpu_s_per_million: per_million(after.1 - before.1),
        lost: tally.lost,
        doubled: tally.doubled,
        strange: tally.strange,
        connections_lost: tally.connections_lost,
        latency: tally.latency.percentiles(),
        began: timely.began.percentiles(),
        answered: timely.answered.percentiles(),
        echo: echo.map(Echo::stop).transpose()?.and_then(|hops| hops.percentiles()),
    })
}

impl Sender {
    async fn send_all(&self, server: &Server, plan: Plan) -> anyhow::Result<Timely> {
        match (self, plan.rate) {
            (Self::Broker { publishers, window }, None) => {
                let pace = Pace { window: *window, bytes: plan.bytes };
                publish(server, plan.choice, *publishers, pace).await?;
            }
            (Self::Broker { .. }, Some(rate)) => {
                publish_at_rate(server, plan.choice, rate, plan.bytes).await?;
            }
            (Self::Gateway { api, devices, concurrency }, None) => {
                request(api, devices, plan, *concurrency).await?;
            }
            (Self::Gateway { api, devices, concurrency }, Some(rate)) => {
                return request_at_rate(api, devices, plan, rate, *concurrency).await;
            }
        }
        Ok(Timely::default())
    }
}

/// One publisher of a broker, whatever comes back.
pub async fn publish_at_rate(
    server: &Server,
    choice: Choice,
    rate: f64,
    bytes: usize,
) -> anyhow::Result<()> {
    let (target, version) = (server.setup.target, server.setup.version);
    let run = move || {
        // Number 0 may be a publisher of broadcasts.
        let publisher = Publisher::connect(target, version, 1)?;
        publisher.publish_at_rate(&choice, rate, bytes)
    };
    spawn_blocking(run).await.context("the publisher has panicked")?
}

async fn publish(
    server: &Server,
    choice: Choice,
    publishers: u32,
    pace: Pace,
) -> anyhow::Result<()> {
    let (target, version) = (server.setup.target, server.setup.version);
    let mut threads = JoinSet::new();
    for first in 0..publishers {
        threads.spawn_blocking(move || {
            let mut publisher = Publisher::connect(target, version, first as usize)?;
            publisher.publish_all(&choice, first, publishers, pace)
        });
    }
    all_done(threads).await
}

async fn request(
    api: &Api,
    devices: &Arc<Credentials>,
    plan: Plan,
    concurrency: usize,
) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU32::new(0));
    let mut senders = JoinSet::new();
    for _ in 0..concurrency {
        let (api, devices, next) = (api.clone(), devices.clone(), next.clone());
        senders.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= plan.choice.sends {
                    return anyhow::Ok(());
                }
                send(&api, &devices, plan, n, clock::unix_us()).await?;
            }
        });
    }
    all_done(senders).await
}

/// A thread keeps the time; each request is a task on one of `connections`, so that a slow one holds up no other.
/// A message's stamp is when it was due: what waits for a connection is late, not left out.
async fn request_at_rate(
    api: &Api,
    devices: &Arc<Credentials>,
    plan: Plan,
    rate: f64,
    connections: usize,
) -> anyhow::Result<Timely> {
    api.warm(connections).await?;
    let (ticks, mut due) = mpsc::channel(TICKS_MAX);
    let timer = spawn_blocking(move || {
        let (start, start_us) = (Instant::now(), clock::unix_us());
        for n in 0..plan.choice.sends {
            let after = Duration::from_secs_f64(f64::from(n) / rate);
            wait_until(start + after);
            if ticks.blocking_send((n, start_us + after.as_micros() as u64)).is_err() {
                return;
            }
        }
    });
    let (free, mut calls) = (Arc::new(Semaphore::new(connections)), JoinSet::new());
    let mut timely = Timely::default();
    while let Some((n, due_us)) = due.recv().await {
        let connection = free.clone().acquire_owned().await?;
        let (api, devices) = (api.clone(), devices.clone());
        calls.spawn(async move {
            let late_us = clock::unix_us().saturating_sub(due_us);
            send(&api, &devices, plan, n, due_us).await?;
            drop(connection);
            anyhow::Ok((late_us, clock::unix_us().saturating_sub(due_us)))
        });
        while let Some(call) = calls.try_join_next() {
            timely.add(call.context("a sender has panicked")??);
        }
    }
    timer.await.context("the timer has panicked")?;
    while let Some(call) = calls.join_next().await {
        timely.add(call.context("a sender has panicked")??);
    }
    Ok(timely)
}

/// Sends at a rate, in microseconds behind the time when each was due.
#[derive(Default)]
struct Timely {
    /// When a connection took it.
    began: Histogram,
    answered: Histogram,
}

impl Timely {
    fn add(&mut self, (began_us, answered_us): (u64, u64)) {
        self.began.add(began_us);
        self.answered.add(answered_us);
    }
}

async fn send(
    api: &Api,
    devices: &Credentials,
    plan: Plan,
    n: u32,
    at_us: u64,
) -> anyhow::Result<()> {
    let chosen = plan.choice.devices(n);
    let regids: Vec<&str> = chosen.iter().map(|at| devices.device(*at).regid).collect();
    api.send_to(&regids, &payload_at(n, at_us, plan.bytes)).await
}

async fn all_done(mut tasks: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    while let Some(done) = tasks.join_next().await {
        done.context("a sender has panicked")??;
    }
    Ok(())
}

impl Outcome {
    pub fn table(&self) -> Table {
        let mut table =
            Table::new(format!("{} delivered in {:.2} s", self.delivered, self.seconds));
        table.row("messages/s", [number(Some(self.messages_per_s), 0)]);
        table.row("server, CPU s per million", [number(self.server_cpu_s_per_million, 1)]);
        let generator = Some(self.generator_cpu_s_per_million);
        table.row("generator's devices, CPU s per million", [number(generator, 1)]);
        table.row("lost", [self.lost.to_string()]);
        table.row("doubled", [self.doubled.to_string()]);
        table.row("strange", [self.strange.to_string()]);
        table.row("connections lost", [self.connections_lost.to_string()]);
        let parts =
            [("taken up", self.began), ("answered", self.answered), ("loopback", self.echo)];
        let there = parts.into_iter().filter(|(_, part)| part.is_some());
        let columns: Vec<_> = [("send to device", self.latency)].into_iter().chain(there).collect();
        table.percentiles(&columns);
        table
    }
}

const PUBLISHERS: usize = 4;
const REQUESTS: usize = 8;
const CONNECTIONS: usize = 64;
const BATCH: usize = 500;
const TICKS_MAX: usize = 1024;
const LATE: Duration = Duration::from_millis(500);
