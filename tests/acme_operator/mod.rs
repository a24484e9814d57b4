//! ACME as the operator uses it: renewal information, chains, limits, budgets, against Pebbles of the bench.

mod budgets;
mod outages;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, PostParams};
use serde_json::json;
use test_bench::objects::{OLD, Pair, Reference, Space, pair};
use test_bench::{
    Bench, Context as _, Operator, OperatorOptions, PebbleOptions, Result, ensure, eventually,
};

use crate::renewal::{SOON, annotation, data, leaf, options, renewed, rolled_out};

/// What every operator here is configured with: nothing waits longer than it must.
const QUICK: &str = "rollout: {settle: 0s, perWorkloadMinInterval: 0s}\n";

/// `of_issuer` are lines of the issuer `pebble`, indented by four; `others` are further issuers, indented by two.
pub(crate) fn configured(of_issuer: &str, others: &str) -> OperatorOptions {
    OperatorOptions {
        config: format!("{of_issuer}{others}{QUICK}"),
        ..options()
    }
}

/// A Secret with a certificate of the operator's own.
pub(crate) async fn issued(space: &Space, name: &str, names: &str) -> Result<Secret> {
    space
        .tls_secret(name, None, &[("issuer", "pebble"), ("names", names)])
        .await?;
    renewed(space, name, "").await?;
    rolled_out(space, name).await
}

pub(crate) fn window(start: &str, end: &str) -> String {
    let explanation = "https://ca.example/incident";
    format!(
        r#"{{"suggestedWindow": {{"start": "{start}", "end": "{end}"}}, "explanationURL": "{explanation}"}}"#
    )
}

pub(crate) const PAST: (&str, &str) = ("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z");

/// Waits until an Event on a Secret contains `text`.
pub(crate) async fn event(space: &Space, name: &str, text: &str) -> Result<String> {
    eventually(
        SOON,
        &format!("an Event on {name} says {text}"),
        async || {
            let events = space.events(name).await?;
            let found = events.iter().find(|event| event.contains(text)).cloned();
            found.with_context(|| format!("{events:?}"))
        },
    )
    .await
}

#[tokio::test]
async fn a_window_in_the_past_means_now_and_says_why() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "ari", operator.namespace()).await?;
    let mut first = Vec::new();
    for name in ["recalled", "inverted", "later", "copied"] {
        let secret = issued(&space, name, &format!("{name}.ari.example")).await?;
        first.push(data(&secret, "tls.crt"));
    }
    operator.kill();
    let copied = space.secrets().get("copied").await?;
    let pebble = bench.pebble();
    let past = window(PAST.0, PAST.1);
    pebble.set_renewal_info(&first[0], &past).await?;
    pebble
        .set_renewal_info(&first[1], &window(PAST.1, PAST.0))
        .await?;
    let far = window("2090-01-01T00:00:00Z", "2090-01-02T00:00:00Z");
    pebble.set_renewal_info(&first[2], &far).await?;
    pebble.set_renewal_info(&first[3], &past).await?;
    operator.run().await?;
    renewed(&space, "recalled", &first[0]).await?;
    event(&space, "recalled", "https://ca.example/incident").await?;
    renewed(&space, "copied", &first[3]).await?;
    // Another Secret with a leaf that has been replaced meanwhile: its order is made without `replaces`.
    let copy = Pair {
        certificate: first[3].clone(),
        key: data(&copied, "tls.key"),
    };
    let issued_by = annotation(&copied, "state.cert-renew.io/issued-by").unwrap_or_default();
    let annotations = [
        ("issuer", "pebble"),
        ("state.cert-renew.io/issued-by", issued_by),
    ];
    space.tls_secret("copy", Some(&copy), &annotations).await?;
    renewed(&space, "copy", &first[3]).await?;
    let log = operator.log()?;
    assert!(
        log.contains("ordering without replaces"),
        "the copy's order"
    );
    for (name, old) in [("inverted", &first[1]), ("later", &first[2])] {
        let secret = space.secrets().get(name).await?;
        assert_eq!(&data(&secret, "tls.crt"), old, "{name} is not renewed");
    }
    let metrics = operator.metrics().await?;
    let at = |name: &str| -> Result<f64> {
        let mut lines = metrics.lines().filter(|line| {
            line.starts_with("cert_renew_certificate_renew_at") && line.contains(&space.name)
        });
        let line = lines.find(|line| line.contains(&format!("secret=\"{name}\"")));
        let line = line.with_context(|| format!("no renewal instant of {name} in\n{metrics}"))?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
    };
    let end = |name: &'static str| {
        let space = &space;
        async move { leaf(&space.secrets().get(name).await?) }
    };
    // A window beyond the end is cut to a sixth of the lifetime; an inverted one counts for nothing.
    let later = end("later").await?;
    let sixth = later.not_after.0 - i64::try_from(later.lifetime().as_secs() / 6)?;
    assert_eq!(at("later")? as i64, sixth);
    let inverted = end("inverted").await?;
    let third = inverted.not_after.0 - i64::try_from(inverted.lifetime().as_secs() / 3)?;
    assert!(at("inverted")? as i64 <= third);
    // The window that was far off has moved.
    operator.kill();
    pebble.set_renewal_info(&first[2], &past).await?;
    operator.run().await?;
    renewed(&space, "later", &first[2]).await?;
    Ok(())
}

