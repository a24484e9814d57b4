//! Secrets in every state that a user meets, an operator that can be asked, and who asks.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::process::Output;

use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, OLD, Pair, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, OperatorOptions, Result, ensure, eventually};

use crate::command::cert_renew;
use crate::renewal::{SOON, annotation};

/// Name, annotations beside the issuer `pebble`, and the state that is true.
pub(crate) type Case = (
    &'static str,
    Vec<(&'static str, &'static str)>,
    &'static str,
);

/// The Secret whose CA answers, and says when it wants the certificate replaced.
pub(crate) const BY_THE_CA: &str = "by-the-ca";

/// By whose word that Secret is renewed.
pub(crate) const IN_WORDS: &str = "by the CA's window (ARI)";

/// Secrets in the states that a user meets; the CA of all but one cannot be reached.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        ("healthy", vec![], "ok"),
        ("unknown-issuer", vec![("issuer", "LetsEncrypt")], "blocked"),
        ("not-allowed", vec![("names", "evil.other.test")], "blocked"),
        ("misread-key", vec![("key-type", "rsa")], "blocked"),
        ("misread-names", vec![("names", "a b; c")], "blocked"),
        ("paused", vec![("paused", "true")], "paused"),
        (
            "paused-partner",
            vec![("issuer", "external"), ("paused", "true")],
            "paused",
        ),
        ("misread-pause", vec![("paused", "yes")], "blocked"),
        ("warned", vec![("renew-before", "soon")], "ok"),
        ("held", vec![("renew-now", "today")], "held"),
        (
            "forced",
            vec![("renew-now", "force today")],
            "renewal_failing",
        ),
        ("partner", vec![("issuer", "external")], "expiring"),
        ("never", vec![("names", "evil.other.test")], "blocked"),
        (
            "never-known",
            vec![("issuer", "LetsEncrypt"), ("names", "shop.example")],
            "blocked",
        ),
        ("halted", vec![("issuer", "external")], "rollout_failing"),
        (
            BY_THE_CA,
            vec![("issuer", "reachable"), ("names", "ca.shop.example")],
            "ok",
        ),
    ]
}

/// Makes the Secrets of the table.
pub(crate) async fn scene(space: &Space) -> Result<()> {
    let (fresh, old) = (
        pair(&["shop.example"], FRESH)?,
        pair(&["shop.example"], OLD)?,
    );
    let leaf = |pair: &Pair| {
        let leaf = cert_renew_core::certificate::leaf(pair.certificate.as_bytes());
        leaf.context("a leaf")
    };
    let had = leaf(&pair(&["shop.example"], FRESH)?)?;
    let rolled_out = format!("{} {}", had.fingerprint, had.not_after);
    let note = format!("deployment/web {}", leaf(&fresh)?.fingerprint);
    // What the halted rollout is about: without a workload there is none.
    space
        .workload("Deployment", "web", Reference::Volume, "halted")
        .await?;
    for (name, more, _) in cases() {
        let mut annotations = vec![("issuer", "pebble")];
        annotations.extend(more);
        if name == "halted" {
            annotations.push(("state.cert-renew.io/rolled-out", &*rolled_out));
            annotations.push(("state.cert-renew.io/rollout-halted", &*note));
        }
        let held = match name {
            "never" | "never-known" | BY_THE_CA => None,
            "partner" => Some(&old),
            _ => Some(&fresh),
        };
        space.tls_secret(name, held, &annotations).await?;
    }
    let other = [("issuer", "pebble"), ("class", "other")];
    space
        .tls_secret("other-class", Some(&fresh), &other)
        .await?;
    Ok(())
}

/// An address of this machine that an API server goes to, as it refuses loopback; nothing is sent to find it.
pub(crate) fn outward() -> Result<SocketAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9")?;
    let own: IpAddr = socket.local_addr()?.ip();
    Ok(TcpListener::bind((own, 0))?.local_addr()?)
}

