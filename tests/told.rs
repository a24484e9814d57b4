//! What a Secret says of itself to a user who looks at it by kubectl: one line, what is wrong, and that it is managed
//! at all.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use test_bench::objects::{Age, FRESH, OLD, Reference, Space, pair};
use test_bench::{Bench, Operator, Result, ensure, eventually, throughout};

use crate::fresh_look::closed_window;
use crate::install::kubectl;
use crate::propagation;
use crate::renewal::{SOON, annotation, options, overdue, renewed, rolled_out};

const STATE: &str = "state.cert-renew.io/state";
const LAST_ERROR: &str = "state.cert-renew.io/last-error";
const RETRY_AT: &str = "state.cert-renew.io/retry-at";
const PROBLEMS: &str = "state.cert-renew.io/problems";
const SINCE: &str = "state.cert-renew.io/since";
/// Longer than a line waits for its write, so that a needless write would come.
const QUIET: Duration = Duration::from_secs(8);

async fn annotate(space: &Space, name: &str, annotations: Value) -> Result<Secret> {
    let patch = json!({"metadata": {"annotations": annotations}});
    let params = PatchParams::default();
    Ok(space
        .secrets()
        .patch(name, &params, &Patch::Merge(patch))
        .await?)
}

/// Waits until an annotation fits, and returns the Secret.
async fn says(space: &Space, name: &str, key: &str, fits: impl Fn(&str) -> bool) -> Result<Secret> {
    eventually(SOON, &format!("{key} of {name}"), async || {
        let secret = space.secrets().get(name).await?;
        let said = annotation(&secret, key).unwrap_or_default().to_owned();
        ensure!(
            fits(&said),
            "it says {said:?}; events: {:?}",
            space.events(name).await?
        );
        Ok(secret)
    })
    .await
}

/// How often each of these reasons was told.
async fn told(space: &Space, name: &str, reason: &str) -> Result<Vec<String>> {
    let mut events = space.events(name).await?;
    events.retain(|event| event.starts_with(&format!("{reason}:")));
    Ok(events)
}

/// The operator's patches of one Secret.
fn patches(operator: &Operator<'_>, space: &Space, name: &str) -> Result<usize> {
    let writes = operator.writes()?;
    let of_it = writes.iter().filter(|it| {
        it.resource == "secrets" && it.namespace == space.name && it.name == name && it.status < 300
    });
    Ok(of_it.count())
}

#[tokio::test]
async fn a_secret_says_how_it_stands_and_only_what_changes_is_written() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "told", operator.namespace()).await?;
    let fresh = pair(&["told.example"], FRESH)?;
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    space
        .tls_secret("tls", Some(&fresh), &[("issuer", "pebble")])
        .await?;
    // The first sight writes the line with what it writes anyway.
    let secret = says(&space, "tls", STATE, |it| it.starts_with("ok; renews 20")).await?;
    assert!(annotation(&secret, "state.cert-renew.io/rolled-out").is_some());
    eventually(SOON, "it is told that it is adopted", async || {
        let told = told(&space, "tls", "Adopted").await?;
        ensure!(
            told.len() == 1
                && told[0].contains("renews 20")
                && told[0].contains("restarts deployment/web"),
            "{told:?}"
        );
        Ok(())
    })
    .await?;
    assert_eq!(patches(&operator, &space, "tls")?, 1);
    let generation = space.generation("Deployment", "web").await?;
    // What is wrong is said in full, and no longer once it is mended.
    annotate(&space, "tls", json!({"cert-renew.io/issuer": "pebbel"})).await?;
    let secret = says(&space, "tls", PROBLEMS, |it| {
        it.contains("did you mean pebble?")
    })
    .await?;
    let line = annotation(&secret, STATE).unwrap_or_default();
    assert!(
        line.starts_with("blocked: cert-renew.io/issuer: \"pebbel\""),
        "{line}"
    );
    assert!(line.chars().count() < 140, "{line}");
    let since = annotation(&secret, SINCE).unwrap_or_default();
    assert!(since.starts_with("blocked 20"), "{since}");
    annotate(&space, "tls", json!({"cert-renew.io/issuer": "pebble"})).await?;
    let secret = says(&space, "tls", STATE, |it| it.starts_with("ok; renews 20")).await?;
    assert_eq!(annotation(&secret, PROBLEMS), None);
    assert_eq!(annotation(&secret, SINCE), None);
    // A forged text is no setting, and is taken away.
    annotate(
        &space,
        "tls",
        json!({PROBLEMS: "cert-renew.io/issuer: no", STATE: "blocked: by nobody"}),
    )
    .await?;
    let secret = says(&space, "tls", STATE, |it| it.starts_with("ok; renews 20")).await?;
    assert_eq!(annotation(&secret, PROBLEMS), None);
    // Our own writes bring no more of them, and no rollout.
    let written = patches(&operator, &space, "tls")?;
    throughout(QUIET, "nothing is written any more", async || {
        let now = patches(&operator, &space, "tls")?;
        ensure!(now == written, "{now} patches, not {written}");
        Ok(())
    })
    .await?;
    operator.restart().await?;
    throughout(QUIET, "a restart writes and tells nothing", async || {
        let now = patches(&operator, &space, "tls")?;
        let told = told(&space, "tls", "Adopted").await?;
        ensure!(
            now == written && told.len() == 1,
            "{now} patches, not {written}; {told:?}"
        );
        Ok(())
    })
    .await?;
    assert_eq!(space.generation("Deployment", "web").await?, generation);
    Ok(())
}

