//! `cert-renew run`: builds everything once and runs the controller until a signal.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use cert_renew_core::config::Config;
use cert_renew_core::election::{Election, Times};
use cert_renew_core::time::duration::{self, NotADuration};
use cert_renew_core::time::{BootTime, UnixTime};
use cert_renew_core::verdict::Leader;
use clap::Parser;
use futures::future::BoxFuture;
use kube::Client;
use rustix::io::Errno;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;

use super::{CommandResult, Failure, block_on};
use crate::cluster::access::{review, viewers};
use crate::cluster::events::Events;
use crate::cluster::lease::{Candidate, Sign};
use crate::cluster::secrets::port_certificate;
use crate::cluster::secrets::watch::Opener;
use crate::cluster::{self, KubeConfigSource, NoWay};
use crate::context::Shared;
use crate::leader::controller::{self, Configs, Ended};
use crate::leader::handles::Handles;
use crate::net::metrics_port::access::Review;
use crate::net::presented::Presented;
use crate::net::{bounded, metrics_port};
use crate::process::config_file::ConfigFile;
use crate::process::write_gate::WriteGate;
use crate::process::{kernel, supervise};
use crate::solver::http01;
use crate::telemetry::log::{self, LogFormat, Verbosity};
use crate::telemetry::metrics::{Metrics, Part};
use crate::telemetry::otlp::{self, Endpoint};
use crate::telemetry::steps::Steps;
use crate::telemetry::trace::Traces;

/// Time between two reads of the config file. The kubelet takes a minute to bring a changed ConfigMap, and changes a
/// symbolic link, which a watch of the file would miss.
const LOOK: Duration = Duration::from_secs(5);
/// Shortest watch; a shorter one would cost more than it brings.
const SHORTEST_WATCH: Duration = Duration::from_secs(10);
/// Longest watch that kube allows: proxies close a connection that is silent for five minutes.
const LONGEST_WATCH: Duration = Duration::from_secs(290);
/// Time until a port that cannot be served, for lack of descriptors, is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Most traces that wait for the collector; more are lost.
const TRACES: usize = 200;
/// The only term of a replica that needs no lease.
const ALONE: u64 = 1;

#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The config file
    #[arg(
        long,
        env = "CERT_RENEW_CONFIG",
        default_value = "/etc/cert-renew/config.yaml"
    )]
    config: PathBuf,
    /// The operator's own namespace: account keys, order records and the failure history are there
    #[arg(long, env = "POD_NAMESPACE", default_value = "cert-renew")]
    namespace: String,
    /// Where /metrics, /healthz, /readyz, the status page and its JSON are served
    #[arg(long, default_value = "[::]:9402")]
    metrics_address: SocketAddr,
    /// Where the CA's HTTP-01 requests are answered, and nothing else
    #[arg(long, default_value = "[::]:8402")]
    challenge_address: SocketAddr,
    /// Lead only while holding the Lease `cert-renew` of the own namespace; with false there must be one replica only
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    leader_election: bool,
    /// How long the other replicas wait after the leader has died, in whole seconds
    #[arg(long, default_value = "15s", value_parser = duration)]
    lease_duration: Duration,
    /// How long the leader keeps acting if it cannot renew its Lease
    #[arg(long, default_value = "10s", value_parser = duration)]
    lease_renew_deadline: Duration,
    /// How often the leader renews
    #[arg(long, default_value = "2s", value_parser = duration)]
    lease_retry_period: Duration,
    /// How long a watch lasts before the next one is opened; one that is silent for 5 s longer counts as dead. From 10s
    /// to 290s, and longer than a list of all Secrets takes
    #[arg(long, default_value = "290s", value_parser = watch_timeout)]
    watch_timeout: Duration,
    /// How long challenges are answered after SIGTERM; the Lease is given back before
    #[arg(long, default_value = "10s", value_parser = duration)]
    shutdown_grace: Duration,
    /// How a log line looks
    #[arg(long, value_enum, default_value_t = LogFormat::Auto)]
    log_format: LogFormat,
    /// error, warn, info, debug or trace
    #[arg(long, default_value = "info")]
    log_level: tracing::Level,
    /// Send a trace of each renewal to this collector (OTLP over HTTP, JSON), for example http://collector:4318
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<Endpoint>,
}

