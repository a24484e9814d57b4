//! The config file: who issues, for whom, and how the operator behaves.
//!
//! One YAML file is read and checked as a whole, before anything starts and whenever it changes; a version with any
//! fault is refused, with every fault named. A [`Config`] never changes; a new version is a new one. Nothing here talks
//! to a CA or a cluster: whether a named Secret or file exists shows when it is used.

mod allow;
mod faults;
mod issuer;
mod operation;
mod provider;
mod reader;
mod resolver;
mod selector;
mod solver;
mod tree;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

pub use allow::{Allow, Glob, Labels, NamePattern, NotAPattern};
pub use faults::{Fault, Faults};
pub use issuer::{EabConfig, Issuer, PreferredChain, SecretKey, Staging};
pub use operation::{
    Access, DnsConfig, MetricsConfig, Observe, RenewalConfig, RolloutConfig, RoutesConfig, Select,
    Unseen, WatchConfig,
};
pub use provider::{SUPPORTED_PROVIDERS, UNTESTED_PROVIDERS};
use reader::KeyPath;
pub use resolver::{ResolverAddress, ResolverHost, Resolvers};
pub use solver::{
    Challenge, Dns01, DnsPersist01, Http01, ParentRef, PathType, Propagation, Route, Solver,
};

use crate::schedule::rate_limits::Backoff;
use crate::secret::parts::Parts;
use crate::secret::settings::values::is_label;
use crate::secret::settings::{DEFAULT_CLASS, IssuerRef, NamespaceDefaults, RenewBefore};
use crate::secret::workload::RolloutMode;
use crate::text::hash::hash;
use crate::text::name::Name;
use crate::text::{holds_private_key, shown};
use crate::time::change_window::ChangeWindow;

/// A config file without faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this installation; Secrets of other classes are ignored.
    pub class: String,
    /// By name, as annotations use it.
    pub issuers: BTreeMap<String, Issuer>,
    /// See [`Config::solver`].
    pub solvers: Vec<Solver>,
    /// Back-off after failures.
    pub retry: Backoff,
    /// How renewals are spread.
    pub renewals: RenewalConfig,
    /// How workloads are rolled.
    pub rollout: RolloutConfig,
    /// Which DNS servers are asked.
    pub dns: DnsConfig,
    /// What is watched.
    pub watch: WatchConfig,
    /// How routes that declare certificates are followed.
    pub routes: RoutesConfig,
    /// What is exported.
    pub metrics: MetricsConfig,
    /// Every Secret is treated as if it said `paused`: nothing is issued, written or rolled.
    pub paused: bool,
    /// Defaults of namespaces that are not in `namespaces`.
    defaults: NamespaceDefaults,
    /// By namespace, with the general defaults filled in.
    namespaces: BTreeMap<String, NamespaceDefaults>,
}

impl Config {
    /// Whether an issuer is meant to give certificates that clients trust, by the config: it has a staging CA of its
    /// own to rehearse at. A certificate from a staging CA is a mistake from such an issuer; from any other it is what
    /// was asked for.
    #[must_use]
    pub fn is_production(&self, issuer: &str) -> bool {
        self.issuer(issuer).is_some_and(|it| it.staging.is_some())
    }

