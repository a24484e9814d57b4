//! `cert-renew plan`: what would be renewed when, and which workloads would roll then. Changes nothing, asks no CA.
//!
//! With the operator's config file it knows what the config allows and its defaults; the CA's own suggestion (ARI) and
//! failures are known to the operator alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kube::api::{Api, ListParams};
use serde_json::json;

use super::secret::connect;
use super::{CommandResult, Failure, block_on};
use crate::assess::{self, Assessment};
use crate::certificate::Fingerprint;
use crate::config::Config;
use crate::index::Key;
use crate::rollout::{self, How, Request, Step, Workload};
use crate::secret::state::RolledOut;
use crate::secret::thin::ThinSecret;
use crate::time::UnixTime;

/// Secrets in a page of the list.
const PAGE: u32 = 250;

#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The operator's config file
    #[arg(
        long,
        env = "CERT_RENEW_CONFIG",
        default_value = "/etc/cert-renew/config.yaml"
    )]
    config: PathBuf,
    /// Namespace; that of the context otherwise
    #[arg(short, long)]
    namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// One JSON list instead of lines
    #[arg(long)]
    json: bool,
}

struct Row {
    at: UnixTime,
    secret: Key,
    why: String,
    names: Vec<String>,
    /// In the order of the rollout.
    steps: Vec<Step>,
    /// What is asked over TLS afterwards.
    verify: Option<String>,
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn run(args: Args) -> CommandResult {
    let config = Config::load(&args.config).map_err(|faults| Failure(faults.to_string()))?;
    let mut rows = block_on(rows(&args, &config))?;
    rows.sort_by(|one, other| (one.at, &one.secret).cmp(&(other.at, &other.secret)));
    let now = UnixTime::now();
    let when = |at: UnixTime| {
        if at <= now {
            "now".to_owned()
        } else {
            at.to_string()
        }
    };
    if args.json {
        let rows = rows.iter().map(|row| {
            json!({
                "namespace": &*row.secret.namespace, "name": &*row.secret.name, "renews": when(row.at),
                "why": row.why, "names": row.names, "verify": row.verify,
                "workloads": row.steps.iter().map(name).collect::<Vec<_>>(),
                "rollout": row.steps.iter().map(step_as_json).collect::<Vec<_>>(),
            })
        });
        println!("{:#}", json!(rows.collect::<Vec<_>>()));
        return Ok(ExitCode::SUCCESS);
    }
    for row in rows {
        println!(
            "{}  {}  {} ({}); {}",
            when(row.at),
            row.secret,
            row.names.join(","),
            row.why,
            rollout_in_words(&row)
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn name(step: &Step) -> String {
    step.workload.id.to_string()
}

fn why(step: &Step) -> String {
    let whys: Vec<String> = step.leaves.iter().map(|due| due.why.to_string()).collect();
    whys.join(", ")
}

fn step_as_json(step: &Step) -> serde_json::Value {
    let how = match &step.how {
        How::Restart => "restart".to_owned(),
        How::Reload(_) => "reload".to_owned(),
    };
    json!({"workload": name(step), "how": how, "why": why(step)})
}

fn rollout_in_words(row: &Row) -> String {
    let those = |wanted: fn(&How) -> bool| {
        let steps = row.steps.iter().filter(|step| wanted(&step.how));
        let texts = steps.map(|step| format!("{} ({})", name(step), why(step)));
        texts.collect::<Vec<_>>().join(", ")
    };
    let restarts = those(|how| *how == How::Restart);
    let reloads = those(|how| *how != How::Restart);
    let parts = [
        ("rolls ", restarts),
        ("asks to reload ", reloads),
        ("verifies ", row.verify.clone().unwrap_or_default()),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(_, what)| !what.is_empty())
        .map(|(verb, what)| format!("{verb}{what}"))
        .collect();
    if row.steps.is_empty() {
        "nothing rolls".to_owned()
    } else {
        parts.join(", ")
    }
}

/// What the rollout of a new leaf would be, by the operator's own plan.
fn steps_of(
    now: UnixTime,
    key: &Key,
    assessment: &Assessment,
    workloads: &[Workload],
    config: &Config,
) -> Vec<Step> {
    let settings = &assessment.settings;
    let had = assessment.leaf.as_ref().ok();
    let request = Request {
        secret: (*key.name).into(),
        uid: "".into(),
        // Of the new leaf nothing is known but that it is another one.
        leaf: Fingerprint([0; 32]),
        not_after: UnixTime::NEVER,
        rolled_out: Some(had.map_or(RolledOut::None, |leaf| RolledOut::Leaf {
            fingerprint: leaf.fingerprint,
            not_after: leaf.not_after,
        })),
        remembered: None,
        halted: None,
        mode: settings.rollout.clone(),
        workloads: settings.workloads.clone(),
        keys: Vec::new(),
        written: None,
    };
    rollout::plan(now, &[request], workloads, &config.rollout).steps
}

async fn rows(args: &Args, config: &Config) -> Result<Vec<Row>, Failure> {
    let client = connect().await?;
    let api: Api<ThinSecret> = if args.all_namespaces {
        Api::all(client.clone())
    } else {
        let namespace = args.namespace.as_deref();
        Api::namespaced(
            client.clone(),
            namespace.unwrap_or_else(|| client.default_namespace()),
        )
    };
    let now = UnixTime::now();
    let mut params = ListParams::default().limit(PAGE);
    let mut workloads: BTreeMap<String, Vec<Workload>> = BTreeMap::new();
    let mut rows = Vec::new();
    loop {
        let page = api.list(&params).await;
        let page = page.map_err(|error| Failure::new("listing Secrets", &error))?;
        for secret in &page.items {
            let key = Key {
                namespace: secret.head.namespace().into(),
                name: secret.head.name().into(),
            };
            let Some(assessment) = assess::of_thin(now, &key, secret, config) else {
                continue;
            };
            let (at, why) = match assessment.renewal {
                Ok(due) => {
                    let opens = assessment.opens.unwrap_or_default();
                    (due.at.max(opens), due.reason.as_str().to_owned())
                }
                Err(never) => (UnixTime::NEVER, format!("{never:?}")),
            };
            let namespace = key.namespace.to_string();
            if !workloads.contains_key(&namespace) {
                let listed = rollout::list(&client, &namespace).await;
                let listed = listed.map_err(|error| Failure::new("listing workloads", &error))?;
                workloads.insert(namespace.clone(), listed);
            }
            let steps = steps_of(now, &key, &assessment, &workloads[&namespace], config);
            rows.push(Row {
                at,
                why,
                names: assessment.names.iter().map(ToString::to_string).collect(),
                steps,
                verify: assessment.settings.verify.as_ref().map(ToString::to_string),
                secret: key,
            });
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(rows),
        }
    }
}
