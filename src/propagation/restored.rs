//! What a restored backup has brought: a Secret with an earlier certificate than its workloads have.
//!
//! A backup holds the certificate and the record that the workloads have it. While the operator runs, the watch brings
//! both at once, and the record is doubted. What is restored while nobody looks is seen in the templates alone: they say
//! another certificate, and nobody has changed them since the Secret was written. So each term looks once at the
//! namespaces whose Secrets say that all is done, one namespace after the other. The record is written as the template has
//! it, whatever is shut; that a rollout is due follows from it.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::look::{self, Held};
use super::tell;
use crate::cluster::chain;
use crate::cluster::secrets::{self, Changes};
use crate::context::Context;
use crate::index::{Entry, Key};
use crate::rollout::{self, Request, Workload};
use crate::secret::keys;
use crate::secret::state::RolledOut;
use crate::time::UnixTime;

/// Between two namespaces: a start does not have the API server list the workloads of all of them at once.
const PAUSE: Duration = Duration::from_secs(1);
/// notBefore lies up to an hour in the past when a certificate is issued (Let's Encrypt).
const BACKDATED: Duration = Duration::from_secs(3_600);
/// A certificate of ours is written within this of the instant that its Secret says: whatever wrote it later put it back.
const OUR_WRITE: Duration = Duration::from_secs(60);

/// What is known of the age of the certificate in a Secret, beside its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age {
    pub(super) not_before: UnixTime,
    /// When what the workloads have ends.
    pub(super) had_until: Option<UnixTime>,
    /// When we wrote it, by the Secret's own word.
    pub(super) ours: Option<UnixTime>,
}

/// Looks once at all namespaces.
pub(crate) async fn look_at_records(context: &Context) {
    let namespaces: BTreeSet<Arc<str>> = {
        let index = context.index.read().unwrap_or_else(PoisonError::into_inner);
        let done = index.iter().filter(|(_, entry)| says_done(entry));
        done.filter_map(|(row, _)| Some(index.key_of(row)?.namespace))
            .collect()
    };
    for namespace in namespaces {
        match context.roller().list(&namespace).await {
            Ok(workloads) => {
                for secret in carried(&workloads) {
                    let key = Key {
                        namespace: Arc::clone(&namespace),
                        name: secret.into(),
                    };
                    compare(context, &key, &workloads).await;
                }
            }
            Err(error) => {
                let error = chain(&error);
                tracing::info!(%namespace, error, "not known whether a backup was restored");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether a Secret says that its workloads have what it holds.
fn says_done(entry: &Entry) -> bool {
    let said = entry.observed.rolled_out.and_then(RolledOut::fingerprint);
    said.is_some() && said == entry.observed.leaf.ok().map(|leaf| leaf.fingerprint)
}

/// The Secrets of which a template says which certificate it has.
fn carried(workloads: &[Workload]) -> BTreeSet<&str> {
    let keys = workloads.iter().flat_map(|workload| workload.leaves.keys());
    let named = keys.filter_map(|key| key.strip_prefix(keys::LEAF_PREFIX));
    // Of a long name the key has a hash.
    let referred = workloads.iter().flat_map(|workload| {
        let secrets = workload.references.iter().map(|it| &*it.secret);
        secrets.filter(|secret| workload.leaf_of(secret).is_some())
    });
    named.chain(referred).collect()
}

/// Writes what the workloads have where a Secret says otherwise.
async fn compare(context: &Context, key: &Key, workloads: &[Workload]) {
    let Some(entry) = context.entry(key).filter(says_done) else {
        return;
    };
    let holds = entry.observed.leaf.ok().map(|leaf| leaf.fingerprint);
    let another = |workload: &Workload| {
        let carries = holds.is_some_and(|leaf| workload.carries(&key.name, leaf));
        workload.leaf_of(&key.name).is_some() && !carries
    };
    if !workloads.iter().any(another) {
        return;
    }
    // It is read afresh: the index does not know when its data was written.
    let Some((request, head)) = look::as_it_is(context, key, &entry).await else {
        return;
    };
    let said = request.rolled_out.and_then(RolledOut::fingerprint);
    let Some((workload, had)) = contradicts(&request, workloads) else {
        return;
    };
    if said != Some(request.leaf) {
        return;
    }
    let changes = Changes {
        annotations: vec![(keys::ROLLED_OUT, Some(had.written_for(head.uid())))],
        ..Changes::default()
    };
    match secrets::patch(&context.client, &head, &changes).await {
        Ok(_) => tell::older(
            context,
            key,
            &request,
            &format!("{} was restarted for another one", workload.id),
        ),
        Err(error) => {
            tracing::info!(secret = %key, %error, "what the workloads have is not put back: the next start looks again");
        }
    }
}

/// A workload whose template was made for another certificate before the Secret was written, and what it has. When that
/// ends nobody knows: it is taken for what the Secret holds.
fn contradicts(request: &Request, workloads: &[Workload]) -> Option<(Workload, RolledOut)> {
    let written = request.written?;
    let using = rollout::using(request, workloads).into_iter();
    let mut older = using.filter(|workload| {
        !workload.opted_out
            && !workload.carries(&request.secret, request.leaf)
            && workload.template_touched.is_some_and(|at| at <= written)
    });
    older.find_map(|workload| {
        let value = workload.leaf_of(&request.secret)?.split('.').next()?;
        let had = RolledOut::Leaf {
            fingerprint: value.parse().ok()?,
            not_after: request.not_after,
        };
        Some((workload, had))
    })
}

/// Why the certificate that is about to be rolled is an earlier one than the workloads have, if it is.
pub(super) fn older(request: &Request, held: &Held, workloads: &[Workload]) -> Option<String> {
    let Age {
        not_before,
        had_until,
        ours,
    } = held.age?;
    let written = request.written?;
    if ours.is_some_and(|at| written <= at + OUR_WRITE) {
        return None;
    }
    if had_until.is_some_and(|until| until <= request.not_after) {
        return None;
    }
    let using = rollout::using(request, workloads);
    let carry: Vec<&Workload> = { using.iter() }
        .filter(|workload| workload.leaf_of(&request.secret).is_some())
        .collect();
    let later = |workload: &&&Workload| {
        let at = workload.rolled_at.filter(|at| *at <= written);
        at.is_some_and(|at| at > not_before + BACKDATED)
            && !workload.carries(&request.secret, request.leaf)
    };
    match (carry.iter().find(later), had_until) {
        (Some(workload), _) => Some(format!("{} was restarted for another one", workload.id)),
        (None, Some(until)) if carry.is_empty() => {
            Some(format!("what its workloads have is valid until {until}"))
        }
        _ => None,
    }
}
