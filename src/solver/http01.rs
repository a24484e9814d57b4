//! HTTP-01 (RFC 8555, section 8.3): the operator itself answers the CA, on a port of its own.
//!
//! Input: key authorizations, from the order records. Every replica answers, whichever made the order. The port is open
//! to the internet by way of an ingress: it answers only known tokens and `health`, and what one caller can make us do
//! or hold is bounded. Key authorizations are public once they are asked for.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::future::BoxFuture;
use parking_lot::RwLock;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::net::bounded::CONNECTIONS;

/// Path at which the CA looks (RFC 8555, section 8.3).
pub const PATH: &str = "/.well-known/acme-challenge/";
/// Most tokens held, some 250 bytes each: a thousand orders of a hundred names.
const TOKENS: usize = 100_000;
/// Longest token in bytes. Boulder's have 43 characters; RFC 8555 asks for 22 at least and sets no bound.
const TOKEN: usize = 256;
/// Longest wait for the lookup of an unknown token; CAs wait 10 s for the whole answer.
const MISS: Duration = Duration::from_secs(4);
/// Most unknown tokens that wait for a lookup at a time: half of the connections that the port takes. One more is
/// answered at once, so that the other half is left for known tokens.
const MISSES: usize = CONNECTIONS / 2;

/// The key authorizations to answer with, by order record; clones share them.
#[derive(Clone, Debug, Default)]
pub struct ChallengeStore(Arc<RwLock<Answers>>);

#[derive(Debug, Default)]
struct Answers {
    by_token: HashMap<String, Answer>,
    by_record: HashMap<String, (u64, Vec<String>)>,
    /// The records in the order in which they were set.
    order: BTreeMap<u64, String>,
    count: u64,
}

#[derive(Debug)]
struct Answer {
    record: String,
    key_authorization: String,
}

/// There are more challenges than [`ChallengeStore`] holds: those of these records, which were set longest ago, are no
/// longer answered. An order that goes on sets its own again first.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("more than {TOKENS} HTTP-01 challenges at once: those of {0:?} are no longer answered")]
pub struct Full(pub Vec<String>);

impl ChallengeStore {
    /// Sets the tokens of `record`, in place of its former ones. Repeating it changes nothing.
    ///
    /// # Errors
    /// When there are too many, with the records that gave way.
    pub fn set(
        &self,
        record: &str,
        challenges: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), Full> {
        let mut answers = self.0.write();
        answers.remove(record);
        let mut tokens = Vec::new();
        for (token, key_authorization) in challenges {
            tokens.push(token.clone());
            let record = record.to_owned();
            let answer = Answer {
                record,
                key_authorization,
            };
            answers.by_token.insert(token, answer);
        }
        let mut gone = Vec::new();
        while answers.by_token.len() > TOKENS
            && let Some((_, oldest)) = answers.order.pop_first()
        {
            answers.remove(&oldest);
            gone.push(oldest);
        }
        if !tokens.is_empty() {
            answers.count += 1;
            let at = answers.count;
            answers.order.insert(at, record.to_owned());
            answers.by_record.insert(record.to_owned(), (at, tokens));
        }
        if gone.is_empty() {
            Ok(())
        } else {
            Err(Full(gone))
        }
    }

    /// Forgets what [`Self::set`] set.
    pub fn remove(&self, record: &str) {
        self.0.write().remove(record);
    }

    /// The key authorization of a known token.
    #[must_use]
    pub fn get(&self, token: &str) -> Option<String> {
        let answers = self.0.read();
        answers
            .by_token
            .get(token)
            .map(|answer| answer.key_authorization.clone())
    }
}

impl Answers {
    fn remove(&mut self, record: &str) {
        let Some((at, tokens)) = self.by_record.remove(record) else {
            return;
        };
        self.order.remove(&at);
        for token in tokens {
            // Another record may have taken the token over.
            if self
                .by_token
                .get(&token)
                .is_some_and(|answer| answer.record == record)
            {
                self.by_token.remove(&token);
            }
        }
    }
}

/// Awaited once for an unknown token, before it is looked up again.
/// The provider coalesces the calls and limits their rate: anybody on the internet can cause them.
pub type OnMiss = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// All routes of the port.
pub fn router(store: ChallengeStore, on_miss: OnMiss) -> Router {
    let nothing = || async { StatusCode::NOT_FOUND };
    Router::new()
        .route(&format!("{PATH}health"), get(|| async { "OK" }))
        .route(&format!("{PATH}{{token}}"), get(answer))
        .fallback(nothing)
        .method_not_allowed_fallback(nothing)
        .with_state(Answering {
            store,
            on_miss,
            misses: Arc::new(Semaphore::new(MISSES)),
        })
}

#[derive(Clone)]
struct Answering {
    store: ChallengeStore,
    on_miss: OnMiss,
    misses: Arc<Semaphore>,
}

