//! Prints how many bytes 1,000 missed entries take: `cargo run --release -p carillon-wire --example bytes`.

use std::fs;

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
    let per_cent = 100.0 * nature.text_gzip as f64 / nature.text as f64;
    println!("text: {} bytes, gzip -9 {per_cent:.1} %", nature.text);
    for file in std::env::args().skip(1) {
        let text = fs::read(&file).expect("a file");
        let per_cent = 100.0 * table::gzip(&text, 9) as f64 / text.len() as f64;
        println!("{file}: {} bytes, gzip -9 {per_cent:.1} %", text.len());
    }
}
