//! The closed port: an operator that has one, requests to it, accounts and their tokens.

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding};
use kube::api::{DynamicObject, ObjectMeta, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use reqwest::tls::TlsInfo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, Pair, Space, pair};
use test_bench::{Bench, Context as _, Operator, OperatorOptions, Result, ensure, eventually};

use crate::renewal::{SOON, options};

/// Closes the port.
pub(crate) const CLOSED: &str = "metrics: {access: viewers, tls: {secret: port}}\n";
/// The add-on that it takes.
pub(crate) const ADD_ON: &str = "rbac/addons/access.yaml";
/// The audience of tokens that are made for the port.
pub(crate) const OURS: &str = "cert-renew.io";

pub(crate) fn closed() -> OperatorOptions {
    let mut options = options();
    options.config += CLOSED;
    options.addons = vec![ADD_ON.into()];
    options
}

/// The operator's own namespace.
pub(crate) fn home(bench: &Bench, operator: &Operator<'_>) -> Result<Space> {
    Ok(Space {
        client: bench.client()?,
        name: operator.namespace().to_owned(),
        class: operator.namespace().to_owned(),
    })
}

/// A closed operator that presents a certificate.
pub(crate) async fn started<'a>(
    bench: &'a Bench,
    options: OperatorOptions,
) -> Result<(Operator<'a>, Pair)> {
    let mut operator = Operator::install(bench, options).await?;
    let presented = pair(&["status.example"], FRESH)?;
    { home(bench, &operator)? }
        .tls_secret("port", Some(&presented), &[])
        .await?;
    operator.run().await?;
    presents(&operator, &presented.certificate).await?;
    Ok((operator, presented))
}

/// Answer to a request over TLS: status, text, the certificate that was presented.
pub(crate) async fn ask(
    operator: &Operator<'_>,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<(u16, String, Vec<u8>)> {
    ask_from(IpAddr::from([127, 0, 0, 1]), operator, path, headers).await
}

