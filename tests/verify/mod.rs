//! What pods serve after a rollout, and pods that are asked to reload: real servers on the pods' own addresses.

mod inside;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use test_bench::certificates::Template;
use test_bench::objects::{FRESH, Pair, Reference, Space, pair, workload};
use test_bench::{
    Bench, Context as _, Operator, Result, ensure, eventually, run_where_pods_have_addresses,
    throughout,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::install::kubectl;
use crate::propagation::told;
use crate::renewal::{SOON, annotation, leaf, options, rolled_out};

/// Long enough for a restart that should not be to show itself.
const QUIET: Duration = Duration::from_secs(3);

#[tokio::test]
async fn pods_are_asked_at_their_own_addresses() -> Result<()> {
    run_where_pods_have_addresses("verify::inside::").await
}

/// What a server presents to a client that connects to this pod.
type Choice = Box<dyn Fn(&Pod) -> Option<Pair> + Send + Sync>;

/// The pod of a space that has this address.
async fn pod_at(space: &Space, address: IpAddr) -> Result<Pod> {
    let api: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
    let at = ListParams::default().fields(&format!("status.podIP={address}"));
    let mut pods = api.list(&at).await?.items;
    pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
    pods.pop().context("no pod has this address")
}

/// Listens on every pod's address; says at which port.
async fn listen() -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// A TLS server in every pod of the space; without a pair it hangs up.
async fn serve_tls(space: &Arc<Space>, choice: Choice) -> Result<u16> {
    let (listener, port) = listen().await?;
    let (space, choice) = (Arc::clone(space), Arc::new(choice));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (space, choice) = (Arc::clone(&space), Arc::clone(&choice));
            tokio::spawn(async move {
                let pod = pod_at(&space, stream.local_addr()?.ip()).await?;
                if let Some(pair) = choice(&pod) {
                    // The client only looks, and leaves.
                    let _ = acceptor(&pair)?.accept(stream).await;
                }
                Ok::<_, test_bench::Error>(())
            });
        }
    });
    Ok(port)
}

fn acceptor(pair: &Pair) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What reload endpoints were asked: the pod's address and the path, in order.
type Hits = Arc<Mutex<Vec<(IpAddr, String)>>>;

/// A reload endpoint in every pod, which answers with this status line and headers.
async fn serve_reload(answer: &'static str) -> Result<(u16, Hits)> {
    let (listener, port) = listen().await?;
    let hits = Hits::default();
    let noted = Arc::clone(&hits);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Who hangs up has not asked.
            let _ = answer_one(stream, answer, &noted).await;
        }
    });
    Ok((port, hits))
}

async fn answer_one(mut stream: TcpStream, answer: &str, hits: &Hits) -> Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    let request = String::from_utf8(request)?;
    let line = request.lines().next().context("no request line")?;
    let path = line
        .strip_prefix("POST ")
        .and_then(|rest| rest.strip_suffix(" HTTP/1.1"))
        .context("not a POST")?;
    let address = stream.local_addr()?.ip();
    hits.lock()
        .expect("nobody panics")
        .push((address, path.to_owned()));
    let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    Ok(stream.write_all(answer.as_bytes()).await?)
}

/// A server in every pod that takes connections, and never says anything.
async fn serve_nothing() -> Result<u16> {
    let (listener, port) = listen().await?;
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    Ok(port)
}

/// The leaf that a pod was started for, by its template.
fn started_for(pod: &Pod) -> Option<&str> {
    let annotation = pod.annotations().get("state.cert-renew.io/leaf.tls");
    annotation.map(String::as_str)
}

async fn service(space: &Space, name: &str, app: &str, target: u16) -> Result<()> {
    let api: Api<Service> = Api::namespaced(space.client.clone(), &space.name);
    let service = json!({
        "metadata": {"name": name},
        "spec": {"selector": {"app": app}, "ports": [{"port": 443, "targetPort": target}]},
    });
    api.create(&PostParams::default(), &serde_json::from_value(service)?)
        .await?;
    Ok(())
}

async fn operator(bench: &Bench) -> Result<Operator<'_>> {
    let mut options = options();
    options.addons.push("rbac/addons/verify.yaml".into());
    options.config = "rollout: {settle: 0s, perWorkloadMinInterval: 0s, verifyGrace: 2s, reloadWait: 1s, reloadAgain: 1s}\n".into();
    Operator::start(bench, options).await
}

/// A Deployment `web` whose workloads have `old` of the Secret `tls`.
struct Scene {
    space: Arc<Space>,
    old: Pair,
    new: Pair,
}

impl Scene {
    async fn new(bench: &Bench, operator: &Operator<'_>) -> Result<Self> {
        let space = Space::new(bench.client()?, "verify", operator.namespace()).await?;
        Ok(Self {
            space: Arc::new(space),
            old: pair(&["web.example"], FRESH)?,
            new: pair(&["web.example"], FRESH)?,
        })
    }

    /// Makes the Secret with these annotations, and waits until it is known.
    async fn begin(&self, annotations: &[(&str, &str)]) -> Result<()> {
        let mut all = vec![("issuer", "external")];
        all.extend(annotations);
        self.space.tls_secret("tls", Some(&self.old), &all).await?;
        rolled_out(&self.space, "tls").await?;
        Ok(())
    }

    async fn web(&self) -> Result<()> {
        let space = &self.space;
        space
            .workload("Deployment", "web", Reference::Volume, "tls")
            .await?;
        space.available("Deployment", "web").await
    }

    async fn put_new(&self) -> Result<()> {
        self.space.put("tls", &self.new).await?;
        Ok(())
    }

    async fn generation(&self) -> Result<i64> {
        self.space.generation("Deployment", "web").await
    }

    /// The pods in the view of the Secret.
    async fn pods(&self, operator: &Operator<'_>) -> Result<serde_json::Value> {
        let path = format!("/api/certificates?namespace={}&name=tls", self.space.name);
        let report: serde_json::Value = serde_json::from_str(&operator.ask(&path).await?)?;
        Ok(report["certificates"][0]["detail"]["pods"].clone())
    }

    /// The operator's series of this Secret with this name.
    async fn series(&self, operator: &Operator<'_>, name: &str) -> Result<Option<String>> {
        let metrics = operator.metrics().await?;
        let labels = format!(
            "{name}{{namespace=\"{}\",secret=\"tls\"}} ",
            self.space.name
        );
        let value = |line: &str| line.strip_prefix(&labels).map(ToOwned::to_owned);
        Ok(metrics.lines().find_map(value))
    }
}

/// An operator that may verify, and a scene whose Deployment is available.
async fn started(bench: &Bench) -> Result<(Operator<'_>, Scene)> {
    let operator = operator(bench).await?;
    let scene = Scene::new(bench, &operator).await?;
    scene.web().await?;
    Ok((operator, scene))
}

#[tokio::test]
async fn without_the_right_it_says_which_add_on_is_missing() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let scene = Scene::new(bench, &operator).await?;
    scene.web().await?;
    scene.begin(&[("verify", "web:443")]).await?;
    scene.put_new().await?;
    rolled_out(&scene.space, "tls").await?;
    told(&scene.space, "tls", "rbac/addons/verify.yaml").await?;
    assert_eq!(scene.generation().await?, 2);
    Ok(())
}
