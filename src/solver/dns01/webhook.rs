//! For hosts that no provider supports: a service of the user's own that changes the record.
//!
//! It is sent `{"action": "present" | "cleanup", "name", "zone", "value"}` by POST, with the token as bearer where
//! there is one. Both actions may come several times, and concern only this one value of the name.

use serde_json::json;
use zeroize::Zeroizing;

use super::http::Endpoint;
use crate::cluster::order_records::Txt;

pub(super) struct Webhook {
    endpoint: Endpoint,
    authorization: Option<Zeroizing<String>>,
}

impl Webhook {
    pub(super) fn new(
        url: &str,
        ca_bundle: Option<&str>,
        token: Option<String>,
    ) -> Result<Self, String> {
        let token = token.map(Zeroizing::new);
        let endpoint = Endpoint::new(("url", url), ca_bundle);
        Ok(Self {
            endpoint: endpoint?,
            authorization: token.map(|token| Zeroizing::new(format!("Bearer {}", *token))),
        })
    }

    pub(super) async fn call(&self, action: &str, txt: &Txt) -> Result<(), String> {
        let body = json!({"action": action, "name": txt.at, "zone": txt.zone, "value": txt.value});
        let authorization = self.authorization.as_ref();
        let headers: Vec<_> = authorization
            .map(|it| ("authorization", it.as_str()))
            .into_iter()
            .collect();
        self.endpoint.post("", &headers, &body).await
    }
}
