//! ACME as the operator uses it: renewal information, chains, limits, budgets, against Pebbles of the bench.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use k8s_openapi::api::core::v1::Secret;
use test_bench::objects::{OLD, Pair, Space, pair};
use test_bench::{Bench, Context as _, Operator, OperatorOptions, Result, eventually};

use crate::renewal::{SOON, annotation, data, leaf, options, renewed, rolled_out};

/// What every operator here is configured with: nothing waits longer than it must.
const QUICK: &str = "rollout: {settle: 0s, perWorkloadMinInterval: 0s}\n";

/// `of_issuer` are lines of the issuer `pebble`, indented by four; `others` are further issuers, indented by two.
fn configured(of_issuer: &str, others: &str) -> OperatorOptions {
    OperatorOptions {
        config: format!("{of_issuer}{others}{QUICK}"),
        ..options()
    }
}

/// A Secret with a certificate of the operator's own.
async fn issued(space: &Space, name: &str, names: &str) -> Result<Secret> {
    space
        .tls_secret(name, None, &[("issuer", "pebble"), ("names", names)])
        .await?;
    renewed(space, name, "").await?;
    rolled_out(space, name).await
}

fn window(start: &str, end: &str) -> String {
    let explanation = "https://ca.example/incident";
    format!(
        r#"{{"suggestedWindow": {{"start": "{start}", "end": "{end}"}}, "explanationURL": "{explanation}"}}"#
    )
}

const PAST: (&str, &str) = ("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z");

/// Waits until an Event on a Secret contains `text`.
async fn event(space: &Space, name: &str, text: &str) -> Result<String> {
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
        async move { Ok::<_, test_bench::Error>(leaf(&space.secrets().get(name).await?)?) }
    };
    // A window beyond the end is cut to a sixth of the lifetime; an inverted one counts for nothing.
    let later = end("later").await?;
    let sixth = later.not_after.0 - i64::try_from(later.lifetime().as_secs() / 6)?;
    assert_eq!(at("later")? as i64, sixth);
    let inverted = end("inverted").await?;
    let third = inverted.not_after.0 - i64::try_from(inverted.lifetime().as_secs() / 3)?;
    assert!(at("inverted")? as i64 <= third);
    Ok(())
}

#[tokio::test]
async fn a_ca_without_an_answer_holds_nothing_up() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "ari-gone", operator.namespace()).await?;
    // Pebble has not issued it: 404.
    let old = pair(&["gone.ari.example"], OLD)?;
    space
        .tls_secret("gone", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "gone", &old.certificate).await?;
    Ok(())
}

#[tokio::test]
async fn the_chain_is_the_one_that_the_config_asks_for() -> Result<()> {
    let bench = Bench::shared().await?;
    for chain in [0, 1] {
        let root = bench.pebble().root(chain).await?;
        let root = cert_renew::certificate::leaf(root.as_bytes())?.issuer;
        let root = root.trim_start_matches("CN=").to_owned();
        let chosen = format!("    chain: {{root: \"{root}\"}}\n");
        let operator = Operator::start(bench, configured(&chosen, "")).await?;
        let space = Space::new(bench.client()?, "chain", operator.namespace()).await?;
        let secret = issued(&space, "chain", "chain.example").await?;
        let chain = cert_renew::certificate::certificates(data(&secret, "tls.crt").as_bytes())?;
        let top = chain.last().context("an empty chain")?;
        let top = cert_renew::certificate::leaf(top)?;
        assert!(top.issuer.contains(&root), "{} is not {root}", top.issuer);
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
