//! What a Secret needs according to its annotations and the config: one function for the watch, renewals and rollouts.
//!
//! Input: annotations, the leaf, the config, the clock. Output: an [`Assessment`], or None if the Secret is not ours.
//! Pure. Before anything is done, the Secret is read again and assessed again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::certificate::pair;
use crate::certificate::{self, Fingerprint, KeyType, Leaf, Remark, Unreadable};
use crate::config::{Config, Labels};
use crate::index::{Fault, LeafFacts, Observed, Shown};
use crate::rollout::HaltNote;
use crate::schedule::due::{self, Due, Heed, Inputs, Never, Reason, Suggestion};
use crate::schedule::rate_limits::{AccountId, Claim, account_of, young_until};
use crate::secret::SecretRef;
use crate::secret::full::FullSecret;
use crate::secret::head::Head;
use crate::secret::keys;
use crate::secret::outputs::Part;
use crate::secret::parts::ChainAndCa;
use crate::secret::place::TLS_TYPE;
use crate::secret::settings::{
    Blocks, FORCE, IssuerRef, NamespaceDefaults, Problem, RenewBefore, Settings,
};
use crate::secret::state::{IssuedBy, RolledOut};
use crate::secret::thin::{CertificateState, ThinSecret};
use crate::secret::used_by::UsedBy;
use crate::text::hash::hash;
use crate::text::name::Name;
use crate::text::{holds_private_key, shown, similar};
use crate::time::UnixTime;
use crate::time::duration::human;

/// A window is overruled when less than this share of the lifetime would be left in it, as a rollout takes time.
const WINDOW_MARGIN_SHARE: u32 = 10;
/// Most bytes of names that the status page shows of one certificate; some have a hundred names.
const MOST_NAMES: usize = 160;
/// Longest URL of an account that is kept.
const LONGEST_ACCOUNT: usize = 256;
/// Most problems of one Secret that are told: a Secret may have thousands of annotations.
const MOST_TOLD: usize = 10;
/// Precedes the number of names that are left out.
const AND: &str = " and ";
/// Follows it.
const MORE: &str = " more";
/// Most names or issuers that a problem lists.
const MOST_GRANTED: usize = 10;
/// Issuer name of a certificate that cert-renew does not issue.
pub const EXTERNAL: &str = "external";

/// What a Secret needs, and why.
#[derive(Clone, Debug)]
pub struct Assessment {
    /// What the annotations ask for.
    pub settings: Settings,
    /// What is wrong with them.
    pub problems: Vec<Problem>,
    /// The leaf in the Secret.
    pub leaf: Result<Leaf, Unreadable>,
    /// The names to ask for.
    pub names: Vec<Name>,
    /// What the workloads have, by the record.
    pub rolled_out: Option<RolledOut>,
    /// The chain and the CA certificates of the Secret, as far as they count.
    pub with: ChainAndCa,
    /// The record of what the workloads have was written for another Secret.
    pub copied_record: bool,
    /// What the last renewal by cert-renew was made with.
    pub issued_by: Option<IssuedBy>,
    /// When to renew and why, or why never.
    pub renewal: Result<Due, Never>,
    /// What the CA's renewal information may change about `renewal`.
    pub heed: Heed,
    /// The Secret's account in the ledger.
    pub account: AccountId,
    /// When the change window opens, or the instant that overrules it.
    pub opens: Option<UnixTime>,
    /// Set when the window is overruled: the instant at which it would open. By then too little of the validity of what
    /// the workloads serve would be left, or that certificate is revoked.
    pub overruled: Option<UnixTime>,
    /// Whether a rollout may not start.
    pub rollout_blocked: bool,
    /// What the problems block.
    pub blocked: Blocks,
    /// The certificate that was asked for is held until then, as the present one is younger than a tenth of its lifetime.
    pub held_until: Option<UnixTime>,
    /// The halt in which an earlier rollout ended.
    pub halted: Option<HaltNote>,
    /// See [`Self::wish`].
    unserved: Option<u64>,
}

