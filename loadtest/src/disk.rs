//! How long this machine's disk takes: what no durable answer can be faster than.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use crate::histogram::{Histogram, Percentiles};

/// Appends a block and waits until it is on the disk, again and again.
pub fn measure(dir: &Path) -> anyhow::Result<Option<Percentiles>> {
    let mut file = tempfile::tempfile_in(dir).with_context(|| dir.display().to_string())?;
    let mut took = Histogram::default();
    for _ in 0..BLOCKS {
        took.add(append(&mut file)?);
    }
    Ok(took.percentiles())
}

fn append(file: &mut File) -> anyhow::Result<u64> {
    let since = Instant::now();
    file.write_all(&[7; BLOCK_BYTES])?;
    file.sync_data()?;
    Ok(since.elapsed().as_micros() as u64)
}

const BLOCKS: usize = 500;
const BLOCK_BYTES: usize = 4096;
