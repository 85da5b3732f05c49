//! Load for a push gateway or an MQTT broker on this machine, measured.
//!
//! - `mqtt311`, `link`, `fleet`: devices that cost the generator as little as possible: plain MQTT 3.1.1, by hand.
//! - `api`: the app server's side.
//! - `process`, `report`: what it cost, and how it is told.
//! - `idle`, `unicast`: one file for each measurement.

#![forbid(unsafe_code)]

mod api;
mod credentials;
mod fleet;
mod idle;
mod link;
mod mqtt311;
mod process;
mod report;
mod unicast;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Load for a push gateway or an MQTT broker on this machine, measured.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None)]
struct Cli {
    /// Threads of the generator
    #[arg(long, default_value_t = 1, global = true)]
    threads: usize,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Open many connections and hold them
    Idle(idle::Idle),
    /// Send to random devices through the HTTP API while they receive and acknowledge
    Unicast(unicast::Unicast),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("carillon-loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cli.threads.max(1))
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        match cli.command {
            Command::Idle(idle) => idle.run().await,
            Command::Unicast(unicast) => unicast.run().await,
        }
    })
}
