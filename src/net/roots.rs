//! Roots that an HTTPS client trusts: the public ones, compiled in since the image holds no files, and those of a file.

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// The public roots and those of `bundle`, which is PEM.
///
/// # Errors
/// The fault of the bundle, as the end of a sentence.
pub(crate) fn with(bundle: Option<&[u8]>) -> Result<RootCertStore, &'static str> {
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
