//! The decisions of cert-renew-core, on real certificates, keys, annotations and JSON.
//!
//! Each is a function of a small input, so that its answer is kept: the checker asks millions of times.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cert_renew_core::assess::{self, Assessment, Ordered};
use cert_renew_core::certificate::key::PrivateKey;
use cert_renew_core::certificate::pair::{self, ExpectedPair};
use cert_renew_core::config::{Config, Labels};
use cert_renew_core::index::{Index, Source, Task};
use cert_renew_core::rollout::decode::Object;
use cert_renew_core::rollout::{self, Carried, ChangedKeys, Decision, Progress, Request};
use cert_renew_core::schedule::due::Suggestion;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::settings::FORCE;
use cert_renew_core::secret::state::{IssuedBy, RolledOut};
use cert_renew_core::secret::workload::Kind;
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use serde_json::{Value, from_value, json};
use test_bench::certificates::{DAY, HOUR, Pair, Template, TestCa};

use crate::world::{Leaf, MOST, Names, Number, Secret, Workload};

const CONFIG: &str = "
issuers:
  ca:
    directory: https://ca.example/directory
    contact: ops@example.com
    allow: [{namespaces: [shop], names: ['*.shop.example']}]
";
const ISSUER: &str = "ca";
const NAMESPACE: &str = "shop";
const NAME: &str = "tls";
const UID: &str = "uid";
/// How long ago the orders were made, and the pairs written.
const ORDERED: Duration = Duration::from_secs(3_000);
const WRITTEN: Duration = Duration::from_secs(1_000);

/// What an order's record says to do, by the Secret as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The Secret holds its certificate.
    Written,
    /// The Secret wants its certificate, and is due.
    Wanted,
    /// The Secret would take its certificate, but is not due.
    Undue,
    /// The Secret asks for something else.
    Unwanted,
}

/// What is to be done about a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rolling {
    /// Nothing now.
    Not,
    /// `rolled-out` is written, and nothing restarted.
    Record(Option<Leaf>),
    /// The workload is patched for this certificate.
    Patch(Leaf),
    /// It was patched, and is waited for.
    Wait(Leaf),
    /// It has the certificate.
    Conclude(Leaf),
}

/// The core, with its answers.
pub(crate) struct Core {
    now: UnixTime,
    config: Config,
    key: SecretRef,
    pairs: Vec<[Pair; 2]>,
    tasks: Kept<(Secret, bool), (bool, bool)>,
    due: Kept<Secret, bool>,
    standing: Kept<(Secret, Number, Names), Standing>,
    wanted: Kept<(Secret, Names), bool>,
    written: Kept<(Secret, Leaf), Option<Secret>>,
    rolling: Kept<(Secret, Option<Secret>, Workload), Rolling>,
}

/// Answers by question.
struct Kept<K, V>(Mutex<HashMap<K, V>>);

impl<K: Eq + Hash + Copy, V: Copy> Kept<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn get(&self, question: K, answer: impl FnOnce() -> V) -> V {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *kept.entry(question).or_insert_with(answer)
    }
}

