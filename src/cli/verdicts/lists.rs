//! The lists of Secrets: those with labels by their names alone, and those that may be annotated.

use std::collections::BTreeSet;

use cert_renew_core::secret::keys;
use cert_renew_core::secret::object::thin::ThinSecret;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, ListParams};

use crate::cli::Failure;
use crate::cluster::client::pages::Pages;

/// Secrets in a page of a list.
const PAGE: u32 = 250;

/// The Secrets with these labels; their data is not asked for.
pub(super) async fn labelled(
    api: &Api<Secret>,
    selector: &str,
) -> Result<BTreeSet<(String, String)>, Failure> {
    let mut pages = Pages::of(ListParams::default().labels(selector), PAGE);
    let mut places = BTreeSet::new();
    while let Some(params) = pages.next() {
        let page = api.list_metadata(params).await;
        let page = page.map_err(|error| Failure::new("listing Secrets", &error))?;
        for item in page.items {
            let metadata = item.metadata;
            places.insert((
                metadata.namespace.unwrap_or_default(),
                metadata.name.unwrap_or_default(),
            ));
        }
        pages.came(&page.metadata);
    }
    Ok(places)
}

/// What the API server selects: Secrets of the type, and others with the label.
pub(in crate::cli) fn selections() -> [ListParams; 2] {
    let labelled = format!("{}=true", keys::MANAGED_LABEL);
    [
        ListParams::default().fields("type=kubernetes.io/tls"),
        ListParams::default()
            .labels(&labelled)
            .fields("type!=kubernetes.io/tls"),
    ]
}

/// Those of the Secrets that may be annotated which are taken by namespace and name, in that order.
pub(super) async fn list(
    client: &Client,
    namespace: Option<&str>,
    takes: impl Fn(&str, &str) -> bool,
) -> Result<Vec<ThinSecret>, Failure> {
    let api: Api<ThinSecret> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut secrets = Vec::new();
    for params in selections() {
        let mut pages = Pages::of(params, PAGE);
        while let Some(params) = pages.next() {
            let page = api.list(params).await;
            let page = page.map_err(|error| Failure::new("listing Secrets", &error))?;
            let taken = |it: &ThinSecret| takes(it.head.namespace(), it.head.name());
            secrets.extend(page.items.into_iter().filter(taken));
            pages.came(&page.metadata);
        }
    }
    secrets.sort_by_cached_key(|it| (it.head.namespace().to_owned(), it.head.name().to_owned()));
    Ok(secrets)
}
