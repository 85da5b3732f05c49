//! Where a device keeps its state: a file, or memory for tests and simulations.
//!
//! A store holds one value and replaces it whole. When `save` has returned, the value survives a crash.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::Device;
use crate::items::Steps;

/// A boxed future, as [`PositionStore`] returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Durable room for one device's positions.
pub trait PositionStore: Send + 'static {
    /// The last value that was saved, if any.
    fn load(&mut self) -> BoxFuture<'_, io::Result<Option<Vec<u8>>>>;

    /// Replaces the value: when this returns, the new one is durable; if it fails, the old or the new one is there.
    fn save(&mut self, value: Vec<u8>) -> BoxFuture<'_, io::Result<()>>;

    /// The same together with what frames did to collections: both or neither. A store that keeps no collections leaves
    /// this as it is.
    fn commit(&mut self, value: Vec<u8>, steps: Arc<Steps>) -> BoxFuture<'_, io::Result<()>> {
        drop(steps);
        self.save(value)
    }

    /// What has to run beside a device with this store: nothing, unless it keeps collections.
    fn beside(&self, device: &Device, seed: u64) -> Option<BoxFuture<'static, ()>> {
        let _ = (device, seed);
        None
    }
}

/// A file, replaced as a whole: write beside it, sync, rename, sync the directory.
#[derive(Clone, Debug)]
pub struct FileStore {
    path: PathBuf,
}

impl FileStore {
    /// The directory must be there; the file need not.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl PositionStore for FileStore {
    fn load(&mut self) -> BoxFuture<'_, io::Result<Option<Vec<u8>>>> {
        let path = self.path.clone();
        Box::pin(blocking(move || match fs::read(path) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }))
    }

    fn save(&mut self, value: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        let path = self.path.clone();
        Box::pin(blocking(move || replace(&path, &value)))
    }
}

/// Memory. Clones share the value, so that a test can start a device again.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    value: Arc<Mutex<Option<Vec<u8>>>>,
}

impl MemoryStore {
    /// What was saved last.
    pub fn value(&self) -> Option<Vec<u8>> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        value.clone()
    }
}

impl PositionStore for MemoryStore {
    fn load(&mut self) -> BoxFuture<'_, io::Result<Option<Vec<u8>>>> {
        Box::pin(std::future::ready(Ok(self.value())))
    }

    fn save(&mut self, value: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Box::pin(std::future::ready(Ok(())))
    }
}

fn replace(path: &Path, value: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = fs::File::create(&beside)?;
    file.write_all(value)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    sync_directory(directory)
}

#[cfg(unix)]
fn sync_directory(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}

/// Other systems cannot open a directory; there the rename itself is what they promise.
#[cfg(not(unix))]
fn sync_directory(_directory: &Path) -> io::Result<()> {
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn keeps_the_last_value(mut store: impl PositionStore + Clone) {
        assert_eq!(store.load().await.unwrap(), None);
        store.save(b"one".to_vec()).await.unwrap();
        store.save(b"two".to_vec()).await.unwrap();
        assert_eq!(store.clone().load().await.unwrap().unwrap(), b"two");
    }

    #[tokio::test]
    async fn memory_keeps_the_last_value() {
        keeps_the_last_value(MemoryStore::default()).await;
    }

    #[tokio::test]
    async fn a_file_keeps_the_last_value_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        keeps_the_last_value(FileStore::new(directory.path().join("state"))).await;
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_not_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        assert!(FileStore::new(directory.path()).load().await.is_err());
    }
}
