//! `longterm`: where folded collections and history are kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Rule;

/// Where folded collections and history are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LongTerm {
    /// What keeps them.
    pub store: LongTermStore,
    /// How PostgreSQL is reached.
    pub postgres_url: String,
    /// A file with that, because it may have a password.
    pub postgres_url_file: PathBuf,
    /// Who must have signed the server's certificate.
    pub postgres_ca: PathBuf,
    /// For each connection, transaction and read.
    pub postgres_timeout_ms: u64,
    /// The embedded store's cache of blocks.
    pub cache_bytes: u64,
    /// Days for which history is kept; 0: for ever.
    pub history_days: u32,
    /// Entries that may wait for it before changes are refused.
    pub behind_entries_max: u64,
    /// How long the oldest may wait.
    pub behind_max_s: u64,
}

/// Which store keeps folded collections and history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongTermStore {
    /// One of our own, in the data directory.
    #[default]
    Embedded,
    /// PostgreSQL, or what speaks its protocol.
    Postgres,
}

impl Default for LongTerm {
    fn default() -> Self {
        Self {
            store: LongTermStore::Embedded,
            postgres_url: String::new(),
            postgres_url_file: PathBuf::new(),
            postgres_ca: PathBuf::new(),
            postgres_timeout_ms: 10_000,
            cache_bytes: 16 << 20,
            history_days: 365,
            behind_entries_max: 1_000_000,
            behind_max_s: 900,
        }
    }
}

impl LongTerm {
    pub(super) fn rules(&self) -> Vec<Rule> {
        let urls = usize::from(!self.postgres_url.is_empty())
            + usize::from(!self.postgres_url_file.as_os_str().is_empty());
        let is_reachable = self.store == LongTermStore::Embedded || urls == 1;
        vec![
            Rule(
                is_reachable,
                "longterm.postgres_url",
                "set, or longterm.postgres_url_file, but not both",
            ),
            Rule(
                (100..=120_000).contains(&self.postgres_timeout_ms),
                "longterm.postgres_timeout_ms",
                "100 to 120000",
            ),
            Rule(self.cache_bytes >= 1 << 20, "longterm.cache_bytes", "at least 1048576"),
            Rule(self.history_days <= 36_500, "longterm.history_days", "at most 36500"),
            Rule(self.behind_entries_max >= 1, "longterm.behind_entries_max", "at least 1"),
            Rule(self.behind_max_s >= 1, "longterm.behind_max_s", "at least 1"),
        ]
    }
}
