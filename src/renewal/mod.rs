//! One renewal, step by step.
//!
//! ```text
//! read afresh ─► order ─► order record ─► challenges ─► finalize ─► download ─► checks ─► guarded patch ─► record deleted
//!                            ▲ a restart enters here, at whatever state the CA reports
//! ```
//! The record is written before anything irreversible, so a renewal that is killed anywhere goes on from there.
//! It believes only what it reads itself, and looks again before it finalizes and before it writes:
//! the user may have changed his mind. It never touches a workload.

mod copies;
mod failure;
pub mod info;
pub mod issuers;
pub mod known;
mod limits;
pub mod persist;
pub mod preflight;
pub mod proof;
mod public_ca;
pub mod validations;
mod venue;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::acme::{self, OrderStatus, Preference};
use crate::assess::{self, Assessment};
use crate::certificate::{KeyType, Leaf};
use crate::cluster::records::{self, Record};
use crate::cluster::secrets::{self, Changes};
use crate::cluster::{events, namespaces};
use crate::config::{self, Issuer, Labels};
use crate::context::Context;
use crate::index::{Finished, Key, Stuck};
use crate::key::PrivateKey;
use crate::metrics::{RenewalResult, RenewalStep};
use crate::name::Name;
use crate::pair::{self, Asked, Chain};
use crate::schedule::budget::{self, Hold};
use crate::schedule::due::{Due, Never, Reason};
use crate::secret::full::FullSecret;
use crate::secret::keys;
use crate::secret::render::{Rendered, render};
use crate::secret::settings::{IssuerRef, KeyRotation};
use crate::secret::state::{IssuedBy, RolledOut};
use crate::ticket::Ticket;
use crate::time::UnixTime;
use failure::Failure;
use proof::Wait;
use validations::Held;

/// Some CAs take a minute from finalize to the certificate.
const ISSUE: Duration = Duration::from_secs(5 * 60);
/// A Secret that another program writes is looked at again after this; the watch brings it sooner when it changes.
const OWNED: Duration = Duration::from_secs(3_600);

/// How a renewal ended that did not fail.
enum Outcome {
    /// The new pair is in the Secret.
    Renewed(Box<Leaf>),
    /// A former run had written it already; only the record was left.
    Tidied,
    /// Not to be renewed before then.
    Later(UnixTime, Option<Box<str>>),
    /// Nor then, unless a person does something.
    Stuck(UnixTime, Stuck, Box<str>),
}

/// A Secret as it is now, and what it asks for.
struct Fresh {
    secret: FullSecret,
    assessment: Assessment,
    /// The issuer that the Secret names.
    home: std::sync::Arc<str>,
    /// The namespace's labels, where they matter.
    labels: Option<BTreeMap<String, String>>,
    /// The issuer that is asked: that one, or a fallback.
    issuer_name: std::sync::Arc<str>,
    issuer: Issuer,
}

/// Renews a Secret if it is due, and reports to the ticket.
pub async fn run(context: &Context, ticket: Ticket) {
    let key = ticket.key().clone();
    let started = Instant::now();
    let finished = match attempt(context, &key).await {
        Ok(Outcome::Renewed(leaf)) => {
            tracing::info!(
                secret = %key, step = "write", not_after = %leaf.not_after, leaf = %leaf.fingerprint,
                seconds = started.elapsed().as_secs_f64(), "renewed"
            );
            Finished::Wrote
        }
        Ok(Outcome::Tidied) => Finished::Wrote,
        Ok(Outcome::Later(at, why)) => Finished::Later(at, why),
        Ok(Outcome::Stuck(at, stuck, why)) => Finished::Stuck(at, stuck, why),
        Err(failure) => failure.settle(context, &key).await,
    };
    ticket.finish(finished);
}

/// Gives up the order of a Secret that is gone or no longer annotated.
pub async fn abandon(context: &Context, key: &Key) {
    let record = match records::get(&context.client, &context.namespace, key).await {
        Ok(Some(record)) => record,
        Ok(None) => return context.known.remove(key),
        Err(error) => {
            tracing::warn!(secret = %key, %error, "an order that nobody waits for cannot be given up now");
            return;
        }
    };
    tracing::info!(secret = %key, order = record.order.url, "the order is given up: nobody waits for it");
    if let Err(error) = drop_record(context, &record).await {
        tracing::warn!(secret = %key, %error, "the order record stays until the next start");
    }
}

