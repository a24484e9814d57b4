//! How a Secret stands, in one line on the Secret itself, and what is wrong with its annotations.
//!
//! Input: what the index and the renewals know. Output: the values of [`keys::STATE`] and [`keys::PROBLEMS`], and whether
//! they are news. Pure. Both are for people and are never read as settings: a forged value misleads its reader until
//! the next write. A line is written with writes that happen anyway; a date that moves is no reason to write.

use crate::assess::Assessment;
use crate::index::{Entry, Fault, Observed};
use crate::schedule::due::{Due, Heed, Never, Reason};
use crate::secret::SecretRef;
use crate::secret::keys;
use crate::secret::settings::{Blocks, Problem};
use crate::secret::workload::RolloutMode;
use crate::time::UnixTime;

/// Longest line, in characters: `kubectl describe` cuts values at 140.
const LONGEST: usize = 139;
/// Longest text of all problems, in bytes: all annotations of an object have 256 KiB.
const LONGEST_PROBLEMS: usize = 4 * 1_024;
/// Most workloads that a text names.
const NAMED: usize = 10;
/// First word of the line of a Secret for which nobody has to do anything.
const WELL: &str = "ok;";

/// The line that a renewal writes; the rollout that follows writes the next one.
pub const RENEWED: &str = "renewed; its workloads get the certificate now";

/// What is known of a Secret.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What the Secret says, as it is or as it will be after the write.
    pub observed: Observed,
    /// Why the last renewal failed or waits.
    pub renewal_error: Option<Box<str>>,
    /// Why the last rollout failed or waits.
    pub rollout_error: Option<Box<str>>,
    /// The last renewal failed, in contrast to one that is held back.
    pub failed: bool,
    /// When the next try begins.
    pub retry_at: Option<UnixTime>,
    /// Key and certificate do not belong together, or no server loads them.
    pub pair_broken: bool,
    /// The workload at which the rollout was halted.
    pub halted_at: Option<String>,
    /// The first problem of the annotations that blocks renewals, and the first that blocks rollouts.
    pub blocked_by: [Option<String>; 2],
}

/// Whether a line is worth a write of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    /// Nobody has to do anything.
    Well,
    /// Work is under way, and ends with a write.
    Passing,
    /// It stays so until something changes.
    Stays,
}

/// The value of [`keys::STATE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateLine {
    text: String,
    weight: Weight,
}

impl Facts {
    /// What the index knows. `failed` tells a failed renewal from one that is held back.
    #[must_use]
    pub fn of(entry: &Entry, failed: bool) -> Self {
        Self {
            observed: entry.observed.clone(),
            renewal_error: entry.renewal_error.clone(),
            rollout_error: entry.rollout_error.clone(),
            failed,
            retry_at: Some(entry.renew_at).filter(|at| *at != UnixTime::NEVER),
            pair_broken: entry.pair_broken,
            halted_at: None,
            blocked_by: [None, None],
        }
    }

    /// The same with what an assessment knows beyond the index.
    #[must_use]
    pub fn judged(mut self, assessment: &Assessment) -> Self {
        let first = |blocks: fn(Blocks) -> bool| {
            let found = { assessment.problems.iter() }.find(|it| blocks(it.blocks));
            found.map(ToString::to_string)
        };
        self.blocked_by = [first(Blocks::issue), first(Blocks::rollout)];
        self.halted_at = assessment
            .halted
            .as_ref()
            .map(|note| note.workload.to_string());
        self
    }

    fn rollout_due(&self) -> bool {
        let Observed {
            leaf, rolled_out, ..
        } = &self.observed;
        match (leaf, rolled_out) {
            (Ok(leaf), Some(had)) => !had.is(leaf.fingerprint, leaf.with),
            _ => false,
        }
    }

    /// Why no renewal is possible, in words.
    fn never(&self, never: Never) -> String {
        let [by_problem, _] = &self.blocked_by;
        if let Some(problem) = by_problem {
            return problem.clone();
        }
        match never {
            Never::UnknownIssuer => {
                format!("issuer {:?} is not in the config", &*self.observed.issuer)
            }
            Never::NotAllowed => {
                format!(
                    "the config does not allow these names to issuer {}",
                    self.observed.issuer
                )
            }
            Never::NoNames => {
                "the names to ask for are not known: set cert-renew.io/names".to_owned()
            }
            Never::External | Never::Paused | Never::NotAnnotated => String::new(),
        }
    }
}

