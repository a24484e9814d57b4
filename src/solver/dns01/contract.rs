//! Compares dns-update's requests to the hosts of zones with transcripts of their APIs:
//! `testdata/dns-hosts/PROVIDER.txt`.
//!
//! Most hosts have one endpoint, which cannot be set. So a process of its own sends the requests through a proxy, which
//! presents a certificate of the test for every host, expects the requests of the transcript in their order, and
//! answers as it says. A transcript does not show what a host really does.
//!
//! ```text
//! # where the host describes its API
//! setting NAME VALUE              in the solver's settings
//! secret KEY VALUE                in its Secret
//! record NAME ZONE                the TXT record; _acme-challenge.www.example.com in example.com where this is missing
//! add                             the requests that follow set the record; `remove`: they remove it
//! > METHOD URL
//! > Header: value                 a required header; a * at the end matches anything
//! > {"json": "body"}              the body, if it is JSON; other text after an equals sign
//! < STATUS BODY                   the answer; its further lines begin with a blank
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::{env, fs};

use bytes::Bytes;
use cert_renew_core::config::{Dns01, Propagation};
use cert_renew_core::secret::object::full::Data;
use http::{Request, Response, Uri};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::needs::HostCredentials;
use super::provider::Provider;
use crate::cluster::order_records::Txt;

const TRANSCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/dns-hosts");
/// Names the transcript for the process that sends the requests.
const PROVIDER: &str = "CERT_RENEW_DNS_HOST";
/// The record of every transcript that names no other.
const NAME: &str = "_acme-challenge.www.example.com";
const ZONE: &str = "example.com";
const VALUE: &str = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0";

/// A transcript.
#[derive(Default)]
struct Transcript {
    settings: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
    record: Option<(String, String)>,
    exchanges: Vec<Exchange>,
}

/// An expected request, and its answer.
struct Exchange {
    line: String,
    headers: Vec<(String, String)>,
    body: Option<String>,
    status: u16,
    answer: String,
}

fn read(provider: &str) -> Transcript {
    let path = format!("{TRANSCRIPTS}/{provider}.txt");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut read = Transcript::default();
    let mut is_asked = false;
    for line in text.lines() {
        let words = |text: &str| {
            let (key, value) = text.split_once(' ').unwrap();
            (key.to_owned(), value.replace("\\n", "\n"))
        };
        if let Some(rest) = line.strip_prefix("setting ") {
            read.settings.extend([words(rest)]);
        } else if let Some(rest) = line.strip_prefix("secret ") {
            read.secrets.extend([words(rest)]);
        } else if let Some(rest) = line.strip_prefix("record ") {
            read.record = Some(words(rest));
        } else if let Some(rest) = line.strip_prefix("< ") {
            let (status, answer) = rest.split_once(' ').unwrap_or((rest, ""));
            let last = read.exchanges.last_mut().unwrap();
            (last.status, last.answer) = (status.parse().unwrap(), answer.to_owned());
            is_asked = false;
        } else if let Some(rest) = line.strip_prefix("> ") {
            match read.exchanges.last_mut().filter(|_| is_asked) {
                None => read.exchanges.push(Exchange {
                    line: rest.to_owned(),
                    headers: Vec::new(),
                    body: None,
                    status: 0,
                    answer: String::new(),
                }),
                Some(last) if rest.starts_with(['{', '[']) => last.body = Some(rest.to_owned()),
                Some(last) if rest.starts_with("= ") => last.body = Some(rest[2..].to_owned()),
                Some(last) => {
                    let (name, value) = rest.split_once(": ").unwrap();
                    last.headers.push((name.to_lowercase(), value.to_owned()));
                }
            }
            is_asked = true;
        } else if let Some(rest) = line.strip_prefix(' ') {
            let last = read.exchanges.last_mut().unwrap();
            last.answer += &format!("\n{rest}");
        } else {
            let is_known = line.is_empty() || line.starts_with('#');
            assert!(
                is_known || line == "add" || line == "remove",
                "{path}: {line}"
            );
        }
    }
    assert!(!read.exchanges.is_empty(), "{path}: nothing is asked");
    assert!(read.exchanges.iter().all(|it| it.status > 0), "{path}");
    read
}

