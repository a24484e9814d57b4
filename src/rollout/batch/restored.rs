//! Finds Secrets that a restored backup has reset to an earlier certificate than their workloads have.
//!
//! A backup holds the certificate and the record that the workloads have it. While a process runs, leader or standby,
//! the watch brings both at once, and the record is doubted. A restore before the process began shows only in the
//! templates: they name another certificate, and have not changed since the Secret was written. So each process checks
//! once, when it leads, the namespaces whose Secrets say that all is done, a few at a time. It records what the
//! template says, even if the change window is closed; the rollout becomes due by that.
//!
//! Nothing cheaper tells which of these Secrets were restored: that would be the time at which data and record were
//! written, which is in managedFields, and the watch drops those.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::index::Entry;
use cert_renew_core::rollout::{Carried, Lookup, Request, Workload};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::workload::{RolloutMode, WorkloadRef};
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use super::held::Age;
use super::notify;
use crate::cluster;
use crate::cluster::secrets::{self, Changes};
use crate::rollout::rollouts::Rollouts;

/// Most namespaces that are looked at at the same time, so that a start does not make the API server list all their
/// workloads at once.
const AT_ONCE: usize = 4;
/// Pause after each of them before the next one in its place.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest first look at one namespace, enough for most: who has much, or is slow, is last in turn soon.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// Longest look after that, however many Secrets and workloads it has: others wait for it.
const ONE_NAMESPACE: Duration = Duration::from_secs(60);
/// Most further looks at a namespace whose look takes longer, each after those at the others. Each look goes on behind
/// the Secrets that the looks before it have put right.
const ROUNDS: usize = 20;
/// Most write conflicts in a row on a Secret before it is left for later: something writes it all the time.
const TRIES: usize = 3;
/// How far in the past notBefore may be when a certificate is issued (Let's Encrypt).
const BACKDATED: Duration = Duration::from_secs(3_600);
/// Longest time between the issue that a Secret records and our write of the certificate; a later write restored it.
const OUR_WRITE: Duration = Duration::from_secs(60);

/// The namespaces that are left, in turn, each with the number of looks at it before.
type Left = Mutex<VecDeque<(Arc<str>, usize)>>;

impl Rollouts {
    /// Looks at all namespaces that this process has not yet looked at. One that takes too long is looked at again
    /// after the others; one that cannot be listed, or takes too long each time, waits for the next term.
    pub(crate) async fn look_at_records(&self) {
        let namespaces: BTreeSet<Arc<str>> = {
            let index = self.shared.read_index();
            let done = index.iter().filter(|(_, entry)| says_done(entry));
            let all = done.filter_map(|(row, _)| Some(index.key_of(row)?.namespace));
            let compared = self.compared.lock();
            all.filter(|it| !compared.contains(it)).collect()
        };
        self.look_at_each(namespaces).await;
    }

    async fn look_at_each(&self, namespaces: impl IntoIterator<Item = Arc<str>>) {
        let left = Left::new(namespaces.into_iter().map(|it| (it, 0)).collect());
        join_all((0..AT_ONCE).map(|_| self.look_at_next(&left))).await;
    }

