//! Logs to standard error: human on a terminal, JSON otherwise. Traces read the lines too, if enabled.
//!
//! Users cause many lines by what they write, so each namespace has a token bucket of lines.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cert_renew_core::schedule::token_bucket::TokenBucket;
use clap::ValueEnum;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata};
use tracing_subscriber::filter::{FilterExt as _, Targets};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

use super::steps::Steps;
use super::trace::Traces;

/// Most lines about one namespace at once; a renewal with its rollout has some ten. Then one a second: 30 MB a day.
const LINES: u32 = 10_000;

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Human on a terminal, JSON otherwise
    Auto,
    /// For people
    Human,
    /// One JSON object a line
    Json,
}

/// Changes the level while the process runs.
pub(crate) struct Verbosity {
    filter: reload::Handle<Targets, Registry>,
    sparing: Sparing,
    configured: Level,
    now: Level,
}

impl Verbosity {
    /// Switches from the configured level to `debug`, and back.
    pub(crate) fn turn(&mut self) {
        let next = if self.now == self.configured {
            self.configured.max(Level::DEBUG)
        } else {
            self.configured
        };
        // It fails only when logging has ended.
        if self.filter.reload(filter(next)).is_ok() {
            self.now = next;
            tracing::info!(level = %next, "the log level has changed");
        }
    }

    /// Logs how many lines were left out.
    pub(crate) fn tell_left_out(&self) {
        let left_out = self.sparing.lock().left_out(Instant::now());
        for (namespace, lines) in left_out {
            // Another field name, so that this line counts for no namespace.
            tracing::warn!(about = %namespace, lines, "left out: there is too much to say about this namespace");
        }
    }
}

/// Drops lines about a namespace whose token bucket is empty; debug lines always pass.
#[derive(Clone, Debug)]
struct Sparing(Arc<Mutex<TokenBucket>>);

impl Sparing {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(TokenBucket::new(LINES))))
    }

    fn lock(&self) -> MutexGuard<'_, TokenBucket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Filter<S> for Sparing {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn callsite_enabled(&self, _: &'static Metadata<'static>) -> Interest {
        // `always` would skip the pass that counts what is left out.
        Interest::sometimes()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        if *event.metadata().level() > Level::INFO {
            return true;
        }
        let mut about = About::default();
        event.record(&mut about);
        about
            .0
            .is_none_or(|namespace| self.lock().take(Instant::now(), &namespace))
    }
}

/// The namespace that a line is about.
#[derive(Default)]
struct About(Option<String>);

impl Visit for About {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if ["secret", "namespace"].contains(&field.name()) {
            let mut text = format!("{value:?}");
            text.truncate(text.find('/').unwrap_or(text.len()));
            self.0 = Some(text);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// kube logs whole response bodies when it cannot decode them; this filter prevents that at every level.
fn filter(level: Level) -> Targets {
    Targets::new()
        .with_default(LevelFilter::WARN.min(LevelFilter::from_level(level)))
        .with_target("cert_renew", level)
        .with_target("kube_client", LevelFilter::ERROR)
        .with_target("kube_runtime", LevelFilter::ERROR)
}

/// Whether the environment leaves colours on: `NO_COLOR` (<https://no-color.org>) with any value turns them off, and a
/// terminal of type `dumb` shows escape sequences as text.
pub(crate) fn wants_colours(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    set("NO_COLOR").is_none() && set("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// Starts logging at `level`; `steps` and `traces` read the lines at every level.
pub(crate) fn start(
    format: LogFormat,
    level: Level,
    steps: Steps,
    traces: Option<Traces>,
) -> Verbosity {
    let (filter, handle) = reload::Layer::new(filter(level));
    let sparing = Sparing::new();
    let terminal = std::io::stderr().is_terminal();
    let layer = match format {
        LogFormat::Json => json(),
        LogFormat::Auto if !terminal => json(),
        LogFormat::Auto | LogFormat::Human => fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(terminal && wants_colours(|name| std::env::var_os(name)))
            .with_target(false)
            .boxed(),
    };
    let log = tracing_subscriber::registry().with(layer.with_filter(filter.and(sparing.clone())));
    let all = || Targets::new().with_target("cert_renew", Level::INFO);
    let traces = traces.map(|traces| traces.with_filter(all()));
    // Started once, from main; if a test has started its own, that one stays.
    let _ = log.with(steps.with_filter(all())).with(traces).try_init();
    Verbosity {
        filter: handle,
        sparing,
        configured: level,
        now: level,
    }
}

fn json<S>() -> Box<dyn tracing_subscriber::Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_writer(std::io::stderr)
        .boxed()
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing::subscriber::with_default;

    use super::*;

    /// A buffer that receives the log.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_color_and_a_dumb_terminal_turn_colours_off() {
        for (name, value, expected) in [
            ("TERM", "xterm-256color", true),
            ("TERM", "dumb", false),
            ("NO_COLOR", "1", false),
            // Set and empty counts as unset, by the convention.
            ("NO_COLOR", "", true),
            ("OTHER", "x", true),
        ] {
            let found = wants_colours(|asked| (asked == name).then(|| value.into()));
            assert_eq!(found, expected, "{name}={value}");
        }
    }

    #[test]
    fn one_namespace_cannot_fill_the_log() {
        let written = Written::default();
        let writer = written.clone();
        let sparing = Sparing::new();
        let layer = fmt::layer()
            .with_writer(move || writer.clone())
            .with_filter(sparing.clone());
        let most = usize::try_from(LINES).unwrap();
        with_default(tracing_subscriber::registry().with(layer), || {
            for number in 0..most + 500 {
                tracing::info!(secret = %format_args!("loud/tls-{number}"), "said");
            }
            tracing::warn!(namespace = "loud", "said");
            tracing::warn!(secret = %"other/tls", "heard");
            tracing::error!("heard");
            tracing::debug!(secret = %"loud/tls", "heard");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("heard").count(), 3);
        // While that was written some tokens came back, one a second.
        let said = text.matches("said").count();
        assert!((most..most + 100).contains(&said), "{said}");
        let left_out = sparing.lock().left_out(Instant::now());
        assert_eq!(left_out.len(), 1);
        assert_eq!(&*left_out[0].0, "loud");
    }
}
