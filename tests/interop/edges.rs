//! What the scenes of routes share: two Traefiks with their classes and Gateways. Each scene adds an operator behind the
//! shipped Service, a host that leads to one of them, and an app of the user's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use test_bench::objects::{FRESH, Space, pair};
use test_bench::{
    Bench, Context as _, Operator, OperatorOptions, Result, Traefik, ensure, eventually,
};
use tokio::net::TcpListener;

use super::inside::Ground;
use crate::install::kubectl;
use crate::renewal::{SOON, options, renewed};
use crate::rolling::{make, pods_of, ready};

/// Where the Traefik listens that answers by HTTP, and the class of its Ingresses.
const PLAIN: Ipv4Addr = Ipv4Addr::new(127, 0, 80, 1);
pub(super) const CLASS: &str = "traefik";
/// Where the Traefik listens that leads all of HTTP to HTTPS, and the class of its Ingresses.
const SECURE: Ipv4Addr = Ipv4Addr::new(127, 0, 80, 2);
pub(super) const SECURE_CLASS: &str = "traefik-https";
/// Where the Gateways are.
pub(super) const NAMESPACE: &str = "edge";
/// What the app answers to every request.
const GREETING: &str = "the app of the user";
/// The port of `deploy/deployment.yaml`.
const CHALLENGE_PORT: u16 = 8402;
const APP_PORT: u16 = 8080;
/// The path that `cert-renew check route` asks for.
pub(super) const HEALTH: &str = "/.well-known/acme-challenge/health";

/// The controllers that all scenes share.
pub(super) struct Edges {
    pub(super) plain: Traefik,
    /// Its entry point for HTTP sends every request to HTTPS.
    pub(super) secure: Traefik,
}

impl Edges {
    pub(super) async fn start(ground: &Ground) -> Result<Self> {
        let bench = &ground.bench;
        bench.install_whole_gateway_api().await?;
        let own = pair(&["edge.example"], FRESH)?;
        let class = |name: &str| {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": name},
                "spec": {"controller": "traefik.io/ingress-controller"}})
        };
        let listener = |name: &str, port: u16, from: &str| {
            let mut listener = json!({"name": name, "port": port, "protocol": name.to_uppercase(),
                "allowedRoutes": {"namespaces": {"from": from}}});
            if name == "https" {
                listener["tls"] = json!({"certificateRefs": [{"name": "own"}]});
            }
            listener
        };
        let gateway = |name: &str, listeners: Value| {
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"gatewayClassName": "traefik", "listeners": listeners}})
        };
        let items = vec![
            class(CLASS),
            class(SECURE_CLASS),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
            json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
                "metadata": {"name": "own", "namespace": NAMESPACE},
                "stringData": {"tls.crt": own.certificate, "tls.key": own.key}}),
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
                "metadata": {"name": "traefik"}, "spec": {"controllerName": "traefik.io/gateway-controller"}}),
            gateway(
                "public",
                json!([listener("http", 80, "All"), listener("https", 443, "All")]),
            ),
            gateway("closed", json!([listener("http", 80, "Same")])),
        ];
        apply(bench, items)?;
        let gateways = ["--providers.kubernetesGateway=true"];
        let redirect = [
            "--entryPoints.web.http.redirections.entryPoint.to=websecure",
            "--entryPoints.web.http.redirections.entryPoint.scheme=https",
        ];
        Ok(Self {
            plain: Traefik::start(bench, PLAIN, CLASS, &gateways).await?,
            secure: Traefik::start(bench, SECURE, SECURE_CLASS, &redirect).await?,
        })
    }
}

pub(super) fn apply(bench: &Bench, items: Vec<Value>) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    kubectl(bench, "create -f -", &list.to_string())?;
    Ok(())
}

/// An operator behind the shipped Service, a host that leads to a Traefik, and a namespace of the user's.
pub(super) struct Site<'a> {
    pub(super) bench: &'a Bench,
    pub(super) edge: &'a Traefik,
    pub(super) operator: Operator<'a>,
    pub(super) space: Space,
    pub(super) host: String,
    /// As Traefik's log names it.
    backend: String,
}

impl<'a> Site<'a> {
    pub(super) async fn start(
        ground: &'a Ground,
        edge: &'a Traefik,
        tag: &str,
        route: &str,
    ) -> Result<Self> {
        let bench = &ground.bench;
        let host = format!("{tag}.routes.example");
        let arguments = json!({"host": host, "addresses": [edge.address().to_string()]});
        bench.dns().set("add-a", &arguments).await?;
        let config = format!(
            "solvers:\n  - http01: {{{route}}}\ndns: {{nameservers: [\"{}\"]}}\n",
            bench.dns().address()
        );
        let options = OperatorOptions {
            config: options().config + &config,
            addons: ["ingress", "gateway"]
                .map(|kind| format!("rbac/addons/route-{kind}.yaml"))
                .into(),
            ..options()
        };
        let mut operator = Operator::install(bench, options).await?;
        let namespace = operator.namespace().to_owned();
        let home = Space {
            client: bench.client()?,
            name: namespace.clone(),
            class: namespace.clone(),
        };
        let services = include_str!("../../deploy/services.yaml");
        let here = services.replace("namespace: cert-renew", &format!("namespace: {namespace}"));
        kubectl(bench, "create -f -", &here)?;
        let address = pod(&home, "cert-renew", "challenge", CHALLENGE_PORT).await?;
        operator.answer_at(address);
        operator.run().await?;
        let space = Space::new(bench.client()?, tag, &namespace).await?;
        Ok(Self {
            bench,
            edge,
            operator,
            space,
            host,
            backend: format!("\"http://{address}\""),
        })
    }

