//! `cert-renew status`: the verdict on each annotated Secret, as a table.
//!
//! The verdicts are the operator's; see [`crate::cli::verdicts`] for what is shown without one.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use cert_renew_core::secret::keys;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::settings::DEFAULT_CLASS;
use cert_renew_core::time::UnixTime;
use cert_renew_core::time::duration::{self, NotADuration, relative};
use cert_renew_core::verdict::{Report, State, Verdict};
use clap::{Parser, ValueEnum};
use futures::{StreamExt as _, stream};
use kube::Client;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use serde::Serialize;

use super::describe;
use crate::cli::connection::kube_flags::{Clients, Scope};
use crate::cli::output::{Output, Paint, Screen, Table, colour, plain, workloads};
use crate::cli::verdicts::{Found, Operator, Shown, Source, Wanted, say, selections};
use crate::cli::{CommandResult, Failure, block_on};

/// Time between two looks at the operator's verdicts: nothing is pushed through the API server's proxy.
const LOOK: Duration = Duration::from_secs(2);
/// Most characters of names in a line of the wide table on a terminal: some certificates have a hundred.
const MOST_NAMES: usize = 60;

#[derive(Debug, Parser)]
pub(in crate::cli) struct Args {
    /// These Secrets only, each as NAME or NAMESPACE/NAME; a single one is shown on one screen
    names: Vec<String>,
    #[command(flatten)]
    scope: Scope,
    /// Secrets with these labels only; takes the right to list Secrets
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Certificates that end within this time only, such as 30d
    #[arg(long, value_name = "TIME", value_parser = time)]
    expiring: Option<Duration>,
    /// The order of the lines
    #[arg(long, value_enum, value_name = "COLUMN", default_value_t)]
    sort_by: Column,
    /// Leave out the headings
    #[arg(long)]
    no_headers: bool,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Keep running and print each change, until interrupted
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    operator: Operator,
}

/// What the lines are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Column {
    /// Namespace and name
    #[default]
    Name,
    /// The worst first
    State,
    /// What ends first
    Expires,
    /// What is renewed first
    Renews,
    Issuer,
    Rollout,
}

fn time(text: &str) -> Result<Duration, NotADuration> {
    duration::parse(text)
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(in crate::cli) fn run(args: Args) -> CommandResult {
    block_on(async {
        let clients = args.scope.clients().await?;
        let client = &clients.api;
        let wanted = Wanted::of(client, &args.scope, &args.names, args.selector.as_deref());
        let mut wanted = wanted.await?;
        wanted.shown = args.shown();
        let mut found = Found::of(&clients, &args.operator, &wanted).await?;
        if args.is_of_one() {
            return describe::show(client, &found, &wanted).await;
        }
        found.tell_unmanaged(&wanted);
        let code = wanted.tell_missing(&found.report);
        args.select(&mut found.report);
        if args.watch {
            return follow(&clients, &args, &wanted, found).await;
        }
        let report = &found.report;
        match args.output.of_program(report)? {
            Some(text) => print!("{text}"),
            None if report.certificates.is_empty() => args.nothing(&wanted),
            None => {
                let table = table(report, args.output, Screen::of_stdout());
                let skipped = usize::from(args.no_headers);
                let lines = table.split_inclusive('\n').skip(skipped);
                print!("{}", lines.collect::<String>());
            }
        }
        Ok(code)
    })
}

impl Args {
    /// Whether it is shown on one screen: nothing but its name is asked for.
    fn is_of_one(&self) -> bool {
        let is_narrowed = self.expiring.is_some() || self.selector.is_some();
        let is_a_table = self.watch || self.no_headers || self.output != Output::Table;
        self.names.len() == 1 && !is_narrowed && !is_a_table
    }

    /// What the operator should know of what is shown.
    fn shown(&self) -> Shown {
        let of_one = self.names.len() == 1;
        Shown {
            sort: match self.sort_by {
                Column::Name => None,
                Column::State => Some("state"),
                Column::Expires => Some("ends"),
                Column::Renews => Some("renews"),
                Column::Issuer => Some("issuer"),
                Column::Rollout => Some("rollout"),
            },
            within: self.expiring,
            // What goes into a pipe is complete.
            briefly: self.output == Output::Table
                && !of_one
                && Screen::of_stdout().columns.is_some(),
        }
    }

    /// Keeps what the flags ask for, in their order.
    fn select(&self, report: &mut Report) {
        let now = report.as_of;
        report.certificates.retain(|it| self.takes(now, it));
        let by = self.sort_by;
        report
            .certificates
            .sort_by(|one, other| by.compare(one, other));
        report.matching = report.certificates.len() + report.left_out;
    }

    /// Whether a certificate ends within the time that is asked for, if one is.
    fn takes(&self, now: UnixTime, verdict: &Verdict) -> bool {
        let ends_within = |within| verdict.not_after.is_some_and(|at| at <= now + within);
        self.expiring.is_none_or(ends_within)
    }

    /// Says that there is nothing, not on standard output: a pipe gets an empty list.
    fn nothing(&self, wanted: &Wanted) {
        let place = match &wanted.namespace {
            Some(namespace) => format!("in namespace {namespace}"),
            None => "anywhere".to_owned(),
        };
        let narrowed = self.expiring.is_some() || self.selector.is_some() || !self.names.is_empty();
        say(&if narrowed {
            format!("no annotated Secret {place} matches")
        } else {
            format!(
                "no Secret is annotated {place}; annotate one with {}=<issuer>, or look everywhere with -A",
                keys::ISSUER
            )
        });
    }
}

impl Column {
    fn compare(self, one: &Verdict, other: &Verdict) -> Ordering {
        let late = |at: Option<UnixTime>| at.unwrap_or(UnixTime::NEVER);
        let main = match self {
            Self::Name => Ordering::Equal,
            Self::State => { one.state.cmp(&other.state) }
                .then(late(one.not_after).cmp(&late(other.not_after))),
            Self::Expires => late(one.not_after).cmp(&late(other.not_after)),
            Self::Renews => late(one.renews).cmp(&late(other.renews)),
            Self::Issuer => one.issuer.cmp(&other.issuer),
            Self::Rollout => one.rollout.cmp(&other.rollout),
        };
        main.then_with(|| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)))
    }
}

