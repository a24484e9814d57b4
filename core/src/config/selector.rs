//! Kubernetes label selectors (`meta/v1` LabelSelector), as `allow` writes them.

use std::collections::BTreeSet;

use kube_core::{Expression, Selector};

use super::reader::KeyPath;

/// Makes a requirement of a key and its values.
type Operator = fn(String, BTreeSet<String>) -> Expression;

/// All of `matchLabels` and all of `matchExpressions`; the empty selector matches everything, as in Kubernetes.
pub(super) fn read(place: &KeyPath<'_>) -> Selector {
    place.fields(|fields| {
        let labels = fields.get("matchLabels");
        let equal = labels.entries().into_iter().filter_map(|(key, value)| {
            check_key(&value, key);
            let value = value.present()?.parse(label_value)?;
            Some(Expression::Equal(key.to_string(), value))
        });
        let equal: Vec<_> = equal.collect();
        let expressions = fields.get("matchExpressions");
        let expressions = expressions.list(|item| Some(requirement(item)));
        equal.into_iter().chain(expressions).collect()
    })
}

fn requirement(place: &KeyPath<'_>) -> Expression {
    place.fields(|fields| {
        let key_place = fields.required("key");
        let key = key_place
            .parse(|text| Ok::<_, String>(text.to_string()))
            .unwrap_or_default();
        if !key_place.is_absent() {
            check_key(&key_place, &key);
        }
        let exists: (Operator, bool) = (|key, _| Expression::Exists(key), false);
        let (operator, wants) = fields.required("operator").choice(
            &[
                ("In", (Expression::In as Operator, true)),
                ("NotIn", (Expression::NotIn, true)),
                ("Exists", exists),
                (
                    "DoesNotExist",
                    (|key, _| Expression::DoesNotExist(key), false),
                ),
            ],
            exists,
        );
        let values_place = fields.get("values");
        let values = values_place.list(|item| item.parse(label_value));
        if wants && values_place.is_absent() {
            values_place.fault("missing, In and NotIn need them");
        } else if !wants && !values.is_empty() {
            values_place.fault("expected none with Exists and DoesNotExist");
        }
        operator(key, values.into_iter().collect())
    })
}

fn check_key(place: &KeyPath<'_>, key: &str) {
    let (prefix, name) = key.split_once('/').unwrap_or(("a", key));
    let sound = !name.is_empty() && label_value(name).is_ok() && (1..=253).contains(&prefix.len());
    if !sound {
        place.fault_unseen("expected a label's key");
    }
}

/// A label's value: up to 63 characters, letters and digits at both ends; it may be empty.
fn label_value(text: &str) -> Result<String, &'static str> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let ends = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    let sound = text.len() <= 63
        && text.bytes().all(inner)
        && ends(text.bytes().next())
        && ends(text.bytes().next_back());
    if sound {
        Ok(text.to_string())
    } else {
        Err("expected a label's value")
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use kube_core::SelectorExt as _;

    use super::*;
    use crate::config::tree;

    fn of(yaml: &str) -> (Selector, Vec<String>) {
        let node = tree::parse(yaml).unwrap();
        let faults = RefCell::default();
        let selector = read(&KeyPath::root(&node, &faults));
        let faults = faults.into_inner();
        (selector, faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn matches_like_kubernetes() {
        let labels = |text: &str| -> BTreeMap<String, String> {
            text.split_whitespace()
                .filter_map(|p| p.split_once('='))
                .map(|(k, v)| (k.into(), v.into()))
                .collect()
        };
        for (yaml, fits, misses) in [
            ("{}", "", "-"),
            (
                "matchLabels: {team: shop, tier: web}",
                "team=shop tier=web x=y",
                "team=shop",
            ),
            (
                "matchExpressions: [{key: team, operator: In, values: [a, b]}]",
                "team=b",
                "team=c",
            ),
            (
                "matchExpressions: [{key: team, operator: NotIn, values: [a]}]",
                "",
                "team=a",
            ),
            (
                "matchExpressions: [{key: team, operator: Exists}]",
                "team=",
                "",
            ),
            (
                "matchExpressions: [{key: example.com/team, operator: DoesNotExist}]",
                "team=a",
                "example.com/team=a",
            ),
        ] {
            let (selector, faults) = of(yaml);
            assert_eq!(faults, [""; 0], "{yaml}");
            assert!(selector.matches(&labels(fits)), "{yaml} {fits}");
            assert!(
                misses == "-" || !selector.matches(&labels(misses)),
                "{yaml} {misses}"
            );
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (yaml, fault) in [
            (
                "matchlabels: {}",
                "matchlabels: unknown, expected one of matchLabels, matchExpressions; did you mean matchLabels?",
            ),
            ("matchLabels: {a: }", "matchLabels.a: missing"),
            (
                "matchLabels: {a: -b}",
                "matchLabels.a: \"-b\": expected a label's value",
            ),
            (
                "matchLabels: {a/b/c: b}",
                "matchLabels.\"a/b/c\": expected a label's key",
            ),
            (
                "matchExpressions: [{key: a, operator: Is}]",
                "matchExpressions[0].operator: \"Is\": expected In or NotIn or Exists or DoesNotExist",
            ),
            (
                "matchExpressions: [{key: a, operator: In}]",
                "matchExpressions[0].values: missing, In and NotIn need them",
            ),
            (
                "matchExpressions: [{key: a, operator: Exists, values: [b]}]",
                "matchExpressions[0].values: a list: expected none with Exists and DoesNotExist",
            ),
            (
                "matchExpressions: [{operator: Exists}]",
                "matchExpressions[0].key: missing",
            ),
        ] {
            assert_eq!(of(yaml).1, [fault], "{yaml}");
        }
    }
}