async fn attempt(context: &Context, key: &Key) -> Result<Outcome, Failure> {
    let now = UnixTime::now();
    let record = if context.known.contains(key) {
        let record = records::get(&context.client, &context.namespace, key).await?;
        if record.is_none() {
            context.known.remove(key);
        }
        record
    } else {
        None
    };
    let Some(fresh) = read(context, key, now).await? else {
        if let Some(record) = record {
            drop_record(context, &record).await?;
        }
        return Ok(Outcome::Later(UnixTime::NEVER, None));
    };
    if let Some(keeper) = fresh.secret.kept_for() {
        if let Some(record) = record {
            drop_record(context, &record).await?;
        }
        return Ok(left_to(context, key, &fresh, &keeper));
    }
    if let Some(record) = record {
        return resume(context, key, fresh, record).await;
    }
    let due = match fresh.assessment.renewal {
        Ok(due) if due.at <= now => due,
        Ok(due) => return Ok(Outcome::Later(due.at, None)),
        // The watch, which knows no labels, had let it pass.
        Err(Never::NotAllowed) if fresh.labels.is_some() => {
            return Err(Failure::NotAllowed(fresh.refusal()).about(&fresh));
        }
        Err(_) => return Ok(Outcome::Later(UnixTime::NEVER, None)),
    };
    if let Some(opens) = fresh.assessment.opens {
        return Ok(Outcome::Later(opens, None));
    }
    if let Some(again) = copies::follows(context, key, &fresh, now) {
        return Ok(Outcome::Later(again, None));
    }
    let fresh = fresh.at_hand(context, key, now);
    let account = context.ledger.get(fresh.assessment.account);
    if let Some(hold) = budget::hold(
        now,
        due.reason,
        fresh.assessment.wish(),
        fresh.assessment.leaf.as_ref().ok(),
        fresh.written(),
        &account,
    ) {
        return Ok(held(context, key, &fresh, due.reason, hold));
    }
    order(context, key, fresh, due).await
}

/// The Secret as it is now; None where it is gone, or asks for nothing.
async fn read(context: &Context, key: &Key, now: UnixTime) -> Result<Option<Fresh>, Failure> {
    let secret = match secrets::get(&context.client, key).await {
        Err(crate::cluster::Error::NotFound { .. }) => return Ok(None),
        secret => secret?,
    };
    let config = context.config();
    let labels = if config.needs_namespace_labels() {
        let read = namespaces::labels(&context.client, &key.namespace).await;
        read.map(Some)
    } else {
        Ok(None)
    };
    let view = (&*config, view_of(labels.as_ref().unwrap_or(&None)));
    let Some(assessment) = assess::of_full(now, key, &secret, view, |leaf| {
        context.renewal_info.instant(key, leaf)
    }) else {
        return Ok(None);
    };
    let IssuerRef::Named(issuer_name) = assessment.settings.issuer.clone() else {
        return Ok(None);
    };
    let Some(issuer) = config.issuer(&issuer_name).cloned() else {
        return Ok(None);
    };
    let (labels, unread) = match labels {
        Ok(labels) => (labels, None),
        Err(error) => (None, Some(error)),
    };
    let fresh = Fresh {
        secret,
        assessment,
        home: std::sync::Arc::clone(&issuer_name),
        labels,
        issuer_name,
        issuer,
    };
    match unread {
        None => Ok(Some(fresh)),
        Some(error) => Err(Failure::Labels(error).about(&fresh)),
    }
}

