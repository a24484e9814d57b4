//! A renewal that failed: what it means for the next try, and who is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use thiserror::Error;

use super::issuers;
use super::venue::{OUT_OF_REACH, REHEARSALS};
use super::{Fresh, last_error, limits, validations, without_covered};
use crate::acme::{self, Class, OrderStatus, Scope};
use crate::cluster;
use crate::cluster::events::Reason;
use crate::cluster::secrets::{self, Changes};
use crate::context::Context;
use crate::index::{Finished, Key, Stuck};
use crate::key::KeyError;
use crate::metrics::RenewalResult;
use crate::name::Name;
use crate::pair::Rejected;
use crate::schedule::budget;
use crate::secret::keys;
use crate::solver::{dns_persist01, dns01, route};
use crate::time::UnixTime;

/// The watch will bring what has changed; should it not, this is soon enough.
const AFTER_CONFLICT: std::time::Duration = std::time::Duration::from_secs(5);
/// Until the zone's servers, or the route, are looked at again.
const WAITING: std::time::Duration = std::time::Duration::from_secs(10);
/// Until a fallback is looked for again that could not help out.
const NO_FALLBACK: std::time::Duration = std::time::Duration::from_secs(5 * 60);
/// Longest error text that is written on the Secret and, with reason and time, in an Event of 1,000 bytes: a link with
/// which the reader ends a pause of the CA is some hundred characters long.
const LONGEST: usize = 900;