/// Whether a text matches that of a transcript.
fn fits(expected: &str, found: &str) -> bool {
    match expected.strip_suffix('*') {
        Some(start) => found.starts_with(start),
        None => expected == found,
    }
}

impl Exchange {
    /// How a request differs from the expected one.
    fn fault(&self, request: &Request<Bytes>, url: &Uri) -> Option<String> {
        let line = format!("{} {url}", request.method());
        if !fits(&self.line, &line) {
            return Some(format!("expected {}, found {line}", self.line));
        }
        for (name, expected) in &self.headers {
            let found = request.headers().get(name).and_then(|it| it.to_str().ok());
            if !found.is_some_and(|found| fits(expected, found)) {
                return Some(format!(
                    "{line}: expected {name}: {expected}, found {found:?}"
                ));
            }
        }
        let body = String::from_utf8_lossy(request.body());
        let json = |text: &str| serde_json::from_str::<Value>(text).ok();
        let is_same = match (&self.body, json(&body)) {
            (None, _) => body.is_empty(),
            (Some(expected), Some(found)) => json(expected) == Some(found),
            (Some(expected), None) => fits(expected, &body),
        };
        let expected = self.body.as_deref().unwrap_or("no body");
        (!is_same).then(|| format!("{line}: expected {expected}, found {body}"))
    }
}

/// Plays the answers of a transcript.
struct Play {
    left: Mutex<std::vec::IntoIter<Exchange>>,
    faults: Mutex<Vec<String>>,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Play {
    async fn answer(
        &self,
        scheme: &str,
        host: &str,
        request: Request<Incoming>,
    ) -> Result<Response<String>, http::Error> {
        let (parts, mut body) = request.into_parts();
        let mut bytes = Vec::new();
        while !body.is_end_stream() {
            let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx));
            let Some(Ok(frame)) = frame.await else { break };
            bytes.extend(frame.into_data().unwrap_or_default());
        }
        let path = parts.uri.path_and_query().map_or("/", |it| it.as_str());
        let url: Uri = format!("{scheme}://{host}{path}").parse()?;
        let request = Request::from_parts(parts, Bytes::from(bytes));
        let expected = self.left.lock().unwrap().next();
        let fault = match &expected {
            Some(expected) => expected.fault(&request, &url),
            None => Some(format!(
                "nothing is expected, found {} {url}",
                request.method()
            )),
        };
        let response = Response::builder().header("connection", "close");
        match (expected, fault) {
            (Some(expected), None) => response.status(expected.status).body(expected.answer),
            (_, fault) => {
                self.faults.lock().unwrap().extend(fault);
                response
                    .status(418)
                    .body("not as the transcript has it".to_owned())
            }
        }
    }

    fn certificate(&self, host: &str) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([host.to_owned()]).unwrap();
        let certificate = certificate.signed_by(&key, &self.authority).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        { config.with_no_client_auth() }
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }

    /// Serves one connection to the proxy: a tunnel to a host, whose part the test plays.
    async fn serve(self: Arc<Self>, mut connection: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let target = head.split(' ').nth(1).unwrap_or_default();
        let host = target.trim_end_matches(":443").to_owned();
        connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        let config = Arc::new(self.certificate(host.split(':').next().unwrap_or_default()));
        let stream = TlsAcceptor::from(config).accept(connection).await?;
        let answer = |request| self.answer("https", &host, request);
        let served = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service_fn(answer));
        let _ = served.await;
        Ok(())
    }
}

