//! What went wrong at a CA, and what it means for the next try.
//!
//! Input: an HTTP answer, a failed connection, or an order that became invalid.
//! Output: a [`Class`] that the schedule acts on, a stable [`Error::reason`] for Events and metrics, and the CA's own
//! words for the reader.
//! Classification is pure, and the text of an error never contains key material, as only the CA's answers go in.

pub(super) mod problem;

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use cert_renew_core::time::UnixTime;

use crate::acme::error::problem::{Class, Problem, Scope};
use crate::process::write_gate::Closed;

/// Assumed length of a limit without a time: the shortest window of the public CAs' limits.
const UNNAMED_LIMIT: Duration = Duration::from_secs(3_600);
/// Longest Retry-After; longer ones are cut: the longest window of any published limit (Let's Encrypt, 7 days).
pub(crate) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(7 * 86_400);

/// The purpose of a request: a label of metrics, and the first words of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "named like the resources of RFC 8555, section 7.1"
)]
pub enum Action {
    Directory,
    NewNonce,
    NewAccount,
    Account,
    NewOrder,
    Order,
    Authorization,
    Challenge,
    Finalize,
    Certificate,
    RenewalInfo,
    RevokeCert,
    KeyChange,
}

impl Action {
    /// The name in the directory, as in RFC 8555 and RFC 9773.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::NewNonce => "newNonce",
            Self::NewAccount => "newAccount",
            Self::Account => "account",
            Self::NewOrder => "newOrder",
            Self::Order => "order",
            Self::Authorization => "authorization",
            Self::Challenge => "challenge",
            Self::Finalize => "finalize",
            Self::Certificate => "certificate",
            Self::RenewalInfo => "renewalInfo",
            Self::RevokeCert => "revokeCert",
            Self::KeyChange => "keyChange",
        }
    }

    fn is_of_an_account(self) -> bool {
        matches!(self, Self::NewAccount | Self::Account)
    }

    /// Whether the request is about an order, or a part of one, that the CA may no longer have.
    fn is_of_an_order(self) -> bool {
        matches!(
            self,
            Self::Order
                | Self::Authorization
                | Self::Challenge
                | Self::Finalize
                | Self::Certificate
        )
    }
}

/// A failed request to a CA, or a failed order.
#[derive(Debug)]
pub struct Error {
    action: Action,
    host: Box<str>,
    kind: Kind,
    until: Option<UnixTime>,
}

/// How it failed.
#[derive(Debug)]
pub(crate) enum Kind {
    /// No connection, or a broken one.
    Unreachable(reqwest::Error),
    /// Our own deadline for a request, or for a free slot.
    TimedOut,
    /// The CA answered with this status and a problem document.
    Refused(u16, Box<Problem>),
    /// An answer without a problem document, usually a load balancer's page.
    Status(u16),
    /// The answer violates the RFC.
    Unexpected(&'static str, Option<serde_json::Error>),
    /// The order became invalid.
    Invalid(Box<Problem>),
    /// The CA was still working at the caller's deadline.
    Unfinished,
    /// No account has been registered or restored.
    NoAccount,
    /// This replica does not lead: nothing, or nothing more, was sent.
    Closed(Closed),
    /// Refused by cert-renew, before anything was sent or for what the CA has made of it; it would be refused again.
    Settings(Box<str>),
}

// === impl Error ===

impl Error {
    pub(crate) fn new(action: Action, host: &str, kind: Kind) -> Self {
        Self {
            action,
            host: host.into(),
            kind,
            until: None,
        }
    }

    /// Refused by our own checks; `why` says what was expected.
    pub(crate) fn settings(action: Action, why: impl Into<Box<str>>) -> Self {
        Self::new(action, "", Kind::Settings(why.into()))
    }

    pub(crate) fn unexpected(action: Action, host: &str, what: &'static str) -> Self {
        Self::new(action, host, Kind::Unexpected(what, None))
    }

    /// An answer with an error status.
    pub(crate) fn answer(
        action: Action,
        host: &str,
        status: u16,
        body: &[u8],
        retry_after: Option<Duration>,
        now: UnixTime,
    ) -> Self {
        let problem = serde_json::from_slice(body)
            .ok()
            .and_then(|body| Problem::from_json(&body));
        let limited = status == 429 || problem.as_ref().is_some_and(|it| it.kind == "rateLimited");
        let until = retry_after
            // `now` is rounded down: one second more, so that no request comes too early.
            .map(|wait| now + wait.min(LONGEST_RETRY_AFTER) + Duration::from_secs(1))
            // A time in the past comes from another clock, and is ignored.
            .or_else(|| problem.as_ref()?.named_time().filter(|until| *until > now))
            .or_else(|| limited.then(|| now + UNNAMED_LIMIT))
            .map(|until| until.min(now + LONGEST_RETRY_AFTER));
        let kind = problem.map_or(Kind::Status(status), |it| {
            Kind::Refused(status, Box::new(it))
        });
        Self {
            until,
            ..Self::new(action, host, kind)
        }
    }

