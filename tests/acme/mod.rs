//! The ACME client against a real Pebble in strict mode.

mod accounts;
mod certificates;

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use cert_renew::acme::{
    Action, CertId, ChallengeType, Class, Client, Credentials, Error, IssuerSettings, Order,
    OrderRequest, OrderStatus, Preference, RateLimiter, RequestInfo,
};
use cert_renew::net::bounded::serve;
use cert_renew::process::write_gate::WriteGate;
use cert_renew::solver::http01::{self, ChallengeStore};
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use test_bench::{Bench, Context as _, Pebble, PebbleOptions, Result};
use tokio::net::TcpListener;
use tokio::time::Instant;
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// Far more than Pebble needs.
const DEADLINE: Duration = Duration::from_secs(30);

/// A client with an account, and the solver that answers for it.
struct Issuer {
    client: Client,
    credentials: Credentials,
    store: ChallengeStore,
    requests: mpsc::Receiver<Action>,
    solver: SocketAddr,
    bench: &'static Bench,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.bench.edge().remove(self.solver);
    }
}

fn settings(pebble: &Pebble) -> Result<IssuerSettings> {
    Ok(IssuerSettings {
        name: "pebble".into(),
        directory: pebble.directory().to_owned(),
        contact: vec!["ops@example.com".to_owned()],
        ca_bundle: Some(fs::read(pebble.ca_bundle())?),
        eab: None,
        concurrency: 4,
        rate_limiter: RateLimiter::default(),
    })
}

async fn issuer(bench: &'static Bench, pebble: &Pebble) -> Result<Issuer> {
    let (seen, requests) = mpsc::channel();
    let observer = Arc::new(move |request: &RequestInfo<'_>| {
        // Nobody counts any more once the test is over.
        let _ = seen.send(request.action);
    });
    let client = Client::new(settings(pebble)?, observer, WriteGate::open())?;
    let fresh = Credentials::generate(pebble.directory())?;
    let credentials = client.register(&fresh).await?;
    let store = ChallengeStore::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let solver = listener.local_addr()?;
    let router = http01::router(store.clone(), http01::no_lookup());
    tokio::spawn(serve(listener, router, std::future::pending()));
    bench.edge().add(solver);
    Ok(Issuer {
        client,
        credentials,
        store,
        requests,
        solver,
        bench,
    })
}

async fn pebble(
    bench: &Bench,
    name: &str,
    change: impl FnOnce(&mut PebbleOptions),
) -> Result<Pebble> {
    let mut options = PebbleOptions {
        name: name.to_owned(),
        ..PebbleOptions::default()
    };
    change(&mut options);
    bench.start_pebble(&options).await
}

fn names(names: &[&str]) -> Result<Vec<Name>> {
    Ok(names
        .iter()
        .map(|name| name.parse())
        .collect::<Result<_, _>>()?)
}

fn csr(names: &[Name]) -> Result<Vec<u8>> {
    let mut params = CertificateParams::new(names.iter().map(Name::to_string).collect::<Vec<_>>())?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params
        .serialize_request(&KeyPair::generate()?)?
        .der()
        .to_vec())
}

impl Issuer {
    async fn order(
        &self,
        names: &[Name],
        profile: &str,
        replaces: Option<&CertId>,
    ) -> std::result::Result<Order, Error> {
        let request = OrderRequest {
            profile: Some(profile),
            replaces,
            ..OrderRequest::default()
        };
        self.client.new_order(names, request).await
    }

    async fn prove(&self, order: &mut Order) -> Result<()> {
        for authorization in order.authorizations().await? {
            let challenge = authorization
                .challenges
                .iter()
                .find(|it| it.kind == ChallengeType::Http01);
            let challenge = challenge.context("no http-01 is offered")?;
            let answer = (challenge.token.clone(), challenge.key_authorization.clone());
            self.store.set(&authorization.url, [answer])?;
            order.set_ready(challenge).await?;
        }
        Ok(())
    }

