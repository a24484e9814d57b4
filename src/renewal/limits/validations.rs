//! Limits the failed validations of a name in an hour to what CAs allow, over all sets of names that contain it, all
//! Secrets, and all changes of `renew-now`.
//!
//! The ledger keeps the failures by name. Orders under way may still fail, and are counted here, in memory only.

use std::collections::{BTreeMap, HashMap};

use cert_renew_core::schedule::rate_limits::{AccountId, Backoff, account_of_name};
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use parking_lot::Mutex;

use crate::cluster::ledger::Ledger;

/// Number of orders under way that prove a name, by the name's account of the ledger.
#[derive(Debug, Default)]
pub struct Validations(Mutex<HashMap<AccountId, usize>>);

/// Counts an order as under way until it is dropped.
#[derive(Debug)]
pub(in crate::renewal) struct Proving<'a> {
    of: &'a Validations,
    accounts: Vec<AccountId>,
}

/// Why an order has to wait.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::renewal) enum ValidationHold {
    /// The name has failed as often as it may.
    Failed(Name, UnixTime),
    /// The name would have, if all orders under way failed.
    UnderWay(Name, UnixTime),
}

impl Validations {
    /// Counts an order for these names as under way, if none of them has failed too often.
    pub(in crate::renewal) fn begin(
        &self,
        ledger: &Ledger,
        issuer: &str,
        names: &[Name],
        backoff: &Backoff,
        now: UnixTime,
    ) -> Result<Proving<'_>, ValidationHold> {
        let accounts = accounts(issuer, names);
        let mut under_way = self.0.lock();
        let mut held = None;
        for (id, name) in &accounts {
            let account = ledger.get(*id);
            let count = under_way.get(id).copied().unwrap_or(0);
            if let Some(until) = account.validates_at(now, backoff, 0) {
                return Err(ValidationHold::Failed((*name).clone(), until));
            }
            if let Some(until) = account.validates_at(now, backoff, count) {
                held = Some(ValidationHold::UnderWay((*name).clone(), until));
            }
        }
        if let Some(held) = held {
            return Err(held);
        }
        Ok(self.counted(&mut under_way, accounts.into_keys().collect()))
    }

    /// Counts an order that a former run has begun.
    pub(in crate::renewal) fn join(&self, issuer: &str, names: &[Name]) -> Proving<'_> {
        let accounts = accounts(issuer, names).into_keys().collect();
        self.counted(&mut self.0.lock(), accounts)
    }

    fn counted(
        &self,
        under_way: &mut HashMap<AccountId, usize>,
        accounts: Vec<AccountId>,
    ) -> Proving<'_> {
        for id in &accounts {
            *under_way.entry(*id).or_default() += 1;
        }
        Proving { of: self, accounts }
    }
}

impl Drop for Proving<'_> {
    fn drop(&mut self) {
        let mut under_way = self.of.0.lock();
        for id in &self.accounts {
            if let Some(count) = under_way.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    under_way.remove(id);
                }
            }
        }
    }
}

/// The accounts of the names, each once: apex and wildcard are proven at the same place.
pub(in crate::renewal) fn accounts<'a>(
    issuer: &str,
    names: impl IntoIterator<Item = &'a Name>,
) -> BTreeMap<AccountId, &'a Name> {
    let names = names.into_iter();
    names
        .map(|name| (account_of_name(issuer, name), name))
        .collect()
}