type Place = (Box<str>, Box<str>);

/// Prints the verdicts, and then each that changes, as `kubectl get --watch` does.
struct Follower<'a> {
    output: Output,
    layout: Layout,
    wanted: &'a Wanted,
    known: BTreeMap<Place, Verdict>,
}

/// A verdict as a watch prints it for programs.
#[derive(Serialize)]
struct Change<'a> {
    #[serde(flatten)]
    verdict: &'a Verdict,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
}

impl Follower<'_> {
    #[expect(clippy::print_stdout, reason = "the command's answer")]
    fn print(&self, now: UnixTime, verdict: &Verdict, deleted: bool) {
        let change = Change { verdict, deleted };
        match self.output {
            Output::Json => println!("{}", serde_json::to_string(&change).unwrap_or_default()),
            Output::Yaml => {
                let text = self.output.of_program(&change);
                print!("---\n{}", text.ok().flatten().unwrap_or_default());
            }
            Output::Table | Output::Wide => {
                let word = if deleted {
                    "deleted"
                } else {
                    verdict.state.as_str()
                };
                print!("{}", self.layout.line(now, verdict, word));
            }
        }
        // A closed pipe ends the command at the next line.
        let _ = std::io::stdout().flush();
    }

    fn apply(&mut self, now: UnixTime, verdict: Verdict) {
        let place = (verdict.namespace.clone(), verdict.name.clone());
        let known = self.known.get(&place);
        if known.is_some_and(|known| lasting(known, now) == lasting(&verdict, now)) {
            return;
        }
        self.print(now, &verdict, false);
        self.known.insert(place, verdict);
    }

    fn remove(&mut self, now: UnixTime, place: &Place) {
        if let Some(verdict) = self.known.remove(place) {
            self.print(now, &verdict, true);
        }
    }
}

