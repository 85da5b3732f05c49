//! One run: a node, an app server and devices on one thread in virtual time, and fate.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use carillon::{
    base::{
        clock::{Clock, DAY_MS},
        ids::{Alias, AppId, QueueName},
        keys::NodeKeys,
        metrics::Metrics,
    },
    edge::Edge,
    longterm::embedded::Embedded,
    node::core::{Core, Foundation, Pace},
    queue::{
        collection::{
            change::Value,
            rule::{Outcome, Rule},
        },
        position::{Epoch, Position, Seq},
        store::memory::MemoryStore,
    },
    service::{
        Service,
        bind::By,
        collections::Change,
        records::AliasPolicy,
        send::{Send, Target},
    },
};
use carillon_sdk::Credentials;

use crate::{
    bugs::{Bug, Fused, Seen},
    dice::Dice,
    line::Watch,
    phone::{ALIAS, COLLECTIONS, Ether, Phone, START_MS},
    stage::tight,
};

const RULES: [Rule; 5] =
    [Rule::ServerWins, Rule::ClientWins, Rule::Newest, Rule::Merge, Rule::KeepBoth];

pub struct World {
    pub ether: Ether,
    store: Arc<MemoryStore>,
    pub longterm: Arc<Embedded>,
    keys: Arc<NodeKeys>,
    node: Option<Node>,
    pub app: AppId,
    pub phones: Vec<Phone>,
    started: tokio::time::Instant,
    /// How wrong the node's clock is.
    clock_ms: i64,
    /// Days passed at once: retention dropped what was older.
    pub has_aged: bool,
    calls: u64,
    pub answers: Arc<Mutex<Answers>>,
}

/// What the app server was told.
#[derive(Default)]
pub struct Answers {
    /// Entries and what the calls put there; `None`: nothing of its own to be found.
    pub changes: Vec<(Seq, String)>,
    pub messages: BTreeSet<u64>,
}

struct Node {
    core: Core,
    edge: Arc<Edge>,
    is_dead: Arc<AtomicBool>,
}

impl World {
    pub async fn new(seed: u64, bug: Bug) -> Self {
        let ether = Ether {
            random: Arc::new(Mutex::new(Dice::new(seed))),
            edge: Arc::default(),
            is_calm: Arc::default(),
            watch: Watch { bug, seen: Arc::default() },
        };
        let mut world = Self {
            ether,
            store: Arc::default(),
            longterm: Arc::new(Embedded::in_memory()),
            keys: Arc::new(NodeKeys::ephemeral()),
            node: None,
            app: "app".parse().unwrap(),
            phones: Vec::new(),
            started: tokio::time::Instant::now(),
            clock_ms: 0,
            has_aged: false,
            calls: 0,
            answers: Arc::default(),
        };
        world.start().await;
        let service = world.service();
        service.create_app("app", AliasPolicy::Server).await.unwrap();
        for (name, rule) in COLLECTIONS.into_iter().zip(RULES) {
            service.declare(&world.app, name, rule).await.unwrap();
        }
        let count = 2 + world.below(2) as usize;
        let made = service.create_devices(&world.app, count).await.unwrap();
        for (n, one) in made.into_iter().enumerate() {
            let regid = one.regid.unwrap().to_string();
            let (device_id, secret) = (one.device_id.to_string(), one.secret.reveal().to_owned());
            let credentials = Credentials { device_id, secret };
            let name = format!("{bug:?}-{seed}-{n}");
            let phone = Phone::new(name, regid.as_str().into(), credentials, world.ether.clone());
            world.phones.push(phone.await);
        }
        // One of three comes later, when there is something already.
        world.bind(0).await;
        world.bind(1).await;
        world
    }

    pub fn below(&self, n: u64) -> u64 {
        self.ether.below(n)
    }

    fn seen(&self, see: impl FnOnce(&mut Seen)) {
        see(&mut self.ether.watch.seen.lock().unwrap());
    }

    /// The service of the node, which runs.
    pub fn service(&self) -> Arc<Service> {
        self.node.as_ref().unwrap().core.service.clone()
    }

    pub fn queue(&self) -> QueueName {
        QueueName::Alias(self.app.clone(), ALIAS.parse().unwrap())
    }

