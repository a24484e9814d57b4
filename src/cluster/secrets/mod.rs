//! Reading one Secret, and the guarded patch.

pub mod port_certificate;
pub mod watch;

use std::collections::BTreeMap;

use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::data::patch::guarded_patch;
use cert_renew_core::secret::object::full::{Data, FullSecret};
use cert_renew_core::secret::object::head::Head;
use cert_renew_core::secret::object::thin::ThinSecret;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, Patch};
use zeroize::{Zeroize, Zeroizing};

use crate::cluster::Error;
use crate::cluster::client::{call, params};

/// A Secret with one of our keys in it.
pub(super) struct Keyed {
    pub(super) secret: Secret,
}

impl Keyed {
    /// Has the data wiped on drop, in every case.
    pub(super) fn wiped(secret: Secret) -> Zeroizing<Self> {
        Zeroizing::new(Self { secret })
    }
}

impl Zeroize for Keyed {
    fn zeroize(&mut self) {
        for ByteString(value) in self.secret.data.iter_mut().flat_map(BTreeMap::values_mut) {
            value.zeroize();
        }
    }
}

/// The changes of a patch.
#[derive(Default)]
pub struct Changes<'a> {
    /// Annotations by full name; None removes.
    pub annotations: Vec<(&'a str, Option<String>)>,
    /// Data keys and their new bytes.
    pub data: Data,
}

impl<'a> Changes<'a> {
    /// Changes of annotations only.
    #[must_use]
    pub fn of(annotations: impl Into<Vec<(&'a str, Option<String>)>>) -> Self {
        Self {
            annotations: annotations.into(),
            data: Data::new(),
        }
    }
}

/// GETs the Secret with its data.
///
/// # Errors
/// [`Error::NotFound`] if it is gone, and those of every call.
pub async fn get(client: &Client, key: &SecretRef) -> Result<FullSecret, Error> {
    let api: Api<FullSecret> = Api::namespaced(client.clone(), &key.namespace);
    call(|| format!("reading Secret {key}"), api.get(&key.name)).await
}

/// GETs the Secret without its data, of which there may be very much.
///
/// # Errors
/// [`Error::NotFound`] if it is gone, and those of every call.
pub async fn head(client: &Client, key: &SecretRef) -> Result<Head, Error> {
    let api: Api<ThinSecret> = Api::namespaced(client.clone(), &key.namespace);
    let secret = call(|| format!("reading Secret {key}"), api.get(&key.name)).await?;
    Ok(secret.head)
}

/// Patches exactly the version that was read as `head`, guarded by its uid and resourceVersion.
///
/// # Errors
/// [`Error::Conflict`] if the Secret was modified concurrently.
pub async fn patch(
    client: &Client,
    head: &Head,
    changes: &Changes<'_>,
) -> Result<ThinSecret, Error> {
    let api: Api<ThinSecret> = Api::namespaced(client.clone(), head.namespace());
    let body = guarded_patch(head, &changes.annotations, &changes.data);
    let params = params::patch();
    let body = Patch::Merge(&body);
    call(
        || format!("writing Secret {}", head.place()),
        api.patch(head.name(), &params, &body),
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wiping_leaves_nothing_of_any_value() {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let data = [("tls.key", "one key"), ("next", "another key")];
        let data = data.map(|(key, text)| (key.to_owned(), bytes(text)));
        let mut keyed = Keyed::wiped(Secret {
            data: Some(data.into()),
            ..Secret::default()
        });
        keyed.zeroize();
        let values = keyed.secret.data.iter().flat_map(BTreeMap::values);
        let left: Vec<usize> = values.map(|ByteString(value)| value.len()).collect();
        assert_eq!(left, [0, 0]);
    }
}
