//! The order records that are known to exist, and the key authorizations that every replica answers with.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use kube::Client;
use tokio::time::{Instant, sleep_until};

use crate::cluster::records::{self, ChallengesChanged};
use crate::cluster::{Error, chain};
use crate::context::Context;
use crate::index::Key;
use crate::solver::http01::OnMiss;

/// Between two looks for tokens that are not known: anybody on the internet can cause them.
const LOOKUPS: Duration = Duration::from_secs(1);

/// Which Secrets have an order that runs; saves a read before each renewal.
#[derive(Debug, Default)]
pub struct Known(Mutex<HashSet<Key>>);

impl Known {
    /// Lists the records that former leaders left.
    ///
    /// # Errors
    /// What every call on the API server may end in.
    pub async fn reload(&self, client: &Client, namespace: &str) -> Result<(), Error> {
        let (found, corrupt) = records::list(client, namespace).await?;
        let key = |record: records::Record| record.order.subject();
        // One that cannot be read is replaced when its Secret is looked at.
        let all = found.into_iter().map(key);
        *self.lock() = all.chain(corrupt.into_iter().flatten()).collect();
        Ok(())
    }

    /// The Secrets whose orders run.
    #[must_use]
    pub fn subjects(&self) -> Vec<Key> {
        self.lock().iter().cloned().collect()
    }

    /// Whether an order for the Secret runs.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.lock().contains(key)
    }

    /// An order was begun.
    pub fn insert(&self, key: &Key) {
        self.lock().insert(key.clone());
    }

    /// It is done with.
    pub fn remove(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the challenge store equal to the records, for as long as the future is polled.
    pub async fn follow(context: Arc<Context>) {
        let watch = || Box::pin(records::challenges(&context.client, &context.namespace));
        let (mut changes, mut anew) = (watch(), context.anew.subscribe());
        let mut unseen: HashSet<String> = HashSet::new();
        let mut present: HashSet<String> = HashSet::new();
        loop {
            let change = tokio::select! {
                Ok(()) = anew.changed() => {
                    changes = watch();
                    continue;
                }
                Some(change) = changes.next() => change,
                else => return,
            };
            match change {
                Ok(ChallengesChanged::Present(record, challenges)) => {
                    unseen.remove(&record);
                    answer(&context, &record, challenges);
                    present.insert(record);
                }
                Ok(ChallengesChanged::Gone(record)) => {
                    context.challenges.remove(&record);
                    present.remove(&record);
                }
                Ok(ChallengesChanged::Restarted) => {
                    unseen.clone_from(&present);
                }
                Ok(ChallengesChanged::Listed) => {
                    for record in unseen.drain() {
                        context.challenges.remove(&record);
                        present.remove(&record);
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the watch on order records is interrupted");
                }
            }
        }
    }
}

/// Looks for a token that is not known: the CA may ask this replica before its watch has brought the record.
///
/// Whoever asks while a look is awaited shares it, and there is one a second at most.
pub fn lookup(context: &Arc<Context>) -> OnMiss {
    let context = Arc::clone(context);
    let began: Arc<tokio::sync::Mutex<Option<Instant>>> = Arc::default();
    Arc::new(move || {
        let (context, began) = (Arc::clone(&context), Arc::clone(&began));
        let asked = Instant::now();
        Box::pin(async move {
            let mut began = began.lock().await;
            if began.is_some_and(|at| at >= asked) {
                return;
            }
            if let Some(at) = *began {
                sleep_until(at + LOOKUPS).await;
            }
            *began = Some(Instant::now());
            match records::challenges_now(&context.client, &context.namespace).await {
                Ok(found) => {
                    for (record, challenges) in found {
                        answer(&context, &record, challenges);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a token that is not known was not looked for");
                }
            }
        })
    })
}

/// Answers the CA with these key authorizations from now on.
pub(super) fn answer(context: &Context, record: &str, challenges: BTreeMap<String, String>) {
    if let Err(full) = context.challenges.set(record, challenges) {
        tracing::error!(record, error = %full, "the CA will not find the proof");
    }
}
