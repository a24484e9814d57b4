//! Renewal information (RFC 9773): asks each CA, as often as it allows, when it wants a certificate replaced.
//!
//! ```text
//! watch ──note──► certificates, soonest due first ──poll──► CA ──Suggested──► index
//! ```
//! Kept in memory only: the instant chosen in a window is the same after a restart, so nothing is written for a poll.
//! It renews nothing and never delays a renewal: a CA that does not answer in time counts as one without an opinion.

pub mod poller;
mod queues;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::assess::{self, Assessment};
use cert_renew_core::certificate::Fingerprint;
use cert_renew_core::config::Config;
use cert_renew_core::schedule::due::{AriPolicy, Suggestion};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::object::compact::Uid;
use cert_renew_core::time::UnixTime;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::acme::CertId;
use crate::acme::ari::{Poll, Window, choose_instant};
use crate::renewal::info::queues::Queues;

/// Longest identifier of a certificate in renewal information: RFC 5280 allows serials of twenty octets, and key
/// identifiers are hashes. No CA that has renewal information uses a longer one.
const LONGEST_ID: usize = 200;
/// Number of certificates in a row without an answer that makes the CA the cause; fewer may be odd certificates.
const SILENT: usize = 3;
/// Number of namespaces that they are of, where as many have certificates of the CA: one namespace may have any number
/// of odd ones.
const SILENT_NAMESPACES: usize = 3;
/// Longest sleep: timers do not count the time that a machine was suspended, the clock does.
pub(super) const BEAT: Duration = Duration::from_secs(30);

/// What the controller passes to the index.
#[derive(Clone, Debug)]
pub struct Suggested {
    /// The Secret.
    pub key: SecretRef,
    /// The leaf that was asked about.
    pub about: Fingerprint,
    /// The CA's suggestion.
    pub suggestion: Suggestion,
}

/// The certificates to ask about and the CAs' last answers.
#[derive(Debug, Default)]
pub struct RenewalInfo {
    pub(super) state: Mutex<State>,
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Boxed: a hash table of this size has room for half as many again.
    pub(super) certificates: HashMap<SecretRef, Box<Certificate>>,
    /// The issuers of the certificates, each once: they are of the config, which has few.
    issuers: HashSet<Arc<str>>,
    /// Certificates in a row about which each issuer has failed to answer, none twice.
    pub(super) silent: HashMap<Arc<str>, HashSet<SecretRef>>,
    /// Issuers that have answered about one of their certificates.
    answering: HashSet<Arc<str>>,
    queues: Queues,
    /// When issuers may be asked again that were put off: new certificates keep to it too.
    not_before: HashMap<Arc<str>, UnixTime>,
}

/// A certificate that the CA is asked about.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) leaf: Fingerprint,
    /// Identifier of the certificate (RFC 9773, section 4.1).
    pub(super) id: Box<str>,
    pub(super) uid: Uid,
    pub(super) issuer: Arc<str>,
    pub(super) due: UnixTime,
    /// When the CA is asked next.
    pub(super) again: UnixTime,
    pub(super) window: Option<Window>,
    pub(super) suggestion: Suggestion,
    /// Questions in a row without an answer.
    pub(super) failures: u32,
}

/// One certificate to ask about.
pub(super) struct Question {
    pub(super) key: SecretRef,
    pub(super) leaf: Fingerprint,
    /// Identifier of the certificate (RFC 9773, section 4.1).
    pub(super) id: Box<str>,
    pub(super) issuer: Arc<str>,
    /// Questions in a row without an answer.
    pub(super) failures: u32,
}

/// The result of a question.
pub(super) enum Answer {
    /// The CA's answer, or its failure to give one.
    Poll(Poll),
    /// This issuer cannot be asked before then, whatever the certificate.
    Issuer(UnixTime),
}

