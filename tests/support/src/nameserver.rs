//! A real DNS server, Knot from Debian, with the test's own zones.
//!
//! It listens on port 53 of a separate loopback address where this user may, so that it is found as every DNS server
//! is: by the NS records of its zones. Elsewhere it uses a free port, which [`Nameserver::propagation`] returns.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::group::Group;
use crate::pki::Authority;
use crate::process::Process;
use crate::{Bench, ports};

/// Longest start, which takes a fraction of a second.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// The name of the only TSIG key, HMAC-SHA256.
pub const TSIG_NAME: &str = "cert-renew-key";
/// The key, in base64.
pub const TSIG_KEY: &str = "c2l4dGVlbi1ieXRlcy1vZi1ub3RoaW5nLXNlY3JldC0=";
/// The script that gets tools from Debian.
const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools.sh");

/// A zone of a server.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Its name, without a dot at the end.
    pub name: String,
    /// Lines of the zone file besides SOA, NS and the addresses of its servers.
    pub records: String,
    /// Whether the TSIG key may change TXT records.
    pub updates: bool,
    /// The server that it is copied from at the start, and hardly ever later: it receives no notice of changes.
    pub primary: Option<SocketAddr>,
    /// Its servers besides this one.
    pub others: Vec<SocketAddr>,
}

impl Zone {
    /// A zone that the TSIG key may change.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            records: String::new(),
            updates: true,
            primary: None,
            others: Vec::new(),
        }
    }

    pub(crate) fn file(&self, address: SocketAddr) -> String {
        let mut text = format!(
            "$TTL 5\n@ SOA ns1 ops.{name}. 1 86400 86400 864000 1\n{records}\n",
            name = self.name,
            records = self.records
        );
        let servers = std::iter::once(&address).chain(&self.others);
        for (number, server) in servers.enumerate() {
            let _ = writeln!(text, "@ NS ns{n}\nns{n} A {}", server.ip(), n = number + 1);
        }
        text
    }

    fn clause(&self) -> String {
        let name = &self.name;
        let kind = match self.primary {
            // Nothing is stored, so that each start copies the zone.
            Some(_) => format!(
                "master: primary-{name}\n    zonefile-load: none\n    journal-content: none"
            ),
            None if self.updates => "acl: [update, transfer]".to_owned(),
            None => "acl: transfer".to_owned(),
        };
        format!("  - domain: {name}\n    file: {name}.zone\n    zonefile-sync: -1\n    {kind}\n")
    }

    fn remote(&self) -> String {
        let Some(primary) = self.primary else {
            return String::new();
        };
        let (ip, port) = (primary.ip(), primary.port());
        format!("  - id: primary-{}\n    address: {ip}@{port}\n", self.name)
    }
}

/// A running Knot.
#[derive(Debug)]
pub struct Nameserver {
    process: Arc<Process>,
    address: SocketAddr,
    name: String,
    config: PathBuf,
    group: Arc<Group>,
}

impl Nameserver {
    /// An address for a server that is started later.
    ///
    /// # Errors
    /// When no port is free.
    pub fn address_of_its_own() -> Result<SocketAddr> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let process = (std::process::id() % 100) as u8;
        let host = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from((Ipv4Addr::new(127, 100 + process, 53, host), 53));
        let free = TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok();
        if free { Ok(address) } else { ports::free() }
    }

    /// Starts a server with these zones. Its name must be unique.
    ///
    /// # Errors
    /// When Knot is missing or does not start.
    pub async fn start(
        bench: &Bench,
        name: &str,
        address: SocketAddr,
        zones: &[Zone],
    ) -> Result<Self> {
        let group = bench.group();
        let directory = group.directory().join(name);
        fs::create_dir(&directory)?;
        let mut config = format!(
            "server:\n  rundir: \"{directory}\"\n  listen: {ip}@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  \
             background-workers: 1\nlog:\n  - target: stderr\n    any: info\ndatabase:\n  storage: \"{directory}\"\n\
             key:\n  - id: {TSIG_NAME}\n    algorithm: hmac-sha256\n    secret: {TSIG_KEY}\n\
             acl:\n  - id: update\n    key: {TSIG_NAME}\n    action: update\n    update-type: [TXT]\n  \
             - id: transfer\n    address: 127.0.0.0/8\n    action: transfer\n",
            directory = directory.display(),
            port = address.port(),
            ip = address.ip(),
        );
        let remotes: String = zones.iter().map(Zone::remote).collect();
        if !remotes.is_empty() {
            config += &format!("remote:\n{remotes}");
        }
        config += &format!(
            "template:\n  - id: default\n    storage: \"{}\"\nzone:\n",
            directory.display()
        );
        for zone in zones {
            if zone.primary.is_none() {
                let file = directory.join(format!("{}.zone", zone.name));
                fs::write(file, zone.file(address))?;
            }
            config += &zone.clause();
        }
        let file = directory.join("knot.conf");
        fs::write(&file, config)?;
        let process = run(group, name, &file, address).await?;
        Ok(Self {
            process,
            address,
            name: name.to_owned(),
            config: file,
            group: Arc::clone(group),
        })
    }

    /// Stops it and starts it again, on which a secondary asks its primary.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill();
        self.process = run(&self.group, &self.name, &self.config, self.address).await?;
        Ok(())
    }

    /// Its address, for UDP and TCP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Members of a solver's `propagation` by which it is found, where it does not listen on port 53.
    #[must_use]
    pub fn propagation(servers: &[SocketAddr]) -> String {
        if servers.iter().all(|server| server.port() == 53) {
            return String::new();
        }
        let servers: Vec<String> = servers.iter().map(|it| format!("\"{it}\"")).collect();
        format!("servers: [{}]", servers.join(", "))
    }
}