/// Nothing is written on one that is due before the window opens: the Event alone says that it was seen.
#[tokio::test]
async fn what_is_due_and_annotated_while_its_window_is_closed_is_told() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "shut-first", operator.namespace()).await?;
    let fresh = pair(&["shut.example"], FRESH)?;
    let age = Age {
        since: 65,
        left: 25,
    };
    let due = pair(&["shut.example"], age)?;
    // The operator leads by now.
    space
        .tls_secret("open", Some(&fresh), &[("issuer", "pebble")])
        .await?;
    says(&space, "open", STATE, |it| it.starts_with("ok; renews 20")).await?;
    let window = closed_window();
    let shut = [("issuer", "pebble"), ("change-window", &*window)];
    space.tls_secret("shut", Some(&due), &shut).await?;
    eventually(SOON, "it is told that it waits", async || {
        let told = told(&space, "shut", "RolloutWaits").await?;
        ensure!(
            told.len() == 1
                && told[0].contains("a new certificate is due")
                && told[0].contains("nothing changes before the change window opens, at 20"),
            "{told:?}"
        );
        Ok(())
    })
    .await?;
    assert_eq!(patches(&operator, &space, "shut")?, 0);
    Ok(())
}

#[tokio::test]
async fn an_upgrade_writes_no_line_on_healthy_secrets() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "upgraded", operator.namespace()).await?;
    let fresh = pair(&["upgraded.example"], FRESH)?;
    let external = [("issuer", "external")];
    space.tls_secret("tls", Some(&fresh), &external).await?;
    says(&space, "tls", STATE, |it| {
        it.starts_with("ok; another program is to renew it")
    })
    .await?;
    let written = patches(&operator, &space, "tls")?;
    // As a former version has left it.
    annotate(&space, "tls", json!({STATE: null})).await?;
    throughout(QUIET, "it waits for the next write", async || {
        let now = patches(&operator, &space, "tls")?;
        ensure!(now == written, "{now} patches, not {written}");
        Ok(())
    })
    .await?;
    space
        .put("tls", &pair(&["upgraded.example"], FRESH)?)
        .await?;
    rolled_out(&space, "tls").await?;
    says(&space, "tls", STATE, |it| {
        it.starts_with("ok; another program is to renew it")
    })
    .await?;
    assert_eq!(patches(&operator, &space, "tls")?, written + 1);
    Ok(())
}

