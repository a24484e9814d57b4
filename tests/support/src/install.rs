//! Installs an operator: the shipped manifests with the namespace of one instance, otherwise unchanged.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::eventually;

/// Name of the ServiceAccount and its namespace in the shipped manifests, and prefix of the cluster roles.
pub(crate) const SHIPPED_NAME: &str = "cert-renew";
/// Longest wait until the API server's authorizer has learnt new roles by its own watch.
const RIGHTS_DEADLINE: Duration = Duration::from_secs(30);
/// Life of a token in seconds, longer than the longest benchmark.
const TOKEN_SECONDS: i64 = 24 * 3_600;

/// Creates the objects of the files for the instance of this namespace, and waits until the API server applies the
/// rights that they give: it would refuse requests of an operator that starts sooner at random.
pub(crate) async fn install(client: &Client, files: &[PathBuf], namespace: &str) -> Result<()> {
    let mut roles = Vec::new();
    for file in files {
        let text =
            fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        for mut manifest in serde_saphyr::from_multiple::<Value>(&text)? {
            adopt(&mut manifest, namespace);
            create(client, &manifest)
                .await
                .with_context(|| format!("applying {}", file.display()))?;
            if manifest["kind"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("Role"))
            {
                roles.push(manifest);
            }
        }
    }
    let here = roles.iter().map(|role| (role, namespace));
    in_force(client, here, &user(namespace)).await
}

/// Creates the objects that a renderer has made for this namespace, unchanged, and waits as [`install`] does.
pub(crate) async fn apply(client: &Client, manifests: &str, namespace: &str) -> Result<()> {
    apply_for(client, manifests, namespace, &user(namespace)).await
}

/// The same for another user than the operator.
pub(crate) async fn apply_for(
    client: &Client,
    manifests: &str,
    namespace: &str,
    user: &str,
) -> Result<()> {
    let manifests = serde_saphyr::from_multiple::<Value>(manifests)?;
    let manifests: Vec<Value> = manifests.into_iter().filter(|it| !it.is_null()).collect();
    for manifest in &manifests {
        create(client, manifest)
            .await
            .with_context(|| format!("applying {}", manifest["metadata"]))?;
    }
    let roles = manifests.iter().filter(|manifest| {
        manifest["kind"]
            .as_str()
            .is_some_and(|kind| kind.ends_with("Role"))
    });
    let here = roles.map(|role| {
        let own = role["metadata"]["namespace"].as_str();
        (role, own.unwrap_or(namespace))
    });
    in_force(client, here, user).await
}

/// Waits until the API server applies these roles of a user, each in a namespace.
async fn in_force<'a>(
    client: &Client,
    roles: impl Iterator<Item = (&'a Value, &'a str)>,
    user: &str,
) -> Result<()> {
    let rules = roles.flat_map(|(role, place)| {
        let rules = role["rules"].as_array().into_iter().flatten();
        rules.map(move |rule| (rule, place))
    });
    for (rule, place) in rules {
        eventually(
            RIGHTS_DEADLINE,
            "the API server goes by a new role",
            async || {
                ensure!(
                    is_allowed(client, user, place, rule).await?,
                    "not allowed in {place}: {rule}"
                );
                Ok(())
            },
        )
        .await?;
    }
    Ok(())
}

/// Installs the shipped admission policy, which confines every operator of the bench.
pub(crate) async fn confine(client: &Client, file: &Path) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    for manifest in serde_saphyr::from_multiple::<Value>(&text)? {
        create(client, &manifest)
            .await
            .with_context(|| format!("applying {}", file.display()))?;
    }
    Ok(())
}

/// The Kubernetes user name of the operator in this namespace.
pub(crate) fn user(namespace: &str) -> String {
    user_of(namespace, SHIPPED_NAME)
}

/// The Kubernetes user name of a ServiceAccount.
pub(crate) fn user_of(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

/// Moves a manifest into the namespace, and names objects of the whole cluster after it.
fn adopt(manifest: &mut Value, namespace: &str) {
    let rename = |name: &mut Value| {
        if let Some(suffix) = name
            .as_str()
            .and_then(|name| name.strip_prefix(SHIPPED_NAME))
        {
            *name = format!("{namespace}{suffix}").into();
        }
    };
    match manifest.pointer_mut("/metadata/namespace") {
        Some(own) => *own = namespace.into(),
        None => rename(&mut manifest["metadata"]["name"]),
    }
    if manifest["roleRef"]["kind"] == "ClusterRole" {
        rename(&mut manifest["roleRef"]["name"]);
    }
    if let Some(subjects) = manifest.get_mut("subjects").and_then(Value::as_array_mut) {
        for subject in subjects {
            subject["namespace"] = namespace.into();
        }
    }
}

async fn create(client: &Client, manifest: &Value) -> Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let api_version = text(&manifest["apiVersion"]);
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(
        group,
        version,
        &text(&manifest["kind"]),
    ));
    let api: Api<DynamicObject> = match manifest["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let object = serde_json::from_value(manifest.clone())?;
    api.create(&PostParams::default(), &object)
        .await
        .with_context(|| format!("making the {}", resource.kind))?;
    Ok(())
}

/// Whether a user has the first verb on the first resource of a rule in the namespace `place`.
async fn is_allowed(client: &Client, user: &str, place: &str, rule: &Value) -> Result<bool> {
    let resource = rule["resources"][0].as_str().unwrap_or_default();
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = serde_json::from_value(json!({"spec": {
        "user": user,
        "resourceAttributes": {
            "namespace": place,
            "group": rule["apiGroups"][0],
            "resource": resource,
            "subresource": subresource,
            "name": rule["resourceNames"][0],
            "verb": rule["verbs"][0],
        },
    }}))?;
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// A token of a ServiceAccount.
pub(crate) async fn token(client: &Client, namespace: &str, account: &str) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let made = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await?;
    match made.status {
        Some(status) => Ok(status.token),
        None => bail!("a TokenRequest without a token"),
    }
}

/// A kubeconfig that holds the token.
pub(crate) fn kubeconfig_of(
    server: &str,
    ca: &Path,
    token: &str,
    namespace: &str,
) -> Result<String> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bench", "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(fs::read(ca)?),
        }}],
        "users": [{"name": namespace, "user": {"token": token}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": namespace, "namespace": namespace}}],
        "current-context": "bench",
    });
    Ok(format!("{config:#}\n"))
}
