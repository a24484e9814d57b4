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
    pub(super) certificates: HashMap<SecretRef, Certificate>,
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
    pub(super) uid: Arc<str>,
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
        let issuer: Arc<str> = issuer.into();
        let mut state = self.lock();
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
        self.certificates.insert(key.clone(), certificate);
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
        let another = |(key, known): (&SecretRef, &Certificate)| {
            *known.issuer == *issuer
                && !silent.contains(&*key.namespace)
                && self.tells_of_the_ca(known)
        };
        silent.len() >= SILENT_NAMESPACES || !self.certificates.iter().any(another)
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
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use cert_renew_core::secret::object::thin::ThinSecret;
    use cert_renew_core::testing::forge;
    use serde_json::json;

    use super::*;

    pub(super) fn certificate(due: i64, issuer: &str) -> Certificate {
        Certificate {
            leaf: Fingerprint([1; 32]),
            id: "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE".into(),
            uid: "uid".into(),
            issuer: issuer.into(),
            due: UnixTime(due),
            again: UnixTime(0),
            window: None,
            suggestion: Suggestion::Unasked,
            failures: 0,
        }
    }

    fn key(name: &str) -> SecretRef {
        SecretRef {
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    fn poll(window: Option<(i64, i64)>, again: i64) -> Poll {
        Poll {
            window: window.map(|(start, end)| Window {
                start: UnixTime(start),
                end: UnixTime(end),
            }),
            explanation: Some("https://ca.example/incident".into()),
            again: UnixTime(again),
            trouble: None,
        }
    }

    /// A Secret whose certificate has a serial and a key identifier of its issuer of these sizes in octets.
    fn secret(serial: usize, authority: usize) -> ThinSecret {
        let names = forge::alternative_names([(0x82, b"a.example".as_slice())]);
        let authority = forge::tlv(0x30, &forge::tlv(0x80, &vec![7; authority]));
        let forged = forge::Forged {
            serial: vec![5; serial],
            extensions: vec![names, forge::extension(35, &authority)],
            ..forge::Forged::default()
        };
        let secret = json!({
            "metadata": {"name": "a", "namespace": "shop", "uid": "u", "annotations": {"cert-renew.io/issuer": "le"}},
            "type": "kubernetes.io/tls", "data": {"tls.crt": STANDARD.encode(forged.pem())},
        });
        serde_json::from_value(secret).unwrap()
    }

    #[test]
    fn a_certificate_without_an_identifier_is_not_asked_about() {
        let config = "issuers: {le: {directory: https://a.example/, allow: [{namespaces: [shop], names: [a.example]}]}}";
        let config = Config::parse(config).unwrap();
        let noted = |serial: usize, authority: usize| {
            let secret = secret(serial, authority);
            let now = UnixTime(1_800_000_000);
            let assessment = assess::of_thin(now, &key("a"), &secret, &config).unwrap();
            let info = RenewalInfo::default();
            (
                info.note(&key("a"), "u", &assessment, &config),
                info.next(now).is_ok(),
            )
        };
        assert_eq!(noted(16, 20), (Suggestion::Unasked, true));
        for (serial, authority) in [(65, 20), (10_000, 20), (16, 0), (16, 65)] {
            let expected = (Suggestion::None, false);
            assert_eq!(noted(serial, authority), expected, "{serial} {authority}");
        }
    }

    #[test]
    fn the_soonest_due_is_asked_about_first_and_each_when_the_ca_wants_it() {
        let info = RenewalInfo::default();
        for (name, due) in [("late", 300), ("soon", 100), ("middle", 200)] {
            info.lock().insert(&key(name), certificate(due, "le"));
        }
        let mut order = Vec::new();
        while let Ok(question) = info.next(UnixTime(1)) {
            order.push(question.key.name.to_string());
            let answered = info.lock().answered(&question, &poll(Some((500, 501)), 60));
            let (suggested, _) = answered.unwrap();
            assert_eq!(suggested.suggestion, Suggestion::At(UnixTime(500)));
        }
        assert_eq!(order, ["soon", "middle", "late"]);
        assert_eq!(info.next(UnixTime(40)).err(), Some(Duration::from_secs(20)));
        assert!(info.next(UnixTime(60)).is_ok());
    }

    #[test]
    fn a_window_stands_until_another_is_heard_of_and_a_move_is_told() {
        let info = RenewalInfo::default();
        info.lock().insert(&key("a"), certificate(100, "le"));
        let far = 40_000_000_000;
        let heard = |poll: Poll| {
            let question = info.next(UnixTime(i64::MAX - 1)).ok().unwrap();
            let (suggested, note) = info.lock().answered(&question, &poll).unwrap();
            (suggested.suggestion, note)
        };
        assert_eq!(heard(poll(None, 10)), (Suggestion::None, None));
        let first = Suggestion::At(UnixTime(far));
        assert_eq!(heard(poll(Some((far, far + 1)), 20)), (first, None));
        assert_eq!(heard(poll(None, 30)), (first, None));
        let (second, note) = heard(poll(Some((50, 51)), 40));
        assert_eq!(second, Suggestion::At(UnixTime(50)));
        assert!(note.unwrap().contains("https://ca.example/incident"));
    }

    #[test]
    fn what_was_being_asked_when_a_term_ended_is_asked_in_the_next() {
        let info = RenewalInfo::default();
        info.lock().insert(&key("a"), certificate(100, "le"));
        assert!(info.next(UnixTime(1)).is_ok());
        assert!(info.next(UnixTime(1)).is_err());
        info.lock().requeue();
        assert_eq!(info.next(UnixTime(1)).ok().unwrap().key, key("a"));
    }

    #[test]
    fn an_issuer_that_cannot_be_asked_keeps_nothing_waiting() {
        let info = RenewalInfo::default();
        for name in ["a", "b"] {
            info.lock().insert(&key(name), certificate(100, "down"));
        }
        info.lock().insert(&key("c"), certificate(100, "up"));
        assert_eq!(info.lock().put_off("down", UnixTime(50)).len(), 2);
        assert_eq!(info.next(UnixTime(1)).ok().unwrap().key, key("c"));
        assert!(info.next(UnixTime(1)).is_err());
        assert!(info.next(UnixTime(50)).is_ok());
    }

    #[test]
    fn a_new_certificate_keeps_to_what_its_issuer_asked_for() {
        let config = "issuers: {le: {directory: https://a.example/, allow: [{namespaces: [shop], names: [a.example]}]}}";
        let config = Config::parse(config).unwrap();
        let now = UnixTime::now();
        let assessment = assess::of_thin(now, &key("a"), &secret(16, 20), &config).unwrap();
        let info = RenewalInfo::default();
        let again = now + Duration::from_secs(3_600);
        info.lock().put_off("le", again);
        let noted = info.note(&key("a"), "u", &assessment, &config);
        assert_eq!(noted, Suggestion::None, "nothing waits for it");
        assert_eq!(info.next(now).err(), Some(BEAT));
        assert!(info.next(again).is_ok());
    }

    #[test]
    fn odd_certificates_of_one_namespace_put_off_themselves_and_an_outage_all_of_their_issuer() {
        let info = RenewalInfo::default();
        let of = |namespace: &str, name: &str| SecretRef::new(namespace, name);
        let silent = |key: SecretRef, issuer: &str| {
            let question = Question {
                key,
                leaf: Fingerprint([1; 32]),
                id: "".into(),
                issuer: issuer.into(),
                failures: 0,
            };
            info.lock().is_outage(&question, true)
        };
        for namespace in ["shop", "blog", "hostile"] {
            let key = of(namespace, "of-two");
            info.lock().insert(&key, certificate(100, "other"));
        }
        for number in 0..20 {
            let key = of("hostile", &number.to_string());
            info.lock().insert(&key, certificate(100, "other"));
            assert!(!silent(key, "other"), "one namespace is no outage");
        }
        assert!(!silent(of("shop", "of-two"), "other"));
        assert!(silent(of("blog", "of-two"), "other"));
        let names = ["a", "b", "c", "d", "e"];
        for name in names {
            info.lock().insert(&key(name), certificate(100, "le"));
        }
        let answers = |name: &str, failures, unreachable| {
            let question = Question {
                key: key(name),
                leaf: Fingerprint([1; 32]),
                id: "".into(),
                issuer: "le".into(),
                failures,
            };
            info.lock().is_outage(&question, unreachable)
        };
        // One certificate that never gets an answer and is asked about first each time.
        for failures in 0..5 {
            assert!(!answers("a", failures, true));
            assert!(!answers("a", 0, true), "nor by being made again");
        }
        assert!(!answers("b", 0, true));
        assert!(!answers("c", 0, false), "the CA works");
        assert!(!answers("b", 0, true));
        assert!(!answers("d", 0, true));
        assert!(answers("e", 0, true));
    }

    #[test]
    fn once_a_ca_has_answered_only_certificates_that_it_knows_tell_of_an_outage() {
        let info = RenewalInfo::default();
        let question = |namespace: &str, name: &str| Question {
            key: SecretRef::new(namespace, name),
            leaf: Fingerprint([1; 32]),
            id: "".into(),
            issuer: "le".into(),
            failures: 0,
        };
        let answered = |namespace: &str, name: &str| {
            let answer = poll(Some((500, 501)), 60);
            let answered = info.lock().answered(&question(namespace, name), &answer);
            assert!(answered.is_some());
        };
        let silent =
            |namespace: &str, name: &str| info.lock().is_outage(&question(namespace, name), true);
        let hostile = ["hostile-1", "hostile-2", "hostile-3", "hostile-4"];
        for namespace in hostile.into_iter().chain(["shop"]) {
            for name in ["a", "b", "c"] {
                let key = SecretRef::new(namespace, name);
                info.lock().insert(&key, certificate(100, "le"));
            }
        }
        answered("shop", "a");
        for namespace in hostile {
            for name in ["a", "b", "c"] {
                assert!(!silent(namespace, name), "{namespace} {name}");
            }
        }
        answered("shop", "b");
        answered("shop", "c");
        assert!(!silent("shop", "a"));
        assert!(!silent("shop", "b"));
        assert!(silent("shop", "c"), "all of those that it knows");
        // Another namespace of which it knows one has to be silent too.
        answered("hostile-1", "a");
        for name in ["a", "b", "c"] {
            assert!(!silent("shop", name), "{name}");
        }
        assert!(silent("hostile-1", "a"));
    }

    #[test]
    fn another_leaf_is_not_taken_for_the_one_that_was_asked_about() {
        let info = RenewalInfo::default();
        info.lock().insert(&key("a"), certificate(100, "le"));
        let question = info.next(UnixTime(1)).ok().unwrap();
        let renewed = Certificate {
            leaf: Fingerprint([2; 32]),
            ..certificate(900, "le")
        };
        info.lock().remove(&key("a"));
        info.lock().insert(&key("a"), renewed);
        assert!(info.lock().answered(&question, &poll(None, 60)).is_none());
        assert!(info.instant(&key("a"), Fingerprint([1; 32])).is_none());
    }
}
