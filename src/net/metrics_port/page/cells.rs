//! What the list and the view of one Secret share: instants, workloads, and what is wrong.

use cert_renew_core::time::UnixTime;
use cert_renew_core::time::duration::relative;
use cert_renew_core::verdict::{State, Verdict};
use maud::{Markup, html};

use super::words::{Shown, count, day, minute};

/// The class that colours a row: red, amber where somebody waits or little life is left, else green.
pub(super) fn class(now: UnixTime, row: &Verdict) -> Option<&'static str> {
    match row.state {
        state if state.is_trouble() => Some("x"),
        State::Due | State::Held | State::Paused => Some("w"),
        _ => row.has_little_left(now).then_some("w"),
    }
}

/// When it is renewed, in the words of the command.
pub(super) fn renews(now: UnixTime, row: &Verdict) -> Markup {
    html! {
        @match row.renews {
            Some(at) if at <= now => "now",
            Some(at) => (instant(now, at)),
            None => "never",
        }
    }
}

/// An instant, and how far away it is.
pub(super) fn instant(now: UnixTime, at: UnixTime) -> Markup {
    html! { (minute(at)) small { (relative(now, at)) } }
}

/// The workloads that use the certificate, and what they serve.
pub(super) fn workloads(row: &Verdict) -> Markup {
    let used_by = row.used_by.as_ref();
    let proven = used_by.and_then(|it| it.proven.as_ref());
    html! {
        @if let Some(used_by) = used_by {
            small { (Shown(&used_by.in_words())) } small { "as of " (day(used_by.at)) }
        }
        @if let Some(proven) = proven { small { (Shown(&proven.in_words())) } }
        @if let Some(at) = row.served_until { small { "they serve one until " (minute(at)) } }
        @if row.stale_pods > 0 {
            small { (count(row.stale_pods as usize, "pod")) " known to serve an earlier one" }
        }
    }
}

/// What is wrong, the cause first.
pub(super) fn trouble(now: UnixTime, row: &Verdict) -> Markup {
    let failing = row.state.is_trouble() || row.state == State::Held;
    html! {
        @if let Some(error) = &row.last_error { p { (Shown(error)) } }
        @for problem in &row.problems { p { (Shown(problem)) } }
        @if failing && row.last_error.is_none() && row.problems.is_empty() { p { (Shown(&row.reason)) } }
        @if row.failures > 0 || row.next_try.is_some() {
            small {
                @if row.failures == 1 { "Failed once. " }
                @if row.failures > 1 { "Failed " (row.failures) " times in a row. " }
                @if let Some(at) = row.next_try { "Next try " (minute(at)) ", " (relative(now, at)) "." }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::entries::{NOW, index};

    use super::super::rows::copy;
    use super::*;

    #[test]
    fn a_certificate_with_little_life_left_is_not_green() {
        let day = 86_400;
        let row = copy(NOW, &index(), &|_| 0).remove(0);
        for (left, expected) in [(3, Some("w")), (18, Some("w")), (19, None)] {
            let row = Verdict {
                state: State::Ok,
                not_before: Some(UnixTime(NOW.0 - (90 - left) * day)),
                not_after: Some(UnixTime(NOW.0 + left * day)),
                ..row.clone()
            };
            assert_eq!(class(NOW, &row), expected, "{left} of 90 days");
        }
    }
}
