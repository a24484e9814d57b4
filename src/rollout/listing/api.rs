//! Workloads at the API server.

use cert_renew_core::rollout::decode::Object;
use cert_renew_core::rollout::workload::Workload;
use cert_renew_core::secret::workload::{Kind, WorkloadRef};
use kube::{Api, Client};

use crate::cluster::Call;
use crate::rollout::error::Error;

/// One workload as it is now; `None` when it is gone.
pub(in crate::rollout) async fn get(
    client: &Client,
    namespace: &str,
    id: &WorkloadRef,
) -> Result<Option<Workload>, Error> {
    let api = api(client, namespace, id.kind);
    let what = || format!("reading {id} of namespace {namespace}");
    let object = Call::READ.repeat(what, || api.get_opt(&id.name)).await?;
    Ok(object.map(|object| object.read(id.kind)))
}

pub(in crate::rollout) fn api(client: &Client, namespace: &str, kind: Kind) -> Api<Object> {
    Api::namespaced_with(client.clone(), namespace, &kind)
}
