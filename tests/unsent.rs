//! Each reason why a message was not accepted is counted where it happens, alone and in a batch.

mod edge_support;

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use carillon::{
    base::{
        clock::{Clock, DAY_MS},
        metrics::{self, Label, Unsent},
    },
    config::Config,
    service::{
        Error,
        once::{Answer, Once},
        send::{Send, Sent, Target, Timing},
    },
};
use carillon_wire::mqtt::{Connect, Qos};
use edge_support::{Node, message};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Mutex;

fn counts() -> BTreeMap<&'static str, u64> {
    static SHOWN: OnceLock<PrometheusHandle> = OnceLock::new();
    let text = SHOWN.get_or_init(|| metrics::install().unwrap()).render();
    let count = |why: &Unsent| {
        let line = format!("carillon_unsent_messages_total{{reason=\"{}\"}} ", why.label());
        let count = text.lines().find_map(|l| l.strip_prefix(&line)).map(str::parse::<u64>);
        (why.label(), count.map_or(0, |count| count.unwrap()))
    };
    Unsent::ALL.iter().map(count).collect()
}

/// What a step adds, by reason.
fn added(before: &BTreeMap<&'static str, u64>) -> Vec<(&'static str, u64)> {
    let more = counts().into_iter().map(|(why, count)| (why, count - before[why]));
    more.filter(|(_, count)| *count > 0).collect()
}

async fn node(change: impl FnOnce(&mut Config)) -> Node {
    let mut config = Config::default();
    change(&mut config);
    counts();
    Node::start_with(config).await
}

fn to(regid: &str) -> Send {
    message(Target::Regids(vec![regid.to_owned()]), "1")
}

/// Sends it alone and in a batch: both are refused, and counted as this.
async fn refused(node: &Node, send: Send, why: Unsent) {
    let before = counts();
    let alone = node.service.send(&node.app, send.clone()).await;
    assert!(alone.is_err(), "{why:?}: {alone:?}");
    assert_eq!(added(&before), [(why.label(), 1)]);
    let all = node.service.send_all(&node.app, vec![send]).await;
    assert!(all[0].is_err(), "{why:?}: {all:?}");
    assert_eq!(added(&before), [(why.label(), 2)]);
}

/// Counters are the process's: one test at a time.
static ONE: Mutex<()> = Mutex::const_new(());

