//! ConfigMaps that declare certificates, by their metadata alone, and the Secrets that are made for them.
//!
//! The data of a ConfigMap is never asked for. It needs the rights of rbac/addons/declarations.yaml.

use std::collections::BTreeMap;
use std::time::Duration;

use cert_renew_core::declaration::mirror::Mirror;
pub use cert_renew_core::declaration::object::Metadata;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::data::data_keys::TLS_TYPE;
use cert_renew_core::secret::keys::{CERTIFICATE_LABEL, MANAGED_LABEL};
use cert_renew_core::secret::object::thin::ThinSecret;
use futures::stream::{BoxStream, StreamExt as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use serde_json::json;

use super::Error;
use super::client::{call, if_any, params};

/// Objects in a page of a list.
const PAGE: u32 = 250;

/// What a watch brings. Errors are tried again with back-off.
pub type Events = BoxStream<'static, Result<watcher::Event<Metadata>, watcher::Error>>;

fn api(client: &Client, namespace: &str) -> Api<Metadata> {
    Api::namespaced(client.clone(), namespace)
}

/// Lists and watches the labelled ConfigMaps of a namespace, or of all.
#[must_use]
pub fn watch(client: &Client, namespace: Option<&str>, timeout: Duration) -> Events {
    let all = || Api::all(client.clone());
    let api = namespace.map_or_else(all, |namespace| api(client, namespace));
    let config = watcher::Config::default()
        .labels(&format!("{CERTIFICATE_LABEL}=true"))
        .page_size(PAGE)
        .timeout(u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX));
    watcher(api, config).default_backoff().boxed()
}

/// The metadata of a ConfigMap as it is now; `None` if there is none.
///
/// # Errors
/// Those of every call.
pub async fn get(client: &Client, namespace: &str, name: &str) -> Result<Option<Metadata>, Error> {
    let what = || format!("reading ConfigMap {namespace}/{name}");
    if_any(call(what, api(client, namespace).get(name)).await)
}

/// A Secret as it is now, without its private key; `None` if there is none.
///
/// # Errors
/// Those of every call.
pub async fn secret(client: &Client, key: &SecretRef) -> Result<Option<ThinSecret>, Error> {
    let api: Api<ThinSecret> = Api::namespaced(client.clone(), &key.namespace);
    if_any(call(|| format!("reading Secret {key}"), api.get(&key.name)).await)
}

/// Makes an empty TLS Secret with these annotations. One that exists by now is left as it is.
///
/// # Errors
/// [`Error::AlreadyExists`] if there is one, and those of every call.
pub async fn make(
    client: &Client,
    key: &SecretRef,
    annotations: BTreeMap<String, String>,
) -> Result<(), Error> {
    let labels = [
        ("app.kubernetes.io/managed-by", "cert-renew"),
        // Where the config has `watch: {select: label}`, no other Secret is seen.
        (MANAGED_LABEL, "true"),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let empty = ["tls.crt", "tls.key"].map(|key| (key.to_owned(), ByteString::default()));
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(key.name.to_string()),
            annotations: Some(annotations),
            labels: Some(labels.into()),
            ..ObjectMeta::default()
        },
        type_: Some(TLS_TYPE.to_owned()),
        data: Some(empty.into()),
        ..Secret::default()
    };
    let api: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
    let post = params::post();
    let made = call(
        || format!("making Secret {key}"),
        api.create(&post, &secret),
    );
    made.await.map(drop)
}

/// Which version of a ConfigMap is meant.
#[derive(Clone, Copy, Debug)]
pub struct Version<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// Its resourceVersion.
    pub resource_version: &'a str,
}

impl Version<'_> {
    /// For an Event on it.
    #[must_use]
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("ConfigMap".into()),
            namespace: Some(self.namespace.to_owned()),
            name: Some(self.name.to_owned()),
            uid: Some(self.uid.to_owned()),
            ..ObjectReference::default()
        }
    }
}

/// Writes on a ConfigMap how its certificate stands; refused if it has changed since it was read.
///
/// # Errors
/// [`Error::Conflict`] if it has, and those of every call.
pub async fn tell(client: &Client, on: Version<'_>, mirror: &Mirror) -> Result<(), Error> {
    let body = json!({"metadata": {
        "uid": on.uid,
        "resourceVersion": on.resource_version,
        "annotations": BTreeMap::from(mirror.annotations()),
        "labels": BTreeMap::from([mirror.label()]),
    }});
    let (params, body) = (params::patch(), Patch::Merge(&body));
    let api = api(client, on.namespace);
    let what = || format!("writing ConfigMap {}/{}", on.namespace, on.name);
    let told = call(what, api.patch(on.name, &params, &body));
    told.await.map(drop)
}