/// The line of a Secret at `now`.
#[must_use]
pub fn line(now: UnixTime, key: &SecretRef, facts: &Facts) -> StateLine {
    let Observed {
        leaf,
        window,
        rollout_blocked,
        halted,
        ..
    } = &facts.observed;
    let (leaf, renewal) = (*leaf, facts.observed.due());
    let due = renewal.is_ok_and(|due| due.at <= now);
    let shut = window.filter(|opens| *opens > now);
    let rolls = facts.rollout_due();
    let [no_renewal, no_rollout] = &facts.blocked_by;
    let expired = leaf.ok().filter(|leaf| leaf.not_after < now);
    let before = expired.map_or_else(String::new, |leaf| {
        format!("expired {}; ", minute(leaf.not_after))
    });
    let stays =
        |text: &str, end: &str| StateLine::new(&format!("{before}{text}"), end, Weight::Stays);
    if due && let Some(error) = &facts.renewal_error {
        let later = facts.retry_at.filter(|at| at.since(now).as_secs() >= 60);
        let at = later.map(minute);
        return match (facts.failed, at) {
            (true, Some(at)) => stays(&format!("failing: {error}"), &format!("; next try {at}")),
            (true, None) => stays(&format!("failing: {error}"), ""),
            (false, Some(at)) => stays(&format!("held until {at}: {error}"), ""),
            (false, None) => stays(&format!("waits: {error}"), ""),
        };
    }
    match renewal {
        Err(never @ (Never::NoNames | Never::UnknownIssuer | Never::NotAllowed)) => {
            return stays(&format!("blocked: {}", facts.never(never)), "");
        }
        Err(Never::Paused) => return stays("paused", &ends(leaf.ok().map(|it| it.not_after))),
        _ => {}
    }
    if leaf == Err(Fault::Unreadable) && !due {
        return stays("unreadable: what is in it is no certificate", "");
    }
    if facts.pair_broken {
        let why = facts
            .rollout_error
            .as_deref()
            .unwrap_or("servers cannot load the pair");
        return stays(&format!("broken: {why}"), "");
    }
    if *halted && rolls {
        let workload = facts.halted_at.as_deref().unwrap_or("a workload");
        let text = format!("halted: {workload} did not take the certificate up");
        return stays(&text, &format!("; then: cert-renew resume {key}"));
    }
    if let (Ok(due), Some(problem)) = (renewal, no_renewal) {
        return stays(&format!("blocked until {}: {problem}", minute(due.at)), "");
    }
    if rolls && let Some(problem) = no_rollout {
        return stays(&format!("workloads are not restarted: {problem}"), "");
    }
    if rolls && *rollout_blocked {
        return stays("workloads are not restarted: cert-renew.io/paused", "");
    }
    if let Some(opens) = shut.filter(|_| due || rolls) {
        let what = if due {
            "renewal"
        } else {
            "restart of workloads"
        };
        return stays(
            &format!("{what} waits for the change window"),
            &format!("; opens {}", minute(opens)),
        );
    }
    if rolls && let Some(error) = &facts.rollout_error {
        return stays(&format!("not restarted: {error}"), "");
    }
    match renewal {
        Ok(due) if due.at <= now => {
            let why = in_words(due.reason);
            StateLine::new(
                &format!("{before}renewal begins: {why}"),
                "",
                Weight::Passing,
            )
        }
        _ if rolls => StateLine::new(RENEWED, "", Weight::Passing),
        Ok(due) => well(
            facts,
            &format!("renews {} {}", minute(due.at), by(due, facts.observed.heed)),
        ),
        Err(_) if expired.is_some() => stays("renewed by another program, if at all", ""),
        Err(_) => well(
            facts,
            &format!(
                "renewed by another program{}",
                ends(leaf.ok().map(|it| it.not_after))
            ),
        ),
    }
}

fn well(facts: &Facts, text: &str) -> StateLine {
    let end = if facts.observed.problems > 0 {
        format!("; see {}", keys::PROBLEMS)
    } else {
        String::new()
    };
    StateLine::new(&format!("{WELL} {text}"), &end, Weight::Well)
}

fn ends(not_after: Option<UnixTime>) -> String {
    not_after.map_or_else(String::new, |at| format!("; ends {}", minute(at)))
}

/// By whose word the renewal comes then.
#[must_use]
pub fn by(due: Due, heed: Heed) -> &'static str {
    match (due.reason, heed) {
        (Reason::RenewalInfo, _) => "by the CA's window",
        (_, Heed::Past) => "by renew-before",
        _ => "by its lifetime",
    }
}

