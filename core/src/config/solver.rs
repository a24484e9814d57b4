//! How challenges are answered, by zone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::issuer::{object_name, text};
use super::provider::{SUPPORTED_PROVIDERS, WITHOUT_CREDENTIALS, provider, settings_of};
use super::reader::{Fields, KeyPath, unknown};
use super::resolver::ResolverAddress;
use super::resolver::nameserver;
use crate::text::name::Name;

/// One way to answer challenges, for the names in some zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solver {
    /// Names at or under one of these; every name where empty.
    pub zones: Vec<Box<str>>,
    /// Resolvers for the checks before the CA is asked to look; those of `dns` if empty.
    pub resolvers: Vec<ResolverAddress>,
    /// How challenges are answered.
    pub challenge: Challenge,
}

/// A kind of challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// RFC 8555, 8.3.
    Http01(Http01),
    /// RFC 8555, 8.4.
    Dns01(Dns01),
    /// draft-ietf-acme-dns-persist; experimental.
    DnsPersist01(DnsPersist01),
}

/// HTTP-01: how the CA's request reaches the operator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Http01 {
    /// The route.
    pub route: Route,
    /// Whether the operator tries the route before the CA is asked; off if only the CA can reach it.
    pub self_check: bool,
}

/// What sends `/.well-known/acme-challenge/` of a host to the operator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Route {
    /// Arranged by the user.
    Shared,
    /// An Ingress for each host, in the operator's namespace.
    Ingress {
        /// `ingressClassName`; the cluster's default if absent.
        class: Option<String>,
        /// Annotations that the ingress controller wants.
        annotations: BTreeMap<String, String>,
        /// `pathType` of `networking.k8s.io/v1`.
        path_type: PathType,
    },
    /// An HTTPRoute for each host, in the operator's namespace.
    Gateway {
        /// Gateways that the route attaches to; at least one.
        parents: Vec<ParentRef>,
    },
}

/// How an Ingress compares paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PathType {
    /// By path elements.
    Prefix,
    /// The whole path.
    Exact,
    /// Up to the controller. Controllers compare the whole path or a prefix, and all take the dot of `.well-known`, which
    /// ingress-nginx refuses in the other two types since version 1.12.
    #[default]
    ImplementationSpecific,
}

/// `parentRefs` entry of `gateway.networking.k8s.io/v1` HTTPRoute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ParentRef {
    /// The Gateway.
    pub name: String,
    /// Its namespace; the operator's own if absent.
    pub namespace: Option<String>,
    /// The listener; all if absent.
    pub section_name: Option<String>,
}

/// dns-persist-01: the user has set a TXT record, once for all renewals. Nothing is written to DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsPersist01 {
    /// Whether the record is looked up before the CA is asked; off if the zone's servers cannot be reached from here,
    /// or the CA accepts a record that is not looked up, such as one of a parent domain.
    pub self_check: bool,
    /// Asked instead of the zone's NS records.
    pub servers: Vec<SocketAddr>,
}

/// DNS-01: who hosts the zone. It is serialised into order records, so that a record is removed the way it was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns01 {
    /// One of [`SUPPORTED_PROVIDERS`] or of the untested ones.
    pub provider: String,
    /// Secret in the operator's namespace with the provider's credentials; absent if the cloud gives an identity.
    pub credentials: Option<String>,
    /// Other settings of the provider, not secret, such as a server's address.
    pub settings: BTreeMap<String, String>,
    /// When the CA is asked to look.
    pub propagation: Propagation,
}

/// When a TXT record counts as visible everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Propagation {
    /// Whether the zone's servers are asked; off if they cannot be reached from here.
    pub check: bool,
    /// Asked instead of the zone's NS records.
    pub servers: Vec<SocketAddr>,
    /// The attempt fails after this time.
    pub timeout: Duration,
    /// A pause after all servers have it, for servers hidden behind them.
    pub wait: Duration,
}

impl Default for Propagation {
    fn default() -> Self {
        Self {
            check: true,
            servers: Vec::new(),
            timeout: 10 * MINUTE,
            wait: Duration::ZERO,
        }
    }
}

const MINUTE: Duration = Duration::from_secs(60);

