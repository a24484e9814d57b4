//! The engines by which Flux and Argo CD apply what Git holds, built from the modules pinned in `tests/interop/gitops` into
//! the cache beside the control plane, for `make interop` only.
//!
//! Each is a program of a few lines around the engine: the controllers themselves bring Git, charts and a user interface,
//! none of which decides what is written.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::Bench;
use crate::control_plane::{Build, Program, cache_root, fingerprint_of};

/// Each program and its module, the quickest first so that a mistake shows early.
const ENGINES: [Program; 2] = [("flux-sync", "flux"), ("argo-sync", "argo")];

/// Builds the missing programs and returns their directory.
///
/// # Errors
/// When Go is missing or a build fails.
pub fn ensure_gitops() -> Result<PathBuf> {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../interop/gitops");
    let files = ENGINES
        .map(|(_, name)| ["go.mod", "go.sum", "main.go"].map(|file| format!("{name}/{file}")))
        .concat();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let fingerprint = fingerprint_of(&modules, &files, &format!("{ENGINES:?}"))?;
    let cache = cache_root()?.join(format!("gitops-{fingerprint}"));
    for program in ENGINES {
        let module = modules.join(program.1);
        Build::new("GitOps", &module, &cache).ensure(&[program], || Ok(()))?;
    }
    Ok(cache)
}

/// A tool that applies manifests, by its own engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Flux's kustomize-controller: server-side apply.
    Flux,
    /// Argo CD's controller as it is by default: `kubectl apply`'s three-way merge.
    Argo,
    /// The same with `ServerSideApply=true`.
    ArgoServerSide,
}

impl Engine {
    /// Applies a manifest this number of times; Argo CD as an Application says, where one is given.
    ///
    /// # Errors
    /// When the engine is not built, or an object is not applied.
    pub fn sync(
        self,
        bench: &Bench,
        manifest: &Path,
        namespace: &str,
        times: usize,
        application: Option<&Path>,
    ) -> Result<()> {
        let programs = ensure_gitops()?;
        let times = times.to_string();
        let (program, arguments): (_, &[&str]) = match self {
            Self::Flux => ("flux-sync", &[&times]),
            Self::Argo => ("argo-sync", &[namespace, &times, "client-side"]),
            Self::ArgoServerSide => ("argo-sync", &[namespace, &times, "server-side"]),
        };
        let output = Command::new(programs.join(program))
            .arg(manifest)
            .args(arguments)
            .args(application)
            .env("KUBECONFIG", bench.kubeconfig())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program}: {said}");
        Ok(())
    }
}
