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
use crate::assess;
use crate::config::Config;
use crate::index::Key;
use crate::rollout;
use crate::secret::thin::ThinSecret;
use crate::secret::workload::RolloutMode;
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
    workloads: Vec<String>,
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
                "why": row.why, "names": row.names, "workloads": row.workloads,
            })
        });
        println!("{:#}", json!(rows.collect::<Vec<_>>()));
        return Ok(ExitCode::SUCCESS);
    }
    for row in rows {
        let workloads = if row.workloads.is_empty() {
            "nothing rolls".to_owned()
        } else {
            format!("rolls {}", row.workloads.join(", "))
        };
        println!(
            "{}  {}  {} ({}); {workloads}",
            when(row.at),
            row.secret,
            row.names.join(","),
            row.why
        );
    }
    Ok(ExitCode::SUCCESS)
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
    let mut workloads: BTreeMap<String, Vec<rollout::Workload>> = BTreeMap::new();
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
            let settings = &assessment.settings;
            let concerned = |workload: &&rollout::Workload| {
                settings.rollout == RolloutMode::Restart
                    && !workload.opted_out
                    && (settings.workloads.contains(&workload.id)
                        || workload.references.iter().any(|it| *it.secret == *key.name))
            };
            let concerned = workloads[&namespace].iter().filter(concerned);
            rows.push(Row {
                at,
                why,
                names: assessment.names.iter().map(ToString::to_string).collect(),
                workloads: concerned.map(|workload| workload.id.to_string()).collect(),
                secret: key,
            });
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(rows),
        }
    }
}
