//! A whole bench: control plane, CA, DNS and edge.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use kube::Client;
use tokio::sync::OnceCell;

use crate::control_plane::{self, ControlPlane};
use crate::edge::Edge;
use crate::group::Group;
use crate::install::confine;
use crate::kubernetes::Kubernetes;
use crate::pebble::{Dns, Ground, Pebble, PebbleOptions};
use crate::pki::Authority;
use crate::{ports, runtime};

/// Admission policies that confine the operator: always installed, so that every test shows that they break nothing.
const POLICIES: [&str; 2] = [
    concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/admission/operator.yaml"
    ),
    concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/admission/operator-others.yaml"
    ),
];

/// Options of a bench.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of nodes that kwok plays; with none it does not run, for a real node.
    pub nodes: usize,
    /// The Pebble that every bench has.
    pub pebble: PebbleOptions,
    /// More flags of the API server.
    pub api_server: Vec<String>,
    /// Port of the edge instead of a free one.
    pub edge_port: Option<u16>,
    /// Builds the missing programs.
    pub programs: fn() -> Result<ControlPlane>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            pebble: PebbleOptions::default(),
            api_server: Vec::new(),
            edge_port: None,
            programs: control_plane::ensure,
        }
    }
}

/// A running bench. Everything ends when it is dropped, or with this process.
pub struct Bench {
    // `group` comes last: the programs before it end in an orderly way, each waited for.
    edge: Edge,
    pebble: Pebble,
    dns: Dns,
    kubernetes: Kubernetes,
    authority: Authority,
    ca_bundle: PathBuf,
    control_plane: ControlPlane,
    group: Arc<Group>,
    started_in: Duration,
}

impl Bench {
    /// The one bench that all tests of a process share. The first caller starts it.
    ///
    /// # Errors
    /// When it could not be started: the same error for all callers.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Result<Bench, String>> = OnceCell::const_new();
        let start = async || {
            Self::start(Options::default())
                .await
                .map_err(|error| format!("{error:#}"))
        };
        SHARED
            .get_or_init(start)
            .await
            .as_ref()
            .map_err(|error| anyhow!("the shared bench: {error}"))
    }

    /// Starts a new bench, building the missing programs first.
    ///
    /// # Errors
    /// When a program cannot be built, does not start or is not ready in time: names it, with the end of its log.
    pub async fn start(options: Options) -> Result<Self> {
        // On the bench's runtime: what it leaves running must outlive the runtime of a single test.
        // (Blocking, because a future that borrows for async closures is not `Send` to this compiler.)
        runtime()
            .spawn_blocking(move || runtime().block_on(Self::start_here(&options)))
            .await?
    }

    async fn start_here(options: &Options) -> Result<Self> {
        let control_plane = tokio::task::spawn_blocking(options.programs).await??;
        let started = Instant::now();
        let group = Arc::new(Group::new()?);
        let authority = Authority::new("test bench")?;
        let ca_bundle = group.directory().join("ca.pem");
        fs::write(&ca_bundle, authority.pem())?;
        let ca = async {
            let (edge, dns) = tokio::try_join!(
                Edge::start(options.edge_port),
                Dns::start(&group, &control_plane)
            )?;
            let ground = Ground {
                group: &group,
                control_plane: &control_plane,
                authority: &authority,
                ca_bundle: &ca_bundle,
                dns: dns.address(),
                http_port: edge.address().port(),
            };
            let pebble = Pebble::start(&ground, &options.pebble).await?;
            Ok((edge, dns, pebble))
        };
        let kubernetes = ports::retry(async || {
            Kubernetes::start(&group, &control_plane, &authority, options).await
        });
        let ((edge, dns, pebble), kubernetes) = tokio::try_join!(ca, kubernetes)?;
        let client = Client::try_from(kubernetes.config.clone())?;
        for policy in POLICIES {
            confine(&client, Path::new(policy)).await?;
        }
        let started_in = started.elapsed();
        Ok(Self {
            edge,
            pebble,
            dns,
            kubernetes,
            authority,
            ca_bundle,
            control_plane,
            group,
            started_in,
        })
    }

    /// Starts one more Pebble, for example as a fallback CA. Its name must be unique.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_pebble(&self, options: &PebbleOptions) -> Result<Pebble> {
        let ground = Ground {
            group: &self.group,
            control_plane: &self.control_plane,
            authority: &self.authority,
            ca_bundle: &self.ca_bundle,
            dns: self.dns.address(),
            http_port: self.edge.address().port(),
        };
        Pebble::start(&ground, options).await
    }

    /// Stops etcd and the API server, calls `meanwhile` with etcd's data, and starts both. Not for a shared bench.
    ///
    /// # Errors
    /// When that fails, or they are not ready in time.
    pub async fn restart(&self, meanwhile: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.kubernetes
            .restart(&self.group, &self.control_plane, meanwhile)
            .await
    }

    /// A new client with every right (user `admin`, group `system:masters`). It belongs to the runtime of the caller,
    /// so each test needs its own.
    ///
    /// # Errors
    /// When the configuration is refused, which would be a fault of the bench.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::try_from(self.kubernetes.config.clone())?)
    }

    /// The administrator's kubeconfig, complete in one file.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubernetes.kubeconfig
    }

    /// URL of the API server.
    #[must_use]
    pub fn api_server(&self) -> SocketAddr {
        self.kubernetes.server
    }

    /// PEM file of the CA that signed the certificates of the API server and of every Pebble.
    #[must_use]
    pub fn ca_bundle(&self) -> &Path {
        &self.ca_bundle
    }

    /// The Pebble of the bench.
    #[must_use]
    pub fn pebble(&self) -> &Pebble {
        &self.pebble
    }

    /// The DNS server that Pebble asks.
    #[must_use]
    pub fn dns(&self) -> &Dns {
        &self.dns
    }

    /// The edge that HTTP-01 goes through.
    #[must_use]
    pub fn edge(&self) -> &Edge {
        &self.edge
    }

    /// The file of a program, for example `kubectl`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.control_plane.program(name)
    }

    /// The directory that holds every log, which is removed with the bench.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.group.directory()
    }

    /// The audit log: one JSON object a line for each request of a service account or of the tests.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.directory().join("audit.log")
    }

    /// How long the start took, without building.
    #[must_use]
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// Leaves everything running after the end of this process, and returns the shell command that ends it. The program
    /// must begin with [`crate::serve_edge_if_asked`].
    ///
    /// # Errors
    /// When the edge cannot be handed over.
    pub async fn keep(&self) -> Result<String> {
        // First, since until then a program ends when its handle is dropped, including the new edge.
        let stop = self.group.keep()?;
        self.edge
            .hand_over(&self.group)
            .await
            .with_context(|| format!("the rest runs on; to end it: {stop}"))?;
        Ok(stop)
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(crate) fn group(&self) -> &Arc<Group> {
        &self.group
    }
}
