//! The commit mark: how far the store had come, kept outside the store.
//!
//! A journal that was cut short by damage opens as if nothing were missing. The
//! mark, at most a second old, says what had been durable: a store that recovers
//! less has lost acknowledged data, and gets a new epoch. Two slots of 4 KiB are
//! written in turn, so that a torn write leaves the other.

use std::{
    fs::{File, OpenOptions},
    hash::Hasher,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use siphasher::sip::SipHasher24;

use crate::{base::keys::sync_dir, crash_point};

const SLOT_BYTES: u64 = 4_096;
const MAGIC: &[u8; 8] = b"carimark";

/// What the mark says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The newest commit that was durable.
    pub stamp: u64,
    /// The newest epoch that any shard had.
    pub epoch: u32,
}

/// The file.
pub struct Mark {
    file: File,
    turn: u64,
    facts: Option<Facts>,
}

impl Mark {
    /// Opens the file, or creates it.
    ///
    /// # Errors
    /// Whatever the file system says, or that it is damaged: taken for a new one, it would
    /// hide what the store lost.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        sync_dir(path)?;
        let slots = [read_slot(&file, 0)?, read_slot(&file, 1)?];
        if slots == [None, None] && !(is_blank(&file, 0)? || is_blank(&file, 1)?) {
            let why = "both slots are damaged: restore the file, or remove it and lose its proof";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let newest = slots.into_iter().flatten().max_by_key(|(turn, _)| *turn);
        Ok(Self {
            file,
            turn: newest.map_or(0, |(turn, _)| turn),
            facts: newest.map(|(_, facts)| facts),
        })
    }

    /// What it says; nothing before the first write.
    pub fn facts(&self) -> Option<Facts> {
        self.facts
    }

    /// Writes new facts, durably.
    ///
    /// # Errors
    /// Whatever the file system says; the older facts are still there then.
    pub fn write(&mut self, facts: Facts) -> io::Result<()> {
        let turn = self.turn + 1;
        let mut slot = [0; SLOT_BYTES as usize];
        slot[..8].copy_from_slice(MAGIC);
        slot[8..16].copy_from_slice(&turn.to_le_bytes());
        slot[16..24].copy_from_slice(&facts.stamp.to_le_bytes());
        slot[24..28].copy_from_slice(&facts.epoch.to_le_bytes());
        let sum = checksum(&slot[..28]);
        slot[28..36].copy_from_slice(&sum);
        crash_point!("mark::before_write");
        self.file.write_all_at(&slot, (turn % 2) * SLOT_BYTES)?;
        crash_point!("mark::before_sync");
        self.file.sync_data()?;
        self.turn = turn;
        self.facts = Some(facts);
        Ok(())
    }
}

fn read_slot(file: &File, slot: u64) -> io::Result<Option<(u64, Facts)>> {
    let mut bytes = [0; 36];
    match file.read_exact_at(&mut bytes, slot * SLOT_BYTES) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    if &bytes[..8] != MAGIC || bytes[28..] != checksum(&bytes[..28]) {
        return Ok(None);
    }
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let epoch = u32::from_le_bytes(std::array::from_fn(|i| bytes[24 + i]));
    Ok(Some((number(8), Facts { stamp: number(16), epoch })))
}

/// Whether a slot was never written. The first write may have been torn: that damages one only.
fn is_blank(file: &File, slot: u64) -> io::Result<bool> {
    let mut bytes = [0; 36];
    let count = file.read_at(&mut bytes, slot * SLOT_BYTES)?;
    Ok(bytes[..count].iter().all(|byte| *byte == 0))
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let mut hasher = SipHasher24::new();
    hasher.write(bytes);
    hasher.finish().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mark");
        let mut mark = Mark::open(&path).unwrap();
        assert_eq!(mark.facts(), None);
        mark.write(Facts { stamp: 1, epoch: 1 }).unwrap();
        mark.write(Facts { stamp: 2, epoch: 1 }).unwrap();
        drop(mark);
        assert_eq!(Mark::open(&path).unwrap().facts(), Some(Facts { stamp: 2, epoch: 1 }));
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"torn", 16).unwrap();
        assert_eq!(Mark::open(&path).unwrap().facts(), Some(Facts { stamp: 1, epoch: 1 }));
        file.write_all_at(b"torn", SLOT_BYTES + 16).unwrap();
        assert!(Mark::open(&path).is_err(), "damage never looks like a first start");
    }

    #[test]
    fn a_first_write_may_be_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mark");
        Mark::open(&path).unwrap().write(Facts { stamp: 1, epoch: 1 }).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"torn", SLOT_BYTES + 16).unwrap();
        assert_eq!(Mark::open(&path).unwrap().facts(), None);
    }
}
