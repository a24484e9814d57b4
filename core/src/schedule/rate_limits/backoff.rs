//! Delays after failures, and the spacing of validations that may fail.

use std::time::Duration;

/// CAs allow five failed validations an hour for a name: one in twelve minutes stays below that.
const FAILED_VALIDATION_SPACING: Duration = Duration::from_secs(12 * 60);

/// Delays after the first, second, third … failure; from the config, so that tests and private CAs can scale it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Delay after the first failure.
    pub base: Duration,
    /// Each further failure multiplies the delay by this number; 1 keeps it.
    pub factor: u32,
    /// Longest delay.
    pub max: Duration,
}

impl Default for Backoff {
    /// What Let's Encrypt asks of clients: 1, 10, 100 minutes, then once a day.
    fn default() -> Self {
        Self {
            base: Duration::from_secs(60),
            factor: 10,
            max: Duration::from_secs(86_400),
        }
    }
}

impl Backoff {
    /// The delay after this number of failures in a row; zero after none.
    #[must_use]
    pub fn wait(&self, failures: u32) -> Duration {
        let Some(further) = failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let scale = self.factor.checked_pow(further);
        scale
            .and_then(|scale| self.base.checked_mul(scale))
            .map_or(self.max, |wait| wait.min(self.max))
    }

    /// If the config has scaled back-off down for a private CA, there is no such limit.
    pub(super) fn validation_spacing(&self) -> Duration {
        FAILED_VALIDATION_SPACING.min(self.max)
    }

    /// The span of [`FAILED_VALIDATIONS`](super::FAILED_VALIDATIONS) of one name: an hour, unless scaled down likewise.
    pub(super) fn hour(&self) -> Duration {
        self.validation_spacing() * 5
    }
}
