//! The account key, and requests signed with it (RFC 7515 as RFC 8555, section 6.2 narrows it).
//!
//! ES256 only: every CA accepts P-256 account keys, and the account's key never gets into a certificate.
//! The private key leaves this module only through [`AccountKey::pkcs8`], for the Secret that stores it.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use aws_lc_rs::{error::Unspecified, hmac};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};
use thiserror::Error;
use zeroize::Zeroizing;

/// Why a key cannot be an account key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected an ECDSA P-256 private key in PKCS#8")]
pub(crate) struct NotAnAccountKey;

/// An ECDSA P-256 key pair; Debug shows the public thumbprint.
pub(crate) struct AccountKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
    jwk: Value,
    thumbprint: String,
}

impl AccountKey {
    /// Generates a key.
    pub(crate) fn generate() -> Result<Self, NotAnAccountKey> {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| NotAnAccountKey)?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// Restores the key from the output of [`Self::pkcs8`].
    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, NotAnAccountKey> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
            .map_err(|_| NotAnAccountKey)?;
        // SEC 1, 2.3.3: an uncompressed point is 4, x, y.
        let point = pair
            .public_key()
            .as_ref()
            .get(1..65)
            .ok_or(NotAnAccountKey)?;
        let (x, y) = (BASE64.encode(&point[..32]), BASE64.encode(&point[32..]));
        // RFC 7638, 3: these members only, in this order, without blanks.
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        Ok(Self {
            pkcs8: Zeroizing::new(pkcs8.to_vec()),
            thumbprint: BASE64.encode(digest(&SHA256, canonical.as_bytes())),
            jwk: json!({"crv": "P-256", "kty": "EC", "x": x, "y": y}),
            pair,
        })
    }

    /// The key for the Secret that stores the account.
    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The key authorization (RFC 8555, section 8.1): the token and the thumbprint of this key.
    pub(crate) fn authorize(&self, token: &str) -> String {
        format!("{token}.{}", self.thumbprint)
    }

    /// A request body for `url`, signed for the account `kid`, or with the key itself before there is one.
    /// An empty payload is a POST-as-GET (RFC 8555, section 6.3).
    pub(crate) fn sign(
        &self,
        kid: Option<&str>,
        nonce: &str,
        url: &str,
        payload: &[u8],
    ) -> Result<String, Unspecified> {
        let mut protected = json!({"alg": "ES256", "nonce": nonce, "url": url});
        match kid {
            Some(kid) => protected["kid"] = kid.into(),
            None => protected["jwk"] = self.jwk.clone(),
        }
        let rng = SystemRandom::new();
        jws(&protected, payload, |input| {
            self.pair.sign(&rng, input).map(|it| it.as_ref().to_vec())
        })
        .map(|jws| jws.to_string())
    }

    /// A request to replace the account's key by this one (RFC 8555, section 7.3.5), signed by this one.
    pub(crate) fn succeed(
        &self,
        old: &Self,
        account: &str,
        url: &str,
    ) -> Result<Value, Unspecified> {
        let protected = json!({"alg": "ES256", "jwk": self.jwk, "url": url});
        let payload = json!({"account": account, "oldKey": old.jwk}).to_string();
        let rng = SystemRandom::new();
        jws(&protected, payload.as_bytes(), |input| {
            self.pair.sign(&rng, input).map(|it| it.as_ref().to_vec())
        })
    }

    /// An external account binding (RFC 8555, section 7.3.4): HS256 over this key's public half.
    pub(crate) fn bind(&self, kid: &str, hmac_key: &[u8], url: &str) -> Result<Value, Unspecified> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, hmac_key);
        let protected = json!({"alg": "HS256", "kid": kid, "url": url});
        jws(&protected, self.jwk.to_string().as_bytes(), |input| {
            Ok(hmac::sign(&key, input).as_ref().to_vec())
        })
    }
}

impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccountKey({})", self.thumbprint)
    }
}

/// A flattened JWS (RFC 7515, section 7.2.2).
fn jws(
    protected: &Value,
    payload: &[u8],
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, Unspecified>,
) -> Result<Value, Unspecified> {
    let (protected, payload) = (BASE64.encode(protected.to_string()), BASE64.encode(payload));
    let signature = BASE64.encode(sign(format!("{protected}.{payload}").as_bytes())?);
    Ok(json!({"protected": protected, "payload": payload, "signature": signature}))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    fn decoded(jws: &Value, member: &str) -> Vec<u8> {
        BASE64.decode(jws[member].as_str().unwrap()).unwrap()
    }

    #[test]
    fn a_request_verifies_with_the_public_key() {
        let key = AccountKey::generate().unwrap();
        let same = AccountKey::from_pkcs8(key.pkcs8()).unwrap();
        assert_eq!(key.thumbprint, same.thumbprint);

        let body = key
            .sign(
                Some("https://ca/acct/1"),
                "nonce",
                "https://ca/order",
                b"{}",
            )
            .unwrap();
        let body: Value = serde_json::from_str(&body).unwrap();
        let input = format!(
            "{}.{}",
            body["protected"].as_str().unwrap(),
            body["payload"].as_str().unwrap()
        );
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, same.pair.public_key().as_ref())
            .verify(input.as_bytes(), &decoded(&body, "signature"))
            .unwrap();
        let protected: Value = serde_json::from_slice(&decoded(&body, "protected")).unwrap();
        assert_eq!(
            protected,
            json!({"alg": "ES256", "kid": "https://ca/acct/1", "nonce": "nonce", "url": "https://ca/order"})
        );
        assert_eq!(decoded(&body, "payload"), b"{}");
    }
}
