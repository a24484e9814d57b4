//! docs/install.md as somebody reads it who has a cluster and a certificate that runs out: its five steps, run as they
//! stand there, lead to a renewed Secret and a rolled workload.
//!
//! What is not run as it stands, and why:
//! * step 1, which builds the image and pushes it: `make image-check` builds it and runs its binary, a registry there is none;
//! * of step 2, the CA: the bench's own stands in for Let's Encrypt, and takes a profile and a root of its own;
//! * the pods of step 3: no kubelet of the bench runs a container, so that the test starts the binary in their place, with
//!   the arguments of the Deployment, the config of the ConfigMap and a token of the ServiceAccount that were installed;
//! * the host of step 4: `curl` is told that it is at the bench's edge.

mod pages;
mod printed;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use test_bench::certificates::Pair;
use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{
    Bench, Context as _, Operator, OperatorOptions, Options, Result, ensure, eventually, ports,
};

use crate::command::said;
use crate::install::helm_program;
use crate::renewal::{SOON, renewed, rolled_out};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PAGE: &str = include_str!("../docs/install.md");
/// What the page calls the CA, and the image.
const CA: &str = "directory: https://acme-v02.api.letsencrypt.org/directory";
const IMAGE: &str = "registry.example.com/cert-renew";

/// The commands and files that stand in the five steps, in their order: the language and the text.
fn blocks() -> Result<Vec<(&'static str, &'static str)>> {
    let steps = PAGE.split("\n## Five steps\n").nth(1);
    let steps = steps.and_then(|rest| rest.split("\n## ").next());
    let fences = steps.context("no section \"Five steps\"")?.split("```");
    let inside = fences.skip(1).step_by(2);
    inside
        .map(|block| block.split_once('\n').context("a fence without a language"))
        .collect()
}

/// Somebody's shell in a copy of the repository, with rights on the cluster.
pub(crate) struct Newcomer<'a> {
    bench: &'a Bench,
    home: PathBuf,
}

impl<'a> Newcomer<'a> {
    fn arrive(bench: &'a Bench) -> Result<Self> {
        Self::at(bench, "newcomer", bench.edge().address())
    }

    /// The same with a home of this name; shop.example.com leads to this address.
    pub(crate) fn at(bench: &'a Bench, home: &str, edge: SocketAddr) -> Result<Self> {
        let home = bench.directory().join(home);
        let programs = home.join("bin");
        fs::create_dir_all(&programs)?;
        symlink(bench.program("kubectl"), programs.join("kubectl"))?;
        symlink(
            env!("CARGO_BIN_EXE_cert-renew"),
            programs.join("cert-renew"),
        )?;
        let mut copy = Command::new("cp");
        copy.args(["-r", "deploy", "rbac", "examples"]).arg(&home);
        ensure!(copy.current_dir(ROOT).status()?.success(), "cp");
        let rule = format!("connect-to = \"shop.example.com:80:{edge}\"\n");
        fs::write(home.join(".curlrc"), rule)?;
        Ok(Self { bench, home })
    }

    /// Types a block of the page.
    pub(crate) fn types(&self, block: &str) -> Result<Output> {
        let output = self.tries(block)?;
        ensure!(output.status.success(), "{block}\n{}", said(&output));
        Ok(output)
    }

    /// Types what may fail.
    fn tries(&self, block: &str) -> Result<Output> {
        // Contexts that a page names are in a copy.
        let copy = self.home.join("kubeconfig");
        let kubeconfig = if copy.exists() {
            &copy
        } else {
            self.bench.kubeconfig()
        };
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", block])
            .current_dir(&self.home)
            .env_clear()
            .env(
                "PATH",
                format!("{}:{path}", self.home.join("bin").display()),
            )
            .env("HOME", &self.home)
            .env("KUBECONFIG", kubeconfig)
            .env("KUBE_EDITOR", "true")
            .stdin(Stdio::null())
            .output()?;
        Ok(output)
    }

    /// An object as the cluster has it.
    fn object(&self, what: &str) -> Result<Value> {
        let command = format!("kubectl -n cert-renew get {what} -o json");
        Ok(serde_json::from_slice(&self.types(&command)?.stdout)?)
    }