/// A budget says no: the Secret is left alone until then, and the reader is told once.
fn held(context: &Context, key: &Key, fresh: &Fresh, reason: Reason, hold: Hold) -> Outcome {
    let until = hold.until();
    let undone = matches!(hold, Hold::KeepsComingBack { .. }) && reason != Reason::RenewalInfo;
    let note = match hold {
        Hold::BackOff { .. } => return Outcome::Later(until, last_error(context, key)),
        Hold::TooYoung { .. } => format!(
            "the certificate is younger than a tenth of its lifetime; a new one is asked for after {until}"
        ),
        Hold::TooMany { .. } => format!(
            "{} certificates for these names were issued within 7 days, and CAs count them; the next one is asked for \
             after {until}",
            budget::ISSUES_A_WEEK
        ),
        Hold::KeepsComingBack { .. } if reason == Reason::RenewalInfo => format!(
            "the CA's renewal window says that each new certificate is to be replaced at once: {} were issued within 7 \
             days and no more is asked for before {until}. Is this machine's clock right?",
            budget::UNSCHEDULED_A_WEEK
        ),
        Hold::KeepsComingBack { .. } => {
            let owners = other_writers(&fresh.secret).join(", ");
            let owners = if owners.is_empty() {
                "somebody".to_owned()
            } else {
                owners
            };
            format!(
                "{owners} keeps replacing the certificate: {} were issued within 7 days and no more is asked for \
                 before {until}. Keep the data out of what {owners} applies (Flux: annotation \
                 kustomize.toolkit.fluxcd.io/ssa: IfNotPresent; Argo CD: ignoreDifferences on /data)",
                budget::UNSCHEDULED_A_WEEK
            )
        }
    };
    not_now(
        context,
        key,
        fresh,
        (until, undone.then_some(Stuck::OtherOwner)),
        events::Reason::RenewalHeld,
        note,
    )
}

/// Another program writes this Secret: it is not ours to renew.
fn left_to(context: &Context, key: &Key, fresh: &Fresh, keeper: &str) -> Outcome {
    let note = format!(
        "not renewed: the Secret is written for {keeper}. Annotate it with {}: {} to have only its workloads rolled, or \
         end what writes it first",
        keys::ISSUER,
        assess::EXTERNAL
    );
    let until = UnixTime::now() + OWNED;
    not_now(
        context,
        key,
        fresh,
        (until, Some(Stuck::OtherOwner)),
        events::Reason::OwnedByAnother,
        note,
    )
}

/// The Secret is left alone until then, and the reader is told once why.
fn not_now(
    context: &Context,
    key: &Key,
    fresh: &Fresh,
    (until, stuck): (UnixTime, Option<Stuck>),
    reason: events::Reason,
    note: String,
) -> Outcome {
    if last_error(context, key).as_deref() != Some(&*note) {
        tracing::warn!(secret = %key, %until, note, "the renewal is held back");
        context.events.secret(key, fresh.uid(), reason, &note);
    }
    match stuck {
        Some(stuck) => Outcome::Stuck(until, stuck, note.into()),
        None => Outcome::Later(until, Some(note.into())),
    }
}

/// The field managers beside us that write the data.
fn other_writers(secret: &FullSecret) -> Vec<&str> {
    let mut names: Vec<&str> = secret
        .managers
        .iter()
        .filter(|manager| manager.owns_data && manager.name != keys::FIELD_MANAGER)
        .map(|manager| manager.name.as_str())
        .collect();
    names.dedup();
    names
}

fn last_error(context: &Context, key: &Key) -> Option<Box<str>> {
    let index = context
        .index
        .read()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    index.get(key).and_then(|entry| entry.last_error)
}

