//! More than ten thousand tries to see or do what is not one's own, each judged by an oracle.
//!
//! Identities, filters, topics, wills, aliases and frames, right and wrong, from seeded chance:
//! nothing is granted, delivered or changed that the oracle does not allow, and all that it allows.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use std::collections::BTreeMap;

use carillon_wire::idl::{self, ResultCode};
use reqwest::Method;
use serde_json::{Value, json};
use support::{APP, Device, Node, Options};
use wirelab::{
    acl::{self, Known, Plain, Registration, Target, any_text, likely_filter, parse},
    bytes::{Connect, Publish, VERSIONS, Version, Will, subscribe},
    frames::{self, Framed},
    lab::{Witness, create_app, devices_of, try_send},
    rng::Rng,
    seen::Seen,
    wire::{Wire, device_connect},
};

use Version::V5;

/// Everybody, as the oracle knows them.
struct World {
    node: Node,
    rng: Rng,
    witness: Witness,
    known: Vec<Known>,
    /// Names that may tempt: ids of all sorts.
    names: Vec<String>,
    cases: BTreeMap<&'static str, usize>,
}

impl World {
    async fn new(name: &str, seed: u64) -> Self {
        let rng = Rng::seeded(name, seed);
        let config = Some("[limits]\ntopics_per_registration = 1000\n".to_owned());
        let node = Node::start_with(Options { config, ..Options::default() }).await;
        let witness = Witness::new(&node).await;
        let other = create_app(&node, "other").await;
        let body = json!({"app_id": "third", "alias_policy": "server"});
        assert_eq!(node.call(Method::POST, "/admin/v1/apps", Some(body)).await.status, 201);
        let mut known = Vec::new();
        for app in [APP, APP, APP, "other", "other", "third"] {
            let device = devices_of(&node, app, 1).await.remove(0);
            known.push(Known::of(device, Some(app)));
        }
        let body = json!({"app_id": APP, "app_key": node.app().app_key});
        let bare = node.call(Method::POST, "/v1/devices", Some(body)).await.body;
        let text = |name: &str| bare[name].as_str().expect("a text").to_owned();
        let device =
            Device { device_id: text("device_id"), secret: text("secret"), regid: String::new() };
        known.push(Known::of(device, None));
        // Two of them have a second app.
        for at in [1, 2] {
            let mut framed = Framed::connect(&node, &known[at].device).await;
            let result = framed.ask(frames::register("other", &other.app_key)).await;
            let regid = result.regid.expect("a registration");
            known[at].registrations.push(Registration::new("other", regid));
        }
        let mut names: Vec<String> = vec![witness.device.regid.clone()];
        for one in &known {
            names.push(one.device.device_id.clone());
            names.extend(one.registrations.iter().map(|one| one.regid.clone()));
        }
        Self { node, rng, witness, known, names, cases: BTreeMap::new() }
    }

    fn count(&mut self, kind: &'static str, count: usize) {
        *self.cases.entry(kind).or_default() += count;
    }

    fn pick(&mut self) -> usize {
        self.rng.below(self.known.len())
    }

    async fn done(mut self) {
        self.views_agree().await;
        self.witness.is_served(&self.node).await;
        assert!(!self.node.log().contains("panicked"));
        // What is in brackets was a case before.
        let cases = self.cases.iter().filter(|(kind, _)| !kind.starts_with('('));
        let all: usize = cases.map(|(_, count)| count).sum();
        println!("count: {all} cases: {:?}", self.cases);
    }

    /// What each registration follows is what the oracle knows.
    async fn views_agree(&mut self) {
        for registration in self.known.iter().flat_map(|one| &one.registrations) {
            let view = self.node.registration_for(registration.app, &registration.regid).await;
            let sorted = |name: &str| {
                let all = view[name].as_array().expect("a list").iter();
                let mut all: Vec<&str> = all.map(|one| one.as_str().expect("a text")).collect();
                all.sort_unstable();
                all.join(" ")
            };
            let wanted: Vec<&str> = registration.topics.iter().map(String::as_str).collect();
            assert_eq!(sorted("topics"), wanted.join(" "));
            let wanted: Vec<&str> = registration.aliases.iter().map(String::as_str).collect();
            assert_eq!(sorted("aliases"), wanted.join(" "));
        }
    }
}

