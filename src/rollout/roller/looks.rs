//! The looks at the Secrets of a batch: one precedes each effect on a workload, after its last wait.
//!
//! The caller judges a Secret, in the same way as when the batch was planned. Steps that act at the same moment share a
//! look.

use std::collections::BTreeMap;

use cert_renew_core::rollout::types::Step;
use cert_renew_core::time::UnixTime;
use futures::future::BoxFuture;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use crate::process::permit::{Look, Permit};

/// Most rounds of looks at all Secrets of one step before the API server counts as too slow.
const TRIES: usize = 3;
/// Most Secrets that are looked at at the same time, for one step or because they have changed: each look reads a whole
/// Secret, and thousands may change at once.
pub(super) const AT_ONCE: usize = 8;
/// Delay until a Secret is looked at again for which the API server was too slow.
const AGAIN: Duration = Duration::from_secs(30);

/// Judges the Secrets of a batch as they are now.
pub trait Judge: Sync {
    /// Whether the named Secret is still to be rolled out as planned.
    fn judge<'a>(&'a self, secret: &'a str) -> BoxFuture<'a, Result<(), Withdrawal>>;
}

/// Why a Secret is no longer to be rolled out as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    /// When it is to be looked at again.
    pub at: UnixTime,
    /// The reason in words, unless that is shown elsewhere.
    pub why: Option<Box<str>>,
    /// It holds another certificate, or is gone: workloads that roll for the planned one are not waited for either.
    pub superseded: bool,
    /// Its change window has closed; it is to be looked at again when that opens.
    pub shut: bool,
}

/// The looks of one batch.
pub(in crate::rollout) struct Looks<'a> {
    judge: &'a dyn Judge,
    taken: Mutex<BTreeMap<Box<str>, Look>>,
}

impl<'a> Looks<'a> {
    /// Starts with the looks by which the plan was made.
    pub(in crate::rollout) fn new(judge: &'a dyn Judge, taken: BTreeMap<Box<str>, Look>) -> Self {
        let taken = Mutex::new(taken);
        Self { judge, taken }
    }

    /// Permission for one effect on a workload, by looks at all of its step's Secrets that began after `waited`.
    ///
    /// # Errors
    /// The first Secret that is not to be rolled out, and why.
    pub(in crate::rollout) async fn permit<'s>(
        &self,
        step: &'s Step,
        waited: Instant,
    ) -> Result<Permit<&'s Step>, (Box<str>, Withdrawal)> {
        for _ in 0..TRIES {
            let missing = step.leaves.iter().map(|due| due.secret.clone());
            let missing: Vec<Box<str>> = missing.filter(|it| !self.has(it, waited)).collect();
            // Within the time that a permit is valid for, however many Secrets the workload uses.
            let mut looked = stream::iter(missing)
                .map(|secret| async move {
                    // Another step may have looked meanwhile.
                    if self.has(&secret, waited) {
                        return Ok(());
                    }
                    let looked = self.look(&secret).await;
                    looked.map_err(|withdrawal| (secret, withdrawal))
                })
                .buffered(AT_ONCE);
            while let Some(looked) = looked.next().await {
                looked?;
            }
            let taken = self.taken.lock();
            let looks = step.leaves.iter().filter_map(|due| taken.get(&due.secret));
            if looks.clone().count() == step.leaves.len()
                && let Some(permit) = Look::permit(looks, waited, step)
            {
                return Ok(permit);
            }
        }
        let secret = step.leaves.first().map(|due| due.secret.clone());
        let slow = Withdrawal {
            at: UnixTime::now() + AGAIN,
            why: Some("the API server is too slow to say what the Secret holds".into()),
            superseded: false,
            shut: false,
        };
        Err((secret.unwrap_or_default(), slow))
    }

    /// Looks at one Secret.
    ///
    /// # Errors
    /// Why it is not to be rolled out.
    pub(in crate::rollout) async fn look(&self, secret: &str) -> Result<(), Withdrawal> {
        self.taken.lock().remove(secret);
        let (look, ()) = Look::take(self.judge.judge(secret)).await?;
        self.taken.lock().insert(secret.into(), look);
        Ok(())
    }

    fn has(&self, secret: &str, waited: Instant) -> bool {
        let taken = self.taken.lock();
        taken.get(secret).is_some_and(|look| look.is_fresh(waited))
    }
}

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::of_secrets;
    use futures::FutureExt as _;
    use tokio::time::sleep;

    use super::*;

    /// Answers as slowly as an API server that does much else.
    struct Slow;

    impl Judge for Slow {
        fn judge<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), Withdrawal>> {
            sleep(Duration::from_millis(20)).map(Ok).boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_of_very_many_secrets_gets_its_permit_within_a_permits_lifetime() {
        let secrets: Vec<String> = (0..2_000).map(|it| format!("tls-{it}")).collect();
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        let step = of_secrets("web", &secrets);
        let looks = Looks::new(&Slow, BTreeMap::new());
        let permit = looks.permit(&step, Instant::now()).await.unwrap();
        assert!(permit.spend().is_some());
    }
}
