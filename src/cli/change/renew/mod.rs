//! `cert-renew renew`: asks for new certificates, after a look at whether anything would be done.
//!
//! The operator renews; this writes `renew-now` on the Secret, with the user's own rights. The private key is decoded only
//! to see whether it is the certificate's.

mod verdict;

use std::collections::BTreeSet;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use cert_renew_core::config::Labels;
use cert_renew_core::rollout::HaltNote;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::object::head::Head;
use cert_renew_core::secret::object::thin::{CertificateState, ThinSecret};
use cert_renew_core::secret::settings::FORCE;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::text::shown;
use cert_renew_core::time::{UnixTime, duration};
use cert_renew_core::verdict::{for_operator_in, state_line};
use clap::Parser;
use futures::future::join_all;
use kube::Client;
use kube::api::ListParams;
use serde_json::json;
use tokio::time::{Instant, sleep};

pub(super) use self::verdict::Verdict;
use self::verdict::{Wish, verdict};
use super::secret::{annotate, get, pair_fault};
use crate::cli::connection::kube_flags::{OperatorNamespace, Scope};
use crate::cli::connection::operator::Operator;
use crate::cli::output::plain;
use crate::cli::view::names;
use crate::cli::{CommandResult, Failure, block_on};
use crate::cluster::client::pages::Pages;

/// Time between two polls of a Secret.
const PAUSE: Duration = Duration::from_secs(1);
/// Time between two looks at why a Secret is not renewed yet.
const LOOK: Duration = Duration::from_secs(10);
/// Secrets in a page of the list.
const PAGE: u32 = 250;

#[derive(Debug, Parser)]
pub(in crate::cli) struct Args {
    /// The Secrets, each as NAMESPACE/NAME or as NAME in the context's namespace
    #[arg(required_unless_present_any = ["selector", "all"], value_name = "NAME")]
    secrets: Vec<String>,
    /// All annotated Secrets that match this label selector
    #[arg(short = 'l', long, conflicts_with = "secrets")]
    selector: Option<String>,
    /// All annotated Secrets of the namespace, or of all namespaces with -A
    #[arg(long, conflicts_with_all = ["secrets", "selector"])]
    all: bool,
    #[command(flatten)]
    scope: Scope,
    /// Renew even if the certificate is younger than a tenth of its lifetime; this counts against the CA's limits
    #[arg(long)]
    force: bool,
    /// Wait until the workloads have the new certificate
    #[arg(long)]
    wait: bool,
    /// How long to wait, such as 90s or 5m
    #[arg(long, value_parser = timeout, default_value = "10m", value_name = "DURATION")]
    timeout: Duration,
    #[command(flatten)]
    operator: OperatorNamespace,
}

/// A duration as everywhere; a number alone counts seconds.
fn timeout(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map(Duration::from_secs);
    let parsed = seconds.or_else(|_| duration::parse(text));
    parsed.map_err(|_| "expected a duration such as 90s, 5m or 1h30m".into())
}

/// Namespace and name of a Secret.
type Key = (String, String);

