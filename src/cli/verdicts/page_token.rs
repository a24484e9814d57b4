//! A token for the page of an operator that shows it to viewers only.
//!
//! The API server's proxy removes the user's own credentials from a request, and does not check whom it sends the rest to:
//! nothing that is of use elsewhere may go that way. So the user asks for a token of the ServiceAccount of viewers, which
//! lives for minutes and is for this page alone.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::cli::Failure;
use crate::cli::connection::api_error::{is_forbidden, is_not_found};
use crate::cli::output::plain;
use crate::net::metrics_port::access::AUDIENCE;

/// The ServiceAccount of viewers, in the operator's namespace: rbac/addons/viewer.yaml.
const ACCOUNT: &str = "cert-renew-viewer";
/// The shortest life that an API server gives, in seconds.
const LIFE: i64 = 600;

/// The token of this run of the command, once there is one; clones share it.
#[derive(Clone, Default)]
pub(in crate::cli) struct PageToken(Arc<Mutex<Option<Zeroizing<String>>>>);

impl fmt::Debug for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageToken")
    }
}

impl PageToken {
    /// The token that was asked for before.
    pub(in crate::cli) async fn known(&self) -> Option<Zeroizing<String>> {
        self.0.lock().await.clone()
    }

    /// Asks for another one.
    ///
    /// # Errors
    /// Why there is none, as a part of a sentence.
    pub(in crate::cli) async fn ask(
        &self,
        client: &Client,
        namespace: &str,
    ) -> Result<Zeroizing<String>, String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![AUDIENCE.to_owned()],
                expiration_seconds: Some(LIFE),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let made = accounts.create_token_request(ACCOUNT, &params, &request);
        let made = made.await.map_err(|error| why_not(&error, namespace))?;
        let token = made.status.map(|it| it.token).unwrap_or_default();
        let token = Zeroizing::new(token);
        *self.0.lock().await = Some(token.clone());
        Ok(token)
    }
}

fn why_not(error: &kube::Error, namespace: &str) -> String {
    let closed = "as it shows its page to viewers only, and";
    match error {
        error if is_forbidden(error) => format!(
            "{closed} you may not create serviceaccounts/token {ACCOUNT} in {namespace} (rbac/addons/viewer.yaml has the role)"
        ),
        error if is_not_found(error) => format!(
            "{closed} there is no ServiceAccount {ACCOUNT} in {namespace} (rbac/addons/viewer.yaml has it)"
        ),
        other => format!("({})", plain(&Failure::new("asking for a token", other).0)),
    }
}
