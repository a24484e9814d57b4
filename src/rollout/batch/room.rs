//! How many bytes the rollouts of a namespace may hold.
//!
//! A batch holds its Secrets and the workloads that it restarts until the last of them is over, which may take days, and
//! a namespace may have many batches. What a user writes on one Secret is bounded; how many there are is not.

use std::collections::HashMap;
use std::sync::Arc;

use cert_renew_core::rollout::Request;
use cert_renew_core::secret::used_by::UsedBy;
use parking_lot::Mutex;

use super::held::Held;
use crate::rollout::Proof;

/// Most bytes that the batches of one namespace hold together.
const OF_NAMESPACE: usize = 8 * 1024 * 1024;
/// Most bytes that all batches hold together.
const OF_ALL: usize = 3 * OF_NAMESPACE;
/// What each namespace may hold however much others hold: some two thousand workloads.
const OF_EACH: usize = 2 * 1024 * 1024;
/// Said of a Secret for which there is no room.
pub(super) const FULL: &str =
    "waits: the rollouts of its namespace already hold as much as they may";

/// The bytes that batches hold.
#[derive(Debug, Default)]
pub(in crate::rollout) struct Room(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of: HashMap<Arc<str>, usize>,
}

impl Room {
    /// Nothing yet, of a namespace; what it takes is given back when the result is dropped.
    pub(super) fn of(&self, namespace: &Arc<str>) -> Share<'_> {
        Share {
            room: self,
            namespace: Arc::clone(namespace),
            bytes: Mutex::default(),
        }
    }
}

/// What one batch holds.
#[derive(Debug)]
pub(super) struct Share<'a> {
    room: &'a Room,
    namespace: Arc<str>,
    bytes: Mutex<usize>,
}

impl Share<'_> {
    /// Takes room for so many bytes: whether there is any.
    pub(super) fn take(&self, bytes: usize) -> bool {
        self.take_beside(bytes, false)
    }

    /// The same for what cannot be divided: it may be more, if no other batch of the namespace holds anything.
    pub(super) fn take_whole(&self, bytes: usize) -> bool {
        self.take_beside(bytes, true)
    }

    fn take_beside(&self, bytes: usize, whole: bool) -> bool {
        let mut taken = self.room.0.lock();
        let held = { taken.of.get(&self.namespace) }.copied().unwrap_or(0);
        let alone = whole && held == *self.bytes.lock();
        let (own, all) = (held + bytes, taken.all + bytes);
        let has_room = own <= OF_EACH || ((own <= OF_NAMESPACE || alone) && all <= OF_ALL);
        if has_room {
            taken.all = all;
            taken.of.insert(Arc::clone(&self.namespace), own);
            *self.bytes.lock() += bytes;
        }
        has_room
    }

    /// Gives so many bytes back before the batch ends.
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

    #[test]
    fn what_the_batches_of_a_namespace_hold_is_bounded_and_others_have_theirs() {
        let room = Room::default();
        let names: Vec<Arc<str>> = (0..5).map(|it| format!("hostile-{it}").into()).collect();
        let (one, same) = (room.of(&names[0]), room.of(&names[0]));
        assert!(one.take(OF_NAMESPACE - 100) && same.take(100));
        assert!(!same.take(1) && !one.take(1));
        drop(one);
        assert!(same.take(OF_NAMESPACE - 100) && !same.take(1));
        assert!(room.of(&names[1]).take(OF_NAMESPACE));
    }

    #[test]
    fn what_all_batches_hold_is_bounded_and_each_namespace_has_some() {
        let room = Room::default();
        let names: Vec<Arc<str>> = (0..5).map(|it| format!("hostile-{it}").into()).collect();
        let same = room.of(&names[0]);
        assert!(same.take(OF_NAMESPACE));
        let others: Vec<Share<'_>> = names[1..].iter().map(|name| room.of(name)).collect();
        assert!(others[0].take(OF_NAMESPACE) && others[1].take(OF_NAMESPACE));
        assert!(!others[2].take(OF_EACH + 1), "all is taken");
        assert!(others[2].take(OF_EACH) && !others[2].take(1));
        drop((same, others));
        let (one, same) = (room.of(&names[0]), room.of(&names[0]));
        assert!(one.take(100) && one.take_whole(OF_NAMESPACE), "it is alone");
        assert!(!same.take_whole(1));
        one.give_back(OF_NAMESPACE);
        assert!(same.take_whole(OF_NAMESPACE - 100) && !one.take(1));
        assert!(!room.of(&names[1]).take_whole(OF_ALL), "nor more than all");
        drop((one, same));
        let taken = room.0.lock();
        assert_eq!((taken.all, taken.of.len()), (0, 0));
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