/// The Service of the metrics port as it is shipped, with this address behind it.
pub(crate) async fn service(bench: &Bench, namespace: &str, address: SocketAddr) -> Result<()> {
    let client = bench.client()?;
    let shipped = fs::read_to_string(format!(
        "{}/deploy/services.yaml",
        env!("CARGO_MANIFEST_DIR")
    ))?;
    let shipped = serde_saphyr::from_multiple::<Value>(&shipped)?;
    let mut service = shipped
        .into_iter()
        .find(|it| it["metadata"]["name"] == "cert-renew-metrics")
        .context("no such Service")?;
    service["metadata"]["namespace"] = namespace.into();
    // No pod is behind it here.
    service["spec"]["selector"] = Value::Null;
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let post = PostParams::default();
    services
        .create(&post, &serde_json::from_value(service)?)
        .await?;
    // An API server goes only to addresses that a pod has. Nobody schedules this one.
    let ip = address.ip().to_string();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = json!({
        "metadata": {"name": "cert-renew-0"},
        "spec": {
            "schedulerName": "nobody",
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "cert-renew", "image": "none",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    pods.create(&post, &serde_json::from_value(pod)?).await?;
    let status = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
    pods.patch_status(
        "cert-renew-0",
        &PatchParams::default(),
        &Patch::Merge(status),
    )
    .await?;
    let slice = json!({
        "metadata": {"name": "cert-renew-metrics", "labels": {"kubernetes.io/service-name": "cert-renew-metrics"}},
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [ip],
            "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "namespace": namespace, "name": "cert-renew-0"},
        }],
        "ports": [{"name": "metrics", "port": address.port(), "protocol": "TCP"}],
    });
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    slices
        .create(&post, &serde_json::from_value(slice)?)
        .await?;
    // Older API servers look here.
    let endpoints = json!({
        "metadata": {
            "name": "cert-renew-metrics",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{
                "ip": ip,
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": "cert-renew-0"},
            }],
            "ports": [{"name": "metrics", "port": address.port(), "protocol": "TCP"}],
        }],
    });
    let all: Api<Endpoints> = Api::namespaced(client, namespace);
    all.create(&post, &serde_json::from_value(endpoints)?)
        .await?;
    Ok(())
}

/// Gives `viewer` the shipped roles.
pub(crate) async fn viewer(bench: &Bench, namespace: &str) -> Result<()> {
    let client = bench.client()?;
    let path = format!("{}/rbac/addons/viewer.yaml", env!("CARGO_MANIFEST_DIR"));
    let post = PostParams::default();
    let name = format!("{namespace}-viewer");
    let subjects =
        json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "viewer"}]);
    for mut role in serde_saphyr::from_multiple::<Value>(&fs::read_to_string(path)?)? {
        if !role["kind"].as_str().is_some_and(|it| it.ends_with("Role")) {
            continue;
        }
        role["metadata"]["name"] = name.clone().into();
        let kind = role["kind"].clone();
        let binding = json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            "subjects": subjects,
        });
        if kind == "Role" {
            role["metadata"]["namespace"] = namespace.into();
            let roles: Api<Role> = Api::namespaced(client.clone(), namespace);
            roles.create(&post, &serde_json::from_value(role)?).await?;
            let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
            bindings
                .create(&post, &serde_json::from_value(binding)?)
                .await?;
        } else {
            let roles: Api<ClusterRole> = Api::all(client.clone());
            roles.create(&post, &serde_json::from_value(role)?).await?;
            let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
            bindings
                .create(&post, &serde_json::from_value(binding)?)
                .await?;
        }
    }
    Ok(())
}

