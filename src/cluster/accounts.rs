//! ACME account credentials: one Secret for each issuer, in the operator's namespace.
//!
//! Credentials are stored before they are registered, so that a crash loses neither the key nor a single-use EAB.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use zeroize::Zeroizing;

use super::secrets::Keyed;
use crate::cluster::Error;
use crate::cluster::client::{call, if_any, params};

const FIELD: &str = "credentials";
/// Data key of the credentials that an account is changing to.
const NEXT: &str = "next";

/// Name of the Secret with an issuer's account.
#[must_use]
pub fn secret_name(issuer: &str) -> String {
    format!("cert-renew-account-{issuer}")
}

/// Reads an issuer's credentials; None if it has no account yet.
///
/// # Errors
/// Those of every call.
pub async fn load(
    client: &Client,
    namespace: &str,
    issuer: &str,
) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    Ok(load_with_next(client, namespace, issuer)
        .await?
        .map(|(credentials, _)| credentials))
}

/// The same, with the credentials that the account is changing to, if any.
///
/// # Errors
/// Those of every call.
pub async fn load_with_next(
    client: &Client,
    namespace: &str,
    issuer: &str,
) -> Result<Option<Stored>, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let name = secret_name(issuer);
    let found = call(
        || format!("reading account Secret {namespace}/{name}"),
        api.get(&name),
    )
    .await;
    Ok(if_any(found)?.and_then(|secret| read(&mut Keyed::wiped(secret))))
}

/// Takes the credentials out of an account Secret. What else it has stays in it, and is wiped with it.
fn read(keyed: &mut Keyed) -> Option<Stored> {
    let data = keyed.secret.data.as_mut()?;
    let mut take = |field| data.remove(field).map(|bytes| Zeroizing::new(bytes.0));
    let next = take(NEXT);
    take(FIELD).map(|credentials| (credentials, next))
}

/// Credentials, and those that will replace them.
pub type Stored = (Zeroizing<Vec<u8>>, Option<Zeroizing<Vec<u8>>>);

/// Writes the credentials that an account is changing to beside the present ones, or, with `next` of `None`, removes
/// them.
///
/// # Errors
/// Those of every call; [`Error::NotFound`] if there is no account.
pub async fn change(
    client: &Client,
    namespace: &str,
    issuer: &str,
    credentials: &[u8],
    next: Option<&[u8]>,
) -> Result<(), Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let name = secret_name(issuer);
    let what = || format!("writing account Secret {namespace}/{name}");
    let fields = [(FIELD, Some(credentials)), (NEXT, next)];
    let present = fields.iter().filter_map(|(field, bytes)| {
        let bytes = ByteString((*bytes)?.to_vec());
        Some(((*field).to_owned(), bytes))
    });
    let keyed = Keyed::wiped(Secret {
        data: Some(present.collect()),
        ..Secret::default()
    });
    let value = |field: &str| keyed.secret.data.as_ref()?.get(field);
    // What is absent is null, which removes it.
    let data = BTreeMap::from(fields.map(|(field, _)| (field, value(field))));
    let body = Patch::Merge(BTreeMap::from([("data", data)]));
    let changed = call(what, api.patch(&name, &PatchParams::default(), &body)).await;
    changed.map(|secret| drop(Keyed::wiped(secret)))
}

/// Writes an issuer's credentials; creates the Secret if it does not exist.
///
/// # Errors
/// Those of every call.
pub async fn store(
    client: &Client,
    namespace: &str,
    issuer: &str,
    credentials: &[u8],
) -> Result<(), Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let name = secret_name(issuer);
    let what = || format!("writing account Secret {namespace}/{name}");
    let keyed = Keyed::wiped(Secret {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(params::labels([])),
            ..ObjectMeta::default()
        },
        type_: Some("cert-renew.io/account".into()),
        data: Some(BTreeMap::from([(
            FIELD.into(),
            ByteString(credentials.to_vec()),
        )])),
        ..Secret::default()
    });
    let post = params::post();
    let stored = match call(what, api.create(&post, &keyed.secret)).await {
        Err(Error::AlreadyExists { .. }) => {
            let params = params::patch();
            let body = Patch::Merge(BTreeMap::from([("data", &keyed.secret.data)]));
            call(what, api.patch(&name, &params, &body)).await
        }
        other => other,
    };
    stored.map(|secret| drop(Keyed::wiped(secret)))
}

#[cfg(test)]
mod tests {
    use zeroize::ZeroizeOnDrop;

    use super::*;

    /// Compiles only for what is wiped on drop.
    fn is_wiped<T: ZeroizeOnDrop>(_: &T) {}

    #[test]
    fn what_is_read_of_an_account_is_wiped_and_what_is_not_stays_in_what_is_wiped() {
        let account = |fields: &[&str]| {
            let data = fields.iter().map(|field| {
                let bytes = ByteString(field.as_bytes().to_vec());
                ((*field).to_owned(), bytes)
            });
            Keyed::wiped(Secret {
                data: Some(data.collect()),
                ..Secret::default()
            })
        };
        let left = |keyed: &Keyed| -> Vec<String> {
            let fields = keyed.secret.data.iter().flat_map(BTreeMap::keys);
            fields.cloned().collect()
        };
        let mut whole = account(&[FIELD, NEXT, "former"]);
        let stored: Option<Stored> = read(&mut whole);
        is_wiped(&stored);
        let (credentials, next) = stored.unwrap();
        let next = next.unwrap();
        assert_eq!(
            (&**credentials, &**next),
            (&b"credentials"[..], &b"next"[..])
        );
        assert_eq!(left(&whole), ["former"]);
        // Without the credentials that it changes from, an account cannot be read.
        let mut half = account(&[NEXT, "former"]);
        assert!(read(&mut half).is_none());
        assert_eq!(left(&half), ["former"]);
    }
}
