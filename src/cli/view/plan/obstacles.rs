//! What speaks against a renewal: asked of the CA (only its directory), DNS and the cluster, for `plan --preflight`.

use std::collections::BTreeMap;
use std::sync::Arc;

use cert_renew_core::assess::Assessment;
use cert_renew_core::config::{Config, Issuer};

use crate::acme::{Credentials, Directory};
use crate::cli::view::account::acme;
use crate::cluster::accounts;
use crate::renewal::challenges::dns_persist01;
use crate::renewal::preflight::{self, PlannedOrder};

/// A CA's directory, and the URL of our account there.
type Ca = (Arc<Directory>, Option<String>);

/// Fetches each CA's directory once.
pub(super) struct Looker<'a> {
    pub(super) kube: kube::Client,
    namespace: &'a str,
    pub(super) config: &'a Config,
    /// Directory and account by issuer, or why there is none.
    cas: BTreeMap<String, Result<Ca, String>>,
}

impl<'a> Looker<'a> {
    pub(super) fn new(client: &kube::Client, namespace: &'a str, config: &'a Config) -> Self {
        Self {
            kube: client.clone(),
            namespace,
            config,
            cas: BTreeMap::new(),
        }
    }

    /// What speaks against a renewal from this issuer.
    pub(super) async fn against(&mut self, name: &str, assessment: &Assessment) -> Vec<String> {
        let (names, key_type) = (&assessment.names, assessment.key_type());
        let profile = assessment.settings.profile.as_deref();
        let Some(issuer) = self.config.issuer(name) else {
            return Vec::new();
        };
        if !self.cas.contains_key(name) {
            let ca = self.ca(name, issuer).await;
            self.cas.insert(name.to_owned(), ca);
        }
        let (directory, account) = match &self.cas[name] {
            Ok((directory, account)) => (directory, account.as_deref()),
            Err(why) => return vec![why.clone()],
        };
        let asked = PlannedOrder {
            names,
            profile,
            lifetime: assessment.settings.lifetime,
            issuer,
            account,
            key_type,
        };
        let mut found = preflight::static_checks(&asked, directory, self.config);
        found.extend(preflight::by_caa(&asked, directory, self.config).await);
        found.extend(dns_persist01::against(&asked, directory, self.config).await);
        let credentials = preflight::by_credentials(&self.kube, self.namespace, names, self.config);
        found.extend(credentials.await);
        found
    }

    async fn ca(&self, name: &str, issuer: &Issuer) -> Result<Ca, String> {
        let unused = Credentials::generate(&issuer.directory).map_err(|error| error.to_string())?;
        let client = acme(name, &unused, issuer.ca_bundle.as_deref()).map_err(|it| it.0)?;
        let directory = client.directory().await.map_err(|error| error.detail())?;
        let stored = accounts::load(&self.kube, self.namespace, name).await;
        let stored = stored.map_err(|error| error.to_string())?;
        let account = stored.and_then(|json| {
            let credentials = Credentials::from_json(&json).ok()?;
            credentials.account_url().map(ToOwned::to_owned)
        });
        Ok((directory, account))
    }
}
