//! What a registration does not take now waits: pauses and hours of the day, and broadcasts
//! that reach their followers one after the other. On a paused clock.

mod edge_support;

use std::time::Duration;

use carillon::{
    base::{civil::rfc3339_ms, clock::Clock, ids::RegId},
    config::Config,
    service::{
        Error,
        accept::{Accept, Hours},
        bind::By,
        send::{Send, Target, Timing},
    },
};
use carillon_wire::{
    idl,
    mqtt::{Connect, Packet, Qos},
};
use edge_support::{Account, Client, Node, message, up};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

/// A node whose clock starts then.
async fn node_at(time: &str) -> Node {
    let clock = Clock::starting_at(rfc3339_ms(time).unwrap());
    Node::start_at(Config::default(), clock).await
}

async fn plain(node: &Node, account: &Account) -> Client {
    let connect = Connect { keep_alive_s: 600, session_expiry_s: 3_600, ..keeping() };
    let mut client = node.connect(account, connect).await;
    assert_eq!(client.subscribe(&[("push", Qos::AtLeastOnce)]).await, [1]);
    client
}

fn keeping() -> Connect {
    Connect { clean_start: false, ..Connect::default() }
}

fn regid(account: &Account) -> String {
    account.regid.clone().unwrap()
}

async fn accept(node: &Node, account: &Account, accept: Accept) {
    node.service.set_accept(&regid(account), accept, By::App(&node.app)).await.unwrap();
}

fn hours(start_minute: i64, end_minute: i64, zone: &str) -> Accept {
    let hours = Some(Hours::of(start_minute, end_minute, zone).unwrap());
    Accept { is_paused: false, hours }
}

fn paused() -> Accept {
    Accept { is_paused: true, hours: None }
}

/// Stays connected for some time, in which nothing must come.
async fn nothing_for(client: &mut Client, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        client.ping().await;
        sleep((end - Instant::now()).min(Duration::from_secs(500))).await;
    }
    // Whatever had come would stand before the answer.
    client.ping().await;
}

