//! The looks at the Secrets of a batch: what the index knows, what is read again, and whether it may be rolled out.
//!
//! The same judgement applies when a batch is planned, and again before each effect on a workload.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cert_renew_core::assess::{self, Assessment};
use cert_renew_core::certificate::pair::{self, PairFault, Rollable};
use cert_renew_core::certificate::{Fingerprint, Leaf};
use cert_renew_core::config::Labels;
use cert_renew_core::index::{self, Entry, Finished};
use cert_renew_core::rollout::{ChangedKeys, Request, Workload};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::secret::object::head::Head;
use cert_renew_core::secret::parts::{self, Parts};
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::used_by::UsedBy;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use futures::future::BoxFuture;
use futures::stream;
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;

use super::held::{Age, Glance, Held, Look, Not, used_by_of};
use super::room::{FULL, Share, weight};
use super::{AGAIN, AT_ONCE, LOOK_AGAIN, Open, SOON, notify, record};
use crate::cluster::events::Reason;
use crate::cluster::{self, secrets};
use crate::process::permit;
use crate::process::task::TaskHandle;
use crate::rollout::rollouts::Rollouts;
use crate::rollout::{Judge, Proof, Withdrawal};

impl Rollouts {
    /// Looks at all Secrets of a batch; those that have a record are read again.
    pub(super) async fn look_at_all(
        &self,
        tickets: Vec<TaskHandle>,
        room: &Share<'_>,
    ) -> Vec<(TaskHandle, Glance)> {
        stream::iter(tickets)
            .map(|ticket| async move {
                let look = self.look(ticket.key(), room).await;
                (ticket, look)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    /// Turns looks into requests. New Secrets are only recorded, and those that are not due now end here.
    pub(super) async fn ask(
        &self,
        workloads: &[Workload],
        looks: Vec<(TaskHandle, Glance)>,
        room: &Share<'_>,
    ) -> (Vec<Request>, Open) {
        let carried = &cert_renew_core::rollout::Carried::by(workloads);
        let looked: Vec<(TaskHandle, Look)> = stream::iter(looks)
            .map(|(ticket, look)| async move {
                let look = match look {
                    Glance::Judged(look) => look,
                    Glance::Unrecorded(entry)
                        if carried.another(&ticket.key().name, leaf_of(&entry)) =>
                    {
                        self.read(ticket.key(), &entry, room).await
                    }
                    Glance::Unrecorded(entry) => {
                        fits(room, record::first_sight(ticket.key(), &entry))
                    }
                    Glance::Lost(..) => Look::Not(Not::until(UnixTime::now() + AGAIN, None)),
                };
                (ticket, look)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let (mut requests, mut open) = (Vec::new(), Open::new());
        for (ticket, look) in looked {
            match look {
                Look::Due(due) => {
                    let (request, held) = *due;
                    open.insert(request.secret.clone(), (ticket, held));
                    requests.push(request);
                }
                Look::Not(not) => self.not_now(ticket, not),
            }
        }
        // Where there is room for some of them only, these are the first.
        requests.sort_by_key(Request::served_until);
        (requests, open)
    }

    fn not_now(&self, ticket: TaskHandle, Not { at, why, shut }: Not) {
        if !shut {
            return ticket.finish(Finished::Later(at, why));
        }
        // The index knows of a window that was closed when the watch brought the Secret.
        let now = UnixTime::now();
        let told = |entry: &Entry| entry.observed.window.is_some_and(|opens| opens > now);
        if let Some(entry) = self.shared.entry(ticket.key()).filter(|it| !told(it)) {
            self.tell_shut(ticket.key(), &entry.observed.uid.to_string(), at);
        }
        ticket.finish(Finished::Shut(at));
    }

    async fn look(&self, key: &SecretRef, room: &Share<'_>) -> Glance {
        match self.shared.entry(key) {
            None => Glance::Judged(Look::Not(Not::until(UnixTime::now(), None))),
            Some(entry) if is_unrecorded(&entry) => Glance::Unrecorded(entry.into()),
            Some(entry) if entry.is_unrecorded() => match entry.rolled_out() {
                Some(had) => {
                    let had = match entry.observed.leaf {
                        Ok(leaf) => had.noting(leaf.fingerprint, leaf.with),
                        Err(_) => had,
                    };
                    Glance::Lost(entry.into(), had)
                }
                None => Glance::Unrecorded(entry.into()),
            },
            Some(entry) => Glance::Judged(self.read(key, &entry, room).await),
        }
    }

    /// Reads a Secret and judges it. Without room for it, it is looked at later.
    async fn read(&self, key: &SecretRef, entry: &Entry, room: &Share<'_>) -> Look {
        if room.is_refused() {
            return Look::Not(full());
        }
        let looked = permit::Look::take(async {
            let read = self.read_afresh(key, UnixTime::now()).await?;
            self.judge(key, entry, &read, UnixTime::now())
        });
        match looked.await {
            Ok((look, Found { request, held })) => {
                let look = Some(look);
                fits(room, (request, Held { look, ..held }))
            }
            Err(not) => Look::Not(not),
        }
    }
}

/// What a look has found, if there is room for it.
fn fits(room: &Share<'_>, (request, held): (Request, Held)) -> Look {
    if room.take_for_look(weight(&request, &held)) {
        Look::Due(Box::new((request, held)))
    } else {
        Look::Not(full())
    }
}

/// The others of the batch take room, and may be over soon; if not, the next look does not begin.
fn full() -> Not {
    Not::until(UnixTime::now() + SOON, Some(FULL.into()))
}

/// A Secret that may be rolled out.
struct Found {
    request: Request,
    held: Held,
}

impl Rollouts {
    /// A Secret as it is now, and what it asks for.
    async fn read_afresh(
        &self,
        key: &SecretRef,
        now: UnixTime,
    ) -> Result<(FullSecret, Assessment), Not> {
        let secret = match secrets::get(&self.shared.client, key).await {
            Ok(secret) => secret,
            Err(cluster::Error::NotFound { .. }) => return Err(Not::until(now + AGAIN, None)),
            Err(error) => return Err(Not::until(now + AGAIN, Some(error.to_string().into()))),
        };
        let config = self.shared.config();
        // No CA is asked from here, so labels do not matter.
        let view = (&*config, Labels::NotAsked);
        let suggested = |leaf| self.renewal_info.instant(key, leaf);
        match assess::of_full(now, key, &secret, view, suggested) {
            Some(assessment) => Ok((secret, assessment)),
            None => Err(Not::until(now + AGAIN, None)),
        }
    }
}

/// The judgement before each effect: the same as that by which the batch was planned.
pub(super) struct Again<'a> {
    pub(super) rollouts: &'a Rollouts,
    pub(super) namespace: &'a Arc<str>,
    pub(super) requests: HashMap<&'a str, &'a Request>,
    /// The Secrets whose overruled change window was already reported.
    pub(super) overruled: Mutex<BTreeSet<Box<str>>>,
}

impl Judge for Again<'_> {
    fn judge<'a>(&'a self, secret: &'a str) -> BoxFuture<'a, Result<(), Withdrawal>> {
        self.look(secret).boxed()
    }
}

impl Again<'_> {
    async fn look(&self, secret: &str) -> Result<(), Withdrawal> {
        let Self {
            rollouts,
            namespace,
            requests,
            ..
        } = self;
        let now = UnixTime::now();
        let withdrawn = |Not { at, why, shut }, superseded| Withdrawal {
            at,
            why,
            superseded,
            shut,
        };
        let key = SecretRef::new(Arc::clone(namespace), secret);
        let planned = requests.get(secret);
        let (Some(planned), Some(entry)) = (planned, rollouts.shared.entry(&key)) else {
            return Err(withdrawn(Not::until(now + AGAIN, None), true));
        };
        let read = rollouts.read_afresh(&key, now).await;
        let read = read.map_err(|not| {
            let gone = not.why.is_none();
            withdrawn(not, gone)
        })?;
        let (full, assessment) = &read;
        let holds = { assessment.leaf.as_ref() }.map(|leaf| (leaf.fingerprint, assessment.with));
        let superseded =
            holds != Ok((planned.leaf, planned.with)) || full.head.uid() != &*planned.uid;
        let judged = rollouts.judge(&key, &entry, &read, UnixTime::now());
        let found = judged.map_err(|not| withdrawn(not, superseded))?;
        let Found { request, held } = &found;
        if superseded || request.mode != planned.mode || request.workloads != planned.workloads {
            return Err(withdrawn(Not::until(now, None), superseded));
        }
        if let Some(opens) = held.overruled {
            self.overruled(&key, planned, opens);
        }
        Ok(())
    }

    /// Reports once that a Secret is rolled out although its change window is closed.
    pub(super) fn overruled(&self, key: &SecretRef, request: &Request, opens: UnixTime) {
        let mut told = self.overruled.lock();
        if told.insert(request.secret.clone()) {
            notify::overruled(&self.rollouts.shared, key, &request.uid, opens);
        }
    }
}

fn leaf_of(entry: &Entry) -> Option<Fingerprint> {
    entry.observed.leaf.ok().map(|leaf| leaf.fingerprint)
}

/// Whether neither the Secret nor the index has a record that its workloads ever had another leaf.
fn is_unrecorded(entry: &Entry) -> bool {
    let holds = |had: RolledOut| {
        let leaf = entry.observed.leaf;
        leaf.is_ok_and(|leaf| had.is(leaf.fingerprint, leaf.with))
    };
    entry.observed.rolled_out.is_none() && entry.rolled_out().is_none_or(holds)
}

impl Rollouts {
    /// Whether the Secret as it is now may be rolled out.
    fn judge(
        &self,
        key: &SecretRef,
        entry: &Entry,
        (secret, assessment): &(FullSecret, Assessment),
        now: UnixTime,
    ) -> Result<Found, Not> {
        if let Some(opens) = assessment.opens {
            return Err(Not::shut(opens));
        }
        if assessment.rollout_blocked {
            return Err(Not::until(UnixTime::NEVER, None));
        }
        let served_expired = matches!(entry.rolled_out(), Some(RolledOut::Leaf { not_after, .. }) if not_after <= now);
        let is_due = assessment.renewal.is_ok_and(|due| due.at <= now);
        if is_due && assessment.held_until.is_none() && !served_expired {
            return Err(Not::until(
                now + LOOK_AGAIN,
                Some("waits for the renewal that is due".into()),
            ));
        }
        let (certificate, private_key) = secret.pair();
        let strictness = pair::Strictness {
            external: assessment.is_external(),
            der: secret.place().der,
        };
        let leaf = match pair::check_rollable(certificate, private_key, now, strictness) {
            Ok(Rollable { leaf, unproven }) => {
                if let Some(error) = unproven {
                    tracing::info!(secret = %key, %error, "it is not known whether the key is the certificate's");
                }
                leaf
            }
            Err(fault) => {
                if matches!(fault, PairFault::Unservable(_)) && !assessment.is_external() {
                    // It will be rewritten in another form, and the watch brings that.
                    self.shared.doubts.add(key);
                }
                let note = format!("workloads keep what they have: {}", error_chain(&fault));
                if entry.rollout_error.as_deref() != Some(index::kept(&note)) {
                    tracing::warn!(secret = %key, note, "not restarted");
                    self.shared
                        .events
                        .secret(key, secret.head.uid(), Reason::NotRolledOut, &note);
                }
                return Err(Not::until(now + LOOK_AGAIN, Some(note.into())));
            }
        };
        let had = assessment.rolled_out.or_else(|| entry.rolled_out());
        let holds = (leaf.fingerprint, assessment.with);
        let (on, external) = (assessment.settings.rollout_on, assessment.is_external());
        let changed = RolledOut::changed(had, holds, on, external);
        let previous = had.and_then(RolledOut::fingerprint);
        let proof = { assessment.settings.verify.clone() }
            .map(|service| Proof::new(service, &leaf, previous));
        let age = age_of(assessment, &leaf, had);
        Ok(Found {
            request: request_of(key, entry, (secret, assessment), &leaf, changed),
            held: Held {
                proof,
                overruled: assessment.overruled,
                age: Some(age),
                ..Held::of(&secret.head)
            },
        })
    }
}

/// The request of a Secret that holds this leaf, for workloads that lack what has changed.
fn request_of(
    key: &SecretRef,
    entry: &Entry,
    (secret, assessment): (&FullSecret, &Assessment),
    leaf: &Leaf,
    changed: Parts,
) -> Request {
    let used_by = used_by_of(&secret.head);
    let unwell = used_by.iter().flat_map(UsedBy::unwell).cloned();
    Request {
        secret: (*key.name).into(),
        uid: secret.head.uid().into(),
        leaf: leaf.fingerprint,
        with: assessment.with,
        not_after: leaf.not_after,
        rolled_out: assessment.rolled_out,
        remembered: entry.rolled_out().and_then(RolledOut::fingerprint),
        halted: assessment.halted.clone(),
        mode: assessment.settings.rollout.clone(),
        workloads: assessment.settings.workloads.clone(),
        changed,
        keys: changed_keys(secret, assessment, changed),
        written: secret.written(),
        unwell: unwell.collect(),
    }
}

fn age_of(assessment: &Assessment, leaf: &Leaf, had: Option<RolledOut>) -> Age {
    let ours = assessment.issued_by.as_ref();
    Age {
        not_before: leaf.not_before,
        had_until: match had {
            Some(RolledOut::Leaf { not_after, .. }) => Some(not_after),
            _ => None,
        },
        ours: ours.and_then(|issued_by| issued_by.wrote(leaf.fingerprint)),
    }
}

impl Rollouts {
    /// The request of a Secret, for workloads that take its leaf, whether or not it may be rolled out now; `None` where
    /// it is gone, holds no certificate, or restarts no workload for its leaf.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) async fn as_it_is(
        &self,
        key: &SecretRef,
        entry: &Entry,
    ) -> Result<Option<(Request, Head, Age)>, Not> {
        let (secret, assessment) = match self.read_afresh(key, UnixTime::now()).await {
            Ok(read) => read,
            Err(Not { why: None, .. }) => return Ok(None),
            Err(not) => return Err(not),
        };
        let Ok(leaf) = assessment.leaf.as_ref() else {
            return Ok(None);
        };
        let changed = Parts {
            leaf: assessment.settings.rollout_on.leaf,
            ..Parts::NONE
        };
        if changed == Parts::NONE {
            return Ok(None);
        }
        let request = request_of(key, entry, (&secret, &assessment), leaf, changed);
        let age = age_of(&assessment, leaf, assessment.rolled_out);
        Ok(Some((request, secret.head, age)))
    }
}

/// The data keys that differ from what the workloads have. If another program writes the Secret, it may change any:
/// then all keys except those known to be unchanged.
fn changed_keys(secret: &FullSecret, assessment: &Assessment, changed: Parts) -> ChangedKeys {
    let place = secret.place();
    let ca = changed.ca.then(|| Box::from(parts::CA_KEY));
    if !changed.leaf && !changed.chain {
        return ChangedKeys::only(ca);
    }
    let private_key = Some(place.key).filter(|key| *key != place.certificate);
    if assessment.is_external() {
        let same_ca = (!changed.ca).then(|| Box::from(parts::CA_KEY));
        let same_key = private_key.filter(|_| !changed.leaf);
        return ChangedKeys::all_but(same_ca.into_iter().chain(same_key));
    }
    let keys = ca.into_iter().chain([place.certificate]);
    if !changed.leaf {
        // The outputs have not been rendered since.
        return ChangedKeys::only(keys);
    }
    let outputs = &assessment.settings.outputs;
    let outputs = outputs.iter().map(|output| output.name.clone());
    ChangedKeys::only(keys.chain(private_key).chain(outputs))
}
