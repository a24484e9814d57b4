//! Each request of a renewal fails once, in each way, or meets another writer at the same moment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt as _, stream};
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::json;
use test_bench::{Bench, Fault, Result, ensure};

use super::{LAST_MADE, SOONER, action};
use crate::scene::{End, SECRET, Scene, answered};

/// Runs at the same time: each mostly waits.
const AT_ONCE: usize = 4;
/// In `make test` one request of this number fails; `make chaos` has each fail in each way.
const STRIDE: usize = 7;

/// A name and what makes the fault.
type Way = (&'static str, fn() -> Fault);

/// The ways in which a request fails.
const WAYS: [Way; 5] = [
    ("500", || Fault::status(500, "InternalError")),
    ("429", || Fault::too_many(1)),
    ("503", Fault::html),
    ("refused", || Fault::Refuse),
    ("cut", || Fault::Cut),
];

async fn fails_at(bench: &'static Bench, number: usize, fault: fn() -> Fault) -> Result<()> {
    let mut scene = Scene::set(bench, SOONER).await?;
    scene.proxies.rule(move |passed| {
        if passed.number == number {
            fault()
        } else {
            Fault::Pass
        }
    });
    // If it ends because of the fault, it is started again, as the kubelet does.
    scene.operator.spawn()?;
    if scene.operator.wait_ready().await.is_err() {
        scene.operator.kill();
        scene.operator.run().await?;
    }
    let end = scene.end().await?;
    ensure!(end == End::undisturbed(), "{end:?}");
    Ok(())
}

async fn each_fails(bench: &'static Bench, points: Vec<(usize, usize)>) -> Result<()> {
    let tried = points.len();
    let failed: Vec<String> = stream::iter(points)
        .map(async |(number, way)| {
            let (name, fault) = WAYS[way % WAYS.len()];
            let result = fails_at(bench, number, fault).await;
            result
                .err()
                .map(|error| format!("request {number} {name}: {error:#}"))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |failed| failed)
        .collect()
        .await;
    eprintln!("{tried} faults tried, {} ended otherwise", failed.len());
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// How many requests a renewal makes from the operator's first start on.
async fn requests(bench: &'static Bench) -> Result<usize> {
    let mut scene = Scene::set(bench, SOONER).await?;
    scene.operator.run().await?;
    assert_eq!(scene.end().await?, End::undisturbed());
    Ok(scene.proxies.passed().len())
}

#[tokio::test]
async fn a_request_that_fails_once_changes_nothing_in_the_end() -> Result<()> {
    let bench = Bench::shared().await?;
    let count = requests(bench).await?;
    each_fails(bench, (1..=count).step_by(STRIDE).zip(0..).collect()).await
}

/// Each in each way: minutes.
#[tokio::test]
#[ignore = "make chaos runs it"]
async fn each_request_that_fails_once_changes_nothing_in_the_end() -> Result<()> {
    let bench = Bench::shared().await?;
    let count = requests(bench).await?;
    let ways = |number| (0..WAYS.len()).map(move |way| (number, way));
    each_fails(bench, (1..=count).flat_map(ways).collect()).await
}

/// The record was made, but nobody heard of it: the order is gone on with, not made again.
#[tokio::test]
async fn an_order_whose_record_was_made_without_an_answer_is_gone_on_with() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut scene = Scene::set(bench, SOONER).await?;
    // The secrets that are made in the operator's own namespace: the account's key, and then the order record.
    let own = format!("/namespaces/{}/secrets", scene.operator.namespace());
    let made = AtomicUsize::new(0);
    scene.proxies.rule(move |passed| {
        let makes = passed.method == "POST" && passed.path.ends_with(&own);
        if makes && made.fetch_add(1, Ordering::SeqCst) == LAST_MADE {
            Fault::Cut
        } else {
            Fault::Pass
        }
    });
    scene.operator.run().await?;
    assert_eq!(scene.end().await?, End::undisturbed());
    assert_eq!(answered(&scene.proxies, "/order-plz", 201), 1, "orders");
    Ok(())
}

#[tokio::test]
async fn somebody_who_writes_at_the_same_moment_loses_nothing_and_stops_nothing() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut scene = Scene::set(bench, SOONER).await?;
    let seen: Mutex<BTreeMap<String, usize>> = Mutex::default();
    let edited = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&edited);
    let ours = format!("/namespaces/{}/", scene.space.name);
    scene.proxies.rule(move |passed| {
        if passed.method != "PATCH" || !passed.path.contains(&ours) {
            return Fault::Pass;
        }
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let times = seen.entry(passed.path.clone()).or_default();
        *times += 1;
        if *times > 2 {
            return Fault::Pass;
        }
        count.fetch_add(1, Ordering::SeqCst);
        let (path, times) = (passed.path.clone(), *times);
        Fault::Meanwhile(action(bench, async move |client| {
            label(client, &path, &format!("edit-{times}")).await
        }))
    });
    scene.operator.run().await?;
    assert_eq!(scene.end().await?, End::undisturbed());
    assert_eq!(
        edited.load(Ordering::SeqCst),
        6,
        "two edits of three objects"
    );
    let secret = scene.space.secrets().get(SECRET).await?;
    let labels = secret.metadata.labels.unwrap_or_default();
    ensure!(
        labels.contains_key("edit-1") && labels.contains_key("edit-2"),
        "somebody's labels are lost: {labels:?}"
    );
    let patches = scene.proxies.passed();
    let patches = patches.iter().filter(|it| it.method == "PATCH").count();
    ensure!(patches <= 12, "{patches} patches");
    Ok(())
}

/// Puts a label on the object of a request's path, as somebody else would.
async fn label(client: Client, path: &str, label: &str) -> Result<()> {
    let parts: Vec<&str> = path.split('/').collect();
    let (kind, group) = match parts[parts.len() - 2] {
        "secrets" => ("Secret", ""),
        "deployments" => ("Deployment", "apps"),
        _ => ("StatefulSet", "apps"),
    };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
    let api: Api<DynamicObject> = Api::namespaced_with(client, parts[parts.len() - 3], &resource);
    let patch = json!({"metadata": {"labels": {label: "somebody"}}});
    api.patch(
        parts[parts.len() - 1],
        &PatchParams::default(),
        &Patch::Merge(patch),
    )
    .await?;
    Ok(())
}
