//! What a CA wants proven for one name, and how (RFC 8555, sections 7.1.4 and 7.1.5).

use instant_acme::{AuthorizationStatus, ChallengeStatus, ChallengeType};
use serde::Deserialize;
use serde_json::Value;

use super::jws::AccountKey;
use super::problem::{Problem, Subproblem};

/// As the CA calls dns-persist-01, which instant-acme does not know.
#[must_use]
pub fn dns_persist_01() -> ChallengeType {
    ChallengeType::Unknown("dns-persist-01".to_owned())
}

/// A name that the CA wants proof of control for.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// Its URL.
    pub url: String,
    /// The name, with `*.` in front where the wildcard is meant.
    pub name: String,
    /// What the CA offers; one of them suffices.
    pub challenges: Vec<Challenge>,
}

/// A way to prove control.
#[derive(Clone, Debug)]
pub struct Challenge {
    /// For example `http-01`.
    pub kind: ChallengeType,
    /// Empty for kinds that have none.
    pub token: String,
    /// Its URL.
    pub url: String,
    /// What the proof consists of (RFC 8555, section 8.1).
    pub key_authorization: String,
    /// Of dns-persist-01: what the CA calls itself in the record, as it says.
    pub issuer_domain_names: Vec<String>,
    /// Of dns-persist-01: the account that the record is to name, where the CA says so.
    pub account_uri: Option<String>,
    /// Pending until the CA is told to look.
    pub(super) status: ChallengeStatus,
}

/// The authorization object; members that are not needed may be missing or strange.
#[derive(Deserialize)]
pub(super) struct State {
    identifier: Identifier,
    pub(super) status: AuthorizationStatus,
    #[serde(default)]
    wildcard: bool,
    #[serde(default)]
    challenges: Vec<ChallengeState>,
}

#[derive(Deserialize)]
struct Identifier {
    value: String,
}

#[derive(Deserialize)]
struct ChallengeState {
    r#type: ChallengeType,
    url: String,
    #[serde(default)]
    token: String,
    status: ChallengeStatus,
    error: Option<Value>,
    #[serde(rename = "issuer-domain-names")]
    issuer_domain_names: Option<Value>,
    /// What the next draft calls them.
    #[serde(rename = "issuerDomainNames")]
    issuer_domain_names_too: Option<Value>,
    accounturi: Option<Value>,
}

impl ChallengeState {
    fn issuer_domain_names(&self) -> Vec<String> {
        let named = self.issuer_domain_names.as_ref();
        let named = named.or(self.issuer_domain_names_too.as_ref());
        let named = named.and_then(Value::as_array).into_iter().flatten();
        named.filter_map(text).collect()
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(ToOwned::to_owned)
}

impl State {
    /// What is left to prove, for the holder of `key`.
    pub(super) fn pending(&self, url: &str, key: &AccountKey) -> Authorization {
        let challenge = |it: &ChallengeState| Challenge {
            kind: it.r#type.clone(),
            token: it.token.clone(),
            url: it.url.clone(),
            key_authorization: key.authorize(&it.token),
            issuer_domain_names: it.issuer_domain_names(),
            account_uri: it.accounturi.as_ref().and_then(text),
            status: it.status,
        };
        Authorization {
            url: url.to_owned(),
            name: self.name(),
            challenges: self.challenges.iter().map(challenge).collect(),
        }
    }

    /// What the CA found wrong with each attempt.
    pub(super) fn problems(&self) -> impl Iterator<Item = Subproblem> {
        self.challenges.iter().filter_map(|challenge| {
            let Problem { kind, detail, .. } = Problem::from_json(challenge.error.as_ref()?)?;
            let name = self.name();
            Some(Subproblem { name, kind, detail })
        })
    }

    fn name(&self) -> String {
        let value = &self.identifier.value;
        if self.wildcard {
            format!("*.{value}")
        } else {
            value.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_kinds_and_strange_errors_hide_nothing() {
        let state: State = serde_json::from_value(serde_json::json!({
            "identifier": {"type": "dns", "value": "example.com"},
            "status": "pending",
            "wildcard": true,
            "challenges": [
                {"type": "dns-persist-01", "url": "https://ca/1", "status": "pending", "accounturi": "https://ca/7",
                    "issuer-domain-names": ["ca.example", 7]},
                {"type": "dns-01", "url": "https://ca/2", "status": "invalid", "token": "t", "error": {"detail": "no"}},
                {"type": "http-01", "url": "https://ca/3", "status": "invalid", "token": "t", "error": "odd"},
                {"type": "dns-persist-01", "url": "https://ca/4", "status": "pending", "accounturi": 7,
                    "issuerDomainNames": ["ca.example"]},
                {"type": "dns-persist-01", "url": "https://ca/5", "status": "pending", "issuer-domain-names": {}},
            ],
        }))
        .unwrap();
        let key = AccountKey::generate().unwrap();
        let pending = state.pending("https://ca/authz", &key);
        assert_eq!(pending.name, "*.example.com");
        let persistent = |at: usize| {
            let it = &pending.challenges[at];
            assert_eq!(it.kind, dns_persist_01());
            (it.issuer_domain_names.as_slice(), it.account_uri.as_deref())
        };
        let ca = &["ca.example".to_owned()][..];
        assert_eq!(persistent(0), (ca, Some("https://ca/7")));
        assert_eq!(persistent(3), (ca, None));
        assert_eq!(persistent(4), (&[][..], None));
        assert_eq!(pending.challenges[1].key_authorization, key.authorize("t"));
        let problems: Vec<_> = state
            .problems()
            .map(|it| it.name + ": " + &it.detail)
            .collect();
        assert_eq!(problems, ["*.example.com: no"]);
    }
}
