//! What a person does at a CA: take a certificate back, change the account's key.

use std::process::{Command, Output};
use std::sync::Arc;

use kube::api::{Patch, PatchParams};
use serde_json::json;
use test_bench::objects::{Reference, Space};
use test_bench::{Bench, Fault, Operator, Proxies, Result, Server, ensure, eventually};

use crate::renewal::{SOON, data, leaf, options, renewed, rolled_out};

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
        "--reason",
        "keyCompromise",
        "--operator-namespace",
        operator.namespace(),
    ];
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
    let proxies = Proxies::start(bench).await?;
    let mut options = options();
    options.directory = Some(proxies.directory());
    let mut operator = Operator::start(bench, options).await?;
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
