//! Checks whether the pods behind a Service serve the expected leaf.
//!
//! Each Ready pod is asked over TLS at its own address, until all serve the leaf or the grace is over. The judgement is
//! pure and has three outcomes: *served*, *stale*, and *unknown*, which proves nothing either way.

use std::net::SocketAddr;

use cert_renew_core::certificate::{DistinguishedName, Fingerprint, Leaf, SelfSigned};
use cert_renew_core::secret::settings::ServicePort;
use cert_renew_core::text::name::{Covering, Name};
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::detail::{self, Pods, Serves};
use futures::StreamExt as _;
use futures::stream;
use tokio::time::{Duration, Instant, sleep};

use crate::rollout::error::Error;
use crate::rollout::listing::pods::{self, Behind, RunningPod};
use crate::rollout::roller::Roller;
use crate::rollout::tls_probe::{leaf_of, server_name};

/// Most pods of one Service that are asked at the same time.
const AT_ONCE: usize = 16;
/// Time between two looks at pods that do not serve the leaf yet.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Most pods that the view of one Secret names.
const SHOWN: usize = 12;
/// Longest reason that is kept of a pod, in bytes.
const LONGEST_WHY: usize = 120;
/// Most pods that a text names; it adds how many more there are.
const NAMED: usize = 3;

/// Most names by which a certificate that a pod shows is recognised as an earlier one.
const NAMES: usize = 100;
/// Longest name of an issuer by which it is, in bytes.
const LONGEST_ISSUER: usize = 1024;

/// What a Service is expected to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The Service and its port.
    pub service: ServicePort,
    /// The leaf that the Secret holds; of its texts and keys only what is compared.
    leaf: Leaf,
    /// The leaf that the workloads had before, if known.
    previous: Option<Fingerprint>,
}

impl Proof {
    /// A Service that is to serve this leaf. All Secrets of a batch are held at once, and a certificate of somebody's own
    /// may be as large as a Secret: what is kept of it is bounded.
    #[must_use]
    pub fn new(service: ServicePort, leaf: &Leaf, previous: Option<Fingerprint>) -> Self {
        let is_short = leaf.issuer.size() <= LONGEST_ISSUER;
        let issuer = is_short.then(|| leaf.issuer.clone());
        let leaf = Leaf {
            fingerprint: leaf.fingerprint,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            names: leaf.names.iter().take(NAMES).cloned().collect(),
            // No proof depends on it, and the answer may take a while.
            self_signed: SelfSigned::default(),
            key_type: leaf.key_type,
            public_key: Box::default(),
            issuer: issuer.unwrap_or_else(|| DistinguishedName::from(&[][..])),
            serial: Box::default(),
            authority_key_id: None,
            abilities: leaf.abilities,
            issuer_ends: leaf.issuer_ends,
            chain: leaf.chain,
            remarks: Box::default(),
        };
        Self {
            service,
            leaf,
            previous,
        }
    }

    /// Bytes in memory, without the allocator's overhead.
    pub(super) fn weight(&self) -> usize {
        let name = |name: &Name| {
            size_of::<Name>()
                + match name {
                    Name::Dns(text) => text.len(),
                    Name::Ip(_) => 0,
                }
        };
        let names = self.leaf.names.iter().map(name);
        size_of::<Self>() + names.sum::<usize>() + self.leaf.issuer.size()
    }
}

/// What was found behind a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many pods serve the leaf.
    pub served: usize,
    /// Those that serve an earlier one.
    pub stale: Vec<Pod>,
    /// Pods with an unknown result, and why; the Service itself where it leads to no pod.
    pub unknown: Vec<String>,
    /// Each of them for people, what lags first.
    pub each: Vec<detail::Pod>,
}

/// A pod that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: Box<str>,
    /// Tells it from a later pod of the same name.
    pub uid: Box<str>,
}

/// What one pod serves.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Served {
    New,
    Old,
    Unknown(String),
}

