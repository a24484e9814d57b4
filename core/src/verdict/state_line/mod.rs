//! How a Secret stands, in one line on the Secret itself, and what is wrong with its annotations.
//!
//! Input: what the index and the renewals know. Output: the values of [`keys::STATE`] and [`keys::PROBLEMS`], and whether
//! they are news. Pure. Both are for people and are never read as settings: a forged value misleads its reader until
//! the next write. A line is written with writes that happen anyway; a date that moves is no reason to write.

use std::sync::Arc;

use crate::assess::Assessment;
use crate::index::Entry;
use crate::schedule::due::{AriPolicy, Never};
use crate::secret::settings::{Blocks, Problem};
use crate::secret::workload::RolloutMode;
use crate::secret::{SecretRef, keys};
use crate::time::UnixTime;
use crate::verdict::{NAMESPACE, State, Why, for_operator_in, unrolled};

/// Longest line, in characters: `kubectl describe` cuts values at 140.
const LONGEST: usize = 139;
/// Longest text of all problems, in bytes: all annotations of an object have 256 KiB.
const LONGEST_PROBLEMS: usize = 4 * 1_024;
/// Most workloads that a text names.
const NAMED: usize = 10;
/// First word of the line of a Secret for which nobody has to do anything.
const WELL: &str = "ok;";
/// What follows it where the workloads are not restarted yet; then for what.
const RESTART_WAITS: &str = "restart of workloads waits for";

/// The line that a renewal writes; the rollout that follows writes the next one.
pub const RENEWED: &str = "renewed; its workloads get the certificate now";

/// That the restart of workloads waits, and for what, as a line says it; `None` where it says something else.
#[must_use]
pub fn restart_waits(line: &str) -> Option<&str> {
    let said = line.strip_prefix(WELL)?.trim_start();
    said.starts_with(RESTART_WAITS).then_some(said)
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

/// What is known of a Secret.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What the index knows, as it is or as it will be after the write.
    pub entry: Entry,
    /// The workload at which the rollout was halted.
    pub halted_at: Option<String>,
    /// The first problem of the annotations that blocks renewals, and the first that blocks rollouts.
    pub blocked_by: [Option<String>; 2],
    /// The operator's namespace, which commands name where they would not look there; none: where they look.
    pub operator: Option<Arc<str>>,
}

impl Facts {
    /// What the index knows.
    #[must_use]
    pub fn of(entry: Entry) -> Self {
        Self {
            entry,
            halted_at: None,
            blocked_by: [None, None],
            operator: None,
        }
    }

