//! What a Secret asks for may change while its order waits: names, profile, key, pause, whether anybody may have it.

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use test_bench::objects::Space;
use test_bench::{Bench, Operator, OperatorOptions, Result, ensure, eventually};

use super::{LONG, base, nothing_was_spent, open, operator, stuck, unreachable};
use crate::acme_operator::event;
use crate::dns01::no_record_is_left;
use crate::renewal::{SOON, annotation, data, leaf, options, renewed};

/// What lets the Secret have a certificate is taken away while its order waits, and given back.
#[tokio::test]
async fn an_order_that_waits_goes_when_nobody_may_have_it_any_more() -> Result<()> {
    let bench = Bench::shared().await?;
    let second = |names: &str| {
        format!(
            "  second: {{directory: \"{}\", caBundle: \"{}\", profile: default, allow: [{{namespaces: [\"*\"], names: [{names}]}}]}}\n",
            bench.pebble().directory(),
            bench.ca_bundle().display(),
        )
    };
    let config = |names: &str, way: &str| second(names) + &base() + LONG + way;
    let all = "\"**.example\"";
    let options = OperatorOptions {
        config: config(all, &unreachable(bench)),
        ..options()
    };
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "withdrawn", operator.namespace()).await?;
    for name in ["allow", "class"] {
        let host = format!("{name}.withdrawn.example");
        let annotations = [("issuer", "second"), ("names", &*host)];
        space.tls_secret(name, None, &annotations).await?;
        stuck(bench, &operator, &space, name, "HTTP-01").await?;
    }
    space.annotate("class", "class", "another").await?;
    operator.configure(&config("elsewhere.example", &open(bench)))?;
    event(&space, "allow", "issuers.second.allow").await?;
    no_record_is_left(bench, &operator).await?;
    for name in ["allow", "class"] {
        let secret = space.secrets().get(name).await?;
        ensure!(data(&secret, "tls.crt").is_empty(), "{name} was written");
    }
    space
        .annotate("class", "class", operator.namespace())
        .await?;
    operator.configure(&config(all, &open(bench)))?;
    for name in ["allow", "class"] {
        renewed(&space, name, "").await?;
    }
    Ok(())
}

/// Whether the key is to be changed by the rule or because it is not to be trusted.
#[tokio::test]
async fn an_order_for_a_key_that_was_to_be_kept_is_made_again_when_it_need_not_be() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = operator(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "rotates", operator.namespace()).await?;
    let mut before = Vec::new();
    for name in ["rotates", "stolen"] {
        let host = format!("{name}.rotates.example");
        let old = test_bench::objects::pair(&[&host], test_bench::objects::OLD)?;
        let annotations = [("issuer", "pebble"), ("key-rotation", "never")];
        space.tls_secret(name, Some(&old), &annotations).await?;
        stuck(bench, &operator, &space, name, "HTTP-01").await?;
        before.push((name, old));
    }
    let stolen = leaf(&space.secrets().get("stolen").await?)?.fingerprint;
    space.annotate("rotates", "key-rotation", "always").await?;
    space
        .annotate("stolen", "revoked", stolen.to_string())
        .await?;
    operator.configure(&(base() + LONG + &open(bench)))?;
    for (name, old) in before {
        let secret = renewed(&space, name, &old.certificate).await?;
        ensure!(
            data(&secret, "tls.key") != old.key,
            "{name}: the key is the old one"
        );
    }
    Ok(())
}

/// Files that are asked for while the order waits are written with its certificate.
#[tokio::test]
async fn outputs_that_are_asked_for_while_an_order_waits_are_written_with_its_certificate()
-> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = operator(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "late-files", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "late-files.example")];
    space.tls_secret("waits", None, &annotations).await?;
    stuck(bench, &operator, &space, "waits", "HTTP-01").await?;
    space
        .annotate("waits", "outputs", "both.pem=key+fullchain")
        .await?;
    operator.configure(&(base() + LONG + &open(bench)))?;
    let secret = renewed(&space, "waits", "").await?;
    let (both, chain) = (data(&secret, "both.pem"), data(&secret, "tls.crt"));
    ensure!(both.contains("PRIVATE KEY") && both.contains(&*chain));
    Ok(())
}

