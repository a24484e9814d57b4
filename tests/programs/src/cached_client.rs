//! The client that `make bench BENCH=cached` compares the operator with, `tests/control-plane/cached`: built with what the
//! module of the control plane pins, for that benchmark only.

use std::path::PathBuf;

use anyhow::Result;

use crate::build::{Build, Program, cache_root, fingerprint_of};
use crate::module;

const PROGRAMS: [Program; 1] = [("cached", "./cached")];
/// All that decides what is built.
const FILES: [&str; 3] = ["go.mod", "go.sum", "cached/main.go"];

/// Builds it where it is not built yet, which takes minutes if the control plane was not built here; returns its file.
///
/// # Errors
/// When Go is missing or the build fails.
pub fn ensure_cached_client() -> Result<PathBuf> {
    let module = module();
    let fingerprint = fingerprint_of(&module, &FILES, &format!("{PROGRAMS:?}"))?;
    let cache = cache_root()?.join(format!("cached-client-{fingerprint}"));
    Build::new("cached client", &module, &cache).ensure(&PROGRAMS, || Ok(()))?;
    Ok(cache.join("cached"))
}
