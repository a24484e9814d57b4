//! A pair as the data of a Secret: `tls.crt` and `tls.key`, and the requested `outputs`.
//!
//! Input is a checked chain and its key. Every value is a buffer that clears itself, reserved in one piece, so that no
//! partial copy of a key stays in memory.

use zeroize::Zeroizing;

use super::data_keys::TLS_TYPE;
use super::outputs::{Output, Part};
use crate::certificate;
use crate::certificate::key::{KeyError, PrivateKey};
use crate::certificate::pair::Chain;
use crate::secret::object::full::Data;

/// The groups of RFC 7919, A.1 to A.3, as OpenSSL prints them (`genpkey -genparam -algorithm DH`).
/// They are public and meant to be shared: a group of one's own would be no better and takes minutes.
const FFDHE2048: &str = include_str!("ffdhe2048.pem");
const FFDHE3072: &str = include_str!("ffdhe3072.pem");
const FFDHE4096: &str = include_str!("ffdhe4096.pem");

/// Name of the entry in a PKCS#12 file; keytool wants one.
const ALIAS: &str = "certificate";

/// The data made from a pair, and what could not be made.
#[derive(Default)]
pub struct Rendered {
    /// By key of the Secret's data.
    pub data: Data,
    /// Names of outputs that are left as they are: PKCS#12 without a password. An Event reports them, and nothing else
    /// stops.
    pub left_out: Vec<Box<str>>,
}

/// The data of a Secret of type `kind` with these outputs.
///
/// # Errors
/// When the crypto library cannot encode the key.
pub fn render(
    kind: &str,
    outputs: &[Output],
    chain: &Chain,
    key: &PrivateKey,
    password: Option<&str>,
) -> Result<Rendered, KeyError> {
    let mut rendered = Rendered::default();
    // For other types the outputs say where the pair goes; without outputs it goes where TLS has it.
    if kind == TLS_TYPE || outputs.is_empty() {
        let usual = [("tls.crt", Part::Fullchain), ("tls.key", Part::Key)];
        for (name, part) in usual {
            rendered.data.extend(
                value(&[part], chain, key, password)?.map(|value| (name.to_owned(), value)),
            );
        }
    }
    for Output { name, parts } in outputs {
        match value(parts, chain, key, password)? {
            Some(value) => drop(rendered.data.insert(name.to_string(), value)),
            None => rendered.left_out.push(name.clone()),
        }
    }
    Ok(rendered)
}

/// The parts one after another; none if one of them cannot be written.
fn value(
    parts: &[Part],
    chain: &Chain,
    key: &PrivateKey,
    password: Option<&str>,
) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
    let mut pieces = Vec::with_capacity(parts.len());
    for part in parts {
        pieces.push(match part {
            Part::Leaf => Zeroizing::new(chain.leaf_pem().into_bytes()),
            Part::Chain => Zeroizing::new(chain.issuers_pem().into_bytes()),
            Part::Fullchain => Zeroizing::new(chain.to_pem().into_bytes()),
            Part::Key => Zeroizing::new(key.to_pem()?.as_bytes().to_vec()),
            Part::DerKey => key.to_der()?,
            Part::DerLeaf => Zeroizing::new(chain.leaf_der().to_vec()),
            Part::Ffdhe2048 => Zeroizing::new(FFDHE2048.as_bytes().to_vec()),
            Part::Ffdhe3072 => Zeroizing::new(FFDHE3072.as_bytes().to_vec()),
            Part::Ffdhe4096 => Zeroizing::new(FFDHE4096.as_bytes().to_vec()),
            Part::Pkcs12 => match password {
                Some(password) => return Ok(pkcs12(chain, &key.to_der()?, password)),
                None => return Ok(None),
            },
        });
    }
    let size = pieces.iter().map(|piece| piece.len()).sum();
    let mut joined = Zeroizing::new(Vec::with_capacity(size));
    pieces
        .iter()
        .for_each(|piece| joined.extend_from_slice(piece));
    Ok(Some(joined))
}

