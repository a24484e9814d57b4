//! The Go programs of the test bench: built once from the modules pinned in `tests/control-plane/go.mod`, kept in a cache
//! outside the repository.
//!
//! A crate of its own with next to no dependencies, so that Go begins to compile a few seconds after `make demo`, beside
//! cargo.
//!
//! Inputs: the two files of that module, the Go toolchain, `CERT_RENEW_BENCH_CACHE`, `XDG_CACHE_HOME`,
//! `KUBEBUILDER_ASSETS` and `CERT_RENEW_KUBERNETES`. Downloads only Go modules, and writes nothing into the repository.

mod build;
mod cached_client;
mod minors;

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

pub use build::{Build, Program, cache_root, fingerprint_of, go, go_missing};
pub use cached_client::ensure_cached_client;
pub use minors::{KUBERNETES, Minor};

use build::say;

/// Each program and its package. Their order is a part of the name of the cache.
const PROGRAMS: [(&str, &str); 8] = [
    ("pebble", "github.com/letsencrypt/pebble/v2/cmd/pebble"),
    (
        "pebble-challtestsrv",
        "github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv",
    ),
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    (
        "kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
    ),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
];

/// Further programs of a real node. Compiling these takes minutes, so only `make node` does.
const NODE_PROGRAMS: [(&str, &str); 2] = [
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
];

/// What `KUBEBUILDER_ASSETS` holds by the convention of envtest; it may hold any other of the programs too.
const KUBEBUILDER_PROGRAMS: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];

/// The stages of kwok that make nodes Ready and pods Running at once; without any stage it refuses to start.
const STAGES: [&str; 3] = ["node/fast", "node/heartbeat-with-lease", "pod/fast"];

/// The locations of the programs.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    cache: PathBuf,
    assets: Option<PathBuf>,
    /// Directory of the programs of another minor.
    minor: Option<PathBuf>,
}

impl ControlPlane {
    /// Path of a program by its name, for example `kubectl`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        let asset = self.assets.as_ref().map(|assets| assets.join(name));
        match (&self.minor, asset.filter(|asset| asset.is_file())) {
            (Some(minor), _) if minors::PROGRAMS.iter().any(|it| it.0 == name) => minor.join(name),
            (_, Some(asset)) => asset,
            _ => self.cache.join(name),
        }
    }

    /// The stage files of kwok.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn stages(&self) -> Result<Vec<PathBuf>> {
        yaml_files(&self.stages_directory())
    }

    fn stages_directory(&self) -> PathBuf {
        self.cache.join("stages")
    }

    /// Those that are still to be built.
    fn missing(&self, programs: &[Program]) -> Vec<Program> {
        let mut missing = programs.to_vec();
        missing.retain(|(name, _)| !self.program(name).is_file());
        missing
    }

    /// Whether nothing is to be made for these.
    fn has(&self, programs: &[Program]) -> bool {
        let has_kwok = programs.iter().any(|(name, _)| *name == "kwok");
        self.missing(programs).is_empty() && (!has_kwok || self.stages_directory().is_dir())
    }
}

/// Builds the missing programs and returns their locations.
///
/// The first time takes minutes and prints that; afterwards it takes milliseconds. Each program is built under a
/// temporary name and renamed, so that an interrupted build does no harm, and a lock keeps two builds apart.
///
/// # Errors
/// When Go is missing or a build fails; when `KUBEBUILDER_ASSETS` is set and lacks a program.
pub fn ensure() -> Result<ControlPlane> {
    ensure_these(&PROGRAMS)
}

/// As [`ensure()`] for `make demo`, which needs no kubectl unless `KEEP=1` lets its user look around afterwards. Where none is
/// built yet, it builds programs of its own, which takes less time: the tests would be slower with them.
///
/// # Errors
/// As [`ensure()`].
pub fn ensure_for_demo() -> Result<ControlPlane> {
    let keeps = env::var_os("KEEP").is_some_and(|keep| keep == "1");
    let mut programs = PROGRAMS.to_vec();
    programs.retain(|(name, _)| keeps || *name != "kubectl");
    ensure_for(&programs, Use::Demo)
}

/// What programs are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Tests,
    Demo,
}

