//! HTTP requests of our own providers, and for identities: with deadlines, bounded, and without redirects.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, Method, RequestBuilder, StatusCode, Url};
use serde_json::Value;

use crate::net::https;

const CONNECT: Duration = Duration::from_secs(10);
const REQUEST: Duration = Duration::from_secs(20);
/// Most bytes of an answer that are read: credentials with their session token have some 2 kB.
const BODY: usize = 16_384;

/// One endpoint.
pub(super) struct Endpoint {
    client: Client,
    url: Url,
}

impl Endpoint {
    /// `url` is https, or http to any host: such services run inside the cluster, where many have no TLS. `ca_bundle`
    /// is a PEM file with roots to trust in addition to the public ones.
    pub(super) fn new(
        (setting, url): (&str, &str),
        ca_bundle: Option<&str>,
    ) -> Result<Self, String> {
        let url = Url::parse(url).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
        let expected = || format!("settings.{setting}: expected an http or https URL");
        let url = url.ok_or_else(expected)?;
        let bundle = ca_bundle.map(|path| {
            std::fs::read(path)
                .map_err(|error| format!("settings.caBundle: reading {path}: {error}"))
        });
        Self::with(url, bundle.transpose()?.as_deref(), |client| client)
    }

    /// `url` is https, or http where `is_near` says that the connection cannot be tapped; `change` adapts the client.
    pub(super) fn nearby(
        url: &str,
        is_near: fn(&str) -> bool,
        change: fn(ClientBuilder) -> ClientBuilder,
    ) -> Result<Self, String> {
        let url = Url::parse(url).ok();
        let near = |url: &Url| url.host_str().is_some_and(is_near);
        let url = url.filter(|it| it.scheme() == "https" || it.scheme() == "http" && near(it));
        let url = url.ok_or("expected an https URL, or one of the node itself")?;
        Self::with(url, None, change)
    }

    fn with(
        url: Url,
        ca_bundle: Option<&[u8]>,
        change: fn(ClientBuilder) -> ClientBuilder,
    ) -> Result<Self, String> {
        let roots = { https::roots(ca_bundle) }
            .map_err(|expected| format!("settings.caBundle: {expected}"))?;
        let timely = |client: ClientBuilder| client.connect_timeout(CONNECT).timeout(REQUEST);
        let client = https::client(roots, |client| change(timely(client)))?;
        Ok(Self { client, url })
    }

    /// POSTs to the URL with `path` appended; anything but a success is an error with the server's text.
    pub(super) async fn post(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
        body: &Value,
    ) -> Result<(), String> {
        let mut url = self.url.clone();
        if !path.is_empty() {
            url.set_path(&format!("{}{path}", url.path().trim_end_matches('/')));
        }
        let mut request = self
            .client
            .post(url)
            .header("content-type", "application/json")
            .body(body.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answered(request).await.map(drop)
    }

    /// POSTs a form to the URL, and returns the answer.
    pub(super) async fn form(&self, fields: &[(&str, &str)]) -> Result<String, String> {
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        answered(request).await
    }

    /// GETs the URL, and returns the answer.
    pub(super) async fn get(&self, headers: &[(&'static str, &str)]) -> Result<String, String> {
        let mut request = self.client.get(self.url.clone());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answered(request).await
    }

    /// Requests a path and query of the same host; returns the JSON answer, `null` where it is not JSON.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), String> {
        let url = self.url.join(path).map_err(|error| error.to_string())?;
        let mut request = self.client.request(method, url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body.to_string());
        }
        let (status, text) = sent(request).await?;
        Ok((status, serde_json::from_str(&text).unwrap_or_default()))
    }
}

/// The answer to a request; anything but a success is an error with the server's text.
async fn answered(request: RequestBuilder) -> Result<String, String> {
    let (status, text) = sent(request).await?;
    if status.is_success() {
        return Ok(text);
    }
    Err(format!("{status}: {text}"))
}

/// The answer to a request, whatever its status.
async fn sent(request: RequestBuilder) -> Result<(StatusCode, String), String> {
    let wrong = |error: reqwest::Error| cert_renew_core::text::error_chain(&error.without_url());
    let mut response = request.send().await.map_err(wrong)?;
    let status = response.status();
    let mut text = Vec::new();
    while text.len() < BODY
        && let Some(chunk) = response.chunk().await.map_err(wrong)?
    {
        text.extend_from_slice(&chunk);
    }
    text.truncate(BODY);
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::generate_simple_self_signed;
    use rustls::ServerConfig;
    use rustls_pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// PowerDNS or acme-dns on the premises has a certificate of the company's CA (cert-manager #6465).
    #[tokio::test]
    async fn a_host_behind_a_private_ca_is_trusted_by_its_bundle_only() {
        let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let answer =
                        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    let _ = stream.write_all(answer).await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        let name = format!("cert-renew-dns-host-{}.pem", std::process::id());
        let bundle = std::env::temp_dir().join(name);
        std::fs::write(&bundle, made.cert.pem()).unwrap();
        let url = format!("https://localhost:{port}/");
        let asked = async |bundle: Option<&str>| {
            let endpoint = Endpoint::new(("url", &url), bundle)?;
            endpoint.post("", &[], &Value::Null).await
        };
        let trusted = asked(bundle.to_str()).await;
        let public_only = asked(None).await;
        std::fs::write(&bundle, "no certificate").unwrap();
        let empty = asked(bundle.to_str()).await;
        std::fs::remove_file(&bundle).unwrap();
        let missing = asked(bundle.to_str()).await;
        server.abort();
        assert_eq!(trusted, Ok(()));
        assert!(public_only.is_err());
        for (refused, expected) in [(empty, "PEM certificates"), (missing, "reading")] {
            let refused = refused.unwrap_err();
            assert!(refused.contains(expected), "{refused}");
            assert!(refused.starts_with("settings.caBundle: "), "{refused}");
        }
    }
}
