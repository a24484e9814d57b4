//! Which certificate it is: the chain that is chosen, when it is to be replaced, and by which one.

use std::time::Duration;

use cert_renew::acme::ari::choose_instant;
use cert_renew::acme::{CertId, OrderRequest, Preference};
use cert_renew_core::time::UnixTime;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use test_bench::{Bench, Context as _, Result, ensure};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::AuthorityKeyIdentifier;

use super::{issuer, leaf, names};

fn certificate_id(chain: &str) -> Result<CertId> {
    let leaf = leaf(chain)?;
    let (_, key_id) = leaf
        .tbs_certificate()
        .get_extension::<AuthorityKeyIdentifier>()?
        .context("no key identifier")?;
    let key_id = key_id.key_identifier.context("no key identifier")?;
    Ok(CertId::new(
        key_id.as_bytes(),
        leaf.tbs_certificate().serial_number().as_bytes(),
    ))
}

#[tokio::test]
async fn a_chain_is_chosen_by_its_root() -> Result<()> {
    let bench = Bench::shared().await?;
    let issuer = issuer(bench, bench.pebble()).await?;
    let names = names(&["chains.example.com"])?;
    let url = {
        let order = issuer.order(&names, "default", None).await?;
        let url = order.url().to_owned();
        issuer.finish(order, &names, &Preference::Default).await?;
        url
    };
    let order = issuer.client.resume(&url, &[]).await?;
    for n in [0, 1] {
        let root = leaf(&bench.pebble().root(n).await?)?;
        let subject = root
            .tbs_certificate()
            .subject()
            .common_name()?
            .context("no common name")?;
        let chain = order
            .certificate(&Preference::Root(subject.value().into_owned()))
            .await?;
        let top = CertificateDer::pem_slice_iter(chain.as_bytes())
            .last()
            .context("no certificate")??;
        let issuer = Certificate::from_der(&top)?
            .tbs_certificate()
            .issuer()
            .to_string();
        assert_eq!(
            issuer,
            root.tbs_certificate().subject().to_string(),
            "chain {n}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn renewal_information_is_asked_and_replacements_are_named() -> Result<()> {
    let bench = Bench::shared().await?;
    let issuer = issuer(bench, bench.pebble()).await?;
    let names = names(&["ari.example.com"])?;
    let chain = issuer.issue(&names).await?;
    let id = certificate_id(&chain)?;
    let now = UnixTime::now();

    let poll = issuer
        .client
        .renewal_info(&id, 0, now)
        .await?
        .context("Pebble has ARI")?;
    let window = poll.window.context("no window")?;
    assert!(window.start > now && poll.trouble.is_none(), "{poll:?}");
    assert_eq!(poll.again.since(now), Duration::from_secs(6 * 3_600));
    let chosen = choose_instant(window, &id);
    ensure!(
        window.start <= chosen && chosen < window.end,
        "{chosen} is outside of {window:?}"
    );

    let inverted =
        r#"{"suggestedWindow": {"start": "2030-01-02T00:00:00Z", "end": "2030-01-01T00:00:00Z"}}"#;
    bench.pebble().set_renewal_info(&chain, inverted).await?;
    let poll = issuer
        .client
        .renewal_info(&id, 0, now)
        .await?
        .context("Pebble has ARI")?;
    assert!(poll.window.is_none() && poll.trouble.is_some(), "{poll:?}");
    let unknown = CertId::new(b"nobody's", b"\x01");
    let poll = issuer
        .client
        .renewal_info(&unknown, 0, now)
        .await?
        .context("Pebble has ARI")?;
    assert_eq!(
        (poll.window, poll.again.since(now)),
        (None, Duration::from_secs(6 * 3_600)),
        "{poll:?}"
    );

    // A replacement counts once its order is finalized; the second is refused, and ordered without.
    let order = issuer.order(&names, "default", Some(&id)).await?;
    assert!(order.replaces_accepted());
    issuer.finish(order, &names, &Preference::Default).await?;
    let order = issuer.order(&names, "default", Some(&id)).await?;
    assert!(!order.replaces_accepted());
    order.abandon().await?;
    let order = issuer
        .client
        .new_order(
            &names,
            OrderRequest {
                profile: Some("default"),
                replaces: Some(&unknown),
                ..OrderRequest::default()
            },
        )
        .await?;
    assert!(!order.replaces_accepted());
    order.abandon().await?;
    Ok(())
}
