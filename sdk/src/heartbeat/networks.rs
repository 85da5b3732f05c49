//! The records of all networks that a device remembers: a bounded set, the least recently used leaves first. Pure.

use std::collections::BTreeMap;

use super::record::{Record, StoredRecord};
use super::{NetworkLabel, Parameters};

/// Networks that a device remembers.
pub const NETWORKS_MAX: usize = 20;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    records: BTreeMap<NetworkLabel, Record>,
}

impl Networks {
    /// From what was stored. Unusable records are dropped: they are learned again.
    pub fn load(stored: &[StoredRecord], parameters: &Parameters, now_s: u64) -> Self {
        let mut networks = Self::default();
        for one in stored {
            let label = one.network.parse::<NetworkLabel>();
            if let (Ok(label), Some(record)) = (label, one.load(parameters, now_s)) {
                networks.records.insert(label, record);
            }
        }
        networks.shrink(NETWORKS_MAX);
        networks
    }

    /// To be stored.
    pub fn to_stored(&self) -> Vec<StoredRecord> {
        self.records
            .iter()
            .map(|(label, record)| StoredRecord::of(label.as_str(), record))
            .collect()
    }

    /// The record of a network that is in use now; a new one pushes the oldest out. True if it is new.
    pub fn enter(&mut self, label: &NetworkLabel, parameters: &Parameters, now_s: u64) -> bool {
        if let Some(record) = self.records.get_mut(label) {
            record.used_s = record.used_s.max(now_s);
            return false;
        }
        self.shrink(NETWORKS_MAX - 1);
        self.records.insert(label.clone(), Record::new(parameters, now_s));
        true
    }

    /// The record of a network, if there is one.
    pub fn of(&self, label: &NetworkLabel) -> Option<&Record> {
        self.records.get(label)
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, label: &NetworkLabel) -> Option<&mut Record> {
        self.records.get_mut(label)
    }

    fn shrink(&mut self, to: usize) {
        while self.records.len() > to {
            let oldest = self.records.iter().min_by_key(|(_, record)| record.used_s);
            let Some(label) = oldest.map(|(label, _)| label.clone()) else { return };
            self.records.remove(&label);
        }
    }
}
