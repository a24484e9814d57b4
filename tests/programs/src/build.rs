//! How programs are built from a Go module into a directory of the cache.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

/// A program and its package.
pub type Program = (&'static str, &'static str);

/// Without the version stamp the API server calls itself `v0.0.0-master+$Format:%H$`, which kubectl cannot parse.
const LDFLAGS: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37";
/// No debug information, which the linker leaves out anyhow (`-w`).
const GCFLAGS: &str = "all=-dwarf=false";
/// Without inlining too, which takes a fifth off the compiler's time; the programs are slower.
const QUICK_GCFLAGS: &str = "all=-dwarf=false -l";
/// Its compiler collects garbage less often, which takes a sixth off its time, and uses up to three gigabytes for it.
const GARBAGE: [(&str, &str); 2] = [("GOGC", "400"), ("GOMEMLIMIT", "3GiB")];
/// How often a build says that it goes on.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Time between two looks at it.
const LOOK: Duration = Duration::from_millis(100);

/// A module whose programs are built.
#[derive(Debug)]
pub struct Build<'a> {
    /// Its name in progress messages.
    pub what: &'a str,
    /// Its directory.
    pub module: &'a Path,
    /// Where the programs are kept.
    pub cache: &'a Path,
    /// Flags of the linker.
    pub ldflags: &'a str,
    /// Used in place of the module's own go.mod.
    pub modfile: Option<&'a Path>,
    /// Built in less time, to run for seconds.
    pub is_quick: bool,
}

impl<'a> Build<'a> {
    /// One with the version stamp of the pinned Kubernetes.
    #[must_use]
    pub fn new(what: &'a str, module: &'a Path, cache: &'a Path) -> Self {
        Self {
            what,
            module,
            cache,
            ldflags: LDFLAGS,
            modfile: None,
            is_quick: false,
        }
    }

    /// Builds the missing programs, under a lock; calls `prepare` before, if any are missing.
    ///
    /// # Errors
    /// When Go is missing, or a build fails.
    pub fn ensure(&self, programs: &[Program], prepare: impl FnOnce() -> Result<()>) -> Result<()> {
        let Self { cache, .. } = self;
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
        prepare()?;
        self.compile(&missing)
    }

    /// Builds programs, all at once, so that one is linked while another is compiled; the caller holds the lock of the
    /// directory. Each is put in its place when all are there: an interrupted build does no harm.
    pub(crate) fn compile(&self, programs: &[Program]) -> Result<()> {
        let Self {
            what,
            module,
            cache,
            ldflags,
            modfile,
            is_quick,
        } = self;
        self.sweep()?;
        let names: Vec<&str> = programs.iter().map(|(name, _)| *name).collect();
        say(&format!(
            "{what}: building {} from source with Go, which is kept in {}",
            names.join(", "),
            cache.display()
        ));
        // The process id, because the `go build` of a killed process may still be writing.
        let unfinished = cache.join(format!("{}.unfinished", std::process::id()));
        fs::create_dir_all(&unfinished)?;
        let mut command = go(module);
        command.envs(GARBAGE);
        command.args([
            "build",
            "-trimpath",
            "-gcflags",
            if *is_quick { QUICK_GCFLAGS } else { GCFLAGS },
            "-ldflags",
            ldflags,
        ]);
        if let Some(modfile) = modfile {
            command.arg("-modfile").arg(modfile);
        }
        // With a slash at its end it is a directory to Go.
        command.arg("-o").arg(unfinished.join(""));
        command.args(programs.iter().map(|(_, package)| package));
        let status = self.wait(command)?;
        ensure!(
            status.success(),
            "go build failed ({status}); its output stands above"
        );
        for (name, package) in programs {
            fs::rename(unfinished.join(name_by_go(package)), cache.join(name))
                .with_context(|| format!("keeping {name}"))?;
        }
        Ok(fs::remove_dir(&unfinished)?)
    }

    /// Runs a command to its end, and says now and then that it runs.
    fn wait(&self, mut command: Command) -> Result<ExitStatus> {
        let mut child = command.spawn().map_err(go_missing)?;
        let (started, mut said) = (Instant::now(), Instant::now());
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if said.elapsed() >= SAY_AGAIN {
                said = Instant::now();
                let minutes = started.elapsed().as_secs() / 60;
                say(&format!("{}: still building, {minutes} min", self.what));
            }
            thread::sleep(LOOK);
        }
    }

    /// Removes what an interrupted build has left.
    fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(self.cache)? {
            let left_over = entry?.path();
            if left_over
                .extension()
                .is_none_or(|extension| extension != "unfinished")
            {
                continue;
            }
            let removed = match left_over.is_dir() {
                true => fs::remove_dir_all(&left_over),
                false => fs::remove_file(&left_over),
            };
            removed.with_context(|| format!("removing {}", left_over.display()))?;
        }
        Ok(())
    }
}

/// What Go calls the program of a package: the last part of its path that is no major version.
fn name_by_go(package: &str) -> &str {
    let is_version = |part: &&str| {
        part.strip_prefix('v').is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|it| it.is_ascii_digit())
        })
    };
    let mut parts = package.rsplit('/').skip_while(is_version);
    parts.next().unwrap_or(package)
}

/// A `go` in a module.
#[must_use]
pub fn go(module: &Path) -> Command {
    let mut go = Command::new("go");
    // A vendor directory or a workspace around the repository must not change what is built.
    go.arg("-C")
        .arg(module)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly")
        .env("GOWORK", "off");
    go
}

/// Why `go` did not start.
#[must_use]
pub fn go_missing(error: io::Error) -> anyhow::Error {
    let hint = "the test bench builds its control plane with Go 1.26 or later: see CONTRIBUTING.md";
    anyhow::Error::new(error).context(format!("running `go`: {hint}"))
}

/// The directory that holds all that is built and fetched for tests.
///
/// # Errors
/// When no variable names one.
pub fn cache_root() -> Result<PathBuf> {
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

/// Names the programs of a module by all inputs of their build: these files of it, and `programs` in words.
///
/// # Errors
/// When a file cannot be read.
pub fn fingerprint_of(module: &Path, files: &[&str], programs: &str) -> Result<String> {
    let mut hash = Sha256::new();
    for file in files {
        let file = module.join(file);
        hash.update(fs::read(&file).with_context(|| format!("reading {}", file.display()))?);
    }
    hash.update(LDFLAGS);
    hash.update(programs);
    Ok(hash
        .finalize()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_names_a_program_by_its_package() {
        for (package, name) in [
            ("go.etcd.io/etcd/server/v3", "server"),
            ("k8s.io/kubernetes/cmd/kubectl", "kubectl"),
            ("github.com/traefik/traefik/v3/cmd/traefik", "traefik"),
            ("example.com/vault", "vault"),
            ("./eab", "eab"),
            ("flux", "flux"),
        ] {
            assert_eq!(name_by_go(package), name, "{package}");
        }
    }
}
