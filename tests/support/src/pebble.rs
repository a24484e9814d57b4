//! Pebble, the ACME CA of the bench, and `pebble-challtestsrv`, the DNS server that it asks.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::control_plane::ControlPlane;
use crate::group::Group;
use crate::pki::{Authority, Pair};
use crate::process::Process;
use crate::{ports, runtime};

/// Longest start: it takes well under a second unless the machine is overloaded.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Longest request to the management port, far more than any takes.
const HANG_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two health checks.
const WATCH_PAUSE: Duration = Duration::from_secs(5);

const DEADLOCK: &str = "Pebble hangs: version 2.10.1 deadlocks (the lock of its store against those of orders and \
    authorizations) when some 8 orders or more are polled without a pause; poll first after 100 ms and keep to Retry-After";

/// Options of a Pebble.
#[derive(Clone, Debug)]
pub struct PebbleOptions {
    /// Name of its log and its files; unique within a bench.
    pub name: String,
    /// Share of good nonces that are refused nevertheless, in per cent.
    pub nonce_reject: u8,
    /// Share of orders that reuse a valid authorization, in per cent.
    pub authorization_reuse: u8,
    /// Number of chains besides the default one.
    pub alternate_roots: u8,
    /// Profiles and the validity of their certificates. Pebble picks one at random for an order that names none.
    pub profiles: BTreeMap<String, Duration>,
    /// Key identifiers and MAC keys (base64url); if there are any, external account binding is required.
    pub external_accounts: BTreeMap<String, String>,
    /// Port to which it connects for HTTP-01 instead of the edge of the bench.
    pub http_port: Option<u16>,
    /// The DNS server that it asks instead of the bench's own.
    pub dns: Option<SocketAddr>,
    /// Its names in CAA records.
    pub caa_identities: Vec<String>,
    /// Retry-After of pending objects in seconds; none if 0.
    pub retry_after: u64,
}

impl Default for PebbleOptions {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let profiles = [
            ("default", 90 * DAY),
            ("shortlived", 6 * DAY),
            ("minute", Duration::from_secs(90)),
            ("minutes", Duration::from_secs(300)),
        ];
        Self {
            name: "pebble".to_owned(),
            nonce_reject: 0,
            authorization_reuse: 0,
            alternate_roots: 1,
            profiles: profiles
                .map(|(name, validity)| (name.to_owned(), validity))
                .into(),
            external_accounts: BTreeMap::new(),
            http_port: None,
            dns: None,
            caa_identities: Vec::new(),
            retry_after: 1,
        }
    }
}

/// What a Pebble needs from its bench.
pub(crate) struct Ground<'a> {
    pub(crate) group: &'a Arc<Group>,
    pub(crate) control_plane: &'a ControlPlane,
    pub(crate) authority: &'a Authority,
    /// PEM file of `authority`.
    pub(crate) ca_bundle: &'a Path,
    pub(crate) dns: SocketAddr,
    pub(crate) http_port: u16,
}

/// Starts the program with its configuration.
struct Spawn(Box<dyn Fn() -> Result<Arc<Process>> + Send + Sync>);

impl std::fmt::Debug for Spawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spawn(..)")
    }
}

/// A running Pebble.
#[derive(Debug)]
pub struct Pebble {
    process: Arc<Process>,
    spawn: Spawn,
    directory: String,
    management: String,
    ca_bundle: PathBuf,
    dns: SocketAddr,
    http: reqwest::Client,
}

impl Pebble {
    pub(crate) async fn start(ground: &Ground<'_>, options: &PebbleOptions) -> Result<Self> {
        ports::retry(async || Self::try_start(ground, options).await).await
    }

