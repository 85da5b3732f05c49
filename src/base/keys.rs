//! Secrets: how they are made, kept and compared.
//!
//! A secret leaves the gateway once, when it is made; what stays is a keyed
//! hash. The secrets are 256 random bits, so a fast hash is enough.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use aws_lc_rs::{constant_time, hmac};
use serde::{Deserialize, Serialize};

use super::ids::{base32, from_base32, random_bytes};

/// A secret in clear: made here, or shown by a stranger. It has no useful `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// 256 random bits, 52 characters.
    pub fn random() -> Self {
        Self(base32(&random_bytes::<32>()))
    }

    /// A secret that somebody stated.
    pub fn stated(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Its text: for the one answer that hands it out.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What is stored of a secret.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretHash(pub [u8; 32]);

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

/// The node's own keys; they never leave `<data>/keys`, mode 0600.
pub struct NodeKeys {
    secrets: hmac::Key,
    tags: [u8; 16],
}

impl fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKeys(…)")
    }
}

impl NodeKeys {
    /// Reads the keys from `path`, or makes them there on the first start.
    ///
    /// # Errors
    /// If the file cannot be read, written or understood, or others may read it.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        let refused = |why: &str| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
        };
        match read_private(path) {
            Ok(None) => Err(refused("others may read it; make sure nobody did, then chmod 600")),
            Ok(Some(text)) => Self::parse(text.trim())
                .ok_or_else(|| refused("not a key file; restore it from a backup")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = base32(&random_bytes::<48>());
                write_private(path, text.as_bytes())?;
                Ok(Self::parse(&text).expect("made a line above"))
            }
            Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }

    /// Keys that live as long as this value: for tests.
    pub fn ephemeral() -> Self {
        Self::parse(&base32(&random_bytes::<48>())).expect("48 bytes")
    }

    fn parse(text: &str) -> Option<Self> {
        let bytes = from_base32(text)?;
        let (secrets, tags) = bytes.split_at_checked(32)?;
        Some(Self {
            secrets: hmac::Key::new(hmac::HMAC_SHA256, secrets),
            tags: tags.try_into().ok()?,
        })
    }

    /// The hash under which a secret is stored.
    pub fn hash(&self, secret: &[u8]) -> SecretHash {
        let tag = hmac::sign(&self.secrets, secret);
        let mut hash = [0; 32];
        hash.copy_from_slice(tag.as_ref());
        SecretHash(hash)
    }

    /// Whether a stated secret is the stored one, in constant time.
    pub fn is_same(&self, stored: &SecretHash, stated: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(&stored.0, &self.hash(stated).0).is_ok()
    }

    /// Whether a stated secret is one of the stored ones; hashed once.
    pub fn is_one_of<'a>(
        &self,
        mut stored: impl Iterator<Item = &'a SecretHash>,
        stated: &[u8],
    ) -> bool {
        let hash = self.hash(stated);
        stored.any(|one| constant_time::verify_slices_are_equal(&one.0, &hash.0).is_ok())
    }

    /// The key of the tags that prove a position came from this gateway.
    pub fn tag_key(&self) -> &[u8; 16] {
        &self.tags
    }
}

/// The text of a file, or `None` if others than its owner may read or write it.
fn read_private(path: &Path) -> io::Result<Option<String>> {
    let mut file = fs::File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Ok(None);
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Some(text))
}

/// Writes a new file that only its owner may read, durably and all or nothing.
///
/// # Errors
/// Whatever the file system says, with the path in the text.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_dir(path)
    };
    write().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Makes a rename in the directory of `path` durable.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(dir)?.sync_all()
}
