//! `cert-renew describe NAME`: all that is known of one Secret on one screen, and the next thing to do.

use std::fmt::Write as _;
use std::io::Write as _;

use cert_renew_core::certificate::above::Link;
use cert_renew_core::time::UnixTime;
use cert_renew_core::time::duration::{human, relative};
use cert_renew_core::verdict::detail::{self, Detail, Moment, UnderWay};
use cert_renew_core::verdict::{Report, Verdict, Why};
use clap::Parser;
use k8s_openapi::api::core::v1::Event;
use kube::Client;
use kube::api::{Api, ListParams};

use crate::cli::connection::kube_flags::NamespaceFlags;
use crate::cli::output::{Screen, colour, plain, workloads};
use crate::cli::verdicts::{Found, Operator, Source, Wanted};
use crate::cli::{CommandResult, block_on};

/// Most Events that are shown, the latest.
const EVENTS: usize = 8;
/// Most Events that are asked for: those of one Secret, of an hour.
const PAGE: u32 = 200;
/// Width of the labels.
const LABEL: usize = 12;

#[derive(Debug, Parser)]
pub(in crate::cli) struct Args {
    /// The Secret, as NAME or NAMESPACE/NAME
    name: String,
    #[command(flatten)]
    place: NamespaceFlags,
    #[command(flatten)]
    operator: Operator,
}

pub(in crate::cli) fn run(args: Args) -> CommandResult {
    block_on(async {
        let clients = args.place.clients().await?;
        let wanted = Wanted::one(args.place.of(&clients.api, &args.name)?);
        let found = Found::of(&clients, &args.operator, &wanted).await?;
        show(&clients.api, &found, &wanted).await
    })
}

/// Prints the screens of what was found: one.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(in crate::cli) async fn show(client: &Client, found: &Found, wanted: &Wanted) -> CommandResult {
    let code = wanted.tell_missing(&found.report);
    for verdict in &found.report.certificates {
        let events = events(client, verdict).await;
        let screen = Screen::of_stdout();
        print!(
            "{}",
            text(&found.report, &found.source, verdict, &events, screen)
        );
        let _ = std::io::stdout().flush();
    }
    Ok(code)
}

/// One Event.
struct Told {
    at: UnixTime,
    kind: String,
    reason: String,
    message: String,
    count: i32,
}

/// The last Events of the Secret, the latest last; or why they cannot be read.
async fn events(client: &Client, verdict: &Verdict) -> Result<Vec<Told>, String> {
    let api: Api<Event> = Api::namespaced(client.clone(), &verdict.namespace);
    let name = &verdict.name;
    let params = ListParams::default()
        .fields(&format!(
            "involvedObject.kind=Secret,involvedObject.name={name}"
        ))
        .limit(PAGE);
    let list = api.list(&params).await.map_err(|error| match error {
        kube::Error::Api(status) => status.message.clone(),
        other => cert_renew_core::text::error_chain(&other),
    })?;
    let mut told: Vec<Told> = list.items.into_iter().map(Told::of).collect();
    told.sort_by_key(|it| it.at);
    let late = told.len().saturating_sub(EVENTS);
    Ok(told.split_off(late))
}

impl Told {
    fn of(event: Event) -> Self {
        let series = event.series.as_ref();
        let last = series.and_then(|it| it.last_observed_time.as_ref());
        let last = last.map(|it| it.0);
        let last = last.or_else(|| event.last_timestamp.as_ref().map(|it| it.0));
        let last = last.or_else(|| event.event_time.as_ref().map(|it| it.0));
        let count = series.and_then(|it| it.count).or(event.count);
        Self {
            at: last.map_or(UnixTime(0), |at| UnixTime(at.as_second())),
            kind: event.type_.unwrap_or_default(),
            reason: event.reason.unwrap_or_default(),
            message: event.message.unwrap_or_default(),
            count: count.unwrap_or(1),
        }
    }
}

/// As the operator remembers it.
impl From<&detail::Told> for Told {
    fn from(told: &detail::Told) -> Self {
        Self {
            at: told.at,
            kind: told.kind.to_string(),
            reason: told.reason.to_string(),
            message: told.message.to_string(),
            count: 1,
        }
    }
}

