//! Certificates that are declared by other objects: their Secrets are made, and kept as they are declared.
//!
//! ```text
//! watches on declarations ─┐
//!                          ├─► register ──needs a look──► keeper: reads all afresh ──► one guarded write
//! watch on Secrets ────────┘                                (only the leader)
//! ```
//! Every replica follows; only a term keeps. What is decided is decided in `core::declaration`, by what was read right
//! before the write. Without the rights for it nothing is declared, and everything else works.

mod follow;
mod keep;
mod lanes;

use std::collections::HashSet;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cert_renew_core::declaration::register::{Made, Register};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::verdict::State;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::context::Shared;

/// Delay of a look: enough for several changes that belong together, such as the objects of one `kubectl apply`.
const SETTLE: Duration = Duration::from_secs(1);

/// What is known of declarations.
pub struct Declared {
    shared: Arc<Shared>,
    register: Mutex<Register>,
    told: Notify,
}

impl Declared {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            register: Mutex::default(),
            told: Notify::new(),
        }
    }

    /// The watch on Secrets has brought one, or it is gone: `made` if its settings come from declarations.
    pub fn secret(&self, key: &SecretRef, made: Option<Made>) {
        self.change(|register| register.secret(key, made));
    }

    /// A Secret is in this state now.
    pub fn state(&self, key: &SecretRef, state: State) {
        self.change(|register| register.state(key, state));
    }

    /// Changes what is known, and wakes the keeper if a Secret needs a look by it.
    fn change(&self, change: impl FnOnce(&mut Register)) {
        let mut register = self.register.lock();
        change(&mut register);
        if !register.is_idle() {
            self.told.notify_one();
        }
    }

    /// Waits until Secrets need a look, and takes all of them. May be dropped at any time.
    async fn next(&self) -> HashSet<SecretRef> {
        loop {
            self.wake().await;
            tokio::time::sleep(SETTLE).await;
            let settle = self.shared.config().routes.settle;
            let taken = self.register.lock().take(Instant::now(), settle);
            if !taken.is_empty() {
                return taken;
            }
        }
    }

    /// Waits until Secrets need a look, or what routes have changed has rested.
    async fn wake(&self) {
        let settle = self.shared.config().routes.settle;
        let (is_idle, rests) = {
            let register = self.register.lock();
            (register.is_idle(), register.rests(settle))
        };
        let rested = async {
            match rests {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        if is_idle {
            tokio::select! {
                () = self.told.notified() => {}
                () = rested => {}
            }
        }
    }
}
