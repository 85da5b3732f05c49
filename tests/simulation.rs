//! A seeded simulation of session, service and queue over the memory store.
//!
//! Devices, an app server and a node share one thread and paused time.
//! Connections are cut at any byte and overlap; the node crashes at any await
//! and loses what was not synced. At the end every accepted message must have
//! reached everybody who followed. `CARILLON_SEED=n` repeats one seed,
//! `CARILLON_SEEDS=n` runs more.

#![allow(clippy::disallowed_methods, reason = "tests start tasks and read their settings")]

#[path = "simulation/device.rs"]
mod device;
mod dice;
#[path = "simulation/sabotage.rs"]
mod sabotage;
#[path = "simulation/stage.rs"]
mod stage;
#[path = "simulation/world.rs"]
mod world;

use std::{
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use carillon::{
    base::{
        clock::Clock,
        ids::{AppId, QueueName, RegId},
        keys::NodeKeys,
        metrics::{Metrics, Transport},
    },
    edge::{Edge, farewell::Farewell},
    node::core::{Core, Foundation, Pace},
    queue::store::memory::MemoryStore,
    service::{
        Service,
        bind::By,
        records::AliasPolicy,
        send::{Send, Target},
    },
};
use carillon_wire::mqtt::Version;
use device::{Device, Dialogue, Habit};
use dice::{Dice, seeds};
use sabotage::{Bug, Sabotaged};
use stage::tight;
use world::World;

const DEVICES: usize = 6;
const LIVES: u64 = 5;
/// A wall-clock time to start at, in milliseconds since 1970.
const START_MS: u64 = 1_700_000_000_000;

/// What outlives a crash of the node.
struct Universe {
    random: Arc<Mutex<Dice>>,
    store: Arc<MemoryStore>,
    keys: Arc<NodeKeys>,
    world: Arc<Mutex<World>>,
    devices: Vec<Arc<tokio::sync::Mutex<Device>>>,
    regids: Vec<RegId>,
    bug: Bug,
    now_ms: u64,
}

fn app() -> AppId {
    "app".parse().unwrap()
}

impl Universe {
    fn new(seed: u64, bug: Bug) -> Self {
        Self {
            random: Arc::new(Mutex::new(Dice::new(seed))),
            store: Arc::new(MemoryStore::default()),
            keys: Arc::new(NodeKeys::ephemeral()),
            world: Arc::default(),
            devices: Vec::new(),
            regids: Vec::new(),
            bug,
            now_ms: START_MS,
        }
    }

    fn below(&self, n: u64) -> u64 {
        self.random.lock().unwrap().below(n)
    }

    async fn node(&self) -> (Core, Arc<Edge>) {
        let metrics = Arc::new(Metrics::new());
        let mut config = tight(|end| self.below(end));
        config.store.shard_tasks = 1 + self.below(3) as usize;
        let store = Sabotaged {
            inner: self.store.clone(),
            bug: self.bug,
            writes: AtomicU64::new(self.below(20)),
        };
        let random = self.random.clone();
        let pace = move || Duration::from_micros(200 + random.lock().unwrap().below(2_000));
        let foundation = Foundation {
            store: Arc::new(store),
            mark: None,
            keys: self.keys.clone(),
            clock: Clock::starting_at(self.now_ms),
            metrics: metrics.clone(),
            pace: Pace::Paced(Box::new(pace)),
            longterm: Arc::new(carillon::longterm::embedded::Embedded::in_memory()),
        };
        let core = Core::build(&config, foundation).await.expect("the store can be read");
        let edge = Edge::new(core.service.clone(), config.edge.clone(), metrics);
        (core, edge)
    }

    /// The first life begins with an app and its devices.
    async fn populate(&mut self, service: &Arc<Service>) {
        service.create_app("app", AliasPolicy::Open).await.unwrap();
        let habits = [Habit::Frames, Habit::Plain(Version::V5), Habit::Plain(Version::V311)];
        for (n, one) in
            service.create_devices(&app(), DEVICES).await.unwrap().into_iter().enumerate()
        {
            let regid = one.regid.unwrap();
            let (id, secret) = (one.device_id.to_string(), one.secret.reveal().to_owned());
            let habit = if n < DEVICES / 2 { habits[0] } else { habits[1 + n % 2] };
            let device = Device::new(id, secret, regid, habit);
            self.devices.push(Arc::new(tokio::sync::Mutex::new(device)));
            self.regids.push(regid);
            let mut world = self.world.lock().unwrap();
            world.bound(regid, &QueueName::All(app()), 0);
            world.bound(regid, &QueueName::Own(regid), 0);
        }
    }

    /// One life of the node, up to the crash or to a quiet end.
    async fn live(&mut self, is_last: bool) {
        let (core, edge) = self.node().await;
        if self.devices.is_empty() {
            self.populate(&core.service).await;
        }
        let began = tokio::time::Instant::now();
        let mut tasks = Vec::new();
        for device in &self.devices {
            let player = Player { universe: self.share(), edge: edge.clone() };
            let device = device.clone();
            tasks.push(tokio::task::spawn(async move { player.hold(device).await }));
        }
        let server = Server { universe: self.share(), service: core.service.clone() };
        let busy = tokio::task::spawn(async move { server.work().await });
        tokio::time::sleep(Duration::from_millis(200 + self.below(3_000))).await;
        if is_last {
            busy.abort();
            self.settle().await;
        } else if self.below(3) == 0 {
            edge.drain(Farewell::default()).await;
            let _ = tokio::time::timeout(Duration::from_secs(5), edge.drained()).await;
            core.stop().await;
        }
        self.now_ms += began.elapsed().as_millis() as u64;
    }

    /// Nothing new is sent: all that is owed must come within bounded time.
    async fn settle(&self) {
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if self.world.lock().unwrap().owed() == 0 {
                break;
            }
        }
        self.world.lock().unwrap().settle();
    }

    fn share(&self) -> Shared {
        let regids = self.regids.clone();
        Shared { random: self.random.clone(), world: self.world.clone(), regids }
    }
}