/// A resolver, Unbound from Debian, that looks up the names of some zones at their servers, over CNAMEs from one zone
/// into another, as the resolver of a CA does.
#[derive(Debug)]
pub struct Recursor {
    process: Arc<Process>,
    address: SocketAddr,
    https: SocketAddr,
    directory: PathBuf,
}

impl Recursor {
    /// Starts it, for zones and the server of each. Its name must be unique.
    ///
    /// # Errors
    /// When Unbound is missing or does not start.
    pub async fn start(bench: &Bench, name: &str, zones: &[(&str, SocketAddr)]) -> Result<Self> {
        let address = ports::free()?;
        Self::run(bench, name, zones, address, String::new()).await
    }

    /// Starts one that answers only over TLS and over HTTPS, not by plain DNS, with a certificate of a CA of its own:
    /// [`Self::roots`].
    ///
    /// # Errors
    /// When Unbound is missing or does not start.
    pub async fn start_encrypted(
        bench: &Bench,
        name: &str,
        zones: &[(&str, SocketAddr)],
    ) -> Result<Self> {
        let (address, https) = (ports::free()?, ports::free()?);
        let directory = bench.group().directory().join(name);
        let authority = Authority::new("DNS")?;
        let pair = authority.server("resolver")?;
        fs::create_dir(&directory)?;
        let files = [
            ("roots.pem", authority.pem()),
            ("cert.pem", pair.certificate),
            ("key.pem", pair.key),
        ];
        for (name, text) in files {
            fs::write(directory.join(name), text)?;
        }
        let more = format!(
            "  interface: {ip}@{https_port}\n  tls-port: {tls_port}\n  https-port: {https_port}\n  \
             tls-service-pem: \"{directory}/cert.pem\"\n  tls-service-key: \"{directory}/key.pem\"\n",
            ip = https.ip(),
            tls_port = address.port(),
            https_port = https.port(),
            directory = directory.display(),
        );
        let mut started = Self::run(bench, name, zones, address, more).await?;
        started.https = https;
        Ok(started)
    }

    async fn run(
        bench: &Bench,
        name: &str,
        zones: &[(&str, SocketAddr)],
        address: SocketAddr,
        more: String,
    ) -> Result<Self> {
        let group = bench.group();
        let directory = group.directory().join(name);
        fs::create_dir_all(&directory)?;
        let mut config = format!(
            "server:\n  interface: {ip}@{port}\n{more}  do-not-query-localhost: no\n  username: \"\"\n  chroot: \"\"\n  \
             directory: \"{directory}\"\n  pidfile: \"\"\n  use-syslog: no\n  do-daemonize: no\n  num-threads: 1\n  \
             module-config: \"iterator\"\n  cache-max-ttl: 0\n  cache-max-negative-ttl: 0\n  \
             access-control: 127.0.0.0/8 allow\n  local-zone: \"example.\" nodefault\nremote-control:\n  \
             control-enable: no\n",
            ip = address.ip(),
            port = address.port(),
            directory = directory.display(),
        );
        for (zone, server) in zones {
            let (ip, port) = (server.ip(), server.port());
            let _ = write!(
                config,
                "stub-zone:\n  name: \"{zone}\"\n  stub-addr: {ip}@{port}\n"
            );
        }
        let file = directory.join("unbound.conf");
        fs::write(&file, config)?;
        let mut command = Command::new(tool("unbound").await?);
        command.arg("-d").arg("-c").arg(&file);
        let process = Process::spawn(group, name, command)?;
        let up = async || {
            TcpStream::connect(address).await?;
            Ok(())
        };
        process.ready(START_DEADLINE, up).await?;
        Ok(Self {
            process,
            address,
            https: address,
            directory,
        })
    }

    /// Ends it: no server answers there any more.
    pub fn stop(&self) {
        self.process.kill();
    }

    /// Its address, for UDP and TCP; for TLS if it is encrypted.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address over TLS, in the config's notation.
    #[must_use]
    pub fn tls_url(&self) -> String {
        format!("tls://{}", self.address)
    }

    /// Its address over HTTPS, in the config's notation; its certificate is for this name too.
    #[must_use]
    pub fn https_url(&self) -> String {
        format!("https://{}/dns-query#localhost", self.https)
    }

    /// The root of its certificate, a PEM file.
    #[must_use]
    pub fn roots(&self) -> PathBuf {
        self.directory.join("roots.pem")
    }
}

async fn run(
    group: &Arc<Group>,
    name: &str,
    config: &Path,
    address: SocketAddr,
) -> Result<Arc<Process>> {
    let mut command = Command::new(tool("knotd").await?);
    command.arg("-c").arg(config);
    let process = Process::spawn(group, name, command)?;
    process
        .ready(START_DEADLINE, async || {
            TcpStream::connect(address).await?;
            Ok(())
        })
        .await?;
    Ok(process)
}

/// The file of a program or library that `tests/tools.sh` gets.
///
/// # Errors
/// When it cannot be had: with the output of the script.
pub async fn tool(name: &'static str) -> Result<PathBuf> {
    // One at a time: two that get the same package would interfere.
    static FOUND: Mutex<BTreeMap<&str, PathBuf>> = Mutex::const_new(BTreeMap::new());
    let mut found = FOUND.lock().await;
    if let Some(path) = found.get(name) {
        return Ok(path.clone());
    }
    let output = tokio::process::Command::new(TOOLS)
        .arg(name)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{TOOLS} {name}: {said}");
    let path = PathBuf::from(String::from_utf8(output.stdout).context("a path")?.trim());
    found.insert(name, path.clone());
    Ok(path)
}