#[tokio::test]
async fn nobody_is_let_in_with_what_is_not_his() {
    let mut world = World::new("identities", 1).await;
    let mut ids: Vec<String> = world.names.clone();
    ids.extend(acl::PIECES.iter().map(|piece| (*piece).to_owned()));
    let mut secrets: Vec<String> = vec![world.node.app().app_secret.clone()];
    secrets.extend(world.known.iter().map(|one| one.device.secret.clone()));
    secrets.extend([world.node.app().app_key.clone(), String::new(), "#".into()]);
    for case in 0..1_500 {
        let right = world.pick();
        let right = world.known[right].device.clone();
        let rng = &mut world.rng;
        let id = |rng: &mut Rng| match rng.one_in(2) {
            true => right.device_id.clone(),
            false => rng.pick(&ids).clone(),
        };
        let version = VERSIONS[case % 2];
        let connect = Connect {
            client_id: id(rng).into(),
            user: (!rng.one_in(8)).then(|| id(rng).into()),
            password: (!rng.one_in(8)).then(|| match rng.one_in(2) {
                true => right.secret.clone().into(),
                false => rng.pick(&secrets).clone().into(),
            }),
            ..device_connect(&right, version)
        };
        let owner = world
            .known
            .iter()
            .find(|one| one.device.device_id.as_bytes() == connect.client_id)
            .map(|one| &one.device);
        let is_right = owner.is_some_and(|owner| {
            connect.password.as_deref() == Some(owner.secret.as_bytes())
                && connect.user.as_deref().is_none_or(|user| user == connect.client_id)
        });
        // 3.1.1 has no password without a user name.
        let is_right = is_right && (version == V5 || connect.user.is_some());
        let mut wire = Wire::open(world.node.listen().mqtt, version).await;
        wire.send(connect.bytes()).await;
        let seen = wire.next().await;
        let is_in = matches!(&seen, Seen::ConnAck(connack) if connack.code == 0);
        assert_eq!(is_in, is_right, "{connect:?}: {seen:?}");
        world.count("(let in)", usize::from(is_in));
    }
    world.count("identity", 1_500);
    world.done().await;
}

#[tokio::test]
async fn no_filter_is_granted_that_is_not_his() {
    let mut world = World::new("filters", 2).await;
    for round in 0..120 {
        let at = world.pick();
        let version = VERSIONS[round % 2];
        let mut wire = Wire::clean(&world.node, &world.known[at].device, version).await;
        let (mut plain, mut is_frames) = (Plain::default(), None);
        for _ in 0..3 {
            let count = 1 + world.rng.below(40);
            let names = world.names.clone();
            let filters: Vec<String> =
                (0..count).map(|_| likely_filter(&mut world.rng, &names)).collect();
            let first = filters.iter().find_map(|text| parse(text));
            is_frames = is_frames.or(first.map(|first| first == acl::Filter::Down));
            let granted = match is_frames {
                Some(true) => filters.iter().map(|text| text == "down").collect(),
                Some(false) => plain.subscribe(&mut world.known[at], &filters),
                None => vec![false; count],
            };
            let texts: Vec<&str> = filters.iter().map(String::as_str).collect();
            let codes = wire.subscribe(&texts, 1).await;
            world.count("(granted)", granted.iter().filter(|granted| **granted).count());
            for ((text, code), granted) in filters.iter().zip(codes).zip(granted) {
                assert_eq!(code < 0x80, granted, "{text:?} of {:?}: {code:#04x}", world.known[at]);
            }
            world.count("filter", count);
        }
    }
    let broken: [&[u8]; 8] =
        [b"", b"\0", b"push\0", b"topic/\0", b"\xFF", b"push/\xC3", b"\xED\xA0\x80", b"\xF8"];
    for case in 0..400 {
        let at = world.pick();
        let mut wire = Wire::clean(&world.node, &world.known[at].device, V5).await;
        let (good, bad) = (b"topic/good".as_slice(), broken[case % broken.len()]);
        let filters = if case % 3 == 0 { vec![(bad, 1)] } else { vec![(good, 1), (bad, 1)] };
        wire.send(subscribe(V5, 1, &filters)).await;
        let all = wire.until_closed().await;
        assert!(matches!(all[..], [Seen::Disconnect { code: 0x81 | 0x82 }]), "{all:?}");
    }
    world.count("broken filter", 400);
    world.done().await;
}

#[tokio::test]
async fn no_frame_changes_what_is_not_his() {
    let mut world = World::new("frames", 3).await;
    let mut targets = world.names.clone();
    targets.extend(["", "#", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "\0", "push"].map(String::from));
    for _ in 0..60 {
        let at = world.pick();
        let mut framed = Framed::connect(&world.node, &world.known[at].device).await;
        for _ in 0..25 {
            operate(&mut world, at, &mut framed, &targets).await;
        }
        foreign_positions(&mut world, at, &mut framed).await;
    }
    world.done().await;
}

