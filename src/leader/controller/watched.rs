//! What the watch brings of one Secret: judged, kept in the index, and reported.

use std::sync::Arc;

use cert_renew_core::assess::{self, Assessment};
use cert_renew_core::certificate::Leaf;
use cert_renew_core::config::Observe;
use cert_renew_core::declaration::register::Made;
use cert_renew_core::index::{Change, Entry, Observed, Shown, Source, Stuck};
use cert_renew_core::schedule::due::Never;
use cert_renew_core::secret::object::compact::Uid;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::settings::Problem;
use cert_renew_core::secret::stray::{self, Stray, StrayReason};
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::State;
use kube::runtime::watcher;
use tokio::time::Instant;

use super::{Complaints, Controller};
use crate::acme;
use crate::cluster::events::Reason;
use crate::leader::strays::StrayNotice;
use crate::leader::{notes, pairs};

/// Most Secrets whose problems a standby remembers, some kilobytes each; the metrics count all of them. Where there are
/// more, the namespace that has most makes room.
pub(super) const MOST_UNTOLD: usize = 1_000;
/// Most faults of one Secret that are reported, each in the log and by an Event: a Secret may have thousands of
/// annotations. The metrics count all of them.
const MOST_COMPLAINTS: usize = 10;

impl Controller {
    pub(super) fn on_event(
        &mut self,
        source: Source,
        event: watcher::Result<watcher::Event<ThinSecret>>,
    ) {
        match event {
            Ok(watcher::Event::Init) => {
                self.strays.begin(source);
                self.index().begin(source);
            }
            Ok(watcher::Event::InitApply(secret) | watcher::Event::Apply(secret)) => {
                self.sources.works(source);
                self.on_secret(source, &secret);
            }
            Ok(watcher::Event::Delete(secret)) => {
                self.sources.works(source);
                self.on_deleted(&secret);
            }
            Ok(watcher::Event::InitDone) => self.on_source_listed(source),
            Err(error) => self.on_broken(source, &error),
        }
    }

    fn on_secret(&mut self, source: Source, secret: &ThinSecret) {
        let Some(key) = self.judge(source, secret) else {
            return;
        };
        let class = &self.all.shared.config().class;
        let entry = || self.index().get(&key);
        let state = || entry().map(|entry| State::of(&entry, UnixTime::now()));
        let made = Made::read(&key, &secret.head, state, class);
        self.all.declared.secret(&key, made);
    }

    /// Judges a Secret, unless this version of it is known.
    fn judge(&mut self, source: Source, secret: &ThinSecret) -> Option<SecretRef> {
        let head = &secret.head;
        let key = {
            let mut index = self.index();
            let key = index.key(head.namespace(), head.name());
            if index.touch(&key, head.resource_version(), source)
                || index.is_former(&key, head.uid(), head.resource_version(), source)
            {
                return None;
            }
            key
        };
        let now = UnixTime::now();
        let config = self.all.shared.config();
        let Some(assessment) = assess::of_thin(now, &key, secret, &config) else {
            self.on_unmanaged(source, &key, secret);
            if config.watch.observe == Observe::All
                && let Some((observed, leaf)) = assess::bystander(secret)
            {
                self.on_bystander(source, &key, observed, &leaf);
                return Some(key);
            }
            if self.forget(&key) {
                tracing::info!(secret = %key, "no longer annotated");
            }
            return Some(key);
        };
        self.strays.forget(&key);
        let uid = head.uid();
        let mut observed = assessment.observed(uid, head.resource_version());
        observed.suggestion = { &self.all.renewals.info }.note(&key, uid, &assessment, &config);
        let settings = || head.digest();
        let ledger = &self.all.shared.ledger;
        ledger.mend_by_settings(observed.account, &key, settings);
        let failures = &self.all.renewals.secret_failures;
        failures.mend_by_settings(&observed.uid, settings);
        let retry_at = self.all.renewals.retry_at(now, &observed);
        let problems = observed.problem_texts;
        let before = self.index().get(&key);
        if let Some(other) = { before.as_ref() }.filter(|it| it.observed.uid != observed.uid) {
            failures.forget(&other.observed.uid);
        }
        let known = { before.as_ref() }.map_or(0, |entry| entry.observed.problem_texts);
        let another = { before.as_ref() }.is_some_and(|entry| entry.observed.leaf != observed.leaf);
        let hidden = { before.as_ref() }
            .is_some_and(|entry| entry.pair_broken || pairs::is_hidden(&entry.observed, &observed));
        let change =
            self.index()
                .apply(now, &key, observed, source, config.rollout.settle, retry_at);
        if change == Change::Changed {
            self.all.renewals.issuers.forget_told(&key);
        }
        if another {
            self.changed(&key);
            self.tell_shut(&key, uid, now);
        }
        // A leader knows more of what it has tried itself.
        let others = change == Change::Changed && self.term.is_none();
        if change == Change::New || others {
            let ours = { assessment.renewal }.map_or_else(Never::is_pause, |_| true);
            let error = head.annotation(keys::LAST_ERROR).filter(|_| ours);
            let paused = error.is_some_and(acme::tells_of_pause);
            let stuck = paused.then_some(Stuck::Paused);
            self.index().recall(&key, error, stuck);
        }
        if change == Change::New {
            self.tell_untouched(&key, uid, now, &assessment);
        }
        let held = || self.index().get(&key).is_some_and(|it| it.is_held(now));
        let unseen = match change {
            Change::New => true,
            Change::Changed => hidden || (another && held()),
            Change::Same => false,
        };
        if unseen && assessment.leaf.is_ok() && self.term.is_some() {
            self.all.shared.doubts.add(&key);
        }
        if config.metrics.page {
            self.show(&key, secret, &assessment);
        }
        self.narrate(&key, uid, change, &assessment);
        if problems != known {
            self.report(&key, uid, &assessment);
        }
        let facts = || self.all.shared.facts(&key);
        if notes::are_outdated(&key, head, &assessment, facts, change) {
            self.all.notes.add(&key);
        } else {
            self.all.notes.remove(&key);
        }
        Some(key)
    }