/// Assesses what the watch brought; None where the Secret has not opted in or means another installation.
#[must_use]
pub fn of_thin(
    now: UnixTime,
    key: &SecretRef,
    secret: &ThinSecret,
    config: &Config,
) -> Option<Assessment> {
    assess(
        now,
        key,
        (&secret.head, || secret.ca()),
        || secret.certificate(),
        (Some(config), Labels::NotAsked),
        |_| None,
    )
}

/// As [`of_thin`], where the config is not known or means another class: no defaults, and every issuer is taken to exist
/// and to allow all names. For people only: nothing is done by it.
#[must_use]
pub fn of_thin_alone(now: UnixTime, key: &SecretRef, secret: &ThinSecret) -> Option<Assessment> {
    assess(
        now,
        key,
        (&secret.head, || secret.ca()),
        || secret.certificate(),
        (None, Labels::NotAsked),
        |_| None,
    )
}

/// What the index keeps of a Secret without annotations, for `watch.observe: all`: validity and names.
/// Nothing is ever due for it, neither a renewal nor a rollout.
#[must_use]
pub fn bystander(secret: &ThinSecret) -> Option<(Observed, Leaf)> {
    let head = &secret.head;
    let CertificateState::Leaf(leaf) = secret.certificate() else {
        return None;
    };
    if head.deleting || secret.kind != TLS_TYPE {
        return None;
    }
    let observed = Observed {
        uid: head.uid().into(),
        resource_version: head.resource_version().into(),
        issuer: "".into(),
        leaf: Ok(facts(&leaf, ChainAndCa::NONE)),
        rolled_out: None,
        renewal: Err(Never::NotAnnotated),
        heed: Heed::Nothing,
        suggestion: Suggestion::None,
        window: None,
        account: 0.into(),
        wish: None,
        rollout_blocked: true,
        blocked: Blocks::Nothing,
        held_until: None,
        copied_record: false,
        halted: false,
        renewed: None,
        problems: 0,
        problem_texts: 0,
    };
    Some((observed, *leaf))
}

fn facts(leaf: &Leaf, with: ChainAndCa) -> LeafFacts {
    LeafFacts {
        fingerprint: leaf.fingerprint,
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        with,
    }
}

/// Names for the status page, comma-separated and cut where there are very many.
#[must_use]
pub fn listed(names: &[Name]) -> Box<str> {
    let mut list = String::new();
    for (number, name) in names.iter().enumerate() {
        if list.len() >= MOST_NAMES {
            list += &format!("{AND}{}{MORE}", names.len() - number);
            break;
        }
        if number > 0 {
            list.push_str(", ");
        }
        list += &name.to_string();
    }
    list.into()
}

/// The names in a text of [`listed`], and the number of those that were left out.
#[must_use]
pub fn unlisted(list: &str) -> (Vec<Box<str>>, usize) {
    let cut = list.strip_suffix(MORE).and_then(|it| it.rsplit_once(AND));
    let cut = cut.and_then(|(names, more)| Some((names, more.parse().ok()?)));
    let (names, more) = cut.unwrap_or((list, 0));
    let names = names.split(", ").filter(|name| !name.is_empty());
    (names.map(Into::into).collect(), more)
}

