//! The command line.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::nat::NatBox;
use crate::report::{Output, Table, number};
use crate::target::check_local;
use crate::{compare, connect, fanout, floor, idle, lanes, storm, sync, unicast, worker};

/// Load for a push gateway or an MQTT broker on this machine, measured.
#[derive(Debug, Parser)]
#[command(name = "carillon-loadtest", version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Connect many devices, some at once
    Connect(Box<connect::Connect>),
    /// Hold many connections and read the server's memory
    Idle(Box<idle::Idle>),
    /// Cut all devices at once; all come back at once
    Storm(Box<storm::Storm>),
    /// Publish to one topic that all devices follow
    Fanout(Box<fanout::Fanout>),
    /// Send to random devices while they receive and acknowledge
    Unicast(Box<unicast::Unicast>),
    /// Send to single devices while broadcasts to all run
    Lanes(Box<lanes::Lanes>),
    /// Fill collections, then let devices fetch them, resume, and upload edits
    Sync(Box<sync::Sync>),
    /// Be a box on the way to a server which forgets idle flows
    Nat(Nat),
    /// Measure servers that do nothing else: the physical limit of this machine
    Floor(Box<floor::Floor>),
    /// Measure the gateway, other brokers and the floors side by side
    Compare(Box<compare::Compare>),
    /// A share of the devices; started by the other commands
    #[command(hide = true)]
    Worker,
    /// The devices of `sync`, one after the other; started by it
    #[command(hide = true)]
    SyncDevice(sync::SyncDevice),
    /// A server for comparisons; started by the other commands
    #[command(hide = true)]
    Serve(floor::Serve),
}

/// Be a box on the way to a server which forgets idle flows.
#[derive(Debug, Args)]
struct Nat {
    /// The server behind it
    #[arg(long, value_name = "ADDR:PORT")]
    target: SocketAddr,
    /// Where devices connect
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Silence after which a flow is forgotten
    #[arg(long, value_name = "MS")]
    timeout_ms: u64,
    /// End after so long; the default is to go on until it is interrupted
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Allow a target that is not on this machine
    #[arg(long)]
    allow_remote: bool,
    #[command(flatten)]
    output: Output,
}

impl Nat {
    async fn run(self) -> anyhow::Result<()> {
        check_local(self.target, self.allow_remote)?;
        ensure!(self.timeout_ms > 0, "--timeout-ms must be at least 1");
        let forget_after = Duration::from_millis(self.timeout_ms);
        let nat = NatBox::start_on(self.listen, self.target, forget_after);
        let nat = nat.with_context(|| format!("cannot listen on {}", self.listen))?;
        eprintln!("connect to {}", nat.addr());
        let line = self.output.line("nat");
        let tick = async {
            loop {
                tokio::time::sleep(SHOW_EVERY).await;
                let (opened, forgotten) = (nat.flows_opened(), nat.flows_forgotten());
                line.show(&format!("{opened} flows, {forgotten} forgotten"));
            }
        };
        let seconds = self.seconds.map(Duration::try_from_secs_f64).transpose();
        let end = async {
            match seconds.context("--seconds")? {
                Some(seconds) => tokio::time::sleep(seconds).await,
                None => tokio::signal::ctrl_c().await.context("cannot wait for an interrupt")?,
            }
            anyhow::Ok(())
        };
        tokio::select! {
            ended = end => ended?,
            () = tick => {}
        }
        drop(line);
        let counts =
            [nat.flows_opened(), nat.flows_forgotten(), nat.bytes_passed(), nat.bytes_dropped()];
        let names = ["flows opened", "flows forgotten", "bytes passed", "bytes dropped"];
        let mut table = Table::new(format!("forgets after {} ms", self.timeout_ms));
        for (name, count) in names.iter().zip(counts) {
            table.row(*name, [number(Some(count as f64), 0)]);
        }
        let silences = nat.silences();
        let (survived, fatal) = (silences.survived.percentiles(), silences.fatal.percentiles());
        table.percentiles(&[("silences survived", survived), ("fatal", fatal)]);
        let [opened, forgotten, passed, dropped] = counts;
        let result = json!({ "kind": "nat", "result": {
            "flows_opened": opened,
            "flows_forgotten": forgotten,
            "bytes_passed": passed,
            "bytes_dropped": dropped,
            "silences_survived": survived,
            "silences_fatal": fatal,
        }});
        self.output.tell(&[table], &result)
    }
}

/// What `main` does.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("carillon-loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Worker => worker::run(),
        Command::Serve(serve) => serve.run(),
        Command::SyncDevice(device) => runtime()?.block_on(device.run()),
        Command::Connect(connect) => measure(connect.run()),
        Command::Idle(idle) => measure(idle.run()),
        Command::Storm(storm) => measure(storm.run()),
        Command::Fanout(fanout) => measure(fanout.run()),
        Command::Unicast(unicast) => measure(unicast.run()),
        Command::Lanes(lanes) => measure(lanes.run()),
        Command::Sync(sync) => measure(sync.run()),
        Command::Nat(nat) => runtime()?.block_on(nat.run()),
        Command::Floor(floor) => measure(floor.run()),
        Command::Compare(compare) => measure(compare.run()),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")
}

/// Runs it until its end or until somebody ends it; either way its child processes are gone then.
fn measure(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot hear signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot hear signals")?;
        tokio::select! {
            done = work => done,
            _ = terminate.recv() => bail!("terminated"),
            _ = interrupt.recv() => bail!("interrupted"),
        }
    })
}

const SHOW_EVERY: Duration = Duration::from_secs(1);
