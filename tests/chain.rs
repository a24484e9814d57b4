//! The same leaf with another chain, or another `ca.crt`: who uses what has changed is restarted, and nobody else.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use test_bench::certificates::{DAY, Pair, Template, TestCa};
use test_bench::objects::{FRESH, Space, pair};
use test_bench::{Bench, Checker, Operator, Result, ensure, eventually, throughout};

use crate::propagation::told;
use crate::renewal::{SOON, annotation, leaf, options, rolled_out};
use crate::rolling::{make, ready};

/// Long enough for a restart that should not be to show itself: one takes less than a second.
const QUIET: Duration = Duration::from_secs(3);
const WITH: &str = "state.cert-renew.io/rolled-out-with";

/// A pair, and the same leaf with the intermediate of another CA.
fn two_chains(name: &str) -> Result<(Pair, Pair)> {
    let template = Template::new(&[name]).between(-FRESH.since * DAY, FRESH.left * DAY);
    let first = template.signed_by(&TestCa::new("chain")?)?;
    let other = template.signed_by(&TestCa::new("chain")?)?;
    let end = "-----END CERTIFICATE-----\n";
    let mine = first.certificate.split_inclusive(end).next();
    let theirs = other.certificate.split_inclusive(end).nth(1);
    let second = Pair {
        certificate: [mine, theirs].into_iter().flatten().collect(),
        ..first.clone()
    };
    Ok((first, second))
}

async fn write(space: &Space, name: &str, patch: Value) -> Result<()> {
    let params = PatchParams {
        field_manager: Some("somebody-else".into()),
        ..PatchParams::default()
    };
    space
        .secrets()
        .patch(name, &params, &Patch::Merge(patch))
        .await?;
    Ok(())
}

async fn put_ca(space: &Space, name: &str, ca: &str) -> Result<()> {
    write(space, name, json!({"stringData": {"ca.crt": ca}})).await
}

/// Makes a Secret with CA certificates.
async fn secret(
    space: &Space,
    name: &str,
    (pair, ca): (&Pair, &str),
    annotations: &[(&str, &str)],
) -> Result<()> {
    let data = [
        ("tls.crt", &*pair.certificate),
        ("tls.key", &pair.key),
        ("ca.crt", ca),
    ];
    let data = data.map(|(key, text)| {
        let bytes = k8s_openapi::ByteString(text.as_bytes().to_vec());
        (key.to_owned(), bytes)
    });
    space
        .secret(name, "kubernetes.io/tls", data.into(), annotations)
        .await?;
    Ok(())
}

/// Makes a Deployment that mounts these keys of a Secret, all where there are none.
async fn reader(space: &Space, name: &str, secret: &str, keys: &[&str]) -> Result<()> {
    let items = keys.iter().map(|key| json!({"key": key, "path": key}));
    let items: Vec<Value> = items.collect();
    let volume = json!([{"name": "tls", "secret": {"secretName": secret, "items": items}}]);
    let volumes = [("/spec/template/spec/volumes", volume)];
    make(space, "Deployment", name, secret, &volumes).await?;
    ready(space, name, 2).await?;
    Ok(())
}

/// Waits until the record is of what the Secret holds, and returns it.
async fn recorded(space: &Space, name: &str) -> Result<String> {
    eventually(SOON, &format!("{name} has its record"), async || {
        let secret = space.secrets().get(name).await?;
        let said = annotation(&secret, WITH).unwrap_or("nothing");
        let fingerprint = leaf(&secret)?.fingerprint.to_string();
        ensure!(said.starts_with(&fingerprint), "{said}");
        Ok(said.to_owned())
    })
    .await
}

async fn generations(space: &Space, names: &[&str]) -> Result<BTreeMap<String, i64>> {
    let mut found = BTreeMap::new();
    for name in names {
        let generation = space.generation("Deployment", name).await?;
        found.insert((*name).to_owned(), generation);
    }
    Ok(found)
}

