//! DNS hosts for `make interop`: BIND and PowerDNS from Debian, and moto, which emulates Route 53 and STS.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::net::TcpStream;

use crate::nameserver::{TSIG_KEY, TSIG_NAME, Zone, tool};
use crate::process::Process;
use crate::{Bench, ports};

/// Longest start of a server: each takes about a second, moto some more.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Longest request, far more than their answers take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Tells moto which service is meant; it checks no signature.
const SIGNED: &str = "AWS4-HMAC-SHA256 Credential=AKID/20260101/us-east-1/route53/aws4_request, SignedHeaders=host, \
    Signature=0";

async fn listens(process: &Process, address: SocketAddr) -> Result<()> {
    let up = async || {
        TcpStream::connect(address).await?;
        Ok(())
    };
    process.ready(START_DEADLINE, up).await
}

fn client() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder()
        .no_proxy()
        .timeout(TIMEOUT)
        .build()?)
}

/// A running BIND, whose zones the TSIG key of the bench may change (RFC 2136).
#[derive(Debug)]
pub struct Bind {
    _process: Arc<Process>,
    address: SocketAddr,
}

impl Bind {
    /// Starts one with these zones. Its name must be unique.
    ///
    /// # Errors
    /// When BIND is missing or does not start.
    pub async fn start(
        bench: &Bench,
        name: &str,
        address: SocketAddr,
        zones: &[Zone],
    ) -> Result<Self> {
        let directory = bench.directory().join(name);
        fs::create_dir(&directory)?;
        let mut config = format!(
            "options {{\n  directory \"{place}\";\n  listen-on port {port} {{ {ip}; }};\n  listen-on-v6 {{ none; }};\n  \
             recursion no;\n  dnssec-validation no;\n  notify no;\n  allow-transfer {{ 127.0.0.0/8; }};\n  \
             pid-file none;\n  session-keyfile none;\n  managed-keys-directory \"{place}\";\n}};\ncontrols {{ }};\n\
             key \"{TSIG_NAME}\" {{ algorithm hmac-sha256; secret \"{TSIG_KEY}\"; }};\n",
            place = directory.display(),
            port = address.port(),
            ip = address.ip(),
        );
        for zone in zones {
            fs::write(
                directory.join(format!("{}.zone", zone.name)),
                zone.file(address),
            )?;
            config += &format!(
                "zone \"{name}\" {{ type primary; file \"{name}.zone\"; allow-update {{ {who}; }}; }};\n",
                name = zone.name,
                who = if zone.updates {
                    format!("key \"{TSIG_NAME}\"")
                } else {
                    "none".into()
                },
            );
        }
        // It listens only on addresses of an interface. In a network namespace of its own, one may be added.
        let mut added = Command::new("ip");
        added.args([
            "address",
            "add",
            &format!("{}/32", address.ip()),
            "dev",
            "lo",
        ]);
        let added = added.output().context("BIND needs ip (iproute2)")?;
        ensure!(added.status.success(), "{added:?}");
        let file = directory.join("named.conf");
        fs::write(&file, config)?;
        let mut command = Command::new(tool("named").await?);
        command.args(["-g", "-n", "1", "-c"]).arg(&file);
        let process = Process::spawn(bench.group(), name, command)?;
        listens(&process, address).await?;
        Ok(Self {
            _process: process,
            address,
        })
    }

    /// Its address, for UDP and TCP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A running PowerDNS, whose zones are changed by its HTTP API.
#[derive(Debug)]
pub struct PowerDns {
    _process: Arc<Process>,
    api: String,
}

impl PowerDns {
    /// The key of the API.
    pub const KEY: &str = "the-key-of-the-api";

    /// Starts one with these zones. Its name must be unique.
    ///
    /// # Errors
    /// When PowerDNS is missing, does not start or refuses a zone.
    pub async fn start(
        bench: &Bench,
        name: &str,
        address: SocketAddr,
        zones: &[Zone],
    ) -> Result<Self> {
        let directory = bench.directory().join(name);
        fs::create_dir(&directory)?;
        let listens_at = ports::free()?;
        let config = format!(
            "launch=lmdb\nlmdb-filename={place}/pdns.lmdb\nlocal-address={ip}\nlocal-port={port}\nsocket-dir={place}\n\
             api=yes\napi-key={key}\nwebserver=yes\nwebserver-address={web_ip}\nwebserver-port={web_port}\n\
             webserver-allow-from=127.0.0.0/8\nallow-axfr-ips=127.0.0.0/8\ncache-ttl=0\nquery-cache-ttl=0\n\
             negquery-cache-ttl=0\nzone-cache-refresh-interval=0\n",
            place = directory.display(),
            ip = address.ip(),
            port = address.port(),
            key = Self::KEY,
            web_ip = listens_at.ip(),
            web_port = listens_at.port(),
        );
        fs::write(directory.join("pdns.conf"), config)?;
        let mut command = Command::new(tool("pdns_server").await?);
        command
            .arg(format!("--config-dir={}", directory.display()))
            .args(["--guardian=no", "--daemon=no", "--disable-syslog"])
            .arg("--write-pid=no");
        let process = Process::spawn(bench.group(), name, command)?;
        listens(&process, listens_at).await?;
        listens(&process, address).await?;
        let api = format!("http://{listens_at}");
        let http = client()?;
        for zone in zones {
            let wanted = json!({
                "name": format!("{}.", zone.name), "kind": "Native",
                "zone": format!("$ORIGIN {}.\n{}", zone.name, zone.file(address)),
            });
            let made = http
                .post(format!("{api}/api/v1/servers/localhost/zones"))
                .header("X-API-Key", Self::KEY)
                .body(wanted.to_string())
                .send()
                .await?;
            let (status, said) = (made.status(), made.text().await?);
            ensure!(
                status.is_success(),
                "PowerDNS says {status} to zone {}: {said}",
                zone.name
            );
        }
        Ok(Self {
            _process: process,
            api,
        })
    }

