//! The pods of one workload while they are replaced: what of them is decoded and kept, and which one goes next.
//!
//! A pod may have a hundred thousand variables, and a namespace may change its pods thousands of times a second. So
//! nothing of a pod's spec is decoded, and an event takes no more time where there are many pods.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cert_renew_core::rollout::decode::{Condition, Meta};
use cert_renew_core::rollout::lean::Kept;
use cert_renew_core::rollout::types::{DueLeaf, Step};
use cert_renew_core::rollout::workload::{Workload, leaf_annotation};
use cert_renew_core::time::UnixTime;
use kube::Resource;
use kube::api::ObjectMeta;
use kube::core::NamespaceResourceScope;
use serde::Deserialize;

/// Most pods of one workload, which take some two megabytes: as many as the largest supported cluster has nodes
/// (Kubernetes, "Considerations for large clusters").
pub(super) const MOST: usize = 5_000;

/// What the API server sends of a pod, without its spec.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Wire")]
pub(super) struct ThinPod {
    /// Name, uid and version only, for the client library.
    meta: ObjectMeta,
    wire: Wire,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Wire {
    metadata: Meta,
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: Box<str>,
    conditions: Kept<Condition>,
}

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) uid: Box<str>,
    pub(super) old: bool,
    pub(super) ready: bool,
    pub(super) leaving: bool,
    /// It should have ended by now: its node is dead, as a rule.
    pub(super) hung: bool,
}

/// The next action.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    Done,
    Evict(&'a str, &'a Seen),
    Wait,
}

/// The number at the end of a pod's name, and the name.
type Key = (Option<u32>, Arc<str>);

/// The pods of a workload, in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct Pods {
    all: BTreeMap<Arc<str>, Seen>,
    /// How many are old, also of those that leave.
    old: usize,
    /// How many serve.
    serving: usize,
    /// Those that do not serve.
    missing: BTreeSet<Key>,
    /// Old ones that stay, and of these the ones that are not ready.
    stale: BTreeSet<Key>,
    broken: BTreeSet<Key>,
}

impl Resource for ThinPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        "".into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

impl From<Wire> for ThinPod {
    fn from(wire: Wire) -> Self {
        let meta = ObjectMeta {
            name: Some(wire.metadata.name.to_string()),
            resource_version: Some(wire.metadata.resource_version().to_owned()),
            uid: Some(wire.metadata.uid().to_owned()),
            ..ObjectMeta::default()
        };
        Self { meta, wire }
    }
}

impl ThinPod {
    pub(super) fn name(&self) -> &str {
        &self.wire.metadata.name
    }

    /// Whether the workload is responsible for the pod, and the pod has not ended.
    pub(super) fn belongs_to(&self, workload: &Workload) -> bool {
        let Wire { metadata, status } = &self.wire;
        let has_ended = matches!(&*status.phase, "Succeeded" | "Failed");
        metadata.is_controlled_by(&workload.uid) && !has_ended
    }

    pub(super) fn see(&self, step: &Step) -> Seen {
        let Wire { metadata, status } = &self.wire;
        let has = |due: &DueLeaf| {
            let value = metadata.annotation(&leaf_annotation(&due.secret));
            value.is_some_and(|value| due.is_said_by(value))
        };
        // When it should have ended, including its grace period.
        let ends = metadata.ends();
        Seen {
            uid: metadata.uid().into(),
            old: !step.leaves.iter().all(has),
            ready: status.conditions.iter().any(|it| it.is_true("Ready")),
            leaving: metadata.is_leaving(),
            hung: ends.is_some_and(|ends| ends < UnixTime::now()),
        }
    }
}

impl Seen {
    /// A pod that is being deleted does not serve, and may take hours to go.
    fn serves(&self) -> bool {
        self.ready && !self.leaving
    }
}

impl Pods {
    /// Notes a pod as it is now; false if there are too many.
    pub(super) fn set(&mut self, name: &str, seen: Seen) -> bool {
        self.remove(name);
        if self.all.len() >= MOST {
            return false;
        }
        let name: Arc<str> = name.into();
        let key = || (ordinal(&name), Arc::clone(&name));
        self.old += usize::from(seen.old);
        self.serving += usize::from(seen.serves());
        if !seen.serves() {
            self.missing.insert(key());
        }
        if seen.old && !seen.leaving {
            self.stale.insert(key());
            if !seen.ready {
                self.broken.insert(key());
            }
        }
        self.all.insert(name, seen);
        true
    }

