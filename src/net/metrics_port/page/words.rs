//! The page's words for states and instants, and foreign text as the page may show it. Pure.

use std::fmt::{self, Display, Write as _};

use cert_renew_core::text::is_hidden;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::{Rollout, State, Verdict};

/// Foreign text without control characters, and without what changes the direction of the surrounding text. The template
/// escapes the markup in it.
pub(super) struct Shown<'a>(pub(super) &'a str);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\n' => f.write_char('\n')?,
                hidden if is_hidden(hidden) => write!(f, "{}", hidden.escape_unicode())?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// A state as people say it.
pub(super) fn state(state: State) -> &'static str {
    match state {
        State::Expired => "expired",
        State::RenewalFailing => "renewal fails",
        State::Absent => "no certificate",
        State::Unreadable => "unreadable",
        State::PairBroken => "cannot be served",
        State::Expiring => "ends soon",
        State::RolloutFailing => "rollout fails",
        State::Blocked => "blocked",
        State::Due => "due",
        State::Held => "held back",
        State::Paused => "paused",
        State::Ok => "ok",
    }
}

/// The progress of a rollout as people say it.
pub(super) fn rollout(rollout: Rollout) -> &'static str {
    match rollout {
        Rollout::Halted => "halted",
        Rollout::Pending => "under way",
        Rollout::Waits => "waits",
        Rollout::None => "none yet",
        Rollout::Done => "done",
    }
}

/// The section of the runbook about a Secret; None where there is nothing to do.
pub(super) fn runbook(row: &Verdict) -> Option<&'static str> {
    Some(match row.state {
        State::Expired => "certrenewcertificateexpired",
        State::Expiring => "certrenewcertificateexpiringsoon",
        State::RenewalFailing => "certrenewrenewalfailing",
        State::Absent | State::Unreadable | State::PairBroken => "certrenewcertificatemissing",
        State::RolloutFailing if row.rollout == Rollout::Halted => "certrenewrollouthalted",
        State::RolloutFailing if row.stale_pods > 0 => "certrenewservedcertificatestale",
        State::RolloutFailing if lacks(row) => "certrenewrolloutincomplete",
        // It was interrupted, or waits for a workload.
        State::RolloutFailing => "certrenewrenewednotrolledout",
        State::Blocked => "certrenewrenewalblocked",
        State::Due | State::Held | State::Paused | State::Ok => return None,
    })
}

/// Whether pods without the certificate are left in a workload that was not well before, or that holds pods back.
fn lacks(row: &Verdict) -> bool {
    let mut workloads = { row.used_by.iter() }.flat_map(|it| &it.workloads);
    workloads.any(|(_, has)| has.lacks_since().is_some())
}

/// An instant to the minute.
pub(super) fn minute(at: UnixTime) -> String {
    at.timestamp().strftime("%Y-%m-%d %H:%M").to_string()
}

/// An instant to the day.
pub(super) fn day(at: UnixTime) -> String {
    at.timestamp().strftime("%Y-%m-%d").to_string()
}

/// A number of things.
pub(super) fn count(number: usize, one: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {one}{s}")
}

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::entries::{NOW, index};

    use super::super::rows::copy;
    use super::*;

    #[test]
    fn what_hides_or_turns_text_is_shown_as_an_escape() {
        let shown = Shown("\"a\"\u{202e}\u{1b}[2J\nü").to_string();
        assert_eq!(shown, "\"a\"\\u{202e}\\u{1b}[2J\nü");
    }

    #[test]
    fn every_section_that_the_page_leads_to_is_in_the_runbook() {
        let runbook_page = include_str!("../../../../docs/runbook.md").to_lowercase();
        let rows = copy(NOW, &index(), &|_| 0);
        for state in State::ALL {
            let of_state = rows.iter().find(|row| row.state == state);
            let row = of_state.unwrap_or(&rows[0]);
            if let Some(section) = runbook(&Verdict {
                state,
                ..row.clone()
            }) {
                let heading = format!("\n## {section}\n");
                assert!(runbook_page.contains(&heading), "{section}");
            }
        }
        let row = |name: &str| rows.iter().find(|row| *row.name == *name).unwrap();
        let used_by = |text: &str| Verdict {
            used_by: Some(text.parse().unwrap()),
            ..row("incomplete").clone()
        };
        let interrupted = used_by("2023-11-14T22:13:20Z deployment/api=kept");
        let incomplete = used_by("2023-11-14T22:13:20Z deployment/api=lacks:2023-11-14T21:13:20Z");
        for (name, row, section) in [
            ("halted", row("halted"), "certrenewrollouthalted"),
            (
                "failing-rollout",
                row("failing-rollout"),
                "certrenewservedcertificatestale",
            ),
            ("incomplete", &incomplete, "certrenewrolloutincomplete"),
            ("interrupted", &interrupted, "certrenewrenewednotrolledout"),
        ] {
            assert_eq!(runbook(row), Some(section), "{name}");
            assert!(
                runbook_page.contains(&format!("\n## {section}\n")),
                "{section}"
            );
        }
    }
}