/// Assesses a Secret that was just read; `suggested` is the instant that the CA suggests for a leaf. The caller passes
/// the namespace's labels when it goes on to ask a CA.
#[must_use]
pub fn of_full(
    now: UnixTime,
    key: &SecretRef,
    secret: &FullSecret,
    (config, labels): (&Config, Labels<'_>),
    suggested: impl Fn(Fingerprint) -> Option<UnixTime>,
) -> Option<Assessment> {
    let (certificate, _) = secret.pair();
    let certificate = || match certificate::leaf(certificate) {
        Ok(leaf) => CertificateState::Leaf(Box::new(leaf)),
        Err(reason) => CertificateState::Unreadable(reason),
    };
    assess(
        now,
        key,
        (&secret.head, || secret.ca()),
        certificate,
        (Some(config), labels),
        suggested,
    )
}

fn assess(
    now: UnixTime,
    key: &SecretRef,
    (head, ca): (&Head, impl FnOnce() -> Option<u32>),
    certificate: impl FnOnce() -> CertificateState,
    (config, labels): (Option<&Config>, Labels<'_>),
    suggested: impl Fn(Fingerprint) -> Option<UnixTime>,
) -> Option<Assessment> {
    if !head.concerns_us() || head.deleting {
        return None;
    }
    let none = BTreeMap::new();
    let annotations = head.annotations().unwrap_or(&none);
    let no_defaults = NamespaceDefaults::default();
    let defaults = config.map_or(&no_defaults, |config| config.namespace(&key.namespace));
    let (settings, mut problems) = Settings::read(annotations, head.managed, defaults);
    let is_ours = |it: &Settings| config.is_none_or(|config| it.is_for(&config.class));
    let mut settings = settings.filter(is_ours)?;
    settings.paused |= config.is_some_and(|config| config.paused);
    let written = |key: &str| annotations.get(key).map(String::as_str);
    if let Some(config) = config
        && settings.issuer == IssuerRef::Named(Arc::from(""))
    {
        problems = complete(problems, config, written(keys::ISSUER));
    }
    let leaf = match certificate() {
        CertificateState::Leaf(leaf) => Ok(*leaf),
        CertificateState::Absent => Err(Unreadable::Empty),
        CertificateState::Unreadable(reason) => Err(reason),
    };
    let rolled_out = RolledOut::read(annotations, head.uid());
    let copied_record = RolledOut::is_of_another(annotations, head.uid());
    let with = {
        let chain = leaf.as_ref().map_or(0, |leaf| leaf.chain);
        let had = rolled_out.and_then(RolledOut::with);
        ChainAndCa::counting(chain, ca(), settings.rollout_on, had)
    };
    let issued_by = IssuedBy::read(annotations);
    let names = match (&settings.names, &leaf) {
        (Some(names), _) => names.clone(),
        (None, Ok(leaf)) if !has_too_many_names(leaf) => leaf.names.clone(),
        (None, Ok(_)) => Vec::new(),
        // An emptied Secret is issued again with the names of the last issue.
        (None, Err(_)) => issued_by
            .as_ref()
            .map_or_else(Vec::new, |it| it.names.clone()),
    };
    let odd = leaf.as_ref().is_ok_and(|leaf| loses_names(leaf, &settings));
    let blocked = odd || problems.iter().any(|problem| problem.blocks.issue());
    let renewal = due::due(&Inputs {
        leaf: leaf.as_ref(),
        settings: &settings,
        blocked,
        staged: config.is_some_and(|it| is_staged(&settings, &leaf, issued_by.as_ref(), it)),
        issued_by: issued_by.as_ref(),
        renewed_for: annotations.get(keys::RENEWED_FOR).map(String::as_str),
        renewal_info: leaf
            .as_ref()
            .ok()
            .and_then(|leaf| suggested(leaf.fingerprint)),
        seed: hash(&key.to_string()),
    });
    let renewal = renewal.and_then(|due| {
        let nameless = names.is_empty() && leaf.is_ok();
        if nameless {
            Err(Never::NoNames)
        } else {
            Ok(due)
        }
    });
    let granted = config.map_or(Ok(()), |it| may_issue(key, &settings, &names, it, labels));
    let renewal = match (renewal, granted) {
        (Ok(_), Err((never, problem))) => {
            // An issuer that does not parse is a problem already.
            let is_told = |it: &Problem| *it.key == *keys::ISSUER && it.blocks.issue();
            if never != Never::UnknownIssuer || !problems.iter().any(is_told) {
                problems.push(problem);
            }
            Err(never)
        }
        (renewal, _) => renewal,
    };
    let cut = { leaf.as_ref().ok() }
        .and_then(|leaf| cut_renew_before(written(keys::RENEW_BEFORE), &settings, leaf));
    problems.extend(cut);
    problems.extend(head.near.as_deref().map(near_miss));
    problems.extend(without_password(&settings));
    problems.extend(of_certificate(&leaf, &settings));
    let unread = matches!(&leaf, Err(reason) if !matches!(reason, Unreadable::Empty));
    if renewal == Err(Never::NoNames) && leaf.is_err() && !unread {
        problems.push(Problem {
            key: keys::NAMES.into(),
            value: "no certificate to take them from".into(),
            expected: "expected the names to ask for".into(),
            blocks: Blocks::Issue,
        });
    }
    let (opens, overruled) = opens(now, &settings, &leaf, rolled_out);
    // Independent of other reasons: a first certificate may also carry a `renew-now` value.
    let renewed_for = annotations.get(keys::RENEWED_FOR).map(String::as_str);
    let wished = settings.renew_now.as_deref();
    let unserved = wished.filter(|it| renewed_for != Some(it)).map(hash);
    let own = if odd { Blocks::Issue } else { Blocks::Nothing };
    let all = problems.iter().map(|problem| problem.blocks);
    let blocks = all.fold(own, Blocks::and);
    let rollout_blocked = settings.paused || blocks.rollout();
    let asked = renewal.is_ok_and(|due| due.reason == Reason::RenewNow);
    let held_until = { leaf.as_ref().ok() }
        .filter(|_| asked && !is_caused(&settings, issued_by.as_ref()))
        .and_then(|leaf| {
            let written = issued_by.as_ref().and_then(|by| by.wrote(leaf.fingerprint));
            young_until(now, leaf, written)
        });
    Some(Assessment {
        account: account_of(issuer_name(&settings.issuer), &names),
        unserved,
        problems,
        leaf,
        names,
        rolled_out,
        with,
        copied_record,
        issued_by,
        heed: due::heed(renewal, &settings, blocked),
        renewal,
        settings,
        opens,
        overruled,
        rollout_blocked,
        blocked: blocks,
        held_until,
        halted: annotations
            .get(keys::ROLLOUT_HALTED)
            .and_then(|note| note.parse().ok()),
    })
}

/// Whether a `renew-now` has a cause of its own: the Secret names another issuer than the last one, or forces it.
fn is_caused(settings: &Settings, issued_by: Option<&IssuedBy>) -> bool {
    let issuer = issuer_name(&settings.issuer);
    let moved = issued_by.is_some_and(|by| *by.issuer != *issuer);
    let wished = settings.renew_now.as_deref();
    moved || wished.is_some_and(|it| it.starts_with(FORCE))
}

/// Whether a renewal would ask for fewer names than the certificate has, because some of them cannot be asked for.
fn loses_names(leaf: &Leaf, settings: &Settings) -> bool {
    let odd = |remark: &Remark| matches!(remark, Remark::OddNames { .. });
    settings.names.is_none()
        && settings.issuer != IssuerRef::External
        && leaf.remarks.iter().any(odd)
}

/// Whether the certificate has more names than are read from one.
fn has_too_many_names(leaf: &Leaf) -> bool {
    let many = |remark: &Remark| matches!(remark, Remark::ManyNames { .. });
    leaf.remarks.iter().any(many)
}

/// What is wrong with the certificate itself, or with its file.
fn of_certificate(leaf: &Result<Leaf, Unreadable>, settings: &Settings) -> Vec<Problem> {
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
            Remark::NotFirst { .. } => "put the leaf first, then what certifies it",
            Remark::EndsSooner { .. } => {
                "clients refuse it from then on: take a chain that lasts as long, from the CA"
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

/// The issuer as the annotation names it.
#[must_use]
pub fn issuer_name(issuer: &IssuerRef) -> &str {
    match issuer {
        IssuerRef::External => EXTERNAL,
        IssuerRef::Named(name) => name,
    }
}

/// Whether the leaf is from a staging CA although the Secret's issuer is not: by the leaf's own issuer name, or because
/// it was issued by a staging issuer.
fn is_staged(
    settings: &Settings,
    leaf: &Result<Leaf, Unreadable>,
    issued_by: Option<&IssuedBy>,
    config: &Config,
) -> bool {
    let (IssuerRef::Named(issuer), Ok(leaf)) = (&settings.issuer, leaf) else {
        return false;
    };
    let written = issued_by.filter(|by| by.wrote(leaf.fingerprint).is_some());
    // A certificate from the Secret's own issuer is what was asked for.
    if config.is_staging(issuer) || written.is_some_and(|by| *by.issuer == **issuer) {
        return false;
    }
    leaf.issuer.to_string().contains(pair::STAGING)
        || written.is_some_and(|by| config.is_staging(&by.issuer))
}

/// Whether the config allows this Secret these names from its issuer; checked before the CA is asked.
fn may_issue(
    key: &SecretRef,
    settings: &Settings,
    names: &[Name],
    config: &Config,
    labels: Labels<'_>,
) -> Result<(), (Never, Problem)> {
    let IssuerRef::Named(name) = &settings.issuer else {
        return Ok(());
    };
    let refuse = |never, annotation: &str, value: String, expected: String| {
        let blocks = Blocks::Issue;
        Err((
            never,
            Problem {
                key: annotation.into(),
                value,
                expected,
                blocks,
            },
        ))
    };
    let Some(issuer) = config.issuer(name) else {
        let expected = known_issuers(name, config);
        let never = Never::UnknownIssuer;
        return refuse(never, keys::ISSUER, shown(name), expected);
    };
    match names
        .iter()
        .find(|name| !issuer.allows(&key.namespace, labels, name))
    {
        None => Ok(()),
        Some(name) => {
            let granted = issuer.granted(&key.namespace, labels);
            let expected = format!(
                "expected names that issuers.{}.allow of the config grants to namespace {}: {}; who runs cert-renew can \
                 grant more there",
                issuer_name(&settings.issuer),
                key.namespace,
                some(granted, MOST_GRANTED)
            );
            let value = shown(&name.to_string());
            refuse(Never::NotAllowed, keys::NAMES, value, expected)
        }
    }
}

/// The issuers that there are, and which of them may have been meant.
fn known_issuers(name: &str, config: &Config) -> String {
    let known = || config.issuers.keys().map(String::as_str);
    let list = some(known().map(str::to_owned), MOST_GRANTED);
    let meant = similar::meant(name, known().chain([EXTERNAL]));
    let meant = meant.map(|it| format!("; did you mean {it}?"));
    let meant = meant.unwrap_or_default();
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
fn complete(mut problems: Vec<Problem>, config: &Config, written: Option<&str>) -> Vec<Problem> {
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

/// When the change window opens. With it, the instant at which it would open if it is overruled: too little of the
/// validity of what the workloads serve would be left by then, or that certificate is revoked.
fn opens(
    now: UnixTime,
    settings: &Settings,
    leaf: &Result<Leaf, Unreadable>,
    rolled_out: Option<RolledOut>,
) -> (Option<UnixTime>, Option<UnixTime>) {
    let opens = settings.change_window.as_ref();
    let opens = opens
        .map(|window| window.next_open(now))
        .filter(|opens| *opens > now);
    let (Some(opens), Ok(leaf)) = (opens, leaf) else {
        return (None, None);
    };
    let served = rolled_out.and_then(RolledOut::fingerprint);
    // A revoked certificate is worth nothing, in the Secret or in the workloads.
    let revoked =
        { settings.revoked }.is_some_and(|it| it == leaf.fingerprint || Some(it) == served);
    let served_until = match rolled_out {
        Some(RolledOut::Leaf { not_after, .. }) => not_after.min(leaf.not_after),
        _ => leaf.not_after,
    };
    if !revoked && opens + leaf.lifetime() / WINDOW_MARGIN_SHARE < served_until {
        (Some(opens), None)
    } else {
        (None, Some(opens))
    }
}

impl Assessment {
    /// The pending `renew-now` value, hashed, whether or not the renewal may start: a failure is counted with it.
    #[must_use]
    pub fn unserved(&self) -> Option<u64> {
        self.unserved
    }

    /// The `renew-now` value, hashed, if it was not served yet.
    #[must_use]
    pub fn wish(&self) -> Option<u64> {
        self.unserved.filter(|_| self.renewal.is_ok())
    }

    /// Whether a `renew-now` has a cause of its own, so that it does not wait until the certificate is older.
    #[must_use]
    pub fn is_caused(&self) -> bool {
        is_caused(&self.settings, self.issued_by.as_ref())
    }

    /// The texts of the first problems.
    #[must_use]
    pub fn problem_texts(&self) -> Vec<String> {
        let told = self.problems.iter().take(MOST_TOLD);
        told.map(ToString::to_string).collect()
    }

    /// What people are shown of the Secret beside its state.
    #[must_use]
    pub fn shown(&self, head: &Head) -> Shown {
        let used_by = head.annotation(keys::USED_BY);
        let used_by = used_by.and_then(|text| text.parse::<UsedBy>().ok());
        let account = { self.issued_by.as_ref() }.and_then(|by| by.account.as_deref());
        Shown {
            names: self.listed_names(),
            used_by: used_by.map(|used_by| used_by.to_string().into()),
            account: account
                .filter(|it| it.len() <= LONGEST_ACCOUNT)
                .map(Into::into),
        }
    }

    /// The claim on the rate limits of a renewal for this reason.
    #[must_use]
    pub fn claim(&self, reason: Reason) -> Claim<'_> {
        let leaf = self.leaf.as_ref().ok();
        let issued_by = self.issued_by.as_ref();
        Claim {
            reason,
            wish: self.wish(),
            caused: self.is_caused(),
            leaf,
            written: leaf.and_then(|leaf| issued_by?.wrote(leaf.fingerprint)),
            by_lifetime: leaf.map(|leaf| {
                let before = due::renew_before(self.settings.renew_before, leaf.lifetime());
                leaf.not_after - before
            }),
        }
    }

    /// Whether another program renews it.
    #[must_use]
    pub fn is_external(&self) -> bool {
        self.settings.issuer == IssuerRef::External
    }

    /// The Secret's content, in the form of the record of what the workloads have.
    #[must_use]
    pub fn held(&self) -> RolledOut {
        let leaf = self.leaf.as_ref().ok();
        leaf.map_or(RolledOut::None, |leaf| facts(leaf, self.with).held())
    }

    /// The key type to ask for: from the settings, or else that of the present key.
    #[must_use]
    pub fn key_type(&self) -> Option<KeyType> {
        let present = self.leaf.as_ref().ok().and_then(|leaf| leaf.key_type);
        self.settings.key_type.or(present)
    }

    /// The names for the status page, comma-separated: those in the certificate, or those to ask for if there is none.
    #[must_use]
    pub fn listed_names(&self) -> Box<str> {
        let names = match &self.leaf {
            Ok(leaf) => &leaf.names,
            Err(_) => &self.names,
        };
        listed(names)
    }

    /// What the index keeps of the Secret.
    #[must_use]
    pub fn observed(&self, uid: &str, resource_version: &str) -> Observed {
        let leaf = match &self.leaf {
            Ok(leaf) => Ok(facts(leaf, self.with)),
            Err(Unreadable::Empty) => Err(Fault::Absent),
            Err(_) => Err(Fault::Unreadable),
        };
        let texts: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        Observed {
            uid: uid.into(),
            resource_version: resource_version.into(),
            issuer: match &self.settings.issuer {
                IssuerRef::External => EXTERNAL.into(),
                IssuerRef::Named(name) => Arc::clone(name),
            },
            leaf,
            rolled_out: self.rolled_out,
            renewal: self.renewal,
            heed: self.heed,
            suggestion: Suggestion::Unasked,
            window: self.opens,
            account: self.account,
            wish: self.wish(),
            rollout_blocked: self.rollout_blocked,
            blocked: self.blocked,
            held_until: self.held_until,
            copied_record: self.copied_record,
            halted: self.halted.as_ref().is_some_and(|note| !note.resumed),
            renewed: self.issued_by.as_ref().and_then(|by| Some(by.written?.1)),
            problems: u16::try_from(texts.len()).unwrap_or(u16::MAX),
            problem_texts: if texts.is_empty() {
                0
            } else {
                hash(&texts.join("\n"))
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{from_value, json};

    use super::*;
    use crate::testing::file;

    const CONFIG: &str = "
issuers:
  letsencrypt:
    directory: https://ca.example/directory
    contact: ops@example.com
    allow:
      - {namespaces: [shop], names: ['*.shop.example', '10.0.0.0/8']}
      - {namespaces: [other], names: [other.example]}
";

    fn problems(annotations: &[(&str, &str)]) -> Vec<String> {
        let annotations: BTreeMap<String, String> = { annotations.iter() }
            .map(|(key, value)| (format!("cert-renew.io/{key}"), (*value).to_owned()))
            .collect();
        let secret: ThinSecret = from_value(json!({
            "metadata": {"name": "tls", "namespace": "shop", "uid": "u", "annotations": annotations},
            "data": {"tls.crt": STANDARD.encode(file("good.pem"))},
            "type": "kubernetes.io/tls",
        }))
        .unwrap();
        let key = SecretRef {
            namespace: "shop".into(),
            name: "tls".into(),
        };
        let config = Config::parse(CONFIG).unwrap();
        let assessment = of_thin(UnixTime(0), &key, &secret, &config).unwrap();
        assessment
            .problems
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_problem_says_what_was_meant_and_what_there_is() {
        let le = ("issuer", "letsencrypt");
        for (annotations, expected) in [
            (
                &[("issuer", "LetsEncrypt"), ("names", "a.shop.example")][..],
                &[
                    "expected an issuer of the config (letsencrypt) or external; did you mean letsencrypt?",
                ][..],
            ),
            (
                &[("issuer", "letsencyrpt"), ("names", "a.shop.example")],
                &[
                    "expected an issuer of the config (letsencrypt) or external; did you mean letsencrypt?",
                ],
            ),
            (
                &[("issuer", "zerossl"), ("names", "a.shop.example")],
                &["expected an issuer of the config (letsencrypt) or external"],
            ),
            (
                &[le, ("names", "evil.example")],
                &[
                    "grants to namespace shop: *.shop.example, 10.0.0.0/8; who runs cert-renew can grant more there",
                ],
            ),
            (
                &[
                    ("issuer", "external"),
                    ("names", "a.shop.example; b.shop.example"),
                ],
                &["separate them by ','"],
            ),
            (
                &[("issuer", "external"), ("nmaes", "a.shop.example")],
                &["did you mean cert-renew.io/names?"],
            ),
            (
                &[("issuer", "external"), ("outputs", "keystore.p12=pkcs12")],
                &["expected cert-renew.io/pkcs12-password-key beside it"],
            ),
            (
                &[("issuer", "external"), ("renew-before", "9000d")],
                &["expected at most half of the certificate's lifetime"],
            ),
            (
                &[("issuer", "external"), ("renew-before", "51%")],
                &["expected at most half of the certificate's lifetime"],
            ),
            (&[("issuer", "external"), ("renew-before", "50%")], &[]),
        ] {
            let found = problems(annotations);
            assert_eq!(found.len(), expected.len(), "{annotations:?}: {found:#?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.contains(expected), "{annotations:?}: {found}");
            }
        }
    }
}