    /// The same, told by the operator in this namespace.
    #[must_use]
    pub fn told_in(self, namespace: &Arc<str>) -> Self {
        Self {
            operator: Some(Arc::clone(namespace)),
            ..self
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

    /// Why the renewal is blocked, in words.
    fn blocked(&self) -> String {
        let [by_issue, by_rollout] = &self.blocked_by;
        let seen = &self.entry.observed;
        if let Some(problem) = by_issue.as_ref().or(by_rollout.as_ref()) {
            return problem.clone();
        }
        match seen.renewal {
            Err(never) => Why::Never(never).in_words().to_owned(),
            Ok(_) => format!("see {}", keys::PROBLEMS),
        }
    }

    /// When it is renewed, and what is said to that; empty where it is not.
    fn next_try(&self, now: UnixTime) -> String {
        let later = Some(self.entry.renew_at).filter(|at| *at != UnixTime::NEVER);
        let later = later.filter(|at| *at > now);
        later.map_or_else(String::new, |at| format!("; next try {}", minute(at)))
    }
}

/// The line of a Secret at `now`: its [`State`], and why.
#[must_use]
pub fn line(now: UnixTime, key: &SecretRef, facts: &Facts) -> StateLine {
    let entry = &facts.entry;
    let seen = &entry.observed;
    let state = State::of(entry, now);
    let word = state.as_str();
    let ends = |before: &str| {
        { seen.leaf.ok() }.map_or_else(String::new, |leaf| {
            format!("{before}{}", minute(leaf.not_after))
        })
    };
    let error = |error: &Option<Box<str>>, otherwise: &str| {
        error.as_deref().unwrap_or(otherwise).to_owned()
    };
    let stays =
        |why: &str, end: &str| StateLine::new(&format!("{word}: {why}"), end, Weight::Stays);
    let renewal_error = || error(&entry.renewal_error, "it is not renewed in time");
    match state {
        State::Expired if entry.renewal_error.is_some() => stays(
            &format!("{}{}", ends(""), format_args!("; {}", renewal_error())),
            &facts.next_try(now),
        ),
        State::Expired => stays(&format!("{}; {}", ends(""), renewal(facts, now)), ""),
        State::RenewalFailing => stays(&renewal_error(), &facts.next_try(now)),
        State::Held => {
            let until = entry.held_until(now).map_or_else(String::new, minute);
            stays(
                &format!("until {until}: the certificate is younger than a tenth of its lifetime"),
                "",
            )
        }
        State::Blocked => match seen.due() {
            Ok(due) if due.at > now => stays(
                &format!("until {}: {}", minute(due.at), facts.blocked()),
                "",
            ),
            _ => stays(&facts.blocked(), ""),
        },
        State::Unreadable => stays("what is in it is no certificate", ""),
        State::PairBroken => stays(
            &error(&entry.rollout_error, "servers cannot load the pair"),
            "",
        ),
        State::Expiring => stays(
            &format!("{}{}", ends("ends "), "; nobody here renews it"),
            "",
        ),
        State::RolloutFailing if seen.halted => {
            let workload = facts.halted_at.as_deref().unwrap_or("a workload");
            let operator = facts.operator.as_deref().unwrap_or(NAMESPACE);
            let resume = for_operator_in(operator, &format!("cert-renew resume {key}"));
            stays(
                &format!("halted: {workload} did not take the certificate up"),
                &format!("; then: {resume}"),
            )
        }
        State::RolloutFailing => stays(&error(&entry.rollout_error, "see its Events"), ""),
        State::Paused if seen.renewal == Err(Never::External) => {
            stays(&format!("no workload is restarted{}", ends("; ends ")), "")
        }
        State::Paused => stays(&format!("{}{}", renewal(facts, now), ends("; ends ")), ""),
        State::Absent | State::Due if seen.renewal.is_ok() => due(facts, now, word),
        State::Absent | State::Due => stays(&renewal(facts, now), ""),
        State::Ok => healthy(facts, now),
    }
}

/// The line of a Secret that is due.
fn due(facts: &Facts, now: UnixTime, word: &str) -> StateLine {
    let seen = &facts.entry.observed;
    if let Some(opens) = seen.window.filter(|opens| *opens > now) {
        let text = format!("{word}: the renewal waits for the change window");
        return StateLine::new(&text, &format!("; opens {}", minute(opens)), Weight::Stays);
    }
    StateLine::new(
        &format!("{word}: {}", renewal(facts, now)),
        "",
        Weight::Passing,
    )
}

/// Whether and when it is renewed, and by whose word.
fn renewal(facts: &Facts, now: UnixTime) -> String {
    let seen = &facts.entry.observed;
    let why = Why::of(seen.due(), seen.heed, seen.blocked);
    match seen.due() {
        Ok(due) if due.at <= now => format!("renews now{}", why.after()),
        Ok(due) => format!("renews {}{}", minute(due.at), why.after()),
        Err(Never::External | Never::Paused | Never::AllPaused) => why.in_words().to_owned(),
        Err(_) => facts.blocked(),
    }
}

/// The line of a Secret whose certificate is well.
fn healthy(facts: &Facts, now: UnixTime) -> StateLine {
    let seen = &facts.entry.observed;
    if unrolled(&facts.entry) {
        let waits = |why: &str, end: &str| {
            StateLine::new(&format!("{WELL} {RESTART_WAITS} {why}"), end, Weight::Stays)
        };
        return match seen.window.filter(|opens| *opens > now) {
            Some(opens) => waits("the change window", &format!("; opens {}", minute(opens))),
            None if seen.rollout_blocked => waits("the end of a pause", ""),
            None => StateLine::new(RENEWED, "", Weight::Passing),
        };
    }
    let mut end = match (seen.due(), seen.leaf) {
        (Err(Never::External), Ok(leaf)) => format!("; ends {}", minute(leaf.not_after)),
        _ => String::new(),
    };
    if seen.problems > 0 {
        end += &format!("; see {}", keys::PROBLEMS);
    }
    let text = format!("{WELL} {}", renewal(facts, now));
    StateLine::new(&text, &end, Weight::Well)
}

fn ends(not_after: Option<UnixTime>) -> String {
    not_after.map_or_else(String::new, |at| format!("; ends {}", minute(at)))
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
    let why = Why::of(assessment.renewal, assessment.heed, assessment.blocked);
    match assessment.renewal {
        Ok(due) if due.at <= now && assessment.held_until.is_some() => format!(
            "a new certificate is asked for and held until {}: the present one is younger than a tenth of its lifetime",
            assessment.held_until.map_or_else(String::new, minute)
        ),
        Ok(due) if due.at <= now => format!("a new certificate is asked for now{}", why.after()),
        Ok(due) => {
            let may_change = match assessment.heed {
                AriPolicy::Any => ", if the CA does not ask for another time",
                AriPolicy::Past | AriPolicy::Nothing => "",
            };
            format!("renews {}{}{may_change}", minute(due.at), why.after())
        }
        Err(Never::External | Never::Paused | Never::AllPaused) => {
            format!("{}{}", why.in_words(), ends(not_after))
        }
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
mod tests;