/// Key and chain as PKCS#12 (RFC 7292), encrypted by AES-256 and with an HMAC by SHA-256, as Java 8u301 and later read.
fn pkcs12(chain: &Chain, key: &[u8], password: &str) -> Option<Zeroizing<Vec<u8>>> {
    let ders = certificate::certificates(chain.to_pem().as_bytes()).ok()?;
    let certificates: Result<Vec<_>, _> = ders
        .iter()
        .map(|der| p12_keystore::Certificate::from_der(der))
        .collect();
    let key = p12_keystore::PrivateKey::from_der(key).ok()?;
    let id = certificate::Fingerprint::of(chain.leaf_der()).0.to_vec();
    let pair = p12_keystore::PrivateKeyChain::new(id, key, certificates.ok()?);
    let mut store = p12_keystore::KeyStore::new();
    store.add_entry(ALIAS, p12_keystore::KeyStoreEntry::PrivateKeyChain(pair));
    store.writer(password).write().ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::pair::check_pair;
    use crate::secret::data::data_keys::DataKeys;
    use crate::testing::file;

    fn rendered(kind: &str, outputs: &[(&str, &[Part])]) -> Rendered {
        let outputs: Vec<Output> = outputs
            .iter()
            .map(|(name, parts)| Output {
                name: (*name).into(),
                parts: parts.to_vec(),
            })
            .collect();
        let chain = Chain::read(&file("good.pem")).unwrap();
        render(
            kind,
            &outputs,
            &chain,
            &PrivateKey::from_pem(&file("good.key")).unwrap(),
            None,
        )
        .unwrap()
    }

    #[test]
    fn every_part_is_what_it_is_called() {
        let (full, key) = (file("good.pem"), file("good.key"));
        let (leaf, chain) = (file("x509-label.pem"), file("intermediate.pem"));
        let leaf = String::from_utf8(leaf)
            .unwrap()
            .replace("X509 ", "")
            .into_bytes();
        let all = rendered(
            TLS_TYPE,
            &[
                ("leaf", &[Part::Leaf]),
                ("chain", &[Part::Chain]),
                ("full", &[Part::Fullchain]),
                ("key", &[Part::Key]),
                ("der-key", &[Part::DerKey]),
                ("der", &[Part::DerLeaf]),
                ("haproxy", &[Part::Key, Part::Fullchain]),
                ("p12", &[Part::Pkcs12]),
                ("dh", &[Part::Leaf, Part::Ffdhe2048]),
            ],
        );
        for (name, expected) in [
            ("tls.crt", full.clone()),
            ("tls.key", key.clone()),
            ("leaf", leaf.clone()),
            ("chain", chain),
            ("full", full.clone()),
            ("key", key.clone()),
            ("der-key", file("pkcs8.der")),
            ("der", file("bare.der")),
            ("haproxy", [key, full].concat()),
            ("dh", [leaf, FFDHE2048.as_bytes().to_vec()].concat()),
        ] {
            assert_eq!(all.data[name].as_slice(), expected, "{name}");
        }
        assert_eq!((all.data.len(), &*all.left_out), (10, &["p12".into()][..]));
    }

    #[test]
    fn the_groups_are_primes_of_their_length_with_generator_2() {
        use base64::Engine as _;
        for (pem, bits) in [(FFDHE2048, 2_048), (FFDHE3072, 3_072), (FFDHE4096, 4_096)] {
            let lines = pem.lines().filter(|line| !line.starts_with("-----"));
            let der = base64::prelude::BASE64_STANDARD.decode(lines.collect::<String>());
            let der = der.unwrap();
            // RFC 7919, A: the prime begins and ends with 64 ones. Then come the generator and, from OpenSSL, a length.
            let start = der.windows(8).position(|bytes| bytes == [0xff; 8]).unwrap();
            let (prime, rest) = der[start..].split_at(bits / 8);
            assert!(prime.ends_with(&[0xff; 8]), "{bits}");
            assert_eq!(rest[..3], [2, 1, 2], "{bits}");
        }
    }

    #[test]
    fn a_pkcs12_file_opens_with_its_password_and_holds_key_and_chain() {
        let key = PrivateKey::from_pem(&file("good.key")).unwrap();
        let chain = Chain::read(&file("good.pem")).unwrap();
        let outputs = [Output {
            name: "keystore.p12".into(),
            parts: vec![Part::Pkcs12],
        }];
        let written = render(TLS_TYPE, &outputs, &chain, &key, Some("changeit")).unwrap();
        let file = &written.data["keystore.p12"];
        let open = |password| {
            let policy = p12_keystore::Pkcs12ImportPolicy::Strict;
            p12_keystore::KeyStore::from_pkcs12(file, password, policy)
        };
        let store = open("changeit").unwrap();
        let (_, pair) = store.private_key_chain().unwrap();
        assert_eq!(pair.key().as_der(), key.to_der().unwrap().as_slice());
        assert_eq!(pair.certs()[0].as_der(), chain.leaf_der());
        assert_eq!(pair.certs().len(), 2);
        assert!(open("another").is_err());
    }

    #[test]
    fn the_pair_is_found_again_where_it_was_written() {
        let parts: &[Part] = &[Part::Key, Part::Fullchain];
        for (kind, outputs, keys) in [
            (TLS_TYPE, &[][..], 2),
            (TLS_TYPE, &[("all", parts)], 3),
            ("Opaque", &[], 2),
            ("Opaque", &[("all", parts)], 1),
        ] {
            let data = rendered(kind, outputs).data;
            assert_eq!(data.len(), keys);
            let place = DataKeys::of(kind, (!outputs.is_empty()).then_some("all=key+fullchain"));
            let now = "2026-02-01T00:00:00Z".parse().unwrap();
            let pair = (&data[&*place.certificate], &data[&*place.key]);
            assert!(
                check_pair(pair.0, pair.1, now).is_ok(),
                "{kind} {outputs:?}"
            );
        }
    }
}