    /// Issuers, solvers and DNS, hashed: a change means that a failed renewal may now succeed.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let Self {
            issuers,
            solvers,
            dns,
            ..
        } = self;
        hash(&format!("{issuers:?}{solvers:?}{dns:?}"))
    }

    /// Checks the text of a config file.
    ///
    /// # Errors
    /// When it is not YAML or has faults; the error contains all of them.
    pub fn parse(text: &str) -> Result<Self, Faults> {
        let node = tree::parse(text).map_err(|error| {
            let line = error
                .location()
                .map(|location| location.line())
                .filter(|line| *line > 0);
            let expected = match error.without_snippet() {
                serde_saphyr::Error::MultipleDocuments { .. } => {
                    "one document, here begins another".to_string()
                }
                serde_saphyr::Error::DuplicateMappingKey { key, .. } => {
                    format!(
                        "each key once, found {} again",
                        shown(key.as_deref().unwrap_or_default())
                    )
                }
                error => {
                    // A message may quote the file, which may hold a secret by mistake.
                    let error = error.to_string().replace('\n', " ");
                    if holds_private_key(text) {
                        "YAML".to_string()
                    } else {
                        format!("YAML: {error}")
                    }
                }
            };
            Faults::whole(format!("expected {expected}"), line)
        })?;
        let faults = RefCell::default();
        let root = KeyPath::root(&node, &faults);
        if ["apiVersion", "kind"]
            .iter()
            .all(|key| !root.child(key).is_absent())
        {
            let expected = "expected a config, found a manifest of Kubernetes: the config is the text that a ConfigMap \
                            has under data, in config.yaml";
            return Err(Faults::whole(expected.into(), None));
        }
        let config = Self::read(&root);
        let mut list: Vec<Fault> = faults.into_inner();
        if list.is_empty() {
            return Ok(config);
        }
        list.sort_by_key(|fault| fault.line);
        Err(Faults { file: None, list })
    }

    fn read(place: &KeyPath<'_>) -> Self {
        place.fields(|fields| {
            let place = fields.required("issuers");
            let entries =
                place.entries_such_as(" by name, such as letsencrypt: {directory: https://…}");
            let known: BTreeSet<&str> = entries.iter().map(|(name, _)| *name).collect();
            let mut issuers = BTreeMap::new();
            for (name, place) in &entries {
                match name.parse() {
                    Ok(IssuerRef::Named(_)) => {}
                    Ok(IssuerRef::External) => {
                        place.fault_unseen("reserved for Secrets that somebody else renews");
                    }
                    Err(_) => place.fault_unseen(
                        "expected a name of at most 63 lower-case letters, digits and '-'",
                    ),
                }
                issuers.insert((*name).to_string(), Issuer::read(place, &known));
            }
            issuer::check_circles(&issuers, &place);
            let (defaults, namespaces) = read_defaults(&fields.get("defaults"), &known);
            Self {
                class: fields
                    .get("class")
                    .parse(label)
                    .unwrap_or_else(|| DEFAULT_CLASS.to_string()),
                issuers,
                solvers: fields.get("solvers").list(Solver::read),
                retry: Backoff::read(&fields.get("retry")),
                renewals: RenewalConfig::read(&fields.get("renewals")),
                rollout: RolloutConfig::read(&fields.get("rollout")),
                dns: DnsConfig::read(&fields.get("dns")),
                watch: WatchConfig::read(&fields.get("watch")),
                routes: RoutesConfig::read(&fields.get("routes")),
                metrics: MetricsConfig::read(&fields.get("metrics")),
                paused: fields.get("paused").flag(false),
                defaults,
                namespaces,
            }
        })
    }

    /// The issuer of this name.
    #[must_use]
    pub fn issuer(&self, name: &str) -> Option<&Issuer> {
        self.issuers.get(name)
    }

    /// Whether an issuer is a staging CA: another one's `staging` names it, or its directory says so.
    #[must_use]
    pub fn is_staging(&self, name: &str) -> bool {
        self.was_staging(name, None)
    }

    /// The same, when the directory of the issuer of this name was another one.
    #[must_use]
    pub fn was_staging(&self, name: &str, directory: Option<&str>) -> bool {
        let now = self.issuer(name).map(|issuer| &*issuer.directory);
        let Some(directory) = directory.or(now) else {
            return false;
        };
        let named = |other: &Issuer| match &other.staging {
            Some(Staging::Issuer(staging)) => staging == name,
            Some(Staging::Directory(staging)) => staging == directory,
            None => false,
        };
        directory.contains("staging") || self.issuers.values().any(named)
    }

    /// The defaults of Secrets in this namespace.
    #[must_use]
    pub fn namespace(&self, namespace: &str) -> &NamespaceDefaults {
        self.namespaces.get(namespace).unwrap_or(&self.defaults)
    }

    /// Whether the labels of namespaces matter, which requires a right to read them.
    #[must_use]
    pub fn needs_namespace_labels(&self) -> bool {
        self.issuers
            .values()
            .any(|issuer| issuer.allow.iter().any(|allow| allow.selector.is_some()))
    }

    /// Which solver answers challenges for `name`: of the capable ones, that with the longest zone; the first of
    /// equals.
    #[must_use]
    pub fn solver(&self, name: &Name) -> Option<&Solver> {
        solver::solver_for(&self.solvers, name)
    }

    /// Which resolvers check the DNS records of `name` before a CA is asked to look: those of its solver, else those of
    /// `dns`.
    #[must_use]
    pub fn resolvers(&self, name: Option<&Name>) -> Resolvers {
        let of_solver = name.and_then(|name| self.solver(name));
        let of_solver = of_solver.map(|solver| &solver.resolvers);
        Resolvers {
            addresses: { of_solver.filter(|it| !it.is_empty()) }
                .unwrap_or(&self.dns.nameservers)
                .clone(),
            ca_bundle: self.dns.ca_bundle.clone(),
        }
    }

    /// Warnings: valid settings that are probably mistakes, a sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.paused {
            warnings.push(
                "paused: nothing is renewed, written or restarted until it is false or gone; metrics and alerts go on"
                    .to_string(),
            );
        }
        if self.issuers.is_empty() {
            warnings.push(
                "issuers: there are none, so that only Secrets of others are watched".to_string(),
            );
        }
        for (name, issuer) in &self.issuers {
            // An issuer that is only a rehearsal uses the rules of the issuer that it serves.
            let rehearsal = |other: &Issuer| other.staging == Some(Staging::Issuer(name.clone()));
            if issuer.allow.is_empty() && !self.issuers.values().any(rehearsal) {
                warnings.push(format!(
                    "issuers.{name}: it has no allow, so that it issues for nobody"
                ));
            }
        }
        for (i, solver) in self.solvers.iter().enumerate() {
            match &solver.challenge {
                Challenge::Dns01(dns01) if dns01.lacks_credentials() => warnings.push(format!(
                    "solvers[{i}]: it has no credentials, and {} takes no request without them",
                    dns01.provider
                )),
                Challenge::Dns01(dns01) if !dns01.is_supported() => {
                    let provider = &dns01.provider;
                    warnings.push(format!(
                        "solvers[{i}]: the DNS provider {provider} is untested"
                    ));
                }
                Challenge::DnsPersist01(_) => warnings.push(format!(
                    "solvers[{i}]: dns-persist-01 is an experiment: its draft still changes"
                )),
                Challenge::Http01(_) | Challenge::Dns01(_) => {}
            }
        }
        if self.watch.observe == Observe::All && self.watch.select == Select::Label {
            warnings.push(
                "watch.observe: with select: label only Secrets with the label are seen, annotated or not"
                    .to_string(),
            );
        }
        warnings
    }

    /// Remarks on what may be meant and may surprise, a sentence each; for people who check a file.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.solvers.is_empty() && !self.issuers.is_empty() {
            notes.push(
                "solvers: there are none: HTTP-01 is used, and the route is not checked before the CA is asked"
                    .to_string(),
            );
        }
        for (name, issuer) in &self.issuers {
            let example = |contact: &&String| {
                let domain = contact.rsplit('@').next().unwrap_or_default();
                ["example.com", "example.net", "example.org"].contains(&domain)
            };
            if let Some(contact) = issuer.contact.iter().find(example) {
                let contact = contact.trim_start_matches("mailto:");
                notes.push(format!(
                    "issuers.{name}.contact: {contact} is the address of an example, which Let's Encrypt refuses: write \
                     yours, or none"
                ));
            }
            let patterns = issuer.allow.iter().flat_map(|allow| &allow.names);
            let unproven = |pattern: &&NamePattern| {
                let wildcard = pattern.wildcard();
                wildcard.is_some_and(|it| !self.solvers.is_empty() && self.solver(&it).is_none())
            };
            if let Some(pattern) = patterns.clone().find(unproven) {
                notes.push(format!(
                    "issuers.{name}.allow: {pattern} allows wildcard certificates too, and no solver can prove a wildcard: \
                     that takes dns01"
                ));
            }
        }
        notes
    }
}