    /// Forgets a pod, which is gone.
    pub(super) fn remove(&mut self, name: &str) -> Option<Seen> {
        let (name, seen) = self.all.remove_entry(name)?;
        self.old -= usize::from(seen.old);
        self.serving -= usize::from(seen.serves());
        let key = (ordinal(&name), name);
        for keys in [&mut self.missing, &mut self.stale, &mut self.broken] {
            keys.remove(&key);
        }
        Some(seen)
    }

    /// Notes that a pod is being deleted: the watch may be late to show it.
    pub(super) fn leaves(&mut self, name: &str) {
        if let Some(seen) = self.remove(name) {
            self.set(
                name,
                Seen {
                    leaving: true,
                    ..seen
                },
            );
        }
    }

    /// Number of pods, also of those that leave.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many are old, also of those that leave.
    pub(super) fn old(&self) -> i64 {
        count(self.old)
    }

    /// How many are not old, also of those that leave.
    pub(super) fn updated(&self) -> i64 {
        count(self.all.len() - self.old)
    }

    /// How many serve.
    pub(super) fn serving(&self) -> i64 {
        count(self.serving)
    }

    /// Pods that serve at the beginning, or are about to: a replacement that starts may be from our earlier run. It looks
    /// at all, once.
    pub(super) fn served(&self) -> i64 {
        let served = self.all.values().filter(|pod| match pod.leaving {
            true => !pod.hung,
            false => pod.ready || !pod.old,
        });
        count(served.count())
    }

    /// Evicts one pod at a time, and only while as many are ready as at the beginning (`floor`). A pod of an `ordered`
    /// StatefulSet goes only while all of lower ordinals are ready: it would not come back before.
    pub(super) fn next(&self, wanted: i64, floor: i64, ordered: bool) -> Next<'_> {
        // An old pod that is not ready serves nobody: it goes first, and at once.
        if let Some(key) = self.broken.first() {
            return self.evict(key);
        }
        let comes_back = |key: &Key| {
            let lowest = self.missing.first();
            !ordered || lowest.is_none_or(|lowest| key.0 <= lowest.0)
        };
        match self.stale.first() {
            Some(key) if self.serving() >= floor && comes_back(key) => self.evict(key),
            None if self.serving() >= wanted => Next::Done,
            _ => Next::Wait,
        }
    }

    fn evict<'a>(&'a self, (_, name): &'a Key) -> Next<'a> {
        let pod = self.all.get(name);
        pod.map_or(Next::Wait, |pod| Next::Evict(name, pod))
    }
}

fn count(pods: usize) -> i64 {
    i64::try_from(pods).unwrap_or(i64::MAX)
}

