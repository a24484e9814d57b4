//! Each test of it runs where the pods have addresses, in a bench of its own.

use super::*;

#[tokio::test]
#[ignore = "run by pods_are_asked_at_their_own_addresses"]
async fn what_every_pod_serves_is_proven() -> Result<()> {
    let bench = Bench::shared().await?;
    let (operator, scene) = started(bench).await?;
    let (old, new) = (scene.old.clone(), scene.new.clone());
    let choice = move |pod: &Pod| {
        let pair = if started_for(pod).is_some() {
            &new
        } else {
            &old
        };
        Some(pair.clone())
    };
    let port = serve_tls(&scene.space, Box::new(choice)).await?;
    service(&scene.space, "web", "web", port).await?;
    scene.begin(&[("verify", "web:443")]).await?;
    scene.put_new().await?;
    let secret = rolled_out(&scene.space, "tls").await?;
    let used_by = annotation(&secret, "state.cert-renew.io/used-by").unwrap_or_default();
    assert!(
        used_by.ends_with(" deployment/web web:443=2/2"),
        "{used_by}"
    );
    told(
        &scene.space,
        "tls",
        "all 2 pods behind Service web:443 serve it",
    )
    .await?;
    assert_eq!(scene.generation().await?, 2);
    // Each pod by its name, in the view of the Secret.
    let pods = scene.pods(&operator).await?;
    ensure!(
        pods["service"] == "web:443"
            && pods["asked"].as_array().is_some_and(|it| it.len() == 2)
            && pods["asked"][0]["name"]
                .as_str()
                .is_some_and(|it| it.starts_with("web-"))
            && pods["asked"][1]["serves"] == "it",
        "{pods:#}"
    );
    Ok(())
}

#[tokio::test]
#[ignore = "run by pods_are_asked_at_their_own_addresses"]
async fn pods_that_serve_the_old_leaf_are_restarted_once_more_and_then_reported() -> Result<()> {
    let bench = Bench::shared().await?;
    let (mut operator, scene) = started(bench).await?;
    let mended = Arc::new(AtomicBool::new(false));
    let (old, new) = (scene.old.clone(), scene.new.clone());
    let well = Arc::clone(&mended);
    let choice = move |_: &Pod| {
        let pair = if well.load(Ordering::Relaxed) {
            &new
        } else {
            &old
        };
        Some(pair.clone())
    };
    let port = serve_tls(&scene.space, Box::new(choice)).await?;
    service(&scene.space, "web", "web", port).await?;
    scene.begin(&[("verify", "web:443")]).await?;
    scene.put_new().await?;
    told(&scene.space, "tls", "RestartedAgain").await?;
    told(&scene.space, "tls", "ServedCertificateStale").await?;
    let pods = scene.pods(&operator).await?;
    ensure!(pods["asked"][0]["serves"] == "earlier", "{pods:#}");
    let secret = scene.space.secrets().get("tls").await?;
    let fingerprint = leaf(&secret)?.fingerprint.to_string();
    let carried = scene.space.carried("Deployment", "web", "tls").await?;
    let again = carried.is_some_and(|it| it.starts_with(&fingerprint) && it.ends_with(".2"));
    assert!(again, "restarted once more");
    let had = annotation(&secret, "state.cert-renew.io/rolled-out").unwrap_or_default();
    assert!(!had.starts_with(&fingerprint), "{had}");
    let stale = "cert_renew_rollout_stale_pods";
    let shown = async |expected: Option<&str>| {
        eventually(SOON, "the metric says so", async || {
            let value = scene.series(&operator, stale).await?;
            ensure!(value.as_deref() == expected, "{value:?}");
            Ok(())
        })
        .await
    };
    shown(Some("2")).await?;
    // A third restart would come with a fail-over, if it came at all.
    operator.restart().await?;
    eventually(SOON, "the metric is back", async || {
        let value = scene.series(&operator, stale).await?;
        ensure!(value.as_deref() == Some("2"), "{value:?}");
        Ok(())
    })
    .await?;
    throughout(QUIET, "web is not restarted again", async || {
        let generation = scene.generation().await?;
        ensure!(generation == 3, "{generation}");
        Ok(())
    })
    .await?;
    mended.store(true, Ordering::Relaxed);
    operator.restart().await?;
    rolled_out(&scene.space, "tls").await?;
    eventually(SOON, "the metric is gone", async || {
        let value = scene.series(&operator, stale).await?;
        ensure!(value.is_none(), "{value:?}");
        Ok(())
    })
    .await?;
    assert_eq!(scene.generation().await?, 3);
    Ok(())
}

