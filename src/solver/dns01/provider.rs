//! From the config and a Secret to somebody who changes TXT records. Pure, but for the changes themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dns_update::providers::azuredns::{AzureDnsConfig, AzureEnvironment};
use dns_update::providers::google_cloud_dns::GoogleCloudDnsConfig;
use dns_update::providers::route53::Route53Config;
use dns_update::{DnsRecord, DnsRecordType, DnsUpdater, TsigAlgorithm};
use zeroize::Zeroizing;

use super::acme_dns::AcmeDns;
use super::azure::Azure;
use super::google::Google;
use super::identity::Environment;
use super::webhook::Webhook;
use super::{Error, cleaned};
use crate::cluster::records::Txt;
use crate::config::Dns01;
use crate::secret::full::Data;

/// One request to a host; a change takes several at some.
const REQUEST: Option<Duration> = Some(Duration::from_secs(20));

/// Keys of the Secret for Route 53.
pub(super) const ACCESS_KEY_ID: &str = "access-key-id";
pub(super) const SECRET_ACCESS_KEY: &str = "secret-access-key";
pub(super) const SESSION_TOKEN: &str = "session-token";

/// What a Secret holds for a provider. Debug and errors never show it.
#[derive(Default)]
pub(super) struct Credentials {
    secret: Option<String>,
    data: Data,
}

/// Somebody who changes TXT records.
pub(super) struct Provider {
    kind: Kind,
    /// What must not stand in an error.
    secrets: Vec<Zeroizing<String>>,
}

enum Kind {
    Updater(DnsUpdater),
    AcmeDns(AcmeDns),
    Webhook(Webhook),
    /// By the identity of the pod.
    Azure(Azure),
    Google(Google),
}

/// Reads what one provider needs, and says what is missing.
struct Needs<'a> {
    solver: &'a Dns01,
    credentials: &'a Credentials,
}

impl Credentials {
    pub(super) fn new(secret: String, data: Data) -> Self {
        Self {
            secret: Some(secret),
            data,
        }
    }

    /// What stands at a key, without the line end that editors put there.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        let bytes = self.data.get(key)?;
        let text = std::str::from_utf8(bytes).ok()?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// What stands in no Secret.
    pub(super) fn of_identity<const N: usize>(data: [(&str, String); N]) -> Self {
        let data = data.map(|(key, text)| (key.to_owned(), text.into_bytes().into()));
        Self {
            secret: None,
            data: data.into(),
        }
    }
}

impl Needs<'_> {
    fn settings(&self, expected: impl Into<String>) -> Error {
        Error::Settings {
            provider: self.solver.provider.clone(),
            expected: expected.into(),
        }
    }

    fn expected(&self, expected: impl Into<String>) -> Error {
        match &self.credentials.secret {
            Some(secret) => Error::Credentials {
                provider: self.solver.provider.clone(),
                secret: secret.clone(),
                expected: expected.into(),
            },
            None => self.settings(format!(
                "it needs credentials: {{secret: …}}; in that Secret: {}",
                expected.into()
            )),
        }
    }

    /// A setting; the config was checked for those that are required.
    fn setting(&self, key: &str) -> Option<String> {
        self.solver.settings.get(key).cloned()
    }

    fn required(&self, key: &str) -> Result<String, Error> {
        self.setting(key)
            .ok_or_else(|| self.settings(format!("expected settings.{key}")))
    }

    fn optional(&self, key: &str) -> Option<String> {
        self.credentials.text(key)
    }

    fn secret(&self, key: &str) -> Result<String, Error> {
        self.optional(key)
            .ok_or_else(|| self.expected(format!("expected text at key {key}")))
    }
}

