//! The operator under test: a process with its own service account, under exactly the roles of `rbac/`.
//!
//! Many run on one bench: each has a namespace, a class and ports of its own. Its requests to the API server are read
//! from the audit log, by its service account.

mod audit;

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

pub use self::audit::{Request, tally};
use crate::install::{SHIPPED_NAME, apply, install, kubeconfig_of, token};
use crate::process::Process;
use crate::{Bench, ports};

/// Longest start: it is ready in a fraction of a second unless the machine is overloaded.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Most requests of one operator in flight at Pebble: with several operators on it, more make version 2.10.1 deadlock.
const CONCURRENCY: u32 = 1;
/// Short, as an operator that starts after a kill waits for its end; long enough for a machine that is busy otherwise.
const LEASE: [&str; 3] = ["5s", "4s", "500ms"];
/// Root of the repository.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// How an operator is installed.
#[derive(Clone, Debug)]
pub struct OperatorOptions {
    /// The binary.
    pub program: PathBuf,
    /// YAML to add to the config file, at top level.
    pub config: String,
    /// What the issuer is called.
    pub issuer_name: String,
    /// What it may issue: YAML of `allow`.
    pub allow: String,
    /// More settings of it: YAML lines.
    pub issuer: String,
    /// Its class, where it is the only one on its bench, and in the namespace `cert-renew` as `deploy/` has it. Otherwise
    /// it has a namespace of its own, which is its class too.
    pub class: Option<String>,
    /// Role files besides `rbac/`, for example `rbac/addons/eviction.yaml`.
    pub addons: Vec<String>,
    /// The API server's address as the operator sees it, possibly a proxy.
    pub api_server: Option<String>,
    /// The ACME directory as the operator sees it.
    pub directory: Option<String>,
    /// Log level: benchmarks use the default of users.
    pub log_level: String,
    /// How long it answers challenges after SIGTERM: not at all, since the edge of the bench is updated at once.
    pub shutdown_grace: String,
    /// More arguments of `run`.
    pub arguments: Vec<String>,
    /// Further variables of its environment.
    pub environment: Vec<(String, String)>,
}

impl OperatorOptions {
    /// No settle time, no pauses between rollouts, everything may be issued.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            config: "rollout: {settle: 0s, perWorkloadMinInterval: 0s}\n".into(),
            issuer_name: "pebble".into(),
            allow: "[{namespaces: [\"*\"], names: [\"**.example\"]}]".into(),
            issuer: String::new(),
            class: None,
            addons: Vec::new(),
            api_server: None,
            directory: None,
            log_level: "debug".into(),
            shutdown_grace: "0s".into(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
        .lease(LEASE)
    }

    /// The only one on its bench, which heeds a Secret that is annotated as the README and the first pages have it, in a
    /// namespace `shop` or one whose name begins so. `settle` short, so that nobody waits.
    #[must_use]
    pub fn as_the_readme_says(program: impl Into<PathBuf>) -> Self {
        let names =
            "[shop.example, \"**.shop.example\", shop.example.com, \"**.shop.example.com\"]";
        Self {
            config: "rollout: {settle: 1s, perWorkloadMinInterval: 0s}\n".into(),
            class: Some("default".into()),
            issuer_name: "letsencrypt".into(),
            allow: format!("[{{namespaces: [\"shop*\"], names: {names}}}]"),
            ..Self::new(program)
        }
    }

    /// Duration, renew deadline and retry period of its lease.
    #[must_use]
    pub fn lease(mut self, times: [&str; 3]) -> Self {
        let flags = ["duration", "renew-deadline", "retry-period"];
        let arguments = flags
            .iter()
            .zip(times)
            .map(|(flag, time)| format!("--lease-{flag}={time}"));
        self.arguments = arguments.collect();
        self
    }
}

