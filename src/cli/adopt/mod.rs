//! `cert-renew adopt --from cert-manager`: turns Certificates into annotated Secrets, with the user's own rights.
//!
//! ```text
//! Ingress: their annotations off ─► Secret: ours on, paused, owner off ─► Certificate deleted ─► Secret: theirs off, goes on
//! ```
//! At every step at most one of the two renews: cert-manager until its Certificate is gone, and neither while the
//! Secret is paused. The Certificate's settings are on the Secret before it is deleted, so after an interruption the
//! next run continues. The certificate itself is never written, so nothing is issued again and nothing restarts.

mod judge;
mod plan;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use cert_renew_core::certificate::leaf;
use cert_renew_core::secret::full::FullSecret;
use cert_renew_core::secret::keys;
use clap::{Parser, ValueEnum};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::api::{Preconditions, PropagationPolicy};
use kube::core::{ApiResource, GroupVersionKind, ObjectMeta};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::judge::Judge;
use self::plan::{Certificate, Issuers, annotations, changes, theirs};
use super::kube_flags::{OperatorNamespace, Scope};
use super::output::plain;
use super::{CommandResult, Failure, block_on};
use crate::cluster::pages::Pages;

/// The field manager of the writes.
const MANAGER: &str = "cert-renew-cli";
/// Certificates in a page of a list; each is a few kilobytes.
const PAGE: u32 = 200;
/// Time between two polls of a Certificate that is being deleted.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest wait for the garbage collector to delete the requests, which takes seconds; the next run continues.
const GONE_DEADLINE: Duration = Duration::from_secs(60);
/// Annotation of a cert-manager Secret that names its Certificate.
const CERTIFICATE_NAME: &str = "cert-manager.io/certificate-name";

#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The tool that has renewed them until now
    #[arg(long, value_enum)]
    from: From,
    /// The issuer that takes over: OURS for all, or THEIRS=OURS for one of theirs; may be repeated
    #[arg(long, required = true)]
    issuer: Vec<String>,
    /// The class of the installation that renews them, where the cluster has several
    #[arg(long)]
    class: Option<String>,
    /// Do it; without this, only what would be done is printed
    #[arg(long)]
    apply: bool,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    operator: OperatorNamespace,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    CertManager,
}

/// One Certificate with everything that belongs to it.
struct Adoption {
    namespace: String,
    secret: String,
    /// `None` if it is gone already: an interrupted adoption.
    certificate: Option<(String, String)>,
    /// Objects that create Certificates by annotation: Ingresses, Gateways.
    makers: Vec<OwnerReference>,
    annotations: BTreeMap<&'static str, String>,
    /// Whether the Secret gets the label by which the operator sees it.
    labelled: bool,
    /// Changes of the files.
    changes: Vec<&'static str>,
}

