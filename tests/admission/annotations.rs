//! The policy on annotations: what does not parse is refused, and nothing that the operator takes.

use std::collections::BTreeMap;

use cert_renew_core::secret::settings::{NamespaceDefaults, Settings};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use serde_json::json;
use test_bench::objects::Space;
use test_bench::{Bench, Result, bail, ensure, eventually};

use super::{bind, in_force, try_create, verdict};
use crate::renewal::SOON;

/// Annotation, values that cert-renew takes, values that it does not.
const EXAMPLES: [(&str, &[&str], &[&str]); 18] = [
    (
        "issuer",
        &["letsencrypt", "external", "le-2", " padded "],
        &["", "Let's Encrypt", "-a", "UPPER"],
    ),
    (
        "names",
        &[
            "a.example",
            "Shop.example.com, *.shop.example.com,\n10.0.0.1,fd00::1,",
            "bücher.example",
            "a.example.",
            "::ffff:10.0.0.1",
        ],
        &[
            "",
            "a b",
            "shop_example.com",
            "*.*.a",
            "999.1.1.1",
            "-a.example",
            "a..b",
            "https://a.example",
        ],
    ),
    (
        "renew-before",
        &["30d", "12h", "1h30m", "33%", "1 %", "0h1m"],
        &["", "0%", "100%", "0s", "5", "-1d", "1w", "1.5h"],
    ),
    ("profile", &["tlsserver", "a.b_c-1"], &["", "a b", "ä"]),
    (
        "lifetime",
        &["24h", "7d", "1h30m", "5m"],
        &["", "0s", "33%", "5", "-1d", "1w", "1.5h"],
    ),
    ("key-rotation", &["always", "never"], &["", "Always", "yes"]),
    (
        "key-type",
        &["ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-4096"],
        &["", "rsa", "ed25519", "RSA-2048"],
    ),
    (
        "outputs",
        &[
            "fullchain.pem=fullchain, tls.pem=key+fullchain",
            "a = leaf + chain\nb=pkcs12",
            "dhparam=ffdhe2048",
            "a=ffdhe3072, b=ffdhe4096+leaf",
        ],
        &[
            "",
            "tls.pem",
            "=key",
            "a/b=key",
            "..data=key",
            "a=jks",
            "a=key+pkcs12",
            "a=",
        ],
    ),
    ("pkcs12-password-key", &["password"], &["", "a/b", "..x"]),
    (
        "rollout",
        &["restart", "none", "post:8080/-/reload", "post:8080/?now=1"],
        &[
            "",
            "Restart",
            "post:8080",
            "post:0/x",
            "post:8080/a b",
            "post:x/y",
        ],
    ),
    (
        "workloads",
        &[
            "deployment/web, replicationcontroller/legacy",
            "replicaset/a, RS/b, rollout/c, rollouts/d, ro/e",
            "RC/a\nsts/b",
            "Deployments/a.b",
        ],
        &["", "web", "pod/web", "deployment/Web", "deployment/"],
    ),
    (
        "rollout-on",
        &["leaf", "leaf, chain,\nca,", " ca ,ca"],
        &["", ",", "none", "Leaf", "leaf ca", "leaf,ca.crt"],
    ),
    (
        "change-window",
        &[
            "Mon-Fri 02:00-04:00 Europe/Berlin",
            "02:00-24:00 UTC",
            "mon, wed 2:00-04:00 UTC; Sat-Sun 22:00-6:00 America/New_York;",
        ],
        &[
            "",
            ";",
            "02:00-04:00",
            "Mon 2-4 UTC",
            "Day 02:00-04:00 UTC",
            "25:00-26:00 UTC",
            "24:00-02:00 UTC",
        ],
    ),
    (
        "verify",
        &["web:443", "a-b:65535"],
        &["", "web", "web:0", "web:https", "web.shop:443", "web:+443"],
    ),
    ("paused", &["true", "false"], &["", "yes", "True", "1"]),
    ("renew-now", &["2026-11-23", "now"], &["", " "]),
    ("class", &["edge", "default"], &["", "a/b", "Edge"]),
    (
        "declared",
        &["true", "false", " true "],
        &["", "yes", "True"],
    ),
];

/// cert-renew's own verdict.
fn parses(annotations: &[(&str, &str)]) -> bool {
    let full = |(key, value): &(&str, &str)| (format!("cert-renew.io/{key}"), (*value).to_owned());
    let annotations: BTreeMap<String, String> = annotations.iter().map(full).collect();
    let (_, problems) = Settings::read(&annotations, false, &NamespaceDefaults::default());
    problems.is_empty()
}

