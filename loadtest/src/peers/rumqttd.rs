//! rumqttd as its makers ship it, embedded: the values are those of its example configuration, with room for all.

use std::net::SocketAddr;

use anyhow::Context;
use rumqttd::{Broker, Config};
use serde_json::json;

use crate::floor::end_with_stdin;

/// Until the process ends.
pub fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let config: Config = serde_json::from_value(json!({
        "id": 0,
        "router": {
            "max_connections": 100_000,
            "max_outgoing_packet_count": 200,
            "max_segment_size": 104_857_600,
            "max_segment_count": 10,
        },
        "v4": {
            "1": {
                "name": "v4-1",
                "listen": listen,
                "next_connection_delay_ms": 1,
                "connections": {
                    "connection_timeout_ms": 60_000,
                    "max_payload_size": 20_480,
                    "max_inflight_count": 100,
                    "dynamic_filters": true,
                },
            },
        },
    }))?;
    println!("{listen}");
    end_with_stdin()?;
    Broker::new(config).start().context("rumqttd")
}
