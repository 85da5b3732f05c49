//! A device that keeps an alias's items by the rules of docs/PROTOCOL.md, one visit at a time, and
//! what it is compared with.

pub mod history;
pub mod tokens;

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use carillon::{
    base::{
        clock::{Clock, DAY_MS},
        ids::{Alias, AppId, QueueName, RegId},
    },
    config::Config,
    longterm::embedded::Embedded,
    queue::{
        collection::{change::Value, rule::Rule},
        plan::Jump,
        position::{Epoch, Position, Seq},
    },
    service::{
        Service,
        apps::NewApp,
        bind::By,
        collections::Change,
        deliver::Following,
        records::AliasPolicy,
        register::FirstRegistration,
        send::{Send, Target},
        snapshots::{Gather, Part, Place},
    },
};
use carillon_wire::{digest::kind_byte, frame, idl, mqtt::Connect};

use crate::edge_support::{Account, Client, Node, up, visitor::bring};

const START_MS: u64 = 1_700_000_000_000;
const ALIAS: &str = "ann";
const NOTES: &str = "notes";

/// A node with an app that has a collection.
pub struct Scene {
    pub node: Node,
    config: Config,
    now_ms: u64,
    began: tokio::time::Instant,
    app: Rc<NewApp>,
    /// Messages to the alias, in order.
    sent: RefCell<Vec<String>>,
}

impl Scene {
    pub async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub async fn with(config: Config) -> Self {
        let began = tokio::time::Instant::now();
        let node = Node::start_at(config.clone(), Clock::starting_at(START_MS)).await;
        let app = node.service.create_app("kept", AliasPolicy::Server).await.unwrap();
        node.service.declare(&app.app_id, NOTES, Rule::Newest).await.unwrap();
        let sent = RefCell::default();
        Self { node, config, now_ms: START_MS, began, app: Rc::new(app), sent }
    }

    pub fn service(&self) -> &Arc<Service> {
        &self.node.service
    }

    fn app(&self) -> &AppId {
        &self.app.app_id
    }

    fn alias(&self) -> Alias {
        ALIAS.parse().unwrap()
    }

    pub async fn set(&self, key: &str, text: &str) {
        let value = Value::json(serde_json::to_string(text).unwrap());
        self.change(key, Some(value)).await;
    }

    pub async fn delete(&self, key: &str) {
        self.change(key, None).await;
    }

    async fn change(&self, key: &str, value: Option<Value>) {
        let stamp = self.service().server_stamp();
        let change = Change { collection: NOTES, key, value, base: None, stamp };
        let ask = self.service().collections(self.app()).unwrap().ask(change).unwrap();
        let done = self.service().change(self.app(), &self.alias(), vec![ask]).await.unwrap();
        assert!(done[0].is_ok());
    }

    pub async fn message(&self, text: &str) {
        let target = Target::Aliases(vec![ALIAS.into()]);
        let send = Send::new(target, Bytes::copy_from_slice(text.as_bytes()));
        self.service().send(self.app(), send).await.unwrap();
        self.sent.borrow_mut().push(text.to_owned());
    }

