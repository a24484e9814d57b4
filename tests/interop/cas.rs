//! Scenes at ACME servers other than Pebble.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cert_renew_core::time::UnixTime;
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Secret;
use test_bench::objects::Space;
use test_bench::{
    Action, Context as _, Fault, ForeignCa, Make, Operator, OperatorOptions, Passed, Proxies,
    Result, Server, TSIG_KEY, TSIG_NAME, ensure, eventually,
};

use super::inside::{Ground, Scene, ZONE, resolver};
use crate::acme_operator::event;
use crate::dns01::{await_values, no_record_is_left};
use crate::renewal::{SOON, data, leaf, options, renewed};
use crate::scene::records;

/// A CA that was refused once is asked again after growing pauses.
const PATIENTLY: Duration = Duration::from_secs(240);
/// Two renewals of certificates of five minutes.
const LONG: Duration = Duration::from_secs(480);

/// All that step-ca says of either, and Caddy, which is made of it.
const WORDS: &str = "could not connect to validation target";

/// Those that all scenes share which do not disturb them.
pub(super) struct Servers([ForeignCa; 2]);

impl Servers {
    pub(super) async fn start(ground: &Ground) -> Result<Self> {
        let step = ForeignCa::start(&ground.bench, Make::StepCa, "step-ca", resolver());
        let caddy = ForeignCa::start(&ground.bench, Make::Caddy, "caddy", resolver());
        let (step, caddy) = tokio::try_join!(step, caddy)?;
        Ok(Self([step, caddy]))
    }
}

/// All of them.
pub(super) fn scenes<'a>(ground: &'a Ground, servers: &'a Servers) -> Vec<Scene<'a>> {
    let mut all = Vec::new();
    for ca in &servers.0 {
        let mut add = |what, long, host, run| {
            all.push(Scene {
                ca: ca.make().name(),
                what,
                host,
                long,
                run,
            });
        };
        let at = move |tag| At { ground, ca, tag };
        add(
            "five minutes, renewed by the clock",
            true,
            "-",
            five_minutes(at("five")).boxed_local(),
        );
        add("issue", false, "-", issue(at("issue")).boxed_local());
        add("renew", false, "-", renew(at("renew")).boxed_local());
        add("revoke", false, "-", revoke(at("revoke")).boxed_local());
        add(
            "accounts and orders lost",
            false,
            "-",
            wiped(ground, ca.make()).boxed_local(),
        );
        add(
            "killed before finalize",
            false,
            "-",
            killed(at("before"), false).boxed_local(),
        );
        add(
            "killed after finalize",
            false,
            "-",
            killed(at("after"), true).boxed_local(),
        );
        add(
            "no such name, seen by the self-check",
            false,
            "-",
            no_such_name(at("checked")).boxed_local(),
        );
        add(
            "no such name, seen by the CA",
            false,
            "-",
            mended(at("unchecked"), Trouble::Name).boxed_local(),
        );
        add(
            "proof that fails first",
            false,
            "-",
            mended(at("unrouted"), Trouble::Route).boxed_local(),
        );
        add(
            "apex and wildcard",
            false,
            "BIND",
            wildcard(at("wildcard")).boxed_local(),
        );
    }
    all.push(Scene {
        ca: Make::StepCa.name(),
        what: "external account binding",
        host: "-",
        long: false,
        run: binding(ground).boxed_local(),
    });
    all
}

/// Where a scene plays.
#[derive(Clone, Copy)]
struct At<'a> {
    ground: &'a Ground,
    ca: &'a ForeignCa,
    tag: &'static str,
}

impl At<'_> {
    /// A name that leads to the edge.
    fn host(&self) -> String {
        format!("{}.{}.there.{ZONE}", self.tag, self.short())
    }

    /// A name that does not exist yet.
    fn nowhere(&self) -> String {
        format!("{}-{}.{ZONE}", self.tag, self.short())
    }

    fn short(&self) -> &'static str {
        match self.ca.make() {
            Make::StepCa => "step",
            Make::Caddy => "caddy",
        }
    }
}

/// An operator that knows one CA, and what it asks of it.
struct Site<'a> {
    ground: &'a Ground,
    proxies: Proxies,
    operator: Operator<'a>,
    space: Space,
}

impl<'a> Site<'a> {
    async fn start(at: At<'a>, self_check: bool) -> Result<Self> {
        Self::with(at, self_check, at.ca.make().directory(), "", None).await
    }