    /// URL of its HTTP server.
    #[must_use]
    pub fn api(&self) -> &str {
        &self.api
    }
}

/// A running moto: Route 53 and STS as far as their APIs go. It answers no DNS questions.
#[derive(Debug)]
pub struct Moto {
    _process: Arc<Process>,
    url: String,
    http: reqwest::Client,
}

impl Moto {
    /// Starts it. Its name must be unique.
    ///
    /// # Errors
    /// When moto is missing or does not start.
    pub async fn start(bench: &Bench, name: &str) -> Result<Self> {
        let address = ports::free()?;
        let mut command = Command::new(tool("moto_server").await?);
        command
            .args(["-H", &address.ip().to_string()])
            .args(["-p", &address.port().to_string()]);
        let process = Process::spawn(bench.group(), name, command)?;
        let url = format!("http://{address}");
        let http = client()?;
        let data = format!("{url}/moto-api/data.json");
        let probe = async || {
            http.get(&data).send().await?.error_for_status()?;
            Ok(())
        };
        process.ready(START_DEADLINE, probe).await?;
        Ok(Self {
            _process: process,
            url,
            http,
        })
    }

    /// Its URL, for both Route 53 and STS.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Makes a hosted zone and returns its identifier.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn hosted_zone(&self, name: &str, private: bool) -> Result<String> {
        let vpc = match private {
            true => "<VPC><VPCRegion>us-east-1</VPCRegion><VPCId>vpc-1</VPCId></VPC>",
            false => "",
        };
        let body = format!(
            "<CreateHostedZoneRequest xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"><Name>{name}</Name>{vpc}\
             <CallerReference>{name}-{private}</CallerReference><HostedZoneConfig><PrivateZone>{private}</PrivateZone>\
             </HostedZoneConfig></CreateHostedZoneRequest>"
        );
        let said = self.told("hostedzone", body).await?;
        let id = said
            .split_once("<Id>")
            .and_then(|(_, rest)| rest.split_once("</Id>"));
        let (id, _) = id.context("a hosted zone without an identifier")?;
        Ok(id.trim_start_matches("/hostedzone/").to_owned())
    }

    /// Adds a TXT record as somebody else's.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn add_text(&self, zone: &str, name: &str, value: &str) -> Result<()> {
        let body = format!(
            "<ChangeResourceRecordSetsRequest xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"><ChangeBatch>\
             <Changes><Change><Action>CREATE</Action><ResourceRecordSet><Name>{name}</Name><Type>TXT</Type><TTL>60</TTL>\
             <ResourceRecords><ResourceRecord><Value>\"{value}\"</Value></ResourceRecord></ResourceRecords>\
             </ResourceRecordSet></Change></Changes></ChangeBatch></ChangeResourceRecordSetsRequest>"
        );
        self.told(&format!("hostedzone/{zone}/rrset"), body)
            .await
            .map(drop)
    }

    async fn told(&self, path: &str, body: String) -> Result<String> {
        let answer = self
            .http
            .post(format!("{}/2013-04-01/{path}", self.url))
            .header("authorization", SIGNED)
            .body(body)
            .send()
            .await?;
        let (status, said) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "moto says {status}: {said}");
        Ok(said)
    }

    /// The names in a hosted zone with the TXT values of each, unquoted.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn texts(&self, zone: &str) -> Result<Vec<(String, Vec<String>)>> {
        let url = format!("{}/2013-04-01/hostedzone/{zone}/rrset", self.url);
        let said = self.http.get(url).header("authorization", SIGNED);
        let said = said.send().await?.error_for_status()?.text().await?;
        let between = |text: &str, tag: &str| {
            let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
            let parts = text.split(&open).skip(1);
            let parts = parts.filter_map(|it| Some(it.split_once(&close)?.0.to_owned()));
            parts.collect::<Vec<_>>()
        };
        let mut found = Vec::new();
        for set in between(&said, "ResourceRecordSet") {
            if !between(&set, "Type").contains(&"TXT".to_owned()) {
                continue;
            }
            let values = between(&set, "Value").into_iter();
            let values = values.map(|it| it.replace("&quot;", "\"").trim_matches('"').to_owned());
            let name = between(&set, "Name").concat();
            found.push((name.trim_end_matches('.').to_owned(), values.collect()));
        }
        Ok(found)
    }
}
