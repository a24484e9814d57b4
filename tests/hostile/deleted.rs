//! Secrets that are deleted and made again while they wait: for their turn, a look, their rollout, or their user.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use serde_json::json;
use test_bench::Result;
use test_bench::objects::{Age, FRESH, Pair, Reference, Space, pair, workload};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::attack::{PAUSE, create};
use super::tally::{Count, Tally};
use crate::renewal::annotation;

/// Secrets that wait for the same thing; for their user one at a time, as each of these takes an order.
const EACH: usize = 8;
/// Seconds that they live for at most, one more in each round: each round finds the operator at another stage.
const LIVES: u64 = 8;
/// Due, and not so short of life that an order is made without finding out what the CA would refuse.
const DUE: Age = Age {
    since: 65,
    left: 25,
};
/// A text that only the operator writes.
const FORGED: &str = "forged: it waits for a look";

/// What a Secret waits for when it is deleted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// A place for a renewal. It asks for a profile that the CA does not have, so that it costs no order.
    Turn,
    /// A look at what is written on it.
    Look,
    /// The restart of the workload that uses it.
    Rollout,
    /// A DNS record, while its order is open.
    User,
}

/// A Secret that comes and goes.
struct Gone {
    name: String,
    awaited: Awaited,
    pair: Option<Pair>,
    deleted: Count,
}

/// Begins; it goes on for as long as the set lives.
pub(super) async fn begin(space: &Space, tasks: &mut JoinSet<()>, tally: &Tally) -> Result<()> {
    let mut object = workload("Deployment", "gone", 2, Reference::None, "");
    let volume = |number: usize| {
        let secret = format!("gone-rollout-{number}");
        json!({"name": format!("v{number}"), "secret": {"secretName": secret}})
    };
    let volumes: Vec<_> = (0..EACH).map(volume).collect();
    object["spec"]["template"]["spec"]["volumes"] = json!(volumes);
    create(space, object).await?;
    let all = all(tally)?;
    let space = space.clone();
    tasks.spawn(async move {
        let secrets = space.secrets();
        for round in 0_u64.. {
            for gone in &all {
                // One that still waits for its order is there.
                let _ = gone.make(&space, round).await;
            }
            sleep(Duration::from_secs(round % LIVES)).await;
            // What was made last is deleted first: nothing was done for it yet.
            for gone in all.iter().rev() {
                let Ok(secret) = secrets.get(&gone.name).await else {
                    continue;
                };
                let waits = gone.awaited.is_awaited_by(&secret);
                if waits || gone.awaited != Awaited::User {
                    let params = DeleteParams::default();
                    let is_deleted = secrets.delete(&gone.name, &params).await.is_ok();
                    gone.deleted.add_if(is_deleted && waits);
                }
            }
            sleep(PAUSE).await;
        }
    });
    Ok(())
}

/// All of them; those that wait for their turn are the last that are made.
fn all(tally: &Tally) -> Result<Vec<Gone>> {
    let mut all = Vec::new();
    for (awaited, what, name, many) in [
        (
            Awaited::User,
            "Secrets deleted while their orders waited for a DNS record",
            "user",
            1,
        ),
        (
            Awaited::Rollout,
            "Secrets deleted while their rollouts waited",
            "rollout",
            EACH,
        ),
        (
            Awaited::Look,
            "Secrets deleted while they waited for a look",
            "look",
            EACH,
        ),
        (
            Awaited::Turn,
            "Secrets deleted while they waited for their turn",
            "turn",
            EACH,
        ),
    ] {
        let deleted = tally.of(what);
        for number in 0..many {
            let name = format!("gone-{name}-{number}");
            // Names of its own: Secrets with the same ones wait for each other.
            let host = format!("{name}.h.example");
            let pair = match awaited {
                Awaited::User => None,
                Awaited::Turn => Some(pair(&[&host], DUE)?),
                Awaited::Look | Awaited::Rollout => Some(pair(&[&host], FRESH)?),
            };
            all.push(Gone {
                name,
                awaited,
                pair,
                deleted: deleted.clone(),
            });
        }
    }
    Ok(all)
}

impl Gone {
    async fn make(&self, space: &Space, round: u64) -> Result<()> {
        // Names that nobody has asked for before: their failures are remembered although the Secret is gone.
        let names = format!("gone-{round}.r.x");
        let annotations = match self.awaited {
            Awaited::Turn => [("issuer", "pebble"), ("profile", "none-such")],
            Awaited::Look => [
                ("issuer", "external"),
                ("state.cert-renew.io/problems", FORGED),
            ],
            Awaited::Rollout => [
                ("issuer", "external"),
                ("state.cert-renew.io/rolled-out", "none"),
            ],
            Awaited::User => [("issuer", "pebble"), ("names", &*names)],
        };
        let pair = self.pair.as_ref();
        space.tls_secret(&self.name, pair, &annotations).await?;
        Ok(())
    }
}

impl Awaited {
    /// Whether nothing was done yet of what the Secret waits for; whether its order was made, of one that waits for its user.
    fn is_awaited_by(self, secret: &Secret) -> bool {
        let said = |key: &str| annotation(secret, &format!("state.cert-renew.io/{key}"));
        match self {
            Self::Turn => said("state").is_none() && said("last-error").is_none(),
            Self::Look => said("problems") == Some(FORGED),
            Self::Rollout => said("rolled-out") == Some("none"),
            Self::User => said("last-error").is_some(),
        }
    }
}
