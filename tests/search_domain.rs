//! Search domains of pods, of which one has a wildcard: every name with fewer than five dots is found there first.

use std::net::{Ipv4Addr, SocketAddr};

use test_bench::objects::Space;
use test_bench::{
    Bench, Context as _, Nameserver, Operator, OperatorOptions, PebbleOptions, RESOLVER, Result,
    Zone, run_with_resolv_conf,
};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::renewal::{options, renewed};

/// As a pod has it, with a domain of the company.
const LINES: &str = "search corp.example\noptions ndots:5\n";
/// The CA's address.
const CA: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);
/// What has each name of the search domain: a Service's too.
const EVERYBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 9);

/// With `ndots:5` the name of the CA is looked for in the company's domain first, and a wildcard there answers
/// (aws-operator #2132).
#[tokio::test]
async fn a_wildcard_in_a_search_domain_leads_to_no_other_ca() -> Result<()> {
    run_with_resolv_conf(LINES, "search_domain::inside").await
}

/// Passes connections on, until the test ends.
async fn relay(from: SocketAddr, to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(from).await?;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(to).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    Ok(())
}

#[ignore = "run by the test above, where the resolver is its own"]
#[tokio::test]
async fn inside() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut company = Zone::new("corp.example");
    company.records = format!("* A {EVERYBODY}\n");
    let mut own = Zone::new("named.example");
    own.records = format!("acme A {CA}\n");
    let dns = SocketAddr::from((RESOLVER, 53));
    let _server = Nameserver::start(bench, "knot-search", dns, &[company, own]).await?;
    let other = PebbleOptions {
        name: "pebble-search".into(),
        ..PebbleOptions::default()
    };
    let other = bench.start_pebble(&other).await?;
    let at = |directory: &str, host: &str| -> Result<(SocketAddr, String)> {
        let address = directory.trim_start_matches("https://");
        let address = address.split('/').next().context("an address")?;
        let address: SocketAddr = address.parse()?;
        let named = format!("{host}:{}", address.port());
        Ok((address, directory.replace(&address.to_string(), &named)))
    };
    let (public, public_directory) = at(bench.pebble().directory(), "acme.named.example")?;
    let (service, service_directory) = at(other.directory(), "acme.pki.svc")?;
    relay(SocketAddr::from((CA, public.port())), public).await?;
    relay(SocketAddr::from((EVERYBODY, service.port())), service).await?;
    let options = OperatorOptions {
        directory: Some(public_directory),
        issuer: format!(
            "  service:\n    directory: {service_directory}\n    caBundle: {}\n    profile: default\n    \
             allow: [{{namespaces: [\"*\"], names: [\"**.example\"]}}]\n",
            bench.ca_bundle().display()
        ),
        ..options()
    };
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "search", operator.namespace()).await?;
    for (issuer, name) in [("pebble", "public"), ("service", "inside")] {
        let host = format!("{name}.search.example");
        let annotations = [("issuer", issuer), ("names", &*host)];
        space.tls_secret(name, None, &annotations).await?;
        renewed(&space, name, "").await?;
    }
    Ok(())
}
