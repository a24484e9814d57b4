//! The series that are computed from the index at each scrape: one pass, nothing kept.
//!
//! Series that name a Secret are limited in number: of each namespace those of the certificates that end soonest are
//! kept, and a series counts the rest. The counts by state and by time left always cover all.

use std::collections::HashMap;
use std::fmt::{Display, Write};
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::index::{Entry, Index, Observed, Row, Stuck};
use cert_renew_core::schedule::due::{AT_ONCE, Never};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::{State, moves, renew_at, unrolled};

/// Most Secrets with timestamp series: four series each, some 10 MB a scrape.
const MOST_CERTIFICATES: usize = 20_000;
/// Most Secrets named by each kind of trouble: more have one common cause, and the count says how many.
const MOST_TROUBLED: usize = 1_000;
/// How many of a Secret's [`labels`] a series has: namespace and name, or the issuer too.
const BY_SECRET: usize = 2;
const WITH_ISSUER: usize = 3;
const DAY: Duration = Duration::from_secs(86_400);
const WITHIN: [(&str, u32); 4] = [("1d", 1), ("7d", 7), ("14d", 14), ("30d", 30)];

/// The result of one pass over the index.
#[derive(Default)]
struct Found {
    states: [usize; State::ALL.len()],
    within: [usize; WITHIN.len()],
    earliest: Option<UnixTime>,
    readable: Rows,
    troubled: Rows,
    unrolled: Rows,
    misread: Rows,
    failed: Rows,
    stuck: Rows,
}

/// Secrets with the end of their certificates.
type Rows = Vec<(UnixTime, Row)>;

impl Found {
    fn take(&mut self, row: Row, entry: &Entry, now: UnixTime, per_certificate: bool) {
        let ends = entry
            .observed
            .leaf
            .map_or(UnixTime(0), |leaf| leaf.not_after);
        let state = State::of(entry, now);
        self.states[state as usize] += 1;
        if state.is_trouble() {
            self.troubled.push((ends, row));
        }
        if unrolled(entry) {
            self.unrolled.push((ends, row));
        }
        if stuck(entry).is_some() && (entry.renewal_due(now) || is_owned(entry)) {
            self.stuck.push((ends, row));
        }
        let Ok(leaf) = entry.observed.leaf else {
            return;
        };
        let earliest = self.earliest.get_or_insert(leaf.not_after);
        *earliest = leaf.not_after.min(*earliest);
        for (count, (_, days)) in self.within.iter_mut().zip(WITHIN) {
            *count += usize::from(now <= leaf.not_after && leaf.not_after <= now + DAY * days);
        }
        if per_certificate {
            self.readable.push((ends, row));
        }
    }

