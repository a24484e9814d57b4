//! What stands on a Secret for people, where no other write brings it up to date: the line of its state, what is wrong
//! with its annotations, and the error of its last renewal.
//!
//! The controller adds a Secret when its line would say something else, and when an annotation names objects of the
//! cluster. Such a Secret is read once, a moment later, and written if something is news; a date that has moved is
//! none. Each namespace has a token bucket, and each Secret is written more and more rarely if somebody keeps putting
//! the former text back.

use std::collections::HashMap;
use std::time::Duration;

use cert_renew_core::assess::{self, Assessment};
use cert_renew_core::config::Labels;
use cert_renew_core::index::{self, Change, Entry, Stuck};
use cert_renew_core::schedule::token_bucket::TokenBucket;
use cert_renew_core::secret::data::outputs::Part;
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::secret::object::head::Head;
use cert_renew_core::secret::settings::Problem;
use cert_renew_core::secret::{SecretRef, keys, parts};
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::state_line::{self, Facts, StateLine};
use cert_renew_core::verdict::{State, since};
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::handles::Handles;
use crate::cluster;
use crate::cluster::events::Reason;
use crate::cluster::secrets::{self, Changes};
use crate::leader::lookups::{self, Found};
use crate::process::task::Done;

/// Most looks in one namespace at once, then one a second: no user can make us load the API server without limit.
const AT_ONCE: u32 = 100;
/// Shortest time between two writes of ours on one Secret; it doubles with each write.
const APART: Duration = Duration::from_secs(5);
/// Longest time between them, after which the count begins again.
const LONGEST_APART: Duration = Duration::from_secs(3_600);
/// Most Secrets whose last write is remembered. Beyond it the namespace that has most of them makes room.
const MOST_REMEMBERED: usize = 4_096;
/// Time between two looks at what annotations name and what does not exist: it may have been made since.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// Time between two looks where something is only not known yet, as the profiles of a CA that was asked for nothing: each
/// reads the whole Secret, and thousands may name a profile.
const LOOK_FOR_UNKNOWN: Duration = Duration::from_secs(3_600);
/// Longest look at what annotations name: lists of large workloads take long, and one that takes longer is put off.
const LONGEST_LOOK: Duration = Duration::from_secs(60);

/// Whether a Secret needs a look: what stands on it is not what would be written, or its annotations name objects that
/// were not looked for.
#[must_use]
pub fn are_outdated(
    key: &SecretRef,
    head: &Head,
    assessment: &Assessment,
    facts: impl FnOnce() -> Option<Facts>,
    change: Change,
) -> bool {
    // A program that copies the Secret would put the copied text back after each write.
    if assessment.copied_record {
        return false;
    }
    let written = head.annotation(keys::STATE);
    let differs = |facts: Facts| {
        let now = UnixTime::now();
        let error = error_of(now, &facts.entry);
        let line = state_line::line(now, key, &facts.judged(assessment));
        line.is_news(written) || news(error, &line, head).is_some()
    };
    // Secrets of a version that wrote no line get one with their next write, or when something changes.
    let of_former = change == Change::New && written.is_none();
    let is_news = !of_former && facts().is_some_and(differs);
    let problems = state_line::problems(&assessment.problems);
    let wrong = problems.as_deref() != head.annotation(keys::PROBLEMS);
    let looked_for = match change {
        Change::New => written.is_some(),
        Change::Changed | Change::Same => false,
    };
    is_news || wrong || (names_objects(assessment) && !looked_for)
}

/// Whether an annotation can be checked only by a look at other objects.
fn names_objects(assessment: &Assessment) -> bool {
    let settings = &assessment.settings;
    let bags = |parts: &[Part]| parts.contains(&Part::Pkcs12);
    assessment.by_labels
        || !settings.workloads.is_empty()
        || settings.verify.is_some()
        || settings.profile.is_some()
        || settings.outputs.iter().any(|output| bags(&output.parts))
}

/// Writes what is outdated until the term ends.
pub async fn follow(all: &Handles, done: &UnboundedSender<Done>) {
    let allowance = Mutex::new(TokenBucket::new(AT_ONCE));
    let writes = Mutex::new(Writes::default());
    let look = async |key: SecretRef| {
        let now = Instant::now();
        let may = || allowance.lock().take(now.into_std(), &key.namespace);
        if !writes.lock().may(now, &key) || !may() {
            all.notes.add(&key);
            return;
        }
        match look(all, &key, done).await {
            Ok(Looked { wrote, again }) => {
                if wrote {
                    writes.lock().count(now, &key);
                }
                if let Some(again) = again {
                    all.notes.add_after(&key, again);
                }
            }
            Err(error) => {
                let text = error_chain(&error);
                tracing::info!(secret = %key, error = text, "the line of its state cannot be written");
                if error.is_uncertain() || matches!(error, cluster::Error::Conflict { .. }) {
                    all.notes.add(&key);
                }
            }
        }
    };
    all.notes.each(look).await;
}