#[tokio::test(start_paused = true)]
async fn x5_thirty_days_ahead_is_taken_and_a_moment_more_is_refused() {
    let _one = ONE.lock().await;
    let node = Node::start_at(Config::default(), Clock::starting_at(1_700_000_000_000)).await;
    let regid = node.device().await.regid.unwrap();
    const DAYS_MS: u64 = 30 * DAY_MS;
    for (in_ms, is_taken) in [
        (DAYS_MS, true),
        (DAYS_MS + 1, false),
        (DAYS_MS + 1_000, false),
        (60_000, true),
        (0, false),
    ] {
        let send_at_ms = Some(node.service.now_ms() + in_ms);
        let timing = Timing { send_at_ms, ..Timing::default() };
        let sent = node.service.send(&node.app, Send { timing, ..to(&regid) }).await;
        match sent {
            Ok(sent) => assert!(is_taken && sent.is_scheduled, "{in_ms}"),
            Err(Error::Invalid { field: "send_at", .. }) => assert!(!is_taken, "{in_ms}"),
            Err(other) => panic!("{in_ms}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn each_reason_is_counted_where_it_happens() {
    let _one = ONE.lock().await;
    let plain = node(|_| {}).await;
    let regid = plain.device().await.regid.unwrap();
    refused(&plain, Send { ttl_s: Some(0), ..to(&regid) }, Unsent::Invalid).await;
    refused(&plain, to(&"a".repeat(32)), Unsent::NotFound).await;
    keys(&plain, &regid).await;
    dry_runs(&plain, &regid).await;

    let bounded = node(|config| config.limits.scheduled_per_app = 1).await;
    let regid = bounded.device().await.regid.unwrap();
    let send_at_ms = Some(bounded.service.now_ms() + 3_600_000);
    let later = Send { timing: Timing { send_at_ms, ..Timing::default() }, ..to(&regid) };
    bounded.service.send(&bounded.app, later.clone()).await.unwrap();
    refused(&bounded, later, Unsent::Limit).await;

    rates().await;
    quotas().await;

    let failing = node(|_| {}).await;
    let regid = failing.device().await.regid.unwrap();
    failing.fail_store();
    refused(&failing, to(&regid), Unsent::Unavailable).await;

    // What a send does not meet today.
    assert_eq!(Error::Forbidden("").unsent(), Unsent::Refused);
}

/// What is only checked is neither sent nor unsent, alone, in a batch and under a key.
async fn dry_runs(node: &Node, regid: &str) {
    let before = counts();
    let (service, app) = (&node.service, &node.app);
    let dry = |whom: &str| Send { is_dry_run: true, ..to(whom) };
    let stranger = "a".repeat(32);
    assert!(service.send(app, dry(&stranger)).await.is_err());
    let mixed = || vec![dry(&stranger), dry(regid), Send { ttl_s: Some(0), ..to(regid) }];
    let all = service.send_all(app, mixed()).await;
    assert!(all[0].is_err() && all[1].is_ok() && all[2].is_err(), "{all:?}");
    assert_eq!(added(&before), [("invalid", 1)]);
    let once = |text: &str| Once::new(app, "mixed", &[text.as_bytes()]);
    let answer = |_: &Sent| b"kept".to_vec();
    let numbered = |sends: Vec<Send>| (0..).zip(sends).collect::<Vec<_>>();
    let first = numbered(vec![to(regid)]);
    assert!(service.send_all_once(app, first, &once("one"), answer).await.unwrap()[0].is_ok());
    let reused = service.send_all_once(app, numbered(mixed()), &once("other"), answer).await;
    assert!(matches!(reused, Err(Error::KeyReused)), "{reused:?}");
    assert_eq!(added(&before), [("invalid", 1), ("key_reused", 1)]);
}

async fn keys(node: &Node, regid: &str) {
    let before = counts();
    let once = |text: &str| Once::new(&node.app, "key", &[text.as_bytes()]);
    let answer = |_: &Sent| b"kept".to_vec();
    let (service, app) = (&node.service, &node.app);
    let (one, other) = (once("one"), once("other"));
    let (first, second) = tokio::join!(
        service.send_once(app, to(regid), &one, answer),
        service.send_once(app, to(regid), &one, answer),
    );
    assert!(matches!(first, Ok(Answer::Fresh(_))));
    assert!(matches!(second, Err(Error::KeyInUse)), "{second:?}");
    assert_eq!(added(&before), [("key_in_use", 1)]);
    let reused = service.send_once(app, to(regid), &other, answer).await;
    assert!(matches!(reused, Err(Error::KeyReused)), "{reused:?}");
    let batch = vec![(0, to(regid)), (1, to(regid))];
    let reused = service.send_all_once(app, batch, &other, answer).await;
    assert!(matches!(reused, Err(Error::KeyReused)), "{reused:?}");
    assert_eq!(added(&before), [("key_in_use", 1), ("key_reused", 3)]);
}

async fn rates() {
    let slow = node(|config| {
        let allowance = &mut config.limits.allowance;
        (allowance.targets_per_s, allowance.targets_burst) = (1, 1);
        (allowance.broadcasts_per_s, allowance.broadcasts_burst) = (1, 1);
    });
    let slow = slow.await;
    let regid = slow.device().await.regid.unwrap();
    for (send, why) in
        [(to(&regid), Unsent::Rate), (message(Target::All, "1"), Unsent::BroadcastRate)]
    {
        // Whatever a slow machine gives back meanwhile is used up.
        let before = counts();
        let mut refused = 0;
        while refused < 2 {
            refused += u64::from(slow.service.send(&slow.app, send.clone()).await.is_err());
        }
        assert_eq!(added(&before), [(why.label(), 2)]);
    }
}

async fn quotas() {
    let day = node(|config| {
        let allowance = &mut config.limits.allowance;
        (allowance.targets_per_day, allowance.broadcasts_per_day) = (1, 1);
    });
    let day = day.await;
    let regid = day.device().await.regid.unwrap();
    for (send, why) in
        [(to(&regid), Unsent::DayTargets), (message(Target::All, "1"), Unsent::DayBroadcasts)]
    {
        day.service.send(&day.app, send.clone()).await.unwrap();
        refused(&day, send, why).await;
    }

    let quota = node(|config| {
        let allowance = &mut config.limits.allowance;
        (allowance.deliveries_per_day, allowance.broadcast_deliveries_per_day) = (1, 1);
    });
    let quota = quota.await;
    let account = quota.device().await;
    let mut client = quota.connect(&account, Connect::default()).await;
    client.subscribe(&[("push", Qos::AtLeastOnce)]).await;
    let own = to(account.regid.as_deref().unwrap());
    for (send, why) in [(own, Unsent::Quota), (message(Target::All, "2"), Unsent::BroadcastQuota)] {
        quota.service.send(&quota.app, send.clone()).await.unwrap();
        // What the first kind sent meanwhile comes before.
        loop {
            let push = client.publish().await;
            client.ack(push.packet_id).await;
            if push.payload == send.payload {
                break;
            }
        }
        // The acknowledgement is counted with the pointers, within a second.
        while quota.service.send(&quota.app, send.clone()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        refused(&quota, send, why).await;
    }
}
