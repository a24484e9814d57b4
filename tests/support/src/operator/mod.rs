//! The operator under test: a process of its own with a ServiceAccount of its own, under exactly the shipped `rbac/`.
//!
//! Many instances live side by side in one bench: each in a namespace of its own, which is also its class, and with
//! cluster roles of its own. Nothing else about the manifests is changed.

mod install;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::cluster::apply;
use crate::pebble::Pebble;
use crate::ports;
use crate::process::Process;

/// What the shipped manifests call the ServiceAccount, its namespace and, with a suffix or without, the cluster roles.
const SHIPPED_NAME: &str = "cert-renew";
/// The shipped manifests that every installation needs; the rest of the directory is opt-in.
const MANIFESTS: [&str; 5] = [
    "serviceaccount.yaml",
    "clusterrole.yaml",
    "clusterrolebinding.yaml",
    "role.yaml",
    "rolebinding.yaml",
];
/// The first list of a hundred thousand Secrets takes a while; an ordinary start takes milliseconds.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Handing over the lease and ending the work in hand may not take longer than the Pod's grace period.
const TERMINATION_DEADLINE: Duration = Duration::from_secs(30);
/// Longer than any test.
const TOKEN_SECONDS: i64 = 24 * 60 * 60;

/// One installation of the operator, and its process while it runs. Killed when dropped.
pub struct Operator<'a> {
    bench: &'a Bench,
    binary: PathBuf,
    namespace: String,
    token: String,
    directory: PathBuf,
    metrics: SocketAddr,
    challenges: SocketAddr,
    environment: BTreeMap<String, String>,
    http: reqwest::Client,
    process: Option<Arc<Process>>,
}

impl<'a> Operator<'a> {
    /// Installs the shipped manifests in a new namespace `cert-renew-<n>`. `binary` is `env!("CARGO_BIN_EXE_cert-renew")`.
    ///
    /// # Errors
    /// When the API server refuses something.
    pub async fn install(bench: &'a Bench, binary: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::install_as(bench, binary, &format!("{SHIPPED_NAME}-{count}")).await
    }