#[tokio::test]
#[ignore = "run by pods_are_asked_at_their_own_addresses"]
async fn killed_while_it_verifies_it_goes_on_and_restarts_nothing_again() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.addons.push("rbac/addons/verify.yaml".into());
    // Nothing but a pod that serves the new leaf ends the verification.
    options.config = "rollout: {settle: 0s, perWorkloadMinInterval: 0s, verifyGrace: 10m}\n".into();
    let mut operator = Operator::start(bench, options).await?;
    let scene = Scene::new(bench, &operator).await?;
    scene.web().await?;
    let reloaded = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let (old, new) = (scene.old.clone(), scene.new.clone());
    let (well, count) = (Arc::clone(&reloaded), Arc::clone(&asked));
    let choice = move |_: &Pod| {
        count.fetch_add(1, Ordering::Relaxed);
        let pair = if well.load(Ordering::Relaxed) {
            &new
        } else {
            &old
        };
        Some(pair.clone())
    };
    let port = serve_tls(&scene.space, Box::new(choice)).await?;
    service(&scene.space, "web", "web", port).await?;
    scene.begin(&[("verify", "web:443")]).await?;
    scene.put_new().await?;
    for _ in 0..2 {
        let before = asked.load(Ordering::Relaxed);
        eventually(SOON, "the pods are asked again and again", async || {
            let now = asked.load(Ordering::Relaxed) - before;
            ensure!(now >= 4, "{now} times");
            Ok(())
        })
        .await?;
        assert_eq!(scene.generation().await?, 2);
        operator.kill();
        let secret = scene.space.secrets().get("tls").await?;
        let fingerprint = leaf(&secret)?.fingerprint.to_string();
        let had = annotation(&secret, "state.cert-renew.io/rolled-out").unwrap_or_default();
        assert!(!had.starts_with(&fingerprint), "it was not done: {had}");
        operator.run().await?;
    }
    reloaded.store(true, Ordering::Relaxed);
    rolled_out(&scene.space, "tls").await?;
    let said = "all 2 pods behind Service web:443 serve it";
    told(&scene.space, "tls", said).await?;
    assert_eq!(scene.generation().await?, 2);
    let events = scene.space.events("tls").await?;
    let again = |event: &String| event.contains("RestartedAgain");
    assert!(!events.iter().any(again), "{events:?}");
    Ok(())
}

#[tokio::test]
#[ignore = "run by pods_are_asked_at_their_own_addresses"]
async fn one_more_restart_is_enough_where_a_pod_was_given_the_old_secret() -> Result<()> {
    let bench = Bench::shared().await?;
    let (_operator, scene) = started(bench).await?;
    scene
        .space
        .workload("Deployment", "other", Reference::Volume, "tls")
        .await?;
    let (old, new) = (scene.old.clone(), scene.new.clone());
    let choice = move |pod: &Pod| {
        let again = started_for(pod).is_some_and(|leaf| leaf.ends_with(".2"));
        Some(if again { new.clone() } else { old.clone() })
    };
    let port = serve_tls(&scene.space, Box::new(choice)).await?;
    service(&scene.space, "web", "web", port).await?;
    scene.begin(&[("verify", "web:443")]).await?;
    scene.put_new().await?;
    rolled_out(&scene.space, "tls").await?;
    assert_eq!(scene.generation().await?, 3);
    let other = scene.space.generation("Deployment", "other").await?;
    assert_eq!(other, 2, "nothing is known against it");
    Ok(())
}

