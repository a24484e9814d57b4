//! Stand-ins for the clouds that know a pod by its identity, each with one zone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::routing::{any, get, post};
use dns_update::{DnsRecord, DnsRecordType, DnsUpdater};
use serde_json::{Value, json};
use test_bench::Result;
use tokio::net::TcpListener;

use crate::dns01::{updater, values};

pub(super) const TOKEN: &str = "the-token-of-the-service-account";
pub(super) const SESSION: &str = "a+session/token==";
pub(super) const ROLE: &str = "arn:aws:iam::123456789012:role/dns";

/// A cloud, as far as it is asked: it gives credentials to a client with the pod's token, and its DNS takes them; the
/// one zone is served by Knot.
struct Cloud {
    server: SocketAddr,
    zone: &'static str,
    updater: DnsUpdater,
}

fn signed(headers: &HeaderMap) -> bool {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default()
    };
    text("authorization").contains("Credential=AKIDPOD/") && text("x-amz-security-token") == SESSION
}

/// The text between two marks.
fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(text.split_once(start)?.1.split_once(end)?.0)
}

async fn sts(body: String) -> (StatusCode, String) {
    let form: BTreeMap<String, String> = form_urlencoded::parse(body.as_bytes())
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect();
    let is = |key: &str, value: &str| form.get(key).is_some_and(|found| found == value);
    if !is("Action", "AssumeRoleWithWebIdentity") || !is("Version", "2011-06-15") {
        return (StatusCode::BAD_REQUEST, "<Message>what?</Message>".into());
    }
    if !is("RoleArn", ROLE) || !is("WebIdentityToken", TOKEN) {
        let said = format!(
            "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not you: {body}</Message></Error></ErrorResponse>"
        );
        return (StatusCode::FORBIDDEN, said);
    }
    let answer = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>AKIDPOD</AccessKeyId>\
         <SecretAccessKey>sEcReT/key</SecretAccessKey><SessionToken>{SESSION}</SessionToken>\
         <Expiration>2036-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
         </AssumeRoleWithWebIdentityResponse>"
    );
    (StatusCode::OK, answer)
}

async fn agent(headers: HeaderMap) -> (StatusCode, String) {
    if headers.get("authorization").is_none_or(|it| it != TOKEN) {
        return (StatusCode::UNAUTHORIZED, "who are you?".into());
    }
    let answer = json!({
        "AccessKeyId": "AKIDPOD", "SecretAccessKey": "sEcReT/key", "Token": SESSION,
        "Expiration": "2036-01-01T00:00:00Z",
    });
    (StatusCode::OK, answer.to_string())
}

async fn hosted_zones(State(cloud): State<Arc<Cloud>>, headers: HeaderMap) -> (StatusCode, String) {
    if !signed(&headers) {
        return (StatusCode::FORBIDDEN, "signed by another".into());
    }
    let zone = cloud.zone;
    // What no CA sees: changes to these are refused.
    let private = |id: &str, name: &str| {
        format!(
            "<HostedZone><Id>/hostedzone/{id}</Id><Name>{name}.</Name><CallerReference>x</CallerReference>\
             <Config><PrivateZone>true</PrivateZone></Config><ResourceRecordSetCount>3</ResourceRecordSetCount>\
             </HostedZone>"
        )
    };
    let hidden = match zone {
        "split.example" => private("Z8", zone) + &private("Z9", &format!("a.{zone}")),
        _ => String::new(),
    };
    let answer = format!(
        "<ListHostedZonesByNameResponse><HostedZones>{hidden}<HostedZone><Id>/hostedzone/Z1</Id><Name>{zone}.</Name>\
         <CallerReference>x</CallerReference><Config><PrivateZone>false</PrivateZone></Config>\
         <ResourceRecordSetCount>3</ResourceRecordSetCount></HostedZone></HostedZones><IsTruncated>false</IsTruncated>\
         <MaxItems>100</MaxItems></ListHostedZonesByNameResponse>"
    );
    (StatusCode::OK, answer)
}

