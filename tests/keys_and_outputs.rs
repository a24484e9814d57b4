//! Keys as they are found, and every file that the systems before this one have left to workloads.

use std::collections::BTreeMap;

use cert_renew::key::PrivateKey;
use k8s_openapi::ByteString;
use kube::api::{Patch, PatchParams};
use p12_keystore::{KeyStore, Pkcs12ImportPolicy};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use test_bench::objects::{Pair, Space};
use test_bench::{Bench, Context as _, Operator, Result, ensure, eventually};

use crate::renewal::{SOON, data, leaf, options, renewed};

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
        made.push((file, pair.certificate));
    }
    for (name, old) in made {
        let new = renewed(&space, name, &old).await?;
        let before = cert_renew::certificate::leaf(old.as_bytes())?;
        assert_eq!(leaf(&new)?.public_key, before.public_key, "{name}");
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
    let now = cert_renew::time::UnixTime::now();
    cert_renew::pair::check_pair(chain.as_bytes(), key.as_bytes(), now)?;
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