#[tokio::test]
async fn annotations_that_do_not_parse_are_refused_and_no_others() -> Result<()> {
    let bench = Bench::shared().await?;
    let client = bench.client()?;
    let space = Space::new(client.clone(), "annotations", "nobody").await?;
    bind(&client, "annotations.yaml", &space).await?;
    in_force(&space, &[("issuer", "")]).await?;
    for (key, good, bad) in EXAMPLES {
        for value in good {
            let answer = try_create(&space, &[("issuer", "x"), (key, value)]).await?;
            assert_eq!(answer, Ok(()), "{key}: {value:?}");
        }
        for value in bad {
            let answer = try_create(&space, &[("issuer", "x"), (key, value)]).await?;
            let said = answer.expect_err(&format!("{key}: {value:?} passed"));
            ensure!(
                said.contains(&format!("cert-renew.io/{key}: expected")),
                "{said}"
            );
        }
        for (values, expected) in [(good, true), (bad, false)] {
            for value in values {
                assert_eq!(
                    parses(&[("issuer", "x"), (key, value)]),
                    expected,
                    "{key}: {value:?}"
                );
            }
        }
    }
    for value in [
        "a".repeat(32 * 1024 + 1),
        "-----BEGIN PRIVATE KEY-----".into(),
        "a.example,".repeat(101),
        format!("{}.example", "a".repeat(64)),
        "a,".repeat(16 * 1024),
    ] {
        let answer = try_create(&space, &[("names", &value)]).await?;
        let said = answer.expect_err("it passed");
        ensure!(said.contains("cert-renew.io"), "{said}");
    }
    // Ours to warn of, not to refuse; and what is not ours at all.
    assert_eq!(try_create(&space, &[("isuer", "x")]).await?, Ok(()));
    assert_eq!(try_create(&space, &[]).await?, Ok(()));
    Ok(())
}

/// What people mistype: a character doubled, dropped, or another one in its place.
fn mistyped(value: &str, seed: &mut u64) -> String {
    const KEYS: &[u8] = b" ,;:-+=/.%*0159azAZ_@\n";
    let mut random = |below: usize| {
        // A linear congruential generator (Knuth's MMIX) is random enough for typing errors.
        *seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(*seed >> 33).unwrap_or_default() % below.max(1)
    };
    let mut characters: Vec<char> = value.chars().collect();
    let at = random(characters.len());
    match random(3) {
        0 if !characters.is_empty() => drop(characters.remove(at)),
        1 if !characters.is_empty() => characters[at] = char::from(KEYS[random(KEYS.len())]),
        _ => characters.insert(at, char::from(KEYS[random(KEYS.len())])),
    }
    characters.into_iter().collect()
}

#[tokio::test]
async fn the_policy_is_never_stricter_than_the_operator() -> Result<()> {
    const ROUNDS: usize = 12;
    let bench = Bench::shared().await?;
    let client = bench.client()?;
    let space = Space::new(client.clone(), "typos", "nobody").await?;
    bind(&client, "annotations.yaml", &space).await?;
    in_force(&space, &[("issuer", "")]).await?;
    let (mut seed, mut tried, mut laxer) = (8, 0, Vec::new());
    for (key, good, _) in EXAMPLES {
        for value in good.iter().flat_map(|value| vec![value; ROUNDS]) {
            let value = mistyped(value, &mut seed);
            let annotations = [("issuer", "x"), (key, &*value)];
            let (taken, parses) = (
                try_create(&space, &annotations).await?,
                parses(&annotations),
            );
            tried += 1;
            match taken {
                Err(said) if parses => bail!("{key}: {value:?} parses, and is refused: {said}"),
                Ok(()) if !parses => laxer.push(format!("{key}: {value:?}")),
                _ => {}
            }
        }
    }
    // What CEL cannot know: the zones that there are, and an IPv4 address within an IPv6 one.
    let known = |it: &String| it.starts_with("change-window") || it.contains("::ffff:");
    ensure!(laxer.iter().all(known), "of {tried} values: {laxer:#?}");
    Ok(())
}

/// What a ConfigMap declares is held to the same rules, and other ConfigMaps are nobody's business.
#[tokio::test]
async fn a_declaration_that_does_not_parse_is_refused_and_no_other_config_map() -> Result<()> {
    let bench = Bench::shared().await?;
    let client = bench.client()?;
    let space = Space::new(client.clone(), "policy-declared", "nobody").await?;
    bind(&client, "annotations.yaml", &space).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, &space.name);
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let answer = async |label: &str, key: &str, value: &str| {
        let map = json!({"metadata": {
            "name": "probe", "labels": {label: "true"}, "annotations": {format!("cert-renew.io/{key}"): value},
        }});
        verdict(maps.create(&dry, &serde_json::from_value(map)?).await)
    };
    let declares = "cert-renew.io/certificate";
    eventually(SOON, "the policy is in force", async || {
        ensure!(answer(declares, "names", "a b").await?.is_err());
        Ok(())
    })
    .await?;
    for (label, key, value, expected) in [
        (declares, "names", "a.example", None),
        (declares, "secret", "shop-tls", None),
        (
            declares,
            "secret",
            "../x",
            Some("expected the name of a Secret"),
        ),
        (
            declares,
            "issuer",
            "Not One",
            Some("expected the name of an issuer"),
        ),
        ("example.com/other", "names", "a b", None),
    ] {
        match (answer(label, key, value).await?, expected) {
            (Ok(()), None) => {}
            (Err(said), Some(part)) => ensure!(said.contains(part), "{said}"),
            (other, _) => bail!("{label} {key} {value}: {other:?}"),
        }
    }
    Ok(())
}
