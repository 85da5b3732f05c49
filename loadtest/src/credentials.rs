//! The devices of a run: what `carillon device create` printed.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

/// One device account with its registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub device_id: String,
    pub secret: String,
    pub regid: String,
}

/// The first `count` devices of a CSV file `device_id,secret,regid`.
pub fn read(path: &Path, count: usize) -> anyhow::Result<Vec<Device>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let devices = parse(&text)?;
    let found = devices.len();
    ensure!(found >= count, "{} has {found} devices, not {count}", path.display());
    Ok(devices.into_iter().take(count).collect())
}

fn parse(text: &str) -> anyhow::Result<Vec<Device>> {
    let lines = text.lines().filter(|line| !line.is_empty() && *line != HEADER);
    let device = |line: &str| match line.split(',').collect::<Vec<_>>()[..] {
        [device_id, secret, regid] => Ok(Device {
            device_id: device_id.to_owned(),
            secret: secret.to_owned(),
            regid: regid.to_owned(),
        }),
        _ => anyhow::bail!("a line is not `{HEADER}`"),
    };
    lines.map(device).collect()
}

const HEADER: &str = "device_id,secret,regid";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_optional_and_a_short_line_is_refused() {
        let with = parse("device_id,secret,regid\na,b,c\n").unwrap();
        assert_eq!(with, parse("a,b,c").unwrap());
        assert_eq!(with[0].regid, "c");
        assert!(parse("a,b").is_err());
    }
}
