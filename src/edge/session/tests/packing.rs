//! Packed frames.

use carillon_wire::{frame, idl};

use super::{frames::resume_with, *};

/// What a device with this dictionary gets that missed so many messages.
fn missed(rig: &mut Rig, dictionary: Option<i32>, messages: usize) -> Vec<(u16, Bytes)> {
    for n in 0..messages {
        rig.own(1, &format!("message {n} of many that are like each other"));
    }
    resume_with(rig, dictionary, &[registration(1, "demo", &[])]);
    let pushed = publishes(rig.pump());
    let pushed = pushed.into_iter().map(|publish| (publish.packet_id, publish.payload));
    pushed.filter(|(_, frame)| deltas_of(frame).is_some()).collect()
}

fn deltas_of(bytes: &[u8]) -> Option<idl::Deltas> {
    frame::open_down(bytes).unwrap().deltas
}

fn is_packed(bytes: &[u8]) -> bool {
    frame::decode_down(bytes).unwrap().packed.is_some()
}

#[test]
fn many_missed_messages_come_packed_and_are_acknowledged_as_ever() {
    let mut rig = Rig::v5();
    rig.bounds.pack_bytes_min = 1_024;
    let pushed = missed(&mut rig, Some(1), 50);
    let [(packet_id, bytes)] = &pushed[..] else { panic!("one frame: {}", pushed.len()) };
    assert!(is_packed(bytes) && bytes.len() < 1_000, "{} bytes", bytes.len());
    assert_eq!(deltas_of(bytes).unwrap().deltas[0].entries.len(), 50);
    let packed = rig.out.packed;
    assert_eq!((packed.frames, packed.packed_bytes), (1, bytes.len() as u64));
    assert!(packed.plain_bytes > 50 * 40);
    assert_eq!(rig.stored(&own(1)), 0);
    rig.ack(*packet_id);
    assert_eq!(rig.stored(&own(1)), 50);
}

#[test]
fn what_is_packed_may_have_three_times_as_many_bytes() {
    let counts = |dictionary| {
        let mut rig = Rig::v5();
        let body = "x".repeat(1 << 10);
        for _ in 0..100 {
            rig.own(1, &body);
        }
        let pushed = missed(&mut rig, dictionary, 0);
        let count = |frame: &Bytes| deltas_of(frame).unwrap().deltas[0].entries.len();
        pushed.iter().map(|(_, frame)| count(frame)).collect::<Vec<_>>()
    };
    assert_eq!((counts(None), counts(Some(1))), (vec![31, 31, 31, 7], vec![93, 7]));
}

#[test]
fn who_cannot_unpack_gets_frames_as_they_are() {
    for dictionary in [None, Some(0), Some(-1)] {
        let mut rig = Rig::v5();
        rig.bounds.pack_bytes_min = 1_024;
        let pushed = missed(&mut rig, dictionary, 50);
        assert!(!pushed.is_empty() && !pushed.iter().any(|(_, bytes)| is_packed(bytes)));
    }
}

#[test]
fn a_later_dictionary_includes_the_first() {
    let mut rig = Rig::v5();
    rig.bounds.pack_bytes_min = 1_024;
    assert!(missed(&mut rig, Some(7), 50).iter().all(|(_, bytes)| is_packed(bytes)));
}

#[test]
fn small_pushes_are_not_packed_and_with_a_bound_of_0_nothing_is() {
    let mut rig = Rig::v5();
    let pushed = missed(&mut rig, Some(1), 1);
    assert!(!is_packed(&pushed[0].1));
    // The largest message that an app may send by default, alone in its frame.
    rig.own(1, &"a".repeat(4_096));
    let live = publishes(rig.pump());
    assert_eq!(live.len(), 1);
    assert!(!is_packed(&live[0].payload));

    let mut rig = Rig::v5();
    rig.bounds.pack_bytes_min = 0;
    assert!(!missed(&mut rig, Some(1), 50).iter().any(|(_, bytes)| is_packed(bytes)));
}
