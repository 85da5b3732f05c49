//! Many connections that do nothing: what one costs the server in memory.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use crate::fleet::Target;
use crate::link::Link;
use crate::{credentials, process, report};

/// Open many connections and hold them.
#[derive(Debug, Args)]
pub struct Idle {
    /// Connections
    #[arg(long)]
    count: usize,
    /// CSV of device_id,secret,regid
    #[arg(long, value_name = "FILE")]
    credentials: PathBuf,
    #[command(flatten)]
    target: Target,
    /// The server's process, to read its memory
    #[arg(long, visible_alias = "admin-pid", value_name = "PID")]
    pid: Option<u32>,
    /// Counts at which memory is read; the slope is taken between the last two
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000])]
    at: Vec<usize>,
    /// How long memory has to settle before it is read
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    settle: u64,
    /// How long to hold the connections at the end
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    hold: u64,
    /// Write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Memory at a number of connections.
#[derive(Clone, Copy, Debug)]
struct Sample {
    connections: usize,
    bytes: u64,
}

impl Idle {
    pub async fn run(self) -> anyhow::Result<()> {
        self.target.check(self.count)?;
        let devices = credentials::read(&self.credentials, self.count)?;
        let mut holders = JoinSet::new();
        let mut samples = Vec::new();
        let mut open = 0;
        for stop in self.stops() {
            let start = Instant::now();
            let links = self.target.open(open, &devices[open..stop]).await?;
            let rate = links.len() as f64 / start.elapsed().as_secs_f64();
            open = stop;
            for link in links {
                holders.spawn(hold(link, self.target.ping_after()));
            }
            print!("{open} connections, {rate:.0}/s");
            if let Some(pid) = self.pid {
                sleep(Duration::from_secs(self.settle)).await;
                let bytes = process::anonymous_bytes(pid)?;
                print!(", {:.1} MB anonymous", bytes as f64 / 1e6);
                samples.push(Sample { connections: open, bytes });
            }
            println!();
        }
        let slope = slope(&samples);
        if let Some(slope) = slope {
            println!("{slope:.0} bytes per connection");
        }
        self.hold(&mut holders).await?;
        let samples = samples.iter().map(|sample| json!([sample.connections, sample.bytes]));
        let result = json!({
            "kind": "idle",
            "connections": open,
            "anonymous_bytes": samples.collect::<Vec<_>>(),
            "bytes_per_connection": slope,
        });
        report::write(self.json.as_deref(), &result)
    }

    /// The counts to stop at, ascending, the last one at the end.
    fn stops(&self) -> Vec<usize> {
        let mut stops = self.at.clone();
        stops.retain(|stop| (1..self.count).contains(stop));
        stops.push(self.count);
        stops.sort_unstable();
        stops.dedup();
        stops
    }

    /// Every connection must last.
    async fn hold(&self, holders: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
        let held = tokio::select! {
            () = sleep(Duration::from_secs(self.hold)) => return Ok(()),
            Some(ended) = holders.join_next() => ended.context("a connection's task")?,
        };
        held.context("a connection did not last")
    }
}

/// Holds a connection until it breaks.
async fn hold(mut link: Link, ping_after: Duration) -> anyhow::Result<()> {
    let mut ping_at = tokio::time::Instant::now() + ping_after;
    loop {
        tokio::select! {
            ready = link.ready() => {
                ready?;
                link.turn(&mut |_| Ok(()))?;
            }
            () = sleep_until(ping_at) => {
                link.ping()?;
                ping_at += ping_after;
            }
        }
    }
}

fn slope(samples: &[Sample]) -> Option<f64> {
    let [.., first, last] = samples else { return None };
    let connections = (last.connections - first.connections) as f64;
    Some((last.bytes as f64 - first.bytes as f64) / connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_between_the_last_two() {
        let sample = |connections, bytes| Sample { connections, bytes };
        assert_eq!(slope(&[sample(1, 500), sample(10, 1000), sample(20, 3000)]), Some(200.0));
        assert_eq!(slope(&[sample(10, 1000)]), None);
    }
}
