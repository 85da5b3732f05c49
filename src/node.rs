//! The composition root: builds bottom-up, opens the doors, drains top-down.

pub mod core;
mod data;
mod desk;
mod doors;
mod handover;
mod lobby;
mod reload;

use std::{env, io, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use self::{
    core::{Core, Foundation, Pace},
    doors::{Doors, Rooms, Serving, Shown},
    handover::{Offer, Predecessor, Successor},
    reload::Reloads,
};
use crate::{
    admin::Order,
    base::{
        clock::Clock,
        http::Ready,
        metrics::{self, Metrics, RuntimeMetrics},
        net, tasks,
    },
    config::{Config, Drain},
    edge::{Edge, farewell::Farewell},
    queue::store::{embedded::EmbeddedStore, mark::Mark},
};

/// What a node starts with.
pub struct Start {
    /// Its configuration.
    pub config: Config,
    /// How it reaches what it was started from.
    pub outside: Outside,
    /// Whether it takes over from a node that runs on the same data directory.
    pub is_takeover: bool,
    /// Where the devices' connections run, so that neither calls nor owners wait behind them.
    pub devices: Handle,
}

/// The way back to the command line and its file.
pub struct Outside {
    /// Reads the configuration again, as at the start.
    pub read: Box<dyn Fn() -> anyhow::Result<Config> + Send>,
    /// Where a key is set, for errors.
    pub place: Box<dyn Fn(&str) -> String + Send>,
    /// Reads what the configuration says of the log; what it gives puts that in place.
    pub log: Box<ReadLog>,
}

/// Reads one part of a configuration.
pub type ReadLog = dyn Fn(&Config) -> anyhow::Result<PutInPlace> + Send;

/// The end of a change that can no longer fail.
pub type PutInPlace = Box<dyn FnOnce()>;

/// Runs a node until it is told to stop or its store fails.
///
/// # Errors
/// What kept it from starting, or that its store failed: then it has stopped
/// acknowledging, and a restart decides.
pub async fn run(start: Start) -> anyhow::Result<()> {
    let Start { config, outside, is_takeover, devices } = start;
    config.check()?;
    check_machine(&config)?;
    let dir = config.store.data.clone();
    data::make(&dir)?;
    let clock = Clock::system();
    let ground = Ground::take(&config, is_takeover, clock).await?;
    data::forget_admin_file(&dir)?;
    let recorder = metrics::install().context("cannot start the metrics")?;
    let upkeep = tasks::spawn("metrics", keep_metrics(recorder.clone(), devices.clone()));
    let metrics = Arc::new(Metrics::new());
    let core = build(&config, clock, metrics.clone()).await?;
    let demo = data::demo_app(&core.service, &dir).await?;

    let (ready, mut doors) = (Ready::default(), ground.doors);
    doors.close_lobbies().await?;
    let (stop, stopped) = watch::channel(false);
    let (close, closed) = watch::channel(false);
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    let edge = Edge::new(core.service.clone(), config.edge.clone(), metrics.clone());
    let addresses = doors.addresses()?;
    let identity = doors::identity(&config, &addresses, clock.unix_ms())?;
    let desk = desk::desk(edge.clone());
    let (rooms, token) = Rooms::new(core.service.clone(), recorder, ready.clone(), orders, desk);
    let shown = Shown::new(rooms, &config, identity)?;
    let mut signals = Signals::listen()?;
    let (offer, taken) = Offer::make(&dir, doors.copies()?);
    let serving = doors::serve(doors, (&edge, &config, &devices), &shown, &stopped, &closed);
    doors::announce(&config, &addresses, token)?;
    ready.set(true);
    let waited_ms = ground.gone_at.map(|at| at.elapsed().as_millis() as u64);
    tracing::info!(?addresses, data = %dir.display(), waited_ms, "the node is ready");
    if demo.is_some() {
        data::print_first_steps(&dir, &addresses);
    }

    let (service, edge_too) = (core.service.clone(), edge.clone());
    let mut reloads =
        Reloads { outside, config, shown, addresses, edge: edge_too, service, metrics, clock };
    let mut watched = Watched { ordered, taken, failed: core.failed.clone() };
    let end = watched.until_the_end(&mut signals, &mut reloads).await;
    ready.set(false);
    drop(offer);
    let leave = Leave { edge, serving, stop, close, drain: reloads.config.drain.clone() };
    let outcome = leave.end(end, core, &mut signals).await;
    upkeep.abort();
    // The lock goes with the process: until then a task may still hold the store.
    std::mem::forget(ground.lock);
    outcome
}

/// Everything below the doors, over the store on the disk.
async fn build(config: &Config, clock: Clock, metrics: Arc<Metrics>) -> anyhow::Result<Core> {
    let dir = &config.store.data;
    let keys = Arc::new(data::load_keys(dir)?);
    let store = EmbeddedStore::open(&dir.join("store"), config.store.cache_bytes)
        .with_context(|| format!("{}", dir.join("store").display()))?;
    let mark = Mark::open(&dir.join("commit-mark")).context("commit-mark")?;
    let foundation = Foundation {
        store: Arc::new(store),
        mark: Some(mark),
        keys,
        clock,
        metrics,
        pace: Pace::Threaded,
        longterm: data::open_longterm(&config.longterm, dir)?,
    };
    Ok(Core::build(config, foundation).await?)
}

fn failed() -> anyhow::Error {
    anyhow::anyhow!("the node cannot go on; the log says why: mend it and start again")
}

/// What a node stands on before it opens anything: the data directory and its sockets.
struct Ground {
    lock: std::fs::File,
    doors: Doors,
    /// When the predecessor was told to go: since then nobody has been let in.
    gone_at: Option<Instant>,
}

impl Ground {
    /// Sockets first: a port in use is told before anything is written. A takeover has no
    /// way back once the other process was told to go, so all that can be checked is checked
    /// before.
    async fn take(config: &Config, is_takeover: bool, clock: Clock) -> anyhow::Result<Self> {
        let dir = &config.store.data;
        if !is_takeover {
            let lock = data::lock(dir)?;
            let doors = Doors::open(config, net::inherited())?;
            return Ok(Self { lock, doors, gone_at: None });
        }
        if let Some(lock) = data::try_lock(dir)? {
            tracing::info!("there is no node to take over from");
            let doors = Doors::open(config, net::inherited())?;
            return Ok(Self { lock, doors, gone_at: None });
        }
        let mut old = Predecessor::meet(dir).await?;
        let mut doors = Doors::open(config, std::mem::take(&mut old.listeners))?;
        let addresses = doors.addresses()?;
        doors::identity(config, &addresses, clock.unix_ms())?;
        data::load_keys(dir)?;
        tracing::info!("taking over");
        let gone_at = Some(Instant::now());
        let _stream = old.go().await?;
        doors.open_lobbies(config.edge.connections_max);
        let wait = Duration::from_secs(config.drain.deadline_s) + LOCK_WAIT;
        let lock = data::lock_within(dir, wait).await?;
        tracing::info!("the old process has ended");
        Ok(Self { lock, doors, gone_at })
    }
}

/// Why a node ends.
enum End {
    Stop(&'static str),
    Takeover(Successor),
    Failed,
}

/// What a running node listens to.
struct Watched {
    ordered: mpsc::Receiver<Order>,
    taken: oneshot::Receiver<Successor>,
    failed: watch::Receiver<bool>,
}

impl Watched {
    /// Reloads when told to, until something ends the node.
    async fn until_the_end(&mut self, signals: &mut Signals, reloads: &mut Reloads) -> End {
        loop {
            tokio::select! {
                biased;
                _ = self.failed.wait_for(|failed| *failed) => return End::Failed,
                signal = signals.next() => match signal {
                    Told::Reload => drop(reloads.reload()),
                    Told::Stop(cause) => return End::Stop(cause),
                },
                Ok(successor) = &mut self.taken => return End::Takeover(successor),
                Some(order) = self.ordered.recv() => match order {
                    Order::Drain => return End::Stop("operator"),
                    // Whoever asked may have gone.
                    Order::Reload(answer) => drop(answer.send(reloads.reload())),
                },
            }
        }
    }
}

/// What a node leaves behind.
struct Leave {
    edge: Arc<Edge>,
    serving: Serving,
    stop: watch::Sender<bool>,
    close: watch::Sender<bool>,
    drain: Drain,
}

impl Leave {
    async fn end(self, why: End, core: Core, signals: &mut Signals) -> anyhow::Result<()> {
        match why {
            End::Failed => {
                self.stop.send_replace(true);
                self.close.send_replace(true);
                Err(failed())
            }
            End::Stop(cause) => {
                tracing::info!(cause, "draining");
                self.in_good_order(core, signals, None).await
            }
            End::Takeover(successor) => {
                tracing::info!("draining, because a successor takes over");
                self.in_good_order(core, signals, Some(successor)).await
            }
        }
    }

    /// Ends everything in its order: within the deadline, and at once at a second signal.
    async fn in_good_order(
        mut self,
        core: Core,
        signals: &mut Signals,
        successor: Option<Successor>,
    ) -> anyhow::Result<()> {
        let mut failing = core.failed.clone();
        let allowed = Duration::from_secs(self.drain.deadline_s);
        let (now, is_takeover) = (Instant::now(), successor.is_some());
        let drained = timeout_at(now + allowed, async {
            // A tenth is left for what is written lazily.
            if timeout_at(now + allowed * 9 / 10, self.part(is_takeover)).await.is_err() {
                tracing::warn!("some connections did not end within the drain's deadline");
            }
            tracing::info!("all connections have ended");
            core.stop().await;
            tracing::info!("all pointers are written");
        });
        tokio::pin!(drained);
        let mut is_orphaned = false;
        loop {
            tokio::select! {
                biased;
                ended = &mut drained => match ended {
                    Ok(()) if is_orphaned => bail!("the process that took over has ended"),
                    Ok(()) => return Ok(()),
                    Err(_) => bail!("the last pointers were not written within the deadline"),
                },
                cause = signals.stop() => bail!("{cause} ended the drain"),
                _ = failing.wait_for(|failed| *failed) => return Err(failed()),
                () = gone(successor.as_ref()), if !is_orphaned => {
                    is_orphaned = true;
                    tracing::error!("the process that takes over has ended: start another one");
                }
            }
        }
    }

    /// Lets nobody in, answers what was asked, and sends the devices away. The admin door
    /// closes last, unless a successor waits.
    async fn part(&mut self, is_takeover: bool) {
        self.stop.send_replace(true);
        if is_takeover {
            // Who asks the admin door now is answered by the successor.
            self.close.send_replace(true);
            self.serving.https.append(&mut self.serving.admin);
        }
        // Whoever was accepted is let in before the devices are told.
        joined(&mut self.serving.edge).await;
        let devices = async {
            let farewell = farewell(&self.drain, is_takeover, self.edge.connections());
            self.edge.drain(farewell).await;
            if timeout(LAST_WORDS, self.edge.drained()).await.is_err() {
                let connections = self.edge.connections();
                tracing::warn!(connections, "connections and handshakes are cut");
            }
        };
        let calls = async {
            let ended = joined(&mut self.serving.https);
            match is_takeover {
                // Who waits at the listeners shall not wait for a slow call.
                true => drop(timeout(CALLS_WAIT, ended).await),
                false => ended.await,
            }
        };
        tokio::join!(devices, calls);
        self.close.send_replace(true);
        joined(&mut self.serving.admin).await;
    }
}

async fn joined(tasks: &mut Vec<JoinHandle<()>>) {
    for task in tasks.drain(..) {
        // A loop that panicked has ended as well.
        drop(task.await);
    }
}

async fn gone(successor: Option<&Successor>) {
    match successor {
        Some(successor) => successor.gone().await,
        None => std::future::pending().await,
    }
}

/// How so many connections part.
fn farewell(drain: &Drain, is_takeover: bool, connections: usize) -> Farewell {
    let connections = connections as u64;
    let spread_ms = if is_takeover { drain.takeover_spread_ms } else { drain.spread_s * 1_000 };
    let per_s = match spread_ms {
        0 => 0,
        _ => (connections * 1_000).div_ceil(spread_ms).max(u64::from(drain.pace)),
    };
    let all_ms = connections * 1_000 / u64::from(drain.pace);
    let reconnect_ms = all_ms.min(u64::from(drain.reconnect_s) * 1_000);
    Farewell {
        per_s: u32::try_from(per_s).unwrap_or(u32::MAX),
        reconnect_ms: u32::try_from(reconnect_ms).unwrap_or(u32::MAX),
        // Who takes over serves here.
        server: Some(drain.server.clone()).filter(|server| !server.is_empty() && !is_takeover),
    }
}

/// What a signal says.
enum Told {
    Stop(&'static str),
    Reload,
}

/// The signals that a node heeds.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            biased;
            _ = self.term.recv() => Told::Stop("SIGTERM"),
            _ = self.int.recv() => Told::Stop("SIGINT"),
            _ = self.hup.recv() => Told::Reload,
        }
    }

    /// Waits for one that ends the node.
    async fn stop(&mut self) -> &'static str {
        loop {
            match self.next().await {
                Told::Stop(cause) => return cause,
                Told::Reload => tracing::warn!("a draining node reads nothing again"),
            }
        }
    }
}