async fn records(
    State(cloud): State<Arc<Cloud>>,
    uri: Uri,
    headers: HeaderMap,
) -> (StatusCode, String) {
    if !signed(&headers) {
        return (StatusCode::FORBIDDEN, "signed by another".into());
    }
    let query = uri.query().unwrap_or_default().as_bytes();
    let mut asked = form_urlencoded::parse(query);
    let name = asked.find(|(key, _)| key == "name");
    let name = name
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default();
    let found = values(cloud.server, name.trim_end_matches('.'))
        .await
        .unwrap_or_default();
    let values: String = found
        .iter()
        .map(|value| format!("<ResourceRecord><Value>\"{value}\"</Value></ResourceRecord>"))
        .collect();
    let set = if found.is_empty() {
        String::new()
    } else {
        format!(
            "<ResourceRecordSet><Name>{name}</Name><Type>TXT</Type><TTL>60</TTL><ResourceRecords>{values}\
             </ResourceRecords></ResourceRecordSet>"
        )
    };
    let answer = format!(
        "<ListResourceRecordSetsResponse><ResourceRecordSets>{set}</ResourceRecordSets><IsTruncated>false</IsTruncated>\
         <MaxItems>300</MaxItems></ListResourceRecordSetsResponse>"
    );
    (StatusCode::OK, answer)
}

async fn change(
    State(cloud): State<Arc<Cloud>>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    if !signed(&headers) {
        return (StatusCode::FORBIDDEN, "signed by another".into());
    }
    let name = between(&body, "<Name>", "</Name>").unwrap_or_default();
    let wanted = body.split("<Value>").skip(1);
    let wanted = wanted.filter_map(|it| Some(it.split_once("</Value>")?.0.replace("&quot;", "\"")));
    let records: Vec<_> = wanted
        .map(|value| DnsRecord::TXT(value.trim_matches('"').to_owned()))
        .collect();
    let records = if body.contains("<Action>DELETE</Action>") {
        Vec::new()
    } else {
        records
    };
    let kind = DnsRecordType::TXT;
    let set = cloud.updater.set_rrset(name, kind, 60, records, cloud.zone);
    match set.await {
        Ok(()) => (StatusCode::OK, "<ChangeResourceRecordSetsResponse/>".into()),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()),
    }
}

/// The values that a request leaves at a name.
async fn set(cloud: &Cloud, name: &str, values: Vec<String>) -> StatusCode {
    let records = values.into_iter().map(DnsRecord::TXT).collect();
    let kind = DnsRecordType::TXT;
    let set = cloud.updater.set_rrset(name, kind, 60, records, cloud.zone);
    set.await
        .map_or(StatusCode::BAD_GATEWAY, |()| StatusCode::OK)
}

fn bears(headers: &HeaderMap) -> bool {
    headers
        .get("authorization")
        .is_some_and(|it| *it == format!("Bearer {SESSION}"))
}

async fn azure_login(body: String) -> (StatusCode, String) {
    let form: BTreeMap<String, String> = form_urlencoded::parse(body.as_bytes())
        .into_owned()
        .collect();
    let is = |key: &str, value: &str| form.get(key).is_some_and(|found| found == value);
    let jwt = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    if is("client_assertion", TOKEN)
        && is("client_assertion_type", jwt)
        && is("client_id", "client")
    {
        return (StatusCode::OK, json!({"access_token": SESSION}).to_string());
    }
    (StatusCode::BAD_REQUEST, format!("not you: {body}"))
}

fn etag(values: &[String]) -> String {
    format!("{values:?}")
}

