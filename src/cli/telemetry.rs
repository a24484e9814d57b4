//! Logs: human on a terminal, JSON otherwise, to standard error; and what reads along, if anything does.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

use super::trace::Traces;

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Human on a terminal, JSON otherwise
    Auto,
    /// For people
    Human,
    /// One JSON object a line
    Json,
}

/// Turns the level up and down again while the process runs.
pub(super) struct Verbosity {
    filter: reload::Handle<Targets, Registry>,
    configured: Level,
    now: Level,
}

impl Verbosity {
    /// From the configured level to `debug`, and from there back.
    pub(super) fn turn(&mut self) {
        let next = if self.now == self.configured {
            self.configured.max(Level::DEBUG)
        } else {
            self.configured
        };
        // It fails only when nothing logs any more.
        if self.filter.reload(filter(next)).is_ok() {
            self.now = next;
            tracing::info!(level = %next, "the log level is another");
        }
    }
}

/// kube logs whole response bodies when it cannot decode them; whatever the level, it is kept from that.
fn filter(level: Level) -> Targets {
    Targets::new()
        .with_default(LevelFilter::WARN.min(LevelFilter::from_level(level)))
        .with_target("cert_renew", level)
        .with_target("kube_client", LevelFilter::ERROR)
        .with_target("kube_runtime", LevelFilter::ERROR)
}

/// Starts logging at `level`; `traces` reads along whatever the level is.
pub(super) fn start(format: LogFormat, level: Level, traces: Option<Traces>) -> Verbosity {
    let (filter, handle) = reload::Layer::new(filter(level));
    let terminal = std::io::stderr().is_terminal();
    let layer = match format {
        LogFormat::Json => json(),
        LogFormat::Auto if !terminal => json(),
        LogFormat::Auto | LogFormat::Human => fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(terminal)
            .with_target(false)
            .boxed(),
    };
    let log = tracing_subscriber::registry().with(layer.with_filter(filter));
    let steps = Targets::new().with_target("cert_renew", Level::INFO);
    // Started once, from main; where a test has started its own, that one stays.
    let _ = match traces {
        Some(traces) => log.with(traces.with_filter(steps)).try_init(),
        None => log.try_init(),
    };
    Verbosity {
        filter: handle,
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
