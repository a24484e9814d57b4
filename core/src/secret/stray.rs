//! Secrets that look as if they were meant for cert-renew, and are not managed: a misspelt `issuer`, prefix or class, an
//! `issuer` that is elsewhere, or an opt-in that was lost.
//!
//! Input: a Secret that has not opted in, or not here. Output: a text for its owner. Pure; nothing else is done to such a Secret.

use std::collections::BTreeMap;

use super::SecretRef;
use super::keys;
use super::settings::DEFAULT_CLASS;
use super::state::{IssuedBy, RolledOut};
use crate::secret::object::head::Head;
use crate::secret::settings::values::is_label;
use crate::text::{shown, similar};

/// Most annotations that a text names.
const NAMED: usize = 3;

/// Why a Secret is not managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrayReason {
    /// There are annotations of ours, and no issuer.
    NoIssuer,
    /// The prefix of an annotation is misspelt.
    Prefix,
    /// Its class is nearly ours.
    Class,
    /// It is of another class, and no installation has taken it up.
    Unserved,
    /// Its settings are to come from what declares it, and nothing has given it any.
    Undeclared,
    /// It was managed, and its opt-in is gone.
    Lost,
}

/// A Secret that is not managed although it seems to be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Why.
    pub why: StrayReason,
    /// What to tell its owner.
    pub text: String,
}

impl StrayReason {
    /// The value of the metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoIssuer => "no_issuer",
            Self::Prefix => "prefix",
            Self::Class => "class",
            Self::Unserved => "unserved",
            Self::Undeclared => "undeclared",
            Self::Lost => "lost",
        }
    }
}

/// Whether a Secret that has not opted in seems to be meant, by what stands on it. One that names an issuer has opted in,
/// perhaps to another installation, or to one whose class is misspelt. Of several installations, the one of this class
/// tells what is annotated with it, and the one of the default class what is not, and what no other has taken up: an
/// installation knows of the others only by what they write on Secrets.
#[must_use]
pub fn of(key: &SecretRef, head: &Head, class: &str) -> Option<Stray> {
    let none = BTreeMap::new();
    let annotations = head.annotations().unwrap_or(&none);
    if head.deleting {
        return None;
    }
    let served = RolledOut::read(annotations, head.uid()).is_some();
    let wanted = annotations.get(keys::CLASS).map(|it| it.trim());
    if annotations.contains_key(keys::ISSUER) {
        let wanted = wanted.filter(|wanted| *wanted != class)?;
        // One that an installation of that class serves has its record.
        if !served && is_meant(wanted, class) {
            return Some(misspelt_class(key, wanted, class));
        }
        // It would have written something on it within a minute, whatever is wrong with it.
        let is_touched = || {
            annotations
                .keys()
                .any(|it| it.starts_with(keys::STATE_PREFIX))
        };
        return (class == DEFAULT_CLASS && !is_touched()).then(|| unserved(key, wanted, class));
    }
    if wanted.unwrap_or(DEFAULT_CLASS) != class {
        return None;
    }
    // One that was handed over a moment ago is given the rest by what declares it.
    if super::declared::is_marked(head) {
        return Some(undeclared(key));
    }
    if served {
        let issued_by = IssuedBy::read(annotations);
        return Some(lost(key, issued_by.as_ref().map(|it| &*it.issuer), true));
    }
    let ours = { annotations.keys() }.filter_map(|key| key.strip_prefix(keys::PREFIX));
    let names: Vec<&str> = ours.collect();
    if names.iter().all(|name| *name == "class") {
        let state = { annotations.keys() }.filter_map(|key| key.strip_prefix(keys::STATE_PREFIX));
        let mut settings = state.filter(|name| keys::is_setting(name));
        if let Some(near) = head.near.as_deref() {
            return Some(near_miss(near));
        }
        if let Some(label) = head.label.as_deref() {
            return Some(among_the_labels(label));
        }
        if let Some(name) = settings.next() {
            return Some(among_our_notes(name));
        }
    }
    (!names.is_empty() || head.managed).then(|| without_issuer(&names))
}

