//! Scenes at DNS hosts, with Pebble as the CA.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use cert_renew::net::dns::{self, RecordType, Resolver};
use dns_update::{DnsRecord, DnsRecordType};
use futures::FutureExt as _;
use kube::api::DeleteParams;
use test_bench::objects::Space;
use test_bench::{
    Bench, Bind, Moto, Nameserver, Operator, OperatorOptions, PowerDns, Recursor, Result, TSIG_KEY,
    TSIG_NAME, Zone, ensure, throughout,
};
use tokio::task::JoinHandle;

use super::inside::{Ground, Scene};
use crate::acme_operator::event;
use crate::dns01::{await_values, no_record_is_left, pebble, updater, values};
use crate::renewal::{leaf, options, renewed};

/// Time enough for a CA to be told too early.
const A_WHILE: Duration = Duration::from_secs(4);
/// How often what moto has is put where questions are answered.
const LOOK: Duration = Duration::from_millis(200);
/// What was there before us.
const OTHERS: &str = "somebody-elses";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Knot,
    Bind,
    PowerDns,
    Route53,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Knot => "Knot",
            Self::Bind => "BIND",
            Self::PowerDns => "PowerDNS",
            Self::Route53 => "Route 53",
        }
    }

    fn short(self) -> &'static str {
        match self {
            Self::Knot => "knot",
            Self::Bind => "bind",
            Self::PowerDns => "pdns",
            Self::Route53 => "r53",
        }
    }
}

/// All of them.
pub(super) fn scenes(ground: &Ground) -> Vec<Scene<'_>> {
    let mut all = Vec::new();
    for kind in [Kind::Knot, Kind::Bind, Kind::PowerDns, Kind::Route53] {
        let mut add = |what, run| {
            all.push(Scene {
                ca: "Pebble",
                what,
                host: kind.name(),
                long: false,
                run,
            });
        };
        add("apex and wildcard", apex(ground, kind).boxed_local());
        add("CNAME into another zone", away(ground, kind).boxed_local());
        add(
            "killed with records set",
            killed(ground, kind).boxed_local(),
        );
        if kind == Kind::Bind {
            add(
                "key without rights in the zone",
                refused(ground).boxed_local(),
            );
        }
        // moto answers no questions, so that nothing can copy its zones.
        if kind != Kind::Route53 {
            add("slow secondary", slow(ground, kind).boxed_local());
        }
    }
    all
}

/// A host with its zones, and how the operator comes to it.
struct Host {
    provider: String,
    /// Entry of the Secret with the credentials; none where the pod is known by its identity.
    credentials: Option<(&'static str, &'static str)>,
    environment: Vec<(String, String)>,
    /// Who answers for its zones.
    server: SocketAddr,
    _mirror: Option<Mirror>,
    _running: Box<dyn Any>,
}

/// Ends with its host.
struct Mirror(JoinHandle<()>);

impl Drop for Mirror {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Host {
    /// Starts it at an address of its own, with one zone.
    async fn start(bench: &Bench, kind: Kind, server: SocketAddr, zone: Zone) -> Result<Self> {
        let name = format!("{}-{}", kind.short(), zone.name);
        let rfc2136 =
            format!("provider: rfc2136, settings: {{server: \"{server}\", keyName: {TSIG_NAME}}}");
        let with_key = |provider, running| Self {
            provider,
            credentials: Some(("secret", TSIG_KEY)),
            environment: Vec::new(),
            server,
            _mirror: None,
            _running: running,
        };
        Ok(match kind {
            Kind::Knot => {
                let knot = Nameserver::start(bench, &name, server, &[zone]).await?;
                with_key(rfc2136, Box::new(knot))
            }
            Kind::Bind => {
                let bind = Bind::start(bench, &name, server, &[zone]).await?;
                with_key(rfc2136, Box::new(bind))
            }
            Kind::PowerDns => {
                let powerdns = PowerDns::start(bench, &name, server, &[zone]).await?;
                let api = powerdns.api();
                let provider = format!("provider: powerdns, settings: {{server: \"{api}\"}}");
                Self {
                    credentials: Some(("token", PowerDns::KEY)),
                    ..with_key(provider, Box::new(powerdns))
                }
            }
            Kind::Route53 => Self::route53(bench, &name, server, zone).await?,
        })
    }