/// The order is for a time that has moved away: it goes, and the CA issues nothing.
#[tokio::test]
async fn an_order_that_waits_goes_when_the_renewal_is_put_off() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = operator(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "put-off", operator.namespace()).await?;
    let age = test_bench::objects::Age {
        since: 50,
        left: 40,
    };
    let pair = test_bench::objects::pair(&["put-off.example"], age)?;
    let annotations = [("issuer", "pebble"), ("renew-before", "44d")];
    space.tls_secret("waits", Some(&pair), &annotations).await?;
    stuck(bench, &operator, &space, "waits", "HTTP-01").await?;
    space.annotate("waits", "renew-before", "10d").await?;
    operator.configure(&(base() + LONG + &open(bench)))?;
    no_record_is_left(bench, &operator).await?;
    let secret = space.secrets().get("waits").await?;
    ensure!(
        data(&secret, "tls.crt") == pair.certificate,
        "it was renewed"
    );
    Ok(())
}

/// What the Secret asks for changes while its order waits; then the way is opened.
#[tokio::test]
async fn what_a_secret_asks_for_by_now_is_what_it_gets_from_an_order_that_waited() -> Result<()> {
    let bench = Bench::shared().await?;
    let rows = [
        ("key-type", "rsa-2048"),
        ("profile", "shortlived"),
        ("lifetime", "30d"),
        ("names", "other.changed.example"),
        ("issuer", "second"),
    ];
    let second = format!(
        "  second: {{directory: \"{}\", caBundle: \"{}\", profile: default, allow: [{{namespaces: [\"*\"], names: [\"**.example\"]}}]}}\n",
        bench.pebble().directory(),
        bench.ca_bundle().display(),
    );
    let config = |way: &str| second.clone() + &base() + LONG + way;
    let nobody = unreachable(bench).replace("route: shared", "route: shared, selfCheck: true");
    let mut options = options();
    options.config = config(&nobody);
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "changed", operator.namespace()).await?;
    // Nobody listens on port 80 of what these names resolve to.
    for (key, _) in rows {
        let host = format!("{key}.changed.example");
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        space.tls_secret(key, None, &annotations).await?;
    }
    for (key, value) in rows {
        stuck(bench, &operator, &space, key, "HTTP-01").await?;
        space.annotate(key, key, value).await?;
    }
    eventually(SOON, "each of the orders is given up", async || {
        let given_up = operator.log()?.matches("the order is given up").count();
        ensure!(given_up >= rows.len(), "{given_up} are");
        Ok(())
    })
    .await?;
    operator.configure(&config(&open(bench)))?;
    for (key, value) in rows {
        let secret = renewed(&space, key, "").await?;
        let issued_by = annotation(&secret, "state.cert-renew.io/issued-by").unwrap_or_default();
        let noted = if key == "lifetime" {
            "\"lifetime\":2592000"
        } else {
            value
        };
        ensure!(issued_by.contains(noted), "{key}: {issued_by}");
        let (leaf, names) = (
            leaf(&secret)?,
            |leaf: &cert_renew_core::certificate::Leaf| {
                leaf.names
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(",")
            },
        );
        match key {
            "key-type" => ensure!(
                leaf.key_type.is_some_and(|it| it.as_str() == value),
                "{leaf:?}"
            ),
            "names" => ensure!(names(&leaf) == value, "{leaf:?}"),
            "lifetime" => {
                let days = leaf.lifetime().as_secs() as f64 / 86_400.0;
                ensure!((29.9..=30.1).contains(&days), "{days} days");
            }
            _ => {}
        }
        nothing_was_spent(&space, key).await?;
    }
    no_record_is_left(bench, &operator).await?;
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_put_there_to_be_kept_while_an_order_waits_is_used() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = operator(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "kept", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "kept.example"),
        ("key-rotation", "never"),
    ];
    space.tls_secret("waits", None, &annotations).await?;
    stuck(bench, &operator, &space, "waits", "HTTP-01").await?;
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/certificates/rsa-3072.key"
    );
    let key = std::fs::read(path)?;
    let own = cert_renew_core::certificate::key::PrivateKey::from_pem(&key)?.public_key();
    space
        .merge("waits", json!({"data": {"tls.key": ByteString(key)}}))
        .await?;
    operator.configure(&(base() + LONG + &open(bench)))?;
    let secret = renewed(&space, "waits", "").await?;
    assert_eq!(*leaf(&secret)?.public_key, *own);
    Ok(())
}

