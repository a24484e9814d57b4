//! What a declaration may not have, and what is not ours.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use test_bench::objects::{FRESH, Space, pair};
use test_bench::{Bench, Operator, Result, ensure, eventually};

use super::{create, declare, issued, says, with_addon};
use crate::install::kubectl;
use crate::renewal::{SOON, data};

#[tokio::test]
async fn what_is_there_and_not_ours_is_left_alone_until_it_is_handed_over() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, with_addon()).await?;
    let space = Space::new(bench.client()?, "not-ours", operator.namespace()).await?;
    let host = "mine.not-ours.example";
    let mine = pair(&[host], FRESH)?;
    space.tls_secret("mine", Some(&mine), &[]).await?;
    let words = BTreeMap::from([("password".to_owned(), ByteString(b"x".to_vec()))]);
    space.secret("words", "Opaque", words, &[]).await?;
    let before = [
        space.secrets().get("mine").await?,
        space.secrets().get("words").await?,
    ];
    declare(&space, "mine", host).await?;
    declare(&space, "words", "words.not-ours.example").await?;
    let said = says(&space, "mine", "refused").await?;
    let opaque = says(&space, "words", "refused").await?;
    ensure!(
        opaque["state.cert-renew.io/problems"].contains("of the type \"Opaque\""),
        "{opaque:?}"
    );
    let now = [
        space.secrets().get("mine").await?,
        space.secrets().get("words").await?,
    ];
    assert_eq!(now, before, "nothing is written");
    let events = eventually(SOON, "it is told by an Event", async || {
        let events = space.events("mine").await?;
        ensure!(
            events
                .iter()
                .any(|it| it.starts_with("DeclarationRefused: ")),
            "{events:?}"
        );
        Ok(events)
    })
    .await?;

    // As it says.
    let problem = &said["state.cert-renew.io/problems"];
    let (_, command) = problem.split_once("kubectl ").unwrap_or_default();
    ensure!(
        !command.is_empty() && events.iter().any(|it| it.contains(command)),
        "{problem}"
    );
    kubectl(bench, command, "")?;
    says(&space, "mine", "ok").await?;
    let now = space.secrets().get("mine").await?;
    assert_eq!(
        data(&now, "tls.crt"),
        mine.certificate,
        "it keeps the certificate"
    );
    Ok(())
}

#[tokio::test]
async fn a_hostile_declaration_gets_nothing_that_allow_does_not_give() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = with_addon();
    options.allow =
        "[{namespaces: [\"hostile-declared-*\"], names: [\"*.hostile-declared.example\"]}]".into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "hostile-declared", operator.namespace()).await?;
    declare(&space, "good", "good.hostile-declared.example").await?;
    let issued_for_good = issued(&space, "good").await?;
    let many: Vec<String> = (0..5_000)
        .map(|i| format!("n{i}.hostile-declared.example"))
        .collect();
    let many = many.join(",");
    let own = "x.hostile-declared.example";
    let mixed = format!("{own}, victim.example");
    for (name, annotations, why) in [
        (
            "others",
            &[("issuer", "pebble"), ("names", "victim.example")][..],
            "allow",
        ),
        (
            "mixed",
            &[("issuer", "pebble"), ("names", mixed.as_str())],
            "allow",
        ),
        (
            "many",
            &[("issuer", "pebble"), ("names", many.as_str())],
            "expected at most",
        ),
        (
            "unread",
            &[("issuer", "pebble"), ("names", "not_a_name")],
            "cert-renew.io/names",
        ),
        ("no-issuer", &[("names", own)], "cert-renew.io/issuer"),
        (
            "elsewhere",
            &[
                ("issuer", "pebble"),
                ("names", own),
                ("secret", "../kube-system/x"),
            ],
            "expected the name of a Secret",
        ),
    ] {
        create(&space, name, annotations).await?;
        let said = says(&space, name, "refused").await?;
        let problems = &said["state.cert-renew.io/problems"];
        ensure!(
            problems.contains(why) && problems.len() < 2_000,
            "{name}: {problems}"
        );
        ensure!(
            space.secrets().get_opt(name).await?.is_none(),
            "{name} is made"
        );
    }
    // One that was good: what it asks for now is not had, and what it had is kept.
    super::annotate(
        &space,
        "good",
        serde_json::json!({"cert-renew.io/names": mixed}),
    )
    .await?;
    let said = says(&space, "good", "refused").await?;
    ensure!(
        said["state.cert-renew.io/problems"].contains("keeps its settings"),
        "{said:?}"
    );
    let good = space.secrets().get("good").await?;
    assert_eq!(data(&good, "tls.crt"), issued_for_good);
    // A thousand for one Secret are one Secret, and delay nobody.
    let name = |i: usize| format!("many-{i}");
    for i in 0..200 {
        let host = format!("n{i}.hostile-declared.example");
        let annotations = [
            ("issuer", "pebble"),
            ("names", host.as_str()),
            ("secret", "heap"),
        ];
        create(&space, &name(i), &annotations).await?;
    }
    declare(&space, "after", "after.hostile-declared.example").await?;
    issued(&space, "after").await?;
    issued(&space, "heap").await?;
    let heap = crate::renewal::leaf(&space.secrets().get("heap").await?)?;
    ensure!(heap.names.len() <= 32, "{} names", heap.names.len());
    Ok(())
}
