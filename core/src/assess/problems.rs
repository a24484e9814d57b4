//! What is wrong with a Secret, in words: with its annotations under the config, its certificate, and its names.

use std::time::Duration;

use super::EXTERNAL;
use crate::certificate::{Leaf, Remark, Unreadable};
use crate::config::Config;
use crate::schedule::due::{Due, Never};
use crate::secret::data::outputs::Part;
use crate::secret::keys;
use crate::secret::object::head::Head;
use crate::secret::settings::{Blocks, IssuerRef, Problem, RenewBefore, Settings};
use crate::text::name::Name;
use crate::text::{holds_private_key, shown, similar};
use crate::time::UnixTime;
use crate::time::duration::human;

/// Most names or issuers that a problem lists.
const MOST_GRANTED: usize = 10;

/// What is wrong beside what the annotations alone show, at `now` and with that `renewal` ahead.
pub(super) fn beside(
    now: UnixTime,
    head: &Head,
    settings: &Settings,
    (leaf, renewal): (&Result<Leaf, Unreadable>, Result<Due, Never>),
) -> impl Iterator<Item = Problem> {
    let written = head.annotation(keys::RENEW_BEFORE);
    let readable = leaf.as_ref().ok();
    let cut = readable.and_then(|leaf| cut_renew_before(written, settings, leaf));
    let near = head.near.as_deref().map(near_miss);
    let several = [cut, near, without_password(settings)]
        .into_iter()
        .flatten();
    let renewed_before = |end: UnixTime| end > now && renewal.is_ok_and(|due| due.at < end);
    several.chain(of_certificate(leaf, settings, renewed_before))
}

/// The problem of a Secret without a certificate that names nothing to ask for.
pub(super) fn without_names() -> Problem {
    Problem {
        key: keys::NAMES.into(),
        value: "no certificate to take them from".into(),
        expected: "expected the names to ask for".into(),
        blocks: Blocks::Issue,
    }
}

/// Key of the problem of a Secret that another program writes.
pub const OTHER_WRITER: &str = "other-writer";
/// Key of the problem of a Secret whose data cannot be changed.
pub const IMMUTABLE: &str = "immutable";

/// Why a Secret whose issuer is one of the config is left alone, if it is: another program writes it, or nobody can.
#[must_use]
pub fn left_alone(head: &Head) -> Option<(Never, Problem)> {
    let problem = |key: &str, value: String, expected: String| Problem {
        key: key.into(),
        value,
        expected,
        blocks: Blocks::Issue,
    };
    if let Some(keeper) = &head.keeper {
        let problem = problem(OTHER_WRITER, shown(&keeper.to_string()), keeper.remedy());
        return Some((Never::OwnedByAnother, problem));
    }
    head.immutable.then(|| {
        let expected = "expected a Secret that can be changed: delete it and create it again without immutable: true";
        let problem = problem(IMMUTABLE, "true".into(), expected.into());
        (Never::Immutable, problem)
    })
}

/// The problem of an issuer that the config does not have.
pub(super) fn unknown_issuer(name: &str, config: &Config) -> Problem {
    Problem {
        key: keys::ISSUER.into(),
        value: shown(name),
        expected: known_issuers(name, config),
        blocks: Blocks::Issue,
    }
}

/// The problem of a name that the issuer does not allow the namespace.
pub(super) fn not_granted(
    refused: &Name,
    issuer: &str,
    namespace: &str,
    granted: impl Iterator<Item = String>,
) -> Problem {
    let granted = some(granted, MOST_GRANTED);
    Problem {
        key: keys::NAMES.into(),
        value: shown(&refused.to_string()),
        expected: format!(
            "expected names that issuers.{issuer}.allow of the config grants to namespace {namespace}: {granted}; who runs \
             cert-renew can grant more there"
        ),
        blocks: Blocks::Issue,
    }
}

