//! How many bytes the rollouts of a namespace may hold.
//!
//! A batch holds its Secrets and the workloads that it restarts until the last of them is over, which may take days, and
//! a namespace may have many batches. What a user writes on one Secret is bounded; how many there are is not.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cert_renew_core::rollout::{Allowance, Request};
use cert_renew_core::secret::used_by::UsedBy;
use parking_lot::Mutex;

use super::held::Held;
use crate::rollout::Proof;

/// Most bytes that the batches of one namespace hold together.
const OF_NAMESPACE: usize = 8 * 1024 * 1024;
/// Most bytes that all batches hold together.
const OF_ALL: usize = 3 * OF_NAMESPACE;
/// What each namespace may hold however much others hold: some six hundred workloads.
const OF_EACH: usize = 2 * 1024 * 1024;
/// With less room than this no look begins: nearly all would be for nothing.
const LITTLE: usize = 256 * 1024;
/// Said of a Secret for which there is no room.
pub(super) const FULL: &str =
    "waits until other rollouts have ended: they hold as much memory as they may";

/// The bytes that batches hold.
#[derive(Debug, Default)]
pub(in crate::rollout) struct Room(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of: HashMap<Arc<str>, usize>,
}

impl Taken {
    /// What a namespace that holds so much may take beside.
    fn left(&self, own: usize) -> usize {
        let of_all = OF_ALL.saturating_sub(self.all);
        let shared = OF_NAMESPACE.saturating_sub(own).min(of_all);
        shared.max(OF_EACH.saturating_sub(own))
    }
}

impl Room {
    /// Nothing yet, of a namespace; what it takes is given back when the result is dropped.
    pub(super) fn of(&self, namespace: &Arc<str>) -> Share<'_> {
        let taken = self.0.lock();
        let own = taken.of.get(namespace).copied().unwrap_or(0);
        Share {
            room: self,
            namespace: Arc::clone(namespace),
            bytes: Mutex::default(),
            for_looks: taken.left(own) / 2,
            is_refused: AtomicBool::new(taken.left(own) < LITTLE),
        }
    }
}

/// What one batch holds.
#[derive(Debug)]
pub(super) struct Share<'a> {
    room: &'a Room,
    namespace: Arc<str>,
    bytes: Mutex<usize>,
    /// What its looks may take: the other half is for what is planned for them.
    for_looks: usize,
    /// Whether a look was refused, or every one would be.
    is_refused: AtomicBool,
}

impl Share<'_> {
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether no further look is worth its requests: there is no room for what it finds.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }

    /// Takes room for what a look has found: whether there is any.
    pub(super) fn take_for_look(&self, bytes: usize) -> bool {
        let has_room = *self.bytes.lock() + bytes <= self.for_looks && self.take(bytes);
        if !has_room {
            self.is_refused.store(true, Ordering::Relaxed);
        }
        has_room
    }

    /// Takes room for this number of bytes, if there is any; returns whether there was.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let mut taken = self.room.0.lock();
        let own = self.of_namespace(&taken);
        let has_room = bytes <= taken.left(own);
        if has_room {
            self.add(&mut taken, bytes);
        }
        has_room
    }

    /// Takes all that is left, for a plan. One Secret's workloads cannot be divided: they may be more, if no other batch
    /// of the namespace holds anything. Returns the bytes that were taken, of which the plan leaves some.
    pub(super) fn take_for_plan(&self) -> (usize, Allowance) {
        let mut taken = self.room.0.lock();
        let for_all = taken.left(self.of_namespace(&taken));
        let for_one = self.left_for_one(&taken);
        self.add(&mut taken, for_one);
        (for_one, Allowance { for_all, for_one })
    }

    fn left_for_one(&self, taken: &Taken) -> usize {
        let own = self.of_namespace(taken);
        let is_alone = own == *self.bytes.lock();
        let whole = if is_alone {
            OF_ALL.saturating_sub(taken.all)
        } else {
            0
        };
        taken.left(own).max(whole)
    }

    fn of_namespace(&self, taken: &Taken) -> usize {
        taken.of.get(&self.namespace).copied().unwrap_or(0)
    }

    fn add(&self, taken: &mut Taken, bytes: usize) {
        taken.all += bytes;
        *taken.of.entry(Arc::clone(&self.namespace)).or_default() += bytes;
        *self.bytes.lock() += bytes;
    }

    /// Gives this number of bytes back before the batch ends.
    pub(super) fn give_back(&self, bytes: usize) {
        let mut taken = self.room.0.lock();
        taken.all -= bytes;
        *self.bytes.lock() -= bytes;
        if let Some(own) = taken.of.get_mut(&self.namespace) {
            *own -= bytes;
            if *own == 0 {
                taken.of.remove(&self.namespace);
            }
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let bytes = *self.bytes.lock();
        self.give_back(bytes);
    }
}

