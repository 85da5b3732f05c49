//! `<data>/admin.json`: where a node's admin door is, and the token that opens it.
//!
//! The node writes it at each start, for its owner alone; the subcommands read it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::base::keys::{self, Secret};

/// How to reach a node as its operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminFile {
    /// `http://ADDR:PORT` of the admin door.
    pub url: String,
    /// The operator's token.
    pub token: Secret,
    /// Where each door of the node listens, by its name in the configuration.
    #[serde(default)]
    pub listen: BTreeMap<String, String>,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there or cannot be read or written.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It does not hold what it should.
    #[error("{path}: not an admin file")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: serde_json::Error,
    },
}

impl AdminFile {
    /// Where the file is in a data directory.
    pub fn path(data: &Path) -> PathBuf {
        data.join("admin.json")
    }

    /// Writes it, for its owner alone.
    ///
    /// # Errors
    /// [`Error`], with the path.
    pub fn write(&self, data: &Path) -> Result<(), Error> {
        let path = Self::path(data);
        let text = serde_json::to_vec(self)
            .map_err(|cause| Error::Malformed { path: path.clone(), cause })?;
        keys::write_private(&path, &text).map_err(|cause| Error::Io { path, cause })
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Error`], with the path.
    pub fn read(data: &Path) -> Result<Self, Error> {
        let path = Self::path(data);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(cause) => return Err(Error::Io { path, cause }),
        };
        serde_json::from_slice(&text).map_err(|cause| Error::Malformed { path, cause })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_writes_the_subcommands_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(AdminFile::read(dir.path()).unwrap_err().to_string().contains("admin.json"));
        let listen = BTreeMap::from([("mqtt".into(), "127.0.0.1:1883".into())]);
        let url = "http://127.0.0.1:9464".into();
        let file = AdminFile { url, token: Secret::random(), listen };
        file.write(dir.path()).unwrap();
        assert_eq!(AdminFile::read(dir.path()).unwrap(), file);
    }
}
