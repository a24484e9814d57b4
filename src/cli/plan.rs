//! `cert-renew plan`: what would be renewed when, and which workloads would roll then. Changes nothing, asks no CA.
//!
//! With the operator's config file it knows what the config allows and its defaults; the CA's own suggestion (ARI) and
//! failures are known to the operator alone. `--preflight` asks CA (its directory only), DNS and cluster what speaks
//! against each renewal.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use kube::api::{Api, ListParams};
use serde_json::json;

use super::account::acme;
use super::secret::connect;
use super::{CommandResult, Failure, block_on};
use crate::acme::{Credentials, Directory};
use crate::assess;
use crate::cluster::accounts;
use crate::config::{Config, Issuer};
use crate::index::Key;
use crate::name::Name;
use crate::renewal::preflight::{self, Asked};
use crate::rollout;
use crate::secret::settings::IssuerRef;
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
    /// Ask CA, DNS and cluster what speaks against each renewal; nothing is ordered
    #[arg(long)]
    preflight: bool,
    /// The operator's namespace, where accounts and credentials are
    #[arg(long, env = "POD_NAMESPACE", default_value = "cert-renew")]
    operator_namespace: String,
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
    /// What speaks against it; nothing is looked for without `--preflight`.
    against: Vec<String>,
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
                "why": row.why, "names": row.names, "workloads": row.workloads, "against": row.against,
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
        for against in row.against {
            println!("    will fail: {against}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A CA's directory, and the URL of our account there.
type Ca = (Arc<Directory>, Option<String>);

/// Asks each CA for its directory once.
struct Looker<'a> {
    kube: kube::Client,
    namespace: &'a str,
    config: &'a Config,
    /// Directory and account by issuer, or why there is none.
    cas: BTreeMap<String, Result<Ca, String>>,
}

impl Looker<'_> {
    async fn against(&mut self, name: &str, names: &[Name], profile: Option<&str>) -> Vec<String> {
        let Some(issuer) = self.config.issuer(name) else {
            return Vec::new();
        };
        if !self.cas.contains_key(name) {
            let ca = self.ca(name, issuer).await;
            self.cas.insert(name.to_owned(), ca);
        }
        let (directory, account) = match &self.cas[name] {
            Ok((directory, account)) => (directory, account.as_deref()),
            Err(why) => return vec![why.clone()],
        };
        let asked = Asked {
            names,
            profile,
            issuer,
            account,
        };
        let mut found = preflight::on_paper(&asked, directory, self.config);
        found.extend(preflight::by_caa(&asked, directory, self.config).await);
        let credentials = preflight::by_credentials(&self.kube, self.namespace, names, self.config);
        found.extend(credentials.await);
        found
    }

    async fn ca(&self, name: &str, issuer: &Issuer) -> Result<Ca, String> {
        let unused = Credentials::generate(&issuer.directory).map_err(|error| error.to_string())?;
        let client = acme(name, &unused, issuer.ca_bundle.as_deref()).map_err(|it| it.0)?;
        let directory = client.directory().await.map_err(|error| error.detail())?;
        let stored = accounts::load(&self.kube, self.namespace, name).await;
        let stored = stored.map_err(|error| error.to_string())?;
        let account = stored.and_then(|json| {
            let credentials = Credentials::from_json(&json).ok()?;
            credentials.account_url().map(ToOwned::to_owned)
        });
        Ok((directory, account))
    }
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
    let mut looker = Looker {
        kube: client.clone(),
        namespace: &args.operator_namespace,
        config,
        cas: BTreeMap::new(),
    };
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
            let against = match (&settings.issuer, assessment.renewal) {
                (IssuerRef::Named(issuer), Ok(_)) if args.preflight => {
                    let names = &assessment.names;
                    let profile = settings.profile.as_deref();
                    looker.against(issuer, names, profile).await
                }
                _ => Vec::new(),
            };
            rows.push(Row {
                against,
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
