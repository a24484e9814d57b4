//! Which providers host zones for DNS-01, and the settings of each.

use crate::text::similar;

/// DNS providers that are supported: each is tested, or is the general way for other hosts.
pub const SUPPORTED_PROVIDERS: [&str; 20] = [
    "acme-dns",
    "azure",
    "cloudflare",
    "desec",
    "digitalocean",
    "duckdns",
    "gandi",
    "godaddy",
    "google",
    "hetzner",
    "infoblox",
    "linode",
    "ovh",
    "plesk",
    "porkbun",
    "powerdns",
    "rfc2136",
    "route53",
    "vultr",
    "webhook",
];

/// Of these, the providers that may be used without credentials: a cloud gives a pod an identity, and a webhook may ask
/// for none.
pub(super) const WITHOUT_CREDENTIALS: [&str; 4] = ["azure", "google", "route53", "webhook"];

/// DNS providers of dns-update that are untested here.
pub const UNTESTED_PROVIDERS: [&str; 55] = [
    "alidns",
    "arvancloud",
    "autodns",
    "baiducloud",
    "bluecatv2",
    "bunny",
    "cloudns",
    "constellix",
    "cpanel",
    "ddnss",
    "dnsimple",
    "dnsmadeeasy",
    "domeneshop",
    "dreamhost",
    "dynu",
    "easydns",
    "edgedns",
    "exoscale",
    "freemyip",
    "gcore",
    "glesys",
    "hostingde",
    "hostinger",
    "huaweicloud",
    "hurricane",
    "ibmcloud",
    "infomaniak",
    "inwx",
    "ionos",
    "ipv64",
    "joker",
    "lightsail",
    "luadns",
    "mythicbeasts",
    "namecheap",
    "namedotcom",
    "namesilo",
    "netcup",
    "netlify",
    "nifcloud",
    "ns1",
    "oraclecloud",
    "safedns",
    "scaleway",
    "selectel",
    "simplycom",
    "spaceship",
    "tencentcloud",
    "transip",
    "ultradns",
    "vercel",
    "volcengine",
    "websupport",
    "yandexcloud",
    "zoneeu",
];

/// The settings that a provider may and must have.
pub(super) fn settings_of(provider: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match provider {
        "rfc2136" => (&["server", "keyName"], &["algorithm"]),
        "route53" => (
            &[],
            &["region", "hostedZoneId", "role", "endpoint", "stsEndpoint"],
        ),
        "google" => (&[], &["project", "managedZone", "impersonate", "endpoint"]),
        "azure" => (
            &["subscriptionId", "resourceGroup"],
            &["tenantId", "clientId", "environment", "endpoint"],
        ),
        "acme-dns" => (&["server"], &["caBundle"]),
        "cpanel" | "plesk" | "powerdns" => (&["server"], &[]),
        "alidns" => (&[], &["region", "line"]),
        "autodns" => (&[], &["context"]),
        "bluecatv2" => (&["server", "configuration", "view"], &[]),
        "edgedns" => (&["server"], &["accountSwitchKey"]),
        "huaweicloud" => (&["region"], &[]),
        "infoblox" => (&["server"], &["view", "wapiVersion"]),
        "lightsail" => (&[], &["region", "domain"]),
        "namecheap" => (&["clientIp"], &["userName"]),
        "netcup" => (&["customerNumber"], &[]),
        "oraclecloud" => (
            &["tenancy", "user", "fingerprint", "region", "compartment"],
            &[],
        ),
        "ovh" => (&[], &["endpoint"]),
        "selectel" => (&["accountId", "projectId"], &[]),
        "tencentcloud" | "volcengine" => (&[], &["region"]),
        "transip" => (&[], &["globalKey"]),
        "ultradns" => (&[], &["server"]),
        "vercel" => (&[], &["teamId"]),
        "yandexcloud" => (&["folderId"], &[]),
        "webhook" => (&["url"], &["caBundle"]),
        _ => (&[], &[]),
    }
}

/// The name of a provider.
///
/// # Errors
/// When there is no provider of this name.
pub(super) fn provider(text: &str) -> Result<String, String> {
    let known = SUPPORTED_PROVIDERS.iter().chain(&UNTESTED_PROVIDERS);
    if known.clone().copied().any(|known| known == text) {
        return Ok(text.to_string());
    }
    Err(format!(
        "expected a DNS provider ({}, or one of the untested in docs/configuration.md){}",
        SUPPORTED_PROVIDERS.join(", "),
        similar::question(text, known.copied())
    ))
}
