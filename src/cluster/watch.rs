//! The watches on Secrets: all of type `kubernetes.io/tls`, and those of other types that carry the managed label.
//!
//! One object at a time goes from the wire to the index; nothing is stored here.

use std::fmt::Debug;
use std::time::Duration;

use futures::FutureExt as _;
use futures::stream::{self, BoxStream, StreamExt as _};
use kube::api::Api;
use kube::core::NamespaceResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use super::chain;
use crate::config::{Observe, Select, WatchConfig};
use crate::index::Source;
use crate::secret::keys::MANAGED_LABEL;
use crate::secret::thin::{ObservedSecret, ThinSecret};

/// Objects in a page where the server does not stream lists: a page of thin Secrets peaks at a few megabytes.
const PAGE: u32 = 250;
/// An API server that does not answer at the start is asked again after this.
const AGAIN: Duration = Duration::from_secs(2);

/// All watches as one stream.
pub struct Secrets {
    /// How many watches there are.
    pub count: usize,
    /// Their events, each with the watch it came by. Errors are reported and retried with back-off.
    pub events: BoxStream<'static, (Source, Result<watcher::Event<ThinSecret>, watcher::Error>)>,
}

/// What a watch brings, whatever it is decoded as.
fn thin<K: Into<ThinSecret>>(event: watcher::Event<K>) -> watcher::Event<ThinSecret> {
    match event {
        watcher::Event::Apply(secret) => watcher::Event::Apply(secret.into()),
        watcher::Event::Delete(secret) => watcher::Event::Delete(secret.into()),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitApply(secret) => watcher::Event::InitApply(secret.into()),
        watcher::Event::InitDone => watcher::Event::InitDone,
    }
}

fn open<K>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
) -> BoxStream<'static, Result<watcher::Event<ThinSecret>, watcher::Error>>
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
    let events = watcher(api, config).default_backoff();
    events.map(|event| event.map(thin)).boxed()
}

/// The watches that the config asks for. They open once the API server has told its version, however long that takes.
#[must_use]
pub fn secrets(client: &Client, watch: &WatchConfig) -> Secrets {
    let tls = watcher::Config::default().fields("type=kubernetes.io/tls");
    let labelled = watcher::Config::default().labels(&format!("{MANAGED_LABEL}=true"));
    let configs = match watch.select {
        // A TLS Secret with the label comes by the first watch alone.
        Select::Type => vec![tls, labelled.fields("type!=kubernetes.io/tls")],
        Select::Label => vec![labelled],
    };
    // One watch a namespace where only some are watched: a Role cannot give more.
    let scopes: Vec<Option<String>> = if watch.namespaces.is_empty() {
        vec![None]
    } else {
        watch.namespaces.iter().cloned().map(Some).collect()
    };
    let (client, observe) = (client.clone(), watch.observe);
    Secrets {
        count: configs.len() * scopes.len(),
        events: async move {
            let streaming = streams_lists(&client).await;
            let of = |config: &watcher::Config, scope: Option<&str>| match observe {
                Observe::Annotated => open::<ThinSecret>(&client, scope, config.clone()),
                Observe::All => open::<ObservedSecret>(&client, scope, config.clone()),
            };
            let mut streams = Vec::new();
            for config in configs {
                let config = if streaming {
                    config.streaming_lists()
                } else {
                    config.page_size(PAGE)
                };
                for scope in &scopes {
                    let source = Source(u16::try_from(streams.len()).unwrap_or(u16::MAX));
                    let events = of(&config, scope.as_deref());
                    streams.push(events.map(move |event| (source, event)).boxed());
                }
            }
            stream::select_all(streams)
        }
        .flatten_stream()
        .boxed(),
    }
}

/// Whether the API server streams lists; it is asked until it answers.
async fn streams_lists(client: &Client) -> bool {
    let mut told = false;
    loop {
        let asked = super::call(
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
                let error = chain(&error);
                tracing::warn!(error, "the API server does not answer: it is waited for");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Streaming lists are on by default from Kubernetes 1.34; kube does not fall back where they are off.
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
    use super::*;

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
