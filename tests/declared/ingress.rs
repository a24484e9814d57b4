//! Certificates that Ingresses declare: each Secret that a TLS entry names is made, kept, left alone and told of.

use k8s_openapi::api::networking::v1::Ingress;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, Space, pair};
use test_bench::{Bench, Operator, OperatorOptions, Result, ensure, eventually};

use super::{declare, issued, with_addon};
use crate::acme_limits::orders;
use crate::install::kubectl;
use crate::renewal::{SOON, annotation, data, leaf, options, overdue, renewed, rolled_out};

/// The role that it needs.
const ADDON: &str = "rbac/addons/routes.yaml";

/// Secrets and their hosts.
type Tls<'a> = &'a [(&'a str, &'a [&'a str])];

/// An operator that may follow Ingresses, and waits so long until their hosts rest.
pub(super) fn with_routes(settle: &str) -> OperatorOptions {
    let mut options = options();
    options.addons.push(ADDON.into());
    options.config += &format!("routes: {{settle: {settle}}}\n");
    options
}

fn ingresses(space: &Space) -> Api<Ingress> {
    Api::namespaced(space.client.clone(), &space.name)
}

fn entries(tls: Tls<'_>) -> Vec<Value> {
    tls.iter()
        .map(|(secret, hosts)| json!({"secretName": secret, "hosts": hosts}))
        .collect()
}

/// Makes an Ingress with an issuer, further annotations, and these TLS entries.
pub(crate) async fn create(
    space: &Space,
    name: &str,
    annotations: &[(&str, &str)],
    tls: Tls<'_>,
) -> Result<()> {
    let mut all = vec![("issuer", "pebble")];
    all.extend(annotations);
    let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
    let object: Ingress = serde_json::from_value(json!({
        "metadata": {"name": name, "annotations": space.annotations(&all)},
        "spec": {"ingressClassName": "none", "tls": entries(tls), "defaultBackend": backend},
    }))?;
    let api = ingresses(space);
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}

/// Changes an Ingress.
async fn merge(space: &Space, name: &str, patch: Value) -> Result<()> {
    let (api, params) = (ingresses(space), PatchParams::default());
    api.patch(name, &params, &Patch::Merge(patch)).await?;
    Ok(())
}

/// Gives an Ingress one TLS entry, of the Secret `tls`.
async fn set_hosts(space: &Space, name: &str, hosts: &[&str]) -> Result<()> {
    let tls = entries(&[("tls", hosts)]);
    merge(space, name, json!({"spec": {"tls": tls}})).await
}

/// Waits until an Event of this beginning is on an object, with these words in it; its text.
async fn hears(space: &Space, name: &str, beginning: &str, words: &str) -> Result<String> {
    eventually(SOON, &format!("{name} hears: {words}"), async || {
        let events = space.events(name).await?;
        let mut events_of_it = events.iter().filter(|it| it.starts_with(beginning));
        let found = events_of_it.find(|it| it.contains(words)).cloned();
        ensure!(found.is_some(), "{events:?}");
        Ok(found.unwrap_or_default())
    })
    .await
}

#[tokio::test]
async fn hosts_that_come_and_go_cost_one_order_or_none() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, with_routes("5s")).await?;
    let space = Space::new(bench.client()?, "routed", operator.namespace()).await?;
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|it| format!("{it}.routed.example"));
    let (two, four) = ([&*a, &*b], [&*a, &*b, &*c, &*d]);
    create(&space, "web", &[], &[("tls", &two)]).await?;
    let first = issued(&space, "tls").await?;
    let secret = space.secrets().get("tls").await?;
    assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/tls"));
    assert_eq!((leaf(&secret)?.names.len(), orders(&operator)?), (2, 1));
    hears(&space, "web", "Declared: ", "Secret tls is made").await?;

    // Two hosts more, one after the other, are one order.
    set_hosts(&space, "web", &four[..3]).await?;
    set_hosts(&space, "web", &four).await?;
    renewed(&space, "tls", &first).await?;
    let secret = rolled_out(&space, "tls").await?;
    assert_eq!((leaf(&secret)?.names.len(), orders(&operator)?), (4, 2));
    let second = data(&secret, "tls.crt");

    // Hosts that go are dropped by the next renewal.
    set_hosts(&space, "web", &two).await?;
    let names = two.join(", ");
    eventually(SOON, "their names are gone", async || {
        let secret = space.secrets().get("tls").await?;
        let said = annotation(&secret, "cert-renew.io/names");
        ensure!(said == Some(names.as_str()), "{said:?}");
        Ok(())
    })
    .await?;
    create(
        &space,
        "later",
        &[],
        &[("later", &["later.routed.example"])],
    )
    .await?;
    issued(&space, "later").await?;
    assert_eq!(data(&space.secrets().get("tls").await?, "tls.crt"), second);
    let force = json!({"metadata": {"annotations": {"cert-renew.io/renew-now": "force-1"}}});
    merge(&space, "web", force).await?;
    renewed(&space, "tls", &second).await?;
    let secret = rolled_out(&space, "tls").await?;
    assert_eq!((leaf(&secret)?.names.len(), orders(&operator)?), (2, 4));
    let third = data(&secret, "tls.crt");

    // The Ingress goes: the Secret stays, and is not renewed. It comes back: no order.
    let api = ingresses(&space);
    api.delete("web", &DeleteParams::default()).await?;
    hears(&space, "tls", "Undeclared: ", "the Secret stays").await?;
    create(&space, "web", &[], &[("tls", &two)]).await?;
    eventually(SOON, "it is declared again", async || {
        let secret = space.secrets().get("tls").await?;
        let line = annotation(&secret, "state.cert-renew.io/state");
        ensure!(line.is_some_and(|it| it.starts_with("ok")), "{line:?}");
        let record = annotation(&secret, "state.cert-renew.io/declaration");
        ensure!(
            record.is_some_and(|it| !it.contains("\"gone\"")),
            "{record:?}"
        );
        Ok(())
    })
    .await?;
    create(&space, "last", &[], &[("last", &["last.routed.example"])]).await?;
    issued(&space, "last").await?;
    assert_eq!(data(&space.secrets().get("tls").await?, "tls.crt"), third);
    assert_eq!(orders(&operator)?, 5);
    Ok(())
}

