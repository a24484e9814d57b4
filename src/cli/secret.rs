//! `cert-renew renew`, `resume` and `create`: one patch or one new Secret, with the reader's own rights.
//!
//! The operator does the work; what is written here is what a person could write with kubectl.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress;
use kube::Client;
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{CommandResult, Failure, block_on};
use crate::name::Name;
use crate::secret::keys;
use crate::secret::state::RolledOut;
use crate::secret::thin::{CertificateState, ThinSecret};
use crate::time::UnixTime;

/// Between two looks at a Secret that is waited for.
const PAUSE: Duration = Duration::from_secs(1);
/// Who wrote, in managedFields.
const MANAGER: &str = "cert-renew-cli";

#[derive(Debug, Parser)]
pub(super) struct Renew {
    /// The Secret, as NAMESPACE/NAME or as NAME in the context's namespace
    #[arg(required_unless_present = "selector")]
    secret: Option<String>,
    /// Instead of one Secret: all annotated ones that match this label selector
    #[arg(short = 'l', long, conflicts_with = "secret")]
    selector: Option<String>,
    /// With -l: the namespace
    #[arg(short, long)]
    namespace: Option<String>,
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
    #[arg(long, conflicts_with = "names")]
    from: Option<String>,
}

/// Asks for a new certificate, and waits for it with `--wait`.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn renew(args: Renew) -> CommandResult {
    block_on(async {
        let client = connect().await?;
        let secrets: Vec<(String, String)> = match &args.selector {
            None => vec![place(&client, args.secret.as_deref().unwrap_or_default())],
            Some(selector) => selected(&client, args.namespace.as_deref(), selector).await?,
        };
        if secrets.is_empty() {
            return Err(Failure("no annotated Secret matches the selector".into()));
        }
        let value = UnixTime::now().to_string();
        for (namespace, name) in &secrets {
            let patch = json!({"metadata": {"annotations": {keys::RENEW_NOW: value}}});
            annotate(&client, namespace, name, &patch).await?;
            println!("{namespace}/{name}: asked for");
        }
        let deadline = Instant::now() + Duration::from_secs(args.timeout);
        let mut code = ExitCode::SUCCESS;
        for (namespace, name) in secrets.iter().filter(|_| args.wait) {
            match wait(&client, namespace, name, &value, deadline).await? {
                Ok(done) => println!("{namespace}/{name}: {done}"),
                Err(at_last) => {
                    code = ExitCode::FAILURE;
                    println!(
                        "{namespace}/{name}: not within {} s; {at_last}",
                        args.timeout
                    );
                }
            }
        }
        Ok(code)
    })
}

/// Lets a halted rollout go on.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn resume(args: Resume) -> CommandResult {
    block_on(async {
        let client = connect().await?;
        let (namespace, name) = place(&client, &args.secret);
        let secret = get(&client, &namespace, &name).await?;
        let Some(halted) = secret.head.annotation(keys::ROLLOUT_HALTED) else {
            println!("{namespace}/{name}: its rollout is not halted");
            return Ok(ExitCode::SUCCESS);
        };
        let patch = json!({"metadata": {"annotations": {keys::ROLLOUT_HALTED: null}}});
        annotate(&client, &namespace, &name, &patch).await?;
        println!("{namespace}/{name}: goes on; it was halted at {halted}");
        Ok(ExitCode::SUCCESS)
    })
}

/// Makes an annotated Secret that waits for its first certificate.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn create(args: Create) -> CommandResult {
    block_on(async {
        let client = connect().await?;
        let (namespace, name) = place(&client, &args.secret);
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

pub(super) async fn connect() -> Result<Client, Failure> {
    crate::cluster::connect(None)
        .await
        .map_err(|error| Failure::new("finding the way to the API server", &*error))
}

/// Namespace and name.
pub(super) fn place(client: &Client, text: &str) -> (String, String) {
    match text.split_once('/') {
        Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
        None => (client.default_namespace().to_owned(), text.to_owned()),
    }
}

async fn get(client: &Client, namespace: &str, name: &str) -> Result<ThinSecret, Failure> {
    let api: Api<ThinSecret> = Api::namespaced(client.clone(), namespace);
    api.get(name)
        .await
        .map_err(|error| Failure::new(&format!("reading Secret {namespace}/{name}"), &error))
}

async fn selected(
    client: &Client,
    namespace: Option<&str>,
    selector: &str,
) -> Result<Vec<(String, String)>, Failure> {
    let namespace = namespace.unwrap_or_else(|| client.default_namespace());
    let api: Api<ThinSecret> = Api::namespaced(client.clone(), namespace);
    let list = api.list(&ListParams::default().labels(selector)).await;
    let list = list.map_err(|error| Failure::new("listing Secrets", &error))?;
    let heads = list.items.iter().map(|secret| &secret.head);
    let ours = heads.filter(|head| head.concerns_us());
    Ok(ours
        .map(|head| (head.namespace().to_owned(), head.name().to_owned()))
        .collect())
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

/// Waits for the answer to a `renew-now` value; what was the matter at last where it does not come.
async fn wait(
    client: &Client,
    namespace: &str,
    name: &str,
    value: &str,
    deadline: Instant,
) -> Result<Result<String, String>, Failure> {
    let mut told = None;
    loop {
        let secret = get(client, namespace, name).await?;
        let head = &secret.head;
        let renewed = head.annotation(keys::RENEWED_FOR) == Some(value);
        let rolled_out: Option<RolledOut> = head
            .annotation(keys::ROLLED_OUT)
            .and_then(|text| text.parse().ok());
        match (renewed, secret.certificate()) {
            (true, CertificateState::Leaf(leaf))
                if rolled_out.and_then(RolledOut::fingerprint) == Some(leaf.fingerprint) =>
            {
                let until = leaf.not_after;
                return Ok(Ok(format!(
                    "renewed until {until}, and the workloads have it"
                )));
            }
            _ => {}
        }
        let error = head.annotation(keys::LAST_ERROR).map(ToOwned::to_owned);
        if error.is_some() && error != told {
            let text = error.as_deref().unwrap_or_default();
            // Where standard error is closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{namespace}/{name}: {text}");
            told.clone_from(&error);
        }
        if Instant::now() >= deadline {
            let state = match (renewed, error) {
                (_, Some(error)) => error,
                (true, None) => "renewed, and the rollout goes on".to_owned(),
                (false, None) => "not renewed yet; its Events say why".to_owned(),
            };
            return Ok(Err(state));
        }
        sleep(PAUSE).await;
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
