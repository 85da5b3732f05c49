//! Fuzz targets: bytes of a stranger in, no panic and no broken invariant out.
//!
//! Each is a plain function, so that a test of the workspace runs it on stable Rust too.
//! `fuzz_targets/` makes programs of them for cargo-fuzz.
#![allow(dead_code, reason = "a program uses one of the targets")]

pub mod filter;
pub mod frame;
pub mod mqtt;
pub mod proxy;
pub mod script;
pub mod sealed;
pub mod seeds;
pub mod session;
pub mod world;

/// Takes any bytes; panics if an invariant is broken.
pub type Run = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Run); 5] = [
    ("mqtt", mqtt::run),
    ("frame", frame::run),
    ("filter", filter::run),
    ("session", session::run),
    ("proxy", proxy::run),
];
