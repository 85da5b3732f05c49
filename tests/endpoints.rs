//! Which callback URLs of an app are remembered: those of messages that were accepted, for as long
//! as something may be owed to them.

mod edge_support;

use std::{sync::Arc, time::Duration};

use carillon::{
    base::{
        clock::{Clock, DAY_MS},
        tasks,
    },
    config::Config,
    service::{
        Error,
        receipts::{EventKind, Events},
        records::AliasPolicy,
        send::{Asks, Callback, Send, Sent, Target, Timing},
    },
};
use edge_support::{Node, message};
use metrics_exporter_prometheus::PrometheusBuilder;

/// A message that asks for events at one of our URLs.
fn asking(target: Target, url: usize) -> Send {
    let url = format!("http://127.0.0.1:1/{url}");
    let events = Events::default().with(EventKind::Acked).with(EventKind::Invalid);
    let asks = Asks { receipts: false, callback: Some(Callback { url, events }) };
    Send { asks, ..message(target, "1") }
}

async fn node(endpoints: usize, change: impl FnOnce(&mut Config)) -> Node {
    let mut config = Config::default();
    config.callbacks.allow_private = true;
    config.callbacks.endpoints_per_app = endpoints;
    change(&mut config);
    Node::start_at(config, Clock::starting_at(1_700_000_000_000)).await
}

async fn send(node: &Node, send: Send) -> Result<Sent, Error> {
    node.service.send(&node.app, send).await
}

fn is_full<T>(answer: &Result<T, Error>) -> bool {
    matches!(answer, Err(Error::Limit { what: "callback URLs of an app", .. }))
}

#[tokio::test(start_paused = true)]
async fn a_send_that_is_refused_leaves_no_url() {
    let node = node(2, |config| {
        config.limits.allowance.broadcasts_per_day = 1;
        config.limits.scheduled_per_app = 0;
    });
    let node = node.await;
    let device = node.device().await;
    let to_one = || Target::Regids(vec![device.regid.clone().unwrap()]);
    send(&node, asking(Target::All, 0)).await.unwrap();
    let later = Timing { send_at_ms: Some(node.service.now_ms() + 60_000), max_rate_per_s: None };
    for url in 1..10 {
        let over = send(&node, asking(Target::All, url)).await;
        assert!(matches!(over, Err(Error::Allowance { .. })), "{over:?}");
        let wrong = send(&node, asking(Target::Regids(Vec::new()), url)).await;
        assert!(matches!(wrong, Err(Error::Invalid { .. })), "{wrong:?}");
        let full = send(&node, Send { timing: later, ..asking(to_one(), url) }).await;
        assert!(matches!(full, Err(Error::Limit { .. })) && !is_full(&full), "{full:?}");
        let all = vec![asking(Target::All, url), asking(to_one(), 0)];
        let all = node.service.send_all(&node.app, all).await;
        assert!(all[0].is_err() && all[1].is_ok(), "{all:?}");
    }
    send(&node, asking(to_one(), 1)).await.unwrap();
    assert!(is_full(&send(&node, asking(to_one(), 2)).await));
    send(&node, asking(to_one(), 1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_send_goes_on_without_its_caller_and_its_url_with_it() {
    for is_alone in [true, false] {
        let node = node(1, |_| {}).await;
        let device = node.device().await;
        let to_one = || Target::Regids(vec![device.regid.clone().unwrap(), "a".repeat(32)]);
        let several = vec![asking(to_one(), 0), message(to_one(), "2")];
        tokio::select! {
            biased;
            _ = send(&node, asking(to_one(), 0)), if is_alone => panic!("it waits for the disk"),
            _ = node.service.send_all(&node.app, several), if !is_alone => {
                panic!("it waits for the disk")
            }
            () = std::future::ready(()) => {}
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(is_full(&send(&node, asking(to_one(), 1)).await), "alone: {is_alone}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_url_is_forgotten_when_nothing_is_owed_to_it_any_more() {
    let node = node(1, |config| {
        (config.store.retention_days, config.limits.ttl_default_s) = (1, 3_600);
    });
    let node = node.await;
    let days = async |days: u64| {
        tokio::time::advance(Duration::from_millis(days * DAY_MS)).await;
        node.service.shrink();
    };
    let device = node.device().await;
    let to_one = || Target::Regids(vec![device.regid.clone().unwrap()]);
    send(&node, asking(to_one(), 0)).await.unwrap();
    days(1).await;
    assert!(is_full(&send(&node, asking(to_one(), 1)).await));
    // Used again, it lives longer.
    send(&node, asking(to_one(), 0)).await.unwrap();
    days(2).await;
    assert!(is_full(&send(&node, asking(to_one(), 1)).await));
    days(3).await;
    send(&node, asking(to_one(), 1)).await.unwrap();
    assert!(is_full(&send(&node, asking(to_one(), 0)).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_more_urls_are_taken_at_once_than_there_is_room_for() {
    const MAX: usize = 5;
    let node = Arc::new(node(MAX, |_| {}).await);
    for round in 0..20 {
        let app = node.service.create_app(&format!("app{round}"), AliasPolicy::Open).await;
        let app = app.unwrap().app_id;
        let sends = (0..20).map(|url| {
            let (node, app) = (node.clone(), app.clone());
            tasks::spawn("send", async move {
                node.service.send(&app, asking(Target::All, url)).await.is_ok()
            })
        });
        let sends: Vec<_> = sends.collect();
        let mut taken = 0;
        for one in sends {
            taken += usize::from(one.await.unwrap());
        }
        assert_eq!(taken, MAX);
    }
}

#[tokio::test(start_paused = true)]
async fn messages_that_expire_together_are_told_of_with_few_commits() {
    const MESSAGES: usize = 600;
    let recorder = PrometheusBuilder::new().build_recorder();
    let shown = recorder.handle();
    let count = |name: &str| {
        let text = shown.render();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("it is there from the start").parse::<f64>().unwrap() as usize
    };
    let here = metrics::set_default_local_recorder(&recorder);
    let node = node(1, |_| {}).await;
    drop(here);
    let device = node.device().await;
    let events = Events::default().with(EventKind::Expired);
    for _ in 0..MESSAGES {
        let mut one = asking(Target::Regids(vec![device.regid.clone().unwrap()]), 0);
        one.ttl_s = Some(1);
        one.asks.callback.as_mut().unwrap().events = events;
        send(&node, one).await.unwrap();
    }
    let before = count("carillon_commits_total");
    tokio::time::advance(Duration::from_secs(60)).await;
    while count("carillon_callback_events_pending") < MESSAGES {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(count("carillon_callback_events_pending"), MESSAGES);
    let commits = count("carillon_commits_total") - before;
    assert!(commits <= 10, "{commits} commits for {MESSAGES} messages");
}
