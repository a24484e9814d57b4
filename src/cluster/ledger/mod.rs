//! The ledger: failures and unscheduled issues by set of names, in one ConfigMap of the operator's namespace.
//!
//! ```text
//! change ──► memory, at once ──► unwritten ──one writer at a time──► ConfigMap, one merge patch of what memory says then
//! ```
//! Secrets that share issuer and names share an account, and deleting or replacing a Secret resets nothing. The copy in
//! memory is the leader's, read at the beginning of its term. Writes run one at a time, each of the memory's state at
//! its start, so that an earlier state never lands after a later one. Entries that no budget counts any more are
//! removed with the next change; if the ConfigMap is still full, the namespace with the most loses its oldest entries.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cert_renew_core::schedule::rate_limits::{AccountId, IssuanceHistory};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::text::hash::hash;
use cert_renew_core::time::UnixTime;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch};
use parking_lot::Mutex;

use crate::cluster::Error;
use crate::cluster::client::{call, params};

/// Most entries removed with one change: enough to shrink, few enough for a patch.
const SWEPT: usize = 100;
/// Most bytes of all entries: the API server takes a ConfigMap of a megabyte, and a patch has to fit too.
const MOST_BYTES: usize = 768 << 10;

/// Name of the ConfigMap.
pub const NAME: &str = "cert-renew-ledger";

/// The ledger in memory, with its ConfigMap.
#[derive(Debug)]
pub struct Ledger {
    api: Api<ConfigMap>,
    state: Mutex<State>,
    /// Held by the writer.
    writer: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    accounts: HashMap<AccountId, IssuanceHistory>,
    /// Bytes of each entry in the ConfigMap.
    sizes: HashMap<AccountId, usize>,
    bytes: usize,
    /// Accounts whose entry differs from the ConfigMap's.
    unwritten: BTreeSet<AccountId>,
}

/// The content of one write; what was not written is returned to `unwritten`.
struct Taken<'a> {
    ledger: &'a Ledger,
    ids: BTreeSet<AccountId>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.ledger.state.lock().unwritten.append(&mut self.ids);
    }
}

