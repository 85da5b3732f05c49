//! Sealing fails closed: an entry that cannot be sealed does not go out in any form, is counted, and comes once it can be.
//! What else is refused for the sake of sealing is counted by its reason.
#![cfg(feature = "sim")]

mod edge_support;
#[allow(dead_code, reason = "tests/sealed.rs takes the rest")]
#[path = "sealed/scene.rs"]
mod scene;

use std::sync::OnceLock;

use carillon::{
    base::{
        crash_point,
        metrics::{self, Label, SealRefusal},
    },
    service::{register::FirstRegistration, seals::SealChange, send::Target},
};
use carillon_sdk::Received;
use carillon_wire::{
    idl,
    mqtt::{Connect, Packet, Qos, reason},
    seal::{PrivateKey, PublicKey, RegistrationKey},
};
use edge_support::{Client, up};
use metrics_exporter_prometheus::PrometheusHandle;
use scene::{SECRET, Scene, TITLE, result, seal};
use tokio::sync::Mutex;

/// Counters and faults are the process's: one test at a time.
static ONE: Mutex<()> = Mutex::const_new(());

fn shown() -> String {
    static SHOWN: OnceLock<PrometheusHandle> = OnceLock::new();
    SHOWN.get_or_init(|| metrics::install().unwrap()).render()
}

fn count(series: &str) -> u64 {
    let text = shown();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
    line.unwrap_or_else(|| panic!("{series} is there from the start")).parse().unwrap()
}