    /// What the kubelet would do with a pod of the Deployment.
    fn start_operator(&self, metrics: Option<SocketAddr>) -> Result<Running<'a>> {
        let deployment = self.object("deployment cert-renew")?;
        let pod = &deployment["spec"]["template"]["spec"];
        let image = pod["containers"][0]["image"].as_str().unwrap_or_default();
        ensure!(image.starts_with(&format!("{IMAGE}:")), "image: {image}");
        let volume = pod["volumes"][0]["configMap"]["name"].as_str();
        let map = self.object(&format!("configmap {}", volume.context("no config")?))?;
        let config = self.home.join("config.yaml");
        let text = map["data"]["config.yaml"]
            .as_str()
            .context("no config.yaml")?;
        fs::write(&config, text)?;
        let token = self.types("kubectl -n cert-renew create token cert-renew --duration=1h")?;
        let token = String::from_utf8(token.stdout)?;
        let kubeconfig = self.home.join("pod.kubeconfig");
        let server = format!("https://{}", self.bench.api_server());
        let access = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "pod",
            "clusters": [{"name": "bench", "cluster": {"server": server, "certificate-authority": self.bench.ca_bundle()}}],
            "users": [{"name": "pod", "user": {"token": token.trim()}}],
            "contexts": [{"name": "pod", "context": {"cluster": "bench", "user": "pod", "namespace": "cert-renew"}}],
        });
        fs::write(&kubeconfig, access.to_string())?;
        let metrics = metrics.map_or_else(ports::free, Ok)?;
        let challenges = ports::free()?;
        let place = |argument: &Value| {
            let argument = argument.as_str().unwrap_or_default();
            argument
                .replace("$(POD_NAMESPACE)", "cert-renew")
                .replace("/etc/cert-renew/config.yaml", &config.display().to_string())
                .replace("[::]:9402", &metrics.to_string())
                .replace("[::]:8402", &challenges.to_string())
        };
        let arguments = pod["containers"][0]["args"].as_array();
        let log = self.home.join("operator.log");
        let child = Command::new(env!("CARGO_BIN_EXE_cert-renew"))
            .args(arguments.context("no arguments")?.iter().map(place))
            .env_clear()
            .env("POD_NAME", "cert-renew-0")
            .env("POD_NAMESPACE", "cert-renew")
            .env("KUBECONFIG", kubeconfig)
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        self.bench.edge().add(challenges);
        Ok(Running {
            bench: self.bench.edge(),
            child,
            challenges,
            log,
        })
    }
}

/// The operator; it ends with the test.
struct Running<'a> {
    bench: &'a test_bench::Edge,
    child: Child,
    challenges: SocketAddr,
    log: PathBuf,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.bench.remove(self.challenges);
        // It may have ended by itself, which the test says.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The five steps as the page has them.
pub(crate) struct Steps {
    build: &'static str,
    config: &'static str,
    check: &'static str,
    install: &'static str,
    helm: &'static str,
    route: &'static str,
    pub(crate) annotate: &'static str,
}

impl Steps {
    pub(crate) fn read() -> Result<Self> {
        let blocks = blocks()?;
        let begins: Vec<&str> = blocks
            .iter()
            .map(|(_, text)| text.split([' ', '\n']).next().unwrap_or_default())
            .collect();
        // A step that is added is not passed over in silence. Helm is another way of the third one.
        assert_eq!(
            begins,
            [
                "make",
                "issuers:",
                "cert-renew",
                "kubectl",
                "helm",
                "curl",
                "kubectl"
            ]
        );
        let texts: Vec<&str> = blocks.iter().map(|(_, text)| *text).collect();
        let [build, config, check, install, helm, route, annotate] = texts[..] else {
            unreachable!("seven were just counted");
        };
        ensure!(blocks[1].0 == "yaml" && config.contains(CA), "{config}");
        Ok(Self {
            build,
            config,
            check,
            install,
            helm,
            route,
            annotate,
        })
    }

    /// The config, for the bench's CA. Its edge has another port than 80, which the CA knows.
    fn bench_config(&self, bench: &Bench) -> String {
        let config = self.config.replace(CA, &bench_ca(bench, "    "));
        config.replace("route: shared", "route: shared, selfCheck: false")
    }

    /// The fourth and the fifth, for the Secret that runs out: it is renewed, and its workload has it.
    async fn end(&self, shop: &Shop<'_>, operator: &Running<'_>) -> Result<()> {
        let Shop {
            newcomer,
            space,
            old,
        } = shop;
        self.is_routed(newcomer).await?;
        newcomer.types(self.annotate)?;
        let done = async {
            renewed(space, "shop-tls", &old.certificate).await?;
            rolled_out(space, "shop-tls").await
        };
        let log = || fs::read_to_string(&operator.log).unwrap_or_default();
        done.await.with_context(log)?;
        self.is_told(newcomer).await?;
        ensure!(
            space.generation("Deployment", "web").await? == 2,
            "web was not restarted once"
        );
        Ok(())
    }

