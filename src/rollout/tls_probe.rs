//! Reads the leaf that a server presents: one TLS handshake, after which nothing is sent.
//!
//! The chain is not validated: the leaf is only compared. The server must still prove that it holds the leaf's key, so
//! that a copied certificate proves nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::certificate::{self, Leaf};
use cert_renew_core::text::name::Name;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longest time from the first packet to the end of the handshake. A pod in the same cluster takes milliseconds.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// Label used in place of the wildcard.
const SOME_LABEL: &str = "www";

/// The server name to ask for: one of the certificate's names, so that a server with many chooses this one.
pub(super) fn server_name(names: &[Name], address: IpAddr) -> ServerName<'static> {
    let plain = names
        .iter()
        .find(|name| matches!(name, Name::Dns(_)) && !name.is_wildcard());
    let text = plain
        .or_else(|| names.iter().find(|name| name.is_wildcard()))
        .map(|name| name.to_string().replace('*', SOME_LABEL));
    // Without a DNS name no server name is sent: an address is not one (RFC 6066, section 3).
    text.and_then(|text| ServerName::try_from(text).ok())
        .unwrap_or_else(|| ServerName::IpAddress(address.into()))
}

/// The leaf that the server at an address presents.
///
/// # Errors
/// Why it cannot be read, in words.
pub(super) async fn leaf_of(to: SocketAddr, name: ServerName<'static>) -> Result<Leaf, String> {
    let witness = Arc::new(Witness::default());
    let config = config(&witness).map_err(|error| error.to_string())?;
    let handshake = async {
        let stream = TcpStream::connect(to).await?;
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    };
    let ended = timeout(DEADLINE, handshake).await;
    // A server that asks for a client's certificate ends the handshake, but has presented its own by then.
    if let Some(leaf) = witness.proven() {
        return certificate::leaf(&leaf).map_err(|reason| format!("its certificate: {reason}"));
    }
    Err(match ended {
        Ok(Ok(_)) => "it showed no certificate".into(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", DEADLINE.as_secs()),
    })
}

fn config(witness: &Arc<Witness>) -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(Arc::clone(&witness.provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Witness>::clone(witness))
        .with_no_client_auth();
    Ok(config)
}

/// Accepts every chain, keeps the leaf, and whether the server has proven that it holds the leaf's key.
#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    proven: Mutex<Option<CertificateDer<'static>>>,
}

impl Default for Witness {
    fn default() -> Self {
        Self {
            provider: Arc::new(aws_lc_rs::default_provider()),
            proven: Mutex::default(),
        }
    }
}

impl Witness {
    fn proven(&self) -> Option<CertificateDer<'static>> {
        self.proven.lock().take()
    }

    fn note(&self, leaf: &CertificateDer<'_>) {
        *self.proven.lock() = Some(leaf.clone().into_owned());
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let valid = verify_tls12_signature(message, cert, dss, algorithms)?;
        self.note(cert);
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let valid = verify_tls13_signature(message, cert, dss, algorithms)?;
        self.note(cert);
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};
    use rustls_pki_types::PrivateKeyDer;
    use rustls_pki_types::pem::PemObject as _;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// How a server of these tests behaves.
    #[derive(Clone, Copy)]
    enum Server {
        Plain(&'static SupportedProtocolVersion),
        WantsClientCertificate(&'static SupportedProtocolVersion),
        /// Presents a certificate whose key it does not have.
        Copied,
        HangsUp,
    }

    async fn ask(server: Server) -> (Vec<u8>, Result<Leaf, String>) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(["a.example".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let held = if matches!(server, Server::Copied) {
            KeyPair::generate().unwrap()
        } else {
            key
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let chain = leaf.der().clone();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let version = match server {
                Server::Plain(version) | Server::WantsClientCertificate(version) => version,
                Server::Copied => &version::TLS13,
                Server::HangsUp => return,
            };
            let provider = Arc::new(aws_lc_rs::default_provider());
            let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[version])
                .unwrap();
            let builder = if matches!(server, Server::WantsClientCertificate(_)) {
                let mut roots = RootCertStore::empty();
                roots.add(chain.clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            } else {
                builder.with_no_client_auth()
            };
            let key = PrivateKeyDer::from_pem_slice(held.serialize_pem().as_bytes()).unwrap();
            let signing = aws_lc_rs::sign::any_supported_type(&key).unwrap();
            let certified = rustls::sign::CertifiedKey::new(vec![chain], signing);
            let resolver = rustls::sign::SingleCertAndKey::from(certified);
            let config = builder.with_cert_resolver(Arc::new(resolver));
            let _ = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
        });
        let name = server_name(&["a.example".parse().unwrap()], address.ip());
        (leaf.der().to_vec(), leaf_of(address, name).await)
    }

    #[tokio::test]
    async fn the_leaf_is_read_over_tls_1_2_and_1_3_and_where_a_client_certificate_is_wanted() {
        for server in [
            Server::Plain(&version::TLS12),
            Server::Plain(&version::TLS13),
            Server::WantsClientCertificate(&version::TLS12),
            Server::WantsClientCertificate(&version::TLS13),
        ] {
            let (presented, read) = ask(server).await;
            let expected = certificate::Fingerprint::of(&presented);
            assert_eq!(read.unwrap().fingerprint, expected);
        }
    }

    #[tokio::test]
    async fn who_has_not_the_key_and_who_hangs_up_has_shown_nothing() {
        for server in [Server::Copied, Server::HangsUp] {
            let (_, read) = ask(server).await;
            assert!(read.is_err(), "{read:?}");
        }
    }

    #[test]
    fn a_server_is_asked_for_a_name_of_the_certificate() {
        let address: IpAddr = "10.0.0.7".parse().unwrap();
        for (names, expected) in [
            (vec!["*.a.example", "b.example"], "b.example"),
            (vec!["*.a.example"], "www.a.example"),
            (vec!["10.1.1.1"], "10.0.0.7"),
            (vec![], "10.0.0.7"),
        ] {
            let names: Vec<Name> = names.iter().map(|name| name.parse().unwrap()).collect();
            assert_eq!(server_name(&names, address).to_str(), expected);
        }
    }
}
