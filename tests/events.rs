//! Events: on transitions only, and each with its own words.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use test_bench::objects::{FRESH, Space, pair};
use test_bench::{Bench, Operator, Result, ensure, eventually, throughout};

use crate::renewal::{SOON, options, rolled_out};

/// Longer than a needless Event takes to come.
const QUIET: Duration = Duration::from_secs(2);

/// How often each note was given on a Secret.
async fn told(space: &Space, name: &str) -> Result<BTreeMap<String, i32>> {
    let events: Api<Event> = Api::namespaced(space.client.clone(), &space.name);
    let all = events.list(&ListParams::default()).await?;
    let about = |event: &Event| {
        let on = event.regarding.as_ref();
        on.and_then(|on| on.name.as_deref()) == Some(name)
            && event.reporting_controller.as_deref() == Some("cert-renew.io/cert-renew")
    };
    let count = |event: Event| {
        let count = event.series.map_or(1, |series| series.count);
        (event.note.unwrap_or_default(), count)
    };
    Ok(all.items.into_iter().filter(about).map(count).collect())
}

async fn annotate(space: &Space, name: &str, metadata: Value) -> Result<()> {
    let patch = json!({ "metadata": metadata });
    space.merge(name, patch).await?;
    Ok(())
}

#[tokio::test]
async fn each_fault_is_told_once_in_its_own_words_and_what_is_well_not_at_all() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "told", operator.namespace()).await?;
    let fresh = pair(&["told.example"], FRESH)?;
    let external = ("issuer", "external");
    let odd = [external, ("nonsense", "x"), ("drivel", "y")];
    space.tls_secret("odd", Some(&fresh), &odd).await?;
    let tells = async |words: &[&str]| {
        let mut told = told(&space, "odd").await?;
        told.retain(|note, _| !note.contains("to renew it"));
        let once = |word: &&str| {
            let mut of_it = told.iter().filter(|(note, _)| note.contains(*word));
            of_it.next().is_some_and(|(_, count)| *count == 1) && of_it.next().is_none()
        };
        ensure!(
            told.len() == words.len() && words.iter().all(once),
            "{told:#?}"
        );
        Ok(())
    };
    let both = ["cert-renew.io/nonsense", "cert-renew.io/drivel"];
    eventually(SOON, "each is told", async || tells(&both).await).await?;
    // What is edited and is no annotation of ours is no news.
    annotate(&space, "odd", json!({"labels": {"edited": "yes"}})).await?;
    // One that comes after it shows that it was looked at.
    space.tls_secret("well", Some(&fresh), &[external]).await?;
    rolled_out(&space, "well").await?;
    throughout(QUIET, "nothing is told again", async || tells(&both).await).await?;
    let mended = json!({"annotations": {
        "cert-renew.io/nonsense": null, "cert-renew.io/drivel": null, "cert-renew.io/twaddle": "z",
    }});
    annotate(&space, "odd", mended).await?;
    let all = [both[0], both[1], "cert-renew.io/twaddle"];
    eventually(SOON, "what is new is told", async || tells(&all).await).await?;
    eventually(SOON, "nothing but that it is adopted", async || {
        let well = told(&space, "well").await?;
        let adopted = |(note, count): (&String, &i32)| note.contains("to renew it") && *count == 1;
        ensure!(well.len() == 1 && well.iter().all(adopted), "{well:#?}");
        Ok(())
    })
    .await?;
    Ok(())
}