    /// Leaves out what is more than each kind of series may name, and returns how many of each.
    fn bound(&mut self, index: &Index) -> [(&'static str, usize); 6] {
        [
            (
                "certificate",
                keep(index, &mut self.readable, MOST_CERTIFICATES),
            ),
            ("failures", keep(index, &mut self.failed, MOST_TROUBLED)),
            ("problems", keep(index, &mut self.misread, MOST_TROUBLED)),
            ("rollout", keep(index, &mut self.unrolled, MOST_TROUBLED)),
            ("stuck", keep(index, &mut self.stuck, MOST_TROUBLED)),
            ("trouble", keep(index, &mut self.troubled, MOST_TROUBLED)),
        ]
    }
}

/// Whether the Secret itself says that another program writes it.
fn is_owned(entry: &Entry) -> bool {
    entry.observed.renewal == Err(Never::OwnedByAnother)
}

/// Why its renewal waits for a person.
fn stuck(entry: &Entry) -> Option<Stuck> {
    if is_owned(entry) {
        Some(Stuck::OtherOwner)
    } else {
        entry.stuck
    }
}

/// Appends the series of the index at `now`; `failures` returns the failures in a row of a Secret.
pub(super) fn write(
    out: &mut String,
    now: UnixTime,
    index: &Index,
    failures: &dyn Fn(&Observed) -> u32,
    per_certificate: bool,
) {
    let mut found = Found::default();
    for (row, entry) in index.iter() {
        found.take(row, &entry, now, per_certificate);
        let leaf = entry.observed.leaf;
        let ends = leaf.map_or(UnixTime(0), |leaf| leaf.not_after);
        if failures(&entry.observed) > 0 {
            found.failed.push((ends, row));
        }
        if entry.observed.problems > 0 || index.looked_up(row) > 0 {
            found.misread.push((ends, row));
        }
    }
    let left_out = found.bound(index);
    write_counts(out, &found, index.queued(), &left_out);
    write_dates(out, index, &found.readable);
    write_trouble(out, now, index, &found);
    write_failures(out, index, &found.failed, failures);
    write_rollouts(out, now, index, &found.unrolled);
    write_problems(out, index, &found.misread);
}

/// The series that name no Secret.
fn write_counts(out: &mut String, found: &Found, queued: usize, left_out: &[(&str, usize)]) {
    let name = "cert_renew_certificates";
    family(out, name, "gauge", "Annotated Secrets by state");
    for (state, count) in State::ALL.iter().zip(found.states) {
        sample(out, name, &[("state", state.as_str())], count);
    }
    let name = "cert_renew_certificates_expiring";
    let help = "Certificates that are valid now and end within that time";
    family(out, name, "gauge", help);
    for ((label, _), count) in WITHIN.iter().zip(found.within) {
        sample(out, name, &[("within", label)], count);
    }
    if let Some(earliest) = found.earliest {
        let name = "cert_renew_earliest_not_after_timestamp_seconds";
        family(out, name, "gauge", "End of the certificate that ends first");
        sample(out, name, &[], earliest.0);
    }
    let name = "cert_renew_queue_depth";
    family(out, name, "gauge", "Tasks that wait for their instant");
    sample(out, name, &[], queued);
    let name = "cert_renew_series_left_out";
    let help = "Secrets that have no series of their own because there are too many";
    family(out, name, "gauge", help);
    for (series, count) in left_out {
        sample(out, name, &[("series", series)], count);
    }
}

/// The dates of each certificate.
fn write_dates(out: &mut String, index: &Index, readable: &Rows) {
    let leaf = |entry: &Entry| entry.observed.leaf.ok();
    gauges(
        out,
        "cert_renew_certificate_not_after_timestamp_seconds",
        "End of the certificate in the Secret",
        WITH_ISSUER,
        entries(index, readable),
        |entry| leaf(entry).map(|leaf| leaf.not_after.0),
    );
    gauges(
        out,
        "cert_renew_certificate_not_before_timestamp_seconds",
        "Beginning of the certificate in the Secret",
        WITH_ISSUER,
        entries(index, readable),
        |entry| leaf(entry).map(|leaf| leaf.not_before.0),
    );
    gauges(
        out,
        "cert_renew_certificate_renew_at_timestamp_seconds",
        "When the renewal falls due; missing where it is due at once, or cert-renew does not renew",
        WITH_ISSUER,
        entries(index, readable),
        |entry| renew_at(entry).filter(|at| *at != AT_ONCE).map(|at| at.0),
    );
    gauges(
        out,
        "cert_renew_certificate_last_success_timestamp_seconds",
        "When cert-renew last renewed it; missing where it never has",
        WITH_ISSUER,
        entries(index, readable),
        |entry| entry.observed.renewed.map(|at| at.0),
    );
}

/// The Secrets that somebody should look at, and those that wait for a person.
fn write_trouble(out: &mut String, now: UnixTime, index: &Index, found: &Found) {
    let name = "cert_renew_certificate_trouble";
    let help = "1 for each Secret whose state somebody should look at";
    family(out, name, "gauge", help);
    for (key, entry) in entries(index, &found.troubled) {
        let state = State::of(&entry, now).as_str();
        let [namespace, secret, issuer] = labels(&key, &entry);
        sample(out, name, &[namespace, secret, issuer, ("state", state)], 1);
    }
    let name = "cert_renew_certificate_stuck";
    let help = "1 for each Secret whose renewal waits for a person, by why";
    family(out, name, "gauge", help);
    for (key, entry) in entries(index, &found.stuck) {
        let why = match stuck(&entry) {
            Some(Stuck::Paused) => "paused_by_ca",
            Some(Stuck::OtherOwner) => "other_owner",
            None => continue,
        };
        let [namespace, secret, issuer] = labels(&key, &entry);
        sample(out, name, &[namespace, secret, issuer, ("why", why)], 1);
    }
}

fn write_failures(
    out: &mut String,
    index: &Index,
    failed: &Rows,
    failures: &dyn Fn(&Observed) -> u32,
) {
    gauges(
        out,
        "cert_renew_certificate_failures",
        "Renewals that failed in a row, for each Secret whose last one did",
        WITH_ISSUER,
        entries(index, failed),
        |entry| Some(failures(&entry.observed)),
    );
}

/// How far the certificates are on their way to the workloads.
fn write_rollouts(out: &mut String, now: UnixTime, index: &Index, unrolled: &Rows) {
    gauges(
        out,
        "cert_renew_rollout_pending",
        "The workloads have another certificate than the Secret: 1 = being brought to them, 0 = waits for its window, a renewal or a person",
        BY_SECRET,
        entries(index, unrolled),
        |entry| Some(u8::from(moves(entry, now))),
    );
    gauges(
        out,
        "cert_renew_rollout_served_not_after_timestamp_seconds",
        "End of the certificate that the workloads have while it is another than the Secret's",
        BY_SECRET,
        entries(index, unrolled),
        |entry| match entry.rolled_out() {
            Some(RolledOut::Leaf { not_after, .. }) => Some(not_after.0),
            _ => None,
        },
    );
    gauges(
        out,
        "cert_renew_rollout_halted",
        "1 for each rollout that goes on only after somebody looked at it",
        BY_SECRET,
        entries(index, unrolled),
        |entry| entry.observed.halted.then_some(1),
    );
    gauges(
        out,
        "cert_renew_rollout_stale_pods",
        "Pods that serve an earlier certificate although every step of the rollout is finished",
        BY_SECRET,
        entries(index, unrolled),
        |entry| Some(entry.stale_pods).filter(|pods| *pods > 0),
    );
    gauges(
        out,
        "cert_renew_rollout_incomplete_workloads",
        "Workloads without the certificate, as they were unavailable before it came or hold pods back; all others have it",
        BY_SECRET,
        entries(index, unrolled),
        |entry| Some(entry.lacking).filter(|workloads| *workloads > 0),
    );
}

fn write_problems(out: &mut String, index: &Index, misread: &Rows) {
    let name = "cert_renew_annotation_problems";
    let help = "What is wrong with the annotations of the Secret: unknown, invalid, or naming what does not exist";
    family(out, name, "gauge", help);
    for (_, row) in misread {
        let Some((key, entry)) = index.row(*row) else {
            continue;
        };
        let written = entry.observed.problems;
        let count = written.saturating_add(index.looked_up(*row));
        sample(out, name, &labels(&key, &entry)[..2], count);
    }
}

/// Keeps the `most` that end soonest, the first of each namespace before the second of another, so that none takes the
/// series of others. Sorts them by name, and returns how many were left out.
fn keep(index: &Index, rows: &mut Rows, most: usize) -> usize {
    let left_out = rows.len().saturating_sub(most);
    if left_out > 0 {
        rows.sort_unstable();
        let mut turns: HashMap<Option<Arc<str>>, usize> = HashMap::new();
        let turn_of = |(ends, row): (UnixTime, Row)| {
            let turn = turns.entry(index.namespace_of(row)).or_default();
            *turn += 1;
            (*turn, ends, row)
        };
        let mut in_turn: Vec<_> = rows.drain(..).map(turn_of).collect();
        in_turn.select_nth_unstable(most);
        in_turn.truncate(most);
        rows.extend(in_turn.into_iter().map(|(_, ends, row)| (ends, row)));
    }
    rows.sort_by_cached_key(|(_, row)| index.row(*row).map(|(key, _)| key));
    left_out
}

fn entries(index: &Index, rows: &Rows) -> impl Iterator<Item = (SecretRef, Entry)> {
    rows.iter().filter_map(|(_, row)| index.row(*row))
}

fn labels<'a>(key: &'a SecretRef, entry: &'a Entry) -> [(&'static str, &'a str); 3] {
    [
        ("namespace", &key.namespace),
        ("secret", &key.name),
        ("issuer", &entry.observed.issuer),
    ]
}

