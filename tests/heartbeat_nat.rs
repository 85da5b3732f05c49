//! The adaptive heartbeat over real sockets: a device of the SDK, the NAT box of the load generator, the built gateway.
//!
//! All intervals are scaled down to fractions of a second; what is asserted are counts and the order of intervals.

#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;

use std::{io, time::Duration};

use carillon_loadtest::nat::NatBox;
use carillon_sdk::{
    BoxFuture, Credentials, Device, Endpoint, PositionStore, heartbeat::Parameters,
};
use serde_json::Value;
use support::{DEADLINE, Node};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

const NAT_FORGETS_AFTER: Duration = Duration::from_millis(900);

/// A store that shows what was saved last.
struct Shown(watch::Sender<Value>);

impl PositionStore for Shown {
    fn load(&mut self) -> BoxFuture<'_, io::Result<Option<Vec<u8>>>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn save(&mut self, value: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        let saved = serde_json::from_slice(&value).map_err(io::Error::other);
        Box::pin(std::future::ready(saved.map(|value| drop(self.0.send_replace(value)))))
    }
}

fn parameters() -> Parameters {
    let ms = Duration::from_millis;
    Parameters {
        min: ms(200),
        max: ms(2_000),
        step: ms(250),
        success_step: ms(50),
        successes: 1,
        link_tests: 1,
        floor: ms(100),
        answer_within: ms(400),
        ..Parameters::default()
    }
}

fn record(state: &Value) -> Option<(u64, bool)> {
    let record = state.get("networks")?.get(0)?;
    Some((record.get("interval_ms")?.as_u64()?, record.get("is_settled")?.as_bool()?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_settles_below_what_the_nat_forgets_and_is_dropped_no_more() {
    let node = Node::start().await;
    let nat = NatBox::start(node.listen().mqtt, NAT_FORGETS_AFTER).unwrap();
    let account = node.create_device().await;
    let endpoint: Endpoint = format!("tcp://{}", nat.addr()).parse().unwrap();
    let credentials = Credentials { device_id: account.device_id, secret: account.secret };
    let (shown, mut state) = watch::channel(Value::Null);
    let device = Device::builder_with_store(endpoint, credentials, Shown(shown))
        .network("box".parse().unwrap())
        .heartbeat(parameters())
        .seed(7)
        .connect_with(|_| async {})
        .await
        .unwrap();
    let is_settled = |state: &Value| record(state).is_some_and(|(_, is_settled)| is_settled);
    let settled = timeout(DEADLINE, state.wait_for(is_settled)).await.unwrap().unwrap();
    let (interval_ms, _) = record(&settled).unwrap();
    drop(settled);
    let interval = Duration::from_millis(interval_ms);
    device.online().await.unwrap();
    let forgotten = nat.flows_forgotten();
    println!("settled at {interval_ms} ms after {forgotten} drops");
    assert!((200..900).contains(&interval_ms), "{interval_ms} ms");
    assert!((2..=8).contains(&forgotten), "{forgotten} drops");

    // A machine that is busy may be late with a heartbeat; one that is never in time is wrong.
    let mut quiet = 0;
    for _ in 0..4 {
        let (before, passed) = (nat.flows_forgotten(), nat.bytes_passed());
        sleep(5 * interval).await;
        assert!(nat.bytes_passed() >= passed + 2 * 4, "heartbeats went there and back");
        quiet += u32::from(nat.flows_forgotten() == before);
        if quiet > 0 {
            break;
        }
    }
    assert_eq!(quiet, 1, "no drop over five heartbeats");
    device.shutdown().await;
}
