//! The config file changes while the operator runs: what is valid is in force within the same process, what is not is
//! refused, and neither issues or restarts anything.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use test_bench::objects::{FRESH, OLD, Reference, Space, pair};
use test_bench::{
    Action, Bench, Context as _, Fault, Operator, Passed, PebbleOptions, Proxies, Result, ensure,
    eventually, throughout,
};

use crate::renewal::{SOON, annotation, data, options, renewed, rolled_out};
use crate::scene::{End, Scene, answered, records};

/// Long enough for a write that should not be to show itself, and for more than one look at the file.
const QUIET: Duration = Duration::from_secs(12);
/// What the log says of a valid version, and of another one.
const VALID: &str = "the config file has changed and is valid";
const REFUSED: &str = "the config file has changed and is refused";
const IN_FORCE: &str = "a changed config is in force";

/// The value of a series without labels.
async fn series(operator: &Operator<'_>, name: &str) -> Result<String> {
    let metrics = operator.metrics().await?;
    let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(' ')?.to_owned());
    metrics.lines().find_map(value).context(name.to_owned())
}

/// How often the log says something.
fn said(operator: &Operator<'_>, what: &str) -> Result<usize> {
    Ok(operator.log()?.matches(what).count())
}

async fn in_force(operator: &Operator<'_>, times: usize) -> Result<()> {
    eventually(SOON, "the changed config is in force", async || {
        let said = said(operator, IN_FORCE)?;
        ensure!(said == times, "{said} times");
        Ok(())
    })
    .await
}

async fn rejected(operator: &Operator<'_>, value: &str) -> Result<()> {
    eventually(SOON, &format!("config_rejected is {value}"), async || {
        let is = series(operator, "cert_renew_config_rejected").await?;
        ensure!(is == value, "it is {is}");
        Ok(())
    })
    .await
}

/// One more issuer at the same CA, as the config file has it behind the first.
fn second_issuer(bench: &Bench, directory: &str) -> String {
    format!(
        "  second:\n    directory: {directory}\n    caBundle: {}\n    concurrency: 1\n    profile: default\n    \
         allow: [{{namespaces: [\"*\"], names: [\"**.example\"]}}]\n",
        bench.ca_bundle().display()
    )
}

/// The switch for everything: nothing is ordered, written or restarted, and the metrics go on.
#[tokio::test]
async fn a_pause_in_the_config_stops_everything_and_ends_with_it() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "stopped", operator.namespace()).await?;
    let fresh = pair(&["outside.stopped.example"], FRESH)?;
    let external = [("issuer", "external")];
    space.tls_secret("outside", Some(&fresh), &external).await?;
    space
        .workload("Deployment", "web", Reference::Volume, "outside")
        .await?;
    space.available("Deployment", "web").await?;
    rolled_out(&space, "outside").await?;
    assert_eq!(series(&operator, "cert_renew_paused").await?, "0");
    let names = pair(&["sound.stopped.example"], FRESH)?;
    let ours = [("issuer", "pebble")];
    space.tls_secret("sound", Some(&names), &ours).await?;
    let state = async |name: &str, begins: &str| {
        eventually(SOON, &format!("{name} says {begins}"), async || {
            let secret = space.secrets().get(name).await?;
            let line = annotation(&secret, "state.cert-renew.io/state").unwrap_or_default();
            ensure!(line.starts_with(begins), "{line}");
            Ok(())
        })
        .await
    };
    state("sound", "ok; renews 20").await?;

    operator.configure(&format!("{}paused: true\n", options().config))?;
    in_force(&operator, 1).await?;
    assert_eq!(series(&operator, "cert_renew_paused").await?, "1");
    let old = pair(&["due.stopped.example"], OLD)?;
    space.tls_secret("due", Some(&old), &ours).await?;
    let next = pair(&["outside.stopped.example"], FRESH)?;
    space.put("outside", &next).await?;
    let of = format!("namespace=\"{}\",secret=\"due\"", space.name);
    eventually(SOON, "its expiry is exported", async || {
        let metrics = operator.metrics().await?;
        let mut lines = metrics.lines();
        let ends = |line: &str| line.contains("not_after") && line.contains(&of);
        ensure!(lines.any(ends), "not yet");
        Ok(())
    })
    .await?;
    throughout(QUIET, "nothing is done", async || {
        let due = space.secrets().get("due").await?;
        ensure!(data(&due, "tls.crt") == old.certificate, "it was renewed");
        let rolls = space.generation("Deployment", "web").await?;
        ensure!(rolls == 1, "it was restarted");
        Ok(())
    })
    .await?;
    // What stands on a Secret says by whom it is paused.
    state("sound", "paused: the config pauses everything").await?;
    state("outside", "paused: no workload is restarted; ends 20").await?;
    let ordered = operator.log()?.contains("\"message\":\"ordered\"");
    ensure!(!ordered, "an order was made");

    operator.configure(&options().config)?;
    renewed(&space, "due", &old.certificate).await?;
    rolled_out(&space, "outside").await?;
    state("sound", "ok; renews 20").await?;
    assert_eq!(space.generation("Deployment", "web").await?, 2);
    assert_eq!(series(&operator, "cert_renew_paused").await?, "0");
    Ok(())
}

