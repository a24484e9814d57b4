//! The data keys of a Secret that hold certificate and private key.
//!
//! A `kubernetes.io/tls` Secret has `tls.crt` and `tls.key`; for any other type, the `outputs` annotation names them.
//! The annotation is read here as far as it parses, since a Secret is watched even if a part of its settings does not
//! parse.

use crate::secret::annotations::{MAX_ITEMS, SEPARATORS};

/// The type whose keys Kubernetes fixes.
pub const TLS_TYPE: &str = "kubernetes.io/tls";

/// The two keys of `data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataKeys {
    /// Holds the leaf, possibly with other content.
    pub certificate: Box<str>,
    /// Holds the private key, possibly with other content.
    pub key: Box<str>,
    /// Whether the Secret declares one of the two as DER.
    pub der: bool,
}

impl DataKeys {
    /// For a Secret of type `kind` with this `outputs` annotation.
    #[must_use]
    pub fn of(kind: &str, outputs: Option<&str>) -> Self {
        let stated = outputs.filter(|_| kind != TLS_TYPE);
        let certificate = stated.and_then(certificate_key).unwrap_or("tls.crt");
        let key = stated.and_then(private_key).unwrap_or("tls.key");
        let is_der = |(name, parts): (&str, Vec<&str>)| {
            [certificate, key].contains(&name) && parts.iter().any(|part| part.starts_with("der-"))
        };
        Self {
            certificate: certificate.into(),
            key: key.into(),
            der: stated.is_some_and(|outputs| entries(outputs).any(is_der)),
        }
    }
}

/// The output from which the leaf is read: preferably one without a key, so that the watch does not even extract a key
/// from the text. The leaf must be its first certificate.
pub(in crate::secret) fn certificate_key(outputs: &str) -> Option<&str> {
    let leads_with_leaf = |parts: &[&str]| {
        let first = parts
            .iter()
            .find(|part| ["leaf", "chain", "fullchain"].contains(part));
        first.is_some_and(|part| *part != "chain")
    };
    let of = |with_key: bool| {
        entries(outputs)
            .find(|(_, parts)| leads_with_leaf(parts) && parts.contains(&"key") == with_key)
            .map(|(name, _)| name)
    };
    let der = || {
        entries(outputs)
            .find(|(_, parts)| parts == &["der-leaf"])
            .map(|(name, _)| name)
    };
    of(false).or_else(|| of(true)).or_else(der)
}

/// The output from which the key is read: the key alone, else one that contains the key, else its DER.
fn private_key(outputs: &str) -> Option<&str> {
    let of = |test: fn(&[&str]) -> bool| {
        entries(outputs)
            .find(|(_, parts)| test(parts))
            .map(|(name, _)| name)
    };
    of(|parts| parts == ["key"])
        .or_else(|| of(|parts| parts.contains(&"key")))
        .or_else(|| of(|parts| parts == ["der-key"]))
}

/// The keys that an `outputs` annotation names: those of the pair, and as many as it may have.
pub(in crate::secret) fn named(outputs: &str) -> impl Iterator<Item = &str> {
    let pair = [certificate_key(outputs), private_key(outputs)];
    let all = entries(outputs).map(|(name, _)| name);
    pair.into_iter().flatten().chain(all.take(MAX_ITEMS))
}

/// The entries of `name=part+part, …`, without those in another form.
fn entries(outputs: &str) -> impl Iterator<Item = (&str, Vec<&str>)> {
    outputs.split(SEPARATORS).filter_map(|entry| {
        let (name, parts) = entry.split_once('=')?;
        Some((name.trim(), parts.split('+').map(str::trim).collect()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_say_where_the_pair_stands() {
        for (kind, outputs, certificate, key) in [
            (TLS_TYPE, None, "tls.crt", "tls.key"),
            (TLS_TYPE, Some("a=leaf,b=key"), "tls.crt", "tls.key"),
            ("Opaque", None, "tls.crt", "tls.key"),
            ("Opaque", Some("nonsense"), "tls.crt", "tls.key"),
            (
                "Opaque",
                Some("all.pem=key+fullchain, cert = fullchain, k=key"),
                "cert",
                "k",
            ),
            (
                "Opaque",
                Some("all.pem=key+fullchain"),
                "all.pem",
                "all.pem",
            ),
            (
                "Opaque",
                Some("ca=chain,x=chain+leaf,y=leaf + chain,d=der-key"),
                "y",
                "d",
            ),
            ("Opaque", Some("k=key,p=pkcs12"), "tls.crt", "k"),
            (
                "Opaque",
                Some("tls.pem=fullchain\nkey.pem=key\n"),
                "tls.pem",
                "key.pem",
            ),
            ("Opaque", Some("c=der-leaf,k=der-key"), "c", "k"),
        ] {
            let place = DataKeys {
                certificate: certificate.into(),
                key: key.into(),
                der: outputs.is_some_and(|outputs| outputs.contains("der-")),
            };
            assert_eq!(DataKeys::of(kind, outputs), place, "{kind} {outputs:?}");
        }
    }
}
