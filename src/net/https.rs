//! Clients of HTTPS: they follow no redirect, and trust the public roots, compiled in since the image holds no files,
//! and those of a file.

use std::sync::Arc;

use reqwest::ClientBuilder;
use reqwest::redirect::Policy;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::net::egress::Absolute;

/// The public roots and those of `bundle`, which is PEM.
///
/// # Errors
/// The fault of the bundle, as the end of a sentence.
pub(crate) fn roots(bundle: Option<&[u8]>) -> Result<RootCertStore, &'static str> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let mut count = 0;
    for certificate in bundle.into_iter().flat_map(CertificateDer::pem_slice_iter) {
        let certificate = certificate.map_err(|_| "expected PEM certificates in the caBundle")?;
        { roots.add(certificate) }
            .map_err(|_| "a certificate in the caBundle is no trust anchor")?;
        count += 1;
    }
    match bundle {
        Some(_) if count == 0 => Err("expected PEM certificates in the caBundle, found none"),
        _ => Ok(roots),
    }
}

/// TLS that trusts these roots.
///
/// # Errors
/// Where the build has no TLS version.
pub(crate) fn tls(roots: RootCertStore) -> Result<ClientConfig, &'static str> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| "no TLS version is enabled in this build")?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// A client that trusts these roots and follows no redirect; `change` adapts it.
///
/// # Errors
/// Why none can be made.
pub(crate) fn client(
    roots: RootCertStore,
    change: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> Result<reqwest::Client, &'static str> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(roots)?)
        .dns_resolver(Arc::new(Absolute))
        .redirect(Policy::none());
    let made = change(builder).build();
    made.map_err(|_| "the proxy settings in the environment cannot be used")
}