#[tokio::test]
async fn the_chain_is_the_one_that_the_config_asks_for() -> Result<()> {
    let bench = Bench::shared().await?;
    for chain in [0, 1] {
        let root = bench.pebble().root(chain).await?;
        let root = cert_renew_core::certificate::leaf(root.as_bytes())?
            .issuer
            .to_string();
        let root = root.trim_start_matches("CN=").to_owned();
        let chosen = format!("    chain: {{root: \"{root}\"}}\n");
        let operator = Operator::start(bench, configured(&chosen, "")).await?;
        let space = Space::new(bench.client()?, "chain", operator.namespace()).await?;
        let secret = issued(&space, "chain", "chain.example").await?;
        let chain =
            cert_renew_core::certificate::certificates(data(&secret, "tls.crt").as_bytes())?;
        let top = chain.last().context("an empty chain")?;
        let top = cert_renew_core::certificate::leaf(top)?;
        let issuer = top.issuer.to_string();
        assert!(issuer.contains(&root), "{issuer} is not {root}");
    }
    Ok(())
}

#[tokio::test]
async fn a_proxy_for_the_cas_does_not_stand_before_the_api_server() -> Result<()> {
    let bench = Bench::shared().await?;
    let script = bench.directory().join("behind-a-proxy");
    let text = format!(
        "#!/bin/sh\nHTTPS_PROXY=http://127.0.0.1:9 NO_PROXY=127.0.0.1 exec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_cert-renew")
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let program = OperatorOptions {
        program: script,
        ..options()
    };
    let operator = Operator::start(bench, program).await?;
    let space = Space::new(bench.client()?, "proxy", operator.namespace()).await?;
    issued(&space, "proxy", "proxy.example").await?;
    Ok(())
}

/// How many certificates the operator has written since it was installed.
pub(crate) fn renewals(operator: &Operator<'_>) -> Result<usize> {
    Ok(operator.log()?.matches("\"message\":\"renewed\"").count())
}

#[tokio::test]
async fn certificates_of_ninety_seconds_are_renewed_over_and_over() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "minute", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "minute.example"),
        ("profile", "minute"),
    ];
    space.tls_secret("minute", None, &annotations).await?;
    renewed(&space, "minute", "").await?;
    let mut leaves = std::collections::BTreeSet::new();
    eventually(
        Duration::from_secs(240),
        "two more certificates",
        async || {
            let leaf = leaf(&space.secrets().get("minute").await?)?;
            let now = cert_renew_core::time::UnixTime::now();
            assert!(leaf.is_valid_at(now), "it has expired at {now}");
            leaves.insert(leaf.fingerprint);
            ensure!(leaves.len() == 3, "{} certificates", leaves.len());
            Ok(())
        },
    )
    .await?;
    Ok(())
}

#[tokio::test]
async fn keys_are_of_the_type_that_is_asked_for_and_stay_where_they_are_to() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "keys", operator.namespace()).await?;
    let kinds = [
        "ecdsa-p256",
        "ecdsa-p384",
        "rsa-2048",
        "rsa-3072",
        "rsa-4096",
    ];
    for kind in kinds {
        let host = format!("{kind}.keys.example");
        let annotations = [("issuer", "pebble"), ("names", &*host), ("key-type", kind)];
        space.tls_secret(kind, None, &annotations).await?;
    }
    let old = pair(&["kept.keys.example"], OLD)?;
    let annotations = [("issuer", "pebble"), ("key-rotation", "never")];
    space.tls_secret("kept", Some(&old), &annotations).await?;
    for kind in kinds {
        let secret = renewed(&space, kind, "").await?;
        let found = leaf(&secret)?.key_type.map(|kind| kind.to_string());
        assert_eq!(found.as_deref(), Some(kind));
    }
    let kept = leaf(&renewed(&space, "kept", &old.certificate).await?)?;
    let before = cert_renew_core::certificate::leaf(old.certificate.as_bytes())?;
    assert_eq!(kept.public_key, before.public_key);
    Ok(())
}

