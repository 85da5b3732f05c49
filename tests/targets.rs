//! Whom a message reaches, over a live node: devices that use frames and plain MQTT, on line and
//! away, get each message that is for them once, and no other.
//!
//! What is for whom an oracle says, over a random set of targets and filters.

mod phone;
mod support;
mod wirelab;

use std::collections::BTreeSet;

use phone::{Got, KINDS, Phone};
use reqwest::Method;
use serde_json::{Value, json};
use support::{APP, DEADLINE, Node, poll_until};
use wirelab::rng::Rng;

const TOPICS: [&str; 5] = ["a", "b", "c", "d", "e"];
const ALIASES: [&str; 3] = ["ann", "bob", "eve"];
const VERSIONS: [u32; 4] = [1, 2, 9, 10];
const LOCALES: [&str; 3] = ["de-AT", "de", "en"];
const MODELS: [&str; 2] = ["P1", "P2"];
const NETWORKS: [&str; 2] = ["wifi", "5g"];

/// What a device says of itself; the version is `1.<n>`.
#[derive(Clone, Debug, Default)]
struct Says {
    version: Option<u32>,
    locale: Option<&'static str>,
    model: Option<&'static str>,
    network: Option<&'static str>,
}

/// A condition over topics by their places.
#[derive(Clone, Debug)]
enum Expr {
    In(usize),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
}

impl Expr {
    fn random(rng: &mut Rng, depth: usize) -> Self {
        let part = |rng: &mut Rng| Box::new(Self::random(rng, depth.saturating_sub(1)));
        match if depth == 0 { 0 } else { rng.below(4) } {
            0 => Self::In(rng.below(TOPICS.len())),
            1 => Self::Not(part(rng)),
            2 => Self::And(part(rng), part(rng)),
            _ => Self::Or(part(rng), part(rng)),
        }
    }

