//! The coordinator's side of its workers: child processes of this same program, each with a share of the devices.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::order::{Cut, Open, Opened, Order, Progress, Report, Setup, Tally, Watch};
use crate::process;
use crate::report::Line;

/// All devices of a run.
pub struct Crew {
    workers: Vec<Worker>,
    reports: mpsc::Receiver<(usize, anyhow::Result<Report>)>,
    /// They end with their workers.
    _readers: JoinSet<()>,
    line: Line,
    /// Their memory before they knew of any device.
    bytes_before: u64,
}

struct Worker {
    child: Child,
    stdin: ChildStdin,
    progress: Progress,
}

impl Crew {
    /// Starts `processes` workers for the devices of `setup`; its `first` and `step` are ours to set.
    pub async fn start(setup: &Setup, processes: usize, line: Line) -> anyhow::Result<Self> {
        let (sender, reports) = mpsc::channel(REPORTS_MAX);
        let mut readers = JoinSet::new();
        let mut workers = Vec::new();
        let processes = processes.clamp(1, setup.devices.max(1));
        for first in 0..processes {
            let (mut worker, stdout) = Worker::start()?;
            let share = Setup { first, step: processes, ..setup.clone() };
            worker.say(&Order::Setup(Box::new(share))).await?;
            readers.spawn(read(first, stdout, sender.clone()));
            workers.push(worker);
        }
        let mut crew = Self { workers, reports, _readers: readers, line, bytes_before: 0 };
        let mut before = 0;
        crew.gather(|report| match report {
            Report::Ready { bytes_before } => {
                before += bytes_before;
                true
            }
            _ => false,
        })
        .await?;
        crew.bytes_before = before;
        Ok(crew)
    }

    pub async fn open(&mut self, order: Open) -> anyhow::Result<Opened> {
        self.say(&Order::Open(order)).await?;
        let mut all = Opened::default();
        self.gather(|report| match report {
            Report::Opened(opened) => {
                all.merge(&opened);
                true
            }
            _ => false,
        })
        .await?;
        Ok(all)
    }

    /// As [`Crew::open`], and every device must be there at the end.
    pub async fn open_all(&mut self, order: Open) -> anyhow::Result<Opened> {
        let opened = self.open(order).await?;
        let Opened { opened: there, failed, .. } = opened;
        let reason = opened.error.as_deref().unwrap_or_default();
        ensure!(failed == 0, "{failed} of {} devices did not connect: {reason}", there + failed);
        Ok(opened)
    }

    pub async fn cut(&mut self, how: Cut) -> anyhow::Result<()> {
        self.say(&Order::Cut(how)).await?;
        self.gather(|report| matches!(report, Report::Cut)).await
    }

    pub async fn watch(&mut self, watch: Watch) -> anyhow::Result<()> {
        self.say(&Order::Watch(watch)).await?;
        self.gather(|report| matches!(report, Report::Watching)).await?;
        // What was told before was of another watch.
        self.workers.iter_mut().for_each(|worker| worker.progress.delivered = 0);
        Ok(())
    }

    /// Waits until every worker has said that its devices have message `n`; `false` if that takes too long.
    pub async fn fanned(&mut self, n: u32, within: Duration) -> anyhow::Result<bool> {
        let is_it = |report| matches!(report, Report::Fanned { n: heard } if heard == n);
        timeout(within, self.gather(is_it))
            .await
            .map_or(Ok(false), |gathered| gathered.map(|()| true))
    }

    /// Waits until so many were delivered, at most `within`; how many were.
    pub async fn heard(&mut self, owed: u64, within: Duration) -> anyhow::Result<u64> {
        let deadline = Instant::now() + within;
        while self.delivered() < owed {
            match timeout_at(deadline, self.next()).await {
                Ok(report) => report?,
                Err(_) => break,
            };
        }
        Ok(self.delivered())
    }

