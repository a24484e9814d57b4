//! dns-persist-01 against a real DNS server and a CA that looks there: the record is the user's, and stands.

use std::net::SocketAddr;

use cert_renew::net::dns::{self, RData, RecordType, Resolver};
use dns_update::{DnsRecord, DnsRecordType, DnsUpdater};
use test_bench::objects::Space;
use test_bench::{
    Bench, Context as _, Nameserver, Operator, OperatorOptions, Pebble, PebbleOptions, Proxies,
    Result, Zone, ensure, eventually,
};

use crate::acme_operator::{command, event};
use crate::dns01::{no_record_is_left, updater, values};
use crate::renewal::{SOON, annotation, data, leaf, options, renewed};
use crate::scene::answered;

const CA: &str = "ca.bench.example";

/// A CA that asks this server, and calls itself [`CA`] in records.
async fn pebble(bench: &Bench, name: &str, dns: SocketAddr) -> Result<Pebble> {
    let options = PebbleOptions {
        name: name.to_owned(),
        dns: Some(dns),
        caa_identities: vec![CA.to_owned()],
        ..PebbleOptions::default()
    };
    bench.start_pebble(&options).await
}

/// An operator that proves everything by the records of this server, and tries again every second.
async fn operator<'a>(
    bench: &'a Bench,
    proxies: &Proxies,
    server: SocketAddr,
) -> Result<Operator<'a>> {
    let servers = match &*Nameserver::propagation(&[server]) {
        "" => String::new(),
        servers => format!(", {servers}"),
    };
    let config = format!(
        "retry: {{base: 1s, factor: 1, max: 1s}}\ndns: {{nameservers: [\"{server}\"]}}\n\
         solvers:\n  - dnsPersist01: {{experimental: true{servers}}}\n"
    );
    let options = OperatorOptions {
        config: options().config + &config,
        directory: Some(proxies.directory()),
        ..options()
    };
    Operator::start(bench, options).await
}

/// The user, who changes the records of a zone.
struct User {
    updater: DnsUpdater,
    zone: &'static str,
    at: String,
}

impl User {
    fn new(server: SocketAddr, zone: &'static str) -> Result<Self> {
        Ok(Self {
            updater: updater(server)?,
            zone,
            at: format!("_validation-persist.{zone}"),
        })
    }

    async fn sets(&self, value: &str) -> Result<()> {
        let (at, zone, kind) = (&*self.at, self.zone, DnsRecordType::TXT);
        let records = vec![DnsRecord::TXT(value.to_owned())];
        Ok(self
            .updater
            .add_to_rrset(at, kind, 60, records, zone)
            .await?)
    }

    /// The value in what an error says is to be set.
    fn told(&self, said: &str) -> Result<String> {
        let before = format!("to be set: {}. IN TXT \"", self.at);
        let rest = said.split_once(&before).with_context(|| said.to_owned())?;
        let value = rest.1.split_once('"').with_context(|| said.to_owned())?;
        Ok(value.0.to_owned())
    }
}

async fn last_error(space: &Space, name: &str, part: &str) -> Result<String> {
    eventually(SOON, &format!("last-error says {part}"), async || {
        let secret = space.secrets().get(name).await?;
        let said = annotation(&secret, "state.cert-renew.io/last-error");
        let said = said.context("no error yet")?;
        ensure!(said.contains(part), "{said}");
        Ok(said.to_owned())
    })
    .await
}

/// Checks that it took an order for each certificate, and that the CA was told of each challenge of an order once.
///
/// The CA waits two seconds for DNS. Where a busy machine keeps it waiting for longer, it refuses, and the next try is
/// another order; any other refusal is a fault.
fn each_is_told_once(
    operator: &Operator<'_>,
    proxies: &Proxies,
    challenges: usize,
    certificates: usize,
) -> Result<()> {
    let log = operator.log()?;
    let failed = |line: &&str| line.contains("\"message\":\"the renewal failed\"");
    let unheard = |line: &&str| line.contains("Error retrieving TXT records");
    let unheard = log.lines().filter(failed).filter(unheard).count();
    let orders = answered(proxies, "/order-plz", 201);
    ensure!(
        orders == certificates + unheard,
        "{orders} orders for {certificates} certificates, {unheard} times the CA had no answer from DNS"
    );
    let mut told: Vec<String> = { proxies.passed().into_iter() }
        .filter(|it| it.path.contains("/chalZ/") && it.status == Some(200))
        .map(|it| it.path)
        .collect();
    let all = told.len();
    told.sort();
    told.dedup();
    // An order of which the CA had no answer about one challenge may end before the other is told.
    let told_at_least = challenges * certificates + unheard;
    ensure!(
        all == told.len() && (told_at_least..=challenges * orders).contains(&all),
        "{orders} orders of {challenges} challenges: {all} were told, {} different ones",
        told.len()
    );
    Ok(())
}