/// One call about some registration; it changes only what is the device's own.
async fn operate(world: &mut World, at: usize, framed: &mut Framed, targets: &[String]) {
    let names = ["ann", "bob", "news", "a", "#", "+", "", "x\0y", "$share/g/x", "é"];
    let regid_of = |one: &Registration| one.regid.clone();
    let mut own: Vec<String> = world.known[at].registrations.iter().map(regid_of).collect();
    own.push("none".to_owned());
    let regids = if world.rng.one_in(3) { &own[..] } else { targets };
    let regid = world.rng.pick(regids).clone();
    let (name, kind) = ((*world.rng.pick(&names)).to_owned(), world.rng.below(5));
    let own = world.known[at].registration(&regid);
    // Its own registration stays for the next round.
    let kind = if kind == 4 && own.is_some() { 0 } else { kind };
    let (up, is_valid) = match kind {
        0 => (frames::subscribe(&regid, &[&name]), acl::is_topic(&name)),
        1 => (frames::unsubscribe(&regid, &[&name]), acl::is_topic(&name)),
        2 => (frames::bind(&regid, &name, None), acl::is_alias(&name)),
        3 => (frames::unbind(&regid, &name), acl::is_alias(&name)),
        _ => (frames::unregister(&regid), true),
    };
    let is_server_only = own.as_ref().is_some_and(|own| own.app == "third") && kind >= 2;
    let allowed = own.is_some() && is_valid && !is_server_only;
    let result = framed.ask(up).await;
    assert_eq!(result.code == ResultCode::OK, allowed, "{regid:?} {name:?} {kind}: {result:?}");
    if own.is_none() && is_valid {
        assert_eq!(result.code, ResultCode::NOT_FOUND, "no oracle for foreign names");
    }
    if let (true, Some(own)) = (allowed, own) {
        match kind {
            0 => drop(own.topics.insert(name)),
            1 => drop(own.topics.remove(&name)),
            2 => drop(own.aliases.insert(name)),
            _ => drop(own.aliases.remove(&name)),
        }
    }
    world.count("frame", 1);
    world.count("(done)", usize::from(allowed));
    while let Some(deltas) = framed.early_deltas().await {
        assert!(world.known[at].registration(&deltas.regid).is_some(), "{deltas:?}");
    }
}

/// Positions of what is somebody else's: told that it is no more, and nothing of it comes.
async fn foreign_positions(world: &mut World, at: usize, framed: &mut Framed) {
    let own: Vec<String> =
        world.known[at].registrations.iter().map(|one| one.regid.clone()).collect();
    let foreign: Vec<String> = world
        .names
        .iter()
        .filter(|name| name.len() == 32 && !own.contains(name))
        .cloned()
        .collect();
    let position = |queue: idl::Queue| idl::Position { queue, epoch: 1, seq: 0, tag: None };
    let stated = foreign.iter().chain(&own).map(|regid| idl::RegistrationPositions {
        gathered: None,
        regid: regid.clone(),
        positions: vec![
            position(idl::Queue { kind: idl::QueueKind::OWN, name: None }),
            position(idl::Queue { kind: idl::QueueKind::ALIAS, name: Some("ann".into()) }),
        ],
    });
    framed.say(&frames::positions(stated.collect())).await;
    let (mut ended, mut resumed) = (Vec::new(), None);
    while ended.len() < foreign.len() || resumed.is_none() {
        let (id, down) = framed.down().await;
        framed.wire.ack(id).await;
        ended.extend(down.ended.map(|ended| ended.regid));
        resumed = resumed.or(down.resumed.and_then(|resumed| resumed.regids));
        if let Some(deltas) = down.deltas {
            assert!(own.contains(&deltas.regid), "{deltas:?}");
        }
    }
    ended.sort();
    let mut wanted = foreign;
    wanted.sort();
    assert_eq!((ended, resumed), (wanted.clone(), Some(own)));
    world.count("position", wanted.len());
}

#[tokio::test]
async fn nothing_is_delivered_that_is_not_his() {
    let mut world = World::new("deliveries", 4).await;
    for one in world.known.iter_mut().take(5) {
        for registration in &mut one.registrations {
            for alias in ["ann", "bob"] {
                if world.rng.one_in(2) {
                    let (app, regid) = (registration.app, &registration.regid);
                    let path = format!("/v1/apps/{app}/registrations/{regid}/aliases/{alias}");
                    let bound = world.node.call(Method::PUT, &path, None).await;
                    assert_eq!(bound.status, 204, "{}", bound.body);
                    registration.aliases.insert(alias.to_owned());
                }
            }
        }
    }
    for round in 0..25 {
        deliveries(&mut world, VERSIONS[round % 2]).await;
    }
    world.done().await;
}

