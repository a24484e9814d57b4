//! `cert-renew version`: of this command, and of the operator in the cluster.

use std::process::ExitCode;

use clap::Parser;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Client;
use kube::api::{Api, ListParams};
use serde::Serialize;

use crate::cli::connection::kube_flags::{Clients, KubeFlags};
use crate::cli::output::{Output, plain};
use crate::cli::verdicts::{Operator, Wanted};
use crate::cli::{CommandResult, Failure, block_on};

/// Label of the operator's Deployment, by kustomize and by Helm.
const LABEL: &str = "app.kubernetes.io/name=cert-renew";
/// Name of the operator's container.
const CONTAINER: &str = "cert-renew";

#[derive(Debug, Parser)]
pub(in crate::cli) struct Args {
    /// The version of this command only; no cluster is asked
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    way: KubeFlags,
    #[command(flatten)]
    operator: Operator,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Versions {
    client: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<Running>,
}

/// What runs in the operator's namespace, by its own word, and by its Deployment where that can be read.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Running {
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(flatten)]
    deployed: Option<Deployed>,
}

/// What the Deployment runs.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Deployed {
    image: String,
    replicas: i32,
    ready_replicas: i32,
}

/// Exit code 1 if the operator was asked for and not found.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(in crate::cli) fn run(args: Args) -> CommandResult {
    let found = if args.client {
        Ok(None)
    } else {
        block_on(async {
            let clients = args.way.clients().await?;
            running(&clients, &args.operator).await
        })
        .map(Some)
    };
    let (operator, why) = match found {
        Ok(operator) => (operator, None),
        Err(failure) => (None, Some(failure)),
    };
    let versions = Versions {
        client: env!("CARGO_PKG_VERSION"),
        operator,
    };
    match args.output.of_program(&versions)? {
        Some(text) => print!("{text}"),
        None => print!("{}", text(&versions)),
    }
    why.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn text(versions: &Versions) -> String {
    let mut text = format!("client: {}\n", versions.client);
    if let Some(operator) = &versions.operator {
        let Running {
            namespace,
            version,
            deployed,
        } = operator;
        let version = version.as_ref().map(|version| plain(version).into_owned());
        let deployed = deployed.as_ref().map(|it| {
            let Deployed {
                image,
                replicas,
                ready_replicas,
            } = it;
            format!("{image}, {ready_replicas} of {replicas} ready")
        });
        let parts: Vec<String> = [version, deployed].into_iter().flatten().collect();
        text += &format!("operator: {} in namespace {namespace}\n", parts.join(", "));
    }
    text
}

/// The operator's own word takes the role of a viewer, its Deployment another right: one of them is enough.
async fn running(clients: &Clients, operator: &Operator) -> Result<Running, Failure> {
    let namespace = operator.namespace();
    // No Secret has this name: the head of a report is enough.
    let nothing = Wanted::one((namespace.to_owned(), "-".to_owned()));
    let (report, deployed) = tokio::join!(
        operator.report(&clients.once, &nothing),
        deployed(&clients.api, namespace)
    );
    let version = report.ok().and_then(|it| it.version);
    match (version, deployed) {
        (None, Err(failure)) => Err(failure),
        (None, Ok(None)) => Err(Failure(format!(
            "no cert-renew in namespace {namespace}: name its namespace with --operator-namespace"
        ))),
        (version, deployed) => Ok(Running {
            namespace: namespace.to_owned(),
            version: version.map(Into::into),
            deployed: deployed.ok().flatten(),
        }),
    }
}

/// What the operator's Deployment runs, if there is one.
async fn deployed(client: &Client, namespace: &str) -> Result<Option<Deployed>, Failure> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let found = api.list(&ListParams::default().labels(LABEL)).await;
    let found = found.map_err(|error| Failure::new("reading the operator's Deployment", &error))?;
    Ok(found.items.iter().find_map(of))
}

/// What a Deployment runs, if it is the operator's.
fn of(deployment: &Deployment) -> Option<Deployed> {
    let spec = deployment.spec.as_ref()?;
    let containers = &spec.template.spec.as_ref()?.containers;
    let container = containers.iter().find(|it| it.name == CONTAINER)?;
    let status = deployment.status.as_ref();
    Some(Deployed {
        image: container.image.clone()?,
        replicas: spec.replicas.unwrap_or(1),
        ready_replicas: status.and_then(|it| it.ready_replicas).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_deployment_says_its_image() {
        let deployment = include_str!("../../../deploy/deployment.yaml");
        let deployment: Deployment = serde_saphyr::from_str(deployment).unwrap();
        let labels = deployment.metadata.labels.clone().unwrap_or_default();
        let label = LABEL.split_once('=').unwrap();
        assert_eq!(labels.get(label.0).map(String::as_str), Some(label.1));
        let deployed = of(&deployment).unwrap();
        assert_eq!(deployed.ready_replicas, 0);
        let running = |deployed, version: Option<&str>| Running {
            namespace: "ops".into(),
            version: version.map(Into::into),
            deployed,
        };
        let said = |running| {
            text(&Versions {
                client: "1",
                operator: Some(running),
            })
        };
        let viewer = said(running(None, Some("0.2.0")));
        assert_eq!(viewer, "client: 1\noperator: 0.2.0 in namespace ops\n");
        let said = said(running(Some(deployed), None));
        assert!(
            said.starts_with("client: 1\noperator: cert-renew"),
            "{said}"
        );
        assert!(said.ends_with("0 of 2 ready in namespace ops\n"), "{said}");
    }
}
