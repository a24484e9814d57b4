//! Which solver proves each name of an order, and what it puts in place.
//!
//! A [`ProofPlan`] is made by the current config and DNS each time that an order is begun or resumed, and is not kept. What
//! an order record holds of an earlier plan only says what may have to be removed.

use std::collections::BTreeMap;

use cert_renew_core::config::{self, Config, Http01, PathType, Route};
use cert_renew_core::text::name::Name;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::acme::{self, Authorization, Challenge, ChallengeType};
use crate::cluster::challenge_routes::Routed;
use crate::cluster::order_records::Txt;
use crate::net::dns::ResolverSet;
use crate::renewal::outcome::failure::Failure;
use crate::solver::dns01;
use crate::solver::http01::PATH;

/// Most names of one order whose place in DNS is looked up at the same time.
const LOOKUPS: usize = 8;

/// How the remaining names are proven.
pub(in crate::renewal) struct ProofPlan {
    /// One step for each name.
    pub(in crate::renewal) steps: Vec<ProofStep>,
}

/// How one name is proven.
pub(in crate::renewal) struct ProofStep {
    /// The CA's authorization of the name.
    pub(in crate::renewal) authorization: Authorization,
    /// What is put in place.
    pub(in crate::renewal) way: ProofMethod,
}

/// What is put in place for a name.
pub(in crate::renewal) enum ProofMethod {
    /// HTTP-01: an answer on our port.
    Http {
        /// Whether we try a request before the CA is told to validate.
        self_check: bool,
        /// The object that routes the requests to us; none where the user provides the route.
        routed: Option<Routed>,
    },
    /// DNS-01: a TXT record.
    Dns(Txt),
    /// dns-persist-01: nothing, the user has set the record once for all orders.
    Persistent,
}

/// The solver of a name.
enum Solver<'a> {
    /// HTTP-01; without any solver in the config the user provides the route.
    Http(Option<&'a Http01>),
    /// DNS-01, within these zones if there are any.
    Dns(&'a config::Dns01, &'a [Box<str>]),
    /// dns-persist-01.
    Persistent,
}

impl ProofPlan {
    /// Chooses a solver for each name that is left to prove, and puts nothing in place yet.
    ///
    /// # Errors
    /// When a name has no solver, or DNS does not say where a record belongs.
    pub(in crate::renewal) async fn make(
        config: &Config,
        authorizations: Vec<Authorization>,
    ) -> Result<Self, Failure> {
        let resolvers = ResolverSet::default();
        let steps = authorizations.into_iter().map(|authorization| {
            let resolvers = &resolvers;
            async move {
                let way = way(config, resolvers, &authorization).await?;
                Ok::<_, Failure>(ProofStep { authorization, way })
            }
        });
        let steps = stream::iter(steps).buffered(LOOKUPS).try_collect();
        Ok(Self {
            steps: steps.await?,
        })
    }

    /// The TXT records.
    pub(in crate::renewal) fn txt(&self) -> impl Iterator<Item = &Txt> {
        self.steps.iter().filter_map(|step| match &step.way {
            ProofMethod::Dns(txt) => Some(txt),
            _ => None,
        })
    }

    /// The Ingresses and HTTPRoutes.
    pub(in crate::renewal) fn routes(&self) -> impl Iterator<Item = &Routed> {
        self.steps.iter().filter_map(|step| match &step.way {
            ProofMethod::Http { routed, .. } => routed.as_ref(),
            _ => None,
        })
    }

    /// Key authorizations by HTTP-01 token.
    ///
    /// # Errors
    /// None in practice: a plan contains only offered challenges.
    pub(in crate::renewal) fn challenges(&self) -> Result<BTreeMap<String, String>, Failure> {
        let by_http = { self.steps.iter() }.filter(|it| matches!(it.way, ProofMethod::Http { .. }));
        let answer = |step: &ProofStep| {
            let Challenge {
                token,
                key_authorization,
                ..
            } = step.challenge()?;
            Ok((token.clone(), key_authorization.clone()))
        };
        by_http.map(answer).collect()
    }
}

