//! The labels of a namespace, read before a CA is asked for one of its Secrets.
//!
//! Nothing is watched: only the present labels count. It needs the right of
//! rbac/addons/namespace-labels.yaml. Nothing else of the namespace is decoded, and none with more labels than are read:
//! a rule may ask for one that is not there.

use std::collections::BTreeMap;

use cert_renew_core::secret::object::lenient::{Fill, Shape};
use kube::Client;
use kube::api::GetParams;
use kube::core::Request;
use serde::de::{DeserializeSeed as _, MapAccess};
use serde::{Deserialize, Deserializer};

use crate::cluster::Error;
use crate::cluster::client::call;

/// Most labels of a namespace. A renewal keeps them until it ends, and some namespaces may be edited by their users.
const MOST_LABELS: usize = 200;

/// The present labels of a namespace.
///
/// # Errors
/// Those of every call, and [`Error::TooLarge`] where it has more labels than are read.
pub async fn labels(client: &Client, namespace: &str) -> Result<BTreeMap<String, String>, Error> {
    let what = || format!("reading the labels of namespace {namespace}");
    let get = async {
        let request = Request::new("/api/v1/namespaces");
        let request = request.get_metadata(namespace, &GetParams::default());
        let request = request.map_err(kube::Error::BuildRequest)?;
        client.request::<Labelled>(request).await
    };
    let found = call(what, get).await?;
    if found.name.as_deref() != Some(namespace) {
        let message = "its answer is not what was asked for".to_owned();
        return Err(Error::Unavailable {
            what: what(),
            message,
            code: None,
        });
    }
    if found.has_more {
        return Err(Error::TooLarge { what: what() });
    }
    Ok(found.labels)
}

/// What is decoded of a namespace.
#[derive(Default)]
struct Labelled {
    name: Option<String>,
    labels: BTreeMap<String, String>,
    /// Whether it has labels that are not kept.
    has_more: bool,
}

impl<'de> Deserialize<'de> for Labelled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut namespace = Self::default();
        Fill(&mut namespace).deserialize(deserializer)?;
        Ok(namespace)
    }
}

impl Shape for Labelled {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "metadata" => map.next_value_seed(Fill(&mut Metadata(self))),
            _ => ().member(key, map),
        }
    }
}

struct Metadata<'a>(&'a mut Labelled);

impl Shape for Metadata<'_> {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "name" => map.next_value_seed(Fill(&mut self.0.name)),
            "labels" => map.next_value_seed(Fill(&mut Labels(self.0))),
            _ => ().member(key, map),
        }
    }
}

struct Labels<'a>(&'a mut Labelled);

impl Shape for Labels<'_> {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        if self.0.labels.len() >= MOST_LABELS {
            self.0.has_more = true;
            return ().member(key, map);
        }
        let mut value: Option<String> = None;
        map.next_value_seed(Fill(&mut value))?;
        let label = value.map(|value| (key.to_owned(), value));
        self.0.labels.extend(label);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower::service_fn;

    use super::*;

    /// The labels of namespace `shop`, as an API server gives it.
    async fn of(metadata: Value) -> Result<BTreeMap<String, String>, Error> {
        let server = service_fn(move |_: Request<Body>| {
            let found = json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            });
            let answer = Response::new(Body::from(found.to_string().into_bytes()));
            async move { Ok::<_, Infallible>(answer) }
        });
        labels(&Client::new(server, "cert-renew"), "shop").await
    }

    fn many(number: usize) -> BTreeMap<String, String> {
        let all = (0..number).map(|it| (format!("a{it}"), "x".to_owned()));
        all.collect()
    }

    #[tokio::test]
    async fn of_a_namespace_its_labels_are_decoded_and_nothing_else() {
        let whole = many(MOST_LABELS);
        let read = of(json!({
            "name": "shop", "labels": whole, "annotations": "unread", "managedFields": "unread",
            "ownerReferences": "unread",
        }));
        assert_eq!(read.await.unwrap(), whole);
        assert!(of(json!({"name": "shop"})).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn labels_that_are_not_read_are_not_taken_for_missing() {
        // A rule may be for namespaces without a label.
        for number in [MOST_LABELS + 1, 20_000] {
            let read = of(json!({"name": "shop", "labels": many(number)})).await;
            assert!(matches!(read, Err(Error::TooLarge { .. })), "{number}");
        }
        for metadata in [json!({}), json!(null), json!({"name": "blog"})] {
            let read = of(metadata).await;
            assert!(matches!(read, Err(Error::Unavailable { .. })));
        }
    }
}