#[tokio::test]
async fn a_version_with_a_fault_is_refused_and_the_one_before_it_stays() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let good = options().config;
    let process = operator.process()?.id();
    let before = series(&operator, "cert_renew_config_taken_over_timestamp_seconds").await?;
    assert_eq!(series(&operator, "cert_renew_config_rejected").await?, "0");

    operator.configure("rollout: {concurrency: many}\n")?;
    rejected(&operator, "1").await?;
    let log = operator.log()?;
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(REFUSED)).collect();
    ensure!(
        lines.len() == 1 && lines[0].contains("rollout.concurrency") && lines[0].contains("many"),
        "{lines:?}"
    );
    // It works on, as before.
    let space = Space::new(bench.client()?, "refused", operator.namespace()).await?;
    let old = pair(&["refused.example"], OLD)?;
    space
        .tls_secret("web", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "web", &old.certificate).await?;
    throughout(QUIET, "it is said once", async || {
        let said = said(&operator, REFUSED)?;
        ensure!(said == 1, "{said} times");
        Ok(())
    })
    .await?;

    // A file that is gone is refused as well; the old text again is no change.
    fs::remove_file(operator.config())?;
    eventually(SOON, "it is said that the file is gone", async || {
        ensure!(operator.log()?.contains("cannot be read"), "it is not");
        Ok(())
    })
    .await?;
    assert_eq!(series(&operator, "cert_renew_config_rejected").await?, "1");
    operator.configure(&good)?;
    rejected(&operator, "0").await?;
    assert_eq!(said(&operator, IN_FORCE)?, 0, "it is the same as before");
    let after = series(&operator, "cert_renew_config_taken_over_timestamp_seconds").await?;
    assert_eq!(before, after);
    assert_eq!(operator.process()?.id(), process);
    Ok(())
}

