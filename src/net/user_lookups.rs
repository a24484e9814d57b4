//! Lookups of users' hosts by the system's resolver: a few at a time, for all namespaces and for each.
//!
//! The system's resolver holds a thread until it has an answer or gives up, also when nobody waits for that any more, and
//! the owner of a host's DNS may leave its questions unanswered. So the place of a lookup is free when its thread
//! is, and not before, and the next one goes to the namespace that has the fewest. The process has 512 such threads,
//! which the hosts of CAs, new RSA keys and the metrics need too.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::time::UnixTime;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::net::egress;
use crate::process::budget::Budget;

/// Most lookups at the same time, for all namespaces and for one: a silent server holds each for ten seconds or more.
const LOOKUPS: usize = 32;
const LOOKUPS_PER_NAMESPACE: usize = 8;
/// Longest lookup that is waited for. The wait for its place does not count: others may be the cause of that.
const LOOKUP: Duration = Duration::from_secs(10);

/// Asks for the addresses of a host, and blocks its thread.
type Ask = fn(&str) -> io::Result<Vec<IpAddr>>;

/// The lookups of users' hosts.
#[derive(Debug)]
pub struct UserLookups {
    ask: Ask,
    places: Arc<Budget>,
}

/// The lookups of one namespace.
#[derive(Clone, Debug)]
pub struct NamespaceLookups {
    all: Arc<UserLookups>,
    namespace: Arc<str>,
}

impl Default for UserLookups {
    fn default() -> Self {
        Self::by(egress::lookup_and_block)
    }
}

impl UserLookups {
    fn by(ask: Ask) -> Self {
        let places = Arc::new(Budget::new(LOOKUPS, LOOKUPS_PER_NAMESPACE));
        Self { ask, places }
    }

    /// Those of this namespace.
    #[must_use]
    pub fn of(self: &Arc<Self>, namespace: &str) -> NamespaceLookups {
        NamespaceLookups {
            all: Arc::clone(self),
            namespace: namespace.into(),
        }
    }
}

impl NamespaceLookups {
    /// The addresses of a host, as [`egress::lookup`] finds them.
    ///
    /// # Errors
    /// When it has none, or no server answers in time.
    pub async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let UserLookups { ask, places } = &*self.all;
        let place = places.place(&self.namespace, UnixTime::NEVER).await;
        let (ask, host) = (*ask, host.to_owned());
        let found = spawn_blocking(move || {
            let found = ask(&host);
            drop(place);
            found
        });
        timeout(LOOKUP, found).await?.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    static ASKED: AtomicUsize = AtomicUsize::new(0);

    /// A resolver with one host that is known; the server of all others is silent.
    fn ask(host: &str) -> io::Result<Vec<IpAddr>> {
        if host == "shop.example" {
            return Ok(vec![IpAddr::from([10, 0, 0, 7])]);
        }
        ASKED.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_secs(3));
        Err(io::ErrorKind::TimedOut.into())
    }

    #[tokio::test]
    async fn a_namespace_whose_dns_is_silent_takes_few_threads_and_leaves_places_to_others() {
        let lookups = Arc::new(UserLookups::by(ask));
        // Nobody waits for them any more when the next ones are wanted.
        let silent = async |namespace: &str| {
            let of = lookups.of(namespace);
            for _ in 0..2 {
                let all = join_all((0..100).map(|_| of.addresses("silent.example")));
                let all = timeout(Duration::from_millis(100), all).await;
                assert!(all.is_err());
            }
            ASKED.load(Ordering::Relaxed)
        };
        assert_eq!(silent("hostile").await, LOOKUPS_PER_NAMESPACE);
        let shop = lookups.of("shop");
        let found = timeout(Duration::from_secs(1), shop.addresses("shop.example")).await;
        assert_eq!(found.unwrap().unwrap(), [IpAddr::from([10, 0, 0, 7])]);
        for namespace in ["a", "b", "c", "d"] {
            silent(namespace).await;
        }
        assert_eq!(ASKED.load(Ordering::Relaxed), LOOKUPS);
    }
}