/// The same from another address.
pub(crate) async fn ask_from(
    address: IpAddr,
    operator: &Operator<'_>,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<(u16, String, Vec<u8>)> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .local_address(address)
        // The certificate is compared.
        .tls_danger_accept_invalid_certs(true)
        .tls_info(true)
        .timeout(Duration::from_secs(20))
        .build()?;
    let mut request = client.get(format!("https://{}{path}", operator.metrics_address()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await?;
    let shown = answer.extensions().get::<TlsInfo>();
    let shown = shown.and_then(TlsInfo::peer_certificate).map(Vec::from);
    let status = answer.status().as_u16();
    Ok((
        status,
        answer.text().await?,
        shown.context("no certificate")?,
    ))
}

/// The same with a bearer token.
pub(crate) async fn show(
    operator: &Operator<'_>,
    path: &str,
    token: &str,
) -> Result<(u16, String)> {
    let bearer = format!("Bearer {token}");
    let (status, text, _) = ask(operator, path, &[("authorization", &bearer)]).await?;
    Ok((status, text))
}

/// Waits for an answer: what is given, and a no, are known after a moment.
pub(crate) async fn answers(
    operator: &Operator<'_>,
    path: &str,
    token: &str,
    status: u16,
) -> Result<String> {
    eventually(SOON, "the answer is as it should be", async || {
        let (found, text) = show(operator, path, token).await?;
        ensure!(found == status, "{path}: {found} {text}, expected {status}");
        Ok(text)
    })
    .await
}

/// Waits until a handshake brings this certificate.
pub(crate) async fn presents(operator: &Operator<'_>, certificate: &str) -> Result<()> {
    let leaf = CertificateDer::from_pem_slice(certificate.as_bytes())?;
    eventually(SOON, "the certificate is presented", async || {
        let (status, _, shown) = ask(operator, "/readyz", &[]).await?;
        ensure!(status == 200 && shown == *leaf, "another certificate");
        Ok(())
    })
    .await
}

/// A new ServiceAccount.
pub(crate) async fn account(space: &Space, name: &str) -> Result<Api<ServiceAccount>> {
    let accounts: Api<ServiceAccount> = Api::namespaced(space.client.clone(), &space.name);
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    };
    let account = ServiceAccount {
        metadata,
        ..ServiceAccount::default()
    };
    accounts.create(&PostParams::default(), &account).await?;
    Ok(accounts)
}

/// A token of a ServiceAccount; without an audience for the API server.
pub(crate) async fn token_of(
    accounts: &Api<ServiceAccount>,
    name: &str,
    audience: Option<&str>,
) -> Result<String> {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.into_iter().map(ToOwned::to_owned).collect(),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let params = PostParams::default();
    let made = accounts.create_token_request(name, &params, &request);
    Ok(made.await?.status.context("no token")?.token)
}

/// Gives the shipped role of viewers, with its ServiceAccount, to a subject.
pub(crate) async fn let_view(client: &Client, namespace: &str, subject: Value) -> Result<()> {
    let path = format!("{}/rbac/addons/viewer.yaml", env!("CARGO_MANIFEST_DIR"));
    for mut object in serde_saphyr::from_multiple::<Value>(&fs::read_to_string(path)?)? {
        let kind = object["kind"].as_str().context("no kind")?.to_owned();
        if kind == "ClusterRole" {
            continue;
        }
        object["metadata"]["namespace"] = namespace.into();
        for subject in object["subjects"].as_array_mut().into_iter().flatten() {
            subject["namespace"] = namespace.into();
        }
        let version = object["apiVersion"].as_str().context("no version")?;
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let object = serde_json::from_value(object)?;
        api.create(&PostParams::default(), &object).await?;
    }
    let binding = json!({
        "metadata": {"name": "viewers"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "cert-renew-viewer"},
        "subjects": [subject],
    });
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
    let binding = serde_json::from_value(binding)?;
    bindings.create(&PostParams::default(), &binding).await?;
    Ok(())
}

/// Gives the usual right of a Prometheus.
pub(crate) async fn let_scrape(space: &Space, account: &str) -> Result<()> {
    let name = format!("{}-scrapes", space.name);
    let role = json!({
        "metadata": {"name": name},
        "rules": [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}],
    });
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": space.name}],
    });
    let params = PostParams::default();
    let roles: Api<ClusterRole> = Api::all(space.client.clone());
    roles
        .create(&params, &serde_json::from_value(role)?)
        .await?;
    let bindings: Api<ClusterRoleBinding> = Api::all(space.client.clone());
    let binding = serde_json::from_value(binding)?;
    bindings.create(&params, &binding).await?;
    Ok(())
}

/// A viewer's accounts and a token of theirs.
pub(crate) async fn viewer(
    space: &Space,
    operator: &Operator<'_>,
) -> Result<(Api<ServiceAccount>, String)> {
    let accounts = account(space, "viewer").await?;
    let subject = json!({"kind": "ServiceAccount", "name": "viewer", "namespace": space.name});
    let_view(&space.client, operator.namespace(), subject).await?;
    let token = token_of(&accounts, "viewer", None).await?;
    Ok((accounts, token))
}

/// The same token with another end, signed by the bench's own key: `exp` in seconds from now.
pub(crate) fn ending(bench: &Bench, token: &str, seconds: i64) -> Result<String> {
    let [header, payload, _] = token.split('.').collect::<Vec<_>>()[..] else {
        test_bench::bail!("no JWT");
    };
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    claims["iat"] = (now - 7_200).into();
    claims["nbf"] = (now - 7_200).into();
    claims["exp"] = (now + seconds).into();
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = fs::read(bench.directory().join("service-account.key"))?;
    let key = PrivateKeyDer::from_pem_slice(&key)?;
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der());
    let key = key.ok().context("a key of another kind")?;
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes());
    let signature = signature.ok().context("not signed")?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