/// Services that lead elsewhere: by Endpoints that somebody has written, by a name, to another namespace's pods.
#[tokio::test]
#[ignore = "run by pods_are_asked_at_their_own_addresses"]
async fn nobody_is_asked_but_pods_that_the_service_selects() -> Result<()> {
    let bench = Bench::shared().await?;
    let (operator, scene) = started(bench).await?;
    let victim = Space::new(bench.client()?, "victim", operator.namespace()).await?;
    victim
        .workload("Deployment", "victim", Reference::None, "-")
        .await?;
    victim.available("Deployment", "victim").await?;
    let address = victim
        .pods("victim")
        .await?
        .into_iter()
        .find_map(|pod| pod.status?.pod_ip)
        .context("no pod has an address")?;
    // At every pod's address; the operator has none of its own to come from.
    let (listener, port) = listen().await?;
    let (space, name) = (&scene.space, &scene.space.name);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "forged"},
            "spec": {"ports": [{"port": 443, "targetPort": port}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "forged", "labels": {"kubernetes.io/service-name": "forged"}},
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [{"port": port, "protocol": "TCP"}]},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "named"},
            "spec": {"type": "ExternalName", "externalName": "metadata.example", "ports": [{"port": 443}]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "foreign"},
            "spec": {"selector": {"app": "victim"}, "ports": [{"port": 443, "targetPort": port}]}},
    ]});
    kubectl(bench, &format!("create -n {name} -f -"), &list.to_string())?;
    for (name, said) in [
        ("forged", "Service forged selects no pods"),
        ("named", "Service named selects no pods"),
        ("foreign", "no pod behind Service foreign is Ready"),
    ] {
        let verify = format!("{name}:443");
        let annotations = [
            ("issuer", "external"),
            ("workloads", "deployment/web"),
            ("verify", &verify),
        ];
        space
            .tls_secret(name, Some(&scene.old), &annotations)
            .await?;
        rolled_out(space, name).await?;
        space.put(name, &pair(&["web.example"], FRESH)?).await?;
        rolled_out(space, name).await?;
        told(space, name, said).await?;
    }
    let nobody = tokio::time::timeout(QUIET, listener.accept()).await;
    ensure!(nobody.is_err(), "{nobody:?} was asked");
    Ok(())
}

#[tokio::test]
#[ignore = "run by pods_are_asked_at_their_own_addresses"]
async fn what_is_unknown_neither_restarts_nor_halts() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = operator(bench).await?;
    let foreign = Template::new(&["web.example"]).self_signed()?;
    for (verify, serves, said) in [
        ("web:443", Some(foreign), "a certificate of somebody else"),
        ("web:443", None, "web-"),
        ("web:444", None, "Service web has no port 444"),
        ("gone:443", None, "there is no Service gone"),
    ] {
        let scene = Scene::new(bench, &operator).await?;
        scene.web().await?;
        let choice = move |_: &Pod| serves.clone();
        let port = serve_tls(&scene.space, Box::new(choice)).await?;
        service(&scene.space, "web", "web", port).await?;
        scene.begin(&[("verify", verify)]).await?;
        scene.put_new().await?;
        rolled_out(&scene.space, "tls").await?;
        let event = told(&scene.space, "tls", "NotVerified").await?;
        assert!(event.contains(said), "{event}");
        assert_eq!(scene.generation().await?, 2);
    }
    Ok(())
}

