//! Pods that keep an earlier certificate: below a partition, without room, deleted by hand, adopted.

use std::collections::BTreeMap;
use std::time::Duration;

use cert_renew_core::rollout::Request;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::DeleteParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use test_bench::objects::Space;
use test_bench::{Bench, Result, ensure, eventually};

use super::{again, available_is, carry, roll, strand};
use crate::rolling::{SOON, counted, due, full, make, merge, pods_of, ready};

#[tokio::test]
async fn pods_below_a_partition_are_not_done() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "partition", "").await?;
    let strategy = |partition: i64| json!({"type": "RollingUpdate", "rollingUpdate": {"partition": partition}});
    let some = [("/spec/updateStrategy", strategy(1))];
    let all = [("/spec/updateStrategy", strategy(2))];
    make(&space, "StatefulSet", "some", "tls", &some).await?;
    make(&space, "StatefulSet", "all", "tls", &all).await?;
    make(&space, "Deployment", "web", "tls", &[]).await?;
    for name in ["some", "all", "web"] {
        ready(&space, name, 2).await?;
    }
    counted(&space, &["some", "all", "web"]).await?;
    let came = roll(&space, due("tls", "new")).await?;
    let lacking = came.lacking("tls");
    let expected = [
        (
            "statefulset/all",
            "2 pods below its partition, with an earlier certificate",
        ),
        (
            "statefulset/some",
            "1 pod below its partition, with an earlier certificate",
        ),
    ];
    assert!(
        lacking
            .iter()
            .map(|(name, why)| (&**name, *why))
            .eq(expected),
        "{lacking:?}"
    );
    assert!(
        came.happened.contains(&"rolled deployment/web".to_owned()),
        "{came:?}"
    );
    let some = carry(&space, "some").await?;
    assert_eq!(
        some,
        BTreeMap::from([("some-0".into(), false), ("some-1".into(), true)])
    );
    assert!(!carry(&space, "all").await?.into_values().any(|has| has));
    for name in ["some", "all"] {
        merge(
            &space,
            "StatefulSet",
            name,
            json!({"spec": {"updateStrategy": strategy(0)}}),
        )
        .await?;
    }
    let came = roll(&space, again(&came)).await?;
    assert!(came.done("tls"), "{came:?}");
    Ok(())
}

#[tokio::test]
async fn pods_below_a_partition_that_were_started_since_have_the_certificate() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "drained", "").await?;
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 2}});
    let held = [("/spec/updateStrategy", strategy)];
    make(&space, "StatefulSet", "db", "tls", &held).await?;
    let before = ready(&space, "db", 2).await?;
    // Stamps have whole seconds, and clocks may differ by one: only what is two later is certainly after the write.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let request = Request {
        written: Some(cert_renew_core::time::UnixTime::now()),
        ..due("tls", "new")
    };
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let pods: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
    for pod in pods_of(&space, "db").await? {
        let params = DeleteParams::default();
        pods.delete(&pod.name_any(), &params).await?;
    }
    eventually(SOON, "both are made again", async || {
        let now = ready(&space, "db", 2).await?;
        ensure!(now.is_disjoint(&before), "not yet");
        Ok(())
    })
    .await?;
    counted(&space, &["db"]).await?;
    let came = roll(&space, request).await?;
    assert!(came.done("tls"), "{came:?}");
    // It is well, and that is what is said of it.
    assert_eq!(came.happened, ["rolled statefulset/db"]);
    Ok(())
}

/// By the clocks of two API servers, which may differ by a second.
#[tokio::test]
async fn pods_below_a_partition_that_were_started_within_a_second_of_the_write_are_not_done()
-> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "second", "").await?;
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 2}});
    let held = [("/spec/updateStrategy", strategy)];
    make(&space, "StatefulSet", "db", "tls", &held).await?;
    ready(&space, "db", 2).await?;
    counted(&space, &["db"]).await?;
    let pods = pods_of(&space, "db").await?;
    let made = { pods.iter() }.filter_map(|pod| pod.metadata.creation_timestamp.as_ref());
    let first = made.map(|at| at.0.as_second()).min();
    let request = Request {
        written: first.map(|at| cert_renew_core::time::UnixTime(at - 1)),
        ..due("tls", "new")
    };
    let came = roll(&space, request).await?;
    assert!(!came.done("tls"), "{came:?}");
    Ok(())
}

#[tokio::test]
async fn a_deployment_that_lacks_room_is_not_done_and_halts_nobody() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "no-room", "").await?;
    // Four pods, each on a node of its own, and three nodes.
    let apart = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "full"}}}]}});
    let changes = [
        ("/spec/replicas", json!(4)),
        ("/spec/template/spec/affinity", apart),
    ];
    make(&space, "Deployment", "full", "tls", &changes).await?;
    make(&space, "Deployment", "web", "tls", &[]).await?;
    ready(&space, "web", 2).await?;
    available_is(&space, "Deployment", "full", "availableReplicas", 3).await?;
    counted(&space, &["web"]).await?;
    let came = roll(&space, due("tls", "new")).await?;
    let lacking = came.lacking("tls");
    assert!(
        lacking["deployment/full"].contains("3 with an earlier certificate"),
        "{lacking:?}"
    );
    assert_eq!(
        came.happened,
        ["rolled deployment/web", "incomplete deployment/full"]
    );
    merge(
        &space,
        "Deployment",
        "full",
        json!({"spec": {"replicas": 2}}),
    )
    .await?;
    let came = roll(&space, again(&came)).await?;
    assert!(came.done("tls"), "{came:?}");
    Ok(())
}

