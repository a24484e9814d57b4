//! What a person does at a CA: take a certificate back, change the account's key.

use std::process::{Command, Output};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use test_bench::objects::{Reference, Space};
use test_bench::{Bench, Fault, Operator, Result, Server, ensure, eventually};

use crate::renewal::{SOON, data, leaf, options, renewed, rolled_out};
use crate::scene::behind_proxies;

/// The command line as the administrator uses it, for an operator's issuer `pebble`.
fn cert_renew(bench: &Bench, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cert-renew"));
    command
        .args(arguments)
        .arg("--ca-bundle")
        .arg(bench.ca_bundle())
        .env("KUBECONFIG", bench.kubeconfig());
    Ok(command.output()?)
}

async fn issued(space: &Space, name: &str, annotations: &[(&str, &str)]) -> Result<String> {
    let host = format!("{name}.accounts.example");
    let all = [
        &[("issuer", "pebble"), ("names", host.as_str())],
        annotations,
    ]
    .concat();
    space.tls_secret(name, None, &all).await?;
    renewed(space, name, "").await?;
    Ok(data(&rolled_out(space, name).await?, "tls.crt"))
}

#[tokio::test]
async fn a_revoked_certificate_is_replaced_at_once_and_its_key_with_it() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "revoked", operator.namespace()).await?;
    let never = [("key-rotation", "never")];
    space
        .workload("Deployment", "web", Reference::Volume, "stolen")
        .await?;
    let old = issued(&space, "stolen", &never).await?;
    // A closed window holds up what is worth something only.
    let window = space.annotations(&[("change-window", "Mon 00:00-00:01 UTC")]);
    let window = json!({"metadata": {"annotations": window}});
    let (secrets, params) = (space.secrets(), PatchParams::default());
    secrets
        .patch("stolen", &params, &Patch::Merge(window))
        .await?;
    let before = space.secrets().get("stolen").await?;
    let serial = leaf(&before)?.serial;
    // Pebble reads it as a number.
    let serial: String = serial.iter().map(|byte| format!("{byte:02x}")).collect();
    let place = format!("{}/stolen", space.name);
    let revoke = [
        "revoke",
        &place,
        "--yes",
        "--reason",
        "keyCompromise",
        "--operator-namespace",
        operator.namespace(),
    ];
    // Nobody can be asked here.
    let asked = cert_renew(bench, &[&revoke[..2], &revoke[3..]].concat())?;
    let why = String::from_utf8_lossy(&asked.stderr).into_owned();
    ensure!(
        !asked.status.success() && why.contains("--yes"),
        "{asked:?}"
    );
    // Twice: who was cut off after the CA had agreed begins again.
    for _ in 0..2 {
        let output = cert_renew(bench, &revoke)?;
        ensure!(output.status.success(), "{output:?}");
        if data(&space.secrets().get("stolen").await?, "tls.crt") != old {
            break;
        }
    }
    let status = bench.pebble().certificate_status(&serial).await?;
    ensure!(status.contains("Revoked"), "{status}");
    renewed(&space, "stolen", &old).await?;
    let after = rolled_out(&space, "stolen").await?;
    ensure!(
        data(&after, "tls.key") != data(&before, "tls.key"),
        "the key is the stolen one"
    );
    assert_eq!(
        space.leaf_of("Deployment", "web", "stolen").await?,
        Some(leaf(&after)?.fingerprint.to_string())
    );
    Ok(())
}

#[tokio::test]
async fn an_account_is_taken_to_a_new_key_even_in_two_attempts() -> Result<()> {
    let bench = Bench::shared().await?;
    let (proxies, mut operator) = behind_proxies(bench, options()).await?;
    let space = Space::new(bench.client()?, "rollover", operator.namespace()).await?;
    issued(&space, "before", &[]).await?;
    let namespace = operator.namespace().to_owned();
    let rollover = ["account", "rollover", "pebble", "--namespace", &namespace];
    // The CA has changed the key, and nobody here hears of it.
    proxies.rule(|passed| {
        let is_change = passed.server == Server::Ca && passed.path.contains("rollover");
        if is_change {
            Fault::After(Arc::new(|| {}))
        } else {
            Fault::Pass
        }
    });
    let output = cert_renew(bench, &rollover)?;
    let changes = proxies.passed().into_iter();
    let changes: Vec<_> = changes
        .filter(|it| it.path.contains("rollover"))
        .filter_map(|it| it.status)
        .collect();
    ensure!(
        !output.status.success() && changes == [200],
        "{changes:?}: {output:?}"
    );
    proxies.rule(|_| Fault::Pass);
    let output = cert_renew(bench, &rollover)?;
    ensure!(output.status.success(), "{output:?}");
    // The running operator finds the new key when the old one is refused, and the next start has it.
    issued(&space, "after", &[]).await?;
    eventually(SOON, "the change is told", async || {
        ensure!(operator.log()?.contains("another key now"), "it is not");
        Ok(())
    })
    .await?;
    operator.restart().await?;
    issued(&space, "later", &[]).await?;
    let made = proxies.passed().into_iter();
    let made = made.filter(|it| it.path.ends_with("/sign-me-up") && it.status == Some(201));
    assert_eq!(made.count(), 1, "one account was made");
    // And once more, without trouble.
    let output = cert_renew(bench, &rollover)?;
    ensure!(output.status.success(), "{output:?}");
    issued(&space, "last", &[]).await?;
    Ok(())
}