impl Solver {
    pub(super) fn read(place: &KeyPath<'_>) -> Option<Self> {
        place.fields(|fields| {
            let zones = fields.get("zones").list(|item| item.parse(zone));
            let resolvers = fields.get("resolvers");
            let resolvers = resolvers.list(|item| item.parse(str::parse));
            let ways = ["http01", "dns01", "dnsPersist01"].map(|way| fields.get(way));
            let challenge = match (&ways, ways.each_ref().map(KeyPath::is_absent)) {
                ([way, ..], [false, true, true]) => Http01::read(way).map(Challenge::Http01),
                ([_, way, _], [true, false, true]) => Dns01::read(way).map(Challenge::Dns01),
                ([.., way], [true, true, false]) => {
                    Some(Challenge::DnsPersist01(DnsPersist01::read(way)))
                }
                _ => {
                    place.fault_unseen("expected one of http01, dns01 and dnsPersist01");
                    None
                }
            };
            Some(Self {
                zones,
                resolvers,
                challenge: challenge?,
            })
        })
    }

    /// Labels of the longest zone that contains the name, 0 for a solver of every name; `None` if it cannot answer. A
    /// wildcard needs DNS (RFC 8555, 7.1.3 and 8.3), an address HTTP-01 (RFC 8738, 4).
    fn fits(&self, name: &Name) -> Option<usize> {
        let by_dns = !matches!(self.challenge, Challenge::Http01(_));
        let Name::Dns(dns) = name else {
            return (self.zones.is_empty() && !by_dns).then_some(0);
        };
        if name.is_wildcard() && !by_dns {
            return None;
        }
        if self.zones.is_empty() {
            return Some(0);
        }
        let bare = dns.strip_prefix("*.").unwrap_or(dns);
        let within = |zone: &str| {
            bare.strip_suffix(zone)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.zones
            .iter()
            .filter(|zone| within(zone))
            .map(|zone| zone.split('.').count())
            .max()
    }
}

/// The solver for a name: the one with the longest zone, the first of equals.
pub(super) fn solver_for<'a>(solvers: &'a [Solver], name: &Name) -> Option<&'a Solver> {
    let fitting = solvers
        .iter()
        .filter_map(|solver| Some((solver.fits(name)?, solver)));
    fitting
        .rev()
        .max_by_key(|(labels, _)| *labels)
        .map(|(_, solver)| solver)
}

impl Http01 {
    fn read(place: &KeyPath<'_>) -> Option<Self> {
        place.fields(|fields| {
            let route = fields.required("route");
            let (ingress, gateway) = (fields.get("ingress"), fields.get("gateway"));
            let self_check = fields.get("selfCheck").flag(true);
            let kind = route.parse(|text| match text {
                "shared" | "ingress" | "gateway" => Ok(text.to_string()),
                _ => Err("expected shared, ingress or gateway"),
            })?;
            for (place, belongs_to) in [(&ingress, "ingress"), (&gateway, "gateway")] {
                if !place.is_absent() && kind != belongs_to {
                    place.fault_unseen(format_args!("expected only with route: {belongs_to}"));
                }
            }
            let route = match kind.as_str() {
                "ingress" => ingress.fields(read_ingress),
                "gateway" => gateway.fields(read_gateway),
                _ => Route::Shared,
            };
            Some(Self { route, self_check })
        })
    }
}

fn read_ingress(fields: &Fields<'_, '_>) -> Route {
    let choices = [
        ("Prefix", PathType::Prefix),
        ("Exact", PathType::Exact),
        ("ImplementationSpecific", PathType::ImplementationSpecific),
    ];
    Route::Ingress {
        class: fields.get("class").parse(text),
        annotations: texts(&fields.get("annotations")),
        path_type: fields.get("pathType").choice(&choices, PathType::default()),
    }
}

fn read_gateway(fields: &Fields<'_, '_>) -> Route {
    let place = fields.required("parentRefs");
    let parents = place.list(|item| {
        item.fields(|fields| {
            Some(ParentRef {
                namespace: fields.get("namespace").parse(text),
                section_name: fields.get("sectionName").parse(text),
                name: fields.required("name").parse(text)?,
            })
        })
    });
    Route::Gateway { parents }
}

