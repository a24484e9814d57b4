//! The parameters of our writes: the field manager, and which object exactly is meant.

use std::collections::BTreeMap;

use cert_renew_core::secret::keys::FIELD_MANAGER;
use kube::api::{DeleteParams, PatchParams, PostParams, Preconditions};

pub(in crate::cluster) fn patch() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    }
}

pub(in crate::cluster) fn post() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PostParams::default()
    }
}

/// Deletes the object of this uid, and none that has its name by now.
pub(in crate::cluster) fn delete(uid: &str) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    }
}

/// The label of everything that we make.
pub(in crate::cluster) fn labels<const N: usize>(
    more: [(String, String); N],
) -> BTreeMap<String, String> {
    let ours = ("app.kubernetes.io/name".into(), "cert-renew".into());
    more.into_iter().chain([ours]).collect()
}
