//! A drain of many devices: each is told when to come back, not all at the same time, and what
//! was acknowledged until then does not come again.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use carillon_wire::{
    frame, idl,
    mqtt::{Ack, Connect, Packet, Publish, Qos, Subscribe, Version},
};
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    Caller,
    dice::number_from_env,
    start,
    support::{APP, Device, Node},
};

/// What a device does besides taking the message.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Frames,
    /// Plain, and it does not acknowledge.
    Owed,
}

impl Kind {
    fn of(number: usize) -> Self {
        match number % 10 {
            0 => Self::Owed,
            number if number % 2 == 0 => Self::Plain,
            _ => Self::Frames,
        }
    }
}

async fn accounts(node: &Node, count: usize) -> Vec<Device> {
    let path = format!("/admin/v1/apps/{APP}/devices");
    let made = node.call(reqwest::Method::POST, &path, Some(json!({"count": count}))).await;
    assert_eq!(made.status, 201, "{}", made.body);
    serde_json::from_value(made.body).expect("devices")
}

/// A plain device that goes on where it was.
async fn plain(at: SocketAddr, device: &Device) -> Caller {
    let connect = Connect { clean_start: false, ..Connect::default() };
    let mut caller = Caller::connect_as(at, device, connect).await;
    let filters = vec![("push".to_owned(), Qos::AtLeastOnce)];
    caller
        .say(&Packet::Subscribe(Subscribe { packet_id: 1, filters, subscription_id: None }))
        .await;
    assert!(matches!(caller.hear().await, Some(Packet::SubAck(_))));
    caller
}

/// One that speaks frames and says that it stands nowhere.
async fn frames(at: SocketAddr, device: &Device) -> Caller {
    let mut caller = Caller::connect(at, device, Version::V5).await;
    let resume = Some(idl::Resume { digest: 1, dictionary: None });
    caller.up(idl::Up { resume, ..frame::empty_up() }).await;
    assert!(caller.down().await.ask_positions.is_some());
    let positions = Some(idl::Positions { registrations: Vec::new(), more: None });
    caller.up(idl::Up { positions, ..frame::empty_up() }).await;
    caller
}

impl Caller {
    async fn push(&mut self) -> Publish {
        match self.hear().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("a push expected, not {other:?}"),
        }
    }

    /// Once this is back, the node has done all that was said before.
    async fn settle(&mut self) {
        self.say(&Packet::PingReq).await;
        assert_eq!(self.hear().await, Some(Packet::PingResp));
    }
}

/// Connected, and the first message is handled.
async fn served(at: SocketAddr, device: Device, kind: Kind, is_ready: Ready) -> Caller {
    let mut caller = match kind {
        Kind::Plain | Kind::Owed => plain(at, &device).await,
        Kind::Frames => frames(at, &device).await,
    };
    is_ready.add_permits(1);
    let mut is_served = false;
    while !is_served {
        let publish = caller.push().await;
        is_served = match kind {
            Kind::Plain | Kind::Owed => publish.payload == FIRST,
            Kind::Frames => has_first(&frame::decode_down(&publish.payload).expect("a frame")),
        };
        if kind != Kind::Owed && publish.packet_id != 0 {
            caller.say(&Packet::PubAck(Ack { packet_id: publish.packet_id, reason: 0 })).await;
        }
    }
    caller.settle().await;
    caller
}

fn has_first(down: &idl::Down) -> bool {
    let entries = down.deltas.iter().flat_map(|of| &of.deltas).flat_map(|delta| &delta.entries);
    entries.into_iter().any(|entry| entry.payload.as_deref() == Some(FIRST))
}

/// What a device is told when it is sent away: after so many milliseconds it may come back.
async fn farewell(mut caller: Caller, kind: Kind) -> Option<i64> {
    let advised = match kind {
        Kind::Plain | Kind::Owed => None,
        Kind::Frames => {
            Some(caller.down().await.advice.expect("advice").reconnect_after_ms.expect("a time"))
        }
    };
    let end = caller.hear().await;
    assert!(matches!(&end, Some(Packet::Disconnect(end)) if end.reason == 0x8B), "{end:?}");
    assert_eq!(caller.hear().await, None);
    advised
}

/// What a device is sent until the second message, acknowledged.
async fn comes_back(at: SocketAddr, device: Device) -> Vec<Bytes> {
    let mut caller = plain(at, &device).await;
    let mut all = Vec::new();
    while all.last().is_none_or(|last| last != SECOND) {
        let publish = caller.push().await;
        caller.say(&Packet::PubAck(Ack { packet_id: publish.packet_id, reason: 0 })).await;
        all.push(publish.payload);
    }
    all
}

/// The times are spread over the whole range, which is as long as the drain is.
fn assert_spread(mut advised: Vec<i64>, within_ms: i64) {
    advised.sort_unstable();
    assert!(advised.iter().all(|after_ms| (0..within_ms).contains(after_ms)), "{advised:?}");
    for part in 0..5 {
        let (from, to) = (within_ms * part / 5, within_ms * (part + 1) / 5);
        let count = advised.iter().filter(|after_ms| (from..to).contains(after_ms)).count();
        assert!(count * 20 >= advised.len(), "{count} of {} in {from}..{to} ms", advised.len());
    }
}

/// `CARILLON_DEVICES` devices: the slow set has 10,000.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_devices_are_sent_away_in_turn_and_nothing_acknowledged_comes_again() {
    let count = number_from_env("CARILLON_DEVICES").unwrap_or(200) as usize;
    let pace = (count / 2).min(2_000);
    let slow_flush = "[store]\npointer_flush_ms = 1000";
    let mut node = start(&format!("pace = {pace}\n{slow_flush}")).await;
    let devices = accounts(&node, count).await;
    let at = node.listen().mqtt;

    let is_ready = Ready::new(Semaphore::new(0));
    let mut callers = JoinSet::new();
    for (number, device) in devices.iter().cloned().enumerate() {
        let is_ready = is_ready.clone();
        callers.spawn(async move {
            let kind = Kind::of(number);
            (served(at, device, kind, is_ready).await, kind)
        });
    }
    drop(is_ready.acquire_many(count as u32).await);
    node.send(json!({"all": true}), json!(1)).await;
    let callers = callers.join_all().await;
    node.signal("TERM");
    let mut leaving = JoinSet::new();
    for (caller, kind) in callers {
        leaving.spawn(farewell(caller, kind));
    }
    let advised: Vec<i64> = leaving.join_all().await.into_iter().flatten().collect();
    assert!(node.wait_for_exit().await.success(), "within the deadline");
    assert_eq!(advised.len(), count / 2);
    assert_spread(advised, (count * 1_000 / pace) as i64);
    let log = node.log();
    assert_eq!(log.matches("close_reason=\"draining\"").count(), count);
    assert!(log.contains("all pointers are written") && !log.contains("deadline"), "{log}");

    node.restart().await;
    node.send(json!({"all": true}), json!(2)).await;
    let mut back = JoinSet::new();
    for (number, device) in devices.into_iter().enumerate() {
        back.spawn(async move { (Kind::of(number), comes_back(at, device).await) });
    }
    for (kind, got) in back.join_all().await {
        let wanted: &[&[u8]] = if kind == Kind::Owed { &[FIRST, SECOND] } else { &[SECOND] };
        assert_eq!(got, wanted);
    }
    println!("{count} devices were sent away and came back");
}

/// How many devices follow.
type Ready = Arc<Semaphore>;

const FIRST: &[u8] = b"1";
const SECOND: &[u8] = b"2";
