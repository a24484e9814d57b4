//! Whether the operator would renew a Secret once it is adopted, judged by the function that the operator judges it by.
//!
//! Input is the operator's config, as far as the caller may read it, and the Secret as the adoption would leave it. What
//! the operator would not renew has to stay with cert-manager: afterwards nobody would renew it.

use std::collections::BTreeMap;

use cert_renew_core::assess::{self, EXTERNAL};
use cert_renew_core::config::{Config, Labels, Select};
use cert_renew_core::schedule::due::Never;
use cert_renew_core::secret::data::data_keys::TLS_TYPE;
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::secret::object::keepers::Owner;
use cert_renew_core::secret::settings::{Blocks, Problem};
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::time::UnixTime;
use kube::{Client, Resource as _};

use super::plan::{Issuers, theirs};
use crate::cli::Failure;
use crate::cli::connection::cluster_config;
use crate::cli::connection::cluster_config::unknown_issuer;
use crate::cli::view::names;

/// What a Secret is judged by.
pub(super) struct Judge {
    /// None where it cannot be read, or is that of another installation: then nothing is judged.
    config: Option<Config>,
    /// Labels of the namespaces that were looked at; None where the caller may not read them.
    labels: BTreeMap<String, Option<BTreeMap<String, String>>>,
}

impl Judge {
    /// Reads the operator's config, and refuses issuers that it does not have.
    pub(super) async fn of(
        client: &Client,
        operator: &str,
        (class, issuers): (Option<&str>, &Issuers),
    ) -> Result<Self, Failure> {
        let config = cluster_config::read_if_allowed(client, operator).await?;
        let is_meant = |it: &Config| class.is_none_or(|class| *class == it.class);
        let mut config = config.filter(is_meant);
        if let Some(config) = &mut config {
            let is_unknown = |name: &&str| *name != EXTERNAL && config.issuer(name).is_none();
            if let Some(name) = issuers.ours().find(is_unknown) {
                return Err(Failure(unknown_issuer(name, config)));
            }
            // A pause ends; it says nothing about what is renewed afterwards.
            config.paused = false;
        }
        Ok(Self {
            config,
            labels: BTreeMap::new(),
        })
    }

    /// Whether the operator sees this Secret only with the label `cert-renew.io/managed`.
    pub(super) fn needs_label(&self, secret: &FullSecret) -> bool {
        let by_label = |config: &Config| config.watch.select == Select::Label;
        secret.kind != TLS_TYPE || self.config.as_ref().is_some_and(by_label)
    }

    /// Why the operator would not renew the Secret with these annotations, without cert-manager's and without the owner of
    /// this uid; None if it would.
    pub(super) async fn obstacle(
        &mut self,
        client: &Client,
        secret: FullSecret,
        certificate: &str,
        annotations: &BTreeMap<&'static str, String>,
    ) -> Result<Option<String>, Failure> {
        let Some(config) = &self.config else {
            return Ok(None);
        };
        let namespace = secret.head.namespace().to_owned();
        if config.needs_namespace_labels() && !self.labels.contains_key(&namespace) {
            let labels = names::labels(client, &namespace, config).await?;
            self.labels.insert(namespace.clone(), labels);
        }
        let labels = self.labels.get(&namespace).map(Option::as_ref);
        Ok(obstacle(
            config,
            labels,
            adopted(secret, certificate, annotations),
        ))
    }
}

/// The Secret as the adoption would leave it.
fn adopted(
    mut secret: FullSecret,
    certificate: &str,
    annotations: &BTreeMap<&'static str, String>,
) -> FullSecret {
    let metadata = secret.meta_mut();
    let notes = metadata.annotations.get_or_insert_default();
    for key in theirs(notes.clone().keys()) {
        notes.remove(key);
    }
    notes.remove(keys::PAUSED);
    let ours = annotations.iter();
    notes.extend(ours.map(|(key, value)| ((*key).to_owned(), value.clone())));
    secret.head.managed = true;
    let goes = |owner: &Owner| owner.kind == "Certificate" && owner.uid == certificate;
    secret.owners.retain(|owner| !goes(owner));
    for manager in &mut secret.managers {
        manager.names_certificate = false;
    }
    secret.head.keeper = secret.kept_for();
    secret
}

