//! What a CA wants proven for one name, and how (RFC 8555, sections 7.1.4 and 7.1.5).

use instant_acme::{AuthorizationStatus, ChallengeStatus, ChallengeType};
use serde::Deserialize;
use serde_json::Value;

use super::jws::AccountKey;
use super::problem::{Problem, Subproblem};

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
}

impl State {
    /// What is left to prove, for the holder of `key`.
    pub(super) fn pending(&self, url: &str, key: &AccountKey) -> Authorization {
        let challenge = |it: &ChallengeState| Challenge {
            kind: it.r#type.clone(),
            token: it.token.clone(),
            url: it.url.clone(),
            key_authorization: key.authorize(&it.token),
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
                {"type": "dns-persist-01", "url": "https://ca/1", "status": "pending", "issuer-domain-names": []},
                {"type": "dns-01", "url": "https://ca/2", "status": "invalid", "token": "t", "error": {"detail": "no"}},
                {"type": "http-01", "url": "https://ca/3", "status": "invalid", "token": "t", "error": "odd"},
            ],
        }))
        .unwrap();
        let key = AccountKey::generate().unwrap();
        let pending = state.pending("https://ca/authz", &key);
        assert_eq!(pending.name, "*.example.com");
        assert_eq!(
            pending.challenges[0].kind,
            ChallengeType::Unknown("dns-persist-01".to_owned())
        );
        assert_eq!(pending.challenges[1].key_authorization, key.authorize("t"));
        let problems: Vec<_> = state
            .problems()
            .map(|it| it.name + ": " + &it.detail)
            .collect();
        assert_eq!(problems, ["*.example.com: no"]);
    }
}
