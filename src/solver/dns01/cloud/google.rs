//! Google Cloud DNS for a pod with a workload identity: the metadata server gives an access token, and no service
//! account key is needed.
//!
//! A change of a record set contains what was read: Google refuses it if that is not what is there, so that no other's
//! change is lost. With a service account key, use dns-update instead.

use reqwest::{ClientBuilder, Method, StatusCode};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::identity::{Environment, is_loopback};
use crate::cluster::order_records::Txt;
use crate::solver::dns01::http::Endpoint;
use crate::solver::dns01::{cleaned, put, take};

/// The metadata server, by its name and by its address.
const METADATA: [&str; 2] = ["metadata.google.internal", "169.254.169.254"];
const FLAVOR: (&str, &str) = ("metadata-flavor", "Google");
const DNS: &str = "https://dns.googleapis.com";
/// Most attempts at a record set that is modified concurrently.
const ATTEMPTS: usize = 3;

/// Google Cloud DNS and its endpoints.
pub(in crate::solver::dns01) struct Google {
    metadata: String,
    dns: String,
    project: Option<String>,
    managed_zone: Option<String>,
}

impl Google {
    /// `setting` reads the solver's settings.
    pub(in crate::solver::dns01) fn new(
        environment: &Environment,
        setting: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let host = environment.get("GCE_METADATA_HOST").unwrap_or(METADATA[0]);
        Self {
            metadata: format!("http://{host}/computeMetadata/v1"),
            dns: setting("endpoint").unwrap_or_else(|| DNS.to_owned()),
            project: setting("project"),
            managed_zone: setting("managedZone"),
        }
    }

    pub(in crate::solver::dns01) async fn add(&self, txt: &Txt, ttl: u32) -> Result<(), String> {
        let value = quoted(&txt.value);
        self.change(txt, ttl, |values| put(values, &value)).await
    }

    pub(in crate::solver::dns01) async fn remove(&self, txt: &Txt) -> Result<(), String> {
        let value = quoted(&txt.value);
        self.change(txt, 0, |values| take(values, &value)).await
    }

    async fn change(
        &self,
        txt: &Txt,
        ttl: u32,
        change: impl Fn(&mut Vec<String>) -> bool,
    ) -> Result<(), String> {
        let token = self.ask("/instance/service-accounts/default/token").await?;
        let token: Value = serde_json::from_str(&token).unwrap_or_default();
        let access = token["access_token"].as_str();
        let access = access.ok_or("the metadata server gave no access_token")?;
        let project = match &self.project {
            Some(project) => project.clone(),
            None => self.ask("/project/project-id").await?.trim().to_owned(),
        };
        let dns = Endpoint::nearby(&self.dns, is_loopback, |client| client)?;
        let bearer = Zeroizing::new(format!("Bearer {access}"));
        let headers = [("authorization", bearer.as_str())];
        let told = |(status, body): &(StatusCode, Value)| {
            let said = body["error"]["message"]
                .as_str()
                .unwrap_or("no reason is given");
            cleaned(&format!("{status}: {said}"), &[access])
        };
        let zones = format!("/dns/v1/projects/{project}/managedZones");
        let zone = match &self.managed_zone {
            Some(zone) => zone.clone(),
            None => {
                let path = format!("{zones}?dnsName={}.", txt.zone);
                let found = dns.call(Method::GET, &path, &headers, None).await?;
                if !found.0.is_success() {
                    return Err(told(&found));
                }
                public_zone(&found.1).ok_or_else(|| {
                    format!(
                        "project {project} has no public managed zone for {}",
                        txt.zone
                    )
                })?
            }
        };
        let sets = format!("{zones}/{zone}/rrsets?name={}.&type=TXT", txt.at);
        for _ in 0..ATTEMPTS {
            let found = dns.call(Method::GET, &sets, &headers, None).await?;
            if !found.0.is_success() {
                return Err(told(&found));
            }
            let old = found.1["rrsets"].get(0).cloned();
            let texts = old.as_ref().and_then(|old| old["rrdatas"].as_array());
            let texts = texts.into_iter().flatten().filter_map(Value::as_str);
            let mut values: Vec<String> = texts.map(str::to_owned).collect();
            if !change(&mut values) {
                return Ok(());
            }
            let mut body = json!({});
            if !values.is_empty() {
                let kept = old.as_ref().and_then(|old| old["ttl"].as_u64());
                body["additions"] = json!([{
                    "name": format!("{}.", txt.at), "type": "TXT", "ttl": kept.unwrap_or_else(|| ttl.into()),
                    "rrdatas": values,
                }]);
            }
            if let Some(old) = old {
                body["deletions"] = json!([old]);
            }
            let path = format!("{zones}/{zone}/changes");
            let answer = dns.call(Method::POST, &path, &headers, Some(&body)).await?;
            match answer.0 {
                StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => {}
                status if status.is_success() => return Ok(()),
                _ => return Err(told(&answer)),
            }
        }
        Err("somebody else changes the record set all the time".to_owned())
    }

    async fn ask(&self, path: &str) -> Result<String, String> {
        let url = format!("{}{path}", self.metadata);
        let endpoint = Endpoint::nearby(&url, is_metadata, ClientBuilder::no_proxy)?;
        endpoint.get(&[FLAVOR]).await.map_err(|error| {
            format!(
                "expected credentials: {{secret: …}}, or a workload identity of the pod; {url}: {error}"
            )
        })
    }
}

fn is_metadata(host: &str) -> bool {
    METADATA.contains(&host) || is_loopback(host)
}

/// A TXT value in Google's notation; ours are base64url.
fn quoted(value: &str) -> String {
    format!("\"{value}\"")
}

/// The public zone; a private one may have the same name.
pub(super) fn public_zone(list: &Value) -> Option<String> {
    let zones = list["managedZones"].as_array()?.iter();
    let mut public = zones.filter(|zone| zone["visibility"] != "private");
    Some(public.next()?["name"].as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_zone_of_the_same_name_is_not_taken() {
        let zones = json!({"managedZones": [
            {"name": "inside", "visibility": "private"}, {"name": "outside", "visibility": "public"},
        ]});
        assert_eq!(public_zone(&zones).as_deref(), Some("outside"));
        assert_eq!(public_zone(&json!({"managedZones": []})), None);
        assert!(is_metadata("169.254.169.254") && !is_metadata("169.254.169.254.example"));
    }
}
