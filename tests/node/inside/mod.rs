//! The scenes, run where a real node is.

mod newcomer;
mod pods;
mod replicas;

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use futures::future::{FutureExt as _, LocalBoxFuture};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use test_bench::objects::{OLD, Space, pair};
use test_bench::report::Report;
use test_bench::{
    Bench, Context as _, Node, Options, PebbleOptions, Probes, Result, Watched, bail, ensure,
    eventually, leaf_of,
};

use self::pods::{controller, crash, first, liar, newer, post, unavailable, unnoticed, unready};
use self::replicas::{broken, config, killed, resume, upgrade};
use super::site::{LONG, Server, annotate, some};
use crate::install::kubectl;

/// The operator's namespace, as `deploy/` has it.
const OWN: &str = "cert-renew";
/// Secrets without workloads that are renewed while replicas come and go.
const RENEWALS: usize = 5;
const RELOAD: (&str, &str) = ("rollout", "post:9000/reload");
/// The names that the config lets everybody have.
const NAMES: &str = r#""**.example", "**.example.com""#;
/// The repository.
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A cluster of one real node, with the operator in it.
struct Cluster {
    node: Node,
    bench: Bench,
    client: Client,
    challenges: IpAddr,
}

/// What counts beside whether a scene went as it should.
#[derive(Default)]
struct Figures {
    failed_handshakes: usize,
    stale_after_done: usize,
    challenges_lost: usize,
    /// By pods on their way out, which nobody waits for.
    stale_while_leaving: usize,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        let Self {
            failed_handshakes,
            stale_after_done,
            challenges_lost,
            stale_while_leaving,
        } = other;
        self.failed_handshakes += failed_handshakes;
        self.stale_after_done += stale_after_done;
        self.challenges_lost += challenges_lost;
        self.stale_while_leaving += stale_while_leaving;
    }

    fn is_clean(&self) -> bool {
        self.failed_handshakes + self.stale_after_done + self.challenges_lost == 0
    }
}

/// What a scene found, in words, and what counts of it.
type Found = Result<(String, Figures)>;
type Scene = for<'a> fn(&'a Cluster) -> LocalBoxFuture<'a, Found>;

