//! Permission to act: only a fresh look gives one, one effect uses it up, and it does not outlive a wait.
//!
//! ```text
//! last wait ends ──► Look::take asks and judges ──► Permit ──► one write, eviction or reload
//! ```
//! What was true before a wait may have changed after it. So each function with an effect takes a [`Permit`] by value
//! and acts on what the permit contains. This module does not know what is looked at, or what is done.

use std::time::Duration;

use tokio::time::Instant;

/// Longest age of a permit, from the start of its look. Longer than a slow answer of the API server; the guard of the
/// effect, where it has one, refuses what has changed since the look.
const LIFETIME: Duration = Duration::from_secs(10);

/// A look whose answer was yes.
#[derive(Debug)]
pub struct Look {
    began: Instant,
}

/// Permission for one effect on `T`.
#[derive(Debug)]
#[must_use = "a permit that is not used permits nothing"]
pub struct Permit<T> {
    began: Instant,
    subject: T,
}

impl Look {
    /// Looks. Its age counts from before the question is asked.
    ///
    /// # Errors
    /// The look's objection to the effect.
    pub async fn take<T, E>(look: impl Future<Output = Result<T, E>>) -> Result<(Self, T), E> {
        let began = Instant::now();
        let found = look.await?;
        Ok((Self { began }, found))
    }

    /// Whether it began after the last wait, which ended at `waited`, and is not too old.
    #[must_use]
    pub fn is_fresh(&self, waited: Instant) -> bool {
        self.began >= waited && self.began.elapsed() < LIFETIME
    }

    /// Permission for one effect on what these looks were taken at; `None` without a look, or where one is not fresh.
    pub fn permit<'a, T>(
        looks: impl IntoIterator<Item = &'a Self>,
        waited: Instant,
        subject: T,
    ) -> Option<Permit<T>> {
        let mut oldest: Option<Instant> = None;
        for look in looks {
            if !look.is_fresh(waited) {
                return None;
            }
            oldest = Some(oldest.map_or(look.began, |began| began.min(look.began)));
        }
        oldest.map(|began| Permit { began, subject })
    }
}

impl<T> Permit<T> {
    /// Uses it up; `None` where it has become void.
    #[must_use]
    pub fn spend(self) -> Option<T> {
        (self.began.elapsed() < LIFETIME).then_some(self.subject)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    async fn look() -> Look {
        let yes = std::future::ready(Ok::<_, ()>(()));
        Look::take(yes).await.unwrap().0
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_permits_nothing_after_a_wait() {
        let start = Instant::now();
        let before = look().await;
        assert!(Look::permit([&before], start, ()).is_some());
        advance(Duration::from_millis(1)).await;
        let waited = Instant::now();
        assert!(Look::permit([&before], waited, ()).is_none());
        let after = look().await;
        assert!(Look::permit([&after], waited, ()).is_some());
        assert!(
            Look::permit([&after, &before], waited, ()).is_none(),
            "all of them"
        );
        assert!(Look::permit([], waited, ()).is_none(), "nobody has looked");
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_becomes_void() {
        let start = Instant::now();
        let look = look().await;
        let permit = Look::permit([&look], start, "web").unwrap();
        let late = Look::permit([&look], start, "web").unwrap();
        advance(LIFETIME / 2).await;
        assert_eq!(permit.spend(), Some("web"));
        advance(LIFETIME / 2).await;
        assert_eq!(late.spend(), None);
        assert!(Look::permit([&look], start, ()).is_none());
    }

    #[tokio::test]
    async fn a_no_is_no_look() {
        let no = std::future::ready(Err::<(), _>("emptied"));
        assert_eq!(Look::take(no).await.unwrap_err(), "emptied");
    }
}
