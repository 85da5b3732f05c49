//! Random histories of an alias, against what its entries say when they are read one by one.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use carillon::{
    base::{
        clock::day_of,
        ids::{Alias, AppId, CollectionName, QueueName, RegId},
        keys::NodeKeys,
    },
    node::core::Core,
    queue::{
        collection::{
            append::Ask,
            change::{Hlc, Kind, Origin, Stamp, Value},
            item::{Item, Totals, item_of},
            rule::Rule,
        },
        entry::{Body, Change, Entry},
        position::{Epoch, Position, Seq},
        store::{Range, Space, Store, decode, embedded::EmbeddedStore, memory::MemoryStore},
    },
    service::{
        Service,
        collections::Changed,
        deliver::{Following, Take},
        items::Cursor,
        records::AliasPolicy,
        send::{Send, Target},
    },
};
use carillon_wire::digest::{Digest, item_hash};

use super::{RULES, START_MS, json, service};
use crate::dice::Dice;

/// Live items with the changes that made them.
type Items = BTreeMap<(CollectionName, Box<str>), (Seq, Value)>;

/// What a device holds, and where it stands.
#[derive(Clone, Default)]
struct Replica {
    at: u64,
    items: Items,
}

impl Replica {
    fn apply(&mut self, seq: Seq, change: &Change) {
        let item = (change.collection.clone(), change.key.clone());
        match change.kind {
            Kind::New | Kind::Update => self.items.insert(item, (seq, change.value.clone())),
            Kind::Delete => self.items.remove(&item),
        };
    }
}

/// An app server that reads all items in pages, and then the changes after them.
#[derive(Default)]
struct Reader {
    items: Items,
    next: Next,
}

#[derive(Default)]
enum Next {
    #[default]
    First,
    Page(Cursor),
    Changes(Position),
}

/// How a history is kept.
enum Kept {
    Memory(Arc<MemoryStore>),
    /// What is dropped before the store can be opened again.
    Embedded(Arc<EmbeddedStore>),
}

/// What was seen to happen, so that nobody believes a test in which nothing did.
#[derive(Debug, Default)]
pub struct Seen {
    pub given: usize,
    pub left_out: usize,
    pub messages: usize,
    pub lost_calls: usize,
    /// Calls that a crash cut off, of which nothing was there afterwards, and all.
    pub gone_calls: usize,
    pub whole_calls: usize,
}

pub struct World {
    dice: Dice,
    keys: Arc<NodeKeys>,
    kept: Kept,
    core: Option<Core>,
    app: AppId,
    alias: Alias,
    replicas: Vec<Replica>,
    readers: Vec<Reader>,
    cseqs: [u64; DEVICES],
    /// Entries that were answered for, with the call's number.
    answered: Vec<(Seq, u64)>,
    calls: u64,
    pub seen: Seen,
}

const DEVICES: usize = 3;

impl World {
    pub async fn in_memory(seed: u64) -> Self {
        let store = Arc::new(MemoryStore::default());
        Self::with(seed, store.clone(), Kept::Memory(store)).await
    }

    pub async fn on_disk(seed: u64, dir: &Path) -> Self {
        let store = Arc::new(EmbeddedStore::open(dir, 1 << 20).unwrap());
        Self::with(seed, store.clone(), Kept::Embedded(store)).await
    }

    async fn with(seed: u64, store: Arc<dyn Store>, kept: Kept) -> Self {
        let keys = Arc::new(NodeKeys::ephemeral());
        let core = service(store, &keys).await;
        let app = core.service.create_app("app", AliasPolicy::Signed).await.unwrap().app_id;
        for (name, rule) in RULES {
            core.service.declare(&app, name, rule).await.unwrap();
        }
        Self {
            dice: Dice::new(seed),
            keys,
            kept,
            core: Some(core),
            app,
            alias: "user".parse().unwrap(),
            replicas: vec![Replica::default(); 2],
            readers: Vec::new(),
            cseqs: [0; DEVICES],
            answered: Vec::new(),
            calls: 0,
            seen: Seen::default(),
        }
    }

    fn service(&self) -> &Arc<Service> {
        &self.core.as_ref().expect("a node").service
    }

    fn store(&self) -> &dyn Store {
        match &self.kept {
            Kept::Memory(store) => store.as_ref(),
            Kept::Embedded(store) => store.as_ref(),
        }
    }

    fn queue(&self) -> QueueName {
        QueueName::Alias(self.app.clone(), self.alias.clone())
    }