/// Waits until the metrics say that the renewal waits for a person.
async fn stuck(operator: &Operator<'_>, space: &Space, name: &str, why: &str) -> Result<()> {
    let series = format!(
        "cert_renew_certificate_stuck{{namespace=\"{}\",secret=\"{name}\",issuer=\"pebble\",why=\"{why}\"}} 1",
        space.name
    );
    eventually(SOON, &series, async || {
        ensure!(operator.metrics().await?.contains(&series), "not yet");
        Ok(())
    })
    .await
}

pub(crate) fn another_pebble(name: &str) -> PebbleOptions {
    PebbleOptions {
        name: name.to_owned(),
        ..PebbleOptions::default()
    }
}

/// Runs a command with the administrator's rights; what it prints, and whether all was well.
pub(crate) fn command(bench: &Bench, arguments: &[&str]) -> Result<(String, bool)> {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_cert-renew"))
        .args(arguments)
        .env("KUBECONFIG", bench.kubeconfig())
        .env_remove("HTTPS_PROXY")
        .env_remove("https_proxy")
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((String::from_utf8(text)?, output.status.success()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_ask_the_operator_for_what_a_person_wants() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "commands", operator.namespace()).await?;
    let old = pair(&["waits.commands.example"], OLD)?;
    let annotations = [
        ("issuer", "pebble"),
        ("change-window", "Sun 00:00-00:01 UTC"),
    ];
    space.tls_secret("waits", Some(&old), &annotations).await?;
    space
        .workload("Deployment", "web", Reference::Volume, "waits")
        .await?;
    let config = bench
        .directory()
        .join(format!("{}.config.yaml", operator.namespace()));
    let config = config.display().to_string();
    let (text, well) = command(bench, &["plan", "--config", &config, "-n", &space.name])?;
    assert!(
        well && text.contains("waits.commands.example") && text.contains("web"),
        "{text}"
    );

    let age = test_bench::objects::Age {
        since: 30,
        left: 60,
    };
    let midway = pair(&["midway.commands.example"], age)?;
    space
        .tls_secret("midway", Some(&midway), &[("issuer", "pebble")])
        .await?;
    let midway_place = format!("{}/midway", space.name);
    let at = ["--operator-namespace", operator.namespace()];
    let wait = ["renew", &midway_place, "--wait", "--timeout", "1m"];
    let (text, well) = command(bench, &[&wait[..], &at].concat())?;
    assert!(well && text.contains("the workloads have it"), "{text}");
    renewed(&space, "midway", &midway.certificate).await?;
    // A second one within a tenth of the lifetime is not to be had.
    let config = json!({"config.yaml": fs::read_to_string(&config)?});
    let map = json!({"metadata": {"name": "cert-renew-config"}, "data": config});
    let maps: Api<ConfigMap> = Api::namespaced(bench.client()?, operator.namespace());
    maps.create(&PostParams::default(), &serde_json::from_value(map)?)
        .await?;
    let (text, well) = command(bench, &[&["renew", &midway_place][..], &at].concat())?;
    assert!(
        !well && text.contains("a tenth of its lifetime of"),
        "{text}"
    );

    let made = format!("{}/made", space.name);
    let names = "made.commands.example";
    let create = ["create", &made, "--issuer", "pebble", "--names", names];
    let (text, well) = command(bench, &[&create[..], &at].concat())?;
    assert!(well, "{text}");
    let class = json!({"metadata": {"annotations": {"cert-renew.io/class": operator.namespace()}}});
    space.merge("made", class).await?;
    renewed(&space, "made", "").await?;

    let (text, well) = command(bench, &[&["resume", &made][..], &at].concat())?;
    assert!(well && text.contains("not halted"), "{text}");
    let show = ["account", "show", "pebble", "-n", operator.namespace()];
    let (text, well) = command(bench, &show)?;
    assert!(
        well && text.contains("/my-account/") && !text.contains("key"),
        "{text}"
    );
    let (json, well) = command(bench, &[show.as_slice(), &["-o", "json"]].concat())?;
    let shown: serde_json::Value = serde_json::from_str(&json)?;
    let url = shown["account"].as_str().context("no account")?;
    assert!(
        well && text.contains(url) && !json.contains("key"),
        "{json}"
    );
    Ok(())
}