/// The number at the end of a name.
fn ordinal(name: &str) -> Option<u32> {
    name.rsplit_once('-')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use cert_renew_core::secret::workload::Kind;
    use cert_renew_core::testing::{self, slower_than_linear_in};
    use serde_json::{Value, json};

    use super::*;

    /// By letter: old, new, starting, leaving, broken.
    fn seen(letter: char) -> Seen {
        Seen {
            uid: "".into(),
            old: "olb".contains(letter),
            ready: "onl".contains(letter),
            leaving: letter == 'l',
            hung: false,
        }
    }

    #[test]
    fn one_pod_goes_at_a_time_and_only_while_the_others_are_ready() {
        for (letters, floor, expected) in [
            ("oo", 2, "evict db-0"),
            ("lo", 2, "wait"),
            ("lno", 2, "evict db-2"),
            ("no", 2, "evict db-1"),
            ("so", 2, "wait"),
            ("nn", 2, "done"),
            ("lnn", 2, "done"),
            ("ns", 2, "wait"),
            ("ob", 2, "evict db-1"),
            ("sb", 2, "evict db-1"),
            ("", 2, "wait"),
            // One was not ready before: the other one does not wait for it, but nothing is done without it.
            ("lo", 1, "evict db-1"),
            ("so", 1, "evict db-1"),
            ("ln", 1, "wait"),
            ("sn", 1, "wait"),
            ("sl", 1, "wait"),
            ("l", 0, "wait"),
        ] {
            let mut pods = Pods::default();
            for (number, letter) in letters.chars().enumerate() {
                assert!(pods.set(&format!("db-{number}"), seen(letter)));
            }
            let said = match pods.next(2, floor, false) {
                Next::Done => "done".to_owned(),
                Next::Wait => "wait".to_owned(),
                Next::Evict(name, _) => format!("evict {name}"),
            };
            assert_eq!(said, expected, "{letters}");
            // A controller that creates pods in order creates none while a lower one is missing.
            let kept = ["lo", "lno", "so"].contains(&letters);
            if let Next::Evict(..) = pods.next(2, floor, true) {
                assert!(!kept, "{letters}");
            }
        }
        assert_eq!(Pods::default().next(0, 0, true), Next::Done);
    }

    #[test]
    fn what_is_counted_follows_each_change_of_a_pod() {
        let mut pods = Pods::default();
        let counts = |pods: &Pods| (pods.old(), pods.updated(), pods.serving());
        for (name, letter, expected) in [
            ("db-10", 'o', (1, 0, 1)),
            ("db-2", 'o', (2, 0, 2)),
            ("db-10", 'n', (1, 1, 2)),
            ("db-10", 's', (1, 1, 1)),
        ] {
            pods.set(name, seen(letter));
            assert_eq!(counts(&pods), expected, "{name} {letter}");
        }
        // By number, not by text: the one that is missing has a higher one.
        assert!(matches!(pods.next(2, 1, true), Next::Evict("db-2", _)));
        pods.leaves("db-2");
        assert_eq!(counts(&pods), (1, 1, 0));
        assert_eq!(pods.next(2, 0, false), Next::Wait);
        pods.remove("db-2");
        assert_eq!((counts(&pods), pods.len()), ((0, 1, 0), 1));
    }

    #[test]
    fn an_event_of_one_of_very_many_pods_takes_no_longer() {
        // One pod for each 256 bytes of length.
        let made = |length: usize| -> Vec<String> {
            let names = (0..length / 256).map(|number| format!("db-{number}"));
            names.collect()
        };
        let slow = slower_than_linear_in(made, |names| {
            let mut pods = Pods::default();
            for (number, name) in names.iter().enumerate() {
                let letter = if number == 0 { 'l' } else { 'o' };
                assert!(pods.set(name, seen(letter)));
                assert_eq!(pods.next(9_999, 0, true), Next::Wait);
                assert!(pods.serving() + pods.updated() < pods.old());
            }
        });
        assert_eq!(slow, None);
    }

    #[test]
    fn more_pods_than_a_cluster_has_nodes_are_not_kept() {
        let mut pods = Pods::default();
        for number in 0..MOST {
            assert!(pods.set(&format!("db-{number}"), seen('o')));
        }
        assert!(!pods.set("db-x", seen('o')));
        assert!(pods.set("db-0", seen('n')), "it is known");
        assert_eq!(pods.len(), MOST);
    }

    fn pod(owners: Value, phase: &str) -> ThinPod {
        // As large as a pod may be.
        let env = vec![json!({"name": "a"}); 230_000];
        let pod = json!({
            "metadata": {
                "name": "db-0", "uid": "u", "resourceVersion": "7", "ownerReferences": owners,
                "annotations": {"other": "x", "state.cert-renew.io/leaf.tls": "y"},
                "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "c", "env": env}]},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": "True"}]}});
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn nothing_of_a_pods_spec_is_decoded() {
        let pod = pod(json!([]), "Pending");
        assert!(format!("{pod:?}").len() < 4_000);
        let meta = pod.meta();
        assert_eq!(meta.resource_version.as_deref(), Some("7"));
        assert_eq!((pod.name(), meta.uid.as_deref()), ("db-0", Some("u")));
        let step = testing::of_secrets("db", &["tls"]);
        let value = step.leaves[0].value();
        let new = json!({"metadata": {"annotations": {(leaf_annotation("tls")): value}}});
        let new: ThinPod = serde_json::from_value(new).unwrap();
        assert!(!new.see(&step).old);
        assert_eq!(
            pod.see(&step),
            Seen {
                uid: "u".into(),
                old: true,
                ready: true,
                leaving: true,
                hung: true,
            }
        );
    }

    #[test]
    fn a_pod_belongs_to_the_workload_that_controls_it() {
        let object = json!({"metadata": {"name": "db", "uid": "w"}});
        let workload = testing::workload(Kind::StatefulSet, object);
        for (uid, controller, phase, expected) in [
            ("w", json!(true), "Running", true),
            ("w", json!(true), "Failed", false),
            ("w", json!(false), "Running", false),
            ("w", json!(null), "Running", false),
            ("x", json!(true), "Running", false),
        ] {
            let owner = json!({"uid": uid, "controller": controller});
            let pod = pod(json!([owner]), phase);
            let row = format!("{uid} {controller} {phase}");
            assert_eq!(pod.belongs_to(&workload), expected, "{row}");
        }
    }
}
