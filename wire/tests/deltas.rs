//! The hand-written `Down{deltas}` is what the generated code writes.

mod support;

use bytes::Bytes;
use carillon_wire::frame::{
    self, DeltaParts, deltas_bytes_upper_bound, digest_bytes_upper_bound, encode_deltas,
    encode_entry,
};
use carillon_wire::idl;
use support::Random;

/// One random delta, as both encoders take it.
struct Case {
    kind: idl::QueueKind,
    name: Option<String>,
    epoch: u32,
    from: u64,
    to: u64,
    tag: [u8; 8],
    jump: Option<idl::JumpReason>,
    wrapped_keys: Vec<u8>,
    key_number: Option<u32>,
    entries: Vec<idl::Entry>,
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let kind = idl::QueueKind(1 + random.below(4) as i32);
        let has_name = matches!(kind, idl::QueueKind::ALIAS | idl::QueueKind::TOPIC);
        let name_bytes = [0, 1, 127, 128, 300][random.below(5)];
        let count = [0, 1, 2, 14, 15, 16, 127, 128, 200][random.below(9)];
        Self {
            kind,
            name: has_name.then(|| "n".repeat(name_bytes)),
            epoch: [0, 1, 63, 64, 70_000, i32::MAX as u32][random.below(6)],
            from: [0, 1, 64, 1 << 20][random.below(4)],
            to: [1, 8_192, 1 << 40, i64::MAX as u64][random.below(4)],
            tag: random.next().to_be_bytes(),
            wrapped_keys: vec![b'w'; [0, 0, 32, 640][random.below(4)]],
            key_number: (random.below(2) == 0).then_some(70_000),
            jump: (random.below(2) == 0).then(|| idl::JumpReason(1 + random.below(4) as i32)),
            entries: (0..count).map(|seq| entry(seq, random)).collect(),
        }
    }

    fn generated(&self) -> idl::Delta {
        idl::Delta {
            queue: idl::Queue { kind: self.kind, name: self.name.clone() },
            epoch: self.epoch as i32,
            from_seq: self.from as i64,
            to_seq: self.to as i64,
            tag: self.tag.to_vec(),
            entries: self.entries.clone(),
            jump: self.jump,
            wrapped_keys: Some(self.wrapped_keys.clone()).filter(|keys| !keys.is_empty()),
            key_number: self.key_number.map(|number| number as i32),
        }
    }
}

fn entry(seq: i64, random: &mut Random) -> idl::Entry {
    idl::Entry {
        seq,
        id: (random.below(2) == 0).then(|| vec![7; 16]),
        time_ms: (random.below(2) == 0).then_some(1_700_000_000_000),
        payload: (random.below(2) == 0).then(|| vec![b'p'; random.below(300)]),
        notification: None,
        follow: None,
        unfollow: None,
        sealed: (random.below(2) == 0).then(|| vec![b's'; random.below(300)]),
        recall: None,
        change: None,
    }
}

fn digest(random: &mut Random) -> idl::CollectionDigest {
    let name = (random.below(2) == 0).then(|| "a".repeat(random.below(200)));
    idl::CollectionDigest {
        queue: idl::Queue { kind: idl::QueueKind::ALIAS, name },
        epoch: 1 + random.below(1_000) as i32,
        collection: "c".repeat(1 + random.below(64)),
        seq: random.below(1 << 30) as i64,
        items: random.below(1 << 20) as i64,
        digest: i64::MAX / 3 * (random.below(3) as i64 - 1),
    }
}

#[test]
fn hand_written_deltas_equal_generated_ones_byte_for_byte() {
    let mut random = Random::seeded(0xde17a5);
    for _ in 0..500 {
        let regid = "r".repeat([0, 2, 22, 127, 128][random.below(5)]);
        let cases: Vec<Case> = (0..[0, 1, 2, 14, 15, 20][random.below(6)])
            .map(|_| Case::random(&mut random))
            .collect();
        let encoded: Vec<Vec<Bytes>> =
            cases.iter().map(|case| case.entries.iter().map(encode_entry).collect()).collect();
        let parts: Vec<DeltaParts<'_>> = cases
            .iter()
            .zip(&encoded)
            .map(|(case, entries)| DeltaParts {
                queue_kind: case.kind,
                queue_name: case.name.as_deref(),
                epoch: case.epoch,
                from: case.from,
                to: case.to,
                tag: case.tag,
                jump: case.jump,
                entries,
                wrapped_keys: &case.wrapped_keys,
                key_number: case.key_number,
            })
            .collect();

        let mut by_hand = Vec::new();
        let digests: Vec<idl::CollectionDigest> =
            (0..[0, 1, 16][random.below(3)]).map(|_| digest(&mut random)).collect();
        encode_deltas(&regid, &parts, &digests, &mut by_hand);
        let deltas = idl::Deltas {
            regid: regid.clone(),
            deltas: cases.iter().map(Case::generated).collect(),
            digests: (!digests.is_empty()).then(|| digests.clone()),
        };
        let down = idl::Down {
            deltas: Some(deltas),
            ..idl::Down::new(None, None, None, None, None, None, None, None)
        };
        let mut generated = Vec::new();
        let is_frame = frame::encode_down(&down, &mut generated).is_ok();

        let bound = deltas_bytes_upper_bound(&regid, &parts)
            + digests.iter().map(digest_bytes_upper_bound).sum::<usize>();
        let slack = 24 + 84 * parts.len() + 60 * digests.len();
        assert!(by_hand.len() <= bound, "the bound is a bound");
        assert!(bound <= by_hand.len() + slack, "and close");
        if is_frame {
            assert_eq!(by_hand, generated);
            assert_eq!(frame::decode_down(&by_hand).expect("valid"), down);
        }
    }
}