/// Time between two reports of suppressed log lines.
const LEFT_OUT: Duration = Duration::from_secs(60);

pub(super) fn run(args: Args) -> CommandResult {
    let (traces, exported) = match args.otlp_endpoint.clone() {
        Some(endpoint) => {
            let (sender, receiver) = mpsc::channel(TRACES);
            (Some(Traces::new(sender)), Some((endpoint, receiver)))
        }
        None => (None, None),
    };
    let steps = Steps::default();
    let verbosity = log::start(args.log_format, args.log_level, steps.clone(), traces);
    if let Err(error) = kernel::keep_memory_private() {
        tracing::warn!(%error, "a core dump of this process, or another process of its user, could show keys");
    }
    if let Err(error) = kernel::open_more_files() {
        tracing::warn!(%error, "strangers who open many connections could leave none for the API server");
    }
    let opened = ConfigFile::open(&args.config);
    let (file, config) = opened.map_err(|faults| Failure(faults.to_string()))?;
    warn(&config);
    let metrics = Metrics::new().map_err(|error| Failure::new("registering metrics", &error))?;
    let metrics = Arc::new(metrics);
    block_on(async {
        let verbosity = Arc::new(Mutex::new(verbosity));
        supervise::spawn(Part::Log, &metrics, move || {
            look_after_log(Arc::clone(&verbosity))
        });
        if let Some((endpoint, receiver)) = exported {
            let receiver = Arc::new(Mutex::new(receiver));
            supervise::spawn(Part::Traces, &metrics, move || {
                otlp::export(endpoint.clone(), replica(), Arc::clone(&receiver))
            });
        }
        operate(args, file, config, metrics, steps).await
    })
}

