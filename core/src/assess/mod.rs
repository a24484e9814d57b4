//! What a Secret needs according to its annotations and the config: one function for the watch, renewals and rollouts.
//!
//! Input: annotations, the leaf, the config, the clock. Output: an [`Assessment`], or None if the Secret is not ours.
//! Pure. Before anything is done, the Secret is read again and assessed again.

mod observed;
mod ordered;
mod problems;

use std::collections::BTreeMap;

pub use self::observed::{bystander, listed, unlisted};
pub use self::ordered::Ordered;
pub use self::problems::{IMMUTABLE, OTHER_WRITER, left_alone};
use crate::certificate::{self, Fingerprint, KeyType, Leaf, Remark, Unreadable, pair};
use crate::config::{Config, Labels};
use crate::index::LeafFacts;
use crate::rollout::HaltNote;
use crate::schedule::due::{self, AriPolicy, Due, Inputs, Never, Reason};
use crate::schedule::rate_limits::{AccountId, Claim, account_of, young_until};
use crate::secret::declared;
use crate::secret::object::full::FullSecret;
use crate::secret::object::head::Head;
use crate::secret::object::thin::{CertificateState, ThinSecret};
use crate::secret::parts::ChainAndCa;
pub use crate::secret::settings::values::EXTERNAL;
use crate::secret::settings::{Blocks, FORCE, IssuerRef, NamespaceDefaults, Problem, Settings};
use crate::secret::state::{IssuedBy, RolledOut};
use crate::secret::{SecretRef, keys};
use crate::text::hash::hash;
use crate::text::name::Name;
use crate::time::UnixTime;

/// A window is overruled when less than this share of the lifetime would be left in it, as a rollout takes time.
const WINDOW_MARGIN_SHARE: u32 = 10;

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
    pub heed: AriPolicy,
    /// The Secret's account in the ledger.
    pub account: AccountId,
    /// When the change window opens, or the instant that overrules it.
    pub opens: Option<UnixTime>,
    /// Set when the window is overruled: the instant at which it would open. By then too little of the validity of what
    /// the workloads serve would be left, or that certificate is revoked.
    pub overruled: Option<UnixTime>,
    /// Whether a rollout may not start.
    pub rollout_blocked: bool,
    /// Whether its own annotation pauses it, whatever the config does.
    pub pauses_itself: bool,
    /// What the problems block.
    pub blocked: Blocks,
    /// The certificate that was asked for is held until then, as the present one is younger than a tenth of its lifetime.
    pub held_until: Option<UnixTime>,
    /// The halt in which an earlier rollout ended.
    pub halted: Option<HaltNote>,
    /// The names are granted only if the namespace has certain labels, which were not asked for.
    pub by_labels: bool,
    /// See [`Self::wish`].
    unserved: Option<u64>,
    /// Its issuer is another CA than the last one.
    moved: bool,
    /// The value of `renew-now` that was not served yet forces the renewal.
    forced: bool,
}

/// What a Secret is judged by, beside what it says itself.
struct Circumstances<'a> {
    now: UnixTime,
    key: &'a SecretRef,
    /// Without a config there are no defaults, and every issuer is taken to exist and to allow all names.
    config: Option<&'a Config>,
    /// The namespace's labels, where a CA is to be asked.
    labels: Labels<'a>,
    /// The instant that the CA suggests for a leaf.
    suggested: &'a dyn Fn(Fingerprint) -> Option<UnixTime>,
}

/// Assesses what the watch brought; None where the Secret has not opted in or means another installation.
#[must_use]
pub fn of_thin(
    now: UnixTime,
    key: &SecretRef,
    secret: &ThinSecret,
    config: &Config,
) -> Option<Assessment> {
    of_thin_labelled(now, key, secret, (config, Labels::NotAsked))
}