    async fn start(&mut self) {
        let metrics = Arc::new(Metrics::new());
        let mut config = tight(|end| self.below(end));
        config.longterm.history_days = 0;
        let is_dead = Arc::new(AtomicBool::new(false));
        let store = Fused {
            inner: self.store.clone(),
            is_dead: is_dead.clone(),
            bug: self.ether.watch.bug,
            writes: AtomicU64::new(self.below(8)),
        };
        let ether = self.ether.clone();
        let pace = move || Duration::from_micros(200 + ether.below(5_000));
        let now_ms = START_MS + self.started.elapsed().as_millis() as u64;
        let foundation = Foundation {
            store: Arc::new(store),
            mark: None,
            keys: self.keys.clone(),
            clock: Clock::starting_at(now_ms.saturating_add_signed(self.clock_ms)),
            metrics: metrics.clone(),
            pace: Pace::Paced(Box::new(pace)),
            longterm: self.longterm.clone(),
        };
        let core = Core::build(&config, foundation).await.expect("the store can be read");
        let edge = Edge::new(core.service.clone(), config.edge.clone(), metrics);
        *self.ether.edge.lock().unwrap() = Some(edge.clone());
        self.node = Some(Node { core, edge, is_dead });
    }

    /// The node dies; of what it did not sync, some is there.
    async fn crash(&mut self) {
        let Node { core, edge, is_dead } = self.node.take().unwrap();
        is_dead.store(true, Ordering::Relaxed);
        *self.ether.edge.lock().unwrap() = None;
        self.phones.iter().for_each(Phone::hang_up);
        drop(edge);
        core.stop().await;
        let unsynced = self.store.unsynced() as u64;
        let kept = self.below(unsynced + 1);
        self.store.crash(kept as usize);
        self.seen(|seen| {
            seen.node_crashes += 1;
            seen.lost_batches += unsynced - kept;
        });
    }

    /// Something happens, and then some time passes.
    pub async fn step(&mut self) {
        match self.below(100) {
            0..26 => self.change(),
            26..32 => self.send(),
            32..50 => self.edit(),
            50..60 => {
                self.some_phone().cut();
                self.seen(|seen| seen.cuts += 1);
            }
            60..67 => {
                let fate = [None, Some(false), Some(true)][self.below(3) as usize];
                self.some_phone().kill(fate);
            }
            67..71 => {
                self.crash().await;
                self.pass(2_000).await;
                if self.below(2) == 0 {
                    self.jump();
                }
                self.start().await;
            }
            71..75 => {
                let wrong = [0, 3_600_000, -3_600_000, 40_000_000, -(DAY_MS as i64)];
                let wrong = wrong[self.below(5) as usize];
                self.some_phone().me.clock_ms.store(wrong, Ordering::Relaxed);
                self.seen(|seen| seen.clock_jumps += 1);
            }
            75..77 => self.damage(),
            77..80 if self.phones.len() > 2 => self.bind(2).await,
            _ => self.pass(4_000).await,
        }
        self.pass(60).await;
        self.bury().await;
    }

    async fn pass(&self, ms_max: u64) {
        tokio::time::sleep(Duration::from_millis(self.below(ms_max))).await;
    }

    /// The node's clock is set while it is down.
    fn jump(&mut self) {
        let aged_ms = if self.has_aged { 8 * DAY_MS as i64 } else { 0 };
        self.clock_ms = match self.below(4) {
            0 => 8 * DAY_MS as i64,
            one => aged_ms + [0, 3_600_000, -3_600_000][one as usize - 1],
        };
        self.has_aged = self.clock_ms > 2 * DAY_MS as i64;
        self.seen(|seen| seen.clock_jumps += 1);
    }

    /// Who is dead begins again.
    async fn bury(&mut self) {
        for at in 0..self.phones.len() {
            if self.phones[at].is_dead() {
                self.phones[at].restart().await;
                self.seen(|seen| seen.device_crashes += 1);
            }
        }
    }

    /// From now on a device follows the alias.
    async fn bind(&mut self, at: usize) {
        let phone = &mut self.phones[at];
        if !phone.is_bound {
            phone.is_bound = true;
            let regid = phone.regid.to_string();
            self.service().bind(&regid, ALIAS, By::App(&self.app)).await.unwrap();
        }
    }

    fn some_phone(&self) -> &Phone {
        &self.phones[self.below(self.phones.len() as u64) as usize]
    }

    fn some_item(&self) -> (&'static str, String) {
        let collection = COLLECTIONS[self.below(COLLECTIONS.len() as u64) as usize];
        (collection, format!("k{}", self.below(3)))
    }

