//! The order records that are known to exist, and how many names their orders may have.

use std::collections::HashMap;

use cert_renew_core::secret::SecretRef;
use kube::Client;
use parking_lot::Mutex;

use crate::cluster::{Error, order_records};

/// Most names of all open orders: half of the tokens that are answered with. An order that waits for its user is open for
/// days.
const NAMES: usize = 50_000;
/// Part of them for one namespace.
const SHARE: usize = 4;
/// Names that a namespace may have, however many the others have.
const LEAST: usize = 200;

/// The Secrets that have a running order, and how many names it has. Saves a read before each renewal.
#[derive(Debug, Default)]
pub struct RunningOrders(Mutex<HashMap<SecretRef, usize>>);

impl RunningOrders {
    /// Lists the records that former leaders left.
    ///
    /// # Errors
    /// Any error of a call to the API server.
    pub async fn reload(&self, client: &Client, namespace: &str) -> Result<(), Error> {
        let mut all = HashMap::new();
        order_records::each(client, namespace, |subject, record| {
            // An unreadable record is replaced when its Secret is looked at.
            let names = record.map_or(0, |record| record.order.names.len());
            all.extend(subject.map(|subject| (subject, names)));
        })
        .await?;
        *self.0.lock() = all;
        Ok(())
    }

    /// The Secrets whose orders run.
    #[must_use]
    pub fn subjects(&self) -> Vec<SecretRef> {
        self.0.lock().keys().cloned().collect()
    }

    /// Whether an order for the Secret runs.
    #[must_use]
    pub fn contains(&self, key: &SecretRef) -> bool {
        self.0.lock().contains_key(key)
    }

    /// Whether an order with this number of names may be made for a Secret: orders that wait for one namespace, which
    /// may go on for days, leave room for those of others.
    #[must_use]
    pub fn has_room(&self, key: &SecretRef, names: usize) -> bool {
        let all = self.0.lock();
        let (mut total, mut own) = (names, names);
        for (other, names) in all.iter().filter(|(other, _)| *other != key) {
            total += names;
            if other.namespace == key.namespace {
                own += names;
            }
        }
        own <= LEAST.max(names) || (own <= NAMES / SHARE && total <= NAMES)
    }

    /// Adds the Secret of an order that was begun, with the number of its names.
    pub fn insert(&self, key: &SecretRef, names: usize) {
        self.0.lock().insert(key.clone(), names);
    }

    /// Removes the Secret of an order that is finished.
    pub fn remove(&self, key: &SecretRef) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, number: usize) -> SecretRef {
        SecretRef::new(namespace, number.to_string())
    }

    #[test]
    fn open_orders_of_one_namespace_leave_room_for_those_of_others() {
        let orders = RunningOrders::default();
        let made = |namespace: &str| {
            let may = |number: &usize| orders.has_room(&key(namespace, *number), 100);
            let made = (0..1_000).take_while(may);
            made.map(|number| orders.insert(&key(namespace, number), 100))
                .count()
        };
        assert_eq!(made("hostile"), 125);
        assert_eq!(made("another"), 125);
        assert_eq!([made("third"), made("fourth")], [125, 125]);
        assert!(
            orders.has_room(&key("large", 0), 1_000),
            "one order, however large"
        );
        assert!(
            orders.has_room(&key("hostile", 0), 100),
            "the same one again"
        );
        orders.remove(&key("hostile", 1));
        assert!(orders.has_room(&key("hostile", 1), 100));
        orders.insert(&key("hostile", 1), 100);
        assert_eq!(made("shop"), 2, "also where all of it is taken");
    }
}
