//! Devices, senders and changes around one node, all noted in one ledger.
//!
//! `Fleet::set_up` registers and binds; load runs between `start_load` and
//! `stop_load`, through any number of crashes; `settle` waits until everything
//! that was accepted is acknowledged.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::stream::{self, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    Dice, Event, Ledger, Queue,
    api::{Api, create_accounts, wait_until_sent},
    device::{Account, Device, Habit},
    events::Events,
    frames::FramesDevice,
    report::Report,
};
use crate::support::{APP, Node};

/// How much of everything.
#[derive(Clone, Debug)]
pub struct Plan {
    pub devices: usize,
    /// Of these, the last ones speak frames; the others are plain.
    pub frames: usize,
    pub aliases: usize,
    /// Topics that are followed from the beginning to the end.
    pub topics: usize,
    /// Further ones, which are followed and left all the time.
    pub restless_topics: usize,
    pub senders: usize,
    /// All senders together.
    pub sends_per_s: u64,
    /// What a payload has besides its number.
    pub payload_bytes: Range<u64>,
    pub changes_per_s: u64,
    /// Sends of a hundred that have a time, a moment ahead; not to restless topics.
    pub scheduled_percent: u64,
    /// Sends of a hundred, to one queue, that begin a few of which only the newest there must arrive.
    pub collapsed_percent: u64,
    /// Accepted messages of a hundred that are taken back at once.
    pub recalled_percent: u64,
    /// Whether some sends go to everybody.
    pub broadcasts: bool,
    pub door: Door,
    /// A URL that is told of all events of every third message to regIDs.
    pub callback: Option<String>,
    /// Registrations that never connect: with a callback, a few stay and get messages that expire, the others are
    /// ended one after the other with messages that wait for them.
    pub away: usize,
    /// How long a plain device is away between two connections, in milliseconds.
    pub pause_ms: Range<u64>,
    /// Where the devices connect, if not at the node itself.
    pub devices_at: Option<SocketAddr>,
}

/// By which door the senders come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// As app servers do.
    Https,
    /// Without TLS, so that a trace shows the answers.
    Admin,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            devices: 30,
            frames: 6,
            aliases: 16,
            topics: 6,
            restless_topics: 2,
            senders: 6,
            sends_per_s: 300,
            payload_bytes: 0..200,
            changes_per_s: 10,
            scheduled_percent: 0,
            collapsed_percent: 0,
            recalled_percent: 0,
            broadcasts: true,
            door: Door::Https,
            callback: None,
            away: 0,
            pause_ms: 2..40,
            devices_at: None,
        }
    }
}

/// The devices and senders around one node.
pub struct Fleet {
    pub ledger: Ledger,
    shared: Arc<Shared>,
    dice: Dice,
    stop_devices: watch::Sender<bool>,
    devices: JoinSet<()>,
    stop_load: watch::Sender<bool>,
    load: JoinSet<()>,
}

/// What all tasks look at.
pub(super) struct Shared {
    pub(super) plan: Plan,
    accounts: Vec<Account>,
    /// Those that never connect and are not ended yet.
    pub(super) away: Mutex<Vec<String>>,
    pub(super) ledger: Ledger,
    pub(super) api: Api,
    numbers: AtomicU64,
    /// Ids of accepted messages that may not have been sent yet.
    pub(super) scheduled: Mutex<Vec<String>>,
    /// Of the newest ones to several queues, which have them a moment after the answer.
    pub(super) several: Mutex<VecDeque<String>>,
    pub(super) events: Events,
    /// The newest message of each sender in each queue that its next one there takes the place of, also of an
    /// earlier load: after a crash it may be on its way again.
    pub(super) collapsible: Mutex<HashMap<(usize, Queue), u64>>,
}

impl Fleet {
    /// Registers the devices, binds aliases and topics, and lets the devices connect.
    pub async fn set_up(node: &Node, plan: Plan, mut dice: Dice) -> Self {
        let ledger = Ledger::open();
        let mut accounts = create_accounts(node, plan.devices + plan.away).await;
        let away = accounts.split_off(plan.devices);
        let shared = Arc::new(Shared {
            accounts,
            away: Mutex::new(away.into_iter().map(|account| account.regid).collect()),
            ledger: ledger.clone(),
            api: Api::of(node, plan.door),
            numbers: AtomicU64::new(1),
            scheduled: Mutex::default(),
            several: Mutex::default(),
            events: Events::default(),
            collapsible: Mutex::default(),
            plan,
        });
        let follows = (0..shared.plan.devices).map(|device| {
            let (shared, dice) = (shared.clone(), dice.fork());
            async move { shared.follow_at_first(device, dice).await }
        });
        // A connection for each of them would be too many at once.
        stream::iter(follows).buffer_unordered(FOLLOWS_AT_ONCE).collect::<()>().await;
        let (stop_devices, devices_stop) = watch::channel(false);
        let mut devices = JoinSet::new();
        for number in 0..shared.plan.devices {
            let address = shared.plan.devices_at.unwrap_or(node.listen().mqtt);
            shared.open(number, address, dice.fork(), &mut devices, &devices_stop);
        }
        let (stop_load, _) = watch::channel(false);
        Self { ledger, shared, dice, stop_devices, devices, stop_load, load: JoinSet::new() }
    }