    /// One step of an app server, a device, or fate.
    pub async fn step(&mut self) {
        match self.dice.below(23) {
            0..9 => self.change().await,
            9..11 => {
                let target = Target::Aliases(vec![self.alias.to_string()]);
                self.service().send(&self.app, Send::new(target, "1")).await.unwrap();
            }
            11..17 => {
                let who = self.dice.below(self.replicas.len() as u64) as usize;
                let take = 1 + self.dice.below(6) as usize;
                self.pull(who, take);
            }
            17..19 => {
                let entries = self.entries();
                let at = self.dice.below(entries.len() as u64 + 1);
                self.replicas.push(fold(&entries[..at as usize]));
            }
            19 => self.readers.push(Reader::default()),
            20..22 if !self.readers.is_empty() => {
                let who = self.dice.below(self.readers.len() as u64) as usize;
                self.read(who).await;
            }
            20..22 => {}
            _ => self.crash().await,
        }
    }

    /// One page of a reader. Returns whether there may be more.
    async fn read(&mut self, who: usize) -> bool {
        let limit = 1 + self.dice.below(3) as usize;
        let next = std::mem::take(&mut self.readers[who].next);
        let (service, app, alias) = (self.service().clone(), &self.app, &self.alias);
        let cursor = match next {
            Next::First => None,
            Next::Page(cursor) => Some(cursor),
            Next::Changes(at) => {
                let page = service.changes_after(app, alias, at, limit).await.unwrap();
                assert!(page.to.seq > at.seq || !page.is_more, "S8: a page goes on or is the last");
                let mut replica =
                    Replica { items: std::mem::take(&mut self.readers[who].items), at: 0 };
                let changes = page.entries.iter().filter_map(|entry| change_of(entry));
                changes.for_each(|(seq, change)| replica.apply(seq, change));
                let reader = &mut self.readers[who];
                (reader.items, reader.next) = (replica.items, Next::Changes(page.to));
                return page.is_more;
            }
        };
        let page = service.items(app, alias, cursor, limit).await.unwrap();
        let reader = &mut self.readers[who];
        let items = page.items.into_iter();
        reader.items.extend(items.map(|one| ((one.collection, one.key), (one.seq, one.value))));
        reader.next = page.next.map_or(Next::Changes(page.at), Next::Page);
        true
    }

    async fn change(&mut self) {
        let asks = self.asks();
        let done = self.service().change(&self.app, &self.alias, asks).await.unwrap();
        self.note(&done);
    }

    fn note(&mut self, done: &[Changed]) {
        let seqs = done.iter().filter_map(|one| one.as_ref().ok()?.seq);
        self.answered.extend(seqs.map(|seq| (seq, self.calls)));
    }

    fn asks(&mut self) -> Vec<Ask> {
        self.calls += 1;
        let count = 1 + self.dice.below(4);
        (0..count).map(|_| self.ask()).collect()
    }

