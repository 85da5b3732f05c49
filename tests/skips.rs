//! Whom a message is for, and what became of it: random conditions, filters, collapse keys and
//! recalls over the whole service, against a simple oracle. Each registration is given each
//! message exactly once, or rightly never.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use carillon::{
    base::{
        clock::Clock,
        ids::{AppId, DeviceId, MessageId, QueueName, RegId},
        keys::NodeKeys,
        metrics::Metrics,
    },
    config::Config,
    node::core::{Core, Foundation, Pace},
    queue::{
        condition::Condition,
        entry::Body,
        filter::{Attributes, Filter},
        position::Seq,
        store::memory::MemoryStore,
    },
    service::{
        Service,
        bind::By,
        deliver::{Following, Take},
        records::AliasPolicy,
        send::{Send, Target},
        topics::Verb,
    },
};
use proptest::prelude::*;

const TOPICS: [&str; 4] = ["a", "b", "c", "d"];
const LOCALES: [&str; 3] = ["de-AT", "de", "en"];

async fn service(store: &Arc<MemoryStore>) -> Arc<Service> {
    let foundation = Foundation {
        store: store.clone(),
        mark: None,
        keys: Arc::new(NodeKeys::ephemeral()),
        clock: Clock::starting_at(1_700_000_000_000),
        metrics: Arc::new(Metrics::new()),
        pace: Pace::Paced(Box::new(|| Duration::from_millis(3))),
        longterm: Arc::new(carillon::longterm::embedded::Embedded::in_memory()),
    };
    Core::build(&Config::default(), foundation).await.unwrap().service
}

/// What is appended behind an answer is there then.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// One step of an app server or a device.
#[derive(Clone, Debug)]
enum Step {
    Follow(usize, usize),
    Unfollow(usize, usize),
    Describe(usize, Option<usize>),
    Send {
        target: To,
        locale: Option<usize>,
        key: Option<usize>,
    },
    Recall(usize),
    /// Everybody reads all that there is.
    Drain,
    /// The node dies and starts again.
    Crash,
}

#[derive(Clone, Debug)]
enum To {
    Own(Vec<usize>),
    Topic(usize),
    All,
    Condition(Expr),
}

#[derive(Clone, Debug)]
enum Expr {
    In(usize),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
}

impl Expr {
    fn text(&self) -> String {
        match self {
            Self::In(topic) => format!("'{}' in topics", TOPICS[*topic]),
            Self::Not(inner) => format!("!({})", inner.text()),
            Self::And(one, two) => format!("({}) && ({})", one.text(), two.text()),
            Self::Or(one, two) => format!("({})||({})", one.text(), two.text()),
        }
    }

    fn holds(&self, follows: &BTreeSet<usize>) -> bool {
        match self {
            Self::In(topic) => follows.contains(topic),
            Self::Not(inner) => !inner.holds(follows),
            Self::And(one, two) => one.holds(follows) && two.holds(follows),
            Self::Or(one, two) => one.holds(follows) || two.holds(follows),
        }
    }
}

fn expr() -> impl Strategy<Value = Expr> {
    (0..TOPICS.len()).prop_map(Expr::In).prop_recursive(3, 8, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|e| Expr::Not(Box::new(e))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Expr::And(Box::new(a), Box::new(b))),
            (inner.clone(), inner).prop_map(|(a, b)| Expr::Or(Box::new(a), Box::new(b))),
        ]
    })
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..DEVICES;
    let target = prop_oneof![
        1 => prop::collection::vec(who.clone(), 1..3).prop_map(To::Own),
        1 => (0..TOPICS.len()).prop_map(To::Topic),
        1 => Just(To::All),
        4 => expr().prop_map(To::Condition),
    ];
    let locale = prop::option::weighted(0.3, 0..LOCALES.len());
    let key = prop::option::weighted(0.4, 0..2_usize);
    prop_oneof![
        3 => (who.clone(), 0..TOPICS.len()).prop_map(|(who, topic)| Step::Follow(who, topic)),
        1 => (who.clone(), 0..TOPICS.len()).prop_map(|(who, topic)| Step::Unfollow(who, topic)),
        1 => (who, prop::option::of(0..LOCALES.len())).prop_map(|(w, l)| Step::Describe(w, l)),
        8 => (target, locale, key).prop_map(|(target, locale, key)| Step::Send { target, locale, key }),
        2 => any::<usize>().prop_map(Step::Recall),
        2 => Just(Step::Drain),
        1 => Just(Step::Crash),
    ]
}

const DEVICES: usize = 3;

/// What the oracle knows of one message.
struct Sent {
    id: MessageId,
    to: To,
    locale: Option<usize>,
    key: Option<usize>,
    /// The queues that have it, in their order, by name; with its number among their messages.
    queues: Vec<QueueName>,
    is_recalled: bool,
    at: usize,
}