    async fn try_start(ground: &Ground<'_>, options: &PebbleOptions) -> Result<Self> {
        let name = &options.name;
        let file = |suffix: &str| ground.group.directory().join(format!("{name}{suffix}"));
        let Pair { certificate, key } = ground.authority.server(name)?;
        fs::write(file(".crt"), certificate)?;
        fs::write(file(".key"), key)?;
        let (acme, management) = (ports::free()?, ports::free()?);
        let profiles: BTreeMap<_, _> = options
            .profiles
            .iter()
            .map(|(name, validity)| {
                (name, json!({"description": format!("valid for {validity:?}"), "validityPeriod": validity.as_secs()}))
            })
            .collect();
        let config = json!({"pebble": {
            "listenAddress": acme,
            "managementListenAddress": management,
            "certificate": file(".crt"),
            "privateKey": file(".key"),
            "httpPort": options.http_port.unwrap_or(ground.http_port),
            // No server listens there: TLS-ALPN-01 is not used.
            "tlsPort": 1,
            "externalAccountBindingRequired": !options.external_accounts.is_empty(),
            "externalAccountMACKeys": options.external_accounts,
            "caaIdentities": options.caa_identities,
            "keyAlgorithm": "ecdsa",
            "profiles": profiles,
            "retryAfter": {"authz": options.retry_after, "order": options.retry_after},
        }});
        fs::write(file(".json"), config.to_string())?;
        let dns = options.dns.unwrap_or(ground.dns);
        let program = ground.control_plane.program("pebble");
        let (nonce_reject, reuse, roots) = (
            options.nonce_reject.to_string(),
            options.authorization_reuse.to_string(),
            options.alternate_roots.to_string(),
        );
        let (group, name, config) = (Arc::clone(ground.group), name.clone(), file(".json"));
        let spawn = Box::new(move || {
            let mut command = Command::new(&program);
            command
                .arg("-strict")
                .arg("-config")
                .arg(&config)
                .args(["-dnsserver", &dns.to_string()])
                .env("PEBBLE_VA_NOSLEEP", "1")
                .env("PEBBLE_WFE_NONCEREJECT", &nonce_reject)
                .env("PEBBLE_AUTHZREUSE", &reuse)
                .env("PEBBLE_ALTERNATE_ROOTS", &roots);
            Process::spawn(&group, &name, command)
        });
        let process = spawn()?;
        let certificate = reqwest::Certificate::from_pem(ground.authority.pem().as_bytes())?;
        // Pebble refuses requests without a User-Agent (RFC 8555, 6.1).
        let http = reqwest::Client::builder()
            .user_agent("test-bench")
            .no_proxy()
            .tls_certs_only([certificate])
            .timeout(HANG_TIMEOUT)
            .build()?;
        let pebble = Self {
            process,
            spawn: Spawn(spawn),
            directory: format!("https://{acme}/dir"),
            management: format!("https://{management}"),
            ca_bundle: ground.ca_bundle.to_owned(),
            dns,
            http,
        };
        pebble.ready().await?;
        pebble.watch();
        Ok(pebble)
    }

    async fn ready(&self) -> Result<()> {
        self.process
            .ready(START_DEADLINE, async || {
                let answer = self.http.get(&self.directory).send().await?;
                answer.error_for_status()?;
                self.manage(Method::GET, "/roots/0", "").await?;
                Ok(())
            })
            .await
    }

