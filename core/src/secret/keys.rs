//! The names of annotations, labels and field managers; they are spelled only here.

use crate::text::similar;

/// Prefix of the annotations that a user writes.
pub const PREFIX: &str = "cert-renew.io/";
/// Prefix of the annotations that cert-renew writes; never read as settings.
pub const STATE_PREFIX: &str = "state.cert-renew.io/";
/// Field manager of every write; for those to workloads the config may set another.
pub const FIELD_MANAGER: &str = "cert-renew";

/// Label that opts a Secret of another type than `kubernetes.io/tls` in.
pub const MANAGED_LABEL: &str = "cert-renew.io/managed";

/// Which issuer renews; the opt-in.
pub const ISSUER: &str = "cert-renew.io/issuer";
/// Names to ask for.
pub const NAMES: &str = "cert-renew.io/names";
/// When to renew, as time or share of the remaining lifetime.
pub const RENEW_BEFORE: &str = "cert-renew.io/renew-before";
/// ACME profile.
pub const PROFILE: &str = "cert-renew.io/profile";
/// Requested lifetime of certificates.
pub const LIFETIME: &str = "cert-renew.io/lifetime";
/// Whether each renewal makes a new key.
pub const KEY_ROTATION: &str = "cert-renew.io/key-rotation";
/// Type of the key.
pub const KEY_TYPE: &str = "cert-renew.io/key-type";
/// Extra data keys.
pub const OUTPUTS: &str = "cert-renew.io/outputs";
/// Data key that holds the PKCS#12 password.
pub const PKCS12_PASSWORD_KEY: &str = "cert-renew.io/pkcs12-password-key";
/// How workloads take up the new certificate; on a workload: `none` opts it out.
pub const ROLLOUT: &str = "cert-renew.io/rollout";
/// Which parts of the Secret its workloads are restarted for.
pub const ROLLOUT_ON: &str = "cert-renew.io/rollout-on";
/// Workloads to roll although they do not refer to the Secret.
pub const WORKLOADS: &str = "cert-renew.io/workloads";
/// When Secret and workloads may change.
pub const CHANGE_WINDOW: &str = "cert-renew.io/change-window";
/// Service that must serve the new leaf.
pub const VERIFY: &str = "cert-renew.io/verify";
/// Nothing is changed while `true`.
pub const PAUSED: &str = "cert-renew.io/paused";
/// Each new value renews at once.
pub const RENEW_NOW: &str = "cert-renew.io/renew-now";
/// Fingerprint of a leaf that must no longer be trusted: a new key and certificate at once.
pub const REVOKED: &str = "cert-renew.io/revoked";
/// Name of the responsible installation.
pub const CLASS: &str = "cert-renew.io/class";
/// Its settings come from what declares it: labelled ConfigMaps, or Ingresses.
pub const DECLARED: &str = "cert-renew.io/declared";

/// Label of a ConfigMap that declares a certificate.
pub const CERTIFICATE_LABEL: &str = "cert-renew.io/certificate";
/// On a declaration: the name of its Secret, where that is another than its own.
pub const SECRET: &str = "cert-renew.io/secret";

/// Fingerprint and notAfter of the leaf that the workloads have.
pub const ROLLED_OUT: &str = "state.cert-renew.io/rolled-out";
/// Chain and CA certificates that the workloads have beside that leaf.
pub const ROLLED_OUT_WITH: &str = "state.cert-renew.io/rolled-out-with";
/// Workloads that use it and whether they have that leaf, for people.
pub const USED_BY: &str = "state.cert-renew.io/used-by";
/// Issuer and settings of the last renewal.
pub const ISSUED_BY: &str = "state.cert-renew.io/issued-by";
/// How it stands, in one line, for people.
pub const STATE: &str = "state.cert-renew.io/state";
/// Its state and since when it is in it, for people; not of one that is well, nor where dates say it.
pub const SINCE: &str = "state.cert-renew.io/since";
/// What is wrong with the annotations, one text a line, for people.
pub const PROBLEMS: &str = "state.cert-renew.io/problems";
/// Last error, for people.
pub const LAST_ERROR: &str = "state.cert-renew.io/last-error";
/// Next try, for people.
pub const RETRY_AT: &str = "state.cert-renew.io/retry-at";
/// The `renew-now` value that was served last.
pub const RENEWED_FOR: &str = "state.cert-renew.io/renewed-for";
/// The workload that halted a rollout, and the leaf.
pub const ROLLOUT_HALTED: &str = "state.cert-renew.io/rollout-halted";
/// Fingerprint of the leaf whose pair was written again in a form that servers load.
pub const REWRITTEN: &str = "state.cert-renew.io/rewritten";
/// What declares the Secret, and which settings that has given.
pub const DECLARATION: &str = "state.cert-renew.io/declaration";
/// On a pod template: `state.cert-renew.io/leaf.<secret-name>`, the leaf that the workload was rolled for.
pub const LEAF_PREFIX: &str = "state.cert-renew.io/leaf.";