    /// A value that no other change has, in one of three fields; or none.
    fn some_value(&mut self) -> Option<String> {
        self.calls += 1;
        let field = self.below(3);
        (self.below(4) > 0).then(|| format!(r#"{{"f{field}":{}}}"#, self.calls))
    }

    /// The app server's: one to three items in a call.
    fn change(&mut self) {
        let service = self.service();
        let wishes: Vec<_> = (0..1 + self.below(3))
            .map(|_| {
                let base = match self.below(3) {
                    0 => Some(Position { epoch: Epoch(1), seq: Seq(self.below(12)) }),
                    _ => None,
                };
                (self.some_item(), self.some_value(), base)
            })
            .collect();
        let collections = service.collections(&self.app).unwrap();
        let ask = |((collection, key), text, base): &((&str, String), Option<String>, _)| {
            let (value, stamp) = (text.clone().map(Value::json), service.server_stamp());
            collections.ask(Change { collection, key, value, base: *base, stamp }).unwrap()
        };
        let asks = wishes.iter().map(ask).collect();
        let (app, alias): (_, Alias) = (self.app.clone(), ALIAS.parse().unwrap());
        let (answers, seen) = (self.answers.clone(), self.ether.watch.seen.clone());
        tokio::spawn(async move {
            let Ok(done) = service.change(&app, &alias, asks).await else { return };
            for (done, (_, text, _)) in done.into_iter().zip(wishes) {
                let mut seen = seen.lock().unwrap();
                seen.changes += 1;
                let Ok(done) = done else { continue };
                seen.conflicts += u64::from(done.outcome != Outcome::Applied);
                let applied = text.filter(|_| done.outcome == Outcome::Applied);
                if let (Some(seq), Some(text)) = (done.seq, applied) {
                    answers.lock().unwrap().changes.push((seq, text));
                }
            }
        });
    }

    fn send(&mut self) {
        self.calls += 1;
        let (service, app, number) = (self.service(), self.app.clone(), self.calls);
        let (answers, seen) = (self.answers.clone(), self.ether.watch.seen.clone());
        tokio::spawn(async move {
            let send = Send::new(Target::Aliases(vec![ALIAS.into()]), number.to_string());
            if service.send(&app, send).await.is_ok() {
                answers.lock().unwrap().messages.insert(number);
                seen.lock().unwrap().messages += 1;
            }
        });
    }

    fn edit(&mut self) {
        let ((collection, key), text) = (self.some_item(), self.some_value());
        let at = self.below(2) as usize;
        self.phones[at].edit(collection, &key, text);
        self.seen(|seen| seen.edits += 1);
    }

    fn damage(&mut self) {
        let (collection, key) = self.some_item();
        let text = (self.below(2) == 0).then(|| r#"{"f0":0}"#.to_owned());
        let at = self.below(self.phones.len() as u64) as usize;
        // Digests say nothing of a collection that the gateway never had a change of.
        let is_known = self.phones[at].held().keys().any(|(name, _)| name == collection);
        if is_known && self.phones[at].damage(collection, &key, text) {
            self.seen(|seen| seen.damages += 1);
        }
    }

    /// A last change, which nobody contradicts: who stands at the end of a queue is given no digest.
    async fn last_change(&mut self) {
        self.calls += 1;
        let value = Some(Value::json(format!(r#"{{"f0":{}}}"#, self.calls)));
        let service = self.service();
        let stamp = service.server_stamp();
        let change = Change { collection: "server_wins", key: "k0", value, base: None, stamp };
        let ask = service.collections(&self.app).unwrap().ask(change).unwrap();
        service.change(&self.app, &ALIAS.parse().unwrap(), vec![ask]).await.unwrap();
    }

    /// Nothing happens any more: until all hold the same, or too long.
    pub async fn settle(&mut self) {
        self.ether.is_calm.store(true, Ordering::Relaxed);
        self.phones.iter().for_each(|phone| phone.kill(None));
        self.bury().await;
        for at in 0..self.phones.len() {
            self.bind(at).await;
        }
        tokio::time::sleep(Duration::from_secs(90)).await;
        self.last_change().await;
        let mut wait = Duration::from_millis(500);
        while wait < Duration::from_secs(300) {
            tokio::time::sleep(wait).await;
            if self.is_settled().await {
                return;
            }
            wait *= 2;
        }
    }
}
