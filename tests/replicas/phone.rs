//! A device: the SDK over lines that are cut, killed between any two steps and started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use carillon::{base::metrics::Transport, edge::Edge};
use carillon_sdk::{
    BoxFuture, BoxStream, Collections, Credentials, Device, PositionStore, Received, RegId, Steps,
    Value,
    collections::{Happening, ItemChange, Outcome, Shelf},
};
use tokio::sync::{Notify, broadcast::Receiver, broadcast::error::TryRecvError};

use crate::{
    bugs::Bug,
    dice::Dice,
    line::{Line, Watch},
};

/// When a run begins, in milliseconds since 1970.
pub const START_MS: u64 = 1_700_000_000_000;
pub const ALIAS: &str = "ann";
/// The collections, each with the rule of its name.
pub const COLLECTIONS: [&str; 5] = ["server_wins", "client_wins", "newest", "merge", "keep_both"];

/// Items of one collection, as the app sees them.
pub type Items = BTreeMap<(String, String), String>;

/// What all devices and the node share.
#[derive(Clone)]
pub struct Ether {
    pub random: Arc<Mutex<Dice>>,
    /// The node, while there is one.
    pub edge: Arc<Mutex<Option<Arc<Edge>>>>,
    /// From now on no line is cut by itself.
    pub is_calm: Arc<AtomicBool>,
    pub watch: Watch,
}

impl Ether {
    pub fn below(&self, n: u64) -> u64 {
        self.random.lock().unwrap().below(n)
    }
}

pub struct Phone {
    pub me: Installation,
    pub regid: RegId,
    /// It follows the alias.
    pub is_bound: bool,
    ether: Ether,
    process: Process,
    /// What the app was told, put together.
    heard: Items,
    /// Edits by their numbers: what, and what became of them as the app was told.
    pub edits: BTreeMap<u64, Edit>,
    pub violations: Vec<String>,
    pub told: u64,
}

/// What outlives a process.
pub struct Installation {
    pub name: String,
    credentials: Credentials,
    /// How wrong its clock is.
    pub clock_ms: Arc<AtomicI64>,
    started: tokio::time::Instant,
    lines: Arc<Mutex<Vec<Line>>>,
    /// Messages that its app was given, in any of its lives.
    pub messages: Arc<Mutex<BTreeSet<u64>>>,
}

pub struct Edit {
    pub collection: String,
    pub text: Option<String>,
    pub outcome: Option<Outcome>,
}

/// One life of a device.
struct Process {
    /// Ends when it is dropped.
    _device: Device,
    collections: Collections,
    changes: Receiver<Happening>,
    fate: Arc<Fate>,
}

/// When a process dies.
#[derive(Default)]
struct Fate {
    is_dead: AtomicBool,
    death: Notify,
    /// With the next frame that it makes durable, before or behind that.
    in_commit: Mutex<Option<bool>>,
}

impl Fate {
    fn die(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
        self.death.notify_waiters();
    }

    fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }
}

/// The store of a process that can be killed inside of it.
struct Mortal {
    collections: Collections,
    fate: Arc<Fate>,
    watch: Watch,
}

impl PositionStore for Mortal {
    fn load(&mut self) -> BoxFuture<'_, io::Result<Option<Vec<u8>>>> {
        self.collections.load()
    }

    fn save(&mut self, value: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        self.commit(value, Arc::default())
    }

    fn commit(&mut self, value: Vec<u8>, steps: Arc<Steps>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let planned = *self.fate.in_commit.lock().unwrap();
            match (planned, self.watch.bug) {
                _ if self.fate.is_dead() => {}
                (Some(_), Bug::PositionFirst) => {
                    let positions = Arc::new(steps.without_items());
                    self.collections.commit(value, positions).await?;
                }
                (Some(false), _) => {}
                (Some(true), _) => self.collections.commit(value, steps).await?,
                (None, _) => return self.collections.commit(value, steps).await,
            }
            self.watch.seen.lock().unwrap().in_commit += u64::from(planned.is_some());
            self.fate.die();
            std::future::pending().await
        })
    }

    fn beside(&self, device: &Device, seed: u64) -> Option<BoxFuture<'static, ()>> {
        let (courier, fate) = (self.collections.beside(device, seed)?, self.fate.clone());
        Some(Box::pin(async move {
            tokio::select! {
                biased;
                () = fate.death.notified() => {}
                () = courier => {}
            }
        }))
    }
}