#[derive(Clone)]
struct Shared {
    random: Arc<Mutex<Dice>>,
    world: Arc<Mutex<World>>,
    regids: Vec<RegId>,
}

impl Shared {
    fn below(&self, n: u64) -> u64 {
        self.random.lock().unwrap().below(n)
    }
}

/// Holds a device's connections: one after the other, cut at random.
struct Player {
    universe: Shared,
    edge: Arc<Edge>,
}

impl Player {
    async fn hold(self, device: Arc<tokio::sync::Mutex<Device>>) {
        let mut device = device.lock().await;
        loop {
            let pipe = 1 + self.universe.below(3_000) as usize;
            let (ours, theirs) = tokio::io::duplex(pipe);
            // The old connection may still be open when the new one comes.
            tokio::task::spawn(self.edge.clone().serve_stream(theirs, None, Transport::Tcp));
            let diligence = [100, 100, 90, 30][self.universe.below(4) as usize];
            let life = Duration::from_millis([5, 50, 500, 20_000][self.universe.below(4) as usize]);
            let dialogue = Dialogue {
                device: &mut device,
                stream: ours,
                world: &self.universe.world,
                random: &self.universe.random,
                diligence,
            };
            // A timeout drops the dialogue at any await: a cut at any byte.
            let _ = tokio::time::timeout(life, dialogue.run()).await;
            if self.universe.below(8) == 0 {
                device.crash();
            }
            let pause = Duration::from_millis(self.universe.below(200));
            tokio::time::sleep(pause).await;
        }
    }
}

/// The app server: sends, binds, unbinds.
struct Server {
    universe: Shared,
    service: Arc<Service>,
}

impl Server {
    async fn work(self) {
        let this = Arc::new(self);
        loop {
            tokio::time::sleep(Duration::from_millis(this.universe.below(20))).await;
            let one = this.clone();
            // Several at once, in no order.
            tokio::task::spawn(async move {
                match one.universe.below(5) {
                    0 => one.bind().await,
                    _ => one.send().await,
                }
            });
        }
    }

    fn regid(&self) -> RegId {
        self.universe.regids[self.universe.below(DEVICES as u64) as usize]
    }

    fn alias(&self) -> String {
        format!("a{}", self.universe.below(3))
    }

    fn topic(&self) -> String {
        format!("t{}", self.universe.below(2))
    }