/// The screen.
fn text(
    report: &Report,
    source: &Source,
    verdict: &Verdict,
    events: &Result<Vec<Told>, String>,
    screen: Screen,
) -> String {
    let now = report.as_of;
    let mut out = String::new();
    let mut line = |label: &str, text: &str| {
        let label = if label.is_empty() {
            String::new()
        } else {
            format!("{label}:")
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", format!("{label:LABEL$} {text}").trim_end());
    };
    let state = verdict.state.as_str();
    let state = match colour(state).filter(|_| screen.colours) {
        Some(colour) => format!("\u{1b}[{colour}m{state}\u{1b}[0m"),
        None => state.to_owned(),
    };
    line("Secret", &format!("{}/{}", verdict.namespace, verdict.name));
    line("State", &format!("{state}: {}", verdict.reason));
    if let Some(said) = &verdict.said {
        line("", &format!("the operator said last: {}", plain(said)));
    }
    if let Some(since) = verdict.since {
        line("Since", &format!("{since}, {}", relative(now, since)));
    }
    line("Renews", &renews(now, verdict));
    let names = verdict.names_in_words();
    line("Names", if names.is_empty() { "none" } else { &names });
    if let (Some(from), Some(to)) = (verdict.not_before, verdict.not_after) {
        line("Valid", &format!("{from} to {to}, {}", relative(now, to)));
    }
    line("Issuer", &plain(&verdict.issuer));
    let detail = verdict.detail.as_deref();
    for (number, link) in detail.iter().flat_map(|it| &it.chain).enumerate() {
        line(if number == 0 { "Chain" } else { "" }, &chained(now, link));
    }
    if let Some(at) = detail.and_then(|it| it.renewed) {
        line("Renewed", &format!("{at}, {}", relative(now, at)));
    }
    if let Some(under_way) = detail.and_then(|it| it.under_way.as_ref()) {
        for (number, text) in working(now, under_way).iter().enumerate() {
            line(if number == 0 { "Under way" } else { "" }, text);
        }
    }
    if let Some(account) = &verdict.account {
        line("Account", &plain(account));
    }
    let class = verdict.class.as_ref().or(report.class.as_ref());
    if let Some(class) = class {
        line("Class", &plain(class));
    }
    for (number, text) in limits(now, source, detail).iter().enumerate() {
        line(if number == 0 { "Limits" } else { "" }, text);
    }
    line("Rollout", verdict.rollout.as_str());
    if let Some(until) = verdict.served_until {
        line(
            "",
            &format!(
                "the workloads have one that ends at {until}, {}",
                relative(now, until)
            ),
        );
    }
    if verdict.stale_pods > 0 {
        line(
            "",
            &format!("pods known to serve an earlier one: {}", verdict.stale_pods),
        );
    }
    match &verdict.used_by {
        Some(used_by) => {
            line("Workloads", &workloads(used_by));
            line("", &format!("as of {}", used_by.at));
        }
        None => line("Workloads", "none known"),
    }
    if let Some(pods) = detail.and_then(|it| it.pods.as_ref()) {
        let asked = relative(now, pods.at);
        line(
            "Pods",
            &format!("behind {}, as asked {asked}", plain(&pods.service)),
        );
        for pod in &pods.asked {
            let (name, says) = (plain(&pod.name), pod.in_words());
            line("", &format!("{name}: {}", plain(&says)));
        }
        if pods.more > 0 {
            line("", &format!("and {} more", pods.more));
        }
    }
    for (number, moment) in detail.iter().flat_map(|it| &it.past).enumerate() {
        let Moment { at, what, .. } = moment;
        let (what, by) = (plain(what), plain(moment.by_in_words()));
        let text = format!("{at}, {}: {what} ({by})", relative(now, *at));
        line(if number == 0 { "Past" } else { "" }, &text);
    }
    if let Some(error) = &verdict.last_error {
        line("Last error", &plain(error));
    }
    if verdict.failures > 0 {
        line("Failures", &format!("{} in a row", verdict.failures));
    }
    if let Some(at) = verdict.next_try {
        line("Next try", &format!("{at}, {}", relative(now, at)));
    }
    for (number, problem) in verdict.problems.iter().enumerate() {
        line(if number == 0 { "Problems" } else { "" }, &plain(problem));
    }
    line("Judged by", &judge(report, source));
    match events {
        Err(why) => {
            line("Events", &format!("cannot be read: {}", plain(why)));
            let told = detail.and_then(|it| it.events.as_ref());
            for event in told.into_iter().flatten().map(Told::from) {
                let _ = writeln!(out, "  {}", shown(now, &event));
            }
        }
        Ok(events) if events.is_empty() => {
            line("Events", "none, or older than the API server keeps them");
        }
        Ok(events) => {
            line("Events", "");
            for event in events {
                let _ = writeln!(out, "  {}", shown(now, event));
            }
        }
    }
    if let Some(next) = &verdict.next {
        let _ = writeln!(out, "\nNext:\n  {next}");
    }
    out
}

fn renews(now: UnixTime, verdict: &Verdict) -> String {
    let why = Why::meaning(&verdict.renews_why);
    match verdict.renews {
        None => format!("never: {why}"),
        Some(at) if at <= now => format!("now: {why}"),
        Some(at) => format!("{at}, {}: {why}", relative(now, at)),
    }
}

/// How much of each limit is used.
fn limits(now: UnixTime, source: &Source, detail: Option<&Detail>) -> Vec<String> {
    let Some(limits) = detail.and_then(|it| it.limits.as_ref()) else {
        return match source {
            Source::Operator => {
                vec!["known to the replica that leads; another one answered".into()]
            }
            Source::Secrets(_) => vec!["known to the operator".into()],
        };
    };
    let one = |limit: &detail::Limit| {
        let words = limit.in_words();
        let words = plain(&words);
        match limit.until {
            Some(until) if limit.used.is_some() => {
                format!("{words}; one is free again {}", relative(now, until))
            }
            Some(until) => format!("{words} until {until}, {}", relative(now, until)),
            None => words.into_owned(),
        }
    };
    limits.iter().map(one).collect()
}

/// One certificate of the chain.
fn chained(now: UnixTime, link: &Link) -> String {
    let Link {
        subject,
        issuer,
        not_after,
    } = link;
    let (subject, issuer) = (plain(subject), plain(issuer));
    format!("{subject}, by {issuer}, ends {}", relative(now, *not_after))
}

/// What is done now, and how far it is.
fn working(now: UnixTime, under_way: &UnderWay) -> Vec<String> {
    let step = under_way.step.as_ref();
    let how_far = step.map_or_else(String::new, |step| {
        format!("; {} ended {}", plain(&step.name), relative(now, step.at))
    });
    let order = step.and_then(|step| step.order.as_ref());
    let order = order.map(|order| format!("order {}", plain(order)));
    let first = format!("{}{how_far}", plain(under_way.in_words()));
    std::iter::once(first).chain(order).collect()
}

fn judge(report: &Report, source: &Source) -> String {
    match source {
        Source::Secrets(_) => "this command, by what the Secret says".into(),
        Source::Operator => {
            let of = |text: &Option<Box<str>>| plain(text.as_deref().unwrap_or("-")).into_owned();
            let (version, replica) = (of(&report.version), of(&report.replica));
            let leader = match &report.leader.name {
                Some(name) => format!("{} leads", plain(name)),
                None => "nobody leads".into(),
            };
            format!("{replica}, cert-renew {version}; {leader}")
        }
    }
}

fn shown(now: UnixTime, event: &Told) -> String {
    let Told {
        at,
        kind,
        reason,
        message,
        count,
    } = event;
    let times = if *count > 1 {
        format!(" (x{count})")
    } else {
        String::new()
    };
    let ago = human(now.since(*at));
    format!(
        "{ago:8} {} {}{times}: {}",
        plain(kind),
        plain(reason),
        plain(message)
    )
}

#[cfg(test)]
mod tests {
    use cert_renew_core::schedule::rate_limits::Usage;
    use cert_renew_core::testing::entries::{NOW, index};
    use cert_renew_core::verdict::Leader;
    use cert_renew_core::verdict::detail::{LastStep, Limit, Pod, Pods, Serves};
    use cert_renew_core::verdict::unmanaged::Unmanaged;

    use super::*;
    use crate::cli::golden;

    /// A chain, and an order that waits.
    fn detail() -> Detail {
        let link = |subject: &str, issuer: &str, days: i64| Link {
            subject: subject.into(),
            issuer: issuer.into(),
            not_after: UnixTime(NOW.0 + days * 86_400),
        };
        Detail {
            chain: vec![
                link("shop.example", "CN=Intermediate", 60),
                link("CN=Intermediate", "CN=Root", 900),
                link("CN=Root", "CN=Root", 755_718),
            ],
            renewed: Some(UnixTime(NOW.0 - 30 * 86_400)),
            under_way: Some(UnderWay {
                what: "renewal".into(),
                step: Some(LastStep {
                    name: "order".into(),
                    at: UnixTime(NOW.0 - 5),
                    order: Some("https://ca.example/order/1".into()),
                }),
            }),
            limits: Some(vec![
                Limit::counted(
                    "orders",
                    "le",
                    Usage {
                        used: 12,
                        most: 250,
                        within: std::time::Duration::from_secs(3 * 3_600),
                        until: None,
                    },
                ),
                Limit::counted(
                    "certificates",
                    "le",
                    Usage {
                        used: 4,
                        most: 4,
                        within: std::time::Duration::from_secs(7 * 86_400),
                        until: Some(UnixTime(NOW.0 + 7_200)),
                    },
                ),
                Limit::of_the_ca("names under shop.example", UnixTime(NOW.0 + 3_600)),
            ]),
            pods: Some(Pods {
                at: UnixTime(NOW.0 - 60),
                service: "web:443".into(),
                asked: vec![
                    Pod {
                        name: "web-1".into(),
                        serves: Serves::Earlier,
                        why: None,
                    },
                    Pod {
                        name: "web-2".into(),
                        serves: Serves::Unknown,
                        why: Some("connection refused".into()),
                    },
                ],
                more: 3,
            }),
            past: vec![Moment::new(
                UnixTime(NOW.0 - 86_400),
                "a certificate was ordered that was due",
                "ledger",
            )],
            events: None,
        }
    }

    #[test]
    fn one_screen_says_what_why_when_and_what_to_do() {
        let index = index();
        let rows: Vec<_> = index.iter().map(|(row, _)| row).collect();
        let rows = rows.into_iter();
        let certificates = rows.filter_map(|row| Verdict::of_row(NOW, &index, row, 2));
        let report = Report {
            version: Some("0.1.0".into()),
            class: Some("default".into()),
            operator_namespace: None,
            replica: Some("cert-renew-0".into()),
            leader: Leader {
                name: Some("cert-renew-1".into()),
                silent_since: None,
            },
            as_of: NOW,
            notices: Vec::new(),
            unmanaged: Unmanaged::default(),
            matching: 0,
            left_out: 0,
            certificates: certificates.collect(),
        };
        let event = Told {
            at: UnixTime(NOW.0 - 90),
            kind: "Warning".into(),
            reason: "RenewalFailed".into(),
            message: "no\u{1b}[2J way".into(),
            count: 3,
        };
        let events = Ok(vec![event]);
        let mut all = String::new();
        for name in ["healthy", "failing", "halted", "held", "odd", "expiring"] {
            let mut certificates = report.certificates.iter();
            let verdict = certificates.find(|it| *it.name == *name).unwrap();
            let screen = Screen::default();
            let verdict = Verdict {
                detail: (name == "healthy").then(|| Box::new(detail())),
                ..verdict.clone()
            };
            all += &text(&report, &Source::Operator, &verdict, &events, screen);
            all += "---\n";
        }
        let verdict = &report.certificates[0];
        let unread = Err("events is forbidden".to_owned());
        all += &text(
            &report,
            &Source::Secrets(None),
            verdict,
            &unread,
            Screen::default(),
        );
        golden("describe.txt", &all);
    }
}
