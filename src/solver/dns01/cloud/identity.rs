//! The identity that a cloud gives the pod: environment variables and files. Nothing of it is kept.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Prefixes of the variables of the three clouds.
const PREFIXES: [&str; 3] = ["AWS_", "AZURE_", "GCE_METADATA_"];

/// The environment, as the cloud sets it.
#[derive(Clone, Debug, Default)]
pub(in crate::solver::dns01) struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The environment of this process.
    pub(in crate::solver::dns01) fn of_process() -> Self {
        let ours = |key: &str| PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        Self(std::env::vars().filter(|(key, _)| ours(key)).collect())
    }

    pub(in crate::solver::dns01) fn get(&self, key: &str) -> Option<&str> {
        self.0
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    #[cfg(test)]
    pub(in crate::solver::dns01) fn of(pairs: &[(&str, &str)]) -> Self {
        let pairs = pairs.iter();
        Self(
            pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }
}

/// The token of the service account, which the kubelet renews in this file.
pub(in crate::solver::dns01) fn token(file: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(format!(
            "{file}: expected the token of a service account, it is empty"
        ));
    }
    Ok(text.to_owned())
}

/// Whether the host is this machine, so that the connection cannot be tapped: used by tests and side-cars.
pub(in crate::solver::dns01) fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.parse().is_ok_and(|it: IpAddr| it.is_loopback())
}
