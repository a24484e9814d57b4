//! A client of the workloads: connects all the time, and notes each handshake that fails or presents an earlier
//! certificate. It shares no code with the operator.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use aws_lc_rs::digest;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsConnector;

/// Pause between two handshakes.
const HANDSHAKE_PAUSE: Duration = Duration::from_millis(50);
/// Pause between two looks at the Secret, and so the longest delay until a stale handshake is noticed.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How long a pod that is being deleted may receive clients, as proxies learn of it late.
const LEAVING: Duration = Duration::from_secs(2);
/// Pause between two requests.
const PROBE_PAUSE: Duration = Duration::from_millis(25);
/// Longest handshake or request, far more than either takes; a CA waits 10 s.
const DEADLINE: Duration = Duration::from_secs(5);

/// Annotation with what the workloads have, according to the operator.
const ROLLED_OUT: &str = "state.cert-renew.io/rolled-out";
/// Hexadecimal digits of a fingerprint.
const FINGERPRINT: usize = 64;

/// The fingerprint of the leaf that a server presents.
///
/// # Errors
/// When the handshake fails.
pub async fn handshake(to: SocketAddr, host: &str) -> Result<String> {
    let provider = Arc::new(provider::default_provider());
    let verifier = Anybody(Arc::clone(&provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let host = ServerName::try_from(host.to_owned())?;
    let shake = async {
        let stream = TcpStream::connect(to).await?;
        TlsConnector::from(Arc::new(config))
            .connect(host, stream)
            .await
    };
    let stream = timeout(DEADLINE, shake).await.context("no answer")??;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(fingerprint(chain.first().context("no certificate")?))
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let hash = digest::digest(&digest::SHA256, certificate);
    hash.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// The fingerprint of the first certificate in a Secret.
pub fn leaf_of(secret: &Secret) -> Option<String> {
    let pem = secret.data.as_ref()?.get("tls.crt")?;
    let leaf = CertificateDer::from_pem_slice(&pem.0).ok()?;
    Some(fingerprint(&leaf))
}

/// The fingerprint that the workloads have, according to the operator.
fn done_of(secret: &Secret) -> Option<&str> {
    let said = secret.metadata.annotations.as_ref()?.get(ROLLED_OUT)?;
    said.get(..FINGERPRINT)
}

/// The observations of a client.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// Number of handshakes, or requests.
    pub tried: usize,
    /// When each failure was, since the beginning, and why.
    pub failed: Vec<String>,
    /// When a certificate was presented that is earlier than the one that the operator reported as rolled out.
    pub stale: Vec<String>,
    /// The same within two seconds, by pods that were being deleted.
    pub leaving: usize,
    /// The certificates that were presented, in order.
    pub presented: Vec<String>,
    /// The leaves that the Secret held, in order.
    held: Vec<String>,
    /// The leaf that the workloads have, according to the operator.
    done: Option<(String, Instant)>,
}

impl Watched {
    /// The position of this leaf among those that the Secret has held.
    fn age(&self, leaf: &str) -> Option<usize> {
        self.held.iter().position(|it| it == leaf)
    }
}

/// A client that makes a handshake every 50 ms, until it is ended.
#[derive(Debug)]
pub struct Handshakes {
    tasks: [JoinHandle<()>; 2],
    watched: Arc<Mutex<Watched>>,
}

impl Handshakes {
    /// Connects to `to`, whose servers use the certificate of this Secret.
    #[must_use]
    pub fn start(secrets: Api<Secret>, secret: &str, to: SocketAddr, host: &str) -> Self {
        let watched = Arc::new(Mutex::new(Watched::default()));
        let follower = follow(secrets, secret.to_owned(), Arc::clone(&watched));
        let client = shake_hands(to, host.to_owned(), Arc::clone(&watched));
        Self {
            tasks: [tokio::spawn(follower), tokio::spawn(client)],
            watched,
        }
    }

    /// The observations until now.
    #[must_use]
    pub fn watched(&self) -> Watched {
        lock(&self.watched).clone()
    }
}

impl Handshakes {
    /// Begins to count from zero.
    pub fn forget(&self) {
        let mut watched = lock(&self.watched);
        watched.tried = 0;
        watched.failed.clear();
        watched.stale.clear();
        watched.leaving = 0;
        watched.presented.clear();
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn follow(secrets: Api<Secret>, name: String, watched: Arc<Mutex<Watched>>) {
    loop {
        // While the API server is busy the Secret is unknown, and nothing counts as stale.
        if let Ok(secret) = secrets.get(&name).await {
            let mut watched = lock(&watched);
            if let Some(leaf) = leaf_of(&secret)
                && watched.held.last() != Some(&leaf)
            {
                watched.held.push(leaf);
            }
            let done = done_of(&secret);
            if watched.done.as_ref().map(|(leaf, _)| &**leaf) != done {
                watched.done = done.map(|leaf| (leaf.to_owned(), Instant::now()));
            }
        }
        sleep(LOOK_PAUSE).await;
    }
}

async fn shake_hands(to: SocketAddr, host: String, watched: Arc<Mutex<Watched>>) {
    let began = Instant::now();
    let mut ticks = interval(HANDSHAKE_PAUSE);
    loop {
        ticks.tick().await;
        let done = lock(&watched).done.clone();
        let at = began.elapsed();
        let presented = handshake(to, &host).await;
        let mut watched = lock(&watched);
        watched.tried += 1;
        match presented {
            Ok(leaf) => {
                let age = watched.age(&leaf);
                if let Some((promised, since)) = done
                    && age < watched.age(&promised)
                {
                    match since + LEAVING > began + at {
                        true => watched.leaving += 1,
                        false => watched.stale.push(format!("after {at:.1?}: {leaf:.8}")),
                    }
                }
                if watched.presented.last() != Some(&leaf) {
                    watched.presented.push(leaf);
                }
            }
            Err(error) => watched.failed.push(format!("after {at:.1?}: {error:#}")),
        }
    }
}

/// A client that requests a URL repeatedly, each time by a new connection.
#[derive(Debug)]
pub struct Probes {
    task: JoinHandle<()>,
    watched: Arc<Mutex<Watched>>,
}

impl Probes {
    /// Expects success each time.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn start(url: String) -> Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .timeout(DEADLINE)
            .build()?;
        let watched = Arc::new(Mutex::new(Watched::default()));
        let noted = Arc::clone(&watched);
        let task = tokio::spawn(async move {
            let began = Instant::now();
            let mut ticks = interval(PROBE_PAUSE);
            loop {
                ticks.tick().await;
                let at = began.elapsed();
                let answer = http.get(&url).send().await;
                let mut watched = lock(&noted);
                watched.tried += 1;
                let failed = match answer {
                    Ok(answer) if answer.status().is_success() => None,
                    Ok(answer) => Some(anyhow!("{}", answer.status())),
                    Err(error) => Some(error.into()),
                };
                let failed = failed.map(|error| format!("after {at:.1?}: {error:#}"));
                watched.failed.extend(failed);
            }
        });
        Ok(Self { task, watched })
    }

    /// The observations until now.
    #[must_use]
    pub fn watched(&self) -> Watched {
        lock(&self.watched).clone()
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Accepts every chain: the leaf is compared.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
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
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
