//! What every command says of itself: help, completions, manual, and how kubectl and krew find it.

use std::env;
use std::os::unix::fs::symlink;
use std::process::{Command, Output};

use serde_json::Value;
use test_bench::objects::{FRESH, Space, pair};
use test_bench::{Bench, Context as _, Result, ensure};

use super::{cert_renew, said};

/// The commands that the help names below this one.
fn below(command: &[&str]) -> Result<Vec<String>> {
    let help = said(&cert_renew(&[command, &["--help"]].concat(), None)?);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    let names = listed.filter_map(|line| line.split_whitespace().next());
    Ok(names
        .filter(|name| *name != "help")
        .map(ToOwned::to_owned)
        .collect())
}

#[test]
fn every_command_explains_itself_and_refuses_what_it_does_not_know() -> Result<()> {
    let page = include_str!("../../docs/command.md");
    let mut all = Vec::new();
    for name in below(&[])? {
        ensure!(
            page.contains(&format!("| `{name}")),
            "{name} is not in docs/command.md"
        );
        for under in below(&[&name])? {
            all.push(vec![name.clone(), under]);
        }
        all.push(vec![name]);
    }
    ensure!(all.len() > 15, "{all:?}");
    for command in &all {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let help = cert_renew(&[command.as_slice(), &["--help"]].concat(), None)?;
        ensure!(
            help.status.success() && said(&help).contains("Usage:"),
            "{command:?}: {}",
            said(&help)
        );
        let wrong = cert_renew(&[command.as_slice(), &["--no-such-flag"]].concat(), None)?;
        ensure!(
            wrong.status.code() == Some(2) && said(&wrong).contains("Usage:"),
            "{command:?}: {}",
            said(&wrong)
        );
    }
    Ok(())
}

/// The flags under the heading of the connection are those of the connection, in every help.
#[test]
fn the_connection_has_a_heading_of_its_own_in_every_help() -> Result<()> {
    let mut seen = 0;
    for name in below(&[])? {
        let mut commands = vec![vec![name.clone()]];
        for under in below(&[&name])? {
            commands.push(vec![name.clone(), under]);
        }
        for command in commands {
            let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
            arguments.push("--help");
            let help = said(&cert_renew(&arguments, None)?);
            let under = help
                .lines()
                .skip_while(|line| *line != "Connection options:");
            let flags = under.skip(1).take_while(|line| !line.ends_with(':'));
            let flags = flags.flat_map(str::split_whitespace);
            let flags: Vec<&str> = flags.filter(|word| word.starts_with("--")).collect();
            if !flags.is_empty() {
                seen += 1;
                ensure!(
                    flags == ["--kubeconfig", "--context", "--as", "--as-group"],
                    "{command:?}: {flags:?}"
                );
            }
        }
    }
    ensure!(seen > 8, "{seen} commands ask a cluster");
    Ok(())
}

#[tokio::test]
async fn kubectl_runs_it_as_a_plugin_with_its_own_flags() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "plugin", "nobody").await?;
    let external = [("issuer", "external")];
    let fresh = pair(&["plugin.example"], FRESH)?;
    space.tls_secret("shop", Some(&fresh), &external).await?;
    let directory = bench.directory().join("plugins");
    std::fs::create_dir_all(&directory)?;
    let plugin = directory.join("kubectl-cert_renew");
    symlink(env!("CARGO_BIN_EXE_cert-renew"), &plugin)?;
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([directory].into_iter().chain(env::split_paths(&path)))?;
    let config = bench.kubeconfig().to_string_lossy().into_owned();
    let kubectl = |arguments: &[&str]| -> Result<Output> {
        let mut command = Command::new(bench.program("kubectl"));
        command.arg("cert-renew").args(arguments).env("PATH", &path);
        Ok(command.env_remove("KUBECONFIG").output()?)
    };
    let status = |more: &[&str]| {
        let scope = ["status", "--kubeconfig", &config, "-n", &space.name];
        kubectl(&[&scope, more].concat())
    };
    let shown = status(&[])?;
    ensure!(
        shown.status.success() && said(&shown).contains("shop"),
        "{}",
        said(&shown)
    );
    let nowhere = status(&["--context", "no-such-context"])?;
    ensure!(
        nowhere.status.code() == Some(1) && said(&nowhere).contains("no-such-context"),
        "{}",
        said(&nowhere)
    );
    let nobody = status(&["--as", "nobody", "--as-group", "nothing"])?;
    ensure!(
        nobody.status.code() == Some(1) && said(&nobody).contains("\"nobody\""),
        "{}",
        said(&nobody)
    );
    let both = status(&["-A"])?;
    ensure!(both.status.code() == Some(2), "-n and -A: {}", said(&both));
    let help = kubectl(&["status", "--help"])?;
    ensure!(
        said(&help).contains("Usage: kubectl cert-renew status"),
        "{}",
        said(&help)
    );
    Ok(())
}

#[test]
fn completions_and_manual_come_from_the_command_itself() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let output = cert_renew(&["completions", shell], None)?;
        let text = said(&output);
        ensure!(
            output.status.success() && text.contains("all-namespaces"),
            "{shell}: {text}"
        );
    }
    let page = said(&cert_renew(&["man", "account", "show"], None)?);
    ensure!(page.contains(".TH") && page.contains("ISSUER"), "{page}");
    let unknown = cert_renew(&["man", "nothing"], None)?;
    ensure!(
        unknown.status.code() == Some(1) && said(&unknown).contains("status"),
        "{}",
        said(&unknown)
    );
    Ok(())
}

#[test]
fn the_manifest_for_krew_names_the_plugin_as_kubectl_looks_for_it() -> Result<()> {
    let manifest: Value = serde_saphyr::from_str(include_str!("../../deploy/krew.yaml"))?;
    ensure!(manifest["metadata"]["name"] == "cert-renew", "{manifest}");
    let version = manifest["spec"]["version"].as_str().unwrap_or_default();
    ensure!(
        version == concat!("v", env!("CARGO_PKG_VERSION")),
        "{version}"
    );
    for platform in manifest["spec"]["platforms"]
        .as_array()
        .context("no platforms")?
    {
        let is_windows = platform["selector"]["matchLabels"]["os"] == "windows";
        let end = if is_windows { ".exe" } else { "" };
        let bin = format!("kubectl-cert_renew{end}");
        ensure!(platform["bin"] == bin.as_str(), "{platform}");
        ensure!(platform["files"][0]["to"] == platform["bin"], "{platform}");
    }
    Ok(())
}
