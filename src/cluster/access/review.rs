//! Checks the operator's own rights at its start: which right is missing, and what it is needed for.
//!
//! The required rights are read from the shipped roles, which are compiled in: the comment of each rule is its reason.
//! Add-ons that the config needs are included. Nothing depends on the result: the operator continues with the rights
//! that it has.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use cert_renew_core::config::{Access, Challenge, Config, Route};
use k8s_openapi::api::authorization::v1::{
    ResourceRule, SelfSubjectRulesReview, SelfSubjectRulesReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};
use serde::Deserialize;

use crate::cluster::Error;
use crate::cluster::client::call;

/// Rights wherever Secrets are watched.
const EVERYWHERE: &str = include_str!("../../../rbac/clusterrole.yaml");
/// Rights in the operator's own namespace.
const AT_HOME: &str = include_str!("../../../rbac/role.yaml");
/// Rights wherever Secrets are watched, if the config has a namespaceSelector.
const BY_LABELS: &str = include_str!("../../../rbac/addons/namespace-labels.yaml");
/// Rights in the operator's own namespace, if the config has a solver with an Ingress.
const BY_INGRESS: &str = include_str!("../../../rbac/addons/route-ingress.yaml");
/// The same with a Gateway.
const BY_GATEWAY: &str = include_str!("../../../rbac/addons/route-gateway.yaml");
/// Rights in the whole cluster, if the config closes the metrics port to all but viewers.
const BY_ACCESS: &str = include_str!("../../../rbac/addons/access.yaml");
/// No namespace can have this name (it is not a DNS label), so a right in it is a right in all.
const NOWHERE: &str = "Every.Namespace";

/// Time between two tries while the API server does not answer.
const AGAIN: Duration = Duration::from_secs(10);

/// A rule of a shipped role.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Need {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
    /// Only these objects; all if empty.
    #[serde(default)]
    resource_names: Vec<String>,
    /// Its comment.
    #[serde(skip)]
    reason: String,
}

/// Rights of one rule that are not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Verbs, in the order of the role.
    pub verbs: Vec<String>,
    /// The resource.
    pub resource: String,
    /// The namespace; `None` for all.
    pub namespace: Option<String>,
    /// What they are needed for.
    pub reason: String,
}

#[derive(Deserialize)]
struct Role {
    rules: Vec<Need>,
}

static NEEDS: LazyLock<[Vec<Need>; 2]> = LazyLock::new(|| [needs(EVERYWHERE), needs(AT_HOME)]);

/// The rights on what belongs to no namespace that this config needs.
fn needs_of_cluster(config: &Config) -> Vec<Need> {
    match config.metrics.access {
        Access::Anyone => Vec::new(),
        Access::Viewers => needs(BY_ACCESS),
    }
}

/// The rights that this config needs, wherever Secrets are watched and in the operator's own namespace.
fn needs_of(config: &Config) -> [Vec<Need>; 2] {
    let [mut everywhere, mut at_home] = NEEDS.clone();
    if config.needs_namespace_labels() {
        everywhere.extend(needs(BY_LABELS));
    }
    let routes = |wanted: fn(&Route) -> bool| {
        config.solvers.iter().any(|solver| match &solver.challenge {
            Challenge::Http01(http01) => wanted(&http01.route),
            Challenge::Dns01(_) | Challenge::DnsPersist01(_) => false,
        })
    };
    if routes(|route| matches!(route, Route::Ingress { .. })) {
        at_home.extend(needs(BY_INGRESS));
    }
    if routes(|route| matches!(route, Route::Gateway { .. })) {
        at_home.extend(needs(BY_GATEWAY));
    }
    [everywhere, at_home]
}

