//! DNS-01 by other ways: a challenge that is delegated into another zone, and a host that knows the pod by its identity.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dns_update::{DnsRecord, DnsRecordType, DnsUpdater, TsigAlgorithm};
use test_bench::objects::Space;
use test_bench::{
    Bench, Nameserver, Operator, OperatorOptions, Recursor, Result, TSIG_KEY, TSIG_NAME, Zone,
    ensure,
};
use tokio::net::TcpListener;

use crate::acme_operator::event;
use crate::dns01::{await_values, no_record_is_left, operator_by, pebble, values};
use crate::renewal::{leaf, options, renewed};

#[tokio::test]
async fn a_challenge_is_delegated_into_another_zone_of_another_server() -> Result<()> {
    let bench = Bench::shared().await?;
    let (first, second) = (
        Nameserver::address_of_its_own()?,
        Nameserver::address_of_its_own()?,
    );
    let mut from = Zone::new("from.example");
    from.updates = false;
    from.records = "_acme-challenge CNAME from.challenges.example.\n".into();
    let _from = Nameserver::start(bench, "knot-from", first, &[from]).await?;
    let zones = [Zone::new("challenges.example")];
    let _challenges = Nameserver::start(bench, "knot-challenges", second, &zones).await?;
    // What CAs ask, and what the operator is to be given: it follows from one zone into the other.
    let zones = [("from.example", first), ("challenges.example", second)];
    let recursor = Recursor::start(bench, "unbound-delegated", &zones).await?;
    let pebble = pebble(bench, "pebble-away", recursor.address()).await?;
    let provider =
        format!("provider: rfc2136, settings: {{server: \"{second}\", keyName: {TSIG_NAME}}}");
    let servers = [second];
    let asks = recursor.address();
    let credentials = ("secret", TSIG_KEY);
    let operator = operator_by(bench, &pebble, &servers, asks, &provider, credentials).await?;
    let space = Space::new(bench.client()?, "away", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "from.example, *.from.example"),
    ];
    space.tls_secret("away", None, &annotations).await?;
    let names = leaf(&renewed(&space, "away", "").await?)?.names;
    assert_eq!(names.len(), 2, "{names:?}");
    await_values(second, "from.challenges.example", 0).await?;
    no_record_is_left(bench, &operator).await?;
    Ok(())
}

const TOKEN: &str = "the-token-of-the-service-account";
const SESSION: &str = "a+session/token==";
const ROLE: &str = "arn:aws:iam::123456789012:role/dns";

/// AWS, as far as it is asked: STS and the agent on the node give credentials, and Route 53 takes them; its one zone is
/// served by Knot.
struct Aws {
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
    let answer = serde_json::json!({
        "AccessKeyId": "AKIDPOD", "SecretAccessKey": "sEcReT/key", "Token": SESSION,
        "Expiration": "2036-01-01T00:00:00Z",
    });
    (StatusCode::OK, answer.to_string())
}

async fn hosted_zones(State(aws): State<Arc<Aws>>, headers: HeaderMap) -> (StatusCode, String) {
    if !signed(&headers) {
        return (StatusCode::FORBIDDEN, "signed by another".into());
    }
    let zone = aws.zone;
    let answer = format!(
        "<ListHostedZonesByNameResponse><HostedZones><HostedZone><Id>/hostedzone/Z1</Id><Name>{zone}.</Name>\
         <CallerReference>x</CallerReference><Config><PrivateZone>false</PrivateZone></Config>\
         <ResourceRecordSetCount>3</ResourceRecordSetCount></HostedZone></HostedZones><IsTruncated>false</IsTruncated>\
         <MaxItems>100</MaxItems></ListHostedZonesByNameResponse>"
    );
    (StatusCode::OK, answer)
}

