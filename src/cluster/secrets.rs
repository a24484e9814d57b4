//! Reading one Secret afresh, and the guarded patch.

use std::collections::BTreeMap;

use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use zeroize::Zeroizing;

use super::{Error, call};
use crate::index::Key;
use crate::secret::full::FullSecret;
use crate::secret::keys::FIELD_MANAGER;
use crate::secret::patch::guarded_patch;
use crate::secret::thin::ThinSecret;

/// What a patch changes: annotations (None removes) and data keys.
#[derive(Default)]
pub struct Changes<'a> {
    /// Annotations by full name.
    pub annotations: Vec<(&'a str, Option<String>)>,
    /// Data keys and their new bytes.
    pub data: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

/// GETs the Secret with its data.
///
/// # Errors
/// [`Error::NotFound`] when it is gone, and what every call may end in.
pub async fn get(client: &Client, key: &Key) -> Result<FullSecret, Error> {
    let api: Api<FullSecret> = Api::namespaced(client.clone(), &key.namespace);
    call(|| format!("reading Secret {key}"), api.get(&key.name)).await
}

/// Patches exactly the version that was read: uid and resourceVersion guard it.
///
/// # Errors
/// [`Error::Conflict`] when anybody changed the Secret meanwhile.
pub async fn patch(
    client: &Client,
    key: &Key,
    uid: &str,
    resource_version: &str,
    changes: &Changes<'_>,
) -> Result<ThinSecret, Error> {
    let api: Api<ThinSecret> = Api::namespaced(client.clone(), &key.namespace);
    let body = guarded_patch(uid, resource_version, &changes.annotations, &changes.data);
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    call(
        || format!("writing Secret {key}"),
        api.patch(&key.name, &params, &Patch::Merge(body)),
    )
    .await
}
