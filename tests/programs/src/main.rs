//! `make control-plane`: builds the Go programs of the test bench and prints where kubectl stands.
//!
//! With the argument `node`, those of a real node too, for `make node`. With `beside COMMAND…`, for `make demo`, the command
//! runs meanwhile, and has to succeed too.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    let control_plane = match first.as_deref().and_then(|it| it.to_str()) {
        Some("node") => test_programs::ensure_with_node()?,
        Some("beside") => return beside(&arguments.collect::<Vec<_>>()),
        _ => test_programs::ensure()?,
    };
    writeln!(
        io::stdout(),
        "control plane: {}",
        control_plane.program("kubectl").display()
    )?;
    Ok(())
}

fn beside(command: &[OsString]) -> Result<()> {
    let (program, arguments) = command.split_first().context("beside what?")?;
    let started = Command::new(program).args(arguments).spawn();
    let mut child = started.with_context(|| program.display().to_string())?;
    let built = test_programs::ensure_for_demo();
    if built.is_err() {
        // It may have ended.
        let _ = child.kill();
    }
    let status = child.wait()?;
    built?;
    ensure!(status.success(), "{}: {status}", program.display());
    Ok(())
}