/// Why a renewal failed.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// The CA, or the way to it.
    #[error("{}", .0.detail())]
    Acme(#[from] acme::Error),
    /// The issuer cannot be used.
    #[error("{}", cluster::chain(.0))]
    Issuer(issuers::Error),
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// What the CA issued is not what was asked for.
    #[error("what the CA issued is not written: {}", cluster::chain(.0))]
    Rejected(#[from] Rejected),
    /// No key could be made or read.
    #[error("{}", cluster::chain(.0))]
    Key(#[from] KeyError),
    /// No way to prove control of a name.
    #[error("{0}")]
    NoSolver(String),
    /// The CA would refuse, and is not asked.
    #[error("{0}")]
    Forbidden(String),
    /// No rule of the issuer's `allow` is for the namespace as it is labelled now.
    #[error("{0}, whose labels count too")]
    NotAllowed(String),
    /// Those labels cannot be read.
    #[error(
        "the labels of the namespace decide here and cannot be read (is rbac/addons/namespace-labels.yaml installed?): {0}"
    )]
    Labels(cluster::Error),
    /// This CA is known to refuse that, whatever is put right elsewhere.
    #[error("the CA is not asked: {0}")]
    Hopeless(String),
    /// A TXT record could not be set or was not seen in time.
    #[error(transparent)]
    Dns01(#[from] dns01::Error),
    /// The record that the user sets is not there, or says something else.
    #[error(transparent)]
    DnsPersist01(#[from] dns_persist01::Error),
    /// A request of the CA would not reach us.
    #[error("HTTP-01: {0}; where only we cannot reach it, selfCheck: false in the config")]
    Route(#[from] route::Error),
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
    /// The term is over, or about to end.
    #[error("this replica is handing over")]
    Stopped,
    /// Any of these, with the Secret that it is about.
    #[error("{what}")]
    About {
        /// What happened.
        what: Box<Self>,
        /// To whom.
        of: Box<Of>,
    },
}

/// What a failure is counted for.
#[derive(Debug)]
pub(super) struct Of {
    uid: String,
    account: u64,
    issuer: Arc<str>,
    directory: String,
    wish: Option<u64>,
    leaf: Option<crate::certificate::Leaf>,
    names: Vec<Name>,
    has_staging: bool,
    has_fallback: bool,
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
    /// Says which Secret it happened to.
    pub(super) fn about(self, fresh: &Fresh) -> Self {
        if matches!(self, Self::About { .. }) {
            return self;
        }
        let of = Of {
            uid: fresh.uid().to_owned(),
            account: fresh.assessment.account,
            wish: fresh.assessment.wish(),
            issuer: Arc::clone(&fresh.issuer_name),
            directory: fresh.issuer.directory.clone(),
            leaf: fresh.assessment.leaf.as_ref().ok().cloned(),
            names: without_covered(&fresh.assessment.names),
            has_staging: fresh.issuer.staging.is_some(),
            has_fallback: fresh.issuer.fallback.is_some(),
        };
        Self::About {
            what: Box::new(self),
            of: Box::new(of),
        }
    }

    /// Whether the order can bring nothing any more.
    pub(super) fn ends_order(&self, order: &acme::Order) -> bool {
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
            | Self::Key(_) => true,
            Self::Issuer(_)
            | Self::Cluster(_)
            | Self::Labels(_)
            | Self::Dns01(_)
            | Self::DnsPersist01(_)
            | Self::Route(_)
            | Self::RouteRefused(..)
            | Self::Waiting(_)
            | Self::Stopped
            | Self::Rehearsal(_) => false,
            Self::About { what, .. } => what.ends_order(order),
        }
    }

    fn is_handing_over(&self) -> bool {
        match self {
            Self::Stopped => true,
            Self::About { what, .. } => what.is_handing_over(),
            _ => false,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Acme(error) => error.reason(),
            Self::Issuer(issuers::Error::Limited(_)) => "RateLimited",
            Self::Issuer(_) => "IssuerUnusable",
            Self::Cluster(error) | Self::Labels(error) => error.reason(),
            Self::Rejected(_) => "Rejected",
            Self::Key(_) => "Key",
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
            Self::Stopped => "Stopped",
            Self::About { what, .. } => what.reason(),
        }
    }

    /// Counts the failure, tells the reader, and says when the next try is.
    pub(super) async fn settle(self, context: &Context, key: &Key) -> Finished {
        let now = UnixTime::now();
        if !context.gate.is_open() || self.is_handing_over() {
            // The term is over: this says nothing about the certificate, and the next leader begins anew.
            tracing::debug!(secret = %key, error = %self, "the renewal is left to the next leader");
            return Finished::Later(now + AFTER_CONFLICT, last_error(context, key));
        }
        let reason = self.reason();
        let (what, of) = match self {
            Self::About { what, of } => (*what, of),
            // Only reading the Secret or the record can fail before it is known what it asks for.
            other => {
                tracing::warn!(secret = %key, step = "failed", reason, error = %other, "the renewal could not begin");
                return Finished::Later(now + AFTER_CONFLICT * 6, Some(other.to_string().into()));
            }
        };
        if matches!(what, Self::Unwanted)
            || matches!(
                what,
                Self::Cluster(
                    cluster::Error::Conflict { .. } | cluster::Error::AlreadyExists { .. }
                )
            )
        {
            tracing::info!(secret = %key, reason, "the Secret has changed meanwhile: looked at again");
            return Finished::Later(now + AFTER_CONFLICT, last_error(context, key));
        }
        if let Self::Waiting(what) = &what {
            let text = what.to_string();
            tracing::info!(secret = %key, what = text, "the order waits");
            return Finished::Later(now + WAITING, Some(text.into()));
        }
        if let Self::Acme(error) = &what
            && error.may_be_the_key()
            && context
                .issuers
                .key_changed(&of.issuer)
                .await
                .unwrap_or(false)
        {
            tracing::info!(secret = %key, issuer = %of.issuer, "the account has another key now: tried again with it");
            return Finished::Later(now, None);
        }
        let (mut until, mut validation) = (None, false);
        let (mut limited, mut outage) = (false, false);
        if let Self::Acme(error) = &what {
            until = error.retry_after();
            limited = matches!(error.class(), Class::RateLimited { .. });
            match error.class() {
                Class::Transient => outage = true,
                Class::RateLimited {
                    until: limit,
                    scope: Scope::Issuer,
                } => {
                    context.issuers.limit(&of.issuer, limit);
                    until = Some(limit);
                }
                Class::RateLimited { until: limit, .. } => until = Some(limit),
                Class::FixIt => validation = true,
                Class::AccountGone => {
                    if let Err(error) = context.issuers.account_gone(&of.issuer).await {
                        let error = cluster::chain(&error);
                        tracing::warn!(issuer = %of.issuer, error, "the account cannot be made anew now");
                    }
                }
                _ => {}
            }
        }
        let short_at = of.leaf.as_ref().map_or(now, budget::runs_short_at);
        if let Self::Issuer(issuers::Error::Limited(limit)) = &what {
            // The CA was not asked: this is no failure of the certificate.
            let leaf = of.leaf.as_ref();
            let at = after_limit(context, of.account, leaf, of.has_fallback, *limit).await;
            return Finished::Later(at, Some(what.to_string().into()));
        }
        let rehearsal = matches!(what, Self::Rehearsal(_));
        let backoff = context.config().retry;
        let mut retry_at = now;
        let mut accounts = BTreeSet::from([of.account]);
        let invalid = match &what {
            Self::Acme(error) if validation => invalid(error, &of),
            _ => BTreeSet::new(),
        };
        accounts.extend(&invalid);
        let named = match &what {
            Self::Acme(error) if limited => error.problem().and_then(acme::Problem::limited),
            _ => None,
        };
        let named = named.map(|it| limits::account(&of.issuer, &of.directory, &it));
        accounts.extend(named);
        let counted = context
            .ledger
            .update_all(accounts, |id, account| {
                if invalid.contains(&id) {
                    account.invalid(now, &backoff);
                }
                if named == Some(id) {
                    account.limited_until = until.map(|until| until.0);
                }
                if id != of.account {
                    return;
                }
                if let Some(until) = until.filter(|_| limited) {
                    account.limited(until, of.wish);
                    retry_at = until;
                } else {
                    let leaf = of.leaf.as_ref();
                    retry_at = account.failed(now, &backoff, leaf, validation, until, of.wish);
                }
                if rehearsal {
                    account.rehearsals = account.rehearsals.saturating_sub(1);
                } else if validation && of.has_staging {
                    account.rehearsals = REHEARSALS;
                }
                // One answer that fails is no outage; a limit is one at once.
                if of.has_fallback && (limited || outage && account.failures > 1) {
                    let until = retry_at.max(now + OUT_OF_REACH);
                    account.unavailable_until = Some(until.0);
                    retry_at = retry_at.min(short_at.max(now));
                    account.retry_at = Some(retry_at.0);
                }
            })
            .await;
        if let Err(error) = counted {
            tracing::warn!(secret = %key, %error, "the ledger could not be written; it is right in memory");
        }
        let text = cut(&what.to_string()).to_owned();
        tracing::warn!(secret = %key, step = "failed", issuer = %of.issuer, reason, error = text, %retry_at, "the renewal failed");
        context
            .metrics
            .renewal(&of.issuer, RenewalResult::Failed, reason);
        // Events of one reason are one series, with the first one's note.
        let event = if rehearsal {
            Reason::RehearsalFailed
        } else {
            Reason::RenewalFailed
        };
        let note = format!("{reason}: {text}; next try at {retry_at}");
        context.events.secret(key, &of.uid, event, &note);
        inscribe(context, key, &of.uid, &text, retry_at).await;
        match &what {
            Self::Acme(error) if error.class() == Class::Paused => {
                Finished::Stuck(retry_at, Stuck::Paused, text.into())
            }
            _ => Finished::Later(retry_at, Some(text.into())),
        }
    }
}

/// The accounts of the names that could not be proven: those that the CA names, else all.
fn invalid(error: &acme::Error, of: &Of) -> BTreeSet<u64> {
    let named = error.problem().map_or(&[][..], |it| &it.subproblems);
    let named: Vec<Name> = named.iter().filter_map(|it| it.name.parse().ok()).collect();
    let names = if named.is_empty() { &of.names } else { &named };
    validations::accounts(&of.issuer, names)
        .into_keys()
        .collect()
}

/// When to look again at a renewal that the CA has not been asked for, since it is limited until then: where there is a
/// fallback, as soon as life runs short.
pub(super) async fn after_limit(
    context: &Context,
    account: u64,
    leaf: Option<&crate::certificate::Leaf>,
    has_fallback: bool,
    until: UnixTime,
) -> UnixTime {
    if !has_fallback {
        return until;
    }
    let now = UnixTime::now();
    let short_at = leaf.map_or(now, budget::runs_short_at);
    let known = context.ledger.get(account).unavailable_until >= Some(until.0);
    // Whoever was looked for already, and is not what the CA is asked instead, does not help out now.
    let again = if known { NO_FALLBACK } else { AFTER_CONFLICT };
    let noted = context
        .ledger
        .update(account, |account| account.unavailable_until = Some(until.0))
        .await;
    if let Err(error) = noted {
        tracing::warn!(%error, "the ledger could not be written; it is right in memory");
    }
    until.min(short_at.max(now + again))
}

/// Writes the error onto the Secret for the reader; where it cannot be written, Event and log have it.
async fn inscribe(context: &Context, key: &Key, uid: &str, text: &str, retry_at: UnixTime) {
    let written = async {
        let secret = secrets::get(&context.client, key).await?;
        let changes = Changes {
            annotations: vec![
                (keys::LAST_ERROR, Some(text.to_owned())),
                (keys::RETRY_AT, Some(retry_at.to_string())),
            ],
            ..Changes::default()
        };
        if secret.head.uid() != uid {
            return Ok(());
        }
        secrets::patch(&context.client, &secret.head, &changes)
            .await
            .map(|_| ())
    };
    if let Err(error) = written.await {
        tracing::debug!(secret = %key, %error, "the error could not be written onto the Secret");
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
