//! `cert-renew version`: of this command, and of the operator in the cluster.

use std::process::ExitCode;

use clap::Parser;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Client;
use kube::api::{Api, ListParams};
use serde::Serialize;

use super::kube_flags::{OperatorNamespace, Way};
use super::output::Output;
use super::{CommandResult, Failure, block_on};

/// Label of the operator's Deployment, by kustomize and by Helm.
const LABEL: &str = "app.kubernetes.io/name=cert-renew";
/// Name of the operator's container.
const CONTAINER: &str = "cert-renew";

#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The version of this command only; no cluster is asked
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    way: Way,
    #[command(flatten)]
    operator: OperatorNamespace,
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

/// What the Deployment runs.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Running {
    namespace: String,
    image: String,
    replicas: i32,
    ready_replicas: i32,
}

/// Exit code 1 if the operator was asked for and not found.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn run(args: Args) -> CommandResult {
    let found = if args.client {
        Ok(None)
    } else {
        block_on(async {
            let client = args.way.client().await?;
            running(&client, &args.operator.operator_namespace).await
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
            image,
            replicas,
            ready_replicas,
        } = operator;
        text += &format!(
            "operator: {image}, {ready_replicas} of {replicas} ready in namespace {namespace}\n"
        );
    }
    text
}

async fn running(client: &Client, namespace: &str) -> Result<Running, Failure> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let found = api.list(&ListParams::default().labels(LABEL)).await;
    let found = found.map_err(|error| Failure::new("reading the operator's Deployment", &error))?;
    let running = found.items.iter().find_map(|it| of(it, namespace));
    running.ok_or_else(|| {
        Failure(format!(
            "no cert-renew in namespace {namespace}: name its namespace with --operator-namespace"
        ))
    })
}

/// What a Deployment runs, if it is the operator's.
fn of(deployment: &Deployment, namespace: &str) -> Option<Running> {
    let spec = deployment.spec.as_ref()?;
    let containers = &spec.template.spec.as_ref()?.containers;
    let container = containers.iter().find(|it| it.name == CONTAINER)?;
    let status = deployment.status.as_ref();
    Some(Running {
        namespace: namespace.to_owned(),
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
        let deployment = include_str!("../../deploy/deployment.yaml");
        let deployment: Deployment = serde_saphyr::from_str(deployment).unwrap();
        let labels = deployment.metadata.labels.clone().unwrap_or_default();
        let label = LABEL.split_once('=').unwrap();
        assert_eq!(labels.get(label.0).map(String::as_str), Some(label.1));
        let running = of(&deployment, "ops").unwrap();
        assert_eq!(running.ready_replicas, 0);
        let said = text(&Versions {
            client: "1",
            operator: Some(running),
        });
        assert!(
            said.starts_with("client: 1\noperator: cert-renew"),
            "{said}"
        );
        assert!(said.ends_with("0 of 2 ready in namespace ops\n"), "{said}");
    }
}