    /// Installs the shipped manifests in this namespace: with `cert-renew` they are not changed at all.
    ///
    /// # Errors
    /// When the API server refuses something.
    pub async fn install_as(bench: &'a Bench, binary: &str, namespace: &str) -> Result<Self> {
        let directory = bench.directory().join(namespace);
        fs::create_dir_all(&directory)?;
        let mut operator = Self {
            bench,
            binary: binary.into(),
            namespace: namespace.to_owned(),
            token: String::new(),
            directory,
            metrics: ports::free()?,
            challenges: ports::free()?,
            environment: BTreeMap::new(),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(5))
                .build()?,
            process: None,
        };
        let client = bench.client()?;
        let own = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        apply(&client, &own).await?;
        for manifest in MANIFESTS {
            operator.apply_shipped(manifest).await?;
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace);
        let request: TokenRequest = serde_json::from_value(
            json!({"spec": {"audiences": [], "expirationSeconds": TOKEN_SECONDS}}),
        )?;
        let granted = accounts
            .create_token_request(SHIPPED_NAME, &PostParams::default(), &request)
            .await?;
        operator.token = granted
            .status
            .context("a token request without a status")?
            .token;
        operator.connect_to(&format!("https://{}", bench.api_server()))?;
        Ok(operator)
    }

    /// The operator's own namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The value of `cert-renew.io/class` on the Secrets that are meant for this instance: its namespace, or `default`
    /// where it is installed as shipped.
    #[must_use]
    pub fn class(&self) -> &str {
        if self.namespace == SHIPPED_NAME {
            "default"
        } else {
            &self.namespace
        }
    }

    /// The Kubernetes user that it is.
    #[must_use]
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{}:{SHIPPED_NAME}", self.namespace)
    }

    /// The ordinary configuration, to be changed at will and given to [`Self::configure`]: the class, Pebble as the
    /// issuer `pebble` for every namespace and every name under `test`, HTTP-01 over the edge, and rollouts in a hurry.
    #[must_use]
    pub fn config(&self, pebble: &Pebble) -> Value {
        json!({
            "class": self.class(),
            "issuers": {"pebble": {
                "directory": pebble.directory(),
                "caBundle": pebble.ca_bundle(),
                // Pebble picks one at random for an order that names none.
                "profile": "default",
                "allow": [{"namespaces": ["*"], "names": ["**.test"]}],
            }},
            "solvers": [{"http01": {"route": "shared"}}],
            "rollout": {"settle": "0s", "perWorkloadMinInterval": "0s", "progressTimeout": "30s"},
            "dns": {"nameservers": [pebble.dns()]},
        })
    }

    /// Writes the config file, at once and whole, as a mounted ConfigMap changes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, config: &Value) -> Result<()> {
        // JSON is YAML.
        self.configure_text(&format!("{config:#}\n"))
    }

    /// Like [`Self::configure`], with the text as a user would write it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure_text(&self, config: &str) -> Result<()> {
        let unfinished = self.directory.join("config.unfinished");
        fs::write(&unfinished, config)?;
        Ok(fs::rename(unfinished, self.config_file())?)
    }

    /// The config file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("config.yaml")
    }

    /// The kubeconfig with the token of the ServiceAccount.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// From the next start on the API server is reached at this URL, for example through a proxy.
    ///
    /// # Errors
    /// When the kubeconfig cannot be written.
    pub fn connect_to(&self, server: &str) -> Result<()> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bench", "cluster": {
                "server": server,
                "certificate-authority-data": STANDARD.encode(fs::read(self.bench.ca_bundle())?),
            }}],
            "users": [{"name": SHIPPED_NAME, "user": {"token": self.token}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": SHIPPED_NAME}}],
            "current-context": "bench",
        });
        Ok(fs::write(self.kubeconfig(), format!("{config:#}\n"))?)
    }

    /// From the next start on this is in its environment, which holds `PATH` and `KUBECONFIG` only.
    pub fn env(&mut self, key: &str, value: &str) {
        self.environment.insert(key.to_owned(), value.to_owned());
    }

    /// Starts the process. Its output is appended to one file over all starts.
    ///
    /// # Errors
    /// When it cannot be started, or runs already.
    pub fn start(&mut self) -> Result<()> {
        ensure!(
            self.process
                .as_ref()
                .is_none_or(|process| process.exited().is_some()),
            "{} runs already",
            self.namespace
        );
        let mut command = Command::new(&self.binary);
        command
            .arg("run")
            .arg("--config")
            .arg(self.config_file())
            .args(["--namespace", &self.namespace])
            .args(["--metrics-address", &self.metrics.to_string()])
            .args(["--challenge-address", &self.challenges.to_string()])
            .args(["--log-format", "json"])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("KUBECONFIG", self.kubeconfig())
            .envs(&self.environment)
            .current_dir(&self.directory);
        self.process = Some(Process::spawn(
            self.bench.group(),
            &self.namespace,
            command,
        )?);
        self.bench.edge().add(self.challenges);
        Ok(())
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// When it ends or is not ready in time: with the end of its log.
    pub async fn wait_ready(&self) -> Result<()> {
        let probe = async || {
            self.get("readyz").await?;
            Ok(())
        };
        self.process()?.ready(READY_DEADLINE, probe).await
    }

    /// Configures, starts and waits until it is ready.
    ///
    /// # Errors
    /// As each of the three.
    pub async fn run(&mut self, config: &Value) -> Result<()> {
        self.configure(config)?;
        self.start()?;
        self.wait_ready().await
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub fn kill9(&self) {
        self.bench.edge().remove(self.challenges);
        if let Some(process) = &self.process {
            process.kill();
        }
    }

    /// Ends it with SIGTERM and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end in time, or not with success.
    pub async fn terminate(&self) -> Result<()> {
        let process = self.process()?;
        process.signal("TERM")?;
        let status = process.ended(TERMINATION_DEADLINE).await?;
        self.bench.edge().remove(self.challenges);
        ensure!(
            status.success(),
            "after SIGTERM {} ended with {status}\n{}",
            self.namespace,
            process.tail()
        );
        Ok(())
    }

    /// Freezes it (SIGSTOP).
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop(&self) -> Result<()> {
        self.process()?.signal("STOP")
    }

    /// Lets it go on after [`Self::stop`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn cont(&self) -> Result<()> {
        self.process()?.signal("CONT")
    }

    /// Ends it orderly, starts it again and waits until it is ready.
    ///
    /// # Errors
    /// When it does not end, start or become ready.
    pub async fn restart(&mut self) -> Result<()> {
        self.terminate().await?;
        self.start()?;
        self.wait_ready().await
    }

    /// The running process.
    ///
    /// # Errors
    /// When it was never started.
    pub fn process(&self) -> Result<&Process> {
        self.process
            .as_deref()
            .with_context(|| format!("{} was not started", self.namespace))
    }

    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    #[must_use]
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Where HTTP-01 is answered.
    #[must_use]
    pub fn challenge_address(&self) -> SocketAddr {
        self.challenges
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<String> {
        self.get("metrics").await
    }

    /// Value of a series by its exact text, for example `cert_renew_watch_up` or `x_total{result="ok"}`.
    ///
    /// # Errors
    /// When the operator does not answer or has no such series.
    pub async fn metric(&self, series: &str) -> Result<f64> {
        let metrics = self.metrics().await?;
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(value
            .with_context(|| format!("no series {series} in\n{metrics}"))?
            .trim()
            .parse()?)
    }

    /// All that it has written to standard output and standard error, over all starts.
    ///
    /// # Errors
    /// When it was never started.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.process()?.log())?).into_owned())
    }

    /// How many requests it has made, from the audit log, watches and leases aside: by verb and resource, for example
    /// `patch secrets`, `create pods/eviction` or `get /version`. Refused ones count too.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn requests(&self) -> Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        let user = format!("\"username\":\"{}\"", self.user());
        let log = fs::read_to_string(self.bench.audit_log())?;
        // The last line may be half written.
        let (log, _) = log.rsplit_once('\n').unwrap_or_default();
        for line in log.lines().filter(|line| line.contains(&user)) {
            let event: Value = serde_json::from_str(line)?;
            let verb = event["verb"].as_str().unwrap_or_default();
            let reference = &event["objectRef"];
            let mut what = match reference["resource"].as_str() {
                Some(resource) => resource.to_owned(),
                None => event["requestURI"].as_str().unwrap_or_default().to_owned(),
            };
            if let Some(subresource) = reference["subresource"].as_str() {
                what = format!("{what}/{subresource}");
            }
            if verb != "watch" && what != "leases" {
                *counts.entry(format!("{verb} {what}")).or_default() += 1;
            }
        }
        Ok(counts)
    }

    async fn get(&self, path: &str) -> Result<String> {
        let url = format!("http://{}/{path}", self.metrics);
        let response = self.http.get(&url).send().await?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "{url} answers {status}: {text}");
        Ok(text)
    }
}

impl Drop for Operator<'_> {
    fn drop(&mut self) {
        self.bench.edge().remove(self.challenges);
    }
}
