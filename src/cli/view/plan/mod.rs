//! `cert-renew plan`: future renewals, and the workloads that each would roll. Changes nothing, asks no CA.
//!
//! With the operator's config it knows the allowed names and the defaults; the operator is asked for the dates, as only
//! it knows the CA's renewal information (ARI) and failures. With a config file it says what would be with that file,
//! and the operator is not asked. Who may not list Secrets gets what the operator says. `--preflight` looks for obstacles
//! to each renewal.

mod dates;
mod obstacles;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

use cert_renew_core::assess::{self, Assessment};
use cert_renew_core::certificate::Fingerprint;
use cert_renew_core::config::Config;
use cert_renew_core::rollout::{ChangedKeys, How, Request, Step, Workload};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::data::data_keys::TLS_TYPE;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::parts::{self, Parts};
use cert_renew_core::secret::settings::IssuerRef;
use cert_renew_core::secret::workload::RolloutMode;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::Why;
use clap::Parser;
use kube::api::Api;
use serde::Serialize;

use self::dates::{due, take};
use self::obstacles::Looker;
use crate::cli::connection::kube_flags::Scope;
use crate::cli::connection::operator::Leader;
use crate::cli::output::{Output, Screen, Table, plain};
use crate::cli::verdicts::{
    Operator, Wanted, nobody_leads, not_there, say, selections, why_missing,
};
use crate::cli::{CommandResult, Failure, block_on};
use crate::cluster::client::pages::Pages;
use crate::process::config_file;
use crate::rollout::{self, Unmanaged};

/// Secrets in a page of the list.
const PAGE: u32 = 250;

#[derive(Debug, Parser)]
pub(in crate::cli) struct Args {
    /// These Secrets only, each as NAME or NAMESPACE/NAME
    names: Vec<String>,
    /// Secrets with these labels only; takes the right to list Secrets
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// A config file, to see what would be with it; otherwise the config in the cluster
    #[arg(long, value_name = "FILE", env = "CERT_RENEW_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    scope: Scope,
    /// Ask CA, DNS and cluster what speaks against each renewal; nothing is ordered
    #[arg(long)]
    preflight: bool,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    operator: Operator,
}

/// One Secret and its future.
struct Row {
    at: UnixTime,
    secret: SecretRef,
    why: String,
    /// What holds the renewal up, and until when.
    held: Option<String>,
    names: Vec<String>,
    /// In the order of the rollout.
    rollout: Vec<Rolled>,
    /// Number of workloads beside those, if they are not named.
    more: usize,
    /// Workloads that are restarted only for another `ca.crt`.
    only_for_ca: Vec<String>,
    /// Unmanaged pods and Jobs that use it: nothing restarts them.
    left_behind: Vec<String>,
    /// The Service that is probed afterwards.
    verify: Option<String>,
    /// Obstacles; always empty without `--preflight`.
    against: Vec<String>,
}

/// One workload's part in the rollout, and why.
#[derive(Clone, Serialize)]
struct Rolled {
    workload: String,
    /// Where the settings of the Secret are not known, this is not either.
    #[serde(skip_serializing_if = "Option::is_none")]
    how: Option<&'static str>,
    why: String,
}

/// The same for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Planned<'a> {
    namespace: &'a str,
    name: &'a str,
    /// The instant of the plan where that is now; None if it is never renewed.
    renews: Option<UnixTime>,
    why: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<&'a str>,
    names: &'a [String],
    workloads: Vec<&'a str>,
    rollout: &'a [Rolled],
    #[serde(skip_serializing_if = "is_zero")]
    more_workloads: usize,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    only_for_ca: &'a [String],
    nobody_restarts: &'a [String],
    verify: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    against: &'a [String],
}