#[tokio::test]
async fn a_valid_version_is_in_force_in_the_same_process_and_repeats_nothing() -> Result<()> {
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let mut options = options();
    options.directory = Some(proxies.directory());
    let mut operator = Operator::start(bench, options.clone()).await?;
    let process = operator.process()?.id();
    let space = Space::new(bench.client()?, "reloaded", operator.namespace()).await?;
    let old = pair(&["first.reloaded.example"], OLD)?;
    space
        .workload("Deployment", "web", Reference::Volume, "first")
        .await?;
    space.available("Deployment", "web").await?;
    space
        .tls_secret("first", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "first", &old.certificate).await?;
    rolled_out(&space, "first").await?;
    let old = pair(&["second.reloaded.example"], OLD)?;
    space
        .tls_secret("second", Some(&old), &[("issuer", "second")])
        .await?;
    eventually(SOON, "an issuer that is not there blocks it", async || {
        let metrics = operator.metrics().await?;
        let blocked = metrics
            .lines()
            .any(|line| line.contains("secret=\"second\"") && line.contains("state=\"blocked\""));
        ensure!(blocked, "it does not");
        Ok(())
    })
    .await?;
    let first = space.secrets().get("first").await?;
    let generation = space.generation("Deployment", "web").await?;

    let config = second_issuer(bench, &proxies.directory()) + &options.config;
    operator.configure(&(config + "metrics: {page: false}\n"))?;
    let secret = {
        let operator = &operator;
        // It is never out of service meanwhile.
        let watched = async || -> Result<()> {
            loop {
                operator.ask("/readyz").await?;
                ensure!(operator.leads().await?, "it does not lead");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            trouble = watched() => return trouble.context("while the config changed"),
            secret = renewed(&space, "second", &old.certificate) => secret?,
        }
    };
    let issued_by = annotation(&secret, "state.cert-renew.io/issued-by").unwrap_or_default();
    ensure!(issued_by.contains("second"), "{issued_by}");
    rolled_out(&space, "second").await?;
    in_force(&operator, 1).await?;
    ensure!(operator.ask("/").await.is_err(), "the page is still there");

    throughout(QUIET, "nothing is done twice", async || {
        let now = space.secrets().get("first").await?;
        ensure!(
            now.metadata.resource_version == first.metadata.resource_version,
            "the first Secret was written"
        );
        let generations = space.generation("Deployment", "web").await?;
        ensure!(generations == generation, "the workload was rolled");
        let issued = answered(&proxies, "/finalize-order/", 200);
        ensure!(issued == 2, "{issued} certificates");
        Ok(())
    })
    .await?;
    assert_eq!(operator.process()?.id(), process);
    assert_eq!(said(&operator, "\"started\"")?, 1);
    assert_eq!(
        series(&operator, "cert_renew_leader_terms_total").await?,
        "1",
        "the lease was given away"
    );
    Ok(())
}

/// Changes the file at the first request of which `when` is true, and lets that request go on when it was noticed.
fn change_at(scene: &Scene<'_>, when: fn(&Passed) -> bool) -> Result<Arc<AtomicBool>> {
    let (config, log) = (
        scene.operator.config().to_path_buf(),
        log_of(&scene.operator)?,
    );
    let action: Action = Arc::new(move || {
        let text = fs::read_to_string(&config).expect("there is a config");
        let changed = text + "renewals: {concurrency: 32}\n";
        let unfinished = config.with_extension("unfinished");
        fs::write(&unfinished, changed).expect("it can be written");
        fs::rename(&unfinished, &config).expect("it can be replaced");
        let started = Instant::now();
        while !fs::read_to_string(&log).is_ok_and(|text| text.contains(VALID)) {
            assert!(started.elapsed() < SOON, "the change is not noticed");
            sleep(Duration::from_millis(20));
        }
    });
    let done = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&done);
    scene.proxies.rule(move |passed| {
        if when(passed) && !seen.swap(true, Ordering::SeqCst) {
            Fault::Meanwhile(Arc::clone(&action))
        } else {
            Fault::Pass
        }
    });
    Ok(done)
}

fn log_of(operator: &Operator<'_>) -> Result<PathBuf> {
    Ok(operator.config().with_extension("").with_extension("log"))
}

#[tokio::test]
async fn what_is_under_way_is_parked_and_gone_on_with() -> Result<()> {
    let bench = Bench::shared().await?;
    for (name, when) in [
        (
            "the order",
            (|passed| passed.path.ends_with("/order-plz")) as fn(&Passed) -> bool,
        ),
        ("a challenge", |passed| passed.path.starts_with("/chalZ/")),
        ("the issue", |passed| {
            passed.path.contains("/finalize-order/")
        }),
        ("the write", |passed| {
            passed.method == "PATCH" && passed.path.ends_with("/secrets/shop-tls")
        }),
        ("a rollout", |passed| {
            passed.method == "PATCH" && passed.path.contains("/deployments/")
        }),
    ] {
        let parked = async {
            let mut scene = Scene::set(bench, "retry: {base: 5s, factor: 6}\n").await?;
            let reached = change_at(&scene, when)?;
            scene.operator.run().await?;
            let process = scene.operator.process()?.id();
            in_force(&scene.operator, 1).await?;
            ensure!(reached.load(Ordering::SeqCst), "it was not under way");
            let end = scene.end().await?;
            ensure!(end == End::undisturbed(), "{end:?}");
            let orders = answered(&scene.proxies, "/order-plz", 201);
            ensure!(orders == 1, "{orders} orders");
            ensure!(scene.operator.process()?.id() == process, "another process");
            Ok(())
        };
        parked.await.with_context(|| name.to_owned())?;
    }
    Ok(())
}

