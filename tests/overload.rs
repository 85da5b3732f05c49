//! Devices that say too much or take too little, and app servers that ask for too much:
//! each has its bound and its label, and those who behave are served all the while.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod flood;
mod ledger;
mod support;
mod wirelab;

#[path = "overload/calls.rs"]
mod calls;
#[path = "overload/packets.rs"]
mod packets;
#[path = "overload/readers.rs"]
mod readers;
#[path = "overload/websockets.rs"]
mod websockets;