/// What a look came to.
struct Looked {
    wrote: bool,
    /// After which time it is looked at again.
    again: Option<Duration>,
}

/// When a Secret is looked at again, by whether a problem was found and whether something is not known yet.
fn look_again(any_found: bool, is_partial: bool) -> Option<Duration> {
    match (any_found, is_partial) {
        (true, _) => Some(LOOK_AGAIN),
        (false, true) => Some(LOOK_FOR_UNKNOWN),
        (false, false) => None,
    }
}

/// Reads one Secret, and writes on it what is outdated.
async fn look(
    all: &Handles,
    key: &SecretRef,
    done: &UnboundedSender<Done>,
) -> Result<Looked, cluster::Error> {
    let nothing = Looked {
        wrote: false,
        again: None,
    };
    let now = UnixTime::now();
    let secret = match secrets::get(&all.shared.client, key).await {
        Ok(secret) => secret,
        Err(cluster::Error::NotFound { .. }) => return Ok(nothing),
        Err(error) => return Err(error),
    };
    let config = all.shared.config();
    let view = (&*config, Labels::NotAsked);
    let suggested = |leaf| all.renewals.info.instant(key, leaf);
    let assessment = assess::of_full(now, key, &secret, view, suggested);
    let (Some(assessment), Some(facts)) = (assessment, all.shared.facts(key)) else {
        return Ok(nothing);
    };
    if assessment.copied_record {
        return Ok(nothing);
    }
    // Of the data only what the look needs is held while others are asked.
    let password = assessment.settings.pkcs12_password_key.as_deref();
    let needed: Vec<&str> = password.into_iter().chain([parts::CA_KEY]).collect();
    let secret = secret.lighten(&needed);
    let found = lookups::problems(all, key, &secret, &assessment);
    let Ok(Found {
        problems: found,
        is_partial,
    }) = tokio::time::timeout(LONGEST_LOOK, found).await
    else {
        tracing::info!(secret = %key, "what its annotations name could not be looked up in time");
        all.notes.add_after(key, LOOK_AGAIN);
        return Ok(nothing);
    };
    // The receiver is dropped only with the term.
    let texts = found.iter().map(|(_, problem)| problem.to_string());
    let _ = done.send(Done::LookedUp(key.clone(), texts.collect()));
    let annotations = outdated(now, key, &secret, (&assessment, facts), &found);
    let again = look_again(!found.is_empty(), is_partial);
    if annotations.is_empty() {
        return Ok(Looked {
            wrote: false,
            again,
        });
    }
    let before = secret.head.annotation(keys::PROBLEMS).unwrap_or_default();
    let is_known = |it: &(Reason, Problem)| before.lines().any(|line| line == it.1.to_string());
    let changes = Changes::of(annotations);
    secrets::patch(&all.shared.client, &secret.head, &changes).await?;
    for (reason, problem) in found.iter().filter(|it| !is_known(it)) {
        tracing::warn!(secret = %key, %problem, "invalid annotation");
        let (events, uid) = (&all.shared.events, secret.head.uid());
        events.secret(key, uid, *reason, &problem.to_string());
    }
    Ok(Looked { wrote: true, again })
}

/// The annotations that say something else than what is known.
fn outdated(
    now: UnixTime,
    key: &SecretRef,
    secret: &FullSecret,
    (assessment, mut facts): (&Assessment, Facts),
    found: &[(Reason, Problem)],
) -> Vec<(&'static str, Option<String>)> {
    let head = &secret.head;
    facts.entry.observed = assessment.observed(head.uid(), head.resource_version());
    let state = State::of(&facts.entry, now);
    let error = error_of(now, &facts.entry);
    let line = state_line::line(now, key, &facts.judged(assessment));
    let all = assessment
        .problems
        .iter()
        .chain(found.iter().map(|(_, it)| it));
    let problems = state_line::problems(all);
    let mut annotations = Vec::new();
    if problems.as_deref() != head.annotation(keys::PROBLEMS) {
        annotations.push((keys::PROBLEMS, problems));
    }
    let error = news(error, &line, head);
    if line.is_news(head.annotation(keys::STATE))
        || ((error.is_some() || !annotations.is_empty()) && line.lasts())
    {
        annotations.push((keys::STATE, Some(line.text().to_owned())));
        annotations.extend(since::beside(now, state, head));
    }
    if let Some((error, retry_at)) = error {
        let retry_at = retry_at.map(|at| at.to_string());
        annotations.push((keys::LAST_ERROR, error.map(String::from)));
        annotations.push((keys::RETRY_AT, retry_at));
    }
    annotations
}

