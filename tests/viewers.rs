//! The metrics port closed to all but viewers: who gets what with which token, what strangers can do there, and which
//! certificate it presents. All of it with the shipped roles, at a real API server.

use std::fs;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt as _;
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
use test_bench::{
    Bench, Context as _, Fault, Operator, OperatorOptions, Proxies, Result, ensure, eventually,
};

use crate::command::{cert_renew, said};
use crate::renewal::{SOON, options};
use crate::verdict::{outward, service};

/// Closes the port.
pub(crate) const CLOSED: &str = "metrics: {access: viewers, tls: {secret: port}}\n";
/// The add-on that it takes.
pub(crate) const ADD_ON: &str = "rbac/addons/access.yaml";
/// The audience of tokens that are made for the port.
const OURS: &str = "cert-renew.io";

fn closed() -> OperatorOptions {
    let mut options = options();
    options.config += CLOSED;
    options.addons = vec![ADD_ON.into()];
    options
}

/// The operator's own namespace.
fn home(bench: &Bench, operator: &Operator<'_>) -> Result<Space> {
    Ok(Space {
        client: bench.client()?,
        name: operator.namespace().to_owned(),
        class: operator.namespace().to_owned(),
    })
}

/// A closed operator that presents a certificate.
async fn started<'a>(bench: &'a Bench, options: OperatorOptions) -> Result<(Operator<'a>, Pair)> {
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
async fn ask_from(
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
async fn answers(operator: &Operator<'_>, path: &str, token: &str, status: u16) -> Result<String> {
    eventually(SOON, "the answer is as it should be", async || {
        let (found, text) = show(operator, path, token).await?;
        ensure!(found == status, "{path}: {found} {text}, expected {status}");
        Ok(text)
    })
    .await
}

/// Waits until a handshake brings this certificate.
async fn presents(operator: &Operator<'_>, certificate: &str) -> Result<()> {
    let leaf = CertificateDer::from_pem_slice(certificate.as_bytes())?;
    eventually(SOON, "the certificate is presented", async || {
        let (status, _, shown) = ask(operator, "/readyz", &[]).await?;
        ensure!(status == 200 && shown == *leaf, "another certificate");
        Ok(())
    })
    .await
}

/// A new ServiceAccount.
async fn account(space: &Space, name: &str) -> Result<Api<ServiceAccount>> {
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
async fn viewer(space: &Space, operator: &Operator<'_>) -> Result<(Api<ServiceAccount>, String)> {
    let accounts = account(space, "viewer").await?;
    let subject = json!({"kind": "ServiceAccount", "name": "viewer", "namespace": space.name});
    let_view(&space.client, operator.namespace(), subject).await?;
    let token = token_of(&accounts, "viewer", None).await?;
    Ok((accounts, token))
}

/// The same token with another end, signed by the bench's own key: `exp` in seconds from now.
fn ending(bench: &Bench, token: &str, seconds: i64) -> Result<String> {
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

#[tokio::test]
async fn a_viewer_gets_the_page_prometheus_the_metrics_and_a_stranger_nothing() -> Result<()> {
    let bench = Bench::shared().await?;
    let (operator, _) = started(bench, closed()).await?;
    let space = Space::new(bench.client()?, "viewers", "nobody").await?;
    let (accounts, viewer) = viewer(&space, &operator).await?;
    account(&space, "prometheus").await?;
    account(&space, "stranger").await?;
    let_scrape(&space, "prometheus").await?;
    let prometheus = token_of(&accounts, "prometheus", None).await?;
    let stranger = token_of(&accounts, "stranger", None).await?;

    let page = answers(&operator, "/", &viewer, 200).await?;
    ensure!(page.contains("<html"), "{page}");
    let json = answers(&operator, "/api/certificates", &viewer, 200).await?;
    ensure!(json.contains("\"certificates\":"), "{json}");
    let metrics = answers(&operator, "/metrics", &prometheus, 200).await?;
    ensure!(
        metrics.contains("cert_renew_token_reviews_total{result=\"allowed\"} 2"),
        "{metrics}"
    );
    for (path, token, lacks) in [
        (
            "/metrics",
            &viewer,
            "may not get the nonResourceURL /metrics",
        ),
        ("/", &prometheus, "may not get services/proxy"),
        ("/", &stranger, "may not get services/proxy"),
        // The role system:discovery lets every user get the nonResourceURL /api/*.
        ("/api/certificates", &stranger, "may not get services/proxy"),
        (
            "/metrics",
            &stranger,
            "may not get the nonResourceURL /metrics",
        ),
    ] {
        let text = answers(&operator, path, token, 403).await?;
        let who = format!("system:serviceaccount:{}:", space.name);
        ensure!(text.contains(lacks) && text.contains(&who), "{text}");
    }

    // Tokens that are made for the port, by either header; others only by the usual one.
    let ours = token_of(&accounts, "viewer", Some(OURS)).await?;
    answers(&operator, "/", &ours, 200).await?;
    for (token, status) in [(&ours, 200), (&viewer, 401), (&stranger, 401)] {
        let (found, text, _) = ask(&operator, "/", &[("cert-renew-token", token)]).await?;
        ensure!(found == status, "{found} {text}");
    }
    let elsewhere = token_of(&accounts, "viewer", Some("vault")).await?;
    let (short, ended) = (ending(bench, &viewer, 3_600)?, ending(bench, &viewer, -60)?);
    answers(&operator, "/", &short, 200).await?;
    account(&space, "leaver").await?;
    let leaver = token_of(&accounts, "leaver", None).await?;
    accounts.delete("leaver", &Default::default()).await?;
    eventually(
        SOON,
        "the token of a deleted account is refused",
        async || {
            let (status, _) = show(&operator, "/", &leaver).await?;
            ensure!(status == 401, "{status}");
            Ok(())
        },
    )
    .await?;
    let mangled = viewer.replacen('.', ".x", 1);
    for token in [&elsewhere, &ended, &mangled, "a.b.c", "garbage"] {
        let (status, text) = show(&operator, "/", token).await?;
        ensure!(
            status == 401 && text.contains("does not take"),
            "{status} {text}"
        );
    }
    let forged = [
        ("x-remote-user", "system:admin"),
        ("x-remote-group", "system:masters"),
        ("x-forwarded-user", "admin"),
        ("impersonate-user", "system:admin"),
    ];
    for path in ["/", "/api/certificates", "/metrics"] {
        for headers in [&[][..], &forged[..], &[("authorization", "Basic YTpi")][..]] {
            let (status, text, _) = ask(&operator, path, headers).await?;
            ensure!(
                status == 401 && text.contains("show a token"),
                "{status} {text}"
            );
        }
        // A token that comes without TLS is not looked at.
        let url = format!("http://{}{path}", operator.metrics_address());
        let plain = reqwest::Client::builder().no_proxy().build()?;
        let plain = plain.get(url).bearer_auth(&viewer).send().await?;
        ensure!(plain.status() == 403, "{}", plain.status());
    }
    // Probes ask without TLS, and may ask with it.
    for path in ["/healthz", "/readyz"] {
        operator.ask(path).await?;
        let (status, ..) = ask(&operator, path, &[]).await?;
        ensure!(status == 200, "{status}");
    }
    let log = operator.log()?;
    for token in [&viewer, &prometheus, &stranger, &ours, &elsewhere, &leaver] {
        let signature = token.rsplit('.').next().context("a signature")?;
        ensure!(!log.contains(signature), "a token is in the log");
    }
    Ok(())
}

#[tokio::test]
async fn strangers_neither_stall_probes_nor_flood_the_api_server() -> Result<()> {
    let bench = Bench::shared().await?;
    let (operator, _) = started(bench, closed()).await?;
    let space = Space::new(bench.client()?, "flood", "nobody").await?;
    let (_, viewer) = viewer(&space, &operator).await?;
    answers(&operator, "/", &viewer, 200).await?;

    let reviews = || -> Result<usize> {
        let requests = operator.requests()?;
        let reviews = requests.iter().filter(|it| it.resource == "tokenreviews");
        Ok(reviews.count())
    };
    let (before, began) = (reviews()?, SystemTime::now());
    let over = AtomicBool::new(false);
    let guesses = async {
        let guess = async |number: usize| {
            let bearer = format!("Bearer guess-{number}");
            let elsewhere = IpAddr::from([127, 0, 0, 2]);
            let headers = [("authorization", bearer.as_str())];
            ask_from(elsewhere, &operator, "/", &headers).await
        };
        let all = futures::stream::iter(0..1_500).map(guess);
        let answers: Vec<_> = all.buffer_unordered(64).collect().await;
        over.store(true, Ordering::Relaxed);
        answers
    };
    let probes = async {
        let mut probed = 0;
        let mut turn = tokio::time::interval(Duration::from_millis(200));
        while !over.load(Ordering::Relaxed) {
            turn.tick().await;
            operator.ask("/readyz").await?;
            operator.ask("/healthz").await?;
            // The answer about a token that is known is known.
            let (status, text) = show(&operator, "/api/certificates", &viewer).await?;
            ensure!(status == 200, "{status} {text}");
            probed += 1;
        }
        Ok(probed)
    };
    let (answers, probed) = futures::future::join(guesses, probes).await;
    let probed = probed?;
    ensure!(probed > 0, "nobody probed meanwhile");
    let (mut refused, mut put_off, mut closed) = (0, 0, 0);
    for answer in answers {
        match answer {
            Ok((401, _, _)) => refused += 1,
            Ok((503, text, _)) if text.contains("too many tokens") => put_off += 1,
            // An address has an allowance of handshakes too.
            Err(_) => closed += 1,
            other => test_bench::bail!("{other:?}"),
        }
    }
    let asked = reviews()? - before;
    let seconds = usize::try_from(began.elapsed()?.as_secs())?;
    eprintln!(
        "{refused} refused, {put_off} put off, {closed} closed, {asked} reviews in {seconds} s, {probed} probes"
    );
    // At once so many, then one a second.
    ensure!(asked <= 60 + seconds + 5, "{asked} reviews in {seconds} s");
    ensure!(refused <= asked, "{refused} refused, {asked} asked");
    ensure!(
        put_off > 0 && closed > 0,
        "{put_off} put off, {closed} closed"
    );
    Ok(())
}

#[tokio::test]
async fn the_next_handshake_has_the_next_certificate() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, closed()).await?;
    let home = home(bench, &operator)?;
    operator.run().await?;
    // There is none yet: nobody gets in, and the probes are answered.
    ensure!(ask(&operator, "/", &[]).await.is_err(), "a handshake");
    operator.ask("/readyz").await?;
    eventually(SOON, "the log names the Secret", async || {
        ensure!(
            operator.log()?.contains("there is no such Secret"),
            "not yet"
        );
        Ok(())
    })
    .await?;

    // The operator issues it itself.
    let annotations = [("issuer", "pebble"), ("names", "status.example")];
    home.tls_secret("port", None, &annotations).await?;
    let issued = eventually(SOON, "it is issued", async || {
        let secret = home.secrets().get("port").await?;
        let issued = crate::renewal::data(&secret, "tls.crt");
        ensure!(!issued.is_empty(), "not yet");
        Ok(issued)
    })
    .await?;
    presents(&operator, &issued).await?;

    // Somebody else renews it.
    let next = pair(&["status.example"], FRESH)?;
    home.put("port", &next).await?;
    presents(&operator, &next.certificate).await?;

    // What cannot be presented leaves the one before.
    let other = pair(&["status.example"], FRESH)?;
    home.put("port", &other.with_key_of(&next)).await?;
    eventually(SOON, "the log says why", async || {
        let log = operator.log()?;
        ensure!(log.contains("cannot present this certificate"), "not yet");
        Ok(())
    })
    .await?;
    presents(&operator, &next.certificate).await?;
    home.secrets().delete("port", &Default::default()).await?;
    presents(&operator, &next.certificate).await?;

    // Another Secret by the config; then none.
    home.tls_secret("another", Some(&other), &[]).await?;
    operator.configure("metrics: {tls: {secret: another}}\n")?;
    presents(&operator, &other.certificate).await?;
    let (status, ..) = ask(&operator, "/", &[]).await?;
    ensure!(status == 200, "open to anyone again: {status}");
    operator.configure("metrics: {}\n")?;
    eventually(SOON, "it speaks no TLS", async || {
        ensure!(ask(&operator, "/", &[]).await.is_err(), "a handshake");
        operator.ask("/").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn without_the_add_on_or_an_api_server_nobody_gets_in_and_the_log_says_why() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut lacking = closed();
    lacking.addons.clear();
    let (operator, _) = started(bench, lacking).await?;
    let space = Space::new(bench.client()?, "shut-out", "nobody").await?;
    let (_, token) = viewer(&space, &operator).await?;
    for path in ["/", "/metrics"] {
        let text = answers(&operator, path, &token, 503).await?;
        ensure!(text.contains("could not be reviewed"), "{text}");
    }
    eventually(SOON, "the log names the rights", async || {
        let log = operator.log()?;
        let missing = |resource| {
            let names =
                |line: &&str| line.contains("a right is missing") && line.contains(resource);
            log.lines().any(|line| names(&line))
        };
        ensure!(
            missing("tokenreviews")
                && missing("subjectaccessreviews")
                && log.contains("viewers are refused")
                && log.contains(ADD_ON),
            "{log}"
        );
        Ok(())
    })
    .await?;

    // With the right, while the API server fails.
    let proxies = Proxies::start(bench).await?;
    let failing = std::sync::Arc::new(AtomicBool::new(true));
    proxies.rule({
        let failing = std::sync::Arc::clone(&failing);
        move |passed| {
            let review = passed.path.contains("subjectaccessreviews");
            match review && failing.load(Ordering::Relaxed) {
                true => Fault::status(500, "InternalError"),
                false => Fault::Pass,
            }
        }
    });
    let mut options = closed();
    options.api_server = Some(proxies.api_server());
    let (operator, _) = started(bench, options).await?;
    let subject = json!({"kind": "ServiceAccount", "name": "viewer", "namespace": space.name});
    let_view(&space.client, operator.namespace(), subject).await?;
    answers(&operator, "/", &token, 503).await?;
    failing.store(false, Ordering::Relaxed);
    answers(&operator, "/", &token, 200).await?;
    Ok(())
}

#[tokio::test]
async fn the_command_shows_a_closed_page_a_token_that_is_good_for_nothing_else() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, closed()).await?;
    operator.show_at(outward()?);
    let namespace = operator.namespace().to_owned();
    service(bench, &namespace, operator.metrics_address()).await?;
    let user =
        |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name});
    let_view(&bench.client()?, &namespace, user("viewer")).await?;
    let home = home(bench, &operator)?;
    let presented = pair(&["status.example"], FRESH)?;
    home.tls_secret("port", Some(&presented), &[]).await?;
    let space = Space::new(bench.client()?, "asked", &namespace).await?;
    let held = pair(&["asked.example"], FRESH)?;
    { space.tls_secret("tls", Some(&held), &[("issuer", "pebble")]) }.await?;
    operator.run().await?;
    presents(&operator, &presented.certificate).await?;

    let types = |who: &str| {
        let status = ["status", "-n", &space.name, "--no-headers", "--as", who];
        let way = ["--operator-namespace", &namespace];
        cert_renew(&[&status[..], &way[..]].concat(), Some(bench.kubeconfig()))
    };
    eventually(SOON, "the viewer is answered", async || {
        let shown = types("viewer")?;
        ensure!(
            shown.status.success() && shown.stderr.is_empty() && said(&shown).contains("tls"),
            "{}",
            said(&shown)
        );
        Ok(())
    })
    .await?;
    let stranger = types("stranger")?;
    ensure!(
        stranger.status.code() == Some(1) && stranger.stdout.is_empty(),
        "{}",
        said(&stranger)
    );
    // Without the right to the token, or its ServiceAccount, it says so.
    let accounts: Api<ServiceAccount> = Api::namespaced(bench.client()?, &namespace);
    accounts
        .delete("cert-renew-viewer", &Default::default())
        .await?;
    let without = types("viewer")?;
    ensure!(
        said(&without).contains("shows its page to viewers only")
            && said(&without).contains("no ServiceAccount cert-renew-viewer"),
        "{}",
        said(&without)
    );
    Ok(())
}
