//! The API server, the CA and the user as they really are: whatever comes in between, a renewal ends as it should, and
//! nobody is asked over and over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, OLD, Pair, Space, pair};
use test_bench::{
    Action, Bench, Fault, Operator, Passed, Result, Server, ensure, eventually, throughout,
};

use crate::renewal::{SOON, annotation, data, leaf, options, renewed, rolled_out};
use crate::scene::{End, SECRET, Scene, answered};

/// Runs at the same time: each mostly waits.
const AT_ONCE: usize = 4;
/// In `make test` every so many requests fail; `make chaos` has each fail in each way.
const STRIDE: usize = 7;
/// A failed renewal is tried again after five seconds instead of a minute, and then after half a minute.
const SOONER: &str = "retry: {base: 5s, factor: 6}\n";
/// Long enough for a write that should not be to show itself.
const QUIET: Duration = Duration::from_secs(3);
/// An API server that is updated or restarts is away for so long.
const OUTAGE: Duration = Duration::from_secs(15);
/// Connections in that time, all watches and calls together; a loop without a pause makes thousands.
const PATIENT: usize = 80;

/// Of the secrets that an operator makes in its own namespace from its first start on, the order record is this one:
/// before it comes the account's key, twice.
const LAST_MADE: usize = 2;

/// What is done by somebody else while a request is on its way.
pub(crate) fn action<F>(bench: &'static Bench, what: F) -> Action
where
    F: AsyncFn(Client) -> Result<()> + Send + Sync + 'static,
{
    Arc::new(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime starts");
        let done = runtime.block_on(async { what(bench.client()?).await });
        done.expect("somebody else can do it");
    })
}

/// Does it at the first request of which `when` is true.
pub(crate) fn once(scene: &Scene<'_>, when: fn(&Passed) -> bool, fault: Fault) -> Arc<AtomicBool> {
    let done = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&done);
    scene.proxies.rule(move |passed| {
        if when(passed) && !seen.swap(true, Ordering::SeqCst) {
            fault.clone()
        } else {
            Fault::Pass
        }
    });
    done
}

pub(crate) fn finalizes(passed: &Passed) -> bool {
    passed.path.contains("/finalize-order/")
}

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
    // Whoever starts it starts it again, if it ends because of the fault.
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

#[tokio::test]
async fn an_api_server_that_is_away_is_waited_for_and_not_hammered() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut scene = Scene::set(bench, SOONER).await?;
    let away = once(&scene, finalizes, Fault::Meanwhile(scene.proxies.vanish()));
    scene.operator.run().await?;
    eventually(SOON, "the API server goes away", async || {
        ensure!(away.load(Ordering::SeqCst), "it is still there");
        Ok(())
    })
    .await?;
    let before = scene.proxies.aside();
    // The outage itself, not a wait for something.
    tokio::time::sleep(OUTAGE).await;
    let tries = scene.proxies.aside() - before;
    scene.proxies.gone(false);
    ensure!(tries <= PATIENT, "{tries} connections in {OUTAGE:?}");
    assert_eq!(scene.end().await?, End::undisturbed());
    Ok(())
}

#[tokio::test]
async fn an_api_server_that_is_not_there_at_the_start_is_waited_for() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut scene = Scene::set(bench, SOONER).await?;
    scene.proxies.gone(true);
    scene.operator.spawn()?;
    eventually(SOON, "it says what it waits for", async || {
        let log = scene.operator.log()?;
        ensure!(log.contains("the API server does not answer"), "{log}");
        Ok(())
    })
    .await?;
    scene.proxies.gone(false);
    scene.operator.wait_ready().await?;
    assert_eq!(scene.end().await?, End::undisturbed());
    Ok(())
}

