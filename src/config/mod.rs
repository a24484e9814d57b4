//! The config file: who issues, who may ask for what, and how carefully things are done.
//!
//! [`Config::load`] checks the file whole and names every fault with its line and path; nothing is half in force.
//! A [`Config`] never changes: a new version of the file makes a new one.

mod allow;
mod faults;
mod issuer;
mod reader;
mod selector;
mod solver;
mod tree;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

pub use allow::{Allow, Glob, NamePattern, NotAPattern};
pub use faults::{Fault, Faults};
pub use issuer::{Chain, Eab, Issuer, SecretKey};
pub use selector::LabelSelector;
pub use solver::{Route, Solver, SolverKind};

use crate::schedule::budget::Backoff;
use crate::schedule::window::ChangeWindow;
use crate::secret::settings::{DEFAULT_CLASS, IssuerRef, NamespaceDefaults, RenewBefore};
use crate::secret::values::is_label;
use crate::secret::workload::RolloutMode;
use reader::Place;

/// A config file of this size was not written by hand; a ConfigMap holds no more.
const MAX_FILE: u64 = 1024 * 1024;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which Secrets are meant, where several installations share a cluster.
    pub class: String,
    /// By name.
    pub issuers: BTreeMap<String, Issuer>,
    /// How names are proven; the longest matching zone wins.
    pub solvers: Vec<Solver>,
    /// How rollouts are paced.
    pub rollout: RolloutConfig,
    /// Name servers for self-checks; empty means the system's.
    pub nameservers: Vec<String>,
    /// What is watched.
    pub watch: Watch,
    /// What `/metrics` tells.
    pub metrics: MetricsConfig,
    /// Delays after failures.
    pub retry: Backoff,
    everywhere: NamespaceDefaults,
    namespaces: BTreeMap<String, NamespaceDefaults>,
}

/// How rollouts are paced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutConfig {
    /// Workloads that roll at the same time, in all namespaces together.
    pub concurrency: usize,
    /// The same in one namespace.
    pub per_namespace: usize,
    /// A workload is not rolled twice within this time.
    pub per_workload_min_interval: Duration,
    /// How long a new leaf waits, so that one restart may serve several Secrets.
    pub settle: Duration,
    /// How many workloads go first and alone.
    pub canary_workloads: usize,
    /// Time without any progress after which a rollout has failed.
    pub progress_timeout: Duration,
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Only these namespaces; empty means all.
    pub namespaces: Vec<String>,
    /// How Secrets come in.
    pub select: Select,
    /// Which Secrets have expiry metrics.
    pub observe: Observe,
}

/// How Secrets come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// Those of type `kubernetes.io/tls`, and others with the label.
    Type,
    /// Those with the label only: no other Secret crosses the wire.
    Label,
}

/// Which Secrets have expiry metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observe {
    /// Annotated ones.
    Annotated,
    /// All TLS Secrets.
    All,
}

/// What `/metrics` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    /// A series for each certificate.
    pub per_certificate: bool,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(file: &Path) -> Result<Self, Faults> {
        let named = |mut faults: Faults| {
            faults.file = Some(file.to_owned());
            faults
        };
        let size = std::fs::metadata(file).map(|metadata| metadata.len());
        if size.is_ok_and(|size| size > MAX_FILE) {
            return Err(named(Faults::whole(
                format!("expected at most {MAX_FILE} bytes"),
                None,
            )));
        }
        let text = std::fs::read_to_string(file).map_err(|error| {
            named(Faults::whole(
                format!("expected a readable file: {error}"),
                None,
            ))
        })?;
        Self::parse(&text).map_err(named)
    }

    /// Checks the text of a file.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Faults> {
        let tree = tree::parse(text).map_err(|error| {
            let line = error.location().map(|at| at.line());
            // The parser's own text quotes the file, which may hold what nobody should have put there.
            Faults::whole("expected YAML".into(), line)
        })?;
        let faults = RefCell::default();
        let config = read(&Place::root(&tree, &faults));
        let list = faults.into_inner();
        if list.is_empty() {
            Ok(config)
        } else {
            Err(Faults { file: None, list })
        }
    }

    /// An issuer by name.
    #[must_use]
    pub fn issuer(&self, name: &str) -> Option<&Issuer> {
        self.issuers.get(name)
    }

    /// What a namespace's Secrets get where they say nothing.
    #[must_use]
    pub fn namespace(&self, name: &str) -> &NamespaceDefaults {
        self.namespaces.get(name).unwrap_or(&self.everywhere)
    }

    /// What is allowed but hardly meant.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.issuers.is_empty() {
            warnings.push(
                "there is no issuer: Secrets with issuer: external are rolled, nothing is renewed"
                    .into(),
            );
        }
        for (name, issuer) in &self.issuers {
            if issuer.allow.is_empty() {
                warnings.push(format!("issuers.{name} has no allow: it issues for nobody"));
            }
            if issuer.allow.iter().any(|rule| rule.selector.is_some()) {
                warnings.push(format!(
                    "issuers.{name}.allow: namespaceSelector is not evaluated in this version and grants nothing"
                ));
            }
        }
        warnings
    }
}

