//! Memory against size: the most that a reader of foreign bytes takes for an input and for one of four times the
//! length.
//!
//! A reader whose memory grows faster than its input lets one Secret end the process at its limit. The readers and the
//! shapes are those of [`super::time`]. Each reader has a process of its own, in which the kernel counts: freed memory
//! goes back at once there, so that one input does not hide the next.

use std::env;
use std::process::Command;

use super::time::{READERS, shapes};
use super::*;

/// Length of the first input in bytes; the second is four times as long: a quarter of what a Secret holds.
const LENGTH: usize = 1 << 16;
const FACTOR: usize = 4;
/// Most memory for the second input as a multiple of the first: linear is 4, and quadratic 16.
const MOST: u64 = 8;
/// Bytes below which a difference says nothing: pages of the program that are read for the first time, and rounding.
const NOTICEABLE: u64 = 2 << 20;
/// Most bytes that a reader takes for each byte of an input.
const EACH: u64 = 128;
/// Names the reader that a process is for.
const READER: &str = "FUZZ_READER";
/// Names the only shape to try, if it is set.
const SHAPE: &str = "FUZZ_SHAPE";

/// A line of `/proc/self/status`, in bytes.
fn status(line: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|it| it.strip_prefix(line)).unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    number.parse::<u64>().unwrap() << 10
}

/// The most memory that `work` has taken at a time, in bytes.
fn taken(work: impl FnOnce()) -> u64 {
    // From here on the kernel counts from zero.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    work();
    status("VmHWM").saturating_sub(before)
}

impl Row {
    /// Whether the longer input has taken more than a linear reader takes.
    fn is_too_much(&self) -> bool {
        let faster = self.long > NOTICEABLE && self.long > MOST * self.short.max(NOTICEABLE / MOST);
        faster || self.long > EACH * u64::try_from(self.length).unwrap() + NOTICEABLE
    }
}

#[test]
#[ignore = "a process that no_reader_takes_memory_faster_than_its_input_grows starts"]
fn of_one_reader() {
    let (wanted, only) = (env::var(READER).unwrap(), env::var(SHAPE).ok());
    let (_, read) = READERS.iter().find(|(name, _)| *name == wanted).unwrap();
    // The kernel's count itself: exact here, where no other test runs.
    let kept = taken(|| {
        let ones = vec![1_u8; 8 << 20].iter().filter(|it| **it == 1).count();
        assert_eq!(ones, 8 << 20);
    });
    assert!(kept >= 7 << 20, "{kept}");
    for (shape, make) in shapes() {
        if only.as_ref().is_some_and(|only| only != shape) {
            continue;
        }
        let (short, long) = (make(LENGTH), make(FACTOR * LENGTH));
        // What is made only once, such as tables, counts for neither.
        read(&make(1 << 10));
        let [first, second] = [&short, &long].map(|input| taken(|| read(input)));
        eprintln!("\n{READER}\t{shape}\t{first}\t{second}\t{}", long.len());
    }
}

/// What a reader has taken for the shorter and the longer input of a shape, and how long the latter was.
struct Row {
    shape: String,
    short: u64,
    long: u64,
    length: usize,
}

/// Measures a reader in a process of its own, with one shape or with all.
fn measure(reader: &str, shape: Option<&str>) -> Vec<Row> {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "fuzz::memory::of_one_reader",
            "--ignored",
            "--nocapture",
        ])
        .env(READER, reader)
        // Freed memory goes back to the kernel, large or small.
        .envs([
            ("MALLOC_MMAP_THRESHOLD_", "16384"),
            ("MALLOC_TRIM_THRESHOLD_", "0"),
        ])
        .env("MALLOC_TOP_PAD_", "0");
    command.envs(shape.map(|shape| (SHAPE, shape)));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{reader}: {said}");
    let rows = said.lines().filter_map(|line| line.strip_prefix(READER));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim().split('\t').collect();
        Row {
            shape: cells[0].to_owned(),
            short: cells[1].parse().unwrap(),
            long: cells[2].parse().unwrap(),
            length: cells[3].parse().unwrap(),
        }
    })
    .collect()
}

#[test]
fn no_reader_takes_memory_faster_than_its_input_grows() {
    let mut most = (0, String::new());
    for (reader, _) in READERS {
        let rows = measure(reader, None);
        assert_eq!(rows.len(), shapes().len(), "{reader}");
        for mut row in rows {
            // Memory left by the shapes before may hide what the shorter input takes: measure once more, alone.
            if row.is_too_much() {
                row = measure(reader, Some(&row.shape)).remove(0);
            }
            let Row {
                shape,
                short,
                long,
                length,
            } = &row;
            assert!(
                !row.is_too_much(),
                "{reader}, {shape}: {short} bytes of memory for {LENGTH} bytes, {long} for {length}"
            );
            most = most.max((*long, format!("{reader}, {shape}")));
        }
    }
    // Shown only with --nocapture.
    eprintln!("fuzz memory: {} KiB at the most: {}", most.0 >> 10, most.1);
}

/// The measure itself: it finds what is quadratic, and accepts what is linear.
#[test]
fn a_reader_that_takes_quadratic_memory_is_found() {
    let row = |taken: fn(usize) -> usize| Row {
        shape: String::new(),
        short: u64::try_from(taken(LENGTH)).unwrap(),
        long: u64::try_from(taken(FACTOR * LENGTH)).unwrap(),
        length: FACTOR * LENGTH,
    };
    assert!(!row(|length| length * 40).is_too_much());
    assert!(row(|length| length * length / 4096).is_too_much());
    assert!(row(|length| length * 200).is_too_much());
}
