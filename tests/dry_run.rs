//! A message that is only checked leaves nothing behind: no entry, no key, no count, no listed
//! regID, no callback.

mod edge_support;

use std::time::Duration;

use carillon::{
    base::{clock::Clock, ids::RegId},
    config::Config,
    service::{
        Error,
        feedback::Cursor,
        once::{Answer, Once},
        receipts::{EventKind, Events},
        records::AliasPolicy,
        send::{Asks, Callback, Send, Sent, Target},
    },
};
use edge_support::{Node, message};

const STRANGER: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn dry(send: Send) -> Send {
    Send { is_dry_run: true, ..send }
}

fn to_regids(regids: &[&str]) -> Send {
    message(Target::Regids(regids.iter().map(|one| (*one).to_owned()).collect()), "1")
}

/// Everything that is written in the background is written then.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

fn listed(node: &Node) -> Vec<String> {
    let page = node.service.invalid_since(&node.app, Cursor::default(), 100).unwrap();
    page.invalid.iter().map(|one| one.regid.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_lists_no_unknown_regid_and_a_send_does() {
    let node = Node::start_at(Config::default(), Clock::starting_at(1_700_000_000_000)).await;
    let device = node.device().await;
    let known = device.regid.clone().unwrap();
    let sent = node.service.send(&node.app, dry(to_regids(&[&known, STRANGER]))).await.unwrap();
    assert_eq!((sent.matched, sent.invalid), (1, vec![STRANGER.to_owned()]));
    let refused = node.service.send(&node.app, dry(to_regids(&[STRANGER]))).await;
    assert!(matches!(refused, Err(Error::NotFound { .. })), "{refused:?}");
    let sends = vec![dry(to_regids(&[&known, STRANGER]))];
    assert!(node.service.send_all(&node.app, sends).await[0].is_ok());
    settle().await;
    assert_eq!(listed(&node), Vec::<String>::new());
    node.service.send(&node.app, to_regids(&[&known, STRANGER])).await.unwrap();
    settle().await;
    assert_eq!(listed(&node), [STRANGER]);
    // Named again, alone or with others, it is there once; the others come behind it.
    let other = "b".repeat(STRANGER.len());
    for to in [&[known.as_str(), STRANGER][..], &[known.as_str(), STRANGER, &other, STRANGER]] {
        node.service.send(&node.app, to_regids(to)).await.unwrap();
        settle().await;
    }
    assert_eq!(listed(&node), [STRANGER, &other]);
}

#[tokio::test(start_paused = true)]
async fn an_app_that_names_many_unknown_regids_takes_no_others_place() {
    let node = Node::start_at(Config::default(), Clock::starting_at(1_700_000_000_000)).await;
    let other = node.service.create_app("other", AliasPolicy::Open).await.unwrap().app_id;
    settle().await;
    for at in 0..20 {
        let many = (0..1_000_u64).map(|n| {
            let mut regid = RegId([0xaa; 20]);
            regid.0[..8].copy_from_slice(&(1_000 * at + n).to_be_bytes());
            regid.to_string()
        });
        let many = message(Target::Regids(many.collect()), "1");
        assert!(node.service.send(&node.app, many).await.is_err());
    }
    assert!(node.service.send(&other, to_regids(&[STRANGER])).await.is_err());
    settle().await;
    let page = node.service.invalid_since(&other, Cursor::default(), 100).unwrap();
    assert_eq!(page.invalid.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_takes_no_key() {
    let node = Node::start().await;
    let once = |text: &str| Once::new(&node.app, "key", &[text.as_bytes()]);
    let answer = |_: &Sent| b"kept".to_vec();
    let all = || message(Target::All, "1");
    let is_fresh = |answer: &Answer| matches!(answer, Answer::Fresh(_));
    let (app, service) = (&node.app, &node.service);
    for _ in 0..2 {
        let sent = service.send_once(app, dry(all()), &once("dry"), answer).await.unwrap();
        assert!(is_fresh(&sent));
        let sends = vec![(0, dry(all()))];
        let sent = service.send_all_once(app, sends, &once("dry"), answer).await.unwrap();
        assert!(sent[0].as_ref().is_ok_and(is_fresh));
    }
    // The key is free for another call, and what that one keeps hinders no dry run.
    assert!(is_fresh(&service.send_once(app, all(), &once("real"), answer).await.unwrap()));
    assert!(!is_fresh(&service.send_once(app, all(), &once("real"), answer).await.unwrap()));
    assert!(is_fresh(&service.send_once(app, dry(all()), &once("dry"), answer).await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_against_no_quota_and_opens_no_callback() {
    let mut config = Config::default();
    config.limits.allowance.broadcasts_per_day = 1;
    config.callbacks.endpoints_per_app = 1;
    config.callbacks.allow_private = true;
    let node = Node::start_with(config).await;
    let asking = |url: &str| {
        let events = Events::default().with(EventKind::Acked).with(EventKind::Invalid);
        let callback = Some(Callback { url: url.into(), events });
        Send { asks: Asks { receipts: true, callback }, ..message(Target::All, "1") }
    };
    for at in 0..5 {
        let url = format!("http://127.0.0.1:1/{at}");
        assert!(node.service.send(&node.app, dry(asking(&url))).await.is_ok());
    }
    let refused = node.service.send(&node.app, dry(asking("http://example.org/"))).await;
    assert!(matches!(refused, Err(Error::Invalid { field: "callback.url", .. })), "{refused:?}");
    assert!(node.service.send(&node.app, asking("http://127.0.0.1:1/real")).await.is_ok());
    let over = node.service.send(&node.app, asking("http://127.0.0.1:1/real")).await;
    assert!(matches!(over, Err(Error::Allowance { .. })), "{over:?}");
}
