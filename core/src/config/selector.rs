//! Kubernetes label selectors (`meta/v1` LabelSelector), matched here since no API call does it for `allow`.

use std::collections::BTreeMap;

use super::reader::Place;

/// All of `matchLabels` and all of `matchExpressions`; the empty selector matches everything, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    pub(super) fn read(place: &Place<'_>) -> Self {
        place.fields(|fields| {
            let labels = fields.get("matchLabels");
            let equal = labels.entries().into_iter().filter_map(|(key, value)| {
                check_key(&value, key);
                let values = vec![value.present()?.parse(label_value)?];
                Some(Requirement {
                    key: key.to_string(),
                    operator: Operator::In,
                    values,
                })
            });
            let mut requirements: Vec<_> = equal.collect();
            let expressions = fields.get("matchExpressions");
            requirements.extend(expressions.list(|item| Some(Requirement::read(item))));
            Self { requirements }
        })
    }

    /// Whether the selector matches an object with these labels.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            let listed = value.is_some_and(|value| requirement.values.contains(value));
            match requirement.operator {
                Operator::In => listed,
                Operator::NotIn => !listed,
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

impl Requirement {
    fn read(place: &Place<'_>) -> Self {
        place.fields(|fields| {
            let key_place = fields.required("key");
            let key = key_place
                .parse(|text| Ok::<_, String>(text.to_string()))
                .unwrap_or_default();
            if !key_place.is_absent() {
                check_key(&key_place, &key);
            }
            let operator = fields.required("operator").choice(
                &[
                    ("In", Operator::In),
                    ("NotIn", Operator::NotIn),
                    ("Exists", Operator::Exists),
                    ("DoesNotExist", Operator::DoesNotExist),
                ],
                Operator::Exists,
            );
            let values_place = fields.get("values");
            let values = values_place.list(|item| item.parse(label_value));
            let wants = matches!(operator, Operator::In | Operator::NotIn);
            if wants && values_place.is_absent() {
                values_place.fault("missing, In and NotIn need them");
            } else if !wants && !values.is_empty() {
                values_place.fault("expected none with Exists and DoesNotExist");
            }
            Self {
                key,
                operator,
                values,
            }
        })
    }
}

fn check_key(place: &Place<'_>, key: &str) {
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

    use super::*;
    use crate::config::tree;

    fn read(yaml: &str) -> (LabelSelector, Vec<String>) {
        let node = tree::parse(yaml).unwrap();
        let faults = RefCell::default();
        let selector = LabelSelector::read(&Place::root(&node, &faults));
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
            let (selector, faults) = read(yaml);
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
                "matchlabels: unknown, expected one of matchLabels, matchExpressions",
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
            assert_eq!(read(yaml).1, [fault], "{yaml}");
        }
    }
}
