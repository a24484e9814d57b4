//! The hosts of zones that dns-update supports, each with its settings and its Secret. Pure, except for the changes.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cert_renew_core::text::error_chain;
use dns_update::DnsUpdater;
use dns_update::providers::azuredns::{AzureDnsConfig, AzureEnvironment};
use dns_update::providers::bluecatv2::BluecatV2Config;
use dns_update::providers::edgedns::EdgeDnsConfig;
use dns_update::providers::google_cloud_dns::GoogleCloudDnsConfig;
use dns_update::providers::infoblox::InfobloxConfig;
use dns_update::providers::joker::JokerAuth;
use dns_update::providers::lightsail::LightsailConfig;
use dns_update::providers::oraclecloud::OracleCloudConfig;
use dns_update::providers::route53::Route53Config;
use dns_update::providers::volcengine::VolcengineConfig;
use dns_update::providers::yandexcloud::YandexCloudConfig;

use super::needs::{ACCESS_KEY_ID, Needs, SECRET_ACCESS_KEY, SESSION_TOKEN};
use super::{Error, cleaned};

/// Longest request to a host; a change takes several at some.
const REQUEST: Option<Duration> = Some(Duration::from_secs(20));

/// Hosts that refuse a shorter TTL than this, which dns-update does not know.
const LONGER: [(&str, u32); 2] = [("godaddy", 600), ("porkbun", 600)];

/// Hosts that hold one value at a name and list none: a new value replaces the former one.
pub(super) const ONE_VALUE: [&str; 3] = ["ddnss", "duckdns", "hurricane"];

/// Why dns-update cannot make a client in this process: it trusts only the machine's roots, and panics where there are
/// none.
static HTTPS_CLIENT: LazyLock<Result<(), String>> = LazyLock::new(|| {
    let made = reqwest::Client::builder().build();
    made.map(drop).map_err(|error| error_chain(&error))
});

/// The TTL of a record at this host: `wanted`, if the host accepts it.
pub(super) fn ttl(provider: &str, wanted: u32) -> u32 {
    let longer = LONGER.iter().find(|(name, _)| *name == provider);
    longer.map_or(wanted, |(_, least)| wanted.max(*least))
}

