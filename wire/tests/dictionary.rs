//! The dictionary of packed frames, and what it and Thrift save on a corpus that it has never seen.

use std::collections::HashSet;

use carillon_wire::frame;

#[path = "../examples/corpus/mod.rs"]
mod corpus;

use corpus::{document::Names, missed, table, training};

#[test]
fn the_dictionary_is_what_the_trainer_makes() {
    let committed = frame::dictionary(frame::DICTIONARY).expect("the dictionary");
    assert!(committed.len() <= 64 << 10);
    let made = training::dictionary().expect("trained");
    assert!(made == committed, "run `cargo run --release -p carillon-wire --example train`");
}

#[test]
fn the_protocol_document_names_the_dictionary() {
    let committed = frame::dictionary(frame::DICTIONARY).expect("the dictionary");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROTOCOL.md");
    let document = std::fs::read_to_string(path).expect("read docs/PROTOCOL.md");
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, committed);
    let hash = data_encoding::HEXLOWER.encode(hash.as_ref());
    let row = format!(
        "| {} | `wire/dictionary/1.bin` | {} | `{hash}` |",
        frame::DICTIONARY,
        committed.len()
    );
    assert!(document.contains(&row), "not in the document: {row}");
}

#[test]
fn the_corpus_shares_nothing_with_what_the_dictionary_was_made_from() {
    let training: HashSet<&str> = training::MATERIAL.words().collect();
    let both: Vec<&str> = missed::MATERIAL.words().filter(|one| training.contains(one)).collect();
    assert!(both.is_empty(), "words of both: {both:?}");
    let patterns = missed::MATERIAL.patterns.iter();
    let both: Vec<_> = patterns.filter(|one| training::MATERIAL.patterns.contains(one)).collect();
    assert!(both.is_empty(), "patterns of both: {both:?}");

    let dictionary = frame::dictionary(frame::DICTIONARY).expect("the dictionary");
    let runs: HashSet<&[u8]> = dictionary.windows(RUN_BYTES).collect();
    for one in missed::entries(missed::SEED) {
        let Some(document) = one.document else { continue };
        for bytes in [document.json(Names::Long).to_string().into_bytes(), document.thrift()] {
            let shared = bytes.windows(RUN_BYTES).find(|run| runs.contains(run));
            let shared = shared.map(String::from_utf8_lossy);
            assert!(shared.is_none(), "{shared:?} is in the dictionary");
        }
    }
}

#[test]
fn i16_a_thousand_missed_deltas_take_two_fifths_of_json_and_thrift_alone_takes_half() {
    let missed = missed::entries(missed::SEED);
    assert_eq!(missed.len(), 1_000);
    let sizes = table::sizes(&missed, table::FRAME_ENTRIES);
    let nature = table::nature(&missed);
    assert!(
        nature.random_in_json * 100 >= sizes.json * 30,
        "incompressible: {nature:?} of {}",
        sizes.json
    );
    assert!(nature.text * 100 >= sizes.json * 15, "text: {nature:?}");
    // As hard to pack as prose is.
    assert!(nature.text_gzip * 100 >= nature.text * 36, "text: {nature:?}");
    assert!(sizes.thrift * 100 <= sizes.json * 51, "{sizes:?}");
    assert!(sizes.thrift_packed * 100 <= sizes.json * 40, "{sizes:?}");
    assert!(sizes.mixed_packed * 100 <= sizes.json * 40, "{sizes:?}");
    assert!(sizes.thrift_packed < sizes.thrift_zstd, "{sizes:?}");
}

/// Documents and dictionary may share shorter runs of bytes: endings, function words, numbers.
const RUN_BYTES: usize = 12;
