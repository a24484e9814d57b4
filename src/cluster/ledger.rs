//! The ledger: failures and unscheduled issues by set of names, in one ConfigMap of the operator's namespace.
//!
//! Secrets that share issuer and names share an account, and deleting or replacing a Secret resets nothing.
//! What no budget counts any more goes with the next change, so that names that nobody asks for do not fill the ConfigMap.
//! The copy in memory is the leader's, read at the beginning of its term; each change is one merge patch of one key, so changes never clash.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};

use super::{Error, call};
use crate::compact::hash;
use crate::index::Key;
use crate::schedule::budget::Account;
use crate::secret::keys::FIELD_MANAGER;
use crate::time::UnixTime;

/// Entries that go with one change: enough to shrink, few enough for a patch.
const SWEPT: usize = 100;

/// Name of the ConfigMap.
pub const NAME: &str = "cert-renew-ledger";

/// See the module's documentation.
#[derive(Debug)]
pub struct Ledger {
    api: Api<ConfigMap>,
    accounts: Mutex<HashMap<u64, Account>>,
}

impl Ledger {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            accounts: Mutex::default(),
        }
    }

    /// Reads the ledger anew. What cannot be read of it is logged and counts as never written.
    ///
    /// # Errors
    /// What every call may end in, but not [`Error::NotFound`]: that is an empty ledger.
    pub async fn reload(&self) -> Result<(), Error> {
        let found = call(|| format!("reading ConfigMap {NAME}"), self.api.get(NAME)).await;
        let data = match found {
            Ok(map) => map.data.unwrap_or_default(),
            Err(Error::NotFound { .. }) => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        let mut accounts = HashMap::new();
        for (key, value) in data {
            let account = u64::from_str_radix(&key, 16)
                .ok()
                .zip(serde_json::from_str(&value).ok());
            if let Some((key, account)) = account {
                accounts.insert(key, account);
            } else {
                tracing::warn!(
                    key,
                    "an entry of the ledger cannot be read and is passed over"
                );
            }
        }
        *self.lock() = accounts;
        Ok(())
    }

    /// What is remembered of an account.
    #[must_use]
    pub fn get(&self, account: u64) -> Account {
        self.lock().get(&account).cloned().unwrap_or_default()
    }

    /// Failures in a row of an account.
    #[must_use]
    pub fn failures(&self, account: u64) -> u32 {
        self.lock()
            .get(&account)
            .map_or(0, |account| account.failures)
    }

    /// No try before this instant; see [`Account::retry_at`].
    #[must_use]
    pub fn retry_at(&self, now: UnixTime, account: u64, wish: Option<u64>) -> Option<UnixTime> {
        self.lock()
            .get(&account)
            .and_then(|account| account.retry_at(now, wish))
    }

    /// Forgets, in memory, the back-off of all failures that the config of now may have mended.
    pub fn mend_by_config(&self, config: u64) {
        for account in self.lock().values_mut() {
            account.mend(|tried| tried.config != config);
        }
    }

    /// Forgets, in memory, the back-off of an account whose last failure was this Secret's, under other annotations;
    /// `settings` says what they are now.
    pub fn mend_by_settings(&self, account: u64, subject: &Key, settings: impl FnOnce() -> u64) {
        let mut accounts = self.lock();
        let Some(account) = accounts.get_mut(&account) else {
            return;
        };
        if account.retry_at.is_none() || account.tried_with.is_none() {
            return;
        }
        let (subject, settings) = (hash(&subject.to_string()), settings());
        account.mend(|tried| tried.subject == subject && tried.settings != settings);
    }

    /// Changes an account, in memory at once and then in the ConfigMap; writes nothing when nothing changed.
    ///
    /// # Errors
    /// What every call may end in; the change holds in memory all the same.
    pub async fn update(
        &self,
        account: u64,
        change: impl FnOnce(&mut Account),
    ) -> Result<(), Error> {
        let mut change = Some(change);
        self.update_all([account], |_, account| {
            if let Some(change) = change.take() {
                change(account);
            }
        })
        .await
    }

    /// The same with several accounts, in one write.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub async fn update_all(
        &self,
        ids: impl IntoIterator<Item = u64>,
        mut change: impl FnMut(u64, &mut Account),
    ) -> Result<(), Error> {
        let ids: Vec<u64> = ids.into_iter().collect();
        let mut values = BTreeMap::new();
        {
            let mut accounts = self.lock();
            for &id in &ids {
                let entry = accounts.entry(id).or_default();
                let before = entry.kept();
                change(id, entry);
                let (after, forgotten) = (entry.kept(), entry.is_empty());
                if forgotten {
                    accounts.remove(&id);
                }
                if after != before {
                    let text = || serde_json::to_string(&after).unwrap_or_default();
                    values.insert(key_of(id), (!after.is_empty()).then(text));
                }
            }
            if values.is_empty() {
                return Ok(());
            }
            for over in sweep(&mut accounts, &ids, UnixTime::now()) {
                values.insert(over, None);
            }
        }
        let what = || format!("writing ConfigMap {NAME}");
        let manager = Some(FIELD_MANAGER.to_owned());
        let params = PatchParams {
            field_manager: manager.clone(),
            ..PatchParams::default()
        };
        let body = serde_json::json!({ "data": values });
        match call(
            what,
            self.api.patch(NAME, &params, &Patch::Merge(body.clone())),
        )
        .await
        {
            Err(Error::NotFound { .. }) => {}
            other => return other.map(|_| ()),
        }
        let data = values.into_iter();
        let new = ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                labels: Some(BTreeMap::from([(
                    "app.kubernetes.io/name".into(),
                    "cert-renew".into(),
                )])),
                ..ObjectMeta::default()
            },
            data: Some(
                data.filter_map(|(key, value)| Some((key, value?)))
                    .collect(),
            ),
            ..ConfigMap::default()
        };
        let post = PostParams {
            field_manager: manager,
            ..PostParams::default()
        };
        match call(what, self.api.create(&post, &new)).await {
            // Another renewal made it in this very moment.
            Err(Error::AlreadyExists { .. }) => {
                call(what, self.api.patch(NAME, &params, &Patch::Merge(body)))
                    .await
                    .map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes out some of what is over, but for the accounts that are being changed; gives their keys in the ConfigMap.
fn sweep(accounts: &mut HashMap<u64, Account>, but: &[u64], now: UnixTime) -> Vec<String> {
    let over = accounts
        .iter()
        .filter(|(account, it)| !but.contains(account) && it.is_over(now));
    let over: Vec<u64> = over.map(|(account, _)| *account).take(SWEPT).collect();
    for account in &over {
        accounts.remove(account);
    }
    over.into_iter().map(key_of).collect()
}

/// An account's key in the ConfigMap.
fn key_of(account: u64) -> String {
    format!("{account:016x}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_over_is_swept_and_nothing_else() {
        let now = UnixTime(1_800_000_000);
        let failed = |ago: u64| Account {
            failures: 1,
            retry_at: Some((now - Duration::from_secs(ago)).0),
            ..Account::default()
        };
        let week = 7 * 86_400;
        let mut accounts = HashMap::from([
            (1, failed(0)),
            (2, failed(week - 1)),
            (3, failed(week)),
            (4, failed(10 * week)),
        ]);
        assert_eq!(sweep(&mut accounts, &[4], now), ["0000000000000003"]);
        assert_eq!(sweep(&mut accounts, &[1], now), ["0000000000000004"]);
        let mut left: Vec<u64> = accounts.into_keys().collect();
        left.sort_unstable();
        assert_eq!(left, [1, 2]);
        let mut many = (0..1_000).map(|it| (it, failed(week))).collect();
        assert_eq!(sweep(&mut many, &[0], now).len(), SWEPT);
    }
}