    /// Lets the senders send and the changes change, whether the node is there or not.
    pub fn start_load(&mut self) {
        assert!(self.load.is_empty(), "the load runs already");
        self.stop_load.send_replace(false);
        let plan = &self.shared.plan;
        let sender_period = Duration::from_secs(1) * plan.senders as u32 / plan.sends_per_s as u32;
        for sender in 0..plan.senders {
            let (shared, dice) = (self.shared.clone(), self.dice.fork());
            let stop = self.stop_load.subscribe();
            self.load.spawn(shared.send_on_and_on(sender, dice, sender_period, stop));
        }
        if plan.restless_topics > 0 && plan.changes_per_s > 0 {
            let period = Duration::from_secs(1) / plan.changes_per_s as u32;
            let (shared, dice) = (self.shared.clone(), self.dice.fork());
            self.load.spawn(shared.change_on_and_on(dice, period, self.stop_load.subscribe()));
        }
        if plan.callback.is_some() && plan.away > 0 {
            let (shared, dice) = (self.shared.clone(), self.dice.fork());
            self.load.spawn(shared.end_on_and_on(dice, self.stop_load.subscribe()));
        }
    }

    /// Stops the load; what was begun is answered or failed when this returns.
    pub async fn stop_load(&mut self) {
        self.stop_load.send_replace(true);
        while let Some(ended) = self.load.join_next().await {
            ended.expect("a sender");
        }
    }

    /// Sends one message to a queue; it is accepted when this returns.
    pub async fn send(&self, queue: Queue) {
        let target = match queue {
            Queue::Own(device) => self.shared.regids(&[device]),
            Queue::Alias(_) => json!({"aliases": [queue.name()]}),
            Queue::Topic(_) => json!({"topic": queue.name()}),
            Queue::All => json!({"all": true}),
        };
        let number = self.shared.next_number();
        let id = self.shared.send(number, vec![queue], target, json!({})).await;
        id.expect("the node is there");
    }

    /// Waits until everything that was accepted is acknowledged, and judges the history.
    pub async fn settle(&mut self, node: &Node) -> Report {
        self.wait_until_acknowledged(node).await;
        self.ledger.judge()
    }

    /// Waits until everything that was accepted is acknowledged.
    pub async fn wait_until_acknowledged(&mut self, node: &Node) {
        let scheduled = std::mem::take(&mut *self.shared.scheduled.lock().unwrap());
        let several = std::mem::take(&mut *self.shared.several.lock().unwrap());
        for id in scheduled.into_iter().chain(several) {
            wait_until_sent(node, &id).await;
        }
        for account in &self.shared.accounts {
            while let Some(ended) = self.devices.try_join_next() {
                ended.expect("a device");
            }
            node.wait_until_acknowledged(&account.regid).await;
        }
    }

    /// What the callback must be told once everything is acknowledged, and what it may be told.
    pub fn events(&self) -> &Events {
        &self.shared.events
    }

    /// Ends the devices and judges the whole history.
    pub async fn end(mut self) -> Report {
        self.stop_load().await;
        self.stop_devices.send_replace(true);
        while let Some(ended) = self.devices.join_next().await {
            ended.expect("a device");
        }
        self.ledger.judge()
    }
}

/// Of a sender whose node is away.
pub(super) const PAUSE: Duration = Duration::from_millis(10);
/// Devices that are set up at the same time.
const FOLLOWS_AT_ONCE: usize = 64;
/// Devices that may come and go all the time.
const RESTLESS_MAX: usize = 600;

impl Shared {
    /// Starts a device, of one kind or the other.
    fn open(
        &self,
        number: usize,
        address: SocketAddr,
        dice: Dice,
        devices: &mut JoinSet<()>,
        stop: &watch::Receiver<bool>,
    ) {
        let (account, ledger) = (self.accounts[number].clone(), self.ledger.clone());
        if number + self.plan.frames >= self.plan.devices {
            let events = self.plan.callback.is_some().then(|| self.events.clone());
            let device = FramesDevice { number, account, address, ledger, events, dice };
            devices.spawn(device.live(stop.clone()));
            return;
        }
        // Of a large fleet most stay connected.
        let habit = Habit::of(if number < RESTLESS_MAX { number } else { number % 4 });
        let pause_ms = self.plan.pause_ms.clone();
        let device = Device { number, account, habit, pause_ms, address, ledger, dice };
        devices.spawn(device.live(stop.clone()));
    }

