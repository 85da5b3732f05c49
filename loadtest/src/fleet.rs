//! Opening many connections at a bounded rate of handshakes, from as many local addresses as their ports need.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::credentials::Device;
use crate::link::Link;
use crate::process;

/// Where the load goes.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// MQTT over TCP
    #[arg(long, value_name = "ADDR:PORT")]
    pub target: SocketAddr,
    /// Allow a target that is not on this machine
    #[arg(long)]
    allow_remote: bool,
    /// Handshakes at a time
    #[arg(long, default_value_t = 64)]
    handshakes: usize,
    /// What CONNECT states, in seconds; a ping comes after three quarters of it
    #[arg(long, default_value_t = 300)]
    pub keep_alive_s: u16,
}

impl Target {
    /// Refuses what could hurt somebody.
    pub fn check(&self, connections: usize) -> anyhow::Result<()> {
        let is_allowed = self.allow_remote || self.target.ip().is_loopback();
        ensure!(is_allowed, "{} is not this machine (--allow-remote)", self.target);
        let files = process::open_files_max()?;
        ensure!(
            connections + FILES_SPARE <= files,
            "{connections} connections need {} open files, and the limit is {files} (ulimit -n)",
            connections + FILES_SPARE
        );
        Ok(())
    }

    /// How long a connection stays silent before it pings.
    pub fn ping_after(&self) -> Duration {
        match self.keep_alive_s {
            0 => Duration::from_secs(1 << 30),
            seconds => Duration::from_secs(u64::from(seconds)) * 3 / 4,
        }
    }

    /// Opens a connection for each device, in order.
    pub async fn open(&self, first: usize, devices: &[Device]) -> anyhow::Result<Vec<Link>> {
        let devices: Arc<[Device]> = devices.into();
        let next = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        for _ in 0..self.handshakes.clamp(1, devices.len().max(1)) {
            let (target, devices, next) = (self.clone(), devices.clone(), next.clone());
            workers.spawn(async move { target.open_some(first, &devices, &next).await });
        }
        let mut links: Vec<Option<Link>> = Vec::new();
        links.resize_with(devices.len(), || None);
        while let Some(opened) = workers.join_next().await {
            for (at, link) in opened.context("a worker has panicked")?? {
                links[at] = Some(link);
            }
        }
        Ok(links.into_iter().flatten().collect())
    }

    async fn open_some(
        &self,
        first: usize,
        devices: &[Device],
        next: &AtomicUsize,
    ) -> anyhow::Result<Vec<(usize, Link)>> {
        let mut opened = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(device) = devices.get(at) else { return Ok(opened) };
            let from = self.local_address(first + at);
            let opening = Link::open(self.target, from, device, self.keep_alive_s);
            let link = timeout(OPEN_WITHIN, opening).await.context("no SUBACK in time")?;
            opened.push((at, link.with_context(|| format!("connection {}", first + at))?));
        }
    }

    /// Loopback has a whole network of addresses, each with its own ports: all are used in turn, so that the ports
    /// that still wait from an earlier run are no hindrance.
    fn local_address(&self, number: usize) -> SocketAddr {
        let ip: IpAddr = match self.target.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => {
                let host = (1 + number % ADDRESSES) as u8;
                Ipv4Addr::new(127, 0, 0, host).into()
            }
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(ip, 0)
    }
}

const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// Open files besides the connections.
const FILES_SPARE: usize = 100;
/// Local addresses that are used.
const ADDRESSES: usize = 200;
