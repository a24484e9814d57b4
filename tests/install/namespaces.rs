//! The operator with what an installation gives it: in the whole cluster, in a list of namespaces, and in one that it may not list.

use std::fs;
use std::path::Path;

use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, Result, bail, ensure, eventually, throughout};

use super::{ROOT, helm, kubectl, objects, render};
use crate::renewal::{SOON, options, renewed, rolled_out};

/// Renews and rolls in `space` as ever, with the rights that the chart gives.
async fn works(space: &Space) -> Result<()> {
    let old = pair(&["chart.example"], OLD)?;
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(space, "tls", &old.certificate).await?;
    rolled_out(space, "tls").await?;
    assert_eq!(space.generation("Deployment", "web").await?, 2);
    Ok(())
}

#[tokio::test]
async fn the_operator_works_with_the_chart_in_the_whole_cluster() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator =
        Operator::install_rendered(bench, options(), |namespace| helm(namespace, "replicas=0"))
            .await?;
    operator.run().await?;
    let space = Space::new(bench.client()?, "charted", operator.namespace()).await?;
    works(&space).await?;
    ensure!(!operator.log()?.contains("a right is missing"));
    Ok(())
}

#[tokio::test]
async fn a_list_of_namespaces_needs_no_cluster_role() -> Result<()> {
    let bench = Bench::shared().await?;
    let client = bench.client()?;
    let mut listed = Vec::new();
    for _ in 0..2 {
        listed.push(Space::new(client.clone(), "listed", "later").await?);
    }
    let names = listed.iter().map(|space| &*space.name).collect::<Vec<_>>();
    let names = names.join(",");
    let values = format!("replicas=0,addons.eviction=true,scope.namespaces={{{names}}}");
    let mut options = options();
    options.config += &format!("watch: {{namespaces: [{names}]}}\n");
    let mut operator =
        Operator::install_rendered(bench, options, |namespace| helm(namespace, &values)).await?;
    operator.run().await?;
    for space in &mut listed {
        space.class = operator.namespace().to_owned();
        works(space).await?;
    }
    // A namespace that is not on the list is none of its business.
    let other = Space::new(client, "unlisted", operator.namespace()).await?;
    let old = pair(&["unlisted.example"], OLD)?;
    let made = other
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    throughout(
        std::time::Duration::from_secs(2),
        "it is left alone",
        async || {
            let now = other.secrets().get("tls").await?;
            ensure!(now.metadata.resource_version == made.metadata.resource_version);
            Ok(())
        },
    )
    .await?;
    let log = operator.log()?;
    ensure!(
        !log.contains("a right is missing") && !log.contains("forbidden"),
        "{log}"
    );
    Ok(())
}

/// Takes the operator's rights in a namespace away, and gives them back.
async fn withdrawn(space: &Space) -> Result<RoleBinding> {
    let bindings: Api<RoleBinding> = Api::namespaced(space.client.clone(), &space.name);
    let all = bindings.list(&Default::default()).await?;
    let [binding] = &all.items[..] else {
        bail!("one expected: {all:?}");
    };
    let name = binding.metadata.name.as_deref().context("no name")?;
    bindings.delete(name, &Default::default()).await?;
    let metadata = ObjectMeta {
        name: binding.metadata.name.clone(),
        ..ObjectMeta::default()
    };
    Ok(RoleBinding {
        metadata,
        ..binding.clone()
    })
}