impl Core {
    /// Makes the certificates of all orders.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let ca = TestCa::new("Model CA")?;
        let mut pairs = Vec::new();
        for order in 0..MOST {
            // The first is due by its lifetime.
            let (from, until) = if order == 0 {
                (-80 * DAY, 10 * DAY)
            } else {
                (-HOUR, 90 * DAY)
            };
            let pair = |names| {
                let template = Template::new(&[text(names)]).between(from, until);
                template.signed_by(&ca)
            };
            pairs.push([pair(Names::First)?, pair(Names::Other)?]);
        }
        Ok(Self {
            now: UnixTime::now(),
            config: Config::parse(CONFIG).map_err(|faults| anyhow::anyhow!("{faults}"))?,
            key: SecretRef::new(NAMESPACE, NAME),
            pairs,
            tasks: Kept::new(),
            due: Kept::new(),
            standing: Kept::new(),
            wanted: Kept::new(),
            written: Kept::new(),
            rolling: Kept::new(),
        })
    }

    /// Which tasks the index begins for a Secret as the watch has brought it: renewal, rollout.
    pub(crate) fn tasks(&self, seen: Secret, order_open: bool) -> (bool, bool) {
        self.tasks.get((seen, order_open), || {
            let thin: ThinSecret = from_value(self.json(seen)).expect("any JSON object is one");
            let assessment = assess::of_thin(self.now, &self.key, &thin, &self.config);
            let assessment = assessment.expect("it names an issuer");
            let mut observed = assessment.observed(UID, "1");
            // The CA has no renewal information.
            observed.suggestion = Suggestion::None;
            let mut index = Index::default();
            index.apply(
                self.now,
                &self.key,
                observed,
                Source(0),
                Duration::ZERO,
                None,
            );
            if order_open {
                index.order_open(self.now, &self.key, true);
            }
            let tasks = std::iter::from_fn(|| index.pop_due(self.now));
            let tasks: Vec<Task> = tasks.map(|(task, _)| task).collect();
            (tasks.contains(&Task::Renew), tasks.contains(&Task::Roll))
        })
    }

    /// Whether a Secret is due for a renewal.
    pub(crate) fn is_due(&self, secret: Secret) -> bool {
        self.due.get(secret, || {
            let (_, assessment) = self.assess(secret);
            assessment.renewal.is_ok_and(|due| due.at <= self.now)
        })
    }

    /// What the record of an order says to do.
    pub(crate) fn standing(&self, secret: Secret, order: Number, names: Names) -> Standing {
        self.standing.get((secret, order, names), || {
            let (_, assessment) = self.assess(secret);
            let ordered_names = [name(names)];
            let ordered = Ordered {
                names: &ordered_names,
                created: self.now - ORDERED,
                by_the_ca: false,
            };
            let key = self.private_key(Leaf { order, names });
            if assessment.holds(ordered, &key.public_key()) {
                Standing::Written
            } else if !assessment.still_wants(ordered) {
                Standing::Unwanted
            } else if assessment.awaits(self.now, ordered) {
                Standing::Wanted
            } else {
                Standing::Undue
            }
        })
    }

    /// Whether a Secret asks for the certificate of an order, be it there already or not: what the look before each
    /// write asks.
    pub(crate) fn still_wants(&self, secret: Secret, names: Names) -> bool {
        self.wanted.get((secret, names), || {
            let (_, assessment) = self.assess(secret);
            let ordered_names = [name(names)];
            assessment.still_wants(Ordered {
                names: &ordered_names,
                created: self.now - ORDERED,
                by_the_ca: false,
            })
        })
    }

    /// The Secret after the pair of an order was written into it, if the core's checks let it pass.
    pub(crate) fn written(&self, secret: Secret, leaf: Leaf) -> Option<Secret> {
        self.written.get((secret, leaf), || {
            let (_, assessment) = self.assess(secret);
            let key = self.private_key(leaf);
            let names = [name(leaf.names)];
            let due = self.is_due(secret);
            let asked = ExpectedPair {
                key: &key,
                names: &names,
                not_sooner_than: assessment.leaf.as_ref().ok().filter(|_| !due),
                staging: false,
            };
            let pem = self.pair(leaf).certificate.as_bytes();
            pair::check_issued(pem, &asked, self.now).ok()?;
            Some(Secret {
                leaf: Some(leaf),
                issued: Some(leaf),
                renewed_for: secret.renew_now,
                // What the workloads have until their rollout.
                rolled_out: secret.rolled_out.or(Some(secret.leaf)),
                ..secret
            })
        })
    }

    /// What is to be done about the workload, by the Secret and the workload as they were just read; `seen` is the
    /// Secret that the watch has brought, where that has no record of what the workloads have.
    pub(crate) fn rolling(
        &self,
        secret: Secret,
        seen: Option<Secret>,
        workload: Workload,
    ) -> Rolling {
        self.rolling.get((secret, seen, workload), || {
            let object: Object =
                from_value(self.workload(workload)).expect("any JSON object is one");
            let workloads = [object.read(Kind::Deployment)];
            if let Some(seen) = seen {
                let (_, assessment) = self.assess(seen);
                let leaf = assessment.leaf.as_ref().ok().map(|leaf| leaf.fingerprint);
                if !Carried::by(&workloads).another(NAME, leaf) {
                    return Rolling::Record(seen.leaf);
                }
            }
            let (full, assessment) = self.assess(secret);
            // As `rollout::batch::look::Rollouts::judge` does.
            let is_due = assessment.renewal.is_ok_and(|due| due.at <= self.now);
            let is_held = assessment.opens.is_some() || assessment.rollout_blocked;
            if is_held || is_due && assessment.held_until.is_none() {
                return Rolling::Not;
            }
            let (certificate, key) = full.pair();
            let look = pair::Strictness::default();
            let Ok(rollable) = pair::check_rollable(certificate, key, self.now, look) else {
                return Rolling::Not;
            };
            let Some(held) = secret.leaf else {
                return Rolling::Not;
            };
            let had = assessment.rolled_out;
            let holds = (rollable.leaf.fingerprint, assessment.with);
            let request = Request {
                secret: NAME.into(),
                uid: UID.into(),
                leaf: rollable.leaf.fingerprint,
                with: assessment.with,
                not_after: rollable.leaf.not_after,
                rolled_out: had,
                remembered: None,
                halted: assessment.halted.clone(),
                mode: assessment.settings.rollout.clone(),
                workloads: assessment.settings.workloads.clone(),
                changed: RolledOut::changed(had, holds, assessment.settings.rollout_on, false),
                keys: ChangedKeys::any(),
                written: None,
                unwell: Vec::new(),
            };
            let plan = rollout::plan(self.now, &[request], &workloads, &self.config.rollout);
            let (_, verdict) = &plan.verdicts[0];
            match (verdict, plan.steps.first()) {
                (Decision::Roll, None) => Rolling::Conclude(held),
                (Decision::Roll, Some(step)) if step.is_carried_by(&workloads[0]) => {
                    Rolling::Wait(held)
                }
                (Decision::Roll, Some(_)) => Rolling::Patch(held),
                (Decision::Halted(_) | Decision::PutOff, _) => Rolling::Not,
                (Decision::UpToDate | Decision::FirstSight | Decision::NothingRefers, _) => {
                    Rolling::Record(Some(held))
                }
            }
        })
    }

    /// Whether a workload has come to the end of its rollout.
    pub(crate) fn is_through(&self, workload: Workload) -> bool {
        let object: Object = from_value(self.workload(workload)).expect("any JSON object is one");
        rollout::progress(&object.read(Kind::Deployment), 0) == Progress::Done
    }

    fn assess(&self, secret: Secret) -> (FullSecret, Assessment) {
        let full: FullSecret = from_value(self.json(secret)).expect("any JSON object is one");
        let view = (&self.config, Labels::NotAsked);
        let assessment = assess::of_full(self.now, &self.key, &full, view, |_| None);
        (full, assessment.expect("it names an issuer"))
    }

    fn pair(&self, leaf: Leaf) -> &Pair {
        let [first, other] = &self.pairs[usize::from(leaf.order)];
        match leaf.names {
            Names::First => first,
            Names::Other => other,
        }
    }

    fn private_key(&self, leaf: Leaf) -> PrivateKey {
        PrivateKey::from_pem(self.pair(leaf).key.as_bytes()).expect("a key of ours")
    }

    /// The record that the workloads have this certificate.
    fn record(&self, has: Option<Leaf>) -> RolledOut {
        let Some(leaf) = has else {
            return RolledOut::None;
        };
        let holding = Secret {
            leaf: Some(leaf),
            names: leaf.names,
            renew_now: 0,
            renewed_for: 0,
            issued: None,
            rolled_out: None,
        };
        self.assess(holding).1.held()
    }

    /// The Secret as the API server has it.
    fn json(&self, secret: Secret) -> Value {
        let mut annotations = json!({
            keys::ISSUER: ISSUER,
            keys::NAMES: text(secret.names),
        });
        if secret.renew_now > 0 {
            annotations[keys::RENEW_NOW] = json!(wish(secret.renew_now));
        }
        if secret.renewed_for > 0 {
            annotations[keys::RENEWED_FOR] = json!(wish(secret.renewed_for));
        }
        if let Some(leaf) = secret.issued {
            let fingerprint = self.record(Some(leaf)).fingerprint();
            let issued_by = IssuedBy {
                issuer: ISSUER.into(),
                directory: None,
                names: vec![name(leaf.names)],
                profile: None,
                lifetime: None,
                key_type: None,
                written: fingerprint.map(|it| (it, self.now - WRITTEN)),
                account: None,
                outputs: None,
            };
            annotations[keys::ISSUED_BY] = json!(issued_by.to_string());
        }
        if let Some(has) = secret.rolled_out {
            for (key, value) in self.record(has).written_for(UID) {
                if let Some(value) = value {
                    annotations[key] = json!(value);
                }
            }
        }
        let data = secret.leaf.map(|leaf| {
            let Pair { certificate, key } = self.pair(leaf);
            json!({"tls.crt": STANDARD.encode(certificate), "tls.key": STANDARD.encode(key)})
        });
        json!({
            "metadata": {
                "name": NAME, "namespace": NAMESPACE, "uid": UID, "resourceVersion": "1", "annotations": annotations,
            },
            "type": "kubernetes.io/tls",
            "data": data.unwrap_or_else(|| json!({"tls.crt": "", "tls.key": ""})),
        })
    }

    /// The Deployment as the API server has it.
    fn workload(&self, workload: Workload) -> Value {
        let carried = workload.template.map(|leaf| {
            let held = self.record(Some(leaf));
            let (fingerprint, with) = (held.fingerprint(), held.with());
            let value = fingerprint
                .zip(with)
                .map(|(it, with)| format!("{it}.{with}"));
            json!({rollout::leaf_annotation(NAME): value})
        });
        let (observed, updated) = if workload.rolling { (1, 0) } else { (2, 1) };
        json!({
            "metadata": {"name": "web", "uid": "web", "resourceVersion": "1", "generation": 2},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"annotations": carried},
                    "spec": {"volumes": [{"name": "tls", "secret": {"secretName": NAME}}]},
                },
            },
            "status": {
                "observedGeneration": observed, "replicas": 1, "updatedReplicas": updated, "availableReplicas": 1,
            },
        })
    }
}

fn text(names: Names) -> &'static str {
    match names {
        Names::First => "a.shop.example",
        Names::Other => "b.shop.example",
    }
}

fn name(names: Names) -> Name {
    text(names).parse().expect("a name")
}

/// A value of `renew-now` that does not wait until the certificate is older.
fn wish(number: u8) -> String {
    format!("{FORCE}-{number}")
}