/// Names by which to choose, and what each shows. Those that disturb the operator come last.
const SCENES: [(&str, &str, Scene); 20] = [
    (
        "newcomer",
        "docs/install.md by one file: routed, annotated, served",
        |c| newcomer::by_one_file(c).boxed_local(),
    ),
    (
        "deployment",
        "Deployment: renewed, restarted, served",
        |c| unnoticed(c, "Deployment", Server::Nginx).boxed_local(),
    ),
    ("statefulset", "StatefulSet", |c| {
        unnoticed(c, "StatefulSet", Server::Nginx).boxed_local()
    }),
    ("daemonset", "DaemonSet with maxSurge", |c| {
        unnoticed(c, "DaemonSet", Server::Nginx).boxed_local()
    }),
    ("controller", "ReplicationController, by evictions", |c| {
        controller(c).boxed_local()
    }),
    ("env", "the certificate in the environment", |c| {
        unnoticed(c, "Deployment", Server::NginxEnv).boxed_local()
    }),
    ("subpath", "the certificate by subPath", |c| {
        unnoticed(c, "Deployment", Server::NginxSubPath).boxed_local()
    }),
    (
        "first",
        "the first certificate, all applied together",
        |c| first(c).boxed_local(),
    ),
    ("post", "post: and the kubelet's own delay", |c| {
        post(c).boxed_local()
    }),
    ("unready", "post: with a pod that is not Ready", |c| {
        unready(c).boxed_local()
    }),
    (
        "liar",
        "a server that goes on with the old certificate",
        |c| liar(c).boxed_local(),
    ),
    (
        "crash",
        "a crash loop on a new key type, then mended",
        |c| crash(c).boxed_local(),
    ),
    (
        "newer",
        "a newer certificate while a rollout is stuck",
        |c| newer(c).boxed_local(),
    ),
    ("unavailable", "DaemonSet without any available pod", |c| {
        unavailable(c).boxed_local()
    }),
    ("resume", "halted, mended by the user, resumed", |c| {
        resume(c).boxed_local()
    }),
    ("killed", "SIGKILL of the leader in the middle", |c| {
        killed(c).boxed_local()
    }),
    ("config", "a config change in the middle", |c| {
        config(c).boxed_local()
    }),
    ("broken", "a replica that cannot start", |c| {
        broken(c).boxed_local()
    }),
    (
        "upgrade",
        "a rolling update of the operator in the middle",
        |c| upgrade(c).boxed_local(),
    ),
    (
        "helm",
        "taken away, and installed again by Helm: annotated, served",
        |c| newcomer::by_helm(c).boxed_local(),
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "run_on_a_node runs it, in namespaces of its own"]
async fn scenes() -> Result<()> {
    let options = Options {
        nodes: 0,
        pebble: PebbleOptions {
            http_port: Some(80),
            ..PebbleOptions::default()
        },
        ..Options::default()
    };
    let bench = Bench::start(options).await?;
    let archive = env::var_os("CERT_RENEW_IMAGE").map(PathBuf::from);
    let program = Path::new(env!("CARGO_BIN_EXE_cert-renew"));
    let started = Instant::now();
    let node = Node::start(&bench, archive.as_deref(), program).await;
    let node = node.inspect_err(|_| keep(&bench, None))?;
    eprintln!("node: Ready after {:.0?}", started.elapsed());
    let cluster = deploy(bench, node).await?;

    let chosen = env::var("NODE_SCENES").unwrap_or_default();
    let is_chosen = |name: &str| chosen.is_empty() || chosen.split(',').any(|it| it == name);
    let (mut table, mut total, mut all_well) = (String::new(), Figures::default(), true);
    for (name, what, scene) in SCENES.into_iter().filter(|(name, ..)| is_chosen(name)) {
        let began = Instant::now();
        let found = scene(&cluster).await;
        let took = began.elapsed().as_secs();
        let (well, text) = match found {
            Ok((text, figures)) => {
                total.add(&figures);
                (figures.is_clean(), text)
            }
            Err(error) => (false, format!("{error:#}")),
        };
        all_well &= well;
        let verdict = if well { "ok" } else { "FAILED" };
        eprintln!("{verdict:<6} {what}: {text} ({took} s)");
        let text = text.lines().next().unwrap_or_default();
        writeln!(
            table,
            "{verdict:<6} {name:<12} {took:>4} s  {what}: {text:.160}"
        )?;
    }
    eprintln!("\n{table}");
    let mut report = Report::new("node", "make node");
    let figures = [
        (
            "node.failed_handshakes",
            total.failed_handshakes,
            "handshakes",
        ),
        (
            "node.stale_after_done",
            total.stale_after_done,
            "handshakes",
        ),
        (
            "node.stale_while_leaving",
            total.stale_while_leaving,
            "handshakes",
        ),
        ("node.challenges_lost", total.challenges_lost, "requests"),
    ];
    for (name, value, unit) in figures {
        report.add(name, value as f64, unit);
    }
    eprintln!("{}", report.finish()?);
    if !all_well {
        keep(&cluster.bench, Some(&cluster.node));
        bail!("not as it should be; logs are in target/node");
    }
    Ok(())
}

fn keep(bench: &Bench, node: Option<&Node>) {
    let into = Path::new(ROOT).join("target/node");
    let _ = fs::remove_dir_all(&into);
    if let Err(error) = test_bench::keep_node_logs(bench, node, &into) {
        eprintln!("node: the logs could not be kept: {error:#}");
    }
}

/// Installs the operator as a user does, by the one file of `make dist` with the config in it.
async fn deploy(bench: Bench, node: Node) -> Result<Cluster> {
    let cluster = Cluster {
        client: bench.client()?,
        node,
        bench,
        challenges: IpAddr::from([0, 0, 0, 0]),
    };
    cluster.apply(NAMES)?;
    for addon in ["eviction", "verify"] {
        kubectl(
            &cluster.bench,
            &format!("apply -f rbac/addons/{addon}.yaml"),
            "",
        )?;
    }
    let challenges = cluster.lead_challenges().await?;
    let cluster = Cluster {
        challenges,
        ..cluster
    };
    if let Err(error) = cluster.operator_available().await {
        keep(&cluster.bench, Some(&cluster.node));
        return Err(error);
    }
    Ok(cluster)
}

impl Cluster {
    /// A config that issues for these names, by the bench's CA.
    fn config(&self, names: &str) -> String {
        format!(
            "issuers:\n  pebble:\n    directory: {directory}\n    contact: ops@bench.example\n    \
             caBundle: /etc/cert-renew/ca.pem\n    profile: default\n    concurrency: 1\n    requestsPerSecond: 1000\n    \
             allow: [{{namespaces: [\"*\"], names: [{names}]}}]\n\
             solvers: [{{http01: {{route: shared}}}}]\n\
             dns: {{nameservers: [\"{dns}\"]}}\n\
             rollout: {{settle: 1s, perWorkloadMinInterval: 0s, progressTimeout: 1m, verifyGrace: 10s}}\n",
            directory = self.bench.pebble().directory(),
            dns = self.bench.dns().address(),
        )
    }

    /// Applies the one file of `make dist`, with a config in it that issues for these names.
    fn apply(&self, names: &str) -> Result<()> {
        let mut made = Command::new("deploy/dist.sh");
        let made = made
            .args(["docker.io/library/cert-renew", "target/node-dist"])
            .current_dir(ROOT)
            .status()?;
        ensure!(made.success(), "deploy/dist.sh: {made}");
        let text = fs::read_to_string(Path::new(ROOT).join("target/node-dist/install.yaml"))?;
        let mut objects: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        let mut config = objects.iter_mut().filter(|it| {
            it["kind"] == "ConfigMap" && it["metadata"]["name"] == "cert-renew-config"
        });
        let config = config.next().context("the file has no config")?;
        config["data"] = json!({
            "config.yaml": self.config(names),
            "ca.pem": fs::read_to_string(self.bench.ca_bundle())?,
        });
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        kubectl(&self.bench, "apply -f -", &list.to_string())?;
        Ok(())
    }

    /// The way of a challenge: any name leads to the Service, as by an edge that passes everything on. Returns its address.
    async fn lead_challenges(&self) -> Result<IpAddr> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), OWN);
        let service = services.get("cert-renew-challenge").await?;
        let address = service.spec.and_then(|spec| spec.cluster_ip);
        let address = address.context("no cluster IP")?.parse()?;
        let dns = self.bench.dns();
        dns.set("set-default-ipv4", &json!({"ip": address})).await?;
        Ok(address)
    }

    /// Waits until two pods of the newest template are ready, and no other is left.
    async fn operator_available(&self) -> Result<()> {
        let space = Space {
            client: self.client.clone(),
            name: OWN.into(),
            class: "default".into(),
        };
        let available = space.available("Deployment", "cert-renew").await;
        if available.is_err() {
            let pods = self.operator_pods().await?;
            let names = pods.iter().map(|pod| pod.name_any());
            let logs = names.map(|name| format!("{name}:\n{}", self.node.logs(&name)));
            eprintln!("{}\n{}", space.situation().await, logs.collect::<String>());
        }
        available
    }

    async fn operator_pods(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), OWN);
        let ours = ListParams::default().labels("app.kubernetes.io/name=cert-renew");
        Ok(pods.list(&ours).await?.items)
    }

    /// The pod that leads.
    async fn leader(&self) -> Result<String> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), OWN);
        eventually(LONG, "somebody leads", async || {
            let lease = leases.get("cert-renew").await?;
            let holder = lease.spec.and_then(|spec| spec.holder_identity);
            let holder = holder.unwrap_or_default();
            let (pod, _) = holder.split_once('_').context("nobody leads")?;
            Ok(pod.to_owned())
        })
        .await
    }

    /// A client of the Service that CAs are led to.
    fn probe_challenges(&self) -> Result<Probes> {
        let health = format!(
            "http://{}/.well-known/acme-challenge/health",
            self.challenges
        );
        Probes::start(health)
    }

    /// Due Secrets that nothing uses.
    async fn renewals(&self, label: &str) -> Result<Renewals> {
        let space = Space::new(self.client.clone(), label, "default").await?;
        let mut before = BTreeMap::new();
        for number in 0..RENEWALS {
            let name = format!("tls-{number}");
            let host = format!("{name}.{}.example", space.name);
            let secret = space
                .tls_secret(&name, Some(&pair(&[&host], OLD)?), &[])
                .await?;
            before.insert(name, leaf_of(&secret));
        }
        Ok(Renewals { space, before })
    }
}

