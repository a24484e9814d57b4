//! The data sets: TLS Secrets with real certificates, made through the API by clients in parallel.
//!
//! Some hundred key pairs are shared; each certificate is signed for itself, so that no two are alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use cert_renew_core::certificate;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::parts::ChainAndCa;
use cert_renew_core::secret::settings::ServicePort;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::used_by::{Has, Proven, UsedBy};
use cert_renew_core::secret::workload::{Kind, WorkloadRef};
use cert_renew_core::time::UnixTime;
use futures::future::try_join_all;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::json;
use test_bench::objects::{Age, Pair};
use test_bench::{Bench, Context as _, Result};
use time::{Duration, OffsetDateTime};

use crate::report::Progress;

/// Enough that no page of a list holds the same key twice.
const KEYS: usize = 300;
/// Requests that are in flight while a data set is made: more only queue on two cores.
const CLIENTS: usize = 24;

/// Makes certificates.
pub(crate) struct Maker {
    authority: CertifiedIssuer<'static, KeyPair>,
    keys: Vec<KeyPair>,
    /// Each certificate is signed by its own key.
    self_signed: bool,
    /// Each certificate names its issuer's key, as those of public CAs do: the CA is asked when it wants it replaced.
    names_authority: bool,
}

impl Maker {
    /// Generates the authority and the keys.
    pub(crate) fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "Bench intermediate E7");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let keys = (0..KEYS)
            .map(|_| KeyPair::generate())
            .collect::<Result<_, _>>()?;
        Ok(Self {
            authority,
            keys,
            self_signed: false,
            names_authority: false,
        })
    }

    /// One whose certificates are signed by their own keys, without a chain.
    pub(crate) fn self_signed() -> Result<Self> {
        let maker = Self::new()?;
        Ok(Self {
            self_signed: true,
            ..maker
        })
    }

    /// One whose certificates name the key of their issuer.
    pub(crate) fn of_public_ca() -> Result<Self> {
        let maker = Self::new()?;
        Ok(Self {
            names_authority: true,
            ..maker
        })
    }

    /// A certificate for one name, with its chain.
    pub(crate) fn pair(&self, name: &str, number: usize, age: Age) -> Result<Pair> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.not_before = OffsetDateTime::now_utc() - Duration::days(age.since);
        params.not_after = OffsetDateTime::now_utc() + Duration::days(age.left);
        params.use_authority_key_identifier_extension = self.names_authority;
        let key = &self.keys[number % KEYS];
        if self.self_signed {
            return Ok(Pair {
                certificate: params.self_signed(key)?.pem(),
                key: key.serialize_pem(),
            });
        }
        let leaf = params.signed_by(key, &*self.authority)?;
        Ok(Pair {
            certificate: leaf.pem() + &self.authority.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// As after a rollout: a Deployment each, a StatefulSet beside every tenth, and a Service behind which all serve it.
fn used_by(number: usize) -> UsedBy {
    let named = |kind, suffix: &str| WorkloadRef {
        kind,
        name: format!("shop-frontend-{number}{suffix}").into(),
    };
    let mut workloads = vec![(named(Kind::Deployment, ""), Has::It)];
    if number.is_multiple_of(10) {
        workloads.push((named(Kind::StatefulSet, "-sessions"), Has::It));
    }
    let pods = 2 + number % 3;
    UsedBy {
        at: UnixTime::now(),
        workloads,
        more: 0,
        proven: Some(Proven {
            service: ServicePort {
                service: format!("shop-frontend-{number}").into(),
                port: 443,
            },
            served: pods,
            asked: pods,
        }),
    }
}

/// A data set.
pub(crate) struct Set {
    /// First part of the names of its namespaces.
    pub(crate) prefix: &'static str,
    /// How many Secrets.
    pub(crate) count: usize,
    /// In how many namespaces, in turn.
    pub(crate) namespaces: usize,
    /// The class of the operator that they are for.
    pub(crate) class: String,
    /// The issuer.
    pub(crate) issuer: &'static str,
    /// One in this number is annotated from the beginning.
    pub(crate) annotated: usize,
    /// Whether they look as if cert-renew had long known them.
    pub(crate) settled: bool,
    /// Whether the last rollout is on record with each of them: who uses it, and what they were seen to serve.
    pub(crate) used: bool,
    /// `None`: issued at some time in the last 50 of 90 days, so that nothing is due.
    pub(crate) age: Option<Age>,
}

impl Set {
    /// Secrets that are long known and not due, of which one in `annotated` is ours.
    pub(crate) fn known(
        prefix: &'static str,
        count: usize,
        namespaces: usize,
        class: &str,
        annotated: usize,
    ) -> Self {
        Self {
            prefix,
            count,
            namespaces,
            class: class.to_owned(),
            issuer: "pebble",
            annotated,
            settled: true,
            used: false,
            age: None,
        }
    }

    /// The namespace of a Secret.
    pub(crate) fn namespace(&self, number: usize) -> String {
        format!("{}-{}", self.prefix, number % self.namespaces)
    }

    /// The name of a Secret.
    pub(crate) fn name(number: usize) -> String {
        format!("shop-frontend-{number}-tls")
    }

    /// The DNS name of a Secret.
    pub(crate) fn host(&self, number: usize) -> String {
        format!("app-{number}.{}.example", self.namespace(number))
    }

    fn annotations(
        &self,
        number: usize,
        rolled_out: Option<RolledOut>,
    ) -> BTreeMap<String, String> {
        let mut all = BTreeMap::from([
            ("cert-renew.io/class".to_owned(), self.class.clone()),
            ("cert-renew.io/issuer".to_owned(), self.issuer.to_owned()),
        ]);
        if let Some(value) = rolled_out {
            all.insert(keys::ROLLED_OUT.to_owned(), value.to_string());
            if let (Some(leaf), Some(with)) = (value.fingerprint(), value.with()) {
                let with = format!("{leaf} {with}");
                all.insert(keys::ROLLED_OUT_WITH.to_owned(), with);
            }
        }
        if self.used {
            let value = used_by(number).to_string();
            all.insert(keys::USED_BY.to_owned(), value);
        }
        all
    }

    fn pair(&self, maker: &Maker, number: usize) -> Result<(Pair, Option<RolledOut>)> {
        let since = i64::try_from(number % 50).unwrap_or_default();
        let age = self.age.unwrap_or(Age {
            since,
            left: 90 - since,
        });
        let pair = maker.pair(&self.host(number), number, age)?;
        let leaf = certificate::leaf(pair.certificate.as_bytes())?;
        let rolled_out = RolledOut::Leaf {
            fingerprint: leaf.fingerprint,
            not_after: leaf.not_after,
            with: Some(ChainAndCa {
                chain: leaf.chain,
                ca: 0,
            }),
        };
        Ok((pair, self.settled.then_some(rolled_out)))
    }

    /// Makes namespaces and Secrets; returns what [`Self::annotate`] needs.
    pub(crate) async fn fill(
        self: &Arc<Self>,
        bench: &Bench,
        maker: &Arc<Maker>,
    ) -> Result<Vec<Option<RolledOut>>> {
        let client = bench.client()?;
        for number in 0..self.namespaces {
            let metadata = ObjectMeta {
                name: Some(self.namespace(number)),
                ..ObjectMeta::default()
            };
            Api::<Namespace>::all(client.clone())
                .create(
                    &PostParams::default(),
                    &Namespace {
                        metadata,
                        ..Namespace::default()
                    },
                )
                .await?;
        }
        let (set, maker) = (Arc::clone(self), Arc::clone(maker));
        let made = in_parallel(
            "making Secrets",
            self.count,
            &client,
            move |client, number| {
                let (set, maker) = (Arc::clone(&set), Arc::clone(&maker));
                async move {
                    let (pair, rolled_out) = set.pair(&maker, number)?;
                    let ours = number % set.annotated == 0;
                    let secret = Secret {
                        metadata: ObjectMeta {
                            name: Some(Self::name(number)),
                            labels: Some(BTreeMap::from([
                                (
                                    "app.kubernetes.io/name".to_owned(),
                                    "shop-frontend".to_owned(),
                                ),
                                ("app.kubernetes.io/managed-by".to_owned(), "Helm".to_owned()),
                            ])),
                            annotations: ours.then(|| set.annotations(number, rolled_out)),
                            ..ObjectMeta::default()
                        },
                        type_: Some("kubernetes.io/tls".to_owned()),
                        data: Some(BTreeMap::from([
                            (
                                "tls.crt".to_owned(),
                                ByteString(pair.certificate.into_bytes()),
                            ),
                            ("tls.key".to_owned(), ByteString(pair.key.into_bytes())),
                        ])),
                        ..Secret::default()
                    };
                    let api: Api<Secret> = Api::namespaced(client, &set.namespace(number));
                    api.create(&PostParams::default(), &secret)
                        .await
                        .with_context(|| format!("making Secret {}", Self::name(number)))?;
                    Ok((number, rolled_out))
                }
            },
        )
        .await?;
        let mut values = vec![None; self.count];
        for (number, value) in made {
            values[number] = value;
        }
        Ok(values)
    }

    /// Annotates those that [`Self::fill`] has left unannotated.
    pub(crate) async fn annotate(
        self: &Arc<Self>,
        bench: &Bench,
        rolled_out: Vec<Option<RolledOut>>,
    ) -> Result<()> {
        let (set, rolled_out) = (Arc::clone(self), Arc::new(rolled_out));
        in_parallel(
            "annotating",
            self.count,
            &bench.client()?,
            move |client, number| {
                let (set, rolled_out) = (Arc::clone(&set), Arc::clone(&rolled_out));
                async move {
                    if number % set.annotated == 0 {
                        return Ok(());
                    }
                    let annotations = set.annotations(number, rolled_out[number]);
                    let patch = json!({"metadata": {"annotations": annotations}});
                    let api: Api<Secret> = Api::namespaced(client, &set.namespace(number));
                    api.patch_metadata(
                        &Self::name(number),
                        &PatchParams::default(),
                        &Patch::Merge(patch),
                    )
                    .await?;
                    Ok(())
                }
            },
        )
        .await?;
        Ok(())
    }
}

/// Does one thing for each number, [`CLIENTS`] at a time.
pub(crate) async fn in_parallel<T, F>(
    what: &str,
    count: usize,
    client: &Client,
    one: impl Fn(Client, usize) -> F + Send + Sync + 'static,
) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send,
{
    let (progress, one) = (Arc::new(Progress::new(what, count)), Arc::new(one));
    let tasks = (0..CLIENTS.min(count)).map(|_| {
        let (progress, one, client) = (Arc::clone(&progress), Arc::clone(&one), client.clone());
        tokio::spawn(async move {
            let mut done = Vec::new();
            while let Some(number) = progress.next() {
                done.push(one(client.clone(), number).await?);
            }
            Ok::<_, test_bench::Error>(done)
        })
    });
    let mut all = Vec::with_capacity(count);
    for done in try_join_all(tasks).await? {
        all.extend(done?);
    }
    Ok(all)
}