    async fn send(&self) {
        let (target, queues) = match self.universe.below(4) {
            0 => {
                let regids: Vec<_> =
                    (0..1 + self.universe.below(4)).map(|_| self.regid()).collect();
                let queues = regids.iter().map(|regid| QueueName::Own(*regid)).collect();
                (Target::Regids(regids.iter().map(ToString::to_string).collect()), queues)
            }
            1 => {
                let aliases: Vec<_> =
                    (0..1 + self.universe.below(3)).map(|_| self.alias()).collect();
                let name = |alias: &String| QueueName::Alias(app(), alias.parse().unwrap());
                let queues = aliases.iter().map(name).collect();
                (Target::Aliases(aliases), queues)
            }
            2 => {
                let topic = self.topic();
                let queue = QueueName::Topic(app(), topic.parse().unwrap());
                (Target::Topic(topic), vec![queue])
            }
            _ => (Target::All, vec![QueueName::All(app())]),
        };
        let (number, followers) = {
            let mut world = self.universe.world.lock().unwrap();
            (world.number(&queues), world.followers(&queues))
        };
        let send = Send::new(target, number.to_string());
        if let Ok(sent) = self.service.send(&app(), send).await {
            self.universe.world.lock().unwrap().accepted(number, followers, sent.id);
        }
    }

    async fn bind(&self) {
        let regid = self.regid();
        let (text, by) = (regid.to_string(), app());
        let by = By::App(&by);
        let world = &self.universe.world;
        match self.universe.below(4) {
            0 => {
                let alias = self.alias();
                let queue = QueueName::Alias(app(), alias.parse().unwrap());
                let since = world.lock().unwrap().binding(regid, &queue);
                if self.service.bind(&text, &alias, by).await.is_ok() {
                    world.lock().unwrap().bound(regid, &queue, since);
                }
            }
            1 => {
                let alias = self.alias();
                let queue = QueueName::Alias(app(), alias.parse().unwrap());
                world.lock().unwrap().unbinding(regid, &queue);
                let _ = self.service.unbind(&text, &alias, by).await;
            }
            2 => {
                let topic = self.topic();
                let queue = QueueName::Topic(app(), topic.parse().unwrap());
                let since = world.lock().unwrap().binding(regid, &queue);
                if self.service.subscribe(&text, &[topic], by).await.is_ok() {
                    world.lock().unwrap().bound(regid, &queue, since);
                }
            }
            _ => {
                let topic = self.topic();
                let queue = QueueName::Topic(app(), topic.parse().unwrap());
                world.lock().unwrap().unbinding(regid, &queue);
                let _ = self.service.unsubscribe(&text, &[topic], by).await;
            }
        }
    }
}

/// Runs one seed; the violations that it showed, and what it did.
fn run(seed: u64, bug: Bug) -> (Vec<String>, u64, u64) {
    let mut universe = Universe::new(seed, bug);
    for life in 1..=LIVES {
        let runtime = stage::paused();
        runtime.block_on(universe.live(life == LIVES));
        // Dropping the runtime is the crash: every task stops where it is.
        drop(runtime);
        let unsynced = universe.store.unsynced() as u64;
        let kept = universe.below(unsynced + 1) as usize;
        universe.store.crash(kept);
    }
    let world = universe.world.lock().unwrap();
    (world.violations.clone(), world.accepted, world.deliveries)
}

#[test]
fn whatever_is_cut_or_crashes_everybody_gets_what_was_accepted() {
    let seeds = seeds(120);
    let (mut accepted, mut deliveries) = (0, 0);
    for seed in seeds.clone() {
        let outcome = std::panic::catch_unwind(|| run(seed, Bug::None));
        let Ok((violations, sent, got)) = outcome else {
            panic!("panicked: repeat with CARILLON_SEED={seed}")
        };
        assert!(violations.is_empty(), "CARILLON_SEED={seed}: {violations:#?}");
        (accepted, deliveries) = (accepted + sent, deliveries + got);
    }
    println!("{seeds:?}: {accepted} accepted, {deliveries} deliveries, 0 lost");
    assert!(accepted > 0 && deliveries > accepted);
}

#[test]
fn planted_bugs_are_noticed() {
    for bug in [
        Bug::LyingSync,
        Bug::ForgottenHead,
        Bug::LostEntry,
        Bug::ForgottenPending,
        Bug::ForgottenDevice,
    ] {
        let is_noticed = |seed: &u64| {
            let outcome = std::panic::catch_unwind(|| run(*seed, bug));
            outcome.is_err() || outcome.is_ok_and(|(violations, ..)| !violations.is_empty())
        };
        assert!((0..40).any(|seed| is_noticed(&seed)), "{bug:?} went unnoticed");
    }
}
