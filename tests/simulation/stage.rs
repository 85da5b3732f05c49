//! What simulations run on: paused time, and bounds so small that rare paths are common.
#![allow(dead_code, reason = "every test crate uses its own part of it")]

use carillon::config::Config;
use tokio::runtime::{Builder, Runtime};

/// One thread whose time stands still while anything can be done.
pub fn paused() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// Small bounds; `below` chooses.
pub fn tight(below: impl Fn(u64) -> u64) -> Config {
    let mut config = Config::default();
    config.store.tail_bytes = [0, 4_000, 1 << 20][below(3) as usize];
    config.edge.window = 1 + below(6) as u16;
    config.edge.window_per_registration = config.edge.window;
    config.edge.frame_entries_max = 1 + below(8) as usize;
    config
}