    /// Until long-term storage has everything.
    pub async fn folded(&self) {
        let queue = QueueName::Alias(self.app().clone(), self.alias()).id();
        for _ in 0..10_000 {
            let head = self.service().head(&queue).unwrap();
            if head.seq.0 == 0 || self.node.longterm.position(queue).await.unwrap() == Some(head) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("it is never folded");
    }

    /// What a follower at `after` is given next of a snapshot, with room for three large items.
    pub async fn chunk(&self, after: u64, place: Option<Place>) -> Part {
        let at = |seq| Position { epoch: Epoch(1), seq: Seq(seq) };
        let following =
            |queue: QueueName| Following { queue: queue.into(), since: at(0), control: Seq(0) };
        let alias = QueueName::Alias(self.app().clone(), self.alias());
        let all = [following(QueueName::Own(RegId([1; 20]))), following(alias)];
        let gather = Gather { reason: Jump::New, place };
        self.service().chunk(&all, 1, at(after), gather, 95_000).await.unwrap()
    }

    /// The same node, days later.
    pub async fn later(self, days: u64) -> Self {
        self.folded().await;
        self.at_day(days).await
    }

    async fn at_day(self, days: u64) -> Self {
        let now_ms = self.now_ms + self.began.elapsed().as_millis() as u64 + days * DAY_MS;
        let began = tokio::time::Instant::now();
        let node = self.node.again_at(self.config.clone(), Clock::starting_at(now_ms)).await;
        Self { node, now_ms, began, ..self }
    }

    /// The same node, whose long-term storage is empty and stays so.
    pub async fn without_longterm(mut self) -> Self {
        self.folded().await;
        self.node.longterm = Arc::new(Embedded::in_memory());
        self.at_day(0).await
    }

    /// A device that follows the alias, connected.
    pub async fn connect_bound(&self) -> Client {
        let account = self.account().await;
        let mut client = self.node.connect(&account, Connect::default()).await;
        client.resume(0).await;
        client.down().await;
        let registrations = vec![idl::RegistrationPositions {
            regid: account.regid.unwrap(),
            positions: Vec::new(),
            gathered: None,
        }];
        let positions = idl::Positions { registrations, more: None };
        client.up(idl::Up { positions: Some(positions), ..up(0) }).await;
        client
    }

    /// What the alias holds.
    pub async fn items(&self) -> Items {
        let (mut items, mut after) = (Items::new(), None);
        loop {
            let page = self.service().items(self.app(), &self.alias(), after, 100).await.unwrap();
            for item in page.items {
                items.insert(item.key.into(), (item.seq.0 as i64, item.value.bytes.to_vec()));
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return items,
            }
        }
    }

    async fn account(&self) -> Account {
        let key = self.app.app_key.reveal();
        let made = self.service().create_device("kept", key, FirstRegistration::Yes).await.unwrap();
        let regid = made.regid.map(|regid| regid.to_string());
        let (id, secret) = (made.device_id.to_string(), made.secret.reveal().to_owned());
        let account = Account { id, secret, regid };
        let by = By::App(self.app());
        self.service().bind(account.regid.as_ref().unwrap(), ALIAS, by).await.unwrap();
        account
    }
}

/// By key: seq and value.
pub type Items = BTreeMap<String, (i64, Vec<u8>)>;
type Key = (u8, String);

#[derive(Clone, Debug)]
struct At {
    queue: idl::Queue,
    epoch: i32,
    seq: i64,
    tag: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Gathered {
    at: At,
    /// Of where it is.
    tag: Option<Vec<u8>>,
    items: Items,
    /// `Ok`: chunks are missing behind this cursor; else where it is, and where it is exact.
    missing: Result<Vec<u8>, (i64, i64)>,
}

/// The device.
pub struct Gatherer {
    account: Account,
    held: BTreeMap<Key, At>,
    gathered: Option<Gathered>,
    /// What it says once that it has gathered, and has not.
    pretends: Option<Gathered>,
    pub items: Items,
    pub messages: Vec<String>,
    /// Every chunk that was taken.
    pub chunks: Vec<idl::SnapshotChunk>,
    /// Why deltas did not continue where it was.
    jumps: Vec<idl::JumpReason>,
    pub switches: usize,
    digests: usize,
    /// Messages that were sent before it followed the alias.
    before: usize,
    /// How often it was away for longer than messages are kept.
    lost_days: usize,
}

impl Gatherer {
    /// One that follows the alias from now on.
    pub async fn bound(scene: &Scene) -> Self {
        Self {
            account: scene.account().await,
            held: BTreeMap::new(),
            gathered: None,
            pretends: None,
            items: Items::new(),
            messages: Vec::new(),
            chunks: Vec::new(),
            jumps: Vec::new(),
            switches: 0,
            digests: 0,
            before: scene.sent.borrow().len(),
            lost_days: 0,
        }
    }

    /// Days went by.
    pub fn was_away(&mut self) {
        self.lost_days += 1;
    }

    /// It lost its storage, but for what it showed.
    pub fn forget_positions(&mut self) {
        self.held.clear();
        self.gathered = None;
        self.items.clear();
    }