/// An installed operator, or one replica of it; stopped when dropped.
pub struct Operator<'a> {
    bench: &'a Bench,
    options: OperatorOptions,
    namespace: String,
    /// Name of its process and its files: the namespace, and a number for a further replica.
    name: String,
    /// The id of its token, which tells replicas apart in the audit log.
    credential: String,
    kubeconfig: PathBuf,
    config: PathBuf,
    metrics: SocketAddr,
    challenges: SocketAddr,
    process: Option<Arc<Process>>,
    http: reqwest::Client,
}

impl<'a> Operator<'a> {
    /// Installs an operator and starts it; it is ready when this returns.
    ///
    /// # Errors
    /// When the manifests are refused, or it does not become ready: with the end of its log.
    pub async fn start(bench: &'a Bench, options: OperatorOptions) -> Result<Self> {
        let mut operator = Self::install(bench, options).await?;
        operator.run().await?;
        Ok(operator)
    }

    /// Installs an operator without starting it.
    ///
    /// # Errors
    /// When the manifests are refused.
    pub async fn install(bench: &'a Bench, options: OperatorOptions) -> Result<Self> {
        Self::install_from(bench, options, |_| Ok(None)).await
    }

    /// Installs an operator from YAML made for its namespace, such as a rendered chart, instead of from `rbac/`.
    ///
    /// # Errors
    /// When the manifests cannot be made or are refused.
    pub async fn install_rendered(
        bench: &'a Bench,
        options: OperatorOptions,
        render: impl FnOnce(&str) -> Result<String>,
    ) -> Result<Self> {
        Self::install_from(bench, options, |namespace| render(namespace).map(Some)).await
    }