struct Renewals {
    space: Space,
    before: BTreeMap<String, Option<String>>,
}

impl Renewals {
    async fn begin(&self) -> Result<()> {
        for name in self.before.keys() {
            annotate(&self.space, name, &[("issuer", "pebble")]).await?;
        }
        Ok(())
    }

    /// Waits until all are renewed; how many tries have failed.
    async fn end(&self) -> Result<usize> {
        let mut failed = 0;
        for (name, before) in &self.before {
            eventually(LONG, &format!("{name} is renewed"), async || {
                let secret = self.space.secrets().get(name).await?;
                ensure!(
                    leaf_of(&secret) != *before,
                    "{:?}",
                    self.space.events(name).await?
                );
                Ok(())
            })
            .await?;
            let events = self.space.events(name).await?;
            failed += events
                .iter()
                .filter(|it| it.starts_with("RenewalFailed"))
                .count();
        }
        Ok(failed)
    }
}

/// Of a scene in which clients must notice nothing.
fn count(watched: &Watched) -> (String, Figures) {
    let figures = Figures {
        failed_handshakes: watched.failed.len(),
        stale_after_done: watched.stale.len(),
        challenges_lost: 0,
        stale_while_leaving: watched.leaving,
    };
    let text = format!(
        "{} of {} handshakes failed {:?}, {} stale {:?}",
        watched.failed.len(),
        watched.tried,
        some(&watched.failed),
        watched.stale.len(),
        some(&watched.stale),
    );
    (text, figures)
}

/// Of a scene in which they may.
fn count_stale(watched: &Watched) -> (String, Figures) {
    let (text, figures) = count(watched);
    (
        text,
        Figures {
            failed_handshakes: 0,
            ..figures
        },
    )
}
