//! Keeps this replica's answers to the CA equal to the order records of all replicas.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::text::error_chain;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use crate::cluster::order_records::{self, ChallengesChanged};
use crate::context::Shared;
use crate::renewal::renewals::Renewals;
use crate::solver::http01::OnMiss;

/// Shortest time between two lookups of unknown tokens: anybody on the internet can cause them.
const LOOKUPS: Duration = Duration::from_secs(1);

impl Renewals {
    /// Keeps the challenge store equal to the records, for as long as the future is polled.
    pub async fn follow_challenges(&self) {
        let watch = || {
            Box::pin(order_records::challenges(
                &self.shared.client,
                &self.shared.namespace,
            ))
        };
        let (mut changes, mut relist) = (watch(), self.shared.health.relist.subscribe());
        let mut unseen: HashSet<String> = HashSet::new();
        let mut present: HashSet<String> = HashSet::new();
        loop {
            let change = tokio::select! {
                Ok(()) = relist.changed() => {
                    changes = watch();
                    continue;
                }
                Some(change) = changes.next() => change,
                else => return,
            };
            match change {
                Ok(ChallengesChanged::Present(record, challenges)) => {
                    unseen.remove(&record);
                    self.answer(&record, challenges);
                    present.insert(record);
                }
                Ok(ChallengesChanged::Gone(record)) => {
                    self.challenges.remove(&record);
                    present.remove(&record);
                }
                Ok(ChallengesChanged::Restarted) => {
                    unseen.clone_from(&present);
                }
                Ok(ChallengesChanged::Listed) => {
                    for record in unseen.drain() {
                        self.challenges.remove(&record);
                        present.remove(&record);
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), "the watch on order records is interrupted");
                }
            }
        }
    }

    /// Looks up an unknown token: the CA may ask this replica before its watch has delivered the record.
    pub fn lookup(self: &Arc<Self>) -> OnMiss {
        let renewals = Arc::clone(self);
        coalesced(move || {
            let renewals = Arc::clone(&renewals);
            Box::pin(async move {
                let each = |record: String, challenges| renewals.answer(&record, challenges);
                let Shared {
                    client, namespace, ..
                } = &*renewals.shared;
                let looked = order_records::challenges_now(client, namespace, each).await;
                if let Err(error) = &looked {
                    tracing::debug!(%error, "a token that is not known was not looked for");
                }
                looked.is_ok()
            })
        })
    }

    /// Answers the CA with these key authorizations from now on.
    pub(in crate::renewal) fn answer(&self, record: &str, challenges: BTreeMap<String, String>) {
        if let Err(full) = self.challenges.set(record, challenges) {
            tracing::error!(record, error = %full, "the CA will not find the proofs of other orders");
        }
    }
}

/// The times of the lookups.
#[derive(Default)]
struct Looks {
    /// When the last lookup began.
    began: Option<Instant>,
    /// When the last lookup that succeeded began.
    ended: Option<Instant>,
}

/// Requests that wait for a running lookup share its result, and one lookup starts per [`LOOKUPS`] at most. A lookup
/// that fails, or whose caller goes away, answers nobody: the next request in line starts another.
fn coalesced(look: impl Fn() -> BoxFuture<'static, bool> + Send + Sync + 'static) -> OnMiss {
    let look = Arc::new(look);
    let looks: Arc<tokio::sync::Mutex<Looks>> = Arc::default();
    Arc::new(move || {
        let (look, looks) = (Arc::clone(&look), Arc::clone(&looks));
        let asked = Instant::now();
        Box::pin(async move {
            let mut looks = looks.lock().await;
            if looks.ended.is_some_and(|began| began >= asked) {
                return;
            }
            if let Some(at) = looks.began {
                sleep_until(at + LOOKUPS).await;
            }
            let began = Instant::now();
            looks.began = Some(began);
            if look().await {
                looks.ended = Some(began);
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::sync::Semaphore;
    use tokio::time::sleep;

    use super::*;

    /// Lookups that take as long as a permit, and how many were begun.
    fn looks() -> (OnMiss, Arc<Semaphore>, Arc<AtomicUsize>) {
        let (permits, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let (gate, count) = (Arc::clone(&permits), Arc::clone(&begun));
        let on_miss = coalesced(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let gate = Arc::clone(&gate);
            Box::pin(async move {
                gate.acquire().await.unwrap().forget();
                true
            })
        });
        (on_miss, permits, begun)
    }

    #[tokio::test]
    async fn those_who_wait_share_a_look() {
        let (on_miss, permits, begun) = looks();
        permits.add_permits(100);
        join_all((0..500).map(|_| on_miss())).await;
        assert!(begun.load(Ordering::Relaxed) <= 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_look_begins_in_a_second_however_many_tokens_are_asked_for() {
        let (on_miss, permits, begun) = looks();
        permits.add_permits(100);
        let start = Instant::now();
        for _ in 0..10 {
            // What is asked for after a look began needs another.
            sleep(Duration::from_millis(1)).await;
            on_miss().await;
        }
        assert_eq!(begun.load(Ordering::Relaxed), 10);
        assert!(start.elapsed() >= LOOKUPS * 9, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_look_whose_caller_went_away_does_not_count_for_those_who_wait() {
        let (on_miss, permits, begun) = looks();
        let (first, second) = (on_miss(), on_miss());
        let mut first = tokio::spawn(first);
        let second = tokio::spawn(second);
        while begun.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        first.abort();
        assert!((&mut first).await.unwrap_err().is_cancelled());
        permits.add_permits(1);
        second.await.unwrap();
        assert_eq!(
            begun.load(Ordering::Relaxed),
            2,
            "the second one looked itself"
        );
    }
}