async fn operate(
    args: Args,
    file: ConfigFile,
    config: Config,
    metrics: Arc<Metrics>,
    steps: Steps,
) -> CommandResult {
    let times = Times::new(
        args.lease_duration,
        args.lease_renew_deadline,
        args.lease_retry_period,
    )
    .map_err(|error| Failure(error.to_string()))?;
    let no_way = |error: NoWay| Failure::new("finding the way to the API server", &*error);
    let gate = WriteGate::default();
    let client = cluster::connect_behind(gate.clone(), Arc::clone(&metrics))
        .await
        .map_err(no_way)?;
    let lease_client = cluster::connect(&KubeConfigSource::default(), Some(Arc::clone(&metrics)))
        .await
        .map_err(no_way)?;
    let metrics_listener = listen(args.metrics_address).await?;
    let challenge_listener = listen(args.challenge_address).await?;
    let namespace: Arc<str> = args.namespace.into();
    let started = UnixTime::now();
    // Runs beside the start, as it only reports. A standby asks too, so it bypasses the gate.
    supervise::spawn(Part::Rights, &metrics, {
        let (client, namespace, config) =
            (lease_client.clone(), namespace.to_string(), config.clone());
        move || review::report(client.clone(), namespace.clone(), config.clone())
    });
    let pod = std::env::var("POD_NAME").ok();
    let events = Events::start(client.clone(), pod.clone(), &metrics);
    let opener = Opener::new(&client, args.watch_timeout);
    let (want, wanted) = watch::channel(Arc::new(config.clone()));
    let (in_force, config) = watch::channel(Arc::new(config));
    metrics.config_taken_over(started);
    metrics.paused(config.borrow().paused);
    let counted = Arc::clone(&metrics);
    let context = Shared::new(client, gate, namespace, config, events, counted);
    let all = Handles::new(Arc::new(context));
    let (context, renewals) = (Arc::clone(&all.shared), Arc::clone(&all.renewals));

    let (stop, stopped) = watch::channel(false);
    let (signs, seen) = watch::channel::<Option<Sign>>(None);
    let counting = Arc::clone(&renewals);
    let state = metrics_port::State {
        index: Arc::clone(&context.index),
        strays: Arc::clone(&context.strays),
        metrics: Arc::clone(&metrics),
        beat: Arc::clone(&context.health.heartbeat),
        ready: Arc::clone(&context.health.ready),
        config: context.config.clone(),
        failures: Arc::new(move |observed| counting.failures(observed)),
        remembered: Arc::new({
            let all = all.clone();
            move |key, observed, names| {
                let step = steps.of(&key.to_string());
                all.remembered(step, key, observed, names)
            }
        }),
        leader: Arc::new(move |now| {
            let seen = seen.borrow();
            seen.as_ref().map_or_else(Leader::default, |sign| {
                Leader::at(now, sign.holder.as_deref(), sign.at, sign.lasts)
            })
        }),
        namespace: Arc::clone(&context.namespace),
        replica: replica().into(),
        started,
        review: reviews(&lease_client, &context.namespace),
        certificate: follow_certificate(&lease_client, &context, &metrics),
    };
    let metrics_server = serve(
        Part::MetricsServer,
        &metrics,
        metrics_listener,
        &stopped,
        move |listener, until| metrics_port::serve(listener, state.clone(), until),
    );
    let router = http01::router(renewals.challenges.clone(), renewals.lookup());
    let challenge_server = serve(
        Part::ChallengeServer,
        &metrics,
        challenge_listener,
        &stopped,
        move |listener, until| bounded::serve(listener, router.clone(), until),
    );
    let declarations = supervise::spawn(Part::Declarations, &metrics, {
        let (declared, timeout) = (Arc::clone(&all.declared), args.watch_timeout);
        move || {
            let declared = Arc::clone(&declared);
            async move { declared.follow(timeout).await }
        }
    });
    let follower = supervise::spawn(Part::OrderRecords, &metrics, {
        let renewals = Arc::clone(&renewals);
        move || {
            let renewals = Arc::clone(&renewals);
            async move { renewals.follow_challenges().await }
        }
    });
    // The end of either ends the process: the controller sees it.
    let reader = tokio::spawn(follow_file(file, want, metrics));
    let (release, released) = watch::channel(false);
    let (leads, term) = watch::channel(None);
    let election = Election::new(identity(pod), times);
    let (shared, released) = (Arc::clone(&context), until(released));
    let candidate = tokio::spawn(async move {
        let first_list = shared.health.first_list.notified();
        if args.leader_election {
            let (gate, relist) = (shared.gate.clone(), shared.health.relist.clone());
            let namespace = &shared.namespace;
            let candidate = Candidate::new(
                lease_client,
                namespace,
                election,
                gate,
                leads,
                relist,
                signs,
            );
            // Do not campaign before the first list: an uninformed leader would block an informed one.
            first_list.await;
            candidate.run(released).await;
        } else {
            shared.gate.grant(ALONE, BootTime::NEVER);
            first_list.await;
            signs.send_replace(Some(Sign::alone(replica())));
            leads.send_replace(Some(ALONE));
            released.await;
        }
    });
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        namespace = %context.namespace,
        metrics = %args.metrics_address,
        challenges = %args.challenge_address,
        "started"
    );
    let configs = Configs {
        wanted,
        in_force,
        opener,
    };
    let ready = Arc::clone(&context.health.ready);
    let shutdown = async move {
        terminated().await;
        ready.store(false, Ordering::Relaxed);
        tracing::info!("stopping");
    };
    let ended = controller::run(all, configs, term, shutdown).await;
    let _ = release.send(true);
    context.health.first_list.notify_one();
    // A panic has been reported already.
    let _ = candidate.await;
    // Proxies learn from the API server that this pod ends, and send challenges here until then. A second signal ends
    // the wait.
    if matches!(ended, Ended::Told) {
        tokio::select! {
            () = tokio::time::sleep(args.shutdown_grace) => {}
            () = terminated() => {}
        }
    }
    let _ = stop.send(true);
    follower.abort();
    declarations.abort();
    reader.abort();
    let _ = tokio::join!(challenge_server, metrics_server);
    tracing::info!("stopped");
    match ended {
        Ended::Told => Ok(ExitCode::SUCCESS),
        Ended::Unattended => Err(Failure("a task that all others depend on has ended".into())),
    }
}

