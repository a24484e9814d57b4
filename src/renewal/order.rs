//! Makes an order and writes it down, before anything that cannot be taken back.

use tokio::time::Instant;

use super::failure::Failure;
use super::fresh::Fresh;
use super::outcome::{Outcome, unproven};
use super::record::{give_back, took};
use super::{finish, limits, preflight, proof, venue};
use crate::acme;
use crate::certificate::KeyType;
use crate::cluster;
use crate::cluster::records::{self, Record};
use crate::context::Context;
use crate::index::Key;
use crate::key::PrivateKey;
use crate::metrics::RenewalStep;
use crate::name::Name;
use crate::schedule::budget;
use crate::schedule::due::{Due, Reason};
use crate::secret::settings::KeyRotation;
use crate::time::UnixTime;

/// Makes the order and its record, then goes on as after a restart.
///
/// # Errors
/// See [`Failure`]; what happens before there is a record leaves nothing behind at the CA.
pub(super) async fn order(
    context: &Context,
    key: &Key,
    fresh: Fresh,
    due: Due,
) -> Result<Outcome, Failure> {
    let names = fresh.names_to_order();
    tracing::info!(
        secret = %key, step = "due", issuer = %fresh.issuer_name, reason = due.reason.as_str(), names = ?texts(&names), "due"
    );
    let issuers = &context.issuers;
    let ready = issuers.ready(&fresh.issuer_name, &fresh.issuer).await;
    let client = ready.map_err(|error| Failure::from(error).about(&fresh))?;
    if let Some(held) = limits::held(context, key, &fresh, &client, &names).await {
        return Ok(held);
    }
    let prepared = prepare(context, key, &fresh, &client, &names).await;
    let profile = prepared.map_err(|failure| failure.about(&fresh))?;
    let proving = context.validations.begin(
        &context.ledger,
        &fresh.issuer_name,
        &names,
        &context.config().retry,
        UnixTime::now(),
    );
    let _proving = match proving {
        Ok(proving) => proving,
        Err(held) => return Ok(unproven(context, key, &fresh, held)),
    };
    let quota = fresh.issuer.orders_per_3h;
    if let Err(until) = context
        .issuers
        .take_order(&fresh.issuer_name, &key.namespace, quota)
    {
        return Ok(out_of_orders(key, &fresh, quota, until));
    }
    let started = Instant::now();
    // An order that is made and not written down would be lost.
    let step = context.gate.step().map_err(|_| Failure::Stopped)?;
    let replaced = replaced(&fresh);
    let order = client.new_order(&names, profile, replaced.as_ref()).await;
    let mut order = order.map_err(|error| Failure::from(error).about(&fresh))?;
    let begun = async {
        let proofs = proof::plan(context, &order.authorizations().await?).await?;
        let new_key = new_key(&fresh).await?;
        Ok::<_, Failure>((proofs, new_key.to_pem()?))
    };
    let (proofs, pem) = match begun.await {
        Ok(begun) => begun,
        Err(failure) => {
            give_back(&order).await;
            return Err(failure.about(&fresh));
        }
    };
    let stored = records::Order {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        uid: fresh.uid().to_owned(),
        issuer: fresh.issuer_name.to_string(),
        directory: Some(fresh.issuer.directory.clone()),
        account: client.account_url(),
        url: order.url().to_owned(),
        names,
        profile: profile.map(ToOwned::to_owned),
        reason: due.reason.as_str().to_owned(),
        expected: fresh.claim(due.reason).is_expected(UnixTime::now()),
        replaced: order.replaces_accepted(),
        created: UnixTime::now().0,
        txt: proofs.txt,
        routes: proofs.routes,
    };
    let (client, namespace) = (&context.client, &context.namespace);
    let made = records::create(client, namespace, stored, pem, proofs.challenges).await;
    let record = remember(context, key, &order, made).await?;
    drop(step);
    took(context, &record, RenewalStep::Order, started);
    let issuer = &fresh.issuer_name;
    tracing::info!(secret = %key, step = "order", %issuer, order = record.order.url, "ordered");
    finish::proceed(context, key, fresh, record, order, due.reason).await
}

/// All that can be found out before the CA counts anything; the profile to ask for.
async fn prepare<'a>(
    context: &Context,
    key: &Key,
    fresh: &'a Fresh,
    client: &acme::Client,
    names: &[Name],
) -> Result<Option<&'a str>, Failure> {
    venue::rehearse(context, key, fresh, names).await?;
    let profile = profile(fresh, client).await?;
    foresee(context, fresh, client, names).await?;
    Ok(profile)
}

