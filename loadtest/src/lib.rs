//! The parts of the load generator that tests use too.
//!
//! - `nat`: a box on the way to a server which forgets idle flows, as mobile networks do.

#![forbid(unsafe_code)]

pub mod nat;
