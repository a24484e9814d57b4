//! The view of one Secret: all that the verdict says, and commands to copy.

use cert_renew_core::time::UnixTime;
use cert_renew_core::time::duration::relative;
use cert_renew_core::verdict::detail::{Detail, Serves};
use cert_renew_core::verdict::{Report, Verdict, Why};
use maud::{Markup, html};

use super::cells::{class, instant, renews, trouble};
use super::commands;
use super::timeline::{Places, Scale};
use super::words::{Shown, count, day, minute, rollout, runbook, state};

const RUNBOOK: &str = "https://github.com/cert-renew/cert-renew/blob/main/docs/runbook.md";

/// The view of the Secret at `data_keys`, if there is an annotated one.
pub(super) fn view(
    place: &str,
    verdict: Option<&Verdict>,
    report: &Report,
    scale: Scale,
    places: &mut Places,
) -> Markup {
    html! {
        p { a href="." { "All certificates" } }
        @match verdict {
            None => p { "There is no annotated Secret " (Shown(place)) " that this installation knows of." },
            Some(verdict) => (known(verdict, report, scale, places)),
        }
    }
}

/// The view of a Secret that seems to be meant and is not managed.
pub(super) fn not_managed(place: &str, text: &str) -> Markup {
    html! {
        p { a href="." { "All certificates" } }
        p { strong.bad { (Shown(place)) } ": " (Shown(text)) }
    }
}

fn known(row: &Verdict, report: &Report, scale: Scale, places: &mut Places) -> Markup {
    let now = report.as_of;
    html! {
        div.two {
            (facts(row, now, scale, places))
            div {
                @if let Some(detail) = &row.detail { (past(now, detail)) }
                h2 { "Events" }
                (events(now, row))
                h2 { "Commands" }
                (commands::of_one(report, row))
            }
        }
    }
}

fn facts(row: &Verdict, now: UnixTime, scale: Scale, places: &mut Places) -> Markup {
    let wrong = trouble(now, row);
    html! {
        dl class={ "one " (class(now, row).unwrap_or_default()) } {
            dt { "State" }
            dd {
                strong { (state(row.state)) } ": " (Shown(&row.reason)) "."
                @if let Some(since) = row.since { " Since " (minute(since)) ", " (relative(now, since)) "." }
                @if let Some(section) = runbook(row) {
                    " " a href={ (RUNBOOK) "#" (section) } { "What to do" }
                }
            }
            @if !wrong.0.is_empty() {
                dt { "What is wrong" }
                dd { (wrong) }
            }
            @if let Some(next) = &row.next {
                dt { "Next" }
                dd { code { (Shown(next)) } }
            }
            dt { "Time line" }
            dd class=(places.bar(scale, row)) {
                @if let (Some(from), Some(to)) = (row.not_before, row.not_after) {
                    span.axis { span { (day(from)) } span { (day(to)) } }
                }
            }
            dt { "Renews" }
            dd {
                (renews(now, row))
                small { (Why::meaning(&row.renews_why)) }
            }
            dt { "Ends" }
            dd { @if let Some(at) = row.not_after { (instant(now, at)) } }
            dt { "Names" }
            dd { (Shown(&row.names_in_words())) }
            dt { "Issuer" }
            dd {
                (Shown(&row.issuer))
                @if let Some(account) = &row.account { small { "account " (Shown(account)) } }
            }
            @if let Some(detail) = &row.detail { (beyond(now, detail)) (limits(now, detail)) }
            dt { "Rollout" }
            dd { (rollout(row.rollout)) (workloads(row)) }
            @if let Some(detail) = &row.detail { (pods(now, detail)) }
        }
    }
}

/// Its chain, the last renewal, and what is under way.
fn beyond(now: UnixTime, detail: &Detail) -> Markup {
    html! {
        @if !detail.chain.is_empty() {
            dt { "Chain" }
            dd {
                ul.plain {
                    @for link in &detail.chain {
                        li {
                            (Shown(&link.subject)) " "
                            span.soft { "by " (Shown(&link.issuer)) ", ends " (relative(now, link.not_after)) }
                        }
                    }
                }
            }
        }
        @if let Some(at) = detail.renewed {
            dt { "Last renewed" }
            dd { (instant(now, at)) }
        }
        @if let Some(under_way) = &detail.under_way {
            dt { "Under way" }
            dd {
                (Shown(under_way.in_words()))
                @if let Some(step) = &under_way.step {
                    ": " (Shown(&step.name)) " ended " (relative(now, step.at))
                    @if let Some(order) = &step.order { small { "order " (Shown(order)) } }
                }
            }
        }
    }
}

