//! What a CA offers, and where (RFC 8555, section 7.1.1).
//!
//! Members that are not known here are ignored: CAs add some, Let's Encrypt a random one to make sure of it.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The directory object of a CA.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Directory {
    /// Where nonces come from.
    pub new_nonce: String,
    /// Where accounts are made.
    pub new_account: String,
    /// Where orders are made.
    pub new_order: String,
    /// Where certificates are revoked.
    pub revoke_cert: Option<String>,
    /// Where an account's key is changed.
    pub key_change: Option<String>,
    /// Where renewal windows are asked for (RFC 9773, section 4.1); `None`: this CA has none.
    pub renewal_info: Option<String>,
    /// About the CA.
    #[serde(default)]
    pub meta: Meta,
}

/// The `meta` member of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Registering means to agree to these.
    pub terms_of_service: Option<String>,
    /// Of the CA, for people.
    pub website: Option<String>,
    /// What a CAA record may name to allow this CA (RFC 8659).
    pub caa_identities: Vec<String>,
    /// Whether accounts need an external account binding.
    pub external_account_required: bool,
    /// Name and description (draft-ietf-acme-profiles).
    pub profiles: BTreeMap<String, String>,
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
