//! Azure DNS for a pod with a workload identity, without a client secret.
//!
//! ```text
//! projected token of the service account ──login, client assertion──► access token ──► record set: read, changed, put
//! ```
//! Azure's webhook sets the environment. A record set is put only if unchanged since it was read (`If-Match`), so that
//! no other's change is lost. With a client secret, use dns-update instead.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::identity::{Environment, is_loopback, token};
use crate::cluster::order_records::Txt;
use crate::solver::dns01::http::Endpoint;
use crate::solver::dns01::{cleaned, put, take};

const API_VERSION: &str = "2018-05-01";
/// Variables with the path of the token, and with the login endpoint.
const TOKEN_FILE: &str = "AZURE_FEDERATED_TOKEN_FILE";
const AUTHORITY: &str = "https://login.microsoftonline.com";
/// Most attempts at a record set that is modified concurrently.
const ATTEMPTS: usize = 3;

/// Azure DNS and its endpoints.
pub(in crate::solver::dns01) struct Azure {
    authority: String,
    tenant: String,
    client: String,
    token_file: String,
    management: String,
    /// Path of the resource group, without a slash at the end.
    path: String,
}

impl Azure {
    /// `setting` reads the solver's settings.
    ///
    /// # Errors
    /// What was expected.
    pub(in crate::solver::dns01) fn new(
        environment: &Environment,
        setting: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let missing = |variable: &str| {
            format!(
                "expected credentials: {{secret: …}}, or a workload identity of the pod: {variable} is not set (label \
                 azure.workload.identity/use: \"true\" of the pod, annotation azure.workload.identity/client-id of its \
                 service account)"
            )
        };
        let variable = |key: &str| environment.get(key).map(str::to_owned);
        let either = |key: &str, name: &str| {
            let found = setting(key).or_else(|| variable(name));
            found.ok_or_else(|| missing(name))
        };
        let required = |key: &str| setting(key).ok_or_else(|| format!("expected settings.{key}"));
        let management = match setting("environment").as_deref() {
            Some("china") => "https://management.chinacloudapi.cn",
            Some("usgovernment") => "https://management.usgovcloudapi.net",
            _ => "https://management.azure.com",
        };
        Ok(Self {
            token_file: variable(TOKEN_FILE).ok_or_else(|| missing(TOKEN_FILE))?,
            authority: variable("AZURE_AUTHORITY_HOST").unwrap_or_else(|| AUTHORITY.to_owned()),
            tenant: either("tenantId", "AZURE_TENANT_ID")?,
            client: either("clientId", "AZURE_CLIENT_ID")?,
            management: setting("endpoint").unwrap_or_else(|| management.to_owned()),
            path: format!(
                "/subscriptions/{}/resourceGroups/{}",
                required("subscriptionId")?,
                required("resourceGroup")?
            ),
        })
    }

    pub(in crate::solver::dns01) async fn add(&self, txt: &Txt, ttl: u32) -> Result<(), String> {
        self.change(txt, ttl, |values| put(values, &txt.value))
            .await
    }

    pub(in crate::solver::dns01) async fn remove(&self, txt: &Txt) -> Result<(), String> {
        self.change(txt, 0, |values| take(values, &txt.value)).await
    }

    async fn change(
        &self,
        txt: &Txt,
        ttl: u32,
        change: impl Fn(&mut Vec<String>) -> bool,
    ) -> Result<(), String> {
        let access = self.access_token().await?;
        let bearer = Zeroizing::new(format!("Bearer {access}"));
        let management = Endpoint::nearby(&self.management, is_loopback, |client| client)?;
        let relative = txt.at.strip_suffix(&format!(".{}", txt.zone));
        let path = format!(
            "{}/providers/Microsoft.Network/dnsZones/{}/TXT/{}?api-version={API_VERSION}",
            self.path,
            txt.zone,
            relative.unwrap_or("@")
        );
        let told = |(status, body): (StatusCode, Value)| {
            let said = body["error"]["message"]
                .as_str()
                .unwrap_or("no reason is given");
            cleaned(&format!("{status}: {said}"), &[&access])
        };
        for _ in 0..ATTEMPTS {
            let authorized = [("authorization", bearer.as_str())];
            let found = management
                .call(Method::GET, &path, &authorized, None)
                .await?;
            let (mut values, etag, ttl) = match found.0 {
                StatusCode::NOT_FOUND => (Vec::new(), None, ttl),
                status if status.is_success() => read(&found.1, ttl),
                _ => return Err(told(found)),
            };
            if !change(&mut values) {
                return Ok(());
            }
            let guard = match &etag {
                Some(etag) => ("if-match", etag.as_str()),
                None => ("if-none-match", "*"),
            };
            let headers = [authorized[0], guard];
            let answer = if values.is_empty() {
                management
                    .call(Method::DELETE, &path, &headers, None)
                    .await?
            } else {
                let records: Vec<Value> = { values.iter() }
                    .map(|value| json!({"value": [value]}))
                    .collect();
                let body = json!({"properties": {"TTL": ttl, "TXTRecords": records}});
                management
                    .call(Method::PUT, &path, &headers, Some(&body))
                    .await?
            };
            match answer.0 {
                StatusCode::PRECONDITION_FAILED => {}
                status if status.is_success() => return Ok(()),
                _ => return Err(told(answer)),
            }
        }
        Err("somebody else changes the record set all the time".to_owned())
    }

    async fn access_token(&self) -> Result<String, String> {
        let assertion = token(&self.token_file)?;
        let scope = format!("{}/.default", self.management);
        let url = format!(
            "{}/{}/oauth2/v2.0/token",
            self.authority.trim_end_matches('/'),
            self.tenant
        );
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &self.client),
            ("scope", &scope),
            (
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            ),
            ("client_assertion", &assertion),
        ];
        let answer = Endpoint::nearby(&url, is_loopback, |client| client)?;
        let answer = answer
            .form(&form)
            .await
            .map_err(|error| cleaned(&format!("logging in at {url}: {error}"), &[&assertion]))?;
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        let found = answer["access_token"].as_str().map(str::to_owned);
        found.ok_or_else(|| format!("logging in at {url}: the answer holds no access_token"))
    }
}

/// Values, version and TTL of a record set. A value of several strings is one text (RFC 1035, 3.3.14).
pub(super) fn read(set: &Value, ttl: u32) -> (Vec<String>, Option<String>, u32) {
    let records = set["properties"]["TXTRecords"].as_array();
    let text = |record: &Value| {
        let strings = record["value"].as_array()?.iter();
        Some(strings.filter_map(Value::as_str).collect::<String>())
    };
    let values = records.into_iter().flatten().filter_map(text).collect();
    let found = set["properties"]["TTL"].as_u64();
    let ttl = found.and_then(|ttl| u32::try_from(ttl).ok()).unwrap_or(ttl);
    (values, set["etag"].as_str().map(str::to_owned), ttl)
}