/// The profile to ask for. The issuer's own is a preference, and a fallback's are others: a CA that has none of that name
/// is not refused for it.
async fn profile<'a>(fresh: &'a Fresh, client: &acme::Client) -> Result<Option<&'a str>, Failure> {
    let named = fresh.assessment.settings.profile.as_deref();
    if named.is_some() && fresh.is_at_home() {
        return Ok(named);
    }
    let offered = &client.directory().await?.meta.profiles;
    let mut wanted = named.into_iter().chain(fresh.issuer.profile.as_deref());
    Ok(wanted.find(|profile| offered.contains_key(*profile)))
}

/// The issuer's `ordersPer3h` are used up.
fn out_of_orders(key: &Key, fresh: &Fresh, quota: u32, until: UnixTime) -> Outcome {
    let note = format!(
        "issuer {}: its ordersPer3h ({quota}) are used up; this one's turn is at {until}",
        fresh.issuer_name
    );
    tracing::info!(secret = %key, %until, note, "the renewal waits");
    Outcome::Later(until, Some(note.into()))
}

/// Remembers that there is a record, which may not be ours, and drops an order that has none.
async fn remember(
    context: &Context,
    key: &Key,
    order: &acme::Order,
    made: Result<Record, cluster::Error>,
) -> Result<Record, cluster::Error> {
    match &made {
        Ok(_) => context.known.insert(key),
        // It may be there although nobody said so: the next attempt looks, and goes on with it or makes another.
        Err(error) if error.is_uncertain() => context.known.insert(key),
        Err(error) => {
            // Ours is not the order that runs, or nobody would remember it.
            tracing::debug!(secret = %key, %error, "the order is dropped");
            give_back(order).await;
            if matches!(error, cluster::Error::AlreadyExists { .. }) {
                context.known.insert(key);
            }
        }
    }
    made
}

/// Finds out what the CA will refuse, unless life runs short.
async fn foresee(
    context: &Context,
    fresh: &Fresh,
    client: &acme::Client,
    names: &[Name],
) -> Result<(), Failure> {
    let leaf = fresh.leaf();
    if leaf.is_some() && budget::runs_short(UnixTime::now(), leaf) {
        return Ok(());
    }
    let directory = client.directory().await?;
    let account = client.account_url();
    let asked = preflight::Asked {
        names,
        profile: { fresh.assessment.settings.profile.as_deref() }.filter(|_| fresh.is_at_home()),
        issuer: &fresh.issuer,
        account: account.as_deref(),
        key_type: fresh.assessment.key_type(),
    };
    let mut refused = preflight::by_the_ca(&asked);
    refused.extend(preflight::by_profile(&asked, &directory));
    if !refused.is_empty() {
        return Err(Failure::Hopeless(refused.join("; ")));
    }
    match preflight::by_caa(&asked, &directory, &context.config()).await {
        found if found.is_empty() => Ok(()),
        found => Err(Failure::Forbidden(found.join("; "))),
    }
}

/// What the new certificate replaces, in the words of RFC 9773: only what the same issuer's account was given.
pub(super) fn replaced(fresh: &Fresh) -> Option<acme::CertId> {
    let issued_by = fresh.assessment.issued_by.as_ref()?;
    let leaf = fresh.leaf()?;
    let authority = leaf.authority_key_id.as_ref()?;
    (*issued_by.issuer == *fresh.issuer_name).then(|| acme::CertId::new(authority, &leaf.serial))
}

fn texts(names: &[Name]) -> Vec<String> {
    names.iter().map(Name::to_string).collect()
}

/// The key to ask for: a new one, or with `key-rotation: never` the one that is there.
async fn new_key(fresh: &Fresh) -> Result<PrivateKey, Failure> {
    let settings = &fresh.assessment.settings;
    let kind = fresh.assessment.key_type().unwrap_or(KeyType::EcdsaP256);
    let compromised = fresh
        .assessment
        .renewal
        .is_ok_and(|due| due.reason == Reason::Revoked);
    if settings.key_rotation == KeyRotation::Never
        && !compromised
        && let Ok(key) = PrivateKey::from_pem(fresh.secret.pair().1)
        && key.key_type() == Some(kind)
    {
        return Ok(key);
    }
    // An RSA key takes up to seconds of CPU.
    let generated = tokio::task::spawn_blocking(move || PrivateKey::generate(kind)).await;
    Ok(generated.map_err(|_| Failure::Stopped)??)
}