    async fn install_from(
        bench: &'a Bench,
        options: OperatorOptions,
        render: impl FnOnce(&str) -> Result<Option<String>>,
    ) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let namespace = match &options.class {
            Some(_) => "cert-renew".to_owned(),
            None => format!("cert-renew-{}", COUNT.fetch_add(1, Ordering::Relaxed)),
        };
        let client = bench.client()?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let metadata = ObjectMeta {
            name: Some(namespace.clone()),
            ..ObjectMeta::default()
        };
        namespaces
            .create(
                &PostParams::default(),
                &Namespace {
                    metadata,
                    ..Namespace::default()
                },
            )
            .await?;
        match render(&namespace)? {
            Some(manifests) => apply(&client, &manifests, &namespace).await?,
            None => install(&client, &role_files(&options.addons)?, &namespace).await?,
        }
        Self::one(bench, options, &namespace, namespace.clone()).await
    }

    /// Makes a Secret with one entry in its namespace, such as a DNS host's credentials.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn credentials(&self, name: &str, entry: &str, value: &str) -> Result<()> {
        let secret = serde_json::from_value(
            json!({"metadata": {"name": name}, "stringData": {entry: value}}),
        )?;
        let secrets: Api<Secret> = Api::namespaced(self.bench.client()?, &self.namespace);
        secrets.create(&PostParams::default(), &secret).await?;
        Ok(())
    }

    /// Commands about a Secret that ask the CA itself, whose root only the bench has.
    #[must_use]
    pub fn commands_to_the_ca(&self, program: &str, secret: &str) -> [String; 2] {
        let bundle = self.bench.ca_bundle().display();
        let issuer = &self.options.issuer_name;
        [
            format!("{program} revoke {secret} --yes --ca-bundle {bundle}"),
            format!("{program} account rollover {issuer} --ca-bundle {bundle}"),
        ]
    }

    /// A client with its own token, and so with its own rights.
    ///
    /// # Errors
    /// When its kubeconfig cannot be read.
    pub async fn client(&self) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
        let own = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &own).await?;
        Ok(Client::try_from(config)?)
    }

    /// Adds a replica of this operator without starting it: own process, own token, own ports and config file. The
    /// roles in `options` are ignored.
    ///
    /// # Errors
    /// When it gets no token.
    pub async fn replica(&self, options: OperatorOptions) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(2);
        let name = format!(
            "{}-{}",
            self.namespace,
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        Self::one(self.bench, options, &self.namespace, name).await
    }

    async fn one(
        bench: &'a Bench,
        options: OperatorOptions,
        namespace: &str,
        name: String,
    ) -> Result<Self> {
        let file = |suffix: &str| bench.directory().join(format!("{name}.{suffix}"));
        let (kubeconfig, config) = (file("kubeconfig"), file("config.yaml"));
        let token = token(&bench.client()?, namespace, SHIPPED_NAME).await?;
        let server = options
            .api_server
            .clone()
            .unwrap_or_else(|| format!("https://{}", bench.api_server()));
        fs::write(
            &kubeconfig,
            kubeconfig_of(&server, bench.ca_bundle(), &token, namespace)?,
        )?;
        let operator = Self {
            bench,
            namespace: namespace.to_owned(),
            name,
            credential: credential_id(&token)?,
            kubeconfig,
            config,
            metrics: ports::free()?,
            challenges: ports::free()?,
            process: None,
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(10))
                .build()?,
            options,
        };
        operator.write_config()?;
        Ok(operator)
    }

    fn write_config(&self) -> Result<()> {
        let directory = self
            .options
            .directory
            .as_deref()
            .unwrap_or_else(|| self.bench.pebble().directory());
        let text = format!(
            "class: {class}\nissuers:\n  {name}:\n    directory: {directory}\n    contact: ops@bench.example\n    \
             caBundle: {bundle}\n    profile: default\n    concurrency: {CONCURRENCY}\n    allow: {allow}\n{issuer}{extra}",
            class = self.options.class.as_deref().unwrap_or(&self.namespace),
            name = self.options.issuer_name,
            bundle = self.bench.ca_bundle().display(),
            allow = self.options.allow,
            issuer = self.options.issuer,
            extra = self.options.config,
        );
        // Pebble is on this machine, and answers in a millisecond.
        let quick = "    requestsPerSecond: 100000\n";
        let text = match text.contains("requestsPerSecond") {
            true => text,
            false => text.replacen("    allow:", &format!("{quick}    allow:"), 1),
        };
        // Replaced whole and at once, as a mounted ConfigMap changes.
        let unfinished = self.config.with_extension("unfinished");
        fs::write(&unfinished, text).context("writing the config file")?;
        fs::rename(&unfinished, &self.config).context("replacing the config file")
    }

    /// Sets the addition to the config file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&mut self, config: &str) -> Result<()> {
        config.clone_into(&mut self.options.config);
        self.write_config()
    }

    /// Where it is to answer challenges from its next start on, such as a pod's address.
    pub fn answer_at(&mut self, address: SocketAddr) {
        self.challenges = address;
    }

    /// Where its metrics port is from its next start on.
    pub fn show_at(&mut self, address: SocketAddr) {
        self.metrics = address;
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready: with the end of its log.
    pub async fn run(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready().await
    }

    /// Starts it without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "{} runs already", self.name);
        let mut command = Command::new(&self.options.program);
        command
            .arg("run")
            .args(["--config".as_ref(), self.config.as_os_str()])
            .args(["--namespace", &self.namespace])
            .args(["--metrics-address", &self.metrics.to_string()])
            .args(["--challenge-address", &self.challenges.to_string()])
            .args(["--log-format", "json"])
            .args(["--log-level", &self.options.log_level])
            .args(["--shutdown-grace", &self.options.shutdown_grace])
            .args(&self.options.arguments)
            // The machine's proxy and certificate store must not affect it.
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .envs(self.options.environment.iter().cloned())
            .env("POD_NAME", &self.name)
            .env("RUST_BACKTRACE", "1")
            .env("KUBECONFIG", &self.kubeconfig);
        self.process = Some(Process::spawn(self.bench.group(), &self.name, command)?);
        self.bench.edge().add(self.challenges);
        Ok(())
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it ends before, or is not ready by the deadline.
    pub async fn wait_ready(&self) -> Result<()> {
        let url = format!("http://{}/readyz", self.metrics);
        let probe = async || {
            Ok(self
                .http
                .get(&url)
                .send()
                .await?
                .error_for_status()
                .map(drop)?)
        };
        self.process()?.ready(READY_DEADLINE, probe).await
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        self.bench.edge().remove(self.challenges);
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends it with SIGTERM and waits.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> Result<()> {
        let process = self.process.take().context("it does not run")?;
        process.signal("TERM")?;
        let status = process.ended(Duration::from_secs(30)).await?;
        self.bench.edge().remove(self.challenges);
        ensure!(
            status.success(),
            "it ended with {status}\n{}",
            process.tail()
        );
        Ok(())
    }

    /// Ends it with SIGTERM, starts it again and waits until it is ready.
    ///
    /// # Errors
    /// When it does not end, start or become ready.
    pub async fn restart(&mut self) -> Result<()> {
        self.terminate().await?;
        self.run().await
    }

    /// Freezes it, or lets it continue.
    ///
    /// # Errors
    /// When it is not running.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        self.process()?.signal(if frozen { "STOP" } else { "CONT" })
    }

    /// The running process.
    ///
    /// # Errors
    /// When it is not running.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_deref().context("the operator does not run")
    }

    /// Kills the running process from anywhere: for an [`crate::Action`] of a fault proxy.
    ///
    /// # Errors
    /// When it is not running.
    pub fn killer(&self) -> Result<crate::Action> {
        let process = self.process.clone().context("the operator does not run")?;
        Ok(Arc::new(move || process.kill()))
    }

    /// Stops the running process from anywhere, with SIGSTOP.
    ///
    /// # Errors
    /// When it is not running.
    pub fn freezer(&self) -> Result<crate::Action> {
        let process = self.process.clone().context("the operator does not run")?;
        Ok(Arc::new(move || {
            if let Err(error) = process.signal("STOP") {
                eprintln!("{error:#}");
            }
        }))
    }

    /// Its namespace, which is also its class.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The kubeconfig of its ServiceAccount.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Address of its metrics port.
    #[must_use]
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Whether it leads, according to its metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn leads(&self) -> Result<bool> {
        let metrics = self.metrics().await?;
        Ok(metrics.lines().any(|line| line == "cert_renew_leader 1"))
    }

    /// The content of `/metrics`.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<String> {
        self.ask("/metrics").await
    }

    /// The content of a path of the metrics port.
    ///
    /// # Errors
    /// When it does not answer with success.
    pub async fn ask(&self, path: &str) -> Result<String> {
        let url = format!("http://{}{path}", self.metrics);
        let answer = self.http.get(url).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// Its whole log, including former runs.
    ///
    /// # Errors
    /// When there is no log yet.
    pub fn log(&self) -> Result<String> {
        let file = self.bench.directory().join(format!("{}.log", self.name));
        fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
    }

    /// Its config file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Address on which it answers challenges.
    #[must_use]
    pub fn challenge_address(&self) -> SocketAddr {
        self.challenges
    }
}