/// Waits until the workloads are of these generations, and stay so.
async fn restarted(space: &Space, expected: &[(&str, i64)]) -> Result<()> {
    let names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    let expected = expected.iter().map(|(name, at)| ((*name).to_owned(), *at));
    let expected: BTreeMap<String, i64> = expected.collect();
    let are = async || {
        let found = generations(space, &names).await?;
        ensure!(found == expected, "{found:?}, not {expected:?}");
        Ok(())
    };
    let came = eventually(SOON, "the right ones are restarted", are).await;
    if let Err(error) = came {
        return Err(error.context(space.situation().await));
    }
    throughout(QUIET, "nobody else is restarted", are).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_intermediate_restarts_who_reads_the_chain_unless_the_setting_says_otherwise()
-> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "chain", operator.namespace()).await?;
    let settings: [(&str, Option<&str>, i64); 4] = [
        ("default", None, 2),
        ("chain", Some("leaf, chain"), 2),
        ("leaf", Some("leaf"), 1),
        ("ca", Some("ca"), 1),
    ];
    let mut seconds = Vec::new();
    for (name, on, _) in settings {
        let (first, second) = two_chains("chain.example")?;
        let mut annotations = vec![("issuer", "external")];
        annotations.extend(on.map(|on| ("rollout-on", on)));
        secret(&space, name, (&first, &first.certificate), &annotations).await?;
        reader(&space, name, name, &[]).await?;
        let bundle = format!("{name}-bundle");
        reader(&space, &bundle, name, &["ca.crt"]).await?;
        recorded(&space, name).await?;
        seconds.push(second);
    }
    let mut checker = Checker::default();
    checker.stale_after_done(&space.client, &space.name).await?;
    for ((name, ..), second) in settings.iter().zip(&seconds) {
        space.put(name, second).await?;
    }
    let expected = settings.map(|(name, _, generation)| (name, generation));
    restarted(&space, &expected).await?;
    for (name, ..) in settings {
        let bundle = format!("{name}-bundle");
        restarted(&space, &[(&*bundle, 1)]).await?;
    }
    told(&space, "default", "the new chain of the certificate").await?;
    // The same certificates in another order and form, as tools write them.
    let parts = seconds[0]
        .certificate
        .replace("-----BEGIN", "# ours\n-----BEGIN");
    write(&space, "default", json!({"stringData": {"tls.crt": parts}})).await?;
    restarted(&space, &[("default", 2)]).await?;
    let stale = checker.stale_after_done(&space.client, &space.name).await?;
    assert!(stale.is_empty(), "{stale:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_ca_crt_alone_is_restarted_for_that_key_and_no_other() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "trust", operator.namespace()).await?;
    let cas = [TestCa::new("a")?, TestCa::new("b")?, TestCa::new("c")?];
    let names = ["trust.example"];
    let first = pair(&names, FRESH)?;
    secret(
        &space,
        "tls",
        (&first, cas[0].root()),
        &[("issuer", "external")],
    )
    .await?;
    reader(&space, "all", "tls", &[]).await?;
    reader(&space, "bundle", "tls", &["ca.crt"]).await?;
    reader(&space, "pair", "tls", &["tls.crt", "tls.key"]).await?;
    let variable =
        json!([{"name": "CA", "valueFrom": {"secretKeyRef": {"name": "tls", "key": "ca.crt"}}}]);
    let by_env = [
        ("/spec/template/spec/volumes", json!([])),
        ("/spec/template/spec/containers/0/env", variable),
    ];
    make(&space, "Deployment", "env", "tls", &by_env).await?;
    ready(&space, "env", 2).await?;
    // What cert-renew renews itself, with a CA that somebody else has put beside it.
    secret(
        &space,
        "ours",
        (&first, cas[0].root()),
        &[("issuer", "pebble")],
    )
    .await?;
    reader(&space, "ours", "ours", &["ca.crt"]).await?;
    for name in ["tls", "ours"] {
        recorded(&space, name).await?;
    }
    let mut checker = Checker::default();
    checker.stale_after_done(&space.client, &space.name).await?;
    let all = |all, bundle, pair| {
        [
            ("all", all),
            ("bundle", bundle),
            ("env", bundle),
            ("pair", pair),
        ]
    };
    restarted(&space, &all(1, 1, 1)).await?;

    put_ca(&space, "tls", cas[1].root()).await?;
    put_ca(&space, "ours", cas[1].root()).await?;
    restarted(&space, &all(2, 2, 1)).await?;
    restarted(&space, &[("ours", 2)]).await?;
    told(&space, "tls", "the new ca.crt of the certificate").await?;
    told(&space, "bundle", "available with the new ca.crt").await?;
    let used_by = "state.cert-renew.io/used-by";
    let users = annotation(&space.secrets().get("tls").await?, used_by).map(ToOwned::to_owned);
    let named = |name: &&str| {
        users
            .as_ref()
            .is_some_and(|it| it.contains(&format!("deployment/{name}")))
    };
    assert!(
        ["all", "bundle", "env", "pair"].iter().all(named),
        "{users:?}"
    );

    // A new leaf alone, then both.
    space.put("tls", &pair(&names, FRESH)?).await?;
    rolled_out(&space, "tls").await?;
    restarted(&space, &all(3, 2, 2)).await?;
    let third = pair(&names, FRESH)?;
    let both = json!({"tls.crt": third.certificate, "tls.key": third.key, "ca.crt": cas[2].root()});
    write(&space, "tls", json!({"stringData": both})).await?;
    restarted(&space, &all(4, 3, 3)).await?;

    // What nobody is better off with: emptied, unreadable, taken away; then back in another form.
    for ca in [
        json!(""),
        json!("no certificate"),
        Value::Null,
        json!(format!("# c\n{}", cas[2].root())),
    ] {
        let ca = ca.as_str().map(|ca| json!({"stringData": {"ca.crt": ca}}));
        let gone = json!({"data": {"ca.crt": null}});
        write(&space, "tls", ca.unwrap_or(gone)).await?;
        restarted(&space, &all(4, 3, 3)).await?;
    }
    let stale = checker.stale_after_done(&space.client, &space.name).await?;
    assert!(stale.is_empty(), "{stale:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_on_record_counts_as_known_and_what_changes_while_nobody_looks_is_rolled()
-> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, options()).await?;
    let space = Space::new(bench.client()?, "known", operator.namespace()).await?;
    let cas = [TestCa::new("a")?, TestCa::new("b")?];
    let (first, _) = two_chains("known.example")?;
    let fingerprint = cert_renew_core::certificate::leaf(first.certificate.as_bytes())?;
    let former = format!("{} {}", fingerprint.fingerprint, fingerprint.not_after);
    let of_0_1 = [
        ("issuer", "external"),
        ("state.cert-renew.io/rolled-out", &*former),
    ];
    secret(&space, "new", (&first, cas[0].root()), &of_0_1[..1]).await?;
    secret(&space, "former", (&first, cas[0].root()), &of_0_1).await?;
    for name in ["new", "former"] {
        reader(&space, name, name, &[]).await?;
    }
    operator.run().await?;
    for name in ["new", "former"] {
        recorded(&space, name).await?;
    }
    restarted(&space, &[("new", 1), ("former", 1)]).await?;
    let versions = async || {
        let secrets = [
            space.secrets().get("new").await?,
            space.secrets().get("former").await?,
        ];
        Ok::<_, test_bench::Error>(secrets.map(|it| it.resource_version()))
    };
    let before = versions().await?;
    operator.kill();
    operator.run().await?;
    throughout(QUIET, "nothing is written twice", async || {
        ensure!(versions().await? == before, "written again");
        Ok(())
    })
    .await?;
    // While nobody looks.
    operator.kill();
    for name in ["new", "former"] {
        put_ca(&space, name, cas[1].root()).await?;
    }
    operator.run().await?;
    restarted(&space, &[("new", 2), ("former", 2)]).await?;
    // A writer that knows nothing of our state brings another CA and takes the record away.
    let mut bare = space.secrets().get("new").await?;
    let annotations = bare.annotations_mut();
    annotations.retain(|key, _| !key.starts_with("state.cert-renew.io/"));
    let root = cas[0].root().as_bytes().to_vec();
    let data = bare.data.get_or_insert_default();
    data.insert("ca.crt".to_owned(), k8s_openapi::ByteString(root));
    space
        .secrets()
        .replace("new", &PostParams::default(), &bare)
        .await?;
    restarted(&space, &[("new", 3), ("former", 2)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_each_is_restarted_once_and_a_newer_ca_supersedes() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config = "rollout: {settle: 0s, perWorkloadMinInterval: 0s, canaryBake: 1h}\n".into();
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "cut-off", operator.namespace()).await?;
    let cas = [TestCa::new("a")?, TestCa::new("b")?, TestCa::new("c")?];
    let first = pair(&["cut-off.example"], FRESH)?;
    secret(
        &space,
        "tls",
        (&first, cas[0].root()),
        &[("issuer", "external")],
    )
    .await?;
    let names = ["a", "b", "c"];
    for name in names {
        reader(&space, name, "tls", &[]).await?;
    }
    let had = recorded(&space, "tls").await?;
    put_ca(&space, "tls", cas[1].root()).await?;
    let sum = async |expected: i64| {
        eventually(SOON, "the canary is restarted", async || {
            let found = generations(&space, &names).await?;
            ensure!(found.values().sum::<i64>() == expected, "{found:?}");
            Ok(())
        })
        .await
    };
    sum(4).await?;
    // Another CA while the others wait for the canary: it goes first once more, and they never see the one between.
    put_ca(&space, "tls", cas[2].root()).await?;
    sum(5).await?;
    operator.kill();
    assert_eq!(recorded(&space, "tls").await?, had, "it is not done");
    operator.configure("rollout: {settle: 0s, perWorkloadMinInterval: 0s}\n")?;
    operator.run().await?;
    sum(7).await?;
    eventually(SOON, "it is done", async || {
        let said = recorded(&space, "tls").await?;
        ensure!(said != had, "{said}");
        Ok(())
    })
    .await?;
    let found = generations(&space, &names).await?;
    let mut found: Vec<i64> = found.into_values().collect();
    found.sort_unstable();
    assert_eq!(found, [2, 2, 3]);
    Ok(())
}