/// A gauge for each of `rows` that has a value; `labelled` is how many of its [`labels`] it has.
fn gauges<Value: Display>(
    out: &mut String,
    name: &str,
    help: &str,
    labelled: usize,
    rows: impl Iterator<Item = (SecretRef, Entry)>,
    value: impl Fn(&Entry) -> Option<Value>,
) {
    family(out, name, "gauge", help);
    for (key, entry) in rows {
        if let Some(value) = value(&entry) {
            sample(out, name, &labels(&key, &entry)[..labelled], value);
        }
    }
}

/// The head of a family, in Prometheus' text format 0.0.4. `help` is our own text and needs no escape.
pub(super) fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    for part in [
        "# HELP ",
        name,
        " ",
        help,
        "\n# TYPE ",
        name,
        " ",
        kind,
        "\n",
    ] {
        out.push_str(part);
    }
}

/// One sample. Label values are escaped.
pub(super) fn sample(out: &mut String, name: &str, labels: &[(&str, &str)], value: impl Display) {
    out.push_str(name);
    let mut separator = '{';
    for (label, text) in labels {
        out.push(separator);
        separator = ',';
        out.push_str(label);
        out.push_str("=\"");
        for character in text.chars() {
            match character {
                '\n' => out.push_str("\\n"),
                '\\' | '"' => out.extend(['\\', character]),
                _ => out.push(character),
            }
        }
        out.push('"');
    }
    if !labels.is_empty() {
        out.push('}');
    }
    // Writing to a String cannot fail.
    let _ = writeln!(out, " {value}");
}

