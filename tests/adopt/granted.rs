//! What the operator's config does not grant stays with cert-manager, as nobody would renew it afterwards.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use test_bench::objects::{FRESH, Space};
use test_bench::{Bench, Result, ensure};

use super::{adopt, api, is_ours, issued, kinds};
use crate::command::said;

const CONFIG: &str = "
class: CLASS
issuers:
  pebble:
    directory: https://ca.example/
    allow:
      - {namespaces: [NAMESPACE], names: [granted.example]}
      - {namespaceSelector: {matchLabels: {team: web}}, names: [labelled.example]}
";

#[tokio::test]
async fn names_that_are_not_granted_stay_with_cert_manager() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "adopt-granted", "nobody").await?;
    kinds(&space).await?;
    let config = CONFIG
        .replace("CLASS", &space.class)
        .replace("NAMESPACE", &space.name);
    let map = json!({"metadata": {"name": "cert-renew-config"}, "data": {"config.yaml": config}});
    let maps: Api<ConfigMap> = Api::namespaced(space.client.clone(), &space.name);
    maps.create(&PostParams::default(), &serde_json::from_value(map)?)
        .await?;
    for name in ["granted", "labelled", "refused"] {
        issued(&space, name, json!({}), FRESH).await?;
    }
    let before = space.secrets().get("refused").await?;
    let at = ["--operator-namespace", &space.name];
    let with = |more: &[&'static str]| -> Vec<String> {
        let more = more.iter().map(|it| (*it).to_owned());
        at.iter().map(|it| (*it).to_owned()).chain(more).collect()
    };
    let adopt = async |more: &[&'static str]| {
        let arguments = with(more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        adopt(bench, &space, &arguments).await
    };

    for more in [&[][..], &["--apply"]] {
        let run = adopt(more).await?;
        let text = said(&run);
        ensure!(run.status.code() == Some(1), "some have to stay: {text}");
        for (name, host) in [
            ("labelled", "labelled.example"),
            ("refused", "refused.example"),
        ] {
            let place = format!("{}/{name}: stays with cert-manager: ", space.name);
            let line = text.lines().find(|line| line.starts_with(&place));
            ensure!(
                line.is_some_and(
                    |line| line.contains(host) && line.contains("issuers.pebble.allow")
                ),
                "{name}: {text}"
            );
        }
        let adopted = text.contains("1 adopted");
        ensure!(adopted == more.contains(&"--apply"), "{text}");
    }
    let certificates = api(&space, "cert-manager.io", "Certificate");
    ensure!(certificates.get_opt("granted").await?.is_none());
    is_ours(&space.secrets().get("granted").await?)?;
    for name in ["labelled", "refused"] {
        ensure!(certificates.get_opt(name).await?.is_some(), "{name}");
    }
    let now = space.secrets().get("refused").await?;
    assert_eq!(
        now.metadata.resource_version,
        before.metadata.resource_version
    );

    // The namespace's labels count as they are now.
    let namespaces: Api<Namespace> = Api::all(space.client.clone());
    let label = json!({"metadata": {"labels": {"team": "web"}}});
    namespaces
        .patch(&space.name, &PatchParams::default(), &Patch::Merge(label))
        .await?;
    let text = said(&adopt(&["--apply"]).await?);
    ensure!(
        text.contains("1 adopted") && text.contains("refused: stays with cert-manager"),
        "{text}"
    );
    is_ours(&space.secrets().get("labelled").await?)?;
    Ok(())
}
