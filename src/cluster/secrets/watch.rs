//! The watches on Secrets: all of type `kubernetes.io/tls`, and those of other types with the managed label.
//!
//! Objects go to the index one at a time; nothing is stored here. Lists are streamed if the server supports it, and
//! paged if it does not, refuses, or does not end them.

use crate::cluster::client::call;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use cert_renew_core::config::{Observe, Select, WatchConfig};
use cert_renew_core::index::Source;
use cert_renew_core::secret::keys::MANAGED_LABEL;
use cert_renew_core::secret::object::thin::{ObservedSecret, ThinSecret};
use cert_renew_core::text::error_chain;
use futures::FutureExt as _;
use futures::stream::{self, BoxStream, StreamExt as _};
use kube::api::Api;
use kube::core::NamespaceResourceScope;
use kube::core::Status;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{Sleep, sleep};

/// Secrets in a page if the server does not stream lists: a page of thin Secrets peaks at a few megabytes.
const PAGE: u32 = 250;
/// Time between two tries while the API server does not answer at the start.
const AGAIN: Duration = Duration::from_secs(2);

/// Opens the watches, and replaces them when the config changes.
pub struct Opener {
    client: Client,
    /// Seconds after which a watch is reopened.
    timeout: u32,
}

/// The events of the watches, each with its watch. Errors are reported and retried with back-off.
pub type Events = BoxStream<'static, (Source, Result<watcher::Event<ThinSecret>, watcher::Error>)>;

/// All watches as one stream.
pub struct Secrets {
    /// The namespace of each watch, by number; `None` for all namespaces.
    pub scopes: Vec<Option<Arc<str>>>,
    /// Their events.
    pub events: Events,
}

/// Converts an event of any decoded type.
fn thin<K: Into<ThinSecret>>(event: watcher::Event<K>) -> watcher::Event<ThinSecret> {
    match event {
        watcher::Event::Apply(secret) => watcher::Event::Apply(secret.into()),
        watcher::Event::Delete(secret) => watcher::Event::Delete(secret.into()),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitApply(secret) => watcher::Event::InitApply(secret.into()),
        watcher::Event::InitDone => watcher::Event::InitDone,
    }
}

type Watched = BoxStream<'static, Result<watcher::Event<ThinSecret>, watcher::Error>>;

/// Lists and watches; paged if `streaming` is false, or the server refuses to stream. So it is if a streamed list is not
/// complete after the time of a watch, since the next watch would begin it again: a proxy that drops `sendInitialEvents`
/// lets the objects through, and never says that these were all.
fn open<K>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    streaming: bool,
) -> Watched
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Into<ThinSecret>
        + Send
        + 'static,
{
    let api: Api<K> = match namespace {
        None => Api::all(client.clone()),
        Some(namespace) => Api::namespaced(client.clone(), namespace),
    };
    let start = move |config| -> Watched {
        let events = watcher(api.clone(), config).default_backoff();
        events.map(|event| event.map(thin)).boxed()
    };
    let pages = config.clone().page_size(PAGE);
    if !streaming {
        return start(pages);
    }
    let longest = Duration::from_secs(config.timeout.unwrap_or(u32::MAX).into());
    let (mut events, mut pages) = (start(config.streaming_lists()), Some(pages));
    // Runs from the beginning of a streamed list until one is complete, however often it is begun again.
    let mut unfinished: Option<Pin<Box<Sleep>>> = None;
    stream::poll_fn(move |context| {
        loop {
            let late = { unfinished.as_mut() }.is_some_and(|it| it.poll_unpin(context).is_ready());
            if late && let Some(pages) = pages.take() {
                unfinished = None;
                tracing::warn!(
                    seconds = longest.as_secs(),
                    "the API server does not end a streamed list: Secrets are listed page by page"
                );
                events = start(pages);
            }
            let event = ready!(events.poll_next_unpin(context));
            match &event {
                Some(Ok(watcher::Event::Init)) if pages.is_some() => {
                    unfinished.get_or_insert_with(|| Box::pin(sleep(longest)));
                }
                Some(Ok(watcher::Event::InitDone)) => unfinished = None,
                Some(Err(error)) if refuses_to_stream(error) => {
                    if let Some(pages) = pages.take() {
                        unfinished = None;
                        let error = error_chain(error);
                        tracing::info!(
                            error,
                            "the API server does not stream lists: Secrets are listed page by page"
                        );
                        events = start(pages);
                        continue;
                    }
                }
                // A server that cannot be asked says nothing about its lists.
                Some(Err(watcher::Error::WatchStartFailed(_))) => unfinished = None,
                _ => {}
            }
            return Poll::Ready(event);
        }
    })
    .boxed()
}

