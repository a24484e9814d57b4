//! The certificate that a port of ours presents, which is replaced while it serves.
//!
//! Every handshake takes the present one. There is no session resumption: a client that comes back sees the certificate
//! of then, and no session is kept for clients. Without a certificate every handshake is refused.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;

/// The certificate that is presented; clones share it.
#[derive(Clone, Default)]
pub struct Presented(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

/// Why a pair cannot be presented.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Unusable {
    /// No certificate can be read.
    #[error("it holds no certificate in PEM")]
    NoCertificate,
    /// No private key can be read.
    #[error("it holds no private key in PEM")]
    NoKey,
    /// The two do not fit, or are of a kind that cannot be used.
    #[error("its certificate and key cannot be used together: {0}")]
    Pair(rustls::Error),
}

impl Presented {
    /// Presents another pair from the next handshake on; an error leaves the present one.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn replace(&self, certificates: &[u8], key: &[u8]) -> Result<(), Unusable> {
        let chain = CertificateDer::pem_slice_iter(certificates).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|_| Unusable::NoCertificate)?;
        if chain.is_empty() {
            return Err(Unusable::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| Unusable::NoKey)?;
        let provider = aws_lc_rs::default_provider();
        let pair = CertifiedKey::from_der(chain, key, &provider).map_err(Unusable::Pair)?;
        self.set(Some(Arc::new(pair)));
        Ok(())
    }

    /// Presents none: handshakes are refused.
    pub fn clear(&self) {
        self.set(None);
    }

    fn set(&self, pair: Option<Arc<CertifiedKey>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = pair;
    }

    /// Accepts handshakes with the certificate of the moment.
    ///
    /// # Errors
    /// When the crypto library knows no version of TLS.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Presented")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::{ClientConfig, RootCertStore};
    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncRead, AsyncWrite};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    use super::*;

    /// Certificate and key in PEM.
    pub(crate) fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["a.example".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    /// Shakes hands as a client that trusts this certificate only.
    pub(crate) async fn shake<S: AsyncRead + AsyncWrite + Unpin>(
        stream: S,
        trusted: &str,
    ) -> std::io::Result<TlsStream<S>> {
        let mut roots = RootCertStore::empty();
        let trusted = CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap();
        roots.add(trusted).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("a.example").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    #[tokio::test]
    async fn each_handshake_has_the_certificate_of_the_moment() {
        let presented = Presented::default();
        let acceptor = presented.acceptor().unwrap();
        let shakes = async |trusted: &str| {
            let (client, server) = tokio::io::duplex(16 * 1024);
            let (shaken, _) = tokio::join!(shake(client, trusted), acceptor.accept(server));
            shaken.is_ok()
        };
        let ((first, key), (second, other)) = (pair(), pair());
        assert!(!shakes(&first).await, "there is none yet");
        presented.replace(first.as_bytes(), key.as_bytes()).unwrap();
        assert!(shakes(&first).await);
        for (certificate, key, expected) in [
            (&*second, &*key, "cannot be used together"),
            ("", &*key, "holds no certificate"),
            (&*second, "", "holds no private key"),
            (
                "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n",
                &*key,
                "holds no certificate",
            ),
        ] {
            let error = presented.replace(certificate.as_bytes(), key.as_bytes());
            let error = error.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(shakes(&first).await, "the one before");
        presented
            .replace(second.as_bytes(), other.as_bytes())
            .unwrap();
        assert!(shakes(&second).await && !shakes(&first).await);
        presented.clear();
        assert!(!shakes(&second).await);
    }
}
