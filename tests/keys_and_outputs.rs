//! Keys as they are found, and every file that the systems before this one have left to workloads.

use std::collections::BTreeMap;

use cert_renew_core::certificate::key::PrivateKey;
use k8s_openapi::ByteString;
use kube::api::{Patch, PatchParams};
use p12_keystore::{KeyStore, Pkcs12ImportPolicy};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use test_bench::objects::{Pair, Space};
use test_bench::{Bench, Context as _, Operator, Result, ensure, eventually};

use crate::renewal::{SOON, annotation, data, leaf, options, renewed};

/// A key file that OpenSSL has written, with a certificate by that key.
fn found(file: &str, name: &str) -> Result<Pair> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/certificates/");
    let key = std::fs::read_to_string(format!("{path}{file}"))?;
    let read = PrivateKey::from_pem(key.as_bytes())?.to_pem()?;
    let pair = KeyPair::from_pem(&read)?;
    let certificate = CertificateParams::new([name.to_owned()])?.self_signed(&pair)?;
    let certificate = certificate.pem();
    Ok(Pair { certificate, key })
}

/// Many programs read PKCS#1 or SEC1 only (certbot #10131, rancher #13156): a key that is kept keeps its file.
#[tokio::test]
async fn a_key_that_is_kept_is_taken_in_whatever_file_it_is_found() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "found", operator.namespace()).await?;
    let kinds = [
        ("pkcs1.key", "BEGIN RSA PRIVATE KEY"),
        ("ec-parameters.key", "BEGIN EC PARAMETERS"),
        ("sec1-p384.key", "BEGIN EC PRIVATE KEY"),
        ("rsa-3072.key", "BEGIN PRIVATE KEY"),
    ];
    let annotations = [("issuer", "pebble"), ("key-rotation", "never")];
    let mut made = Vec::new();
    for (file, header) in kinds {
        let pair = found(file, &format!("{file}.example"))?;
        ensure!(pair.key.contains(header), "{file} is no such file");
        space.tls_secret(file, Some(&pair), &annotations).await?;
        made.push((file, pair));
    }
    for (
        name,
        Pair {
            certificate: old,
            key,
        },
    ) in made
    {
        let new = renewed(&space, name, &old).await?;
        let before = cert_renew_core::certificate::leaf(old.as_bytes())?;
        assert_eq!(leaf(&new)?.public_key, before.public_key, "{name}");
        assert_eq!(data(&new, "tls.key"), key, "{name} is in another form");
    }
    Ok(())
}