    /// moto has the records, BIND answers with them; the operator is known by the token of its pod.
    async fn route53(bench: &Bench, name: &str, server: SocketAddr, zone: Zone) -> Result<Self> {
        let moto = Moto::start(bench, name).await?;
        let url = moto.url().to_owned();
        // A private zone of the same name, which no CA sees, comes first.
        moto.hosted_zone(&zone.name, true).await?;
        let id = moto.hosted_zone(&zone.name, false).await?;
        if zone.records.contains(OTHERS) {
            let at = format!("_acme-challenge.{}", zone.name);
            moto.add_text(&id, &at, OTHERS).await?;
        }
        let (updater, apex) = (updater(server)?, zone.name.clone());
        let bind = Bind::start(bench, &format!("{name}-answers"), server, &[zone]).await?;
        let mirror = tokio::spawn(async move {
            let mut before: BTreeMap<String, Vec<String>> = BTreeMap::new();
            loop {
                if let Ok(found) = moto.texts(&id).await {
                    let found: BTreeMap<_, _> = found.into_iter().collect();
                    let names: BTreeSet<_> = before.keys().chain(found.keys()).cloned().collect();
                    for name in names {
                        let now = found.get(&name).cloned().unwrap_or_default();
                        if before.get(&name) == Some(&now) {
                            continue;
                        }
                        let records = now.into_iter().map(DnsRecord::TXT).collect();
                        let set = updater.set_rrset(&*name, DnsRecordType::TXT, 5, records, &*apex);
                        if let Err(error) = set.await {
                            eprintln!("Route 53's records are not copied: {error}");
                        }
                    }
                    before = found;
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        let token = bench.directory().join(format!("{name}.token"));
        fs::write(&token, "the-token-of-the-service-account")?;
        let environment = [
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/dns"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", &token.display().to_string()),
            ("AWS_REGION", "eu-central-1"),
        ];
        Ok(Self {
            provider: format!(
                "provider: route53, settings: {{endpoint: \"{url}\", stsEndpoint: \"{url}/\"}}"
            ),
            credentials: None,
            environment: environment
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
            server,
            _mirror: Some(Mirror(mirror)),
            _running: Box::new(bind),
        })
    }

    /// The config of an operator that asks `asks` and looks for its records with these settings.
    fn config(&self, asks: SocketAddr, propagation: &str) -> String {
        let provider = &self.provider;
        let credentials = match self.credentials {
            Some(_) => ", credentials: {secret: dns}",
            None => "",
        };
        let solver = format!("{provider}{credentials}, propagation: {{{propagation}}}");
        options().config
            + &format!(
                "solvers:\n  - dns01: {{{solver}}}\ndns: {{nameservers: [\"{asks}\"]}}\n\
                 retry: {{base: 2s, factor: 1, max: 2s}}\n"
            )
    }

    async fn operator<'a>(
        &self,
        ground: &'a Ground,
        directory: &str,
        config: String,
    ) -> Result<Operator<'a>> {
        let options = OperatorOptions {
            config,
            directory: Some(directory.to_owned()),
            environment: self.environment.clone(),
            ..options()
        };
        let mut operator = Operator::install(&ground.bench, options).await?;
        if let Some((key, value)) = self.credentials {
            operator.credentials("dns", key, value).await?;
        }
        operator.run().await?;
        Ok(operator)
    }

    fn is_silent(&self, operator: &Operator<'_>) -> Result<()> {
        let Some((_, key)) = self.credentials else {
            return Ok(());
        };
        ensure!(!operator.log()?.contains(key), "the key is in the log");
        Ok(())
    }
}

async fn apex(ground: &Ground, kind: Kind) -> Result<String> {
    let bench = &ground.bench;
    let name = format!("apex-{}.example", kind.short());
    let mut zone = Zone::new(&name);
    zone.records = format!("_acme-challenge TXT \"{OTHERS}\"\n");
    let server = Nameserver::address_of_its_own()?;
    let host = Host::start(bench, kind, server, zone).await?;
    let ca = pebble(bench, &format!("pebble-{name}"), host.server).await?;
    let config = host.config(server, "");
    let operator = host.operator(ground, ca.directory(), config).await?;
    let space = Space::new(bench.client()?, "apex", operator.namespace()).await?;
    let names = format!("{name}, *.{name}");
    let annotations = [("issuer", "pebble"), ("names", &*names)];
    space.tls_secret("tls", None, &annotations).await?;
    let secret = renewed(&space, "tls", "").await?;
    let names = leaf(&secret)?.names;
    ensure!(names.len() == 2, "{names:?}");
    let left = await_values(server, &format!("_acme-challenge.{name}"), 1).await?;
    ensure!(left == [OTHERS], "{left:?}");
    no_record_is_left(bench, &operator).await?;
    host.is_silent(&operator)?;
    Ok("both values removed, what others had set is there".into())
}

/// BIND tells a key without rights from one that it does not know; Knot says the same of both.
async fn refused(ground: &Ground) -> Result<String> {
    let bench = &ground.bench;
    let server = Nameserver::address_of_its_own()?;
    let mut zone = Zone::new("refused-bind.example");
    zone.updates = false;
    let host = Host::start(bench, Kind::Bind, server, zone).await?;
    let ca = pebble(bench, "pebble-refused-bind", host.server).await?;
    let operator = host
        .operator(ground, ca.directory(), host.config(server, ""))
        .await?;
    let space = Space::new(bench.client()?, "refused", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "refused-bind.example")];
    space.tls_secret("tls", None, &annotations).await?;
    let told = format!("the server does not let key {TSIG_NAME} change this name (REFUSED)");
    event(&space, "tls", &told).await?;
    host.is_silent(&operator)?;
    Ok("told as REFUSED, with the name of the key".into())
}

async fn away(ground: &Ground, kind: Kind) -> Result<String> {
    let bench = &ground.bench;
    let (from, name) = (
        format!("from-{}.example", kind.short()),
        format!("away-{}.example", kind.short()),
    );
    let delegates = Nameserver::address_of_its_own()?;
    let mut delegating = Zone::new(&from);
    delegating.updates = false;
    delegating.records = format!("_acme-challenge CNAME here.{name}.\n");
    let _from = Nameserver::start(bench, &format!("knot-{from}"), delegates, &[delegating]).await?;
    let server = Nameserver::address_of_its_own()?;
    let host = Host::start(bench, kind, server, Zone::new(&name)).await?;
    let zones = [(&*from, delegates), (&*name, server)];
    let recursor = Recursor::start(bench, &format!("unbound-{name}"), &zones).await?;
    let ca = pebble(bench, &format!("pebble-{name}"), recursor.address()).await?;
    let config = host.config(recursor.address(), "");
    let operator = host.operator(ground, ca.directory(), config).await?;
    let space = Space::new(bench.client()?, "away", operator.namespace()).await?;
    let names = format!("{from}, *.{from}");
    let annotations = [("issuer", "pebble"), ("names", &*names)];
    space.tls_secret("tls", None, &annotations).await?;
    let names = leaf(&renewed(&space, "tls", "").await?)?.names;
    ensure!(names.len() == 2, "{names:?}");
    await_values(server, &format!("here.{name}"), 0).await?;
    no_record_is_left(bench, &operator).await?;
    host.is_silent(&operator)?;
    Ok("set where the CNAME of Knot's zone leads, and removed there".into())
}

async fn killed(ground: &Ground, kind: Kind) -> Result<String> {
    let bench = &ground.bench;
    let name = format!("killed-{}.example", kind.short());
    let server = Nameserver::address_of_its_own()?;
    let host = Host::start(bench, kind, server, Zone::new(&name)).await?;
    let ca = pebble(bench, &format!("pebble-{name}"), host.server).await?;
    // The records are set, and the CA is told in ten minutes.
    let config = host.config(server, "wait: 10m");
    let mut operator = host.operator(ground, ca.directory(), config).await?;
    let space = Space::new(bench.client()?, "killed", operator.namespace()).await?;
    let at = |what: &str| format!("_acme-challenge.{what}.{name}");
    for what in ["stays", "goes"] {
        let names = format!("{what}.{name}");
        let annotations = [("issuer", "pebble"), ("names", &*names)];
        space.tls_secret(what, None, &annotations).await?;
    }
    for what in ["stays", "goes"] {
        await_values(server, &at(what), 1).await?;
    }
    operator.kill();
    let secrets = space.secrets();
    secrets.delete("goes", &DeleteParams::default()).await?;
    operator.configure(&host.config(server, ""))?;
    operator.run().await?;
    renewed(&space, "stays", "").await?;
    for what in ["stays", "goes"] {
        await_values(server, &at(what), 0).await?;
    }
    no_record_is_left(bench, &operator).await?;
    Ok("the next start goes on with one order and sweeps the other".into())
}

async fn slow(ground: &Ground, kind: Kind) -> Result<String> {
    let bench = &ground.bench;
    let name = format!("slow-{}.example", kind.short());
    let (first, second) = (
        Nameserver::address_of_its_own()?,
        Nameserver::address_of_its_own()?,
    );
    let mut zone = Zone::new(&name);
    zone.others = vec![second];
    let host = Host::start(bench, kind, first, zone).await?;
    let mut copy = Zone::new(&name);
    copy.primary = Some(first);
    let mut secondary =
        Nameserver::start(bench, &format!("knot-copy-{name}"), second, &[copy]).await?;
    let resolver = Resolver::new(&[second])?;
    let apex = dns::name(&name)?;
    test_bench::eventually(crate::renewal::SOON, "the zone is copied", async || {
        let found = resolver.records(&apex, RecordType::SOA).await?;
        ensure!(!found.is_empty(), "it is not");
        Ok(())
    })
    .await?;
    let ca = pebble(bench, &format!("pebble-{name}"), host.server).await?;
    let config = host.config(first, "");
    let operator = host.operator(ground, ca.directory(), config).await?;
    let space = Space::new(bench.client()?, "slow", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", &*name)];
    space.tls_secret("tls", None, &annotations).await?;
    let at = format!("_acme-challenge.{name}");
    await_values(first, &at, 1).await?;
    throughout(A_WHILE, "the CA is not told", async || {
        let validated = operator.log()?.contains("validated");
        ensure!(!validated, "although the copy does not have the record");
        ensure!(values(second, &at).await?.is_empty(), "it has");
        Ok(())
    })
    .await?;
    secondary.restart().await?;
    renewed(&space, "tls", "").await?;
    await_values(first, &at, 0).await?;
    Ok("the CA is told when a copy by Knot has the record too".into())
}
