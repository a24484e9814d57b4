//! One DNS server, and how it is asked: on port 53 by UDP and TCP, over TLS or over HTTPS.
//!
//! The first question opens a TLS connection and the next ones use it, as a handshake for each of the hundreds of
//! questions of an order would cost both sides far more than the questions. The connection goes only where the
//! administrator's setting says: no answer and no redirect changes that.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::config::{ResolverAddress, ResolverHost};
use hickory_net::NetError;
use hickory_net::client::{Client, ClientHandle as _};
use hickory_net::h2::HttpsClientStream;
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::tcp::TcpClientStream;
use hickory_net::tls::tls_client_connect;
use hickory_net::udp::UdpClientStream;
use hickory_net::xfer::{DnsMultiplexer, DnsRequestSender};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Error, text};
use crate::net::egress;

/// Longest question to one server: resolvers answer in milliseconds, or walk the tree within two or three seconds.
const QUESTION: Duration = Duration::from_secs(5);
/// Longest connection to one address of a resolver, with its handshake: another address may answer.
const CONNECT: Duration = Duration::from_secs(2);
/// Most attempts: a datagram may be lost, and a server closes a connection that has been idle.
const TRIES: usize = 2;
/// Most addresses used of a resolver that is known by a name.
const MOST_ADDRESSES: usize = 4;

/// A server that answers questions.
#[derive(Clone)]
pub struct Server {
    address: ResolverAddress,
    /// The TLS config, if it is encrypted.
    tls: Option<Arc<ClientConfig>>,
    connection: Arc<Mutex<Option<Connection>>>,
}

/// A connection that several questions share. It ends with the last of them and of the servers that hold it.
#[derive(Clone)]
struct Connection {
    client: Client<TokioRuntimeProvider>,
    _tasks: Arc<JoinSet<()>>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<SocketAddr> for Server {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.into(), None)
    }
}

impl Server {
    /// Creates it without asking anything. An encrypted server needs `tls`.
    pub(super) fn new(address: ResolverAddress, tls: Option<Arc<ClientConfig>>) -> Self {
        Self {
            address,
            tls,
            connection: Arc::default(),
        }
    }

    /// Whether it is asked over TLS or HTTPS.
    pub(super) fn is_encrypted(&self) -> bool {
        self.address.is_encrypted()
    }

    /// Asks one question; NXDOMAIN, or an answer without records, is an answer.
    ///
    /// # Errors
    /// When it does not answer, or reports a failure.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, Error> {
        let answer = match &self.address {
            ResolverAddress::Plain(address) => by_port_53(*address, name, kind).await,
            ResolverAddress::Tls(at) | ResolverAddress::Https(at, _) => {
                self.encrypted(at, name, kind).await
            }
        };
        let answer = answer.map_err(|why| Error::Unanswered {
            name: text(name),
            kind,
            server: self.to_string(),
            why,
        })?;
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
            code => Err(Error::Failed {
                name: text(name),
                kind,
                server: self.to_string(),
                code,
            }),
        }
    }

    async fn encrypted(
        &self,
        at: &ResolverHost,
        name: &Name,
        kind: RecordType,
    ) -> Result<Message, String> {
        let mut last = String::new();
        for _ in 0..TRIES {
            let asked = async {
                let connection = self.connected(at).await?;
                let mut client = connection.client.clone();
                let answer = client.query(name.clone(), DNSClass::IN, kind).await;
                answer.map_err(|error| error.to_string())
            };
            match timeout(QUESTION, asked).await {
                Ok(Ok(answer)) => return Ok(answer.into()),
                Ok(Err(error)) => last = error,
                Err(_) => last = NetError::Timeout.to_string(),
            }
            // Concurrent questions on it end by themselves.
            *self.connection.lock().await = None;
        }
        Err(last)
    }

    async fn connected(&self, at: &ResolverHost) -> Result<Connection, String> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = &*held {
            return Ok(connection.clone());
        }
        let unknown = |error| format!("looking up {}: {error}", at.host);
        let addresses = egress::lookup(&at.host).await.map_err(unknown)?;
        let mut last = unknown(std::io::ErrorKind::NotFound.into());
        for ip in addresses.into_iter().take(MOST_ADDRESSES) {
            let address = SocketAddr::new(ip, at.port);
            match timeout(CONNECT, self.connect(at, address)).await {
                Ok(Ok(connection)) => return Ok(held.insert(connection).clone()),
                Ok(Err(error)) => last = format!("{address}: {error}"),
                Err(_) => last = format!("{address}: {}", NetError::Timeout),
            }
        }
        Err(last)
    }

    async fn connect(&self, at: &ResolverHost, to: SocketAddr) -> Result<Connection, NetError> {
        let tls = self.tls.clone().ok_or("no roots for its certificate")?;
        let provider = TokioRuntimeProvider::new();
        let name = at.server_name();
        if let ResolverAddress::Https(_, path) = &self.address {
            let stream = HttpsClientStream::builder(tls, provider);
            let stream = stream.build(to, name.into(), (&**path).into()).await?;
            return Ok(connection(stream));
        }
        let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
        let (stream, sender) = tls_client_connect(to, name, tls, provider);
        Ok(connection(DnsMultiplexer::new(stream.await?, sender)))
    }
}

fn connection(sender: impl DnsRequestSender) -> Connection {
    let (client, background) = Client::<TokioRuntimeProvider>::from_sender(sender);
    let mut tasks = JoinSet::new();
    tasks.spawn(background);
    Connection {
        client,
        _tasks: Arc::new(tasks),
    }
}

/// Asks by UDP, and by TCP if the answer did not fit.
async fn by_port_53(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, String> {
    let mut last = Err(NetError::Timeout);
    for _ in 0..TRIES {
        last = timeout(QUESTION, by_udp(server, name, kind))
            .await
            .unwrap_or(Err(NetError::Timeout));
        if last.is_ok() {
            break;
        }
    }
    if last.as_ref().is_ok_and(|answer| answer.metadata.truncation) {
        last = timeout(QUESTION, by_tcp(server, name, kind))
            .await
            .unwrap_or(Err(NetError::Timeout));
    }
    last.map_err(|error| error.to_string())
}

async fn by_udp(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, NetError> {
    let stream = UdpClientStream::builder(server, TokioRuntimeProvider::new())
        .with_timeout(Some(QUESTION))
        .build();
    asked(stream, name, kind).await
}

async fn by_tcp(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, NetError> {
    let (stream, sender) =
        TcpClientStream::new(server, None, Some(QUESTION), TokioRuntimeProvider::new());
    asked(DnsMultiplexer::new(stream.await?, sender), name, kind).await
}

/// Asks one question on a connection of its own, which always ends with it.
async fn asked(
    sender: impl DnsRequestSender,
    name: &Name,
    kind: RecordType,
) -> Result<Message, NetError> {
    let mut connection = connection(sender);
    let answer = connection.client.query(name.clone(), DNSClass::IN, kind);
    Ok(answer.await?.into())
}
