//! After a restart the node finds connections in its backlog that their devices have given
//! up. They must not end the connection that took their place.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod ledger;
mod support;

use ledger::{
    Dice, Ledger,
    device::{Account, Device, Habit, Link},
};
use support::Node;

#[tokio::test]
async fn a_connection_that_was_opened_earlier_does_not_take_over() {
    let node = Node::start().await;
    let support::Device { device_id, secret, regid } = node.create_device().await;
    let mut device = Device {
        pause_ms: 2..40,
        number: 0,
        account: Account { device_id, secret, regid },
        habit: Habit::of(0),
        address: node.listen().mqtt,
        ledger: Ledger::open(),
        dice: Dice::new(0),
    };
    let mut earlier = Link::open(device.address).await.unwrap();
    let mut later = Link::open(device.address).await.unwrap();
    device.greet(&mut later).await.expect("the later one is welcome");
    let _ = device.greet(&mut earlier).await;
    assert!(earlier.ping().await.is_err(), "the earlier one comes too late");
    later.ping().await.expect("the later one goes on");

    // In the order of opening, the later one wins as always.
    let mut next = Link::open(device.address).await.unwrap();
    device.greet(&mut next).await.expect("a new one is welcome");
    assert!(later.ping().await.is_err(), "it was taken over");
    next.ping().await.expect("the new one goes on");
}