    /// Everything that is left to do for an order at any state.
    async fn finish(&self, mut order: Order, names: &[Name], chain: &Preference) -> Result<String> {
        let deadline = Instant::now() + DEADLINE;
        if order.status() == OrderStatus::Pending {
            self.prove(&mut order).await?;
            order.wait_validated(deadline, |_| {}).await?;
        }
        if order.status() == OrderStatus::Ready {
            order.finalize(&csr(names)?).await?;
        }
        order.wait_issued(deadline).await?;
        Ok(order.certificate(chain).await?)
    }

    async fn issue(&self, names: &[Name]) -> Result<String> {
        let order = self.order(names, "default", None).await?;
        self.finish(order, names, &Preference::Default).await
    }

    fn take_requests(&self) -> Vec<&'static str> {
        self.requests.try_iter().map(Action::as_str).collect()
    }
}

fn leaf(chain: &str) -> Result<Certificate> {
    let der = CertificateDer::from_pem_slice(chain.as_bytes())?;
    Ok(Certificate::from_der(&der)?)
}

#[tokio::test]
async fn a_renewal_costs_seven_requests_and_four_with_a_valid_authorization() -> Result<()> {
    let bench = Bench::shared().await?;
    let pebble = pebble(bench, "acme-requests", |it| it.authorization_reuse = 100).await?;
    let issuer = issuer(bench, &pebble).await?;
    let names = names(&["requests.example.com"])?;

    issuer.take_requests();
    issuer.issue(&names).await?;
    let fresh = issuer.take_requests();
    issuer.issue(&names).await?;
    let valid = issuer.take_requests();
    eprintln!(
        "fresh authorization: {} requests: {}",
        fresh.len(),
        fresh.join(" ")
    );
    eprintln!(
        "valid authorization: {} requests: {}",
        valid.len(),
        valid.join(" ")
    );
    assert_eq!(
        fresh,
        [
            "newOrder",
            "authorization",
            "challenge",
            "order",
            "finalize",
            "order",
            "certificate"
        ]
    );
    assert_eq!(valid, ["newOrder", "finalize", "order", "certificate"]);
    Ok(())
}

#[tokio::test]
async fn names_addresses_and_profiles_are_issued_as_asked() -> Result<()> {
    let bench = Bench::shared().await?;
    let issuer = issuer(bench, bench.pebble()).await?;
    let wanted = names(&[
        "a.profiles.example.com",
        "b.profiles.example.com",
        "127.0.0.1",
    ])?;
    let order = issuer.order(&wanted, "shortlived", None).await?;
    let chain = issuer.finish(order, &wanted, &Preference::Default).await?;

    let leaf = leaf(&chain)?;
    let validity = leaf.tbs_certificate().validity();
    let lifetime = validity.not_after.to_unix_duration() - validity.not_before.to_unix_duration();
    assert_eq!(lifetime.as_secs().div_ceil(86_400), 6);
    let (_, san) = leaf
        .tbs_certificate()
        .get_extension::<x509_cert::ext::pkix::SubjectAltName>()?
        .context("no subject alternative names")?;
    assert_eq!(san.0.len(), 3, "{san:?}");

    let error = issuer.order(&wanted, "unheard-of", None).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.class()),
        ("InvalidProfile", Class::Permanent),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn three_of_ten_nonces_rejected_stop_nothing() -> Result<()> {
    let bench = Bench::shared().await?;
    let pebble = pebble(bench, "acme-nonces", |it| it.nonce_reject = 30).await?;
    let issuer = issuer(bench, &pebble).await?;
    for n in 0..6 {
        issuer
            .issue(&names(&[&format!("nonce-{n}.example.com")])?)
            .await?;
    }
    let requests = issuer.take_requests();
    eprintln!("{} requests for six certificates", requests.len());
    assert!(requests.len() > 6 * 7 + 3, "no nonce was rejected");
    Ok(())
}

