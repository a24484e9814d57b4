//! Makes the client that changes TXT records from the config and a Secret. Pure, except for the changes.

use cert_renew_core::config::Dns01;
use dns_update::{DnsRecord, DnsRecordType, DnsUpdater};
use zeroize::Zeroizing;

use super::acme_dns::AcmeDns;
use super::needs::{HostCredentials, Needs};
use super::rfc2136::Signed;
use super::webhook::Webhook;
use super::{Error, cleaned, hosts};
use crate::cluster::order_records::Txt;
use crate::solver::dns01::cloud::azure::Azure;
use crate::solver::dns01::cloud::google::Google;
use crate::solver::dns01::cloud::identity::Environment;

/// A client that changes TXT records.
pub(super) struct Provider {
    kind: Kind,
    /// Its name in the config.
    name: String,
    /// Texts that must not appear in an error.
    secrets: Vec<Zeroizing<String>>,
}

enum Kind {
    Updater(DnsUpdater),
    Signed(Box<Signed>),
    /// A host that holds one value at a name and lists none.
    OneValue(DnsUpdater),
    AcmeDns(AcmeDns),
    Webhook(Webhook),
    /// By the pod's identity.
    Azure(Azure),
    Google(Google),
}

impl Provider {
    pub(super) fn new(solver: &Dns01, credentials: &HostCredentials) -> Result<Self, Error> {
        let needs = Needs {
            solver,
            credentials,
        };
        let kind = match solver.provider.as_str() {
            "acme-dns" => Kind::AcmeDns(
                AcmeDns::new(
                    &needs.required("server")?,
                    needs.setting("caBundle").as_deref(),
                    &needs.secret("acmedns.json")?,
                )
                .map_err(|expected| needs.expected(expected))?,
            ),
            "webhook" => Kind::Webhook(
                Webhook::new(
                    &needs.required("url")?,
                    needs.setting("caBundle").as_deref(),
                    needs.optional("token"),
                )
                .map_err(|expected| needs.settings(expected))?,
            ),
            "azure" if solver.credentials.is_none() => Kind::Azure(
                Azure::new(&Environment::of_process(), |key| needs.setting(key))
                    .map_err(|expected| needs.settings(expected))?,
            ),
            "google" if solver.credentials.is_none() => {
                let environment = Environment::of_process();
                Kind::Google(Google::new(&environment, |key| needs.setting(key)))
            }
            "rfc2136" => Kind::Signed(Box::new(Signed::new(&needs)?)),
            name if hosts::ONE_VALUE.contains(&name) => Kind::OneValue(hosts::updater(&needs)?),
            _ => Kind::Updater(hosts::updater(&needs)?),
        };
        let secrets = credentials.data.values();
        let secrets = secrets.filter_map(|bytes| std::str::from_utf8(bytes).ok());
        Ok(Self {
            kind,
            name: solver.provider.clone(),
            secrets: { secrets.map(|text| Zeroizing::new(text.trim().to_owned())) }.collect(),
        })
    }

    pub(super) async fn add(&self, txt: &Txt, ttl: u32) -> Result<(), String> {
        let ttl = hosts::ttl(&self.name, ttl);
        match &self.kind {
            Kind::Updater(updater) => self.told(added(updater, txt, ttl).await),
            Kind::Signed(signed) => {
                let added = added(&signed.updater, txt, ttl).await;
                self.told(signed.explained(added, &txt.zone).await)
            }
            Kind::OneValue(updater) => {
                let kind = DnsRecordType::TXT;
                let records = vec![DnsRecord::TXT(txt.value.clone())];
                self.told({ updater.set_rrset(&txt.at, kind, ttl, records, &txt.zone) }.await)
            }
            Kind::AcmeDns(acme_dns) => self.told(acme_dns.add(txt).await),
            Kind::Webhook(webhook) => self.told(webhook.call("present", txt).await),
            Kind::Azure(azure) => self.told(azure.add(txt, ttl).await),
            Kind::Google(google) => self.told(google.add(txt, ttl).await),
        }
    }

