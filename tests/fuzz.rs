//! The fuzz targets on stable Rust: the committed corpus, and mutations of it from a seed.
//!
//! `CARILLON_FUZZ` is how many mutations of each target are tried, `CARILLON_SEED` which.
//! `fuzz/README.md` says how to run them with coverage.
#![allow(clippy::disallowed_methods, reason = "tests read their settings")]

mod dice;
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::{fs, panic, path::PathBuf};

use dice::{Dice, number_from_env};
use fuzz::{Run, TARGETS, seeds};

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus")).join(target)
}

/// Every committed input, the seeds and what was found since.
fn inputs(target: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(corpus(target)).expect("a committed corpus");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a file")).collect()
}

#[test]
fn the_committed_corpus_is_what_the_seeds_make() {
    for (target, _) in TARGETS {
        for (name, bytes) in seeds::of(target) {
            let file = corpus(target).join(name);
            if number_from_env("CARILLON_FUZZ_WRITE").is_some() {
                fs::create_dir_all(corpus(target)).expect("the corpus's folder");
                fs::write(&file, &bytes).expect("a file");
            }
            let committed = fs::read(&file).unwrap_or_default();
            assert!(committed == bytes, "{}: write the corpus anew", file.display());
        }
    }
}

#[test]
fn no_bytes_break_the_mqtt_decoder() {
    nothing_breaks("mqtt");
}

#[test]
fn no_bytes_break_the_frame_decoder() {
    nothing_breaks("frame");
}

#[test]
fn no_text_is_mistaken_for_a_topic_filter() {
    nothing_breaks("filter");
}

#[test]
fn no_sequence_of_inputs_breaks_the_session_machine() {
    nothing_breaks("session");
}

#[test]
fn no_header_of_a_balancer_is_misread() {
    nothing_breaks("proxy");
}

fn nothing_breaks(target: &str) {
    let (_, run) = TARGETS.into_iter().find(|(name, _)| *name == target).expect("a target");
    let count = number_from_env("CARILLON_FUZZ").unwrap_or(10_000);
    let mut dice = Dice::of_this_run(target);
    let inputs = inputs(target);
    inputs.iter().for_each(|input| judge(target, run, input));
    for _ in 0..count {
        let input = mutated(&inputs, &mut dice);
        judge(target, run, &input);
    }
    println!("{target}: {} inputs, {count} mutations", inputs.len());
}

/// Runs a target; shows the input that breaks it.
fn judge(target: &str, run: Run, input: &[u8]) {
    if panic::catch_unwind(|| run(input)).is_err() {
        let file = format!("{}/{target}.broken", env!("CARGO_TARGET_TMPDIR"));
        fs::write(&file, input).expect("the target folder");
        panic!("{target} broke with the bytes in {file}: {input:02x?}");
    }
}

/// One of the inputs, changed in a few places.
fn mutated(inputs: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = inputs[dice.index(inputs.len())].clone();
    for _ in 0..1 + dice.index(6) {
        let at = dice.index(bytes.len() + 1);
        let end = at + dice.index((bytes.len() - at).min(24) + 1);
        match dice.index(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.index(8),
            1 if at < bytes.len() => bytes[at] = dice.next() as u8,
            2 if at < bytes.len() => bytes[at] = EDGES[dice.index(EDGES.len())],
            3 => drop(bytes.drain(at..end)),
            4 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again.repeat(1 + dice.index(4)));
            }
            5 => {
                let other = &inputs[dice.index(inputs.len())];
                let from = dice.index(other.len() + 1);
                bytes.splice(at..end, other[from..].iter().copied());
            }
            6 => bytes.truncate(at),
            _ => {
                let noise: Vec<u8> = (0..dice.index(9)).map(|_| dice.next() as u8).collect();
                bytes.splice(at..at, noise);
            }
        }
        bytes.truncate(LONGEST);
    }
    bytes
}

/// Where lengths, flags and numbers turn over.
const EDGES: [u8; 10] = [0, 1, 0x0F, 0x10, 0x3F, 0x7F, 0x80, 0xC0, 0xFE, 0xFF];
const LONGEST: usize = 4_096;
