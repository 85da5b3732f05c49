//! The gateway loses changes that devices have: they are told so, get a snapshot, and end with what the gateway holds.

use std::fs;

use super::*;
use support::{Options, copy_dir};

/// Two devices hold forty notes; the gateway's store is as it was when there were thirty.
async fn lost(keep_mark: bool) -> (Scene, [(Arc<tempfile::TempDir>, support::Device); 2]) {
    let mut scene = Scene::with(Options::default(), "newest").await;
    scene.fill(30).await;
    let phones = Phone::two_offline(&scene).await;
    scene.node.terminate().await;
    let (data, old) = (scene.node.data(), tempfile::tempdir().unwrap());
    let dirs = ["store", "longterm"];
    dirs.iter().for_each(|dir| copy_dir(&data.join(dir), &old.path().join(dir)));
    let mark = fs::read(data.join("commit-mark")).unwrap();
    scene.node.restart().await;

    let changes = (0..10).map(|n| set(&format!("lost {n}"), n)).chain([set(&key(3), 333)]);
    scene.change(changes.chain([delete(&key(4))]).collect()).await;
    let mut offline = Vec::new();
    for Phone { collections, home, account, .. } in phones {
        let mut phone = Phone::over(collections, home, account, scene.node.listen().mqtt).await;
        phone.hears(&served(&scene).await).await;
        assert_eq!(phone.heard.len(), 39);
        offline.push(phone.stop().await);
    }
    scene.node.terminate().await;
    for dir in dirs {
        fs::remove_dir_all(data.join(dir)).unwrap();
        copy_dir(&old.path().join(dir), &data.join(dir));
    }
    if !keep_mark {
        fs::write(data.join("commit-mark"), mark).unwrap();
    }
    scene.node.restart().await;
    (scene, offline.try_into().map_err(drop).unwrap())
}

/// The device comes, and ends with what the app server reads; why it was given a snapshot.
async fn comes(scene: &Scene, offline: (Arc<tempfile::TempDir>, support::Device)) -> &'static str {
    const REASONS: [&str; 5] = ["new", "epoch_changed", "overflow", "ahead", "smaller"];
    let count = async || {
        let mut counts = Vec::new();
        for reason in REASONS {
            let name = format!("carillon_snapshots_total{{reason=\"{reason}\"}}");
            counts.push(scene.node.counter(&name).await);
        }
        counts
    };
    let before = count().await;
    let (home, account) = offline;
    let mut phone = Phone::start(home, account, scene.node.listen().mqtt).await;
    assert_eq!(phone.heard.len(), 39, "what it has is readable");
    phone.hears(&served(scene).await).await;
    let after = count().await;
    let given = before.iter().zip(&after).position(|(before, after)| before < after);
    phone.device.shutdown().await;
    REASONS[given.expect("a snapshot was given")]
}

async fn all_end_with_what_the_gateway_holds(keep_mark: bool) {
    let (scene, [first, second]) = lost(keep_mark).await;
    assert_eq!(served(&scene).await.len(), 30);
    assert_eq!(comes(&scene, first).await, "ahead");
    // Other changes get the numbers that those had, in a new epoch, and more.
    scene.change((0..20).map(|n| set(&format!("other {n}"), n)).collect()).await;
    assert_eq!(comes(&scene, second).await, "epoch_changed");
    assert_eq!(served(&scene).await.len(), 50);
}

#[tokio::test]
async fn s4_s12_items_follow_a_gateway_that_knows_what_it_lost() {
    all_end_with_what_the_gateway_holds(true).await;
}

#[tokio::test]
async fn s4_s12_items_follow_a_gateway_that_learns_from_a_device_what_it_lost() {
    all_end_with_what_the_gateway_holds(false).await;
}
