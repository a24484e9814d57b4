//! A server in pods, its Service, its Secret, and a client that connects all the time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Secret, Service};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use test_bench::objects::{OLD, Pair, Space, pair};
use test_bench::{
    Bench, Checker, Context as _, Handshakes, Result, Watched, Watcher, ensure, eventually,
    handshake, leaf_of,
};
use tokio::time::sleep;

/// Pods start and end, volumes arrive late, and the machine may have two busy cores.
pub(super) const LONG: Duration = Duration::from_secs(420);
/// For which the client goes on after all is done.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// Name of everything in a site's namespace.
pub(super) const WEB: &str = "web";
/// Where servers listen.
const PORT: u16 = 8443;

/// What runs in the pods.
#[derive(Clone, Copy, Debug)]
pub(super) enum Server {
    /// nginx, which reads its certificate once, from a volume.
    Nginx,
    /// From a file that the kubelet never changes.
    NginxSubPath,
    /// From its environment.
    NginxEnv,
    /// `tests/control-plane/pod`, with these arguments.
    Pod(&'static [&'static str]),
    /// The same, with the certificate of another Secret: whatever is asked of it, it goes on serving that.
    Liar,
}

/// The Secret whose certificate a [`Server::Liar`] serves.
const ANOTHER: &str = "another";

impl Server {
    fn pod(self) -> Value {
        let mut container = json!({
            "name": "main",
            "image": "node.test/nginx:1",
            "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
            // It goes on serving until nobody is sent to it any more.
            "lifecycle": {"preStop": {"sleep": {"seconds": 3}}},
            "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
        });
        let mut volumes = json!([{"name": "tls", "secret": {"secretName": WEB}}]);
        match self {
            Self::Nginx => {}
            Self::NginxSubPath => {
                container["volumeMounts"] = json!([
                    {"name": "tls", "mountPath": "/tls/tls.crt", "subPath": "tls.crt"},
                    {"name": "tls", "mountPath": "/tls/tls.key", "subPath": "tls.key"},
                ]);
            }
            Self::NginxEnv => {
                let variable = |name: &str, key: &str| json!({"name": name, "valueFrom": {"secretKeyRef": {"name": WEB, "key": key}}});
                container["env"] = json!([
                    variable("CERTIFICATE", "tls.crt"),
                    variable("KEY", "tls.key")
                ]);
                let script = "printf '%s\\n' \"$CERTIFICATE\" >/tls/tls.crt && printf '%s\\n' \"$KEY\" >/tls/tls.key \
                              && exec /nginx -e stderr -c /nginx.conf";
                container["command"] = json!(["/sh", "-c", script]);
                volumes = json!([{"name": "tls", "emptyDir": {}}]);
            }
            Self::Pod(arguments) => of_pod(&mut container, arguments),
            Self::Liar => {
                of_pod(&mut container, &[]);
                volumes[0]["secret"]["secretName"] = ANOTHER.into();
                let unused = json!({"name": "unused", "secret": {"secretName": WEB}});
                volumes.as_array_mut().expect("a list").push(unused);
                let mount = json!({"name": "unused", "mountPath": "/unused"});
                container["volumeMounts"]
                    .as_array_mut()
                    .expect("a list")
                    .push(mount);
            }
        }
        json!({"terminationGracePeriodSeconds": 15, "containers": [container], "volumes": volumes})
    }
}

fn of_pod(container: &mut Value, arguments: &[&str]) {
    let arguments: Vec<&str> = ["serve"].iter().chain(arguments).copied().collect();
    container["image"] = "node.test/pod:1".into();
    container["args"] = json!(arguments);
    container["readinessProbe"] =
        json!({"httpGet": {"path": "/ready", "port": 9000}, "periodSeconds": 1});
}

