//! ACME account credentials, one Secret an issuer in the operator's namespace.
//!
//! A credential is stored before it is registered, so that a crash wastes neither the key nor a single-use EAB.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use zeroize::Zeroizing;

use super::{Error, call};
use crate::secret::keys::FIELD_MANAGER;

const FIELD: &str = "credentials";

/// Name of the Secret that holds an issuer's account.
#[must_use]
pub fn secret_name(issuer: &str) -> String {
    format!("cert-renew-account-{issuer}")
}

/// Reads an issuer's credentials; None when it has no account yet.
///
/// # Errors
/// What every call may end in.
pub async fn load(
    client: &Client,
    namespace: &str,
    issuer: &str,
) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let name = secret_name(issuer);
    let found = call(
        || format!("reading account Secret {namespace}/{name}"),
        api.get(&name),
    )
    .await;
    match found {
        Ok(secret) => Ok(secret
            .data
            .and_then(|mut data| data.remove(FIELD))
            .map(|bytes| Zeroizing::new(bytes.0))),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes an issuer's credentials; makes the Secret when it is not there.
///
/// # Errors
/// What every call may end in.
pub async fn store(
    client: &Client,
    namespace: &str,
    issuer: &str,
    credentials: &[u8],
) -> Result<(), Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let name = secret_name(issuer);
    let what = || format!("writing account Secret {namespace}/{name}");
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/name".into(),
                "cert-renew".into(),
            )])),
            ..ObjectMeta::default()
        },
        type_: Some("cert-renew.io/account".into()),
        data: Some(BTreeMap::from([(
            FIELD.into(),
            ByteString(credentials.to_vec()),
        )])),
        ..Secret::default()
    };
    let manager = Some(FIELD_MANAGER.to_owned());
    let post = PostParams {
        field_manager: manager.clone(),
        ..PostParams::default()
    };
    match call(what, api.create(&post, &secret)).await {
        Err(Error::AlreadyExists { .. }) => {
            let params = PatchParams {
                field_manager: manager,
                ..PatchParams::default()
            };
            let body = serde_json::json!({ "data": secret.data });
            call(what, api.patch(&name, &params, &Patch::Merge(body))).await?;
            Ok(())
        }
        other => other.map(|_| ()),
    }
}
