//! The bytes on Carillon's device link: MQTT packets, Thrift frames, the digest of positions and sealed payloads.
//!
//! Owns what a stranger may send and how long it may be; every decoder here answers hostile bytes with an error and
//! never with a panic. It knows no sockets, no clocks and no queues.

#![forbid(unsafe_code)]

pub mod digest;
pub mod frame;
pub mod limits;
pub mod mqtt;
pub mod names;
pub mod ranges;
pub mod seal;

/// The structs of `thrift/device.thrift`, as the Thrift compiler writes them. Decode them through [`frame`] only:
/// that is where the limits are set.
#[rustfmt::skip]
#[allow(warnings, clippy::all, rustdoc::all)]
#[path = "gen/device.rs"]
pub mod idl;
