//! A real node: Debian's containerd, runc and CNI plugins, kubelet and kube-proxy of the pinned module, in the
//! namespaces of [`crate::run_on_a_node`]. Pods run, volumes update with a delay, Services lead to ready pods.
//!
//! There is one node and no network policy. Images: `node.test/nginx:1` reads `/tls` once, at its start, and listens on
//! 8443; `node.test/pod:1` is `tests/control-plane/pod`; the operator's is that of `make image`, or the given program.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::node_image::Image;
use crate::node_space::Surroundings;
use crate::process::Process;
use crate::{Bench, control_plane, eventually};

/// Name of the node.
pub const NODE: &str = "node";
/// Full name of the operator's image in `deploy/`.
pub const OPERATOR_IMAGE: &str = "docker.io/library/cert-renew:0.1.0";
/// Longest start: it is a few seconds unless the machine is overloaded.
const START_DEADLINE: Duration = Duration::from_secs(180);
/// Socket of containerd, in a `/run` of the node's own.
const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Network of the pods. Each is routed by itself, so that a Service's answers pass through the node as its requests do.
const PODS: &str = "10.88.1.0/24";

const NGINX: &str = "
user root root; worker_processes 1; daemon off; pid /tmp/nginx.pid; error_log stderr;
events {}
http {
    access_log off;
    server {
        listen 8443 ssl;
        ssl_certificate /tls/tls.crt;
        ssl_certificate_key /tls/tls.key;
        location / { return 200 'ok'; }
    }
}
";

/// A running node; it ends when dropped.
pub struct Node {
    surroundings: Surroundings,
    // In the order of their end.
    _kubelet: Arc<Process>,
    _proxy: Arc<Process>,
    _containerd: Arc<Process>,
}

impl Node {
    /// Joins a node to the cluster of a bench that was started without any. The operator's image is `archive`, or is
    /// packed from `program`.
    ///
    /// # Errors
    /// When a program is missing, does not start or is not ready in time: names it, with the end of its log.
    pub async fn start(bench: &Bench, archive: Option<&Path>, program: &Path) -> Result<Self> {
        let surroundings = Surroundings::of_this_process()?;
        let tools = Tools::find()?;
        let programs = control_plane::ensure_with_node()?;
        lead_to_api_server(bench, &surroundings.address).await?;

        let file = |name: &str| Path::new(&surroundings.directory).join(name);
        fs::write(file("containerd.toml"), tools.containerd(&surroundings))?;
        fs::create_dir_all(file("cni"))?;
        fs::write(file("cni/node.conflist"), network().to_string())?;
        let mut command = tools.command("containerd");
        command.arg("--config").arg(file("containerd.toml"));
        let containerd = Process::spawn(bench.group(), "containerd", command)?;
        containerd
            .ready(START_DEADLINE, async || tools.ctr(&["version"]))
            .await?;
        for image in images(Path::new(&surroundings.directory), &tools, archive, program)? {
            tools.import(&image)?;
        }

        let kubeconfig = bench.kubeconfig();
        let config = proxy_config(kubeconfig);
        fs::write(file("kube-proxy.json"), config.to_string())?;
        let mut command = tools.with_path(Command::new(programs.program("kube-proxy")));
        command.arg("--config").arg(file("kube-proxy.json"));
        let proxy = Process::spawn(bench.group(), "kube-proxy", command)?;

        let config = kubelet_config(&surroundings);
        fs::write(file("kubelet.json"), config.to_string())?;
        let mut command = tools.with_path(Command::new(programs.program("kubelet")));
        command
            .arg("--config")
            .arg(file("kubelet.json"))
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--root-dir")
            .arg(file("kubelet"))
            .arg("--cert-dir")
            .arg(file("kubelet-certificates"))
            .args(["--hostname-override", NODE])
            .args(["--node-ip", &surroundings.address]);
        let kubelet = Process::spawn(bench.group(), "kubelet", command)?;
        let nodes: Api<NodeObject> = Api::all(bench.client()?);
        kubelet
            .ready(START_DEADLINE, async || {
                let node = nodes.get(NODE).await?;
                let conditions = node.status.and_then(|status| status.conditions);
                let ready = conditions
                    .into_iter()
                    .flatten()
                    .find(|it| it.type_ == "Ready");
                let ready = ready.context("it has not said whether it is Ready")?;
                ensure!(ready.status == "True", "not Ready: {:?}", ready.message);
                let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
                ensure!(taints.is_empty(), "it is still tainted");
                Ok(())
            })
            .await?;
        Ok(Self {
            surroundings,
            _kubelet: kubelet,
            _proxy: proxy,
            _containerd: containerd,
        })
    }