/// Ends once the sender says so, or is gone.
async fn until(mut told: watch::Receiver<bool>) {
    let _ = told.wait_for(|told| *told).await;
}

/// Serves a port until the process stops. A server that panics is begun again on the same socket.
fn serve<F>(
    part: Part,
    metrics: &Arc<Metrics>,
    listener: std::net::TcpListener,
    stopped: &watch::Receiver<bool>,
    server: impl Fn(TcpListener, BoxFuture<'static, ()>) -> F + Clone + Send + Sync + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (listener, stopped) = (Arc::new(listener), stopped.clone());
    supervise::spawn(part, metrics, move || {
        let listener = again(Arc::clone(&listener));
        let (until, server) = (until(stopped.clone()), server.clone());
        async move { server(listener.await, Box::pin(until)).await }
    })
}

/// The certificate of the metrics port, kept equal to its Secret. Every replica presents one, so this bypasses the gate.
fn follow_certificate(client: &Client, shared: &Arc<Shared>, metrics: &Arc<Metrics>) -> Presented {
    let certificate = Presented::default();
    let (client, shared, presented) = (client.clone(), Arc::clone(shared), certificate.clone());
    supervise::spawn(Part::PortCertificate, metrics, move || {
        let (namespace, config) = (Arc::clone(&shared.namespace), shared.config.clone());
        port_certificate::follow(client.clone(), namespace, config, presented.clone())
    });
    certificate
}

/// Asks the API server about tokens. Every replica shows the page, so this bypasses the gate.
fn reviews(client: &Client, namespace: &Arc<str>) -> Review {
    let (client, namespace) = (client.clone(), Arc::clone(namespace));
    Arc::new(move |question| {
        let (client, namespace) = (client.clone(), Arc::clone(&namespace));
        Box::pin(async move {
            let verdict = viewers::review(&client, &namespace, &question).await;
            verdict.map_err(|error| error.to_string())
        })
    })
}

/// A listening socket; a server takes connections from it by [`again`].
///
/// `[::]` takes connections of both families. Where the kernel has no IPv6 it is `0.0.0.0`.
async fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Failure> {
    let listener = match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && is_without_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    listener
        .and_then(TcpListener::into_std)
        .map_err(|error| Failure::new(&format!("listening on {address}"), &error))
}

fn is_without_ipv6(error: &std::io::Error) -> bool {
    let errors = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|it| errors.contains(&it))
}