    /// `issuer` are lines of its issuer; `secret` is an entry of a Secret `eab` beside the operator.
    async fn with(
        at: At<'a>,
        self_check: bool,
        directory: &str,
        issuer: &str,
        secret: Option<&str>,
    ) -> Result<Self> {
        let At { ground, ca, tag } = at;
        let proxies = Proxies::before_origin(&ground.bench, &ca.origin()).await?;
        let dns = resolver();
        let config = format!(
            "solvers:\n  - zones: [\"dns01.{ZONE}\"]\n    dns01: {{provider: rfc2136, settings: {{server: \"{dns}\", \
             keyName: {TSIG_NAME}}}, credentials: {{secret: dns}}}}\n  \
             - http01: {{route: shared, selfCheck: {self_check}}}\ndns: {{nameservers: [\"{dns}\"]}}\n\
             retry: {{base: 2s, factor: 1, max: 2s}}\n"
        );
        let options = OperatorOptions {
            config: options().config + &config,
            issuer: issuer.to_owned(),
            directory: Some(proxies.origin() + directory),
            ..options()
        };
        let mut operator = Operator::install(&ground.bench, options).await?;
        operator.credentials("dns", "secret", TSIG_KEY).await?;
        if let Some(secret) = secret {
            operator.credentials("eab", "hmac", secret).await?;
        }
        operator.run().await?;
        let space = Space::new(ground.bench.client()?, tag, operator.namespace()).await?;
        Ok(Self {
            ground,
            proxies,
            operator,
            space,
        })
    }

    /// A Secret that asks for these names.
    async fn ask(&self, name: &str, names: &str) -> Result<()> {
        let annotations = [("issuer", "pebble"), ("names", names)];
        self.space.tls_secret(name, None, &annotations).await?;
        Ok(())
    }

    async fn issued(&self, name: &str, names: &str) -> Result<Secret> {
        self.ask(name, names).await?;
        renewed(&self.space, name, "").await
    }

    /// Requests to the CA whose path ends so.
    fn asked(&self, path: &str) -> Vec<Passed> {
        let mut all = self.proxies.passed();
        all.retain(|it| it.server == Server::Ca && it.path.ends_with(path));
        all
    }

    /// How many challenges the CA was told to look at.
    fn told(&self) -> usize {
        let mut all = self.proxies.passed();
        all.retain(|it| it.server == Server::Ca && it.path.contains("/challenge/"));
        all.len()
    }
}

/// The same as [`renewed`], for what takes longer.
async fn renewed_later(space: &Space, name: &str) -> Result<Secret> {
    eventually(PATIENTLY, &format!("{name} is issued"), async || {
        let secret = space.secrets().get(name).await?;
        ensure!(!data(&secret, "tls.crt").is_empty(), "it is not");
        Ok(secret)
    })
    .await?;
    renewed(space, name, "").await
}

async fn issue(at: At<'_>) -> Result<String> {
    let site = Site::start(at, true).await?;
    let host = at.host();
    let secret = site.issued("tls", &format!("{host}, www.{host}")).await?;
    let leaf = leaf(&secret)?;
    ensure!(leaf.names.len() == 2, "{:?}", leaf.names);
    let chain = data(&secret, "tls.crt");
    let chain = chain.matches("-----BEGIN CERTIFICATE-----").count();
    ensure!(chain == 2, "{chain} certificates in the chain");
    let requests = site.asked("").len();
    let hours = leaf.lifetime().as_secs() / 3_600;
    Ok(format!(
        "two names and an intermediate, for {hours} h, in {requests} requests with a new account"
    ))
}

async fn renew(at: At<'_>) -> Result<String> {
    let site = Site::start(at, true).await?;
    let first = site.issued("tls", &at.host()).await?;
    let before = site.asked("").len();
    site.space.annotate("tls", "renew-now", "force 1").await?;
    let second = renewed(&site.space, "tls", &data(&first, "tls.crt")).await?;
    ensure!(
        data(&first, "tls.key") != data(&second, "tls.key"),
        "the key is the old one"
    );
    let accounts = site.asked("/new-account").into_iter();
    let accounts = accounts.filter(|it| it.status == Some(201)).count();
    ensure!(accounts == 1, "{accounts} accounts were made");
    let requests = site.asked("").len() - before;
    Ok(format!(
        "{requests} requests with the account that is there"
    ))
}

