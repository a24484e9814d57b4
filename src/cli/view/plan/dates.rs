//! When each certificate is renewed: by the operator's word, or by what the Secret says. Pure.

use std::collections::BTreeMap;

use cert_renew_core::assess::Assessment;
use cert_renew_core::config::Config;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::{self, Report, Verdict, Why, held};

use super::Row;

/// Puts what the operator says into the rows; the number of those for which its answer had no room.
pub(super) fn take(report: &Report, rows: &mut [Row]) -> usize {
    let place = |it: &Verdict| (it.namespace.to_string(), it.name.to_string());
    let verdicts = report.certificates.iter().map(|it| (place(it), it));
    let verdicts: BTreeMap<_, _> = verdicts.collect();
    let mut without = 0;
    for row in rows {
        let SecretRef { namespace, name } = &row.secret;
        if let Some(verdict) = verdicts.get(&(namespace.to_string(), name.to_string())) {
            row.at = verdict.renews.unwrap_or(UnixTime::NEVER);
            row.why = verdict.renews_why.to_string();
            row.held = verdict.held_up(report.as_of);
        } else {
            without += 1;
        }
    }
    // One that was made a moment ago may be missing from an answer that is complete.
    without.min(report.left_out)
}

/// When a Secret is renewed, by whose word, and what holds that up: as the status has it, with the config that is in force.
/// Failures with that one say nothing of what would be with another.
pub(super) fn due(
    now: UnixTime,
    secret: &ThinSecret,
    assessment: &Assessment,
    in_force: Option<&Config>,
) -> (UnixTime, String, Option<String>) {
    let told = in_force.and_then(|config| verdict::of_secret(now, secret, Some(config)));
    if let Some(told) = told {
        let at = told.renews.unwrap_or(UnixTime::NEVER);
        return (at, told.renews_why.to_string(), told.held_up(now));
    }
    let later = assessment.opens.max(assessment.held_until);
    let at = match assessment.renewal {
        Ok(due) => due.at.max(later.unwrap_or_default()),
        Err(_) => UnixTime::NEVER,
    };
    let why = Why::of(assessment.renewal, assessment.heed, assessment.blocked);
    (
        at,
        why.as_str().into(),
        held::of_assessment(now, assessment),
    )
}