/// As [`ensure()`], with the programs of a real node.
///
/// # Errors
/// As [`ensure()`].
pub fn ensure_with_node() -> Result<ControlPlane> {
    ensure_these(&PROGRAMS)?;
    ensure_these(&NODE_PROGRAMS)
}

fn ensure_these(programs: &[Program]) -> Result<ControlPlane> {
    ensure_for(programs, Use::Tests)
}

fn ensure_for(programs: &[Program], purpose: Use) -> Result<ControlPlane> {
    let module = module();
    let cache = cache_root()?.join(format!("control-plane-{}", fingerprint(&module)?));
    let assets = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    if let Some(assets) = &assets {
        for name in KUBEBUILDER_PROGRAMS {
            let program = assets.join(name);
            ensure!(
                program.is_file(),
                "KUBEBUILDER_ASSETS is set, but there is no {}",
                program.display()
            );
        }
    }
    // First, as it reports whether such a minor exists.
    let minor = Minor::chosen()?.map(|minor| minor.ensure()).transpose()?;
    let mut control_plane = ControlPlane {
        cache,
        assets,
        minor,
    };
    if control_plane.has(programs) {
        return Ok(control_plane);
    }
    if purpose == Use::Demo {
        control_plane.cache.set_extension("demo");
        if control_plane.has(programs) {
            return Ok(control_plane);
        }
    }
    let cache = &control_plane.cache;
    fs::create_dir_all(cache).with_context(|| format!("making {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).context("making the lock of the cache")?;
    if lock.try_lock().is_err() {
        say("control plane: another process builds it, waiting");
        lock.lock().context("waiting for the lock of the cache")?;
    }
    build(&module, &control_plane, programs, purpose)?;
    Ok(control_plane)
}

/// The Go module that pins the programs.
#[must_use]
pub fn module() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-plane")
}

fn build(
    module: &Path,
    control_plane: &ControlPlane,
    programs: &[Program],
    purpose: Use,
) -> Result<()> {
    let missing = control_plane.missing(programs);
    let cache = &control_plane.cache;
    let started = Instant::now();
    if missing
        .iter()
        .any(|(name, _)| *name == "kube-controller-manager")
    {
        let long = match purpose {
            Use::Demo => "five minutes and more",
            Use::Tests => "eight to fifteen minutes",
        };
        say(&format!(
            "control plane: {long} on two cores, this time only"
        ));
    }
    if !missing.is_empty() {
        Build {
            is_quick: purpose == Use::Demo,
            ..Build::new("control plane", module, cache)
        }
        .compile(&missing)?;
    }
    if !control_plane.has(programs) {
        copy_stages(module, cache)?;
    }
    say(&format!(
        "control plane: ready after {} s",
        started.elapsed().as_secs()
    ));
    Ok(())
}

fn copy_stages(module: &Path, cache: &Path) -> Result<()> {
    let listed = go(module)
        .args(["list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"])
        .output()
        .map_err(go_missing)?;
    let kwok = PathBuf::from(String::from_utf8_lossy(&listed.stdout).trim());
    ensure!(
        listed.status.success() && kwok.is_dir(),
        "go list does not find the module of kwok"
    );
    let unfinished = cache.join("stages.unfinished");
    fs::create_dir_all(&unfinished)?;
    for stage in STAGES {
        for file in yaml_files(&kwok.join("kustomize/stage").join(stage))? {
            let name = file.file_name().unwrap_or_default();
            if name != "kustomization.yaml" {
                // Not `fs::copy`: the module cache is read-only, and the copy would be too.
                fs::write(unfinished.join(name), fs::read(&file)?)?;
            }
        }
    }
    fs::rename(&unfinished, cache.join("stages")).context("keeping the stages of kwok")
}

fn yaml_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in
        fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?
    {
        files.push(entry?.path());
    }
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "yaml")
    });
    files.sort();
    Ok(files)
}

/// Names the cache by all inputs of the build.
fn fingerprint(module: &Path) -> Result<String> {
    fingerprint_of(
        module,
        &["go.mod", "go.sum"],
        &format!("{PROGRAMS:?}{STAGES:?}"),
    )
}
