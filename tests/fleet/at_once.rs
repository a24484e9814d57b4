//! Many Secrets that are renewed at the same time: the concurrency is kept to, and each workload rolls once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt as _;
use kube::api::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use test_bench::objects::{FRESH, Space, pair};
use test_bench::{Bench, Checker, Operator, Result, ensure, eventually, tally};

use crate::chaos::compared;
use crate::renewal::{annotation, leaf, options, rolled_out};
use crate::rolling::{SOON, make};

#[tokio::test]
async fn fifty_renewed_secrets_roll_their_two_hundred_workloads_once_each() -> Result<()> {
    renewed_at_once(50).await
}

#[tokio::test]
#[ignore = "make chaos: minutes"]
async fn five_hundred_renewed_secrets_roll_their_two_thousand_workloads_once_each() -> Result<()> {
    renewed_at_once(500).await
}

/// What each Secret has: kinds and names.
const FOUR: [(&str, &str); 4] = [
    ("Deployment", "web"),
    ("Deployment", "api"),
    ("StatefulSet", "db"),
    ("StatefulSet", "queue"),
];
const CONCURRENCY: usize = 12;
const PER_NAMESPACE: usize = 4;
const NAMESPACES: usize = 5;

async fn renewed_at_once(secrets: usize) -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.log_level = "info".into();
    options.config = format!(
        "rollout: {{settle: 2s, perWorkloadMinInterval: 0s, concurrency: {CONCURRENCY}, perNamespace: {PER_NAMESPACE}}}\n"
    );
    let operator = Operator::start(bench, options).await?;
    let mut spaces = Vec::new();
    for _ in 0..NAMESPACES {
        spaces.push(Space::new(bench.client()?, "fleet", operator.namespace()).await?);
    }
    let all: Vec<(&Space, String)> = (0..secrets)
        .map(|number| (&spaces[number % NAMESPACES], format!("tls-{number}")))
        .collect();
    let (old, new) = (
        pair(&["fleet.example"], FRESH)?,
        pair(&["fleet.example"], FRESH)?,
    );
    let each = |(space, secret): (&Space, String)| {
        let old = &old;
        let space = Space {
            client: space.client.clone(),
            name: space.name.clone(),
            class: space.class.clone(),
        };
        async move {
            for (kind, name) in FOUR {
                let one = [("/spec/replicas", json!(1))];
                make(&space, kind, &format!("{name}-{secret}"), &secret, &one).await?;
            }
            space
                .tls_secret(&secret, Some(old), &[("issuer", "external")])
                .await
        }
    };
    let made = futures::stream::iter(all.clone())
        .map(each)
        .buffer_unordered(8);
    let made: Vec<_> = made.collect().await;
    made.into_iter().collect::<Result<Vec<_>>>()?;
    for (space, secret) in &all {
        rolled_out(space, secret).await?;
        for (kind, name) in FOUR {
            space.available(kind, &format!("{name}-{secret}")).await?;
        }
    }
    let mut checker = Checker::default();
    for space in &spaces {
        let found = checker.stale_after_done(&space.client, &space.name).await?;
        assert!(found.is_empty(), "{found:?}");
    }
    let names = spaces.iter().map(|space| space.name.clone()).collect();
    let checker = checker.watch(bench.client()?, names);
    let before = operator.requests()?.len();
    let started = std::time::Instant::now();
    let most = Mutex::new((0, 0));
    let work = async {
        // The watches have begun when they have seen all that there is.
        for (space, secret) in &all {
            space.put(secret, &new).await?;
        }
        for (space, secret) in &all {
            let patience = SOON + Duration::from_secs(secrets as u64);
            eventually(patience, "it is rolled out", async || {
                let secret = space.secrets().get(secret).await?;
                let said = annotation(&secret, "state.cert-renew.io/rolled-out");
                let fingerprint = leaf(&secret)?.fingerprint.to_string();
                ensure!(
                    said.is_some_and(|said| said.starts_with(&fingerprint)),
                    "{said:?}"
                );
                Ok(())
            })
            .await?;
        }
        Ok::<_, test_bench::Error>(())
    };
    tokio::select! {
        ended = watch_rolling(bench, &spaces, &most) => { ended?; unreachable!("the watch does not end") }
        done = work => done?,
    }
    let took = started.elapsed();
    let stale = checker.found();
    assert!(stale.is_empty(), "{stale:?}");
    compared(&checker).await?;
    for (space, secret) in &all {
        for (kind, name) in FOUR {
            let name = format!("{name}-{secret}");
            assert_eq!(space.generation(kind, &name).await?, 2, "{kind} {name}");
        }
    }
    let (everywhere, in_one) = *most.lock().expect("nobody panics");
    let requests = operator.requests()?.split_off(before);
    eprintln!(
        "{secrets} Secrets, {} workloads rolled in {took:.1?}, at most {everywhere} at once and {in_one} in a namespace; \
         {} requests to the API server: {:?}",
        4 * secrets,
        requests.len(),
        tally(&requests)
    );
    assert!(
        everywhere <= CONCURRENCY && in_one <= PER_NAMESPACE,
        "{everywhere} at once, {in_one} in one namespace"
    );
    assert!(everywhere > 1, "nothing was seen");
    Ok(())
}

/// Notes how many workloads of these namespaces have the annotation and are not yet whole, for ever.
async fn watch_rolling(
    bench: &Bench,
    spaces: &[Space],
    most: &Mutex<(usize, usize)>,
) -> Result<()> {
    let mut watches = Vec::new();
    for kind in ["Deployment", "StatefulSet"] {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", kind));
        for space in spaces {
            let api: Api<DynamicObject> =
                Api::namespaced_with(bench.client()?, &space.name, &resource);
            watches.push(watcher(api, watcher::Config::default()).boxed());
        }
    }
    let mut events = futures::stream::select_all(watches);
    let mut rolling: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    while let Some(event) = events.next().await {
        let (watcher::Event::Apply(object) | watcher::Event::InitApply(object)) = event? else {
            continue;
        };
        let names = rolling
            .entry(object.namespace().unwrap_or_default())
            .or_default();
        if is_rolling(&object) {
            names.insert(object.name_any());
        } else {
            names.remove(&object.name_any());
        }
        let in_one = names.len();
        let everywhere: usize = rolling.values().map(BTreeSet::len).sum();
        let mut most = most.lock().expect("nobody panics");
        *most = (most.0.max(everywhere), most.1.max(in_one));
    }
    Ok(())
}

fn is_rolling(object: &DynamicObject) -> bool {
    let annotations = &object.data["spec"]["template"]["metadata"]["annotations"];
    let rolled = annotations.as_object().is_some_and(|all| {
        all.keys()
            .any(|key| key.starts_with("state.cert-renew.io/leaf."))
    });
    let status = &object.data["status"];
    let whole = status["observedGeneration"] == json!(object.metadata.generation)
        && ["replicas", "updatedReplicas", "availableReplicas"]
            .iter()
            .all(|count| status[*count] == 1)
        && status["currentRevision"] == status["updateRevision"];
    rolled && !whole
}
