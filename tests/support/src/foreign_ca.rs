//! ACME servers other than Pebble: step-ca and Caddy, built from the modules pinned in `tests/interop/go.mod` into the
//! cache beside the control plane, for `make interop` only.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::sync::Mutex;

use crate::control_plane::{Build, Program, cache_root, fingerprint_of};
use crate::process::Process;
use crate::{Bench, ports};

/// The quickest first, so that a mistake shows early.
const PROGRAMS: [Program; 3] = [
    ("step-ca-eab", "./eab"),
    ("step-ca", "github.com/smallstep/certificates/cmd/step-ca"),
    ("caddy", "github.com/caddyserver/caddy/v2/cmd/caddy"),
];
/// Longest start of a server: each takes about a second.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Longest request, far more than a directory takes.
const HANG_TIMEOUT: Duration = Duration::from_secs(5);

/// Builds the missing programs and returns their directory.
///
/// # Errors
/// When Go is missing or a build fails.
pub fn ensure_foreign_cas() -> Result<PathBuf> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../interop");
    let files = ["go.mod", "go.sum", "eab/main.go"];
    let fingerprint = fingerprint_of(&module, &files, &format!("{PROGRAMS:?}"))?;
    let cache = cache_root()?.join(format!("interop-{fingerprint}"));
    Build::new("interop", &module, &cache).ensure(&PROGRAMS, || Ok(()))?;
    Ok(cache)
}

/// The kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    /// `step-ca` with an ACME provisioner, and one that requires an external account binding.
    StepCa,
    /// Caddy's `acme_server`.
    Caddy,
}

impl Make {
    /// Its usual name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::StepCa => "step-ca",
            Self::Caddy => "Caddy",
        }
    }

    /// Path of its ACME directory.
    #[must_use]
    pub fn directory(self) -> &'static str {
        match self {
            Self::StepCa => "/acme/acme/directory",
            Self::Caddy => "/acme/bench/directory",
        }
    }
}

/// A running server of this kind. HTTP-01 goes to port 80, as usual.
#[derive(Debug)]
pub struct ForeignCa {
    make: Make,
    name: String,
    address: SocketAddr,
    programs: PathBuf,
    /// Its database, which can be lost.
    state: PathBuf,
    config: PathBuf,
    dns: SocketAddr,
    process: Mutex<Arc<Process>>,
    http: reqwest::Client,
}

impl ForeignCa {
    /// Starts one that asks `dns`, Caddy for TXT records only: it resolves hosts as the machine does. Its name must be
    /// unique.
    ///
    /// # Errors
    /// When it is not built, or does not start.
    pub async fn start(bench: &Bench, make: Make, name: &str, dns: SocketAddr) -> Result<Self> {
        let programs = tokio::task::spawn_blocking(ensure_foreign_cas).await??;
        let directory = bench.directory().join(name);
        fs::create_dir(&directory)?;
        let address = ports::free()?;
        let state = directory.join("state");
        let config = directory.join("config.json");
        let text = match make {
            Make::StepCa => step_ca(bench, name, &directory, address, &state)?,
            Make::Caddy => caddy(bench, name, &directory, address, dns)?,
        };
        fs::write(&config, text)?;
        fs::create_dir(&state)?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([reqwest::Certificate::from_pem(&fs::read(
                bench.ca_bundle(),
            )?)?])
            .timeout(HANG_TIMEOUT)
            .build()?;
        let process = spawn(bench, make, name, &programs, &config, &state, dns)?;
        let ca = Self {
            make,
            name: name.to_owned(),
            address,
            programs,
            state,
            config,
            dns,
            process: Mutex::new(process),
            http,
        };
        ca.ready().await?;
        Ok(ca)
    }

    async fn ready(&self) -> Result<()> {
        let url = format!("{}{}", self.origin(), self.make.directory());
        let probe = async || {
            self.http.get(&url).send().await?.error_for_status()?;
            Ok(())
        };
        let process = Arc::clone(&*self.process.lock().await);
        process.ready(START_DEADLINE, probe).await
    }

    /// The kind of server.
    #[must_use]
    pub fn make(&self) -> Make {
        self.make
    }

