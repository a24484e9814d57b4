//! Follows the objects that declare certificates, as long as the process lives.

use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cert_renew_core::config::Config;
use cert_renew_core::declaration::Kind;
use cert_renew_core::declaration::found::Found;
use cert_renew_core::text::error_chain;
use futures::StreamExt as _;
use futures::future::join_all;
use kube::runtime::watcher::Event;

use super::Declared;
use crate::cluster::declarations;
use crate::cluster::secrets::watch;

/// Time until a watch is tried again that the API server has refused: a right may have been given since.
const AGAIN: Duration = Duration::from_secs(120);

/// Time until a list may be made for declarations that had no room: a user who makes too many cannot have one more
/// often.
const LIST_AGAIN: Duration = Duration::from_secs(300);

/// Where to watch, and for which class.
type Scope = (Vec<String>, String);

/// One watch.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// Its number in the register.
    number: usize,
    kind: Kind,
    /// Where; `None` for all namespaces.
    namespace: Option<&'a str>,
    /// Whether it was told that such watches are refused.
    told: &'a AtomicBool,
}

fn scope(config: &Config) -> Scope {
    (config.watch.namespaces.clone(), config.class.clone())
}

impl Declared {
    /// Follows declarations; a watch is reopened after `timeout`.
    pub async fn follow(&self, timeout: Duration) {
        let mut config = self.shared.config.clone();
        let mut relist = self.shared.health.relist.subscribe();
        let told = Kind::ALL.map(|_| AtomicBool::new(false));
        loop {
            let scope = { scope(&config.borrow_and_update()) };
            let (namespaces, class) = &scope;
            let namespaces = watch::scopes(namespaces);
            let kinds = Kind::ALL.into_iter().zip(&told);
            let all = kinds.flat_map(|of| namespaces.iter().map(move |it| (of, it)));
            let all: Vec<_> = all.collect();
            self.change(|register| {
                let all = all.iter();
                register.open(all.map(|((kind, _), namespace)| (*kind, (*namespace).clone())));
            });
            let watches = { all.iter().enumerate() }.map(|(number, ((kind, told), namespace))| {
                let place = Place {
                    number,
                    kind: *kind,
                    namespace: namespace.as_deref(),
                    told,
                };
                self.watch(place, class, timeout)
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
    async fn watch(&self, place: Place<'_>, class: &str, timeout: Duration) {
        loop {
            tokio::select! {
                () = self.hear(place, class, timeout) => {
                    tokio::time::sleep(AGAIN).await;
                }
                () = self.has_room_again(place.number) => {}
            }
        }
    }

    /// Follows those of one place until the watch is refused.
    async fn hear(&self, place: Place<'_>, class: &str, timeout: Duration) {
        let client = &self.shared.client;
        let mut events = declarations::watch(client, place.kind, place.namespace, timeout);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.on_event(place.number, class, event),
                Err(error) => {
                    if watch::is_refusal(&error) {
                        self.refused(place);
                        break;
                    }
                    tracing::debug!(
                        kind = %place.kind,
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

    fn refused(&self, place: Place<'_>) {
        self.change(|register| register.blind(place.number));
        if place.told.swap(true, Ordering::Relaxed) {
            return;
        }
        let namespace = place.namespace.unwrap_or("(all)");
        match place.kind {
            Kind::ConfigMap => tracing::info!(
                namespace,
                "no ConfigMap declares a certificate: that needs rbac/addons/declarations.yaml"
            ),
            Kind::Ingress => tracing::info!(
                namespace,
                "no Ingress declares a certificate: that needs rbac/addons/routes.yaml"
            ),
        }
    }

    fn on_event(&self, number: usize, class: &str, event: Event<Found>) {
        match event {
            Event::Init => self.change(|register| register.begin(number)),
            Event::InitApply(object) | Event::Apply(object) => {
                self.on_object(number, class, &object);
            }
            Event::Delete(object) => self.on_gone(&object),
            Event::InitDone => self.change(|register| register.listed(number)),
        }
    }

    fn on_object(&self, number: usize, class: &str, object: &Found) {
        let declarations = object.declarations(class);
        let (namespace, source) = (object.namespace(), object.source());
        self.change(|register| register.declared(number, &namespace, &source, &declarations));
    }

    fn on_gone(&self, object: &Found) {
        let (namespace, source) = (object.namespace(), object.source());
        self.change(|register| register.gone(&namespace, &source));
    }
}