impl Process {
    /// Starts a device on what its last life left. That must be open still, or it is gone.
    async fn start(me: &Installation, ether: &Ether) -> Self {
        let (wrong, started) = (me.clock_ms.clone(), me.started);
        let now_ms = move || {
            let right = START_MS + started.elapsed().as_millis() as u64;
            right.saturating_add_signed(wrong.load(Ordering::Relaxed))
        };
        let collections = Collections::simulated(&me.name, now_ms).unwrap();
        let changes = collections.changes();
        let fate = Arc::new(Fate::default());
        let store = Mortal {
            collections: collections.clone(),
            fate: fate.clone(),
            watch: ether.watch.clone(),
        };
        let (lines, ours, dead) = (me.lines.clone(), ether.clone(), fate.clone());
        let connector = move || {
            let (ether, lines, fate) = (ours.clone(), lines.clone(), dead.clone());
            async move { connect(&ether, &lines, &fate).await }
        };
        let (got, dead) = (me.messages.clone(), fate.clone());
        let handler = move |received: Received| {
            let (got, fate) = (got.clone(), dead.clone());
            async move {
                if fate.is_dead() {
                    return std::future::pending().await;
                }
                if let Received::Message(message) = received {
                    let number = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
                    got.lock().unwrap().insert(number);
                }
            }
        };
        let credentials = me.credentials.clone();
        let device = Device::builder_with_store(connector, credentials, store)
            .seed(ether.below(1 << 40))
            .connect_with(handler)
            .await
            .unwrap();
        Self { _device: device, collections, changes, fate }
    }
}

async fn connect(ether: &Ether, lines: &Mutex<Vec<Line>>, fate: &Fate) -> io::Result<BoxStream> {
    if fate.is_dead() {
        return std::future::pending().await;
    }
    let edge = ether.edge.lock().unwrap().clone();
    let edge = edge.ok_or(io::ErrorKind::ConnectionRefused)?;
    let (ours, theirs) = tokio::io::duplex(1 + ether.below(3_000) as usize);
    tokio::spawn(edge.serve_stream(theirs, None, Transport::Tcp));
    let is_calm = ether.is_calm.load(Ordering::Relaxed);
    // Most of what is said is said in the first bytes.
    let left = match ether.below(3) {
        0 if !is_calm => ether.below(600),
        1 if !is_calm => ether.below(6_000),
        _ => u64::MAX,
    };
    let line = Line::new(ours, left, ether.below(4) == 0, &ether.watch);
    let mut lines = lines.lock().unwrap();
    // The gateway may hear of the end of an old one only now.
    if ether.below(2) == 0 {
        lines.clear();
    }
    lines.push(line.clone());
    Ok(Box::new(line.end()))
}

impl Phone {
    pub async fn new(name: String, regid: RegId, credentials: Credentials, ether: Ether) -> Self {
        let me = Installation {
            name,
            credentials,
            clock_ms: Arc::default(),
            started: tokio::time::Instant::now(),
            lines: Arc::default(),
            messages: Arc::default(),
        };
        let process = Process::start(&me, &ether).await;
        Self {
            me,
            regid,
            is_bound: false,
            ether,
            process,
            heard: Items::new(),
            edits: BTreeMap::new(),
            violations: Vec::new(),
            told: 0,
        }
    }

    /// Dies now, or in the midst of the next frame that it makes durable: before or behind that.
    pub fn kill(&self, in_commit: Option<bool>) {
        match in_commit {
            Some(_) => *self.process.fate.in_commit.lock().unwrap() = in_commit,
            None => self.process.fate.die(),
        }
    }

    pub fn is_dead(&self) -> bool {
        self.process.fate.is_dead()
    }