    /// Waits until so many were delivered, or until nothing more has come for `quiet`.
    pub async fn drained(&mut self, owed: u64, quiet: Duration) -> anyhow::Result<()> {
        while self.delivered() < owed {
            let Ok(report) = timeout(quiet, self.next()).await else { return Ok(()) };
            report?;
        }
        Ok(())
    }

    pub async fn tally(&mut self) -> anyhow::Result<Tally> {
        self.say(&Order::Tally).await?;
        let mut all = Tally::default();
        self.gather(|report| match report {
            Report::Tally(tally) => {
                all.merge(&tally);
                true
            }
            _ => false,
        })
        .await?;
        Ok(all)
    }

    /// Processor time of all workers so far, in seconds.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.pids().map(process::cpu_seconds).sum()
    }

    /// What one device costs the generator in memory, with so many open.
    pub fn bytes_per_device(&self, open: usize) -> anyhow::Result<f64> {
        Ok((self.bytes()? as f64 - self.bytes_before as f64) / open.max(1) as f64)
    }

    /// Ends all connections and all workers.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.cut(Cut::Disconnect).await?;
        for worker in self.workers {
            let Worker { mut child, stdin, .. } = worker;
            drop(stdin);
            child.wait().await.context("a worker")?;
        }
        Ok(())
    }

    fn delivered(&self) -> u64 {
        self.workers.iter().map(|worker| worker.progress.delivered).sum()
    }

    fn bytes(&self) -> anyhow::Result<u64> {
        self.pids().map(process::anonymous_bytes).sum()
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        self.workers.iter().filter_map(|worker| worker.child.id())
    }

    async fn say(&mut self, order: &Order) -> anyhow::Result<()> {
        for worker in &mut self.workers {
            worker.say(order).await?;
        }
        Ok(())
    }

    /// One report that `is_it` from every worker.
    async fn gather(&mut self, mut is_it: impl FnMut(Report) -> bool) -> anyhow::Result<()> {
        let mut left = self.workers.len();
        while left > 0 {
            let report = self.next().await?;
            left -= usize::from(is_it(report));
        }
        Ok(())
    }

    async fn next(&mut self) -> anyhow::Result<Report> {
        let (at, report) = self.reports.recv().await.context("all workers have ended")?;
        match report.with_context(|| format!("worker {at}"))? {
            Report::Failed { error } => bail!("worker {at}: {error}"),
            Report::Progress(progress) => {
                self.workers[at].progress = progress;
                let open: usize = self.workers.iter().map(|worker| worker.progress.open).sum();
                let delivered = self.delivered();
                let more =
                    if delivered > 0 { format!(", {delivered} delivered") } else { String::new() };
                self.line.show(&format!("{open} open{more}"));
                Ok(Report::Progress(progress))
            }
            report => Ok(report),
        }
    }
}

impl Worker {
    fn start() -> anyhow::Result<(Self, ChildStdout)> {
        let exe = std::env::current_exe().context("cannot find myself")?;
        let mut command = Command::new(exe);
        command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start a worker")?;
        let stdin = child.stdin.take().context("a worker without stdin")?;
        let stdout = child.stdout.take().context("a worker without stdout")?;
        Ok((Self { child, stdin, progress: Progress::default() }, stdout))
    }

    async fn say(&mut self, order: &Order) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.stdin.write_all(&line).await.context("a worker has ended")
    }
}

async fn read(
    at: usize,
    stdout: ChildStdout,
    sender: mpsc::Sender<(usize, anyhow::Result<Report>)>,
) {
    let mut lines = BufReader::new(stdout).lines();
    loop {
        let report = match lines.next_line().await {
            Ok(None) => return,
            Ok(Some(line)) => serde_json::from_str(&line).context("a report that is none"),
            Err(error) => Err(error).context("cannot hear it"),
        };
        let is_end = report.is_err();
        if sender.send((at, report)).await.is_err() || is_end {
            return;
        }
    }
}

const REPORTS_MAX: usize = 1024;