async fn records(
    State(aws): State<Arc<Aws>>,
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
    let found = values(aws.server, name.trim_end_matches('.'))
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
    State(aws): State<Arc<Aws>>,
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
    let set = aws.updater.set_rrset(name, kind, 60, records, aws.zone);
    match set.await {
        Ok(()) => (StatusCode::OK, "<ChangeResourceRecordSetsResponse/>".into()),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()),
    }
}

async fn aws(server: SocketAddr, zone: &'static str) -> Result<SocketAddr> {
    let key = BASE64_STANDARD.decode(TSIG_KEY)?;
    let algorithm = TsigAlgorithm::HmacSha256;
    let address = format!("tcp://{server}");
    let updater = DnsUpdater::new_rfc2136_tsig(address, TSIG_NAME, key, algorithm)?;
    let aws = Aws {
        server,
        zone,
        updater,
    };
    let router = Router::new()
        .route("/sts", post(sts))
        .route("/agent", get(agent))
        .route("/2013-04-01/hostedzonesbyname", get(hosted_zones))
        .route("/2013-04-01/hostedzone/Z1/rrset", get(records).post(change))
        .with_state(Arc::new(aws));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

/// The operator in an environment as EKS makes it.
fn within(bench: &Bench, name: &str, environment: &[(&str, &str)]) -> Result<OperatorOptions> {
    let script = bench.directory().join(name);
    let set: String = environment
        .iter()
        .map(|(key, value)| format!("export {key}='{value}'\n"))
        .collect();
    let program = env!("CARGO_BIN_EXE_cert-renew");
    fs::write(&script, format!("#!/bin/sh\n{set}exec {program} \"$@\"\n"))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(OperatorOptions {
        program: script,
        ..options()
    })
}

#[tokio::test]
async fn route_53_takes_the_identity_of_the_pod() -> Result<()> {
    let bench = Bench::shared().await?;
    let server = Nameserver::address_of_its_own()?;
    let zones = [Zone::new("cloud.example")];
    let _server = Nameserver::start(bench, "knot-cloud", server, &zones).await?;
    let pebble = pebble(bench, "pebble-cloud", server).await?;
    let aws = aws(server, "cloud.example").await?;
    let token = bench.directory().join("aws-token");
    fs::write(&token, format!("{TOKEN}\n"))?;
    let token = token.display().to_string();
    let agent = format!("http://{aws}/agent");
    let by_role = [
        ("AWS_ROLE_ARN", ROLE),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
        ("AWS_REGION", "eu-central-1"),
    ];
    let by_agent = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token),
    ];
    let refused = [
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/other"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
    ];
    let environments: [(&str, &[(&str, &str)]); 3] = [
        ("role", &by_role),
        ("agent", &by_agent),
        ("refused", &refused),
    ];
    for (name, environment) in environments {
        let config = format!(
            "solvers:\n  - dns01: {{provider: route53, settings: {{endpoint: \"http://{aws}\", stsEndpoint: \
             \"http://{aws}/sts\"}}, propagation: {{{propagation}}}}}\ndns: {{nameservers: [\"{server}\"]}}\n",
            propagation = Nameserver::propagation(&[server]),
        );
        let mut options = within(bench, &format!("in-eks-{name}"), environment)?;
        options.config += &config;
        options.directory = Some(pebble.directory().to_owned());
        let operator = Operator::start(bench, options).await?;
        let space = Space::new(bench.client()?, "cloud", operator.namespace()).await?;
        let host = format!("{name}.cloud.example");
        let names = format!("{host}, *.{host}");
        let annotations = [("issuer", "pebble"), ("names", &*names)];
        space.tls_secret(name, None, &annotations).await?;
        if name == "refused" {
            let said = event(&space, name, "not you").await?;
            ensure!(said.contains("role/other"), "{said}");
        } else {
            renewed(&space, name, "").await?;
            await_values(server, &format!("_acme-challenge.{host}"), 0).await?;
        }
        let log = operator.log()?;
        assert!(!log.contains(TOKEN) && !log.contains(SESSION) && !log.contains("sEcReT"));
    }
    Ok(())
}
