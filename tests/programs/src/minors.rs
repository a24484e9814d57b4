//! Minors of Kubernetes other than the pinned one, for `make versions`: API server, controllers and scheduler, each
//! built from a module of its own beside that of the control plane, `tests/control-plane/1.33` for example.
//!
//! etcd, kwok and kubectl stay the pinned ones: they work with every supported minor.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::build::{Build, Program, cache_root, fingerprint_of};
use crate::module;

/// Names the minor that a bench runs instead of the pinned one, for example `1.33`.
pub const KUBERNETES: &str = "CERT_RENEW_KUBERNETES";

/// The quickest first, so that a mistake shows early; most of their code is the same.
pub(crate) const PROGRAMS: [Program; 3] = [
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    (
        "kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
    ),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
];

/// A minor that has a module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Minor {
    /// For example `1.33`.
    pub name: String,
    /// For example `1.33.13`.
    pub version: String,
}

impl Minor {
    /// All minors, the oldest first.
    ///
    /// # Errors
    /// When the modules cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(module())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("1.") {
                all.push(Self::named(&name)?);
            }
        }
        all.sort();
        Ok(all)
    }

    /// The minor that the environment names.
    ///
    /// # Errors
    /// When there is no such minor.
    pub fn chosen() -> Result<Option<Self>> {
        let name = env::var(KUBERNETES).ok().filter(|name| !name.is_empty());
        name.map(|name| Self::named(&name).with_context(|| format!("{KUBERNETES}={name}")))
            .transpose()
    }

    fn named(name: &str) -> Result<Self> {
        let file = place(name).join("go.mod");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let version = text
            .lines()
            .find_map(|line| line.trim().split_once("k8s.io/kubernetes v"))
            .and_then(|(_, version)| version.split_whitespace().next())
            .with_context(|| format!("{} names no version", file.display()))?;
        Ok(Self {
            name: name.to_owned(),
            version: version.to_owned(),
        })
    }

    /// Builds the missing programs and returns their directory.
    ///
    /// # Errors
    /// When Go is missing or a build fails.
    pub fn ensure(&self) -> Result<PathBuf> {
        let Self { name, version } = self;
        let module = place(name);
        let fingerprint = fingerprint_of(&module, &["go.mod", "go.sum"], &format!("{PROGRAMS:?}"))?;
        let cache = cache_root()?.join(format!("kubernetes-{version}-{fingerprint}"));
        let (major, minor) = name.split_once('.').unwrap_or((name, ""));
        let ldflags = format!(
            "-s -w -X k8s.io/component-base/version.gitVersion=v{version} \
             -X k8s.io/component-base/version.gitMajor={major} -X k8s.io/component-base/version.gitMinor={minor}"
        );
        let what = format!("Kubernetes {version}");
        let mut build = Build::new(&what, &module, &cache);
        build.ldflags = &ldflags;
        build.ensure(&PROGRAMS, || Ok(()))?;
        Ok(cache)
    }
}

fn place(name: &str) -> PathBuf {
    module().join(name)
}
