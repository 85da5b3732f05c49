//! Makes the dictionary of packed frames: `cargo run --release -p carillon-wire --example train`.
//!
//! A dictionary that devices have never changes: another one gets another number.

use std::{fs, path::Path};

mod corpus;

fn main() -> std::io::Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("dictionary/1.bin");
    let samples = corpus::training::samples();
    let bytes: usize = samples.iter().map(Vec::len).sum();
    let dictionary = corpus::training::dictionary()?;
    println!("{} bytes from {} frames of {bytes} bytes", dictionary.len(), samples.len());
    fs::write(file, dictionary)
}
