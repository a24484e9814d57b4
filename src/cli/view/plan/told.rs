//! The plan for somebody who may not list Secrets: what the operator says of each, and the workloads that it knew to use
//! it at the last rollout, or when it was first seen.

use cert_renew_core::secret::SecretRef;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::{Report, Verdict};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams};

use super::{Rolled, Row};
use crate::cli::Failure;
use crate::cli::connection::api_error::is_forbidden;
use crate::cli::connection::kube_flags::{Clients, Scope};
use crate::cli::verdicts::{Operator, Wanted, left_out, nobody_leads, say};

/// Why a workload would be restarted, as far as is known here.
const USES_IT: &str = "used it at the last rollout";

/// The error of who may not list Secrets in this scope.
pub(super) async fn refusal(clients: &Clients, scope: &Scope) -> Option<kube::Error> {
    let api: Api<Secret> = scope.api(&clients.api);
    let listed = api.list_metadata(&ListParams::default().limit(1)).await;
    let error = listed.err()?;
    is_forbidden(&error).then_some(error)
}

/// The plan by the operator's word, said in the first line of standard error; and its report.
///
/// # Errors
/// When the operator cannot be asked either.
pub(super) async fn rows(
    clients: &Clients,
    operator: &Operator,
    wanted: &Wanted,
    refusal: &kube::Error,
) -> Result<(Vec<Row>, Report), Failure> {
    let Failure(refused) = Failure::new("listing Secrets", refusal);
    let report = operator.report(&clients.once, wanted).await;
    let report = report.map_err(|why| {
        Failure(format!(
            "{refused}; the operator could not be asked instead, {why}"
        ))
    })?;
    let nobody = nobody_leads(&report, operator);
    say(&note(&report, nobody, wanted.namespace.as_deref()));
    let rows = report.certificates.iter();
    let rows = rows.map(|verdict| row(report.as_of, verdict)).collect();
    Ok((rows, report))
}

/// What the reader should know before the plan.
fn note(report: &Report, nobody: Option<String>, namespace: Option<&str>) -> String {
    let place = match namespace {
        Some(namespace) => format!("in namespace {namespace}"),
        None => "in all namespaces".to_owned(),
    };
    let own = format!(
        "you may not list Secrets {place}: this is what the operator says, with the workloads of each last rollout"
    );
    let parts = [nobody, Some(own), left_out(report)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn row(now: UnixTime, verdict: &Verdict) -> Row {
    let used_by = verdict.used_by.as_ref();
    let workloads = used_by.into_iter().flat_map(|it| &it.workloads);
    let rolled = workloads.map(|(workload, _)| Rolled {
        workload: workload.to_string(),
        how: None,
        why: USES_IT.to_owned(),
    });
    let mut names: Vec<String> = verdict.names.iter().map(ToString::to_string).collect();
    if verdict.more_names > 0 {
        names.push(format!("and {} more", verdict.more_names));
    }
    Row {
        at: verdict.renews.unwrap_or(UnixTime::NEVER),
        secret: SecretRef {
            namespace: (*verdict.namespace).into(),
            name: (*verdict.name).into(),
        },
        why: verdict.renews_why.to_string(),
        held: verdict.held_up(now),
        names,
        rollout: rolled.collect(),
        more: used_by.map_or(0, |it| it.more),
        only_for_ca: Vec::new(),
        left_behind: Vec::new(),
        verify: None,
        against: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::entries::{NOW, index};

    use super::super::text;
    use super::*;
    use crate::cli::output::{Output, Screen};
    use crate::cli::verdicts::why_missing;

    #[test]
    fn what_the_answer_has_no_room_for_is_told() {
        let report = |left_out| Report {
            left_out,
            ..super::super::tests::report(Vec::new())
        };
        let note = |left_out| note(&report(left_out), Some("nobody leads".into()), Some("shop"));
        let own = "nobody leads; you may not list Secrets in namespace shop: this is what the operator says, with the \
                   workloads of each last rollout";
        assert_eq!(note(0), own);
        let more =
            "; 7 certificates are left out, as there are too many: name a namespace or a Secret";
        assert_eq!(note(7), format!("{own}{more}"));
    }

    #[test]
    fn a_name_for_which_the_answer_had_no_room_is_not_called_missing() {
        let wanted = Wanted::one(("shop".into(), "tls".into()));
        let said = |left_out| {
            let report = Report {
                left_out,
                ..super::super::tests::report(Vec::new())
            };
            let why = |namespace: &str, name: &str| why_missing(&report, namespace, name);
            super::super::missing(&wanted, &[], why).remove(0)
        };
        let missing = said(0);
        assert!(
            missing.starts_with("shop/tls: there is no such Secret, "),
            "{missing}"
        );
        assert_eq!(
            said(3),
            "shop/tls: it is not among the certificates that fit into an answer; ask for it alone"
        );
    }

    #[test]
    fn what_the_operator_says_is_a_plan() {
        let index = index();
        let rows = index.iter().map(|(row, _)| row);
        let verdicts = rows.filter_map(|row| Verdict::of_row(NOW, &index, row, 0));
        let named = |it: &Verdict| ["healthy", "held", "paused"].contains(&&*it.name);
        let verdicts: Vec<Verdict> = verdicts.filter(named).collect();
        let printed = |output| {
            let rows = verdicts.iter().map(|it| row(NOW, it)).collect();
            text(NOW, rows, output, Screen::default()).unwrap()
        };
        let json: serde_json::Value = serde_json::from_str(&printed(Output::Json)).unwrap();
        let printed = printed(Output::Table);
        let lines: Vec<&str> = printed.lines().collect();
        assert!(
            lines[1].contains("2023-11-22T22:13:20Z") && lines[1].contains("RenewNow"),
            "{printed}"
        );
        assert!(
            lines[2].contains("2023-12-14T22:13:20Z")
                && lines[2].contains("deployment/api(used it"),
            "{printed}"
        );
        assert!(
            lines[3].contains("never") && lines[3].contains("Paused"),
            "{printed}"
        );
        let held = "a new certificate is asked for, and the present one is younger than a tenth of its lifetime: it is held \
                    until 2023-11-22T22:13:20Z";
        assert!(lines.contains(&&*format!("shop/held: {held}")), "{printed}");
        assert_eq!(json[0]["held"], held);
        assert_eq!(json[1].get("held"), None, "it is not due");
        assert_eq!(lines.last(), Some(&"shop/healthy: 2 more workloads use it"));
    }
}