impl ProofStep {
    /// The challenge that the CA is told to validate.
    ///
    /// # Errors
    /// When it is not offered.
    pub(in crate::renewal) fn challenge(&self) -> Result<&Challenge, Failure> {
        let kind = match self.way {
            ProofMethod::Http { .. } => ChallengeType::Http01,
            ProofMethod::Dns(_) => ChallengeType::Dns01,
            ProofMethod::Persistent => acme::dns_persist_01(),
        };
        offered(&self.authorization, &kind)
    }
}

/// Checks that a CA can give a certificate for each of these names, before one is asked for anything. Solvers are not
/// checked here: a CA that has seen a name proven needs none.
///
/// # Errors
/// When no CA can.
pub(in crate::renewal) fn check(names: &[Name]) -> Result<(), Failure> {
    match names.iter().find(|name| name.to_string().contains('_')) {
        None => Ok(()),
        Some(name) => Err(Failure::NoSolver(format!(
            "{name}: CAs give no certificate for a name with an underscore; leave it out by cert-renew.io/names"
        ))),
    }
}

async fn way(
    config: &Config,
    resolvers: &ResolverSet,
    authorization: &Authorization,
) -> Result<ProofMethod, Failure> {
    let name = name_of(authorization)?;
    Ok(match solver(config, &name)? {
        Solver::Http(http01) => {
            let challenge = offered(authorization, &ChallengeType::Http01)?;
            ProofMethod::Http {
                self_check: http01.is_some_and(|it| it.self_check),
                routed: http01.and_then(|http01| routed(&name, &challenge.token, http01)),
            }
        }
        Solver::Dns(dns01, zones) => {
            let challenge = offered(authorization, &ChallengeType::Dns01)?;
            let resolver = resolvers.get(config.resolvers(Some(&name)));
            let resolver = resolver.map_err(dns01::Error::from)?;
            let site = dns01::site(&resolver, &name).await;
            let site = site.map_err(dns01::Error::from)?;
            site.is_within(zones, dns01)?;
            ProofMethod::Dns(Txt {
                of: authorization.name.clone(),
                at: site.at,
                zone: site.zone,
                value: dns01::value(&challenge.key_authorization),
                solver: dns01.clone(),
            })
        }
        Solver::Persistent => {
            offered(authorization, &acme::dns_persist_01())?;
            ProofMethod::Persistent
        }
    })
}

pub(in crate::renewal) fn name_of(authorization: &Authorization) -> Result<Name, Failure> {
    let name = &authorization.name;
    let unknown = |_| {
        let name = cert_renew_core::text::shown(name);
        Failure::NoSolver(format!("{name}: not a name that cert-renew can prove"))
    };
    name.parse().map_err(unknown)
}

fn solver<'a>(config: &'a Config, name: &Name) -> Result<Solver<'a>, Failure> {
    if config.solvers.is_empty() {
        return Ok(Solver::Http(None));
    }
    let found = config.solver(name);
    match found.map(|solver| (&solver.challenge, &*solver.zones)) {
        Some((config::Challenge::Http01(http01), _)) => Ok(Solver::Http(Some(http01))),
        Some((config::Challenge::Dns01(dns01), zones)) => Ok(Solver::Dns(dns01, zones)),
        Some((config::Challenge::DnsPersist01(_), _)) => Ok(Solver::Persistent),
        None => Err(Failure::NoSolver(format!(
            "no solver of the config can prove {name}: a wildcard needs dns01, an address http01 without zones"
        ))),
    }
}

/// The object that routes a host's challenges to us. There is none for an address: routes use host names.
fn routed(name: &Name, token: &str, solver: &Http01) -> Option<Routed> {
    let path = match &solver.route {
        Route::Shared => return None,
        Route::Ingress { path_type, .. } if *path_type != PathType::Prefix => {
            format!("{PATH}{token}")
        }
        _ => PATH.trim_end_matches('/').to_owned(),
    };
    match name {
        Name::Dns(host) => Some(Routed {
            host: host.to_string(),
            path,
            solver: solver.clone(),
        }),
        Name::Ip(_) => None,
    }
}

