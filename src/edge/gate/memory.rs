//! How much memory the process has and may have.

use std::fs;

/// Whether new connections can be afforded, by what the process holds.
pub(super) struct Memory {
    /// Bytes.
    shed_from: u64,
}

impl Memory {
    /// 0: what the system gives this process.
    pub(super) fn new(max_bytes: u64) -> Self {
        let max = if max_bytes == 0 { given() } else { max_bytes };
        Self { shed_from: max / 5 * 4 }
    }

    /// Whether nobody new may be let in. Reads a file: for once a second.
    pub(super) fn is_short(&self) -> bool {
        // Without the file there is nothing to judge by.
        held().is_some_and(|held| held >= self.shed_from)
    }
}

/// Resident memory without what is backed by files, in bytes.
fn held() -> Option<u64> {
    in_status(&fs::read_to_string("/proc/self/status").ok()?)
}

fn in_status(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("RssAnon:")).and_then(kib)
}

/// The smallest of the machine's memory and the limits of the control group.
fn given() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.as_deref().and_then(|text| text.lines().next());
    let machine = machine.and_then(|line| line.strip_prefix("MemTotal:")).and_then(kib);
    let group = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    GROUP_LIMITS.into_iter().filter_map(group).chain(machine).min().unwrap_or(u64::MAX)
}

fn kib(text: &str) -> Option<u64> {
    text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// As a container sees its own group; version 2, and 1.
const GROUP_LIMITS: [&str; 2] =
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_read_and_judged() {
        let status = "VmRSS:\t   91236 kB\nRssAnon:\t   61236 kB\nRssFile:\t 30000 kB\n";
        assert_eq!(in_status(status), Some(61_236 << 10));
        assert_eq!(in_status("Threads: 3\n"), None);
        assert!(held().is_some_and(|held| held > 0) && given() > held().unwrap());
        assert!(Memory::new(1).is_short());
        assert!(!Memory::new(u64::MAX).is_short());
    }
}
