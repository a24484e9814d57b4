//! Nonces that answers brought and no request has used yet (RFC 8555, section 6.5).
//!
//! Every answer of a CA carries one, so that asking newNonce is needed only for the first request after a pause.
//! A nonce is handed out once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// More than requests are ever in flight; a burst leaves no more than this behind.
const KEPT: usize = 64;
/// Older ones are likelier refused than not: Let's Encrypt forgets a nonce when some 65,000 newer ones are out.
const OLDEST: Duration = Duration::from_secs(300);

/// A pool, newest last.
#[derive(Default)]
pub(crate) struct Nonces(Mutex<Vec<(String, Instant)>>);

impl Nonces {
    /// The freshest nonce, if one is young enough.
    pub(crate) fn take(&self, now: Instant) -> Option<String> {
        let mut pool = self.pool();
        let (nonce, since) = pool.pop()?;
        if now.duration_since(since) > OLDEST {
            pool.clear();
            return None;
        }
        Some(nonce)
    }

    /// Keeps what an answer brought; the oldest gives way.
    pub(crate) fn put(&self, nonce: String, now: Instant) {
        let mut pool = self.pool();
        if pool.len() == KEPT {
            pool.remove(0);
        }
        pool.push((nonce, now));
    }

    /// After a badNonce the others are doubtful too: the CA may have been restarted.
    pub(crate) fn flush(&self) {
        self.pool().clear();
    }

    fn pool(&self) -> MutexGuard<'_, Vec<(String, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nonce_is_handed_out_once_and_only_while_young() {
        let (nonces, start) = (Nonces::default(), Instant::now());
        for n in 0..=KEPT {
            nonces.put(n.to_string(), start + Duration::from_secs(n as u64));
        }
        assert_eq!(nonces.pool().len(), KEPT);
        assert_eq!(nonces.take(start).as_deref(), Some("64"));
        assert_eq!(nonces.take(start).as_deref(), Some("63"));
        assert_eq!(
            nonces.take(start + OLDEST + Duration::from_secs(63)),
            None,
            "62 is too old by now"
        );
        assert_eq!(nonces.take(start), None, "and so were all before it");
        nonces.put("x".to_owned(), start);
        nonces.flush();
        assert_eq!(nonces.take(start), None);
    }
}