    /// Adds when the CA may be asked again.
    pub(crate) fn retry_at(mut self, until: Option<UnixTime>) -> Self {
        self.until = until;
        self
    }

    /// The purpose of the request.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// How to react to it.
    #[must_use]
    pub fn class(&self) -> Class {
        let until = self.until.unwrap_or_default();
        let scope = Scope::Issuer;
        match &self.kind {
            _ if self.is_gone() => Class::Transient,
            // RFC 9110, 15.6.4: an overloaded server may say when to come back.
            Kind::Status(503) | Kind::Refused(503, _) if self.until.is_some() => {
                Class::RateLimited { until, scope }
            }
            Kind::Status(429) => Class::RateLimited { until, scope },
            Kind::Refused(status, problem) => match problem.class(until) {
                // Before there is an account, `unauthorized` is about its binding or its key, not about a name.
                Some(Class::FixIt) if self.action.is_of_an_account() => Class::Permanent,
                Some(class) => class,
                None if *status == 429 => Class::RateLimited { until, scope },
                None if *status >= 500 => Class::Transient,
                None => Class::FixIt,
            },
            Kind::Invalid(problem) => match problem.class(until) {
                // An order stores the CA's text, not the time of a limit.
                None | Some(Class::RateLimited { .. }) => Class::FixIt,
                Some(class) => class,
            },
            Kind::NoAccount => Class::AccountGone,
            Kind::Settings(_) => Class::Permanent,
            Kind::Unreachable(_)
            | Kind::TimedOut
            | Kind::Status(_)
            | Kind::Unexpected(..)
            | Kind::Closed(_)
            | Kind::Unfinished => Class::Transient,
        }
    }

