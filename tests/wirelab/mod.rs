//! A laboratory for the device link: packets made by hand, a client that says and
//! hears exact bytes, and a witness that must be served whatever was done to the node.
//!
//! It shares no code with the gateway's own MQTT, so that both cannot be wrong alike.
#![allow(dead_code, reason = "every test crate uses its own part of it")]
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

pub mod acl;
pub mod bytes;
pub mod frames;
pub mod lab;
pub mod rng;
pub mod seen;
pub mod transport;
pub mod wire;