/// The rules of a role's manifest, each with the comment above it; a binding may follow.
fn needs(manifest: &str) -> Vec<Need> {
    let manifest = manifest.split("\n---\n").next().unwrap_or_default();
    let Ok(Role { mut rules }) = serde_saphyr::from_str(manifest) else {
        return Vec::new();
    };
    let mut comment = Vec::new();
    let mut reasons = Vec::new();
    for line in manifest.lines().map(str::trim) {
        match line.strip_prefix('#') {
            Some(text) => comment.push(text.trim()),
            None if line.starts_with("- ") => reasons.push(std::mem::take(&mut comment).join(" ")),
            None => comment.clear(),
        }
    }
    let mut last = String::new();
    for (rule, reason) in rules.iter_mut().zip(reasons) {
        // A rule without a comment has the reason of the one before.
        if !reason.is_empty() {
            last = reason;
        }
        rule.reason.clone_from(&last);
    }
    rules
}

/// The part of `needs` that the rules do not grant.
fn missing(needs: &[Need], granted: &[ResourceRule], namespace: Option<&str>) -> Vec<Missing> {
    let mut found: Vec<Missing> = Vec::new();
    for need in needs {
        for resource in &need.resources {
            let lacks = |verb: &&String| {
                let in_one = |group: &String| {
                    !granted
                        .iter()
                        .any(|rule| grants(rule, need, group, resource, verb))
                };
                need.api_groups.iter().any(in_one)
            };
            let verbs: Vec<String> = need.verbs.iter().filter(lacks).cloned().collect();
            if !verbs.is_empty() {
                found.push(Missing {
                    verbs,
                    resource: resource.clone(),
                    namespace: namespace.map(ToOwned::to_owned),
                    reason: need.reason.clone(),
                });
            }
        }
    }
    found
}

/// Whether a rule grants the right, for all objects or the needed ones.
fn grants(rule: &ResourceRule, need: &Need, group: &str, resource: &str, verb: &str) -> bool {
    let has = |list: &[String], wanted: &str| list.iter().any(|item| item == wanted || item == "*");
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let only = list(&rule.resource_names);
    let named = &need.resource_names;
    let enough = !named.is_empty() && named.iter().all(|name| only.contains(name));
    has(&list(&rule.api_groups), group)
        && has(&list(&rule.resources), resource)
        && has(&rule.verbs, verb)
        && (only.is_empty() || enough)
}

/// Asks the API server for the operator's rights and compares them with those that the config needs: in our own
/// namespace, and in the watched ones (none: in all).
///
/// If the answer is incomplete, as with an authorizer other than RBAC, nothing is reported as missing.
///
/// # Errors
/// Those of every call.
pub async fn review(client: &Client, home: &str, config: &Config) -> Result<Vec<Missing>, Error> {
    let [everywhere, at_home] = &needs_of(config);
    let of_cluster = &needs_of_cluster(config);
    let mut places = vec![(home, Some(home), at_home)];
    if !of_cluster.is_empty() {
        places.push((NOWHERE, None, of_cluster));
    }
    match &*config.watch.namespaces {
        [] => places.push((NOWHERE, None, everywhere)),
        watched => {
            let distinct: BTreeSet<&str> = watched.iter().map(String::as_str).collect();
            places.extend(distinct.into_iter().map(|it| (it, Some(it), everywhere)));
        }
    }
    let mut found = Vec::new();
    for (asked, named, needs) in places {
        if let Some(granted) = rules(client, asked).await? {
            found.extend(missing(needs, &granted, named));
        }
    }
    Ok(found)
}

/// The rights in a namespace; `None` if the answer is incomplete.
async fn rules(client: &Client, namespace: &str) -> Result<Option<Vec<ResourceRule>>, Error> {
    let api: Api<SelfSubjectRulesReview> = Api::all(client.clone());
    let question = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec {
            namespace: Some(namespace.to_owned()),
        },
        ..SelfSubjectRulesReview::default()
    };
    let params = PostParams::default();
    let answer = call(
        || "asking for our own rights".into(),
        api.create(&params, &question),
    )
    .await?;
    Ok(answer
        .status
        .filter(|status| !status.incomplete)
        .map(|status| status.resource_rules))
}

