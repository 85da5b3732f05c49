//! How long a message to one device takes while broadcasts go to a crowd: alone, then beside them.
//!
//! The devices that get the single messages follow the broadcasts too, but live in a process of their own: what the
//! crowd's process has still to read is no delay of the server's.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tempfile::NamedTempFile;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use crate::api::{Access, Api, topic_name};
use crate::credentials::Credentials;
use crate::crew::Crew;
use crate::echo::Echo;
use crate::fanout::Source;
use crate::histogram::{Histogram, Percentiles};
use crate::order::{Choice, Open, Speech, Tally, TopicOf, Watch};
use crate::publisher::payload;
use crate::report::{Line, Output, Table, number};
use crate::target::{Server, Target};
use crate::unicast::publish_at_rate;

/// Send to single devices while broadcasts to all of them run.
#[derive(Debug, Args)]
pub struct Lanes {
    /// Devices, those that get the single messages among them
    #[arg(long, default_value_t = 18_000)]
    devices: usize,
    /// Devices that get the single messages
    #[arg(long, default_value_t = 200)]
    witnesses: usize,
    /// Single messages of each part
    #[arg(long, default_value_t = 2_000)]
    messages: u32,
    /// Single messages a second
    #[arg(long, value_name = "PER_SECOND", default_value_t = 200.0)]
    rate: f64,
    /// Priority of the single messages of a gateway
    #[arg(long, default_value = "high")]
    priority: String,
    /// Priority of the broadcasts of a gateway
    #[arg(long, default_value = "low")]
    broadcast: String,
    /// Broadcasts end after so long, even if single messages beside them have not arrived
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    within: f64,
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

/// Who sends.
pub enum Sender {
    Gateway {
        api: Api,
        devices: Arc<Credentials>,
        /// Of the single messages, and of the broadcasts.
        priorities: [String; 2],
    },
    /// One publisher of broadcasts, and one of single messages.
    Broker(Source),
}

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Devices that get the single messages, the first ones.
    pub witnesses: usize,
    /// Single messages of each part, and how many a second.
    pub messages: u32,
    pub rate: f64,
    /// Broadcasts end when the single messages beside them have arrived, at the latest after so long.
    pub within: Duration,
    /// Of a payload.
    pub bytes: usize,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    devices: usize,
    /// From the sender to the device, nothing else being sent.
    pub alone: Option<Percentiles>,
    /// The same while broadcasts run; with those that came only when the broadcasts had been ended.
    pub beside: Option<Percentiles>,
    /// Single messages that were with their devices before the broadcasts ended.
    pub in_time: u64,
    pub messages: u32,
    /// One hop over loopback between two threads, meanwhile.
    echo: Option<Percentiles>,
    broadcasts: u32,
    /// To the crowd, while the single messages were sent.
    pub broadcast_deliveries_per_s: f64,
    pub lost: u64,
    pub doubled: u64,
}

impl Lanes {
    pub async fn run(self) -> anyhow::Result<()> {
        ensure!(self.witnesses > 0 && self.witnesses < self.devices, "--witnesses: 1 to --devices");
        ensure!(self.rate.is_finite() && self.rate > 0.0, "--rate must be more than 0");
        ensure!(self.messages > 0, "no messages: give --messages at least 1");
        let within = Duration::try_from_secs_f64(self.within).context("--within is no time")?;
        let server = self.target.server(self.devices, TopicOf::All, 1)?;
        server.check_can_send()?;
        let sender = match &server.setup.speech {
            Speech::Broker { .. } => Sender::Broker(Source::broker(&server).await?),
            Speech::Plain { credentials } | Speech::Frames { credentials } => {
                let api = self.access.client(self.target.ca.as_ref(), self.target.allow_remote)?;
                let devices = Credentials::read(credentials, self.devices, 0, 1)?;
                api.subscribe_all(&devices, 1).await?;
                let priorities = [self.priority.clone(), self.broadcast.clone()];
                Sender::Gateway { api, devices: devices.into(), priorities }
            }
        };
        let Self { witnesses, messages, rate, bytes, .. } = self;
        let plan = Plan { witnesses, messages, rate, within, bytes };
        let outcome = measure(&server, &sender, plan, self.output.line("lanes")).await?;
        let result = json!({ "kind": "lanes", "result": outcome });
        self.output.tell(&[outcome.table()], &result)?;
        ensure!((outcome.lost, outcome.doubled) == (0, 0), "messages were lost or doubled");
        Ok(())
    }
}

