//! A tool that caches, to compare with: `tests/control-plane/cached`, a hundred lines on client-go's informers, as a process
//! with a service account of its own. It patches every workload that names a Secret whose data has changed.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::control_plane::ensure_cached_client;
use crate::install::{apply_for, kubeconfig_of, token, user_of};
use crate::process::Process;
use crate::{Bench, ports};

/// Its namespace and its ServiceAccount; there is one on a bench.
const NAME: &str = "cached-client";
/// What it may do: read all that it caches, and patch workloads.
const MANIFESTS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: cached-client}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: cached-client, namespace: cached-client}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cached-client}
rules:
  - {apiGroups: [''], resources: [secrets], verbs: [list, watch]}
  - {apiGroups: [apps], resources: [deployments, statefulsets, daemonsets], verbs: [patch, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: cached-client}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cached-client}
subjects:
  - {kind: ServiceAccount, name: cached-client, namespace: cached-client}
";
/// Longest start: with 100,000 Secrets it takes some fifteen seconds.
const READY_DEADLINE: Duration = Duration::from_secs(120);
/// Longest answer of its port.
const HANG_TIMEOUT: Duration = Duration::from_secs(5);

/// An installed one; stopped when dropped.
pub struct CachedClient<'a> {
    bench: &'a Bench,
    program: PathBuf,
    kubeconfig: PathBuf,
    address: SocketAddr,
    process: Option<Arc<Process>>,
    http: reqwest::Client,
}

impl<'a> CachedClient<'a> {
    /// Builds it if need be, and installs it without starting it. Once on a bench.
    ///
    /// # Errors
    /// When it cannot be built, or its manifests are refused.
    pub async fn install(bench: &'a Bench) -> Result<Self> {
        let program = tokio::task::spawn_blocking(ensure_cached_client).await??;
        let client = bench.client()?;
        apply_for(&client, MANIFESTS, NAME, &user_of(NAME, NAME)).await?;
        let kubeconfig = bench.directory().join(format!("{NAME}.kubeconfig"));
        let server = format!("https://{}", bench.api_server());
        let token = token(&client, NAME, NAME).await?;
        fs::write(
            &kubeconfig,
            kubeconfig_of(&server, bench.ca_bundle(), &token, NAME)?,
        )?;
        Ok(Self {
            bench,
            program,
            kubeconfig,
            address: ports::free()?,
            process: None,
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(HANG_TIMEOUT)
                .build()?,
        })
    }

    /// Starts it and waits until it has cached everything.
    ///
    /// # Errors
    /// When it ends before, or is not ready in time: with the end of its log.
    pub async fn run(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "{NAME} runs already");
        let mut command = Command::new(&self.program);
        command
            .args(["-kubeconfig".as_ref(), self.kubeconfig.as_os_str()])
            .args(["-address", &self.address.to_string()])
            // The machine's proxy must not affect it.
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default());
        let process = Process::spawn(self.bench.group(), NAME, command)?;
        self.process = Some(Arc::clone(&process));
        let url = format!("http://{}/readyz", self.address);
        let probe = async || {
            let answer = self.http.get(&url).send().await?;
            Ok(answer.error_for_status().map(drop)?)
        };
        process.ready(READY_DEADLINE, probe).await
    }

    /// Ends it: it has nothing to put in order.
    pub fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// The running process.
    ///
    /// # Errors
    /// When it is not running.
    pub fn process(&self) -> Result<&Process> {
        let process = self.process.as_deref();
        process.context("the cached client does not run")
    }

    /// Its Kubernetes user name.
    #[must_use]
    pub fn user(&self) -> String {
        user_of(NAME, NAME)
    }
}