impl Operator<'_> {
    /// Releases the running process, for a bench that is kept.
    #[must_use]
    pub fn release(mut self) -> Option<Arc<Process>> {
        self.process.take()
    }
}

impl Drop for Operator<'_> {
    fn drop(&mut self) {
        // The edge still asks a process that was released.
        if self.process.is_none() {
            return;
        }
        self.bench.edge().remove(self.challenges);
    }
}

/// The id of a ServiceAccount's token in the audit log.
fn credential_id(token: &str) -> Result<String> {
    let payload = token.split('.').nth(1).context("a token is no JWT")?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?;
    let id = claims["jti"].as_str().context("a token without an id")?;
    Ok(format!("JTI={id}"))
}

/// The files of `rbac/`, and of the add-ons.
fn role_files(addons: &[String]) -> Result<Vec<PathBuf>> {
    let mut files = vec![];
    for entry in fs::read_dir(Path::new(ROOT).join("rbac"))? {
        let path = entry?.path();
        let yaml = path
            .extension()
            .is_some_and(|extension| extension == "yaml");
        if yaml
            && path
                .file_name()
                .is_some_and(|name| name != "kustomization.yaml")
        {
            files.push(path);
        }
    }
    files.extend(addons.iter().map(|addon| Path::new(ROOT).join(addon)));
    Ok(files)
}
