//! Prints how many bytes 1,000 missed entries take, and how long packing takes:
//! `cargo run --release -p carillon-wire --example bytes`.

use std::fs;
use std::time::Instant;

use carillon_wire::{frame, idl::ValueFormat};

mod corpus;

use corpus::{missed, table};

fn main() {
    let missed = missed::entries(missed::SEED);
    let nature = table::nature(&missed);
    for entries_each in [table::FRAME_ENTRIES, 8] {
        let sizes = table::sizes(&missed, entries_each);
        let share = |bytes: usize| 100.0 * bytes as f64 / sizes.json as f64;
        println!("\n{} entries in frames of {entries_each}", missed.len());
        println!("| written as | bytes | of JSON |\n|---|---|---|");
        for (name, bytes) in [
            ("JSON", sizes.json),
            ("JSON, gzip", sizes.json_gzip),
            ("compact JSON (names of one letter)", sizes.short_json),
            ("compact JSON, gzip", sizes.short_json_gzip),
            ("Thrift around JSON documents", sizes.mixed),
            ("Thrift around JSON documents, zstd with the dictionary", sizes.mixed_packed),
            ("Thrift", sizes.thrift),
            ("Thrift, zstd", sizes.thrift_zstd),
            ("Thrift, zstd with the dictionary", sizes.thrift_packed),
        ] {
            println!("| {name} | {bytes} | {:.1} % |", share(bytes));
        }
        println!(
            "random bytes: {} ({:.1} % of Thrift), in JSON {} ({:.1} %)",
            nature.random,
            100.0 * nature.random as f64 / sizes.thrift as f64,
            nature.random_in_json,
            share(nature.random_in_json)
        );
    }
    println!("\n| packed | bytes | packed | µs to pack | µs to unpack |\n|---|---|---|---|---|");
    for (name, entries_each, format) in [
        ("deltas, 160 entries around JSON", table::FRAME_ENTRIES, ValueFormat::JSON),
        ("deltas, 160 entries of Thrift", table::FRAME_ENTRIES, ValueFormat::THRIFT),
        ("deltas, 16 entries around JSON", 16, ValueFormat::JSON),
    ] {
        let frames = table::frames(&missed, entries_each, format);
        packing(name, &frames);
    }
    packing("snapshot chunk, 64 items of JSON", &table::chunks(64));
    let per_cent = 100.0 * nature.text_gzip as f64 / nature.text as f64;
    println!("text: {} bytes, gzip -9 {per_cent:.1} %", nature.text);
    for file in std::env::args().skip(1) {
        let text = fs::read(&file).expect("a file");
        let per_cent = 100.0 * table::gzip(&text, 9) as f64 / text.len() as f64;
        println!("{file}: {} bytes, gzip -9 {per_cent:.1} %", text.len());
    }
}

/// The mean of one frame, packed and unpacked many times.
fn packing(name: &str, frames: &[Vec<u8>]) {
    let count = (frames.len() * TURNS) as f64;
    let (mut before, mut after) = (0, 0);
    let mut packed = vec![Vec::new(); frames.len()];
    let start = Instant::now();
    for _ in 0..TURNS {
        for (frame, packed) in frames.iter().zip(&mut packed) {
            packed.clear();
            frame::pack(frame, packed);
            (before, after) = (before + frame.len(), after + packed.len());
        }
    }
    let packing = start.elapsed();
    let start = Instant::now();
    for packed in packed.iter().cycle().take(frames.len() * TURNS) {
        frame::open_down(packed).expect("what was packed");
    }
    let [packing, opening] =
        [packing, start.elapsed()].map(|time| time.as_secs_f64() * 1e6 / count);
    let [before, after] = [before, after].map(|bytes| bytes as f64 / count);
    println!("| {name} | {before:.0} | {after:.0} | {packing:.0} | {opening:.0} |");
}

const TURNS: usize = 200;