/// Clients have pinned the key, or a TLSA record names it (cert-manager #7723, solanum #453).
#[tokio::test]
async fn a_key_that_is_to_be_kept_is_used_whatever_its_kind_or_nothing_is_ordered() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "tokeep", operator.namespace()).await?;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/certificates/");
    // A key without a certificate, beside what new keys would be; kinds that no new key is made of; one that is encrypted.
    let rows = [
        ("alone", "rsa-3072.key", true, None),
        ("other", "rsa-3072.key", false, Some("ecdsa-p256")),
        ("ed25519", "ed25519.key", true, None),
        ("encrypted", "encrypted.key", true, None),
    ];
    let mut made = Vec::new();
    for (name, file, alone, kind) in rows {
        let host = format!("{name}.tokeep.example");
        let key = std::fs::read_to_string(format!("{path}{file}"))?;
        let pair = if alone {
            Pair {
                certificate: String::new(),
                key: key.clone(),
            }
        } else {
            found(file, &host)?
        };
        let mut annotations = vec![
            ("issuer", "pebble"),
            ("names", &*host),
            ("key-rotation", "never"),
        ];
        annotations.extend(kind.map(|kind| ("key-type", kind)));
        space.tls_secret(name, Some(&pair), &annotations).await?;
        made.push((name, pair));
    }
    for (name, pair) in made {
        let (secret, said) =
            eventually(SOON, &format!("{name} is renewed or refused"), async || {
                let secret = space.secrets().get(name).await?;
                let said =
                    annotation(&secret, "state.cert-renew.io/last-error").map(ToOwned::to_owned);
                let is_new = data(&secret, "tls.crt") != pair.certificate;
                ensure!(is_new || said.is_some(), "neither");
                Ok((secret, said))
            })
            .await?;
        match PrivateKey::from_pem(pair.key.as_bytes()) {
            Ok(own) => {
                let key = PrivateKey::from_pem(data(&secret, "tls.key").as_bytes())?;
                assert_eq!(key.public_key(), own.public_key(), "{name}: {said:?}");
                // Pebble gives no certificate for Ed25519.
                ensure!(said.is_none() || name == "ed25519", "{name}: {said:?}");
            }
            Err(_) => {
                assert_eq!(data(&secret, "tls.key"), pair.key, "{name}");
                let said = said.context("it is not told")?;
                ensure!(said.contains("key-rotation is never"), "{said}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_opaque_secret_has_every_file_that_the_systems_before_wrote() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "files", operator.namespace()).await?;
    let outputs = "proxycert=fullchain, proxykey=key, tls.pem=key+fullchain, dhparam=ffdhe2048, \
                   fullchain.pem=fullchain, cert.pem=leaf, privkey.pem=key, chain.pem=chain, \
                   dhparams.pem=ffdhe2048, keystore.p12=pkcs12";
    let annotations = [
        ("issuer", "pebble"),
        ("names", "files.example"),
        ("outputs", outputs),
        ("pkcs12-password-key", "password"),
    ];
    let password = ByteString(b"changeit".to_vec());
    let given = BTreeMap::from([("password".to_owned(), password)]);
    space.secret("files", "Opaque", given, &annotations).await?;
    let label = json!({"metadata": {"labels": {"cert-renew.io/managed": "true"}}});
    let (params, patch) = (PatchParams::default(), Patch::Merge(label));
    space.secrets().patch("files", &params, &patch).await?;
    let secret = eventually(SOON, "it is issued", async || {
        let secret = space.secrets().get("files").await?;
        ensure!(!data(&secret, "proxycert").is_empty(), "it is empty");
        Ok(secret)
    })
    .await?;
    let file = |name: &str| data(&secret, name);
    let (chain, key) = (file("proxycert"), file("proxykey"));
    let now = cert_renew_core::time::UnixTime::now();
    cert_renew_core::certificate::pair::check_pair(chain.as_bytes(), key.as_bytes(), now)?;
    assert_eq!(file("tls.pem"), format!("{key}{chain}"));
    assert_eq!(
        (file("fullchain.pem"), file("privkey.pem")),
        (chain.clone(), key)
    );
    assert_eq!(file("cert.pem") + &file("chain.pem"), chain);
    assert_eq!(file("cert.pem").matches("BEGIN CERTIFICATE").count(), 1);
    ensure!(
        file("dhparam").contains("BEGIN DH PARAMETERS"),
        "no parameters"
    );
    assert_eq!(file("dhparams.pem"), file("dhparam"));
    assert_eq!(file("password"), "changeit");
    let store = secret
        .data
        .as_ref()
        .and_then(|data| data.get("keystore.p12"));
    let (store, policy) = (store.context("no keystore")?, Pkcs12ImportPolicy::Strict);
    let store = KeyStore::from_pkcs12(&store.0, "changeit", policy)?;
    ensure!(
        store.private_key_chain().is_some(),
        "no key in the keystore"
    );
    Ok(())
}

/// People add a keystore, or change its password, and wait for sixty days (cert-manager #4289, #5246, #6815).
#[tokio::test]
async fn outputs_that_are_asked_for_later_are_written_from_the_pair_that_is_there() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "outputs", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "later.outputs.example")];
    space.tls_secret("later", None, &annotations).await?;
    let issued = renewed(&space, "later", "").await?;
    let ask = |outputs: &str| {
        let outputs = json!({"cert-renew.io/outputs": outputs, "cert-renew.io/pkcs12-password-key": "password"});
        Patch::Merge(
            json!({"metadata": {"annotations": outputs}, "data": {"password": "Y2hhbmdlaXQ="}}),
        )
    };
    for outputs in [
        "tls.pem=key+fullchain",
        "tls.pem=key+fullchain, keystore.p12=pkcs12",
    ] {
        let (params, patch) = (PatchParams::default(), ask(outputs));
        space.secrets().patch("later", &params, &patch).await?;
        eventually(SOON, outputs, async || {
            let secret = space.secrets().get("later").await?;
            let names = outputs.split(", ").filter_map(|it| it.split('=').next());
            for name in names {
                let data = secret.data.as_ref().and_then(|data| data.get(name));
                ensure!(data.is_some(), "{name} is not there");
            }
            Ok(())
        })
        .await?;
    }
    // Another key of the Secret holds another password.
    let other = json!({"cert-renew.io/pkcs12-password-key": "other"});
    let other = json!({"metadata": {"annotations": other}, "stringData": {"other": "changed"}});
    let (params, patch) = (PatchParams::default(), Patch::Merge(other));
    space.secrets().patch("later", &params, &patch).await?;
    let secret = eventually(SOON, "the keystore has the other password", async || {
        let secret = space.secrets().get("later").await?;
        let store = secret
            .data
            .as_ref()
            .and_then(|data| data.get("keystore.p12"));
        let (store, policy) = (store.context("no keystore")?, Pkcs12ImportPolicy::Strict);
        let store = KeyStore::from_pkcs12(&store.0, "changed", policy)?;
        ensure!(store.private_key_chain().is_some(), "no key is in it");
        Ok(secret)
    })
    .await?;
    assert_eq!(
        data(&secret, "tls.crt"),
        data(&issued, "tls.crt"),
        "the same certificate"
    );
    assert_eq!(
        data(&secret, "tls.pem"),
        data(&issued, "tls.key") + &data(&issued, "tls.crt")
    );
    assert_eq!(operator.log()?.matches("\"ordered\"").count(), 1);
    Ok(())
}