impl Provider {
    pub(super) fn new(solver: &Dns01, credentials: &Credentials) -> Result<Self, Error> {
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
            _ => Kind::Updater(updater(&needs)?),
        };
        let secrets = credentials.data.values();
        let secrets = secrets.filter_map(|bytes| std::str::from_utf8(bytes).ok());
        Ok(Self {
            kind,
            secrets: { secrets.map(|text| Zeroizing::new(text.trim().to_owned())) }.collect(),
        })
    }

    pub(super) async fn add(&self, txt: &Txt, ttl: u32) -> Result<(), String> {
        match &self.kind {
            Kind::Updater(updater) => {
                let kind = DnsRecordType::TXT;
                let records = vec![DnsRecord::TXT(txt.value.clone())];
                let added = updater.add_to_rrset(&txt.at, kind, ttl, records, &txt.zone);
                self.told(added.await)
            }
            Kind::AcmeDns(acme_dns) => self.told(acme_dns.add(txt).await),
            Kind::Webhook(webhook) => self.told(webhook.call("present", txt).await),
            Kind::Azure(azure) => self.told(azure.add(txt, ttl).await),
            Kind::Google(google) => self.told(google.add(txt, ttl).await),
        }
    }

    pub(super) async fn remove(&self, txt: &Txt) -> Result<(), String> {
        match &self.kind {
            Kind::Updater(updater) => {
                let kind = DnsRecordType::TXT;
                let records = vec![DnsRecord::TXT(txt.value.clone())];
                let removed = updater.remove_from_rrset(&txt.at, kind, records, &txt.zone);
                self.told(match removed.await {
                    Err(dns_update::Error::NotFound) => Ok(()),
                    result => result,
                })
            }
            // It keeps the last two and forgets older ones by itself.
            Kind::AcmeDns(_) => Ok(()),
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

fn updater(needs: &Needs<'_>) -> Result<DnsUpdater, Error> {
    let token = || needs.secret("token");
    let pair = || Ok::<_, Error>((needs.secret("key")?, needs.secret("secret")?));
    // For those that take no more than one text, or two.
    macro_rules! one {
        ($new:ident) => {
            DnsUpdater::$new(token()?, REQUEST)
        };
    }
    macro_rules! two {
        ($new:ident) => {{
            let (key, secret) = pair()?;
            DnsUpdater::$new(key, secret, REQUEST)
        }};
    }
    let made = match needs.solver.provider.as_str() {
        "rfc2136" => return rfc2136(needs),
        "route53" => DnsUpdater::new_route53(Route53Config {
            access_key_id: needs.secret(ACCESS_KEY_ID)?,
            secret_access_key: needs.secret(SECRET_ACCESS_KEY)?,
            session_token: needs.optional(SESSION_TOKEN),
            region: needs.setting("region"),
            hosted_zone_id: needs.setting("hostedZoneId"),
            private_zone_only: None,
            endpoint: needs.setting("endpoint"),
        }),
        "google" => return google(needs),
        "azure" => return azure(needs),
        "cloudflare" => one!(new_cloudflare),
        "digitalocean" => one!(new_digitalocean),
        "arvancloud" => one!(new_arvancloud),
        "bunny" => one!(new_bunny),
        "ddnss" => one!(new_ddnss),
        "desec" => one!(new_desec),
        "dreamhost" => one!(new_dreamhost),
        "duckdns" => one!(new_duckdns),
        "dynu" => one!(new_dynu),
        "freemyip" => one!(new_freemyip),
        "gandi" => one!(new_gandiv5),
        "gcore" => one!(new_gcore),
        "hetzner" => one!(new_hetzner),
        "hostingde" => one!(new_hostingde),
        "hostinger" => one!(new_hostinger),
        "infomaniak" => one!(new_infomaniak),
        "ionos" => one!(new_ionos),
        "ipv64" => one!(new_ipv64),
        "linode" => one!(new_linode),
        "namesilo" => one!(new_namesilo),
        "netlify" => one!(new_netlify),
        "ns1" => one!(new_ns1),
        "safedns" => one!(new_safedns),
        "scaleway" => one!(new_scaleway),
        "vultr" => one!(new_vultr),
        "baiducloud" => two!(new_baiducloud),
        "constellix" => two!(new_constellix),
        "dnsimple" => two!(new_dnsimple),
        "dnsmadeeasy" => two!(new_dnsmadeeasy),
        "domeneshop" => two!(new_domeneshop),
        "easydns" => two!(new_easydns),
        "exoscale" => two!(new_exoscale),
        "glesys" => two!(new_glesys),
        "godaddy" => two!(new_godaddy),
        "ibmcloud" => two!(new_ibmcloud),
        "luadns" => two!(new_luadns),
        "mythicbeasts" => two!(new_mythicbeasts),
        "namedotcom" => two!(new_namedotcom),
        "nifcloud" => two!(new_nifcloud),
        "porkbun" => two!(new_porkbun),
        "simplycom" => two!(new_simplycom),
        "spaceship" => two!(new_spaceship),
        "websupport" => two!(new_websupport),
        "zoneeu" => two!(new_zoneeu),
        "plesk" => DnsUpdater::new_plesk(needs.required("server")?, token()?, REQUEST),
        "powerdns" => {
            let server = Some(needs.required("server")?);
            DnsUpdater::new_pdns(token()?, server, None::<&str>, REQUEST)
        }
        other => return Err(needs.settings(format!("{other} is not in this version"))),
    };
    made.map_err(|error| told(needs, &error))
}

fn told(needs: &Needs<'_>, error: &dns_update::Error) -> Error {
    let secrets = needs.credentials.data.values();
    let secrets: Vec<&str> = secrets
        .filter_map(|bytes| std::str::from_utf8(bytes).ok())
        .map(str::trim)
        .collect();
    needs.expected(cleaned(&error.to_string(), &secrets))
}

fn rfc2136(needs: &Needs<'_>) -> Result<DnsUpdater, Error> {
    let server = needs.required("server")?;
    // Signed updates with several values do not fit a datagram everywhere.
    let address = match server.parse() {
        Ok(ip) => std::net::SocketAddr::new(ip, 53),
        Err(_) => server.parse().map_err(|_| {
            needs.settings(
                "expected settings.server as an address such as 10.0.0.53 or 10.0.0.53:53",
            )
        })?,
    };
    let algorithm = match needs.setting("algorithm").as_deref() {
        None | Some("hmac-sha256") => TsigAlgorithm::HmacSha256,
        Some("hmac-sha384") => TsigAlgorithm::HmacSha384,
        Some("hmac-sha512") => TsigAlgorithm::HmacSha512,
        Some(_) => {
            return Err(needs.settings(
                "expected settings.algorithm to be hmac-sha256, hmac-sha384 or hmac-sha512",
            ));
        }
    };
    let key = BASE64_STANDARD
        .decode(needs.secret("secret")?)
        .map_err(|_| {
            needs.expected(
                "expected at key secret the TSIG key in base64, as in the server's config",
            )
        })?;
    let made = DnsUpdater::new_rfc2136_tsig(
        format!("tcp://{address}"),
        needs.required("keyName")?,
        key,
        algorithm,
    );
    made.map_err(|error| told(needs, &error))
}

fn google(needs: &Needs<'_>) -> Result<DnsUpdater, Error> {
    let json = needs.secret("service-account.json")?;
    let members: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&json).map_err(|_| {
            needs.expected(
                "expected at key service-account.json the JSON of a service account's key",
            )
        })?;
    let of_json = members.get("project_id").and_then(|it| it.as_str());
    let project = needs
        .setting("project")
        .or_else(|| of_json.map(str::to_owned));
    let made = DnsUpdater::new_google_cloud_dns(GoogleCloudDnsConfig {
        project_id: project
            .ok_or_else(|| needs.settings("expected settings.project, the key names none"))?,
        service_account_json: json,
        managed_zone: needs.setting("managedZone"),
        private_zone: false,
        impersonate_service_account: needs.setting("impersonate"),
        request_timeout: REQUEST,
    });
    made.map_err(|error| told(needs, &error))
}

fn azure(needs: &Needs<'_>) -> Result<DnsUpdater, Error> {
    let made = DnsUpdater::new_azuredns(AzureDnsConfig {
        tenant_id: needs.required("tenantId")?,
        client_id: needs.required("clientId")?,
        client_secret: needs.secret("client-secret")?,
        subscription_id: needs.required("subscriptionId")?,
        resource_group: needs.required("resourceGroup")?,
        environment: match needs.setting("environment").as_deref() {
            None | Some("public") => AzureEnvironment::Public,
            Some("china") => AzureEnvironment::China,
            Some("usgovernment") => AzureEnvironment::UsGovernment,
            Some(_) => {
                return Err(needs.settings(
                    "expected settings.environment to be public, china or usgovernment",
                ));
            }
        },
        request_timeout: REQUEST,
    });
    made.map_err(|error| told(needs, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Propagation, SUPPORTED_PROVIDERS, UNTESTED_PROVIDERS};

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
        ];
        let texts = keys.map(|key| (key, "a-b.c"));
        let texts = texts.into_iter().chain([
            ("secret", "c2VjcmV0"),
            ("service-account.json", JSON),
            ("acmedns.json", JSON),
        ]);
        let data: Data = texts
            .map(|(key, text)| (key.into(), text.as_bytes().to_vec().into()))
            .collect();
        for name in SUPPORTED_PROVIDERS.iter().chain(&UNTESTED_PROVIDERS) {
            let full = Credentials::new("ns/dns".into(), data.clone());
            if let Err(error) = Provider::new(&solver(name), &full) {
                let text = error.to_string();
                // Some look at the form of a key at once.
                assert!(text.contains("ns/dns"), "{text}");
                assert!(!text.contains("not in this version"), "{text}");
            }
            if *name == "webhook" {
                continue;
            }
            let Err(error) = Provider::new(&solver(name), &Credentials::default()) else {
                panic!("{name} takes no credentials");
            };
            assert!(
                error.to_string().contains("credentials: {secret: …}"),
                "{error}"
            );
        }
    }
}
