//! Carillon, a push gateway. The map, in reading order:
//!
//! - [`queue`]: the heart: ordered durable queues, pointers, the store.
//! - [`route`]: which shard owns a queue; who on this node follows it.
//! - [`longterm`]: what is kept for longer than the queues' retention.
//! - [`service`]: the business calls; no MQTT and no HTTP in them.
//! - [`edge`]: the MQTT front: listeners, the session machine, connections.
//! - [`api`]: HTTPS for app servers.
//! - [`admin`]: metrics, health, and the operator's calls.
//! - [`node`]: the composition root.
//! - [`config`] and [`base`]: leaves.
//! - [`cli`]: the subcommands of the binary.
//!
//! Floors import downward only; `tests/tidy.rs` enforces it.
//! `docs/ARCHITECTURE.md` has the picture and the flows.

pub mod queue;
pub mod route;

pub mod longterm;
pub mod service;

pub mod admin;
pub mod api;
pub mod edge;

pub mod cli;
pub mod node;

pub mod base;
pub mod config;