/// What is wrong with the certificate itself, or with its file; `renewed_before` says whether it is renewed before an
/// instant.
fn of_certificate(
    leaf: &Result<Leaf, Unreadable>,
    settings: &Settings,
    renewed_before: impl Fn(UnixTime) -> bool,
) -> Vec<Problem> {
    let problem = |value: String, expected: &str| Problem {
        key: "certificate".into(),
        value,
        expected: expected.into(),
        blocks: Blocks::Nothing,
    };
    let leaf = match leaf {
        Ok(leaf) => leaf,
        Err(Unreadable::Empty) => return Vec::new(),
        Err(reason) => {
            return vec![problem(
                reason.to_string(),
                "put one there that can be read, or have one issued by cert-renew.io/issuer and cert-renew.io/names",
            )];
        }
    };
    let external = settings.issuer == IssuerRef::External;
    let remarks = leaf.remarks.iter().filter_map(|remark| {
        let expected = match remark {
            Remark::NotFirst { .. } => "put the server certificate first, then its issuers",
            Remark::EndsSooner { at, .. } if !external && leaf.issuer_ends == Some(*at) => {
                if renewed_before(*at) {
                    "clients refuse it from then on: it is renewed before that, and the CA needs another certificate of its \
                     own by then"
                } else {
                    "clients refuse it from then on: have a new one issued, once the CA signs with a certificate that lasts \
                     longer"
                }
            }
            Remark::EndsSooner { .. } => {
                "clients refuse it from then on, unless they know another root: take a chain that lasts as long, from the CA"
            }
            Remark::Unreadable(_) => "put the whole chain there",
            // Irrelevant unless a renewal asks for these names.
            Remark::OddNames { .. } | Remark::ManyNames { .. }
                if external || settings.names.is_some() =>
            {
                return None;
            }
            Remark::OddNames { .. } => {
                "they would be lost: it is renewed without them only when it would expire; name those to ask for in \
                 cert-renew.io/names"
            }
            Remark::ManyNames { .. } => "it is not renewed: name those to ask for in cert-renew.io/names",
        };
        Some(problem(remark.to_string(), expected))
    });
    remarks.collect()
}

/// The issuers that there are, and which of them may have been meant.
fn known_issuers(name: &str, config: &Config) -> String {
    let known = || config.issuers.keys().map(String::as_str);
    let list = some(known().map(str::to_owned), MOST_GRANTED);
    let meant = similar::question(name, known().chain([EXTERNAL]));
    format!("expected an issuer of the config ({list}) or external{meant}")
}

/// The first few of a list and how many more there are, or "none".
fn some(items: impl Iterator<Item = String>, most: usize) -> String {
    let mut items = items.peekable();
    if items.peek().is_none() {
        return "none".to_owned();
    }
    let first: Vec<String> = items.by_ref().take(most).collect();
    match items.count() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Completes the problem of an issuer that does not parse with the issuers that there are.
pub(super) fn complete(
    mut problems: Vec<Problem>,
    config: &Config,
    written: Option<&str>,
) -> Vec<Problem> {
    let of_issuer = |it: &&mut Problem| &*it.key == keys::ISSUER;
    if let Some(written) = written
        && !holds_private_key(written)
        && let Some(problem) = problems.iter_mut().find(of_issuer)
    {
        problem.expected = known_issuers(written, config);
    }
    problems
}

/// The problem of a PKCS#12 output for which no password is named.
fn without_password(settings: &Settings) -> Option<Problem> {
    let bags = { settings.outputs.iter() }.find(|output| output.parts.contains(&Part::Pkcs12))?;
    settings.pkcs12_password_key.is_none().then(|| Problem {
        key: keys::OUTPUTS.into(),
        value: shown(&bags.to_string()),
        expected: format!(
            "expected {} beside it, which names the key of this Secret that holds the password: without one it is left out",
            keys::PKCS12_PASSWORD_KEY
        ),
        blocks: Blocks::Nothing,
    })
}

/// The problem of an annotation whose prefix is nearly ours.
fn near_miss(key: &str) -> Problem {
    Problem {
        key: key.into(),
        value: "not read".into(),
        expected: format!("expected the prefix {}", keys::PREFIX),
        blocks: Blocks::Nothing,
    }
}

/// The problem of a `renew-before` that is longer than half of the lifetime.
fn cut_renew_before(written: Option<&str>, settings: &Settings, leaf: &Leaf) -> Option<Problem> {
    let half = leaf.lifetime() / 2;
    let too_long = match settings.renew_before? {
        RenewBefore::Before(before) => before > half,
        RenewBefore::Share(percent) => percent > 50,
    };
    too_long.then_some(())?;
    Some(Problem {
        key: keys::RENEW_BEFORE.into(),
        value: shown(written?),
        expected: format!(
            "expected at most half of the certificate's lifetime: it is renewed when half is left, {} before its end",
            rounded(half)
        ),
        blocks: Blocks::Nothing,
    })
}

/// A duration in days, or in full where it is short.
fn rounded(duration: Duration) -> String {
    const DAY: u64 = 86_400;
    let seconds = duration.as_secs();
    if seconds < 2 * DAY {
        return human(duration);
    }
    format!("{}d", (seconds + DAY / 2) / DAY)
}