    /// Its URL, without a path.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Ends it, deletes its database and starts it again.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn wipe(&self, bench: &Bench) -> Result<()> {
        self.restart(bench, |state| {
            fs::remove_dir_all(state)?;
            Ok(fs::create_dir(state)?)
        })
        .await
    }

    /// Makes a key for an external account binding: identifier and secret. Only step-ca has them.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn external_account(&self, bench: &Bench) -> Result<(String, String)> {
        ensure!(self.make == Make::StepCa, "only step-ca binds accounts");
        let mut made = None;
        self.restart(bench, |state| {
            let program = self.programs.join("step-ca-eab");
            let output = Command::new(program)
                .arg(state.join("db"))
                .arg("bound")
                .output()?;
            ensure!(output.status.success(), "{output:?}");
            made = Some(String::from_utf8(output.stdout)?);
            Ok(())
        })
        .await?;
        let said = made.context("no key")?;
        let (id, secret) = said.trim().rsplit_once(' ').context("two words")?;
        // Messages of its database come first.
        let id = id.rsplit(char::is_whitespace).next().unwrap_or_default();
        Ok((id.to_owned(), secret.to_owned()))
    }

    async fn restart(
        &self,
        bench: &Bench,
        meanwhile: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        {
            let mut process = self.process.lock().await;
            process.signal("TERM")?;
            if process.ended(HANG_TIMEOUT).await.is_err() {
                process.kill();
            }
            meanwhile(&self.state)?;
            *process = spawn(
                bench,
                self.make,
                &self.name,
                &self.programs,
                &self.config,
                &self.state,
                self.dns,
            )?;
        }
        self.ready().await
    }

    /// Its certificate revocation list (DER), which only step-ca has.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn revoked(&self) -> Result<Vec<u8>> {
        let url = format!("{}/crl", self.origin());
        let answer = self.http.get(url).send().await?.error_for_status()?;
        Ok(answer.bytes().await?.to_vec())
    }
}

fn spawn(
    bench: &Bench,
    make: Make,
    name: &str,
    programs: &Path,
    config: &Path,
    state: &Path,
    dns: SocketAddr,
) -> Result<Arc<Process>> {
    let mut command = match make {
        Make::StepCa => {
            let mut command = Command::new(programs.join("step-ca"));
            command
                .arg(config)
                .args(["--quiet", "--resolver", &dns.to_string()])
                .arg("--password-file")
                .arg(config.with_file_name("password"));
            command
        }
        Make::Caddy => {
            let mut command = Command::new(programs.join("caddy"));
            command.args(["run", "--config"]).arg(config);
            command
        }
    };
    // It uses no settings of this user, and writes nowhere else.
    command
        .env_clear()
        .envs(["HOME", "STEPPATH", "XDG_DATA_HOME", "XDG_CONFIG_HOME"].map(|it| (it, state)));
    Process::spawn(bench.group(), name, command)
}

/// An intermediate of the bench's own CA signs, so that its endpoint is trusted like all others of the bench.
fn step_ca(
    bench: &Bench,
    name: &str,
    directory: &Path,
    address: SocketAddr,
    state: &Path,
) -> Result<String> {
    let pair = bench.authority().intermediate(name)?;
    let (certificate, key) = (directory.join("ca.crt"), directory.join("ca.key"));
    fs::write(&certificate, pair.certificate)?;
    fs::write(&key, pair.key)?;
    // Password of the administrator that it creates.
    fs::write(directory.join("password"), "nobody-administers-this")?;
    let config = json!({
        "root": bench.ca_bundle(), "crt": certificate, "key": key,
        "address": address, "dnsNames": ["127.0.0.1", "localhost"],
        "logger": {"format": "text"},
        "db": {"type": "badgerv2", "dataSource": state.join("db")},
        "crl": {"enabled": true, "generateOnRevoke": true},
        // Only provisioners in the database have an identifier, which keys for bindings need.
        "authority": {"enableAdmin": true, "provisioners": [
            {"type": "ACME", "name": "acme"},
            {"type": "ACME", "name": "bound", "requireEAB": true},
        ]},
    });
    Ok(config.to_string())
}

/// It signs with a CA that it makes itself, as usual; its endpoint has a certificate of the bench.
fn caddy(
    bench: &Bench,
    name: &str,
    directory: &Path,
    address: SocketAddr,
    dns: SocketAddr,
) -> Result<String> {
    let pair = bench.authority().server(name)?;
    let (certificate, key) = (directory.join("tls.crt"), directory.join("tls.key"));
    fs::write(&certificate, pair.certificate)?;
    fs::write(&key, pair.key)?;
    let server = json!({
        "listen": [address], "automatic_https": {"disable": true}, "tls_connection_policies": [{}],
        "routes": [{"handle": [{"handler": "acme_server", "ca": "bench", "resolvers": [dns]}]}],
    });
    let config = json!({
        "admin": {"disabled": true},
        "apps": {
            "pki": {"certificate_authorities": {"bench": {"name": "Bench", "install_trust": false}}},
            "tls": {"certificates": {"load_files": [{"certificate": certificate, "key": key}]}},
            "http": {"servers": {"acme": server}},
        },
    });
    Ok(config.to_string())
}
