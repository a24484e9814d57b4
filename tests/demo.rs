//! `make demo`: the main job before the reader's eyes.
//!
//! A throwaway control plane and CA, the operator installed with the shipped roles, a few Secrets and workloads; what
//! happens is told as it happens, and a table compares before and after. `KEEP=1` leaves all of it running.

#![expect(clippy::print_stdout, reason = "it is made to be watched")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cert_renew_core::certificate::{self, Leaf};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::Value;
use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{
    Bench, Context as _, Operator, OperatorOptions, Result, control_plane, ensure, eventually,
};

/// Generous: the whole takes seconds.
const DEADLINE: Duration = Duration::from_secs(120);
const README: &str = include_str!("../README.md");

fn main() -> ExitCode {
    if let Err(error) = test_bench::serve_edge_if_asked() {
        println!("demo: failed: {error:#}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = runtime
        .context("starting the runtime")
        .and_then(|runtime| runtime.block_on(demo()));
    match result {
        Ok(seconds) => {
            println!(
                "demo: ok in {seconds:.1} s: renewed, written, restarted, and what is not annotated left alone"
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("demo: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Tells what happens, with the seconds since the start.
struct Story {
    began: Instant,
    bold: (&'static str, &'static str),
    /// All lines so far.
    told: Mutex<String>,
}

impl Story {
    fn tell(&self, what: &str) {
        self.say(&format!(
            "{:7.2} s  {what}",
            self.began.elapsed().as_secs_f64()
        ));
    }

    fn chapter(&self, title: &str) {
        println!("\n{}{title}{}", self.bold.0, self.bold.1);
        self.keep(title);
    }

    fn say(&self, line: &str) {
        println!("{line}");
        self.keep(line);
    }

    fn keep(&self, line: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        *told += line;
        told.push('\n');
    }

    /// What the README shows of it was told, but for times and dates.
    fn is_as_the_readme_says(&self) -> Result<()> {
        let steady = |line: &str| {
            line.replace(|c: char| c.is_ascii_digit(), "")
                .trim()
                .to_owned()
        };
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told: Vec<String> = told.lines().map(steady).collect();
        let shown = README.split("```text\n").nth(1);
        let shown = shown.and_then(|rest| rest.split("```").next());
        let shown = shown.context("README.md shows no output")?;
        ensure!(
            shown.lines().count() >= 5,
            "README.md shows next to nothing"
        );
        for line in shown.lines() {
            ensure!(told.contains(&steady(line)), "not told: {line}");
        }
        Ok(())
    }
}

async fn demo() -> Result<f64> {
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
    let bold = if terminal {
        ("\u{1b}[1m", "\u{1b}[0m")
    } else {
        ("", "")
    };
    println!(
        "cert-renew demo: a real API server, real controllers and a real ACME CA, thrown away afterwards."
    );
    let options = test_bench::Options {
        programs: control_plane::ensure_for_demo,
        ..test_bench::Options::default()
    };
    let bench = Bench::start(options).await?;
    let (seconds, running, look_around) = show(&bench, bold).await?;
    if std::env::var_os("KEEP").is_some_and(|keep| keep == "1") {
        let stop = bench.keep().await?;
        drop(running);
        println!("\nAll of it keeps running.\n{look_around}  stop it: {stop}\n");
    } else {
        println!(
            "\nTry next: make demo KEEP=1 leaves it running, with a kubeconfig to look around."
        );
        println!("          README.md installs it on a cluster of yours.\n");
    }
    Ok(seconds)
}

type Shown = (f64, Option<Arc<test_bench::Process>>, String);

async fn show(bench: &Bench, bold: (&'static str, &'static str)) -> Result<Shown> {
    let story = Story {
        began: Instant::now(),
        bold,
        told: Mutex::default(),
    };

    story.chapter("The cluster");
    story.tell(&format!(
        "control plane and CA are up, after {:.1} s",
        bench.started_in().as_secs_f64()
    ));
    let program = env!("CARGO_BIN_EXE_cert-renew");
    let operator = Operator::start(bench, OperatorOptions::as_the_readme_says(program)).await?;
    story.tell(&format!(
        "cert-renew runs under the roles of rbac/, as {}:cert-renew",
        operator.namespace()
    ));
    story.tell("its issuer letsencrypt is a CA on this machine: Pebble, with which Let's Encrypt tests clients");
    // Where the command looks for it: `plan`, `names` and `renew` go by it.
    let config = std::fs::read_to_string(operator.config())?;
    let config = serde_json::json!({"metadata": {"name": "cert-renew-config"}, "data": {"config.yaml": config}});
    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(bench.client()?, operator.namespace());
    let post = kube::api::PostParams::default();
    maps.create(&post, &serde_json::from_value(config)?).await?;
    let space = Space::new(bench.client()?, "shop", "default").await?;

    story.chapter("The Secrets and the workloads");
    let expiring = pair(&["shop.example", "www.shop.example"], OLD)?;
    let bystander = pair(&["legacy.shop.example"], OLD)?;
    space.tls_secret("bystander", Some(&bystander), &[]).await?;
    space
        .workload("Deployment", "legacy", Reference::Volume, "bystander")
        .await?;
    space.tls_secret("shop-tls", Some(&expiring), &[]).await?;
    space
        .workload("Deployment", "web", Reference::Volume, "shop-tls")
        .await?;
    space
        .workload("StatefulSet", "cache", Reference::Env, "shop-tls")
        .await?;
    space
        .workload("Deployment", "api", Reference::Projected, "api-tls")
        .await?;
    for (kind, name) in [
        ("Deployment", "legacy"),
        ("Deployment", "web"),
        ("StatefulSet", "cache"),
        ("Deployment", "api"),
    ] {
        eventually(
            DEADLINE,
            &format!("the pods of {kind} {name} are ready"),
            async || {
                let object = space.workloads(kind).get(name).await?;
                ensure!(
                    number(&object.data, "/status/readyReplicas") == 2,
                    "they are not"
                );
                Ok(())
            },
        )
        .await?;
    }
    story.tell("shop-tls    expires in 5 days; Deployment web mounts it, StatefulSet cache reads it as a variable");
    story.tell("api-tls     does not exist yet; Deployment api mounts it");
    story.tell(
        "bystander   expires in 5 days too, but nobody annotated it; Deployment legacy mounts it",
    );
    let before = picture(&space).await?;

    story.chapter("One annotation each: cert-renew.io/issuer");
    let annotate = serde_json::json!({"metadata": {"annotations": space.annotations(&[("issuer", "letsencrypt")])}});
    let patch = kube::api::Patch::Merge(annotate);
    space
        .secrets()
        .patch("shop-tls", &kube::api::PatchParams::default(), &patch)
        .await?;
    story.tell("shop-tls    annotated");
    space
        .tls_secret(
            "api-tls",
            None,
            &[("issuer", "letsencrypt"), ("names", "api.shop.example")],
        )
        .await?;
    story.tell("api-tls     made without a certificate, with the names that it is to have");
    follow(&story, &space, &operator).await?;

    story.chapter("Before and after");
    let after = picture(&space).await?;
    table(&before, &after);
    ensure!(
        before.secrets["bystander"] == after.secrets["bystander"],
        "the unannotated Secret has changed"
    );
    ensure!(
        before.generations["Deployment legacy"] == after.generations["Deployment legacy"],
        "the workload of the unannotated Secret was restarted"
    );
    println!("\nbystander is byte for byte as it was, and nothing restarted legacy.");
    story.is_as_the_readme_says()?;

    let secret = format!("{}/shop-tls", space.name);
    let [revoke, rollover] = operator.commands_to_the_ca(program, &secret);
    let look_around = format!(
        "  export KUBECONFIG={kubeconfig}\n  {kubectl} -n {space} get secrets,deployments,statefulsets,events\n  \
         {program} status -n {space}\n  {program} plan -n {space}\n  \
         {kubectl} -n {space} annotate secret bystander cert-renew.io/issuer=letsencrypt\n  \
         {revoke}\n  {rollover}\n  metrics: http://{metrics}/metrics\n",
        kubeconfig = bench.kubeconfig().display(),
        kubectl = bench.program("kubectl").display(),
        space = space.name,
        metrics = operator.metrics_address(),
    );
    Ok((
        story.began.elapsed().as_secs_f64(),
        operator.release(),
        look_around,
    ))
}

/// Tells the operator's steps from its log, and the pods' from the API server, until all is rolled out.
async fn follow(story: &Story, space: &Space, operator: &Operator<'_>) -> Result<()> {
    let mut read = 0;
    let mut pods = BTreeMap::new();
    let mut settled = 0;
    eventually(DEADLINE, "both Secrets are rolled out", async || {
        for line in operator.log()?.lines().skip(read) {
            // The last line may be half written.
            let Ok(line) = serde_json::from_str::<Value>(line) else {
                break;
            };
            read += 1;
            if let Some(text) = step(&line, &space.name) {
                story.tell(&text);
            }
        }
        for (kind, name) in [
            ("Deployment", "web"),
            ("StatefulSet", "cache"),
            ("Deployment", "api"),
        ] {
            let object = space.workloads(kind).get(name).await?;
            let data = &object.data;
            let is_restarted = data
                .pointer("/spec/template/metadata/annotations")
                .is_some();
            // Before its controller has seen the change it counts the pods of the former template.
            let is_counted =
                Some(number(data, "/status/observedGeneration")) == object.metadata.generation;
            if !is_restarted || !is_counted {
                continue;
            }
            let updated = number(data, "/status/updatedReplicas");
            if pods.insert(name, updated).unwrap_or_default() < updated {
                story.tell(&format!(
                    "{name:11} {updated} of 2 pods have the new certificate"
                ));
            }
        }
        for name in ["shop-tls", "api-tls"] {
            let secret = space.secrets().get(name).await?;
            let leaf = leaf(&secret)?.context("no certificate yet")?;
            let annotations = secret.metadata.annotations.unwrap_or_default();
            let said = annotations
                .get("state.cert-renew.io/rolled-out")
                .map_or("", String::as_str);
            ensure!(
                said.starts_with(&leaf.fingerprint.to_string()),
                "{name} is not rolled out"
            );
        }
        // Once more round, for the lines that were written meanwhile.
        settled += 1;
        ensure!(settled > 2, "the log is still being written");
        Ok(())
    })
    .await
}

/// A log line of the operator as a line of the timeline.
fn step(line: &Value, namespace: &str) -> Option<String> {
    let text = |key: &str| line[key].as_str().unwrap_or_default();
    let ours = |name: &str| {
        name.strip_prefix(namespace)
            .and_then(|rest| rest.strip_prefix('/'))
            .map(ToOwned::to_owned)
    };
    let subject = ours(text("secret"))
        .or_else(|| (text("namespace") == namespace).then(|| text("workload").to_owned()))?;
    let what = match text("message") {
        "watched" if text("renews") < "1971" => "seen, to be issued at once".into(),
        "watched" => format!("seen, renews at {}", text("renews")),
        "due" => format!(
            "due ({}): asking {} for {}",
            text("reason"),
            text("issuer"),
            text("names")
        ),
        "ordered" => {
            "ordered; the new key and the order are recorded, so that a crash loses neither".into()
        }
        "validated" => "challenged by HTTP-01, answered by the operator, validated".into(),
        "renewed" => format!(
            "written in one guarded patch, valid until {}",
            text("not_after")
        ),
        "rolling" => format!("restarting {}", text("workloads")),
        "RolledOut" => text("note").to_owned(),
        "rolled out" => "done: every workload has the new certificate".into(),
        _ => return None,
    };
    Some(format!("{subject:11} {what}"))
}

/// What there is to compare.
struct Picture {
    secrets: BTreeMap<String, Secret>,
    generations: BTreeMap<String, i64>,
    leaves: BTreeMap<String, Option<String>>,
}

/// The workloads, the Secret that each uses, and its kind.
const WORKLOADS: [(&str, &str, &str); 4] = [
    ("Deployment", "web", "shop-tls"),
    ("StatefulSet", "cache", "shop-tls"),
    ("Deployment", "api", "api-tls"),
    ("Deployment", "legacy", "bystander"),
];

async fn picture(space: &Space) -> Result<Picture> {
    let list = space
        .secrets()
        .list(&kube::api::ListParams::default())
        .await?;
    let secrets = list
        .items
        .into_iter()
        .map(|it| (it.metadata.name.clone().unwrap_or_default(), it))
        .collect();
    let (mut generations, mut leaves) = (BTreeMap::new(), BTreeMap::new());
    for (kind, name, secret) in WORKLOADS {
        generations.insert(
            format!("{kind} {name}"),
            space.generation(kind, name).await?,
        );
        leaves.insert(
            format!("{kind} {name}"),
            space.leaf_of(kind, name, secret).await?,
        );
    }
    Ok(Picture {
        secrets,
        generations,
        leaves,
    })
}

fn table(before: &Picture, after: &Picture) {
    println!(
        "{:10} {:7} {:18} {:22} workloads that have it",
        "Secret", "", "serial", "valid until"
    );
    for name in ["shop-tls", "api-tls", "bystander"] {
        for (when, picture) in [("before", before), ("after", after)] {
            let leaf = picture
                .secrets
                .get(name)
                .and_then(|secret| leaf(secret).ok().flatten());
            let workloads = WORKLOADS.iter().filter(|(_, _, secret)| *secret == name);
            let having: Vec<String> = workloads
                .filter(|(kind, workload, _)| {
                    let rolled = &picture.leaves[&format!("{kind} {workload}")];
                    // Before anything was restarted every workload has what the Secret has.
                    let same = leaf
                        .as_ref()
                        .is_some_and(|leaf| rolled.as_ref() == Some(&leaf.fingerprint.to_string()));
                    same || (rolled.is_none() && leaf.is_some())
                })
                .map(|(_, workload, _)| (*workload).to_owned())
                .collect();
            let (serial, until) = match &leaf {
                Some(leaf) => (serial(leaf), leaf.not_after.to_string()),
                None => ("-".into(), "-".into()),
            };
            let shown = if when == "before" { name } else { "" };
            let having = if having.is_empty() {
                "-".into()
            } else {
                having.join(", ")
            };
            println!("{shown:10} {when:7} {serial:18} {until:22} {having}");
        }
    }
}

fn serial(leaf: &Leaf) -> String {
    let hex: String = leaf
        .serial
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    hex + if leaf.serial.len() > 8 { ".." } else { "" }
}

fn leaf(secret: &Secret) -> Result<Option<Leaf>> {
    let data = secret.data.as_ref().and_then(|data| data.get("tls.crt"));
    let Some(bytes) = data.filter(|bytes| !bytes.0.is_empty()) else {
        return Ok(None);
    };
    Ok(Some(certificate::leaf(&bytes.0)?))
}

fn number(value: &Value, path: &str) -> i64 {
    value
        .pointer(path)
        .and_then(Value::as_i64)
        .unwrap_or_default()
}
