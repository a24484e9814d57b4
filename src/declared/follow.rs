//! Follows the objects that declare certificates, as long as the process lives.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cert_renew_core::config::Config;
use cert_renew_core::declaration::{Declaration, Kind, Source};
use cert_renew_core::text::error_chain;
use futures::StreamExt as _;
use futures::future::join_all;
use kube::runtime::watcher::Event;

use super::Declared;
use crate::cluster::declarations::{self, Metadata};
use crate::cluster::secrets::watch;

/// Time until a watch is tried again that the API server has refused: a right may have been given since.
const AGAIN: Duration = Duration::from_secs(120);

/// Time until a list may be made for declarations that had no room: a user who makes too many cannot have one more
/// often.
const LIST_AGAIN: Duration = Duration::from_secs(300);

/// Where to watch, and for which class.
type Scope = (Vec<String>, String);

fn scope(config: &Config) -> Scope {
    (config.watch.namespaces.clone(), config.class.clone())
}

impl Declared {
    /// Follows declarations; a watch is reopened after `timeout`.
    pub async fn follow(&self, timeout: Duration) {
        let mut config = self.shared.config.clone();
        let mut relist = self.shared.health.relist.subscribe();
        let told = AtomicBool::new(false);
        loop {
            let scope = { scope(&config.borrow_and_update()) };
            let (namespaces, class) = &scope;
            let places = watch::scopes(namespaces);
            self.change(|register| register.open(places.iter().cloned()));
            let watches = { places.iter().enumerate() }.map(|(number, place)| {
                self.watch((number, place.as_deref()), class, timeout, &told)
            });
            let moved = async {
                while self::scope(&config.borrow_and_update()) == scope {
                    if config.changed().await.is_err() {
                        // The process ends.
                        return pending().await;
                    }
                }
            };
            tokio::select! {
                _ = join_all(watches) => {}
                () = moved => {}
                Ok(()) = relist.changed() => {}
            }
        }
    }

    /// Follows those of one place.
    async fn watch(
        &self,
        (number, place): (usize, Option<&str>),
        class: &str,
        timeout: Duration,
        told: &AtomicBool,
    ) {
        loop {
            tokio::select! {
                () = self.hear((number, place), class, timeout, told) => {
                    tokio::time::sleep(AGAIN).await;
                }
                () = self.has_room_again(number) => {}
            }
        }
    }

    /// Follows those of one place until the watch is refused.
    async fn hear(
        &self,
        (number, place): (usize, Option<&str>),
        class: &str,
        timeout: Duration,
        told: &AtomicBool,
    ) {
        let mut events = declarations::watch(&self.shared.client, place, timeout);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.on_event(number, class, event),
                Err(error) => {
                    if watch::is_refusal(&error) {
                        self.refused(number, place, told);
                        break;
                    }
                    tracing::debug!(
                        error = error_chain(&error),
                        "the watch on declarations is interrupted"
                    );
                }
            }
        }
    }

    /// Waits until there may be room for declarations that had none: only another list names them.
    async fn has_room_again(&self, number: usize) {
        loop {
            tokio::time::sleep(LIST_AGAIN).await;
            let is_free = self.register.lock().has_room_again(number);
            if is_free {
                return;
            }
        }
    }

    fn refused(&self, number: usize, place: Option<&str>, told: &AtomicBool) {
        self.change(|register| register.blind(number));
        if !told.swap(true, Ordering::Relaxed) {
            tracing::info!(
                namespace = place.unwrap_or("(all)"),
                "no ConfigMap declares a certificate: that needs rbac/addons/declarations.yaml"
            );
        }
    }

    fn on_event(&self, number: usize, class: &str, event: Event<Metadata>) {
        match event {
            Event::Init => self.change(|register| register.begin(number)),
            Event::InitApply(object) | Event::Apply(object) => {
                self.on_object(number, class, &object);
            }
            Event::Delete(object) => self.on_gone(&object),
            Event::InitDone => self.change(|register| register.listed(number)),
        }
    }

    fn on_object(&self, number: usize, class: &str, object: &Metadata) {
        let namespace = namespace_of(object);
        match Declaration::of_config_map(&object.metadata, class) {
            Some(declaration) => {
                self.change(|register| register.declared(number, &namespace, &declaration));
            }
            None => self.on_gone(object),
        }
    }

    fn on_gone(&self, object: &Metadata) {
        let namespace = namespace_of(object);
        let source = Source {
            kind: Kind::ConfigMap,
            name: object.metadata.name.as_deref().unwrap_or_default().into(),
        };
        self.change(|register| register.gone(&namespace, &source));
    }
}

fn namespace_of(object: &Metadata) -> Arc<str> {
    let namespace = object.metadata.namespace.as_deref();
    namespace.unwrap_or_default().into()
}
