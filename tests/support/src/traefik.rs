//! A real ingress and Gateway controller: Traefik, built from the module pinned in `tests/interop/routes/go.mod` into the
//! cache beside the control plane, for `make interop` only.
//!
//! Some modules that Traefik needs cannot be had. Stand-ins replace lego's DNS hosts, by which Traefik could get
//! certificates itself, and passwords before a route; its web page is missing. None of them is between a client and a route.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use tokio::net::TcpStream;

use crate::control_plane::{Build, Program, cache_root, fingerprint_of, go, go_missing};
use crate::process::Process;
use crate::{Bench, eventually};

const PROGRAMS: [Program; 1] = [("traefik", "github.com/traefik/traefik/v3/cmd/traefik")];
/// All that decides what is built.
const FILES: [&str; 5] = [
    "go.mod",
    "go.sum",
    "dns-hosts/dns.go",
    "ext/ext.go",
    "http-auth/auth.go",
];
/// The ACME client in Traefik. Some modules that its DNS hosts need are not served.
const LEGO: &str = "github.com/go-acme/lego/v5";
/// Holds the definitions of the Gateway API, in the version that Traefik is written for.
const GATEWAY_API: &str = "sigs.k8s.io/gateway-api";
const DEFINITIONS: &str = "gateway-api";
/// Generous: it takes a second.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Builds Traefik where it is not built yet; the directory with it and with the definitions of the Gateway API.
///
/// # Errors
/// When Go is missing or the build fails.
pub fn ensure_traefik() -> Result<PathBuf> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../interop/routes");
    let fingerprint = fingerprint_of(&module, &FILES, &format!("{PROGRAMS:?}"))?;
    let cache = cache_root()?.join(format!("routes-{fingerprint}"));
    let modfile = cache.join("go.mod");
    let mut build = Build::new("Traefik", &module, &cache);
    build.modfile = Some(&modfile);
    build.ensure(&PROGRAMS, || prepare(&module, &cache))?;
    Ok(cache)
}

/// Writes a go.mod beside the program that takes lego from a copy without its DNS hosts. A copy, because Go refuses to
/// overlay files of its module cache.
fn prepare(module: &Path, cache: &Path) -> Result<()> {
    let lego = cache.join("lego");
    if lego.exists() {
        fs::remove_dir_all(&lego)?;
    }
    let hosts = Path::new("providers/dns");
    copy(&source(module, LEGO)?, &lego, hosts)?;
    fs::create_dir_all(lego.join(hosts))?;
    fs::copy(
        module.join("dns-hosts/dns.go"),
        lego.join(hosts).join("dns.go"),
    )?;

    let definitions = source(module, GATEWAY_API)?.join("config/crd/standard");
    let into = cache.join(DEFINITIONS);
    fs::create_dir_all(&into)?;
    for entry in fs::read_dir(definitions)? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default();
        let text = fs::read(&file)?;
        let kind = b"\nkind: CustomResourceDefinition\n";
        if text.windows(kind.len()).any(|it| it == kind) {
            fs::write(into.join(name), text)?;
        }
    }

    let place = module.canonicalize()?;
    let mut text = fs::read_to_string(module.join("go.mod"))?;
    text = text.replace("=> ./", &format!("=> {}/", place.display()));
    text += &format!("\nreplace {LEGO} => {}\n", lego.display());
    fs::write(cache.join("go.mod"), text)?;
    fs::write(cache.join("go.sum"), fs::read(module.join("go.sum"))?)?;
    Ok(())
}

/// Where a module that `module` pins stands, after Go has fetched and checked it.
fn source(module: &Path, name: &str) -> Result<PathBuf> {
    let fetched = go(module)
        .args(["mod", "download", name])
        .status()
        .map_err(go_missing)?;
    ensure!(fetched.success(), "go mod download {name}: {fetched}");
    let listed = go(module)
        .args(["list", "-m", "-f", "{{.Dir}}", name])
        .output()
        .map_err(go_missing)?;
    let place = PathBuf::from(String::from_utf8_lossy(&listed.stdout).trim());
    ensure!(place.is_dir(), "go list does not find the module {name}");
    Ok(place)
}

/// Copies everything but one directory. Not `fs::copy`: the module cache is read-only, and so would the copy be.
fn copy(from: &Path, into: &Path, except: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), into.join(entry.file_name()));
        if source.ends_with(except) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy(&source, &target, except)?;
        } else {
            fs::write(&target, fs::read(&source)?)?;
        }
    }
    Ok(())
}

/// A running Traefik, with port 80 as its entry point `web` and port 443 as `websecure`.
#[derive(Debug)]
pub struct Traefik {
    _process: Arc<Process>,
    address: Ipv4Addr,
    access_log: PathBuf,
}

impl Traefik {
    /// Starts one that routes the Ingresses of a class. Give it an address of its own.
    ///
    /// # Errors
    /// When it is not built, or does not start.
    pub async fn start(
        bench: &Bench,
        address: Ipv4Addr,
        class: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let programs = tokio::task::spawn_blocking(ensure_traefik).await??;
        let directory = bench.directory().join(class);
        fs::create_dir(&directory)?;
        let access_log = directory.join("access.log");
        let mut command = Command::new(programs.join("traefik"));
        command
            .arg(format!("--entryPoints.web.address={address}:80"))
            .arg(format!("--entryPoints.websecure.address={address}:443"))
            .arg(format!("--accessLog.filePath={}", access_log.display()))
            .arg(format!(
                "--providers.kubernetesIngress.ingressClass={class}"
            ))
            .args([
                "--entryPoints.websecure.http.tls=true",
                "--global.checkNewVersion=false",
                "--global.sendAnonymousUsage=false",
            ])
            .args(arguments)
            // It takes no settings of this user's along.
            .env_clear()
            .env("HOME", &directory)
            .env("KUBECONFIG", bench.kubeconfig())
            .current_dir(&directory);
        let process = Process::spawn(bench.group(), class, command)?;
        let port = SocketAddr::from((address, 80));
        process
            .ready(START_DEADLINE, async || {
                TcpStream::connect(port).await?;
                Ok(())
            })
            .await?;
        Ok(Self {
            _process: process,
            address,
            access_log,
        })
    }

    /// Where its clients come.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its log of the requests that it has served.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn requests(&self) -> Result<String> {
        let place = self.access_log.display().to_string();
        fs::read_to_string(&self.access_log).context(place)
    }
}

impl Bench {
    /// Makes the API server know the Gateway API as it is, by the definitions of its own module.
    ///
    /// # Errors
    /// When they cannot be had, or are refused.
    pub async fn install_whole_gateway_api(&self) -> Result<()> {
        let place = tokio::task::spawn_blocking(ensure_traefik).await??;
        let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let api: Api<DynamicObject> = Api::all_with(self.client()?, &ApiResource::from_gvk(&kind));
        let mut names = Vec::new();
        for entry in fs::read_dir(place.join(DEFINITIONS))? {
            let definition: DynamicObject = serde_saphyr::from_slice(&fs::read(entry?.path())?)?;
            let made = api.create(&PostParams::default(), &definition).await?;
            names.extend(made.metadata.name);
        }
        ensure!(!names.is_empty(), "there are no definitions");
        eventually(START_DEADLINE, "the Gateway API is served", async || {
            for name in &names {
                let definition = api.get(name).await?;
                let conditions = definition.data["status"]["conditions"].as_array();
                let established = conditions
                    .into_iter()
                    .flatten()
                    .any(|it| it["type"] == "Established" && it["status"] == "True");
                ensure!(established, "{name} is not established");
            }
            Ok(())
        })
        .await
    }
}
