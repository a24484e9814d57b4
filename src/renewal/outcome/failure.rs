//! Why a renewal failed, and what the failure is counted for.

use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::certificate::Leaf;
use cert_renew_core::certificate::key::KeyError;
use cert_renew_core::certificate::pair::{PairFault, Rejected};
use cert_renew_core::schedule::rate_limits::{AccountId, TriedWith};
use cert_renew_core::text::error_chain;
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use thiserror::Error;

use crate::acme::{self, Class, OrderStatus};
use crate::cluster;
use crate::renewal::issuers;
use crate::solver::{dns_persist01, dns01, http01_self_check};

/// Longest wait for a certificate that is not valid yet: clocks are wrong by minutes, or by a time zone.
const MOST_EARLY: Duration = Duration::from_secs(86_400);

/// Why a renewal failed.
#[derive(Debug, Error)]
pub(in crate::renewal) enum Failure {
    /// The CA, or the way to it.
    #[error("{}", .0.detail())]
    Acme(#[from] acme::Error),
    /// The issuer cannot be used.
    #[error("{}", error_chain(.0))]
    Issuer(issuers::Error),
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// What the CA issued is not what was asked for.
    #[error("what the CA issued is not written: {}", error_chain(.0))]
    Rejected(#[from] Rejected),
    /// The certificate is sound, but not valid before this instant by this machine's clock.
    #[error(
        "the certificate that was issued is not valid before {0} and is written then: is this machine's clock right?"
    )]
    TooEarly(UnixTime),
    /// The config has no issuer of this name.
    #[error("the config has no issuer {0}; the order waits for it")]
    NoIssuer(Arc<str>),
    /// No key could be made or read.
    #[error("{}", error_chain(.0))]
    Key(#[from] KeyError),
    /// The key that is to be kept cannot be read; it is not replaced.
    #[error(
        "nothing is ordered: cert-renew.io/key-rotation is never, and the key that is there cannot be used ({0}); put a \
         readable one there, or take the annotation away to have a new one made"
    )]
    KeptKey(KeyError),
    /// No way to prove control of a name.
    #[error("{0}")]
    NoSolver(String),
    /// The CA would refuse, and is not asked.
    #[error("{0}")]
    Forbidden(String),
    /// No rule of the issuer's `allow` is for the namespace as it is labelled now.
    #[error("{0}, whose labels count too")]
    NotAllowed(String),
    /// The namespace's labels cannot be read.
    #[error(
        "the labels of the namespace decide here and cannot be read (is rbac/addons/namespace-labels.yaml installed?): {0}"
    )]
    Labels(cluster::Error),
    /// The CA will refuse this order regardless of configuration changes.
    #[error("the CA is not asked: {0}")]
    Hopeless(String),
    /// A TXT record could not be set or was not seen in time.
    #[error(transparent)]
    Dns01(#[from] dns01::Error),
    /// The record that the user sets is missing or has another content.
    #[error(transparent)]
    DnsPersist01(#[from] dns_persist01::Error),
    /// A request of the CA would not reach us.
    #[error(
        "HTTP-01: {0}; if only cert-renew cannot reach it, its NetworkPolicy may lack the port of the ingress controller's \
         pods: add a policy that lets it out to that port (docs/how-to/traefik.md); selfCheck: false in the config turns \
         this check off"
    )]
    Route(#[from] http01_self_check::Error),
    /// A controller refuses our route.
    #[error("HTTP-01: the HTTPRoute of {0} is refused: {1}")]
    RouteRefused(String, String),
    /// What was put in place is not in force yet: the order goes on from its record.
    #[error("{0}")]
    Waiting(Box<Self>),
    /// The names could not be proven to the staging CA.
    #[error("the rehearsal at the staging CA failed: {}", .0.detail())]
    Rehearsal(#[source] acme::Error),
    /// The Secret asks for something else by now.
    #[error("the Secret has changed and asks for something else")]
    Unwanted,
    /// Too much time has passed since the look at the Secret that permitted the step.
    #[error("the look at the Secret is too old")]
    Outdated,
    /// This replica no longer leads, or is about to stop leading.
    #[error("this replica is handing over")]
    Stopped,
    /// Any of these, with the Secret that it is about.
    #[error("{what}")]
    About {
        /// What happened.
        what: Box<Self>,
        /// The Secret and its order.
        of: Box<FailureContext>,
    },
}

/// What a failure is counted for.
#[derive(Debug)]
pub(in crate::renewal) struct FailureContext {
    pub(in crate::renewal) uid: String,
    pub(in crate::renewal) account: AccountId,
    pub(in crate::renewal) issuer: Arc<str>,
    pub(in crate::renewal) directory: String,
    /// The `renew-now` value, hashed, with which it was tried.
    pub(in crate::renewal) wish: Option<u64>,
    /// The order's URL, if there was an order.
    pub(in crate::renewal) order: Option<Box<str>>,
    pub(in crate::renewal) leaf: Option<Leaf>,
    pub(in crate::renewal) names: Vec<Name>,
    /// The requested lifetime.
    pub(in crate::renewal) lifetime: Option<Duration>,
    pub(in crate::renewal) has_staging: bool,
    pub(in crate::renewal) has_fallback: bool,
    /// The settings with which it was tried.
    pub(in crate::renewal) tried_with: TriedWith,
}

impl From<acme::RequestError<Self>> for Failure {
    fn from(error: acme::RequestError<Self>) -> Self {
        match error {
            acme::RequestError::Refused(failure) => failure,
            acme::RequestError::Failed(error) => error.into(),
        }
    }
}

impl From<issuers::Error> for Failure {
    fn from(error: issuers::Error) -> Self {
        match error {
            issuers::Error::Acme(error) => Self::Acme(error),
            issuers::Error::Cluster(error) => Self::Cluster(error),
            other => Self::Issuer(other),
        }
    }
}

impl Failure {
    /// The failure for an issued certificate that the checks reject. One that is sound and becomes valid soon is waited
    /// for: the next one would not be valid either.
    pub(in crate::renewal) fn rejected(rejected: Rejected, now: UnixTime) -> Self {
        match rejected {
            Rejected::Unusable(PairFault::NotYetValid(at)) if at.since(now) <= MOST_EARLY => {
                Self::TooEarly(at)
            }
            rejected => Self::Rejected(rejected),
        }
    }

    /// Whether the order cannot succeed any more.
    pub(in crate::renewal) fn ends_order(&self, order: &acme::Order) -> bool {
        match self {
            Self::Acme(error) => {
                order.status() == OrderStatus::Invalid
                    || error.is_gone()
                    || matches!(
                        error.class(),
                        Class::FixIt | Class::Permanent | Class::Paused | Class::AccountGone
                    )
            }
            Self::Rejected(_)
            | Self::Forbidden(_)
            | Self::NotAllowed(_)
            | Self::Hopeless(_)
            | Self::NoSolver(_)
            | Self::Unwanted
            | Self::Key(_)
            | Self::KeptKey(_) => true,
            Self::Issuer(_)
            | Self::Cluster(_)
            | Self::Labels(_)
            | Self::Dns01(_)
            | Self::DnsPersist01(_)
            | Self::Route(_)
            | Self::RouteRefused(..)
            | Self::Waiting(_)
            | Self::TooEarly(_)
            | Self::NoIssuer(_)
            | Self::Outdated
            | Self::Stopped
            | Self::Rehearsal(_) => false,
            Self::About { what, .. } => what.ends_order(order),
        }
    }

    /// Whether another config or other annotations may help: then a change is tried at once.
    pub(in crate::renewal) fn may_be_the_settings(&self) -> bool {
        match self {
            Self::Acme(error) | Self::Rehearsal(error) => {
                matches!(error.class(), Class::FixIt | Class::Permanent)
            }
            // Each try costs a certificate.
            Self::Rejected(_) | Self::Outdated | Self::Stopped | Self::Unwanted => false,
            Self::About { what, .. } | Self::Waiting(what) => what.may_be_the_settings(),
            _ => true,
        }
    }

    /// The requested lifetime, where the CA may have refused it: few CAs say so.
    pub(in crate::renewal) fn refused_lifetime(&self, of: &FailureContext) -> Option<Duration> {
        match self {
            Self::Acme(error) if error.may_be_the_lifetime() => of.lifetime,
            _ => None,
        }
    }

    /// Whether the Secret itself is the cause. Others that ask for the same names are not delayed by it.
    pub(in crate::renewal) fn is_of_the_secret(&self) -> bool {
        match self {
            Self::NotAllowed(_)
            | Self::Labels(_)
            | Self::Hopeless(_)
            | Self::Key(_)
            | Self::KeptKey(_)
            | Self::Cluster(_)
            | Self::Rejected(Rejected::EndsSooner { .. }) => true,
            Self::Acme(error) => error.is_about_settings(),
            Self::About { what, .. } => what.is_of_the_secret(),
            _ => false,
        }
    }

    /// Whether this replica no longer leads, which says nothing of the certificate.
    pub(in crate::renewal) fn is_handing_over(&self) -> bool {
        match self {
            Self::Stopped => true,
            Self::About { what, .. } => what.is_handing_over(),
            _ => false,
        }
    }

    /// The kind of failure in one word, for Events and metrics.
    pub(in crate::renewal) fn reason(&self) -> &'static str {
        match self {
            Self::Acme(error) => error.reason(),
            Self::Issuer(issuers::Error::Limited(_)) => "RateLimited",
            Self::Issuer(_) => "IssuerUnusable",
            Self::Cluster(error) | Self::Labels(error) => error.reason(),
            Self::Rejected(_) => "Rejected",
            Self::TooEarly(_) => "NotYetValid",
            Self::NoIssuer(_) => "IssuerUnusable",
            Self::Key(_) | Self::KeptKey(_) => "Key",
            Self::NoSolver(_) => "NoSolver",
            Self::Forbidden(_) => "Caa",
            Self::NotAllowed(_) => "NotAllowed",
            Self::Hopeless(_) => "Hopeless",
            Self::Dns01(error) => error.reason(),
            Self::DnsPersist01(error) => error.reason(),
            Self::Route(_) => "Unrouted",
            Self::RouteRefused(..) => "RouteRefused",
            Self::Waiting(what) => what.reason(),
            Self::Rehearsal(error) => error.reason(),
            Self::Unwanted => "Unwanted",
            Self::Outdated => "Outdated",
            Self::Stopped => "Stopped",
            Self::About { what, .. } => what.reason(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The account of those names may be that of other namespaces too.
    #[test]
    fn labels_that_cannot_be_read_delay_their_own_secret_only() {
        let unread = cluster::Error::Unavailable {
            what: "reading the labels of namespace shop".into(),
            message: "it is gone".into(),
            code: Some(503),
        };
        assert!(Failure::Labels(unread).is_of_the_secret());
        assert!(!Failure::Stopped.is_of_the_secret());
    }
}