    pub(super) async fn ask(&self) -> Result<()> {
        let annotations = [("issuer", "pebble"), ("names", &*self.host)];
        self.space.tls_secret("tls", None, &annotations).await?;
        Ok(())
    }

    pub(super) async fn issued(&self) -> Result<()> {
        renewed(&self.space, "tls", "").await?;
        Ok(())
    }

    /// An app with a Service, which answers. It does not use the certificate itself, so nothing restarts it.
    pub(super) async fn app(&self) -> Result<()> {
        let address = pod(&self.space, "app", "http", APP_PORT).await?;
        let listener = TcpListener::bind(address).await?;
        let app = axum::Router::new().fallback(async || GREETING);
        tokio::spawn(async move { axum::serve(listener, app).await });
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "app", "namespace": self.space.name},
            "spec": {"selector": {"app": "app"}, "ports": [{"port": 80, "targetPort": "http"}]}});
        apply(self.bench, vec![service])
    }

    /// Status, body and Location of the answer to a client that asks for a path of the host.
    pub(super) async fn get(&self, scheme: &str, path: &str) -> Result<(u16, String, String)> {
        let port = if scheme == "https" { 443 } else { 80 };
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .tls_danger_accept_invalid_certs(true)
            .timeout(Duration::from_secs(5))
            .resolve(&self.host, SocketAddr::from((self.edge.address(), port)))
            .build()?;
        let url = format!("{scheme}://{}{path}", self.host);
        let answer = http.get(url).send().await?;
        let status = answer.status().as_u16();
        let location = answer.headers().get("location");
        let location = location
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        Ok((status, answer.text().await?, location))
    }

    pub(super) async fn greets(&self, scheme: &str) -> Result<()> {
        let (status, body, _) = self.get(scheme, "/").await?;
        ensure!(body == GREETING, "{status}: {body}");
        Ok(())
    }

    /// How many requests came to the operator through Traefik: our own look, and the CA's.
    pub(super) fn answered(&self) -> Result<usize> {
        let log = self.edge.requests()?;
        let ours = log.lines().filter(|it| {
            it.contains("GET /.well-known/acme-challenge/") && it.contains(&self.backend)
        });
        let count = ours.filter(|it| it.contains("\" 200 ")).count();
        ensure!(count >= 2, "{count} were answered by {}", self.backend);
        Ok(count)
    }

    /// No object of ours is left, and nothing leads to us any more.
    pub(super) async fn nothing_is_left(&self, kind: &str) -> Result<()> {
        let routes = objects(self.bench, self.operator.namespace(), kind)?;
        eventually(SOON, "no route is left", async || {
            let left = routes.list(&ListParams::default()).await?.items.len();
            ensure!(left == 0, "{left} are left");
            let (status, body, _) = self.get("http", HEALTH).await?;
            ensure!(body != "OK", "{status}: it is still routed to us");
            Ok(())
        })
        .await
    }
}

/// The address at which the only pod of a Deployment is to be served.
pub(super) async fn pod(space: &Space, name: &str, port: &str, number: u16) -> Result<SocketAddr> {
    let labels = json!({"app": name, "app.kubernetes.io/name": name});
    let ports = json!([{"name": port, "containerPort": number}]);
    let changes = [
        ("/spec/replicas", json!(1)),
        ("/spec/template/metadata/labels", labels),
        ("/spec/template/spec/containers/0/ports", ports),
    ];
    make(space, "Deployment", name, "of-its-own", &changes).await?;
    ready(space, name, 1).await?;
    let pod = pods_of(space, name).await?.remove(0);
    let address = pod.status.and_then(|status| status.pod_ip);
    let address: IpAddr = address.context("a pod without an address")?.parse()?;
    Ok((address, number).into())
}

pub(super) fn objects(bench: &Bench, namespace: &str, kind: &str) -> Result<Api<DynamicObject>> {
    let (group, plural) = match kind {
        "Ingress" => ("networking.k8s.io", "ingresses"),
        _ => ("gateway.networking.k8s.io", "httproutes"),
    };
    let gvk = GroupVersionKind::gvk(group, "v1", kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    Ok(Api::namespaced_with(bench.client()?, namespace, &resource))
}