struct Scene {
    store: Arc<MemoryStore>,
    service: Arc<Service>,
    app: AppId,
    devices: Vec<DeviceId>,
    regids: Vec<RegId>,
    follows: Vec<BTreeSet<usize>>,
    /// When each registration began to follow each topic, as a count of messages.
    since: Vec<[usize; 4]>,
    locales: Vec<Option<usize>>,
    sent: Vec<Sent>,
    /// How far each registration is in each queue: here the pointers of a device.
    read: Vec<Vec<(QueueName, Seq)>>,
    /// Messages that came before each registration's last look.
    drained: usize,
    given: Vec<Vec<MessageId>>,
    recalls: Vec<Vec<MessageId>>,
}

impl Scene {
    async fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        let service = service(&store).await;
        let app = service.create_app("app", AliasPolicy::Open).await.unwrap().app_id;
        let made = service.create_devices(&app, DEVICES).await.unwrap();
        Self {
            store,
            service,
            app,
            devices: made.iter().map(|one| one.device_id).collect(),
            regids: made.into_iter().map(|one| one.regid.unwrap()).collect(),
            follows: vec![BTreeSet::new(); DEVICES],
            since: vec![[0; 4]; DEVICES],
            locales: vec![None; DEVICES],
            sent: Vec::new(),
            read: vec![Vec::new(); DEVICES],
            drained: 0,
            given: vec![Vec::new(); DEVICES],
            recalls: vec![Vec::new(); DEVICES],
        }
    }

    async fn take(&mut self, step: &Step) {
        match step {
            // Memberships and attributes change between looks only: then they are what is
            // judged by for all that came since the last one.
            Step::Follow(who, topic) => {
                self.drain().await;
                if self.follows[*who].insert(*topic) {
                    self.change(*who, *topic, Verb::Subscribe).await;
                    self.since[*who][*topic] = self.sent.len();
                    let queue = self.topic(*topic);
                    self.read[*who].retain(|(name, _)| *name != queue);
                }
            }
            Step::Unfollow(who, topic) => {
                self.drain().await;
                if self.follows[*who].remove(topic) {
                    self.change(*who, *topic, Verb::Unsubscribe).await;
                }
            }
            Step::Describe(who, locale) => {
                self.drain().await;
                self.locales[*who] = *locale;
                let locale = locale.map(|at| LOCALES[at].to_owned());
                let attributes = Attributes { locale, ..Attributes::default() };
                let (regid, by) = (self.regids[*who].to_string(), By::App(&self.app));
                self.service.describe(&regid, attributes, by).await.unwrap();
            }
            Step::Send { target, locale, key } => self.send(target, *locale, *key).await,
            Step::Recall(which) if !self.sent.is_empty() => {
                let at = which % self.sent.len();
                let id = self.sent[at].id.to_string();
                self.service.recall(&self.app, &id).await.unwrap();
                self.sent[at].is_recalled = true;
            }
            Step::Recall(_) => {}
            Step::Drain => self.drain().await,
            Step::Crash => {
                // Nothing of the old node reaches the disk any more.
                self.store.fail();
                settle().await;
                self.store.crash(0);
                self.service = service(&self.store).await;
            }
        }
    }

    async fn change(&self, who: usize, topic: usize, verb: Verb) {
        let regids = [self.regids[who].to_string()];
        let changed =
            self.service.change_topic(&self.app, TOPICS[topic], &regids, verb).await.unwrap();
        assert!(changed[0].is_ok());
    }

    fn topic(&self, topic: usize) -> QueueName {
        QueueName::Topic(self.app.clone(), TOPICS[topic].parse().unwrap())
    }

    async fn send(&mut self, to: &To, locale: Option<usize>, key: Option<usize>) {
        let own = |who: &usize| self.regids[*who].to_string();
        let target = match to {
            To::Own(whom) => Target::Regids(whom.iter().map(own).collect()),
            To::Topic(topic) => Target::Topic(TOPICS[*topic].into()),
            To::All => Target::All,
            To::Condition(expr) => Target::Condition(expr.text()),
        };
        let filter = locale
            .map(|at| Filter::new(&[], vec![LOCALES[at].into()], Vec::new(), Vec::new()).unwrap());
        let collapse_key = key.map(|key| format!("k{key}"));
        let send = Send { filter, collapse_key, ..Send::new(target, "1") };
        let sent = self.service.send(&self.app, send).await.unwrap();
        let queues = self.queues(to);
        let (to, at) = (to.clone(), self.sent.len());
        self.sent.push(Sent { id: sent.id, to, locale, key, queues, is_recalled: false, at });
    }

    fn queues(&self, to: &To) -> Vec<QueueName> {
        match to {
            To::Own(whom) => whom.iter().map(|who| QueueName::Own(self.regids[*who])).collect(),
            To::Topic(topic) => vec![self.topic(*topic)],
            To::All => vec![QueueName::All(self.app.clone())],
            To::Condition(expr) => {
                let condition = Condition::parse(&expr.text()).unwrap();
                // By trying out all memberships: can it hold without a topic that it wants?
                let wanted: BTreeSet<usize> = (0..TOPICS.len())
                    .filter(|topic| condition.unnegated().any(|t| t.as_str() == TOPICS[*topic]))
                    .collect();
                let can_without = (0..16_usize).any(|row| {
                    let follows = (0..4).filter(|topic| row >> topic & 1 == 1).collect();
                    wanted.is_disjoint(&follows) && expr.holds(&follows)
                });
                if can_without {
                    return vec![QueueName::All(self.app.clone())];
                }
                let name = |topic: &_| QueueName::Topic(self.app.clone(), Clone::clone(topic));
                condition.unnegated().map(name).collect()
            }
        }
    }

    /// Everybody reads what there is, in pieces, and it is compared with what the oracle gives.
    async fn drain(&mut self) {
        settle().await;
        for who in 0..DEVICES {
            let wanted: BTreeSet<MessageId> = self.sent[self.drained..]
                .iter()
                .filter(|sent| self.is_due(who, sent))
                .map(|sent| sent.id)
                .collect();
            let given = self.pull(who);
            let distinct: BTreeSet<MessageId> = given.iter().copied().collect();
            assert_eq!(given.len(), distinct.len(), "{who} is given a message twice");
            assert_eq!(distinct, wanted, "for {who}, of {} messages", self.sent.len());
            assert!(given.iter().all(|id| !self.given[who].contains(id)), "again to {who}");
            self.given[who].extend(given);
        }
        self.drained = self.sent.len();
    }

    fn is_due(&self, who: usize, sent: &Sent) -> bool {
        let follows = |queue: &QueueName| match queue {
            QueueName::Own(regid) => *regid == self.regids[who],
            QueueName::All(_) => true,
            QueueName::Topic(_, name) => {
                let topic = TOPICS.iter().position(|topic| *topic == name.as_str()).unwrap();
                self.follows[who].contains(&topic) && self.since[who][topic] <= sent.at
            }
            QueueName::Alias(..) => false,
        };
        let Some(queue) = sent.queues.iter().find(|queue| follows(queue)) else { return false };
        let holds = match &sent.to {
            To::Condition(expr) => expr.holds(&self.follows[who]),
            To::Own(_) | To::Topic(_) | To::All => true,
        };
        let matches = match (sent.locale, self.locales[who]) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(asked), Some(has)) => {
                LOCALES[has] == LOCALES[asked]
                    || LOCALES[has].starts_with(&format!("{}-", LOCALES[asked]))
            }
        };
        let is_newer = |other: &&Sent| {
            other.at > sent.at && other.key == sent.key && other.queues.contains(queue)
        };
        let is_collapsed = sent.key.is_some() && self.sent.iter().any(|s| is_newer(&s));
        holds && matches && !sent.is_recalled && !is_collapsed
    }

    fn pull(&mut self, who: usize) -> Vec<MessageId> {
        let regid = self.regids[who].to_string();
        let device = self.service.registration(&self.app, &regid).unwrap();
        assert_eq!(device.topics.len(), self.follows[who].len());
        let followings = self.followings(who);
        let mut given = Vec::new();
        for at in 0..followings.len() {
            let queue = followings[at].queue.name().clone();
            let known = self.read[who].iter().position(|(name, _)| *name == queue);
            let mut after = known.map_or(followings[at].since.seq, |known| self.read[who][known].1);
            let take = Take { entries: 3, bytes: usize::MAX };
            while let Some(pulled) = self.service.pull(&followings, at, after, take).unwrap() {
                assert!(pulled.to.seq > after, "the range covers what was looked at");
                after = pulled.to.seq;
                for entry in &pulled.entries {
                    match &entry.body {
                        Body::Message(message) => given.push(message.id),
                        Body::Recall(recall) => self.recalls[who].push(recall.id),
                        Body::Follow { .. } | Body::Unfollow { .. } | Body::Change(_) => {}
                    }
                }
            }
            match known {
                Some(known) => self.read[who][known].1 = after,
                None => self.read[who].push((queue, after)),
            }
        }
        given
    }

    fn followings(&self, who: usize) -> Vec<Following> {
        let registrations = self.service.registrations(&self.devices[who]).unwrap();
        self.service.followings(&registrations[0])
    }

    /// Whoever was given a message that was recalled is told so, once.
    async fn finish(&mut self) {
        self.drain().await;
        for who in 0..DEVICES {
            let mut told = self.recalls[who].clone();
            let count = told.len();
            told.sort_unstable();
            told.dedup();
            assert_eq!(told.len(), count, "{who} is told twice");
            for sent in self.sent.iter().filter(|sent| sent.is_recalled) {
                let is_given = self.given[who].contains(&sent.id);
                let still = sent.queues.iter().all(|queue| match queue {
                    QueueName::Topic(_, name) => {
                        let topic = TOPICS.iter().position(|t| *t == name.as_str()).unwrap();
                        self.follows[who].contains(&topic) && self.since[who][topic] <= sent.at
                    }
                    QueueName::Own(_) | QueueName::All(_) | QueueName::Alias(..) => true,
                });
                let is_plain = !matches!(sent.to, To::Condition(_)) && sent.locale.is_none();
                if is_given && still && is_plain {
                    assert!(told.contains(&sent.id), "{who} is not told of a recall");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn each_message_comes_once_or_rightly_never(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut scene = Scene::new().await;
            for step in &steps {
                scene.take(step).await;
            }
            scene.finish().await;
        });
    }
}
