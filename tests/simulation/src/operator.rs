//! A replica of the operator: what `cert-renew run` builds, on the simulated world. It can end, and it can die.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Result, anyhow};
use axum::body::Body as Answer;
use cert_renew::acme::Carrier;
use cert_renew::cluster::connect_over;
use cert_renew::cluster::events::Events;
use cert_renew::cluster::lease::{Candidate, Sign};
use cert_renew::cluster::secrets::watch::Opener;
use cert_renew::context::Shared;
use cert_renew::leader::controller::{self, Configs};
use cert_renew::leader::handles::Handles;
use cert_renew::process::write_gate::WriteGate;
use cert_renew::solver::http01;
use cert_renew::telemetry::metrics::Metrics;
use cert_renew_core::config::Config;
use cert_renew_core::election::{Election, Times};
use cert_renew_core::time::BootTime;
use http::{Request, Response};
use kube::client::Body;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tower::Service;

use crate::api::{self, Lost};
use crate::authority;
use crate::world::{HOME, World};

/// How long a watch lasts.
const WATCH: Duration = Duration::from_secs(290);

/// A running replica.
pub struct Replica {
    /// Its name, with the number of its life.
    pub name: Arc<str>,
    /// Ends when the process would.
    main: JoinHandle<()>,
    beside: Vec<JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
    want: watch::Sender<Arc<Config>>,
    world: World,
}

/// The way of a replica to the API server.
#[derive(Clone)]
pub struct Way {
    world: World,
    replica: Arc<str>,
}

impl Way {
    /// That of this replica.
    #[must_use]
    pub fn new(world: &World, replica: &str) -> Self {
        Self {
            world: world.clone(),
            replica: replica.into(),
        }
    }
}

impl Service<Request<Body>> for Way {
    type Response = Response<Answer>;
    type Error = Lost;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, Lost>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(api::answer(
            self.world.clone(),
            Arc::clone(&self.replica),
            request,
        ))
    }
}

impl Replica {
    /// Starts a replica. `times` are those of its lease; without them it is the only one.
    ///
    /// # Errors
    /// When it would not start.
    pub fn start(world: &World, name: &str, config: Config, times: Option<Times>) -> Result<Self> {
        let name: Arc<str> = name.into();
        world.tell(&name, "starts");
        let metrics = Arc::new(Metrics::new()?);
        let gate = WriteGate::default();
        let of_clients = if world.now().planted_is("gate") {
            WriteGate::open()
        } else {
            gate.clone()
        };
        let way = Way::new(world, &name);
        let clients = connect_over(way, of_clients, &metrics);
        let (lease_client, client) = clients.map_err(|error| anyhow!("{error}"))?;
        let carried = (world.clone(), Arc::clone(&name));
        let carrier = Carrier::new(tower::service_fn(move |request| {
            let (world, replica) = carried.clone();
            authority::answer(world, replica, request)
        }));
        let events = Events::start(client.clone(), Some(name.to_string()), &metrics);
        let opener = Opener::new(&client, WATCH);
        let (want, wanted) = watch::channel(Arc::new(config.clone()));
        let (in_force, config) = watch::channel(Arc::new(config));
        let mut shared = Shared::new(client, gate, HOME.into(), config, events, metrics);
        shared.carrier = Some(carrier);
        let all = Handles::new(Arc::new(shared));
        let (shared, renewals) = (Arc::clone(&all.shared), Arc::clone(&all.renewals));
        let router = http01::router(renewals.challenges.clone(), renewals.lookup());
        world.now().ports.insert(name.to_string(), router);
        let follower = tokio::spawn(async move { renewals.follow_challenges().await });
        let (leads, term) = watch::channel(None);
        let (release, released) = oneshot::channel::<()>();
        let released = async move {
            // An error means that nobody is left to release it.
            let _ = released.await;
        };
        let (signs, _) = watch::channel::<Option<Sign>>(None);
        let identity = format!("{name}_life");
        let candidate = tokio::spawn(async move {
            match times {
                Some(times) => {
                    let election = Election::new(identity, times);
                    let (gate, relist) = (shared.gate.clone(), shared.health.relist.clone());
                    let candidate =
                        Candidate::new(lease_client, HOME, election, gate, leads, relist, signs);
                    shared.health.first_list.notified().await;
                    candidate.run(released).await;
                }
                None => {
                    shared.gate.grant(1, BootTime::NEVER);
                    shared.health.first_list.notified().await;
                    leads.send_replace(Some(1));
                    released.await;
                }
            }
        });
        let configs = Configs {
            wanted,
            in_force,
            opener,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let told = world.clone();
        let of_main = Arc::clone(&name);
        let first_list = Arc::clone(&all.shared);
        let main = tokio::spawn(async move {
            let shutdown = async move {
                if stopped.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let ended = controller::run(all, configs, term, shutdown).await;
            told.tell(&of_main, format_args!("ends: {ended:?}"));
            let _ = release.send(());
            first_list.health.first_list.notify_one();
        });
        Ok(Self {
            name,
            main,
            beside: vec![follower, candidate],
            stop: Some(stop),
            want,
            world: world.clone(),
        })
    }

    /// Has it take over another config.
    pub fn configure(&self, config: Config) {
        self.want.send_replace(Arc::new(config));
    }

    /// Ends it as SIGTERM does.
    pub async fn end(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let _ = (&mut self.main).await;
        if let Some(candidate) = self.beside.pop() {
            let _ = candidate.await;
        }
    }

    /// Ends it at once, as SIGKILL does.
    pub async fn die(mut self) {
        self.world.tell(&self.name, "dies");
        self.kill();
        let _ = (&mut self.main).await;
        for task in std::mem::take(&mut self.beside) {
            let _ = task.await;
        }
    }

    fn kill(&self) {
        self.world.now().ports.remove(&*self.name);
        self.main.abort();
        self.beside.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}
