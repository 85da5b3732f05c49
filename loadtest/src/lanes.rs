//! How long a message to one device takes while broadcasts go to a crowd: alone, then beside them.
//!
//! The devices that get the single messages follow the broadcasts too, but live in a process of their own: what the
//! crowd's process has still to read is no delay of the server's.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
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
use crate::histogram::Percentiles;
use crate::order::{Choice, Open, Speech, TopicOf, Watch};
use crate::publisher::payload;
use crate::report::{Output, Table, number};
use crate::target::{Server, Target};

/// Send to single devices of a gateway while broadcasts to all of them run.
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
    /// Priority of the single messages
    #[arg(long, default_value = "high")]
    priority: String,
    /// Priority of the broadcasts
    #[arg(long, default_value = "low")]
    broadcast: String,
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

/// What came out.
#[derive(Clone, Debug, Serialize)]
struct Outcome {
    devices: usize,
    /// From the API to the device, nothing else being sent.
    alone: Option<Percentiles>,
    /// The same while broadcasts run.
    beside: Option<Percentiles>,
    /// One hop over loopback between two threads, meanwhile.
    echo: Option<Percentiles>,
    broadcasts: u32,
    /// To the crowd, while the single messages were sent.
    broadcast_deliveries_per_s: f64,
    lost: u64,
    doubled: u64,
}

impl Lanes {
    pub async fn run(self) -> anyhow::Result<()> {
        ensure!(self.witnesses > 0 && self.witnesses < self.devices, "--witnesses: 1 to --devices");
        ensure!(self.rate.is_finite() && self.rate > 0.0, "--rate must be more than 0");
        ensure!(self.messages > 0, "no messages: give --messages at least 1");
        let server = self.target.server(self.devices, TopicOf::All, 1)?;
        ensure!(server.setup.tls.is_none(), "--tls is for connect, idle and storm");
        let (Speech::Plain { credentials } | Speech::Frames { credentials }) = &server.setup.speech
        else {
            anyhow::bail!("a broker has no lanes: give --credentials of a gateway");
        };
        let api = self.access.client(self.target.ca.as_ref(), self.target.allow_remote)?;
        let all = Credentials::read(credentials, self.devices, 0, 1)?;
        api.subscribe_all(&all, 1).await?;
        let crowd = share(&all, self.witnesses..self.devices)?;
        let witnesses = share(&all, 0..self.witnesses)?;
        let line = self.output.line("lanes");
        let part = |file: &NamedTempFile, devices| part(&server, file.path().into(), devices);
        let crowd_server = part(&crowd, self.devices - self.witnesses);
        let witness_server = part(&witnesses, self.witnesses);
        let mut crowd =
            Crew::start(&crowd_server.setup, crowd_server.processes, line.clone()).await?;
        let mut few = Crew::start(&witness_server.setup, 1, line).await?;
        for (crew, server) in [(&mut crowd, &crowd_server), (&mut few, &witness_server)] {
            let devices = server.setup.devices;
            crew.open_all(Open { retries_max: 20, ..server.open(devices) }).await?;
        }
        let outcome = self.measure(&mut crowd, &mut few, &api, &Arc::new(all)).await?;
        crowd.stop().await?;
        few.stop().await?;
        let result = json!({ "kind": "lanes", "result": outcome });
        self.output.tell(&[outcome.table()], &result)?;
        ensure!((outcome.lost, outcome.doubled) == (0, 0), "messages were lost or doubled");
        Ok(())
    }

    async fn measure(
        &self,
        crowd: &mut Crew,
        few: &mut Crew,
        api: &Api,
        devices: &Arc<Credentials>,
    ) -> anyhow::Result<Outcome> {
        let choice = |seed| Choice {
            seed,
            batch: 1,
            sends: self.messages,
            devices: self.witnesses,
            from: OTHERS,
        };
        few.watch(Watch::Unicast(choice(1))).await?;
        self.single(api, devices, choice(1)).await?;
        few.drained(u64::from(self.messages), QUIET).await?;
        let alone = few.tally().await?;

        few.watch(Watch::Unicast(choice(2))).await?;
        crowd.watch(Watch::Fanout { messages: OTHERS }).await?;
        let echo = Echo::start()?;
        let (done, mut is_done) = watch::channel(false);
        let since = Instant::now();
        let singles = async {
            // The broadcasts are on their way first.
            sleep(QUIET / 4).await;
            let sent = self.single(api, devices, choice(2)).await;
            done.send_replace(true);
            sent
        };
        let broadcasts = async {
            let mut n = 0;
            while !*is_done.borrow_and_update() {
                let text = payload(n, self.bytes);
                api.send_topic_as(&topic_name(0), &text, Some(&self.broadcast)).await?;
                crowd.fanned(n, ALL_WITHIN).await?;
                n += 1;
            }
            anyhow::Ok((n, since.elapsed()))
        };
        let (sent, (broadcasts, took)) = tokio::try_join!(singles, broadcasts)?;
        let () = sent;
        let echo = echo.stop()?;
        few.drained(u64::from(self.messages), QUIET).await?;
        let (beside, fanned) = (few.tally().await?, crowd.tally().await?);
        Ok(Outcome {
            devices: self.devices,
            alone: alone.latency.percentiles(),
            beside: beside.latency.percentiles(),
            echo: echo.percentiles(),
            broadcasts,
            broadcast_deliveries_per_s: fanned.delivered as f64 / took.as_secs_f64(),
            lost: alone.lost + beside.lost,
            doubled: alone.doubled + beside.doubled + fanned.doubled,
        })
    }

    /// Each request is a task, so that a slow one holds up no other.
    async fn single(
        &self,
        api: &Api,
        devices: &Arc<Credentials>,
        choice: Choice,
    ) -> anyhow::Result<()> {
        let start = tokio::time::Instant::now();
        let mut calls = JoinSet::new();
        for n in 0..choice.sends {
            sleep_until(start + Duration::from_secs_f64(f64::from(n) / self.rate)).await;
            let (api, devices, priority) = (api.clone(), devices.clone(), self.priority.clone());
            let bytes = self.bytes;
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

/// Some of the accounts, as a file of their own.
fn share(all: &Credentials, which: std::ops::Range<usize>) -> anyhow::Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    writeln!(file, "device_id,secret,regid")?;
    for at in which {
        let device = all.device(at);
        writeln!(file, "{},{},{}", device.device_id, device.secret, device.regid)?;
    }
    file.flush()?;
    Ok(file)
}

/// The same server, for the devices of a file.
fn part(server: &Server, credentials: PathBuf, devices: usize) -> Server {
    let mut part = server.clone();
    part.setup.devices = devices;
    part.setup.speech = match &part.setup.speech {
        Speech::Plain { .. } => Speech::Plain { credentials },
        Speech::Frames { .. } | Speech::Broker { .. } => Speech::Frames { credentials },
    };
    part
}

impl Outcome {
    fn table(&self) -> Table {
        let Self { devices, broadcasts, .. } = self;
        let mut table = Table::new(format!("{broadcasts} broadcasts to {devices} devices"));
        table.row("deliveries of broadcasts/s", [number(Some(self.broadcast_deliveries_per_s), 0)]);
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
