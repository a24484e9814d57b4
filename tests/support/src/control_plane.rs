//! The Go programs of the bench: built once from the modules pinned in `tests/control-plane/go.mod`, kept in a cache
//! outside the repository.
//!
//! Inputs: the two files of that module, the Go toolchain, `CERT_RENEW_BENCH_CACHE`, `XDG_CACHE_HOME`,
//! `KUBEBUILDER_ASSETS` and `CERT_RENEW_KUBERNETES`. Downloads only Go modules, and writes nothing into the repository.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use aws_lc_rs::digest;

use crate::minors::{self, Minor};

/// Each program and its package, the quickest first so that a mistake shows early.
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

/// A program and its package.
pub(crate) type Program = (&'static str, &'static str);

/// What `KUBEBUILDER_ASSETS` holds by the convention of envtest.
const KUBEBUILDER_PROGRAMS: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];

/// Without the version stamp the API server calls itself `v0.0.0-master+$Format:%H$`, which kubectl cannot parse.
const LDFLAGS: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37";

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
        match (&self.minor, &self.assets) {
            (Some(minor), _) if minors::PROGRAMS.iter().any(|it| it.0 == name) => minor.join(name),
            (_, Some(assets)) if KUBEBUILDER_PROGRAMS.contains(&name) => assets.join(name),
            _ => self.cache.join(name),
        }
    }

    /// The stage files of kwok.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub(crate) fn stages(&self) -> Result<Vec<PathBuf>> {
        yaml_files(&self.cache.join("stages"))
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

/// As [`ensure()`], with the programs of a real node.
///
/// # Errors
/// As [`ensure()`].
pub fn ensure_with_node() -> Result<ControlPlane> {
    ensure_these(&PROGRAMS)?;
    ensure_these(&NODE_PROGRAMS)
}

fn ensure_these(programs: &[Program]) -> Result<ControlPlane> {
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
    let control_plane = ControlPlane {
        cache,
        assets,
        minor,
    };
    if missing(&control_plane, programs).is_empty() {
        return Ok(control_plane);
    }
    let cache = &control_plane.cache;
    fs::create_dir_all(cache).with_context(|| format!("making {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).context("making the lock of the cache")?;
    if lock.try_lock().is_err() {
        say("control plane: another process builds it, waiting");
        lock.lock().context("waiting for the lock of the cache")?;
    }
    build(&module, &control_plane, programs)?;
    Ok(control_plane)
}

/// The Go module that pins the programs.
pub(crate) fn module() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-plane")
}

fn build(module: &Path, control_plane: &ControlPlane, programs: &[Program]) -> Result<()> {
    let missing = missing(control_plane, programs);
    if missing.is_empty() {
        return Ok(());
    }
    let cache = &control_plane.cache;
    say(&format!(
        "control plane: building {} Go programs into {}; the first time takes minutes",
        missing.len(),
        cache.display()
    ));
    let started = Instant::now();
    Build::new("control plane", module, cache).compile(&missing)?;
    if missing.iter().any(|(name, _)| *name == "kwok") {
        copy_stages(module, cache)?;
    }
    say(&format!(
        "control plane: ready after {} s",
        started.elapsed().as_secs()
    ));
    Ok(())
}

/// How programs are built from a Go module into a directory of the cache.
pub(crate) struct Build<'a> {
    /// Its name in progress messages.
    pub(crate) what: &'a str,
    pub(crate) module: &'a Path,
    pub(crate) cache: &'a Path,
    pub(crate) ldflags: &'a str,
    /// Used in place of the module's own go.mod.
    pub(crate) modfile: Option<&'a Path>,
}

impl<'a> Build<'a> {
    pub(crate) fn new(what: &'a str, module: &'a Path, cache: &'a Path) -> Self {
        Self {
            what,
            module,
            cache,
            ldflags: LDFLAGS,
            modfile: None,
        }
    }

    /// Builds the missing programs, under a lock; calls `prepare` before, if any are missing.
    pub(crate) fn ensure(
        &self,
        programs: &[Program],
        prepare: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let Self { what, cache, .. } = self;
        let missing = || {
            let mut missing = programs.to_vec();
            missing.retain(|(name, _)| !cache.join(name).is_file());
            missing
        };
        if missing().is_empty() {
            return Ok(());
        }
        fs::create_dir_all(cache).with_context(|| format!("making {}", cache.display()))?;
        let lock = File::create(cache.join("lock")).context("making the lock of the cache")?;
        lock.lock().context("waiting for the lock of the cache")?;
        let missing = missing();
        if missing.is_empty() {
            return Ok(());
        }
        say(&format!(
            "{what}: building {} Go programs into {}; the first time takes minutes",
            missing.len(),
            cache.display()
        ));
        prepare()?;
        self.compile(&missing)
    }

