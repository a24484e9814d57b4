//! What has happened, a line each with its instant: printed, or only its last lines kept.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write as _};

use crate::clock;

/// Lines that are kept to be shown with a failure.
const KEPT: usize = 60;

/// The story of a run.
#[derive(Debug, Default)]
pub struct Story {
    printed: bool,
    last: VecDeque<String>,
    lines: u64,
    /// FNV-1a of all lines: two runs with the same are the same.
    digest: u64,
}

impl Story {
    /// One that is printed as it happens, or not.
    #[must_use]
    pub fn new(printed: bool) -> Self {
        Self {
            printed,
            digest: 0xcbf2_9ce4_8422_2325,
            ..Self::default()
        }
    }

    /// Adds a line.
    pub fn tell(&mut self, who: &str, what: impl fmt::Display) {
        let line = format!("{}  {who:<8} {what}", clock::stamp());
        for byte in line.bytes().chain([b'\n']) {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.lines += 1;
        if self.printed {
            // The reader of the pipe may have read enough.
            let _ = writeln!(io::stdout(), "{line}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The last lines.
    pub fn last(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }

    /// Number of lines and a digest of all.
    #[must_use]
    pub fn digest(&self) -> (u64, u64) {
        (self.lines, self.digest)
    }
}
