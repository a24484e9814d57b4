//! What a CA would refuse is found out before it is asked.

use std::process::Command;

use serde_json::json;
use test_bench::objects::Space;
use test_bench::{
    Bench, Context as _, Operator, OperatorOptions, PebbleOptions, Result, ensure, eventually,
};

use crate::acme_operator::{event, issued};
use crate::renewal::{SOON, annotation, options, renewed};

#[tokio::test]
async fn a_forbidding_caa_record_costs_no_order_and_plan_tells_it() -> Result<()> {
    let bench = Bench::shared().await?;
    let pebble = PebbleOptions {
        name: "pebble-caa".into(),
        caa_identities: vec!["ca.bench.example".into()],
        ..PebbleOptions::default()
    };
    let pebble = bench.start_pebble(&pebble).await?;
    let dns = bench.dns().address();
    let options = OperatorOptions {
        config: format!(
            "{}retry: {{base: 1s, factor: 1, max: 1s}}\ndns: {{nameservers: [\"{dns}\"]}}\nsolvers:\n  \
             - http01: {{route: shared, selfCheck: false}}\n  - zones: [hooked.caa.example]\n    \
             dns01: {{provider: hetzner, credentials: {{secret: not-there}}}}\n",
            options().config
        ),
        directory: Some(pebble.directory().to_owned()),
        ..options()
    };
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "caa", operator.namespace()).await?;
    let records = |values: &[&str]| {
        let policies: Vec<_> = values
            .iter()
            .map(|value| json!({"tag": "issue", "value": value}))
            .collect();
        json!({"host": "caa.example", "policies": policies})
    };
    bench
        .dns()
        .set("add-caa", &records(&["other.example"]))
        .await?;
    let annotations = [("issuer", "pebble"), ("names", "www.caa.example")];
    space.tls_secret("www", None, &annotations).await?;
    eventually(SOON, "the record is named", async || {
        let secret = space.secrets().get("www").await?;
        let said = annotation(&secret, "state.cert-renew.io/last-error");
        let said = said.context("no error yet")?;
        ensure!(
            said.contains("CAA of caa.example forbids www.caa.example"),
            "{said}"
        );
        ensure!(said.contains("other.example"), "{said}");
        Ok(())
    })
    .await?;
    let hooked = [
        ("issuer", "pebble"),
        ("names", "hooked.caa.example"),
        ("profile", "unheard-of"),
    ];
    space.tls_secret("hooked", None, &hooked).await?;
    let output = Command::new(env!("CARGO_BIN_EXE_cert-renew"))
        .args(["plan", "--preflight", "-n", &space.name, "--config"])
        .arg(operator.config())
        .args(["--operator-namespace", operator.namespace()])
        .env("KUBECONFIG", bench.kubeconfig())
        .output()?;
    let said = String::from_utf8(output.stdout)?;
    for told in [
        "will fail: CAA of caa.example forbids www.caa.example",
        "will fail: the CA has no profile unheard-of",
        "DNS-01 by hetzner: reading Secret",
    ] {
        ensure!(said.contains(told), "{told} is not in\n{said}");
    }
    ensure!(
        !operator.log()?.contains("\"ordered\""),
        "an order was made"
    );

    let host = json!({"host": "caa.example"});
    bench.dns().set("clear-caa", &host).await?;
    let named = records(&[
        "other.example",
        "ca.bench.example; validationmethods=http-01",
    ]);
    bench.dns().set("add-caa", &named).await?;
    renewed(&space, "www", "").await?;
    Ok(())
}

#[tokio::test]
async fn a_caa_record_with_the_account_that_status_shows_lets_this_account_through_and_no_other()
-> Result<()> {
    let bench = Bench::shared().await?;
    let pebble = PebbleOptions {
        name: "pebble-pinned".to_owned(),
        caa_identities: vec!["ca.bench.example".to_owned()],
        ..PebbleOptions::default()
    };
    let pebble = bench.start_pebble(&pebble).await?;
    let dns = bench.dns().address();
    let options = OperatorOptions {
        config: format!(
            "{}retry: {{base: 1s, factor: 1, max: 1s}}\ndns: {{nameservers: [\"{dns}\"]}}\n",
            options().config
        ),
        directory: Some(pebble.directory().to_owned()),
        ..options()
    };
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "pinned", operator.namespace()).await?;
    issued(&space, "free", "free.example").await?;
    let status = ["status", "-n", &space.name, "-o", "json"];
    let shown = crate::command::cert_renew(&status, Some(bench.kubeconfig()))?;
    let rows: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
    let account = rows["certificates"][0]["account"]
        .as_str()
        .context("no account")?;
    let record = |account: &str| {
        let value = format!("ca.bench.example; accounturi={account}");
        json!({"host": "pinned.example", "policies": [{"tag": "issue", "value": value}]})
    };
    let other = record(&format!("{account}0"));
    bench.dns().set("add-caa", &other).await?;
    let annotations = [("issuer", "pebble"), ("names", "pinned.example")];
    space.tls_secret("pinned", None, &annotations).await?;
    event(&space, "pinned", "CAA of pinned.example forbids").await?;
    let host = json!({"host": "pinned.example"});
    bench.dns().set("clear-caa", &host).await?;
    bench.dns().set("add-caa", &record(account)).await?;
    renewed(&space, "pinned", "").await?;
    let orders = operator.log()?.matches("\"message\":\"ordered\"").count();
    assert_eq!(orders, 2, "none for another's record");
    Ok(())
}