    fn ask(&mut self) -> Ask {
        let (name, rule) = RULES[self.dice.below(RULES.len() as u64) as usize];
        let key = format!("k{}", self.dice.below(4)).into();
        let field = self.dice.below(3);
        let value = format!(r#"{{"f{field}":{}}}"#, self.calls);
        let value = (self.dice.below(3) > 0).then(|| json(&value));
        let now_ms = self.service().now_ms();
        // Some clocks are days ahead, some behind.
        let clock = Hlc::at(now_ms + self.dice.below(4) * 40_000_000 - self.dice.below(9));
        let maker = self.dice.below(DEVICES as u64 + 1) as usize;
        let seen = self.replicas[maker % self.replicas.len()].at;
        let base = Position { epoch: Epoch(1), seq: Seq(seen) };
        let (origin, base) = match maker.checked_sub(1) {
            None => (Origin::Server, (self.dice.below(2) == 0).then_some(base)),
            Some(device) => {
                self.cseqs[device] += 1;
                let regid = RegId([device as u8; 20]);
                (Origin::Device { regid, cseq: self.cseqs[device] }, Some(base))
            }
        };
        let collection = name.parse().unwrap();
        Ask { collection, rule, key, value, base, stamp: Stamp { clock, origin } }
    }

    /// One look of a device; it stands where that ends. Returns whether there was anything.
    fn pull(&mut self, who: usize, entries: usize) -> bool {
        let since = Position { epoch: Epoch(1), seq: Seq(0) };
        let following =
            |queue: QueueName| Following { queue: queue.into(), since, control: Seq(0) };
        let all = [following(QueueName::Own(RegId([9; 20]))), following(self.queue())];
        let take = Take { entries, bytes: usize::MAX };
        let after = Seq(self.replicas[who].at);
        let Some(pulled) = self.service().pull(&all, 1, after, take).unwrap() else { return false };
        assert!(pulled.to.seq > after && pulled.entries.len() <= entries);
        let replica = &mut self.replicas[who];
        for entry in &pulled.entries {
            match &entry.body {
                Body::Change(change) => replica.apply(entry.position.seq, change),
                _ => self.seen.messages += 1,
            }
        }
        self.seen.given += pulled.entries.len();
        self.seen.left_out += pulled.skipped.len();
        replica.at = pulled.to.seq.0;
        true
    }

    /// The node dies in the middle of a call and starts again; or it stops, on a real disk.
    async fn crash(&mut self) {
        let Kept::Memory(store) = &self.kept else { return };
        let (store, service) = (store.clone(), self.service().clone());
        let asks = self.asks();
        let (app, alias) = (self.app.clone(), self.alias.clone());
        let three = tokio::spawn({
            let (service, app, alias, asks) =
                (service.clone(), app.clone(), alias.clone(), self.three());
            async move { service.change(&app, &alias, asks).await.is_ok() }
        });
        let (mut held, own) = (Vec::new(), self.calls);
        std::mem::swap(&mut held, &mut self.answered);
        let call = tokio::spawn(async move { service.change(&app, &alias, asks).await });
        tokio::time::sleep(Duration::from_millis(self.dice.below(6))).await;
        store.fail();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let kept = self.dice.below(store.unsynced() as u64 + 1) as usize;
        store.crash(kept);
        match call.await.unwrap() {
            Ok(done) => self.note(&done),
            Err(_) => self.seen.lost_calls += 1,
        }
        self.answered.extend(held);
        self.core = Some(super::service(store, &self.keys).await);
        // Devices had seen only what was durable.
        let entries = self.entries();
        assert!(self.replicas.iter().all(|one| one.at <= entries.len() as u64), "call {own}");
        self.check_three(&entries, three.await.unwrap());
    }

    /// Three new items in one call.
    fn three(&self) -> Vec<Ask> {
        let ask = |end| Ask {
            collection: "newest".parse().unwrap(),
            rule: Rule::Newest,
            key: format!("{} {end}", self.calls).into(),
            value: Some(json("3")),
            base: None,
            stamp: self.service().server_stamp(),
        };
        ["a", "b", "c"].map(ask).into()
    }

    /// S3: of a call that was cut off all changes are there, side by side, or none.
    fn check_three(&mut self, entries: &[Entry], is_answered: bool) {
        let prefix = format!("{} ", self.calls);
        let of = entries.iter().filter_map(change_of);
        let of = of.filter(|(_, change)| change.key.starts_with(&prefix));
        let seqs: Vec<u64> = of.map(|(seq, _)| seq.0).collect();
        match seqs[..] {
            [] => {
                assert!(!is_answered, "call {} was answered and is not there", self.calls);
                self.seen.gone_calls += 1;
            }
            [first, ..] => {
                assert_eq!(seqs, [first, first + 1, first + 2], "of call {}", self.calls);
                self.seen.whole_calls += 1;
            }
        }
    }

    /// Stops the node and opens what it left.
    pub async fn reopen(mut self, dir: &Path) -> Self {
        self.core.take().expect("a node").stop().await;
        let Kept::Embedded(store) = self.kept else { panic!("only on a disk") };
        let mut store = Some(store);
        while let Some(held) = store.take() {
            if let Err(still) = Arc::try_unwrap(held) {
                store = Some(still);
                tokio::task::yield_now().await;
            }
        }
        let store = Arc::new(EmbeddedStore::open(dir, 1 << 20).unwrap());
        let core = service(store.clone(), &self.keys).await;
        Self { core: Some(core), kept: Kept::Embedded(store), ..self }
    }

    /// All entries of the alias, read past the gateway's own ways.
    fn entries(&self) -> Vec<Entry> {
        let id = self.queue().id();
        let space = Space::Entries(day_of(START_MS));
        let read = self.store().scan(space, &Range::prefix(id.as_bytes()), usize::MAX).unwrap();
        let entry = |(key, bytes): &(bytes::Bytes, bytes::Bytes)| {
            let seq = u64::from_be_bytes(key[20..].try_into().unwrap());
            Entry::from_stored(Seq(seq), bytes).unwrap()
        };
        let entries: Vec<Entry> = read.iter().map(entry).collect();
        let seqs = entries.iter().map(|entry| entry.position.seq.0);
        assert!(seqs.eq(1..=entries.len() as u64), "S1: no hole");
        entries
    }

    /// Everybody reads to the end, and all that is held says the same.
    pub async fn check(&mut self) {
        for who in 0..self.replicas.len() {
            let take = 1 + self.dice.below(8) as usize;
            while self.pull(who, take) {}
        }
        for who in 0..self.readers.len() {
            while self.read(who).await {}
        }
        let entries = self.entries();
        let truth = fold(&entries);
        for reader in &self.readers {
            assert_eq!(reader.items, truth.items, "what an app server read");
        }
        for replica in &self.replicas {
            assert_eq!(replica.at, truth.at);
            assert_eq!(replica.items, truth.items, "what a device holds");
        }
        self.check_answered(&entries);
        self.check_stored(&entries, &truth.items);
    }

    /// S2: what was answered is there, and it is what the call made.
    fn check_answered(&self, entries: &[Entry]) {
        for (seq, call) in &self.answered {
            let Body::Change(change) = &entries[seq.0 as usize - 1].body else {
                panic!("no change at {seq:?}")
            };
            let text = String::from_utf8_lossy(&change.value.bytes).into_owned();
            let is_of_call =
                text.contains(&format!(":{call}}}")) || text.contains(&format!(":{call},"));
            let is_other = change.kind == Kind::Delete || change.collection.as_str() == "merge";
            assert!(is_of_call || is_other, "{seq:?} of call {call}: {text}");
        }
    }

    fn check_stored(&self, entries: &[Entry], truth: &Items) {
        let id = self.queue().id();
        let range = Range::prefix(id.as_bytes());
        let stored = self.store().scan(Space::Items, &range, usize::MAX).unwrap();
        let mut live = 0;
        for (key, bytes) in &stored {
            let item: Item = decode(bytes).unwrap();
            let named = item_of(key).unwrap();
            live += usize::from(!item.head.is_deleted);
            let held = truth.get(&named).map(|(seq, _)| *seq);
            assert_eq!(held, (!item.head.is_deleted).then_some(item.head.seq), "{named:?}");
        }
        assert_eq!(live, truth.len());
        let totals = self.store().get(Space::Collections, id.as_bytes()).unwrap();
        let totals: Totals = totals.map_or(Totals::default(), |bytes| decode(&bytes).unwrap());
        let changes: Vec<(Seq, &Change)> = entries.iter().filter_map(change_of).collect();
        let bytes: usize = changes.iter().map(|(_, change)| change.bytes()).sum();
        assert_eq!(totals.bytes_so_far, bytes as u64);
        assert_eq!(changes.last().map_or(0, |(_, c)| c.bytes_so_far), bytes as u64);
        for total in &totals.collections {
            let of = || truth.iter().filter(|((name, _), _)| *name == total.collection);
            let name = total.collection.as_str();
            let digest: Digest =
                of().map(|((_, key), (seq, _))| item_hash(name, key, seq.0)).collect();
            let size = |((_, key), (_, value)): (&(CollectionName, Box<str>), &(Seq, Value))| {
                name.len() + key.len() + value.bytes.len()
            };
            let last = changes.iter().rfind(|(_, change)| change.collection == total.collection);
            assert_eq!(total.items, of().count() as u64, "{name}");
            assert_eq!(total.bytes, of().map(size).sum::<usize>() as u64, "{name}");
            assert_eq!(total.digest, digest.value(), "{name}");
            assert_eq!(Some(total.last), last.map(|(seq, _)| *seq), "{name}");
        }
        let names = totals.collections.iter().map(|total| &total.collection);
        assert!(truth.keys().all(|(name, _)| names.clone().any(|known| known == name)));
    }
}

fn change_of(entry: &Entry) -> Option<(Seq, &Change)> {
    match &entry.body {
        Body::Change(change) => Some((entry.position.seq, change)),
        _ => None,
    }
}

/// What entries make of nothing, one by one.
fn fold(entries: &[Entry]) -> Replica {
    let mut replica = Replica { at: entries.len() as u64, ..Replica::default() };
    entries.iter().filter_map(change_of).for_each(|(seq, change)| replica.apply(seq, change));
    replica
}
