//! acme-dns: a DNS server that holds only challenges, to which `_acme-challenge` is delegated by CNAME.
//!
//! The Secret holds what its clients call `acmedns.json`: the account of each domain, by the domain's name. The server
//! keeps the last two values of an account, which are those of apex and wildcard, so nothing needs to be removed.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::http::Endpoint;
use crate::cluster::order_records::Txt;

pub(super) struct AcmeDns {
    endpoint: Endpoint,
    accounts: BTreeMap<String, Account>,
}

#[derive(Deserialize)]
struct Account {
    username: String,
    password: String,
    subdomain: String,
}

impl AcmeDns {
    pub(super) fn new(
        server: &str,
        ca_bundle: Option<&str>,
        accounts: &str,
    ) -> Result<Self, String> {
        let members: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(accounts).map_err(|_| {
                "expected at key acmedns.json the accounts by domain, as acme-dns' /register gives them"
            })?;
        let accounts = members.into_iter().filter_map(|(domain, account)| {
            Some((domain.to_lowercase(), serde_json::from_value(account).ok()?))
        });
        Ok(Self {
            endpoint: Endpoint::new(("server", server), ca_bundle)?,
            accounts: accounts.collect(),
        })
    }

    /// The account of the nearest domain at or above the name.
    fn account(&self, name: &str) -> Option<&Account> {
        let bare = name.strip_prefix("*.").unwrap_or(name);
        let mut at = Some(bare);
        while let Some(domain) = at {
            if let Some(account) = self.accounts.get(domain) {
                return Some(account);
            }
            at = domain.split_once('.').map(|(_, parent)| parent);
        }
        None
    }

    pub(super) async fn add(&self, txt: &Txt) -> Result<(), String> {
        let account = self.account(&txt.of).ok_or_else(|| {
            format!(
                "acmedns.json has no account for {} or a domain above it",
                txt.of
            )
        })?;
        let headers = [
            ("x-api-user", account.username.as_str()),
            ("x-api-key", account.password.as_str()),
        ];
        let body = json!({"subdomain": account.subdomain, "txt": txt.value});
        // Its error text may repeat the headers.
        let told = |error: String| error.replace(&account.password, "***");
        self.endpoint
            .post("/update", &headers, &body)
            .await
            .map_err(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_domain_has_the_account() {
        let account = |user: &str| json!({"username": user, "password": "p", "subdomain": "s", "fulldomain": "f"});
        let accounts =
            json!({"Example.com": account("a"), "shop.example.com": account("b"), "odd": 1});
        let acme_dns =
            AcmeDns::new("https://auth.acme-dns.example", None, &accounts.to_string()).unwrap();
        for (name, user) in [
            ("example.com", Some("a")),
            ("*.example.com", Some("a")),
            ("*.shop.example.com", Some("b")),
            ("x.y.example.com", Some("a")),
            ("odd", None),
            ("example.org", None),
        ] {
            let found = acme_dns
                .account(name)
                .map(|account| account.username.as_str());
            assert_eq!(found, user, "{name}");
        }
        assert!(AcmeDns::new("auth.acme-dns.example", None, "{}").is_err());
        assert!(AcmeDns::new("https://a.example", None, "[]").is_err());
    }
}