    /// Reports what the rollout of a new certificate waits for if the change window is closed.
    fn tell_shut(&self, key: &SecretRef, uid: &str, now: UnixTime) {
        let entry = self.index().get(key).filter(Entry::rollout_due);
        let Some(opens) = entry.and_then(|entry| entry.observed.window) else {
            return;
        };
        if opens > now && self.term.is_some() {
            self.all.rollouts.tell_shut(key, uid, opens);
        }
    }

    /// Reports a Secret that is due when it is seen for the first time, and whose change window is closed: what is due is
    /// recorded with its renewal, so that nothing is written on it before that opens, and it says nothing of itself.
    fn tell_untouched(&self, key: &SecretRef, uid: &str, now: UnixTime, assessment: &Assessment) {
        let is_due = assessment.renewal.is_ok_and(|due| due.at <= now);
        let is_new = assessment.rolled_out.is_none() && self.term.is_some();
        let opens = assessment.opens.filter(|opens| *opens > now);
        let Some(opens) = opens.filter(|_| is_new && is_due) else {
            return;
        };
        let note = format!(
            "a new certificate is due; nothing changes before the change window opens, at {opens}"
        );
        tracing::info!(secret = %key, note, "waits for its change window");
        let (events, reason) = (&self.all.shared.events, Reason::RolloutWaits);
        events.secret(key, uid, reason, &note);
    }

    fn narrate(&self, key: &SecretRef, uid: &str, change: Change, assessment: &Assessment) {
        if change != Change::New {
            return;
        }
        let Ok(due) = assessment.renewal else { return };
        let issuer = assess::issuer_name(&assessment.settings.issuer);
        tracing::debug!(secret = %key, uid, issuer, renews = %due.at, reason = due.reason.as_str(), "watched");
    }

    /// Reports once the faults of the annotations; while another replica leads, that one does.
    fn report(&mut self, key: &SecretRef, uid: &str, assessment: &Assessment) {
        let complaint = |problem: &Problem| {
            let reason = if problem.key.contains('/') {
                Reason::InvalidAnnotation
            } else if *problem.key == *assess::OTHER_WRITER {
                Reason::OwnedByAnother
            } else if *problem.key == *assess::IMMUTABLE {
                Reason::RenewalHeld
            } else if assessment.leaf.is_ok() {
                Reason::CertificateProblem
            } else {
                Reason::UnreadableCertificate
            };
            (reason, problem.to_string())
        };
        let told = assessment.problems.iter().take(MOST_COMPLAINTS);
        let complaints: Complaints = told.map(complaint).collect();
        if complaints.is_empty() {
            self.untold.forget((&*key.namespace, &*key.name));
        } else if self.term.is_some() {
            self.tell(key, uid, &complaints);
        } else {
            let place = (&*key.namespace, &*key.name);
            self.untold.set(place, (uid.into(), complaints));
        }
    }

    /// Keeps what only people are shown of a Secret, as far as there is room.
    fn show(&self, key: &SecretRef, secret: &ThinSecret, assessment: &Assessment) {
        let has_room = self.index().has_room(key);
        // Read before the index is locked.
        let shown = has_room.then(|| Shown {
            chain: secret.above().map(Arc::new),
            ..assessment.shown(&secret.head)
        });
        let mut index = self.index();
        if let Some(shown) = shown {
            index.show(key, shown);
        }
        index.tell_problems(key, &assessment.problem_texts());
    }

