//! Annotations that are well-formed and cannot work, because of what the cluster or the CA has: found when they are
//! written, and not when the next certificate comes.
//!
//! Nothing waits for these problems. What cannot be looked up is no problem, except a missing right that the annotation
//! needs.

use cert_renew_core::assess::{self, Assessment};
use cert_renew_core::config::Labels;
use cert_renew_core::schedule::due::Never;
use cert_renew_core::secret::data::outputs::Part;
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::secret::settings::{Blocks, Problem};
use cert_renew_core::secret::workload::Kind;
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::text::{error_chain, shown, similar};
use cert_renew_core::time::UnixTime;

use super::handles::Handles;
use crate::cluster::events::Reason;
use crate::cluster::namespaces;

/// The command that grants the rights for `verify`.
const ADD_ON: &str = "kubectl apply -f rbac/addons/verify.yaml";

/// What a look has found.
pub(super) struct Found {
    /// The problems, each with the reason of its Event.
    pub(super) problems: Vec<(Reason, Problem)>,
    /// Something cannot be known yet: another look later tells.
    pub(super) is_partial: bool,
}

/// The problems of a Secret's annotations that only a look at other objects shows.
pub(super) async fn problems(
    all: &Handles,
    key: &SecretRef,
    secret: &FullSecret,
    assessment: &Assessment,
) -> Found {
    let mut problems = workloads(all, key, assessment).await;
    let (profile, is_partial) = profile(all, secret, assessment);
    let others = [
        labels(all, key, secret, assessment).await,
        verify(all, key, assessment).await,
        password(secret, assessment),
        profile,
    ];
    let others = others.into_iter().flatten();
    problems.extend(others.map(|problem| (Reason::InvalidAnnotation, problem)));
    Found {
        problems,
        is_partial,
    }
}

fn problem(key: &str, value: &str, expected: String) -> Problem {
    Problem {
        key: key.into(),
        value: shown(value),
        expected,
        blocks: Blocks::Nothing,
    }
}

/// Workloads that `workloads` names and that do not exist.
async fn workloads(
    all: &Handles,
    key: &SecretRef,
    assessment: &Assessment,
) -> Vec<(Reason, Problem)> {
    let named = &assessment.settings.workloads;
    if named.is_empty() {
        return Vec::new();
    }
    let all = match all.rollouts.roller().list(&key.namespace).await {
        Ok(all) => all,
        Err(error) => {
            tracing::debug!(secret = %key, error = error_chain(&error), "the workloads are not looked up");
            return Vec::new();
        }
    };
    let missing = named
        .iter()
        .filter(|id| !all.iter().any(|it| it.id == **id));
    let missing = missing.map(|id| {
        let right = match id.kind {
            Kind::ReplicaSet => ", and the add-on role rbac/addons/eviction.yaml",
            Kind::Rollout => ", and the add-on role rbac/addons/argo-rollouts.yaml",
            _ => "",
        };
        let expected = format!(
            "expected a workload that exists in namespace {}{right}",
            key.namespace
        );
        let problem = problem(keys::WORKLOADS, &id.to_string(), expected);
        (Reason::WorkloadMissing, problem)
    });
    missing.collect()
}

/// Names that the issuer grants to labels of a namespace which this one does not have.
async fn labels(
    all: &Handles,
    key: &SecretRef,
    secret: &FullSecret,
    assessment: &Assessment,
) -> Option<Problem> {
    if !assessment.by_labels {
        return None;
    }
    let labels = match namespaces::labels(&all.shared.client, &key.namespace).await {
        Ok(labels) => labels,
        Err(error) => {
            tracing::debug!(secret = %key, error = error_chain(&error), "the labels are not looked up");
            return None;
        }
    };
    let config = all.shared.config();
    let view = (&*config, Labels::Are(&labels));
    let labelled = assess::of_full(UnixTime::now(), key, secret, view, |_| None)?;
    let refused = labelled.renewal == Err(Never::NotAllowed);
    let mut problems = labelled.problems.into_iter().filter(|_| refused);
    problems.find(|it| *it.key == *keys::NAMES && it.blocks.issue())
}