/// A verdict without what changes with the clock alone.
fn lasting(verdict: &Verdict, now: UnixTime) -> Verdict {
    Verdict {
        renews: verdict.renews.filter(|at| *at > now),
        detail: None,
        ..verdict.clone()
    }
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
async fn follow(clients: &Clients, args: &Args, wanted: &Wanted, found: Found) -> CommandResult {
    let Report {
        as_of,
        certificates,
        ..
    } = &found.report;
    let layout = Layout::of(&found.report, args.output, Screen::of_stdout());
    let is_table = matches!(args.output, Output::Table | Output::Wide);
    if is_table && !args.no_headers {
        print!("{}", layout.table.head());
    }
    let mut follower = Follower {
        output: args.output,
        layout,
        wanted,
        known: BTreeMap::new(),
    };
    for verdict in certificates {
        follower.apply(*as_of, verdict.clone());
    }
    match found.source {
        Source::Operator => by_looking(&clients.once, args, follower).await,
        Source::Secrets(_) => by_watching(&clients.api, args, found, follower).await,
    }
}

/// Asks the operator again and again.
async fn by_looking(client: &Client, args: &Args, mut follower: Follower<'_>) -> CommandResult {
    let mut failed = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let mut report = match args.operator.report(client, follower.wanted).await {
            Ok(report) => report,
            Err(why) => {
                if !std::mem::replace(&mut failed, true) {
                    say(&format!("the operator cannot be asked now, {why}"));
                }
                continue;
            }
        };
        failed = false;
        args.select(&mut report);
        let here = |place: &Place| {
            let is = |it: &Verdict| it.namespace == place.0 && it.name == place.1;
            report.certificates.iter().any(is)
        };
        let gone: Vec<Place> = { follower.known.keys() }
            .filter(|place| !here(place))
            .cloned()
            .collect();
        for place in gone {
            follower.remove(report.as_of, &place);
        }
        for verdict in report.certificates {
            follower.apply(report.as_of, verdict);
        }
    }
}