/// As [`of_thin`], with the labels of the namespace.
#[must_use]
pub fn of_thin_labelled(
    now: UnixTime,
    key: &SecretRef,
    secret: &ThinSecret,
    (config, labels): (&Config, Labels<'_>),
) -> Option<Assessment> {
    thin(now, key, secret, (Some(config), labels))
}

/// As [`of_thin`], where the config is not known or means another class: no defaults, and every issuer is taken to exist
/// and to allow all names. For people only: nothing is done by it.
#[must_use]
pub fn of_thin_alone(now: UnixTime, key: &SecretRef, secret: &ThinSecret) -> Option<Assessment> {
    thin(now, key, secret, (None, Labels::NotAsked))
}

fn thin(
    now: UnixTime,
    key: &SecretRef,
    secret: &ThinSecret,
    (config, labels): (Option<&Config>, Labels<'_>),
) -> Option<Assessment> {
    let circumstances = Circumstances {
        now,
        key,
        config,
        labels,
        suggested: &|_| None,
    };
    let asked = circumstances.asked(&secret.head)?;
    let leaf = match secret.certificate() {
        CertificateState::Leaf(leaf) => Ok(*leaf),
        CertificateState::Absent => Err(Unreadable::Empty),
        CertificateState::Unreadable(reason) => Err(reason),
    };
    Some(circumstances.assess(&secret.head, asked, leaf, secret.ca()))
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
    let circumstances = Circumstances {
        now,
        key,
        config: Some(config),
        labels,
        suggested: &suggested,
    };
    let asked = circumstances.asked(&secret.head)?;
    let leaf = certificate::leaf(secret.pair().0);
    Some(circumstances.assess(&secret.head, asked, leaf, secret.ca()))
}

/// What the annotations of a Secret of ours ask for, and what is wrong with them.
struct Asked {
    settings: Settings,
    problems: Vec<Problem>,
    /// See [`Assessment::pauses_itself`].
    pauses_itself: bool,
}

fn annotations(head: &Head) -> &BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    head.annotations().unwrap_or(&NONE)
}

impl Circumstances<'_> {
    /// None where the Secret has not opted in or means another installation.
    fn asked(&self, head: &Head) -> Option<Asked> {
        if !head.concerns_us() || head.deleting {
            return None;
        }
        let no_defaults = NamespaceDefaults::default();
        let defaults = self
            .config
            .map_or(&no_defaults, |config| config.namespace(&self.key.namespace));
        let (settings, mut problems) = Settings::read(annotations(head), head.managed, defaults);
        let is_ours = |it: &Settings| self.config.is_none_or(|config| it.is_for(&config.class));
        let mut settings = settings.filter(is_ours)?;
        let pauses_itself = settings.paused;
        settings.paused |= self.config.is_some_and(|config| config.paused);
        if let Some(config) = self.config
            && settings.issuer.is_misread()
        {
            problems = problems::complete(problems, config, head.annotation(keys::ISSUER));
        }
        Some(Asked {
            settings,
            problems,
            pauses_itself,
        })
    }

    fn assess(
        &self,
        head: &Head,
        asked: Asked,
        leaf: Result<Leaf, Unreadable>,
        ca: Option<u32>,
    ) -> Assessment {
        let Asked {
            settings,
            mut problems,
            pauses_itself,
        } = asked;
        let rolled_out = RolledOut::read(annotations(head), head.uid());
        let with = {
            let chain = leaf.as_ref().map_or(0, |leaf| leaf.chain);
            let had = rolled_out.and_then(RolledOut::with);
            ChainAndCa::counting(chain, ca, settings.rollout_on, had)
        };
        let issued_by = IssuedBy::read(annotations(head));
        let names = names(&settings, &leaf, issued_by.as_ref());
        let odd = leaf.as_ref().is_ok_and(|leaf| loses_names(leaf, &settings));
        let blocked = odd || problems.iter().any(|problem| problem.blocks.issue());
        let renewed_for = head.annotation(keys::RENEWED_FOR);
        let due = due::due(&Inputs {
            leaf: leaf.as_ref(),
            settings: &settings,
            blocked,
            staged: { self.config }
                .is_some_and(|it| is_staged(&settings, &leaf, issued_by.as_ref(), it)),
            issued_by: issued_by.as_ref(),
            renewed_for,
            renewal_info: { leaf.as_ref().ok() }
                .and_then(|leaf| (self.suggested)(leaf.fingerprint)),
            seed: hash(&self.key.to_string()),
        });
        let renewal = match due {
            Ok(_) if names.is_empty() && leaf.is_ok() => Err(Never::NoNames),
            Err(Never::Paused) if !pauses_itself => Err(Never::AllPaused),
            Ok(_) if declared::is_undeclared(self.key, head) => Err(Never::Undeclared),
            due => due,
        };
        let granted = match left_alone(head) {
            Some(refused) => Err(refused),
            None => self.may_issue(&settings, &names),
        };
        let by_labels = granted.is_ok() && self.goes_by_labels(&settings, &names);
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
        problems.extend(problems::beside(
            self.now,
            head,
            &settings,
            (&leaf, renewal),
        ));
        if renewal == Err(Never::NoNames) && matches!(leaf, Err(Unreadable::Empty)) {
            problems.push(problems::without_names());
        }
        let (opens, overruled) = opens(self.now, &settings, &leaf, rolled_out);
        // Independent of other reasons: a first certificate may also carry a `renew-now` value.
        let wished = settings.renew_now.as_deref();
        let unserved = wished.filter(|it| renewed_for != Some(it)).map(hash);
        let own = if odd { Blocks::Issue } else { Blocks::Nothing };
        let all = problems.iter().map(|problem| problem.blocks);
        let blocks = all.fold(own, Blocks::and);
        let rollout_blocked = settings.paused || blocks.rollout();
        let asked = renewal.is_ok_and(|due| due.reason == Reason::RenewNow);
        let moved = has_moved(&settings, issued_by.as_ref(), self.config);
        let forced = unserved.is_some() && wished.is_some_and(|it| it.starts_with(FORCE));
        let held_until = { leaf.as_ref().ok() }
            .filter(|_| asked && !moved && !forced)
            .and_then(|leaf| {
                let written = issued_by.as_ref().and_then(|by| by.wrote(leaf.fingerprint));
                young_until(self.now, leaf, written)
            });
        Assessment {
            account: account_of(issuer_name(&settings.issuer), &names),
            unserved,
            moved,
            forced,
            problems,
            leaf,
            names,
            rolled_out,
            with,
            copied_record: RolledOut::is_of_another(annotations(head), head.uid()),
            issued_by,
            heed: due::heed(renewal, &settings, blocked),
            renewal,
            settings,
            opens,
            overruled,
            rollout_blocked,
            pauses_itself,
            blocked: blocks,
            held_until,
            halted: head
                .annotation(keys::ROLLOUT_HALTED)
                .and_then(|note| note.parse().ok()),
            by_labels: by_labels && renewal.is_ok(),
        }
    }

    /// Whether the names, which are granted to some labels of the namespace, are refused to others.
    fn goes_by_labels(&self, settings: &Settings, names: &[Name]) -> bool {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let unasked = matches!(self.labels, Labels::NotAsked);
        unasked && self.config.is_some_and(Config::needs_namespace_labels) && {
            let labels = Labels::Are(&NONE);
            let without = Circumstances { labels, ..*self };
            without.may_issue(settings, names).is_err()
        }
    }

    /// Whether the config allows this Secret these names from its issuer; checked before the CA is asked.
    fn may_issue(&self, settings: &Settings, names: &[Name]) -> Result<(), (Never, Problem)> {
        let (IssuerRef::Named(name), Some(config)) = (&settings.issuer, self.config) else {
            return Ok(());
        };
        let Some(issuer) = config.issuer(name) else {
            return Err((Never::UnknownIssuer, problems::unknown_issuer(name, config)));
        };
        let (namespace, labels) = (&self.key.namespace, self.labels);
        let mut names = names.iter();
        match names.find(|name| !issuer.allows(namespace, labels, name)) {
            None => Ok(()),
            Some(refused) => {
                let granted = issuer.granted(namespace, labels);
                let problem = problems::not_granted(refused, name, namespace, granted);
                Err((Never::NotAllowed, problem))
            }
        }
    }
}