#[tokio::test]
async fn a_renewal_and_what_holds_one_up_stand_in_the_line() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "line", operator.namespace()).await?;
    let old = overdue(&space, "web", "web.line.example").await?;
    renewed(&space, "web", &old).await?;
    rolled_out(&space, "web").await?;
    says(&space, "web", STATE, |it| it.starts_with("ok; renews 20")).await?;
    let adopted = told(&space, "web", "Adopted").await?;
    assert_eq!(adopted.len(), 1, "{adopted:?}");
    assert!(
        adopted[0].contains("is asked for now") && adopted[0].contains("restarts deployment/web"),
        "{adopted:?}"
    );
    // Young as it is, the next one is held.
    annotate(&space, "web", json!({"cert-renew.io/renew-now": "today"})).await?;
    says(&space, "web", STATE, |it| it.starts_with("held: until 20")).await?;
    let written = patches(&operator, &space, "web")?;
    throughout(QUIET, "it is said once", async || {
        let now = patches(&operator, &space, "web")?;
        ensure!(now == written, "{now} patches, not {written}");
        Ok(())
    })
    .await?;
    annotate(&space, "web", json!({"cert-renew.io/renew-now": null})).await?;
    says(&space, "web", STATE, |it| it.starts_with("ok; renews 20")).await?;
    // A failure is said with its cause first and its URL last.
    let moved = json!({"host": "gone.line.example."});
    bench.dns().set("set-servfail", &moved).await?;
    let gone = pair(&["gone.line.example"], OLD)?;
    space
        .tls_secret("gone", Some(&gone), &[("issuer", "pebble")])
        .await?;
    let secret = says(&space, "gone", STATE, |it| {
        it.starts_with("renewal_failing: gone.line.example: ")
    })
    .await?;
    let line = annotation(&secret, STATE).unwrap_or_default();
    assert!(
        line.contains("; next try 20") && line.chars().count() < 140,
        "{line}"
    );
    Ok(())
}

/// The error on a Secret is the one that is known now: another one takes its place, and what is no error takes it away.
#[tokio::test]
async fn the_last_error_on_a_secret_is_the_one_that_is_known() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "errors", operator.namespace()).await?;
    let old = pair(&["errors.example"], OLD)?;
    for (name, host) in [
        ("held", "held.errors.example"),
        ("kept", "kept.errors.example"),
    ] {
        let moved = json!({"host": format!("{host}.")});
        bench.dns().set("set-servfail", &moved).await?;
        let annotations = [("issuer", "pebble"), ("names", host)];
        space.tls_secret(name, Some(&old), &annotations).await?;
    }
    for name in ["held", "kept"] {
        says(&space, name, LAST_ERROR, |it| it.contains("errors.example")).await?;
    }
    // A young certificate comes from elsewhere, and another one is asked for.
    let fresh = pair(&["errors.example"], FRESH)?;
    let young = json!({
        "metadata": {"annotations": {"cert-renew.io/names": "errors.example", "cert-renew.io/renew-now": "today"}},
        "stringData": {"tls.crt": fresh.certificate, "tls.key": fresh.key},
    });
    let params = PatchParams::default();
    space
        .secrets()
        .patch("held", &params, &Patch::Merge(young))
        .await?;
    says(&space, "held", STATE, |it| it.starts_with("held: until 20")).await?;
    says(&space, "held", LAST_ERROR, str::is_empty).await?;
    says(&space, "held", RETRY_AT, str::is_empty).await?;
    // Another program begins to write the other one: cert-manager, which sets no owner by default.
    let secret = space.secrets().get("kept").await?;
    let applied = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "kept", "annotations": {"cert-manager.io/certificate-name": "kept"}},
        "data": secret.data,
    });
    let params = PatchParams::apply("cert-manager-certificates-issuing").force();
    space
        .secrets()
        .patch("kept", &params, &Patch::Apply(applied))
        .await?;
    says(&space, "kept", LAST_ERROR, |it| {
        !it.contains("kept.errors.example")
    })
    .await?;
    says(&space, "kept", STATE, |it| it.contains("of cert-manager")).await?;
    Ok(())
}