fn read(root: &Place<'_>) -> Config {
    root.fields(|fields| {
        let issuers = issuer::read_all(&fields.get("issuers"));
        let (everywhere, namespaces) = defaults(&fields.get("defaults"), &issuers);
        Config {
            class: fields
                .get("class")
                .parse(class)
                .unwrap_or_else(|| DEFAULT_CLASS.into()),
            solvers: fields.get("solvers").list(|item| Some(Solver::read(item))),
            rollout: rollout(&fields.get("rollout")),
            nameservers: fields.get("dns").fields(|dns| {
                dns.get("nameservers")
                    .list(|item| item.parse(solver::nameserver))
            }),
            watch: watch(&fields.get("watch")),
            metrics: fields.get("metrics").fields(|metrics| MetricsConfig {
                per_certificate: metrics.get("perCertificate").flag(true),
            }),
            retry: retry(&fields.get("retry")),
            issuers,
            everywhere,
            namespaces,
        }
    })
}

fn class(text: &str) -> Result<String, &'static str> {
    if is_label(text) {
        Ok(text.to_owned())
    } else {
        Err("expected at most 63 lower-case letters, digits and '-'")
    }
}

fn defaults(
    place: &Place<'_>,
    issuers: &BTreeMap<String, Issuer>,
) -> (NamespaceDefaults, BTreeMap<String, NamespaceDefaults>) {
    place.fields(|fields| {
        let one = |fields: &reader::Fields<'_, '_>, base: &NamespaceDefaults| {
            let issuer = fields.get("issuer");
            let named = issuer.parse(IssuerRef::from_str);
            if let Some(IssuerRef::Named(name)) = &named
                && !issuers.contains_key(&**name)
            {
                issuer.fault("expected an issuer of this file or external");
            }
            NamespaceDefaults {
                issuer: named.or_else(|| base.issuer.clone()),
                renew_before: fields
                    .get("renewBefore")
                    .parse(RenewBefore::from_str)
                    .or(base.renew_before),
                change_window: fields
                    .get("changeWindow")
                    .parse(ChangeWindow::from_str)
                    .or_else(|| base.change_window.clone()),
                rollout: fields
                    .get("rollout")
                    .parse(RolloutMode::from_str)
                    .or_else(|| base.rollout.clone()),
            }
        };
        let everywhere = one(fields, &NamespaceDefaults::default());
        let namespaces = fields
            .get("namespaces")
            .entries()
            .into_iter()
            .map(|(name, place)| {
                let defaults = place.fields(|fields| one(fields, &everywhere));
                (name.to_owned(), defaults)
            })
            .collect();
        (everywhere, namespaces)
    })
}

fn rollout(place: &Place<'_>) -> RolloutConfig {
    let count = |place: Place<'_>, range, default| {
        usize::try_from(place.count(range, default)).unwrap_or(usize::MAX)
    };
    place.fields(|fields| RolloutConfig {
        concurrency: count(fields.get("concurrency"), 1..=10_000, 8),
        per_namespace: count(fields.get("perNamespace"), 1..=10_000, 2),
        per_workload_min_interval: fields
            .get("perWorkloadMinInterval")
            .duration(Duration::ZERO..=DAY, 5 * MINUTE),
        settle: fields
            .get("settle")
            .duration(Duration::ZERO..=DAY, 10 * SECOND),
        canary_workloads: count(fields.get("canaryWorkloads"), 0..=10_000, 1),
        progress_timeout: fields
            .get("progressTimeout")
            .duration(SECOND..=DAY, 10 * MINUTE),
    })
}

fn watch(place: &Place<'_>) -> Watch {
    place.fields(|fields| Watch {
        namespaces: fields.get("namespaces").list(|item| item.parse(class)),
        select: fields.get("select").choice(
            &[("type", Select::Type), ("label", Select::Label)],
            Select::Type,
        ),
        observe: fields.get("observe").choice(
            &[("annotated", Observe::Annotated), ("all", Observe::All)],
            Observe::Annotated,
        ),
    })
}

fn retry(place: &Place<'_>) -> Backoff {
    place.fields(|fields| Backoff {
        base: fields.get("base").duration(SECOND..=DAY, MINUTE),
        factor: fields.get("factor").count(1..=100, 10),
        max: fields.get("max").duration(SECOND..=30 * DAY, DAY),
    })
}
