//! The API server, the CA and the user as they really are: whatever comes in between, a renewal ends as it should, and
//! nobody is asked over and over.

mod away;
mod meanwhile;
mod requests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, OLD, Pair, Space, pair};
use test_bench::{
    Action, Bench, Fault, Operator, Passed, Result, Server, ensure, eventually, throughout,
};

use crate::renewal::{SOON, annotation, data, options, renewed, rolled_out};
use crate::scene::{End, SECRET, Scene, answered};

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

/// A merge patch on the Secret, by somebody else.
pub(crate) async fn edit(client: Client, namespace: &str, patch: Value) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    secrets
        .patch(SECRET, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
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
