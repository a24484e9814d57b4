//! `make control-plane`: builds the Go programs of the test bench and prints where kubectl stands. With the argument
//! `node`, those of a real node too, for `make node`.

use std::io::{self, Write as _};

fn main() -> test_bench::Result<()> {
    let control_plane = match std::env::args().nth(1).as_deref() {
        Some("node") => test_bench::control_plane::ensure_with_node()?,
        _ => test_bench::control_plane::ensure()?,
    };
    writeln!(
        io::stdout(),
        "control plane: {}",
        control_plane.program("kubectl").display()
    )?;
    Ok(())
}
