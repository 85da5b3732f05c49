//! Sealed payloads from end to end: devices of the SDK and raw frames against a whole node, with a tap on the wire.

mod edge_support;
#[path = "sealed/scene.rs"]
mod scene;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use carillon::service::{
    Error,
    bind::By,
    feedback::{Cursor, Why},
    register::FirstRegistration,
    seals::SealChange,
    send::{Send, Target, Timing},
};
use carillon_sdk::{CallError, MemoryStore, QueueName, Received, Refusal, RegId};
use carillon_wire::{
    idl,
    mqtt::{Connect, Packet, Qos, Version, reason},
    seal::RegistrationKey,
};
use edge_support::{message, up};
use scene::{SECRET, Scene, TITLE, WITHIN, result, seal, sealed_delta};
use tokio::time::{MissedTickBehavior, interval, timeout};

#[tokio::test]
async fn own_alias_topic_and_all_arrive_and_nobody_on_the_way_can_read_them() {
    let scene = Scene::set(true).await;
    let (mut phone, mut other) = (scene.phone().await, scene.phone().await);
    let regid = scene.register(&phone).await;
    scene.register(&other).await;
    phone.device.bind(&regid, "ann", None).await.unwrap();
    phone.device.subscribe(&regid, &["news"]).await.unwrap();
    let targets = [
        Target::Regids(vec![regid.to_string()]),
        Target::Aliases(vec!["ann".into()]),
        Target::Topic("news".into()),
        Target::All,
    ];
    for target in targets {
        scene.send(target, SECRET).await;
        let message = phone.message().await;
        assert_eq!(message.payload, SECRET);
        assert_eq!(message.notification.unwrap().title.as_deref(), Some(TITLE));
    }
    assert_eq!(other.message().await.payload, SECRET, "a broadcast has another key for each");
    for tap in [&phone.tap, &other.tap] {
        assert!(tap.has_heard(regid.as_str()) || tap.has_heard("demo"), "the tap hears");
        assert!(!tap.has_heard(&SECRET[1..SECRET.len() - 1]) && !tap.has_heard(TITLE));
    }
    assert!(!phone.has_more() && !other.has_more());
}

#[tokio::test]
async fn a_broadcast_with_a_rate_comes_sealed_and_when_it_is_a_devices_turn() {
    let scene = Scene::set(true).await;
    let mut phones = Vec::new();
    for _ in 0..3 {
        let phone = scene.phone().await;
        let regid = scene.register(&phone).await;
        phone.device.subscribe(&regid, &["news"]).await.unwrap();
        phones.push((phone, regid));
    }
    let timing = Timing { max_rate_per_s: Some(3), ..Timing::default() };
    let news = || message(Target::Topic("news".into()), SECRET);
    let service = &scene.node.service;
    let sent_ms = service.now_ms();
    service.send(&scene.node.app, Send { timing, ..news() }).await.unwrap();
    service.send(&scene.node.app, Send { payload: "2".into(), ..news() }).await.unwrap();
    for (phone, regid) in &mut phones {
        assert_eq!(phone.message().await.payload, SECRET);
        let regid: carillon::base::ids::RegId = regid.as_str().parse().unwrap();
        let tail: [u8; 8] = regid.0[12..].try_into().unwrap();
        let turn_ms = (1_000 * u128::from(u64::from_be_bytes(tail))) >> 64;
        assert!(u128::from(service.now_ms() - sent_ms) >= turn_ms, "not before {turn_ms}");
        assert_eq!(phone.message().await.payload, "2", "what stands behind it waits");
        assert!(!phone.tap.has_heard(&SECRET[1..SECRET.len() - 1]) && !phone.has_more());
    }
}

#[tokio::test]
async fn x17_a_redelivery_is_the_same_bytes() {
    let scene = Scene::set(true).await;
    let account = scene.node.bare_device().await;
    let (mut client, offer, _) = scene.raw(&account).await;
    let regid = scene.ask_register(&mut client, Some(offer)).await.regid.unwrap();
    client.settle_new(&regid).await;
    let digest = client.digest();
    scene.send_own(&RegId::from(regid.clone()), SECRET).await;
    let own = sealed_delta(&mut client).await;
    scene.send(Target::All, SECRET).await;
    let all = sealed_delta(&mut client).await;
    assert_eq!((own.key_number, all.key_number), (Some(1), Some(1)));
    assert_eq!(all.wrapped_keys.as_ref().map(Vec::len), Some(32));
    drop(client);
    scene.node.quiet().await;

    // The device says that it has nothing of it.
    let mut client = scene.node.connect(&account, Connect::default()).await;
    client.resume(digest).await;
    assert!(client.down().await.ask_positions.is_some());
    let registrations =
        vec![idl::RegistrationPositions { gathered: None, regid, positions: Vec::new() }];
    let positions = Some(idl::Positions { registrations, more: None });
    client.up(idl::Up { positions, ..up(0) }).await;
    let mut again = Vec::new();
    while again.len() < 2 {
        let down = client.down().await;
        let deltas = down.deltas.map(|deltas| deltas.deltas).unwrap_or_default();
        again.extend(deltas.into_iter().filter(|delta| !delta.entries.is_empty()));
    }
    for (delta, before) in again.iter().zip([own, all]) {
        assert_eq!(delta.entries, before.entries);
        assert_eq!(delta.wrapped_keys, before.wrapped_keys);
    }
}