/// The limits of its issuer.
fn limits(now: UnixTime, detail: &Detail) -> Markup {
    html! {
        dt { "Limits" }
        dd {
            @match &detail.limits {
                None => "the replica that leads counts them; this one does not lead",
                Some(limits) if limits.is_empty() => "none is counted",
                Some(limits) => ul.plain {
                    @for limit in limits {
                        li class=[limit.until.map(|_| "bad")] {
                            (Shown(&limit.in_words()))
                            @if let Some(until) = limit.until {
                                @if limit.used.is_some() { "; one is free again " } @else { " until " }
                                (minute(until)) ", " (relative(now, until))
                            }
                        }
                    }
                },
            }
        }
    }
}

/// The pods that were asked what they serve.
fn pods(now: UnixTime, detail: &Detail) -> Markup {
    html! {
        @if let Some(pods) = &detail.pods {
            dt { "Pods" }
            dd {
                "behind " (Shown(&pods.service)) ", as asked " (relative(now, pods.at))
                ul.plain {
                    @for pod in &pods.asked {
                        li class=[(pod.serves == Serves::Earlier).then_some("bad")] {
                            code { (Shown(&pod.name)) } " " (Shown(&pod.in_words()))
                        }
                    }
                    @if pods.more > 0 { li { "and " (pods.more) " more" } }
                }
            }
        }
    }
}

/// Its last renewals and rollouts, the latest first.
fn past(now: UnixTime, detail: &Detail) -> Markup {
    html! {
        @if !detail.past.is_empty() {
            h2 { "Last renewals" }
            ul.plain {
                @for moment in detail.past.iter().rev() {
                    li {
                        span.soft { (minute(moment.at)) ", " (relative(now, moment.at)) } " "
                        (Shown(&moment.what)) " " span.soft { "(" (Shown(moment.by_in_words())) ")" }
                    }
                }
            }
        }
    }
}

/// What this replica has told of it lately; the API server has all of an hour.
fn events(now: UnixTime, row: &Verdict) -> Markup {
    let told = row.detail.as_ref().and_then(|it| it.events.as_ref());
    html! {
        @match told {
            Some(told) if !told.is_empty() => {
                ul.plain {
                    @for event in told.iter().rev() {
                        li {
                            span.soft { (minute(event.at)) ", " (relative(now, event.at)) } " "
                            strong { (Shown(&event.reason)) } " " (Shown(&event.message))
                        }
                    }
                }
            }
            Some(_) => { p { "This replica has told nothing of it since it started." } }
            None => { p { "The replica that leads knows what it has told of it; this one does not lead." } }
        }
        p { "The API server keeps all of an hour: " code { (events_of(row)) } }
    }
}

fn events_of(row: &Verdict) -> String {
    let command = format!(
        "kubectl -n {} events --for secret/{}",
        row.namespace, row.name
    );
    Shown(&command).to_string()
}

/// Each workload and what it has, one a line.
fn workloads(row: &Verdict) -> Markup {
    html! {
        @if let Some(used_by) = &row.used_by {
            ul.plain {
                @for (workload, has) in &used_by.workloads {
                    li { (Shown(&workload.to_string())) " " span.soft { (has.in_words()) } }
                }
                @if used_by.more > 0 { li { "and " (used_by.more) " more" } }
            }
            small { "as of the last rollout, " (minute(used_by.at)) }
            @if let Some(proven) = &used_by.proven { small { (Shown(&proven.in_words())) } }
        }
        @if let Some(at) = row.served_until { small { "they serve one until " (minute(at)) } }
        @if row.stale_pods > 0 {
            small { (count(row.stale_pods as usize, "pod")) " known to serve an earlier one" }
        }
    }
}