    /// Step 4 ends with a 404 of cert-renew's.
    pub(crate) async fn is_routed(&self, newcomer: &Newcomer<'_>) -> Result<()> {
        eventually(SOON, "the challenges are routed", async || {
            let output = newcomer.types(self.route)?;
            ensure!(said(&output).contains("404 Not Found"), "{}", said(&output));
            Ok(())
        })
        .await
    }

    /// After step 5 the documented commands tell of the renewal and the rollout.
    pub(crate) async fn is_told(&self, newcomer: &Newcomer<'_>) -> Result<()> {
        let events = self.annotate.lines().last().context("no command")?;
        eventually(
            SOON,
            "the documented command shows the Events",
            async || {
                let shown = said(&newcomer.types(events)?);
                ensure!(
                    shown.contains("Renewed") && shown.contains("RolledOut"),
                    "{shown}"
                );
                Ok(())
            },
        )
        .await?;
        let status = said(&newcomer.types("cert-renew status -n shop")?);
        ensure!(
            status.contains("shop-tls") && status.contains(" ok "),
            "{status}"
        );
        Ok(())
    }
}

/// Before: a cluster with a certificate that runs out, and a Deployment that serves it.
struct Shop<'a> {
    newcomer: Newcomer<'a>,
    space: Space,
    old: Pair,
}

impl<'a> Shop<'a> {
    async fn open(bench: &'a Bench) -> Result<Self> {
        let newcomer = Newcomer::arrive(bench)?;
        newcomer.types("kubectl create namespace shop")?;
        let space = Space {
            client: bench.client()?,
            name: "shop".into(),
            class: "default".into(),
        };
        let old = pair(&["shop.example.com"], OLD)?;
        space.tls_secret("shop-tls", Some(&old), &[]).await?;
        space
            .workload("Deployment", "web", Reference::Volume, "shop-tls")
            .await?;
        space.available("Deployment", "web").await?;
        Ok(Self {
            newcomer,
            space,
            old,
        })
    }
}

/// The bench's CA in place of Let's Encrypt, at the same indent.
fn bench_ca(bench: &Bench, indent: &str) -> String {
    format!(
        "directory: {}\n{indent}caBundle: {}\n{indent}profile: default\n{indent}concurrency: 1",
        bench.pebble().directory(),
        bench.ca_bundle().display()
    )
}

#[tokio::test]
async fn the_five_steps_of_the_page_lead_to_a_renewed_secret() -> Result<()> {
    let bench = Bench::shared().await?;
    let steps = Steps::read()?;
    let shop = Shop::open(bench).await?;
    let newcomer = &shop.newcomer;
    // 1
    let pushed = format!("docker://{IMAGE}:");
    ensure!(steps.build.contains(&pushed), "{}", steps.build);
    let makefile = fs::read_to_string(Path::new(ROOT).join("Makefile"))?;
    ensure!(makefile.contains("\nimage:"), "make image");
    // 2
    let config = steps.bench_config(bench);
    fs::write(newcomer.home.join("deploy/config.yaml"), config)?;
    newcomer.types(steps.check)?;
    // 3
    newcomer.types(steps.install)?;
    let operator = newcomer.start_operator(None)?;
    // 4 and 5
    steps.end(&shop, &operator).await
}

/// The same, with the chart and the values that the page has.
#[tokio::test]
async fn the_five_steps_by_helm_lead_to_a_renewed_secret() -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let steps = Steps::read()?;
    let shop = Shop::open(&bench).await?;
    let newcomer = &shop.newcomer;
    symlink(helm_program()?, newcomer.home.join("bin/helm"))?;
    let blocks = crate::documents::blocks(PAGE);
    let values = blocks
        .iter()
        .find(|block| block.text.starts_with("# my-values.yaml\n"));
    let values = &values.context("no my-values.yaml")?.text;
    ensure!(values.contains(CA), "{values}");
    // The bench's edge has another port than 80, which its CA knows; it has the admission policies from the start.
    let values = values
        .replace(CA, &bench_ca(&bench, "      "))
        .replace("admission: {enabled: true}\n", "")
        .replace("route: shared", "route: shared, selfCheck: false");
    fs::write(newcomer.home.join("my-values.yaml"), values)?;
    newcomer.types(steps.helm)?;
    let operator = newcomer.start_operator(None)?;
    steps.end(&shop, &operator).await
}