async fn azure_set(
    State(cloud): State<Arc<Cloud>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    if !bears(&headers) || uri.query() != Some("api-version=2018-05-01") {
        let said = json!({"error": {"message": "not you"}});
        return (StatusCode::UNAUTHORIZED, said.to_string());
    }
    let relative = uri.path().rsplit('/').next().unwrap_or_default();
    let name = format!("{relative}.{}", cloud.zone);
    let found = values(cloud.server, &name).await.unwrap_or_default();
    if method == Method::GET {
        if found.is_empty() {
            return (StatusCode::NOT_FOUND, "{}".into());
        }
        let records: Vec<_> = found
            .iter()
            .map(|value| json!({"value": [value]}))
            .collect();
        let set = json!({"etag": etag(&found), "properties": {"TTL": 60, "TXTRecords": records}});
        return (StatusCode::OK, set.to_string());
    }
    let text = |name: &str| headers.get(name).and_then(|it| it.to_str().ok());
    let as_read = match text("if-match") {
        Some(version) => version == etag(&found),
        None => text("if-none-match") == Some("*") && found.is_empty(),
    };
    if !as_read {
        return (StatusCode::PRECONDITION_FAILED, "{}".into());
    }
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    let records = body["properties"]["TXTRecords"].as_array().cloned();
    let wanted = records.unwrap_or_default().into_iter();
    let wanted = wanted.filter_map(|it| Some(it["value"][0].as_str()?.to_owned()));
    (set(&cloud, &name, wanted.collect()).await, "{}".into())
}

async fn google_metadata(uri: Uri, headers: HeaderMap) -> (StatusCode, String) {
    if headers
        .get("metadata-flavor")
        .is_none_or(|it| it != "Google")
    {
        return (StatusCode::FORBIDDEN, "not you".into());
    }
    let said = match uri.path() {
        "/computeMetadata/v1/project/project-id" => "shop".to_owned(),
        _ => json!({"access_token": SESSION}).to_string(),
    };
    (StatusCode::OK, said)
}

fn google_rrset(name: &str, values: &[String]) -> Value {
    let values: Vec<_> = values.iter().map(|value| format!("\"{value}\"")).collect();
    json!({"name": name, "type": "TXT", "ttl": 60, "rrdatas": values})
}

async fn google_dns(
    State(cloud): State<Arc<Cloud>>,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    if !bears(&headers) {
        let said = json!({"error": {"message": "not you"}});
        return (StatusCode::UNAUTHORIZED, said.to_string());
    }
    let query = uri.query().unwrap_or_default();
    let path = uri.path();
    if path == "/dns/v1/projects/shop/managedZones" && query == format!("dnsName={}.", cloud.zone) {
        let zones = json!({"managedZones": [{"name": "z", "visibility": "public"}]});
        return (StatusCode::OK, zones.to_string());
    }
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    let changed = [&body["additions"][0], &body["deletions"][0]];
    let changed = changed.iter().find_map(|it| it["name"].as_str());
    let name = changed
        .or_else(|| between(query, "name=", "&"))
        .unwrap_or_default();
    let found = values(cloud.server, name.trim_end_matches('.'))
        .await
        .unwrap_or_default();
    let present = google_rrset(name, &found);
    if path == "/dns/v1/projects/shop/managedZones/z/rrsets" {
        let sets = if found.is_empty() {
            json!([])
        } else {
            json!([present])
        };
        return (StatusCode::OK, json!({"rrsets": sets}).to_string());
    }
    let expected = if found.is_empty() {
        Value::Null
    } else {
        present
    };
    if path != "/dns/v1/projects/shop/managedZones/z/changes" || body["deletions"][0] != expected {
        return (StatusCode::PRECONDITION_FAILED, "{}".into());
    }
    let wanted = body["additions"][0]["rrdatas"].as_array().cloned();
    let wanted = wanted.unwrap_or_default().into_iter();
    let wanted = wanted.filter_map(|it| Some(it.as_str()?.trim_matches('"').to_owned()));
    (
        set(&cloud, name.trim_end_matches('.'), wanted.collect()).await,
        "{}".into(),
    )
}

pub(super) async fn cloud(server: SocketAddr, zone: &'static str) -> Result<SocketAddr> {
    let updater = updater(server)?;
    let cloud = Cloud {
        server,
        zone,
        updater,
    };
    let router = Router::new()
        .route("/sts", post(sts))
        .route("/agent", get(agent))
        .route("/2013-04-01/hostedzonesbyname", get(hosted_zones))
        .route("/2013-04-01/hostedzone/Z1/rrset", get(records).post(change))
        .route("/tenant/oauth2/v2.0/token", post(azure_login))
        .route("/subscriptions/{*path}", any(azure_set))
        .route("/computeMetadata/v1/{*path}", get(google_metadata))
        .route("/dns/v1/{*path}", any(google_dns))
        .with_state(Arc::new(cloud));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}