async fn five_minutes(at: At<'_>) -> Result<String> {
    let site = Site::start(at, true).await?;
    let host = at.host();
    let annotations = [("issuer", "pebble"), ("names", &*host), ("lifetime", "5m")];
    site.space.tls_secret("tls", None, &annotations).await?;
    renewed(&site.space, "tls", "").await?;
    let (mut leaves, mut least) = (BTreeSet::new(), i64::MAX);
    eventually(LONG, "two renewals by the clock", async || {
        let leaf = leaf(&site.space.secrets().get("tls").await?)?;
        let now = UnixTime::now();
        let left = leaf.not_after.0 - now.0;
        ensure!(left <= 300, "it ends in {left} s");
        assert!(leaf.is_valid_at(now), "it has expired at {now}");
        least = least.min(left);
        leaves.insert(leaf.fingerprint);
        ensure!(leaves.len() >= 3, "{} certificates", leaves.len());
        Ok(())
    })
    .await?;
    Ok(format!(
        "two renewals by the clock, never less than {least} s left"
    ))
}

async fn revoke(at: At<'_>) -> Result<String> {
    let site = Site::start(at, true).await?;
    let first = site.issued("tls", &at.host()).await?;
    let serial = leaf(&first)?.serial;
    let place = format!("{}/tls", site.space.name);
    let bench = &site.ground.bench;
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_cert-renew"))
        .args(["revoke", &place, "--yes", "--reason", "keyCompromise"])
        .args(["--operator-namespace", site.operator.namespace()])
        .arg("--ca-bundle")
        .arg(bench.ca_bundle())
        .env("KUBECONFIG", bench.kubeconfig())
        .output()
        .await?;
    ensure!(output.status.success(), "{output:?}");
    let second = renewed(&site.space, "tls", &data(&first, "tls.crt")).await?;
    ensure!(
        data(&first, "tls.key") != data(&second, "tls.key"),
        "the key is the revoked one"
    );
    let answers = site.asked("/revoke-cert");
    let answers: Vec<_> = answers.iter().filter_map(|it| it.status).collect();
    ensure!(answers == [200], "the CA answered {answers:?}");
    let listed = match at.ca.make() {
        Make::Caddy => "it publishes no list",
        Make::StepCa => {
            eventually(SOON, "the CA lists it as revoked", async || {
                let list = at.ca.revoked().await?;
                let found = list.windows(serial.len()).any(|it| *it == *serial);
                ensure!(found, "not among {} bytes", list.len());
                Ok(())
            })
            .await?;
            "its list has the certificate"
        }
    };
    Ok(format!(
        "the CA agrees, {listed}, and another key is issued for at once"
    ))
}

async fn wiped(ground: &Ground, make: Make) -> Result<String> {
    let bench = &ground.bench;
    let name = format!("{}-wiped", make.name());
    let ca = ForeignCa::start(bench, make, &name, resolver()).await?;
    let at = At {
        ground,
        ca: &ca,
        tag: "wiped",
    };
    let site = Site::start(at, true).await?;
    let first = site.issued("tls", &at.host()).await?;
    // Its order is open when the CA forgets it.
    site.ask("waits", &at.nowhere()).await?;
    eventually(SOON, "the order is on record", async || {
        let count = records(bench, &site.operator).await?;
        ensure!(count == 1, "{count} records");
        Ok(())
    })
    .await?;
    ca.wipe(bench).await?;
    let started = Instant::now();
    ground.add_host(&at.nowhere()).await?;
    site.space.annotate("tls", "renew-now", "force 1").await?;
    renewed(&site.space, "tls", &data(&first, "tls.crt")).await?;
    let renewed = started.elapsed().as_secs();
    renewed_later(&site.space, "waits").await?;
    let accounts = site.asked("/new-account").into_iter();
    let accounts = accounts.filter(|it| it.status == Some(201)).count();
    ensure!(accounts == 2, "{accounts} accounts were made");
    Ok(format!(
        "account made again; renewed {renewed} s after, the order that it forgot {} s after",
        started.elapsed().as_secs()
    ))
}

async fn killed(at: At<'_>, after: bool) -> Result<String> {
    let mut site = Site::start(at, true).await?;
    let killed = Arc::new(AtomicBool::new(false));
    let killer = site.operator.killer()?;
    let kill: Action = {
        let killed = Arc::clone(&killed);
        Arc::new(move || {
            killer();
            killed.store(true, Ordering::SeqCst);
        })
    };
    let once = AtomicBool::new(false);
    site.proxies.rule(move |passed| {
        let finalizes = passed.server == Server::Ca && passed.path.ends_with("/finalize");
        match finalizes && !once.swap(true, Ordering::SeqCst) {
            false => Fault::Pass,
            true if after => Fault::After(Arc::clone(&kill)),
            true => Fault::Before(Arc::clone(&kill)),
        }
    });
    site.ask("tls", &at.host()).await?;
    eventually(SOON, "the operator is killed", async || {
        ensure!(killed.load(Ordering::SeqCst), "it has not come so far");
        Ok(())
    })
    .await?;
    site.operator.process()?.ended(SOON).await?;
    site.operator.kill();
    let started = Instant::now();
    site.operator.run().await?;
    renewed(&site.space, "tls", "").await?;
    let orders = site.asked("/new-order").len();
    ensure!(orders == 1, "{orders} orders");
    let finalized = site.asked("/finalize").into_iter();
    let finalized = finalized.filter(|it| it.status == Some(200)).count();
    ensure!(finalized == 1, "finalized {finalized} times");
    no_record_is_left(&site.ground.bench, &site.operator).await?;
    Ok(format!(
        "one order, one certificate, {} s after the restart",
        started.elapsed().as_secs()
    ))
}

