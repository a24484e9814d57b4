//! `solvers`: how control of a name is proven.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::reader::Place;
use crate::name::Name;

/// How control of the names of some zones is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solver {
    /// DNS zones; empty means all.
    pub zones: Vec<Name>,
    /// How.
    pub kind: SolverKind,
}

/// How control of a name is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SolverKind {
    /// By a file on the web server of the name (RFC 8555, 8.3).
    Http01(Route),
    /// By a TXT record (RFC 8555, 8.4).
    Dns01 {
        /// Which API.
        provider: String,
        /// Secret in the operator's namespace with its credentials.
        credentials: Option<String>,
        /// What else the provider wants to know.
        options: BTreeMap<String, String>,
    },
}

/// How the CA's request reaches the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// The user has routed `/.well-known/acme-challenge/` to it once and for all.
    #[default]
    Shared,
    /// By an Ingress for each host.
    Ingress,
    /// By an HTTPRoute for each host.
    Gateway,
}

impl Solver {
    pub(super) fn read(place: &Place<'_>) -> Self {
        place.fields(|fields| {
            let zones = fields
                .get("zones")
                .list(|item| item.parse(str::parse::<Name>));
            let (http01, dns01) = (fields.get("http01"), fields.get("dns01"));
            if http01.is_absent() == dns01.is_absent() {
                place.fault_unseen("expected either http01 or dns01");
            }
            let kind = if dns01.is_absent() {
                SolverKind::Http01(http01.fields(|fields| {
                    let routes = [
                        ("shared", Route::Shared),
                        ("ingress", Route::Ingress),
                        ("gateway", Route::Gateway),
                    ];
                    fields.get("route").choice(&routes, Route::Shared)
                }))
            } else {
                dns01.fields(|fields| {
                    let text = |text: &str| Ok::<_, &str>(text.to_owned());
                    let options = fields.get("options").entries().into_iter();
                    SolverKind::Dns01 {
                        provider: fields.required("provider").parse(text).unwrap_or_default(),
                        credentials: fields
                            .get("credentials")
                            .fields(|fields| fields.get("secret").parse(text)),
                        options: options
                            .filter_map(|(key, place)| Some((key.to_owned(), place.parse(text)?)))
                            .collect(),
                    }
                })
            };
            Self { zones, kind }
        })
    }
}

/// A name server: an address, with or without a port.
pub(super) fn nameserver(text: &str) -> Result<String, &'static str> {
    if text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("expected an address such as 10.0.0.10 or 10.0.0.10:53")
    }
}
