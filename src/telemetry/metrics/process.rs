//! The operator's own process, read from `/proc`; under the names that every Prometheus client library uses.
//!
//! Without `/proc` these series are missing, and nothing else.

use std::fs;

use cert_renew_core::time::UnixTime;

use super::certificates::{family, sample};

/// Ticks a second in `/proc/self/stat`: the kernel scales them to this for every program (`USER_HZ`).
const TICKS: f64 = 100.0;

/// Appends the process's series; `started` is when it began.
pub fn write(out: &mut String, started: UnixTime) {
    let numbers = [
        (
            "process_resident_memory_bytes",
            "gauge",
            "Memory of the process that is in RAM",
            read("status", resident_bytes),
        ),
        (
            "process_cpu_seconds_total",
            "counter",
            "User and system time of the process",
            read("stat", cpu_seconds),
        ),
        (
            "process_open_fds",
            "gauge",
            "Open file descriptors",
            open_files(),
        ),
        (
            "process_start_time_seconds",
            "gauge",
            "When the process started, unix time",
            Some(started.0 as f64),
        ),
    ];
    for (name, kind, help, value) in numbers {
        if let Some(value) = value {
            family(out, name, kind, help);
            sample(out, name, &[], value);
        }
    }
}

fn read(file: &str, number: impl Fn(&str) -> Option<f64>) -> Option<f64> {
    number(&fs::read_to_string(format!("/proc/self/{file}")).ok()?)
}

fn resident_bytes(status: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1_024.0)
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The second field is the program's name and may contain anything, blanks and brackets too.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = |text: Option<&str>| text?.parse::<f64>().ok();
    // utime and stime are fields 14 and 15 of proc_pid_stat(5); the first one here is field 3.
    let mut fields = fields.split_ascii_whitespace().skip(11);
    Some((ticks(fields.next())? + ticks(fields.next())?) / TICKS)
}

fn open_files() -> Option<f64> {
    // One of them is the directory that is being read.
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64 - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_by_field() {
        assert_eq!(
            resident_bytes("VmPeak:\t  99 kB\nVmRSS:\t    2048 kB\n"),
            Some(2_097_152.0)
        );
        assert_eq!(resident_bytes("VmRSS: many\n"), None);
        let stat = "7 (a ) b) S 1 7 7 0 -1 4 1 0 0 0 150 75 0 0 20 0 9 0 5 6 7";
        assert_eq!(cpu_seconds(stat), Some(2.25));
        assert_eq!(cpu_seconds("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_has_all_four() {
        let mut out = String::new();
        write(&mut out, UnixTime(1_700_000_000));
        assert_eq!(out.matches("# TYPE").count(), 4, "{out}");
        assert!(
            out.contains("process_start_time_seconds 1700000000\n"),
            "{out}"
        );
    }
}