#[tokio::test]
async fn a_relist_in_the_middle_of_a_renewal_changes_nothing() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut scene = Scene::set(bench, SOONER).await?;
    once(&scene, finalizes, Fault::Meanwhile(scene.proxies.expire(3)));
    scene.operator.run().await?;
    assert_eq!(scene.end().await?, End::undisturbed());
    eventually(SOON, "three watches are told 410", async || {
        let left = scene.proxies.unexpired();
        ensure!(left == 0, "{left} are not");
        Ok(())
    })
    .await?;
    // It still sees what changes.
    let other = pair(&["relisted.example"], FRESH)?;
    scene.space.put(SECRET, &other).await?;
    rolled_out(&scene.space, SECRET).await?;
    Ok(())
}

#[tokio::test]
async fn a_call_that_hangs_delays_only_its_own_certificate() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut scene = Scene::set(bench, SOONER).await?;
    let hangs = format!("/namespaces/{}/secrets/{SECRET}", scene.space.name);
    let first = AtomicBool::new(true);
    scene.proxies.rule(move |passed| {
        if passed.method == "PATCH"
            && passed.path.ends_with(&hangs)
            && first.swap(false, Ordering::SeqCst)
        {
            Fault::Hang
        } else {
            Fault::Pass
        }
    });
    let class = scene.operator.namespace().to_owned();
    let other = Space::new(bench.client()?, "beside", &class).await?;
    scene.operator.run().await?;
    let old = pair(&["beside.example"], OLD)?;
    other
        .tls_secret("beside", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&other, "beside", &old.certificate).await?;
    // Two Secrets, one certificate each.
    let end = scene.end().await?;
    assert_eq!(
        end,
        End {
            certificates: 2,
            ..End::undisturbed()
        }
    );
    Ok(())
}