#[tokio::test]
async fn an_order_that_waits_keeps_to_a_pause_and_to_a_change_window() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = operator(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "shut", operator.namespace()).await?;
    let valid = test_bench::objects::Age {
        since: 60,
        left: 60,
    };
    for (name, key, value) in [
        ("paused", "paused", "true"),
        ("window", "change-window", "Mon 00:00-00:01 UTC"),
        ("unread", "paused", "yes"),
    ] {
        let host = format!("{name}.shut.example");
        let pair = test_bench::objects::pair(&[&host], valid)?;
        let annotations = [("issuer", "pebble"), ("renew-now", "1")];
        space.tls_secret(name, Some(&pair), &annotations).await?;
        stuck(bench, &operator, &space, name, "HTTP-01").await?;
        space.annotate(name, key, value).await?;
    }
    operator.configure(&(base() + LONG + &open(bench)))?;
    let before = space.secrets().get("paused").await?;
    // Something else is renewed meanwhile, so that the config is in force and has been acted on.
    let annotations = [("issuer", "pebble"), ("names", "free.shut.example")];
    space.tls_secret("free", None, &annotations).await?;
    renewed(&space, "free", "").await?;
    for name in ["paused", "window", "unread"] {
        let now = space.secrets().get(name).await?;
        let host = format!("{name}.shut.example");
        let is_old = leaf(&now)?.names.iter().any(|it| it.to_string() == host)
            && annotation(&now, "state.cert-renew.io/issued-by").is_none();
        ensure!(is_old, "{name} was written");
    }
    let old = data(&before, "tls.crt");
    space.annotate("paused", "paused", Value::Null).await?;
    renewed(&space, "paused", &old).await?;
    let old = data(&space.secrets().get("window").await?, "tls.crt");
    space
        .annotate("window", "change-window", Value::Null)
        .await?;
    renewed(&space, "window", &old).await?;
    let old = data(&space.secrets().get("unread").await?, "tls.crt");
    space.annotate("unread", "paused", Value::Null).await?;
    renewed(&space, "unread", &old).await?;
    Ok(())
}

/// Somebody empties the data of a Secret that only its certificate gave names (cert-manager #7871).
#[tokio::test]
async fn a_secret_that_is_emptied_is_renewed_for_the_names_that_it_had() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = operator(bench, None, &(LONG.to_owned() + &open(bench))).await?;
    let space = Space::new(bench.client()?, "emptied", operator.namespace()).await?;
    let old = test_bench::objects::pair(&["emptied.example"], test_bench::objects::OLD)?;
    space
        .tls_secret("emptied", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "emptied", &old.certificate).await?;
    space
        .merge("emptied", json!({"data": {"tls.crt": "", "tls.key": ""}}))
        .await?;
    eventually(SOON, "it has a certificate again", async || {
        let secret = space.secrets().get("emptied").await?;
        ensure!(!data(&secret, "tls.crt").is_empty(), "it is empty");
        Ok(())
    })
    .await?;
    let names = leaf(&space.secrets().get("emptied").await?)?.names;
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].to_string(), "emptied.example");
    Ok(())
}

/// The order is for a certificate that nothing asks for any more: it goes, and the CA issues nothing.
#[tokio::test]
async fn an_order_that_waits_goes_when_somebody_else_has_put_a_certificate_there() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = operator(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "overtaken", operator.namespace()).await?;
    let names = ["overtaken.example"];
    let old = test_bench::objects::pair(&names, test_bench::objects::OLD)?;
    let annotations = [("issuer", "pebble")];
    space.tls_secret("waits", Some(&old), &annotations).await?;
    stuck(bench, &operator, &space, "waits", "HTTP-01").await?;
    let new = test_bench::objects::pair(&names, test_bench::objects::FRESH)?;
    space.put("waits", &new).await?;
    operator.configure(&(base() + LONG + &open(bench)))?;
    no_record_is_left(bench, &operator).await?;
    let secret = space.secrets().get("waits").await?;
    ensure!(
        data(&secret, "tls.crt") == new.certificate,
        "it was renewed"
    );
    Ok(())
}
