//! What a CA offers, and where (RFC 8555, section 7.1.1).
//!
//! Unknown members are ignored: CAs add some, Let's Encrypt a random one to enforce that.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::acme::transport::body;

/// The directory object of a CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// URL of new nonces.
    pub new_nonce: String,
    /// URL of new accounts.
    pub new_account: String,
    /// URL of new orders.
    pub new_order: String,
    /// URL of revocations.
    pub revoke_cert: Option<String>,
    /// URL of key changes.
    pub key_change: Option<String>,
    /// URL of renewal information (RFC 9773, section 4.1); `None`: this CA has none.
    pub renewal_info: Option<String>,
    /// About the CA.
    pub meta: DirectoryMeta,
}

/// The `meta` member of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryMeta {
    /// Terms of service; registering means agreement.
    pub terms_of_service: Option<String>,
    /// The CA's website, for people.
    pub website: Option<String>,
    /// Names for this CA in a CAA record (RFC 8659).
    pub caa_identities: Vec<String>,
    /// Whether accounts need an external account binding.
    pub external_account_required: bool,
    /// Profiles with their descriptions (draft-ietf-acme-profiles).
    pub profiles: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Directory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Value::deserialize(deserializer)?;
        let needed = |member| {
            let missing = || D::Error::custom(format_args!("a directory without {member}"));
            body::text(&json, member).ok_or_else(missing)
        };
        Ok(Self {
            new_nonce: needed("newNonce")?,
            new_account: needed("newAccount")?,
            new_order: needed("newOrder")?,
            revoke_cert: body::text(&json, "revokeCert"),
            key_change: body::text(&json, "keyChange"),
            renewal_info: body::text(&json, "renewalInfo"),
            meta: json
                .get("meta")
                .map(DirectoryMeta::read)
                .unwrap_or_default(),
        })
    }
}

impl DirectoryMeta {
    fn read(json: &Value) -> Self {
        let profiles = json.get("profiles").and_then(Value::as_object);
        let profiles = profiles.into_iter().flatten();
        let profiles = profiles.map(|(name, about)| {
            let about = about.as_str().unwrap_or_default();
            (name.clone(), about.to_owned())
        });
        Self {
            terms_of_service: body::text(json, "termsOfService"),
            website: body::text(json, "website"),
            caa_identities: body::texts(json, "caaIdentities"),
            external_account_required: body::flag(json, "externalAccountRequired"),
            profiles: profiles.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_missing_members_are_no_error() {
        let directory: Directory = serde_json::from_str(
            r#"{"newNonce": "https://ca/n", "newAccount": "https://ca/a", "newOrder": "https://ca/o",
                "qVbVBzkUi6E": "https://community.letsencrypt.org/t/33417",
                "meta": {"externalAccountRequired": true, "caaIdentities": ["ca.example"], "profiles": {"shortlived": "6 days"}}}"#,
        )
        .unwrap();
        assert!(directory.meta.external_account_required);
        assert_eq!(directory.meta.profiles["shortlived"], "6 days");
        assert_eq!(directory.renewal_info, None);
    }
}
