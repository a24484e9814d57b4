//! The metrics port closed to all but viewers: who gets what with which token, what strangers can do there, and which
//! certificate it presents. All of it with the shipped roles, at a real API server.

mod port;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use port::{OURS, account, answers, ask_from, closed, ending, home, presents, started, viewer};
use serde_json::json;
use test_bench::objects::{FRESH, Space, pair};
use test_bench::{Bench, Context as _, Fault, Operator, Proxies, Result, ensure, eventually};

use crate::command::{cert_renew, said};
use crate::renewal::SOON;
use crate::verdict::{outward, service};

pub(crate) use port::{ADD_ON, CLOSED, ask, let_scrape, let_view, show, token_of};

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
    // A burst of them at once, then one a second.
    ensure!(asked <= 60 + seconds + 5, "{asked} reviews in {seconds} s");
    ensure!(refused <= asked, "{refused} refused, {asked} asked");
    ensure!(
        put_off > 0 && closed > 0,
        "{put_off} put off, {closed} closed"
    );
    Ok(())
}

#[tokio::test]
async fn handshakes_from_many_addresses_keep_no_viewer_out() -> Result<()> {
    let bench = Bench::shared().await?;
    let (operator, _) = started(bench, closed()).await?;
    let space = Space::new(bench.client()?, "knocks", "nobody").await?;
    let (_, viewer) = viewer(&space, &operator).await?;
    answers(&operator, "/", &viewer, 200).await?;
    // Each far below its own allowance.
    let knock = async |number: u32| {
        let [.., c, d] = (256 + number % 200).to_be_bytes();
        ask_from(IpAddr::from([127, 0, c, d]), &operator, "/", &[]).await
    };
    let (mut refused, mut closed, mut shown) = (0, 0, 0);
    let over = AtomicBool::new(false);
    let knocks = async {
        // Until strangers have been closed unanswered for a while.
        for round in 0..60 {
            let all = futures::stream::iter(0..1_000).map(knock);
            let all: Vec<_> = all.buffer_unordered(64).collect().await;
            for answer in all {
                match answer {
                    Ok((401, _, _)) => refused += 1,
                    Err(_) => closed += 1,
                    other => test_bench::bail!("{other:?}"),
                }
            }
            if round >= 4 && closed > 1_000 {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        Ok(())
    };
    let shows = async {
        let mut turn = tokio::time::interval(Duration::from_millis(200));
        while !over.load(Ordering::Relaxed) {
            turn.tick().await;
            let (status, text) = show(&operator, "/api/certificates", &viewer).await?;
            ensure!(status == 200, "{status} {text}");
            shown += 1;
        }
        Ok(())
    };
    futures::future::try_join(knocks, shows).await?;
    eprintln!("{refused} were answered, {closed} were closed, the viewer was let in {shown} times");
    ensure!(closed > 0, "{refused} were answered, none was closed");
    ensure!(shown > 0, "the viewer did not ask meanwhile");
    operator.ask("/healthz").await?;
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