    /// Everything that a device follows for the whole test.
    async fn follow_at_first(&self, device: usize, mut dice: Dice) {
        for queue in [Queue::Own(device), Queue::All] {
            self.ledger.note(Event::Asked { device, queue, follow: true });
            self.ledger.note(Event::Changed { device, queue, follow: true });
        }
        let aliases = dice.of(1..4) as usize;
        let aliases = dice.pick(aliases, self.plan.aliases).into_iter().map(Queue::Alias);
        let topics = dice.of(1..4) as usize;
        let topics = dice.pick(topics, self.plan.topics).into_iter().map(Queue::Topic);
        for queue in aliases.chain(topics) {
            assert!(self.change(device, queue, true).await, "the node is there");
        }
    }

    /// Changes what a device follows. False if a crash leaves that open.
    async fn change(&self, device: usize, queue: Queue, follow: bool) -> bool {
        let kind = if matches!(queue, Queue::Alias(_)) { "aliases" } else { "topics" };
        let (regid, name) = (&self.accounts[device].regid, queue.name());
        let path = format!("/v1/apps/{APP}/registrations/{regid}/{kind}/{name}");
        let method = if follow { Method::PUT } else { Method::DELETE };
        self.ledger.note(Event::Asked { device, queue, follow });
        let is_done = match self.api.call(method, &path, None).await {
            Some((StatusCode::NO_CONTENT, _)) => true,
            Some((status, body)) if !status.is_server_error() => panic!("{path}: {status} {body}"),
            _ => false,
        };
        if is_done {
            self.ledger.note(Event::Changed { device, queue, follow });
        }
        is_done
    }

    async fn send_on_and_on(
        self: Arc<Self>,
        sender: usize,
        mut dice: Dice,
        period: Duration,
        stop: watch::Receiver<bool>,
    ) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stop.borrow() {
            ticks.tick().await;
            let (to, target) = self.target(&mut dice);
            let padding = dice.of(self.plan.payload_bytes.clone()) as usize;
            let is_stable = to.iter().all(|queue| match queue {
                Queue::Topic(topic) => *topic < self.plan.topics,
                Queue::Own(_) | Queue::Alias(_) | Queue::All => true,
            });
            if let ([queue], true) = (to.as_slice(), dice.percent(self.plan.collapsed_percent)) {
                self.send_few(dice.of(2..5), sender, *queue, target).await;
                continue;
            }
            let number = self.next_number();
            let payload = json!({"payload": {"m": number, "x": "x".repeat(padding)}});
            let in_ms = dice.of(20..400);
            if dice.percent(self.plan.scheduled_percent) && is_stable {
                let sent = self.send_in(in_ms, number, to, target, payload).await;
                if sent.is_none() {
                    sleep(PAUSE).await;
                }
                continue;
            }
            match self.send(number, to, target, payload).await {
                Some(id) if dice.percent(self.plan.recalled_percent) => {
                    self.recall(number, &id).await;
                }
                Some(_) => {}
                None => sleep(PAUSE).await,
            }
        }
    }

    async fn change_on_and_on(
        self: Arc<Self>,
        mut dice: Dice,
        period: Duration,
        stop: watch::Receiver<bool>,
    ) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stop.borrow() {
            ticks.tick().await;
            let topic = self.plan.topics + dice.index(self.plan.restless_topics);
            let device = dice.index(self.plan.devices);
            self.change(device, Queue::Topic(topic), dice.percent(60)).await;
        }
    }

    /// Whom the next message is for: its queues, and the target in the words of the API.
    fn target(&self, dice: &mut Dice) -> (Vec<Queue>, Value) {
        let plan = &self.plan;
        match dice.of(0..100) {
            0..35 => {
                let device = dice.index(plan.devices);
                (vec![Queue::Own(device)], self.regids(&[device]))
            }
            35..50 => {
                let count = dice.of(2..21) as usize;
                let devices = dice.pick(count, plan.devices);
                (devices.iter().copied().map(Queue::Own).collect(), self.regids(&devices))
            }
            50..75 => {
                let count = if dice.percent(40) { 1 } else { dice.of(2..6) as usize };
                let aliases = dice.pick(count, plan.aliases);
                let queues: Vec<Queue> = aliases.into_iter().map(Queue::Alias).collect();
                let names: Vec<String> = queues.iter().map(|queue| queue.name()).collect();
                (queues, json!({"aliases": names}))
            }
            75..95 => {
                let topic = Queue::Topic(dice.index(plan.topics + plan.restless_topics));
                (vec![topic], json!({"topic": topic.name()}))
            }
            _ if plan.broadcasts => (vec![Queue::All], json!({"all": true})),
            _ => {
                let device = dice.index(plan.devices);
                (vec![Queue::Own(device)], self.regids(&[device]))
            }
        }
    }

    fn regids(&self, devices: &[usize]) -> Value {
        let regids: Vec<&str> =
            devices.iter().map(|device| self.accounts[*device].regid.as_str()).collect();
        json!({"regids": regids})
    }

    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}