/// As serde calls it.
fn is_zero(number: &usize) -> bool {
    *number == 0
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(in crate::cli) fn run(args: Args) -> CommandResult {
    let file = args.config.as_deref().map(config_file::load).transpose();
    let file = file.map_err(|faults| Failure(faults.to_string()))?;
    let (rows, missing) = block_on(async {
        let clients = args.scope.clients().await?;
        let client = &clients.api;
        let wanted = Wanted::of(client, &args.scope, &args.names, args.selector.as_deref());
        let wanted = wanted.await?;
        // What would be with a file, or fail, only the Secrets tell.
        if file.is_none()
            && !args.preflight
            && let Some(refusal) = told::refusal(&clients, &args.scope).await
        {
            let (rows, report) = told::rows(&clients, &args.operator, &wanted, &refusal).await?;
            let missing = missing(&wanted, &rows, |namespace, name| {
                why_missing(&report, namespace, name)
            });
            return Ok((rows, missing));
        }
        let config = match file {
            Some(config) => config,
            None => in_cluster(&args.operator, client).await?,
        };
        let mut rows = rows(&args, &wanted, client, &config).await?;
        if args.config.is_none() {
            as_the_operator_says(&args, &wanted, &clients.once, &mut rows).await;
        }
        if args.preflight && rows.iter().all(|row| row.against.is_empty()) {
            let never = rows.iter().filter(|row| row.at == UnixTime::NEVER).count();
            match rows.len() - never {
                0 => say("there is no renewal that anything could speak against"),
                1 => say("nothing speaks against the renewal"),
                some => say(&format!("nothing speaks against {some} renewals")),
            }
        }
        let missing = missing(&wanted, &rows, |_, _| not_there(&config.class));
        Ok((rows, missing))
    })?;
    let screen = Screen::of_stdout();
    print!("{}", text(UnixTime::now(), rows, args.output, screen)?);
    for line in &missing {
        say(line);
    }
    Ok(if missing.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is said of each Secret that was asked for and has no row.
fn missing(wanted: &Wanted, rows: &[Row], why: impl Fn(&str, &str) -> String) -> Vec<String> {
    let has_none = |(namespace, name): &&(String, String)| {
        let is = |row: &Row| *row.secret.namespace == **namespace && *row.secret.name == **name;
        !rows.iter().any(is)
    };
    let places = wanted.places.iter().flatten();
    { places.filter(has_none) }
        .map(|(namespace, name)| format!("{namespace}/{name}: {}", why(namespace, name)))
        .collect()
}

/// The config of the cluster.
async fn in_cluster(operator: &Operator, client: &kube::Client) -> Result<Config, Failure> {
    let config = operator.config(client).await;
    config.map_err(|Failure(error)| {
        Failure(format!(
            "{error}; name the operator's namespace with --operator-namespace, or a file with --config"
        ))
    })
}

/// Takes the instants and reasons of the operator, which knows the CA's renewal information, failures and budgets.
async fn as_the_operator_says(
    args: &Args,
    wanted: &Wanted,
    client: &kube::Client,
    rows: &mut [Row],
) {
    let report = match args.operator.report(client, wanted).await {
        Ok(report) => report,
        Err(why) => {
            let namespace = args.operator.namespace();
            let leader = Leader::look(client, namespace).await;
            let nobody = leader
                .ok()
                .and_then(|it| it.nobody(UnixTime::now(), namespace));
            let nobody = nobody.map_or_else(String::new, |it| format!("{it}; "));
            say(&format!(
                "{nobody}the dates are without the CA's renewal information: the operator could not be asked, {why}"
            ));
            return;
        }
    };
    if let Some(nobody) = nobody_leads(&report, &args.operator) {
        say(&nobody);
    }
    let without = take(&report, rows);
    if without > 0 {
        say(&format!(
            "the dates of {without} are without the CA's renewal information, as there are too many for one answer of the \
             operator: name a namespace or a Secret"
        ));
    }
}

/// The printed table: the nearest renewal first.
fn text(
    now: UnixTime,
    mut rows: Vec<Row>,
    output: Output,
    screen: Screen,
) -> Result<String, Failure> {
    rows.sort_by(|one, other| (one.at, &one.secret).cmp(&(other.at, &other.secret)));
    let when = |at: UnixTime| {
        if at <= now {
            "now".to_owned()
        } else {
            at.to_string()
        }
    };
    let planned = rows.iter().map(|row| Planned {
        namespace: &row.secret.namespace,
        name: &row.secret.name,
        renews: (row.at != UnixTime::NEVER).then(|| row.at.max(now)),
        why: &row.why,
        held: row.held.as_deref(),
        names: &row.names,
        workloads: row.rollout.iter().map(|it| &*it.workload).collect(),
        rollout: &row.rollout,
        more_workloads: row.more,
        only_for_ca: &row.only_for_ca,
        nobody_restarts: &row.left_behind,
        verify: row.verify.as_deref(),
        against: &row.against,
    });
    if let Some(text) = output.of_program(&planned.collect::<Vec<_>>())? {
        return Ok(text);
    }
    let list = |texts: &[String]| {
        if texts.is_empty() {
            "-".to_owned()
        } else {
            texts.join(",")
        }
    };
    let lines: Vec<_> = rows
        .iter()
        .map(|row| {
            vec![
                row.secret.namespace.to_string(),
                row.secret.name.to_string(),
                when(row.at),
                row.why.clone(),
                list(&row.names),
                list(&row.rollout.iter().map(in_words).collect::<Vec<_>>()),
                list(row.verify.as_slice()),
            ]
        })
        .collect();
    // As those of the status.
    let titles = [
        "NAMESPACE",
        "NAME",
        "RENEWS",
        "WHY",
        "NAMES",
        "RESTARTS",
        "VERIFIES",
    ];
    let screen = match output {
        Output::Wide => screen.uncut(),
        _ => screen,
    };
    let table = Table::new(&titles, &lines, None).fit(screen, &[4, 5]);
    let lines = lines.iter().map(|cells| table.line(cells));
    let mut text = table.head() + &lines.collect::<String>();
    let words: BTreeSet<&str> = rows.iter().map(|row| &*row.why).collect();
    for word in words {
        text += &format!("{word}: {}\n", Why::meaning(word));
    }
    for row in &rows {
        if let Some(held) = &row.held {
            text += &format!("{}: {}\n", row.secret, plain(held));
        }
        if row.more > 0 {
            text += &format!("{}: {} more workloads use it\n", row.secret, row.more);
        }
        if !row.only_for_ca.is_empty() {
            let (secret, names) = (&row.secret, row.only_for_ca.join(", "));
            text += &format!("{secret}: only another ca.crt restarts {names}\n");
        }
        if !row.left_behind.is_empty() {
            let (secret, names) = (&row.secret, row.left_behind.join(", "));
            text += &format!("{secret}: nobody restarts {names}\n");
        }
        for against in &row.against {
            text += &format!("{} will fail: {against}\n", row.secret);
        }
    }
    Ok(text)
}

fn in_words(rolled: &Rolled) -> String {
    let Rolled { workload, how, why } = rolled;
    match how {
        Some(how) => format!("{workload}({how}: {why})"),
        None => format!("{workload}({why})"),
    }
}

impl Rolled {
    fn of(step: &Step) -> Self {
        let whys: Vec<String> = step.leaves.iter().map(|due| due.why.to_string()).collect();
        Self {
            workload: step.workload.id.to_string(),
            how: match step.how {
                How::Restart => Some("restart"),
                How::Reload(_) => Some("reload"),
            },
            why: whys.join(", "),
        }
    }
}

/// The workloads and pods of a namespace.
struct Users {
    workloads: Vec<Workload>,
    bystanders: Vec<Unmanaged>,
}

impl Users {
    async fn list(client: &kube::Client, namespace: &str) -> Result<Self, Failure> {
        let workloads = rollout::list(client, namespace).await;
        let bystanders = rollout::bystanders(client, namespace).await;
        Ok(Self {
            workloads: workloads.map_err(|error| Failure::new("listing workloads", &error))?,
            bystanders: bystanders
                .map_err(|error| Failure::new("listing Pods and Jobs", &error))?,
        })
    }
}

/// The rollout of a new leaf, by the operator's own plan; the workloads rolled only for another `ca.crt`; and the pods
/// that it would not reach.
fn rollout_of(
    now: UnixTime,
    key: &SecretRef,
    assessment: &Assessment,
    users: &Users,
    config: &Config,
) -> (Vec<Step>, Vec<String>, Vec<String>) {
    let settings = &assessment.settings;
    let on = settings.rollout_on;
    let request = Request {
        secret: (*key.name).into(),
        uid: "".into(),
        // The next leaf is unknown; the plan is the same for each that differs from the present one.
        leaf: Fingerprint::of(b"the next leaf"),
        with: assessment.with,
        not_after: UnixTime::NEVER,
        rolled_out: Some(assessment.held()),
        remembered: None,
        halted: None,
        mode: settings.rollout.clone(),
        workloads: settings.workloads.clone(),
        changed: Parts {
            leaf: on.leaf,
            ..Parts::NONE
        },
        keys: match on.leaf {
            true => ChangedKeys::all_but([parts::CA_KEY.into()]),
            false => ChangedKeys::only([]),
        },
        written: None,
        unwell: Vec::new(),
    };
    let left_behind = match request.mode {
        RolloutMode::None => Vec::new(),
        _ => {
            let bystanders = rollout::by_secret(&users.bystanders);
            let workloads = rollout::by_id(&users.workloads);
            let unseen = rollout::unseen(&request, &bystanders, &workloads);
            let of = |workload: String| format!("the pods of {workload}");
            let mut names = rollout::left_behind(&request, &bystanders);
            names.extend(unseen.into_iter().map(of));
            names
        }
    };
    let for_ca = Request {
        keys: ChangedKeys::only(on.ca.then(|| parts::CA_KEY.into())),
        workloads: Vec::new(),
        ..request.clone()
    };
    let for_ca = cert_renew_core::rollout::using(&for_ca, &users.workloads);
    let steps =
        cert_renew_core::rollout::plan(now, &[request], &users.workloads, &config.rollout).steps;
    let rolls = |it: &Workload| steps.iter().any(|step| step.workload.id == it.id);
    let only_for_ca = for_ca.iter().filter(|it| !rolls(it));
    let only_for_ca = only_for_ca.map(|it| it.id.to_string()).collect();
    (steps, only_for_ca, left_behind)
}

async fn rows(
    args: &Args,
    wanted: &Wanted,
    client: &kube::Client,
    config: &Config,
) -> Result<Vec<Row>, Failure> {
    let api: Api<ThinSecret> = match &wanted.namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut planner = Planner {
        users: BTreeMap::new(),
        looker: Looker::new(client, args.operator.namespace(), config),
        looks: args.preflight,
        of_file: args.config.is_some(),
    };
    let now = UnixTime::now();
    let mut rows = Vec::new();
    for params in selections() {
        let mut pages = Pages::of(params, PAGE);
        while let Some(params) = pages.next() {
            let page = api.list(params).await;
            let page = page.map_err(|error| Failure::new("listing Secrets", &error))?;
            let taken = |it: &&ThinSecret| wanted.takes(it.head.namespace(), it.head.name());
            for secret in page.items.iter().filter(taken) {
                rows.extend(planner.row(now, secret).await?);
            }
            pages.came(&page.metadata);
        }
    }
    Ok(rows)
}

/// Makes the rows.
struct Planner<'a> {
    /// By namespace.
    users: BTreeMap<String, Users>,
    looker: Looker<'a>,
    /// Whether it looks for what speaks against each.
    looks: bool,
    /// Whether the config is that of a file, which is not in force.
    of_file: bool,
}

impl Planner<'_> {
    /// The row of a Secret; none if the operator does not manage it, or does not see it.
    async fn row(&mut self, now: UnixTime, secret: &ThinSecret) -> Result<Option<Row>, Failure> {
        let Self {
            users,
            looker,
            looks,
            of_file,
        } = self;
        let config = looker.config;
        let key = SecretRef {
            namespace: secret.head.namespace().into(),
            name: secret.head.name().into(),
        };
        let (is_tls, is_labelled) = (secret.kind == TLS_TYPE, secret.head.managed);
        let unseen = config.watch.misses(&key.namespace, is_tls, is_labelled);
        let assessment = assess::of_thin(now, &key, secret, config);
        let Some(assessment) = assessment.filter(|_| unseen.is_none()) else {
            return Ok(None);
        };
        let in_force = (!*of_file).then_some(config);
        let (at, why, held) = due(now, secret, &assessment, in_force);
        let namespace = key.namespace.to_string();
        if !users.contains_key(&namespace) {
            let listed = Users::list(&looker.kube, &namespace).await?;
            users.insert(namespace.clone(), listed);
        }
        let (steps, only_for_ca, left_behind) =
            rollout_of(now, &key, &assessment, &users[&namespace], config);
        let against = match (&assessment.settings.issuer, assessment.renewal) {
            (IssuerRef::Named(issuer), Ok(_)) if *looks => {
                looker.against(issuer, &assessment).await
            }
            _ => Vec::new(),
        };
        Ok(Some(Row {
            against,
            at,
            why,
            held,
            names: assessment.names.iter().map(ToString::to_string).collect(),
            rollout: steps.iter().map(Rolled::of).collect(),
            more: 0,
            only_for_ca,
            left_behind,
            verify: assessment.settings.verify.as_ref().map(ToString::to_string),
            secret: key,
        }))
    }
}

#[cfg(test)]
mod tests;