#[cfg(test)]
mod tests {
    use cert_renew_core::index::{NoLeaf, Source};
    use cert_renew_core::testing::entries::{NOW, add, healthy, index, leaf};

    use super::*;

    #[test]
    fn a_switch_takes_the_series_of_healthy_certificates_away() {
        let mut out = String::new();
        write(&mut out, NOW, &index(), &|_| 0, false);
        assert!(!out.contains("secret=\"healthy\""), "{out}");
        let expired = "cert_renew_certificate_trouble{namespace=\"shop\",secret=\"expired\",issuer=\"letsencrypt\",state=\"expired\"} 1\n";
        assert!(out.contains(expired), "{out}");
    }

    #[test]
    fn too_many_are_left_out_the_healthiest_first() {
        let mut index = Index::default();
        for days in 1..=5 {
            let observed = Observed {
                leaf: Ok(leaf(1, days)),
                ..healthy()
            };
            add(&mut index, &format!("ends-in-{days}"), observed);
        }
        let ends = |entry: &Entry| entry.observed.leaf.unwrap().not_after;
        let all = index.iter().map(|(row, entry)| (ends(&entry), row));
        let mut rows: Rows = all.collect();
        assert_eq!(keep(&index, &mut rows, 2), 3);
        let names: Vec<String> = entries(&index, &rows)
            .map(|(key, _)| key.name.to_string())
            .collect();
        assert_eq!(names, ["ends-in-1", "ends-in-2"]);
        assert_eq!(keep(&index, &mut rows, 2), 0);
    }

    #[test]
    fn a_namespace_full_of_trouble_takes_no_series_of_others() {
        let mut index = Index::default();
        let hostile = (0..2 * MOST_TROUBLED).map(|number| ("aaa", number));
        for (namespace, number) in hostile.chain((0..3).map(|number| ("shop", number))) {
            let key = index.key(namespace, &format!("tls-{number}"));
            let absent = Observed {
                leaf: Err(NoLeaf::Absent),
                ..healthy()
            };
            index.apply(NOW, &key, absent, Source(0), Duration::ZERO, None);
        }
        let mut out = String::new();
        write(&mut out, NOW, &index, &|_| 1, true);
        for series in [
            "cert_renew_certificate_trouble",
            "cert_renew_certificate_failures",
        ] {
            let of = |namespace: &str| {
                let start = format!("{series}{{namespace=\"{namespace}\"");
                out.lines().filter(|line| line.starts_with(&start)).count()
            };
            assert_eq!((of("shop"), of("aaa")), (3, MOST_TROUBLED - 3), "{series}");
        }
    }
}