#[tokio::test]
async fn an_order_is_taken_up_at_every_state() -> Result<()> {
    let bench = Bench::shared().await?;
    let issuer = issuer(bench, bench.pebble()).await?;
    let names = names(&["resume.example.com"])?;
    let deadline = Instant::now() + DEADLINE;

    let url = issuer
        .order(&names, "default", None)
        .await?
        .url()
        .to_owned();
    // A restart has nothing but the credentials and the URL.
    let client = Client::new(
        settings(bench.pebble())?,
        Arc::new(|_| {}),
        WriteGate::open(),
    )?;
    client.restore(&Credentials::from_json(&issuer.credentials.to_json()?)?)?;

    let mut order = client.resume(&url, &[]).await?;
    assert_eq!(order.status(), OrderStatus::Pending);
    assert!(
        order
            .expires()
            .is_some_and(|expires| expires > UnixTime::now())
    );
    issuer.prove(&mut order).await?;

    // Told twice that the proof is there, as after a crash in between.
    let mut order = client.resume(&url, &[]).await?;
    issuer.prove(&mut order).await?;
    order.wait_validated(deadline, |_| {}).await?;

    let mut order = client.resume(&url, &[]).await?;
    assert_eq!(order.status(), OrderStatus::Ready);
    assert!(
        order.authorizations().await?.is_empty(),
        "nothing is left to prove"
    );
    let csr = csr(&names)?;
    order.finalize(&csr).await?;

    // The answer to finalize was lost.
    order.finalize(&csr).await?;
    let mut order = client.resume(&url, &[]).await?;
    order.wait_issued(deadline).await?;
    let chain = order.certificate(&Preference::Default).await?;

    let order = client.resume(&url, &[]).await?;
    assert_eq!(order.status(), OrderStatus::Valid);
    assert_eq!(order.certificate(&Preference::Default).await?, chain);

    let error = client.resume(&format!("{url}x"), &[]).await.unwrap_err();
    assert!(error.is_gone(), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_failed_validation_names_the_name_and_the_reason() -> Result<()> {
    let bench = Bench::shared().await?;
    let issuer = issuer(bench, bench.pebble()).await?;
    let names = names(&["good.failed.example.com", "bad.failed.example.com"])?;
    let mut order = issuer.order(&names, "default", None).await?;
    for authorization in order.authorizations().await? {
        let http01 = authorization
            .challenges
            .iter()
            .find(|it| it.kind == ChallengeType::Http01);
        let challenge = http01.context("no http-01 is offered")?;
        if authorization.name.starts_with("good") {
            let answer = (challenge.token.clone(), challenge.key_authorization.clone());
            issuer.store.set("good", [answer])?;
        }
        order.set_ready(challenge).await?;
    }
    let error = order
        .wait_validated(Instant::now() + DEADLINE, |_| {})
        .await
        .unwrap_err();
    eprintln!("{error}");
    assert_eq!(
        (error.reason(), error.class()),
        ("Unauthorized", Class::FixIt),
        "{error}"
    );
    assert!(
        error.detail().contains("bad.failed.example.com: "),
        "{error}"
    );
    assert!(
        !error.detail().contains("good.failed.example.com: "),
        "{error}"
    );

    // An order that is given up leaves no pending authorization behind.
    let mut order = issuer.order(&names, "default", None).await?;
    order.abandon().await?;
    let error = order.authorizations().await.unwrap_err();
    assert_eq!(error.reason(), "OrderInvalid", "{error}");
    Ok(())
}

#[tokio::test]
async fn a_deadline_is_kept_and_the_order_stays() -> Result<()> {
    let bench = Bench::shared().await?;
    let issuer = issuer(bench, bench.pebble()).await?;
    let names = names(&["deadline.example.com"])?;
    let mut order = issuer.order(&names, "default", None).await?;
    let started = Instant::now();
    let error = order
        .wait_validated(started + Duration::from_millis(500), |_| {})
        .await
        .unwrap_err();
    assert!(
        (400..3_000).contains(&started.elapsed().as_millis()),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(
        (error.reason(), error.class()),
        ("Unfinished", Class::Transient),
        "{error}"
    );
    assert_eq!(
        issuer.client.resume(order.url(), &[]).await?.status(),
        OrderStatus::Pending
    );
    Ok(())
}

#[tokio::test]
async fn orders_run_beside_each_other() -> Result<()> {
    let bench = Bench::shared().await?;
    let issuer = issuer(bench, bench.pebble()).await?;
    let issue = async |n: usize| {
        issuer
            .issue(&names(&[&format!("many-{n}.example.com")])?)
            .await
    };
    let issued = futures::future::try_join_all((0..6).map(issue)).await;
    bench.pebble().health().await?;
    assert_eq!(issued?.len(), 6);
    Ok(())
}
