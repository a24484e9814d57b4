//! The container of the scene: a memory limit for the operator, and what the machine has spent on whom.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use test_bench::{Context as _, Operator, Result};

/// How the directories of the scene begin, in the file system of the control groups.
const PREFIX: &str = "cert-renew-hostile-";
/// Directory, limit, peak and number of times at the limit: of version 1 and of version 2 of the control groups.
const VERSIONS: [[&str; 4]; 2] = [
    [
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.max_usage_in_bytes",
        "memory.failcnt",
    ],
    [
        "/sys/fs/cgroup",
        "memory.max",
        "memory.peak",
        "memory.events",
    ],
];
/// `USER_HZ`, by which `/proc` counts: 100 on every machine that Linux runs on today.
const TICKS_PER_SECOND: f64 = 100.0;

/// A control group with a memory limit; gone with the scene. Where the machine has none, the memory is only measured.
pub(super) struct Container {
    group: Option<(PathBuf, [&'static str; 4])>,
}

impl Container {
    /// A group whose processes get no more than `limit` bytes in all, the pages of files that they read included.
    pub(super) fn new(limit: u64) -> Self {
        let name = format!("{PREFIX}{}", std::process::id());
        let made = VERSIONS.into_iter().find_map(|names| {
            let [parent, maximum, ..] = names;
            remove_former(Path::new(parent));
            let directory = Path::new(parent).join(&name);
            fs::create_dir(&directory).ok()?;
            if set(&directory.join(maximum), limit).is_err() {
                // Of a hierarchy without memory.
                let _ = fs::remove_dir(&directory);
                return None;
            }
            Some((directory, names))
        });
        if made.is_none() {
            eprintln!("hostile: no memory limit on this machine: the memory is only measured");
        }
        Self { group: made }
    }

    /// What its processes get at most, as the kernel has it: 0 where the machine has no limit.
    pub(super) fn limit(&self) -> u64 {
        let limit = self.group.as_ref().and_then(|(directory, names)| {
            let limit = fs::read_to_string(directory.join(names[1])).ok()?;
            limit.trim().parse().ok()
        });
        limit.unwrap_or_default()
    }

    /// A program that runs `program` inside, from its first instruction on.
    pub(super) fn wrap(&self, program: &Path, script: PathBuf) -> Result<PathBuf> {
        let Some((directory, _)) = &self.group else {
            return Ok(program.to_owned());
        };
        let text = format!(
            "#!/bin/sh\necho $$ >'{}/cgroup.procs' || exit 1\nexec '{}' \"$@\"\n",
            directory.display(),
            program.display()
        );
        fs::write(&script, text).context("writing the program of the container")?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(script)
    }

    /// The most memory of all its processes, caches of files included, and how often it met the limit.
    pub(super) fn pressed(&self) -> Option<String> {
        let (directory, [_, _, peak, times]) = self.group.as_ref()?;
        let read = |name: &str| fs::read_to_string(directory.join(name)).ok();
        let (peak, times) = (read(peak)?, read(times)?);
        let times = times.split_whitespace().collect::<Vec<_>>().join(" ");
        Some(format!(
            "{} bytes at most, at the limit: {times}",
            peak.trim()
        ))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some((directory, _)) = &self.group
            && let Err(error) = fs::remove_dir(directory)
        {
            eprintln!("hostile: {} stays: {error}", directory.display());
        }
    }
}

/// Sets a value of the kernel's; makes no file where there is none.
fn set(file: &Path, value: u64) -> std::io::Result<()> {
    let mut file = File::options().write(true).open(file)?;
    file.write_all(value.to_string().as_bytes())
}

/// What a scene that was killed has left behind. A group that has processes is refused.
fn remove_former(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Bytes of resident memory of the operator's process, by the kernel's account: now, and the most that it ever had.
pub(super) fn resident(operator: &Operator<'_>) -> Option<(u64, u64)> {
    let id = operator.process().ok()?.id();
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let bytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
        Some(kilobytes << 10)
    };
    Some((bytes("VmRSS:")?, bytes("VmHWM:")?))
}

/// Seconds of CPU since the last look: of the machine, of the scene itself, and of each program that it has started.
/// It tells a machine that is busy with something else from an operator that is late.
pub(super) struct Load {
    at: Instant,
    before: BTreeMap<String, f64>,
}

impl Load {
    pub(super) fn new() -> Self {
        Self {
            at: Instant::now(),
            before: spent(),
        }
    }

    /// Cores in use since the last look.
    pub(super) fn look(&mut self) -> String {
        let (seconds, now) = (self.at.elapsed().as_secs_f64(), spent());
        let used = now.iter().map(|(name, spent)| {
            let before = self.before.get(name).copied().unwrap_or_default();
            (name, (spent - before).max(0.0) / seconds)
        });
        let used = used.filter(|(_, cores)| *cores >= 0.01);
        let text: Vec<String> = used
            .map(|(name, cores)| format!("{name} {cores:.2}"))
            .collect();
        (self.at, self.before) = (Instant::now(), now);
        text.join(", ")
    }
}

fn spent() -> BTreeMap<String, f64> {
    let own = std::process::id();
    let mut spent = BTreeMap::new();
    // The first line of all: user, nice, system, idle, waiting for disks, interrupts, …
    let machine = fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers = machine
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let numbers: Vec<f64> = numbers.skip(1).filter_map(|it| it.parse().ok()).collect();
    let busy = numbers.iter().sum::<f64>() - numbers.iter().skip(3).take(2).sum::<f64>();
    spent.insert("the machine".to_owned(), busy / TICKS_PER_SECOND);
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // Number, name in brackets, state, parent, …, of which time as a user is the 14th and time in the kernel the 15th.
        let Some((head, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let rest: Vec<&str> = rest.split(' ').collect();
        let number = |at: usize| rest.get(at).and_then(|it| it.parse::<f64>().ok());
        let (Some(user), Some(kernel)) = (number(11), number(12)) else {
            continue;
        };
        let of_ours = rest.get(1).and_then(|it| it.parse().ok()) == Some(own);
        if id != own && !of_ours {
            continue;
        }
        let name = head.split_once('(').map_or("", |(_, name)| name);
        let name = if id == own { "the scene" } else { name };
        *spent.entry(name.to_owned()).or_default() += (user + kernel) / TICKS_PER_SECOND;
    }
    spent
}
