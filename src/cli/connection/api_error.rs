//! Errors of the API server, in the words in which kubectl prints them.

use std::error::Error;

use cert_renew_core::text::{error_chain, holds_private_key};
use kube::config::{InferConfigError, KubeconfigError};
use kube::core::Status;

use crate::cluster::{self, Unreachable};

/// Where a kubeconfig is looked for.
const NO_KUBECONFIG: &str = "no kubeconfig: neither --kubeconfig, nor $KUBECONFIG, nor ~/.kube/config, nor the account of \
                             a pod says where the API server is";

/// Whether the API server refused it for want of a right.
pub(in crate::cli) fn is_forbidden(error: &kube::Error) -> bool {
    is_status(error, 403, "Forbidden")
}

/// Whether the API server has no such object.
pub(in crate::cli) fn is_not_found(error: &kube::Error) -> bool {
    is_status(error, 404, "NotFound")
}

/// Whether the API server reached nothing behind a Service.
pub(in crate::cli) fn is_unavailable(error: &kube::Error) -> bool {
    is_status(error, 503, "ServiceUnavailable")
}

/// Whether it is this Status of the API server. A proxy on the way there, and what is behind a Service, answer with the same
/// codes, but not with a Status that says this.
fn is_status(error: &kube::Error, code: u16, reason: &str) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code && status.reason == reason)
}

/// What kubectl would print for this error, if the API server or the way to it is the cause.
pub(in crate::cli) fn in_kubectls_words(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(text) = of_one(error) {
            return Some(text);
        }
        next = error.source();
    }
    None
}

/// The same for one error of a chain.
fn of_one(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(kube::Error::Api(status)) = error.downcast_ref() {
        return Some(of_status(status));
    }
    if let Some(unreachable) = error.downcast_ref::<Unreachable>() {
        return Some(of_connection(unreachable));
    }
    if let Some(error) = error.downcast_ref::<cluster::Error>() {
        return of_cluster(error);
    }
    if let Some(error) = error.downcast_ref::<InferConfigError>() {
        let why = error.source().and_then(<dyn Error>::downcast_ref);
        let why = why.map_or_else(String::new, |why| format!(" ({})", of_kubeconfig(why)));
        return Some(format!("{NO_KUBECONFIG}{why}"));
    }
    error.downcast_ref().map(of_kubeconfig)
}

/// `Error from server (NotFound): secrets "nosuch" not found`.
fn of_status(status: &Status) -> String {
    let Status {
        message,
        reason,
        code,
        ..
    } = status;
    let message = if holds_private_key(message) {
        "it quotes a private key (not shown)".to_owned()
    } else if message.is_empty() {
        format!("code {code}, without a reason")
    } else {
        one_line(message)
    };
    // kube gives an answer that is no Status a reason of its own, with blanks in it.
    if reason.is_empty() || reason.contains(' ') {
        format!("Error from server: {message}")
    } else {
        format!("Error from server ({}): {message}", one_line(reason))
    }
}

fn of_connection(unreachable: &Unreachable) -> String {
    let address = unreachable.address();
    if unreachable.is_refused() {
        format!(
            "The connection to the server {address} was refused - did you specify the right host or port?"
        )
    } else {
        let cause = unreachable.source().map(error_chain).unwrap_or_default();
        format!(
            "Unable to connect to the server {address}: {}",
            one_line(&cause)
        )
    }
}

/// What the operator's own calls make of an answer; their text about roles is for the operator's role, not the caller's.
fn of_cluster(error: &cluster::Error) -> Option<String> {
    match error {
        cluster::Error::Forbidden { message, .. } => Some(format!(
            "Error from server (Forbidden): {}",
            one_line(message)
        )),
        cluster::Error::NotFound { what } => {
            Some(format!("Error from server (NotFound): {what}: not found"))
        }
        _ => None,
    }
}

fn of_kubeconfig(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::LoadContext(name) => format!("context {name:?} does not exist"),
        KubeconfigError::CurrentContextNotSet => {
            "the kubeconfig names no current context: name one with --context".into()
        }
        KubeconfigError::ReadConfig(_, file) if !file.exists() => {
            format!("the kubeconfig {} does not exist", file.display())
        }
        KubeconfigError::ReadConfig(error, file) => {
            format!("the kubeconfig {} cannot be read: {error}", file.display())
        }
        KubeconfigError::FindPath => NO_KUBECONFIG.into(),
        error => format!(
            "the kubeconfig cannot be used: {}",
            one_line(&error_chain(error))
        ),
    }
}

/// The text without what moves a terminal's cursor: parts of it may come from users who edit an object.
fn one_line(text: &str) -> String {
    let visible = |part: char| if part.is_control() { ' ' } else { part };
    text.chars().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, reason: &str, message: &str) -> kube::Error {
        let status = Status {
            code,
            reason: reason.into(),
            message: message.into(),
            ..Status::default()
        };
        kube::Error::Api(Box::new(status))
    }

    #[test]
    fn an_answer_is_said_as_kubectl_says_it() {
        for (error, expected) in [
            (
                status(404, "NotFound", "secrets \"nosuch\" not found"),
                "Error from server (NotFound): secrets \"nosuch\" not found",
            ),
            (
                status(
                    403,
                    "Forbidden",
                    "secrets is forbidden: User \"joe\" cannot list resource \"secrets\"",
                ),
                "Error from server (Forbidden): secrets is forbidden: User \"joe\" cannot list resource \"secrets\"",
            ),
            (
                status(502, "Failed to parse error data", "bad gateway\n"),
                "Error from server: bad gateway ",
            ),
            (
                status(500, "", ""),
                "Error from server: code 500, without a reason",
            ),
        ] {
            assert_eq!(in_kubectls_words(&error).as_deref(), Some(expected));
        }
    }

    #[test]
    fn only_the_api_servers_own_status_is_taken_for_its_word() {
        let refused = status(403, "Forbidden", "secrets is forbidden");
        assert!(is_forbidden(&refused));
        // As kube gives an answer that is no Status.
        let page = status(403, "Failed to parse error data", "<html>blocked</html>");
        assert!(!is_forbidden(&page));
        assert!(!is_forbidden(&status(404, "NotFound", "")));
        assert!(is_not_found(&status(404, "NotFound", "")));
        let page = status(404, "Failed to parse error data", "<html>no page</html>");
        assert!(!is_not_found(&page));
        assert!(is_unavailable(&status(
            503,
            "ServiceUnavailable",
            "no endpoints"
        )));
        let page = status(503, "Failed to parse error data", "upstream");
        assert!(!is_unavailable(&page));
    }

    #[test]
    fn a_refusal_of_the_operators_calls_blames_no_role_of_the_operator() {
        let error = cluster::Error::Forbidden {
            what: "reading Secret x".into(),
            message: "User \"joe\" cannot get".into(),
        };
        assert_eq!(
            in_kubectls_words(&error).as_deref(),
            Some("Error from server (Forbidden): User \"joe\" cannot get")
        );
        let other = std::io::Error::other("x");
        assert_eq!(in_kubectls_words(&other), None);
    }

    #[test]
    fn a_kubeconfig_that_is_not_there_is_named() {
        let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = KubeconfigError::ReadConfig(gone, "/no/such/file".into());
        let said = in_kubectls_words(&error).unwrap();
        assert!(said.ends_with("/no/such/file does not exist"), "{said}");
        let error = KubeconfigError::LoadContext("x".into());
        assert_eq!(
            in_kubectls_words(&error).unwrap(),
            "context \"x\" does not exist"
        );
    }
}
