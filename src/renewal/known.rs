//! The order records that are known to exist, and the key authorizations that every replica answers with.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt as _;
use kube::Client;

use crate::cluster::records::{self, ChallengesChanged};
use crate::cluster::{Error, chain};
use crate::context::Context;
use crate::index::Key;

/// Which Secrets have an order that runs; saves a read before each renewal.
#[derive(Debug, Default)]
pub struct Known(Mutex<HashSet<Key>>);

impl Known {
    /// Lists the records that a former run left.
    ///
    /// # Errors
    /// What every call on the API server may end in.
    pub async fn load(client: &Client, namespace: &str) -> Result<Self, Error> {
        let (found, corrupt) = records::list(client, namespace).await?;
        for name in corrupt {
            tracing::warn!(
                record = name,
                "an order record cannot be read and is put aside; delete it by hand"
            );
        }
        let key = |record: records::Record| record.order.subject();
        Ok(Self(Mutex::new(found.into_iter().map(key).collect())))
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
        let mut changes = std::pin::pin!(records::challenges(&context.client, &context.namespace));
        let mut unseen: HashSet<String> = HashSet::new();
        let mut present: HashSet<String> = HashSet::new();
        while let Some(change) = changes.next().await {
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

/// Answers the CA with these key authorizations from now on.
pub(super) fn answer(context: &Context, record: &str, challenges: BTreeMap<String, String>) {
    if let Err(full) = context.challenges.set(record, challenges) {
        tracing::error!(record, error = %full, "the CA will not find the proof");
    }
}