/// A Service or port of `verify` that does not exist, or may not be read.
async fn verify(all: &Handles, key: &SecretRef, assessment: &Assessment) -> Option<Problem> {
    let service = assessment.settings.verify.as_ref()?;
    let expected = match all.rollouts.roller().missing(&key.namespace, service).await {
        Ok(None) => return None,
        Ok(Some(why)) => {
            format!(
                "expected a Service of namespace {} and one of its ports: {why}",
                key.namespace
            )
        }
        Err(error) if error.is_forbidden() => {
            format!("expected the rights to read Services and pods: {ADD_ON}")
        }
        Err(error) => {
            tracing::debug!(secret = %key, error = error_chain(&error), "the Service is not looked up");
            return None;
        }
    };
    Some(problem(keys::VERIFY, &service.to_string(), expected))
}

/// A password for PKCS#12 that the Secret does not hold.
fn password(secret: &FullSecret, assessment: &Assessment) -> Option<Problem> {
    let settings = &assessment.settings;
    let name = settings.pkcs12_password_key.as_deref()?;
    let wanted = { settings.outputs.iter() }.any(|output| output.parts.contains(&Part::Pkcs12));
    let value = secret.data.get(name);
    let is_text = value.is_some_and(|bytes| std::str::from_utf8(bytes).is_ok());
    (wanted && !is_text).then(|| {
        let expected = "expected a key of this Secret's data that holds the password as text: until there is one, the \
                        PKCS#12 outputs are left out";
        problem(keys::PKCS12_PASSWORD_KEY, name, expected.to_owned())
    })
}

/// A profile that the CA does not have; and whether that is not known, as nothing has been asked of the CA yet: it is not
/// asked for this alone.
fn profile(all: &Handles, secret: &FullSecret, assessment: &Assessment) -> (Option<Problem>, bool) {
    let config = all.shared.config();
    let issuer = assess::issuer_name(&assessment.settings.issuer);
    let profile = assessment.settings.profile.as_deref();
    let Some(profile) = profile.filter(|_| config.issuer(issuer).is_some()) else {
        return (None, false);
    };
    let offered = all.renewals.issuers.known_profiles(issuer);
    let written = secret.head.annotation(keys::PROBLEMS);
    of_profile((issuer, profile), offered.as_deref(), written)
}

/// The same by what the issuer offers. While that is not known, what was written about this profile before still holds.
fn of_profile(
    (issuer, profile): (&str, &str),
    offered: Option<&[String]>,
    written: Option<&str>,
) -> (Option<Problem>, bool) {
    let of_it = |expected: String| problem(keys::PROFILE, profile, expected);
    let Some(offered) = offered else {
        let start = format!("{}: {}: ", keys::PROFILE, shown(profile));
        let mut lines = written.unwrap_or_default().lines();
        let expected = lines.find_map(|line| line.strip_prefix(&*start));
        return (expected.map(|it| of_it(it.to_owned())), true);
    };
    if offered.iter().any(|it| it == profile) {
        return (None, false);
    }
    let meant = similar::question(profile, offered.iter().map(String::as_str));
    let list = if offered.is_empty() {
        "none".to_owned()
    } else {
        offered.join(", ")
    };
    let expected = format!("expected a profile of issuer {issuer} ({list}){meant}");
    (Some(of_it(expected)), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_there_is_not_is_told_as_long_as_nothing_else_is_known() {
        let asked = |profile: &str, offered: Option<&[&str]>, written: Option<&str>| {
            let offered =
                offered.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
            let (problem, is_partial) = of_profile(("le", profile), offered.as_deref(), written);
            (problem.map(|it| it.to_string()), is_partial)
        };
        let offered = Some(&["classic", "shortlived"][..]);
        assert_eq!(asked("classic", offered, None), (None, false));
        let told = "cert-renew.io/profile: \"short-lived\": expected a profile of issuer le (classic, shortlived); did you \
                    mean shortlived?";
        let short = (Some(told.to_owned()), false);
        assert_eq!(asked("short-lived", offered, None), short);
        let none = asked("tlsserver", Some(&[]), None).0.unwrap();
        assert!(none.ends_with("issuer le (none)"), "{none}");
        // After a start, before the CA was asked for anything.
        assert_eq!(asked("short-lived", None, None), (None, true));
        let before = format!("cert-renew.io/verify: \"web:443\": expected a Service\n{told}");
        let kept = (Some(told.to_owned()), true);
        assert_eq!(asked("short-lived", None, Some(&before)), kept);
        assert_eq!(asked("shortlive", None, Some(&before)), (None, true));
    }
}
