//! Messages to random devices, durable before they are pushed: the rate, the cost, the latency, and that nothing is
//! lost or doubled.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::api::{Access, Api, Stamp};
use crate::credentials::{self, Device};
use crate::fleet::Target;
use crate::link::Link;
use crate::mqtt311::Incoming;
use crate::report::Percentiles;
use crate::{process, report};

/// Send to random devices through the HTTP API while they receive and acknowledge.
#[derive(Debug, Args)]
pub struct Unicast {
    /// Devices
    #[arg(long)]
    count: usize,
    /// CSV of device_id,secret,regid
    #[arg(long, value_name = "FILE")]
    credentials: PathBuf,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    access: Access,
    /// RegIDs of one request
    #[arg(long, default_value_t = 500)]
    batch: usize,
    /// Messages to deliver, counted once for each device
    #[arg(long, default_value_t = 100_000)]
    messages: usize,
    /// Requests at a time
    #[arg(long, default_value_t = 8)]
    concurrency: usize,
    /// The server's process, to read its processor time
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// How long to wait for the last deliveries
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
    /// Chooses the devices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What one device received.
#[derive(Debug, Default)]
struct Inbox {
    numbers: Vec<u32>,
    latencies_us: Vec<u64>,
}

/// What all tasks share.
#[derive(Debug)]
struct Run {
    start: Instant,
    delivered: AtomicU64,
    /// Of the newest delivery, in microseconds since the start.
    last_at_us: AtomicU64,
    next: AtomicU32,
}

/// What came out.
#[derive(Debug, Default)]
struct Outcome {
    lost: usize,
    doubled: usize,
    strange: usize,
    latencies_us: Vec<u64>,
}

impl Unicast {
    pub async fn run(self) -> anyhow::Result<()> {
        self.target.check(self.count + self.concurrency)?;
        ensure!((1..=self.count).contains(&self.batch), "a batch is at most all devices");
        let devices: Arc<[Device]> = credentials::read(&self.credentials, self.count)?.into();
        let api = self.access.client()?;
        println!("opening {} connections", self.count);
        let links = self.target.open(0, &devices).await?;
        let requests = u32::try_from(self.messages.div_ceil(self.batch))?;
        let run = Arc::new(Run::new());
        let (stop, stopped) = watch::channel(());
        let mut receivers = JoinSet::new();
        for (at, link) in links.into_iter().enumerate() {
            let (run, stopped) = (run.clone(), stopped.clone());
            let ping_after = self.target.ping_after();
            receivers.spawn(async move { (at, receive(link, &run, stopped, ping_after).await) });
        }
        let before = self.cpu()?;
        println!("sending {requests} requests of {} regids", self.batch);
        let sent = self.send_all(&api, &devices, &run, requests).await?;
        let owed = requests as u64 * self.batch as u64;
        self.drain(&run, owed).await;
        let after = self.cpu()?;
        drop(stop);
        let mut inboxes = Vec::new();
        inboxes.resize_with(self.count, Inbox::default);
        while let Some(received) = receivers.join_next().await {
            let (at, inbox) = received.context("a device's task")?;
            inboxes[at] = inbox.with_context(|| format!("device {at}"))?;
        }
        let outcome = judge(self.seed, self.batch, sent, inboxes);
        self.tell(&run, outcome, [after[0] - before[0], after[1] - before[1]])
    }

    /// Processor time of the server and of ourselves.
    fn cpu(&self) -> anyhow::Result<[f64; 2]> {
        let server = self.pid.map(process::cpu_seconds).transpose()?;
        Ok([server.unwrap_or(0.0), process::cpu_seconds(std::process::id())?])
    }

    /// Sends until all requests are answered; how many there were.
    async fn send_all(
        &self,
        api: &Api,
        devices: &Arc<[Device]>,
        run: &Arc<Run>,
        requests: u32,
    ) -> anyhow::Result<u32> {
        let mut senders = JoinSet::new();
        for _ in 0..self.concurrency.max(1) {
            let (api, devices, run) = (api.clone(), devices.clone(), run.clone());
            let (seed, batch) = (self.seed, self.batch);
            senders.spawn(async move {
                loop {
                    let n = run.next.fetch_add(1, Ordering::Relaxed);
                    if n >= requests {
                        return anyhow::Ok(());
                    }
                    let chosen = choose(seed, n, batch, devices.len());
                    let regids: Vec<&str> =
                        chosen.iter().map(|at| devices[*at].regid.as_str()).collect();
                    let stamp = Stamp { n, t: run.now_us() };
                    api.send(&regids, stamp).await?;
                }
            });
        }
        while let Some(sent) = senders.join_next().await {
            sent.context("a sender")??;
        }
        Ok(requests)
    }

    async fn drain(&self, run: &Run, owed: u64) {
        let deadline = Instant::now() + Duration::from_secs(self.drain);
        while run.delivered.load(Ordering::Relaxed) < owed && Instant::now() < deadline {
            sleep(POLL).await;
        }
        // What is doubled may come behind what was owed.
        sleep(LATE).await;
    }

