//! The simulated world: objects, a CA, weather, and who looks at it all.
//!
//! One thread, one lock, which is never held across a wait.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::authority::Authority;
use crate::chance::Chance;
use crate::checks::Checks;
use crate::leaks::Keys;
use crate::objects::{Key, Objects};
use crate::planted::Planted;
use crate::story::Story;
use crate::weather::Weather;

/// The operator's own namespace.
pub const HOME: &str = "cert-renew";

/// A handle on the world; clones share it.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Told when an operator is to die.
    doomed: Notify,
}

/// What there is.
pub struct State {
    /// The objects of the cluster.
    pub objects: Objects,
    /// The CA.
    pub ca: Authority,
    /// The chance of the world; users and faults have their own, so that one more request changes no user.
    pub chance: Chance,
    /// What may go wrong.
    pub weather: Weather,
    /// What has happened.
    pub story: Story,
    /// What must not happen.
    pub checks: Checks,
    /// A fault of the operator's that is put on between it and the world.
    pub planted: Option<Planted>,
    /// The private keys that were seen in Secrets.
    pub keys: Keys,
    /// The replicas that are to die, by name.
    pub doomed: Vec<String>,
    /// Deployments whose new pods do not become ready.
    pub broken: BTreeSet<Key>,
    /// Challenge ports of the living replicas, by name.
    pub ports: BTreeMap<String, axum::Router>,
    /// Requests of operators, all and those that may change something.
    pub requests: Requests,
}

/// How many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Requests {
    /// To the API server.
    pub api: u64,
    /// Of these, those that may change something.
    pub writes: u64,
    /// To the CA.
    pub ca: u64,
}

impl World {
    /// A world in which nothing has happened.
    #[must_use]
    pub fn new(seed: u64, story: Story) -> Self {
        let mut chance = Chance::new(seed);
        let state = State {
            objects: Objects::default(),
            ca: Authority::new(chance.draw()),
            weather: Weather::calm(chance.draw()),
            chance,
            story,
            checks: Checks::default(),
            planted: None,
            keys: Keys::default(),
            doomed: Vec::new(),
            broken: BTreeSet::new(),
            ports: BTreeMap::new(),
            requests: Requests::default(),
        };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            doomed: Notify::new(),
        }))
    }

    /// The world as it is now.
    pub fn now(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }

    /// The same, if nobody holds it.
    #[must_use]
    pub fn try_now(&self) -> Option<MutexGuard<'_, State>> {
        self.0.state.try_lock()
    }

    /// Writes a line of the story.
    pub fn tell(&self, who: &str, what: impl fmt::Display) {
        self.now().story.tell(who, what);
    }

    /// Has a replica die, and never returns: its request has no answer.
    pub async fn die<T>(&self, replica: &str) -> T {
        self.now().doomed.push(replica.to_owned());
        self.0.doomed.notify_one();
        std::future::pending().await
    }

    /// Waits for a replica that is to die.
    pub async fn doomed(&self) -> Vec<String> {
        loop {
            let doomed = std::mem::take(&mut self.now().doomed);
            if !doomed.is_empty() {
                return doomed;
            }
            self.0.doomed.notified().await;
        }
    }
}