/// The names to ask for.
fn names(
    settings: &Settings,
    leaf: &Result<Leaf, Unreadable>,
    issued_by: Option<&IssuedBy>,
) -> Vec<Name> {
    match (&settings.names, leaf) {
        (Some(names), _) => names.clone(),
        (None, Ok(leaf)) if !has_too_many_names(leaf) => leaf.names.clone(),
        (None, Ok(_)) => Vec::new(),
        // An emptied Secret is issued again with the names of the last issue.
        (None, Err(_)) => issued_by.map_or_else(Vec::new, |it| it.names.clone()),
    }
}

/// Whether the Secret's issuer is another CA than the last one.
fn has_moved(settings: &Settings, issued_by: Option<&IssuedBy>, config: Option<&Config>) -> bool {
    let issuer = issuer_name(&settings.issuer);
    issued_by.is_some_and(|by| *by.issuer != *issuer || is_another_ca(by, config))
}

/// Whether the config has another CA by now under the name of the issuer that this came from.
fn is_another_ca(by: &IssuedBy, config: Option<&Config>) -> bool {
    let now = config.and_then(|it| it.issuer(&by.issuer));
    { by.directory.as_deref() }
        .zip(now)
        .is_some_and(|(then, now)| now.directory != then)
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
    // A certificate from the Secret's own issuer is what was asked for, unless that is another CA by now.
    let own = |by: &IssuedBy| *by.issuer == **issuer && !is_another_ca(by, Some(config));
    if config.is_staging(issuer) || written.is_some_and(own) {
        return false;
    }
    leaf.issuer.mentions(pair::STAGING)
        || written.is_some_and(|by| config.was_staging(&by.issuer, by.directory.as_deref()))
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
    // If the issuer's certificate has ended, no window saves anything.
    let until = { leaf.issuer_ends }.filter(|ends| *ends > now);
    let until = until.unwrap_or(leaf.not_after);
    let served_until = match rolled_out {
        Some(RolledOut::Leaf { not_after, .. }) => not_after.min(until),
        _ => until,
    };
    if !revoked && opens + leaf.lifetime() / WINDOW_MARGIN_SHARE < served_until {
        (Some(opens), None)
    } else {
        (None, Some(opens))
    }
}

fn facts(leaf: &Leaf, with: ChainAndCa) -> LeafFacts {
    LeafFacts {
        fingerprint: leaf.fingerprint,
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        with,
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
        self.moved || self.forced
    }

    /// Whether the issuer is another CA than the last one, which is a cause whatever `renew-now` says.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.moved
    }

    /// Until when no new pair may be written into it although it is renewed: an annotation is invalid, and
    /// enough of the lifetime is left. `None` if nothing holds the write up, or it is never renewed.
    #[must_use]
    pub fn blocked_until(&self, now: UnixTime) -> Option<UnixTime> {
        let due = self.renewal.ok().filter(|_| self.blocked.issue())?;
        Some(due.at).filter(|at| *at > now)
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
}

#[cfg(test)]
mod tests;
