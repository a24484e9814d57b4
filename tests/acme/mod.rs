//! The ACME client against a real Pebble in strict mode.

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use cert_renew::acme::ari::choose_instant;
use cert_renew::acme::{
    Action, CertId, ChallengeType, Class, Client, Credentials, Eab, IssuerSettings, Order,
    OrderRequest, OrderStatus, Preference, RequestInfo, Turns,
};
use cert_renew::net::bounded::serve;
use cert_renew::process::write_gate::WriteGate;
use cert_renew::solver::http01::{self, ChallengeStore};
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use test_bench::{Bench, Context as _, Pebble, PebbleOptions, Result, ensure};
use tokio::net::TcpListener;
use tokio::time::Instant;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::AuthorityKeyIdentifier;

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
        turns: Turns::default(),
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
        let order = self
            .client
            .new_order(
                names,
                OrderRequest {
                    profile: Some("default"),
                    ..OrderRequest::default()
                },
            )
            .await?;
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
    let order = issuer
        .client
        .new_order(
            &wanted,
            OrderRequest {
                profile: Some("shortlived"),
                ..OrderRequest::default()
            },
        )
        .await?;
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

    let error = issuer
        .client
        .new_order(
            &wanted,
            OrderRequest {
                profile: Some("unheard-of"),
                ..OrderRequest::default()
            },
        )
        .await
        .unwrap_err();
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
        .client
        .new_order(
            &names,
            OrderRequest {
                profile: Some("default"),
                ..OrderRequest::default()
            },
        )
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
async fn an_external_account_is_bound_once() -> Result<()> {
    let bench = Bench::shared().await?;
    let hmac_key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let pebble = pebble(bench, "acme-eab", |it| {
        it.external_accounts
            .insert("kid-1".to_owned(), hmac_key.to_owned());
    })
    .await?;
    let client = Client::new(settings(&pebble)?, Arc::new(|_| {}), WriteGate::open())?;
    assert!(client.directory().await?.meta.external_account_required);
    let fresh = Credentials::generate(pebble.directory())?;
    let error = client.register(&fresh).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.class()),
        ("ExternalAccountRequired", Class::Permanent),
        "{error}"
    );

    let decoded = base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, hmac_key)?;
    let eab = Some(Eab {
        kid: "kid-1".to_owned(),
        hmac_key: decoded.into(),
    });
    let (seen, requests) = mpsc::channel();
    let client = Client::new(
        IssuerSettings {
            eab,
            ..settings(&pebble)?
        },
        Arc::new(move |request| seen.send((request.action, request.status)).unwrap()),
        WriteGate::open(),
    )?;
    let registered = client.register(&fresh).await?;
    assert_eq!(client.account_url().as_deref(), registered.account_url());

    // The answer was lost in a crash: the account is found by its key, the binding is not shown again.
    requests.try_iter().for_each(drop);
    let found = client.register(&fresh).await?;
    assert_eq!(found.account_url(), registered.account_url());
    assert!(
        found.contact().is_empty(),
        "the CA has not been told them this time"
    );
    let asked: Vec<_> = requests.try_iter().collect();
    assert_eq!(asked, [(Action::NewAccount, Some(200))]);
    Ok(())
}

#[tokio::test]
async fn a_failed_validation_names_the_name_and_the_reason() -> Result<()> {
    let bench = Bench::shared().await?;
    let issuer = issuer(bench, bench.pebble()).await?;
    let names = names(&["good.failed.example.com", "bad.failed.example.com"])?;
    let mut order = issuer
        .client
        .new_order(
            &names,
            OrderRequest {
                profile: Some("default"),
                ..OrderRequest::default()
            },
        )
        .await?;
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
    let mut order = issuer
        .client
        .new_order(
            &names,
            OrderRequest {
                profile: Some("default"),
                ..OrderRequest::default()
            },
        )
        .await?;
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
    let mut order = issuer
        .client
        .new_order(
            &names,
            OrderRequest {
                profile: Some("default"),
                ..OrderRequest::default()
            },
        )
        .await?;
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
async fn an_account_that_the_ca_has_forgotten_is_registered_again() -> Result<()> {
    let bench = Bench::shared().await?;
    let issuer = issuer(bench, bench.pebble()).await?;
    let names = names(&["forgotten.example.com"])?;
    let url = issuer
        .credentials
        .account_url()
        .context("not registered")?
        .to_owned();
    let json = String::from_utf8(issuer.credentials.to_json()?.to_vec())?
        .replace(&url, &format!("{url}0000"));
    let client = Client::new(
        settings(bench.pebble())?,
        Arc::new(|_| {}),
        WriteGate::open(),
    )?;
    assert_eq!(
        client
            .new_order(&names, OrderRequest::default())
            .await
            .unwrap_err()
            .class(),
        Class::AccountGone
    );
    let forgotten = Credentials::from_json(json.as_bytes())?;
    client.restore(&forgotten)?;
    let error = client
        .new_order(&names, OrderRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason(), error.class()),
        ("AccountDoesNotExist", Class::AccountGone),
        "{error}"
    );

    let registered = client.register(&forgotten.unregistered()).await?;
    assert_eq!(registered.account_url(), Some(url.as_str()));
    client
        .new_order(&names, OrderRequest::default())
        .await?
        .abandon()
        .await?;

    let moved = IssuerSettings {
        contact: vec!["new@example.com".to_owned()],
        ..settings(bench.pebble())?
    };
    let client = Client::new(moved, Arc::new(|_| {}), WriteGate::open())?;
    client.restore(&registered)?;
    let told = client
        .update_contact(&registered)
        .await?
        .context("the contact differs")?;
    assert_eq!(told.contact(), ["mailto:new@example.com"]);
    assert_eq!(client.update_contact(&told).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_chain_is_chosen_by_its_root() -> Result<()> {
    let bench = Bench::shared().await?;
    let issuer = issuer(bench, bench.pebble()).await?;
    let names = names(&["chains.example.com"])?;
    let url = {
        let order = issuer
            .client
            .new_order(
                &names,
                OrderRequest {
                    profile: Some("default"),
                    ..OrderRequest::default()
                },
            )
            .await?;
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
    let order = issuer
        .client
        .new_order(
            &names,
            OrderRequest {
                profile: Some("default"),
                replaces: Some(&id),
                ..OrderRequest::default()
            },
        )
        .await?;
    assert!(order.replaces_accepted());
    issuer.finish(order, &names, &Preference::Default).await?;
    let order = issuer
        .client
        .new_order(
            &names,
            OrderRequest {
                profile: Some("default"),
                replaces: Some(&id),
                ..OrderRequest::default()
            },
        )
        .await?;
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