/// The error of the last renewal, and when the next try is.
type LastError = (Option<Box<str>>, Option<UnixTime>);

/// The error of the last renewal as it is known by now; none of a renewal that is held, which is no error. `None` while
/// a renewal runs.
fn error_of(now: UnixTime, entry: &Entry) -> Option<LastError> {
    if entry.renewing.is_some() {
        return None;
    }
    let error = { entry.renewal_error.clone() }.filter(|_| State::of(entry, now) != State::Held);
    // What waits for a person is looked at again and again, and no such look is announced.
    let waits = entry.stuck == Some(Stuck::OtherOwner);
    let at = Some(entry.renew_at).filter(|at| !waits && *at > now && *at != UnixTime::NEVER);
    let at = at.filter(|_| error.is_some());
    Some((error, at))
}

/// The error, if it is another than the one on the Secret; one that passes by itself is not written.
fn news(error: Option<LastError>, line: &StateLine, head: &Head) -> Option<LastError> {
    let written = head.annotation(keys::LAST_ERROR).map(index::kept);
    error.filter(|(error, _)| line.lasts() && error.as_deref() != written)
}

/// When this task has written which Secret, and how often.
#[derive(Debug, Default)]
struct Writes(HashMap<SecretRef, (Instant, u32)>);

impl Writes {
    fn may(&self, now: Instant, key: &SecretRef) -> bool {
        self.0.get(key).is_none_or(|(last, count)| {
            let apart = APART.saturating_mul(1_u32.checked_shl(*count).unwrap_or(u32::MAX));
            now.duration_since(*last) >= apart.min(LONGEST_APART)
        })
    }

    fn count(&mut self, now: Instant, key: &SecretRef) {
        let is_recent = |last: Instant| now.duration_since(last) < LONGEST_APART * 2;
        self.0.retain(|_, (last, _)| is_recent(*last));
        if self.0.len() >= MOST_REMEMBERED && !self.0.contains_key(key) {
            self.make_room();
        }
        let (last, count) = self.0.entry(key.clone()).or_insert((now, 0));
        (*last, *count) = (now, *count + 1);
    }

    /// Forgets the oldest write of the namespace that has most.
    fn make_room(&mut self) {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for key in self.0.keys() {
            *counts.entry(&*key.namespace).or_default() += 1;
        }
        let most = counts
            .into_iter()
            .max_by_key(|(namespace, count)| (*count, *namespace));
        let of_most = { self.0.iter() }
            .filter(|(key, _)| most.is_some_and(|(namespace, _)| *key.namespace == *namespace));
        let oldest = of_most.min_by_key(|(key, (last, _))| (*last, *key));
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.0.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_somebody_keeps_changing_is_written_more_and_more_rarely() {
        let key = SecretRef {
            namespace: "shop".into(),
            name: "tls".into(),
        };
        let (mut writes, start) = (Writes::default(), Instant::now());
        let (mut at, mut written) = (start, Vec::new());
        while at < start + Duration::from_secs(86_400) {
            if writes.may(at, &key) {
                writes.count(at, &key);
                written.push(at.duration_since(start).as_secs());
            }
            at += Duration::from_secs(1);
        }
        assert_eq!(written[..5], [0, 10, 30, 70, 150]);
        assert!(written.len() < 40, "{written:?}");
    }

    #[test]
    fn a_namespace_with_very_many_writes_is_forgotten_before_others() {
        let (mut writes, start) = (Writes::default(), Instant::now());
        let shop = SecretRef::new("shop", "tls");
        writes.count(start, &shop);
        for number in 0..MOST_REMEMBERED + 10 {
            let key = SecretRef::new("hostile", number.to_string());
            writes.count(start, &key);
            assert!(!writes.may(start, &key));
        }
        assert_eq!(writes.0.len(), MOST_REMEMBERED);
        assert!(!writes.may(start, &shop));
        let blog = SecretRef::new("blog", "tls");
        writes.count(start, &blog);
        assert!(!writes.may(start, &blog), "there is room for it");
        assert_eq!(writes.0.len(), MOST_REMEMBERED);
    }

    #[test]
    fn what_is_only_not_known_yet_is_looked_at_more_rarely_than_a_problem() {
        for (any_found, is_partial, expected) in [
            (false, false, None),
            (false, true, Some(3_600)),
            (true, false, Some(300)),
            (true, true, Some(300)),
        ] {
            let again = look_again(any_found, is_partial).map(|it| it.as_secs());
            assert_eq!(again, expected, "{any_found} {is_partial}");
        }
    }
}