/// The devices of `server` are closed before and after. All follow the topic of a fan-out.
pub async fn measure(
    server: &Server,
    sender: &Sender,
    plan: Plan,
    line: Line,
) -> anyhow::Result<Outcome> {
    let devices = server.setup.devices;
    let (few_server, _few) = part(server, sender, 0..plan.witnesses, TopicOf::Each)?;
    let (crowd_server, _crowd) = part(server, sender, plan.witnesses..devices, TopicOf::All)?;
    let mut crowd = Crew::start(&crowd_server.setup, crowd_server.processes, line.clone()).await?;
    let mut few = Crew::start(&few_server.setup, 1, line).await?;
    for (crew, server) in [(&mut crowd, &crowd_server), (&mut few, &few_server)] {
        let devices = server.setup.devices;
        crew.open_all(Open { retries_max: 20, ..server.open(devices) }).await?;
    }
    // Devices of new processes have no positions: they are given again what the last ones had.
    sleep(QUIET).await;
    let sides = Sides { server, sender, plan };
    let alone = sides.alone(&mut few).await?;
    let Beside { singles, in_time, echo, fanned, broadcasts, took } =
        sides.beside(&mut few, &mut crowd).await?;
    crowd.stop().await?;
    few.stop().await?;
    Ok(Outcome {
        devices,
        alone: alone.latency.percentiles(),
        beside: singles.latency.percentiles(),
        in_time,
        messages: plan.messages,
        echo: echo.percentiles(),
        broadcasts,
        broadcast_deliveries_per_s: fanned.delivered as f64 / took.as_secs_f64(),
        lost: alone.lost + singles.lost,
        doubled: alone.doubled + singles.doubled + fanned.doubled,
    })
}

/// What the few got beside broadcasts, and how many of it in time; the loopback; what the crowd got: how many
/// broadcasts in how long.
struct Beside {
    singles: Tally,
    in_time: u64,
    echo: Histogram,
    fanned: Tally,
    broadcasts: u32,
    took: Duration,
}

struct Sides<'a> {
    server: &'a Server,
    sender: &'a Sender,
    plan: Plan,
}