#[tokio::test]
async fn a_secret_that_is_there_is_left_alone_and_the_ingress_hears_how_to_hand_it_over()
-> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, with_routes("0s")).await?;
    let space = Space::new(bench.client()?, "foreign-routed", operator.namespace()).await?;
    let host = "mine.foreign-routed.example";
    let mine = pair(&[host], FRESH)?;
    space.tls_secret("mine", Some(&mine), &[]).await?;
    let before = space.secrets().get("mine").await?;
    create(&space, "web", &[], &[("mine", &[host])]).await?;
    let told = hears(&space, "web", "DeclarationRefused: ", "left alone").await?;
    assert_eq!(
        space.secrets().get("mine").await?,
        before,
        "nothing is written"
    );
    let (_, command) = told.split_once("kubectl ").unwrap_or_default();
    kubectl(bench, command.lines().next().unwrap_or_default(), "")?;
    eventually(SOON, "it has the settings", async || {
        let secret = space.secrets().get("mine").await?;
        let names = annotation(&secret, "cert-renew.io/names");
        ensure!(names == Some(host), "{names:?}");
        Ok(())
    })
    .await?;
    let secret = space.secrets().get("mine").await?;
    assert_eq!(
        data(&secret, "tls.crt"),
        mine.certificate,
        "it keeps the certificate"
    );
    Ok(())
}

#[tokio::test]
async fn two_ingresses_of_one_secret_are_put_together_and_both_hear_of_a_conflict() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, with_routes("0s")).await?;
    let space = Space::new(bench.client()?, "both-routed", operator.namespace()).await?;
    let one = [("key-type", "ecdsa-p384")];
    create(
        &space,
        "one",
        &one,
        &[("tls", &["one.both-routed.example"])],
    )
    .await?;
    let first = issued(&space, "tls").await?;
    let two = [("key-type", "rsa-2048")];
    create(
        &space,
        "two",
        &two,
        &[("tls", &["two.both-routed.example"])],
    )
    .await?;
    let secret = renewed(&space, "tls", &first).await?;
    assert_eq!(leaf(&secret)?.names.len(), 2);
    let setting = "cert-renew.io/key-type";
    assert_eq!(annotation(&secret, setting), Some("ecdsa-p384"));
    hears(&space, "two", "DeclarationRefused: ", "an older object").await?;
    hears(
        &space,
        "one",
        "DeclarationRefused: ",
        "Ingress/two, which is younger",
    )
    .await?;
    Ok(())
}

/// Without the role everything else works, and what is missing is said once.
#[tokio::test]
async fn without_the_role_no_ingress_declares_anything_and_that_is_said_once() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, with_addon()).await?;
    let space = Space::new(bench.client()?, "no-routes", operator.namespace()).await?;
    create(&space, "web", &[], &[("tls", &["tls.no-routes.example"])]).await?;
    declare(&space, "map", "map.no-routes.example").await?;
    issued(&space, "map").await?;
    let old = overdue(&space, "other", "other.no-routes.example").await?;
    renewed(&space, "other", &old).await?;
    rolled_out(&space, "other").await?;
    ensure!(space.secrets().get_opt("tls").await?.is_none());
    let requests = operator.requests()?;
    let asked = requests
        .iter()
        .filter(|it| it.resource == "ingresses" && it.verb == "list");
    assert_eq!(asked.count(), 1, "it is not asked again and again");
    let log = operator.log()?;
    assert_eq!(log.matches(ADDON).count(), 1, "{log}");
    Ok(())
}

#[tokio::test]
async fn a_hostile_ingress_gets_nothing_that_allow_does_not_give_and_delays_no_other() -> Result<()>
{
    let bench = Bench::shared().await?;
    let mut options = with_routes("0s");
    options.allow =
        "[{namespaces: [\"hostile-routed-*\"], names: [\"*.hostile-routed.example\"]}]".into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "hostile-routed", operator.namespace()).await?;
    let many: Vec<String> = (0..5_000)
        .map(|i| format!("n{i}.hostile-routed.example"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let own = "x.hostile-routed.example";
    for (name, hosts, why) in [
        ("others", &["victim.example"][..], "allow"),
        ("mixed", &[own, "victim.example"], "allow"),
        ("many", &many[..], "expected at most"),
        ("none", &many[..0], "has a host"),
    ] {
        create(&space, name, &[], &[(name, hosts)]).await?;
        let told = hears(&space, name, "DeclarationRefused: ", why).await?;
        ensure!(told.len() < 2_000, "{name}: {told}");
        ensure!(
            space.secrets().get_opt(name).await?.is_none(),
            "{name} is made"
        );
    }
    // Hundreds for one Secret are one Secret, and delay nobody.
    for (number, host) in many[..200].iter().enumerate() {
        create(
            &space,
            &format!("heap-{number}"),
            &[],
            &[("heap", &[*host])],
        )
        .await?;
    }
    create(&space, "after", &[], &[("after", &[own])]).await?;
    issued(&space, "after").await?;
    issued(&space, "heap").await?;
    let heap = leaf(&space.secrets().get("heap").await?)?;
    ensure!(heap.names.len() <= 32, "{} names", heap.names.len());
    Ok(())
}