/// A merge patch on the Secret, by somebody else.
pub(crate) async fn edit(client: Client, namespace: &str, patch: Value) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    secrets
        .patch(SECRET, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// A scene whose user does something while the CA issues.
async fn interrupted<F>(bench: &'static Bench, what: F) -> Result<Scene<'static>>
where
    F: AsyncFn(Client, &str) -> Result<()> + Send + Sync + 'static,
{
    let mut scene = Scene::set(bench, SOONER).await?;
    let namespace = scene.space.name.clone();
    let done = action(bench, async move |client| what(client, &namespace).await);
    let done = once(&scene, finalizes, Fault::Meanwhile(done));
    scene.operator.run().await?;
    eventually(SOON, "the CA is about to issue", async || {
        ensure!(done.load(Ordering::SeqCst), "it is not");
        Ok(())
    })
    .await?;
    Ok(scene)
}

async fn no_order_is_left(scene: &Scene<'_>) -> Result<()> {
    eventually(SOON, "no order record is left", async || {
        let left = scene.records().await?;
        ensure!(left == 0, "{left} are");
        Ok(())
    })
    .await
}

async fn stays_as_it_was(scene: &Scene<'_>) -> Result<()> {
    throughout(QUIET, "the old certificate stays", async || {
        let secret = scene.space.secrets().get(SECRET).await?;
        ensure!(
            data(&secret, "tls.crt") == scene.old.certificate,
            "it does not"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_secret_that_is_deleted_while_the_ca_issues_does_not_come_back() -> Result<()> {
    let bench = Bench::shared().await?;
    let scene = interrupted(bench, async |client, namespace| {
        let secrets: Api<Secret> = Api::namespaced(client, namespace);
        secrets.delete(SECRET, &DeleteParams::default()).await?;
        Ok(())
    })
    .await?;
    no_order_is_left(&scene).await?;
    throughout(QUIET, "it stays away", async || {
        let secret = scene.space.secrets().get_opt(SECRET).await?;
        ensure!(secret.is_none(), "it is back");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_secret_that_is_made_anew_while_the_ca_issues_is_renewed_itself() -> Result<()> {
    let bench = Bench::shared().await?;
    let scene = interrupted(bench, async |client, namespace| {
        let secrets: Api<Secret> = Api::namespaced(client, namespace);
        let mut secret = secrets.get(SECRET).await?;
        secrets.delete(SECRET, &DeleteParams::default()).await?;
        secret.metadata.uid = None;
        secret.metadata.resource_version = None;
        secret.metadata.managed_fields = None;
        secrets.create(&PostParams::default(), &secret).await?;
        Ok(())
    })
    .await?;
    let end = scene.end().await?;
    // The certificate that was under way may serve it, or another one is issued; never a third.
    ensure!(end.certificates <= 2, "{end:?}");
    // Two are remembered, for the CA counts them; those of one second as one.
    let remembered: Vec<&String> = end.failures.values().collect();
    ensure!(
        remembered.len() < end.certificates
            && remembered
                .iter()
                .all(|it| it.starts_with("{\"scheduled\":[")),
        "{end:?}"
    );
    let expected = End {
        certificates: end.certificates,
        failures: end.failures.clone(),
        ..End::undisturbed()
    };
    assert_eq!(end, expected);
    Ok(())
}

#[tokio::test]
async fn a_secret_that_is_no_longer_annotated_is_not_written() -> Result<()> {
    let bench = Bench::shared().await?;
    let scene = interrupted(bench, async |client, namespace| {
        let none = json!({"metadata": {"annotations": null}});
        edit(client, namespace, none).await
    })
    .await?;
    no_order_is_left(&scene).await?;
    stays_as_it_was(&scene).await
}

#[tokio::test]
async fn names_that_change_while_the_ca_issues_are_what_is_written() -> Result<()> {
    let bench = Bench::shared().await?;
    let scene = interrupted(bench, async |client, namespace| {
        let names =
            json!({"metadata": {"annotations": {"cert-renew.io/names": "changed.example"}}});
        edit(client, namespace, names).await
    })
    .await?;
    let secret = eventually(SOON, "it holds the new name", async || {
        let secret = scene.space.secrets().get(SECRET).await?;
        let names: Vec<String> = leaf(&secret)?
            .names
            .iter()
            .map(ToString::to_string)
            .collect();
        ensure!(names == ["changed.example"], "{names:?}");
        Ok(secret)
    })
    .await?;
    ensure!(
        data(&secret, "tls.crt") != scene.old.certificate,
        "it is the old one"
    );
    rolled_out(&scene.space, SECRET).await?;
    no_order_is_left(&scene).await
}

#[tokio::test]
async fn a_pause_while_the_ca_issues_is_kept_to_and_then_goes_on() -> Result<()> {
    let bench = Bench::shared().await?;
    let paused =
        |value: Value| json!({"metadata": {"annotations": {"cert-renew.io/paused": value}}});
    let scene = interrupted(bench, async move |client, namespace| {
        edit(client, namespace, paused(json!("true"))).await
    })
    .await?;
    stays_as_it_was(&scene).await?;
    edit(bench.client()?, &scene.space.name, paused(Value::Null)).await?;
    let end = scene.end().await?;
    ensure!(end.certificates <= 2, "{end:?}");
    Ok(())
}

#[tokio::test]
async fn a_secret_that_is_made_immutable_is_said_and_stays() -> Result<()> {
    let bench = Bench::shared().await?;
    let scene = interrupted(bench, async |client, namespace| {
        edit(client, namespace, json!({"immutable": true})).await
    })
    .await?;
    eventually(SOON, "an Event says so", async || {
        let events = scene.space.events(SECRET).await?;
        ensure!(
            events.iter().any(|event| event.contains("immutable")),
            "{events:?}"
        );
        Ok(())
    })
    .await?;
    stays_as_it_was(&scene).await
}

#[tokio::test]
async fn a_namespace_that_goes_while_the_ca_issues_leaves_nothing_behind() -> Result<()> {
    let bench = Bench::shared().await?;
    let scene = interrupted(bench, async |client, namespace| {
        let namespaces: Api<Namespace> = Api::all(client);
        namespaces
            .delete(namespace, &DeleteParams::default())
            .await?;
        Ok(())
    })
    .await?;
    no_order_is_left(&scene).await?;
    ensure!(
        answered(&scene.proxies, "/order-plz", 201) == 1,
        "it is ordered again"
    );
    Ok(())
}

/// A Secret as cert-manager's controller writes it.
pub(crate) async fn of_cert_manager(space: &Space, name: &str, pair: &Pair) -> Result<Secret> {
    let secret: Secret = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {
            "name": name,
            "annotations": space.annotations(&[("issuer", "pebble"), ("cert-manager.io/certificate-name", "shop")]),
        },
        "data": {
            "tls.crt": ByteString(pair.certificate.clone().into_bytes()),
            "tls.key": ByteString(pair.key.clone().into_bytes()),
        },
    }))?;
    let manager = PatchParams::apply("cert-manager-certificates-issuing").force();
    space
        .secrets()
        .patch(name, &manager, &Patch::Apply(&secret))
        .await?;
    Ok(secret)
}

#[tokio::test]
async fn a_secret_that_another_program_keeps_is_left_to_it() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "kept", operator.namespace()).await?;
    let old = pair(&["kept.example"], OLD)?;
    let mut secret = of_cert_manager(&space, SECRET, &old).await?;
    // A leftover of a copy, not of cert-manager.
    secret.metadata.name = Some("copied".into());
    secret.metadata.managed_fields = None;
    space
        .secrets()
        .create(&PostParams::default(), &secret)
        .await?;
    renewed(&space, "copied", &old.certificate).await?;
    eventually(SOON, "an Event says who keeps it", async || {
        let events = space.events(SECRET).await?;
        let said =
            |event: &String| event.starts_with("OwnedByAnother") && event.contains("cert-manager");
        ensure!(events.iter().any(said), "{events:?}");
        Ok(())
    })
    .await?;
    let stuck = format!(
        "cert_renew_certificate_stuck{{namespace=\"{}\",secret=\"{SECRET}\",issuer=\"pebble\",why=\"other_owner\"}} 1",
        space.name
    );
    eventually(SOON, "the metrics say so too", async || {
        ensure!(operator.metrics().await?.contains(&stuck), "not yet");
        Ok(())
    })
    .await?;
    throughout(QUIET, "it is not renewed", async || {
        let secret = space.secrets().get(SECRET).await?;
        ensure!(data(&secret, "tls.crt") == old.certificate, "it is");
        Ok(())
    })
    .await?;
    // Somebody else renews it, and we roll: that is what `external` is for.
    let external = json!({"metadata": {"annotations": {"cert-renew.io/issuer": "external"}}});
    edit(bench.client()?, &space.name, external).await?;
    rolled_out(&space, SECRET).await?;
    let metrics = operator.metrics().await?;
    ensure!(
        !metrics.contains(&stuck),
        "it is nobody's to decide any more"
    );
    Ok(())
}

/// `kubectl replace --force` of a Secret by one of another type: the two come by two watches, in any order.
#[tokio::test]
async fn a_secret_that_is_replaced_by_one_of_another_type_is_not_forgotten() -> Result<()> {
    const SECRETS: usize = 60;
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "replaced", operator.namespace()).await?;
    let fresh = pair(&["replaced.example"], FRESH)?;
    let external = [("issuer", "external")];
    let opaque = async |name: String| {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name),
                annotations: Some(space.annotations(&external)),
                labels: Some([("cert-renew.io/managed".into(), "true".into())].into()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([
                (
                    "tls.crt".into(),
                    ByteString(fresh.certificate.clone().into()),
                ),
                ("tls.key".into(), ByteString(fresh.key.clone().into())),
            ])),
            ..Secret::default()
        };
        space
            .secrets()
            .create(&PostParams::default(), &secret)
            .await
    };
    let known = async |expected: usize| {
        eventually(SOON, "all are known", async || {
            let metrics = operator.metrics().await?;
            let series = "cert_renew_certificate_not_after_timestamp_seconds{";
            let of_space = format!("namespace=\"{}\"", space.name);
            let count = metrics
                .lines()
                .filter(|line| line.starts_with(series) && line.contains(&of_space));
            let count = count.count();
            ensure!(count == expected, "{count} of {expected}");
            Ok(())
        })
        .await
    };
    for number in 0..SECRETS {
        opaque(format!("tls-{number}")).await?;
    }
    known(SECRETS).await?;
    // There and back again, many at once: each watch is once the one that tells of the deletion, and now and then it is
    // the later one to tell.
    for there in [true, false] {
        let replaced = stream::iter(0..SECRETS).map(async |number| {
            let name = format!("tls-{number}");
            { space.secrets() }
                .delete(&name, &DeleteParams::default())
                .await?;
            if there {
                space.tls_secret(&name, Some(&fresh), &external).await?;
            } else {
                opaque(name).await?;
            }
            Ok::<_, test_bench::Error>(())
        });
        replaced
            .buffer_unordered(SECRETS)
            .try_collect::<()>()
            .await?;
        // A watch tells in order: with these, all before them has been told.
        { space.tls_secret("last-tls", Some(&fresh), &external) }.await?;
        opaque("last-opaque".into()).await?;
        known(SECRETS + 2).await?;
        for name in ["last-tls", "last-opaque"] {
            { space.secrets() }
                .delete(name, &DeleteParams::default())
                .await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_a_lying_ca_gives_is_never_written() -> Result<()> {
    let bench = Bench::shared().await?;
    let other = pair(&["other.example"], FRESH)?.certificate;
    let cut = other[..300].to_owned();
    for (lie, said) in [
        (other, "key"),
        (cut, "PEM"),
        (String::new(), "empty"),
        ("x".repeat(10 << 20), "1 MiB"),
    ] {
        let mut scene = Scene::set(bench, SOONER).await?;
        let name = format!("a lie of {} bytes", lie.len());
        let chain = "application/pem-certificate-chain";
        scene.proxies.rule(move |passed| {
            if passed.server == Server::Ca && passed.path.starts_with("/certZ/") {
                Fault::Answer(200, None, chain, lie.clone())
            } else {
                Fault::Pass
            }
        });
        scene.operator.run().await?;
        eventually(SOON, &format!("{name} is told"), async || {
            let secret = scene.space.secrets().get(SECRET).await?;
            let error = annotation(&secret, "state.cert-renew.io/last-error").unwrap_or_default();
            ensure!(error.contains(said), "{error:?} does not speak of {said:?}");
            Ok(())
        })
        .await?;
        stays_as_it_was(&scene).await?;
        let orders = answered(&scene.proxies, "/order-plz", 201);
        ensure!(orders <= 2, "{orders} orders: it does not back off");
        scene.proxies.rule(|_| Fault::Pass);
        renewed(&scene.space, SECRET, &scene.old.certificate).await?;
    }
    Ok(())
}

#[tokio::test]
async fn terminated_in_the_middle_it_parks_its_work_and_the_next_start_goes_on() -> Result<()> {
    let bench = Bench::shared().await?;
    for when in [
        (|passed| passed.path.ends_with("/order-plz")) as fn(&Passed) -> bool,
        |passed| passed.path.starts_with("/chalZ/"),
        finalizes,
        |passed| passed.method == "PATCH" && passed.path.contains("/deployments/"),
    ] {
        let mut scene = Scene::set(bench, SOONER).await?;
        let reached = once(&scene, when, Fault::Delay(Duration::from_secs(1)));
        scene.operator.run().await?;
        eventually(SOON, "the request is on its way", async || {
            ensure!(reached.load(Ordering::SeqCst), "it is not");
            Ok(())
        })
        .await?;
        // Within the grace period and with success, or this is an error.
        scene.operator.terminate().await?;
        scene.operator.run().await?;
        assert_eq!(scene.end().await?, End::undisturbed());
    }
    Ok(())
}

#[tokio::test]
async fn what_fell_due_while_it_was_suspended_is_caught_up_with() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "suspended", operator.namespace()).await?;
    let fresh = pair(&["suspended.example"], FRESH)?;
    space
        .tls_secret(SECRET, Some(&fresh), &[("issuer", "pebble")])
        .await?;
    rolled_out(&space, SECRET).await?;
    operator.freeze(true)?;
    let old = pair(&["suspended.example"], OLD)?;
    space.put(SECRET, &old).await?;
    operator.freeze(false)?;
    renewed(&space, SECRET, &old.certificate).await?;
    Ok(())
}