impl Verified {
    /// Whether every pod serves the leaf.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.stale.is_empty() && self.unknown.is_empty()
    }

    fn see(&mut self, name: &str, serves: Serves, why: Option<&str>) {
        self.each.push(detail::Pod {
            name: name.into(),
            serves,
            why: why.map(|why| why[..why.floor_char_boundary(LONGEST_WHY)].into()),
        });
    }

    /// The pods for the view of one Secret.
    #[must_use]
    pub fn for_people(&self, at: UnixTime, service: &ServicePort) -> Pods {
        let asked: Vec<_> = self.each.iter().take(SHOWN).cloned().collect();
        Pods {
            at,
            service: service.to_string().into(),
            more: self.each.len() - asked.len(),
            asked,
        }
    }

    /// The pods that serve an earlier leaf, in words.
    #[must_use]
    pub fn stale_text(&self) -> String {
        let names: Vec<String> = self.stale.iter().map(|pod| pod.name.to_string()).collect();
        some_of(&names)
    }

    /// The pods with an unknown result and why, in words.
    #[must_use]
    pub fn unknown_text(&self) -> String {
        some_of(&self.unknown)
    }
}

/// The first of a list, and how many more there are.
#[must_use]
pub fn some_of(items: &[String]) -> String {
    let first = items.iter().take(NAMED).cloned().collect::<Vec<_>>();
    match items.len().saturating_sub(NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

impl Roller {
    /// Asks every pod behind a Service what it serves, until all serve the leaf or the grace is over.
    ///
    /// # Errors
    /// When the API server does not list the pods.
    pub async fn verify(&self, namespace: &str, proof: &Proof) -> Result<Verified, Error> {
        let until = Instant::now() + self.verify_grace;
        loop {
            let verified = self.look(namespace, proof).await?;
            if verified.is_proven() || Instant::now() >= until {
                return Ok(verified);
            }
            sleep(LOOK_AGAIN.min(self.verify_grace)).await;
        }
    }

    async fn look(&self, namespace: &str, proof: &Proof) -> Result<Verified, Error> {
        let mut verified = Verified::default();
        let _list = self.place_for_list(namespace).await;
        let place = self.place_for_request(namespace).await;
        let behind = pods::behind(&self.client, namespace, &proof.service).await;
        drop(place);
        let found = match behind? {
            Behind::Pods(found) => found,
            Behind::Nothing(why) => {
                verified.unknown.push(why);
                return Ok(verified);
            }
        };
        if found.is_empty() {
            let why = format!("no pod behind Service {} is Ready", proof.service.service);
            verified.unknown.push(why);
        }
        let asked = stream::iter(found)
            .map(|(pod, port)| async move {
                let served = self.served_by(namespace, &pod, port, proof).await;
                (pod, served)
            })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        for (pod, served) in asked {
            let RunningPod { name, uid, .. } = pod;
            match served {
                Served::New => {
                    verified.served += 1;
                    verified.see(&name, Serves::It, None);
                }
                Served::Old => {
                    verified.see(&name, Serves::Earlier, None);
                    verified.stale.push(Pod { name, uid });
                }
                Served::Unknown(why) => {
                    verified.see(&name, Serves::Unknown, Some(&why));
                    verified.unknown.push(format!("{name}: {why}"));
                }
            }
        }
        verified
            .each
            .sort_by(|one, other| (one.serves, &one.name).cmp(&(other.serves, &other.name)));
        verified
            .stale
            .sort_by(|one, other| one.name.cmp(&other.name));
        verified.unknown.sort();
        Ok(verified)
    }

    async fn served_by(
        &self,
        namespace: &str,
        pod: &RunningPod,
        port: Option<u16>,
        proof: &Proof,
    ) -> Served {
        let address = match pod.address {
            Ok(address) => address,
            Err(why) => return Served::Unknown(why.into()),
        };
        let Some(port) = port else {
            return Served::Unknown("no container has a port of that name".into());
        };
        let _connection = self.connections.place(namespace, UnixTime::NEVER).await;
        let name = server_name(&proof.leaf.names, address);
        judge(leaf_of(SocketAddr::new(address, port), name).await, proof)
    }
}

/// Judges a leaf that was read, or the failure to read one.
///
/// A foreign certificate (a mesh's own, an ingress controller's placeholder) says nothing about ours. An earlier one of
/// ours is recognised as the previous one, or by issuer, name and age.
fn judge(read: Result<Leaf, String>, proof: &Proof) -> Served {
    let Proof { leaf, previous, .. } = proof;
    let read = match read {
        Ok(read) => read,
        Err(why) => return Served::Unknown(why),
    };
    let same_owner = || {
        let shares_name = || {
            let (own, theirs) = (Covering::by(&leaf.names), Covering::by(&read.names));
            read.names.iter().any(|name| own.covers(name))
                || leaf.names.iter().any(|name| theirs.covers(name))
        };
        read.issuer == leaf.issuer && shares_name()
    };
    if read.fingerprint == leaf.fingerprint {
        Served::New
    } else if *previous == Some(read.fingerprint)
        || (same_owner() && read.not_before < leaf.not_before)
    {
        Served::Old
    } else if same_owner() {
        Served::Unknown("it serves a certificate that is newer than the Secret's".into())
    } else {
        Served::Unknown("it serves a certificate of somebody else".into())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use cert_renew_core::config::RolloutConfig;
    use cert_renew_core::rollout::Ask;
    use cert_renew_core::testing::{of_secrets, slower_than_linear};
    use futures::FutureExt as _;
    use futures::future::{BoxFuture, join_all};
    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use serde_json::json;
    use tokio::time::timeout;
    use tower::service_fn;

    use super::*;
    use crate::process::budget::HeldPlace;
    use crate::rollout::{Judge, Withdrawal};

    struct Yes;

    impl Judge for Yes {
        fn judge<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), Withdrawal>> {
            async { Ok(()) }.boxed()
        }
    }

    /// A roller whose API server has one Service and one pod, and counts the lists of pods.
    fn roller(lists: &Arc<AtomicUsize>) -> Roller {
        let lists = Arc::clone(lists);
        let server = service_fn(move |request: Request<Body>| {
            let answer = if request.uri().path().ends_with("/pods") {
                lists.fetch_add(1, Ordering::Relaxed);
                json!({"metadata": {"resourceVersion": "1"}, "items": [{
                    "metadata": {"name": "web-1", "uid": "u"}, "spec": {"containers": []},
                    "status": {"podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]},
                }]})
            } else {
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
                    "spec": {"selector": {"app": "web"}, "ports": [{"port": 443}]}})
            };
            let answer = Response::new(Body::from(answer.to_string().into_bytes()));
            async move { Ok::<_, Infallible>(answer) }
        });
        Roller::new(Client::new(server, "n"), &RolloutConfig::default())
    }

    /// Takes all connections to pods of a namespace, as pods do that never answer.
    fn without_connections(roller: &Roller) -> Vec<HeldPlace> {
        let mut taken = Vec::new();
        let place = || roller.connections.place("shop", UnixTime::NEVER);
        while let Some(place) = place().now_or_never() {
            taken.push(place);
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_lists_of_pods_are_held_while_their_pods_are_asked_what_they_serve() {
        let lists = Arc::default();
        let roller = roller(&lists);
        let _taken = without_connections(&roller);
        let new = leaf("new", "CN=R11", "a.example", 500);
        let proof = Proof::new("web:443".parse().unwrap(), &new, None);
        let all = join_all((0..20).map(|_| roller.verify("shop", &proof)));
        assert!(timeout(Duration::from_secs(60), all).await.is_err());
        assert_eq!(lists.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_lists_of_pods_are_held_while_their_pods_are_asked_to_reload() {
        let lists = Arc::default();
        let roller = roller(&lists);
        let _taken = without_connections(&roller);
        let mut step = of_secrets("web", &["tls"]);
        step.workload.selector = "app=web".into();
        let (port, path) = (9000, "/reload".into());
        let asks = [Ask { port, path }];
        let all = join_all((0..20).map(|_| roller.ask_again("shop", &step, &asks, &Yes)));
        assert!(timeout(Duration::from_secs(60), all).await.is_err());
        assert_eq!(lists.load(Ordering::Relaxed), 2);
    }

    fn leaf(of: &str, issuer: &str, name: &str, not_before: i64) -> Leaf {
        Leaf {
            fingerprint: Fingerprint::of(of.as_bytes()),
            not_before: UnixTime(not_before),
            not_after: UnixTime(not_before + 1_000),
            names: vec![name.parse().unwrap()],
            self_signed: SelfSigned::default(),
            key_type: None,
            public_key: Box::default(),
            issuer: issuer.as_bytes().into(),
            serial: Box::default(),
            authority_key_id: None,
            abilities: Default::default(),
            issuer_ends: None,
            chain: 0,
            remarks: Box::default(),
        }
    }

    #[test]
    fn little_is_kept_of_a_large_certificate() {
        let large = Leaf {
            names: vec!["a.example".parse().unwrap(); 1_000],
            public_key: vec![0; 1 << 20].into(),
            issuer: DistinguishedName::from(&[0_u8; 1 << 16][..]),
            serial: vec![0; 1 << 16].into(),
            authority_key_id: Some(vec![0; 1 << 16].into()),
            ..leaf("new", "", "a.example", 500)
        };
        let Proof { leaf, .. } = Proof::new("web:443".parse().unwrap(), &large, None);
        assert_eq!(
            (leaf.fingerprint, leaf.names.len()),
            (large.fingerprint, NAMES)
        );
        let bytes = leaf.public_key.len() + leaf.serial.len() + leaf.issuer.size();
        assert_eq!((bytes, leaf.authority_key_id), (0, None));
    }

    #[test]
    fn a_pod_that_shows_very_many_names_is_judged_in_linear_time() {
        // One name for each 64 bytes of length.
        let names = |length: usize, of: &str| -> Vec<Name> {
            let names = (0..length / 64).map(|it| format!("n{it}.{of}.example"));
            names.map(|name| Name::Dns(name.into())).collect()
        };
        let slow = slower_than_linear(
            |length| vec![0; length],
            |all| {
                let new = Leaf {
                    names: names(all.len(), "own"),
                    ..leaf("new", "CN=R11", "a.example", 500)
                };
                let read = Leaf {
                    names: names(all.len(), "other"),
                    ..leaf("odd", "CN=R11", "a.example", 100)
                };
                let proof = Proof {
                    service: "web:443".parse().unwrap(),
                    leaf: new,
                    previous: None,
                };
                assert!(matches!(judge(Ok(read), &proof), Served::Unknown(_)));
            },
        );
        assert_eq!(slow, None);
    }

    #[test]
    fn served_stale_and_unknown_are_told_apart() {
        let proof = Proof {
            service: "web:443".parse().unwrap(),
            leaf: leaf("new", "CN=R11", "*.a.example", 500),
            previous: Some(Fingerprint::of(b"old")),
        };
        for (why, read, expected) in [
            (
                "the leaf itself",
                leaf("new", "CN=R11", "*.a.example", 500),
                "new",
            ),
            (
                "the one before, although the CA has changed its intermediate and the names",
                leaf("old", "CN=R10", "b.example", 100),
                "old",
            ),
            (
                "one of long ago",
                leaf("older", "CN=R11", "www.a.example", 50),
                "old",
            ),
            (
                "one that came since",
                leaf("newer", "CN=R11", "*.a.example", 600),
                "unknown",
            ),
            (
                "the same CA, for somebody else",
                leaf("x", "CN=R11", "c.example", 100),
                "unknown",
            ),
            (
                "a mesh's own",
                leaf("mesh", "O=cluster.local", "www.a.example", 100),
                "unknown",
            ),
        ] {
            let said = match judge(Ok(read), &proof) {
                Served::New => "new",
                Served::Old => "old",
                Served::Unknown(_) => "unknown",
            };
            assert_eq!(said, expected, "{why}");
        }
        let refused = judge(Err("connection refused".into()), &proof);
        assert_eq!(refused, Served::Unknown("connection refused".into()));
    }

    #[test]
    fn a_text_names_a_few() {
        let items = |count: usize| (1..=count).map(|it| it.to_string()).collect::<Vec<_>>();
        assert_eq!(some_of(&items(3)), "1, 2, 3");
        assert_eq!(some_of(&items(5)), "1, 2, 3 and 2 more");
    }
}