/// Bytes that a Secret takes while it is rolled out, without the allocator's overhead.
pub(super) fn weight(request: &Request, held: &Held) -> usize {
    let proof = held.proof.as_ref().map_or(0, Proof::weight);
    let used_by = held.used_by.as_ref().map_or(0, UsedBy::weight);
    request.weight() + size_of::<Held>() + proof + used_by
}

#[cfg(test)]
mod tests {
    use cert_renew_core::rollout::ChangedKeys;
    use cert_renew_core::secret::keys;
    use cert_renew_core::secret::object::full::FullSecret;
    use serde_json::{from_value, json};

    use super::*;

    fn namespaces() -> Vec<Arc<str>> {
        (0..7).map(|it| format!("hostile-{it}").into()).collect()
    }

    #[test]
    fn what_the_batches_of_a_namespace_hold_is_bounded_and_others_have_theirs() {
        let (room, names) = (Room::default(), namespaces());
        let (one, same) = (room.of(&names[0]), room.of(&names[0]));
        assert!(one.take(OF_NAMESPACE - 100) && same.take(100));
        assert!(!same.take(1) && !one.take(1));
        assert!(
            room.of(&names[0]).is_refused(),
            "a further batch reads nothing"
        );
        drop(one);
        assert!(same.take(OF_NAMESPACE - 100) && !same.take(1));
        assert!(!room.of(&names[1]).is_refused() && room.of(&names[1]).take(OF_NAMESPACE));
    }

    #[test]
    fn what_all_batches_hold_is_bounded_and_each_namespace_has_some() {
        let (room, names) = (Room::default(), namespaces());
        let hostile: Vec<Share<'_>> = names[..3].iter().map(|name| room.of(name)).collect();
        assert!(hostile.iter().all(|of| of.take(OF_NAMESPACE)));
        let other = room.of(&names[3]);
        assert!(!other.take(OF_EACH + 1), "all is taken");
        let (all, allowance) = other.take_for_plan();
        assert_eq!((all, allowance.for_all), (OF_EACH, OF_EACH));
        assert!(!other.take(1));
        drop((hostile, other));
        let taken = room.0.lock();
        assert_eq!((taken.all, taken.of.len()), (0, 0));
    }

    #[test]
    fn looks_leave_half_of_the_room_to_the_plan() {
        let (room, names) = (Room::default(), namespaces());
        let batch = room.of(&names[0]);
        assert!(batch.take_for_look(OF_NAMESPACE / 2) && !batch.is_refused());
        assert!(!batch.take_for_look(1) && batch.is_refused());
        let (all, allowance) = batch.take_for_plan();
        assert_eq!(allowance.for_all, OF_NAMESPACE / 2);
        assert_eq!(
            (all, allowance.for_one),
            (OF_ALL - OF_NAMESPACE / 2, all),
            "it is alone"
        );
        batch.give_back(all - 100);
        let same = room.of(&names[0]);
        let (all, allowance) = same.take_for_plan();
        assert_eq!((all, allowance.for_one), (OF_NAMESPACE / 2 - 100, all));
    }

    #[test]
    fn what_a_user_writes_is_weighed() {
        let name = |number: usize| format!("{}{number:03}", "w".repeat(250));
        let all: Vec<String> = (0..64)
            .map(|it| format!("deployment/{}", name(it)))
            .collect();
        let used_by = all.join("=unavailable ") + "=unavailable";
        let annotations = json!({
            "cert-renew.io/issuer": "external", keys::USED_BY: format!("2023-11-14T22:13:20Z {used_by}"),
        });
        let secret: FullSecret =
            from_value(json!({"metadata": {"name": "tls", "annotations": annotations}})).unwrap();
        let workloads: Vec<_> = all.iter().map(|it| it.parse().unwrap()).collect();
        let (bare, request) = (
            Request::first_sight("tls", "u", None),
            Request {
                workloads: workloads.clone(),
                unwell: workloads,
                keys: ChangedKeys::only((0..100).map(|it| name(it).into())),
                ..Request::first_sight("tls", "u", None)
            },
        );
        let held = Held::of(&secret.head);
        let beside = weight(&bare, &held);
        assert!((64 * 253..64 * 400).contains(&beside), "{beside}");
        let written = weight(&request, &held) - beside;
        assert!((228 * 253..228 * 300).contains(&written), "{written}");
    }
}