/// Logs the missing rights as soon as the API server answers.
pub async fn report(client: Client, home: String, config: Config) {
    let mut told = false;
    let missing = loop {
        match review(&client, &home, &config).await {
            Ok(missing) => break missing,
            Err(error) if !told => {
                told = true;
                tracing::warn!(%error, "the operator's own rights cannot be looked at yet");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    };
    if missing.is_empty() {
        tracing::debug!("every right is granted");
    }
    for it in missing {
        tracing::warn!(
            verbs = it.verbs.join(","),
            resource = it.resource,
            namespace = it.namespace.as_deref().unwrap_or("(all)"),
            needed_for = it.reason,
            "a right is missing: compare the installed role with rbac/"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> ResourceRule {
        let texts = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect();
        ResourceRule {
            api_groups: Some(texts(groups)),
            resources: Some(texts(resources)),
            verbs: texts(verbs),
            ..ResourceRule::default()
        }
    }

    #[test]
    fn every_rule_of_the_shipped_roles_says_what_it_is_for() {
        for manifest in [
            EVERYWHERE, AT_HOME, BY_LABELS, BY_INGRESS, BY_GATEWAY, BY_ACCESS,
        ] {
            let needs = needs(manifest);
            assert_eq!(needs.len(), manifest.matches("- apiGroups:").count());
            for need in &needs {
                assert!(need.reason.ends_with('.'), "{need:?}");
            }
        }
    }

    #[test]
    fn what_the_config_makes_necessary_is_looked_for() {
        let resources = |config: &str| {
            let config = Config::parse(config).unwrap();
            let [everywhere, at_home] = needs_of(&config);
            let extra = |needs: Vec<Need>, usual: &[Need]| -> Vec<String> {
                let extra = needs.into_iter().skip(usual.len());
                extra.flat_map(|need| need.resources).collect()
            };
            [extra(everywhere, &NEEDS[0]), extra(at_home, &NEEDS[1])].map(|it| it.join(" "))
        };
        assert_eq!(resources("issuers: {}"), ["", ""]);
        let all = "issuers: {a: {directory: https://a.example/, allow: [{namespaceSelector: {}, names: [a.example]}]}}
solvers: [{zones: [a.example], http01: {route: ingress, ingress: {class: none}}},
  {http01: {route: gateway, gateway: {parentRefs: [{name: none}]}}}]";
        assert_eq!(resources(all), ["namespaces", "ingresses httproutes"]);
        let of_cluster = |config: &str| needs_of_cluster(&Config::parse(config).unwrap()).len();
        assert_eq!(of_cluster("issuers: {}"), 0);
        let closed = "{issuers: {}, metrics: {access: viewers, tls: {secret: a}}}";
        assert_eq!(of_cluster(closed), 2);
    }

    #[test]
    fn what_is_missing_is_named_with_its_reason() {
        let needs = needs(
            "rules:\n  # Roll them.\n  # Wait.\n  - apiGroups: [apps]\n    resources: [deployments, daemonsets]\n    verbs: [get, patch]\n",
        );
        let get = rule(&["apps"], &["deployments"], &["get"]);
        let all = rule(&["*"], &["*"], &["*"]);
        let mut by_name = all.clone();
        by_name.resource_names = Some(vec!["web".into()]);
        assert_eq!(missing(&needs, &[get.clone(), all], None), []);
        let mut one = needs.clone();
        one[0].resource_names = vec!["web".into()];
        assert_eq!(missing(&one, &[by_name.clone()], None), []);
        let found = missing(&needs, &[get, by_name], Some("shop"));
        let shown: Vec<String> = found
            .iter()
            .map(|it| format!("{} {} {}", it.verbs.join(","), it.resource, it.reason))
            .collect();
        assert_eq!(
            shown,
            [
                "patch deployments Roll them. Wait.",
                "get,patch daemonsets Roll them. Wait."
            ]
        );
        assert_eq!(found[0].namespace.as_deref(), Some("shop"));
    }
}