/// A workload of this kind, of two pods where that can be chosen.
pub(super) fn workload(kind: &str, server: Server) -> Value {
    let labels = json!({"app": WEB});
    let template = json!({"metadata": {"labels": labels}, "spec": server.pod()});
    let mut spec =
        json!({"selector": {"matchLabels": labels}, "template": template, "replicas": 2});
    match kind {
        "Deployment" => {
            spec["strategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        }
        "StatefulSet" => spec["serviceName"] = WEB.into(),
        "DaemonSet" => {
            spec.as_object_mut().expect("an object").remove("replicas");
            spec["updateStrategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        }
        _ => spec["selector"] = labels,
    }
    let version = if kind == "ReplicationController" {
        "v1"
    } else {
        "apps/v1"
    };
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": WEB}, "spec": spec})
}

pub(super) struct Site {
    pub(super) space: Space,
    secret: &'static str,
    kind: &'static str,
    host: String,
    to: SocketAddr,
    handshakes: Handshakes,
    /// Compares what the Secret says with what each pod has.
    checker: Watcher,
    /// The leaf at the beginning; empty where there was none.
    pub(super) first: String,
}

impl Site {
    /// Servers that serve a certificate of five more days, which nobody renews yet.
    pub(super) async fn start(
        bench: &Bench,
        label: &str,
        kind: &'static str,
        server: Server,
    ) -> Result<Self> {
        let site = Self::prepare(bench, label, kind, server).await?;
        site.space.available(kind, WEB).await?;
        site.served(&site.first).await?;
        Ok(site)
    }

    /// The same, where the servers need not come up.
    pub(super) async fn prepare(
        bench: &Bench,
        label: &str,
        kind: &'static str,
        server: Server,
    ) -> Result<Self> {
        let space = Space::new(bench.client()?, label, "default").await?;
        let host = format!("{}.example", space.name);
        let old = pair(&[&host], OLD)?;
        let secret = space.tls_secret(WEB, Some(&old), &[]).await?;
        if matches!(server, Server::Liar) {
            space.tls_secret(ANOTHER, Some(&old), &[]).await?;
        }
        let first = leaf_of(&secret).unwrap_or_default();
        let workload = workload(kind, server);
        Self::make(space, WEB, host, (kind, workload), first).await
    }

    /// What the documents are about: `shop/shop-tls`, which nginx serves as shop.example.com.
    pub(super) async fn of_the_page(bench: &Bench) -> Result<Self> {
        let space = Space {
            client: bench.client()?,
            name: "shop".into(),
            class: "default".into(),
        };
        let namespaces: Api<Namespace> = Api::all(space.client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": space.name}}))?;
        namespaces
            .create(&PostParams::default(), &namespace)
            .await?;
        let (name, host, kind) = ("shop-tls", "shop.example.com", "Deployment");
        let secret = space
            .tls_secret(name, Some(&pair(&[host], OLD)?), &[])
            .await?;
        let first = leaf_of(&secret).unwrap_or_default();
        let mut workload = workload(kind, Server::Nginx);
        workload["spec"]["template"]["spec"]["volumes"][0]["secret"]["secretName"] = name.into();
        let site = Self::make(space, name, host.into(), (kind, workload), first).await?;
        site.space.available(kind, WEB).await?;
        site.served(&site.first).await?;
        Ok(site)
    }

    /// Everything at once, and no certificate yet.
    pub(super) async fn from_nothing(bench: &Bench, label: &str, server: Server) -> Result<Self> {
        let space = Space::new(bench.client()?, label, "default").await?;
        let host = format!("{}.example", space.name);
        let empty = Pair {
            certificate: String::new(),
            key: String::new(),
        };
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        space.tls_secret(WEB, Some(&empty), &annotations).await?;
        let workload = workload("Deployment", server);
        Self::make(space, WEB, host, ("Deployment", workload), String::new()).await
    }

    async fn make(
        space: Space,
        secret: &'static str,
        host: String,
        (kind, workload): (&'static str, Value),
        first: String,
    ) -> Result<Self> {
        let services: Api<Service> = Api::namespaced(space.client.clone(), &space.name);
        let service = serde_json::from_value(json!({
            "metadata": {"name": WEB},
            "spec": {"selector": {"app": WEB}, "ports": [{"port": 443, "targetPort": PORT}]},
        }))?;
        let service = services.create(&PostParams::default(), &service).await?;
        let address = service.spec.and_then(|spec| spec.cluster_ip);
        let address: IpAddr = address.context("no cluster IP")?.parse()?;
        let to = SocketAddr::from((address, 443));
        let object = serde_json::from_value(workload)?;
        space
            .workloads(kind)
            .create(&PostParams::default(), &object)
            .await?;
        // Before the first pod is ready every handshake fails: the client begins later.
        let handshakes = Handshakes::start(space.secrets(), secret, to, &host);
        let namespaces = vec![space.name.clone()];
        let checker = Checker::default().watch(space.client.clone(), namespaces);
        Ok(Self {
            space,
            secret,
            kind,
            host,
            to,
            handshakes,
            checker,
            first,
        })
    }

    /// Waits until the Service serves this leaf, and begins to watch from here on.
    pub(super) async fn served(&self, leaf: &str) -> Result<()> {
        eventually(LONG, "the Service serves it", async || {
            let served = handshake(self.to, &self.host).await?;
            ensure!(served == leaf, "it serves {served:.8}");
            Ok(())
        })
        .await?;
        self.handshakes.forget();
        Ok(())
    }

    /// Sets annotations of ours on the Secret.
    pub(super) async fn annotate(&self, annotations: &[(&str, &str)]) -> Result<()> {
        annotate(&self.space, self.secret, annotations).await
    }

    /// Waits until the Secret holds another leaf than these, and returns it.
    pub(super) async fn renewed(&self, before: &[&str]) -> Result<String> {
        eventually(LONG, "the Secret is renewed", async || {
            let leaf = leaf_of(&self.secret().await?).context("no certificate")?;
            ensure!(!before.contains(&&*leaf), "it holds what it held");
            Ok(leaf)
        })
        .await
    }

    /// Waits until the operator says that the workloads have a leaf that is none of these, then asks each pod.
    pub(super) async fn done(&self, before: &[&str]) -> Result<String> {
        let leaf = self.renewed(before).await?;
        let what = format!("{} is rolled out", self.space.name);
        eventually(LONG, &what, async || {
            let secret = self.secret().await?;
            let said = secret.annotations().get("state.cert-renew.io/rolled-out");
            let said = said.map_or("nothing", String::as_str);
            ensure!(
                said.starts_with(&leaf),
                "rolled-out says {said:.8}, not {leaf:.8}: {:?}",
                self.events().await
            );
            Ok(())
        })
        .await?;
        for pod in self.space.pods(WEB).await? {
            let name = pod.name_any();
            let address = pod.status.and_then(|status| status.pod_ip);
            let address: IpAddr = address
                .with_context(|| format!("{name} has no address"))?
                .parse()?;
            let served = handshake(SocketAddr::from((address, PORT)), &self.host).await;
            let served = served.with_context(|| format!("the pod {name}, after all was done"))?;
            ensure!(
                served == leaf,
                "{name} serves {served:.8} and not {leaf:.8}, after all was done"
            );
        }
        Ok(leaf)
    }

    /// Ends the client a little later; what it has seen, and what the checker has found.
    pub(super) async fn end(self) -> Result<Watched> {
        sleep(AFTERWARDS).await;
        let mut watched = self.handshakes.watched();
        let secret = self.secret().await?;
        let said = secret.annotations();
        let reloads = said.contains_key("cert-renew.io/rollout");
        let leaf = leaf_of(&secret).unwrap_or_default();
        let done = { said.get("state.cert-renew.io/rolled-out") }
            .is_some_and(|done| done.starts_with(&leaf));
        // Of pods that are asked to reload it knows nothing: each of them was asked for what it serves.
        ensure!(
            reloads || !done || self.first.is_empty() || self.checker.compared() > 0,
            "the checker has compared no pod with what the Secret says"
        );
        watched.stale.extend(self.checker.found());
        Ok(watched)
    }

    /// As [`Self::end`], where the workload has to have been changed once.
    pub(super) async fn end_changed_once(self) -> Result<Watched> {
        let generation = self.space.generation(self.kind, WEB).await?;
        ensure!(
            generation == 2,
            "the workload was changed {} times",
            generation - 1
        );
        self.end().await
    }

    pub(super) async fn secret(&self) -> Result<Secret> {
        Ok(self.space.secrets().get(self.secret).await?)
    }

    /// What was said of the Secret and the workload.
    pub(super) async fn events(&self) -> Vec<String> {
        self.space.events(self.secret).await.unwrap_or_default()
    }

    pub(super) async fn event(&self, reason: &str) -> Result<String> {
        eventually(LONG, &format!("the Event {reason}"), async || {
            let events = self.events().await;
            let found = events.iter().find(|it| it.starts_with(reason)).cloned();
            found.with_context(|| format!("{events:?}"))
        })
        .await
    }

    pub(super) fn watched(&self) -> Watched {
        self.handshakes.watched()
    }
}

pub(super) async fn annotate(
    space: &Space,
    secret: &str,
    annotations: &[(&str, &str)],
) -> Result<()> {
    let patch = json!({"metadata": {"annotations": space.annotations(annotations)}});
    space.merge(secret, patch).await?;
    Ok(())
}

/// The first of many.
pub(super) fn some(lines: &[String]) -> &[String] {
    lines.get(..5).unwrap_or(lines)
}