/// An operator that can be asked through the API server, and the scene once all of it is judged.
pub(crate) async fn started<'a>(bench: &'a Bench, prefix: &str) -> Result<(Operator<'a>, Space)> {
    let mut options = OperatorOptions::new(env!("CARGO_BIN_EXE_cert-renew"));
    options.directory = Some("https://127.0.0.1:1/directory".into());
    options.config = format!(
        "  reachable:\n    directory: {}\n    caBundle: {}\n    profile: default\n    concurrency: 1\n    \
         allow: [{{namespaces: [\"*\"], names: [\"**.example\"]}}]\n{}",
        bench.pebble().directory(),
        bench.ca_bundle().display(),
        options.config
    );
    let mut operator = Operator::install(bench, options).await?;
    operator.show_at(outward()?);
    let namespace = operator.namespace().to_owned();
    service(bench, &namespace, operator.metrics_address()).await?;
    viewer(bench, &namespace).await?;
    let config = json!({"metadata": {"name": "cert-renew-config"},
        "data": {"config.yaml": fs::read_to_string(operator.config())?}});
    let maps: Api<ConfigMap> = Api::namespaced(bench.client()?, &namespace);
    maps.create(&PostParams::default(), &serde_json::from_value(config)?)
        .await?;
    let space = Space::new(bench.client()?, prefix, &namespace).await?;
    scene(&space).await?;
    operator.run().await?;
    eventually(
        SOON,
        "the forced one has failed, another is held, and a CA has named its window",
        async || {
            let report = json(&operator).await?;
            let states = states(&report);
            let is = |name: &str, state: &str| states.get(name).is_some_and(|it| it == state);
            let mut rows = report["certificates"].as_array().into_iter().flatten();
            let by_the_ca = rows.find(|row| row["name"] == BY_THE_CA);
            ensure!(
                is("forced", "renewal_failing")
                    && is("held", "held")
                    && is(BY_THE_CA, "ok")
                    && by_the_ca.is_some_and(|row| row["renewsWhy"] == "RenewalInfo"),
                "{states:?} {by_the_ca:?}"
            );
            Ok(())
        },
    )
    .await?;
    // A date alone is not written; with a misread annotation, which holds nothing up, it is.
    space.annotate(BY_THE_CA, "renew-before", "soon").await?;
    eventually(SOON, "the date stands on the Secret", async || {
        let secret = space.secrets().get(BY_THE_CA).await?;
        let line = annotation(&secret, "state.cert-renew.io/state").unwrap_or_default();
        ensure!(line.contains(IN_WORDS), "{line}");
        Ok(())
    })
    .await?;
    Ok((operator, space))
}

pub(crate) async fn json(operator: &Operator<'_>) -> Result<Value> {
    Ok(serde_json::from_str(
        &operator.ask("/api/certificates?sort=secret").await?,
    )?)
}

pub(crate) fn states(report: &Value) -> BTreeMap<String, String> {
    let rows = report["certificates"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    rows.map(|row| (text(&row["name"]), text(&row["state"])))
        .collect()
}

/// The certificates without what changes with the clock or the next try.
pub(crate) fn lasting(report: &Value) -> Vec<Value> {
    let as_of = &report["asOf"];
    let rows = report["certificates"].as_array().into_iter().flatten();
    rows.map(|row| {
        let mut row = row.clone();
        if row["renews"] == *as_of || row["state"] == "renewal_failing" {
            row["renews"] = Value::Null;
        }
        for field in ["nextTry", "failures", "lastError"] {
            row[field] = Value::Null;
        }
        row
    })
    .collect()
}

/// A command as somebody, in the scene's namespace.
pub(crate) struct Reader<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) space: &'a Space,
    pub(crate) operator: &'a str,
    pub(crate) who: &'static str,
}

impl Reader<'_> {
    pub(crate) fn types(&self, command: &[&str]) -> Result<Output> {
        let way = [
            "-n",
            &self.space.name,
            "--operator-namespace",
            self.operator,
            "--as",
            self.who,
        ];
        cert_renew(&[command, &way].concat(), Some(self.bench.kubeconfig()))
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
