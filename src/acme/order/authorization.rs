//! What a CA requires as proof for one name, and how (RFC 8555, sections 7.1.4 and 7.1.5).

use instant_acme::{AuthorizationStatus, ChallengeStatus, ChallengeType};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::acme::error::problem::{Problem, Subproblem};
use crate::acme::transport::body;
use crate::acme::transport::jws::AccountKey;

/// The CA's name for dns-persist-01, which instant-acme does not know.
#[must_use]
pub fn dns_persist_01() -> ChallengeType {
    ChallengeType::Unknown("dns-persist-01".to_owned())
}

/// A name that the CA wants proof of control for.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// Its URL.
    pub url: String,
    /// The name, with `*.` in front for a wildcard.
    pub name: String,
    /// The CA's offers; one of them suffices.
    pub challenges: Vec<Challenge>,
}

/// A way to prove control.
#[derive(Clone, Debug)]
pub struct Challenge {
    /// For example `http-01`.
    pub kind: ChallengeType,
    /// Empty for kinds without a token.
    pub token: String,
    /// Its URL.
    pub url: String,
    /// The content of the proof (RFC 8555, section 8.1).
    pub key_authorization: String,
    /// For dns-persist-01: the CA's own names for itself in the record.
    pub issuer_domain_names: Vec<String>,
    /// For dns-persist-01: the account that the record must name, if the CA says so.
    pub account_uri: Option<String>,
    /// Pending until the CA is asked to look.
    pub(in crate::acme) status: ChallengeStatus,
}

/// Longest token in characters; a longer one would not fit into the paths of routes.
const LONGEST_TOKEN: usize = 256;

impl Challenge {
    /// Whether the token has the form of RFC 8555, section 8.3: it becomes a part of paths, and of objects that route
    /// them.
    #[must_use]
    pub fn has_sound_token(&self) -> bool {
        let is_base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let shortest = usize::from(self.kind != dns_persist_01());
        (shortest..=LONGEST_TOKEN).contains(&self.token.len())
            && self.token.bytes().all(is_base64url)
    }
}

#[cfg(test)]
impl Challenge {
    /// A challenge just offered by a CA.
    pub(crate) fn offered(kind: ChallengeType, token: &str) -> Self {
        Self {
            kind,
            token: token.to_owned(),
            url: String::new(),
            key_authorization: String::new(),
            issuer_domain_names: Vec::new(),
            account_uri: None,
            status: ChallengeStatus::Pending,
        }
    }
}

/// The authorization object; members that are not needed may be missing or malformed.
pub(in crate::acme) struct State {
    /// The name; empty if the CA gives none.
    identifier: String,
    pub(in crate::acme) status: AuthorizationStatus,
    wildcard: bool,
    challenges: Vec<ChallengeState>,
}

struct ChallengeState {
    kind: ChallengeType,
    url: String,
    token: String,
    status: ChallengeStatus,
    error: Option<Value>,
    issuer_domain_names: Vec<String>,
    account_uri: Option<String>,
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Value::deserialize(deserializer)?;
        let status = body::word(&json, "status").ok_or_else(|| {
            D::Error::custom("an authorization without a status that RFC 8555 knows")
        })?;
        let identifier = json.get("identifier");
        let challenges = json.get("challenges").and_then(Value::as_array);
        let challenges = challenges.into_iter().flatten();
        Ok(Self {
            identifier: { identifier.and_then(|it| body::text(it, "value")) }.unwrap_or_default(),
            status,
            wildcard: body::flag(&json, "wildcard"),
            challenges: challenges.filter_map(ChallengeState::read).collect(),
        })
    }
}

impl ChallengeState {
    /// A challenge without a type or a URL cannot be answered.
    fn read(json: &Value) -> Option<Self> {
        // The next draft of dns-persist-01 spells it differently.
        let issuers = ["issuer-domain-names", "issuerDomainNames"];
        let issuers = issuers.map(|member| body::texts(json, member));
        Some(Self {
            kind: body::word(json, "type")?,
            url: body::text(json, "url")?,
            token: body::text(json, "token").unwrap_or_default(),
            // An unknown status means that the CA is not looking yet.
            status: body::word(json, "status").unwrap_or(ChallengeStatus::Pending),
            error: body::any(json, "error"),
            issuer_domain_names: issuers
                .into_iter()
                .find(|it| !it.is_empty())
                .unwrap_or_default(),
            account_uri: body::text(json, "accounturi"),
        })
    }
}

impl State {
    /// The authorization, with the key authorizations for the holder of `key`.
    pub(in crate::acme) fn pending(&self, url: &str, key: &AccountKey) -> Authorization {
        let challenge = |it: &ChallengeState| Challenge {
            kind: it.kind.clone(),
            token: it.token.clone(),
            url: it.url.clone(),
            key_authorization: key.authorize(&it.token),
            issuer_domain_names: it.issuer_domain_names.clone(),
            account_uri: it.account_uri.clone(),
            status: it.status,
        };
        Authorization {
            url: url.to_owned(),
            name: self.name(),
            challenges: self.challenges.iter().map(challenge).collect(),
        }
    }

    /// What the CA reports about each attempt.
    pub(in crate::acme) fn problems(&self) -> impl Iterator<Item = Subproblem> {
        self.challenges.iter().filter_map(|challenge| {
            let Problem { kind, detail, .. } = Problem::from_json(challenge.error.as_ref()?)?;
            let name = self.name();
            Some(Subproblem { name, kind, detail })
        })
    }

    /// A failure without the CA's reason.
    pub(in crate::acme) fn failure(&self) -> Option<Subproblem> {
        use AuthorizationStatus::{Pending, Valid};
        let failed = !matches!(self.status, Pending | Valid);
        failed.then(|| Subproblem {
            name: self.name(),
            kind: String::new(),
            detail: format!(
                "its authorization is {:?}, and the CA does not say why",
                self.status
            )
            .to_lowercase(),
        })
    }

    /// Whether the CA has tried to validate the name and failed. An authorization also ends by its time, and when one of
    /// both sides takes it back (RFC 8555, section 7.1.6).
    pub(in crate::acme) fn was_tried(&self) -> bool {
        self.status == AuthorizationStatus::Invalid || self.problems().next().is_some()
    }

    /// The challenges to post once more: the CA has looked, found the proof insufficient, and would look again (RFC
    /// 8555, section 8.2).
    pub(in crate::acme) fn retryable(&self) -> impl Iterator<Item = &str> {
        let waits =
            |it: &&ChallengeState| it.status == ChallengeStatus::Pending && it.error.is_some();
        self.challenges.iter().filter(waits).map(|it| &*it.url)
    }

    fn name(&self) -> String {
        let value = &self.identifier;
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