    /// Looks at one namespace after the other, until none is left.
    async fn look_at_next(&self, left: &Left) {
        loop {
            let next = left.lock().pop_front();
            let Some((namespace, tries)) = next else {
                return;
            };
            let longest = match tries {
                0 => FIRST_LOOK,
                _ => ONE_NAMESPACE,
            };
            match timeout(longest, self.look_at_one(&namespace)).await {
                Ok(true) => {
                    let mut compared = self.compared.lock();
                    compared.insert(namespace);
                }
                Ok(false) => {}
                Err(_) if tries < ROUNDS => left.lock().push_back((namespace, tries + 1)),
                Err(_) => {
                    tracing::info!(
                        %namespace,
                        "not known of all Secrets whether a backup was restored: the looks at them take too long, and the \
                         next term goes on"
                    );
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Looks at one namespace; true once all of its Secrets are compared.
    async fn look_at_one(&self, namespace: &Arc<str>) -> bool {
        let workloads = match self.roller().list(namespace).await {
            Ok(workloads) => workloads,
            Err(error) => {
                let error = error_chain(&error);
                tracing::info!(%namespace, error, "not known whether a backup was restored");
                return false;
            }
        };
        let mut all = true;
        let listed = Listed::of(&workloads);
        for secret in carried(&workloads) {
            let key = SecretRef::new(Arc::clone(namespace), secret);
            all &= self.compare(&key, &listed).await;
        }
        all
    }
}

/// The workloads of a namespace, so that each Secret finds its own at once.
struct Listed<'a> {
    carried: Carried<'a>,
    lookup: Lookup<'a>,
}

impl<'a> Listed<'a> {
    fn of(workloads: &'a [Workload]) -> Self {
        Self {
            carried: Carried::by(workloads),
            lookup: Lookup::of(workloads),
        }
    }
}

/// Whether a Secret says that its workloads have what it holds.
fn says_done(entry: &Entry) -> bool {
    let said = entry.observed.rolled_out.and_then(RolledOut::fingerprint);
    said.is_some() && said == entry.observed.leaf.ok().map(|leaf| leaf.fingerprint)
}

/// The Secrets whose certificate a template names.
fn carried(workloads: &[Workload]) -> BTreeSet<&str> {
    let keys = workloads.iter().flat_map(|workload| workload.leaves.keys());
    let named = keys.filter_map(|key| key.strip_prefix(keys::LEAF_PREFIX));
    // The annotation key of a long name contains its hash.
    let referred = workloads.iter().flat_map(|workload| {
        let secrets = workload.references.iter().map(|it| &*it.secret);
        secrets.filter(|secret| workload.leaf_of(secret).is_some())
    });
    named.chain(referred).collect()
}

/// The result of one comparison.
enum Came {
    /// The Secret now says what its workloads have.
    Agrees,
    /// Another write to the Secret came first, possibly that of a first record.
    Crossed,
    /// The API server failed.
    Failed,
}

impl Rollouts {
    /// Records what the workloads have where a Secret says otherwise; true once that is done.
    async fn compare(&self, key: &SecretRef, workloads: &Listed<'_>) -> bool {
        for _ in 0..TRIES {
            match self.compare_once(key, workloads).await {
                Came::Agrees => return true,
                Came::Crossed => {}
                Came::Failed => return false,
            }
        }
        false
    }

    async fn compare_once(&self, key: &SecretRef, workloads: &Listed<'_>) -> Came {
        let Some(entry) = self.shared.entry(key).filter(says_done) else {
            return Came::Agrees;
        };
        let holds = entry.observed.leaf.ok().map(|leaf| leaf.fingerprint);
        if !workloads.carried.another(&key.name, holds) {
            return Came::Agrees;
        }
        // Read the Secret again: the index does not know when its data was written.
        let (request, head, age) = match self.as_it_is(key, &entry).await {
            Ok(Some(found)) => found,
            Ok(None) => return Came::Agrees,
            Err(_) => return Came::Failed,
        };
        let Some((workload, had)) = contradicts(&request, age, &workloads.lookup) else {
            return Came::Agrees;
        };
        let changes = Changes::of(had.written_for(head.uid()));
        match secrets::patch(&self.shared.client, &head, &changes).await {
            Ok(_) => {
                notify::older(&self.shared, key, &request, &restarted(&workload));
                Came::Agrees
            }
            Err(cluster::Error::Conflict { .. }) => Came::Crossed,
            Err(error) => {
                tracing::info!(secret = %key, %error, "what the workloads have is not put back: the next term looks again");
                Came::Failed
            }
        }
    }
}

/// A workload whose template contradicts a Secret that says its workloads have its certificate, and what it has. The
/// end of that certificate is unknown: the end of the Secret's is used.
fn contradicts(
    request: &Request,
    age: Age,
    workloads: &Lookup<'_>,
) -> Option<(WorkloadRef, RolledOut)> {
    let said = request.rolled_out.and_then(RolledOut::fingerprint);
    // No template says what pods have that are asked to reload.
    if said != Some(request.leaf) || request.mode != RolloutMode::Restart {
        return None;
    }
    let written = age.put_back(request)?;
    let untouched = |workload: &Workload| workload.template_touched.is_some_and(|at| at <= written);
    let using = workloads.using(request);
    let later = using
        .into_iter()
        .filter(|workload| untouched(workload) && age.is_before(workload, request));
    let mut later = later.filter_map(|workload| {
        let value = workload.leaf_of(&request.secret)?.split('.').next()?;
        let had = RolledOut::Leaf {
            fingerprint: value.parse().ok()?,
            not_after: request.not_after,
            with: None,
        };
        Some((workload.id.clone(), had))
    });
    later.next()
}

/// Why the certificate that is about to be rolled out is an earlier one than the workloads have, if it is.
pub(super) fn older(request: &Request, age: Age, workloads: &Lookup<'_>) -> Option<String> {
    age.put_back(request)?;
    if age
        .had_until
        .is_some_and(|until| until <= request.not_after)
    {
        return None;
    }
    let using = workloads.using(request);
    let later = { using.iter() }.find(|workload| age.is_before(workload, request));
    let say = |workload: &&Workload| workload.leaf_of(&request.secret).is_some();
    match (later, age.had_until) {
        (Some(workload), _) => Some(restarted(&workload.id)),
        (None, Some(until)) if !using.iter().any(say) => {
            Some(format!("what its workloads have is valid until {until}"))
        }
        _ => None,
    }
}

fn restarted(workload: &WorkloadRef) -> String {
    format!("{workload} was restarted for another one")
}

impl Age {
    /// When the data was last written, if not by us at the issue of the certificate.
    fn put_back(self, request: &Request) -> Option<UnixTime> {
        let written = request.written?;
        let by_us = self.ours.is_some_and(|at| written <= at + OUR_WRITE);
        (!by_us).then_some(written)
    }

    /// Whether the certificate existed already when a workload was restarted for another one, before the Secret was
    /// written.
    fn is_before(self, workload: &Workload, request: &Request) -> bool {
        let another = workload.leaf_of(&request.secret).is_some()
            && !workload.carries(&request.secret, request.leaf);
        let at = workload.rolled_at.filter(|at| request.written >= Some(*at));
        another && at.is_some_and(|at| at > self.not_before + BACKDATED)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use cert_renew_core::certificate::Fingerprint;
    use cert_renew_core::rollout::{ChangedKeys, Status, Strategy, leaf_annotation};
    use cert_renew_core::secret::parts::{ChainAndCa, Parts};
    use cert_renew_core::secret::workload::Kind;
    use cert_renew_core::testing::{slower_than_linear_in, workload};
    use http::Response;
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::time::Instant;
    use tower::service_fn;

    use super::*;
    use crate::context::tests::with;

    const DAY: i64 = 86_400;

    fn leaf(text: &str) -> Fingerprint {
        Fingerprint::of(text.as_bytes())
    }

    /// A Deployment that was restarted for `has` on day 60, and last changed on day `touched`.
    fn web(has: &str, touched: i64) -> Workload {
        Workload {
            id: "deployment/web".parse().unwrap(),
            uid: "uid".into(),
            resource_version: "1".into(),
            created: None,
            template_touched: Some(UnixTime(touched * DAY)),
            rolled_at: Some(UnixTime(60 * DAY)),
            deleting: false,
            opted_out: false,
            leaves: [(leaf_annotation("tls").into(), leaf(has).to_string().into())].into(),
            references: Vec::new(),
            template_of: None,
            host_network: false,
            selector: "".into(),
            strategy: Strategy::Rolling { partition: 0 },
            ordered: false,
            paused: false,
            status: Status::default(),
        }
    }

    /// A Secret that was written on day 70, and says that its workloads have what it holds.
    fn request(holds: &str) -> Request {
        let rolled_out = RolledOut::Leaf {
            fingerprint: leaf(holds),
            not_after: UnixTime(90 * DAY),
            with: Some(ChainAndCa::NONE),
        };
        Request {
            secret: "tls".into(),
            uid: "uid".into(),
            leaf: leaf(holds),
            with: ChainAndCa::NONE,
            not_after: UnixTime(90 * DAY),
            rolled_out: Some(rolled_out),
            remembered: None,
            halted: None,
            mode: RolloutMode::Restart,
            workloads: vec!["deployment/web".parse().unwrap()],
            changed: Parts::ALL,
            keys: ChangedKeys::any(),
            written: Some(UnixTime(70 * DAY)),
            unwell: Vec::new(),
        }
    }

    fn age(issued: i64) -> Age {
        Age {
            not_before: UnixTime(issued * DAY),
            had_until: Some(UnixTime(150 * DAY)),
            ours: None,
        }
    }

    #[test]
    fn a_record_is_doubted_only_where_somebody_has_put_an_earlier_certificate_back() {
        let says =
            |request: &Request, age, web| contradicts(request, age, &Lookup::of(&[web])).is_some();
        let restored = request("a");
        assert!(says(&restored, age(0), web("b", 60)));
        assert!(!says(&restored, age(0), web("a", 60)), "it has it");
        assert!(!says(&restored, age(0), web("b", 71)), "put back since");
        assert!(!says(&restored, age(69), web("b", 60)), "a later one");
        let ours = |day: i64| Age {
            ours: Some(UnixTime(day * DAY)),
            ..age(0)
        };
        assert!(!says(&restored, ours(70), web("b", 60)), "as we wrote it");
        assert!(says(&restored, ours(1), web("b", 60)), "written again");
        let reloads = Request {
            mode: RolloutMode::Post {
                port: 9000,
                path: "/reload".into(),
            },
            ..request("a")
        };
        assert!(
            !says(&reloads, age(0), web("b", 60)),
            "templates say nothing"
        );
        let due = Request {
            rolled_out: Some(RolledOut::None),
            ..request("a")
        };
        assert!(!says(&due, age(0), web("b", 60)), "it is rolled anyway");
        let (_, had) = contradicts(&restored, age(0), &Lookup::of(&[web("b", 60)])).unwrap();
        assert_eq!(had.fingerprint(), Some(leaf("b")));
    }

    #[test]
    fn an_earlier_certificate_is_told_and_a_later_one_is_not() {
        let told = |age, web: Workload| older(&request("a"), age, &Lookup::of(&[web]));
        let restarted = Some("deployment/web was restarted for another one".to_owned());
        assert_eq!(told(age(0), web("b", 60)), restarted);
        assert_eq!(told(age(69), web("b", 60)), None, "issued since");
        let shorter = Age {
            had_until: Some(UnixTime(80 * DAY)),
            ..age(0)
        };
        assert_eq!(told(shorter, web("b", 60)), None, "it ends later");
        // Where no template says anything, as with reloads, the expiry decides.
        let mut silent = web("b", 60);
        silent.leaves.clear();
        let said = told(age(0), silent.clone()).unwrap();
        assert!(
            said.starts_with("what its workloads have is valid until"),
            "{said}"
        );
        let ours = Age {
            ours: Some(UnixTime(70 * DAY)),
            ..age(0)
        };
        assert_eq!(
            told(ours, silent),
            None,
            "a CA that issues for a shorter time"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn namespaces_that_take_too_long_delay_no_other_and_are_looked_at_again() {
        // When each namespace was first listed, and the requests for lists of each.
        let asked: Arc<Mutex<BTreeMap<String, (Instant, usize)>>> = Arc::default();
        let told = Arc::clone(&asked);
        // The lists of some never end.
        let server = service_fn(move |request: http::Request<Body>| {
            let path = request.uri().path();
            let namespace = path.split('/').skip_while(|it| *it != "namespaces").nth(1);
            let namespace = namespace.unwrap_or_default().to_owned();
            let is_endless = namespace.starts_with("hostile");
            let mut told = told.lock();
            let (_, requests) = told.entry(namespace).or_insert_with(|| (Instant::now(), 0));
            *requests += 1;
            drop(told);
            async move {
                sleep(Duration::from_secs(1)).await;
                let more = if is_endless { "more" } else { "" };
                let page =
                    json!({"metadata": {"resourceVersion": "1", "continue": more}, "items": []});
                Ok::<_, Infallible>(Response::new(Body::from(page.to_string().into_bytes())))
            }
        });
        let (shared, _) = with(Client::new(server, "cert-renew"));
        let rollouts = Rollouts::new(shared, Arc::default());
        let begun = Instant::now();
        let hostile: Vec<Arc<str>> = (0..10).map(|it| format!("hostile-{it}").into()).collect();
        let all = hostile.iter().cloned().chain(["shop".into()]);
        let looked = timeout(Duration::from_secs(86_400), rollouts.look_at_each(all)).await;
        assert!(looked.is_ok(), "it ends");
        let asked = asked.lock();
        // Two first looks of others in its place, and their pauses.
        let (shop, _) = asked["shop"];
        let waited = shop.duration_since(begun);
        assert!(waited < (FIRST_LOOK + PAUSE) * 3, "{waited:?}");
        let compared = rollouts.compared.lock();
        let expected: BTreeSet<Arc<str>> = ["shop".into()].into();
        assert_eq!(*compared, expected, "the next term goes on with the others");
        let longest = ONE_NAMESPACE.as_secs() * u64::try_from(ROUNDS).unwrap();
        let least = usize::try_from(longest).unwrap() / 2;
        for namespace in &hostile {
            let (_, requests) = asked[&**namespace];
            assert!(requests > least, "{namespace}: {requests}");
        }
    }

    #[test]
    fn very_many_secrets_of_one_workload_are_compared_in_linear_time() {
        let names = |length: usize| (0..length / 256).map(|it| format!("tls-{it}"));
        let made = |length: usize| {
            let volume = |name| json!({"name": "v", "secret": {"secretName": name}});
            let volumes: Vec<Value> = names(length).map(volume).collect();
            let template = json!({"spec": {"volumes": volumes}});
            let object = json!({"metadata": {"name": "web"}, "spec": {"template": template}});
            let requests = names(length).map(|name| Request {
                secret: name.into(),
                workloads: Vec::new(),
                ..request("a")
            });
            let requests: Vec<Request> = requests.collect();
            (requests, [workload(Kind::Deployment, object)])
        };
        let slow = slower_than_linear_in(made, |(requests, workloads)| {
            let Listed { carried, lookup } = Listed::of(workloads);
            for request in requests {
                assert!(!carried.another(&request.secret, Some(request.leaf)));
                assert!(older(request, age(0), &lookup).is_some());
                assert_eq!(contradicts(request, age(0), &lookup), None);
            }
        });
        assert_eq!(slow, None);
    }
}