/// Samples the runtime, and folds histogram samples that nobody has scraped.
async fn keep_metrics(recorder: PrometheusHandle, devices: Handle) {
    let runtime = Arc::new(RuntimeMetrics::new([Handle::current(), devices]));
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        let (runtime, recorder) = (runtime.clone(), recorder.clone());
        // Both take milliseconds, for which no task shall wait.
        let work = move || {
            runtime.sample();
            recorder.run_upkeep();
        };
        tasks::blocking(work).await;
    }
}

/// Refuses a machine that is too small, and says where it is smaller than was configured.
fn check_machine(config: &Config) -> anyhow::Result<()> {
    let (max, needed) = (net::open_files_max(), net::OPEN_FILES_MIN);
    if max < needed {
        bail!("only {max} files may be open, at least {needed} are needed: raise `ulimit -n`");
    }
    let (devices, wanted) = (net::device_files_max(), config.edge.connections_max);
    if devices < wanted {
        tracing::warn!(
            "edge.connections_max is {wanted}, but `ulimit -Hn` leaves files for {devices} only"
        );
    }
    let backlog = config.listen.backlog;
    if let Some(max) = net::backlog_max().filter(|max| *max < backlog) {
        tracing::warn!("listen.backlog is {backlog}, but net.core.somaxconn allows {max} only");
    }
    if !has_allocator_settings() {
        tracing::warn!(
            "built without the allocator's settings, so memory of closed connections comes back \
             late: build in the repository's folder, or set MALLOC_CONF as docs/MEMORY.md has it"
        );
    }
    Ok(())
}

