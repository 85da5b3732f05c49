//! What a process costs, from /proc.

use std::fs;

use anyhow::Context;

/// Memory that belongs to the process alone, in bytes: `RssAnon`.
pub fn anonymous_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).context(path)?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib.context("no RssAnon in the status")?.trim().parse()?;
    Ok(kib * 1024)
}

/// Processor time used so far, user and system, in seconds.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).context(path)?;
    cpu_ticks(&stat).map(|ticks| ticks as f64 / TICKS_PER_SECOND)
}

/// The limit of open files of this process.
pub fn open_files_max() -> anyhow::Result<usize> {
    let limits = fs::read_to_string("/proc/self/limits").context("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    match soft.context("no limit of open files")? {
        "unlimited" => Ok(usize::MAX),
        number => Ok(number.parse()?),
    }
}

/// The name may have blanks and brackets in it, so the fields are counted behind the last bracket.
fn cpu_ticks(stat: &str) -> anyhow::Result<u64> {
    let (_, fields) = stat.rsplit_once(')').context("stat has no name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next().context("stat is too short");
    Ok(next()?.parse::<u64>()? + next()?.parse::<u64>()?)
}

/// USER_HZ, which is 100 on every Linux that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "1 (a ) b) S 1 1 1 0 -1 4194560 9 9 9 9 70 30 5 5 20 0";
        assert_eq!(cpu_ticks(stat).unwrap(), 100);
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
        assert!(anonymous_bytes(std::process::id()).unwrap() > 0);
        assert!(open_files_max().unwrap() > 0);
    }
}
