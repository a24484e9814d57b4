//! The annotations of the Secret of a cert-manager Certificate. Pure.

use std::collections::{BTreeMap, BTreeSet};

use cert_renew_core::certificate::Leaf;
use cert_renew_core::secret::keys;
use cert_renew_core::text::name::Name;
use cert_renew_core::text::shown;
use cert_renew_core::time::duration;
use kube::core::ObjectMeta;
use serde::Deserialize;

/// The relevant part of a `cert-manager.io/v1` Certificate.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Certificate {
    pub metadata: ObjectMeta,
    pub spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    pub secret_name: String,
    dns_names: Vec<String>,
    ip_addresses: Vec<String>,
    common_name: Option<String>,
    uris: Vec<String>,
    email_addresses: Vec<String>,
    #[serde(rename = "isCA")]
    is_ca: bool,
    issuer_ref: IssuerRef,
    renew_before: Option<String>,
    renew_before_percentage: Option<u8>,
    private_key: PrivateKey,
    keystores: Keystores,
    additional_output_formats: Vec<Format>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct IssuerRef {
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PrivateKey {
    rotation_policy: Option<String>,
    encoding: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Keystores {
    jks: Option<Keystore>,
    pkcs12: Option<Keystore>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Keystore {
    create: bool,
    profile: Option<String>,
    password: Option<String>,
    password_secret_ref: Option<KeyRef>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct KeyRef {
    name: String,
    key: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Format {
    r#type: String,
}

/// Maps cert-manager's issuers to ours.
#[derive(Clone, Debug, Default)]
pub(super) struct Issuers {
    by_name: BTreeMap<String, String>,
    all: Option<String>,
}

impl Issuers {
    /// `ours`, or `theirs=ours`.
    pub(super) fn read(arguments: &[String]) -> Result<Self, String> {
        let mut issuers = Self::default();
        for argument in arguments {
            let (theirs, ours) = match argument.split_once('=') {
                Some((theirs, ours)) => (Some(theirs), ours),
                None => (None, argument.as_str()),
            };
            if !cert_renew_core::secret::settings::values::is_label(ours) {
                return Err(format!(
                    "--issuer {argument:?}: expected an issuer of the operator's config, or THEIRS=OURS"
                ));
            }
            match theirs {
                Some(theirs) => _ = issuers.by_name.insert(theirs.to_owned(), ours.to_owned()),
                None => issuers.all = Some(ours.to_owned()),
            }
        }
        Ok(issuers)
    }

    /// The issuers of ours that are named.
    pub(super) fn ours(&self) -> impl Iterator<Item = &str> {
        self.by_name.values().chain(&self.all).map(String::as_str)
    }

    fn of(&self, theirs: &str) -> Option<&str> {
        let found = self.by_name.get(theirs).or(self.all.as_ref());
        found.map(String::as_str)
    }
}

/// The Secret's annotations, or why the Certificate must stay.
pub(super) fn annotations(
    certificate: &Certificate,
    leaf: &Leaf,
    issuers: &Issuers,
) -> Result<BTreeMap<&'static str, String>, String> {
    let Spec {
        secret_name,
        dns_names,
        ip_addresses,
        common_name,
        uris,
        email_addresses,
        is_ca,
        issuer_ref,
        renew_before,
        renew_before_percentage,
        private_key,
        keystores,
        additional_output_formats,
    } = &certificate.spec;
    if *is_ca {
        return Err("it is for a CA, and no ACME CA issues such".into());
    }
    if !uris.is_empty() || !email_addresses.is_empty() {
        return Err("it asks for URIs or mail addresses, which no ACME CA issues".into());
    }
    let Some(issuer) = issuers.of(&issuer_ref.name) else {
        // Foreign text: no name that is none becomes a part of a command to copy.
        let theirs = &issuer_ref.name;
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
        let named = theirs.bytes().all(is_name);
        let option = if named { theirs.as_str() } else { "THEIRS" };
        return Err(format!(
            "nothing says which issuer stands for {}: --issuer {option}=OURS",
            if named { theirs.clone() } else { shown(theirs) }
        ));
    };
    let asked = dns_names.iter().chain(ip_addresses).chain(common_name);
    for text in asked {
        let name: Name = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
        if !leaf.names.contains(&name) {
            return Err(format!(
                "cert-manager has not issued what it asks for: the Secret's certificate is not for {name}"
            ));
        }
    }
    let mut annotations = BTreeMap::from([(keys::ISSUER, issuer.to_owned())]);
    // The names and the key's type stay those of the certificate: neither needs an annotation.
    match (renew_before_percentage, renew_before) {
        (Some(percent @ 1..=99), _) => {
            annotations.insert(keys::RENEW_BEFORE, format!("{percent}%"));
        }
        // Go writes 360h0m0s, which we can read as well.
        (_, Some(text)) if duration::parse(text).is_ok_and(|before| !before.is_zero()) => {
            annotations.insert(keys::RENEW_BEFORE, text.clone());
        }
        (None, None) => {}
        (percent, text) => {
            return Err(format!(
                "its renewBefore cannot be read: {percent:?} {text:?}"
            ));
        }
    }
    if private_key.rotation_policy.as_deref() == Some("Never") {
        annotations.insert(keys::KEY_ROTATION, "never".into());
    }
    let mut outputs = Vec::new();
    for format in additional_output_formats {
        outputs.push(match format.r#type.as_str() {
            "DER" => "key.der=der-key",
            "CombinedPEM" => "tls-combined.pem=key+fullchain",
            other => return Err(format!("its output format {other:?} is not known")),
        });
    }
    if keystores.jks.as_ref().is_some_and(|store| store.create) {
        return Err("it makes a JKS keystore, which cert-renew does not".into());
    }
    if let Some(store) = keystores.pkcs12.as_ref().filter(|store| store.create) {
        let key = match (&store.password, &store.password_secret_ref) {
            (None, Some(place)) if place.name == *secret_name => place.key.clone(),
            _ => {
                return Err(format!(
                    "the password of its PKCS#12 keystore must be in the Secret itself: put it into {secret_name}"
                ));
            }
        };
        if let Some(profile) = { store.profile.as_deref() }.filter(|it| it.starts_with("Legacy")) {
            return Err(format!(
                "it asks for a PKCS#12 keystore of profile {profile}, and cert-renew encrypts by AES-256 only"
            ));
        }
        outputs.push("keystore.p12=pkcs12");
        annotations.insert(keys::PKCS12_PASSWORD_KEY, key);
    }
    if !outputs.is_empty() {
        annotations.insert(keys::OUTPUTS, outputs.join(", "));
    }
    Ok(annotations)
}

/// Changes of the files at the first renewal that a program may not expect.
pub(super) fn changes(certificate: &Certificate) -> Vec<&'static str> {
    let Spec {
        private_key,
        keystores,
        ..
    } = &certificate.spec;
    let keeps_key = private_key.rotation_policy.as_deref() == Some("Never");
    let is_modern = |store: &Keystore| store.profile.as_deref() == Some("Modern2023");
    let mut changes = Vec::new();
    if !keeps_key && private_key.encoding.as_deref() != Some("PKCS8") {
        changes.push(
            "from the first renewal on, tls.key is PKCS#8 (BEGIN PRIVATE KEY), and no longer PKCS#1 or SEC1 as cert-manager \
             writes it; with cert-renew.io/key-rotation: never the file stays as it is",
        );
    }
    if { keystores.pkcs12.as_ref() }.is_some_and(|store| store.create && !is_modern(store)) {
        changes.push(
            "from the first renewal on, keystore.p12 is encrypted by AES-256, which Java before 8u301 does not read, and \
             truststore.p12 is no longer kept",
        );
    }
    changes
}

/// The annotations and labels that cert-manager reads or writes.
pub(super) fn theirs<'a>(keys: impl IntoIterator<Item = &'a String>) -> BTreeSet<&'a str> {
    let ours = |key: &&str| {
        let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
        prefix == "cert-manager.io"
            || prefix.ends_with(".cert-manager.io")
            || *key == "kubernetes.io/tls-acme"
    };
    keys.into_iter().map(String::as_str).filter(ours).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn leaf() -> Leaf {
        let pem = include_bytes!("../../../../testdata/certificates/good.pem");
        cert_renew_core::certificate::leaf(pem).unwrap()
    }

    fn plan(spec: Value) -> Result<BTreeMap<&'static str, String>, String> {
        let mut spec = spec;
        spec["secretName"] = "tls".into();
        if spec.get("issuerRef").is_none() {
            spec["issuerRef"] = json!({"name": "prod"});
        }
        if spec.get("dnsNames").is_none() {
            spec["dnsNames"] = leaf().names.iter().map(ToString::to_string).collect();
        }
        let certificate = json!({"metadata": {"name": "tls"}, "spec": spec});
        let issuers = Issuers::read(&["prod=letsencrypt".into()]).unwrap();
        annotations(
            &serde_json::from_value(certificate).unwrap(),
            &leaf(),
            &issuers,
        )
    }

    #[test]
    fn a_certificate_becomes_the_annotations_that_say_the_same() {
        for (spec, expected) in [
            (json!({}), "issuer=letsencrypt"),
            (
                json!({"renewBefore": "360h0m0s", "privateKey": {"rotationPolicy": "Never"}}),
                "issuer=letsencrypt key-rotation=never renew-before=360h0m0s",
            ),
            (
                json!({"renewBeforePercentage": 25, "additionalOutputFormats": [{"type": "DER"}, {"type": "CombinedPEM"}]}),
                "issuer=letsencrypt outputs=key.der=der-key, tls-combined.pem=key+fullchain renew-before=25%",
            ),
            (
                json!({"keystores": {"pkcs12": {"create": true, "passwordSecretRef": {"name": "tls", "key": "password"}}}}),
                "issuer=letsencrypt outputs=keystore.p12=pkcs12 pkcs12-password-key=password",
            ),
        ] {
            let found = plan(spec.clone()).unwrap();
            let shown: Vec<String> = found
                .iter()
                .map(|(key, value)| format!("{}={value}", key.trim_start_matches(keys::PREFIX)))
                .collect();
            assert_eq!(shown.join(" "), expected, "{spec}");
            // The output can be read back as input.
            let owned = found
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()));
            let (settings, problems) = cert_renew_core::secret::settings::Settings::read(
                &owned.collect(),
                false,
                &cert_renew_core::secret::settings::NamespaceDefaults::default(),
            );
            assert!(settings.is_some() && problems.is_empty(), "{problems:?}");
        }
    }

    #[test]
    fn what_would_be_re_issued_or_lost_stays() {
        for (spec, reason) in [
            (json!({"issuerRef": {"name": "ca"}}), "--issuer ca=OURS"),
            (
                json!({"issuerRef": {"name": "\u{1b}[2J; reboot"}}),
                "stands for \"\\u{1b}[2J; reboot\": --issuer THEIRS=OURS",
            ),
            (
                json!({"dnsNames": ["other.example"]}),
                "not for other.example",
            ),
            (json!({"isCA": true}), "for a CA"),
            (json!({"uris": ["spiffe://x"]}), "URIs"),
            (json!({"keystores": {"jks": {"create": true}}}), "JKS"),
            (
                json!({"keystores": {"pkcs12": {"create": true, "passwordSecretRef": {"name": "x", "key": "y"}}}}),
                "password",
            ),
            (json!({"renewBefore": "soon"}), "renewBefore"),
        ] {
            let said = plan(spec.clone()).unwrap_err();
            assert!(said.contains(reason), "{spec}: {said}");
        }
        assert!(Issuers::read(&["Let's".into()]).is_err());
    }

    #[test]
    fn only_what_is_cert_managers_goes() {
        let keys = [
            "cert-manager.io/cluster-issuer",
            "acme.cert-manager.io/http01-edit-in-place",
            "controller.cert-manager.io/fao",
            "kubernetes.io/tls-acme",
            "kubernetes.io/ingress.class",
            "notcert-manager.io/x",
            "cert-renew.io/issuer",
        ]
        .map(ToOwned::to_owned);
        assert_eq!(
            theirs(&keys),
            BTreeSet::from_iter(keys[..4].iter().map(String::as_str))
        );
    }

    /// Old programs read PKCS#1 only, and Java 8 no AES in PKCS#12 (cert-manager #5597, gardener cert-management #637).
    #[test]
    fn what_changes_about_the_files_is_told() {
        for (spec, expected) in [
            (json!({}), vec!["tls.key is PKCS#8"]),
            (json!({"privateKey": {"encoding": "PKCS8"}}), vec![]),
            (json!({"privateKey": {"rotationPolicy": "Never"}}), vec![]),
            (
                json!({"privateKey": {"encoding": "PKCS8"}, "keystores": {"pkcs12": {"create": true}}}),
                vec!["keystore.p12 is encrypted by AES-256"],
            ),
            (
                json!({"privateKey": {"encoding": "PKCS8"}, "keystores": {"pkcs12": {"create": true, "profile": "Modern2023"}}}),
                vec![],
            ),
        ] {
            let certificate = json!({"metadata": {"name": "tls"}, "spec": spec});
            let told = changes(&serde_json::from_value(certificate).unwrap());
            assert_eq!(told.len(), expected.len(), "{told:?}");
            for (told, expected) in told.iter().zip(expected) {
                assert!(told.contains(expected), "{told}");
            }
        }
        let legacy = json!({"keystores": {"pkcs12": {"create": true, "profile": "LegacyDES", "passwordSecretRef": {"name": "tls", "key": "password"}}}});
        assert!(plan(legacy).unwrap_err().contains("LegacyDES"));
    }
}