impl RenewalInfo {
    /// Stores what the watch says of a Secret, and returns what is known about its leaf.
    ///
    /// Only issuers of the config are asked: anybody who may edit the Secret can write another one into it.
    pub fn note(
        &self,
        key: &SecretRef,
        uid: &str,
        assessment: &Assessment,
        config: &Config,
    ) -> Suggestion {
        let leaf = assessment.leaf.as_ref().ok();
        let authority = leaf.and_then(|leaf| leaf.authority_key_id.as_ref());
        let (Some(leaf), Some(authority), Ok(due)) = (leaf, authority, assessment.renewal) else {
            self.forget(key);
            return Suggestion::None;
        };
        // Base64 of both, and a dot.
        let too_long = (authority.len() + leaf.serial.len()) * 4 / 3 > LONGEST_ID;
        if assessment.heed == AriPolicy::Nothing || too_long || leaf.self_signed.get() {
            self.forget(key);
            return Suggestion::None;
        }
        let id = CertId::new(authority, &leaf.serial).to_string();
        // Of a serial that is too long nothing is kept. What is no identifier would seem to be the issuer's fault.
        if id.parse::<CertId>().is_err() {
            self.forget(key);
            return Suggestion::None;
        }
        // Ask the issuer of this leaf, which may be a fallback.
        let issued_by = assessment.issued_by.as_ref().map(|by| &*by.issuer);
        let named = assess::issuer_name(&assessment.settings.issuer);
        let mut asked = issued_by.into_iter().chain([named]);
        let Some(issuer) = asked.find(|name| config.issuer(name).is_some()) else {
            self.forget(key);
            return Suggestion::None;
        };
        let mut state = self.lock();
        let issuer = state.issuer(issuer);
        if let Some(known) = state.certificates.get(key)
            && (known.leaf, &known.issuer) == (leaf.fingerprint, &issuer)
        {
            return known.suggestion;
        }
        state.remove(key);
        let not_before = state.not_before.get(&issuer).copied();
        let not_before = not_before.filter(|at| *at > UnixTime::now());
        // Nothing waits for an issuer that is put off.
        let suggestion = not_before.map_or(Suggestion::Unasked, |_| Suggestion::None);
        let certificate = Certificate {
            leaf: leaf.fingerprint,
            id: id.into(),
            uid: uid.into(),
            issuer,
            due: due.at,
            again: not_before.unwrap_or_default(),
            window: None,
            suggestion,
            failures: 0,
        };
        state.insert(key, certificate);
        drop(state);
        self.changed.notify_one();
        suggestion
    }

    /// Forgets a Secret that is gone, or whose renewal the clock no longer decides.
    pub fn forget(&self, key: &SecretRef) {
        self.lock().remove(key);
    }

    /// Forgets all answers and asks again when the watch brings a Secret: its delay was set by another clock.
    pub fn forget_all(&self) {
        *self.lock() = State::default();
    }

    /// The instant that the CA suggests for this leaf of a Secret.
    #[must_use]
    pub fn instant(&self, key: &SecretRef, leaf: Fingerprint) -> Option<UnixTime> {
        let state = self.lock();
        let known = state.certificates.get(key)?;
        (known.leaf == leaf)
            .then(|| known.suggestion.instant())
            .flatten()
    }