/// The same, with the one file that the page has made.
#[tokio::test]
async fn the_five_steps_by_one_file_lead_to_a_renewed_secret() -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let steps = Steps::read()?;
    let shop = Shop::open(&bench).await?;
    let newcomer = &shop.newcomer;
    let mut copy = Command::new("cp");
    copy.args(["-r", "--parents", "Makefile", "Cargo.toml", "CHANGELOG.md"]);
    copy.args(["benches/bench.mk", "tests/tools.sh"]);
    copy.arg(&newcomer.home).current_dir(ROOT);
    ensure!(copy.status()?.success(), "cp");
    // The newcomer's kubectl is that of the bench, which may be another (`KUBEBUILDER_ASSETS`): the cache has the right one.
    let mut tools = Command::new(Path::new(ROOT).join("tests/tools.sh"));
    let pinned = tools.arg("kubectl").output()?;
    ensure!(pinned.status.success(), "{}", said(&pinned));
    let pinned = String::from_utf8(pinned.stdout)?;
    let cache = newcomer.home.join(".cache/cert-renew/control-plane-pinned");
    fs::create_dir_all(&cache)?;
    symlink(pinned.trim(), cache.join("kubectl"))?;
    let config = steps.bench_config(&bench);
    fs::write(newcomer.home.join("deploy/config.yaml"), config)?;
    let make = format!("make dist IMAGE={IMAGE}");
    let file = "target/dist/install.yaml";
    let commands = format!("{make}\nkubectl apply -f {file}\n");
    ensure!(PAGE.contains(&commands), "the page makes no file");
    newcomer.types(&commands)?;
    let operator = newcomer.start_operator(None)?;
    steps.end(&shop, &operator).await
}

/// docs/start/first-certificate.md on a bench of its own, as `make demo KEEP=1` leaves one: each command prints what stands
/// below it, line by line, but for what differs each time.
#[tokio::test]
async fn each_command_of_the_first_certificate_prints_what_the_page_says() -> Result<()> {
    let page = include_str!("../docs/start/first-certificate.md");
    let bench = Bench::start(Options::default()).await?;
    let options = OperatorOptions::as_the_readme_says(env!("CARGO_BIN_EXE_cert-renew"));
    // It starts when the page says that a few seconds have passed: until then the Secret holds nothing.
    let mut operator = Operator::install(&bench, options).await?;
    let newcomer = Newcomer::arrive(&bench)?;
    let blocks = crate::documents::blocks(page);
    let mut shown = 0;
    for (at, block) in blocks.iter().enumerate() {
        if block.language != "sh" || block.mark("not run").is_some() {
            continue;
        }
        let printed = blocks.get(at + 1).filter(|next| next.is_output);
        let Some(printed) = printed else {
            newcomer.types(&block.text)?;
            continue;
        };
        // What changes something is typed once.
        let once = [" renew ", " apply "]
            .iter()
            .any(|it| block.text.contains(it));
        let typed = once.then(|| newcomer.types(&block.text)).transpose()?;
        eventually(SOON, "the page tells what is printed", async || {
            let output = match &typed {
                Some(output) => output,
                None => &newcomer.types(&block.text)?,
            };
            let output = String::from_utf8_lossy(&output.stdout);
            // What a renewal tells on its way depends on when one looks.
            let end = |text: &str| text.lines().last().unwrap_or_default().to_owned();
            match block.text.contains(" renew ") {
                true => printed::shows(&end(&printed.text), &end(&output)),
                false => printed::shows(&printed.text, &output),
            }
        })
        .await?;
        shown += 1;
        if block.text.contains(" apply ") {
            operator.run().await?;
        }
    }
    ensure!(shown == 7, "{shown} answers are shown");
    Ok(())
}

/// What `make demo KEEP=1` leaves renews a Secret that is annotated by the README's own command.
#[tokio::test]
async fn the_kept_demo_heeds_a_secret_annotated_as_the_readme_says() -> Result<()> {
    let readme = include_str!("../README.md");
    let blocks = crate::documents::blocks(readme);
    let command = blocks.iter().find(|it| it.text.contains(" annotate "));
    let command = &command.context("the README annotates nothing")?.text;
    let bench = Bench::start(Options::default()).await?;
    let options = OperatorOptions::as_the_readme_says(env!("CARGO_BIN_EXE_cert-renew"));
    let operator = Operator::start(&bench, options).await?;
    let newcomer = Newcomer::arrive(&bench)?;
    newcomer.types("kubectl create namespace shop")?;
    let space = Space {
        client: bench.client()?,
        name: "shop".into(),
        class: "default".into(),
    };
    let old = pair(&["shop.example.com"], OLD)?;
    space.tls_secret("shop-tls", Some(&old), &[]).await?;
    newcomer.types(command)?;
    let done = renewed(&space, "shop-tls", &old.certificate).await;
    done.with_context(|| operator.log().unwrap_or_default())?;
    // What goes to the CA is told its root.
    for command in operator.commands_to_the_ca("cert-renew", "shop/shop-tls") {
        newcomer.types(&command)?;
    }
    Ok(())
}