    pub fn is_gathering(&self) -> bool {
        self.gathered.is_some()
    }

    pub fn gathered_keys(&self) -> impl Iterator<Item = &str> {
        self.chunks.iter().flat_map(|chunk| &chunk.items).map(|item| item.key.as_str())
    }

    /// Why each snapshot began.
    pub fn reasons(&self) -> Vec<idl::JumpReason> {
        let begun = self.chunks.iter().filter(|chunk| chunk.begins == Some(true));
        begun.map(|chunk| chunk.jump).collect()
    }

    /// States where it is, and takes the first frames of the answer, or all. Gives how many it
    /// took.
    pub async fn visit(&mut self, scene: &Scene, cut: Option<usize>) -> usize {
        let mut stated = Vec::new();
        frame::encode_up(&self.stated(), &mut stated).unwrap();
        self.pretends = None;
        let downs = bring(&scene.node, &self.account, vec![stated.into()]).await.unwrap();
        let downs = downs.iter().map(|down| frame::decode_down(down).expect("a Down"));
        let frames = downs.filter(|down| down.deltas.is_some() || down.snapshot.is_some());
        let mut taken = 0;
        for down in frames.take(cut.unwrap_or(usize::MAX)) {
            taken += 1;
            if let Some(chunk) = down.snapshot {
                self.chunk(chunk);
            }
            for delta in down.deltas.iter().flat_map(|deltas| &deltas.deltas) {
                self.delta(delta);
            }
            for digest in down.deltas.into_iter().flat_map(|deltas| deltas.digests).flatten() {
                self.compare(&digest);
            }
        }
        taken
    }

    /// Visits until nothing more comes, and nothing is on its way to long-term storage.
    pub async fn catch_up(&mut self, scene: &Scene) {
        for _ in 0..1_000 {
            if self.visit(scene, None).await == 0 {
                scene.folded().await;
                if self.visit(scene, None).await == 0 {
                    assert!(self.gathered.is_none(), "nothing comes, and it still gathers");
                    return;
                }
            }
        }
        panic!("the answers do not end");
    }

    /// It holds what the alias holds.
    pub async fn check(&self, scene: &Scene) {
        assert_eq!(self.items, scene.items().await);
    }

    /// It has had each message that was sent since it follows the alias once, in their order,
    /// but for those that went with their day.
    fn check_messages(&self, scene: &Scene) {
        let sent = scene.sent.borrow();
        let mut sent = sent[self.before..].iter();
        for message in &self.messages {
            assert!(sent.any(|one| one == message), "{message} came twice, or out of order");
        }
        if self.lost_days == 0 {
            assert_eq!(sent.next(), None, "a message is lost");
        }
    }

    fn stated(&self) -> idl::Up {
        let positions = self.held.values().cloned().map(|at| idl::Position {
            queue: at.queue,
            epoch: at.epoch,
            seq: at.seq,
            tag: at.tag,
        });
        let gathered = self.gathered.iter().chain(&self.pretends).map(|one| idl::Gathered {
            queue: one.at.queue.clone(),
            epoch: one.at.epoch,
            at_seq: one.at.seq,
            tag: one.at.tag.clone().unwrap(),
            cursor: one.missing.clone().ok(),
            reached_seq: one.missing.clone().err().map(|(reached, _)| reached),
        });
        let registration = idl::RegistrationPositions {
            regid: self.account.regid.clone().unwrap(),
            positions: positions.collect(),
            gathered: Some(gathered.collect()),
        };
        let positions = idl::Positions { registrations: vec![registration], more: None };
        idl::Up { positions: Some(positions), ..up(0) }
    }

