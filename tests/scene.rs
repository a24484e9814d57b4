//! One renewal with a Deployment and a StatefulSet behind the fault proxies, and where it ends.
//!
//! Whatever is done to it meanwhile, the end is to be the same as if nothing had been done.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::ListParams;
use test_bench::objects::{OLD, Pair, Reference, Space, pair};
use test_bench::{
    Bench, Operator, OperatorOptions, Passed, Proxies, Result, Server, ensure, eventually,
};

use crate::renewal::{SOON, leaf, options, renewed, rolled_out};

/// What refers to the Secret.
pub(crate) const WORKLOADS: [(&str, &str); 2] = [("Deployment", "web"), ("StatefulSet", "db")];
/// The Secret.
pub(crate) const SECRET: &str = "shop-tls";

/// What is compared; the same for every run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) generations: Vec<i64>,
    pub(crate) certificates: usize,
    pub(crate) accounts: usize,
    pub(crate) records: usize,
    pub(crate) failures: BTreeMap<String, String>,
}

impl End {
    /// Where a renewal ends that nothing disturbs.
    pub(crate) fn undisturbed() -> Self {
        Self {
            generations: vec![2, 2],
            certificates: 1,
            accounts: 1,
            records: 0,
            failures: BTreeMap::new(),
        }
    }
}

/// An operator that is installed and not yet started, and a Secret that is due.
pub(crate) struct Scene<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) operator: Operator<'a>,
    pub(crate) proxies: Proxies,
    pub(crate) space: Space,
    pub(crate) old: Pair,
}

impl<'a> Scene<'a> {
    /// Sets it up; `config` is added to the operator's.
    pub(crate) async fn set(bench: &'a Bench, config: &str) -> Result<Self> {
        let proxies = Proxies::start(bench).await?;
        let mut options = options();
        options.api_server = Some(proxies.api_server());
        options.directory = Some(proxies.directory());
        options.config.push_str(config);
        let operator = Operator::install(bench, options).await?;
        let space = Space::new(bench.client()?, "scene", operator.namespace()).await?;
        let old = pair(&[&format!("{}.example", space.name)], OLD)?;
        for (kind, name) in WORKLOADS {
            space
                .workload(kind, name, Reference::Volume, SECRET)
                .await?;
        }
        let annotations = [("issuer", "pebble")];
        space.tls_secret(SECRET, Some(&old), &annotations).await?;
        Ok(Self {
            bench,
            operator,
            proxies,
            space,
            old,
        })
    }

    /// Waits until nothing more is to be done, and says how it is then.
    pub(crate) async fn end(&self) -> Result<End> {
        let Self {
            operator,
            space,
            proxies,
            ..
        } = self;
        renewed(space, SECRET, &self.old.certificate).await?;
        let secret = rolled_out(space, SECRET).await?;
        let fingerprint = leaf(&secret)?.fingerprint.to_string();
        let records = eventually(SOON, "no order record is left", async || {
            let records = self.records().await?;
            ensure!(records == 0, "{records} are left");
            Ok(records)
        })
        .await?;
        let mut generations = Vec::new();
        for (kind, name) in WORKLOADS {
            generations.push(space.generation(kind, name).await?);
            let has = space.leaf_of(kind, name, SECRET).await?;
            ensure!(
                has.as_ref() == Some(&fingerprint),
                "{kind} {name} has {has:?}, the Secret {fingerprint}"
            );
        }
        let ledgers: Api<ConfigMap> = Api::namespaced(self.bench.client()?, operator.namespace());
        let ledger = ledgers.get_opt("cert-renew-ledger").await?;
        Ok(End {
            generations,
            certificates: answered(proxies, "/finalize-order/", 200),
            accounts: answered(proxies, "/sign-me-up", 201),
            records,
            failures: ledger.and_then(|it| it.data).unwrap_or_default(),
        })
    }

    /// How many order records there are.
    pub(crate) async fn records(&self) -> Result<usize> {
        records(self.bench, &self.operator).await
    }
}

/// An operator that has started, and the fault proxies between it and the CA of the bench. They pass everything on until
/// they get a rule.
pub(crate) async fn behind_proxies(
    bench: &Bench,
    options: OperatorOptions,
) -> Result<(Proxies, Operator<'_>)> {
    let proxies = Proxies::start(bench).await?;
    let options = OperatorOptions {
        directory: Some(proxies.directory()),
        ..options
    };
    let operator = Operator::start(bench, options).await?;
    Ok((proxies, operator))
}

/// How many order records an operator has.
pub(crate) async fn records(bench: &Bench, operator: &Operator<'_>) -> Result<usize> {
    let secrets: Api<Secret> = Api::namespaced(bench.client()?, operator.namespace());
    let labels = ListParams::default().labels("cert-renew.io/order-record");
    Ok(secrets.list(&labels).await?.items.len())
}

/// How many requests to the CA were answered so.
pub(crate) fn answered(proxies: &Proxies, path: &str, status: u16) -> usize {
    let all = proxies.passed();
    let at = |it: &&Passed| {
        it.server == Server::Ca && it.path.contains(path) && it.status == Some(status)
    };
    all.iter().filter(at).count()
}
