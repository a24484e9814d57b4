//! What an Event says of a failed renewal beside the error itself: its kind once, and what the reader can do.

use cert_renew_core::secret::SecretRef;
use cert_renew_core::text::name::Name;

use super::failure::{Failure, FailureContext};
use crate::acme;

/// Most names that a command in an Event lists: a note has a kilobyte.
const MOST_LISTED: usize = 10;

/// The text with the class of the error in front, which it then does not say again.
pub(super) fn told_once(reason: &str, text: &str) -> String {
    let (first, rest) = reason.split_at(reason.len().min(1));
    let kind = format!("{}{rest}", first.to_ascii_lowercase());
    let text = text.replace(&format!(" ({kind})"), "");
    let text = text.replace(&format!("({kind}; it: "), "(it: ");
    format!("{reason}: {text}")
}

/// How to see whether a request of the CA reaches us, where one did not.
pub(super) fn route_hint(what: &Failure) -> Option<String> {
    let Failure::Acme(error) = what else {
        return None;
    };
    let problem = error.problem()?;
    let fetched = |it: &&acme::Subproblem| it.detail.contains("/.well-known/acme-challenge/");
    let name = &problem.subproblems.iter().find(fetched)?.name;
    let name: Name = name.parse().ok()?;
    Some(format!(
        "; does its route lead to cert-renew? cert-renew check route {name}"
    ))
}

/// How the other names can go on without those that cannot be proven.
pub(super) fn without_them(key: &SecretRef, what: &Failure, of: &FailureContext) -> Option<String> {
    let Failure::Acme(error) = what else {
        return None;
    };
    let stops = |name: &Name| {
        let subproblems = error.problem().map_or(&[][..], |it| &it.subproblems);
        let is_it = |it: &acme::Subproblem| it.name.parse().is_ok_and(|it: Name| it == *name);
        subproblems.iter().any(is_it)
    };
    let (stopping, others): (Vec<&Name>, Vec<&Name>) = of.names.iter().partition(|it| stops(it));
    if stopping.is_empty() || others.is_empty() {
        return None;
    }
    let (count, SecretRef { namespace, name }) = (others.len(), key);
    let what = if count > MOST_LISTED {
        "take it out of cert-renew.io/names".to_owned()
    } else {
        let others: Vec<String> = others.into_iter().map(Name::to_string).collect();
        let names = others.join(",");
        format!(
            "kubectl -n {namespace} annotate --overwrite secret {name} 'cert-renew.io/names={names}'"
        )
    };
    Some(format!(
        "; for a certificate without what fails, for the {count} other names: {what}"
    ))
}

#[cfg(test)]
mod tests {
    use cert_renew_core::time::UnixTime;
    use serde_json::json;

    use super::*;

    /// What a CA says of a name that it could not prove.
    fn unproven(name: &str, detail: &str) -> Failure {
        let kind = "urn:ietf:params:acme:error:unauthorized";
        let identifier = json!({"type": "dns", "value": name});
        let of_name = json!({"type": kind, "detail": detail, "identifier": identifier});
        let body = json!({"type": kind, "subproblems": [of_name]}).to_string();
        let action = acme::Action::Authorization;
        acme::Error::answer(action, "ca", 403, body.as_bytes(), None, UnixTime(0)).into()
    }

    #[test]
    fn the_kind_of_an_error_is_said_once_and_the_way_to_look_at_the_route_with_it() {
        let url = "http://web.example.com/.well-known/acme-challenge/hfw";
        let detail = format!("Non-200 status code from HTTP: {url} returned 404");
        let failed = unproven("web.example.com", &detail);
        let told = told_once(failed.reason(), &failed.to_string());
        let expected = format!(
            "Unauthorized: web.example.com: Non-200 status code from HTTP: it returned 404 (it: {url})"
        );
        assert_eq!(told, expected);
        assert_eq!(told.to_lowercase().matches("unauthorized").count(), 1);
        let hint = "; does its route lead to cert-renew? cert-renew check route web.example.com";
        assert_eq!(route_hint(&failed).as_deref(), Some(hint));
        // Nothing was fetched: there is no route to look at.
        let failed = unproven(
            "web.example.com",
            "Correct value not found for DNS challenge",
        );
        assert_eq!(route_hint(&failed), None);
        assert_eq!(
            told_once(failed.reason(), &failed.to_string()),
            "Unauthorized: web.example.com: Correct value not found for DNS challenge"
        );
    }
}
