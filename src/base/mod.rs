//! Leaves: what every floor may use and what knows no floor.

pub mod cache;
pub mod civil;
pub mod clock;
pub mod crash_point;
pub mod gcra;
pub mod http;
pub mod ids;
pub mod keys;
pub mod maps;
pub mod metrics;
pub mod net;
pub mod proxy;
pub mod sketch;
pub mod tasks;
pub mod tls;
pub mod webhook;
