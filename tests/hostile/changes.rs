//! Secrets that change again and again: their certificates while their rollouts wait for a place, and what is written on
//! them for people while they wait for a look.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use test_bench::Result;
use test_bench::objects::{FRESH, Reference, Space, pair, workload};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::attack::{PAUSE, create, merge, put};
use super::tally::Tally;
use crate::renewal::{annotation, leaf};

/// Secrets whose certificates change, and Deployments, which use two of them each.
const TURNING: usize = 40;
const USERS: usize = 80;
/// Between two changes: each of them has another certificate three times a minute.
const TURN: Duration = Duration::from_millis(500);
/// Secrets on which somebody writes what only the operator writes.
const NOTED: usize = 200;

/// How a forged text begins.
const FORGED: &str = "forged:";
const PROBLEMS: &str = "state.cert-renew.io/problems";

/// Makes all of them; the changes go on for as long as the set lives.
pub(super) async fn begin(space: &Space, tasks: &mut JoinSet<()>, tally: &Tally) -> Result<()> {
    certificates(space, tasks, tally).await?;
    texts(space, tasks, tally).await?;
    eprintln!("hostile: {TURNING} Secrets whose certificates change, {NOTED} with forged texts");
    Ok(())
}

fn turning(number: usize) -> String {
    format!("turning-{}", number % TURNING)
}

/// Other certificates while the rollouts of many workloads wait: two places are there for all of the namespace.
async fn certificates(space: &Space, tasks: &mut JoinSet<()>, tally: &Tally) -> Result<()> {
    for number in 0..USERS {
        let name = format!("turning-{number}");
        let mut object = workload("Deployment", &name, 1, Reference::None, "");
        let volume = |place: usize| {
            let secret = turning(number + place);
            json!({"name": format!("v{place}"), "secret": {"secretName": secret}})
        };
        object["spec"]["template"]["spec"]["volumes"] = json!([volume(0), volume(1)]);
        object["spec"]["minReadySeconds"] = json!(20);
        create(space, object).await?;
    }
    let first = pair(&["turning.h.example"], FRESH)?;
    for number in 0..TURNING {
        let external = [("issuer", "external")];
        space
            .tls_secret(&turning(number), Some(&first), &external)
            .await?;
    }
    let secrets = space.secrets();
    let changed = tally.of("certificates changed while their rollouts waited");
    tasks.spawn(async move {
        for number in 0_usize.. {
            let name = turning(number);
            let before = secrets.get(&name).await;
            let waits = before.is_ok_and(|before| rollout_waits(&before));
            if let Ok(next) = pair(&["turning.h.example"], FRESH) {
                let is_put = put(&secrets, &name, &next, &json!({})).await;
                changed.add_if(is_put && waits);
            }
            sleep(TURN).await;
        }
    });
    Ok(())
}

/// Whether the workloads had another certificate than the one that is there now.
fn rollout_waits(secret: &Secret) -> bool {
    let had = annotation(secret, "state.cert-renew.io/rolled-out");
    let holds = leaf(secret).map(|leaf| leaf.fingerprint.to_string());
    had.is_some_and(|had| holds.is_ok_and(|holds| !had.starts_with(&holds)))
}

/// Other forged texts, and another key beside the same certificate, which the watch does not see: each asks for a look.
async fn texts(space: &Space, tasks: &mut JoinSet<()>, tally: &Tally) -> Result<()> {
    let own = pair(&["noted.h.example"], FRESH)?;
    let keys = [own.key.clone(), pair(&["noted.h.example"], FRESH)?.key];
    for number in 0..NOTED {
        let external = [("issuer", "external")];
        space
            .tls_secret(&format!("noted-{number}"), Some(&own), &external)
            .await?;
    }
    let secrets = space.secrets();
    let forged = tally.of("texts forged on Secrets, with another key");
    let corrected = tally.perhaps("forged texts that the operator had corrected");
    tasks.spawn(async move {
        for number in 0_usize.. {
            let (name, round) = (format!("noted-{}", number % NOTED), number / NOTED);
            if round > 0
                && let Ok(before) = secrets.get(&name).await
            {
                let left = annotation(&before, PROBLEMS).unwrap_or_default();
                corrected.add_if(!left.starts_with(FORGED));
            }
            let patch = json!({
                "metadata": {"annotations": {
                    (PROBLEMS): format!("{FORGED} {number}"),
                    "state.cert-renew.io/state": format!("failing; {FORGED} {number}"),
                    "state.cert-renew.io/last-error": format!("{FORGED} {number}"),
                }},
                "stringData": {"tls.key": keys[round % keys.len()]},
            });
            forged.add_if(merge(&secrets, &name, patch).await);
            sleep(PAUSE).await;
        }
    });
    Ok(())
}
