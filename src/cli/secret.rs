//! `cert-renew renew`, `resume` and `create`: one patch or one new Secret, with the user's own rights.
//!
//! The operator does the work; the commands write what a user could write with kubectl.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use cert_renew_core::rollout::HaltNote;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::settings::FORCE;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::thin::{CertificateState, ThinSecret};
use cert_renew_core::text::name::Name;
use cert_renew_core::text::shown;
use cert_renew_core::time::UnixTime;
use clap::Parser;
use futures::future::join_all;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress;
use kube::Client;
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::kube_flags::Place;
use super::{CommandResult, Failure, block_on};
use crate::cluster::pages::Pages;

/// Time between two polls of a Secret.
const PAUSE: Duration = Duration::from_secs(1);
/// The field manager of the writes.
const MANAGER: &str = "cert-renew-cli";
/// Secrets in a page of the list.
const PAGE: u32 = 250;

#[derive(Debug, Parser)]
pub(super) struct Renew {
    /// The Secret, as NAMESPACE/NAME or as NAME in the context's namespace
    #[arg(required_unless_present = "selector")]
    secret: Option<String>,
    /// Instead of one Secret: all annotated ones that match this label selector
    #[arg(short = 'l', long, conflicts_with = "secret")]
    selector: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Ask although the certificate is younger than a tenth of its lifetime
    #[arg(long)]
    force: bool,
    /// Wait until the workloads have the new certificate
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 600)]
    timeout: u64,
}

#[derive(Debug, Parser)]
pub(super) struct Resume {
    /// The Secret whose rollout was halted, as NAMESPACE/NAME or NAME
    secret: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Parser)]
pub(super) struct Create {
    /// The Secret to make, as NAMESPACE/NAME or NAME
    secret: String,
    /// The issuer, as the operator's config file names it
    #[arg(long)]
    issuer: String,
    /// The names to ask for, comma-separated
    #[arg(long, required_unless_present = "from")]
    names: Option<String>,
    /// Take the names from ingress/NAME of the same namespace
    #[arg(long, conflicts_with = "names", value_name = "ingress/NAME")]
    from: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// Requests a new certificate, and waits for it with `--wait`.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn renew(args: Renew) -> CommandResult {
    block_on(async {
        let client = args.place.client().await?;
        let secrets: Vec<(String, String)> = match &args.selector {
            None => {
                let named = args.secret.as_deref().unwrap_or_default();
                vec![args.place.of(&client, named)]
            }
            Some(selector) => selected(&client, args.place.namespace(&client), selector).await?,
        };
        if secrets.is_empty() {
            return Err(Failure("no annotated Secret matches the selector".into()));
        }
        let now = UnixTime::now();
        let value = if args.force {
            format!("{FORCE} {now}")
        } else {
            now.to_string()
        };
        for (namespace, name) in &secrets {
            let patch = json!({"metadata": {"annotations": {keys::RENEW_NOW: value}}});
            annotate(&client, namespace, name, &patch).await?;
            println!("{namespace}/{name}: asked for");
        }
        let deadline = Instant::now() + Duration::from_secs(args.timeout);
        let waits = secrets.iter().filter(|_| args.wait);
        let waits = waits.map(|secret| wait(&client, secret, &value, deadline));
        let mut code = ExitCode::SUCCESS;
        for (secret, ended) in secrets.iter().zip(join_all(waits).await) {
            if let Err(at_last) = ended? {
                let (namespace, name) = secret;
                code = ExitCode::FAILURE;
                println!(
                    "{namespace}/{name}: not within {} s; {at_last}",
                    args.timeout
                );
            }
        }
        Ok(code)
    })
}

/// Resumes a halted rollout.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn resume(args: Resume) -> CommandResult {
    block_on(async {
        let client = args.place.client().await?;
        let (namespace, name) = args.place.of(&client, &args.secret);
        let secret = get(&client, &namespace, &name).await?;
        let halted = secret.head.annotation(keys::ROLLOUT_HALTED);
        let Some(halted) = halted.filter(|halted| HaltNote::holds(halted)) else {
            println!("{namespace}/{name}: its rollout is not halted");
            return Ok(ExitCode::SUCCESS);
        };
        // Without the note the failed workload would be first again, and hold the others back again.
        let resumed = halted.parse().ok().map(|note: HaltNote| {
            let note = HaltNote {
                resumed: true,
                ..note
            };
            note.to_string()
        });
        let patch = json!({"metadata": {"annotations": {keys::ROLLOUT_HALTED: resumed}}});
        annotate(&client, &namespace, &name, &patch).await?;
        println!("{namespace}/{name}: goes on; it was halted at {halted}");
        Ok(ExitCode::SUCCESS)
    })
}

/// Creates an annotated Secret that waits for its first certificate.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn create(args: Create) -> CommandResult {
    block_on(async {
        let client = args.place.client().await?;
        let (namespace, name) = args.place.of(&client, &args.secret);
        let names = match (&args.names, &args.from) {
            (Some(names), _) => names.clone(),
            (None, from) => hosts(&client, &namespace, from.as_deref().unwrap_or_default()).await?,
        };
        for text in names.split(',') {
            let parsed: Result<Name, _> = text.trim().parse();
            parsed.map_err(|error| Failure::new(&format!("name {text:?}"), &error))?;
        }
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                annotations: Some(
                    [
                        (keys::ISSUER, args.issuer.clone()),
                        (keys::NAMES, names.clone()),
                    ]
                    .map(|(key, value)| (key.to_owned(), value))
                    .into(),
                ),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".into()),
            data: Some(
                ["tls.crt", "tls.key"]
                    .map(|key| (key.to_owned(), ByteString(Vec::new())))
                    .into(),
            ),
            ..Secret::default()
        };
        let api: Api<Secret> = Api::namespaced(client, &namespace);
        let post = PostParams {
            field_manager: Some(MANAGER.into()),
            ..PostParams::default()
        };
        api.create(&post, &secret)
            .await
            .map_err(|error| Failure::new(&format!("making Secret {namespace}/{name}"), &error))?;
        println!("{namespace}/{name}: made, for {names}");
        Ok(ExitCode::SUCCESS)
    })
}