#[tokio::test]
async fn the_pods_of_an_on_delete_set_are_replaced_but_for_that_of_a_dead_node() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "dead", "").await?;
    let changes = [
        ("/spec/replicas", json!(3)),
        ("/spec/updateStrategy", json!({"type": "OnDelete"})),
    ];
    for (name, policy, dead) in [("ordered", "OrderedReady", 2), ("parallel", "Parallel", 0)] {
        let mut changes = changes.to_vec();
        changes.push(("/spec/podManagementPolicy", json!(policy)));
        make(&space, "StatefulSet", name, "tls", &changes).await?;
        ready(&space, name, 3).await?;
        strand(&space, &format!("{name}-{dead}"), true).await?;
        available_is(&space, "StatefulSet", name, "availableReplicas", 2).await?;
    }
    let came = roll(&space, due("tls", "new")).await?;
    let lacking = came.lacking("tls");
    assert_eq!(lacking.len(), 2, "{lacking:?}");
    for (name, dead) in [("ordered", 2), ("parallel", 0)] {
        // It is leaving by now, and does not count as one of its pods.
        let carried = carry(&space, name).await?;
        assert!(
            carried.len() == 2 && carried.values().all(|has| *has),
            "{carried:?}"
        );
        strand(&space, &format!("{name}-{dead}"), false).await?;
    }
    let came = roll(&space, again(&came)).await?;
    assert!(came.done("tls"), "{came:?}");
    for name in ["ordered", "parallel"] {
        let carried = carry(&space, name).await?;
        assert!(
            carried.len() == 3 && carried.values().all(|has| *has),
            "{carried:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn pods_of_an_ordered_set_that_would_not_come_back_are_let_be() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "kept", "").await?;
    let changes = [
        ("/spec/replicas", json!(3)),
        ("/spec/updateStrategy", json!({"type": "OnDelete"})),
    ];
    make(&space, "StatefulSet", "db", "tls", &changes).await?;
    let before = ready(&space, "db", 3).await?;
    // Before the one of the dead node is gone its controller makes no other.
    strand(&space, "db-0", true).await?;
    available_is(&space, "StatefulSet", "db", "availableReplicas", 2).await?;
    let came = roll(&space, due("tls", "new")).await?;
    assert!(
        came.lacking("tls").contains_key("statefulset/db"),
        "{came:?}"
    );
    let left = pods_of(&space, "db").await?;
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(
        left.iter()
            .all(|pod| before.contains(&pod.uid().unwrap_or_default()))
    );
    strand(&space, "db-0", false).await?;
    Ok(())
}

#[tokio::test]
async fn a_deployment_made_anew_that_has_adopted_older_pods_is_rolled() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "adopted", "").await?;
    for name in ["adopts", "own"] {
        make(&space, "Deployment", name, "tls", &[]).await?;
        ready(&space, name, 2).await?;
    }
    // Stamps have whole seconds, and clocks may differ by one: only what is two later is certainly after the write.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let written = cert_renew_core::time::UnixTime::now();
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let deployments = space.workloads("Deployment");
    deployments
        .delete("adopts", &DeleteParams::orphan())
        .await?;
    deployments
        .delete("own", &DeleteParams::foreground())
        .await?;
    eventually(SOON, "both are gone", async || {
        for name in ["adopts", "own"] {
            ensure!(
                deployments.get_opt(name).await?.is_none(),
                "{name} is there"
            );
        }
        Ok(())
    })
    .await?;
    for name in ["adopts", "own"] {
        make(&space, "Deployment", name, "tls", &[]).await?;
        ready(&space, name, 2).await?;
    }
    counted(&space, &["adopts", "own"]).await?;
    let request = Request {
        written: Some(written),
        ..due("tls", "new")
    };
    let came = roll(&space, request).await?;
    let mut happened = came.happened.clone();
    happened.sort();
    assert_eq!(
        happened,
        ["rolled deployment/adopts", "unchanged deployment/own"]
    );
    assert!(came.done("tls"), "{came:?}");
    Ok(())
}

#[tokio::test]
async fn a_deployment_that_is_made_anew_in_the_middle_and_has_adopted_older_pods_is_rolled()
-> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "remade", "").await?;
    make(&space, "Deployment", "web", "tls", &[]).await?;
    let before = ready(&space, "web", 2).await?;
    counted(&space, &["web"]).await?;
    // Its new pods are not made before the quota goes.
    full(&space, 2).await?;
    let remake = async {
        eventually(SOON, "it is patched", async || {
            let leaf = space.leaf_of("Deployment", "web", "tls").await?;
            ensure!(leaf.is_some(), "not yet");
            Ok(())
        })
        .await?;
        let deployments = space.workloads("Deployment");
        deployments.delete("web", &DeleteParams::orphan()).await?;
        eventually(SOON, "it is gone", async || {
            ensure!(deployments.get_opt("web").await?.is_none(), "it is there");
            Ok(())
        })
        .await?;
        make(&space, "Deployment", "web", "tls", &[]).await?;
        let quotas: Api<ResourceQuota> = Api::namespaced(space.client.clone(), &space.name);
        quotas.delete("full", &DeleteParams::default()).await?;
        Ok::<_, test_bench::Error>(())
    };
    let (came, remade) = tokio::join!(roll(&space, due("tls", "new")), remake);
    remade?;
    let came = came?;
    assert!(came.done("tls"), "{came:?}");
    assert_eq!(came.happened, ["rolled deployment/web"]);
    assert!(carry(&space, "web").await?.into_values().all(|has| has));
    assert!(ready(&space, "web", 2).await?.is_disjoint(&before));
    Ok(())
}