/// A tenant's admin may delete the RoleBinding of the own namespace, or the namespace itself.
#[tokio::test]
async fn a_namespace_that_cannot_be_listed_keeps_no_other_waiting() -> Result<()> {
    let bench = Bench::shared().await?;
    let client = bench.client()?;
    let mut listed = Vec::new();
    for _ in 0..2 {
        listed.push(Space::new(client.clone(), "barred", "later").await?);
    }
    let names = listed.iter().map(|space| &*space.name).collect::<Vec<_>>();
    // The third was never made, so that no Role could be put there.
    let names = format!("{},never-made", names.join(","));
    let values = format!(
        "replicas=0,scope.namespaces={{{}}}",
        names.replace(",never-made", "")
    );
    let mut options = options();
    options.config += &format!("watch: {{namespaces: [{names}]}}\n");
    let mut operator =
        Operator::install_rendered(bench, options.clone(), |namespace| helm(namespace, &values))
            .await?;
    for space in &mut listed {
        space.class = operator.namespace().to_owned();
    }
    let [good, barred] = &listed[..] else {
        bail!("two spaces");
    };
    let old = pair(&["barred.example"], OLD)?;
    let annotations = [("issuer", "pebble")];
    let series = |space: &Space| {
        format!(
            "cert_renew_namespace_passed_over{{namespace=\"{}\"}} 1",
            space.name
        )
    };
    let expected = async |operator: &Operator<'_>, passed_over: bool| {
        eventually(
            SOON,
            "the metrics say which namespace is passed over",
            async || {
                let metrics = operator.metrics().await?;
                ensure!(
                    metrics.contains(&series(barred)) == passed_over,
                    "{metrics}"
                );
                ensure!(!metrics.contains(&series(good)), "{metrics}");
                ensure!(metrics.contains("cert_renew_watch_up 1"), "{metrics}");
                Ok(())
            },
        )
        .await
    };
    // It begins although one namespace is barred from the start, and sees to that one when it can.
    let binding = withdrawn(barred).await?;
    barred.tls_secret("tls", Some(&old), &annotations).await?;
    operator.run().await?;
    works(good).await?;
    expected(&operator, true).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), &barred.name);
    bindings.create(&PostParams::default(), &binding).await?;
    renewed(barred, "tls", &old.certificate).await?;
    expected(&operator, false).await?;

    // Barred later, and the config is read again: what is known of it is kept, and the others are looked after.
    withdrawn(barred).await?;
    let config = options.config.replace("settle: 0s", "settle: 1s");
    ensure!(config != options.config);
    operator.configure(&config)?;
    good.tls_secret("later", Some(&old), &annotations).await?;
    renewed(good, "later", &old.certificate).await?;
    expected(&operator, true).await?;
    eventually(SOON, "the changed config is in force", async || {
        let log = operator.log()?;
        let (_, since) = log
            .split_once("a changed config is in force")
            .context("not yet")?;
        ensure!(since.contains("all Secrets are listed"), "not yet");
        Ok(())
    })
    .await?;
    expected(&operator, true).await?;
    let known = format!(
        "cert_renew_certificate_not_after_timestamp_seconds{{namespace=\"{}\"",
        barred.name
    );
    let metrics = operator.metrics().await?;
    ensure!(metrics.contains(&known), "its expiry is forgotten");
    // What changes in the meantime is done when it can be seen again; what goes is gone.
    barred.tls_secret("new", Some(&old), &annotations).await?;
    { barred.secrets() }
        .delete("tls", &Default::default())
        .await?;
    bindings.create(&PostParams::default(), &binding).await?;
    renewed(barred, "new", &old.certificate).await?;
    expected(&operator, false).await?;
    let gone = format!("namespace=\"{}\",secret=\"tls\"", barred.name);
    let metrics = operator.metrics().await?;
    ensure!(!metrics.contains(&gone), "what is gone is still known");
    Ok(())
}

/// The same by kustomize: the component takes the ClusterRole away, `rbac/namespaced` puts a Role in its place.
#[tokio::test]
async fn the_kustomization_has_both_scopes_too() -> Result<()> {
    let bench = Bench::shared().await?;
    let rendered = render(
        bench,
        "install-scoped",
        "components: [../../deploy/namespaced]",
    )?;
    ensure!(rendered.contains("kind: Deployment") && !rendered.contains("kind: ClusterRole"));
    let namespaced = kubectl(bench, "kustomize rbac/namespaced", "")?;
    let charted = objects(&helm(
        "cert-renew",
        "scope.namespaces={shop},addons.argo-rollouts=true,addons.eviction=true,addons.verify=true,addons.namespace-labels=true,addons.declarations=true,addons.routes=true",
    )?)?;
    let mut kustomized = objects(&String::from_utf8(namespaced.stdout)?)?;
    for addon in fs::read_dir(Path::new(ROOT).join("rbac/namespaced/addons"))? {
        kustomized.extend(objects(&fs::read_to_string(addon?.path())?)?);
    }
    assert_eq!(kustomized.len(), 14);
    for (key, object) in kustomized {
        assert_eq!(charted.get(&key), Some(&object), "{key}");
    }
    Ok(())
}
