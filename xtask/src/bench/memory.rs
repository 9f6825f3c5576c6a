//! Memory of the proxies.

use std::fs;

use anyhow::Result;

/// Of all of them together.
#[derive(Clone, Copy, Default)]
pub(super) struct Memory {
    /// Resident.
    pub(super) rss_kb: u64,
    /// Of that, what is not backed by a file: heap and stacks.
    pub(super) anon_kb: u64,
    /// Processes.
    pub(super) processes: u64,
}

impl Memory {
    /// Of these processes and their children; one that is gone counts nothing.
    ///
    /// # Errors
    /// The kernel's files don't look as expected.
    pub(super) fn of(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in pids.iter().flat_map(|&pid| tree(pid)) {
            let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
            sum.rss_kb += field(&status, "VmRSS:")?;
            sum.anon_kb += field(&status, "RssAnon:")?;
            sum.processes += 1;
        }
        Ok(sum)
    }
}

/// A process and its descendants.
fn tree(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|word| word.parse().ok());
    std::iter::once(pid).chain(children.flat_map(tree)).collect()
}

fn field(status: &str, key: &str) -> Result<u64> {
    // A zombie has none.
    let Some(line) = status.lines().find_map(|line| line.strip_prefix(key)) else { return Ok(0) };
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
