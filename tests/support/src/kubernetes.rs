//! The Kubernetes half of a bench: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and kwok, which plays
//! the nodes and lets every pod become Ready at once.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::try_join_all;
use http::Request;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use crate::bench::Options;
use crate::control_plane::ControlPlane;
use crate::group::Group;
use crate::pki::{Authority, Pair};
use crate::ports;
use crate::process::Process;

/// Longest start: it is a few seconds unless the machine is overloaded.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// Records every request of a service account, except the controllers' own, and those of the administrator (the tests),
/// without bodies.
const AUDIT_POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
    {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
    {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
    {"level": "Metadata", "users": ["admin"]}
]}"#;

/// The running programs and their addresses.
pub(crate) struct Kubernetes {
    processes: Mutex<Processes>,
    nodes: usize,
    etcd: [SocketAddr; 2],
    pub(crate) server: SocketAddr,
    /// More flags of the API server.
    flags: Vec<String>,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) config: Config,
}

/// Held to be dropped in this order.
struct Processes {
    controllers: Vec<Arc<Process>>,
    servers: [Arc<Process>; 2],
}

impl Kubernetes {
    pub(crate) async fn start(
        group: &Group,
        control_plane: &ControlPlane,
        authority: &Authority,
        options: &Options,
    ) -> Result<Self> {
        let file = |name: &str| group.directory().join(name);
        let (etcd, server) = ([ports::free()?, ports::free()?], ports::free()?);
        let admin = kubeconfig(server, authority, "admin", Some("system:masters"))?;
        fs::write(file("kubeconfig"), &admin)?;
        // kwok has every right as well, but a name of its own keeps its requests out of the audit log.
        fs::write(
            file("kwok.kubeconfig"),
            kubeconfig(server, authority, "kwok", Some("system:masters"))?,
        )?;
        let manager = kubeconfig(server, authority, "system:kube-controller-manager", None)?;
        fs::write(file("kube-controller-manager.kubeconfig"), manager)?;
        fs::write(file("audit-policy.json"), AUDIT_POLICY)?;
        let scheduler = kubeconfig(server, authority, "system:kube-scheduler", None)?;
        fs::write(file("kube-scheduler.kubeconfig"), scheduler)?;
        let Pair { certificate, key } = authority.server("kube-apiserver")?;
        fs::write(file("kube-apiserver.crt"), certificate)?;
        fs::write(file("kube-apiserver.key"), key)?;
        let signer = rcgen::KeyPair::generate()?;
        fs::write(file("service-account.pub"), signer.public_key_pem())?;
        fs::write(file("service-account.key"), signer.serialize_pem())?;

        // A first attempt that lost a port leaves data for other addresses.
        let _ = fs::remove_dir_all(file("etcd"));
        let config = Config::from_custom_kubeconfig(
            Kubeconfig::from_yaml(&admin)?,
            &KubeConfigOptions::default(),
        )
        .await?;
        let client = Client::try_from(config.clone())?;
        let servers = start_servers(
            group,
            control_plane,
            &client,
            (server, &options.api_server),
            etcd,
        )
        .await?;
        let controllers = startcontrollers(group, control_plane, options.nodes)?;
        if let Some(kwok) = controllers.get(2) {
            make_nodes(&client, options.nodes, kwok).await?;
        }
        manager_ready(&client, &controllers[0]).await?;
        Ok(Self {
            processes: Mutex::new(Processes {
                controllers,
                servers,
            }),
            nodes: options.nodes,
            etcd,
            server,
            flags: options.api_server.clone(),
            kubeconfig: file("kubeconfig"),
            config,
        })
    }

    /// Stops etcd and the API server, changes etcd's data, and starts both again. Restarts the controllers too, which
    /// do not notice a restore.
    pub(crate) async fn restart(
        &self,
        group: &Group,
        control_plane: &ControlPlane,
        meanwhile: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        {
            let processes = lock(&self.processes);
            for process in processes.servers.iter().chain(&processes.controllers) {
                process.kill();
            }
        }
        meanwhile(&group.directory().join("etcd"))?;
        let client = Client::try_from(self.config.clone())?;
        let servers = start_servers(
            group,
            control_plane,
            &client,
            (self.server, &self.flags),
            self.etcd,
        )
        .await?;
        let controllers = startcontrollers(group, control_plane, self.nodes)?;
        *lock(&self.processes) = Processes {
            controllers,
            servers,
        };
        Ok(())
    }
}