/// Watches the Secrets.
async fn by_watching(
    client: &Client,
    args: &Args,
    found: Found,
    mut follower: Follower<'_>,
) -> CommandResult {
    let api: Api<ThinSecret> = match &follower.wanted.namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let watches = selections().map(|params| {
        let config = watcher::Config {
            label_selector: params.label_selector,
            field_selector: params.field_selector,
            ..watcher::Config::default()
        };
        watch(api.clone(), config).default_backoff().boxed()
    });
    let mut events = stream::select_all(watches);
    while let Some(event) = events.next().await {
        let (secret, deleted) = match event {
            Ok(Event::Apply(secret) | Event::InitApply(secret)) => (secret, false),
            Ok(Event::Delete(secret)) => (secret, true),
            Ok(Event::Init | Event::InitDone) => continue,
            Err(error) => {
                say(&Failure::new("watching Secrets", &error).0);
                continue;
            }
        };
        let (namespace, name) = (secret.head.namespace(), secret.head.name());
        if !follower.wanted.takes(namespace, name) {
            continue;
        }
        let now = UnixTime::now();
        let taken = |it: &Verdict| !deleted && args.takes(now, it);
        match found.judge(&secret).filter(taken) {
            Some(verdict) => follower.apply(now, verdict),
            None => follower.remove(now, &(namespace.into(), name.into())),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The columns of the table, with those of the wide one.
const COLUMNS: [(&str, bool); 17] = [
    ("NAMESPACE", false),
    ("NAME", false),
    (CLASS, false),
    (STATE, false),
    ("EXPIRES", false),
    ("RENEWS", false),
    ("ISSUER", false),
    ("ROLLOUT", false),
    ("SINCE", true),
    ("WHY", true),
    ("VALID FROM", true),
    ("NEXT TRY", true),
    ("FAILURES", true),
    (NAMES, true),
    (WORKLOADS, true),
    ("ACCOUNT", true),
    (PROBLEM, false),
];
const CLASS: &str = "CLASS";
const STATE: &str = "STATE";
const NAMES: &str = "NAMES";
const WORKLOADS: &str = "WORKLOADS";
const PROBLEM: &str = "PROBLEM";

/// The normal table, or the wide one.
struct Layout {
    table: Table,
    /// Which of [`COLUMNS`] it has.
    columns: Vec<usize>,
    /// The class of Secrets that name none.
    class: Box<str>,
}

impl Layout {
    fn of(report: &Report, output: Output, screen: Screen) -> Self {
        let class: Box<str> = report.class.clone().unwrap_or_else(|| DEFAULT_CLASS.into());
        let certificates = report.certificates.iter();
        let mut classes = certificates.map(|it| it.class.as_ref().unwrap_or(&class));
        let first = classes.next();
        let several = classes.any(|it| Some(it) != first);
        let is_shown = |(title, wide): &(&str, bool)| {
            (output == Output::Wide || !wide) && (several || *title != CLASS)
        };
        let shown = COLUMNS.iter().enumerate().filter(|(_, it)| is_shown(it));
        let columns: Vec<usize> = shown.map(|(column, _)| column).collect();
        let titles: Vec<&str> = columns.iter().map(|it| COLUMNS[*it].0).collect();
        let at = |title: &str| titles.iter().position(|it| *it == title);
        let paint = at(STATE).filter(|_| screen.colours);
        let certificates = report.certificates.iter();
        let lines =
            certificates.map(|it| cells(&columns, &class, report.as_of, it, it.state.as_str()));
        let lines: Vec<_> = lines.collect();
        let mut table = Table::new(&titles, &lines, paint.map(|it| (it, colour as Paint)));
        if output == Output::Wide {
            if let Some(names) = at(NAMES) {
                table = table.at_most(screen, names, MOST_NAMES);
            }
        } else {
            table = table.fit(screen, &[titles.len() - 1]);
        }
        Self {
            table,
            columns,
            class,
        }
    }

    fn line(&self, now: UnixTime, verdict: &Verdict, state: &str) -> String {
        let cells = cells(&self.columns, &self.class, now, verdict, state);
        self.table.line(&cells)
    }
}

fn cells(
    columns: &[usize],
    class: &str,
    now: UnixTime,
    verdict: &Verdict,
    state: &str,
) -> Vec<String> {
    let none = || "-".to_owned();
    let instant = |at: Option<UnixTime>| at.map_or_else(none, |at| at.to_string());
    let cell = |column: &usize| match COLUMNS[*column].0 {
        "NAMESPACE" => verdict.namespace.to_string(),
        "NAME" => verdict.name.to_string(),
        CLASS => plain(verdict.class.as_deref().unwrap_or(class)).into_owned(),
        STATE => state.to_owned(),
        "EXPIRES" => verdict.not_after.map_or_else(none, |at| relative(now, at)),
        "RENEWS" => match verdict.renews {
            Some(at) if at <= now => "now".to_owned(),
            Some(at) => relative(now, at),
            None => "never".to_owned(),
        },
        "ISSUER" if verdict.issuer.is_empty() => none(),
        "ISSUER" => plain(&verdict.issuer).into_owned(),
        "ROLLOUT" => verdict.rollout.as_str().to_owned(),
        "SINCE" => instant(verdict.since),
        "WHY" => verdict.renews_why.to_string(),
        "VALID FROM" => instant(verdict.not_before),
        "NEXT TRY" => instant(verdict.next_try),
        "FAILURES" => verdict.failures.to_string(),
        NAMES if verdict.names.is_empty() => none(),
        NAMES => verdict.names_in_words(),
        WORKLOADS => verdict.used_by.as_ref().map_or_else(none, workloads),
        "ACCOUNT" => verdict
            .account
            .as_deref()
            .map_or_else(none, |it| plain(it).into_owned()),
        _ => problem(verdict).map_or_else(none, |it| plain(&it).into_owned()),
    };
    columns.iter().map(cell).collect()
}

/// The trouble that the operator has written on the Secret, where no operator was asked and the Secret alone shows
/// another state.
fn said(verdict: &Verdict) -> Option<&str> {
    let said = verdict.said.as_deref()?;
    let word = said.split([':', ';']).next()?;
    let mut troubles = State::ALL.into_iter().filter(|it| it.is_trouble());
    let is_trouble = word != verdict.state.as_str() && troubles.any(|it| it.as_str() == word);
    is_trouble.then_some(said)
}

/// The one thing that is worth knowing of what is wrong: the last error, what the operator has said last, what is wrong
/// with an annotation, or the reason of the state.
fn problem(verdict: &Verdict) -> Option<Cow<'_, str>> {
    let first = verdict.problems.first();
    let said = said(verdict).map(|it| Cow::Owned(format!("the operator said last: {it}")));
    let error = verdict.last_error.as_deref().map(Cow::Borrowed);
    let known = { error.or(said) }.or_else(|| first.map(|it| Cow::Borrowed(&**it)));
    let told = verdict.state.is_trouble() || verdict.state == State::Held;
    known.or_else(|| told.then_some(Cow::Borrowed(&*verdict.reason)))
}

fn table(report: &Report, output: Output, screen: Screen) -> String {
    let layout = Layout::of(report, output, screen);
    let lines = report.certificates.iter();
    let lines = lines.map(|it| layout.line(report.as_of, it, it.state.as_str()));
    layout.table.head() + &lines.collect::<String>()
}

#[cfg(test)]
mod tests;
