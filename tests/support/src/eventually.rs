//! Waits for something to become true, and checks that it stays so.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::time::{sleep, timeout};

use crate::process;

/// Pause between two polls, short enough that a test measures the operator rather than the polling.
const PAUSE: Duration = Duration::from_millis(50);

/// Polls `check` until it succeeds and returns what it found. `check` fails with what is still missing.
///
/// # Errors
/// At the deadline: with `what`, the last error of `check`, and what else the bench knows (programs that have ended or
/// hang, the end of the logs of this test's operators).
pub async fn eventually<T, C>(deadline: Duration, what: &str, mut check: C) -> Result<T>
where
    C: AsyncFnMut() -> Result<T>,
{
    let started = Instant::now();
    let mut last = None;
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        match timeout(left, check()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => last = Some(error),
            Err(_) => {}
        }
        // The timeout never cuts off a check that answers at once.
        if started.elapsed() >= deadline {
            let last = last.map_or_else(|| "no answer".to_owned(), |error| format!("{error:#}"));
            bail!(
                "not within {deadline:?}: {what}\n  at last: {last}{}",
                process::diagnosis()
            );
        }
        sleep(PAUSE.min(left)).await;
    }
}

/// Polls `check` for the whole of `period`; it must succeed every time.
///
/// # Errors
/// As soon as `check` fails: with `what` and its error.
pub async fn throughout<C>(period: Duration, what: &str, mut check: C) -> Result<()>
where
    C: AsyncFnMut() -> Result<()>,
{
    let started = Instant::now();
    while started.elapsed() < period {
        if let Err(error) = check().await {
            bail!(
                "no longer after {:?}: {what}\n  {error:#}{}",
                started.elapsed(),
                process::diagnosis()
            );
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The deadline also holds for a check that answers at once each time.
    #[tokio::test]
    async fn what_never_comes_is_given_up_at_the_deadline() {
        let waits = eventually(Duration::from_millis(100), "the end of days", async || {
            bail!("not today");
            #[expect(unreachable_code, reason = "it gives the closure its type")]
            Ok(())
        });
        let given_up = timeout(Duration::from_secs(30), waits).await;
        let error = given_up.expect("it keeps to its deadline").unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("the end of days") && text.contains("not today"),
            "{text}"
        );
    }
}
