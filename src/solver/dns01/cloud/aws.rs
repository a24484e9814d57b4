//! The pod's identity at AWS: credentials that last about an hour, instead of permanent ones in a Secret.
//!
//! ```text
//! projected token of the service account ──STS AssumeRoleWithWebIdentity (IRSA)──► key, secret, session token
//! token of the agent ──agent on the node (EKS Pod Identity)──────────────────────► the same
//! ```
//! EKS sets their locations in the environment. They are requested again for each change of a record, and not kept; no
//! error repeats a token.

use reqwest::ClientBuilder;
use serde::Deserialize;

use super::identity::{Environment, is_loopback, token};
use crate::solver::dns01::cleaned;
use crate::solver::dns01::http::Endpoint;

/// Version of the STS API.
const VERSION: &str = "2011-06-15";
/// Session name that AWS' own log shows beside the role.
const SESSION: &str = "cert-renew";
/// Hosts at which an agent answers without TLS, on every node (AWS SDKs: "container credential provider").
const AGENTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];

/// Credentials that expire. Debug is left out on purpose.
pub(in crate::solver::dns01) struct Temporary {
    pub(in crate::solver::dns01) access_key_id: String,
    pub(in crate::solver::dns01) secret_access_key: String,
    pub(in crate::solver::dns01) session_token: String,
}

/// Requests credentials. `role` and `endpoint` of the settings override the environment.
///
/// # Errors
/// The error text of AWS, or what was expected.
pub(in crate::solver::dns01) async fn credentials(
    environment: &Environment,
    role: Option<&str>,
    endpoint: Option<&str>,
) -> Result<Temporary, String> {
    let role = role.or_else(|| environment.get("AWS_ROLE_ARN"));
    if let (Some(role), Some(file)) = (role, environment.get("AWS_WEB_IDENTITY_TOKEN_FILE")) {
        let region = environment.get("AWS_REGION");
        return web_identity(role, file, region, endpoint).await;
    }
    if let Some(url) = environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        return pod_identity(
            url,
            environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
        )
        .await;
    }
    Err(
        "expected credentials: {secret: …}, or an identity of the pod: AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN (the \
         service account's annotation eks.amazonaws.com/role-arn), or an EKS Pod Identity association"
            .to_owned(),
    )
}

async fn web_identity(
    role: &str,
    file: &str,
    region: Option<&str>,
    endpoint: Option<&str>,
) -> Result<Temporary, String> {
    let token = token(file)?;
    let url = match (endpoint, region) {
        (Some(endpoint), _) => endpoint.to_owned(),
        (None, Some(region)) if region.starts_with("cn-") => {
            format!("https://sts.{region}.amazonaws.com.cn/")
        }
        (None, Some(region)) => format!("https://sts.{region}.amazonaws.com/"),
        (None, None) => "https://sts.amazonaws.com/".to_owned(),
    };
    let form = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", VERSION),
        ("RoleArn", role),
        ("RoleSessionName", SESSION),
        ("WebIdentityToken", &token),
    ];
    let answer = Endpoint::nearby(&url, is_loopback, |client| client)?
        .form(&form)
        .await;
    let answer = answer.map_err(|error| {
        let said = element(&error, "Message").unwrap_or(&error);
        cleaned(&format!("assuming role {role} at {url}: {said}"), &[&token])
    })?;
    let found = |name: &str| {
        let value = element(&answer, name).map(str::to_owned);
        value.ok_or_else(|| format!("assuming role {role} at {url}: the answer has no {name}"))
    };
    Ok(Temporary {
        access_key_id: found("AccessKeyId")?,
        secret_access_key: found("SecretAccessKey")?,
        session_token: found("SessionToken")?,
    })
}

async fn pod_identity(url: &str, file: Option<&str>) -> Result<Temporary, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        access_key_id: String,
        secret_access_key: String,
        token: String,
    }
    let token = file.map(token).transpose()?;
    let endpoint = Endpoint::nearby(url, is_agent, ClientBuilder::no_proxy)?;
    let headers: Vec<_> = { token.iter() }
        .map(|token| ("authorization", token.as_str()))
        .collect();
    let answer = endpoint.get(&headers).await.map_err(|error| {
        let secrets = token.iter().map(String::as_str).collect::<Vec<_>>();
        cleaned(
            &format!("the pod identity agent at {url}: {error}"),
            &secrets,
        )
    })?;
    let answer: Answer = serde_json::from_str(&answer)
        .map_err(|_| format!("the pod identity agent at {url}: the answer holds no credentials"))?;
    Ok(Temporary {
        access_key_id: answer.access_key_id,
        secret_access_key: answer.secret_access_key,
        session_token: answer.token,
    })
}

/// Whether the token may be sent there without TLS.
fn is_agent(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    AGENTS.contains(&host) || is_loopback(host)
}

/// The text of the first element of that name: STS sends each once, and these contain no entities.
pub(in crate::solver::dns01) fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(pairs: &[(&str, &str)], endpoint: Option<&str>) -> String {
        let found = credentials(&Environment::of(pairs), None, endpoint).await;
        found.err().expect("there is no such identity")
    }

    #[tokio::test]
    async fn what_is_missing_is_told() {
        let nothing = refused(&[("AWS_ROLE_ARN", "arn"), ("AWS_REGION", "")], None).await;
        assert!(nothing.contains("credentials: {secret: …}"), "{nothing}");
        let no_file = [
            ("AWS_ROLE_ARN", "arn"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/not/there"),
        ];
        let said = refused(&no_file, None).await;
        assert!(said.starts_with("/not/there: "), "{said}");
        let elsewhere = [(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "http://10.0.0.1/v1/credentials",
        )];
        let said = refused(&elsewhere, None).await;
        assert!(said.contains("https"), "{said}");
    }

    #[test]
    fn elements_are_found_and_others_are_not() {
        let xml = "<R><Credentials><AccessKeyId> AKIA </AccessKeyId><SessionToken>a+b/c=</SessionToken></Credentials></R>";
        assert_eq!(element(xml, "AccessKeyId"), Some("AKIA"));
        assert_eq!(element(xml, "SessionToken"), Some("a+b/c="));
        assert_eq!(element(xml, "SecretAccessKey"), None);
        assert_eq!(element("<A>cut", "A"), None);
        for (host, near) in [
            ("169.254.170.23", true),
            ("[fd00:ec2::23]", true),
            ("127.0.0.1", true),
            ("169.254.169.254", false),
            ("agent.example", false),
        ] {
            assert_eq!(is_agent(host), near, "{host}");
        }
    }
}
