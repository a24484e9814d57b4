//! ConfigMaps and Ingresses that declare certificates, and the Secrets that are made for them.
//!
//! Of a ConfigMap only the metadata is asked for, never the data: it needs the rights of rbac/addons/declarations.yaml. For
//! Ingresses it needs those of rbac/addons/routes.yaml, and nothing is ever written on one.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use cert_renew_core::declaration::found::Found;
use cert_renew_core::declaration::ingress::Ingress;
use cert_renew_core::declaration::mirror::Mirror;
use cert_renew_core::declaration::object::Metadata;
use cert_renew_core::declaration::{Kind, Source};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::data::data_keys::TLS_TYPE;
use cert_renew_core::secret::keys::{CERTIFICATE_LABEL, MANAGED_LABEL};
use cert_renew_core::secret::object::thin::ThinSecret;
use futures::stream::{BoxStream, StreamExt as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::api::{Api, ObjectMeta, Patch};
use kube::core::NamespaceResourceScope;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Error;
use super::client::{call, if_any, params};

/// ConfigMaps in a page of a list, by their metadata.
const PAGE: u32 = 250;
/// Ingresses in a page of a list: each may be a megabyte and a half, and a page is in memory as a whole.
const PAGE_OF_INGRESSES: u32 = 25;

/// What a watch brings. Errors are tried again with back-off.
pub type Events = BoxStream<'static, Result<Event<Found>, watcher::Error>>;

fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
    client: &Client,
    namespace: &str,
) -> Api<K> {
    Api::namespaced(client.clone(), namespace)
}

/// Lists and watches what may declare certificates in a namespace, or in all: labelled ConfigMaps, or Ingresses.
#[must_use]
pub fn watch(client: &Client, kind: Kind, namespace: Option<&str>, timeout: Duration) -> Events {
    let config =
        watcher::Config::default().timeout(u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX));
    match kind {
        Kind::ConfigMap => {
            let config = config.labels(&format!("{CERTIFICATE_LABEL}=true"));
            objects::<Metadata>(client, namespace, config.page_size(PAGE))
        }
        Kind::Ingress => objects::<Ingress>(client, namespace, config.page_size(PAGE_OF_INGRESSES)),
    }
}

fn objects<K>(client: &Client, namespace: Option<&str>, config: watcher::Config) -> Events
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + Debug + DeserializeOwned + Send + 'static,
    Found: From<K>,
{
    let all = || Api::<K>::all(client.clone());
    let api = namespace.map_or_else(all, |namespace| api::<K>(client, namespace));
    let events = watcher(api, config).default_backoff();
    let events = events.map(|event| {
        event.map(|event| match event {
            Event::Init => Event::Init,
            Event::InitApply(object) => Event::InitApply(Found::from(object)),
            Event::InitDone => Event::InitDone,
            Event::Apply(object) => Event::Apply(Found::from(object)),
            Event::Delete(object) => Event::Delete(Found::from(object)),
        })
    });
    events.boxed()
}

/// An object as it is now; `None` if there is none.
///
/// # Errors
/// Those of every call.
pub async fn get(
    client: &Client,
    namespace: &str,
    source: &Source,
) -> Result<Option<Found>, Error> {
    let Source { kind, name } = source;
    let what = || format!("reading {kind} {namespace}/{name}");
    match kind {
        Kind::ConfigMap => {
            let found = call(what, api::<Metadata>(client, namespace).get(name)).await;
            Ok(if_any(found)?.map(Found::from))
        }
        Kind::Ingress => {
            let found = call(what, api::<Ingress>(client, namespace).get(name)).await;
            Ok(if_any(found)?.map(Found::from))
        }
    }
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

/// Which version of an object is meant.
#[derive(Clone, Copy, Debug)]
pub struct Version<'a> {
    /// Its kind.
    pub kind: Kind,
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
        let api_version = match self.kind {
            Kind::ConfigMap => "v1",
            Kind::Ingress => "networking.k8s.io/v1",
        };
        ObjectReference {
            api_version: Some(api_version.into()),
            kind: Some(self.kind.as_str().into()),
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
    let api = api::<Metadata>(client, on.namespace);
    let what = || format!("writing ConfigMap {}/{}", on.namespace, on.name);
    let told = call(what, api.patch(on.name, &params, &body));
    told.await.map(drop)
}
