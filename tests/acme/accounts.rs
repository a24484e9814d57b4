//! Accounts: bound to an external one, and registered again where the CA has forgotten them.

use std::sync::{Arc, mpsc};

use cert_renew::acme::{Action, Class, Client, Credentials, Eab, IssuerSettings, OrderRequest};
use cert_renew::process::write_gate::WriteGate;
use test_bench::{Bench, Context as _, Result};

use super::{issuer, names, pebble, settings};

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
