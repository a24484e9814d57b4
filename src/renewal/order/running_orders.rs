//! The order records that are known to exist, and the key authorizations that every replica answers with.

use std::collections::HashSet;

use cert_renew_core::secret::SecretRef;
use kube::Client;
use parking_lot::Mutex;

use crate::cluster::{Error, order_records};

/// The Secrets that have a running order; saves a read before each renewal.
#[derive(Debug, Default)]
pub struct RunningOrders(Mutex<HashSet<SecretRef>>);

impl RunningOrders {
    /// Lists the records that former leaders left.
    ///
    /// # Errors
    /// Any error of a call to the API server.
    pub async fn reload(&self, client: &Client, namespace: &str) -> Result<(), Error> {
        let (found, corrupt) = order_records::list(client, namespace).await?;
        let key = |record: order_records::Record| record.order.subject();
        // An unreadable record is replaced when its Secret is looked at.
        let all = found.into_iter().map(key);
        *self.0.lock() = all.chain(corrupt.into_iter().flatten()).collect();
        Ok(())
    }

    /// The Secrets whose orders run.
    #[must_use]
    pub fn subjects(&self) -> Vec<SecretRef> {
        self.0.lock().iter().cloned().collect()
    }

    /// Whether an order for the Secret runs.
    #[must_use]
    pub fn contains(&self, key: &SecretRef) -> bool {
        self.0.lock().contains(key)
    }

    /// Adds the Secret of an order that was begun.
    pub fn insert(&self, key: &SecretRef) {
        self.0.lock().insert(key.clone());
    }

    /// Removes the Secret of an order that is finished.
    pub fn remove(&self, key: &SecretRef) {
        self.0.lock().remove(key);
    }
}