async fn no_such_name(at: At<'_>) -> Result<String> {
    let site = Site::start(at, true).await?;
    let (name, started) = (at.nowhere(), Instant::now());
    site.ask("tls", &name).await?;
    event(&site.space, "tls", "NXDOMAIN").await?;
    let told = started.elapsed().as_secs();
    ensure!(site.told() == 0, "the CA was told to look");
    let started = Instant::now();
    at.ground.add_host(&name).await?;
    renewed_later(&site.space, "tls").await?;
    let orders = site.asked("/new-order").len();
    Ok(format!(
        "NXDOMAIN told after {told} s, the CA not asked to look; issued {} s after it was mended, {orders} order",
        started.elapsed().as_secs()
    ))
}

/// What keeps the CA from its proof at first.
#[derive(Clone, Copy)]
enum Trouble {
    /// The name does not exist.
    Name,
    /// Requests do not reach the operator.
    Route,
}

/// Nobody looks before the CA does.
async fn mended(at: At<'_>, trouble: Trouble) -> Result<String> {
    let site = Site::start(at, false).await?;
    let edge = site.ground.bench.edge();
    let address = site.operator.challenge_address();
    let name = match trouble {
        Trouble::Name => at.nowhere(),
        Trouble::Route => at.host(),
    };
    if let Trouble::Route = trouble {
        edge.remove(address);
    }
    let started = Instant::now();
    site.ask("tls", &name).await?;
    let quoted = event(&site.space, "tls", WORDS);
    let quoted = quoted.await.context("the CA's words are told")?;
    ensure!(quoted.contains(&name), "it is not said of what: {quoted}");
    let told = started.elapsed().as_secs();
    let started = Instant::now();
    match trouble {
        Trouble::Name => at.ground.add_host(&name).await?,
        Trouble::Route => edge.add(address),
    }
    renewed_later(&site.space, "tls").await?;
    let (orders, told_to_look) = (site.asked("/new-order").len(), site.told());
    Ok(format!(
        "the CA's words told after {told} s; issued {} s after it was mended: {orders} orders, {told_to_look} requests to look",
        started.elapsed().as_secs()
    ))
}

async fn wildcard(at: At<'_>) -> Result<String> {
    let site = Site::start(at, true).await?;
    let name = format!("{}.dns01.{ZONE}", at.short());
    let secret = site.issued("tls", &format!("{name}, *.{name}")).await?;
    let names = leaf(&secret)?.names;
    ensure!(names.len() == 2, "{names:?}");
    await_values(resolver(), &format!("_acme-challenge.{name}"), 0).await?;
    no_record_is_left(&site.ground.bench, &site.operator).await?;
    Ok("by DNS-01; both values removed".into())
}

async fn binding(ground: &Ground) -> Result<String> {
    let bench = &ground.bench;
    let ca = ForeignCa::start(bench, Make::StepCa, "step-ca-bound", resolver()).await?;
    let (id, secret) = ca.external_account(bench).await?;
    let at = At {
        ground,
        ca: &ca,
        tag: "bound",
    };
    let issuer = format!("    eab: {{kid: {id}, hmacKey: {{secret: eab, key: hmac}}}}\n");
    let directory = "/acme/bound/directory";
    let site = Site::with(at, true, directory, &issuer, Some(&secret)).await?;
    site.issued("tls", &at.host()).await?;
    // It binds one account and no other.
    let other = Site::with(at, true, directory, &issuer, Some(&secret)).await?;
    other.ask("tls", &at.host()).await?;
    // Only step-ca's log says that it is bound already.
    event(&other.space, "tls", "internal error").await?;
    let refused = other.space.secrets().get("tls").await?;
    ensure!(data(&refused, "tls.crt").is_empty(), "it is issued");
    for log in [site.operator.log()?, other.operator.log()?] {
        ensure!(!log.contains(&secret), "the key is in the log");
    }
    Ok("bound and issued; a second account with the same key is refused".into())
}