/// Makes the order and its record, then goes on as after a restart.
async fn order(context: &Context, key: &Key, fresh: Fresh, due: Due) -> Result<Outcome, Failure> {
    let names = without_covered(&fresh.assessment.names);
    tracing::info!(
        secret = %key, step = "due", issuer = %fresh.issuer_name, reason = due.reason.as_str(), names = ?texts(&names), "due"
    );
    let ours = |error| Failure::from(error).about(&fresh);
    let client = context
        .issuers
        .ready(&fresh.issuer_name, &fresh.issuer)
        .await
        .map_err(ours)?;
    if let Some(held) = limits::held(context, key, &fresh, &client, &names).await {
        return Ok(held);
    }
    venue::rehearse(context, key, &fresh, &names)
        .await
        .map_err(|failure| failure.about(&fresh))?;
    let named = fresh.assessment.settings.profile.as_deref();
    let profile = match named {
        Some(profile) if fresh.is_at_home() => Some(profile),
        // The issuer's own profile is a preference, and a fallback's are others: a CA that has none of that name is not
        // refused for it.
        _ => {
            let offered = &client
                .directory()
                .await
                .map_err(|error| ours(error.into()))?
                .meta
                .profiles;
            let mut wanted = named.into_iter().chain(fresh.issuer.profile.as_deref());
            wanted.find(|profile| offered.contains_key(*profile))
        }
    };
    preflight(context, &fresh, &client, &names)
        .await
        .map_err(|failure| failure.about(&fresh))?;
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
        let note = format!(
            "issuer {}: its ordersPer3h ({quota}) are used up; this one's turn is at {until}",
            fresh.issuer_name
        );
        tracing::info!(secret = %key, %until, note, "the renewal waits");
        return Ok(Outcome::Later(until, Some(note.into())));
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
        expected: budget::is_expected(
            UnixTime::now(),
            due.reason,
            fresh.assessment.leaf.as_ref().ok(),
            fresh.written(),
        ),
        replaced: order.replaces_accepted(),
        created: UnixTime::now().0,
        txt: proofs.txt,
        routes: proofs.routes,
    };
    let challenges = proofs.challenges;
    let made = records::create(&context.client, &context.namespace, stored, pem, challenges).await;
    if let Err(error) = &made {
        if error.is_uncertain() {
            // It may be there although nobody said so: the next attempt looks, and goes on with it or makes another.
            context.known.insert(key);
        } else {
            // Ours is not the order that runs, or nobody would remember it.
            tracing::debug!(secret = %key, %error, "the order is dropped");
            give_back(&order).await;
        }
    }
    if matches!(made, Err(crate::cluster::Error::AlreadyExists { .. })) {
        context.known.insert(key);
    }
    let record = made?;
    drop(step);
    context.known.insert(key);
    took(context, &record, RenewalStep::Order, started);
    tracing::info!(secret = %key, step = "order", order = record.order.url, "ordered");
    proceed(context, key, fresh, record, order, due.reason).await
}

/// A name must not fail validation once more now.
fn unproven(context: &Context, key: &Key, fresh: &Fresh, held: Held) -> Outcome {
    match held {
        Held::UnderWay(name, until) => {
            let note = format!("waits until other orders have proven {name}");
            tracing::debug!(secret = %key, %until, note, "the renewal waits");
            Outcome::Later(until, Some(note.into()))
        }
        Held::Failed(name, until) => {
            let note = format!(
                "{} validations of {name} have failed within an hour, as many as CAs let pass; the next try is after \
                 {until}",
                budget::FAILED_VALIDATIONS
            );
            not_now(
                context,
                key,
                fresh,
                (until, None),
                events::Reason::RenewalHeld,
                note,
            )
        }
    }
}