/// Why a renewal is due, for people.
#[must_use]
pub fn in_words(reason: Reason) -> &'static str {
    match reason {
        Reason::NoCertificate => "there is no certificate",
        Reason::Unreadable => "what is there is no certificate",
        Reason::Placeholder => "the certificate is a self-signed placeholder",
        Reason::MissingName => "the certificate lacks one of the names",
        Reason::ProfileChanged => "another profile is asked for",
        Reason::LifetimeChanged => "another lifetime is asked for",
        Reason::KeyTypeChanged => "another type of key is asked for",
        Reason::OutputsChanged => "other outputs are asked for",
        Reason::Staging => "the certificate is from a staging CA",
        Reason::Revoked => "the certificate is revoked",
        Reason::RenewNow => "renew-now asks for it",
        Reason::RenewalInfo => "the CA asks for it",
        Reason::Lifetime => "its time has come",
    }
}

/// An instant to the minute.
fn minute(at: UnixTime) -> String {
    let text = at.to_string();
    match text.rsplit_once(':') {
        Some((minute, _)) if text.ends_with('Z') => format!("{minute}Z"),
        _ => text,
    }
}

/// The value of [`keys::PROBLEMS`]; `None` if nothing is wrong.
#[must_use]
pub fn problems<'a>(problems: impl IntoIterator<Item = &'a Problem>) -> Option<String> {
    let texts: Vec<String> = problems.into_iter().map(ToString::to_string).collect();
    let mut text = texts.join("\n");
    if text.len() > LONGEST_PROBLEMS {
        text.truncate(text.floor_char_boundary(LONGEST_PROBLEMS));
        text.push('…');
    }
    (!text.is_empty()).then_some(text)
}

impl StateLine {
    /// A line of `text` and then `end`, of which `text` is cut if both are too long.
    fn new(text: &str, end: &str, weight: Weight) -> Self {
        let room = LONGEST.saturating_sub(end.chars().count());
        let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        let text = if text.chars().count() <= room {
            plain.chain(end.chars()).collect()
        } else {
            let kept = plain.take(room.saturating_sub(1));
            kept.chain(['…']).chain(end.chars()).collect()
        };
        Self { text, weight }
    }

    /// The value to write.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it stays so until something changes.
    #[must_use]
    pub fn lasts(&self) -> bool {
        self.weight != Weight::Passing
    }

    /// Whether it is worth a write of its own, in place of what is written: a healthy Secret gets its line with the next
    /// write that happens anyway, and dates alone are no news.
    #[must_use]
    pub fn is_news(&self, written: Option<&str>) -> bool {
        match self.weight {
            Weight::Passing => false,
            Weight::Well => written.is_some_and(|it| !it.starts_with(WELL)),
            Weight::Stays => {
                written.is_none_or(|it| without_dates(it) != without_dates(&self.text))
            }
        }
    }
}

/// The words of a line that are no instants, without the last one that a cut may have shortened.
fn without_dates(line: &str) -> Vec<&str> {
    let is_date = |word: &str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('T');
    line.split([' ', ';', ','])
        .filter(|word| !word.is_empty() && !is_date(word) && !word.ends_with('…'))
        .collect()
}

/// What happens to a Secret that was seen for the first time: when it is renewed, by whose word, and what a new certificate
/// does to the workloads that use it.
#[must_use]
pub fn adopted(now: UnixTime, assessment: &Assessment, workloads: &[String]) -> String {
    let renewal = adopting(now, assessment);
    let rollout = restarts(assessment, workloads);
    format!("{renewal}; {rollout}")
}

/// The same of a Secret whose workloads are not known yet.
#[must_use]
pub fn adopting(now: UnixTime, assessment: &Assessment) -> String {
    let not_after = assessment.leaf.as_ref().ok().map(|leaf| leaf.not_after);
    match assessment.renewal {
        Ok(due) if due.at <= now => format!(
            "a new certificate is asked for now: {}",
            in_words(due.reason)
        ),
        Ok(due) => {
            let may_change = match assessment.heed {
                Heed::Any => ", if the CA does not ask for another time",
                Heed::Past | Heed::Nothing => "",
            };
            format!(
                "renews {} {}{may_change}",
                minute(due.at),
                by(due, assessment.heed)
            )
        }
        Err(Never::External) => format!("another program renews it{}", ends(not_after)),
        Err(Never::Paused) => format!(
            "cert-renew.io/paused: nothing is changed{}",
            ends(not_after)
        ),
        Err(_) => {
            let blocking = assessment.problems.iter().find(|it| it.blocks.issue());
            let why =
                blocking.map_or_else(|| "see its annotations".to_owned(), ToString::to_string);
            format!("it is not renewed: {why}")
        }
    }
}