#[tokio::test]
async fn what_was_changed_on_the_way_is_refused_and_comes_again() {
    let scene = Scene::set(true).await;
    let mut phone = scene.phone().await;
    let regid = scene.register(&phone).await;
    *phone.tap.damages.lock().unwrap() = 2;
    scene.send_own(&regid, SECRET).await;
    assert_eq!(phone.message().await.payload, SECRET);
    assert_eq!(*phone.tap.damages.lock().unwrap(), 0, "it was changed twice before");
    scene.send_own(&regid, "2").await;
    assert_eq!(phone.message().await.payload, "2");
    assert!(!phone.has_more());
}

#[tokio::test]
async fn what_never_opens_is_told_passed_over_and_never_shown() {
    let scene = Scene::set(true).await;
    let mut phone = scene.phone().await;
    let regid = scene.register(&phone).await;
    *phone.tap.damages.lock().unwrap() = 3;
    scene.send_own(&regid, SECRET).await;
    let received = timeout(WITHIN, phone.inbox.recv()).await.unwrap();
    assert!(matches!(received, Some(Received::Unopened { .. })), "{received:?}");
    scene.send_own(&regid, "2").await;
    assert_eq!(phone.message().await.payload, "2");
}

#[tokio::test]
async fn keys_are_changed_while_messages_flow() {
    let mut scene = Scene::set(true).await;
    let (account, store) = (scene.node.bare_device().await, MemoryStore::default());
    let mut phone = scene.phone_of(&account, &store).await;
    let regid = scene.register(&phone).await;
    scene.send_own(&regid, "1").await;
    let rotated = SealChange { new_key: true, revoke_older: true, ..Default::default() };
    let (old, new) = (scene.key, seal(&scene.node, rotated).await);
    assert_ne!(old, new);
    phone.device.rekey(&regid, &new).await.unwrap();
    scene.send_own(&regid, "2").await;
    phone.device.rekey(&regid, &new).await.unwrap();
    scene.send(Target::All, "3").await;
    for text in ["1", "2", "3"] {
        assert_eq!(phone.message().await.payload, text);
    }
    assert_eq!(scene.register(&phone).await, regid, "registering again keeps the key");
    phone.device.shutdown().await;
    scene.send_own(&regid, "4").await;
    let mut phone = scene.phone_of(&account, &store).await;
    assert_eq!(phone.message().await.payload, "4", "the key outlives the process");

    let late = scene.phone().await;
    let register = scene.node.register();
    let refused = late.device.register_sealed(&register.app_id, &register.app_key, &old).await;
    assert!(matches!(refused, Err(CallError::Refused { refusal: Refusal::NotFound, .. })));
    scene.key = new;
    scene.register(&late).await;
}