/// Finds out what the CA will refuse, unless life runs short.
async fn preflight(
    context: &Context,
    fresh: &Fresh,
    client: &acme::Client,
    names: &[Name],
) -> Result<(), Failure> {
    let leaf = fresh.assessment.leaf.as_ref().ok();
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

/// Goes on with an order that a former run, or a former attempt, has begun.
async fn resume(
    context: &Context,
    key: &Key,
    fresh: Fresh,
    record: Record,
) -> Result<Outcome, Failure> {
    let fresh = fresh.at(context, &record.order.issuer);
    let new_key = PrivateKey::from_pem(record.key.as_bytes());
    let written = match (&new_key, &fresh.assessment.leaf) {
        (Ok(new_key), Ok(leaf)) => *leaf.public_key == *new_key.public_key(),
        _ => false,
    };
    if written && fresh.assessment.settings.key_rotation == KeyRotation::Always {
        count_issue(context, key, &fresh, &record).await;
        drop_record(context, &record).await?;
        return Ok(Outcome::Tidied);
    }
    if new_key.is_err() || !still_wanted(&fresh, &record) {
        tracing::info!(secret = %key, order = record.order.url, "the order is given up: the Secret asks for something else");
        drop_record(context, &record).await?;
        return Ok(Outcome::Later(UnixTime::now(), None));
    }
    let ours = |error| Failure::from(error).about(&fresh);
    let client = context
        .issuers
        .ready(&fresh.issuer_name, &fresh.issuer)
        .await
        .map_err(ours)?;
    let order = match client.resume(&record.order.url).await {
        Ok(order) => order,
        Err(error) => {
            if error.is_gone() {
                drop_record(context, &record).await?;
            }
            return Err(Failure::from(error).about(&fresh));
        }
    };
    let _proving = context
        .validations
        .join(&fresh.issuer_name, &record.order.names);
    tracing::info!(secret = %key, step = "wait", order = record.order.url, status = ?order.status(), "the order is taken up again");
    let reason = fresh
        .assessment
        .renewal
        .map_or(Reason::Lifetime, |due| due.reason);
    proceed(context, key, fresh, record, order, reason).await
}

/// What the new certificate replaces, in the words of RFC 9773: only what the same issuer's account was given.
fn replaced(fresh: &Fresh) -> Option<acme::CertId> {
    let issued_by = fresh.assessment.issued_by.as_ref()?;
    let leaf = fresh.assessment.leaf.as_ref().ok()?;
    let authority = leaf.authority_key_id.as_ref()?;
    (*issued_by.issuer == *fresh.issuer_name).then(|| acme::CertId::new(authority, &leaf.serial))
}

/// From the record to the written Secret. When it cannot succeed any more, the record goes; else it stays for a retry.
async fn proceed(
    context: &Context,
    key: &Key,
    fresh: Fresh,
    record: Record,
    mut order: acme::Order,
    reason: Reason,
) -> Result<Outcome, Failure> {
    match finish(context, key, &record, &mut order, reason).await {
        Ok(outcome) => {
            drop_record(context, &record).await?;
            Ok(outcome)
        }
        Err(failure) => {
            if failure.ends_order(&order) {
                give_back(&order).await;
                drop_record(context, &record).await?;
            }
            Err(failure.about(&fresh))
        }
    }
}

async fn finish(
    context: &Context,
    key: &Key,
    record: &Record,
    order: &mut acme::Order,
    reason: Reason,
) -> Result<Outcome, Failure> {
    let mut started = Instant::now();
    if order.status() == OrderStatus::Pending {
        proof::prove(context, key, record, order, Wait::Briefly).await?;
        took(context, record, RenewalStep::Prove, started);
        tracing::info!(secret = %key, step = "prove", order = record.order.url, "validated");
    }
    if order.status() == OrderStatus::Ready {
        let now = UnixTime::now();
        let wanted = read(context, key, now)
            .await?
            .is_some_and(|fresh| still_wanted(&fresh.at(context, &record.order.issuer), record));
        if !wanted {
            return Err(Failure::Unwanted);
        }
        let new_key = PrivateKey::from_pem(record.key.as_bytes())?;
        started = Instant::now();
        order.finalize(&new_key.csr(&record.order.names)?).await?;
    }
    if order.status() != OrderStatus::Valid {
        order.wait_issued(Instant::now() + ISSUE).await?;
        took(context, record, RenewalStep::Finalize, started);
    }
    let config = context.config();
    let chain = config
        .issuer(&record.order.issuer)
        .and_then(|issuer| issuer.chain.as_ref());
    let preference = match chain {
        None => Preference::Default,
        Some(config::Chain::Root(name)) => Preference::Root(name.clone()),
        Some(config::Chain::Shortest) => Preference::Shortest,
    };
    started = Instant::now();
    let pem = order.certificate(&preference).await?;
    took(context, record, RenewalStep::Download, started);
    let written = write(context, key, record, &pem, reason).await;
    if matches!(written, Err(Failure::Unwanted)) {
        // The CA counts what nobody wants any more.
        count_unwanted(context, key, record).await;
    }
    written
}

/// Checks what the CA gave and puts it into the Secret, in one patch.
async fn write(
    context: &Context,
    key: &Key,
    record: &Record,
    pem: &str,
    reason: Reason,
) -> Result<Outcome, Failure> {
    let (started, now) = (Instant::now(), UnixTime::now());
    let Some(fresh) = read(context, key, now)
        .await?
        .map(|fresh| fresh.at(context, &record.order.issuer))
        .filter(|fresh| still_wanted(fresh, record))
    else {
        return Err(Failure::Unwanted);
    };
    let new_key = PrivateKey::from_pem(record.key.as_bytes())?;
    let old = fresh.assessment.leaf.as_ref().ok();
    let asked = Asked {
        key: &new_key,
        names: &record.order.names,
        not_sooner_than: old
            .filter(|_| reason == Reason::Lifetime && fresh.issuer_name == fresh.home),
        staging: fresh.issuer.directory.contains("staging"),
    };
    let chain = pair::check_issued(pem.as_bytes(), &asked, now)?;
    let changes = changes(context, key, &fresh, record, &chain)?;
    // What was issued is to be in the ledger too.
    let step = context.gate.step().map_err(|_| Failure::Stopped)?;
    secrets::patch(&context.client, &fresh.secret.head, &changes).await?;
    context
        .metrics
        .renewal(&fresh.issuer_name, RenewalResult::Renewed, "");
    context.metrics.renewal_took(
        &fresh.issuer_name,
        now.since(UnixTime(record.order.created)),
    );
    count_issue(context, key, &fresh, record).await;
    drop(step);
    took(context, record, RenewalStep::Write, started);
    if let Some(old) = old {
        copies::share(context, key, &fresh, old.fingerprint, record, &chain).await;
    }
    let leaf = chain.leaf;
    let note = format!("valid until {}, issued by {}", leaf.not_after, leaf.issuer);
    context
        .events
        .secret(key, fresh.uid(), events::Reason::Renewed, &note);
    Ok(Outcome::Renewed(Box::new(leaf)))
}

/// Notes in the ledger that a certificate was issued and not written.
async fn count_unwanted(context: &Context, key: &Key, record: &Record) {
    let records::Order {
        issuer,
        names,
        created,
        expected,
        replaced,
        ..
    } = &record.order;
    let account = budget::account_of(issuer, names);
    let counted = context.ledger.update(account, |account| {
        account.issued(UnixTime::now(), UnixTime(*created), *expected, *replaced);
    });
    if let Err(error) = counted.await {
        tracing::warn!(secret = %key, %error, "the ledger could not be written; it is right in memory");
    }
}

/// Notes how long a step took. A proof that takes several attempts counts from the order on: DNS may take an hour.
fn took(context: &Context, record: &Record, step: RenewalStep, started: Instant) {
    let mut took = started.elapsed();
    if step == RenewalStep::Prove {
        // The record knows whole seconds: the one that may be too much is taken off.
        let since = UnixTime::now().since(UnixTime(record.order.created));
        took = took.max(since.saturating_sub(Duration::from_secs(1)));
    }
    context
        .metrics
        .renewal_step_took(&record.order.issuer, step, took);
}

/// Notes in the ledger that a certificate was issued and written.
async fn count_issue(context: &Context, key: &Key, fresh: &Fresh, record: &Record) {
    let (now, ordered) = (UnixTime::now(), UnixTime(record.order.created));
    let (backoff, own) = (context.config().retry, fresh.assessment.account);
    // Few names have ever failed.
    let names = validations::accounts(&fresh.issuer_name, &record.order.names).into_keys();
    let failed = names.filter(|id| *id != own && !context.ledger.get(*id).invalid.is_empty());
    let accounts: Vec<u64> = failed.chain([own]).collect();
    let issued = context
        .ledger
        .update_all(accounts, |id, account| {
            if id == own {
                account.issued(now, ordered, record.order.expected, record.order.replaced);
            }
            account.proven(now, &backoff);
        })
        .await;
    let home = budget::account_of(&fresh.home, &fresh.assessment.names);
    // The fallback has done it: the next renewal begins with the Secret's own issuer again.
    let home = context.ledger.update(home, |account| {
        if fresh.issuer_name != fresh.home {
            account.issued(now, ordered, true, true);
        }
    });
    if let Err(error) = issued.and(home.await) {
        tracing::warn!(secret = %key, %error, "the ledger could not be written; it is right in memory");
    }
}

fn changes<'a>(
    context: &Context,
    key: &Key,
    fresh: &Fresh,
    record: &Record,
    chain: &Chain,
) -> Result<Changes<'a>, Failure> {
    let Assessment {
        settings,
        rolled_out,
        leaf,
        ..
    } = &fresh.assessment;
    let issued_by = IssuedBy {
        issuer: (*fresh.issuer_name).into(),
        names: record.order.names.clone(),
        profile: settings.profile.clone(),
        key_type: settings.key_type,
        written: Some((chain.leaf.fingerprint, UnixTime::now())),
        account: record.order.account.as_deref().map(Into::into),
    };
    let mut annotations = vec![
        (keys::ISSUED_BY, Some(issued_by.to_string())),
        (keys::LAST_ERROR, None),
        (keys::RETRY_AT, None),
        (keys::ROLLOUT_HALTED, None),
    ];
    if let Some(value) = &settings.renew_now {
        annotations.push((keys::RENEWED_FOR, Some(value.to_string())));
    }
    if rolled_out.is_none() {
        // What the workloads have until they are rolled: the old leaf, or what the index remembers of it.
        let remembered = {
            let index = context
                .index
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            index.get(key).and_then(|entry| entry.rolled_out())
        };
        let held = match leaf {
            Ok(leaf) => RolledOut::Leaf {
                fingerprint: leaf.fingerprint,
                not_after: leaf.not_after,
            },
            Err(_) => RolledOut::None,
        };
        let had = remembered.unwrap_or(held);
        annotations.push((keys::ROLLED_OUT, Some(had.to_string())));
    }
    let new_key = PrivateKey::from_pem(record.key.as_bytes())?;
    let password = settings.pkcs12_password_key.as_deref();
    let password = password.and_then(|name| fresh.secret.data.get(name));
    let password = password.and_then(|bytes| std::str::from_utf8(bytes).ok());
    let Rendered { data, left_out } = render(
        &fresh.secret.kind,
        &settings.outputs,
        chain,
        &new_key,
        password,
    )?;
    if !left_out.is_empty() {
        let note = format!(
            "outputs {} are left as they are: PKCS#12 takes a password, from the key of this Secret that \
             cert-renew.io/pkcs12-password-key names",
            left_out.join(", ")
        );
        context
            .events
            .secret(key, fresh.uid(), events::Reason::OutputLeftOut, &note);
    }
    Ok(Changes { annotations, data })
}