impl Sides<'_> {
    async fn alone(&self, few: &mut Crew) -> anyhow::Result<Tally> {
        let choice = self.choice(1);
        few.watch(Watch::Unicast(choice)).await?;
        self.single(choice).await?;
        few.drained(u64::from(self.plan.messages), QUIET).await?;
        few.tally().await
    }

    async fn beside(&self, few: &mut Crew, crowd: &mut Crew) -> anyhow::Result<Beside> {
        let choice = self.choice(2);
        few.watch(Watch::Unicast(choice)).await?;
        crowd.watch(Watch::Fanout { messages: OTHERS }).await?;
        let echo = Echo::start()?;
        let (done, mut is_done) = watch::channel(false);
        let since = Instant::now();
        let singles = async {
            // The broadcasts are on their way first.
            sleep(QUIET / 4).await;
            let heard = async {
                let owed = u64::from(self.plan.messages);
                let in_time = few.heard(owed, self.plan.within).await?;
                done.send_replace(true);
                Ok(in_time)
            };
            let ((), in_time) = tokio::try_join!(self.single(choice), heard)?;
            anyhow::Ok(in_time)
        };
        let broadcasts = async {
            let mut n = 0;
            while !*is_done.borrow_and_update() {
                self.broadcast(payload(n, self.plan.bytes)).await?;
                let is_everywhere = crowd.fanned(n, ALL_WITHIN).await?;
                ensure!(is_everywhere, "broadcast {n} is not with all after {ALL_WITHIN:?}");
                n += 1;
            }
            anyhow::Ok((n, since.elapsed()))
        };
        let (in_time, (broadcasts, took)) = tokio::try_join!(singles, broadcasts)?;
        let echo = echo.stop()?;
        few.drained(u64::from(self.plan.messages), QUIET).await?;
        let (singles, fanned) = (few.tally().await?, crowd.tally().await?);
        Ok(Beside { singles, in_time, echo, fanned, broadcasts, took })
    }

    /// A gateway's witnesses get the broadcasts too, a broker's have one subscription.
    fn choice(&self, seed: u64) -> Choice {
        let Plan { witnesses, messages, .. } = self.plan;
        let from = match self.sender {
            Sender::Gateway { .. } => OTHERS,
            Sender::Broker(_) => 0,
        };
        Choice { seed, batch: 1, sends: messages, devices: witnesses, from }
    }

    async fn broadcast(&self, text: String) -> anyhow::Result<()> {
        match self.sender {
            Sender::Broker(source) => source.publish(text).await,
            Sender::Gateway { api, priorities: [_, priority], .. } => {
                api.send_topic_as(&topic_name(0), &text, Some(priority)).await
            }
        }
    }

    async fn single(&self, choice: Choice) -> anyhow::Result<()> {
        let Plan { rate, bytes, .. } = self.plan;
        match self.sender {
            Sender::Broker(_) => publish_at_rate(self.server, choice, rate, bytes).await,
            Sender::Gateway { api, devices, priorities: [priority, _] } => {
                let start = tokio::time::Instant::now();
                let mut calls = JoinSet::new();
                for n in 0..choice.sends {
                    sleep_until(start + Duration::from_secs_f64(f64::from(n) / rate)).await;
                    // Each request is a task, so that a slow one holds up no other.
                    let (api, devices, priority) = (api.clone(), devices.clone(), priority.clone());
                    calls.spawn(async move {
                        let at = choice.devices(n)[0];
                        let text = payload(choice.from + n, bytes);
                        api.send_one(devices.device(at).regid, &text, &priority).await
                    });
                }
                while let Some(call) = calls.join_next().await {
                    call.context("a sender has panicked")??;
                }
                Ok(())
            }
        }
    }
}

/// The same server for some of the devices; a gateway's accounts are in a file of their own.
fn part(
    server: &Server,
    sender: &Sender,
    which: Range<usize>,
    topic: TopicOf,
) -> anyhow::Result<(Server, NamedTempFile)> {
    let mut file = NamedTempFile::new()?;
    let mut part = server.clone();
    part.setup.devices = which.len();
    match (&mut part.setup.speech, sender) {
        (Speech::Broker { topic: followed, .. }, _) => *followed = topic,
        (Speech::Plain { credentials } | Speech::Frames { credentials }, sender) => {
            let Sender::Gateway { devices, .. } = sender else { bail!("a broker has no accounts") };
            writeln!(file, "device_id,secret,regid")?;
            for at in which {
                let device = devices.device(at);
                writeln!(file, "{},{},{}", device.device_id, device.secret, device.regid)?;
            }
            file.flush()?;
            *credentials = file.path().into();
        }
    }
    Ok((part, file))
}

impl Outcome {
    fn table(&self) -> Table {
        let Self { devices, broadcasts, .. } = self;
        let mut table = Table::new(format!("{broadcasts} broadcasts to {devices} devices"));
        table.row("deliveries of broadcasts/s", [number(Some(self.broadcast_deliveries_per_s), 0)]);
        let in_time = format!("{} of {}", self.in_time, self.messages);
        table.row("single messages that came beside them", [in_time]);
        table.row("lost", [self.lost.to_string()]);
        table.row("doubled", [self.doubled.to_string()]);
        table.percentiles(&[
            ("alone", self.alone),
            ("beside broadcasts", self.beside),
            ("loopback meanwhile", self.echo),
        ]);
        table
    }
}

/// Broadcasts have lower numbers than single messages.
const OTHERS: u32 = 2_000;
const QUIET: Duration = Duration::from_secs(2);
const ALL_WITHIN: Duration = Duration::from_secs(30);
