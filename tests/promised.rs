//! What `revoke` and `resume` promise.

use test_bench::objects::{FRESH, Pair, Space, pair};
use test_bench::{Bench, Result, ensure};

use crate::command::said;
use crate::fresh_look::closed_window;
use crate::refused::{config, operator, run};
use crate::renewal::annotation;

const HALTED: &str = "state.cert-renew.io/rollout-halted";

/// `revoke` and `resume` promise nothing that would not happen, and a Secret that is not ours gets no annotation of ours.
#[tokio::test]
async fn revoke_and_resume_promise_nothing_that_would_not_happen() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "promised", "promised").await?;
    operator(&space, &config("promised", "")).await?;
    let fresh = pair(&["a.example"], FRESH)?;
    let ours = ("issuer", "le");
    let note = format!("deployment/web {}", "ab".repeat(32));
    let halted = (HALTED, &*note);
    let closed = closed_window();
    for (name, annotations) in [
        ("plain", vec![]),
        ("classed", vec![ours, halted, ("class", "other")]),
        ("unknown", vec![("issuer", "nosuch")]),
        ("disallowed", vec![ours, ("names", "a.test")]),
        ("ours", vec![ours, halted]),
        ("undue", vec![ours, halted]),
        ("misread", vec![ours, halted, ("verify", "web")]),
        ("shut", vec![ours, halted, ("change-window", &*closed)]),
    ] {
        space.tls_secret(name, Some(&fresh), &annotations).await?;
    }
    let mismatched = Pair {
        key: pair(&["a.example"], FRESH)?.key,
        ..fresh.clone()
    };
    space
        .tls_secret("mismatched", Some(&mismatched), &[ours, halted])
        .await?;
    let place = ["-n", &space.name, "--operator-namespace", &space.name];
    let types = |command: &[&str]| -> Result<(i32, String)> {
        let output = run(&[command, &place].concat(), Some(bench.kubeconfig()))?;
        Ok((output.status.code().unwrap_or_default(), said(&output)))
    };
    // There is no account that could revoke them; the key is not used any more all the same, where that is possible.
    for (name, expected) in [
        (
            "plain",
            "NO new key and certificate will be made: cert-renew does not manage it",
        ),
        (
            "classed",
            "a new key and certificate are left to the installation of class other",
        ),
        (
            "unknown",
            "NO new key and certificate will be made: an annotation is invalid: cert-renew.io/issuer",
        ),
        (
            "disallowed",
            "NO new key and certificate will be made: an annotation is invalid",
        ),
        ("ours", "a new key and certificate are asked for"),
    ] {
        let (code, text) = types(&["revoke", name, "--yes", "--issuer", "le"])?;
        ensure!(
            code == 1 && text.contains(expected),
            "{name}: {code} {text}"
        );
        let secret = space.secrets().get(name).await?;
        let revoked = annotation(&secret, "cert-renew.io/revoked");
        ensure!(
            revoked.is_some() == (name != "plain"),
            "{name}: {revoked:?}"
        );
    }
    for (name, goes_on, expected) in [
        (
            "classed",
            false,
            "classed is not resumed: it belongs to another installation, cert-renew.io/class: other, and this one is of class \
             promised",
        ),
        (
            "misread",
            false,
            "an annotation is invalid: cert-renew.io/verify",
        ),
        (
            "mismatched",
            false,
            "mismatched would not go on: its certificate and key cannot be used: the private key is not the one of the \
             certificate",
        ),
        ("shut", true, "goes on when its change window opens, at 20"),
        // Its certificate is revoked, so that another is about to take its place.
        (
            "ours",
            true,
            "goes on after the renewal that is due; it was halted at deployment/web",
        ),
        ("undue", true, "goes on; it was halted at deployment/web"),
    ] {
        let (code, text) = types(&["resume", name])?;
        ensure!(
            (code == 0) == goes_on && text.contains(expected),
            "{name}: {code} {text}"
        );
        // Only where it goes on is the halt at its end.
        let secret = space.secrets().get(name).await?;
        let left = annotation(&secret, HALTED).unwrap_or_default();
        let expected = match goes_on {
            true => format!("{note} resumed"),
            false => note.clone(),
        };
        ensure!(left == expected, "{name}: {left}");
    }
    Ok(())
}
