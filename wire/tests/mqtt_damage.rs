//! Valid MQTT packets with random damage: a packet or an error, never a panic, never a loop.

#[path = "support/packets.rs"]
#[allow(dead_code)]
mod packets;
mod support;

use bytes::BytesMut;
use carillon_wire::mqtt::{Decoder, Version};
use packets::{BYTES_MAX, bytes_of, connect, connected_server, from_client, from_server};
use support::Random;

#[test]
fn a_hundred_thousand_damaged_packets_panic_nowhere() {
    let mut random = Random::seeded(0x5eed_0311);
    let mut originals = Vec::new();
    for version in [Version::V311, Version::V5] {
        let server = connected_server(version);
        originals.push((Decoder::server(BYTES_MAX), bytes_of(version, &connect(version))));
        for packet in from_client(version) {
            originals.push((server.clone(), bytes_of(version, &packet)));
        }
        for packet in from_server(version) {
            originals.push((Decoder::client(version, BYTES_MAX), bytes_of(version, &packet)));
        }
    }
    originals.retain(|(_, bytes)| bytes.len() < 1_000);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..100_000 {
        let (decoder, bytes) = &originals[round % originals.len()];
        let (mut decoder, mut bytes) = (decoder.clone(), bytes.clone());
        random.mutate(&mut bytes);
        let mut buf = BytesMut::from(&bytes[..]);
        loop {
            let before = buf.len();
            match decoder.decode(&mut buf) {
                Ok(Some(_)) => accepted += 1,
                Ok(None) => break,
                Err(_) => {
                    refused += 1;
                    break;
                }
            }
            assert!(buf.len() < before, "a packet takes bytes");
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(
        accepted > 1_000 && refused > 1_000,
        "the damage is neither all fatal nor all harmless"
    );
}