/// Asks for new certificates, and waits for them with `--wait`.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(in crate::cli) fn run(args: Args) -> CommandResult {
    block_on(async {
        let client = args.scope.client().await?;
        let secrets = chosen(&client, &args).await?;
        let operator = Operator::look(&client, &args.operator.operator_namespace).await?;
        if let Some(why) = operator.out_of_action() {
            return Err(Failure(why));
        }
        let now = UnixTime::now();
        let value = if args.force {
            format!("{FORCE} {now}")
        } else {
            now.to_string()
        };
        let wish = Wish {
            value: Some(&value),
            force: args.force,
            is_broken: false,
        };
        let alone = secrets.len() == 1;
        let mut code = ExitCode::SUCCESS;
        let mut asked = Vec::new();
        for (namespace, name) in secrets {
            let place = format!("{namespace}/{name}");
            let verdict = match ask(&client, &operator, (&namespace, &name), wish).await {
                Ok(verdict) => verdict,
                Err(failure) if alone => return Err(failure),
                Err(Failure(why)) => Verdict::Nothing(why),
            };
            match &verdict {
                Verdict::Renews => println!("{place}: asked for"),
                Verdict::Waits(opens) => {
                    println!("{place}: asked for; its change window opens at {opens}");
                }
                Verdict::Unknown(part) => println!(
                    "{place}: asked for; whether the operator holds it back is not known, as {part} in namespace {} \
                     cannot be read",
                    operator.namespace
                ),
                refused => {
                    code = ExitCode::FAILURE;
                    let why = refused.refusal().unwrap_or_default();
                    println!("{place}: not asked for: {why}");
                    continue;
                }
            }
            asked.push((namespace, name));
        }
        if !args.wait {
            return Ok(code);
        }
        let wait = Wait {
            client: &client,
            operator: &args.operator.operator_namespace,
            wish,
            deadline: Instant::now() + args.timeout,
        };
        let waits = asked.iter().map(|key| wait.until_done(key));
        for ((namespace, name), ended) in asked.iter().zip(join_all(waits).await) {
            if let Err(at_last) = ended? {
                code = ExitCode::FAILURE;
                let waited = duration::human(args.timeout);
                println!("{namespace}/{name}: not done within {waited}: {at_last}");
            }
        }
        Ok(code)
    })
}

/// Asks for one, unless nothing would be done.
async fn ask(
    client: &Client,
    operator: &Operator,
    (namespace, name): (&str, &str),
    wish: Wish<'_>,
) -> Result<Verdict, Failure> {
    let secret = get(client, namespace, name).await?;
    let verdict = judge(client, &secret, operator, wish).await?;
    if verdict.refusal().is_none() {
        let patch = json!({"metadata": {"annotations": {keys::RENEW_NOW: wish.value}}});
        annotate(client, namespace, name, &patch).await?;
    }
    Ok(verdict)
}

async fn judge(
    client: &Client,
    secret: &ThinSecret,
    operator: &Operator,
    wish: Wish<'_>,
) -> Result<Verdict, Failure> {
    let account = |id| operator.account(id);
    let config = operator.config.as_ref();
    let labels = match config {
        Some(config) => names::labels(client, secret.head.namespace(), config).await?,
        None => None,
    };
    let labels = labels.as_ref().map_or(Labels::NotAsked, Labels::Are);
    let view = (config, labels);
    let wish = Wish {
        is_broken: is_broken(client, secret).await?,
        ..wish
    };
    Ok(verdict(UnixTime::now(), secret, wish, view, account))
}

/// What the operator makes in place of a certificate that is revoked, as far as that is known here.
pub(super) async fn of_revoked(
    client: &Client,
    secret: ThinSecret,
    fingerprint: &str,
    operator: &Operator,
) -> Result<Verdict, Failure> {
    let mut annotations = secret.head.annotations().cloned().unwrap_or_default();
    // Alone it is no opt-in.
    if secret.head.concerns_us() {
        annotations.insert(keys::REVOKED.to_owned(), fingerprint.to_owned());
    }
    let wish = Wish {
        value: None,
        force: true,
        is_broken: false,
    };
    judge(client, &secret.annotated(annotations), operator, wish).await
}

/// Whether the pair in the Secret is of no use: read again with its key, which nothing else here needs.
async fn is_broken(client: &Client, secret: &ThinSecret) -> Result<bool, Failure> {
    if !matches!(secret.certificate(), CertificateState::Leaf(_)) {
        return Ok(false);
    }
    Ok(pair_fault(client, secret, false).await?.is_some())
}

/// The Secrets that the command line names.
async fn chosen(client: &Client, args: &Args) -> Result<Vec<Key>, Failure> {
    let place = args.scope.place();
    if !args.secrets.is_empty() {
        args.scope.takes_names(&args.secrets)?;
        let mut seen = BTreeSet::new();
        let named = args.secrets.iter().map(|text| place.of(client, text));
        let mut keys = named.collect::<Result<Vec<_>, _>>()?;
        keys.retain(|key| seen.insert(key.clone()));
        return Ok(keys);
    }
    let found = annotated(client, args).await?;
    if found.is_empty() {
        let scope = if args.scope.is_everywhere() {
            "in any namespace".to_owned()
        } else {
            format!("in namespace {}", place.namespace(client))
        };
        let which = match &args.selector {
            Some(selector) => format!(" matches {}", shown(selector)),
            None => " is there".into(),
        };
        return Err(Failure(format!("no annotated Secret{which} {scope}")));
    }
    Ok(found)
}