/// The API server's status of a list, of the opening of a watch, or inside a watch.
fn status_of(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

/// Whether the server refused to open a watch because of its form: the feature gate `WatchList` is off (422), or a
/// proxy does not know `sendInitialEvents`.
fn refuses_to_stream(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(_))
        && status_of(error)
            .is_some_and(|status| matches!(status.code, 400 | 405 | 406 | 415 | 422 | 501))
}

/// Whether the API server refuses to list or watch there, rather than being unable to do so now.
#[must_use]
pub fn is_refusal(error: &watcher::Error) -> bool {
    // A failed authentication (401) is not specific to a namespace; the others pass by themselves.
    status_of(error).is_some_and(|status| {
        (400..500).contains(&status.code) && !matches!(status.code, 401 | 408 | 409 | 410 | 429)
    })
}

/// Where to watch: everywhere, or in each namespace if only some are watched, as a Role cannot grant more.
#[must_use]
pub fn scopes(namespaces: &[String]) -> Vec<Option<Arc<str>>> {
    if namespaces.is_empty() {
        return vec![None];
    }
    let namespaces = namespaces.iter();
    namespaces.map(|it| Some(it.as_str().into())).collect()
}

impl Opener {
    /// A watch is reopened after `timeout`, and counts as dead if it sends nothing for five more seconds: a live one
    /// sends a bookmark each minute.
    #[must_use]
    pub fn new(client: &Client, timeout: Duration) -> Self {
        Self {
            client: client.clone(),
            timeout: u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX),
        }
    }

    /// The watches of the config. They open once the API server has reported its version, however long that takes.
    #[must_use]
    pub fn open(&self, watch: &WatchConfig) -> Secrets {
        let tls = watcher::Config::default().fields("type=kubernetes.io/tls");
        let labelled = watcher::Config::default().labels(&format!("{MANAGED_LABEL}=true"));
        let configs = match watch.select {
            // A TLS Secret with the label comes only by the first watch.
            Select::Type => vec![tls, labelled.fields("type!=kubernetes.io/tls")],
            Select::Label => vec![labelled],
        };
        let scopes = scopes(&watch.namespaces);
        let watches = configs
            .iter()
            .flat_map(|config| scopes.iter().map(|scope| (config.clone(), scope.clone())));
        let watches: Vec<_> = watches.collect();
        let (client, timeout, observe) = (self.client.clone(), self.timeout, watch.observe);
        Secrets {
            scopes: { watches.iter() }.map(|(_, scope)| scope.clone()).collect(),
            events: async move {
                let streaming = streams_lists(&client).await;
                let streams = (0..).zip(watches).map(|(number, (config, scope))| {
                    let (config, scope) = (config.timeout(timeout), scope.as_deref());
                    let events = match observe {
                        Observe::Annotated => open::<ThinSecret>(&client, scope, config, streaming),
                        Observe::All => open::<ObservedSecret>(&client, scope, config, streaming),
                    };
                    events.map(move |event| (Source(number), event)).boxed()
                });
                stream::select_all(streams)
            }
            .flatten_stream()
            .boxed(),
        }
    }
}

