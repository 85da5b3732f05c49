//! All devices are cut at once and all come back at once: how long until the last one is there again.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use crate::crew::Crew;
use crate::histogram::Percentiles;
use crate::order::{Cut, Open, TopicOf};
use crate::report::{Output, Table, number};
use crate::target::{Server, Target};

/// Cut all devices at once; all come back at once.
#[derive(Debug, Args)]
pub struct Storm {
    /// Devices
    #[arg(long, default_value_t = 1000)]
    devices: usize,
    /// How they are cut
    #[arg(long, value_enum, default_value_t = Cut::Rst)]
    cut: Cut,
    /// Attempts of each device after its first; between them it waits at random, longer each time
    #[arg(long, default_value_t = 30)]
    retries: u8,
    /// Where the server said when to come back, wait so long besides
    #[arg(long)]
    honour_advice: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub cut: Cut,
    pub retries: u8,
    pub honour_advice: bool,
}

/// What came out. Latencies count from the cut.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub devices: usize,
    pub back: usize,
    pub seconds: f64,
    pub refused: usize,
    pub timed_out: usize,
    pub retries: usize,
    pub advised: usize,
    pub failed: usize,
    /// Why, of one of those that failed.
    pub error: Option<String>,
    pub server_cpu_s: Option<f64>,
    pub connack: Option<Percentiles>,
    pub ready: Option<Percentiles>,
}

impl Storm {
    pub async fn run(self) -> anyhow::Result<()> {
        let server = self.target.server(self.devices, TopicOf::Each, 1)?;
        let mut crew =
            Crew::start(&server.setup, server.processes, self.output.line("storm")).await?;
        crew.open_all(Open { retries_max: self.retries, ..server.open(self.devices) }).await?;
        sleep(SETTLE).await;
        let Self { cut, retries, honour_advice, .. } = self;
        let outcome = measure(&mut crew, &server, Plan { cut, retries, honour_advice }).await?;
        crew.stop().await?;
        let result = json!({ "kind": "storm", "result": outcome });
        self.output.tell(&[outcome.table()], &result)?;
        anyhow::ensure!(outcome.failed == 0, "{} devices did not come back", outcome.failed);
        Ok(())
    }
}

/// The devices are open before and after.
pub async fn measure(crew: &mut Crew, server: &Server, plan: Plan) -> anyhow::Result<Outcome> {
    let devices = server.setup.devices;
    let before = server.cpu_seconds()?;
    crew.cut(plan.cut).await?;
    let order = Open {
        at_once: devices,
        retries_max: plan.retries,
        honour_advice: plan.honour_advice,
        from_order: true,
        ..server.open(devices)
    };
    let opened = crew.open(order).await?;
    Ok(Outcome {
        devices,
        back: opened.opened,
        seconds: opened.us as f64 / 1e6,
        refused: opened.refused,
        timed_out: opened.timed_out,
        retries: opened.retries,
        advised: opened.advised,
        failed: opened.failed,
        error: opened.error,
        server_cpu_s: server.known(server.cpu_seconds()? - before),
        connack: opened.connack.percentiles(),
        ready: opened.ready.percentiles(),
    })
}

impl Outcome {
    pub fn table(&self) -> Table {
        let Self { devices, back, seconds, .. } = self;
        let mut table =
            Table::new(format!("{devices} devices cut at once, {back} back in {seconds:.2} s"));
        let [refused, timed_out, retries, advised, failed] =
            [self.refused, self.timed_out, self.retries, self.advised, self.failed]
                .map(|count| number(Some(count as f64), 0));
        table.row("refused", [refused]);
        table.row("timed out", [timed_out]);
        table.row("retries", [retries]);
        table.row("told when to come back", [advised]);
        table.row("failed", [failed]);
        if let Some(error) = &self.error {
            table.row("one of them", [error.as_str()]);
        }
        table.row("server, CPU s", [number(self.server_cpu_s, 2)]);
        table.percentiles(&[("to CONNACK", self.connack), ("to resumed", self.ready)]);
        table
    }
}

/// What follows the first connects is over by then.
const SETTLE: Duration = Duration::from_secs(1);