    /// A stable name in PascalCase, for Events and metric labels.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match &self.kind {
            _ if self.is_gone() => "OrderGone",
            Kind::Refused(_, problem) | Kind::Invalid(problem) if problem.reason().is_some() => {
                problem.reason().unwrap_or_default()
            }
            Kind::Unreachable(_) => "Unreachable",
            Kind::TimedOut => "TimedOut",
            Kind::Refused(429, _) | Kind::Status(429) => "RateLimited",
            Kind::Refused(..) => "Refused",
            Kind::Invalid(_) => "OrderInvalid",
            Kind::Status(500..) => "Unavailable",
            Kind::Status(_) | Kind::Unexpected(..) => "UnexpectedAnswer",
            Kind::Unfinished => "Unfinished",
            Kind::NoAccount => "NoAccount",
            Kind::Closed(_) => "NotLeading",
            Kind::Settings(_) => "Settings",
        }
    }

    /// When the CA may be asked again, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<UnixTime> {
        self.until
    }

    /// The CA's problem with all its subproblems, or the other details: for Events.
    #[must_use]
    pub fn detail(&self) -> String {
        match &self.kind {
            Kind::Refused(_, problem) | Kind::Invalid(problem) => problem.to_string(),
            // "Connection refused" or "UnknownIssuer" is at the end of the chain.
            Kind::Unreachable(source) => format!("{self}: {}", innermost(source)),
            _ => self.to_string(),
        }
    }

    /// The problem document, if the CA sent one.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match &self.kind {
            Kind::Refused(_, problem) | Kind::Invalid(problem) => Some(problem),
            _ => None,
        }
    }

    /// Whether the CA does not know the order, or it is another account's: begin a new one.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match &self.kind {
            Kind::Refused(404 | 410, problem) => {
                self.action.is_of_an_order() && problem.kind != "accountDoesNotExist"
            }
            Kind::Refused(401 | 403, problem) => {
                self.action == Action::Order && problem.kind == "unauthorized"
            }
            // Pebble returns nothing else.
            Kind::Status(404 | 410) => self.action == Action::Order,
            _ => false,
        }
    }

    /// Whether the answer cannot be read.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        matches!(self.kind, Kind::Unexpected(..))
    }

    /// Whether the CA refuses and would refuse again: no outage and no limit.
    pub(crate) fn is_refusal(&self) -> bool {
        let status = self.status().unwrap_or_default();
        (400..500).contains(&status) && status != 429
    }

    /// Whether the CA will never do this: it does not support it, or refuses.
    #[must_use]
    pub fn is_final(&self) -> bool {
        let unsupported = matches!(self.status(), Some(404 | 405 | 501));
        unsupported || self.class() == Class::Permanent
    }

    /// Whether the CA has tried to validate a name and failed, which counts for its limits.
    #[must_use]
    pub fn is_failed_validation(&self) -> bool {
        matches!(self.kind, Kind::Invalid(_)) && self.action == Action::Authorization
    }

    /// Whether a CA may answer so when the signing key no longer belongs to the account, or when the CA has lost the
    /// account. The error types differ between CAs.
    #[must_use]
    pub fn may_be_the_key(&self) -> bool {
        use Action::{Directory, NewAccount, NewNonce, RenewalInfo};
        let kinds = ["malformed", "unauthorized", "accountDoesNotExist"];
        let signed = !matches!(self.action, Directory | NewAccount | NewNonce | RenewalInfo);
        let unclear = match &self.kind {
            Kind::Refused(400 | 401 | 403, problem) => {
                problem.reason().is_none() || kinds.iter().any(|kind| self.is(kind))
            }
            Kind::Refused(..) => kinds.iter().any(|kind| self.is(kind)),
            Kind::Status(status) => [400, 401, 403].contains(status),
            _ => false,
        };
        signed && unclear
    }

    /// Whether the CA refuses a setting of one Secret: its profile or its key.
    #[must_use]
    pub fn is_about_settings(&self) -> bool {
        let kinds = ["invalidProfile", "badCSR", "badPublicKey"];
        kinds.iter().any(|kind| self.is(kind))
    }

    /// Whether a CA that refuses the requested end of validity may have answered so: few name the cause, and some find
    /// out only at finalize.
    #[must_use]
    pub fn may_be_the_lifetime(&self) -> bool {
        let kinds = ["malformed", "serverInternal", "unauthorized"];
        let unclear = match &self.kind {
            Kind::Refused(_, problem) | Kind::Invalid(problem) => {
                problem.reason().is_none() || kinds.iter().any(|kind| self.is(kind))
            }
            Kind::Status(status) => (400..500).contains(status) && *status != 429,
            _ => false,
        };
        unclear && matches!(self.action, Action::NewOrder | Action::Finalize)
    }

    pub(crate) fn is(&self, problem: &str) -> bool {
        self.problem().is_some_and(|it| it.kind == problem)
    }

    /// The status of the answer, if there was one.
    pub(crate) fn status(&self) -> Option<u16> {
        match self.kind {
            Kind::Refused(status, _) | Kind::Status(status) => Some(status),
            _ => None,
        }
    }

    /// Whether there was no answer because nothing listens, or the name does not resolve.
    pub(crate) fn is_connect(&self) -> bool {
        matches!(&self.kind, Kind::Unreachable(source) if source.is_connect())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            action,
            host,
            kind,
            until,
        } = self;
        let action = action.as_str();
        match kind {
            Kind::Unreachable(_) => write!(f, "{action}: no answer from {host}"),
            Kind::TimedOut => write!(f, "{action}: no answer from {host} in time"),
            Kind::Refused(status, problem) => {
                write!(f, "{action}: {host} answered {status}: {problem}")
            }
            Kind::Status(status) => write!(
                f,
                "{action}: {host} answered {status} without a problem document"
            ),
            Kind::Unexpected(what, why) => {
                write!(f, "{action}: unexpected answer from {host}: {what}")?;
                match why {
                    // It may quote the CA's answer.
                    Some(why) => {
                        write!(f, " ({:.200})", why.to_string().escape_debug().to_string())
                    }
                    None => Ok(()),
                }
            }
            Kind::Invalid(problem) => {
                write!(f, "{action}: {host} made the order invalid: {problem}")
            }
            Kind::Unfinished => write!(
                f,
                "{action}: {host} was still at work when our deadline came"
            ),
            Kind::NoAccount => write!(f, "{action}: no account is registered with this issuer"),
            Kind::Closed(closed) => write!(f, "{action}: {closed}"),
            Kind::Settings(why) => write!(f, "{action}: {why}"),
        }?;
        match until {
            Some(until) => write!(f, ", not again before {until}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.kind {
            Kind::Unreachable(source) => Some(source),
            Kind::Unexpected(_, Some(source)) => Some(source),
            _ => None,
        }
    }
}

fn innermost<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    error.source().map_or(error, innermost)
}

#[cfg(test)]
mod tests;