/// Whether the Secret still asks for what the record's order will bring.
fn still_wanted(fresh: &Fresh, record: &Record) -> bool {
    let Fresh {
        assessment,
        issuer_name,
        issuer,
        ..
    } = fresh;
    // Another CA knows nothing of the order, and the one that does would refuse our account with the other.
    let moved = { record.order.directory.as_ref() }.is_some_and(|it| *it != issuer.directory);
    let same_names = without_covered(&assessment.names) == record.order.names;
    fresh.uid() == record.order.uid
        && **issuer_name == *record.order.issuer
        && !moved
        && assessment.renewal.is_ok()
        // Without `names` they are read from the certificate, which somebody may have emptied meanwhile.
        && (same_names || assessment.names.is_empty())
}

/// Names without those that a wildcard among them covers: CAs refuse the redundant.
fn without_covered(names: &[Name]) -> Vec<Name> {
    let covered = |name: &Name| {
        names
            .iter()
            .any(|other| other != name && other.covers(name))
    };
    names
        .iter()
        .filter(|name| !covered(name))
        .cloned()
        .collect()
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

async fn give_back(order: &acme::Order) {
    if order.status() == OrderStatus::Pending
        && let Err(error) = order.abandon().await
    {
        tracing::debug!(order = order.url(), %error, "its authorizations are left to expire");
    }
}

async fn drop_record(context: &Context, record: &Record) -> Result<(), crate::cluster::Error> {
    proof::clear(context, record).await;
    let subject = record.order.subject();
    let name = records::record_name(&subject);
    records::delete(&context.client, &context.namespace, &name, &record.uid).await?;
    context.challenges.remove(&name);
    context.known.remove(&subject);
    Ok(())
}

fn view_of(labels: &Option<BTreeMap<String, String>>) -> Labels<'_> {
    labels.as_ref().map_or(Labels::NotAsked, Labels::Are)
}

impl Fresh {
    /// Whether it is the Secret's own issuer that is asked.
    fn is_at_home(&self) -> bool {
        self.issuer_name == self.home
    }

    fn uid(&self) -> &str {
        self.secret.head.uid()
    }

    /// When the leaf that is there was written, if we wrote it.
    fn written(&self) -> Option<UnixTime> {
        let leaf = self.assessment.leaf.as_ref().ok()?;
        self.assessment.issued_by.as_ref()?.wrote(leaf.fingerprint)
    }

    /// What the assessment says of names that are not allowed.
    fn refusal(&self) -> String {
        let problems = self.assessment.problems.iter();
        let names = problems.filter(|problem| &*problem.key == keys::NAMES);
        names.map(ToString::to_string).collect()
    }
}
