//! Commands to copy: those of one Secret, and those of every day for what the list shows. Pure.
//!
//! The page changes nothing: the user who types a command does so with rights of their own.

use cert_renew_core::schedule::rate_limits::grown_up;
use cert_renew_core::secret::settings::values::is_label;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::{Report, State, Verdict, for_operator_in};
use maud::{Markup, html};

use super::rows::{Query, Within};
use super::words::Shown;

/// Most Secrets that one command names.
const MOST_NAMED: usize = 20;
/// How the command begins that asks for new certificates; the names follow.
const RENEW: &str = "cert-renew renew ";

/// A command as it reaches the operator of the report.
fn here(report: &Report, command: &str) -> String {
    match &report.operator_namespace {
        Some(namespace) => for_operator_in(namespace, command),
        None => command.to_owned(),
    }
}

/// Whether `cert-renew renew` would bring a new certificate, as far as the verdict knows.
fn may_be_asked_for(row: &Verdict) -> bool {
    // What is never renewed has no instant: it is external, paused, or not ours to write.
    row.renews.is_some() && !matches!(row.state, State::Held | State::Blocked)
}

/// Whether the certificate is younger than a tenth of its lifetime, so that a new one has to be forced.
pub(super) fn is_young(now: UnixTime, row: &Verdict) -> bool {
    let written = row.detail.as_ref().and_then(|it| it.renewed);
    let validity = row.not_before.zip(row.not_after);
    validity.is_some_and(|(from, to)| now < grown_up(from, to, written))
}

/// What tells more of one Secret, and what asks for a new certificate.
pub(super) fn of_one(report: &Report, row: &Verdict) -> Markup {
    let (namespace, name) = (&row.namespace, &row.name);
    let mut all = vec![
        (
            "All about it",
            format!("cert-renew describe {namespace}/{name}"),
        ),
        (
            "Which workloads restart, and when",
            format!("cert-renew plan -n {namespace}"),
        ),
        (
            "Who may ask for which names here",
            format!("cert-renew names -n {namespace}"),
        ),
    ];
    if may_be_asked_for(row) {
        let renew = format!("{RENEW}{namespace}/{name} --wait");
        all.push(if is_young(report.as_of, row) {
            let what = "A new certificate now, although this one is young: it counts against the CA's limits";
            (what, format!("{renew} --force"))
        } else {
            ("A new certificate now", renew)
        });
    }
    html! {
        dl.one {
            @for (what, command) in &all {
                dt { (what) }
                dd { code { (Shown(&here(report, command))) } }
            }
        }
    }
}

/// The tasks of every day, for what the list shows. While it filters, the script puts the names there.
pub(super) fn of_list(report: &Report, query: &Query) -> Markup {
    // A query may say anything: only what can be a namespace becomes a part of a command.
    let namespace = query.namespace.as_deref().filter(|it| is_label(it));
    let place = namespace.map_or_else(|| "-A".to_owned(), |it| format!("-n {it}"));
    let within = query.within.clone().unwrap_or_else(Within::a_month).text;
    let renew = here(report, &format!("{RENEW}--wait"));
    let end = renew.strip_prefix(RENEW).unwrap_or_default();
    let named = named(report.as_of, &report.certificates);
    let all = [
        (
            format!("What ends within {within}"),
            format!("cert-renew status {place} --expiring {within}"),
        ),
        (
            "Which workloads restart, and when".to_owned(),
            format!("cert-renew plan {place}"),
        ),
        (
            "Who may ask for which names".to_owned(),
            format!("cert-renew names -n {}", namespace.unwrap_or("NAMESPACE")),
        ),
        (
            "Pause everything: set paused: true".to_owned(),
            "kubectl -n OPERATOR-NAMESPACE edit configmap cert-renew-config".to_owned(),
        ),
    ];
    html! {
        details {
            summary { "Commands" }
            dl.one {
                dt { "Renew what is shown" }
                dd {
                    code id="renew" data-begin=(RENEW) data-end=(end) data-most=(MOST_NAMED) hidden[named.is_none()] {
                        @if let Some(named) = &named { (RENEW) (Shown(named)) " " (end) }
                    }
                    span.soft hidden[named.is_some()] {
                        "the command names the Secrets once " (MOST_NAMED) " or fewer are shown that can be asked for"
                    }
                }
                @for (what, command) in &all {
                    dt { (what) }
                    dd { code { (Shown(&here(report, command))) } }
                }
            }
        }
    }
}

