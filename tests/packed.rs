//! Packed frames end to end: a device of the SDK that was away gets what it missed in fewer bytes.

mod edge_support;
#[allow(dead_code, reason = "tests/sealed.rs takes the rest")]
#[path = "sealed/scene.rs"]
mod scene;

use carillon_sdk::MemoryStore;
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