    /// Reports a Secret that seems to be meant and is not managed, or no longer.
    fn on_unmanaged(&mut self, source: Source, key: &SecretRef, secret: &ThinSecret) {
        let head = &secret.head;
        let stray = stray::of(key, head, &self.all.shared.config().class);
        let before = self.index().get(key).map(|entry| entry.observed);
        let was_ours = before
            .filter(|it| it.uid == Uid::from(head.uid()) && it.renewal != Err(Never::NotAnnotated));
        let names_issuer = head.annotation(keys::ISSUER).is_some();
        let lost = { was_ours.filter(|_| !head.deleting && !names_issuer) }
            .map(|it| stray::lost(key, Some(&it.issuer), head.annotations().is_some()));
        match (lost, &stray) {
            (Some(lost), None) => self.strays.lost(key, head.uid(), lost, source),
            (
                Some(lost),
                Some(Stray {
                    why: StrayReason::Lost,
                    ..
                }),
            ) => {
                self.strays.see(key, head.uid(), Some(lost), source);
            }
            _ => self.strays.see(key, head.uid(), stray, source),
        }
        self.tell_strays();
    }

    pub(super) fn tell_strays(&mut self) {
        if self.term.is_none() {
            return;
        }
        for StrayNotice { key, uid, text } in self.strays.take_untold(Instant::now()) {
            tracing::warn!(secret = %key, note = text, "not managed");
            let (events, reason) = (&self.all.shared.events, Reason::NotManaged);
            events.secret(&key, &uid, reason, &text);
        }
    }

    /// Observes a Secret that is not annotated; nothing else is done to it.
    fn on_bystander(&mut self, source: Source, key: &SecretRef, observed: Observed, leaf: &Leaf) {
        let config = self.all.shared.config();
        let annotated = self
            .index()
            .get(key)
            .is_some_and(|entry| entry.observed.renewal != observed.renewal);
        if annotated {
            self.forget(key);
            tracing::info!(secret = %key, "no longer annotated");
        }
        let (now, settle) = (UnixTime::now(), config.rollout.settle);
        let mut index = self.index();
        index.apply(now, key, observed, source, settle, None);
        if config.metrics.page {
            let names = assess::listed(&leaf.names);
            let shown = Shown {
                names,
                ..Shown::default()
            };
            index.show(key, shown);
        }
    }

    /// A deletion counts only for the object that is known: its name may belong to another by now.
    fn on_deleted(&mut self, secret: &ThinSecret) {
        let head = &secret.head;
        let mut index = self.index();
        let key = index.key(head.namespace(), head.name());
        let of_another = index.get(&key).is_some() && !index.is_of(&key, head.uid());
        drop(index);
        if !of_another {
            self.strays.forget(&key);
            self.forget(&key);
        }
    }

    /// Forgets a Secret that is gone or no longer annotated; true if it was known.
    pub(super) fn forget(&mut self, key: &SecretRef) -> bool {
        self.all.renewals.info.forget(key);
        self.all.declared.secret(key, None);
        self.untold.forget((&*key.namespace, &*key.name));
        let entry = self.index().get(key);
        if let Some(entry) = &entry {
            self.all
                .renewals
                .secret_failures
                .forget(&entry.observed.uid);
        }
        let running = entry.is_some_and(|entry| entry.renewing.is_some());
        // What a running task leaves is cleaned up when it ends.
        if let Some(term) = &mut self.term {
            term.gone(key);
        }
        if !running {
            self.abandon(key);
        }
        self.index().remove(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::without_an_answer;
    use crate::leader::handles::Handles;

    #[tokio::test(start_paused = true)]
    async fn what_a_watch_tells_late_of_a_former_object_changes_nothing_of_the_one_in_its_place() {
        let (shared, _in_force) = without_an_answer();
        let mut controller = Controller::new(Handles::new(shared));
        let secret = |uid: &str, version: &str| -> ThinSecret {
            serde_json::from_value(serde_json::json!({
                "metadata": {"namespace": "shop", "name": "tls", "uid": uid, "resourceVersion": version,
                    "annotations": {"cert-renew.io/issuer": "external"}},
                "type": "kubernetes.io/tls",
            }))
            .unwrap()
        };
        let key = SecretRef::new("shop", "tls");
        let is_known = |controller: &Controller, uid: &str| controller.index().is_of(&key, uid);
        let (by_type, by_label) = (Source(0), Source(1));
        controller.on_event(by_label, Ok(watcher::Event::Apply(secret("old", "1"))));
        assert!(is_known(&controller, "old"));
        controller.on_event(by_type, Ok(watcher::Event::Apply(secret("new", "4"))));
        controller.on_event(by_label, Ok(watcher::Event::Apply(secret("old", "2"))));
        assert!(is_known(&controller, "new"), "an earlier version");
        controller.on_event(by_label, Ok(watcher::Event::Delete(secret("old", "3"))));
        assert!(is_known(&controller, "new"), "the end of another one");
        controller.on_event(by_type, Ok(watcher::Event::Delete(secret("new", "5"))));
        assert!(!is_known(&controller, "new"));
    }
}