/// All annotated Secrets of the scope, or those that the selector matches.
async fn annotated(client: &Client, args: &Args) -> Result<Vec<Key>, Failure> {
    let api = args.scope.api::<ThinSecret>(client);
    let all = ListParams::default();
    let params = match &args.selector {
        Some(selector) => all.labels(selector),
        None => all,
    };
    let mut found = Vec::new();
    let mut pages = Pages::of(params, PAGE);
    while let Some(params) = pages.next() {
        let page = api.list(params).await;
        let page = page.map_err(|error| Failure::new("listing Secrets", &error))?;
        let heads = page.items.iter().map(|secret| &secret.head);
        let ours = heads.filter(|head| head.concerns_us());
        found.extend(ours.map(|head| (head.namespace().to_owned(), head.name().to_owned())));
        pages.came(&page.metadata);
    }
    Ok(found)
}

/// A wait for renewals.
struct Wait<'a> {
    client: &'a Client,
    /// The operator's namespace.
    operator: &'a str,
    wish: Wish<'a>,
    deadline: Instant,
}

impl Wait<'_> {
    /// Waits until the wish is served for a Secret, and prints the progress; the last of it if it is not.
    #[expect(clippy::print_stdout, reason = "the command's answer")]
    async fn until_done(&self, (namespace, name): &Key) -> Result<Result<(), String>, Failure> {
        let mut told = Progress::Asked(None);
        let mut look = Instant::now() + LOOK;
        let mut held = None;
        loop {
            let secret = get(self.client, namespace, name).await?;
            if Instant::now() >= look.min(self.deadline) {
                held = self.held(&secret).await?;
                look = Instant::now() + LOOK;
            }
            let progress = self.progress(&secret, held.as_deref());
            if progress != told {
                println!("{namespace}/{name}: {progress}");
                told = progress;
            }
            if let Progress::Done(_) = told {
                return Ok(Ok(()));
            }
            if Instant::now() >= self.deadline {
                return Ok(Err(told.to_string()));
            }
            sleep(PAUSE).await;
        }
    }

    /// How far it is.
    fn progress(&self, secret: &ThinSecret, held: Option<&str>) -> Progress {
        let value = self.wish.value.unwrap_or_default();
        Progress::of(secret, value, held, self.operator)
    }

    /// Why nothing is done for the Secret at present.
    async fn held(&self, secret: &ThinSecret) -> Result<Option<String>, Failure> {
        let operator = Operator::look(self.client, self.operator).await?;
        if let Some(why) = operator.out_of_action() {
            return Ok(Some(why));
        }
        Ok(
            match judge(self.client, secret, &operator, self.wish).await? {
                Verdict::Waits(opens) => Some(format!("its change window opens at {opens}")),
                other => other.refusal().map(ToOwned::to_owned),
            },
        )
    }
}

/// The progress of a renewal, according to the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    /// Nothing has happened yet, and why, where that is known.
    Asked(Option<String>),
    /// The last try failed; with the instant of the next one.
    Failing(String, Option<String>),
    /// The Secret holds the new certificate, which ends at this instant; with what the restart of its workloads waits for,
    /// where it waits.
    Renewed(UnixTime, Option<String>),
    /// A workload did not become available with it; with the command that lets the rollout go on.
    Halted(String, String),
    /// The workloads have the certificate, which ends at this instant.
    Done(UnixTime),
}