/// Whatever the CA says of a revocation, the key that is not to be trusted goes.
#[tokio::test]
async fn a_revocation_that_the_ca_refuses_replaces_the_key_all_the_same() -> Result<()> {
    let bench = Bench::shared().await?;
    let (proxies, operator) = behind_proxies(bench, options()).await?;
    let space = Space::new(bench.client()?, "refused", operator.namespace()).await?;
    let refusals = [
        (400, "badRevocationReason", 2),
        (500, "serverInternal", 1),
        (403, "unauthorized", 1),
    ];
    for (status, kind, times) in refusals {
        let name = kind.to_lowercase();
        let old = issued(&space, &name, &[("key-rotation", "never")]).await?;
        let key = data(&space.secrets().get(&name).await?, "tls.key");
        let kind = format!("urn:ietf:params:acme:error:{kind}");
        let body = json!({"type": kind, "detail": "not for that reason"}).to_string();
        proxies.rule(move |passed| {
            let is_revocation = passed.server == Server::Ca && passed.path.contains("revoke");
            if is_revocation {
                let nonce = Some(("replay-nonce", "bm9uY2U".to_owned()));
                Fault::Answer(status, nonce, "application/problem+json", body.clone())
            } else {
                Fault::Pass
            }
        });
        let asked = || {
            let passed = proxies.passed().into_iter();
            passed.filter(|it| it.path.contains("revoke")).count()
        };
        let before = asked();
        let place = format!("{}/{name}", space.name);
        let output = cert_renew(
            bench,
            &[
                "revoke",
                &place,
                "--yes",
                "--reason",
                "keyCompromise",
                "--operator-namespace",
                operator.namespace(),
            ],
        )?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && said.contains("not for that reason"),
            "{output:?}"
        );
        // Once more without a reason, where that is what it does not take.
        assert_eq!(asked() - before, times, "{name}");
        renewed(&space, &name, &old).await?;
        let after = space.secrets().get(&name).await?;
        ensure!(data(&after, "tls.key") != key, "{name}: the key stays");
    }
    Ok(())
}

/// Where nobody can be asked to revoke it, the key that is not to be trusted goes all the same.
#[tokio::test]
async fn without_an_account_to_revoke_with_the_key_is_replaced_all_the_same() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "unowned", operator.namespace()).await?;
    let old = issued(&space, "tls", &[]).await?;
    let place = format!("{}/tls", space.name);
    let arguments = ["revoke", &place, "--yes", "--operator-namespace", "default"];
    let output = cert_renew(bench, &arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        !output.status.success() && said.contains("has no account"),
        "{output:?}"
    );
    renewed(&space, "tls", &old).await?;
    Ok(())
}

#[tokio::test]
async fn a_rollover_that_the_ca_refuses_for_good_leaves_no_second_key_behind() -> Result<()> {
    let bench = Bench::shared().await?;
    let (proxies, operator) = behind_proxies(bench, options()).await?;
    let space = Space::new(bench.client()?, "forgone", operator.namespace()).await?;
    issued(&space, "before", &[]).await?;
    let namespace = operator.namespace().to_owned();
    let rollover = ["account", "rollover", "pebble", "--namespace", &namespace];
    let secrets: Api<Secret> = Api::namespaced(bench.client()?, &namespace);
    // The last one may be an answer that was lost: the key that the CA may know by now is kept.
    for (status, kind, kept) in [
        (501, "about:blank", false),
        (404, "malformed", false),
        (400, "malformed", false),
        (500, "serverInternal", true),
    ] {
        let kind = format!("urn:ietf:params:acme:error:{kind}");
        let body = json!({"type": kind, "detail": "no key changes here"}).to_string();
        proxies.rule(move |passed| {
            if passed.server == Server::Ca && passed.path.contains("rollover") {
                let nonce = Some(("replay-nonce", "bm9uY2U".to_owned()));
                return Fault::Answer(status, nonce, "application/problem+json", body.clone());
            }
            Fault::Pass
        });
        let output = cert_renew(bench, &rollover)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && said.contains("no key changes here"),
            "{output:?}"
        );
        let account = secrets.get("cert-renew-account-pebble").await?;
        let fields: Vec<String> = account.data.unwrap_or_default().into_keys().collect();
        let found = fields.iter().any(|field| field == "next");
        ensure!(found == kept, "{status}: {fields:?}");
    }
    proxies.rule(|_| Fault::Pass);
    // The account goes on with the key that it has.
    issued(&space, "after", &[]).await?;
    Ok(())
}