/// Whether a class is nearly ours, and no other installation's that is numbered like ours.
fn is_meant(wanted: &str, class: &str) -> bool {
    let letters = |text: &str| -> String {
        let letters = text.chars().filter(|it| !it.is_ascii_digit());
        letters.collect()
    };
    wanted != class
        && similar::meant(wanted, [class]).is_some()
        && letters(wanted) != letters(class)
}

fn misspelt_class(key: &SecretRef, wanted: &str, class: &str) -> Stray {
    let SecretRef { namespace, name } = key;
    let text = format!(
        "not managed: its class is {}, and this cert-renew has the class {class}; if that is meant: kubectl -n \
         {namespace} annotate secret {name} --overwrite {}={class}",
        shown(wanted),
        keys::CLASS
    );
    let why = StrayReason::Class;
    Stray { why, text }
}

fn unserved(key: &SecretRef, wanted: &str, class: &str) -> Stray {
    let SecretRef { namespace, name } = key;
    let wanted = shown(wanted);
    let text = format!(
        "not managed: its class is {wanted}, this cert-renew has the class {class}, and no installation of that class has \
         taken it up. Does one run, and does its config say class: {wanted}? Without one: kubectl -n {namespace} annotate \
         secret {name} {}-",
        keys::CLASS
    );
    let why = StrayReason::Unserved;
    Stray { why, text }
}

fn undeclared(key: &SecretRef) -> Stray {
    let SecretRef { namespace, name } = key;
    let text = format!(
        "not managed: {} says that its settings come from a ConfigMap with the label {}, or from an Ingress with an issuer \
         whose TLS entry names it, and none has given it any: is there one, does it or its Events say what is wrong with \
         it, and is rbac/addons/declarations.yaml or rbac/addons/routes.yaml applied? kubectl -n {namespace} get configmaps \
         -l {}=true; without one: kubectl -n {namespace} annotate secret {name} {}- {}=ISSUER",
        keys::DECLARED,
        keys::CERTIFICATE_LABEL,
        keys::CERTIFICATE_LABEL,
        keys::DECLARED,
        keys::ISSUER
    );
    let why = StrayReason::Undeclared;
    Stray { why, text }
}

fn near_miss(near: &str) -> Stray {
    let name = keys::near_name(near).unwrap_or_default();
    let text = format!(
        "not managed: cert-renew does not read the annotation {near}; did you mean {}{name}?",
        keys::PREFIX
    );
    let why = StrayReason::Prefix;
    Stray { why, text }
}

fn among_the_labels(label: &str) -> Stray {
    let text = format!(
        "not managed: {label} is a label, and cert-renew reads it among the annotations: write it there"
    );
    let why = StrayReason::NoIssuer;
    Stray { why, text }
}

fn among_our_notes(name: &str) -> Stray {
    let text = format!(
        "not managed: under {} cert-renew writes, and reads no settings; did you mean {}{name}?",
        keys::STATE_PREFIX,
        keys::PREFIX
    );
    let why = StrayReason::Prefix;
    Stray { why, text }
}

fn without_issuer(ours: &[&str]) -> Stray {
    let issuer = keys::ISSUER;
    let misspelt = ours
        .iter()
        .find(|name| similar::meant(name, ["issuer"]).is_some());
    let text = match misspelt {
        Some(name) => format!(
            "not managed: there is no annotation {issuer}, and {}{name} is unknown; did you mean {issuer}?",
            keys::PREFIX
        ),
        None if ours.is_empty() => format!(
            "not managed: the label {} is there, and no annotation {issuer}, which says who renews it",
            keys::MANAGED_LABEL
        ),
        None => {
            let named = ours.iter().take(NAMED);
            let named: Vec<String> = named
                .map(|name| format!("{}{name}", keys::PREFIX))
                .collect();
            format!(
                "not managed: there is no annotation {issuer}, without which {} has no effect",
                named.join(", ")
            )
        }
    };
    let why = StrayReason::NoIssuer;
    Stray { why, text }
}