impl Progress {
    fn of(secret: &ThinSecret, value: &str, held: Option<&str>, operator: &str) -> Self {
        let head = &secret.head;
        let pending = || match head.annotation(keys::LAST_ERROR) {
            Some(error) => {
                let next = head.annotation(keys::RETRY_AT).map(ToOwned::to_owned);
                Self::Failing(shown(error), next)
            }
            None => Self::Asked(held.map(ToOwned::to_owned)),
        };
        let CertificateState::Leaf(leaf) = secret.certificate() else {
            return pending();
        };
        if head.annotation(keys::RENEWED_FOR) != Some(value) {
            return pending();
        }
        let annotations = head.annotations();
        let had = annotations.and_then(|all| RolledOut::read(all, head.uid()));
        match (had, head.annotation(keys::ROLLOUT_HALTED)) {
            (Some(had), _) if had.fingerprint() == Some(leaf.fingerprint) => {
                Self::Done(leaf.not_after)
            }
            (_, Some(halted)) if HaltNote::holds(halted) => {
                let resume = format!("cert-renew resume {}/{}", head.namespace(), head.name());
                Self::Halted(shown(halted), for_operator_in(operator, &resume))
            }
            _ => Self::Renewed(leaf.not_after, waits(head)),
        }
    }
}

/// What the restart of workloads waits for, by the line of its state, if it does.
fn waits(head: &Head) -> Option<String> {
    let said = state_line::restart_waits(head.annotation(keys::STATE)?)?;
    Some(plain(said).into_owned())
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked(None) => f.write_str("not renewed yet"),
            Self::Asked(Some(why)) => write!(f, "not renewed yet: {why}"),
            Self::Failing(error, None) => write!(f, "the last try failed: {error}"),
            Self::Failing(error, Some(next)) => {
                write!(f, "the last try failed: {error}; the next one is at {next}")
            }
            Self::Renewed(until, waits) => {
                let workloads = waits.as_deref();
                let workloads = workloads.unwrap_or("its workloads are being restarted");
                write!(f, "renewed until {until}; {workloads}")
            }
            Self::Halted(at, resume) => write!(
                f,
                "renewed, and the rollout is halted at {at}; then: {resume}"
            ),
            Self::Done(until) => write!(f, "renewed until {until}, and the workloads have it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use serde_json::{Value, from_value, json};

    use super::*;

    /// How far a Secret is that holds a certificate which was asked for as "today".
    fn told(more: Value) -> String {
        let pem = include_bytes!("../../../../testdata/certificates/good.pem");
        let mut annotations = json!({keys::RENEWED_FOR: "today"});
        let all = annotations.as_object_mut().unwrap();
        all.extend(more.as_object().unwrap().clone());
        let secret = json!({"type": "kubernetes.io/tls", "data": {"tls.crt": BASE64_STANDARD.encode(pem)},
            "metadata": {"namespace": "shop", "name": "tls", "uid": "1", "annotations": annotations}});
        let secret = from_value(secret).unwrap();
        Progress::of(&secret, "today", Some("it is paused"), "ops").to_string()
    }

    #[test]
    fn what_is_waited_for_is_told_with_its_end() {
        let renewed = "renewed until 2026-04-01T00:00:00Z; ";
        let shut = "restart of workloads waits for the change window; opens 2026-02-02T00:00Z";
        let note = format!("deployment/web {}", "ab".repeat(32));
        for (more, expected) in [
            (
                json!({}),
                format!("{renewed}its workloads are being restarted"),
            ),
            (
                json!({keys::STATE: format!("ok; {shut}")}),
                format!("{renewed}{shut}"),
            ),
            (
                json!({keys::ROLLOUT_HALTED: note}),
                format!(
                    "renewed, and the rollout is halted at {}; then: cert-renew resume shop/tls --operator-namespace ops",
                    shown(&note)
                ),
            ),
            (
                json!({keys::RENEWED_FOR: "yesterday"}),
                "not renewed yet: it is paused".to_owned(),
            ),
            (
                json!({keys::RENEWED_FOR: "yesterday", keys::LAST_ERROR: "no", keys::RETRY_AT: "2026-02-02T00:00:00Z"}),
                format!(
                    "the last try failed: {}; the next one is at 2026-02-02T00:00:00Z",
                    shown("no")
                ),
            ),
        ] {
            assert_eq!(told(more), expected);
        }
    }
}