/// Prints what would be done, and does it with `--apply`. Exit code 1 if something must stay as it is.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn adopt(args: Args) -> CommandResult {
    let From::CertManager = args.from;
    let issuers = Issuers::read(&args.issuer).map_err(Failure)?;
    block_on(async {
        let client = args.scope.client().await?;
        let asked = Asked {
            issuers: &issuers,
            class: args.class.as_deref(),
        };
        let operator = &args.operator.operator_namespace;
        let judge = Judge::of(&client, operator, (asked.class, &issuers)).await?;
        let namespace = match args.scope.is_everywhere() {
            true => None,
            false => Some(args.scope.place().namespace(&client)),
        };
        let (adoptions, stay) = survey(&client, namespace, &asked, judge).await?;
        for (place, reason) in &stay {
            println!("{place}: stays with cert-manager: {}", plain(reason));
        }
        for adoption in &adoptions {
            println!("{}", adoption.describe());
            if args.apply {
                adoption.apply(&client).await?;
                println!("  done");
            }
        }
        match (adoptions.len(), args.apply) {
            (0, _) => match namespace {
                Some(namespace) => {
                    println!("Nothing to adopt in namespace {namespace}; -A looks in all.");
                }
                None => println!("Nothing to adopt."),
            },
            (_, false) => println!("Nothing was changed: do it with --apply."),
            (count, true) => println!("{count} adopted; nothing was issued, nothing restarts."),
        }
        Ok(if stay.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}

/// What the caller has asked for.
struct Asked<'a> {
    issuers: &'a Issuers,
    class: Option<&'a str>,
}

/// What can be adopted, and what must stay, with the reason.
async fn survey(
    client: &Client,
    namespace: Option<&str>,
    asked: &Asked<'_>,
    mut judge: Judge,
) -> Result<(Vec<Adoption>, Vec<(String, String)>), Failure> {
    let (mut adoptions, mut stay) = (Vec::new(), Vec::new());
    let certificates = certificates(client, namespace).await?;
    for certificate in &certificates {
        match look_at(client, certificate, asked, &mut judge).await? {
            Ok(adoption) => adoptions.push(adoption),
            Err(reason) => stay.push((place(&certificate.metadata), reason)),
        }
    }
    let known = |metadata: &ObjectMeta, name: &str| {
        certificates.iter().any(|it| {
            it.metadata.namespace == metadata.namespace && it.metadata.name.as_deref() == Some(name)
        })
    };
    // Secrets that an earlier run has left between two steps.
    for metadata in secrets(client, namespace).await? {
        let notes = metadata.annotations.clone().unwrap_or_default();
        let note = |key: &str| notes.get(key).map(String::as_str);
        let orphan = note(CERTIFICATE_NAME).is_some_and(|name| !known(&metadata, name));
        if orphan && note(keys::ISSUER).is_some() && note(keys::PAUSED) == Some("true") {
            adoptions.push(Adoption {
                namespace: metadata.namespace.unwrap_or_default(),
                secret: metadata.name.unwrap_or_default(),
                certificate: None,
                makers: Vec::new(),
                annotations: BTreeMap::new(),
                labelled: false,
                changes: Vec::new(),
            });
        }
    }
    Ok((adoptions, stay))
}

/// The result of adopting one Certificate, or why it stays.
async fn look_at(
    client: &Client,
    certificate: &Certificate,
    asked: &Asked<'_>,
    judge: &mut Judge,
) -> Result<Result<Adoption, String>, Failure> {
    let namespace = certificate.metadata.namespace.clone().unwrap_or_default();
    let name = certificate.metadata.name.clone().unwrap_or_default();
    let secret = certificate.spec.secret_name.clone();
    // Wiped on drop; only the certificate in it is read.
    let api: Api<FullSecret> = Api::namespaced(client.clone(), &namespace);
    let found = api.get_opt(&secret).await;
    let found = found
        .map_err(|error| Failure::new(&format!("reading Secret {namespace}/{secret}"), &error))?;
    let Some(found) = found else {
        return Ok(Err(format!("there is no Secret {secret}")));
    };
    let leaf = found.data.get("tls.crt").map(|it| leaf(it));
    let Some(Ok(leaf)) = leaf else {
        let reason = format!("Secret {secret} holds no readable certificate");
        return Ok(Err(reason));
    };
    let makers = certificate
        .metadata
        .owner_references
        .clone()
        .unwrap_or_default();
    if let Some(other) = makers
        .iter()
        .find(|it| !["Ingress", "Gateway"].contains(&&*it.kind))
    {
        let (kind, owner) = (&other.kind, &other.name);
        return Ok(Err(format!(
            "{kind} {owner} owns it and would make it again"
        )));
    }
    let mut annotations = match annotations(certificate, &leaf, asked.issuers) {
        Ok(annotations) => annotations,
        Err(reason) => return Ok(Err(reason)),
    };
    let class = asked.class.map(|class| (keys::CLASS, class.to_owned()));
    annotations.extend(class);
    let labelled = judge.needs_label(&found) && !found.head.managed;
    if let Some(reason) = judge.obstacle(client, found, &annotations).await? {
        return Ok(Err(reason));
    }
    Ok(Ok(Adoption {
        namespace,
        secret,
        certificate: Some((name, certificate.metadata.uid.clone().unwrap_or_default())),
        makers,
        annotations,
        labelled,
        changes: changes(certificate),
    }))
}

impl Adoption {
    fn describe(&self) -> String {
        let Self {
            namespace,
            secret,
            certificate,
            makers,
            annotations,
            labelled,
            changes,
        } = self;
        let mut lines = vec![format!("{namespace}/{secret}:")];
        for maker in makers {
            let (kind, name) = (&maker.kind, &maker.name);
            lines.push(format!(
                "{kind} {name}: drop the annotations of cert-manager"
            ));
        }
        if let Some((name, _)) = certificate {
            let ours: Vec<String> = annotations
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            lines.push(format!(
                "Secret {secret}: add {}, paused for the moment; drop the owner reference",
                ours.join(", ")
            ));
            if *labelled {
                let label = keys::MANAGED_LABEL;
                lines.push(format!("Secret {secret}: add the label {label}=true"));
            }
            let told = changes.iter().map(|told| format!("note: {told}"));
            lines.extend(told);
            lines.push(format!(
                "Certificate {name}: delete it, and nothing with it (--cascade=orphan)"
            ));
        }
        lines.push(format!(
            "Secret {secret}: drop the annotations of cert-manager, go on"
        ));
        lines.join("\n  ")
    }

    /// A repeated step changes nothing.
    async fn apply(&self, client: &Client) -> Result<(), Failure> {
        let namespace = &self.namespace;
        for maker in &self.makers {
            let (group, version) = maker.api_version.split_once('/').unwrap_or(("", "v1"));
            let gvk = GroupVersionKind::gvk(group, version, &maker.kind);
            let resource = ApiResource::from_gvk(&gvk);
            let api: Api<DynamicObject> =
                Api::namespaced_with(client.clone(), namespace, &resource);
            let doing = format!("{} {namespace}/{}", maker.kind, maker.name);
            let found = api.get_opt(&maker.name).await;
            let found = found.map_err(|error| Failure::new(&format!("reading {doing}"), &error))?;
            let notes = found
                .and_then(|it| it.metadata.annotations)
                .unwrap_or_default();
            let off = off(theirs(notes.keys()));
            if !off.is_empty() {
                let patch = json!({"metadata": {"annotations": off}});
                let done = api
                    .patch(&maker.name, &params(), &Patch::Merge(patch))
                    .await;
                done.map_err(|error| Failure::new(&format!("changing {doing}"), &error))?;
            }
        }
        if let Some((name, uid)) = &self.certificate {
            self.change(client, |metadata| {
                let mut notes: serde_json::Map<String, Value> = self
                    .annotations
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), value.clone().into()))
                    .collect();
                notes.insert(keys::PAUSED.into(), "true".into());
                let mut owners = metadata.owner_references.clone().unwrap_or_default();
                owners.retain(|it| it.kind != "Certificate" || it.uid != *uid);
                let mut patch =
                    json!({"metadata": {"annotations": notes, "ownerReferences": owners}});
                if self.labelled {
                    patch["metadata"]["labels"] = json!({keys::MANAGED_LABEL: "true"});
                }
                patch
            })
            .await?;
            delete(client, namespace, name, uid).await?;
        }
        self.change(client, |metadata| {
            let notes = metadata.annotations.clone().unwrap_or_default();
            let labels = metadata.labels.clone().unwrap_or_default();
            let mut notes = off(theirs(notes.keys()));
            notes.insert(keys::PAUSED.into(), Value::Null);
            json!({"metadata": {"annotations": notes, "labels": off(theirs(labels.keys()))}})
        })
        .await
    }

    /// Patches the Secret's metadata, for exactly the version that was read.
    async fn change(
        &self,
        client: &Client,
        patch: impl Fn(&ObjectMeta) -> Value,
    ) -> Result<(), Failure> {
        let api: Api<Secret> = Api::namespaced(client.clone(), &self.namespace);
        let doing = format!("changing Secret {}/{}", self.namespace, self.secret);
        let failed = |error| Failure::new(&doing, &error);
        loop {
            let metadata = api
                .get_metadata(&self.secret)
                .await
                .map_err(failed)?
                .metadata;
            let mut body = patch(&metadata);
            body["metadata"]["uid"] = metadata.uid.into();
            body["metadata"]["resourceVersion"] = metadata.resource_version.into();
            match api
                .patch_metadata(&self.secret, &params(), &Patch::Merge(body))
                .await
            {
                // cert-manager has written concurrently: read again.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(failed(error)),
                Ok(_) => return Ok(()),
            }
        }
    }
}