/// Those of the rows that can be asked for, as a command names them, where that are few enough to be meant one by one.
fn named(now: UnixTime, rows: &[Verdict]) -> Option<String> {
    let asked = rows.iter();
    let asked = asked.filter(|row| may_be_asked_for(row) && !is_young(now, row));
    let asked: Vec<String> = { asked.take(MOST_NAMED + 1) }
        .map(|row| format!("{}/{}", row.namespace, row.name))
        .collect();
    let few = 1..=MOST_NAMED;
    few.contains(&asked.len()).then(|| asked.join(" "))
}

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::entries::{NOW, index};
    use cert_renew_core::verdict::detail::Detail;

    use super::super::rows::tests::report;
    use super::super::rows::{answer, copy};
    use super::*;

    #[test]
    fn a_command_that_would_be_refused_is_not_shown() {
        let rows = copy(NOW, &index(), &|_| 0);
        let healthy = rows.iter().find(|row| *row.name == *"healthy").unwrap();
        let ago = |days: i64| UnixTime(NOW.0 - days * 86_400);
        for (days, written, forced) in [
            (8, None, true),
            (10, None, false),
            // Its age counts from when it was written.
            (10, Some(8), true),
            (10, Some(10), false),
            (8, Some(40), true),
        ] {
            let from = ago(days);
            let detail = Detail {
                renewed: written.map(ago),
                ..Detail::default()
            };
            let row = Verdict {
                not_before: Some(from),
                not_after: Some(UnixTime(from.0 + 90 * 86_400)),
                detail: Some(Box::new(detail)),
                ..healthy.clone()
            };
            let html = of_one(&report(), &row).into_string();
            assert!(
                html.contains("cert-renew renew shop/healthy --wait"),
                "{html}"
            );
            assert_eq!(
                html.contains("--force"),
                forced,
                "{days} {written:?}: {html}"
            );
        }
    }

    #[test]
    fn a_command_names_an_operator_that_it_would_not_find() {
        let rows = copy(NOW, &index(), &|_| 0);
        let healthy = rows.iter().find(|row| *row.name == *"healthy").unwrap();
        for (namespace, count) in [("cert-renew", 0), ("ops", 4)] {
            let report = Report {
                operator_namespace: Some(namespace.into()),
                ..report()
            };
            let html = of_one(&report, healthy).into_string();
            let named = html.matches("--operator-namespace ops").count();
            assert_eq!(named, count, "{html}");
        }
    }

    fn list(query: &str) -> String {
        let query = Query::parse(query).unwrap();
        let report = Report {
            operator_namespace: Some("ops".into()),
            ..report()
        };
        let rows = copy(NOW, &index(), &|_| 0);
        of_list(&answer(report, rows, &query).report, &query).into_string()
    }

    #[test]
    fn the_list_has_the_commands_of_every_day_for_what_it_shows() {
        let html = list("namespace=shop&within=5d");
        for part in [
            ">What ends within 5d</dt><dd><code>cert-renew status -n shop --expiring 5d --operator-namespace ops</code>",
            "<code>cert-renew plan -n shop --operator-namespace ops</code>",
            "<code>cert-renew names -n shop --operator-namespace ops</code>",
            "<code>kubectl -n ops edit configmap cert-renew-config</code>",
            // One that another program renews is not asked for.
            ">cert-renew renew shop/expired shop/six-days --wait --operator-namespace ops</code>",
            "<span class=\"soft\" hidden>",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        let html = list("q=nothing");
        for part in [
            "cert-renew status -A --expiring 30d ",
            "cert-renew names -n NAMESPACE ",
            "data-most=\"20\" hidden></code><span class=\"soft\">",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        // Somebody may have sent the address.
        let html = list("namespace=%24(reboot)");
        assert!(!html.contains("reboot"), "{html}");
    }

    #[test]
    fn a_command_names_only_what_is_few_enough_to_be_meant() {
        let row = copy(NOW, &index(), &|_| 0);
        let row = row.into_iter().find(|row| *row.name == *"healthy").unwrap();
        let named = |count: usize| named(NOW, &vec![row.clone(); count]);
        assert_eq!(named(2).as_deref(), Some("shop/healthy shop/healthy"));
        assert_eq!((named(0), named(MOST_NAMED + 1)), (None, None));
        assert!(named(MOST_NAMED).is_some());
        // What has just been issued would be refused.
        let young = Verdict {
            not_before: Some(NOW),
            ..row
        };
        assert_eq!(super::named(NOW, &[young]), None);
    }
}
