//! docs/everyday.md: each command of its table, run as it is printed, does what its task says.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use test_bench::objects::{Age, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, Result, ensure};

use crate::command::said;
use crate::renewal::{data, options, renewed, rolled_out};

const PAGE: &str = include_str!("../docs/everyday.md");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CONFIG: &str = "cert-renew-config";
/// Old enough for another, and neither due nor about to be.
const MIDWAY: Age = Age {
    since: 45,
    left: 45,
};
/// What else each command takes here, and what it says then, in the order of the table.
const EXPECTED: [(&str, &str); 11] = [
    ("", " shop-tls "),
    ("", "Renews:"),
    ("", "and the workloads have it"),
    ("", "edited"),
    ("", "deployment/web(restart"),
    ("", "**.example"),
    ("", "Nothing to adopt in namespace"),
    ("", "SUCCESS"),
    ("--ca-bundle \"$CA\"", "has a new key"),
    ("--ca-bundle \"$CA\"", "revoked"),
    ("--dry-run=client --ignore-not-found", "deleted (dry run)"),
];

/// The commands of the table, each with its task.
fn tasks() -> Result<Vec<(&'static str, String)>> {
    let rows = PAGE.lines().filter(|line| line.starts_with("| ")).skip(1);
    let read = |row: &'static str| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [task, command, more, seconds] = cells[..] else {
            return Err(test_bench::Error::msg(format!("four cells: {row}")));
        };
        ensure!(seconds.trim().parse::<f64>().is_ok(), "no seconds: {row}");
        ensure!(
            more.contains("](") && more.contains(".md"),
            "no page: {row}"
        );
        let command = command.trim().trim_matches('`').replace("\\|", "|");
        Ok((task.trim(), command))
    };
    rows.map(read).collect()
}

/// A shell at the root of the repository, with the programs that the page names.
struct Shell<'a> {
    bench: &'a Bench,
    programs: PathBuf,
    operator: &'a str,
}

impl<'a> Shell<'a> {
    fn new(bench: &'a Bench, operator: &'a str) -> Result<Self> {
        let programs = bench.directory().join("everyday");
        fs::create_dir_all(&programs)?;
        let program = env!("CARGO_BIN_EXE_cert-renew");
        symlink(program, programs.join("cert-renew"))?;
        symlink(bench.program("kubectl"), programs.join("kubectl"))?;
        Ok(Self {
            bench,
            programs,
            operator,
        })
    }

    fn types(&self, command: &str) -> Result<Output> {
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", command])
            .current_dir(ROOT)
            .env("PATH", format!("{}:{path}", self.programs.display()))
            .env("KUBECONFIG", self.bench.kubeconfig())
            .env("CA", self.bench.ca_bundle())
            // Where the operator is, and who edits.
            .env("POD_NAMESPACE", self.operator)
            .env(
                "KUBE_EDITOR",
                "sed -i 's/^    issuers:/    paused: true\\n&/'",
            )
            .stdin(Stdio::null())
            .output()?;
        Ok(output)
    }
}

/// The operator, its config where a command looks for it, and two Secrets that it renews and that are used.
async fn scene<'a>(bench: &'a Bench) -> Result<(Operator<'a>, Space)> {
    let operator = Operator::start(bench, options()).await?;
    let namespace = operator.namespace();
    let space = Space::new(bench.client()?, "everyday", namespace).await?;
    let config = fs::read_to_string(operator.config())?;
    let config = json!({"metadata": {"name": CONFIG}, "data": {"config.yaml": config}});
    let maps: Api<ConfigMap> = Api::namespaced(bench.client()?, namespace);
    maps.create(&PostParams::default(), &serde_json::from_value(config)?)
        .await?;
    space
        .workload("Deployment", "web", Reference::Volume, "shop-tls")
        .await?;
    for (name, age) in [
        (
            "shop-tls",
            Age {
                since: 62,
                left: 28,
            },
        ),
        ("api-tls", MIDWAY),
    ] {
        let host = format!("{name}.everyday.example");
        let held = pair(&[&host], age)?;
        // Not due by itself.
        let ours = [("issuer", "pebble"), ("renew-before", "1d")];
        space.tls_secret(name, Some(&held), &ours).await?;
        rolled_out(&space, name).await?;
    }
    Ok((operator, space))
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "the seconds that each task takes")]
async fn each_task_of_every_day_is_the_command_that_the_page_has() -> Result<()> {
    let bench = Bench::shared().await?;
    let (operator, space) = scene(bench).await?;
    let shell = Shell::new(bench, operator.namespace())?;
    let tasks = tasks()?;
    assert_eq!(tasks.len(), EXPECTED.len(), "{tasks:?}");
    let old = data(&space.secrets().get("shop-tls").await?, "tls.crt");
    for ((task, command), (more, words)) in tasks.iter().zip(EXPECTED) {
        let here = format!("{command} {more}")
            .replace("shop/", &format!("{}/", space.name))
            .replace("-n shop", &format!("-n {}", space.name))
            .replace("-n cert-renew", &format!("-n {}", operator.namespace()))
            .replace("letsencrypt", "pebble");
        let begun = Instant::now();
        let output = shell.types(&here)?;
        let text = said(&output);
        println!("{:6.1} s  {task}: {command}", begun.elapsed().as_secs_f64());
        ensure!(output.status.success(), "{task}: {here}\n{text}");
        ensure!(text.contains(words), "{task}: {here}: {words}\n{text}");
        if command.contains(" edit ") {
            ends_the_pause(bench, &operator).await?;
        }
    }
    // What the third and the tenth have done.
    renewed(&space, "shop-tls", &old).await?;
    Ok(())
}

/// The edit has paused everything in the ConfigMap: that is taken back, for the tasks that follow.
async fn ends_the_pause(bench: &Bench, operator: &Operator<'_>) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(bench.client()?, operator.namespace());
    let map = maps.get(CONFIG).await?;
    let text = map.data.and_then(|mut data| data.remove("config.yaml"));
    let text = text.context("a config")?;
    ensure!(text.contains("\npaused: true\n"), "{text}");
    let text = text.replace("\npaused: true\n", "\n");
    let patch = json!({"data": {"config.yaml": text}});
    maps.patch(CONFIG, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}