async fn get(client: &Client, namespace: &str, name: &str) -> Result<ThinSecret, Failure> {
    let api: Api<ThinSecret> = Api::namespaced(client.clone(), namespace);
    api.get(name)
        .await
        .map_err(|error| Failure::new(&format!("reading Secret {namespace}/{name}"), &error))
}

async fn selected(
    client: &Client,
    namespace: &str,
    selector: &str,
) -> Result<Vec<(String, String)>, Failure> {
    let api: Api<ThinSecret> = Api::namespaced(client.clone(), namespace);
    let mut found = Vec::new();
    let mut pages = Pages::of(ListParams::default().labels(selector), PAGE);
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

pub(super) async fn annotate(
    client: &Client,
    namespace: &str,
    name: &str,
    patch: &serde_json::Value,
) -> Result<(), Failure> {
    let api: Api<ThinSecret> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    api.patch(name, &params, &Patch::Merge(patch))
        .await
        .map(drop)
        .map_err(|error| Failure::new(&format!("annotating Secret {namespace}/{name}"), &error))
}

/// Waits until a `renew-now` value is served, and prints the progress, or the last error if it is not.
#[expect(clippy::print_stdout, reason = "the command's answer")]
async fn wait(
    client: &Client,
    (namespace, name): &(String, String),
    value: &str,
    deadline: Instant,
) -> Result<Result<(), String>, Failure> {
    let mut told = Progress::Asked;
    loop {
        let secret = get(client, namespace, name).await?;
        let progress = Progress::of(&secret, value);
        if progress != told {
            println!("{namespace}/{name}: {progress}");
            told = progress;
        }
        if let Progress::Done(_) = told {
            return Ok(Ok(()));
        }
        if Instant::now() >= deadline {
            return Ok(Err(told.to_string()));
        }
        sleep(PAUSE).await;
    }
}

/// The progress of a renewal, according to the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    /// Nothing has happened yet.
    Asked,
    /// The last try failed.
    Failing(String),
    /// The Secret holds the new certificate, which ends at this instant.
    Renewed(UnixTime),
    /// A workload did not become available with it.
    Halted(String),
    /// The workloads have the certificate, which ends at this instant.
    Done(UnixTime),
}

impl Progress {
    fn of(secret: &ThinSecret, value: &str) -> Self {
        let head = &secret.head;
        let error = head.annotation(keys::LAST_ERROR);
        let CertificateState::Leaf(leaf) = secret.certificate() else {
            return error.map_or(Self::Asked, |error| Self::Failing(shown(error)));
        };
        if head.annotation(keys::RENEWED_FOR) != Some(value) {
            return error.map_or(Self::Asked, |error| Self::Failing(shown(error)));
        }
        let annotations = head.annotations();
        let had = annotations.and_then(|all| RolledOut::read(all, head.uid()));
        match (had, head.annotation(keys::ROLLOUT_HALTED)) {
            (Some(had), _) if had.fingerprint() == Some(leaf.fingerprint) => {
                Self::Done(leaf.not_after)
            }
            (_, Some(halted)) if HaltNote::holds(halted) => Self::Halted(shown(halted)),
            _ => Self::Renewed(leaf.not_after),
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("not renewed yet; its Events say why"),
            Self::Failing(error) => write!(f, "the last try failed: {error}"),
            Self::Renewed(until) => {
                write!(f, "renewed until {until}; its workloads are being rolled")
            }
            Self::Halted(at) => write!(
                f,
                "renewed, and the rollout is halted at {at}: cert-renew resume lets it go on"
            ),
            Self::Done(until) => write!(f, "renewed until {until}, and the workloads have it"),
        }
    }
}

/// The hosts of an Ingress, comma-separated.
async fn hosts(client: &Client, namespace: &str, from: &str) -> Result<String, Failure> {
    let Some(("ingress", name)) = from.split_once('/') else {
        return Err(Failure(format!(
            "expected --from ingress/NAME, found {from:?}"
        )));
    };
    let api: Api<Ingress> = Api::namespaced(client.clone(), namespace);
    let ingress = api.get(name).await;
    let ingress = ingress
        .map_err(|error| Failure::new(&format!("reading Ingress {namespace}/{name}"), &error))?;
    let spec = ingress.spec.unwrap_or_default();
    let tls = spec
        .tls
        .into_iter()
        .flatten()
        .flat_map(|tls| tls.hosts.unwrap_or_default());
    let rules = spec
        .rules
        .into_iter()
        .flatten()
        .filter_map(|rule| rule.host);
    let hosts: std::collections::BTreeSet<String> = tls.chain(rules).collect();
    if hosts.is_empty() {
        return Err(Failure(format!("Ingress {namespace}/{name} names no host")));
    }
    Ok(hosts.into_iter().collect::<Vec<_>>().join(","))
}
