//! The watches on Secrets: all of type `kubernetes.io/tls`, and those of other types that carry the managed label.
//!
//! One object at a time goes from the wire to the index; nothing is stored here.

use futures::stream::{self, BoxStream, StreamExt};
use kube::Client;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};

use crate::config::{Select, WatchConfig};
use crate::index::Source;
use crate::secret::keys::MANAGED_LABEL;
use crate::secret::thin::ThinSecret;

/// Objects in a page where the server does not stream lists: a page of thin Secrets peaks at a few megabytes.
const PAGE: u32 = 250;

/// All watches as one stream.
pub struct Secrets {
    /// How many watches there are.
    pub count: usize,
    /// Their events, each with the watch it came by. Errors are reported and retried with back-off.
    pub events: BoxStream<'static, (Source, Result<watcher::Event<ThinSecret>, watcher::Error>)>,
}

/// Opens the watches that the config asks for.
///
/// # Errors
/// When the API server does not tell its version: then it is not there.
pub async fn secrets(client: &Client, watch: &WatchConfig) -> Result<Secrets, super::Error> {
    let version = super::call(
        || "asking for the version".into(),
        client.apiserver_version(),
    )
    .await?;
    let streaming = streams_lists(&version.major, &version.minor);
    tracing::debug!(server = %version.git_version, streaming, "opening the watches");
    let tls = watcher::Config::default().fields("type=kubernetes.io/tls");
    let labelled = watcher::Config::default().labels(&format!("{MANAGED_LABEL}=true"));
    let configs = match watch.select {
        // A TLS Secret with the label comes by the first watch alone.
        Select::Type => vec![tls, labelled.fields("type!=kubernetes.io/tls")],
        Select::Label => vec![labelled],
    };
    // One watch a namespace where only some are watched: a Role cannot give more.
    let scopes: Vec<Api<ThinSecret>> = if watch.namespaces.is_empty() {
        vec![Api::all(client.clone())]
    } else {
        let scoped = |namespace: &String| Api::namespaced(client.clone(), namespace);
        watch.namespaces.iter().map(scoped).collect()
    };
    let mut streams = Vec::new();
    for config in configs {
        let config = if streaming {
            config.streaming_lists()
        } else {
            config.page_size(PAGE)
        };
        for api in &scopes {
            let source = Source(u16::try_from(streams.len()).unwrap_or(u16::MAX));
            let events = watcher(api.clone(), config.clone()).default_backoff();
            streams.push(events.map(move |event| (source, event)).boxed());
        }
    }
    Ok(Secrets {
        count: streams.len(),
        events: stream::select_all(streams).boxed(),
    })
}

/// Streaming lists are on by default from Kubernetes 1.34; kube does not fall back where they are off.
fn streams_lists(major: &str, minor: &str) -> bool {
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
            assert_eq!(streams_lists(major, minor), streams, "{major}.{minor}");
        }
    }
}
