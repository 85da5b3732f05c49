//! An alias with collections, and what its followers make of its changes.

pub mod oracle;

use std::{sync::Arc, time::Duration};

use carillon::{
    base::{
        clock::Clock,
        ids::{Alias, AppId, DeviceId, QueueName, RegId},
        keys::NodeKeys,
        metrics::Metrics,
    },
    config::Config,
    node::core::{Core, Foundation, Pace},
    queue::{
        collection::{
            append::Ask,
            change::{Hlc, Kind, Origin, Stamp, Value},
            rule::{Outcome, Rule},
        },
        entry::Body,
        position::{Epoch, Position, Seq},
        store::{Store, memory::MemoryStore},
    },
    service::{
        Service,
        collections::{self, Changed},
        deliver::{Following, Take},
        records::AliasPolicy,
        send::{Send, Target},
    },
};

pub const START_MS: u64 = 1_700_000_000_000;
pub const RULES: [(&str, Rule); 5] = [
    ("server", Rule::ServerWins),
    ("client", Rule::ClientWins),
    ("newest", Rule::Newest),
    ("merge", Rule::Merge),
    ("both", Rule::KeepBoth),
];

/// A service over a store.
pub async fn service(store: Arc<dyn Store>, keys: &Arc<NodeKeys>) -> Core {
    let foundation = Foundation {
        store,
        mark: None,
        keys: keys.clone(),
        clock: Clock::starting_at(START_MS),
        metrics: Arc::new(Metrics::new()),
        pace: Pace::Paced(Box::new(|| Duration::from_millis(3))),
        longterm: Arc::new(carillon::longterm::embedded::Embedded::in_memory()),
    };
    Core::build(&Config::default(), foundation).await.unwrap()
}

/// A value in JSON.
pub fn json(text: &str) -> Value {
    Value::json(text.to_owned())
}

/// An entry that a follower is given.
#[derive(Debug)]
pub struct Given {
    pub seq: u64,
    pub kind: Option<Kind>,
    pub value: Option<Value>,
}

/// An app with one collection of each rule.
pub struct Scene {
    pub service: Arc<Service>,
    pub app: AppId,
    pub alias: Alias,
    regid: RegId,
}

impl Scene {
    pub async fn new() -> Self {
        let scene = Self::with(AliasPolicy::Server).await;
        for (name, rule) in RULES {
            scene.service.declare(&scene.app, name, rule).await.unwrap();
        }
        scene
    }

    /// Any device may bind its aliases.
    pub async fn open() -> Self {
        Self::with(AliasPolicy::Open).await
    }

    async fn with(policy: AliasPolicy) -> Self {
        let store = Arc::new(MemoryStore::default());
        let service = service(store, &Arc::new(NodeKeys::ephemeral())).await.service;
        let app = service.create_app("app", policy).await.unwrap().app_id;
        Self {
            service,
            app,
            alias: "user".parse().unwrap(),
            regid: RegId::random(&DeviceId::random()),
        }
    }

    pub fn ask(&self, collection: &str, key: &str, value: Option<Value>, base: Option<Seq>) -> Ask {
        let base = base.map(|seq| Position { epoch: Epoch(1), seq });
        let stamp = self.service.server_stamp();
        let change = collections::Change { collection, key, value, base, stamp };
        self.service.collections(&self.app).unwrap().ask(change).unwrap()
    }

    /// The same as a device's.
    pub fn of_device(&self, ask: Ask, cseq: u64) -> Ask {
        let origin = Origin::Device { regid: self.regid, cseq };
        Ask { stamp: Stamp { origin, ..ask.stamp }, ..ask }
    }

    pub fn other_device(&self, cseq: u64) -> Origin {
        Origin::Device { regid: RegId([7; 20]), cseq }
    }

    pub fn clock_in(&self, ms: u64) -> Hlc {
        Hlc::at(self.service.now_ms() + ms)
    }

    pub async fn change(&self, asks: Vec<Ask>) -> Vec<Changed> {
        self.service.change(&self.app, &self.alias, asks).await.unwrap()
    }

    pub fn outcomes(&self, done: &[Changed]) -> Vec<Option<Outcome>> {
        done.iter().map(|done| done.as_ref().ok().map(|done| done.outcome)).collect()
    }

    pub async fn set(&self, collection: &str, key: &str, value: &str) {
        let ask = self.ask(collection, key, Some(json(value)), None);
        assert!(self.change(vec![ask]).await[0].is_ok());
    }

    pub async fn delete(&self, collection: &str, key: &str) {
        let ask = self.ask(collection, key, None, None);
        assert!(self.change(vec![ask]).await[0].is_ok());
    }

    pub async fn message(&self) {
        let target = Target::Aliases(vec![self.alias.to_string()]);
        self.service.send(&self.app, Send::new(target, "1")).await.unwrap();
    }

    pub fn queue(&self) -> QueueName {
        QueueName::Alias(self.app.clone(), self.alias.clone())
    }

    /// All that a follower is given who stands there.
    pub fn given(&self, mut after: Seq) -> Vec<Given> {
        let since = Position { epoch: Epoch(1), seq: Seq(0) };
        let following =
            |queue: QueueName| Following { queue: queue.into(), since, control: Seq(0) };
        let all = [following(QueueName::Own(self.regid)), following(self.queue())];
        let take = Take { entries: 100, bytes: usize::MAX };
        let mut given = Vec::new();
        while let Some(pulled) = self.service.pull(&all, 1, after, take).unwrap() {
            after = pulled.to.seq;
            given.extend(pulled.entries.iter().map(|entry| {
                let change = match &entry.body {
                    Body::Change(change) => Some(change),
                    _ => None,
                };
                let (kind, value) = (change.map(|c| c.kind), change.map(|c| c.value.clone()));
                Given { seq: entry.position.seq.0, kind, value }
            }));
        }
        given
    }
}