    /// With parentheses around the whole of `||` only: the others bind as they should.
    fn text(&self) -> String {
        match self {
            Self::In(topic) => format!("'{}' in topics", TOPICS[*topic]),
            Self::Not(inner) => format!("!({})", inner.text()),
            Self::And(one, two) => format!("{} && {}", one.text(), two.text()),
            Self::Or(one, two) => format!("({} || {})", one.text(), two.text()),
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

#[derive(Clone, Debug)]
enum Target {
    Regids(Vec<usize>),
    Aliases(Vec<usize>),
    Topic(usize),
    Condition(Expr),
    All,
}

/// What a message asks of those that it is for; versions at least this.
#[derive(Clone, Debug, Default)]
struct Filter {
    version: Option<u32>,
    locale: Option<&'static str>,
    model: Option<&'static str>,
    network: Option<&'static str>,
}

impl Filter {
    fn random(rng: &mut Rng) -> Self {
        let mut filter = Self::default();
        if !rng.one_in(3) {
            return filter;
        }
        match rng.below(5) {
            0 => filter.version = Some(*rng.pick(&VERSIONS)),
            1 => filter.locale = Some(*rng.pick(&LOCALES)),
            2 => filter.model = Some(*rng.pick(&MODELS)),
            3 => filter.network = Some(*rng.pick(&NETWORKS)),
            _ => {
                filter.locale = Some(*rng.pick(&LOCALES));
                filter.network = Some(*rng.pick(&NETWORKS));
            }
        }
        filter
    }

    fn json(&self) -> Value {
        let list = |text: Option<String>| text.into_iter().collect::<Vec<_>>();
        json!({
            "app_version": list(self.version.map(|n| format!(">=1.{n}"))),
            "locale": list(self.locale.map(str::to_owned)),
            // Neither the case of a model nor that of a network matters.
            "model": list(self.model.map(str::to_lowercase)),
            "network": list(self.network.map(str::to_uppercase)),
        })
    }

    fn matches(&self, says: &Says) -> bool {
        let same = |asked: Option<&str>, says: Option<&str>| asked.is_none() || asked == says;
        let is_locale = self.locale.is_none_or(|asked| {
            says.locale.is_some_and(|says| says == asked || says.starts_with(&format!("{asked}-")))
        });
        self.version.is_none_or(|asked| says.version.is_some_and(|says| says >= asked))
            && is_locale
            && same(self.model, says.model)
            && same(self.network, says.network)
    }
}

struct One {
    phone: Phone,
    topics: BTreeSet<usize>,
    aliases: BTreeSet<usize>,
    says: Says,
    /// Payloads that are still to come, if their filters match then.
    wanted: Vec<(usize, Filter)>,
}

struct Scene {
    node: Node,
    all: Vec<One>,
    sent: usize,
}

impl Scene {
    /// Two devices of each kind.
    async fn new() -> Self {
        let node = Node::start().await;
        let mut all = Vec::new();
        for kind in KINDS.into_iter().chain(KINDS) {
            let phone = Phone::new(&node, kind).await;
            let (topics, aliases, says) = Default::default();
            all.push(One { phone, topics, aliases, says, wanted: Vec::new() });
        }
        Self { node, all, sent: 0 }
    }

    fn regid(&self, who: usize) -> &str {
        &self.all[who].phone.regid
    }

    async fn toggle_topic(&mut self, who: usize, topic: usize) {
        let regid = self.regid(who).to_owned();
        match self.all[who].topics.remove(&topic) {
            true => self.node.unsubscribe(&regid, TOPICS[topic]).await,
            false => {
                self.node.subscribe(&regid, TOPICS[topic]).await;
                self.all[who].topics.insert(topic);
            }
        }
    }

    async fn toggle_alias(&mut self, who: usize, alias: usize) {
        let regid = self.regid(who).to_owned();
        match self.all[who].aliases.remove(&alias) {
            true => self.node.unbind(&regid, ALIASES[alias]).await,
            false => {
                self.node.bind(&regid, ALIASES[alias]).await;
                self.all[who].aliases.insert(alias);
            }
        }
    }

    async fn describe(&mut self, who: usize, says: Says) {
        let attributes = json!({
            "app_version": says.version.map(|n| format!("1.{n}")),
            "locale": says.locale, "model": says.model, "network": says.network,
        });
        let path = format!("/v1/apps/{APP}/registrations/{}/attributes", self.regid(who));
        let said = self.node.call(Method::PUT, &path, Some(attributes)).await;
        assert_eq!(said.status, 204, "{}", said.body);
        self.all[who].says = says;
    }

    /// Sends the next number, and waits until it has its place in each queue.
    async fn send(&mut self, target: &Target, filter: &Filter) {
        let names = |places: &[usize], of: &[&str]| -> Vec<String> {
            places.iter().map(|at| of[*at].to_owned()).collect()
        };
        let target_json = match target {
            Target::Regids(whom) => {
                let regids: Vec<&str> = whom.iter().map(|who| self.regid(*who)).collect();
                json!({"regids": regids})
            }
            Target::Aliases(aliases) => json!({"aliases": names(aliases, &ALIASES)}),
            Target::Topic(topic) => json!({"topic": TOPICS[*topic]}),
            Target::Condition(expr) => json!({"condition": expr.text()}),
            Target::All => json!({"all": true}),
        };
        self.sent += 1;
        let message = json!({"target": target_json, "payload": self.sent, "filter": filter.json()});
        send(&self.node, message).await;
        for (who, one) in self.all.iter_mut().enumerate() {
            let is_for = match target {
                Target::Regids(whom) => whom.contains(&who),
                Target::Aliases(all) => all.iter().any(|alias| one.aliases.contains(alias)),
                Target::Topic(topic) => one.topics.contains(topic),
                Target::Condition(expr) => expr.holds(&one.topics),
                Target::All => true,
            };
            // Those who are away are judged when they come back.
            if is_for {
                one.wanted.push((self.sent, filter.clone()));
            }
        }
    }

    /// Each device has exactly what is for it.
    async fn settle(&mut self) {
        for (who, one) in self.all.iter_mut().enumerate() {
            if !one.phone.is_here() {
                continue;
            }
            let says = &one.says;
            let due = one.wanted.drain(..).filter(|(_, filter)| filter.matches(says));
            let mut wanted: Vec<String> = due.map(|(payload, _)| payload.to_string()).collect();
            wanted.sort();
            let got = one.phone.take(wanted.len()).await;
            let wanted = Got { messages: wanted, recalls: 0 };
            assert_eq!(got, wanted, "device {who}: {:?}", one.phone.kind);
        }
    }
}

/// Sends, and waits until the message has its place in each of its queues.
async fn send(node: &Node, message: Value) -> String {
    let path = format!("/v1/apps/{APP}/messages");
    let sent = node.call(Method::POST, &path, Some(message.clone())).await;
    assert_eq!(sent.status, 202, "{message}: {}", sent.body);
    let id = sent.body["id"].as_str().expect("an id").to_owned();
    let path = format!("{path}/{id}");
    let queued = poll_until(DEADLINE, async || {
        let state = node.call(Method::GET, &path, None).await.body;
        (state["counts"]["queues"] == state["counts"]["appended"]).then_some(())
    });
    queued.await.expect("its places");
    id
}

fn some(rng: &mut Rng, len: usize) -> Vec<usize> {
    (0..1 + rng.below(3)).map(|_| rng.below(len)).collect()
}

fn target(rng: &mut Rng, devices: usize) -> Target {
    match rng.below(8) {
        0 => Target::Regids(some(rng, devices)),
        1 => Target::Aliases(some(rng, ALIASES.len())),
        2 => Target::Topic(rng.below(TOPICS.len())),
        3 => Target::All,
        _ => Target::Condition(Expr::random(rng, 3)),
    }
}

fn says(rng: &mut Rng) -> Says {
    Says {
        version: maybe(rng, &VERSIONS),
        locale: maybe(rng, &LOCALES),
        model: maybe(rng, &MODELS),
        network: maybe(rng, &NETWORKS),
    }
}

fn maybe<T: Copy>(rng: &mut Rng, from: &[T]) -> Option<T> {
    (!rng.one_in(3)).then(|| *rng.pick(from))
}

/// In each round memberships and attributes change, some go, messages are sent, those who are
/// away say something else of themselves, and come back.
#[tokio::test]
async fn x3_each_message_reaches_whom_it_is_for_once() {
    let mut rng = Rng::seeded("targets", 20_261_126);
    let mut scene = Scene::new().await;
    let devices = scene.all.len();
    let mut delivered = 0;
    for round in 0..8 {
        for who in 0..devices {
            for _ in 0..1 + rng.below(2) {
                scene.toggle_topic(who, rng.below(TOPICS.len())).await;
            }
            scene.toggle_alias(who, rng.below(ALIASES.len())).await;
            scene.describe(who, says(&mut rng)).await;
        }
        scene.settle().await;
        for who in 0..devices {
            scene.node.wait_until_acknowledged(scene.all[who].phone.regid.as_str()).await;
        }
        let away: Vec<usize> = (0..devices).filter(|_| rng.one_in(3)).collect();
        for who in &away {
            scene.all[*who].phone.go(&scene.node).await;
        }
        for _ in 0..12 {
            let (target, filter) = (target(&mut rng, devices), Filter::random(&mut rng));
            scene.send(&target, &filter).await;
        }
        delivered += scene.all.iter().map(|one| one.wanted.len()).sum::<usize>();
        scene.settle().await;
        for who in away {
            if rng.one_in(2) {
                scene.describe(who, says(&mut rng)).await;
            }
            scene.all[who].phone.come(&scene.node).await;
        }
        scene.settle().await;
        println!("round {round}: {} sent, at most {delivered} deliveries", scene.sent);
    }
    assert!(delivered > scene.sent, "the targets are not empty");
}

/// Whatever brings it: several topics, topic and condition, several aliases, twice the same name.
#[tokio::test]
async fn x7_one_message_by_several_ways_comes_once() {
    let node = Node::start().await;
    for kind in KINDS {
        for is_away in [false, true] {
            let mut phone = Phone::new(&node, kind).await;
            for topic in ["a", "b", "c"] {
                node.subscribe(&phone.regid, topic).await;
            }
            node.bind(&phone.regid, "ann").await;
            node.bind(&phone.regid, "bob").await;
            assert_eq!(phone.take(0).await, Got::default());
            node.wait_until_acknowledged(&phone.regid).await;
            if is_away {
                phone.go(&node).await;
            }
            let any = "'a' in topics || 'b' in topics || 'c' in topics";
            let targets = [
                json!({"condition": any}),
                json!({"condition": format!("({any}) && !('d' in topics)")}),
                json!({"aliases": ["ann", "bob", "ann"]}),
                json!({"regids": [phone.regid, phone.regid]}),
            ];
            for target in &targets {
                send(&node, json!({"target": target, "payload": 1})).await;
            }
            if is_away {
                phone.come(&node).await;
            }
            let got = phone.take(targets.len()).await;
            assert_eq!(got.messages, ["1", "1", "1", "1"], "{kind:?}, away: {is_away}");
            phone.go(&node).await;
            node.unsubscribe(&phone.regid, "a").await;
            for name in ["b", "c"] {
                node.unsubscribe(&phone.regid, name).await;
            }
            node.unbind(&phone.regid, "ann").await;
            node.unbind(&phone.regid, "bob").await;
        }
    }
}

/// A device that is away is judged by what it follows and is when it comes back.
#[tokio::test]
async fn x16_conditions_and_filters_are_judged_when_a_message_is_delivered() {
    let node = Node::start().await;
    for kind in KINDS {
        let mut phone = Phone::new(&node, kind).await;
        node.subscribe(&phone.regid, "a").await;
        let attributes = format!("/v1/apps/{APP}/registrations/{}/attributes", phone.regid);
        let describe = async |locale: &str, version: &str| {
            let said = json!({"locale": locale, "app_version": version});
            let said = node.call(Method::PUT, &attributes, Some(said)).await;
            assert_eq!(said.status, 204, "{}", said.body);
        };
        describe("en", "2.9").await;
        phone.take(0).await;
        phone.go(&node).await;
        let to_a = json!({"condition": "'a' in topics && !('b' in topics)"});
        send(&node, json!({"target": to_a, "payload": "not b"})).await;
        let german = json!({"locale": ["de"]});
        let new = json!({"app_version": [">2.9", "<3"]});
        send(&node, json!({"target": {"topic": "a"}, "payload": "german", "filter": german})).await;
        send(&node, json!({"target": {"topic": "a"}, "payload": "new", "filter": new})).await;
        send(&node, json!({"target": {"all": true}, "payload": "both", "filter": {"locale": ["de"], "app_version": ["2.10"]}})).await;
        send(
            &node,
            json!({"target": {"topic": "a"}, "payload": "model", "filter": {"model": ["P1"]}}),
        )
        .await;
        node.subscribe(&phone.regid, "b").await;
        describe("de-AT", "2.10-beta").await;
        phone.come(&node).await;
        let got = phone.take(3).await;
        assert_eq!(got.messages, ["\"both\"", "\"german\"", "\"new\""], "{kind:?}");
        // What was skipped is skipped for good.
        node.unsubscribe(&phone.regid, "b").await;
        describe("en", "1").await;
        phone.go(&node).await;
        phone.come(&node).await;
        assert_eq!(phone.take(0).await.messages, Vec::<String>::new(), "{kind:?}");
        phone.go(&node).await;
        node.unsubscribe(&phone.regid, "a").await;
    }
}

#[tokio::test]
async fn x3_a_condition_that_is_none_is_refused_and_says_why() {
    let node = Node::start().await;
    let path = format!("/v1/apps/{APP}/messages");
    let six: Vec<String> = (0..6).map(|n| format!("'t{n}' in topics")).collect();
    let deep = format!("{}'a' in topics{}", "(".repeat(40), ")".repeat(40));
    for wrong in [
        six.join(" || ").as_str(),
        deep.as_str(),
        "",
        "'a' in topics &&",
        "'a' in topics & 'b' in topics",
        "('a' in topics",
        "'a' in topics)",
        "! ",
        "a in topics",
        "'a b' in topics",
        "'a' in queues",
    ] {
        let message = json!({"target": {"condition": wrong}, "payload": 1});
        let refused = node.call(Method::POST, &path, Some(message)).await;
        assert_eq!(refused.status, 422, "{wrong}: {}", refused.body);
        assert_eq!(refused.body["field"], "target.condition", "{wrong}: {}", refused.body);
        let said = refused.body["detail"].as_str().unwrap_or_default();
        assert!(said.contains("at character"), "{wrong}: {said}");
    }
    let five = six[..5].join(" && ");
    for right in [
        five.as_str(),
        "'a' in topics && 'a' in topics || !!('a' in topics)",
        "!('a' in topics||'b' in topics)&&'c' in topics",
    ] {
        let message = json!({"target": {"condition": right}, "payload": 1, "dry_run": true});
        let checked = node.call(Method::POST, &path, Some(message)).await;
        assert_eq!(checked.status, 202, "{right}: {}", checked.body);
    }
}