impl Ledger {
    /// A ledger that has read nothing yet.
    #[must_use]
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            state: Mutex::default(),
            writer: tokio::sync::Mutex::default(),
        }
    }

    /// Reads the ledger again. An unreadable part is logged and counts as never written.
    ///
    /// # Errors
    /// Those of every call, except [`Error::NotFound`]: that is an empty ledger.
    pub async fn reload(&self) -> Result<(), Error> {
        let _writer = self.writer.lock().await;
        let found = call(|| format!("reading ConfigMap {NAME}"), self.api.get(NAME)).await;
        let data = match found {
            Ok(map) => map.data.unwrap_or_default(),
            Err(Error::NotFound { .. }) => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        let mut state = State::default();
        for (key, value) in data {
            let account = { key.parse().ok() }.zip(serde_json::from_str(&value).ok());
            if let Some((id, account)) = account {
                state.accounts.insert(id, account);
                state.sized(id, Some(&value));
            } else {
                tracing::warn!(
                    key,
                    "an entry of the failure history cannot be read and is skipped"
                );
            }
        }
        *self.state.lock() = state;
        Ok(())
    }

    /// The stored history of an account.
    #[must_use]
    pub fn get(&self, account: AccountId) -> IssuanceHistory {
        self.state.lock().find(account).cloned().unwrap_or_default()
    }

    /// Number of failures in a row of an account.
    #[must_use]
    pub fn failures(&self, account: AccountId) -> u32 {
        let state = self.state.lock();
        { state.find(account) }.map_or(0, |account| account.failures)
    }

    /// No try before this instant; see [`IssuanceHistory::retry_at`].
    #[must_use]
    pub fn retry_at(
        &self,
        now: UnixTime,
        account: AccountId,
        wish: Option<u64>,
    ) -> Option<UnixTime> {
        let state = self.state.lock();
        { state.find(account) }.and_then(|account| account.retry_at(now, wish))
    }

    /// Drops, in memory, the back-off of all failures that a changed config may have resolved.
    pub fn mend_by_config(&self, config: u64) {
        for account in self.state.lock().accounts.values_mut() {
            account.mend(|tried| tried.config != config);
        }
    }

    /// Drops, in memory, the back-off of an account if its last failure was this Secret's, under other annotations;
    /// `settings` are the present ones.
    pub fn mend_by_settings(
        &self,
        account: AccountId,
        subject: &SecretRef,
        settings: impl FnOnce() -> u64,
    ) {
        let mut state = self.state.lock();
        let is_known = state.accounts.contains_key(&account);
        let id = if is_known { account } else { account.former() };
        let Some(account) = state.accounts.get_mut(&id) else {
            return;
        };
        if account.retry_at.is_none() || account.tried_with.is_none() {
            return;
        }
        let (subject, settings) = (hash(&subject.to_string()), settings());
        account.mend(|tried| tried.subject == subject && tried.settings != settings);
    }

    /// Changes an account for a Secret of `namespace`, in memory at once and then in the ConfigMap; an unchanged
    /// account is not written.
    ///
    /// # Errors
    /// Those of every call; the change in memory holds all the same.
    pub async fn update(
        &self,
        namespace: &str,
        account: AccountId,
        change: impl FnOnce(&mut IssuanceHistory),
    ) -> Result<(), Error> {
        let mut change = Some(change);
        self.update_all(namespace, [account], |_, account| {
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
        namespace: &str,
        ids: impl IntoIterator<Item = AccountId>,
        change: impl FnMut(AccountId, &mut IssuanceHistory),
    ) -> Result<(), Error> {
        if !self.state.lock().change(namespace, ids, change) {
            return Ok(());
        }
        let _writer = self.writer.lock().await;
        let ids = std::mem::take(&mut self.state.lock().unwritten);
        if ids.is_empty() {
            // The previous writer has written this change too.
            return Ok(());
        }
        let mut taken = Taken { ledger: self, ids };
        let values = self.state.lock().values(&taken.ids);
        self.write(values).await?;
        taken.ids.clear();
        Ok(())
    }

    async fn write(&self, values: BTreeMap<String, Option<String>>) -> Result<(), Error> {
        let what = || format!("writing ConfigMap {NAME}");
        let params = params::patch();
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
                labels: Some(params::labels([])),
                ..ObjectMeta::default()
            },
            data: Some(
                data.filter_map(|(key, value)| Some((key, value?)))
                    .collect(),
            ),
            ..ConfigMap::default()
        };
        let post = params::post();
        match call(what, self.api.create(&post, &new)).await {
            // A former leader has just created it.
            Err(Error::AlreadyExists { .. }) => {
                call(what, self.api.patch(NAME, &params, &Patch::Merge(body)))
                    .await
                    .map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }
}

// === impl State ===

impl State {
    /// The history of an account, also under the name of an earlier version.
    fn find(&self, id: AccountId) -> Option<&IssuanceHistory> {
        { self.accounts.get(&id) }.or_else(|| self.accounts.get(&id.former()))
    }

    /// Moves an account from its former name to its present one.
    fn rename(&mut self, id: AccountId) {
        let former = id.former();
        if !self.accounts.contains_key(&id)
            && let Some(account) = self.accounts.remove(&former)
        {
            self.accounts.insert(id, account);
            let text = self.text(id);
            self.sized(id, text.as_deref());
            self.unwritten.insert(id);
            self.forget(former);
        }
    }

    /// Changes accounts; returns whether there is anything to write.
    fn change(
        &mut self,
        namespace: &str,
        ids: impl IntoIterator<Item = AccountId>,
        mut change: impl FnMut(AccountId, &mut IssuanceHistory),
    ) -> bool {
        let ids: BTreeSet<AccountId> = ids.into_iter().collect();
        let mut changed = false;
        for &id in &ids {
            self.rename(id);
            let entry = self.accounts.entry(id).or_default();
            let before = entry.kept();
            change(id, entry);
            entry.namespace = Some(namespace.into());
            let (mut after, forgotten) = (entry.kept(), entry.is_empty());
            if forgotten {
                self.accounts.remove(&id);
            }
            // Another namespace alone is no change.
            after.namespace.clone_from(&before.namespace);
            if after != before {
                changed = true;
                self.unwritten.insert(id);
                let text = self.text(id);
                self.sized(id, text.as_deref());
            }
        }
        if changed {
            let now = UnixTime::now();
            self.sweep(&ids, now);
            self.make_room(&ids, now);
        }
        changed
    }

    /// An entry in its ConfigMap form, if it is worth one.
    fn text(&self, id: AccountId) -> Option<String> {
        let kept = self.accounts.get(&id)?.kept();
        (!kept.is_empty()).then(|| serde_json::to_string(&kept).unwrap_or_default())
    }

    /// The ConfigMap's new values of these accounts.
    fn values(&self, ids: &BTreeSet<AccountId>) -> BTreeMap<String, Option<String>> {
        ids.iter()
            .map(|id| (id.to_string(), self.text(*id)))
            .collect()
    }

    /// Records the size of an entry.
    fn sized(&mut self, id: AccountId, text: Option<&str>) {
        let size = text.map(|text| id.to_string().len() + text.len());
        let before = match size {
            Some(size) => self.sizes.insert(id, size),
            None => self.sizes.remove(&id),
        };
        self.bytes += size.unwrap_or(0);
        self.bytes -= before.unwrap_or(0);
    }

    fn forget(&mut self, id: AccountId) {
        self.accounts.remove(&id);
        self.sized(id, None);
        self.unwritten.insert(id);
    }

    /// Removes some expired entries, except those of the accounts being changed.
    fn sweep(&mut self, but: &BTreeSet<AccountId>, now: UnixTime) {
        let over = self.accounts.iter();
        let over = over.filter(|(account, it)| !but.contains(account) && it.is_over(now));
        let over: Vec<AccountId> = over.map(|(account, _)| *account).take(SWEPT).collect();
        for account in over {
            self.forget(account);
        }
    }

    /// If the ConfigMap would be full, the namespace with the most in it loses the entries that were unchanged the
    /// longest.
    fn make_room(&mut self, but: &BTreeSet<AccountId>, now: UnixTime) {
        if self.bytes <= MOST_BYTES {
            return;
        }
        let mut of: HashMap<&str, (usize, Vec<AccountId>)> = HashMap::new();
        for (id, size) in &self.sizes {
            let namespace = self.accounts.get(id).and_then(|it| it.namespace.as_deref());
            let (bytes, ids) = of.entry(namespace.unwrap_or_default()).or_default();
            *bytes += size;
            ids.push(*id);
        }
        let Some((namespace, (_, mut ids))) = of.into_iter().max_by_key(|(_, (bytes, _))| *bytes)
        else {
            return;
        };
        let namespace = namespace.to_owned();
        ids.retain(|id| !but.contains(id));
        ids.sort_by_cached_key(|id| self.accounts.get(id).map(|it| it.changed_at(now)));
        ids.truncate(SWEPT);
        tracing::warn!(
            namespace,
            entries = ids.len(),
            "the failure history is full: the oldest entries of the namespace that fills it are forgotten, and with them how often \
             its renewals have failed"
        );
        for id in ids {
            self.forget(id);
        }
    }
}

#[cfg(test)]
mod tests;
