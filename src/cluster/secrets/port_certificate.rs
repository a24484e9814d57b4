//! Follows the Secret with the certificate of the metrics port, and presents what is in it.
//!
//! Who renews it does not matter: this operator, if it is annotated, or anybody else. A pair that cannot be used, or a
//! Secret that is gone, leaves the certificate of before.

use std::sync::Arc;

use cert_renew_core::config::Config;
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::text::error_chain;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::Client;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;
use tokio::sync::watch;

use crate::net::presented::{Presented, Unusable};

/// Presents the certificate of the Secret that the config names, or none, until the process ends.
pub async fn follow(
    client: Client,
    namespace: Arc<str>,
    mut config: watch::Receiver<Arc<Config>>,
    presented: Presented,
) {
    loop {
        let secret = config.borrow_and_update().metrics.tls.clone();
        let another = async {
            // An error means that the sender is gone: the process ends.
            let is_another = |it: &Arc<Config>| it.metrics.tls != secret;
            if config.wait_for(is_another).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let Some(name) = &secret else {
            presented.clear();
            another.await;
            continue;
        };
        tokio::select! {
            () = another => {}
            () = present(&client, &namespace, name, &presented) => {}
        }
    }
}

/// Presents what one Secret holds.
async fn present(client: &Client, namespace: &str, name: &str, presented: &Presented) {
    let api: Api<FullSecret> = Api::namespaced(client.clone(), namespace);
    let mut versions = watch_object(api, name).default_backoff().boxed();
    let mut last = None;
    loop {
        let secret = match versions.try_next().await {
            Ok(Some(Some(secret))) => secret,
            Ok(Some(None)) => {
                tracing::warn!(
                    secret = format!("{namespace}/{name}"),
                    "there is no such Secret: the metrics port takes its certificate from it (metrics.tls)"
                );
                continue;
            }
            Ok(None) => return,
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(
                    error,
                    "the certificate of the metrics port cannot be watched now"
                );
                continue;
            }
        };
        let certificate = secret.data.get(&*secret.place().certificate).cloned();
        match take(&secret, presented) {
            Ok(()) if last == certificate => {}
            Ok(()) => tracing::info!(
                secret = format!("{namespace}/{name}"),
                "the metrics port presents this certificate"
            ),
            Err(error) => tracing::error!(
                secret = format!("{namespace}/{name}"),
                %error,
                "the metrics port cannot present this certificate, and keeps the one before, if any"
            ),
        }
        last = certificate;
    }
}

fn take(secret: &FullSecret, presented: &Presented) -> Result<(), Unusable> {
    let place = secret.place();
    let certificate = secret.data.get(&*place.certificate);
    let certificate = certificate.ok_or(Unusable::NoCertificate)?;
    let key = secret.data.get(&*place.key).ok_or(Unusable::NoKey)?;
    presented.replace(certificate, key)
}