    /// Builds programs; the caller holds the lock of the directory.
    fn compile(&self, programs: &[Program]) -> Result<()> {
        let Self {
            what,
            module,
            cache,
            ldflags,
            modfile,
        } = self;
        for entry in fs::read_dir(cache)? {
            let left_over = entry?.path();
            if left_over.is_file()
                && left_over
                    .extension()
                    .is_some_and(|extension| extension == "unfinished")
            {
                fs::remove_file(&left_over)
                    .with_context(|| format!("removing {}", left_over.display()))?;
            }
        }
        for (i, (name, package)) in programs.iter().enumerate() {
            // The process id, because the `go build` of a killed process may still be writing.
            let unfinished = cache.join(format!("{name}.{}.unfinished", std::process::id()));
            let of = format!("{} of {}", i + 1, programs.len());
            say(&format!("{what}: {of}: {name} …"));
            let built = Instant::now();
            let mut command = go(module);
            command.args(["build", "-trimpath", "-ldflags", ldflags]);
            if let Some(modfile) = modfile {
                command.arg("-modfile").arg(modfile);
            }
            command.arg("-o").arg(&unfinished).arg(package);
            let status = command.status().map_err(go_missing)?;
            ensure!(
                status.success(),
                "go build {package} failed ({status}); its output stands above"
            );
            fs::rename(&unfinished, cache.join(name)).with_context(|| format!("keeping {name}"))?;
            say(&format!(
                "{what}: {of}: {name} built in {} s",
                built.elapsed().as_secs()
            ));
        }
        Ok(())
    }
}

fn missing(control_plane: &ControlPlane, programs: &[Program]) -> Vec<Program> {
    // The stages come with kwok, and last: after an interruption kwok is built again (from Go's own cache).
    let stages = control_plane.cache.join("stages").is_dir();
    let is_there = |name: &str| control_plane.program(name).is_file() && (name != "kwok" || stages);
    let mut missing = programs.to_vec();
    missing.retain(|(name, _)| !is_there(name));
    missing
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

pub(crate) fn go(module: &Path) -> Command {
    let mut go = Command::new("go");
    // A vendor directory or a workspace around the repository must not change what is built.
    go.arg("-C")
        .arg(module)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly")
        .env("GOWORK", "off");
    go
}

pub(crate) fn go_missing(error: io::Error) -> anyhow::Error {
    let hint = "the test bench builds its control plane with Go 1.26 or later: see CONTRIBUTING.md";
    anyhow::Error::new(error).context(format!("running `go`: {hint}"))
}

pub(crate) fn cache_root() -> Result<PathBuf> {
    if let Some(cache) = env::var_os("CERT_RENEW_BENCH_CACHE") {
        return Ok(cache.into());
    }
    let cache = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => PathBuf::from(home).join(".cache"),
        (None, None) => {
            bail!("none of CERT_RENEW_BENCH_CACHE, XDG_CACHE_HOME and HOME says where to build")
        }
    };
    Ok(cache.join("cert-renew"))
}

/// Names the cache by all inputs of the build.
fn fingerprint(module: &Path) -> Result<String> {
    fingerprint_of(
        module,
        &["go.mod", "go.sum"],
        &format!("{PROGRAMS:?}{STAGES:?}"),
    )
}

/// The same for other files and programs.
pub(crate) fn fingerprint_of(module: &Path, files: &[&str], programs: &str) -> Result<String> {
    let mut context = digest::Context::new(&digest::SHA256);
    for file in files {
        let file = module.join(file);
        context.update(&fs::read(&file).with_context(|| format!("reading {}", file.display()))?);
    }
    context.update(LDFLAGS.as_bytes());
    context.update(programs.as_bytes());
    let hash = context.finish();
    Ok(hash
        .as_ref()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Straight to standard error: the test harness would swallow `eprintln`, and minutes of silence look like a hang.
pub(crate) fn say(line: &str) {
    // A closed standard error is no reason to fail.
    let _ = writeln!(io::stderr(), "{line}");
}