async fn answer(State(answering): State<Answering>, Path(token): Path<String>) -> Response {
    let Answering {
        store,
        on_miss,
        misses,
    } = answering;
    // RFC 8555, 8.3: tokens are base64url; nothing else is looked up.
    let plausible = token.len() <= TOKEN
        && token
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !plausible {
        return StatusCode::NOT_FOUND.into_response();
    }
    let mut found = store.get(&token);
    if found.is_none()
        && let Ok(_waits) = misses.try_acquire()
    {
        // A timeout is a miss like any other.
        let _ = timeout(MISS, on_miss()).await;
        found = store.get(&token);
    }
    match found {
        Some(key_authorization) => {
            // A cached answer would serve an old order.
            let headers = [(CONTENT_TYPE, "text/plain"), (CACHE_CONTROL, "no-store")];
            (headers, key_authorization).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// An [`OnMiss`] for where there is nothing to look up.
#[must_use]
pub fn no_lookup() -> OnMiss {
    Arc::new(|| Box::pin(async {}))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::net::bounded::{HEADERS, serve};

    fn challenge(token: &str) -> (String, String) {
        (token.to_owned(), format!("{token}.thumbprint"))
    }

    #[test]
    fn a_record_sets_and_removes_its_own_tokens() {
        let store = ChallengeStore::default();
        store.set("a", [challenge("t1"), challenge("t2")]).unwrap();
        store.set("b", [challenge("t3")]).unwrap();
        store.set("a", [challenge("t2")]).unwrap();
        assert_eq!(store.get("t1"), None);
        assert_eq!(store.get("t2").as_deref(), Some("t2.thumbprint"));
        store.set("b", [challenge("t2")]).unwrap();
        store.remove("a");
        assert_eq!(
            store.get("t2").as_deref(),
            Some("t2.thumbprint"),
            "b has it now"
        );
        store.remove("b");
        assert_eq!(store.get("t2"), None);

        assert!(store.0.read().order.is_empty(), "nothing is kept");
    }

    #[test]
    fn where_there_are_too_many_the_tokens_that_were_set_longest_ago_give_way() {
        let store = ChallengeStore::default();
        let many = |of: &str, count: usize| {
            let tokens: Vec<_> = (0..count).map(|n| challenge(&format!("{of}{n}"))).collect();
            store.set(of, tokens)
        };
        assert_eq!(many("shop", 1), Ok(()));
        assert_eq!(many("old", TOKENS / 2), Ok(()));
        assert_eq!(many("waits", TOKENS / 2 - 1), Ok(()));
        assert_eq!(many("shop", 1), Ok(()), "set again before each look");
        assert_eq!(many("new", 1), Err(Full(vec!["old".into()])));
        let known = |token: &str| store.get(token).is_some();
        let found = ["shop0", "old0", "waits0", "new0"].map(known);
        assert_eq!(found, [true, false, true, true]);
    }

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // A refused request may end in a reset.
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn a_known_token_is_answered_however_many_unknown_ones_wait() {
        let store = ChallengeStore::default();
        store.set("a", [challenge("known")]).unwrap();
        let waiting = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = Arc::clone(&waiting);
        let on_miss: OnMiss = Arc::new(move || {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Box::pin(std::future::pending())
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(store, on_miss);
        let server = tokio::spawn(serve(listener, router, std::future::pending()));
        let get = |token: &str| format!("GET {PATH}{token} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut held = Vec::new();
        for number in 0..MISSES {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = get(&format!("unknown-{number}"));
            stream.write_all(request.as_bytes()).await.unwrap();
            held.push(stream);
        }
        while waiting.load(std::sync::atomic::Ordering::Relaxed) < MISSES {
            tokio::task::yield_now().await;
        }
        for _ in 0..MISSES {
            assert!(ask(address, &get("one-more")).await.contains(" 404 "));
        }
        assert!(
            ask(address, &get("known"))
                .await
                .ends_with("known.thumbprint")
        );
        server.abort();
    }

    #[tokio::test]
    async fn only_known_tokens_and_health_are_answered() {
        let store = ChallengeStore::default();
        store.set("a", [challenge("known")]).unwrap();
        let late = store.clone();
        let on_miss: OnMiss = Arc::new(move || {
            late.set("late", [challenge("late")]).unwrap();
            Box::pin(async {})
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, router(store.clone(), on_miss), async {
            let _ = stopped.await;
        }));

        let long = "x".repeat(2 * HEADERS);
        let cases = [
            ("GET", "/.well-known/acme-challenge/a-b", "404", ""),
            (
                "GET",
                "/.well-known/acme-challenge/known",
                "200",
                "known.thumbprint",
            ),
            ("HEAD", "/.well-known/acme-challenge/known", "200", ""),
            (
                "GET",
                "/.well-known/acme-challenge/late",
                "200",
                "late.thumbprint",
            ),
            ("GET", "/.well-known/acme-challenge/health", "200", "OK"),
            ("POST", "/.well-known/acme-challenge/known", "404", ""),
            ("GET", "/.well-known/acme-challenge/", "404", ""),
            ("GET", "/.well-known/acme-challenge/known/x", "404", ""),
            ("GET", "/.well-known/acme-challenge/kno%2577n", "404", ""),
            ("GET", "/", "404", ""),
            ("GET", "/metrics", "404", ""),
            ("GET", &long, "4", ""),
        ];
        for (method, path, status, body) in cases {
            let answer = ask(
                address,
                &format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
            )
            .await;
            let (head, found) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status}")),
                "{method} {path:.60}: {head}"
            );
            assert_eq!(found, body, "{method} {path:.60}");
        }
        let answer = ask(
            address,
            "GET /.well-known/acme-challenge/known HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .await;
        assert!(
            answer
                .to_lowercase()
                .contains("content-type: text/plain\r\n"),
            "{answer}"
        );
        stop.send(()).unwrap();
        server.await.unwrap();
    }
}