/// Everybody subscribes to something; then one message goes to each target.
async fn deliveries(world: &mut World, version: Version) {
    let mut wires = Vec::new();
    for at in 0..world.known.len() {
        let mut wire = connect_with_will(world, at, version).await;
        let mut plain = Plain::default();
        let mut filters = vec!["topic/demo/none".to_owned()];
        let names = world.names.clone();
        filters.extend((0..10).map(|_| likely_filter(&mut world.rng, &names)));
        filters.retain(|text| text != "down");
        plain.subscribe(&mut world.known[at], &filters);
        let texts: Vec<&str> = filters.iter().map(String::as_str).collect();
        wire.subscribe(&texts, 1).await;
        for text in filters.iter().filter(|_| world.rng.one_in(4)).cloned().collect::<Vec<_>>() {
            let is_there = plain.unsubscribe(&mut world.known[at], &text);
            let codes = wire.unsubscribe(&[&text]).await;
            assert!(codes.is_empty() || (codes == [0]) == is_there, "{text}: {codes:?}");
        }
        world.count("filter", filters.len());
        wires.push((wire, plain));
    }
    let targets = targets(world);
    for (number, target) in targets.iter().enumerate() {
        let (app, body) = addressed(target, &world.known);
        try_send(&world.node, app, body, json!(number)).await;
    }
    for (at, (wire, plain)) in wires.iter_mut().enumerate() {
        let known = &world.known[at];
        let allowed = |number: usize| plain.delivered_as(known, &targets[number]);
        let wanted: Vec<usize> =
            (0..targets.len()).filter(|number| !allowed(*number).is_empty()).collect();
        let mut got = Vec::new();
        for push in wire.take(wanted.len()).await {
            let number: usize = push.text().parse().expect("a number");
            let texts = allowed(number);
            assert!(texts.contains(&push.topic.as_str()), "{:?} as {push:?}", targets[number]);
            got.push(number);
        }
        got.sort_unstable();
        assert_eq!(got, wanted, "{known:?} {plain:?}");
        assert_eq!(wire.settle().await, [], "{known:?} {plain:?}");
        world.count("(delivered)", got.len());
        publish_elsewhere(world, wire).await;
    }
    world.count("delivery", targets.len() * wires.len());
}

/// Connects after some connections with Wills that break off.
async fn connect_with_will(world: &mut World, at: usize, version: Version) -> Wire {
    for _ in 0..2 {
        let topic = any_text(&mut world.rng, &world.names).replace(['#', '+'], "x");
        let will = Will {
            topic: topic.into(),
            payload: b"will".to_vec(),
            qos: world.rng.below(3) as u8,
            is_retained: world.rng.one_in(2),
            properties: Vec::new(),
        };
        let device = &world.known[at].device;
        let connect = Connect { will: Some(will), ..device_connect(device, version) };
        let broken = Wire::connect(&world.node, &connect).await;
        drop(broken);
    }
    world.count("will", 2);
    Wire::clean(&world.node, &world.known[at].device, version).await
}

/// PUBLISHes to topics of others, where the version survives them.
async fn publish_elsewhere(world: &mut World, wire: &mut Wire) {
    if wire.version() != V5 {
        return;
    }
    for _ in 0..6 {
        let topic = any_text(&mut world.rng, &world.names).replace(['#', '+'], "x");
        if topic == "up" {
            continue;
        }
        wire.send(Publish::new(V5, &topic, "published").qos(1, 9).bytes()).await;
        assert_eq!(wire.next().await, Seen::PubAck { id: 9, code: 0x87 }, "{topic}");
        world.count("topic", 1);
    }
}

fn targets(world: &World) -> Vec<Target> {
    let mut targets = Vec::new();
    for app in [APP, "other", "third"] {
        targets.push(Target::All(app));
        targets.extend(["news", "sport", "a", "b.c", "~"].map(|t| Target::Topic(app, t.into())));
        targets.extend(["ann", "bob"].map(|alias| Target::Alias(app, alias.into())));
    }
    let regids = world.known.iter().flat_map(|one| &one.registrations);
    targets.extend(regids.map(|one| Target::Own(one.regid.clone())));
    targets
}

fn addressed(target: &Target, known: &[Known]) -> (&'static str, Value) {
    match target {
        Target::All(app) => (app, json!({"all": true})),
        Target::Topic(app, topic) => (app, json!({"topic": topic})),
        Target::Alias(app, alias) => (app, json!({"aliases": [alias]})),
        Target::Own(regid) => {
            let mut all = known.iter().flat_map(|one| &one.registrations);
            let owner = all.find(|one| one.regid == *regid).expect("a registration");
            (owner.app, json!({"regids": [regid]}))
        }
    }
}