    /// The next life.
    pub async fn restart(&mut self) {
        self.hear();
        self.process.fate.die();
        self.cut();
        let next = Process::start(&self.me, &self.ether).await;
        self.process = next;
        // What was not told yet when it died is not told any more: an app reads again what it shows.
        self.heard = self.visible();
    }

    pub fn cut(&self) {
        self.me.lines.lock().unwrap().iter().for_each(Line::cut);
    }

    /// The node is gone, and all it held.
    pub fn hang_up(&self) {
        self.cut();
        self.me.lines.lock().unwrap().clear();
    }

    pub fn shelf(&self) -> Shelf {
        self.process.collections.of(&self.regid, ALIAS)
    }

    pub fn edit(&mut self, collection: &str, key: &str, text: Option<String>) {
        let shelf = self.shelf();
        let number = match &text {
            Some(text) => shelf.put(collection, key, Value::json(text.clone())),
            None => shelf.delete(collection, key),
        };
        let collection = collection.to_owned();
        self.edits.insert(number.unwrap(), Edit { collection, text, outcome: None });
    }

    /// Makes an item another one, or none, behind everybody's back.
    pub fn damage(&mut self, collection: &str, key: &str, text: Option<String>) -> bool {
        self.hear();
        let (place, item) = ((&self.regid, ALIAS), (collection, key));
        let is_done = self.process.collections.damage(place, item, text.map(Value::json)).unwrap();
        self.heard = self.visible();
        is_done
    }

    /// What the app sees.
    pub fn visible(&self) -> Items {
        let mut items = Items::new();
        for name in COLLECTIONS {
            let of = self.shelf().items(name).unwrap().into_iter();
            items.extend(of.map(|item| ((name.to_owned(), item.key), text(&item.value))));
        }
        items
    }

    /// What is held of the gateway's items, with the changes that made them.
    pub fn held(&self) -> BTreeMap<(String, String), (u64, String)> {
        let mut items = BTreeMap::new();
        for name in COLLECTIONS {
            let of = self.process.collections.held(&self.regid, ALIAS, name).unwrap().into_iter();
            items.extend(of.map(|one| ((name.to_owned(), one.key), (one.seq, text(&one.value)))));
        }
        items
    }

    pub fn pending(&self) -> u64 {
        self.shelf().pending().unwrap()
    }

    /// The app puts together what it is told: each change begins with what it knew.
    pub fn hear(&mut self) {
        loop {
            match self.process.changes.try_recv() {
                Ok(Happening::Changed(change)) => self.changed(change),
                Ok(Happening::Settled { number, outcome, .. }) => self.settled(number, outcome),
                Ok(Happening::Refused { .. }) => {}
                Ok(Happening::Replaced { .. }) => self.heard = self.visible(),
                Ok(other) => self.violations.push(format!("{}: {other:?}", self.me.name)),
                Err(TryRecvError::Lagged(_)) => self.violations.push("too much was told".into()),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn changed(&mut self, change: ItemChange) {
        self.told += 1;
        let name = (change.collection.clone(), change.key.clone());
        let old = change.old.as_ref().map(text);
        if self.heard.get(&name) != old.as_ref() || change.old == change.new {
            let knew = self.heard.get(&name);
            self.violations.push(format!("{}: knew {knew:?}, was told {change:?}", self.me.name));
        }
        match &change.new {
            Some(value) => drop(self.heard.insert(name, text(value))),
            None => drop(self.heard.remove(&name)),
        }
    }

    fn settled(&mut self, number: u64, outcome: Outcome) {
        let edit = self.edits.get_mut(&number).map(|edit| edit.outcome.replace(outcome));
        if edit != Some(None) {
            self.violations.push(format!("{}: edit {number} is settled twice", self.me.name));
        }
    }

    /// What the app was told is what it would read.
    pub fn check_heard(&mut self) {
        self.hear();
        let visible = self.visible();
        if self.heard != visible {
            let name = &self.me.name;
            self.violations.push(format!("{name}: heard {:?}, reads {visible:?}", self.heard));
        }
    }
}

fn text(value: &Value) -> String {
    String::from_utf8(value.bytes.to_vec()).unwrap()
}