/// The general defaults, and those by namespace with the general ones filled in.
fn read_defaults(
    place: &KeyPath<'_>,
    known: &BTreeSet<&str>,
) -> (NamespaceDefaults, BTreeMap<String, NamespaceDefaults>) {
    let read = |fields: &reader::Fields<'_, '_>, general: &NamespaceDefaults| NamespaceDefaults {
        issuer: fields
            .get("issuer")
            .parse(|text| issuer::issuer_ref(text, known))
            .or_else(|| general.issuer.clone()),
        renew_before: fields
            .get("renewBefore")
            .parse(RenewBefore::from_str)
            .or(general.renew_before),
        change_window: fields
            .get("changeWindow")
            .parse(ChangeWindow::from_str)
            .or_else(|| general.change_window.clone()),
        rollout: fields
            .get("rollout")
            .parse(RolloutMode::from_str)
            .or_else(|| general.rollout.clone()),
        rollout_on: fields
            .get("rolloutOn")
            .parse(Parts::from_str)
            .or(general.rollout_on),
    };
    place.fields(|fields| {
        let general = read(fields, &NamespaceDefaults::default());
        let namespaces = fields
            .get("namespaces")
            .entries()
            .into_iter()
            .map(|(name, place)| {
                if !is_label(name) {
                    place.fault_unseen("expected the name of a namespace");
                }
                (
                    name.to_string(),
                    place.fields(|fields| read(fields, &general)),
                )
            });
        let namespaces = namespaces.collect();
        (general, namespaces)
    })
}

fn label(text: &str) -> Result<String, &'static str> {
    if is_label(text) {
        Ok(text.to_string())
    } else {
        Err("expected at most 63 lower-case letters, digits and '-'")
    }
}

fn namespace_name(text: &str) -> Result<String, &'static str> {
    label(text).map_err(|_| "expected the name of a namespace")
}

#[cfg(test)]
mod tests;