/// What a new certificate does to the workloads that use it.
fn restarts(assessment: &Assessment, workloads: &[String]) -> String {
    let named = workloads.iter().take(NAMED).map(String::as_str);
    let mut named = named.collect::<Vec<_>>().join(", ");
    if workloads.len() > NAMED {
        named.push_str(&format!(" and {} more", workloads.len() - NAMED));
    }
    match &assessment.settings.rollout {
        _ if workloads.is_empty() => "no workload was found that uses it".to_owned(),
        RolloutMode::Restart => format!("a new certificate restarts {named}"),
        RolloutMode::Post { .. } => {
            format!("with a new certificate these are asked to reload: {named}")
        }
        RolloutMode::None => format!("cert-renew.io/rollout is none: nothing restarts {named}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Fingerprint;
    use crate::index::LeafFacts;
    use crate::schedule::due::{AT_ONCE, Suggestion};
    use crate::secret::parts::ChainAndCa;
    use crate::secret::state::RolledOut;

    const NOW: UnixTime = UnixTime(1_700_000_000);
    const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

    fn facts() -> Facts {
        let leaf = LeafFacts {
            fingerprint: Fingerprint([2; 32]),
            not_before: NOW - DAY,
            not_after: NOW + DAY * 89,
            with: ChainAndCa::NONE,
        };
        let observed = Observed {
            uid: "u".into(),
            resource_version: "1".into(),
            issuer: "le".into(),
            leaf: Ok(leaf),
            rolled_out: Some(leaf.held()),
            renewal: Ok(Due {
                at: NOW + DAY * 59,
                reason: Reason::Lifetime,
            }),
            heed: Heed::Any,
            suggestion: Suggestion::None,
            window: None,
            wish: None,
            account: 0.into(),
            rollout_blocked: false,
            copied_record: false,
            halted: false,
            renewed: None,
            problems: 0,
            problem_texts: 0,
        };
        Facts {
            observed,
            renewal_error: None,
            rollout_error: None,
            failed: false,
            retry_at: None,
            pair_broken: false,
            halted_at: None,
            blocked_by: [None, None],
        }
    }

    fn key() -> SecretRef {
        SecretRef {
            namespace: "shop".into(),
            name: "tls".into(),
        }
    }

    fn said(change: impl FnOnce(&mut Facts)) -> StateLine {
        let mut facts = facts();
        change(&mut facts);
        line(NOW, &key(), &facts)
    }

    fn due(facts: &mut Facts) {
        facts.observed.renewal = Ok(Due {
            at: AT_ONCE,
            reason: Reason::MissingName,
        });
    }

    fn unrolled(facts: &mut Facts) {
        facts.observed.rolled_out = Some(RolledOut::None);
    }

    /// Changes a fact.
    type Change = fn(&mut Facts);

    #[test]
    fn each_state_is_said_in_short_with_its_cause() {
        let cases: [(Change, &str, bool); 18] = [
            (
                |_| {},
                "ok; renews 2024-01-12T22:13Z by its lifetime",
                false,
            ),
            (
                |it| it.observed.heed = Heed::Past,
                "ok; renews 2024-01-12T22:13Z by renew-before",
                false,
            ),
            (
                |it| it.observed.suggestion = Suggestion::At(NOW + DAY * 10),
                "ok; renews 2023-11-24T22:13Z by the CA's window",
                false,
            ),
            (
                |it| it.observed.problems = 1,
                "ok; renews 2024-01-12T22:13Z by its lifetime; see state.cert-renew.io/problems",
                false,
            ),
            (
                |it| it.observed.renewal = Err(Never::External),
                "ok; renewed by another program; ends 2024-02-11T22:13Z",
                false,
            ),
            (
                due,
                "renewal begins: the certificate lacks one of the names",
                false,
            ),
            (
                |it| {
                    due(it);
                    it.renewal_error = Some("the CA says no".into());
                    (it.failed, it.retry_at) = (true, Some(NOW + DAY));
                },
                "failing: the CA says no; next try 2023-11-15T22:13Z",
                true,
            ),
            (
                |it| {
                    due(it);
                    it.renewal_error = Some("too young".into());
                    it.retry_at = Some(NOW + DAY);
                },
                "held until 2023-11-15T22:13Z: too young",
                true,
            ),
            (
                |it| {
                    due(it);
                    it.renewal_error = Some("the record is not there".into());
                    it.retry_at = Some(NOW + DAY / 86_400);
                },
                "waits: the record is not there",
                true,
            ),
            (
                |it| it.observed.renewal = Err(Never::UnknownIssuer),
                "blocked: issuer \"le\" is not in the config",
                true,
            ),
            (
                |it| {
                    it.observed.renewal = Err(Never::NotAllowed);
                    it.blocked_by[0] = Some("cert-renew.io/names: no".into());
                },
                "blocked: cert-renew.io/names: no",
                true,
            ),
            (
                |it| it.blocked_by[0] = Some("cert-renew.io/names: no".into()),
                "blocked until 2024-01-12T22:13Z: cert-renew.io/names: no",
                true,
            ),
            (
                |it| it.observed.renewal = Err(Never::Paused),
                "paused; ends 2024-02-11T22:13Z",
                true,
            ),
            (unrolled, RENEWED, false),
            (
                |it| {
                    unrolled(it);
                    it.observed.window = Some(NOW + DAY);
                },
                "restart of workloads waits for the change window; opens 2023-11-15T22:13Z",
                true,
            ),
            (
                |it| {
                    unrolled(it);
                    it.observed.halted = true;
                    it.halted_at = Some("deployment/web".into());
                },
                "halted: deployment/web did not take the certificate up; then: cert-renew resume shop/tls",
                true,
            ),
            (
                |it| {
                    unrolled(it);
                    it.rollout_error = Some("deployment/web is paused".into());
                },
                "not restarted: deployment/web is paused",
                true,
            ),
            (
                |it| {
                    it.observed.renewal = Err(Never::External);
                    let leaf = it.observed.leaf.unwrap();
                    let not_after = NOW - DAY;
                    it.observed.leaf = Ok(LeafFacts { not_after, ..leaf });
                    it.observed.rolled_out = Some(it.observed.leaf.unwrap().held());
                },
                "expired 2023-11-13T22:13Z; renewed by another program, if at all",
                true,
            ),
        ];
        for (change, expected, is_news) in cases {
            let line = said(change);
            assert_eq!(line.text(), expected);
            assert_eq!(line.is_news(None), is_news, "{expected}");
            assert!(!line.is_news(Some(expected)), "{expected}");
        }
    }

    #[test]
    fn a_long_cause_is_cut_and_the_way_out_stays() {
        let line = said(|it| {
            due(it);
            it.renewal_error = Some("ä\n".repeat(500).into());
            (it.failed, it.retry_at) = (true, Some(NOW + DAY));
        });
        assert_eq!(line.text().chars().count(), LONGEST);
        assert!(
            line.text().ends_with("…; next try 2023-11-15T22:13Z"),
            "{}",
            line.text()
        );
        assert!(!line.text().contains('\n'));
    }

    #[test]
    fn a_date_is_no_news_and_another_cause_is() {
        let held = |at: UnixTime, why: &'static str| {
            said(move |it| {
                due(it);
                it.renewal_error = Some(why.into());
                it.retry_at = Some(at);
            })
        };
        let written = held(NOW + DAY, "too young").text().to_owned();
        assert!(!held(NOW + DAY * 2, "too young").is_news(Some(&written)));
        assert!(held(NOW + DAY, "too many").is_news(Some(&written)));
        // What is well again is told, and a healthy Secret without a line waits for its next write.
        assert!(said(|_| {}).is_news(Some(&written)));
        assert!(!said(|_| {}).is_news(None));
        assert!(!said(|_| {}).is_news(Some("ok; renews 2020-01-01T00:00Z by the CA's window")));
        // Work that is under way writes its own end.
        assert!(!said(due).is_news(Some(&written)));
        assert!(!said(unrolled).is_news(None));
    }

    #[test]
    fn problems_are_one_a_line_and_bounded() {
        let problem = |value: &str| Problem {
            key: keys::NAMES.into(),
            value: value.into(),
            expected: "expected another".into(),
            blocks: Blocks::Nothing,
        };
        assert_eq!(problems(&[]), None);
        let two = problems(&[problem("a"), problem("b")]).unwrap();
        assert_eq!(two.lines().count(), 2);
        assert!(
            two.starts_with("cert-renew.io/names: a: expected another\n"),
            "{two}"
        );
        let long = problem(&"ä".repeat(LONGEST_PROBLEMS));
        let long = problems([&long]).unwrap();
        assert!(long.len() <= LONGEST_PROBLEMS + "…".len(), "{}", long.len());
    }
}