    /// Ends it and starts it again at the same address, with all its state lost: accounts, orders, roots.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill();
        self.process = (self.spawn.0)()?;
        self.ready().await?;
        self.watch();
        Ok(())
    }

    /// Checks it in the background, so that a test that waits in vain reports the reason.
    fn watch(&self) {
        let (process, http, management) = (
            Arc::downgrade(&self.process),
            self.http.clone(),
            self.management.clone(),
        );
        runtime().spawn(async move {
            while let Some(process) = process.upgrade() {
                let hangs = hangs(&http, &management).await;
                process.complain(hangs.then(|| DEADLOCK.to_owned()));
                drop(process);
                sleep(WATCH_PAUSE).await;
            }
        });
    }

    /// URL of the ACME directory.
    #[must_use]
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// PEM file of the CA that signed Pebble's own TLS certificate (not of what it issues: see [`Self::root`]).
    #[must_use]
    pub fn ca_bundle(&self) -> &Path {
        &self.ca_bundle
    }

    /// The DNS server that Pebble asks, for UDP and TCP: every name has the address of the bench's loopback, and none of the
    /// other family.
    #[must_use]
    pub fn dns(&self) -> SocketAddr {
        self.dns
    }

    /// Its process, to stop or to kill it.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// PEM of a root of the certificates that it issues: 0 of the default chain, 1 and up of the alternates.
    ///
    /// # Errors
    /// When Pebble does not answer, or has no such chain.
    pub async fn root(&self, chain: u8) -> Result<String> {
        self.manage(Method::GET, &format!("/roots/{chain}"), "")
            .await
    }

    /// Overrides ARI for a certificate (PEM) by the literal body of the answer, which need not be valid.
    ///
    /// # Errors
    /// When Pebble does not answer, or has not issued the certificate.
    pub async fn set_renewal_info(&self, certificate: &str, ari: &str) -> Result<()> {
        let body = json!({"Certificate": certificate, "ARIResponse": ari}).to_string();
        self.manage(Method::POST, "/set-renewal-info/", &body)
            .await
            .map(drop)
    }

    /// Its status of a certificate, by the serial number in hexadecimal.
    ///
    /// # Errors
    /// When Pebble does not answer, or has not issued the certificate.
    pub async fn certificate_status(&self, serial: &str) -> Result<String> {
        self.manage(Method::GET, &format!("/cert-status-by-serial/{serial}"), "")
            .await
    }

    /// Checks that it runs and answers.
    ///
    /// # Errors
    /// When it has ended, or hangs by its known deadlock.
    pub async fn health(&self) -> Result<()> {
        if let Some(death) = self.process.death() {
            bail!("{death}");
        }
        ensure!(!hangs(&self.http, &self.management).await, "{DEADLOCK}");
        Ok(())
    }

    async fn manage(&self, method: Method, path: &str, body: &str) -> Result<String> {
        let url = format!("{}{path}", self.management);
        let request = self.http.request(method, &url).body(body.to_owned());
        answer("Pebble", request, &url).await
    }
}

/// What a program answers to a request, which is an error unless it is a success.
async fn answer(program: &str, request: reqwest::RequestBuilder, url: &str) -> Result<String> {
    let response = request.send().await?;
    let status = response.status();
    let text = response.text().await?;
    ensure!(
        status.is_success(),
        "{program} answers {status} to {url}: {text}"
    );
    Ok(text)
}

async fn hangs(http: &reqwest::Client, management: &str) -> bool {
    // An unknown certificate: 404, but only after taking the lock that the deadlock holds.
    let answer = http
        .get(format!("{management}/cert-status-by-serial/1"))
        .send()
        .await;
    answer.is_err_and(|error| error.is_timeout())
}

/// The DNS server of the bench.
#[derive(Debug)]
pub struct Dns {
    process: Arc<Process>,
    address: SocketAddr,
    management: String,
    http: reqwest::Client,
}

impl Dns {
    pub(crate) async fn start(group: &Arc<Group>, control_plane: &ControlPlane) -> Result<Self> {
        ports::retry(async || Self::try_start(group, control_plane).await).await
    }

    async fn try_start(group: &Arc<Group>, control_plane: &ControlPlane) -> Result<Self> {
        let (address, management) = (ports::free()?, ports::free()?);
        let mut command = Command::new(control_plane.program("pebble-challtestsrv"));
        let (ipv4, ipv6) = match address {
            SocketAddr::V4(_) => ("127.0.0.1", ""),
            SocketAddr::V6(_) => ("", "::1"),
        };
        command.args(["-defaultIPv4", ipv4, "-defaultIPv6", ipv6]);
        command.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""]);
        command.args([
            "-dnsserver",
            &address.to_string(),
            "-management",
            &management.to_string(),
        ]);
        let process = Process::spawn(group, "pebble-challtestsrv", command)?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(HANG_TIMEOUT)
            .build()?;
        let dns = Self {
            process,
            address,
            management: format!("http://{management}"),
            http,
        };
        let default = json!({"ip": ipv4});
        dns.process
            .ready(START_DEADLINE, async || {
                dns.set("set-default-ipv4", &default).await.map(drop)
            })
            .await?;
        Ok(dns)
    }

    /// Its address, for UDP and TCP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Calls one of the management paths of `pebble-challtestsrv`, such as `set-txt` or `set-servfail`.
    ///
    /// # Errors
    /// When it does not answer or refuses.
    pub async fn set(&self, what: &str, arguments: &Value) -> Result<String> {
        let url = format!("{}/{what}", self.management);
        let request = self.http.post(&url).body(arguments.to_string());
        answer("pebble-challtestsrv", request, &url).await
    }
}