    /// Address on which everything of the bench listens, as pods see it.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.surroundings.address
    }

    /// Ends the process of this program in a pod with SIGKILL, as the kernel does when memory runs out.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_in_pod(&self, pod: &str, program: &str) -> Result<()> {
        let variable = format!("POD_NAME={pod}");
        for entry in fs::read_dir("/proc")? {
            let directory = entry?.path();
            // Other processes come and go concurrently.
            let Ok(environment) = fs::read(directory.join("environ")) else {
                continue;
            };
            let Ok(executable) = fs::read_link(directory.join("exe")) else {
                continue;
            };
            let is_it = environment
                .split(|byte| *byte == 0)
                .any(|it| it == variable.as_bytes());
            if is_it && executable.ends_with(program) {
                let id = directory.file_name().context("no process id")?;
                let kill = format!("kill -s KILL {}", id.display());
                let status = Command::new("sh").args(["-c", &kill]).status()?;
                ensure!(status.success(), "`{kill}` failed");
                return Ok(());
            }
        }
        bail!("no process {program} in the pod {pod}");
    }

    /// The output of a container until now, by the name of its pod.
    #[must_use]
    pub fn logs(&self, pod: &str) -> String {
        let mut text = String::new();
        let pods = Path::new(&self.surroundings.directory).join("pods");
        let mut files = Vec::new();
        for entry in fs::read_dir(pods).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(pod) {
                walk(&entry.path(), &mut files);
            }
        }
        files.sort();
        for file in files {
            text.push_str(&fs::read_to_string(file).unwrap_or_default());
        }
        text
    }
}

/// Copies logs of the bench and of containers, which explain a failure, out of the directories that will be removed.
///
/// # Errors
/// When it cannot be copied.
pub fn keep_node_logs(bench: &Bench, node: Option<&Node>, into: &Path) -> Result<()> {
    let mut files = Vec::new();
    if let Some(node) = node {
        walk(
            &Path::new(&node.surroundings.directory).join("pods"),
            &mut files,
        );
    }
    for entry in fs::read_dir(bench.directory())? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "log") && !path.ends_with("audit.log") {
            files.push(path);
        }
    }
    fs::create_dir_all(into)?;
    for file in files {
        let parts: Vec<_> = file.iter().map(|it| it.to_string_lossy()).collect();
        let name = parts[parts.len().saturating_sub(3)..].join("__");
        // A pod that is removed at this moment takes its log with it.
        let _ = fs::copy(&file, into.join(name));
    }
    Ok(())
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => walk(&path, files),
            false => files.push(path),
        }
    }
}

/// Debian's programs, installed or unpacked into the cache.
pub(crate) struct Tools {
    root: PathBuf,
}

impl Tools {
    pub(crate) fn find() -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools.sh");
        let output = Command::new(script).arg("node").output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "tests/tools.sh node: {said}");
        let root = String::from_utf8(output.stdout)?;
        Ok(Self {
            root: root.trim().into(),
        })
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// Path of their libraries; empty if they are installed.
    fn libraries(&self) -> String {
        if self.root == Path::new("/") {
            return String::new();
        }
        let mut found = Vec::new();
        for below in ["usr/lib", "lib"] {
            for entry in fs::read_dir(self.path(below))
                .into_iter()
                .flatten()
                .flatten()
            {
                found.push(entry.path().display().to_string());
            }
        }
        found.join(":")
    }

    pub(crate) fn with_path(&self, mut command: Command) -> Command {
        let mut path = OsString::new();
        for below in ["usr/sbin", "usr/bin", "sbin"] {
            path.push(self.path(below));
            path.push(":");
        }
        path.push(env::var_os("PATH").unwrap_or_default());
        command.env("PATH", path);
        if self.root != Path::new("/") {
            command.env("LD_LIBRARY_PATH", self.libraries());
        }
        command
    }

    fn command(&self, program: &str) -> Command {
        let places = ["usr/bin", "usr/sbin", "sbin"];
        let mut found = places
            .map(|place| self.path(place).join(program))
            .into_iter();
        let program = found
            .find(|it| it.is_file())
            .unwrap_or_else(|| program.into());
        self.with_path(Command::new(program))
    }

    fn ctr(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.command("ctr");
        command.args(["--address", CONTAINERD, "--namespace", "k8s.io"]);
        let output = command.args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "ctr {arguments:?}: {said}");
        Ok(())
    }

    fn import(&self, archive: &Path) -> Result<()> {
        self.ctr(&["images", "import", &archive.display().to_string()])
    }

    fn containerd(&self, surroundings: &Surroundings) -> String {
        let directory = &surroundings.directory;
        let plugins = self.path("usr/lib/cni");
        format!(
            r#"version = 2
root = "{directory}/containerd"
state = "/run/containerd"
[grpc]
address = "{CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "node.test/pause:1"
netns_mounts_under_state_dir = true
disable_apparmor = true
# Not every machine's root may make a process less likely to be killed.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{}"
conf_dir = "{directory}/cni"
"#,
            plugins.display()
        )
    }
}