    fn chunk(&mut self, chunk: idl::SnapshotChunk) {
        let at = At {
            queue: chunk.queue.clone(),
            epoch: chunk.epoch,
            seq: chunk.at_seq,
            tag: Some(chunk.tag.clone()),
        };
        let mut items = Items::new();
        if chunk.begins != Some(true) {
            let old = self.gathered.take().expect("a chunk goes on with what is gathered");
            assert_eq!((old.at.epoch, old.at.seq), (at.epoch, at.seq), "{chunk:?}");
            assert!(old.missing.is_ok(), "no chunk is missing");
            items = old.items;
        }
        for item in &chunk.items {
            assert!(item.seq <= chunk.at_seq, "{} is newer than the snapshot", item.key);
            let had = items.insert(item.key.clone(), (item.seq, item.value.clone()));
            assert_eq!(had, None, "{} comes twice", item.key);
        }
        assert!(chunk.items.is_sorted_by(|one, next| one.seq > next.seq), "newest first");
        let reached = at.seq;
        let missing = chunk.cursor.clone().ok_or_else(|| (reached, chunk.until_seq.unwrap()));
        self.gathered = Some(Gathered { tag: at.tag.clone(), at, items, missing });
        self.chunks.push(chunk);
        self.switch();
    }

    fn switch(&mut self) {
        let Some(Gathered { at, tag, missing: Err((reached, until)), .. }) = &self.gathered else {
            return;
        };
        if reached < until {
            return;
        }
        let key = key_of(&at.queue);
        let at = At { seq: *reached, tag: tag.clone(), ..at.clone() };
        self.held.insert(key, at);
        self.items = self.gathered.take().unwrap().items;
        self.switches += 1;
    }

    fn delta(&mut self, delta: &idl::Delta) {
        let at = key_of(&delta.queue);
        let is_gathered = |one: &&mut Gathered| {
            let fits = one.missing.as_ref().err().is_some_and(|(at, _)| delta.from_seq == at + 1);
            delta.jump.is_none() && key_of(&one.at.queue) == at && fits
        };
        let now = At {
            queue: delta.queue.clone(),
            epoch: delta.epoch,
            seq: delta.to_seq,
            tag: Some(delta.tag.clone()),
        };
        if let Some(gathered) = self.gathered.as_mut().filter(is_gathered) {
            apply(&mut gathered.items, &mut self.messages, delta);
            gathered.missing = gathered.missing.clone().map_err(|(_, until)| (delta.to_seq, until));
            gathered.tag = Some(delta.tag.clone());
            return self.switch();
        }
        self.jumps.extend(delta.jump);
        if delta.jump.is_none() {
            let held = self.held.get(&at).unwrap_or_else(|| panic!("no position: {delta:?}"));
            assert_eq!((held.epoch, held.seq + 1), (delta.epoch, delta.from_seq), "{delta:?}");
        }
        if at.0 == kind_byte(idl::QueueKind::ALIAS).unwrap() {
            apply(&mut self.items, &mut self.messages, delta);
            assert!(self.gathered.is_none(), "deltas before the end of the snapshot: {delta:?}");
        }
        self.held.insert(at, now);
        for follow in delta.entries.iter().filter_map(|entry| entry.follow.as_ref()) {
            let (queue, epoch, seq) = (follow.queue.clone(), follow.epoch, follow.since);
            self.held.insert(key_of(&queue), At { queue, epoch, seq, tag: None });
        }
    }

    fn compare(&mut self, digest: &idl::CollectionDigest) {
        if self.gathered.is_some() {
            return;
        }
        let hash = |(key, (seq, _)): (&String, &(i64, Vec<u8>))| {
            carillon_wire::digest::item_hash(NOTES, key, *seq as u64)
        };
        let ours: carillon_wire::digest::Digest = self.items.iter().map(hash).collect();
        assert_eq!((self.items.len() as i64, ours.to_idl()), (digest.items, digest.digest));
        self.digests += 1;
    }
}

fn key_of(queue: &idl::Queue) -> Key {
    (kind_byte(queue.kind).unwrap(), queue.name.clone().unwrap_or_default())
}

fn apply(items: &mut Items, messages: &mut Vec<String>, delta: &idl::Delta) {
    for entry in &delta.entries {
        if let Some(payload) = &entry.payload {
            messages.push(String::from_utf8(payload.clone()).unwrap());
        }
        let Some(change) = &entry.change else { continue };
        match &change.value {
            Some(value) => drop(items.insert(change.key.clone(), (entry.seq, value.clone()))),
            None => drop(items.remove(&change.key)),
        }
    }
}