/// The same socket again: a restarted server continues where the one before stopped.
async fn again(listener: Arc<std::net::TcpListener>) -> TcpListener {
    loop {
        match listener.try_clone().and_then(TcpListener::from_std) {
            Ok(copy) => return copy,
            Err(error) => tracing::error!(%error, "a port cannot be served now"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn warn(config: &Config) {
    for warning in config.warnings() {
        tracing::warn!(%warning, "config");
    }
}

/// Reads the config file periodically, and requests that a valid version be applied.
async fn follow_file(
    mut file: ConfigFile,
    want: watch::Sender<Arc<Config>>,
    metrics: Arc<Metrics>,
) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(judged) = file.look() else { continue };
        metrics.config_rejected(judged.is_err());
        match judged {
            Ok(config) => {
                warn(&config);
                let config = Arc::new(config);
                let another = want.send_if_modified(|wanted| {
                    let another = *wanted != config;
                    *wanted = config;
                    another
                });
                tracing::info!(another, "the config file has changed and is valid");
            }
            Err(faults) => tracing::error!(
                %faults,
                "the config file has changed and is refused: the config before it stays in force"
            ),
        }
    }
}

/// The name that people see for this replica.
fn replica() -> String {
    std::env::var("POD_NAME").unwrap_or_else(|_| "cert-renew".into())
}

/// SIGHUP turns the log level to debug, and the next one back. Reports suppressed lines every minute.
async fn look_after_log(verbosity: Arc<Mutex<Verbosity>>) {
    let mut verbosity = verbosity.lock().await;
    let Ok(mut hangups) = signal(SignalKind::hangup()) else {
        return;
    };
    let mut minutes = tokio::time::interval(LEFT_OUT);
    loop {
        tokio::select! {
            hangup = hangups.recv() => match hangup {
                Some(()) => verbosity.turn(),
                None => return,
            },
            _ = minutes.tick() => verbosity.tell_left_out(),
        }
    }
}

/// The holder name in the Lease: the pod, and a random part that differs for the pod's next container.
fn identity(pod: Option<String>) -> String {
    let mut random = [0; 8];
    // Fails only without a kernel's randomness; then the pod's name alone is unique.
    let _ = SystemRandom::new().fill(&mut random);
    let pod = pod.unwrap_or_else(|| "cert-renew".into());
    format!("{pod}_{:016x}", u64::from_be_bytes(random))
}

/// `10s`, as everywhere, or `500ms`.
fn duration(text: &str) -> Result<Duration, NotADuration> {
    match text.strip_suffix("ms").map(str::parse) {
        Some(Ok(milliseconds)) => Ok(Duration::from_millis(milliseconds)),
        Some(Err(_)) => Err(NotADuration),
        None => duration::parse(text),
    }
}

/// The API server takes whole seconds.
fn watch_timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration(text).map_err(|error| error.to_string())?;
    if (SHORTEST_WATCH..=LONGEST_WATCH).contains(&timeout) {
        Ok(timeout)
    } else {
        Err("expected 10s to 290s".into())
    }
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
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    /// Longer than the pause before a server is begun again.
    const SOON: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_port_is_served_again_after_a_panic_and_until_the_process_stops() {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let begun = Arc::new(AtomicU32::new(0));
        let server = {
            let begun = Arc::clone(&begun);
            move |listener: TcpListener, until: BoxFuture<'static, ()>| {
                let number = begun.fetch_add(1, Ordering::Relaxed);
                async move {
                    let answers = async {
                        while let Ok((mut stream, _)) = listener.accept().await {
                            assert!(number > 0, "the first server panics");
                            stream.write_all(b"served").await.unwrap();
                        }
                    };
                    tokio::select! {
                        () = answers => {}
                        () = until => {}
                    }
                }
            }
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        let (stop, stopped) = watch::channel(false);
        let part = Part::ChallengeServer;
        let serving = serve(part, &metrics, listener, &stopped, server);
        let asked = async || {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let mut answer = String::new();
            // A connection may also end with a reset.
            let _ = stream.read_to_string(&mut answer).await;
            answer
        };
        assert_eq!(timeout(SOON, asked()).await.unwrap(), "");
        // It comes before the next server does, and waits for it in the socket.
        assert_eq!(timeout(SOON, asked()).await.unwrap(), "served");
        assert_eq!(begun.load(Ordering::Relaxed), 2);
        stop.send(true).unwrap();
        timeout(SOON, serving).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_unspecified_address_takes_connections_of_each_family_that_there_is() {
        let listener = listen((Ipv6Addr::UNSPECIFIED, 0).into()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        }
    }
}
