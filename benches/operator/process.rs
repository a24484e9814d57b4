//! What the kernel says of a process.

use test_bench::{Context as _, Result};

/// Clock ticks a second, as Linux shows them to every program on every machine of ours.
const TICKS: f64 = 100.0;

/// Memory and time of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Resident now, bytes.
    pub(crate) rss: f64,
    /// The part of it that is the program itself, as on its disk, bytes.
    pub(crate) file: f64,
    /// Most that was ever resident, bytes.
    pub(crate) peak: f64,
    /// CPU time, user and system, seconds.
    pub(crate) cpu: f64,
}

/// Reads `/proc/<pid>/status` and `stat`.
pub(crate) fn usage(pid: u32) -> Result<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let bytes = |label: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(label));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        number
            .map(|kib| kib * 1024.0)
            .with_context(|| format!("no {label} in /proc/{pid}/status"))
    };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; utime and stime are the 12th and 13th after it.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    Ok(Usage {
        rss: bytes("VmRSS:")?,
        file: bytes("RssFile:")?,
        peak: bytes("VmHWM:")?,
        cpu: ticks / TICKS,
    })
}
