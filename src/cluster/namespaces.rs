//! The labels of a namespace, read before a CA is asked for one of its Secrets.
//!
//! Nothing is watched: only the present labels count. It needs the right of
//! rbac/addons/namespace-labels.yaml.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::Api;

use crate::cluster::Error;
use crate::cluster::client::call;

/// The present labels of a namespace.
///
/// # Errors
/// Those of every call.
pub async fn labels(client: &Client, namespace: &str) -> Result<BTreeMap<String, String>, Error> {
    let api: Api<Namespace> = Api::all(client.clone());
    let what = || format!("reading the labels of namespace {namespace}");
    let found = call(what, api.get_metadata(namespace)).await?;
    Ok(found.metadata.labels.unwrap_or_default())
}