/// Takes the next message and gives its text.
async fn take(client: &mut Client) -> String {
    let publish = client.publish().await;
    client.ack(publish.packet_id).await;
    String::from_utf8(publish.payload.to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn x13_outside_its_hours_a_registration_gets_nothing_and_then_all_at_once() {
    let node = node_at("2026-03-28T20:00:00+01:00").await;
    let (sleeper, other) = (node.device().await, node.device().await);
    accept(&node, &sleeper, hours(8 * 60, 22 * 60, "Europe/Berlin")).await;
    let mut client = plain(&node, &sleeper).await;
    node.send(&sleeper, "evening").await;
    assert_eq!(take(&mut client).await, "evening");
    nothing_for(&mut client, Duration::from_secs(2 * 3_600)).await;
    let mut awake = plain(&node, &other).await;
    node.send(&sleeper, "night").await;
    node.send_timed(Target::All, "all", None, Timing::default()).await;
    node.send_timed(Target::All, "short", Some(3_600), Timing::default()).await;
    assert_eq!([take(&mut awake).await, take(&mut awake).await], ["all", "short"]);
    drop(awake);
    // The clocks are changed in this night: ten hours later it is nine, and so open.
    nothing_for(&mut client, Duration::from_secs(9 * 3_600 - 10)).await;
    let mut came = vec![take(&mut client).await, take(&mut client).await];
    came.sort();
    assert_eq!(came, ["all", "night"]);
    let view = node.service.registration(&node.app, &regid(&sleeper)).unwrap().accept.unwrap();
    assert!(view.open && view.opens_ms.is_none());
    node.send(&sleeper, "morning").await;
    assert_eq!(take(&mut client).await, "morning");
}

#[tokio::test(start_paused = true)]
async fn x13_hours_over_midnight_end_in_the_morning() {
    let node = node_at("2026-01-05T23:00:00Z").await;
    let guard = node.device().await;
    accept(&node, &guard, hours(22 * 60, 6 * 60, "UTC")).await;
    let mut client = plain(&node, &guard).await;
    node.send(&guard, "before midnight").await;
    assert_eq!(take(&mut client).await, "before midnight");
    nothing_for(&mut client, Duration::from_secs(3_600 + 10)).await;
    node.send(&guard, "after midnight").await;
    assert_eq!(take(&mut client).await, "after midnight");
    nothing_for(&mut client, Duration::from_secs(6 * 3_600)).await;
    node.send(&guard, "by day").await;
    nothing_for(&mut client, Duration::from_secs(100)).await;
    accept(&node, &guard, Accept::default()).await;
    assert_eq!(take(&mut client).await, "by day");
}

#[tokio::test(start_paused = true)]
async fn x13_a_paused_registration_gets_nothing_however_it_comes_back() {
    let node = node_at("2026-01-05T12:00:00Z").await;
    let account = node.device().await;
    let mut client = plain(&node, &account).await;
    node.send(&account, "one").await;
    let unacknowledged = client.publish().await;
    accept(&node, &account, paused()).await;
    node.send(&account, "two").await;
    nothing_for(&mut client, Duration::from_secs(1_000)).await;
    // Neither a new connection nor the resend of a parked session opens it.
    drop(client);
    node.quiet().await;
    let connect = Connect { session_expiry_s: 3_600, ..keeping() };
    let mut client = node.connect(&account, connect).await;
    assert!(client.session_present);
    nothing_for(&mut client, Duration::from_secs(1_000)).await;
    accept(&node, &account, Accept::default()).await;
    let again = client.publish().await;
    assert_eq!((again.dup, again.packet_id), (true, unacknowledged.packet_id));
    client.ack(again.packet_id).await;
    assert_eq!(take(&mut client).await, "two");
}

#[tokio::test(start_paused = true)]
async fn a_frames_device_says_itself_when_it_takes_messages() {
    let node = node_at("2026-01-05T12:00:00Z").await;
    let account = node.device().await;
    let regid = regid(&account);
    let mut client = node.connect(&account, keeping()).await;
    client.resume(client.digest()).await;
    assert!(client.down().await.ask_positions.is_some());
    client.up(idl::Up { positions: Some(idl::Positions::new(Vec::new(), None)), ..up(0) }).await;
    assert!(client.down().await.resumed.is_some());
    client.settle_new(&regid).await;
    let result = async |client: &mut Client, accept: idl::Accept| {
        client.up(idl::Up { accept: Some(accept), ..up(7) }).await;
        client.down().await.result.expect("a result").code
    };
    let none = || idl::Accept::new(regid.clone(), None, None, None, None);
    let pause = idl::Accept { paused: Some(true), ..none() };
    assert_eq!(result(&mut client, pause).await, idl::ResultCode::OK);
    node.send(&account, "hidden").await;
    nothing_for(&mut client, Duration::from_secs(10)).await;
    let same = idl::Accept {
        start_minute: Some(5),
        end_minute: Some(5),
        zone: Some("UTC".into()),
        ..none()
    };
    let half = idl::Accept { start_minute: Some(5), ..none() };
    let nowhere = idl::Accept { end_minute: Some(6), zone: Some("x".into()), ..same.clone() };
    for wrong in [same, half, nowhere] {
        assert_eq!(result(&mut client, wrong).await, idl::ResultCode::INVALID);
    }
    let stranger = idl::Accept::new("a".repeat(32), None, None, None, None);
    assert_eq!(result(&mut client, stranger).await, idl::ResultCode::NOT_FOUND);
    nothing_for(&mut client, Duration::from_secs(10)).await;
    let in_a_minute = idl::Accept {
        start_minute: Some(12 * 60 + 1),
        end_minute: Some(13 * 60),
        zone: Some("+00:00".into()),
        ..none()
    };
    assert_eq!(result(&mut client, in_a_minute).await, idl::ResultCode::OK);
    client.entries_until("hidden").await;
    assert_eq!(result(&mut client, none()).await, idl::ResultCode::OK);
    assert!(node.service.registration(&node.app, &regid).unwrap().accept.is_none());
    let refused = Hours::of(1, 1, "UTC");
    assert!(matches!(refused, Err(Error::Invalid { field: "hours.end_minute", .. })));
}

/// When it is a device's turn of a broadcast that takes so long.
fn turn_ms(account: &Account, spread_ms: u64) -> u128 {
    let regid: RegId = account.regid.as_deref().unwrap().parse().unwrap();
    let tail: [u8; 8] = regid.0[12..].try_into().unwrap();
    (u128::from(spread_ms) * u128::from(u64::from_be_bytes(tail))) >> 64
}

/// 200 devices at 20 a second: each gets it when its turn comes, not before, whether it is
/// connected all the time or comes back.
#[tokio::test(start_paused = true)]
async fn x12_a_broadcast_with_a_rate_reaches_its_followers_one_after_the_other() {
    const DEVICES: u64 = 200;
    const RATE: u32 = 20;
    let node = node_at("2026-01-05T12:00:00Z").await;
    let mut clients = Vec::new();
    for _ in 0..DEVICES {
        let account = node.device().await;
        clients.push((plain(&node, &account).await, account));
    }
    let began = Instant::now();
    let timing = Timing { max_rate_per_s: Some(RATE), ..Timing::default() };
    node.send_timed(Target::All, "spread", None, timing).await;
    node.send_timed(Target::All, "behind", None, Timing::default()).await;
    let spread_ms = DEVICES * 1_000 / u64::from(RATE);
    let arrivals = clients.into_iter().enumerate().map(async |(n, (mut client, account))| {
        let turn_ms = turn_ms(&account, spread_ms);
        // Whose turn comes at once cannot be away before it.
        let (mut client, pause) = match n % 2 {
            1 if turn_ms >= 500 => {
                // It is away for a while and looks by itself when it is back.
                let pause = Duration::from_millis(turn_ms as u64 / 2);
                client.send(&Packet::Disconnect(Default::default())).await;
                sleep(pause).await;
                let connect = Connect { session_expiry_s: 3_600, ..keeping() };
                let mut client = node.connect(&account, connect).await;
                client.subscribe(&[("push", Qos::AtLeastOnce)]).await;
                (client, pause)
            }
            _ => (client, Duration::ZERO),
        };
        assert!(pause < Duration::from_millis(spread_ms));
        assert_eq!(take(&mut client).await, "spread");
        let came_ms = began.elapsed().as_millis();
        assert_eq!(take(&mut client).await, "behind");
        assert!((turn_ms..turn_ms + 300).contains(&came_ms), "turn {turn_ms}, came {came_ms}");
        came_ms as usize / 1_000
    });
    let arrivals = timeout(Duration::from_secs(60), join_all(arrivals)).await.unwrap();
    let mut each_second = vec![0; spread_ms as usize / 1_000 + 1];
    arrivals.into_iter().for_each(|second| each_second[second] += 1);
    println!("arrivals a second: {each_second:?}");
    // Places are random: far more than the rate in one second would be another law.
    assert!(each_second.iter().all(|n| *n <= 2 * RATE), "{each_second:?}");
}

/// Also to a topic, to several of them and to everybody as a condition says: each of those whom it
/// is for gets it once, when its turn comes.
#[tokio::test(start_paused = true)]
async fn a_rate_holds_for_topics_and_conditions() {
    const DEVICES: usize = 60;
    const RATE: u32 = 20;
    let node = node_at("2026-01-05T12:00:00Z").await;
    let mut clients = Vec::new();
    for n in 0..DEVICES {
        let account = node.device().await;
        let topics = [&["a"][..], &["b"], &["a", "b"]][n % 3];
        let topics: Vec<String> = topics.iter().map(|one| (*one).to_owned()).collect();
        node.service.subscribe(&regid(&account), &topics, By::App(&node.app)).await.unwrap();
        clients.push((plain(&node, &account).await, account));
    }
    let condition = |text: &str| Target::Condition(text.to_owned());
    // Whom it is for, and over how many it is spread: who follows both counts twice.
    for (target, whom, over) in [
        (Target::Topic("a".into()), [true, false, true], 40),
        (condition("'a' in topics || 'b' in topics"), [true; 3], 80),
        (condition("!('b' in topics)"), [true, false, false], 60),
    ] {
        let began = Instant::now();
        let timing = Timing { max_rate_per_s: Some(RATE), ..Timing::default() };
        node.send_timed(target.clone(), "spread", None, timing).await;
        let spread_ms = over * 1_000 / u64::from(RATE);
        let its = clients.iter_mut().enumerate().filter(|(n, _)| whom[n % 3]);
        let arrivals = its.map(async |(_, (client, account))| {
            assert_eq!(take(client).await, "spread", "{target:?}");
            let (turn_ms, came_ms) = (turn_ms(account, spread_ms), began.elapsed().as_millis());
            assert!((turn_ms..turn_ms + 300).contains(&came_ms), "turn {turn_ms}, came {came_ms}");
        });
        join_all(arrivals).await;
        sleep(Duration::from_millis(spread_ms)).await;
        for (client, account) in &mut clients {
            node.send(account, "end").await;
            assert_eq!(take(client).await, "end", "{target:?}");
        }
    }
    let timing = Timing { max_rate_per_s: Some(RATE), ..Timing::default() };
    let to_alias = message(Target::Aliases(vec!["ann".into()]), "1");
    let refused = node.service.send(&node.app, Send { timing, ..to_alias }).await;
    assert!(matches!(refused, Err(Error::Invalid { field: "max_rate_per_s", .. })), "{refused:?}");
}

/// A clean start passes over what there is for a device, and a broadcast whose turn has not come
/// is not there yet.
#[tokio::test(start_paused = true)]
async fn a_clean_start_passes_over_no_broadcast_whose_turn_is_to_come() {
    const DEVICES: u64 = 24;
    let node = node_at("2026-01-05T12:00:00Z").await;
    let mut accounts = Vec::new();
    for _ in 0..DEVICES {
        accounts.push(node.device().await);
    }
    node.send_timed(Target::All, "before", None, Timing::default()).await;
    let began = Instant::now();
    let timing = Timing { max_rate_per_s: Some(1), ..Timing::default() };
    node.send_timed(Target::All, "spread", None, timing).await;
    sleep(Duration::from_secs(DEVICES / 2)).await;
    let (mut early, mut late) = (0, 0);
    for account in &accounts {
        let mut client = node.connect(account, Connect::default()).await;
        assert_eq!(client.subscribe(&[("push", Qos::AtLeastOnce)]).await, [1]);
        let now_ms = began.elapsed().as_millis();
        let turn_ms = turn_ms(account, DEVICES * 1_000);
        if turn_ms <= now_ms {
            early += 1;
            node.send(account, "end").await;
            assert_eq!(take(&mut client).await, "end", "its turn was while it was away");
        } else {
            late += 1;
            assert_eq!(take(&mut client).await, "spread");
            let came_ms = began.elapsed().as_millis();
            assert!((turn_ms..turn_ms + 300).contains(&came_ms), "turn {turn_ms}, {came_ms}");
        }
    }
    println!("turns passed: {early}, to come: {late}");
    assert!(late > 0);
}
