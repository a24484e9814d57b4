//! DNS-01 by other ways: a challenge that is delegated into another zone, and a host that knows the pod by its identity.

mod clouds;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use test_bench::objects::Space;
use test_bench::{
    Bench, Nameserver, Operator, OperatorOptions, Recursor, Result, TSIG_KEY, TSIG_NAME, Zone,
    ensure,
};

use self::clouds::{ROLE, SESSION, TOKEN, cloud};
use crate::acme_operator::event;
use crate::dns01::{await_values, no_record_is_left, operator_by, pebble};
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

/// The operator in an environment as a cloud makes it.
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

/// A pod's surroundings, and the provider that is to find its identity there.
struct Pod<'a> {
    name: &'static str,
    environment: &'a [(&'a str, &'a str)],
    provider: String,
    /// What the cloud says, where it refuses.
    refused: Option<&'static str>,
}

#[tokio::test]
async fn the_identity_of_the_pod_is_taken_by_each_cloud() -> Result<()> {
    let bench = Bench::shared().await?;
    let server = Nameserver::address_of_its_own()?;
    let zones = [Zone::new("cloud.example")];
    let _server = Nameserver::start(bench, "knot-cloud", server, &zones).await?;
    let pebble = pebble(bench, "pebble-cloud", server).await?;
    let cloud = cloud(server, "cloud.example").await?;
    let token = bench.directory().join("pod-token");
    fs::write(&token, format!("{TOKEN}\n"))?;
    let token = token.display().to_string();
    let (agent, authority, metadata) = (
        format!("http://{cloud}/agent"),
        format!("http://{cloud}/"),
        cloud.to_string(),
    );
    let route53 = format!(
        "provider: route53, settings: {{endpoint: \"http://{cloud}\", stsEndpoint: \"http://{cloud}/sts\"}}"
    );
    let azure = format!(
        "provider: azure, settings: {{endpoint: \"http://{cloud}\", subscriptionId: s, resourceGroup: g}}"
    );
    let pods = [
        Pod {
            name: "role",
            environment: &[
                ("AWS_ROLE_ARN", ROLE),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
                ("AWS_REGION", "eu-central-1"),
            ],
            provider: route53.clone(),
            refused: None,
        },
        Pod {
            name: "agent",
            environment: &[
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token),
            ],
            provider: route53.clone(),
            refused: None,
        },
        Pod {
            name: "other-role",
            environment: &[
                ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/other"),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
            ],
            provider: route53,
            refused: Some("role/other"),
        },
        Pod {
            name: "azure",
            environment: &[
                ("AZURE_AUTHORITY_HOST", &authority),
                ("AZURE_TENANT_ID", "tenant"),
                ("AZURE_CLIENT_ID", "client"),
                ("AZURE_FEDERATED_TOKEN_FILE", &token),
            ],
            provider: azure.clone(),
            refused: None,
        },
        Pod {
            name: "other-client",
            environment: &[
                ("AZURE_AUTHORITY_HOST", &authority),
                ("AZURE_TENANT_ID", "tenant"),
                ("AZURE_CLIENT_ID", "another"),
                ("AZURE_FEDERATED_TOKEN_FILE", &token),
            ],
            provider: azure,
            refused: Some("logging in at"),
        },
        Pod {
            name: "google",
            environment: &[("GCE_METADATA_HOST", &metadata)],
            provider: format!("provider: google, settings: {{endpoint: \"http://{cloud}\"}}"),
            refused: None,
        },
    ];
    for pod in &pods {
        let name = pod.name;
        let config = format!(
            "solvers:\n  - dns01: {{{provider}, propagation: {{{propagation}}}}}\n\
             dns: {{nameservers: [\"{server}\"]}}\n",
            provider = pod.provider,
            propagation = Nameserver::propagation(&[server]),
        );
        let mut options = within(bench, &format!("in-cloud-{name}"), pod.environment)?;
        options.config += &config;
        options.directory = Some(pebble.directory().to_owned());
        let operator = Operator::start(bench, options).await?;
        let space = Space::new(bench.client()?, "cloud", operator.namespace()).await?;
        let host = format!("{name}.cloud.example");
        let names = format!("{host}, *.{host}");
        let annotations = [("issuer", "pebble"), ("names", &*names)];
        space.tls_secret(name, None, &annotations).await?;
        if let Some(said) = pod.refused {
            let event = event(&space, name, "not you").await?;
            ensure!(event.contains(said), "{event}");
        } else {
            renewed(&space, name, "").await?;
            await_values(server, &format!("_acme-challenge.{host}"), 0).await?;
        }
        let log = operator.log()?;
        assert!(!log.contains(TOKEN) && !log.contains(SESSION) && !log.contains("sEcReT"));
    }
    Ok(())
}

/// An account has a private zone of the same name, or of a longer one (lego #192, acme.sh #826, octodns-route53 #106).
#[tokio::test]
async fn the_record_goes_into_the_public_zone_of_route_53() -> Result<()> {
    let bench = Bench::shared().await?;
    let server = Nameserver::address_of_its_own()?;
    let zones = [Zone::new("split.example")];
    let _server = Nameserver::start(bench, "knot-split", server, &zones).await?;
    let pebble = pebble(bench, "pebble-split", server).await?;
    let cloud = cloud(server, "split.example").await?;
    let token = bench.directory().join("split-token");
    fs::write(&token, format!("{TOKEN}\n"))?;
    let (agent, token) = (format!("http://{cloud}/agent"), token.display().to_string());
    let environment = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &*agent),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &*token),
    ];
    let mut options = within(bench, "in-split-cloud", &environment)?;
    options.config += &format!(
        "solvers:\n  - dns01: {{provider: route53, settings: {{endpoint: \"http://{cloud}\"}}, \
         propagation: {{{}}}}}\ndns: {{nameservers: [\"{server}\"]}}\n",
        Nameserver::propagation(&[server]),
    );
    options.directory = Some(pebble.directory().to_owned());
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "split", operator.namespace()).await?;
    // The names of private zones that come first, and that are longer.
    for (name, host) in [("same", "split.example"), ("longer", "a.split.example")] {
        let annotations = [("issuer", "pebble"), ("names", host)];
        space.tls_secret(name, None, &annotations).await?;
        renewed(&space, name, "").await?;
        await_values(server, &format!("_acme-challenge.{host}"), 0).await?;
    }
    Ok(())
}
