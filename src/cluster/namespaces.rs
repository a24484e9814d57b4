//! The labels of a namespace, read when a CA is about to be asked for one of its Secrets.
//!
//! Nothing is watched: what counts are the labels of that moment. It needs the right of
//! rbac/addons/namespace-labels.yaml.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::Api;

use super::{Error, call};

/// The labels that a namespace has now.
///
/// # Errors
/// What every call may end in.
pub async fn labels(client: &Client, namespace: &str) -> Result<BTreeMap<String, String>, Error> {
    let api: Api<Namespace> = Api::all(client.clone());
    let what = || format!("reading the labels of namespace {namespace}");
    let found = call(what, api.get_metadata(namespace)).await?;
    Ok(found.metadata.labels.unwrap_or_default())
}
