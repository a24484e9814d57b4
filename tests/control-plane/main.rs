//! `make control-plane`: builds the Go programs of the test bench and prints where kubectl stands.

use std::io::{self, Write as _};

fn main() -> test_bench::Result<()> {
    let control_plane = test_bench::control_plane::ensure()?;
    writeln!(
        io::stdout(),
        "control plane: {}",
        control_plane.program("kubectl").display()
    )?;
    Ok(())
}
