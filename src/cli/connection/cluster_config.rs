//! The operator's config, as a command needs it: from the ConfigMap of the installation, or from a file.

use std::path::PathBuf;

use cert_renew_core::config::{Config, Faults};
use cert_renew_core::text::shown;
use clap::Args;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::Api;

use super::api_error::{is_forbidden, is_not_found};
use super::kube_flags::OperatorNamespace;
use crate::cli::Failure;
use crate::process::config_file;

/// Name of the ConfigMap that the shipped manifests make.
pub(in crate::cli) const NAME: &str = "cert-renew-config";
/// Its data key that holds the config file.
pub(in crate::cli) const KEY: &str = "config.yaml";

/// Where the config is taken from.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct ConfigFlags {
    /// A config file, instead of the ConfigMap cert-renew-config in the operator's namespace
    #[arg(long, env = "CERT_RENEW_CONFIG", value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) operator: OperatorNamespace,
}

impl ConfigFlags {
    /// The config that these flags name.
    pub(in crate::cli) async fn read(&self, client: &Client) -> Result<Config, Failure> {
        match &self.config {
            Some(file) => config_file::load(file).map_err(|faults| Failure(faults.to_string())),
            None => read(client, &self.operator.operator_namespace).await,
        }
    }
}

/// The config in the ConfigMap of the operator's namespace.
pub(in crate::cli) async fn read(
    client: &Client,
    operator_namespace: &str,
) -> Result<Config, Failure> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), operator_namespace);
    let found = api.get(NAME).await.map_err(|error| {
        let doing = format!("reading the config from ConfigMap {operator_namespace}/{NAME}");
        Failure::new(&doing, &error)
    })?;
    of(&found, operator_namespace)
}

/// The same; None where there is no such ConfigMap, or the caller may not read it.
pub(in crate::cli) async fn read_if_allowed(
    client: &Client,
    operator_namespace: &str,
) -> Result<Option<Config>, Failure> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), operator_namespace);
    match api.get(NAME).await {
        Ok(found) => of(&found, operator_namespace).map(Some),
        Err(error) if is_forbidden(&error) || is_not_found(&error) => Ok(None),
        Err(error) => {
            let doing = format!("reading the config from ConfigMap {operator_namespace}/{NAME}");
            Err(Failure::new(&doing, &error))
        }
    }
}

/// The config in this ConfigMap.
fn of(found: &ConfigMap, operator_namespace: &str) -> Result<Config, Failure> {
    let text = found.data.as_ref().and_then(|data| data.get(KEY));
    let Some(text) = text else {
        return Err(Failure(format!(
            "ConfigMap {operator_namespace}/{NAME} has no key {KEY}: name the config file with --config"
        )));
    };
    Config::parse(text).map_err(|faults| {
        let place = format!("ConfigMap {operator_namespace}/{NAME}, {KEY}");
        let faults = Faults {
            file: Some(place.into()),
            ..faults
        };
        Failure(faults.to_string())
    })
}

/// The sentence on an issuer that the config does not have.
pub(in crate::cli) fn unknown_issuer(issuer: &str, config: &Config) -> String {
    let known: Vec<&str> = config.issuers.keys().map(String::as_str).collect();
    format!(
        "the operator's config has no issuer {}: it has {}",
        shown(issuer),
        if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_map(data: &[(&str, &str)]) -> ConfigMap {
        let data = data
            .iter()
            .map(|(key, text)| (String::from(*key), String::from(*text)));
        ConfigMap {
            data: Some(data.collect()),
            ..ConfigMap::default()
        }
    }

    #[test]
    fn a_fault_names_the_config_map_and_the_line() {
        let good = config_map(&[(KEY, "issuers: {}")]);
        assert!(of(&good, "ops").is_ok());
        let bad = config_map(&[(KEY, "issuers: {}\nisuers: 1")]);
        let said = of(&bad, "ops").unwrap_err().0;
        assert!(
            said.contains("ConfigMap ops/cert-renew-config, config.yaml:2: isuers"),
            "{said}"
        );
        let other = config_map(&[("values", "x")]);
        let said = of(&other, "ops").unwrap_err().0;
        assert!(said.contains("has no key config.yaml"), "{said}");
    }
}