pub(in crate::renewal) fn offered<'a>(
    authorization: &'a Authorization,
    kind: &ChallengeType,
) -> Result<&'a Challenge, Failure> {
    let mut offered = authorization.challenges.iter();
    let found = offered.find(|challenge| challenge.kind == *kind);
    let name = &authorization.name;
    let found = found.ok_or_else(|| {
        Failure::NoSolver(match kind {
            ChallengeType::Dns01 => format!("the CA offers no DNS-01 for {name}"),
            ChallengeType::Http01 => {
                format!("the CA offers no HTTP-01 for {name}: a wildcard needs a dns01 solver")
            }
            _ => format!("the CA offers no dns-persist-01 for {name}: it is a draft"),
        })
    })?;
    if found.has_sound_token() {
        Ok(found)
    } else {
        Err(Failure::NoSolver(format!(
            "the CA's token for {name} is not base64url, as RFC 8555 has it"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_chooses_the_challenge() {
        let yaml = "issuers: {}\nsolvers: [{zones: [a.example], dns01: {provider: bunny}}, {zones: [b.example], http01: {route: shared}}, {zones: [d.example], dnsPersist01: {experimental: true}}]";
        let config = Config::parse(yaml).unwrap();
        let by_dns = |config: &Config, name: &str| {
            solver(config, &name.parse().unwrap()).map(|it| matches!(it, Solver::Dns(..)))
        };
        assert!(by_dns(&config, "*.a.example").unwrap());
        assert!(!by_dns(&config, "b.example").unwrap());
        for name in ["*.b.example", "c.example", "10.0.0.1"] {
            let error = by_dns(&config, name).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("dns01"), "{error}");
        }
        let of = |name: &str| solver(&config, &name.parse().unwrap());
        assert!(matches!(of("*.d.example"), Ok(Solver::Persistent)));
        let none = Config::parse("issuers: {}").unwrap();
        assert!(!by_dns(&none, "*.b.example").unwrap());
        let authorization = |name: &str| Authorization {
            url: String::new(),
            name: name.to_owned(),
            challenges: Vec::new(),
        };
        let unoffered = authorization("*.b.example");
        let error = offered(&unoffered, &ChallengeType::Http01).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("dns01"), "{error}");
        let error = offered(&unoffered, &acme::dns_persist_01()).unwrap_err();
        assert!(error.to_string().contains("no dns-persist-01"), "{error}");
    }

    #[test]
    fn an_ingress_has_the_whole_path_unless_it_is_a_prefix() {
        for (settings, path) in [
            ("", "/.well-known/acme-challenge/token"),
            ("pathType: Exact", "/.well-known/acme-challenge/token"),
            ("pathType: Prefix", "/.well-known/acme-challenge"),
        ] {
            let yaml = format!(
                "issuers: {{}}\nsolvers: [{{http01: {{route: ingress, ingress: {{{settings}}}}}}}]"
            );
            let config = Config::parse(&yaml).unwrap();
            let name = "a.example".parse().unwrap();
            let Solver::Http(Some(http01)) = solver(&config, &name).unwrap() else {
                panic!("{settings}")
            };
            let routed = routed(&name, "token", http01).unwrap();
            assert_eq!(routed.path, path, "{settings}");
        }
    }

    #[test]
    fn a_token_that_is_not_base64url_becomes_no_part_of_a_path() {
        for (token, is_used) in [("good-_1", true), ("a/b", false), ("}; deny all", false)] {
            let authorization = Authorization {
                url: String::new(),
                name: "a.example".to_owned(),
                challenges: vec![Challenge::offered(ChallengeType::Http01, token)],
            };
            let offered = offered(&authorization, &ChallengeType::Http01);
            assert_eq!(offered.is_ok(), is_used, "{token}");
        }
    }
}