impl Dns01 {
    fn read(place: &KeyPath<'_>) -> Option<Self> {
        place.fields(|fields| {
            let provider = fields.required("provider").parse(provider);
            let credentials = fields.get("credentials");
            let credentials = (!credentials.is_absent())
                .then(|| credentials.fields(|fields| object_name(fields, "secret")));
            let place = fields.get("settings");
            let settings = texts(&place);
            let propagation = Propagation::read(&fields.get("propagation"));
            let provider = provider?;
            let (required, optional) = settings_of(&provider);
            for (key, value) in place.entries() {
                if !required.contains(&key) && !optional.contains(&key) {
                    let known = [required, optional].concat();
                    value.fault_unseen(if known.is_empty() {
                        format!("unknown, {provider} has no settings")
                    } else {
                        unknown(key, &known)
                    });
                }
            }
            for key in required.iter().filter(|key| !settings.contains_key(**key)) {
                place
                    .child(key)
                    .fault_unseen(format_args!("missing, {provider} needs it"));
            }
            Some(Self {
                provider,
                credentials,
                settings,
                propagation,
            })
        })
    }

    /// Whether the provider is supported: tested, or the general way for other hosts.
    #[must_use]
    pub fn is_supported(&self) -> bool {
        SUPPORTED_PROVIDERS.contains(&self.provider.as_str())
    }

    /// Whether it has no credentials, and its provider is none that a pod can ask without.
    #[must_use]
    pub fn lacks_credentials(&self) -> bool {
        self.is_supported()
            && self.credentials.is_none()
            && !WITHOUT_CREDENTIALS.contains(&self.provider.as_str())
    }
}

impl DnsPersist01 {
    fn read(place: &KeyPath<'_>) -> Self {
        place.fields(|fields| {
            let experimental = fields.get("experimental");
            if !experimental.flag(false) {
                experimental.fault_unseen(
                    "expected true: dns-persist-01 is a draft, and what this does may change with any release",
                );
            }
            Self {
                self_check: fields.get("selfCheck").flag(true),
                servers: fields.get("servers").list(|item| item.parse(nameserver)),
            }
        })
    }
}

impl Propagation {
    fn read(place: &KeyPath<'_>) -> Self {
        let default = Self::default();
        place.fields(|fields| Self {
            check: fields.get("check").flag(default.check),
            servers: fields.get("servers").list(|item| item.parse(nameserver)),
            timeout: fields
                .get("timeout")
                .duration(Duration::from_secs(1)..=120 * MINUTE, default.timeout),
            wait: fields
                .get("wait")
                .duration(Duration::ZERO..=10 * MINUTE, default.wait),
        })
    }
}

fn texts(place: &KeyPath<'_>) -> BTreeMap<String, String> {
    let entries = place.entries().into_iter();
    entries
        .filter_map(|(key, value)| Some((key.to_string(), value.present()?.parse(text)?)))
        .collect()
}

fn zone(text: &str) -> Result<Box<str>, &'static str> {
    match text.parse() {
        Ok(Name::Dns(zone)) if !zone.starts_with('*') => Ok(zone),
        _ => Err("expected the name of a zone such as example.com, without a star"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solver(zones: &[&str], dns01: bool) -> Solver {
        let challenge = if dns01 {
            Challenge::Dns01(Dns01 {
                provider: "rfc2136".into(),
                credentials: None,
                settings: BTreeMap::new(),
                propagation: Propagation::default(),
            })
        } else {
            Challenge::Http01(Http01 {
                route: Route::Shared,
                self_check: true,
            })
        };
        Solver {
            zones: zones
                .iter()
                .map(|zone| zone.parse::<Name>().unwrap().to_string().into())
                .collect(),
            resolvers: Vec::new(),
            challenge,
        }
    }

    #[test]
    fn the_longest_zone_wins() {
        let solvers = [
            solver(&[], false),
            solver(&["example.com", "other.example"], false),
            solver(&["shop.example.com"], true),
            solver(&["shop.example.com"], false),
            solver(&[], true),
        ];
        for (name, index) in [
            ("a.example.org", 0),
            ("example.com", 1),
            ("www.example.com", 1),
            ("badexample.com", 0),
            ("shop.example.com", 2),
            ("a.b.shop.example.com", 2),
            ("*.shop.example.com", 2),
            ("*.example.com", 4),
            ("10.0.0.1", 0),
        ] {
            let found = solver_for(&solvers, &name.parse().unwrap()).unwrap();
            assert!(
                std::ptr::eq(found, &raw const solvers[index]),
                "{name}: {found:?}"
            );
        }
        assert_eq!(
            solver_for(&solvers[2..3], &"10.0.0.1".parse().unwrap()),
            None
        );
        assert_eq!(
            solver_for(&solvers[..2], &"*.example.com".parse().unwrap()),
            None
        );
    }
}
