//! Reading a configuration so that each error has its file and, if it can, its line.

use std::{fs, path::Path};

use anyhow::{Context, anyhow};

use super::serve;
use crate::config::{Config, Error};

/// `carillon check FILE`.
pub(super) fn run(file: &Path) -> anyhow::Result<()> {
    let config = read(file)?;
    serve::filter(&config).with_context(|| place(file, "log.filter"))?;
    println!("{}: ok", file.display());
    Ok(())
}

/// A configuration that can be used.
pub(super) fn read(file: &Path) -> anyhow::Result<Config> {
    Config::read(file).map_err(|error| match error {
        Error::OutOfRange { ref key, .. } => anyhow!("{}: {error}", place(file, key)),
        Error::Unreadable { .. } | Error::Wrong { .. } => error.into(),
    })
}

/// `FILE:LINE` of a key, or the file if the key has its default.
pub(super) fn place(file: &Path, key: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    match line_of(&text, key) {
        Some(line) => format!("{}:{line}", file.display()),
        None => file.display().to_string(),
    }
}

/// The line, from 1, on which `section.key` is set.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let (section, key) = key.rsplit_once('.')?;
    let mut current = "";
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            current = name.trim();
        }
        let is_key = line.split_once('=').is_some_and(|(name, _)| name.trim() == key);
        if current == section && is_key {
            return Some(index + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_its_section() {
        let text = "[edge]\nconnections_max = 1\n# window = 2\n\n[api]\nconnections_max = 0\n";
        assert_eq!(line_of(text, "api.connections_max"), Some(6));
        assert_eq!(line_of(text, "edge.connections_max"), Some(2));
        assert_eq!(line_of(text, "edge.window"), None);
        let text = "[limits.allowance]\n[limits.apps.a]\ntargets_burst = 0\n";
        assert_eq!(line_of(text, "limits.apps.a.targets_burst"), Some(3));
    }
}