#[tokio::test]
#[ignore = "run by pods_are_asked_at_their_own_addresses"]
async fn pods_are_asked_to_reload_instead_of_restarted() -> Result<()> {
    let bench = Bench::shared().await?;
    let (_operator, scene) = started(bench).await?;
    // A file that is mounted by subPath never changes.
    let mut frozen = workload("Deployment", "frozen", 2, Reference::Volume, "tls");
    let mount = json!([{"name": "tls", "mountPath": "/tls.crt", "subPath": "tls.crt"}]);
    frozen["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = mount;
    let volume = frozen["spec"]["template"]["spec"]["volumes"][0]["name"].clone();
    frozen["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]["name"] = volume;
    let frozen: DynamicObject = serde_json::from_value(frozen)?;
    let deployments = scene.space.workloads("Deployment");
    deployments.create(&PostParams::default(), &frozen).await?;
    scene
        .space
        .workload("StatefulSet", "env", Reference::Env, "tls")
        .await?;
    scene.space.available("Deployment", "frozen").await?;
    let (port, hits) = serve_reload("204 No Content").await?;
    scene
        .begin(&[("rollout", &format!("post:{port}/-/reload?now=1"))])
        .await?;
    scene.put_new().await?;
    rolled_out(&scene.space, "tls").await?;
    assert_eq!(scene.generation().await?, 1, "it is not restarted");
    let mut times: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for (address, path) in hits.lock().unwrap().iter() {
        assert_eq!(path, "/-/reload?now=1");
        *times.entry(*address).or_default() += 1;
    }
    let mut expected = BTreeMap::new();
    for pod in scene.space.pods("web").await? {
        let address = pod.status.and_then(|status| status.pod_ip);
        expected.insert(address.context("no address")?.parse()?, 2);
    }
    assert_eq!(times, expected, "each pod is asked twice");
    for (kind, name) in [("Deployment", "frozen"), ("StatefulSet", "env")] {
        assert_eq!(scene.space.generation(kind, name).await?, 2, "{name}");
        told(&scene.space, "tls", &format!("/{name} is restarted")).await?;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "run by pods_are_asked_at_their_own_addresses"]
async fn a_reload_that_fails_halts_and_no_redirect_is_followed() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = operator(bench).await?;
    let (elsewhere, followed) = serve_reload("200 OK").await?;
    let away: &'static str = Box::leak(
        format!("307 Temporary Redirect\r\nlocation: http://10.0.0.1:{elsewhere}/x")
            .into_boxed_str(),
    );
    for (answer, said) in [("500 Oh", "answered 500"), (away, "answered 307")] {
        let scene = Scene::new(bench, &operator).await?;
        scene.web().await?;
        scene
            .space
            .workload("Deployment", "later", Reference::Volume, "tls")
            .await?;
        scene.space.available("Deployment", "later").await?;
        let (port, _) = serve_reload(answer).await?;
        scene
            .begin(&[("rollout", &format!("post:{port}/r"))])
            .await?;
        scene.put_new().await?;
        let event = told(&scene.space, "tls", "RolloutHalted").await?;
        assert!(event.contains(said), "{event}");
        for name in ["web", "later"] {
            assert_eq!(scene.space.generation("Deployment", name).await?, 1);
        }
    }
    assert_eq!(followed.lock().unwrap().as_slice(), []);
    Ok(())
}

#[tokio::test]
#[ignore = "run by pods_are_asked_at_their_own_addresses"]
async fn a_pod_that_is_not_ready_when_the_others_are_asked_is_asked_when_it_is() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.addons.push("rbac/addons/verify.yaml".into());
    options.config = "rollout: {settle: 0s, perWorkloadMinInterval: 0s, progressTimeout: 3s, reloadWait: 1s, reloadAgain: 1s}\n".into();
    let operator = Operator::start(bench, options).await?;
    let scene = Scene::new(bench, &operator).await?;
    let space = &scene.space;
    scene.web().await?;
    let (port, hits) = serve_reload("200 OK").await?;
    scene
        .begin(&[("rollout", &format!("post:{port}/r"))])
        .await?;
    let pods: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
    let late = space.pods("web").await?.remove(0);
    let mark = async |ready: &str| {
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let status = Patch::Strategic(status);
        let name = late.name_any();
        pods.patch_status(&name, &PatchParams::default(), &status)
            .await
    };
    mark("False").await?;
    scene.put_new().await?;
    let event = told(space, "tls", "RolloutIncomplete").await?;
    let said = "deployment/web since 2";
    assert!(
        event.contains(said) && event.contains(&late.name_any()),
        "{event}"
    );
    let asked = || -> Result<Vec<usize>> {
        let hits = hits.lock().expect("nobody panics");
        let mut times: BTreeMap<IpAddr, usize> = BTreeMap::new();
        hits.iter()
            .for_each(|(address, _)| *times.entry(*address).or_default() += 1);
        Ok(times.into_values().collect())
    };
    assert_eq!(asked()?, [1], "the other one alone, and once");
    let secret = space.secrets().get("tls").await?;
    let fingerprint = leaf(&secret)?.fingerprint.to_string();
    let had = annotation(&secret, "state.cert-renew.io/rolled-out").unwrap_or_default();
    assert!(!had.starts_with(&fingerprint), "it is not done");
    throughout(
        Duration::from_secs(30),
        "it is looked at and told once",
        async || {
            let events = space.events("tls").await?;
            let of_it = events
                .iter()
                .filter(|it| it.starts_with("RolloutIncomplete"));
            ensure!(of_it.count() == 1, "{events:?}");
            let asked = asked()?;
            ensure!(asked == [1], "{asked:?}");
            Ok(())
        },
    )
    .await?;
    mark("True").await?;
    rolled_out(space, "tls").await?;
    assert_eq!(asked()?, [2, 2], "each twice, as ever");
    assert_eq!(scene.generation().await?, 1);
    Ok(())
}

