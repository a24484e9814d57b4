//! A real HTTP data path: nginx from Debian, configured from the Ingresses and HTTPRoutes of one namespace.
//!
//! It plays the ingress controller of a cluster: every route comes from an object. Every backend is the one address
//! that it is given, as there is no Service network here. HTTPRoutes are accepted in their status.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::nameserver::tool;
use crate::process::Process;
use crate::{Bench, eventually, ports, runtime};

const START_DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two lists of the objects; a controller's watch would be quicker.
const LOOK: Duration = Duration::from_millis(200);

/// A running nginx.
#[derive(Debug)]
pub struct DataPath {
    // Dropped before nginx.
    follower: JoinHandle<()>,
    process: Arc<Process>,
    access_log: PathBuf,
}

/// What is done with a host's requests at a path.
type Routes = BTreeMap<String, Vec<(String, bool)>>;

impl DataPath {
    /// An address for a data path: port 80 where this user may, as CAs and self-checks connect to that.
    ///
    /// # Errors
    /// When no port is free.
    pub fn address_of_its_own() -> Result<SocketAddr> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let process = (std::process::id() % 100) as u8;
        let host = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from((Ipv4Addr::new(127, 100 + process, 80, host), 80));
        if TcpListener::bind(address).is_ok() {
            Ok(address)
        } else {
            ports::free()
        }
    }

    /// Starts nginx and follows the objects of a namespace. `servers` are further server blocks of its config.
    ///
    /// # Errors
    /// When nginx cannot be had or does not start.
    pub async fn start(
        bench: &Bench,
        address: SocketAddr,
        namespace: &str,
        backend: SocketAddr,
        servers: &str,
    ) -> Result<Self> {
        let directory = bench.directory().join(format!("nginx-{namespace}"));
        fs::create_dir(&directory)?;
        let file = directory.join("nginx.conf");
        let access_log = directory.join("access.log");
        let text = {
            let servers = servers.to_owned();
            let directory = directory.clone();
            move |routes: &Routes| {
                let place = directory.display();
                let mut text = format!(
                    "daemon off;\nuser root;\npid {place}/pid;\nerror_log stderr warn;\nworker_processes 1;\n\
                     events {{ worker_connections 64; }}\nhttp {{\naccess_log {place}/access.log;\n"
                );
                for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
                    let _ = writeln!(text, "{kind}_temp_path {place}/{kind};");
                }
                let _ = writeln!(
                    text,
                    "server_names_hash_bucket_size 128;\nserver {{ listen {address} default_server; return 404; }}\n{servers}"
                );
                for (host, paths) in routes {
                    let _ = writeln!(text, "server {{ listen {address}; server_name {host};");
                    for (path, exact) in paths {
                        let equals = if *exact { "= " } else { "" };
                        let _ = writeln!(
                            text,
                            "location {equals}{path} {{ proxy_pass http://{backend}; proxy_set_header Host $host; }}"
                        );
                    }
                    text += "location / { return 404; } }\n";
                }
                text + "}\n"
            }
        };
        fs::write(&file, text(&Routes::new()))?;
        let mut command = Command::new(tool("nginx").await?);
        command
            .args(["-e", "stderr", "-p"])
            .arg(&directory)
            .arg("-c")
            .arg(&file);
        let process = Process::spawn(bench.group(), &format!("nginx-{namespace}"), command)?;
        process
            .ready(START_DEADLINE, async || {
                TcpStream::connect(address).await?;
                Ok(())
            })
            .await?;
        let namespace = namespace.to_owned();
        let follow = {
            let bench_client = bench.client()?;
            let process = Arc::clone(&process);
            async move {
                let mut known = Routes::new();
                loop {
                    // Errors are normal while the bench ends, and where the kind of object is not installed.
                    let routes = routes(&bench_client, &namespace).await;
                    if routes != known {
                        let _ = fs::write(&file, text(&routes));
                        let _ = process.signal("HUP");
                        known = routes;
                    }
                    sleep(LOOK).await;
                }
            }
        };
        Ok(Self {
            follower: runtime().spawn(follow),
            process,
            access_log,
        })
    }

    /// nginx' log of the requests that it has served.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn requests(&self) -> Result<String> {
        let place = self.access_log.display().to_string();
        fs::read_to_string(&self.access_log).context(place)
    }

    /// nginx itself, to stop it.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

impl Drop for DataPath {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

async fn routes(client: &Client, namespace: &str) -> Routes {
    let mut routes = Routes::new();
    let api = |kind: &str| -> Api<DynamicObject> {
        Api::namespaced_with(client.clone(), namespace, &resource(kind))
    };
    let list = ListParams::default();
    for ingress in api("Ingress").list(&list).await.into_iter().flatten() {
        for rule in array(&ingress.data["spec"]["rules"]) {
            for path in array(&rule["http"]["paths"]) {
                let exact = path["pathType"] == "Exact";
                let host = routes.entry(text(&rule["host"])).or_default();
                host.push((text(&path["path"]), exact));
            }
        }
    }
    for route in api("HTTPRoute").list(&list).await.into_iter().flatten() {
        for hostname in array(&route.data["spec"]["hostnames"]) {
            for rule in array(&route.data["spec"]["rules"]) {
                for matched in array(&rule["matches"]) {
                    let host = routes.entry(text(hostname)).or_default();
                    host.push((text(&matched["path"]["value"]), false));
                }
            }
        }
        if route.data["status"]["parents"].is_null() {
            let accepted = array(&route.data["spec"]["parentRefs"]).iter().map(|parent| {
                json!({"parentRef": parent, "controllerName": "test.example/bench", "conditions": [{
                    "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
            });
            let status = json!({"status": {"parents": accepted.collect::<Vec<_>>()}});
            let params = PatchParams::default();
            let name = route.name_any();
            let _ = api("HTTPRoute")
                .patch_status(&name, &params, &Patch::Merge(status))
                .await;
        }
    }
    routes
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn resource(kind: &str) -> ApiResource {
    let (group, plural) = match kind {
        "Ingress" => ("networking.k8s.io", "ingresses"),
        _ => ("gateway.networking.k8s.io", "httproutes"),
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural)
}

impl Bench {
    /// Installs HTTPRoutes, by as much of their definition as is needed.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn install_gateway_api(&self) -> Result<()> {
        let approved = "https://github.com/kubernetes-sigs/gateway-api/pull/3328";
        self.define(&resource("HTTPRoute"), Some(approved)).await
    }

    /// Installs a kind with any spec and status, each with a subresource of its own.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn define(&self, resource: &ApiResource, approved: Option<&str>) -> Result<()> {
        let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let ApiResource {
            group,
            version,
            kind,
            plural,
            ..
        } = resource;
        let mut definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{
                    "name": version, "served": true, "storage": true,
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}},
                }],
            },
        });
        if let Some(approved) = approved {
            let annotations = json!({"api-approved.kubernetes.io": approved});
            definition["metadata"]["annotations"] = annotations;
        }
        let gvk = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let api: Api<DynamicObject> = Api::all_with(self.client()?, &ApiResource::from_gvk(&gvk));
        let definition = serde_json::from_value(definition)?;
        match api.create(&PostParams::default(), &definition).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => drop(other?),
        }
        let objects: Api<DynamicObject> = Api::all_with(self.client()?, resource);
        eventually(START_DEADLINE, "the kind is known", async || {
            objects.list(&ListParams::default()).await?;
            Ok(())
        })
        .await
    }
}