/// Why the operator would not renew this Secret. `labels` are those of its namespace: None where no rule of the config
/// asks for them, Some(None) where they may not be read.
fn obstacle(
    config: &Config,
    labels: Option<Option<&BTreeMap<String, String>>>,
    secret: FullSecret,
) -> Option<String> {
    let (namespace, name) = (secret.head.namespace(), secret.head.name());
    let watched = &config.watch.namespaces;
    if !watched.is_empty() && !watched.iter().any(|it| it == namespace) {
        return Some(format!(
            "the operator does not watch namespace {namespace}: it is not in watch.namespaces of its config"
        ));
    }
    let key = SecretRef {
        namespace: namespace.into(),
        name: name.into(),
    };
    // What may only be granted by labels that nobody here may read counts as refused.
    let none = BTreeMap::new();
    let known = labels.flatten().unwrap_or(&none);
    let judge = |labels: Labels<'_>| {
        assess::of_full(UnixTime::now(), &key, &secret, (config, labels), |_| None)
    };
    let Some(assessment) = judge(Labels::Are(known)) else {
        let class = &config.class;
        return Some(format!(
            "the operator would take it for another installation's: its class is {class} (--class {class})"
        ));
    };
    let is_refused = |never: Never| {
        matches!(
            never,
            Never::NoNames
                | Never::UnknownIssuer
                | Never::NotAllowed
                | Never::OwnedByAnother
                | Never::Immutable
        )
    };
    let refused = assessment.renewal.err().filter(|never| is_refused(*never));
    if refused.is_none() && assessment.blocked == Blocks::Nothing {
        return None;
    }
    if refused == Some(Never::NotAllowed)
        && labels == Some(None)
        && judge(Labels::NotAsked).is_some_and(|it| it.renewal.is_ok())
    {
        return Some(format!(
            "whether its names are granted depends on the labels of namespace {namespace}, which you may not read"
        ));
    }
    let blocks = |it: &&Problem| it.blocks != Blocks::Nothing;
    let problem = assessment.problems.iter().find(blocks);
    Some(match problem {
        Some(problem) => format!("the operator would not renew it: {problem}"),
        None => "the operator would not renew it: the names to ask for are unknown".into(),
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;

    const CONFIG: &str = "
issuers:
  letsencrypt:
    directory: https://a.example/
    allow:
      - {namespaces: [\"*\"], names: [\"**.never.example\"]}
";

    const PEM: &[u8] = include_bytes!("../../../../testdata/certificates/good.pem");

    /// A rule of `allow` that grants the names of the certificate to these namespaces.
    fn grants(to: &str) -> String {
        let leaf = cert_renew_core::certificate::leaf(PEM).expect("a certificate");
        let names: Vec<String> = leaf.names.iter().map(|it| format!("\"{it}\"")).collect();
        format!("      - {{{to}, names: [{}]}}", names.join(", "))
    }

    /// A Secret with the certificate; `change` is of its metadata.
    fn secret(change: &serde_json::Value) -> FullSecret {
        let certificate = STANDARD.encode(PEM);
        let mut secret = json!({
            "metadata": {"namespace": "shop", "name": "tls", "uid": "1", "resourceVersion": "1"},
            "type": TLS_TYPE, "data": {"tls.crt": certificate},
        });
        for (key, value) in change.as_object().into_iter().flatten() {
            match key.as_str() {
                "immutable" => secret[key] = value.clone(),
                _ => secret["metadata"][key] = value.clone(),
            }
        }
        serde_json::from_value(secret).expect("a Secret")
    }

    fn owner(group: &str, kind: &str, uid: &str) -> serde_json::Value {
        json!({"apiVersion": group, "kind": kind, "name": "tls", "uid": uid})
    }

    fn judged(more: &str, allow: &str, change: &serde_json::Value) -> Option<String> {
        let text = format!("{CONFIG}{allow}\n{more}");
        let config = Config::parse(&text).expect("a config");
        let ours = BTreeMap::from([(keys::ISSUER, "letsencrypt".to_owned())]);
        let labels = BTreeMap::from([("team".to_owned(), "web".to_owned())]);
        let known = config.needs_namespace_labels().then_some(Some(&labels));
        obstacle(&config, known, adopted(secret(change), "2", &ours))
    }

    #[test]
    fn what_the_operator_would_not_renew_has_its_reason() {
        let all = grants("namespaces: [shop]");
        let by_label = |team: &str| {
            grants(&format!(
                "namespaceSelector: {{matchLabels: {{team: {team}}}}}"
            ))
        };
        let none = json!({});
        let sealed =
            json!({"ownerReferences": [owner("bitnami.com/v1alpha1", "SealedSecret", "2")]});
        let ours = || owner("cert-manager.io/v1", "Certificate", "2");
        let certificate = json!({
            "ownerReferences": [ours()],
            "annotations": {"cert-manager.io/certificate-name": "tls", keys::PAUSED: "true"},
        });
        // Another Certificate owns it too, and the adoption leaves that.
        let second = owner("cert-manager.io/v1", "Certificate", "3");
        let twice = json!({"ownerReferences": [ours(), second]});
        let of_others =
            json!({"ownerReferences": [ours(), owner("example.com/v1", "Certificate", "4")]});
        let odd = json!({"annotations": {keys::KEY_TYPE: "rsa-1"}});
        let classed = json!({"annotations": {keys::CLASS: "other"}});
        for (more, allow, change, expected) in [
            ("", &*all, &none, None),
            ("paused: true", &all, &certificate, None),
            ("", "", &none, Some("issuers.letsencrypt.allow")),
            ("", &by_label("web"), &none, None),
            (
                "",
                &by_label("other"),
                &none,
                Some("issuers.letsencrypt.allow"),
            ),
            (
                "watch: {namespaces: [blog]}",
                &all,
                &none,
                Some("watch.namespaces"),
            ),
            ("class: two", &all, &none, Some("--class two")),
            ("", &all, &classed, Some("--class default")),
            ("", &all, &sealed, Some("SealedSecret tls owns it")),
            ("", &all, &twice, Some("Certificate tls owns it")),
            ("", &all, &of_others, None),
            ("", &all, &json!({"immutable": true}), Some("immutable")),
            ("", &all, &odd, Some("key-type")),
        ] {
            let found = judged(more, allow, change);
            match (&found, expected) {
                (None, None) => {}
                (Some(found), Some(expected)) => assert!(found.contains(expected), "{found}"),
                _ => panic!("{more:?} {allow:?} {change}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn what_only_unread_labels_would_grant_stays() {
        let allow = grants("namespaceSelector: {matchLabels: {team: web}}");
        let config = Config::parse(&format!("{CONFIG}{allow}\n")).expect("a config");
        let ours = BTreeMap::from([(keys::ISSUER, "letsencrypt".to_owned())]);
        let said = obstacle(&config, Some(None), adopted(secret(&json!({})), "2", &ours));
        let said = said.expect("it stays");
        assert!(said.contains("you may not read"), "{said}");
    }
}