#[tokio::test]
async fn what_seems_to_be_meant_and_is_not_managed_is_told_once_and_counted() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "stray", operator.namespace()).await?;
    let fresh = pair(&["stray.example"], FRESH)?;
    let bare = [("example.com/note", "nothing of ours")];
    let series = async |name: &str| {
        let metrics = operator.metrics().await?;
        let of_it = format!("namespace=\"{}\",secret=\"{name}\"", space.name);
        let mut all = metrics
            .lines()
            .filter(|line| line.starts_with("cert_renew_unmanaged_annotated_secrets{"));
        Ok::<_, test_bench::Error>(
            all.find(|line| line.contains(&of_it))
                .map(ToOwned::to_owned),
        )
    };
    let is_told = async |name: &str, words: &str, why: &str| {
        eventually(SOON, &format!("{name} is told"), async || {
            let told = told(&space, name, "NotManaged").await?;
            let of_it = told.iter().filter(|it| it.contains(words));
            ensure!(of_it.count() == 1, "{told:?}");
            let series = series(name).await?.unwrap_or_default();
            ensure!(series.contains(why), "{series}");
            Ok(())
        })
        .await
    };
    for (name, key, words, why) in [
        (
            "isuer",
            "cert-renew.io/isuer",
            "did you mean cert-renew.io/issuer?",
            "no_issuer",
        ),
        (
            "prefix",
            "certrenew.io/issuer",
            "did you mean cert-renew.io/issuer?",
            "prefix",
        ),
    ] {
        let secret = space.tls_secret(name, Some(&fresh), &[]).await?;
        assert!(secret.metadata.annotations.unwrap_or_default().is_empty());
        let class = operator.namespace();
        annotate(
            &space,
            name,
            json!({key: "pebble", "cert-renew.io/class": class}),
        )
        .await?;
        is_told(name, words, why).await?;
    }
    // What is edited otherwise is no news, and nothing is written on it.
    annotate(&space, "isuer", json!({"example.com/note": "edited"})).await?;
    let class = operator.namespace().to_owned();
    is_told("isuer", "did you mean cert-renew.io/issuer?", "no_issuer").await?;
    assert_eq!(patches(&operator, &space, "isuer")?, 0);
    // Others are left in peace.
    space.tls_secret("bare", Some(&fresh), &[]).await?;
    annotate(&space, "bare", json!({bare[0].0: bare[0].1})).await?;
    // Mended, it counts no more.
    let mended = json!({"cert-renew.io/issuer": "external", "cert-renew.io/class": class, "certrenew.io/issuer": null});
    annotate(&space, "prefix", mended).await?;
    rolled_out(&space, "prefix").await?;
    assert_eq!(series("prefix").await?, None);
    // An opt-in that is taken away while our annotations are there.
    annotate(&space, "prefix", json!({"cert-renew.io/issuer": null})).await?;
    is_told("prefix", "not managed any more", "lost").await?;
    // One that is lost with all annotations, as by kubectl replace.
    space
        .tls_secret("replaced", Some(&fresh), &[("issuer", "external")])
        .await?;
    let secret = rolled_out(&space, "replaced").await?;
    let mut replaced = secret.clone();
    replaced.metadata.annotations = None;
    replaced.metadata.managed_fields = None;
    space
        .secrets()
        .replace("replaced", &PostParams::default(), &replaced)
        .await?;
    is_told("replaced", "cert-renew.io/issuer=external", "lost").await?;
    assert_eq!(told(&space, "bare", "NotManaged").await?.len(), 0);
    assert_eq!(series("bare").await?, None);
    // What is still there is found again after a restart.
    operator.restart().await?;
    let again = async |name: &str| {
        eventually(SOON, &format!("{name} counts again"), async || {
            let metrics = operator.metrics().await?;
            let of_it = format!("secret=\"{name}\",why=\"lost\"");
            ensure!(metrics.contains(&of_it), "{of_it}");
            Ok(())
        })
        .await
    };
    again("prefix").await
}