/// The zone's serial number, which each change of it raises.
async fn serial(server: SocketAddr, zone: &str) -> Result<u32> {
    let resolver = Resolver::new(&[server])?;
    let found = resolver.records(&dns::name(zone)?, RecordType::SOA).await?;
    let soa = found.into_iter().find_map(|data| match data {
        RData::SOA(soa) => Some(soa.serial),
        _ => None,
    });
    soa.context("the zone has no SOA record")
}

#[tokio::test]
async fn a_record_that_is_set_once_proves_apex_and_wildcard_each_time() -> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let zones = [Zone::new("standing.example")];
    let _server = Nameserver::start(bench, "knot-standing", address, &zones).await?;
    let pebble = pebble(bench, "pebble-standing", address).await?;
    let proxies = Proxies::before(bench, &pebble).await?;
    let operator = operator(bench, &proxies, address).await?;
    let space = Space::new(bench.client()?, "standing", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "standing.example, *.standing.example"),
    ];
    space.tls_secret("standing", None, &annotations).await?;
    let user = User::new(address, "standing.example")?;
    let said = event(&space, "standing", "there is none; to be set: ").await?;
    // Exactly what the Event says.
    let record = user.told(&said)?;
    ensure!(record.ends_with("; policy=wildcard"), "{record}");
    user.sets(&record).await?;
    let first = renewed(&space, "standing", "").await?;
    assert_eq!(leaf(&first)?.names.len(), 2);
    let serial_then = serial(address, "standing.example").await?;
    each_is_told_once(&operator, &proxies, 2, 1)?;

    // Due at once, and for no other reason: it is valid for long.
    space.annotate("standing", "key-type", "ecdsa-p384").await?;
    let second = renewed(&space, "standing", &data(&first, "tls.crt")).await?;
    assert_eq!(leaf(&second)?.names.len(), 2);
    each_is_told_once(&operator, &proxies, 2, 2)?;
    assert_eq!(serial(address, "standing.example").await?, serial_then);
    assert_eq!(values(address, &user.at).await?, [record]);
    no_record_is_left(bench, &operator).await?;
    Ok(())
}

#[tokio::test]
async fn without_the_record_for_our_account_no_validation_is_spent_and_plan_says_what_to_set()
-> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let mut zone = Zone::new("theirs.example");
    zone.records = format!(
        "_validation-persist TXT \"{CA}; accounturi=https://ca.bench.example/acct/1; policy=wildcard\"\n"
    );
    let _server = Nameserver::start(bench, "knot-theirs", address, &[zone]).await?;
    let pebble = pebble(bench, "pebble-theirs", address).await?;
    let proxies = Proxies::before(bench, &pebble).await?;
    let operator = operator(bench, &proxies, address).await?;
    let space = Space::new(bench.client()?, "theirs", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "*.theirs.example")];
    space.tls_secret("theirs", None, &annotations).await?;
    let user = User::new(address, "theirs.example")?;
    let said = last_error(&space, "theirs", "it names another account").await?;
    let record = user.told(&said)?;

    let apex = record.replace("; policy=wildcard", "");
    user.sets(&apex).await?;
    last_error(&space, "theirs", "a wildcard needs policy=wildcard").await?;
    let config = operator.config().display().to_string();
    let arguments = [
        "plan",
        "--preflight",
        "-n",
        &space.name,
        "--config",
        &config,
    ];
    let own = ["--operator-namespace", operator.namespace()];
    let (plan, _) = command(bench, &[&arguments[..], &own].concat())?;
    ensure!(plan.contains("will fail: dns-persist-01"), "{plan}");
    assert_eq!(user.told(&plan)?, record);
    assert_eq!(answered(&proxies, "/chalZ/", 200), 0);

    user.sets(&record).await?;
    renewed(&space, "theirs", "").await?;
    // The order that was made at first went on.
    each_is_told_once(&operator, &proxies, 1, 1)
}