/// What a user may write.
pub const SETTINGS: [&str; 20] = [
    ISSUER,
    NAMES,
    RENEW_BEFORE,
    PROFILE,
    LIFETIME,
    KEY_ROTATION,
    KEY_TYPE,
    OUTPUTS,
    PKCS12_PASSWORD_KEY,
    ROLLOUT,
    ROLLOUT_ON,
    WORKLOADS,
    CHANGE_WINDOW,
    VERIFY,
    PAUSED,
    RENEW_NOW,
    REVOKED,
    CLASS,
    DECLARED,
    MANAGED_LABEL,
];

/// The letters of our prefix.
const LETTERS: &str = "certrenewio";
/// The letters of its first label, and those of the two words the other way round.
const LABELS: [&str; 2] = ["certrenew", "renewcert"];
/// Most letters by which a near prefix differs, and by which it is longer than our name.
const NEAR: usize = 2;
/// Lengths of a prefix that is compared, in bytes.
const COMPARED: std::ops::RangeInclusive<usize> = 8..=16;
/// Longest prefix and longest name that are looked at: the API server allows names of 63 characters.
const LONGEST: usize = 63;

/// Whether a setting has this name behind our prefix.
#[must_use]
pub fn is_setting(name: &str) -> bool {
    let known = SETTINGS.iter();
    { known }.any(|key| key.strip_prefix(PREFIX) == Some(name))
}

/// Whether the prefix of an annotation is nearly ours, such as `certrenew.io/` or `cert-renew.com/`.
#[must_use]
pub fn is_near(key: &str) -> bool {
    near_name(key).is_some()
}

/// The name in a key whose prefix is nearly ours: `issuer` of `certrenew.io/issuer`, and of `cert-renew.io.issuer`.
#[must_use]
pub fn near_name(key: &str) -> Option<&str> {
    let Some((prefix, name)) = key.split_once('/') else {
        let rest = key.strip_prefix(PREFIX.trim_end_matches('/'))?;
        let name = rest.strip_prefix(['.', '-', '_'])?;
        return is_setting(name).then_some(name);
    };
    let prefix = prefix.strip_prefix("state.").unwrap_or(prefix);
    if name.is_empty() || name.len() > LONGEST || prefix.len() > LONGEST {
        return None;
    }
    let first = prefix.split('.').next().unwrap_or(prefix);
    let ours = LABELS.contains(&&*letters(first)) && is_setting(name);
    (ours || is_near_prefix(prefix)).then_some(name)
}

fn is_near_prefix(prefix: &str) -> bool {
    if !COMPARED.contains(&prefix.len()) {
        return false;
    }
    let letters = letters(prefix);
    let longer = letters.strip_prefix(LABELS[0]).map(str::len);
    longer.is_some_and(|more| more <= NEAR + 1) || similar::distance(&letters, LETTERS) <= NEAR
}

fn letters(text: &str) -> String {
    let letters = text.chars().filter(char::is_ascii_alphanumeric);
    letters.map(|it| it.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_prefix_is_recognised_and_others_are_not() {
        for near in [
            "certrenew.io/issuer",
            "cert-renew/issuer",
            "cert-renew.com/issuer",
            "cert-renew.oi/names",
            "cert_renew.io/issuer",
            "Cert-Renew.io/issuer",
            "crt-renew.io/issuer",
            "cert-renw.io/issuer",
            "state.certrenew.io/x",
            "cert-renew.io.issuer",
            "cert-renew.io-names",
            "cert-renew.k8s.io/issuer",
            "renew-cert.io/issuer",
            "certrenew.example.com/issuer",
        ] {
            assert!(is_near(near), "{near}");
        }
        let long = format!("certrenew.io/{}", "a".repeat(100));
        for other in [
            "cert-manager.io/issuer",
            "acme.cert-manager.io/http01",
            "kubernetes.io/tls",
            "kubectl.kubernetes.io/last-applied-configuration",
            "certrenew.io/",
            "certrenew",
            "certificates.io/x",
            "reloader.stakater.com/match",
            "ä-renew.io/issuer",
            "cert-renew.io.notes",
            "cert-renew.example.com/owner",
            "renew-certs.example.com/issuer",
            "",
            &long,
        ] {
            assert!(!is_near(other), "{other}");
        }
    }
}