/// A Secret that was managed and has lost its opt-in. `marked`: annotations of ours still stand on it.
#[must_use]
pub fn lost(key: &SecretRef, issuer: Option<&str>, marked: bool) -> Stray {
    let SecretRef { namespace, name } = key;
    let issuer = issuer.filter(|it| is_label(it)).unwrap_or("ISSUER");
    let meant = if marked {
        format!(
            "; if it is meant, remove its annotations under {} too",
            keys::STATE_PREFIX
        )
    } else {
        String::new()
    };
    let text = format!(
        "not managed any more: the annotation {} is gone, so that nothing renews it and no change of it restarts \
         workloads. If that is not meant: kubectl -n {namespace} annotate secret {name} {}={issuer}{meant}",
        keys::ISSUER,
        keys::ISSUER
    );
    let why = StrayReason::Lost;
    Stray { why, text }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;
    use crate::secret::object::thin::ThinSecret;

    fn stray(annotations: &[(&str, &str)], managed: bool) -> Option<Stray> {
        stray_for(annotations, managed, DEFAULT_CLASS)
    }

    fn stray_for(annotations: &[(&str, &str)], managed: bool, class: &str) -> Option<Stray> {
        let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
        let labels = if managed {
            json!({"cert-renew.io/managed": "true"})
        } else {
            json!({})
        };
        let secret: ThinSecret = from_value(json!({
            "metadata": {"name": "tls", "namespace": "shop", "uid": "u", "annotations": annotations, "labels": labels},
            "type": "kubernetes.io/tls",
        }))
        .unwrap();
        let key = SecretRef {
            namespace: "shop".into(),
            name: "tls".into(),
        };
        of(&key, &secret.head, class)
    }

    #[test]
    fn of_several_installations_one_tells_it() {
        let unserved = [
            ("cert-renew.io/issuer", "le"),
            ("cert-renew.io/class", "edge"),
        ];
        let bare = [("cert-renew.io/isuer", "le")];
        let classed = [bare[0], ("cert-renew.io/class", "edge")];
        for (annotations, class, tells) in [
            (&bare[..], DEFAULT_CLASS, true),
            (&bare, "edge", false),
            (&classed, DEFAULT_CLASS, false),
            (&classed, "edge", true),
            (&unserved, DEFAULT_CLASS, true),
            (&unserved, "other", false),
            (&unserved, "edge", false),
        ] {
            let told = stray_for(annotations, false, class).is_some();
            assert_eq!(told, tells, "{annotations:?} {class}");
        }
    }

    #[test]
    fn who_is_meant_is_told_and_nobody_else() {
        for (annotations, managed, why, words) in [
            (
                &[("cert-renew.io/isuer", "le")][..],
                false,
                StrayReason::NoIssuer,
                "cert-renew.io/isuer is unknown; did you mean cert-renew.io/issuer?",
            ),
            (
                &[
                    ("cert-renew.io/names", "a.example"),
                    ("cert-renew.io/renew-now", "1"),
                ],
                false,
                StrayReason::NoIssuer,
                "without which cert-renew.io/names, cert-renew.io/renew-now has no effect",
            ),
            (
                &[],
                true,
                StrayReason::NoIssuer,
                "the label cert-renew.io/managed is there",
            ),
            (
                &[("cert-renew.io.issuer", "le")],
                false,
                StrayReason::Prefix,
                "the annotation cert-renew.io.issuer; did you mean cert-renew.io/issuer?",
            ),
            (
                &[("state.cert-renew.io/issuer", "le")],
                false,
                StrayReason::Prefix,
                "reads no settings; did you mean cert-renew.io/issuer?",
            ),
            (
                &[
                    ("cert-renew.io/issuer", "le"),
                    ("cert-renew.io/class", "defualt"),
                ],
                false,
                StrayReason::Class,
                "kubectl -n shop annotate secret tls --overwrite cert-renew.io/class=default",
            ),
            (
                &[
                    ("cert-renew.io/issuer", "le"),
                    ("cert-renew.io/class", "edge"),
                ],
                false,
                StrayReason::Unserved,
                "kubectl -n shop annotate secret tls cert-renew.io/class-",
            ),
            (
                &[("cert-renew.io/declared", "true")],
                false,
                StrayReason::Undeclared,
                "kubectl -n shop annotate secret tls cert-renew.io/declared- cert-renew.io/issuer=ISSUER",
            ),
            // What is taken off a declared Secret is put back.
            (
                &[
                    ("cert-renew.io/declared", "true"),
                    ("state.cert-renew.io/rolled-out", "none u"),
                ],
                false,
                StrayReason::Undeclared,
                "none has given it any",
            ),
            (
                &[("certrenew.io/issuer", "le")],
                false,
                StrayReason::Prefix,
                "certrenew.io/issuer; did you mean cert-renew.io/issuer?",
            ),
            (
                &[
                    ("state.cert-renew.io/rolled-out", "none u"),
                    (
                        "state.cert-renew.io/issued-by",
                        r#"{"issuer":"le","names":[]}"#,
                    ),
                ],
                false,
                StrayReason::Lost,
                "kubectl -n shop annotate secret tls cert-renew.io/issuer=le; if it is meant",
            ),
        ] {
            let found = stray(annotations, managed).unwrap();
            assert_eq!(found.why, why, "{annotations:?}");
            assert!(found.text.contains(words), "{}", found.text);
        }
        for annotations in [
            &[][..],
            &[("example.com/issuer", "le")],
            // It has opted in.
            &[("cert-renew.io/issuer", "le"), ("certrenew.io/names", "a")],
            // Another installation's, with its line; it has a name like ours.
            &[
                ("cert-renew.io/issuer", "le"),
                ("cert-renew.io/class", "default2"),
                ("state.cert-renew.io/state", "absent"),
            ],
            &[
                ("cert-renew.io/issuer", "le"),
                ("cert-renew.io/class", "defaults"),
                ("state.cert-renew.io/rolled-out", "none u"),
            ],
            &[
                ("cert-renew.io/issuer", "le"),
                ("cert-renew.io/class", "edge"),
                ("state.cert-renew.io/last-error", "dns"),
            ],
            &[
                ("cert-renew.io/isuer", "le"),
                ("cert-renew.io/class", "edge"),
            ],
            // Copied from another Secret.
            &[("state.cert-renew.io/rolled-out", "none another")],
            &[(
                "state.cert-renew.io/issued-by",
                r#"{"issuer":"le","names":[]}"#,
            )],
        ] {
            assert_eq!(stray(annotations, false), None, "{annotations:?}");
        }
        let forged = r#"{"issuer":"x; rm -rf /","names":[]}"#;
        let forged = [
            ("state.cert-renew.io/rolled-out", "none u"),
            ("state.cert-renew.io/issued-by", forged),
        ];
        let text = stray(&forged, false).unwrap().text;
        assert!(text.contains("cert-renew.io/issuer=ISSUER"), "{text}");
    }
    #[test]
    fn an_issuer_among_the_labels_is_told() {
        let secret: ThinSecret = from_value(json!({
            "metadata": {"name": "tls", "namespace": "shop", "uid": "u",
                "labels": {"app": "shop", "cert-renew.io/issuer": "le"}},
            "type": "kubernetes.io/tls",
        }))
        .unwrap();
        let key = SecretRef {
            namespace: "shop".into(),
            name: "tls".into(),
        };
        let found = of(&key, &secret.head, DEFAULT_CLASS).unwrap();
        assert!(
            found.text.contains("cert-renew.io/issuer is a label"),
            "{}",
            found.text
        );
        assert_eq!(of(&key, &secret.head, "edge"), None);
    }
}
