//! How fast devices connect, authenticate and resume, and what each costs.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use crate::crew::Crew;
use crate::histogram::Percentiles;
use crate::order::{Cut, Open, Speech, TopicOf};
use crate::report::{Output, Table, number};
use crate::target::{Server, Target};

/// Connect many devices, some at once.
#[derive(Debug, Args)]
pub struct Connect {
    /// Devices
    #[arg(long, default_value_t = 1000)]
    devices: usize,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub devices: usize,
    pub seconds: f64,
    pub connects_per_s: f64,
    pub server_cpu_us_per_connect: Option<f64>,
    pub generator_cpu_us_per_connect: f64,
    pub generator_bytes_per_device: f64,
    pub refused: usize,
    pub timed_out: usize,
    /// Devices whose digest the gateway did not agree with.
    pub asked_positions: usize,
    pub tls_resumed: usize,
    pub connack: Option<Percentiles>,
    pub ready: Option<Percentiles>,
}

impl Connect {
    pub async fn run(self) -> anyhow::Result<()> {
        let server = self.target.server(self.devices, TopicOf::Each, 1)?;
        let mut crew =
            Crew::start(&server.setup, server.processes, self.output.line("connect")).await?;
        prime(&mut crew, &server).await?;
        let outcome = measure(&mut crew, &server).await?;
        crew.stop().await?;
        let result = json!({ "kind": "connect", "result": outcome });
        self.output.tell(&[outcome.table()], &result)
    }
}

/// Lets the devices connect once where the second time differs: they have positions then, and session tickets.
pub async fn prime(crew: &mut Crew, server: &Server) -> anyhow::Result<()> {
    let has_tickets = server.setup.tls.as_ref().is_some_and(|tls| tls.resume);
    if !has_tickets && !matches!(server.setup.speech, Speech::Frames { .. }) {
        return Ok(());
    }
    crew.open_all(server.open(server.setup.devices)).await?;
    // What is pushed at first, and its acknowledgement, comes behind the resume.
    sleep(SETTLE).await;
    crew.cut(Cut::Disconnect).await?;
    sleep(SETTLE).await;
    Ok(())
}

/// Opens all devices, which are closed.
pub async fn measure(crew: &mut Crew, server: &Server) -> anyhow::Result<Outcome> {
    let devices = server.setup.devices;
    let before = (server.cpu_seconds()?, crew.cpu_seconds()?);
    let order = Open { retries_max: RETRIES_MAX, ..server.open(devices) };
    let opened = crew.open_all(order).await?;
    let after = (server.cpu_seconds()?, crew.cpu_seconds()?);
    let each_us = |seconds: f64| seconds * 1e6 / devices as f64;
    let seconds = opened.us as f64 / 1e6;
    Ok(Outcome {
        devices,
        seconds,
        connects_per_s: devices as f64 / seconds,
        server_cpu_us_per_connect: server.known(each_us(after.0 - before.0)),
        generator_cpu_us_per_connect: each_us(after.1 - before.1),
        generator_bytes_per_device: crew.bytes_per_device(devices)?,
        refused: opened.refused,
        timed_out: opened.timed_out,
        asked_positions: opened.asked_positions,
        tls_resumed: opened.tls_resumed,
        connack: opened.connack.percentiles(),
        ready: opened.ready.percentiles(),
    })
}

impl Outcome {
    pub fn table(&self) -> Table {
        let title = format!("{} devices connected in {:.2} s", self.devices, self.seconds);
        let mut table = Table::new(title);
        table.row("connects/s", [number(Some(self.connects_per_s), 0)]);
        table.row("server, CPU µs each", [number(self.server_cpu_us_per_connect, 1)]);
        table.row("generator, CPU µs each", [number(Some(self.generator_cpu_us_per_connect), 1)]);
        table.row("generator, bytes each", [number(Some(self.generator_bytes_per_device), 0)]);
        table.row("refused", [self.refused.to_string()]);
        table.row("timed out", [self.timed_out.to_string()]);
        table.row("asked for positions", [self.asked_positions.to_string()]);
        table.row("TLS resumed", [self.tls_resumed.to_string()]);
        table.percentiles(&[("to CONNACK", self.connack), ("to resumed", self.ready)]);
        table
    }
}

/// A broker that turns some away must not end the measurement; they are counted.
const RETRIES_MAX: u8 = 20;
const SETTLE: Duration = Duration::from_secs(1);
