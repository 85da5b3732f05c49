//! The foreign tools that tests drive; `scripts/tools` puts them in place.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The target folder.
pub fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a folder below the target folder")
}

/// A program of this name. Missing is a failure, never a skip.
pub fn program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([target().join("tools/bin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("`{name}` is not on this machine: run scripts/tools"))
}

/// The Python that has paho-mqtt and thrift.
pub fn python() -> PathBuf {
    installed("venv/bin/python")
}

/// The command of schemathesis.
pub fn schemathesis() -> PathBuf {
    installed("venv/bin/st")
}

/// The folder from which Node finds mqtt.js.
pub fn node_modules() -> PathBuf {
    installed("node/node_modules")
}

fn installed(path: &str) -> PathBuf {
    let file = target().join(path);
    assert!(file.exists(), "{} is not there: run scripts/tools", file.display());
    file
}
