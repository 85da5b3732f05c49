//! Decoding allocates in proportion to what was received, whatever the bytes claim. One test, because the allocator
//! counts for the whole process.

use bytes::BytesMut;
use carillon_wire::{frame, limits, mqtt};
use peak_alloc::PeakAlloc;

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// Bytes that `work` had allocated at its peak.
fn peak_of<T>(work: impl FnOnce() -> T) -> usize {
    PEAK.reset_peak_usage();
    let before = PEAK.current_usage();
    let _result = work();
    PEAK.peak_usage().saturating_sub(before)
}

#[test]
fn no_claim_makes_a_decoder_allocate_beyond_what_it_received() {
    frames();
    packets();
}

fn frames() {
    let huge = [0xFF, 0xFF, 0xFF, 0xFF, 0x07];
    let list_of_max = [0x3C, 0x19, 0xFC, 0x80, 0x20];
    let full_of_lists: Vec<u8> = [0x3C, 0x19, 0xFC, 0x80, 0x20, 0x18, 0x00, 0x19, 0xFC, 0x80, 0x20]
        .into_iter()
        .chain(std::iter::repeat_n(0x1C, 8_000))
        .collect();
    let rows: [(&str, Vec<u8>); 6] = [
        ("a list of 2^31-1 positions", [&[0x3C, 0x19, 0xFC][..], &huge].concat()),
        ("a list of 4,096 positions in no bytes", list_of_max.to_vec()),
        ("a string of 2^31-1 bytes", [&[0x5C, 0x18][..], &huge].concat()),
        ("a string of 64 KiB in no bytes", vec![0x5C, 0x18, 0x80, 0x80, 0x04]),
        ("an unknown string of 2^31-1 bytes", [&[0x08, 0xC8, 0x01][..], &huge].concat()),
        ("two lists of 4,096 in 8,000 bytes", full_of_lists),
    ];
    for (name, bytes) in rows {
        let peak = peak_of(|| frame::decode_up(&bytes));
        // The largest item of a list takes 72 bytes and comes in no less than one.
        assert!(peak <= 4_096 + 120 * bytes.len(), "{name}: {peak} bytes for {}", bytes.len());
        assert!(peak <= 1 << 20, "{name}: {peak} bytes");
    }
    // The densest valid frame that fits: positions of the shortest kind.
    let position = [0x1C, 0x15, 0x02, 0x00, 0x15, 0x02, 0x16, 0x02, 0x00];
    let registration: Vec<u8> =
        [&[0x18, 0x00, 0x19, 0xFC, 0x80, 0x20][..], &position.repeat(4_096), &[0x00]].concat();
    let full: Vec<u8> = [&[0x3C, 0x19, 0x3C][..], &registration.repeat(3), &[0x00, 0x00]].concat();
    assert!(full.len() <= limits::FRAME_BYTES_MAX);
    let peak = peak_of(|| assert!(frame::decode_up(&full).is_ok()));
    assert!(peak <= 1 << 20, "the densest frame: {peak} bytes");
}

fn packets() {
    let connect = |max: u32, bytes: &[u8]| {
        let mut buf = BytesMut::from(bytes);
        peak_of(|| {
            let _ = mqtt::Decoder::server(max).decode(&mut buf);
        })
    };
    let announced =
        connect(limits::REMAINING_BYTES_MAX, &[0x10, 0xFF, 0xFF, 0xFF, 0x7F, 0x00, 0x04]);
    assert_eq!(announced, 0, "an announced length of 256 MB reserves nothing");

    let user = [0x26, 0, 0, 0, 0].repeat(20_000);
    let length = [0xA0, 0x8D, 0x06]; // 100,000
    let body = [&b"\x00\x04MQTT\x05\x02\x00\x3C"[..], &length, &user, &[0, 1, b'c']].concat();
    let remaining = body.len() as u32;
    let header =
        [0x10, remaining as u8 | 0x80, (remaining >> 7) as u8 | 0x80, (remaining >> 14) as u8];
    let many = connect(1 << 20, &[&header[..], &body].concat());
    assert!(many < 256, "20,000 user properties are refused before they are stored: {many} bytes");
}
