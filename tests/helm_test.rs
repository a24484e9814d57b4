//! `helm test` of an installed chart: its pod asks the Service as a CA would.
//!
//! No kubelet of the test cluster runs a container, so this test does what a kubelet would: it runs the command of the pod's
//! container, and reports how it ended.

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Output};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use test_bench::{Bench, Context as _, DataPath, Operator, Result, ensure, eventually};

use crate::command::said;
use crate::install::{helm_program, kubectl};
use crate::renewal::{SOON, options};

const NAMESPACE: &str = "helm-test";
const POD: &str = "cert-renew-test-challenge";

/// Runs helm in the repository.
fn helm(bench: &Bench, arguments: &str) -> Result<Output> {
    let output = Command::new(helm_program()?)
        .args(arguments.split(' '))
        .env("KUBECONFIG", bench.kubeconfig())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    Ok(output)
}

/// Runs what the container of the pod would, with the Service at this address, and reports the phase.
async fn act_as_kubelet(bench: &Bench, service: IpAddr) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(bench.client()?, NAMESPACE);
    let pod = eventually(SOON, "helm has made the pod", async || {
        let pod = pods.get(POD).await?;
        let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
        ensure!(phase == Some("Pending"), "an earlier one: {phase:?}");
        Ok(pod)
    })
    .await?;
    let spec = pod.spec.context("no spec")?;
    let arguments = spec.containers[0].args.iter().flatten();
    let variable = "$(CERT_RENEW_CHALLENGE_SERVICE_HOST)";
    let arguments = arguments.map(|it| it.replace(variable, &service.to_string()));
    let output = Command::new(env!("CARGO_BIN_EXE_cert-renew"))
        .args(arguments)
        .output()?;
    let phase = if output.status.success() {
        "Succeeded"
    } else {
        "Failed"
    };
    let patch = format!(
        "-n {NAMESPACE} patch pod {POD} --subresource=status --type=merge -p={{\"status\":{{\"phase\":\"{phase}\"}}}}"
    );
    kubectl(bench, &patch, "")?;
    Ok(())
}

/// `helm test`, with the Service at this address.
async fn tested(bench: &'static Bench, service: SocketAddr) -> Result<Output> {
    let test = format!("test cert-renew --namespace {NAMESPACE} --timeout 2m");
    let test = tokio::task::spawn_blocking(move || helm(bench, &test));
    act_as_kubelet(bench, service.ip()).await?;
    test.await?
}

#[tokio::test]
async fn it_passes_where_challenges_are_answered_and_fails_where_not() -> Result<()> {
    let bench = Bench::shared().await?;
    let (address, nobody) = (
        DataPath::address_of_its_own()?,
        DataPath::address_of_its_own()?,
    );
    if address.port() != 80 {
        eprintln!("not run: CAs come to port 80, which this user may not listen on");
        return Ok(());
    }
    let mut operator = Operator::install(bench, options()).await?;
    operator.answer_at(address);
    operator.run().await?;
    // No scheduler finds a node for the pod, so nobody else says that it runs.
    let install = format!(
        "install cert-renew deploy/helm --namespace {NAMESPACE} --create-namespace --set replicas=0,nodeSelector.kubelet=test"
    );
    let installed = helm(bench, &install)?;
    ensure!(installed.status.success(), "{}", said(&installed));

    let failed = tested(bench, nobody).await?;
    ensure!(!failed.status.success(), "{}", said(&failed));
    let passed = tested(bench, address).await?;
    ensure!(passed.status.success(), "{}", said(&passed));
    // The pod of a test that has passed goes.
    let pods: Api<Pod> = Api::namespaced(bench.client()?, NAMESPACE);
    eventually(SOON, "the pod is gone", async || {
        ensure!(pods.get_opt(POD).await?.is_none(), "it is there");
        Ok(())
    })
    .await?;
    let uninstalled = helm(bench, &format!("uninstall cert-renew -n {NAMESPACE}"))?;
    ensure!(uninstalled.status.success(), "{}", said(&uninstalled));
    Ok(())
}
