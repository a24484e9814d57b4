//! Unused nonces from earlier answers (RFC 8555, section 6.5).
//!
//! Every answer of a CA carries one, so newNonce is needed only for the first request after a pause. A nonce is used
//! once.

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Most nonces kept: more than requests are ever in flight.
const KEPT: usize = 64;
/// Greatest age of a nonce; older ones are probably refused: Let's Encrypt forgets a nonce after some 65,000 newer
/// ones.
const OLDEST: Duration = Duration::from_secs(300);

/// A pool, newest last.
#[derive(Default)]
pub(crate) struct Nonces(Mutex<Vec<(String, Instant)>>);

impl Nonces {
    /// Takes the newest nonce, if it is young enough.
    pub(crate) fn take(&self, now: Instant) -> Option<String> {
        let mut pool = self.pool();
        let (nonce, since) = pool.pop()?;
        if now.duration_since(since) > OLDEST {
            pool.clear();
            return None;
        }
        Some(nonce)
    }

    /// Adds the nonce of an answer, replacing the oldest if full.
    pub(crate) fn put(&self, nonce: String, now: Instant) {
        let mut pool = self.pool();
        if pool.len() == KEPT {
            pool.remove(0);
        }
        pool.push((nonce, now));
    }

    /// After a badNonce the others are doubtful too: the CA may have restarted.
    pub(crate) fn flush(&self) {
        self.pool().clear();
    }

    fn pool(&self) -> MutexGuard<'_, Vec<(String, Instant)>> {
        self.0.lock()
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