/// What is sent while keys change, and to how many devices.
const UNDER_LOAD: usize = 800;
const PHONES: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a5_the_apps_key_is_changed_again_and_again_under_load() {
    let scene = Scene::set(true).await;
    let (mut phones, mut regids) = (Vec::new(), Vec::new());
    for _ in 0..PHONES {
        let phone = scene.phone().await;
        regids.push(scene.register(&phone).await);
        phones.push(phone);
    }
    let text = |n: usize| format!("\"nobody else reads {n}\"");
    // A thousand a second, or what the machine can do.
    let load = async {
        let mut ticks = interval(Duration::from_millis(1));
        let since = Instant::now();
        for n in 0..UNDER_LOAD {
            ticks.tick().await;
            match n % 25 {
                0 => scene.send(Target::All, &text(n)).await,
                _ => scene.send_own(&regids[n % PHONES], &text(n)).await,
            }
        }
        since.elapsed()
    };
    let is_over = AtomicBool::new(false);
    let changes = async {
        let (mut count, mut ticks) = (0, interval(Duration::from_millis(100)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while count < 3 || !is_over.load(Ordering::Relaxed) {
            ticks.tick().await;
            let change = SealChange { new_key: true, revoke_older: true, ..Default::default() };
            let key = seal(&scene.node, change).await;
            for (phone, regid) in phones.iter().zip(&regids) {
                phone.device.rekey(regid, &key).await.unwrap();
            }
            count += 1;
        }
        count
    };
    let ended = async {
        let took = load.await;
        is_over.store(true, Ordering::Relaxed);
        took
    };
    let (took, changes) = tokio::join!(ended, changes);
    println!(
        "{UNDER_LOAD} messages in {took:?}, {changes} keys of the app, each with {PHONES} of devices"
    );
    for (at, phone) in phones.iter_mut().enumerate() {
        let wanted = |n: &usize| n.is_multiple_of(25) || n % PHONES == at;
        let (mut own, mut all) = (Vec::new(), Vec::new());
        for _ in (0..UNDER_LOAD).filter(wanted) {
            let message = phone.message().await;
            let of = if message.queue == QueueName::All { &mut all } else { &mut own };
            of.push(String::from_utf8(message.payload.to_vec()).unwrap());
        }
        let sent = (0..UNDER_LOAD).filter(wanted);
        let (to_all, to_one): (Vec<_>, Vec<_>) = sent.partition(|n| n % 25 == 0);
        assert_eq!(all, to_all.into_iter().map(text).collect::<Vec<_>>());
        assert_eq!(own, to_one.into_iter().map(text).collect::<Vec<_>>());
        assert!(!phone.has_more());
        assert!(!phone.tap.has_heard("nobody else reads") && !phone.tap.has_heard(TITLE));
    }
}

#[tokio::test]
async fn only_who_has_the_key_keeps_or_changes_the_registration() {
    let scene = Scene::set(true).await;
    let account = scene.node.bare_device().await;
    let (mut client, offer, private) = scene.raw(&account).await;
    let first = scene.ask_register(&mut client, Some(offer.clone())).await;
    let (regid, answer) = (first.regid.clone().unwrap(), first.seal.unwrap());
    let key = RegistrationKey::of_device(&private, &scene.key.public, &regid).unwrap();
    assert_eq!(answer.confirmation, key.confirmation(1).unwrap());
    let again = scene.ask_register(&mut client, Some(offer.clone())).await;
    assert_eq!((again.regid.as_ref(), again.seal), (Some(&regid), Some(answer)));

    let bare = scene.ask_register(&mut client, None).await;
    assert_eq!(bare.code, idl::ResultCode::FORBIDDEN, "no way back to readable");

    let (theirs, _) = scene.offer();
    let forged = idl::Rekey { regid: regid.clone(), seal: theirs.clone(), proof: vec![0; 16] };
    client.up(idl::Up { rekey: Some(forged), ..up(2) }).await;
    assert_eq!(result(&mut client).await.code, idl::ResultCode::FORBIDDEN);

    let low = idl::SealOffer { public_key: vec![0; 32], ..theirs.clone() };
    let bob = scene.node.bare_device().await;
    let (mut other, ..) = scene.raw(&bob).await;
    let refused = scene.ask_register(&mut other, Some(low)).await;
    assert_eq!(refused.code, idl::ResultCode::FORBIDDEN);

    let stolen = scene.ask_register(&mut client, Some(theirs)).await;
    let new = stolen.regid.expect("a registration of its own");
    assert_ne!(new, regid, "another pair does not take a registration over");
    let gone = scene.node.service.registration(&scene.node.app, &regid);
    assert!(matches!(gone, Err(Error::NotFound { .. })));
    let (app, service) = (&scene.node.app, &scene.node.service);
    let listed = service.invalid_since(app, Cursor::default(), 9).unwrap().invalid;
    let listed: Vec<_> = listed.iter().map(|one| (one.regid.to_string(), one.reason)).collect();
    assert_eq!(listed, [(regid, Why::Unregistered)], "its app is told that it is no more");
}

#[tokio::test]
async fn an_app_that_demands_sealing_serves_nobody_without_a_key() {
    let scene = Scene::set(true).await;
    let account = scene.node.bare_device().await;
    let (mut client, ..) = scene.raw(&account).await;
    let refused = scene.ask_register(&mut client, None).await;
    assert_eq!((refused.code, refused.regid), (idl::ResultCode::SEALED, None));
    let key = scene.node.register().app_key;
    let created = scene.node.service.create_device("demo", &key, FirstRegistration::Yes).await;
    assert!(matches!(created, Err(Error::Sealed(_))), "{created:?}");
    let created = scene.node.service.create_devices(&scene.node.app, 1).await;
    assert!(matches!(created, Err(Error::Sealed(_))), "{created:?}");
}

#[tokio::test]
async fn sealed_registrations_are_not_for_plain_use() {
    for (demanded, version, refusal) in [
        (true, Version::V5, reason::NOT_AUTHORIZED),
        (false, Version::V5, reason::NOT_AUTHORIZED),
        (true, Version::V311, 0x80),
    ] {
        let scene = Scene::set(demanded).await;
        let account = scene.node.bare_device().await;
        let (mut client, offer, _) = scene.raw(&account).await;
        scene.ask_register(&mut client, Some(offer)).await;
        drop(client);
        scene.node.quiet().await;
        let connect = Connect { version, ..Connect::default() };
        let mut plain = scene.node.connect(&account, connect).await;
        let reasons =
            plain.subscribe(&[("push", Qos::AtLeastOnce), ("topic/a", Qos::AtLeastOnce)]).await;
        assert_eq!(reasons, [refusal, refusal]);
        scene.send(Target::All, SECRET).await;
        plain.ping().await;
    }
}

#[tokio::test]
async fn demanding_sealing_cuts_whoever_has_no_key_and_taking_it_back_serves_them_again() {
    let scene = Scene::set(false).await;
    let (plain, framed) = (scene.node.device().await, scene.node.device().await);
    let mut at_plain = scene.node.connect(&plain, Connect::default()).await;
    assert_eq!(at_plain.subscribe(&[("push", Qos::AtLeastOnce)]).await, [1]);
    let mut at_framed = scene.node.connect(&framed, Connect::default()).await;
    at_framed.resume(at_framed.digest()).await;
    assert!(at_framed.down().await.ask_positions.is_some());
    let positions = Some(idl::Positions { registrations: Vec::new(), more: None });
    at_framed.up(idl::Up { positions, ..up(0) }).await;
    assert!(at_framed.down().await.resumed.is_some());
    at_framed.settle_new(framed.regid.as_ref().unwrap()).await;

    seal(&scene.node, SealChange { demanded: Some(true), ..Default::default() }).await;
    let Some(Packet::Disconnect(end)) = at_plain.next().await else { panic!("a DISCONNECT") };
    assert_eq!(end.reason, reason::NOT_AUTHORIZED);
    scene.send(Target::All, SECRET).await;
    at_framed.ping().await;

    seal(&scene.node, SealChange { demanded: Some(false), ..Default::default() }).await;
    let entries = at_framed.entries_until(SECRET).await;
    assert_eq!(entries.len(), 1, "what waited comes as it was sent");
}

#[tokio::test]
async fn an_app_that_does_not_seal_is_as_before() {
    let scene = Scene::set(false).await;
    let mut phone = scene.phone().await;
    let register = scene.node.register();
    let regid = phone.device.register(&register.app_id, &register.app_key).await.unwrap();
    scene.send_own(&regid, SECRET).await;
    assert_eq!(phone.message().await.payload, SECRET);
    assert!(phone.tap.has_heard(SECRET) && phone.tap.has_heard(TITLE));
    // It may take a key at any time, and is sealed from then on.
    assert_eq!(scene.register(&phone).await, regid);
    scene.send_own(&regid, "\"sealed by now\"").await;
    assert_eq!(phone.message().await.payload, "\"sealed by now\"");
    assert!(!phone.tap.has_heard("sealed by now"));
}

#[tokio::test]
async fn a_device_that_lost_its_state_gets_another_registration_and_is_told_of_the_old_one() {
    let scene = Scene::set(true).await;
    let account = scene.node.bare_device().await;
    let phone = scene.phone_of(&account, &MemoryStore::default()).await;
    let regid = scene.register(&phone).await;
    phone.device.shutdown().await;
    scene.send_own(&regid, SECRET).await;

    let mut phone = scene.phone_of(&account, &MemoryStore::default()).await;
    let received = timeout(WITHIN, phone.inbox.recv()).await.unwrap().unwrap();
    assert_eq!(received, Received::KeyMissing { regid: regid.clone() });
    let new = scene.register(&phone).await;
    assert_ne!(new, regid);
    let received = timeout(WITHIN, phone.inbox.recv()).await.unwrap().unwrap();
    assert_eq!(received, Received::Ended { regid });
    scene.send_own(&new, "2").await;
    assert_eq!(phone.message().await.payload, "2");
}

#[tokio::test]
async fn what_is_revoked_while_messages_wait_gets_none_of_them() {
    let scene = Scene::set(true).await;
    let account = scene.node.bare_device().await;
    let (mut client, offer, _) = scene.raw(&account).await;
    let regid = scene.ask_register(&mut client, Some(offer)).await.regid.unwrap();
    client.settle_new(&regid).await;
    // Nothing is acknowledged from here on: the window fills, and the rest waits.
    for _ in 0..100 {
        scene.send_own(&RegId::from(regid.clone()), SECRET).await;
    }
    scene.node.service.unregister(&regid, By::App(&scene.node.app)).await.unwrap();
    let ended = timeout(Duration::from_secs(5), async {
        loop {
            if let Some(ended) = client.down().await.ended {
                return ended;
            }
        }
    });
    assert_eq!(ended.await.expect("told within seconds").regid, regid);
    client.ping().await;
    let sent = message(Target::Regids(vec![regid.clone()]), SECRET);
    let _ = scene.node.service.send(&scene.node.app, sent).await;
    client.ping().await;
}