#[tokio::test]
#[ignore = "run by pods_are_asked_at_their_own_addresses"]
async fn pods_that_never_answer_delay_only_their_own_secret() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = operator(bench).await?;
    let port = serve_nothing().await?;
    let asked = Scene::new(bench, &operator).await?;
    let reloaded = Scene::new(bench, &operator).await?;
    let well = Scene::new(bench, &operator).await?;
    for scene in [&asked, &reloaded, &well] {
        scene.web().await?;
    }
    service(&asked.space, "web", "web", port).await?;
    asked.begin(&[("verify", "web:443")]).await?;
    let reload = format!("post:{port}/r");
    reloaded.begin(&[("rollout", &reload)]).await?;
    let new = well.new.clone();
    let serves = serve_tls(&well.space, Box::new(move |_| Some(new.clone()))).await?;
    service(&well.space, "web", "web", serves).await?;
    well.begin(&[("verify", "web:443")]).await?;
    for scene in [&asked, &reloaded, &well] {
        scene.put_new().await?;
    }
    rolled_out(&well.space, "tls").await?;
    // What the pods have is not known: nothing is done to them for it.
    told(&asked.space, "tls", "NotVerified").await?;
    rolled_out(&asked.space, "tls").await?;
    assert_eq!(asked.generation().await?, 2);
    told(&reloaded.space, "tls", "RolloutHalted").await?;
    assert_eq!(reloaded.generation().await?, 1);
    Ok(())
}

#[tokio::test]
#[ignore = "run by pods_are_asked_at_their_own_addresses"]
async fn a_reload_that_came_too_early_is_repeated_where_it_is_verified() -> Result<()> {
    let bench = Bench::shared().await?;
    let (_operator, scene) = started(bench).await?;
    let (reload, hits) = serve_reload("200 OK").await?;
    let (old, new) = (scene.old.clone(), scene.new.clone());
    let asked = Arc::clone(&hits);
    // The kubelet brought the file only after the first request.
    let choice = move |pod: &Pod| {
        let status = pod.status.as_ref()?;
        let address: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
        let asked = asked.lock().unwrap();
        let times = asked.iter().filter(|(at, _)| *at == address).count();
        Some(if times > 1 { new.clone() } else { old.clone() })
    };
    let port = serve_tls(&scene.space, Box::new(choice)).await?;
    service(&scene.space, "web", "web", port).await?;
    let rollout = format!("post:{reload}/r");
    scene
        .begin(&[("rollout", &rollout), ("verify", "web:443")])
        .await?;
    scene.put_new().await?;
    rolled_out(&scene.space, "tls").await?;
    assert_eq!(scene.generation().await?, 1);
    assert_eq!(hits.lock().unwrap().len(), 4, "two pods, twice each");
    Ok(())
}