/// Whether the API server streams lists; asks until it answers.
async fn streams_lists(client: &Client) -> bool {
    let mut told = false;
    loop {
        let asked = call(
            || "asking for the version".into(),
            client.apiserver_version(),
        );
        match asked.await {
            Ok(version) => {
                let streaming = has_streaming_lists(&version.major, &version.minor);
                tracing::debug!(server = %version.git_version, streaming, "opening the watches");
                return streaming;
            }
            Err(error) if !told => {
                told = true;
                let error = error_chain(&error);
                tracing::warn!(error, "the API server does not answer: it is waited for");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}

/// Streaming lists are on by default from Kubernetes 1.34.
fn has_streaming_lists(major: &str, minor: &str) -> bool {
    let number = |text: &str| {
        text.trim_end_matches(|c: char| !c.is_ascii_digit())
            .parse::<u32>()
            .unwrap_or(0)
    };
    (number(major), number(minor)) >= (1, 34)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http::{Request, Response};
    use kube::client::Body;
    use tokio::time::{Instant, timeout};
    use tower::service_fn;

    use super::*;
    use crate::cluster::client::Chunked;

    const WATCH: Duration = Duration::from_secs(290);

    /// The events of an API server with one Secret, which begins each streamed list with it. The first list breaks off
    /// there; the next ones end, or never do.
    fn events(ends: bool) -> Events {
        const VERSION: &str = r#"{"major": "1", "minor": "37", "gitVersion": "v1.37.0", "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}"#;
        const SECRET: &str = r#"{"metadata": {"name": "tls", "namespace": "shop", "uid": "u", "resourceVersion": "6"}, "type": "kubernetes.io/tls"}"#;
        const END: &str = r#"{"kind": "Secret", "apiVersion": "v1", "metadata": {"resourceVersion": "7", "annotations": {"k8s.io/initial-events-end": "true"}}}"#;
        let lists = AtomicUsize::new(0);
        let line =
            |kind: &str, object: &str| format!("{{\"type\": \"{kind}\", \"object\": {object}}}\n");
        let server = service_fn(move |request: Request<Body>| {
            let query = request.uri().query().unwrap_or_default();
            let (text, stays_open) = if request.uri().path() == "/version" {
                (VERSION.to_owned(), false)
            } else if query.contains("sendInitialEvents=true") {
                let breaks_off = lists.fetch_add(1, Ordering::Relaxed) == 0;
                let mut lines = line("ADDED", SECRET);
                if ends && !breaks_off {
                    lines += &line("BOOKMARK", END);
                }
                (lines, !breaks_off)
            } else if query.contains("watch=true") {
                (String::new(), true)
            } else {
                let list =
                    format!(r#"{{"metadata": {{"resourceVersion": "7"}}, "items": [{SECRET}]}}"#);
                (list, false)
            };
            let answer = Chunked([Bytes::from(text)].into(), stays_open);
            async move { Ok::<_, Infallible>(Response::new(answer)) }
        });
        let client = Client::new(server, "cert-renew");
        let one = WatchConfig {
            select: Select::Label,
            ..WatchConfig::default()
        };
        Opener::new(&client, WATCH).open(&one).events
    }

    /// The next events, in words.
    async fn told(events: &mut Events, count: usize) -> Vec<&'static str> {
        let mut told = Vec::new();
        while told.len() < count {
            let (_, event) = events.next().await.unwrap();
            told.push(match event.unwrap() {
                watcher::Event::Init => "begins",
                watcher::Event::InitApply(_) => "secret",
                watcher::Event::InitDone => "ends",
                watcher::Event::Apply(_) | watcher::Event::Delete(_) => "changes",
            });
        }
        told
    }

    #[tokio::test(start_paused = true)]
    async fn a_streamed_list_that_never_ends_is_listed_page_by_page() {
        let (mut events, begun) = (events(false), Instant::now());
        let streamed = ["begins", "secret", "begins", "secret"];
        assert_eq!(told(&mut events, 4).await, streamed);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(told(&mut events, 3).await, ["begins", "secret", "ends"]);
        assert_eq!(begun.elapsed().as_secs(), WATCH.as_secs());
        let more = timeout(WATCH * 5, events.next()).await;
        assert!(more.is_err(), "the watch goes on from there");
    }

    #[tokio::test(start_paused = true)]
    async fn a_streamed_list_that_breaks_off_and_ends_at_the_next_try_is_not_listed_page_by_page() {
        let mut events = events(true);
        let streamed = ["begins", "secret", "begins", "secret", "ends"];
        assert_eq!(told(&mut events, 5).await, streamed);
        let more = timeout(WATCH * 5, events.next()).await;
        assert!(more.is_err(), "it is listed again");
    }

    #[test]
    fn a_refusal_is_told_from_a_failure_and_from_a_wish_for_pages() {
        let status = |code: u16| {
            let status = Status::failure("no", "No");
            kube::Error::Api(Box::new(Status { code, ..status }))
        };
        for (code, refused, pages) in [
            (400, true, true),
            (401, false, false),
            (403, true, false),
            (404, true, false),
            (410, false, false),
            (422, true, true),
            (429, false, false),
            (500, false, false),
            (501, false, true),
            (503, false, false),
        ] {
            let start = watcher::Error::WatchStartFailed(status(code));
            let list = watcher::Error::InitialListFailed(status(code));
            assert_eq!(is_refusal(&start), refused, "{code}");
            assert_eq!(is_refusal(&list), refused, "{code}");
            assert_eq!(refuses_to_stream(&start), pages, "{code}");
            assert!(!refuses_to_stream(&list), "{code}");
        }
        assert!(!is_refusal(&watcher::Error::NoResourceVersion));
    }

    #[test]
    fn lists_are_streamed_from_1_34_on() {
        for (major, minor, streams) in [
            ("1", "33", false),
            ("1", "34", true),
            ("1", "37+", true),
            ("", "", false),
            ("2", "0", true),
        ] {
            assert_eq!(
                has_streaming_lists(major, minor),
                streams,
                "{major}.{minor}"
            );
        }
    }
}
