//! Secrets with the certificates of others: of those with the same certificate one orders for all, and the others wait.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::DeleteParams;
use test_bench::Result;
use test_bench::objects::{Age, FRESH, Pair, Space, pair};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::host;
use super::tally::Tally;
use crate::renewal::{annotation, data};

/// Owners of certificates that are copied, and copies of each: more than are looked at before an owner orders for itself.
const OWNERS: usize = 5;
const COPIES: usize = 6;
/// Between two of them: each is made again four times a minute, as one that was refused is no longer waited for.
const TURN: Duration = Duration::from_millis(500);
/// Secrets of the tenant's own that wait for the one whose order waits for a route.
const LIKE: usize = 100;
/// Due, and not so short of life that none waits for another.
const DUE: Age = Age {
    since: 65,
    left: 25,
};

/// Begins; it goes on for as long as the set lives.
pub(super) async fn begin(
    space: &Space,
    others: &[Space],
    tasks: &mut JoinSet<()>,
    tally: &Tally,
) -> Result<()> {
    let same = pair(&["like.w.x"], DUE)?;
    for number in 0..LIKE {
        let name = format!("like-{number:02}");
        space
            .tls_secret(&name, Some(&same), &[("issuer", "pebble")])
            .await?;
    }
    let owners = others.iter().zip(0..).take(OWNERS);
    let owners: Vec<(Api<Secret>, String)> = owners
        .map(|(owner, number)| (owner.secrets(), host(number)))
        .collect();
    // That of the owners is not to be had.
    let key = pair(&["copy.h.example"], FRESH)?.key;
    let space = space.clone();
    let made = tally.of("copies of others' certificates");
    let refused = tally.perhaps("copies that the operator had refused");
    let stolen = tally.never("copies with a key of the operator's");
    tasks.spawn(async move {
        let secrets = space.secrets();
        for number in 0_usize.. {
            let (owner, host) = &owners[number % owners.len()];
            let name = format!("copy-{:02}", number % (owners.len() * COPIES));
            if let Ok(copy) = secrets.get(&name).await {
                let said = ["last-error", "problems"].map(|key| {
                    let key = format!("state.cert-renew.io/{key}");
                    annotation(&copy, &key).unwrap_or_default().to_owned()
                });
                refused.add_if(said.iter().any(|it| it.contains("allow")));
                stolen.add_if(data(&copy, "tls.key") != key);
                let _ = secrets.delete(&name, &DeleteParams::default()).await;
            }
            if let Ok(original) = owner.get("tls").await {
                let certificate = data(&original, "tls.crt");
                let copy = Pair {
                    certificate,
                    key: key.clone(),
                };
                let annotations = [
                    ("issuer", "pebble"),
                    ("names", &**host),
                    ("profile", "brief"),
                    ("renew-before", "50%"),
                    // Due for as long as it is there.
                    ("renew-now", "1"),
                ];
                let secret = space.tls_secret(&name, Some(&copy), &annotations).await;
                made.add_if(secret.is_ok());
            }
            sleep(TURN).await;
        }
    });
    Ok(())
}
