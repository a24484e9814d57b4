//! What Git declares owns no data, so no sync takes a certificate away.

use k8s_openapi::api::core::v1::ConfigMap;
use test_bench::objects::Space;
use test_bench::{Bench, Operator, Result, ensure};

use super::{declaration, issued, with_addon};
use crate::gitops::{SYNCS, Scratch, helm};
use crate::install::kubectl;
use crate::renewal::data;

/// The declaration as Git has it, in the form of the API server.
fn manifest(space: &Space, name: &str) -> Result<String> {
    let host = format!("{name}.syncs.example");
    let object = declaration(
        space,
        name,
        &[("issuer", "pebble"), ("names", host.as_str())],
    );
    let mut manifest = serde_json::to_value::<ConfigMap>(object)?;
    manifest["apiVersion"] = "v1".into();
    manifest["kind"] = "ConfigMap".into();
    Ok(manifest.to_string())
}

#[tokio::test]
async fn ten_syncs_of_a_declaration_lose_no_certificate_and_issue_none() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, with_addon()).await?;
    let space = Space::new(bench.client()?, "syncs", operator.namespace()).await?;
    let scratch = Scratch::new(&space.name)?;
    scratch.write(
        "chart/Chart.yaml",
        "apiVersion: v2\nname: shop\nversion: 0.1.0\n",
    )?;
    scratch.write("chart/templates/tls.yaml", &manifest(&space, "helmed")?)?;
    let path = scratch.0.display();
    let namespace = &space.name;
    let sync = |tool: &str| -> Result<()> {
        let apply = |arguments: &str| {
            let input = manifest(&space, tool)?;
            kubectl(bench, &format!("-n {namespace} {arguments} -f -"), &input).map(drop)
        };
        match tool {
            "forced" => {
                apply("apply --server-side --force-conflicts --field-manager=argocd-controller")
            }
            "helmed" => helm(
                bench,
                &format!("upgrade --install shop {path}/chart --namespace {namespace}"),
            ),
            _ => apply("apply"),
        }
    };
    for tool in ["applied", "forced", "helmed"] {
        sync(tool)?;
        issued(&space, tool).await?;
        let before = space.secrets().get(tool).await?;
        for _ in 0..SYNCS {
            sync(tool)?;
        }
        // A renewal that a sync had caused would be over before this one, which is declared after it.
        let later = format!("{tool}-later");
        sync(&later)?;
        issued(&space, &later).await?;
        let now = space.secrets().get(tool).await?;
        for key in ["tls.crt", "tls.key"] {
            ensure!(
                data(&now, key) == data(&before, key),
                "{tool}: {key} is another"
            );
        }
    }
    // Uninstalled and installed again: the Secret stays, and no order is made.
    let before = space.secrets().get("helmed").await?;
    helm(bench, &format!("uninstall shop --namespace {namespace}"))?;
    sync("helmed")?;
    sync("last")?;
    issued(&space, "last").await?;
    let now = space.secrets().get("helmed").await?;
    ensure!(
        data(&now, "tls.crt") == data(&before, "tls.crt"),
        "another certificate"
    );
    Ok(())
}
