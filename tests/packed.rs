//! Packed frames end to end: a device of the SDK that was away gets what it missed in fewer bytes.

mod dice;
mod edge_support;
#[allow(dead_code, reason = "tests/sealed.rs takes the rest")]
#[path = "sealed/scene.rs"]
mod scene;

use carillon::{
    queue::collection::{change::Value, rule::Rule},
    service::collections::Change,
};
use carillon_sdk::MemoryStore;
use carillon_wire::{frame, idl, mqtt::Connect};
use dice::Dice;
use edge_support::{Node, team, up, visitor::Visitor};
use scene::Scene;

#[tokio::test(start_paused = true)]
async fn what_was_missed_comes_packed_and_what_comes_live_does_not() {
    let scene = Scene::set(false).await;
    let account = scene.node.bare_device().await;
    let store = MemoryStore::default();
    let phone = scene.phone_of(&account, &store).await;
    let register = scene.node.register();
    let regid = phone.device.register(&register.app_id, &register.app_key).await.unwrap();
    phone.device.shutdown().await;

    let same = "of many, all of which say the same. ".repeat(4);
    let texts: Vec<String> = (0..300).map(|n| format!("\"message {n} {same}\"")).collect();
    for text in &texts {
        scene.send_own(&regid, text).await;
    }
    let mut phone = scene.phone_of(&account, &store).await;
    for text in &texts {
        assert_eq!(phone.message().await.payload, *text);
    }
    let missed: usize = texts.iter().map(String::len).sum();
    let heard = phone.tap.heard.lock().unwrap().len();
    assert!(heard < missed, "{heard} bytes on the wire for {missed} of payloads");
    assert!(!phone.tap.has_heard(&texts[150]));

    scene.send_own(&regid, "\"live\"").await;
    assert_eq!(phone.message().await.payload, "\"live\"");
    assert!(phone.tap.has_heard("\"live\""));
    phone.device.shutdown().await;

    // It was acknowledged as any frame is.
    let mut phone = scene.phone_of(&account, &store).await;
    scene.send_own(&regid, "\"last\"").await;
    assert_eq!(phone.message().await.payload, "\"last\"");
    assert!(!phone.has_more());
}

const UPDATES: usize = 1_000;
const UPDATE_BYTES: usize = 120;

/// JSON documents of 120 bytes with sentences of this repository, and a random id of 10 bytes each.
fn updates() -> Vec<String> {
    let text = concat!(
        include_str!("../docs/PROTOCOL.md"),
        include_str!("../docs/decisions.md"),
        include_str!("../docs/SYNC.md"),
        include_str!("../docs/LIMITS.md"),
        include_str!("../docs/OPERATIONS.md")
    );
    let mut text = text.chars().filter(|c| c.is_ascii_alphanumeric() || " .,;:()'".contains(*c));
    let mut dice = Dice::new(27);
    let update = |_| {
        let id: String = (0..16)
            .map(|_| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[dice.index(32)]))
            .collect();
        let words = UPDATE_BYTES - id.len() - r#"{"id":"","text":""}"#.len();
        let text: String = text.by_ref().take(words).collect();
        format!(r#"{{"id":"{id}","text":"{text}"}}"#)
    };
    (0..UPDATES).map(update).collect()
}

#[tokio::test]
async fn s27_a_thousand_missed_updates_come_in_one_round_trip_and_in_three_fifths_of_their_bytes() {
    let node = Node::start().await;
    let app = team::app_with(&node, &[("notes", Rule::Newest)]).await;
    let ann = team::member(&node, &app).await;
    let put = async |items: Vec<(String, String)>| {
        let (service, alias) = (&node.service, team::ALIAS.parse().unwrap());
        let ask = |(key, text): &(String, String)| {
            let value = Some(Value::json(text.clone()));
            let stamp = service.server_stamp();
            let change = Change { collection: "notes", key, value, base: None, stamp };
            service.collections(&app.app_id).unwrap().ask(change).unwrap()
        };
        let asks = items.iter().map(ask).collect();
        service.change(&app.app_id, &alias, asks).await.unwrap();
    };
    // Where it holds little, a snapshot is smaller than what it missed.
    let large = format!("\"{}\"", "x".repeat(5_000));
    put((0..50).map(|n| (format!("held {n}"), large.clone())).collect()).await;
    let mut visitor = Visitor::new(&node, &ann);
    visitor.reach(50).await;
    let updates = updates();
    assert!(updates.iter().all(|update| update.len() == UPDATE_BYTES));
    for (at, some) in updates.chunks(100).enumerate() {
        let named = some.iter().enumerate().map(|(n, text)| (format!("n{at}{n:02}"), text.clone()));
        put(named.collect()).await;
    }

    let mut client = node.connect(&ann, Connect::default()).await;
    visitor.hand_over(&mut client);
    let resume = idl::Resume { digest: client.digest(), dictionary: Some(frame::DICTIONARY) };
    client.up(idl::Up { resume: Some(resume), ..up(0) }).await;
    // Nothing is said and nothing acknowledged until all is there.
    let (mut bytes, mut values) = (0, Vec::new());
    while values.len() < UPDATES {
        let publish = client.publish().await;
        bytes += publish.payload.len() + PUBLISH_BYTES;
        let deltas = frame::open_down(&publish.payload).unwrap().deltas;
        let deltas = deltas.into_iter().flat_map(|frame| frame.deltas);
        let entries = deltas.flat_map(|delta| delta.entries);
        values.extend(entries.filter_map(|entry| entry.change?.value));
    }
    assert!(values.iter().eq(updates.iter().map(String::as_bytes)));
    println!("{bytes} bytes for {} of values", UPDATES * UPDATE_BYTES);
    assert!(bytes * 100 < UPDATES * UPDATE_BYTES * 60, "{bytes} bytes");
}

/// Around a frame: the fixed header, the topic, the packet's number, no properties.
const PUBLISH_BYTES: usize = 4 + 6 + 2 + 1;