/// Runs the requests of one provider against its transcript, and returns the differences.
async fn held(provider: &str) -> Vec<String> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let play = Arc::new(Play {
        left: Mutex::new(read(provider).exchanges.into_iter()),
        faults: Mutex::default(),
        authority: CertifiedIssuer::self_signed(params, key).unwrap(),
    });
    let roots = format!("cert-renew-{}-{provider}.pem", std::process::id());
    let roots = env::temp_dir().join(roots);
    fs::write(&roots, play.authority.pem()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy: SocketAddr = listener.local_addr().unwrap();
    let playing = Arc::clone(&play);
    // They end with this function.
    let (mut proxied, mut serving) = (JoinSet::new(), JoinSet::new());
    proxied.spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            serving.spawn(Arc::clone(&playing).serve(connection));
        }
    });
    let mut asking = Command::new(env::current_exe().unwrap());
    asking
        .args(["--exact", "--ignored", "--nocapture"])
        .arg("solver::dns01::contract::a_record_is_set_and_removed_at_the_host_of_the_environment")
        .envs([(PROVIDER, provider)])
        .env("HTTPS_PROXY", format!("http://{proxy}"))
        .env("SSL_CERT_FILE", &roots);
    for name in [
        "NO_PROXY",
        "no_proxy",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "SSL_CERT_DIR",
    ] {
        asking.env_remove(name);
    }
    let asked = tokio::task::spawn_blocking(move || asking.output());
    let asked = asked.await.unwrap().unwrap();
    proxied.abort_all();
    let _ = fs::remove_file(&roots);
    let mut faults = std::mem::take(&mut *play.faults.lock().unwrap());
    if !asked.status.success() {
        let said = [asked.stdout, asked.stderr].concat();
        faults.push(String::from_utf8_lossy(&said).into_owned());
    }
    let left = play.left.lock().unwrap();
    faults.extend({ left.as_slice().iter() }.map(|it| format!("not asked: {}", it.line)));
    faults
}

/// Run by [`held`], in a process of its own.
#[tokio::test]
#[ignore = "takes a proxy, which the test of the transcripts is"]
async fn a_record_is_set_and_removed_at_the_host_of_the_environment() {
    let Ok(provider) = env::var(PROVIDER) else {
        return;
    };
    let Transcript {
        settings,
        secrets,
        record,
        ..
    } = read(&provider);
    let (at, zone) = record.unwrap_or_else(|| (NAME.into(), ZONE.into()));
    let data = secrets.into_iter();
    let data: Data = data
        .map(|(key, text)| (key, text.into_bytes().into()))
        .collect();
    let solver = Dns01 {
        provider,
        credentials: Some("dns".into()),
        settings,
        propagation: Propagation::default(),
    };
    let txt = Txt {
        of: "www.example.com".into(),
        at,
        zone,
        value: VALUE.into(),
        solver: solver.clone(),
    };
    let provider = Provider::new(&solver, &HostCredentials::new("ns/dns".into(), data));
    let provider = provider.unwrap_or_else(|error| panic!("{error}"));
    provider.add(&txt, super::TTL).await.unwrap();
    provider.remove(&txt).await.unwrap();
}

/// The providers that have a transcript.
fn transcripts() -> Vec<String> {
    let files = fs::read_dir(TRANSCRIPTS).unwrap();
    let names = files.filter_map(|it| it.unwrap().file_name().into_string().ok());
    let mut names: Vec<String> =
        { names.filter_map(|it| Some(it.strip_suffix(".txt")?.to_owned())) }.collect();
    names.sort();
    names
}

/// The HTTP client of dns-update panics where the machine has no root certificates, as in an image without files.
#[test]
fn without_roots_on_this_machine_no_host_is_asked_and_the_error_says_so() {
    let mut asking = Command::new(env::current_exe().unwrap());
    asking
        .args(["--exact", "--ignored", "--nocapture"])
        .arg("solver::dns01::contract::a_record_is_set_and_removed_at_the_host_of_the_environment")
        .envs([(PROVIDER, "cloudflare"), ("SSL_CERT_FILE", "/dev/null")])
        .env_remove("SSL_CERT_DIR");
    let asked = asking.output().unwrap();
    let said = String::from_utf8_lossy(&[asked.stdout, asked.stderr].concat()).into_owned();
    assert!(
        said.contains("SSL_CERT_FILE") && !said.contains("Client::new()"),
        "{said}"
    );
}

#[tokio::test]
async fn each_host_is_asked_as_its_transcript_has_it() {
    let mut faults = Vec::new();
    let providers = transcripts();
    for provider in &providers {
        let found = held(provider).await;
        faults.extend(
            found
                .into_iter()
                .map(|fault| format!("{provider}: {fault}")),
        );
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    eprintln!(
        "hosts whose requests have the shape of a transcript: {}",
        providers.len()
    );
}