#[tokio::test]
async fn what_an_annotation_names_and_does_not_exist_is_told_when_it_is_written() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "named", operator.namespace()).await?;
    let fresh = pair(&["named.example"], FRESH)?;
    let annotations = [
        ("issuer", "external"),
        ("workloads", "deployment/web, deployment/nosuch"),
        ("verify", "nosuch:443"),
        ("outputs", "keystore.p12=pkcs12"),
        ("pkcs12-password-key", "nosuch-key"),
    ];
    space
        .workload("Deployment", "web", Reference::Volume, "another")
        .await?;
    space.tls_secret("tls", Some(&fresh), &annotations).await?;
    let words = ["deployment/nosuch", "nosuch:443", "nosuch-key"];
    let secret = says(&space, "tls", PROBLEMS, |it| {
        words.iter().all(|word| it.contains(word))
    })
    .await?;
    let problems = annotation(&secret, PROBLEMS).unwrap_or_default().to_owned();
    assert!(!problems.contains("deployment/web"), "{problems}");
    // They count as any other.
    let series = async || -> Result<Option<String>> {
        let metrics = operator.metrics().await?;
        let of_it = format!(
            "cert_renew_annotation_problems{{namespace=\"{}\",secret=\"tls\"}} ",
            space.name
        );
        let mut counts = metrics.lines().filter_map(|line| line.strip_prefix(&of_it));
        Ok(counts.next().map(ToOwned::to_owned))
    };
    eventually(SOON, "all of them are counted", async || {
        let count = series().await?;
        ensure!(count.as_deref() == Some("3"), "{count:?}");
        Ok(())
    })
    .await?;
    for word in words {
        eventually(SOON, &format!("{word} is told"), async || {
            let events = space.events("tls").await?;
            let of_it = events.iter().filter(|it| it.contains(word));
            ensure!(of_it.count() == 1, "{events:#?}");
            Ok(())
        })
        .await?;
    }
    // It blocks nothing, and ends when it is mended.
    space.put("tls", &pair(&["named.example"], FRESH)?).await?;
    rolled_out(&space, "tls").await?;
    space
        .workload("Deployment", "nosuch", Reference::Volume, "another")
        .await?;
    let mended = json!({"cert-renew.io/verify": null, "cert-renew.io/outputs": null});
    annotate(&space, "tls", mended).await?;
    eventually(SOON, "nothing is wrong any more", async || {
        let secret = space.secrets().get("tls").await?;
        ensure!(
            annotation(&secret, PROBLEMS).is_none(),
            "{:?}",
            annotation(&secret, PROBLEMS)
        );
        let count = series().await?;
        ensure!(count.is_none(), "{count:?}");
        Ok(())
    })
    .await
}

/// A halt says what to do then, on the Secret and in the Event.
pub(crate) async fn is_halted(space: &Space, name: &str) -> Result<()> {
    let event = propagation::told(space, name, "RolloutHalted").await?;
    // The operator of a test is in the namespace that its class is named after.
    let (space_name, operator) = (&space.name, &space.class);
    let resume = format!("cert-renew resume {space_name}/{name} --operator-namespace {operator}");
    ensure!(event.contains(&resume), "{event}");
    let secret = space.secrets().get(name).await?;
    let line = annotation(&secret, STATE).unwrap_or_default();
    ensure!(
        line.starts_with("rollout_failing: halted: deployment/") && line.ends_with(&resume),
        "{line}"
    );
    Ok(())
}

#[tokio::test]
async fn a_write_that_admission_denies_is_not_called_a_missing_role() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "denied", operator.namespace()).await?;
    let name = &space.name;
    let policy = format!(
        "apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{name: {name}}}
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {name}}}}}
    resourceRules:
      - {{apiGroups: [\"\"], apiVersions: [v1], resources: [secrets], operations: [UPDATE]}}
  validations:
    - {{expression: \"false\", reason: Forbidden, message: nobody writes here}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{name: {name}}}
spec: {{policyName: {name}, validationActions: [Deny]}}
"
    );
    kubectl(bench, "apply -f -", &policy)?;
    space.tls_secret("other", None, &[]).await?;
    eventually(SOON, "the policy is in force", async || {
        let edited = annotate(&space, "other", json!({"example.com/note": "edited"})).await;
        ensure!(edited.is_err(), "it is not yet");
        Ok(())
    })
    .await?;
    let old = pair(&["denied.example"], OLD)?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    let event = propagation::told(&space, "tls", "RenewalFailed").await?;
    assert!(event.contains("denied, not for lack of a right"), "{event}");
    assert!(event.contains("nobody writes here"), "{event}");
    assert!(!event.contains("rbac/"), "{event}");
    let policies = "validatingadmissionpolicybinding,validatingadmissionpolicy";
    kubectl(bench, &format!("delete {policies} {name}"), "")?;
    Ok(())
}