fn refused(why: SealRefusal) -> u64 {
    count(&format!("carillon_seal_refusals_total{{reason=\"{}\"}}", why.label()))
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_sealed_waits_until_it_can_be_and_nobody_reads_it_meanwhile() {
    let _one = ONE.lock().await;
    shown();
    let scene = Scene::set(true).await;
    let mut phone = scene.phone().await;
    let regid = scene.register(&phone).await;
    phone.device.bind(&regid, "ann", None).await.unwrap();
    phone.device.subscribe(&regid, &["news"]).await.unwrap();
    let own = || Target::Regids(vec![regid.to_string()]);
    let shared = [Target::Aliases(vec!["ann".into()]), Target::Topic("news".into()), Target::All];
    let mut hit = Vec::new();
    for target in [own()].into_iter().chain(shared) {
        let faults: &[&str] =
            if target == own() { &["seal::own"] } else { &["seal::shared", "seal::wrap"] };
        for fault in faults {
            let (before, sealed) = (refused(SealRefusal::Cipher), sealed_entries());
            fail::cfg(*fault, "2*return->off").unwrap();
            scene.send(target.clone(), SECRET).await;
            // The device comes back later and later.
            let Some(Received::Message(message)) = phone.inbox.recv().await else {
                panic!("the inbox is open")
            };
            assert_eq!(message.payload, SECRET, "{fault}: it is not lost");
            assert_eq!(refused(SealRefusal::Cipher), before + 2, "{fault} for {target:?}");
            assert_eq!(sealed_entries(), sealed + 1, "{fault}: counted once, when it went out");
            hit.push(*fault);
        }
    }
    assert!(!phone.tap.has_heard(&SECRET[1..SECRET.len() - 1]) && !phone.tap.has_heard(TITLE));
    assert!(!phone.has_more());
    assert!(crash_point::FAULTS.iter().all(|fault| hit.contains(fault)), "each of them: {hit:?}");
}

fn sealed_entries() -> u64 {
    let of = |queue: &str| count(&format!("carillon_sealed_entries_total{{queue=\"{queue}\"}}"));
    ["own", "alias", "topic", "all"].map(of).iter().sum()
}

#[tokio::test]
async fn a_connection_whose_entry_cannot_be_sealed_hears_its_end_and_nothing_else() {
    let _one = ONE.lock().await;
    shown();
    let scene = Scene::set(true).await;
    let account = scene.node.bare_device().await;
    let (mut client, offer, _) = scene.raw(&account).await;
    let regid = scene.ask_register(&mut client, Some(offer)).await.regid.unwrap();
    client.settle_new(&regid).await;
    fail::cfg("seal::shared", "return").unwrap();
    scene.send(Target::All, SECRET).await;
    let end = client.next().await;
    let Some(Packet::Disconnect(end)) = end else { panic!("DISCONNECT expected, not {end:?}") };
    assert_eq!(end.reason, reason::SERVER_BUSY);
    assert_eq!(client.next().await, None);
    fail::remove("seal::shared");
}

#[tokio::test]
async fn what_is_refused_for_the_sake_of_sealing_is_counted_by_its_reason() {
    let _one = ONE.lock().await;
    let before: Vec<u64> = {
        shown();
        let _node = Scene::set(true).await;
        SealRefusal::ALL.iter().map(|why| refused(*why)).collect()
    };
    let scene = Scene::set(true).await;
    let account = scene.node.bare_device().await;
    let (mut client, offer, private) = scene.raw(&account).await;
    // no_key, over the connection and over the API.
    scene.ask_register(&mut client, None).await;
    let key = scene.node.register().app_key;
    let created = scene.node.service.create_device("demo", &key, FirstRegistration::Yes).await;
    assert!(created.is_err());
    // app_key
    scene.ask_register(&mut client, Some(idl::SealOffer { app_key: 9, ..offer.clone() })).await;
    // public_key: of low order, and none where there is one.
    let low = idl::SealOffer { public_key: vec![0; 32], ..offer.clone() };
    scene.ask_register(&mut client, Some(low)).await;
    let regid = scene.ask_register(&mut client, Some(offer)).await.regid.unwrap();
    scene.ask_register(&mut client, None).await;
    // A change, another one, and the first one again, as somebody has heard it.
    let mut present = RegistrationKey::of_device(&private, &scene.key.public, &regid).unwrap();
    let mut heard = Vec::new();
    for number in [2, 3] {
        let (next, private) = scene.offer();
        let rekey = rekey(&present, number, &regid, &next);
        assert_eq!(ask_rekey(&mut client, &rekey).await, idl::ResultCode::OK);
        assert_eq!(ask_rekey(&mut client, &rekey).await, idl::ResultCode::OK, "it is the present");
        present = key_of(&private, &scene, &regid);
        heard.push(rekey);
    }
    assert_eq!(ask_rekey(&mut client, &heard[0]).await, idl::ResultCode::FORBIDDEN);
    let (theirs, _) = scene.offer();
    let forged = idl::Rekey { regid: regid.clone(), seal: theirs, proof: vec![0; 16] };
    assert_eq!(ask_rekey(&mut client, &forged).await, idl::ResultCode::FORBIDDEN);
    drop(client);
    scene.node.quiet().await;
    // plain_use
    let mut plain = scene.node.connect(&account, Connect::default()).await;
    assert_eq!(plain.subscribe(&[("push", Qos::AtLeastOnce)]).await, [reason::NOT_AUTHORIZED]);
    let bare = Scene::set(false).await;
    let account = bare.node.device().await;
    let mut plain = bare.node.connect(&account, Connect::default()).await;
    plain.subscribe(&[("push", Qos::AtLeastOnce)]).await;
    seal(&bare.node, SealChange { demanded: Some(true), ..Default::default() }).await;
    assert!(matches!(plain.next().await, Some(Packet::Disconnect(_))));
    bare.node.quiet().await;

    let counts = SealRefusal::ALL.iter().zip(before);
    let counts: Vec<_> = counts.map(|(why, before)| (*why, refused(*why) - before)).collect();
    let expected = [
        (SealRefusal::PlainUse, 2),
        (SealRefusal::NoKey, 2),
        (SealRefusal::AppKey, 1),
        (SealRefusal::PublicKey, 2),
        (SealRefusal::Proof, 1),
        (SealRefusal::Replay, 1),
        (SealRefusal::Cipher, 0),
    ];
    assert_eq!(counts, expected);
}

fn key_of(private: &PrivateKey, scene: &Scene, regid: &str) -> RegistrationKey {
    RegistrationKey::of_device(private, &scene.key.public, regid).unwrap()
}

fn rekey(present: &RegistrationKey, number: u32, regid: &str, next: &idl::SealOffer) -> idl::Rekey {
    let public = PublicKey(next.public_key.clone().try_into().unwrap());
    let proof = present.rekey_proof(number, next.app_key as u32, &public).unwrap();
    idl::Rekey { regid: regid.to_owned(), seal: next.clone(), proof: proof.to_vec() }
}

async fn ask_rekey(client: &mut Client, rekey: &idl::Rekey) -> idl::ResultCode {
    client.up(idl::Up { rekey: Some(rekey.clone()), ..up(2) }).await;
    result(client).await.code
}