/// Starts the API server and etcd; both are ready when this returns.
async fn start_servers(
    group: &Group,
    control_plane: &ControlPlane,
    client: &Client,
    (server, flags): (SocketAddr, &[String]),
    [etcd, peer]: [SocketAddr; 2],
) -> Result<[Arc<Process>; 2]> {
    let command = etcd_command(control_plane, group.directory(), etcd, peer);
    let etcd_process = Process::spawn(group, "etcd", command)?;
    let mut command = api_server_command(control_plane, group.directory(), server, etcd);
    command.args(flags);
    let api_server = Process::spawn(group, "kube-apiserver", command)?;
    let ready = api_server
        .ready(START_DEADLINE, async || {
            client
                .request_text(Request::get("/readyz").body(Vec::new())?)
                .await?;
            Ok(())
        })
        .await;
    // The API server ends when it does not find etcd: report the cause first.
    ready.map_err(|error| etcd_process.death().map_or(error, anyhow::Error::msg))?;
    Ok([api_server, etcd_process])
}

/// Starts the controller manager, the scheduler, and kwok if it plays nodes.
fn startcontrollers(
    group: &Group,
    control_plane: &ControlPlane,
    nodes: usize,
) -> Result<Vec<Arc<Process>>> {
    let file = |name: &str| group.directory().join(name);
    let manager = Process::spawn(
        group,
        "kube-controller-manager",
        controller_manager_command(control_plane, group.directory()),
    )?;
    let mut command = Command::new(control_plane.program("kube-scheduler"));
    command
        .arg("--kubeconfig")
        .arg(file("kube-scheduler.kubeconfig"));
    command.args([
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=2000",
        "--kube-api-burst=4000",
    ]);
    let scheduler = Process::spawn(group, "kube-scheduler", command)?;
    if nodes == 0 {
        return Ok(vec![manager, scheduler]);
    }
    let mut command = Command::new(control_plane.program("kwok"));
    command
        .arg("--kubeconfig")
        .arg(file("kwok.kubeconfig"))
        .args([
            "--manage-all-nodes=true",
            "--cidr=10.0.0.0/16",
            "--node-ip=10.255.0.1",
        ]);
    for stage in control_plane.stages()? {
        command.arg("--config").arg(stage);
    }
    let kwok = Process::spawn(group, "kwok", command)?;
    Ok(vec![manager, scheduler, kwok])
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn etcd_command(
    control_plane: &ControlPlane,
    directory: &Path,
    client: SocketAddr,
    peer: SocketAddr,
) -> Command {
    let mut command = Command::new(control_plane.program("etcd"));
    command.arg("--data-dir").arg(directory.join("etcd"));
    command.arg(format!("--listen-client-urls=http://{client}"));
    command.arg(format!("--advertise-client-urls=http://{client}"));
    command.arg(format!("--listen-peer-urls=http://{peer}"));
    command.arg(format!("--initial-advertise-peer-urls=http://{peer}"));
    command.arg(format!("--initial-cluster=default=http://{peer}"));
    // The data need not survive a power cut, and a single member need not wait for other candidates.
    command.args([
        "--unsafe-no-fsync=true",
        // A scene of ten minutes may write more between two compactions than the default of 2 GiB.
        "--quota-backend-bytes=8589934592",
        "--heartbeat-interval=50",
        "--election-timeout=250",
        "--log-level=warn",
    ]);
    command
}

fn api_server_command(
    control_plane: &ControlPlane,
    directory: &Path,
    server: SocketAddr,
    etcd: SocketAddr,
) -> Command {
    let file = |flag: &str, name: &str| format!("--{flag}={}", directory.join(name).display());
    let mut command = Command::new(control_plane.program("kube-apiserver"));
    command.arg(format!("--etcd-servers=http://{etcd}"));
    command.arg(format!("--bind-address={}", server.ip()));
    command.arg(format!("--secure-port={}", server.port()));
    // No program uses the API server's Service, and on a machine without a network it would find no address. Both are of
    // one family.
    command.arg("--endpoint-reconciler-type=none");
    command.args(match server {
        SocketAddr::V4(_) => [
            "--advertise-address=127.0.0.1",
            "--service-cluster-ip-range=10.254.0.0/16",
        ],
        SocketAddr::V6(_) => [
            "--advertise-address=::1",
            "--service-cluster-ip-range=fd00:254::/112",
        ],
    });
    command.args([
        file("cert-dir", "kube-apiserver"),
        file("tls-cert-file", "kube-apiserver.crt"),
        file("tls-private-key-file", "kube-apiserver.key"),
        file("client-ca-file", "ca.pem"),
        file("service-account-key-file", "service-account.pub"),
        file("service-account-signing-key-file", "service-account.key"),
        file("audit-policy-file", "audit-policy.json"),
        file("audit-log-path", "audit.log"),
    ]);
    command.args([
        "--service-account-issuer=https://kubernetes.default.svc",
        "--authorization-mode=RBAC",
        "--allow-privileged=true",
        // One file, so that no counted request is rotated away.
        "--audit-log-maxsize=0",
        // Many operators and many tests share the server.
        "--max-requests-inflight=4000",
        "--max-mutating-requests-inflight=2000",
    ]);
    command
}

fn controller_manager_command(control_plane: &ControlPlane, directory: &Path) -> Command {
    let file = |flag: &str, name: &str| format!("--{flag}={}", directory.join(name).display());
    let mut command = Command::new(control_plane.program("kube-controller-manager"));
    command.args([
        file("kubeconfig", "kube-controller-manager.kubeconfig"),
        file("service-account-private-key-file", "service-account.key"),
        file("root-ca-file", "ca.pem"),
    ]);
    command.args([
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--secure-port=0",
        // kwok's nodes have no lease and report every ten minutes. After the default of 50 seconds all would be lost
        // for a moment, and no pod that was running then would ever be Ready again.
        "--node-monitor-grace-period=1h",
        // The default of 20 requests a second would make every rollout of a parallel test run wait.
        "--kube-api-qps=2000",
        "--kube-api-burst=4000",
    ]);
    command
}

/// A kubeconfig with everything inside, so that it can be copied.
fn kubeconfig(
    server: SocketAddr,
    authority: &Authority,
    user: &str,
    group: Option<&str>,
) -> Result<String> {
    let Pair { certificate, key } = authority.client(user, group)?;
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bench", "cluster": {
            "server": format!("https://{server}"),
            "certificate-authority-data": STANDARD.encode(authority.pem()),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate-data": STANDARD.encode(certificate),
            "client-key-data": STANDARD.encode(key),
        }}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": user}}],
        "current-context": "bench",
    });
    Ok(format!("{config:#}\n"))
}