    /// The next question if one is due, else how long to wait.
    pub(super) fn next(&self, now: UnixTime) -> Result<Question, Duration> {
        let mut state = self.lock();
        let key = state.queues.next(now)?;
        let known = state.certificates.get(&key).ok_or(Duration::ZERO)?;
        Ok(Question {
            leaf: known.leaf,
            id: known.id.clone(),
            issuer: Arc::clone(&known.issuer),
            failures: known.failures,
            key,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn insert(&mut self, key: &SecretRef, certificate: Certificate) {
        self.queues.insert(certificate.again, certificate.due, key);
        self.certificates.insert(key.clone(), certificate.into());
    }

    /// The shared name of an issuer.
    fn issuer(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.issuers.get(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.issuers.insert(Arc::clone(&name));
        name
    }

    /// Asks again what was in flight when this replica last stopped leading.
    pub(super) fn requeue(&mut self) {
        self.queues = Queues::default();
        for (key, known) in &self.certificates {
            self.queues.insert(known.again, known.due, key);
        }
    }

    fn remove(&mut self, key: &SecretRef) {
        if let Some(known) = self.certificates.remove(key) {
            self.queues.remove(known.again, known.due, key);
        }
    }

    /// Whether the CA fails for every certificate. A repeated failure of the same certificate does not count.
    ///
    /// Nor does, once the CA has answered at all, a certificate about which it never has: whoever may edit a Secret can
    /// put any number of such certificates there, but makes no CA fail for one that it knows.
    pub(super) fn is_outage(&mut self, question: &Question, unreachable: bool) -> bool {
        if !unreachable {
            self.silent.remove(&question.issuer);
            return false;
        }
        let known = self.certificates.get(&question.key);
        let known = known.filter(|known| known.leaf == question.leaf);
        if question.failures > 0 || !known.is_some_and(|known| self.tells_of_the_ca(known)) {
            return false;
        }
        let silent = self.silent.entry(Arc::clone(&question.issuer)).or_default();
        silent.insert(question.key.clone());
        let outage = silent.len() >= SILENT && self.is_everywhere(&question.issuer);
        if outage {
            self.silent.remove(&question.issuer);
        }
        outage
    }

    /// Whether a failure about this certificate may be the CA's.
    fn tells_of_the_ca(&self, known: &Certificate) -> bool {
        known.window.is_some() || !self.answering.contains(&known.issuer)
    }

    /// Whether the certificates without an answer are of several namespaces, or of all that have some that count.
    fn is_everywhere(&self, issuer: &str) -> bool {
        let silent = self.silent.get(issuer).into_iter().flatten();
        let silent: HashSet<&str> = silent.map(|key| &*key.namespace).collect();
        let mut all = self.certificates.iter();
        let another = all.any(|(key, known)| {
            *known.issuer == *issuer
                && !silent.contains(&*key.namespace)
                && self.tells_of_the_ca(known)
        });
        silent.len() >= SILENT_NAMESPACES || !another
    }

    /// Stores an answer, and returns it with the text to report, if any.
    pub(super) fn answered(
        &mut self,
        question: &Question,
        poll: &Poll,
    ) -> Option<(Suggested, Option<String>)> {
        let known = self
            .certificates
            .get_mut(&question.key)
            .filter(|known| known.leaf == question.leaf)?;
        self.queues.remove(known.again, known.due, &question.key);
        known.failures = match poll.window {
            Some(_) => 0,
            None => known.failures.saturating_add(1),
        };
        let mut note = None;
        if let (Some(window), Ok(id)) = (poll.window, known.id.parse::<CertId>()) {
            let at = choose_instant(window, &id);
            note = moved(known.window, window, at, poll.explanation.as_deref());
            known.window = Some(window);
            known.suggestion = Suggestion::At(at);
            self.answering.insert(Arc::clone(&known.issuer));
        } else if known.suggestion == Suggestion::Unasked {
            // A window that was known before stays in force.
            known.suggestion = Suggestion::None;
        }
        known.again = poll.again;
        self.queues.insert(known.again, known.due, &question.key);
        let suggested = Suggested {
            key: question.key.clone(),
            about: question.leaf,
            suggestion: known.suggestion,
        };
        Some((suggested, note))
    }

    /// Postpones all questions to an issuer until `again`: none of its certificates waits for an answer.
    pub(super) fn put_off(&mut self, issuer: &str, again: UnixTime) -> Vec<Suggested> {
        let mut suggested = Vec::new();
        self.not_before.insert(issuer.into(), again);
        for (key, known) in &mut self.certificates {
            if *known.issuer != *issuer || known.again >= again {
                continue;
            }
            self.queues.remove(known.again, known.due, key);
            known.again = again;
            self.queues.insert(again, known.due, key);
            if known.suggestion == Suggestion::Unasked {
                known.suggestion = Suggestion::None;
                suggested.push(Suggested {
                    key: key.clone(),
                    about: known.leaf,
                    suggestion: Suggestion::None,
                });
            }
        }
        suggested
    }
}

/// The text to report when a CA moves a window, or wants a certificate replaced at once.
fn moved(
    before: Option<Window>,
    window: Window,
    at: UnixTime,
    explanation: Option<&str>,
) -> Option<String> {
    let how = match before {
        Some(before) if before != window => format!("moved its window from {}", before.start),
        None if window.end <= UnixTime::now() => "suggests a window in the past,".to_owned(),
        _ => return None,
    };
    let why = explanation.map_or_else(String::new, |url| format!("; see {url}"));
    Some(format!(
        "the CA {how} to {}..{}: to be renewed at {at}{why}",
        window.start, window.end
    ))
}

#[cfg(test)]
mod tests;