/// The client for the host that the solver names.
///
/// # Errors
/// When something is missing, or does not have the form that the host gives it.
pub(super) fn updater(needs: &Needs<'_>) -> Result<DnsUpdater, Error> {
    let token = || needs.secret("token");
    let pair = || Ok::<_, Error>((needs.secret("key")?, needs.secret("secret")?));
    let aws = || {
        Ok::<_, Error>((
            needs.secret(ACCESS_KEY_ID)?,
            needs.secret(SECRET_ACCESS_KEY)?,
            needs.optional(SESSION_TOKEN),
        ))
    };
    // For hosts that take one or two texts.
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
    if let Err(why) = &*HTTPS_CLIENT {
        return Err(needs.settings(format!(
            "no HTTPS client can be made ({why}): expected a PEM file with the public root certificates at \
             /etc/ssl/certs/ca-certificates.crt, or where the environment variable SSL_CERT_FILE says"
        )));
    }
    let made = match needs.solver.provider.as_str() {
        "route53" => {
            let (access_key_id, secret_access_key, session_token) = aws()?;
            DnsUpdater::new_route53(Route53Config {
                access_key_id,
                secret_access_key,
                session_token,
                region: needs.setting("region"),
                hosted_zone_id: needs.setting("hostedZoneId"),
                private_zone_only: None,
                endpoint: needs.setting("endpoint"),
            })
        }
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
        "cloudns" => {
            let auth_id = needs.optional("key");
            let sub_auth_id = needs.optional("sub-auth-id");
            if auth_id.is_none() && sub_auth_id.is_none() {
                return Err(needs.expected("expected text at key key, or at sub-auth-id"));
            }
            DnsUpdater::new_cloudns(auth_id, sub_auth_id, needs.secret("secret")?, REQUEST)
        }
        "alidns" => {
            let (key, secret) = pair()?;
            let region = needs.setting("region");
            let token = needs.optional(SESSION_TOKEN);
            DnsUpdater::new_alidns(key, secret, region, token, needs.setting("line"), REQUEST)
        }
        "autodns" => {
            let (key, secret) = pair()?;
            let context = needs.setting("context").map(|it| it.parse());
            let context = context
                .transpose()
                .map_err(|_| needs.settings("expected settings.context to be a number"))?;
            DnsUpdater::new_autodns(key, secret, context, REQUEST)
        }
        "bluecatv2" => {
            let (username, password) = pair()?;
            DnsUpdater::new_bluecatv2(BluecatV2Config {
                server_url: needs.required("server")?,
                username,
                password,
                config_name: needs.required("configuration")?,
                view_name: needs.required("view")?,
                skip_deploy: false,
                request_timeout: REQUEST,
            })
        }
        "cpanel" => {
            let (user, token) = pair()?;
            DnsUpdater::new_cpanel(needs.required("server")?, user, token, REQUEST)
        }
        "edgedns" => DnsUpdater::new_edgedns(EdgeDnsConfig {
            host: needs.required("server")?,
            client_token: needs.secret("client-token")?,
            client_secret: needs.secret("client-secret")?,
            access_token: needs.secret("access-token")?,
            account_switch_key: needs.setting("accountSwitchKey"),
            request_timeout: REQUEST,
        }),
        "huaweicloud" => {
            let (key, secret) = pair()?;
            DnsUpdater::new_huaweicloud(key, secret, needs.required("region")?, REQUEST)
        }
        "hurricane" => {
            let json = needs.secret("hurricane.json")?;
            let keys = serde_json::from_str(&json).map_err(|_| {
                needs.expected("expected at key hurricane.json the keys by zone, as JSON")
            })?;
            DnsUpdater::new_hurricane(keys, REQUEST)
        }
        "infoblox" => {
            let (username, password) = pair()?;
            DnsUpdater::new_infoblox(InfobloxConfig {
                host: needs.required("server")?,
                port: None,
                username,
                password,
                wapi_version: needs.setting("wapiVersion"),
                dns_view: needs.setting("view"),
                request_timeout: REQUEST,
            })
        }
        "inwx" => {
            let (user, password) = pair()?;
            DnsUpdater::new_inwx(user, password, false, REQUEST)
        }
        "joker" => {
            let auth = match needs.optional("token") {
                Some(token) => JokerAuth::api_key(token),
                None => {
                    let (user, password) = pair()?;
                    JokerAuth::username_password(user, password)
                }
            };
            DnsUpdater::new_joker(auth, REQUEST)
        }
        "lightsail" => {
            let (access_key_id, secret_access_key, session_token) = aws()?;
            DnsUpdater::new_lightsail(LightsailConfig {
                access_key_id,
                secret_access_key,
                session_token,
                region: needs.setting("region"),
                domain: needs.setting("domain"),
                request_timeout: REQUEST,
            })
        }
        "namecheap" => {
            let (user, key) = pair()?;
            let client_ip = needs.required("clientIp")?;
            DnsUpdater::new_namecheap(user, key, client_ip, needs.setting("userName"), REQUEST)
        }
        "netcup" => {
            let (key, password) = pair()?;
            let customer = needs.required("customerNumber")?;
            DnsUpdater::new_netcup(customer, key, password, REQUEST)
        }
        "oraclecloud" => DnsUpdater::new_oraclecloud(OracleCloudConfig {
            tenancy_ocid: needs.required("tenancy")?,
            user_ocid: needs.required("user")?,
            fingerprint: needs.required("fingerprint")?,
            private_key_pem: needs.secret("private-key")?,
            private_key_password: needs.optional("private-key-password"),
            region: needs.required("region")?,
            compartment_ocid: needs.required("compartment")?,
            request_timeout: REQUEST,
        }),
        "ovh" => {
            let (key, secret) = pair()?;
            let endpoint = needs.setting("endpoint");
            let endpoint = endpoint.as_deref().unwrap_or("ovh-eu").parse();
            let endpoint = endpoint.map_err(|_: dns_update::Error| {
                needs.settings(
                    "expected settings.endpoint to be ovh-eu, ovh-us, ovh-ca, kimsufi-eu, kimsufi-ca, soyoustart-eu \
                     or soyoustart-ca",
                )
            })?;
            DnsUpdater::new_ovh(
                key,
                secret,
                needs.secret("consumer-key")?,
                endpoint,
                REQUEST,
            )
        }
        "selectel" => {
            let (user, password) = pair()?;
            let (account, project) = (needs.required("accountId")?, needs.required("projectId")?);
            DnsUpdater::new_selectel(user, password, account, project, REQUEST)
        }
        "tencentcloud" => {
            let (id, key) = pair()?;
            let token = needs.optional(SESSION_TOKEN);
            DnsUpdater::new_tencentcloud(id, key, needs.setting("region"), token, REQUEST)
        }
        "transip" => {
            let is_global = needs.setting("globalKey").is_some_and(|it| it == "true");
            let (login, key) = (needs.secret("key")?, needs.secret("private-key")?);
            DnsUpdater::new_transip(login, key, is_global, REQUEST)
        }
        "ultradns" => {
            let (user, password) = pair()?;
            DnsUpdater::new_ultradns(user, password, needs.setting("server"), REQUEST)
        }
        "vercel" => DnsUpdater::new_vercel(token()?, needs.setting("teamId"), REQUEST),
        "volcengine" => {
            let (access_key, secret_key) = pair()?;
            DnsUpdater::new_volcengine(VolcengineConfig {
                access_key,
                secret_key,
                region: needs.setting("region"),
                host: None,
                scheme: None,
                request_timeout: REQUEST,
            })
        }
        "yandexcloud" => DnsUpdater::new_yandexcloud(YandexCloudConfig {
            iam_token_b64: BASE64_STANDARD.encode(needs.secret("service-account.json")?),
            folder_id: needs.required("folderId")?,
            request_timeout: REQUEST,
        }),
        other => return Err(needs.settings(format!("{other} is not in this version"))),
    };
    made.map_err(|error| told(needs, &error))
}

pub(super) fn told(needs: &Needs<'_>, error: &dns_update::Error) -> Error {
    let secrets = needs.credentials.data.values();
    let secrets: Vec<&str> = secrets
        .filter_map(|bytes| std::str::from_utf8(bytes).ok())
        .map(str::trim)
        .collect();
    needs.expected(cleaned(&error.to_string(), &secrets))
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
