//! The hosted zone of Route 53 for a record, where the config does not name it: the public one of the zone's name.
//!
//! An account may have a private zone of the same name, or of one below it, which no CA sees. dns-update takes the
//! first of the longest name, so the zone is looked up here, in one signed request (AWS Signature Version 4).

use std::borrow::Cow;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use cert_renew_core::config::Dns01;
use cert_renew_core::text::hash::hexadecimal;
use jiff::Timestamp;

use super::aws::element;
use crate::solver::dns01::http::Endpoint;
use crate::solver::dns01::needs::{
    ACCESS_KEY_ID, HostCredentials, SECRET_ACCESS_KEY, SESSION_TOKEN,
};

/// Endpoint without a setting.
const ENDPOINT: &str = "https://route53.amazonaws.com";
/// Region of the signatures without a setting.
const REGION: &str = "us-east-1";
const PATH: &str = "/2013-04-01/hostedzonesbyname";
/// Most zones of the answer: zones of the same name come first, each with some 350 bytes.
const MOST_ZONES: usize = 30;
const ZONE_ID: &str = "hostedZoneId";

/// The solver with the hosted zone for records of `zone`; unchanged where that is set, or cannot be found.
pub(in crate::solver::dns01) async fn with_zone<'a>(
    solver: &'a Dns01,
    zone: &str,
    credentials: &HostCredentials,
) -> Cow<'a, Dns01> {
    if solver.provider != "route53" || solver.settings.contains_key(ZONE_ID) {
        return Cow::Borrowed(solver);
    }
    match public_zone(solver, zone, credentials).await {
        Ok(Some(id)) => {
            let mut solver = solver.clone();
            solver.settings.insert(ZONE_ID.to_owned(), id);
            Cow::Owned(solver)
        }
        Ok(None) => Cow::Borrowed(solver),
        Err(why) => {
            tracing::debug!(zone, why, "which hosted zone is public is not known");
            Cow::Borrowed(solver)
        }
    }
}

async fn public_zone(
    solver: &Dns01,
    zone: &str,
    credentials: &HostCredentials,
) -> Result<Option<String>, String> {
    // A name that would need escaping is no name of a hosted zone.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let keys = credentials
        .text(ACCESS_KEY_ID)
        .zip(credentials.text(SECRET_ACCESS_KEY));
    let Some((id, secret)) = keys.filter(|_| zone.bytes().all(is_plain)) else {
        return Ok(None);
    };
    let setting = |key: &str| solver.settings.get(key).map(String::as_str);
    let endpoint = setting("endpoint")
        .unwrap_or(ENDPOINT)
        .trim_end_matches('/');
    let (_, host) = endpoint.split_once("://").unwrap_or_default();
    let token = credentials.text(SESSION_TOKEN);
    let date = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let query = format!("dnsname={zone}&maxitems={MOST_ZONES}");
    let request = Request {
        host,
        path: PATH,
        query: &query,
        date: &date,
        token: token.as_deref(),
        region: setting("region").unwrap_or(REGION),
        service: "route53",
    };
    let authorization = request.authorization(&id, &secret);
    let mut headers = vec![("x-amz-date", &*date), ("authorization", &*authorization)];
    headers.extend(token.as_deref().map(|it| ("x-amz-security-token", it)));
    let url = format!("{endpoint}{PATH}?{query}");
    let answer = Endpoint::new(("endpoint", &url), None)?
        .get(&headers)
        .await?;
    Ok(public(&answer, zone))
}

/// The public zone of exactly this name in a list of hosted zones.
pub(super) fn public(xml: &str, zone: &str) -> Option<String> {
    let zones = xml.split("<HostedZone>").skip(1);
    let mut zones = zones.filter(|it| {
        let name = element(it, "Name").unwrap_or_default();
        name.trim_end_matches('.').eq_ignore_ascii_case(zone)
            && element(it, "PrivateZone") == Some("false")
    });
    let id = element(zones.next()?, "Id")?;
    Some(id.trim_start_matches("/hostedzone/").to_owned())
}

/// A GET without a body, to be signed.
struct Request<'a> {
    host: &'a str,
    path: &'a str,
    query: &'a str,
    /// The value of the header `x-amz-date`.
    date: &'a str,
    token: Option<&'a str>,
    region: &'a str,
    service: &'a str,
}

impl Request<'_> {
    /// The header `Authorization`.
    fn authorization(&self, id: &str, secret: &str) -> String {
        let Self {
            host,
            path,
            query,
            date,
            token,
            region,
            service,
        } = self;
        let hash = |text: &str| hexadecimal(digest(&SHA256, text.as_bytes()).as_ref());
        let (mut headers, mut names) = (
            format!("host:{host}\nx-amz-date:{date}\n"),
            "host;x-amz-date".to_owned(),
        );
        if let Some(token) = token {
            headers += &format!("x-amz-security-token:{token}\n");
            names += ";x-amz-security-token";
        }
        let body = hash("");
        let canonical = format!("GET\n{path}\n{query}\n{headers}\n{names}\n{body}");
        let day = date.get(..8).unwrap_or_default();
        let scope = format!("{day}/{region}/{service}/aws4_request");
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hash(&canonical));
        let step = |key: &[u8], text: &str| sign(&Key::new(HMAC_SHA256, key), text.as_bytes());
        let mut key = step(format!("AWS4{secret}").as_bytes(), day);
        for part in [region, service, "aws4_request"] {
            key = step(key.as_ref(), part);
        }
        let signature = hexadecimal(step(key.as_ref(), &text).as_ref());
        format!(
            "AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_signed_as_in_the_examples_of_aws() {
        // `get-vanilla` and `get-vanilla-query-order-key-case` of AWS' test suite for Signature Version 4.
        for (query, signature) in [
            (
                "",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "Param1=value1&Param2=value2",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
        ] {
            let request = Request {
                host: "example.amazonaws.com",
                path: "/",
                query,
                date: "20150830T123600Z",
                token: None,
                region: "us-east-1",
                service: "service",
            };
            let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
            let said = request.authorization("AKIDEXAMPLE", secret);
            assert_eq!(
                said,
                format!(
                    "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                     SignedHeaders=host;x-amz-date, Signature={signature}"
                )
            );
        }
    }

    #[test]
    fn the_public_zone_of_the_name_is_taken() {
        let zone = |id: &str, name: &str, private: bool| {
            format!(
                "<HostedZone><Id>/hostedzone/{id}</Id><Name>{name}.</Name><CallerReference>x</CallerReference>\
                 <Config><PrivateZone>{private}</PrivateZone></Config></HostedZone>"
            )
        };
        let list = [
            zone("Z1", "a.example", true),
            zone("Z2", "A.example", false),
            zone("Z3", "b.a.example", false),
        ]
        .concat();
        assert_eq!(public(&list, "a.example").as_deref(), Some("Z2"));
        assert_eq!(public(&list, "b.a.example").as_deref(), Some("Z3"));
        assert_eq!(public(&list, "c.example"), None);
        assert_eq!(public(&zone("Z1", "a.example", true), "a.example"), None);
    }
}
