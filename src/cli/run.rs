//! `cert-renew run`: builds everything once and runs the controller until a signal.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::telemetry::{self, LogFormat};
use super::{CommandResult, Failure, block_on};
use crate::cluster::events::Events;
use crate::cluster::ledger::Ledger;
use crate::cluster::watch as cluster_watch;
use crate::config::Config;
use crate::context::Context;
use crate::metrics::Metrics;
use crate::renewal::info::RenewalInfo;
use crate::renewal::issuers::Issuers;
use crate::renewal::known::Known;
use crate::rollout::Roller;
use crate::solver::dns01;
use crate::solver::http01::{self, ChallengeStore};
use crate::time::UnixTime;
use crate::{controller, http};

#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The config file
    #[arg(
        long,
        env = "CERT_RENEW_CONFIG",
        default_value = "/etc/cert-renew/config.yaml"
    )]
    config: PathBuf,
    /// The operator's own namespace: account keys, order records and the ledger live there
    #[arg(long, env = "POD_NAMESPACE", default_value = "cert-renew")]
    namespace: String,
    /// Where /metrics, /healthz and /readyz are served
    #[arg(long, default_value = "0.0.0.0:9402")]
    metrics_address: SocketAddr,
    /// Where the CA's HTTP-01 requests are answered, and nothing else
    #[arg(long, default_value = "0.0.0.0:8402")]
    challenge_address: SocketAddr,
    /// How a log line looks
    #[arg(long, value_enum, default_value_t = LogFormat::Auto)]
    log_format: LogFormat,
    /// error, warn, info, debug or trace
    #[arg(long, default_value = "info")]
    log_level: tracing::Level,
}

pub(super) fn run(args: Args) -> CommandResult {
    telemetry::start(args.log_format, args.log_level);
    let config = Config::load(&args.config).map_err(|faults| Failure(faults.to_string()))?;
    for warning in config.warnings() {
        tracing::warn!(%warning, "config");
    }
    block_on(operate(args, config))
}

async fn operate(args: Args, config: Config) -> CommandResult {
    let metrics = Metrics::new().map_err(|error| Failure::new("registering metrics", &error))?;
    let metrics = Arc::new(metrics);
    let client = crate::cluster::connect(Some(Arc::clone(&metrics)))
        .await
        .map_err(|error| Failure::new("finding the way to the API server", &*error))?;
    let bind = |address: SocketAddr| async move {
        TcpListener::bind(address)
            .await
            .map_err(|error| Failure::new(&format!("listening on {address}"), &error))
    };
    let metrics_listener = bind(args.metrics_address).await?;
    let challenge_listener = bind(args.challenge_address).await?;
    let namespace: Arc<str> = args.namespace.into();
    let ledger = Ledger::load(&client, &namespace)
        .await
        .map_err(|error| Failure::new("starting", &error))?;
    let known = Known::load(&client, &namespace)
        .await
        .map_err(|error| Failure::new("starting", &error))?;
    let started = UnixTime::now();
    let events = Events::start(client.clone(), std::env::var("POD_NAME").ok());
    let watches = cluster_watch::secrets(&client, &config.watch)
        .await
        .map_err(|error| Failure::new("starting", &error))?;
    let per_certificate = config.metrics.per_certificate;
    let roller = Roller::new(client.clone(), &config.rollout);
    let issuers = Issuers::new(client.clone(), Arc::clone(&namespace), Arc::clone(&metrics));
    let (_config_sender, config) = watch::channel(Arc::new(config));
    let context = Arc::new(Context {
        ledger,
        roller,
        issuers,
        renewal_info: RenewalInfo::default(),
        config,
        events,
        known,
        metrics: Arc::clone(&metrics),
        challenges: ChallengeStore::default(),
        routes: Default::default(),
        dns01: dns01::Solver::new(client.clone(), Arc::clone(&namespace)),
        index: Arc::default(),
        beat: Arc::default(),
        ready: Arc::default(),
        namespace,
        client,
    });

    let (stop, stopped) = watch::channel(false);
    let until_stop = move || {
        let mut stopped = stopped.clone();
        async move {
            // An error means that the sender is gone, which is a stop too.
            let _ = stopped.wait_for(|stop| *stop).await;
        }
    };
    let serve_metrics = http::serve(
        metrics_listener,
        http::State {
            index: Arc::clone(&context.index),
            metrics,
            beat: Arc::clone(&context.beat),
            ready: Arc::clone(&context.ready),
            per_certificate: Arc::new(AtomicBool::new(per_certificate)),
            started,
        },
        until_stop(),
    );
    let serve_challenges = http::bounded::serve(
        challenge_listener,
        http01::router(context.challenges.clone(), http01::no_lookup()),
        until_stop(),
    );
    let metrics_server = tokio::spawn(serve_metrics);
    let challenge_server = tokio::spawn(serve_challenges);
    let follower = tokio::spawn(Known::follow(Arc::clone(&context)));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        namespace = %context.namespace,
        metrics = %args.metrics_address,
        challenges = %args.challenge_address,
        "started"
    );
    controller::run(Arc::clone(&context), watches, terminated()).await;
    let _ = stop.send(true);
    follower.abort();
    // A server that panicked has said so already.
    let _ = tokio::join!(challenge_server, metrics_server);
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Ends at SIGTERM or Ctrl-C.
async fn terminated() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        tracing::error!("signals cannot be received; stop with SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopping");
}