/// Deletes exactly this Certificate, and waits until it is gone.
async fn delete(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), Failure> {
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), namespace, &certificate_resource());
    let doing = format!("deleting Certificate {namespace}/{name}");
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Orphan),
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
        Err(error) => return Err(Failure::new(&doing, &error)),
        Ok(_) => {}
    }
    let deadline = Instant::now() + GONE_DEADLINE;
    loop {
        let found = api.get_opt(name).await;
        match found.map_err(|error| Failure::new(&doing, &error))? {
            Some(it) if it.metadata.uid.as_deref() == Some(uid) => {}
            _ => return Ok(()),
        }
        if Instant::now() >= deadline {
            return Err(Failure(format!(
                "{doing}: it is still there after {} s, held by its finalizers; the next run goes on from here",
                GONE_DEADLINE.as_secs()
            )));
        }
        sleep(PAUSE).await;
    }
}

async fn certificates(
    client: &Client,
    namespace: Option<&str>,
) -> Result<Vec<Certificate>, Failure> {
    let resource = certificate_resource();
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let mut found = Vec::new();
    let mut pages = Pages::of(ListParams::default(), PAGE);
    while let Some(params) = pages.next() {
        let list = match api.list(params).await {
            // The CRDs are gone already; some Secrets may still be unfinished.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(found),
            other => other.map_err(|error| Failure::new("listing Certificates", &error))?,
        };
        for item in list.items {
            let name = place(&item.metadata);
            let read = serde_json::to_value(item).and_then(serde_json::from_value);
            found.push(read.map_err(|error| Failure::new(&format!("Certificate {name}"), &error))?);
        }
        pages.came(&list.metadata);
    }
    Ok(found)
}

/// Metadata of Secrets, without their data.
async fn secrets(client: &Client, namespace: Option<&str>) -> Result<Vec<ObjectMeta>, Failure> {
    let api: Api<Secret> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut found = Vec::new();
    let mut pages = Pages::of(ListParams::default(), PAGE);
    while let Some(params) = pages.next() {
        let list = api.list_metadata(params).await;
        let list = list.map_err(|error| Failure::new("listing Secrets", &error))?;
        found.extend(list.items.into_iter().map(|item| item.metadata));
        pages.came(&list.metadata);
    }
    Ok(found)
}

fn certificate_resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(
        "cert-manager.io",
        "v1",
        "Certificate",
    ))
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    }
}

/// The members of a merge patch that remove these keys.
fn off(keys: std::collections::BTreeSet<&str>) -> serde_json::Map<String, Value> {
    let null = |key: &str| (key.to_owned(), Value::Null);
    keys.into_iter().map(null).collect()
}

fn place(metadata: &ObjectMeta) -> String {
    let text = |it: &Option<String>| it.clone().unwrap_or_default();
    format!("{}/{}", text(&metadata.namespace), text(&metadata.name))
}
