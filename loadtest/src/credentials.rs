//! The devices of a run: what `carillon device create` printed, kept as one text.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

/// One device account with its registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device<'a> {
    pub device_id: &'a str,
    pub secret: &'a str,
    pub regid: &'a str,
}

/// Many of them, in the order of the file.
#[derive(Debug, Default)]
pub struct Credentials {
    text: String,
    /// Where each line begins.
    lines: Vec<u32>,
}

impl Credentials {
    /// Every `step`-th of the first `count` devices of a CSV file `device_id,secret,regid`, beginning with `first`.
    pub fn read(path: &Path, count: usize, first: usize, step: usize) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let all = Self::parse(&text).with_context(|| path.display().to_string())?;
        let found = all.count();
        ensure!(
            found >= count,
            "{} has {found} devices and {count} are needed: `carillon device create --app APP --count {count}` makes them",
            path.display()
        );
        let mut share = Self::default();
        for at in (first..count).step_by(step.max(1)) {
            share.push(all.line(at))?;
        }
        share.text.shrink_to_fit();
        share.lines.shrink_to_fit();
        Ok(share)
    }

    pub fn count(&self) -> usize {
        self.lines.len()
    }

    /// Panics beyond the last device.
    pub fn device(&self, at: usize) -> Device<'_> {
        let mut fields = self.line(at).splitn(3, ',');
        let mut next = || fields.next().unwrap_or_default();
        Device { device_id: next(), secret: next(), regid: next() }
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for line in text.lines().filter(|line| !line.is_empty() && *line != HEADER) {
            ensure!(line.split(',').count() == 3, "a line is not `{HEADER}`");
            all.push(line)?;
        }
        Ok(all)
    }

    fn push(&mut self, line: &str) -> anyhow::Result<()> {
        self.lines.push(u32::try_from(self.text.len()).context("more than 4 GB of devices")?);
        self.text.push_str(line);
        Ok(())
    }

    fn line(&self, at: usize) -> &str {
        let end = self.lines.get(at + 1).map_or(self.text.len(), |end| *end as usize);
        &self.text[self.lines[at] as usize..end]
    }
}

const HEADER: &str = "device_id,secret,regid";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_optional_and_a_short_line_is_refused() {
        let with = Credentials::parse("device_id,secret,regid\na,b,c\nd,e,f\n").unwrap();
        let without = Credentials::parse("a,b,c\nd,e,f").unwrap();
        assert_eq!((with.device(1), with.count()), (without.device(1), 2));
        assert_eq!(with.device(0), Device { device_id: "a", secret: "b", regid: "c" });
        assert!(Credentials::parse("a,b").is_err());
    }
}