    fn tell(&self, run: &Run, mut outcome: Outcome, cpu: [f64; 2]) -> anyhow::Result<()> {
        let delivered = outcome.latencies_us.len();
        let seconds = run.last_at_us.load(Ordering::Relaxed) as f64 / 1e6;
        let rate = delivered as f64 / seconds;
        let percentiles = Percentiles::of(&mut outcome.latencies_us);
        let [server, ours] = cpu.map(|seconds| seconds / delivered as f64 * 1e6);
        println!("{delivered} delivered in {seconds:.2} s: {rate:.0} messages/s");
        if self.pid.is_some() {
            println!("server {server:.1} CPU s per million");
        }
        println!("generator {ours:.1} CPU s per million");
        println!("lost {}, doubled {}, strange {}", outcome.lost, outcome.doubled, outcome.strange);
        println!("from the request's start to the device:");
        percentiles.iter().for_each(Percentiles::print);
        let server: Value = self.pid.map(|_| server).into();
        let result = json!({
            "kind": "unicast",
            "devices": self.count,
            "batch": self.batch,
            "concurrency": self.concurrency,
            "delivered": delivered,
            "seconds": seconds,
            "messages_per_s": rate,
            "server_cpu_s_per_million": server,
            "generator_cpu_s_per_million": ours,
            "lost": outcome.lost,
            "doubled": outcome.doubled,
            "strange": outcome.strange,
            "latency": percentiles,
        });
        report::write(self.json.as_deref(), &result)?;
        let is_clean = (outcome.lost, outcome.doubled, outcome.strange) == (0, 0, 0);
        ensure!(is_clean, "messages were lost, doubled or not for their receiver");
        Ok(())
    }
}

impl Run {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            delivered: AtomicU64::new(0),
            last_at_us: AtomicU64::new(0),
            next: AtomicU32::new(0),
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Receives until told to stop.
async fn receive(
    mut link: Link,
    run: &Run,
    mut stop: watch::Receiver<()>,
    ping_after: Duration,
) -> anyhow::Result<Inbox> {
    let mut inbox = Inbox::default();
    let mut ping_at = tokio::time::Instant::now() + ping_after;
    loop {
        tokio::select! {
            ready = link.ready() => {
                ready?;
                link.turn(&mut |incoming| inbox.take(incoming, run))?;
            }
            () = tokio::time::sleep_until(ping_at) => {
                link.ping()?;
                ping_at += ping_after;
            }
            _ = stop.changed() => {
                link.disconnect();
                return Ok(inbox);
            }
        }
    }
}

impl Inbox {
    fn take(&mut self, incoming: Incoming<'_>, run: &Run) -> anyhow::Result<()> {
        let Incoming::Publish { payload, .. } = incoming else { return Ok(()) };
        let stamp: Stamp = serde_json::from_slice(payload).context("a payload that is not ours")?;
        let now_us = run.now_us();
        self.numbers.push(stamp.n);
        self.latencies_us.push(now_us.saturating_sub(stamp.t));
        run.delivered.fetch_add(1, Ordering::Relaxed);
        run.last_at_us.fetch_max(now_us, Ordering::Relaxed);
        Ok(())
    }
}

/// Holds what each device received against what was sent to it.
fn judge(seed: u64, batch: usize, requests: u32, inboxes: Vec<Inbox>) -> Outcome {
    let mut owed = vec![HashSet::new(); inboxes.len()];
    for n in 0..requests {
        for at in choose(seed, n, batch, inboxes.len()) {
            owed[at].insert(n);
        }
    }
    let mut outcome = Outcome::default();
    for (inbox, owed) in inboxes.into_iter().zip(owed) {
        let mut seen = HashSet::with_capacity(inbox.numbers.len());
        for n in inbox.numbers {
            outcome.strange += usize::from(!owed.contains(&n));
            outcome.doubled += usize::from(!seen.insert(n));
        }
        outcome.lost += owed.difference(&seen).count();
        outcome.latencies_us.extend(inbox.latencies_us);
    }
    outcome
}

/// The different devices of request `n`: the same for the sender and for the judge.
fn choose(seed: u64, n: u32, batch: usize, devices: usize) -> Vec<usize> {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(n) << 20);
    let mut chosen = HashSet::with_capacity(batch);
    let mut order = Vec::with_capacity(batch);
    while order.len() < batch.min(devices) {
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let at = ((z ^ (z >> 31)) % devices as u64) as usize;
        if chosen.insert(at) {
            order.push(at);
        }
    }
    order
}

const POLL: Duration = Duration::from_millis(10);
const LATE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_doubles_and_strangers_are_counted() {
        let batch = 3;
        let devices = 5;
        let mut inboxes: Vec<Inbox> = Vec::new();
        inboxes.resize_with(devices, Inbox::default);
        for n in 0..4 {
            for at in choose(9, n, batch, devices) {
                inboxes[at].numbers.push(n);
            }
        }
        let full = judge(9, batch, 4, inboxes);
        assert_eq!((full.lost, full.doubled, full.strange), (0, 0, 0));

        let mut inboxes: Vec<Inbox> = Vec::new();
        inboxes.resize_with(devices, Inbox::default);
        let first = choose(9, 0, batch, devices);
        inboxes[first[0]].numbers = vec![0, 0];
        let stranger = (0..devices).find(|at| !first.contains(at)).unwrap();
        inboxes[stranger].numbers = vec![0];
        let bad = judge(9, batch, 1, inboxes);
        assert_eq!((bad.lost, bad.doubled, bad.strange), (2, 1, 1));
    }

    #[test]
    fn the_devices_of_a_request_are_different_and_repeatable() {
        let chosen = choose(1, 7, 500, 600);
        assert_eq!(chosen.iter().collect::<HashSet<_>>().len(), 500);
        assert_eq!(chosen, choose(1, 7, 500, 600));
        assert_ne!(chosen, choose(2, 7, 500, 600));
    }
}