/// Cargo reads `.cargo/config.toml` where it is started, not where the manifest is.
#[expect(clippy::disallowed_methods, reason = "the allocator reads it, it is no setting of ours")]
fn has_allocator_settings() -> bool {
    option_env!("JEMALLOC_SYS_WITH_MALLOC_CONF").is_some() || env::var_os("MALLOC_CONF").is_some()
}

/// Orders that wait while one is carried out.
const ORDERS_MAX: usize = 4;
/// For connections that were told to leave, after the last one was told.
const LAST_WORDS: Duration = Duration::from_millis(1_500);
/// For running calls while others wait for the successor.
const CALLS_WAIT: Duration = Duration::from_secs(2);
/// For the old process to end, besides its deadline.
const LOCK_WAIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_devices_part_at_the_pace_and_many_within_the_spread() {
        let drain = Drain { server: "other:1".into(), ..Drain::default() };
        let part = |is_takeover, connections| {
            let farewell = farewell(&drain, is_takeover, connections);
            (farewell.per_s, farewell.reconnect_ms, farewell.server.is_some())
        };
        assert_eq!(part(false, 0), (2_000, 0, true));
        assert_eq!(part(false, 300), (2_000, 150, true));
        assert_eq!(part(false, 1_000_000), (100_000, 5_000, true));
        assert_eq!(part(true, 10_000), (20_000, 5_000, false));
        let at_once = Drain { spread_s: 0, ..drain.clone() };
        assert_eq!(farewell(&at_once, false, 10).per_s, 0);
    }
}