#[tokio::test]
async fn other_namespaces_are_watched_at_once_and_those_before_are_let_be() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    let scope = |space: &Space| format!("watch: {{namespaces: [{}]}}\n", space.name);
    let config = options.config.clone();
    options.config += "watch: {namespaces: [nowhere]}\n";
    let mut operator = Operator::start(bench, options).await?;
    let before = Space::new(bench.client()?, "before", operator.namespace()).await?;
    let after = Space::new(bench.client()?, "after", operator.namespace()).await?;
    let ours = [("issuer", "pebble")];
    let old = pair(&["scope.example"], OLD)?;
    operator.configure(&(config.clone() + &scope(&before)))?;
    before.tls_secret("web", Some(&old), &ours).await?;
    after.tls_secret("web", Some(&old), &ours).await?;
    renewed(&before, "web", &old.certificate).await?;
    rolled_out(&before, "web").await?;
    let untouched = after.secrets().get("web").await?;
    assert_eq!(data(&untouched, "tls.crt"), old.certificate);

    operator.configure(&(config + &scope(&after)))?;
    renewed(&after, "web", &old.certificate).await?;
    rolled_out(&after, "web").await?;
    let metrics = operator.metrics().await?;
    let knows = |space: &Space| metrics.contains(&format!("namespace=\"{}\"", space.name));
    assert!(knows(&after) && !knows(&before), "{metrics}");
    // What happens there is not ours any more.
    before.put("web", &old).await?;
    throughout(QUIET, "it stays as somebody has put it", async || {
        let secret = before.secrets().get("web").await?;
        ensure!(data(&secret, "tls.crt") == old.certificate, "it does not");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_standby_whose_config_changes_first_does_not_act() -> Result<()> {
    let bench = Bench::shared().await?;
    // A lease that does not end while the test runs.
    let options = options().lease(["600s", "400s", "1s"]);
    let mut leader = Operator::start(bench, options.clone()).await?;
    eventually(SOON, "it leads", async || {
        ensure!(leader.leads().await?, "it does not");
        Ok(())
    })
    .await?;
    let mut standby = leader.replica(options.clone()).await?;
    standby.run().await?;
    let space = Space::new(bench.client()?, "standby", leader.namespace()).await?;
    let old = pair(&["later.example"], OLD)?;
    space
        .tls_secret("web", Some(&old), &[("issuer", "second")])
        .await?;
    let fresh = pair(&["fresh.example"], FRESH)?;
    space
        .tls_secret("fresh", Some(&fresh), &[("issuer", "pebble")])
        .await?;
    rolled_out(&space, "fresh").await?;
    let config = second_issuer(bench, bench.pebble().directory()) + &options.config;
    standby.configure(&config)?;
    in_force(&standby, 1).await?;
    throughout(QUIET, "only the leader acts", async || {
        let secret = space.secrets().get("web").await?;
        ensure!(data(&secret, "tls.crt") == old.certificate, "it is renewed");
        Ok(())
    })
    .await?;
    assert!(standby.writes()?.is_empty(), "{:?}", standby.writes()?);
    leader.configure(&config)?;
    renewed(&space, "web", &old.certificate).await?;
    rolled_out(&space, "web").await?;
    in_force(&leader, 1).await?;
    assert!(standby.writes()?.is_empty(), "{:?}", standby.writes()?);
    assert!(leader.leads().await? && !standby.leads().await?);
    Ok(())
}

#[tokio::test]
async fn an_issuer_that_moves_to_another_ca_leaves_the_order_there_and_makes_one_here() -> Result<()>
{
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let there = PebbleOptions {
        name: "pebble-moved".to_owned(),
        ..PebbleOptions::default()
    };
    let there = bench.start_pebble(&there).await?;
    let mut options = options();
    options.config += "retry: {base: 1s, factor: 1, max: 1s}\n";
    let common = options.config.clone();
    options.config = second_issuer(bench, &proxies.directory()) + &common;
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "moved", operator.namespace()).await?;
    proxies.rule(|passed| {
        if passed.path.starts_with("/chalZ/") {
            Fault::Hang
        } else {
            Fault::Pass
        }
    });
    let old = pair(&["moved.example"], OLD)?;
    space
        .tls_secret("web", Some(&old), &[("issuer", "second")])
        .await?;
    eventually(SOON, "its order is made", async || {
        ensure!(operator.log()?.contains("\"ordered\""), "not yet");
        Ok(())
    })
    .await?;
    operator.configure(&(second_issuer(bench, there.directory()) + &common))?;
    renewed(&space, "web", &old.certificate).await?;
    assert_eq!(answered(&proxies, "/finalize-order/", 200), 0);
    eventually(SOON, "no order record is left", async || {
        let left = records(bench, &operator).await?;
        ensure!(left == 0, "{left} are");
        Ok(())
    })
    .await
}
