//! The digest of positions and its published test vectors.

use carillon_wire::digest::{Digest, item_hash, kind_byte, position_hash};
use carillon_wire::idl;

/// regid, kind, name, epoch, seq, hash; the hashes come from an independent implementation.
const VECTORS: [(&str, u8, &str, u32, u64, u64); 8] = [
    ("", 1, "", 0, 0, 0x8b8c_177b_906e_2025),
    ("r1", 1, "", 1, 0, 0xfb4d_e2d8_abc6_4000),
    ("r1", 1, "", 1, 1, 0x6d93_9cdc_d1b0_7e40),
    ("r1", 2, "alice", 1, 42, 0x3b89_2ac2_869b_cb45),
    ("r1", 3, "news", 7, 1_000_000, 0xe681_0b2b_b344_85af),
    ("r1", 4, "", 1, 42, 0x0c9d_bbf4_6ee1_6f7e),
    ("r2", 2, "älgört", 2_147_483_647, 9_223_372_036_854_775_807, 0x5577_d266_187f_1710),
    ("MTIzNDU2Nzg5MDEyMzQ1Ng", 3, "weather/oslo", 3, 281_474_976_710_656, 0x65ac_ac45_95cd_5428),
];
const DIGEST_OF_ALL: u64 = 0xde3a_07bf_64f3_0a0f;

/// collection, key, seq, hash; from an independent implementation.
const ITEMS: [(&str, &str, u64, u64); 6] = [
    ("", "", 0, 0x074c_037c_01af_ed67),
    ("notes", "n1", 1, 0x51a4_dca5_8d84_7284),
    ("notes", "n1", 2, 0x6f46_3975_3c0c_dae5),
    ("notes", "n2", 1, 0x4473_8ba2_aee0_2e63),
    ("contacts", "älgört", 42, 0x4ccf_5184_6899_c1b2),
    ("notes", "n1~7-3", 281_474_976_710_656, 0x5a74_1d80_c16f_4302),
];
const DIGEST_OF_ITEMS: u64 = 0xb3ee_143e_a42a_6de7;

#[test]
fn the_hash_gives_the_published_vectors() {
    for (regid, kind, name, epoch, seq, hash) in VECTORS {
        assert_eq!(
            position_hash(regid, kind, name, epoch, seq),
            hash,
            "{regid:?} {kind} {name:?} {epoch} {seq}"
        );
    }
}

#[test]
fn the_digest_is_the_wrapping_sum_in_any_order() {
    let hashes = VECTORS.map(|vector| vector.5);
    let forwards: Digest = hashes.into_iter().collect();
    let backwards: Digest = hashes.into_iter().rev().collect();
    assert_eq!(forwards.value(), DIGEST_OF_ALL);
    assert_eq!(forwards, backwards);
    assert_eq!(forwards.to_idl(), -2_433_624_130_026_534_385);
    assert_eq!(Digest::from_idl(forwards.to_idl()), forwards);
}

#[test]
fn a_moved_position_is_replaced_without_the_others() {
    let mut digest: Digest =
        VECTORS[1..2].iter().chain(&VECTORS[3..]).map(|vector| vector.5).collect();
    digest.replace(VECTORS[1].5, VECTORS[2].5);
    let expected: Digest = VECTORS[2..].iter().map(|vector| vector.5).collect();
    assert_eq!(digest, expected);

    for vector in &VECTORS[2..] {
        digest.remove(vector.5);
    }
    assert_eq!(digest, Digest::new(), "nothing is left");
}

#[test]
fn every_part_of_a_position_changes_its_hash() {
    let base = position_hash("r", 2, "n", 1, 1);
    let others = [
        position_hash("s", 2, "n", 1, 1),
        position_hash("r", 3, "n", 1, 1),
        position_hash("r", 2, "m", 1, 1),
        position_hash("r", 2, "n", 2, 1),
        position_hash("r", 2, "n", 1, 2),
    ];
    assert!(others.iter().all(|other| *other != base));
}

#[test]
fn the_kinds_of_the_idl_have_the_bytes_of_the_hash() {
    let kinds = idl::QueueKind::ENUM_VALUES.iter().map(|kind| kind_byte(*kind));
    assert!(kinds.eq([Some(1), Some(2), Some(3), Some(4)]));
    assert_eq!(kind_byte(idl::QueueKind(5)), None);
}

#[test]
fn the_vectors_in_the_protocol_document_are_the_code_s() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROTOCOL.md");
    let document = std::fs::read_to_string(path).expect("read docs/PROTOCOL.md");
    let rows: Vec<Vec<&str>> = document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect()
        })
        .filter(|cells: &Vec<&str>| cells.len() == 6)
        .collect();
    let expected: Vec<Vec<String>> = VECTORS
        .iter()
        .map(|(regid, kind, name, epoch, seq, hash)| {
            let text = |text: &str| {
                if text.is_empty() { "(empty)".to_owned() } else { text.to_owned() }
            };
            vec![
                text(regid),
                kind.to_string(),
                text(name),
                epoch.to_string(),
                seq.to_string(),
                format!("{hash:016x}"),
            ]
        })
        .collect();
    assert_eq!(rows, expected);
    assert!(document.contains(&format!("{DIGEST_OF_ALL:016x}")), "the digest of all vectors");
}

#[test]
fn the_digest_of_a_collection_is_the_published_one_and_follows_each_change() {
    for (collection, key, seq, hash) in ITEMS {
        assert_eq!(item_hash(collection, key, seq), hash, "{collection:?} {key:?} {seq}");
    }
    let mut digest: Digest = ITEMS.map(|item| item.3).into_iter().collect();
    assert_eq!(digest.value(), DIGEST_OF_ITEMS);
    let (_, _, _, old) = ITEMS[1];
    digest.replace(old, item_hash("notes", "n1", 9));
    let items = ITEMS[2..].iter().chain(&ITEMS[..1]).map(|item| item.3);
    let anew: Digest = items.chain([item_hash("notes", "n1", 9)]).collect();
    assert_eq!(digest, anew, "as if it were made anew");
}

#[test]
fn the_items_in_the_protocol_document_are_the_code_s() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROTOCOL.md");
    let document = std::fs::read_to_string(path).expect("read docs/PROTOCOL.md");
    for (collection, key, seq, hash) in ITEMS {
        let text =
            |text: &str| if text.is_empty() { "(empty)".to_owned() } else { text.to_owned() };
        let row = format!("| `{}` | `{}` | {seq} | `{hash:016x}` |", text(collection), text(key));
        assert!(document.contains(&row), "{row}");
    }
    assert!(document.contains(&format!("`{DIGEST_OF_ITEMS:016x}`")), "their digest");
}