async fn make_nodes(client: &Client, count: usize, kwok: &Process) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let names: Vec<String> = (0..count).map(|i| format!("node-{i}")).collect();
    let make = async |name: &String| {
        let node = serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "annotations": {"kwok.x-k8s.io/node": "fake"},
                "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            },
        }))?;
        nodes
            .create(&PostParams::default(), &node)
            .await
            .with_context(|| format!("making {name}"))?;
        Ok::<_, anyhow::Error>(())
    };
    try_join_all(names.iter().map(make)).await?;
    kwok.ready(START_DEADLINE, async || {
        for name in &names {
            let node = nodes.get(name).await?;
            // A new node is tainted until the controller manager has seen it Ready.
            let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
            ensure!(taints.is_empty(), "{name} is still tainted");
            let conditions = node.status.and_then(|status| status.conditions);
            let ready = conditions
                .into_iter()
                .flatten()
                .any(|c| c.type_ == "Ready" && c.status == "True");
            ensure!(ready, "{name} is not Ready");
        }
        Ok(())
    })
    .await
}

/// The controllers run once the ServiceAccount of the first namespace exists, without which no pod starts.
async fn manager_ready(client: &Client, manager: &Process) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    manager
        .ready(START_DEADLINE, async || {
            accounts
                .get("default")
                .await
                .context("no ServiceAccount in the namespace default")?;
            Ok(())
        })
        .await
}