/// A pair of interfaces for each pod.
fn network() -> Value {
    let addresses = json!({
        "type": "host-local",
        "dataDir": "/run/cni",
        "ranges": [[{"subnet": PODS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    json!({"cniVersion": "0.4.0", "name": "node", "plugins": [{"type": "ptp", "ipam": addresses}]})
}

fn proxy_config(kubeconfig: &Path) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": NODE,
        "clientConnection": {"kubeconfig": kubeconfig},
        // These settings are for the whole machine.
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
        },
    })
}

fn kubelet_config(surroundings: &Surroundings) -> Value {
    let directory = &surroundings.directory;
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", surroundings.cgroup),
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "resolvConf": "",
        "readOnlyPort": 0,
        "makeIPTablesUtilChains": false,
        "podLogsDir": format!("{directory}/pods"),
        "volumePluginDir": format!("{directory}/plugins"),
        // The machine's disk is not the node's.
        "localStorageCapacityIsolation": false,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "1Mi"},
        "maxPods": 110,
    })
}

/// Pods find the API server by the Service `kubernetes`, which leads nowhere in a bench without a node.
async fn lead_to_api_server(bench: &Bench, address: &str) -> Result<()> {
    let slices: Api<EndpointSlice> = Api::namespaced(bench.client()?, "default");
    let slice = serde_json::from_value(json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": bench.api_server().port(), "protocol": "TCP"}],
    }))?;
    eventually(START_DEADLINE, "the Service has an endpoint", async || {
        slices.create(&PostParams::default(), &slice).await?;
        Ok(())
    })
    .await
}

fn images(
    directory: &Path,
    tools: &Tools,
    archive: Option<&Path>,
    program: &Path,
) -> Result<Vec<PathBuf>> {
    let pod = directory.join("pod");
    let status = control_plane::go(&control_plane::module())
        .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(&pod)
        .arg("./pod")
        .status()
        .context("running `go`")?;
    ensure!(status.success(), "go build ./pod: {status}");
    let libraries = tools.libraries();
    let with_pod = |name: &str, entrypoint: &[&str]| {
        let image = Image::new(directory, name)?;
        image.program("pod", &pod, &libraries)?;
        image.pack(&format!("node.test/{name}:1"), entrypoint)
    };
    let mut images = vec![
        with_pod("pause", &["/pod", "pause"])?,
        with_pod("pod", &["/pod"])?,
    ];

    let nginx = Image::new(directory, "nginx")?;
    let program_of_nginx = tools.path("usr/sbin/nginx");
    nginx.program("nginx", &program_of_nginx, &libraries)?;
    nginx.program("sh", Path::new("/bin/sh"), &libraries)?;
    nginx.file("nginx.conf", NGINX)?;
    nginx.file("etc/passwd", "root:x:0:0:root:/:/sh\n")?;
    nginx.file("etc/group", "root:x:0:\n")?;
    nginx.directory("tls")?;
    nginx.directory("var/lib/nginx")?;
    nginx.directory("var/log/nginx")?;
    images.push(nginx.pack(
        "node.test/nginx:1",
        &["/nginx", "-e", "stderr", "-c", "/nginx.conf"],
    )?);

    images.push(match archive {
        Some(archive) => archive.to_owned(),
        None => {
            let operator = Image::new(directory, "operator")?;
            operator.program("cert-renew", program, "")?;
            operator.pack(OPERATOR_IMAGE, &["/cert-renew"])?
        }
    });
    Ok(images)
}