    pub(super) async fn remove(&self, txt: &Txt) -> Result<(), String> {
        match &self.kind {
            Kind::Updater(updater) => self.told(removed(updater, txt).await),
            Kind::Signed(signed) => {
                let removed = removed(&signed.updater, txt).await;
                self.told(signed.explained(removed, &txt.zone).await)
            }
            // The host keeps only the last one or two values, which may be another order's by now.
            Kind::AcmeDns(_) | Kind::OneValue(_) => Ok(()),
            Kind::Webhook(webhook) => self.told(webhook.call("cleanup", txt).await),
            Kind::Azure(azure) => self.told(azure.remove(txt).await),
            Kind::Google(google) => self.told(google.remove(txt).await),
        }
    }

    fn told(&self, result: Result<(), impl std::fmt::Display>) -> Result<(), String> {
        let secrets: Vec<&str> = self.secrets.iter().map(|it| it.as_str()).collect();
        result.map_err(|error| cleaned(&error.to_string(), &secrets))
    }
}

async fn added(updater: &DnsUpdater, txt: &Txt, ttl: u32) -> Result<(), dns_update::Error> {
    let records = vec![DnsRecord::TXT(txt.value.clone())];
    let added = updater.add_to_rrset(&txt.at, DnsRecordType::TXT, ttl, records, &txt.zone);
    added.await
}

async fn removed(updater: &DnsUpdater, txt: &Txt) -> Result<(), dns_update::Error> {
    let records = vec![DnsRecord::TXT(txt.value.clone())];
    let removed = updater.remove_from_rrset(&txt.at, DnsRecordType::TXT, records, &txt.zone);
    match removed.await {
        Err(dns_update::Error::NotFound) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use cert_renew_core::config::{Propagation, SUPPORTED_PROVIDERS, UNTESTED_PROVIDERS};
    use cert_renew_core::secret::object::full::Data;

    use super::*;

    const JSON: &str = r#"{"project_id": "p", "client_email": "a@b.example", "private_key": "x",
        "example.com": {"username": "u", "password": "p", "subdomain": "s", "fulldomain": "s.acme-dns.example"}}"#;

    fn solver(provider: &str) -> Dns01 {
        let settings = [
            ("server", "127.0.0.1"),
            ("keyName", "key"),
            ("url", "https://hook.example/"),
            ("tenantId", "t"),
            ("clientId", "c"),
            ("subscriptionId", "s"),
            ("resourceGroup", "g"),
            ("configuration", "default"),
            ("view", "external"),
            ("region", "a-1"),
            ("clientIp", "192.0.2.1"),
            ("customerNumber", "1"),
            ("tenancy", "t"),
            ("user", "u"),
            ("fingerprint", "f"),
            ("compartment", "c"),
            ("accountId", "1"),
            ("projectId", "p"),
            ("folderId", "f"),
        ];
        let server = ("server", "https://dns.example");
        let with_url = ["acme-dns", "plesk", "powerdns"].contains(&provider);
        let settings = settings.into_iter().chain(with_url.then_some(server));
        Dns01 {
            provider: provider.to_owned(),
            credentials: Some("dns".into()),
            settings: settings
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
            propagation: Propagation::default(),
        }
    }

    #[test]
    fn every_provider_of_the_config_can_be_made_and_says_what_it_lacks() {
        let keys = [
            "token",
            "key",
            "access-key-id",
            "secret-access-key",
            "client-secret",
            "client-token",
            "access-token",
            "consumer-key",
            "private-key",
        ];
        let texts = keys.map(|key| (key, "a-b.c"));
        let texts = texts.into_iter().chain([
            ("secret", "c2VjcmV0"),
            ("service-account.json", JSON),
            ("acmedns.json", JSON),
            ("hurricane.json", r#"{"example.com": "k"}"#),
        ]);
        let data: Data = texts
            .map(|(key, text)| (key.into(), text.as_bytes().to_vec().into()))
            .collect();
        for name in SUPPORTED_PROVIDERS.iter().chain(&UNTESTED_PROVIDERS) {
            let full = HostCredentials::new("ns/dns".into(), data.clone());
            if let Err(error) = Provider::new(&solver(name), &full) {
                let text = error.to_string();
                // Some check the form of a key at once.
                assert!(text.contains("ns/dns"), "{text}");
                assert!(!text.contains("not in this version"), "{text}");
            }
            if *name == "webhook" {
                continue;
            }
            let Err(error) = Provider::new(&solver(name), &HostCredentials::default()) else {
                panic!("{name} takes no credentials");
            };
            assert!(
                error.to_string().contains("credentials: {secret: …}"),
                "{error}"
            );
        }
    }
}
