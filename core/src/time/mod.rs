//! Instants: whole seconds of the wall clock, and for the lease the time since boot.
//!
//! X.509 validity has second resolution (RFC 5280, 4.1.2.5), annotations and metrics carry seconds,
//! and a renewal that is a second early or late is neither.
//! Pure code takes `now` as an argument; only outer modules call [`UnixTime::now`] and [`BootTime::now`].

pub mod change_window;
pub mod duration;
#[cfg(any(test, feature = "testing"))]
pub mod simulated;

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Smallest jump, in seconds: less is a clock correction, or a slow loop.
const LEAST_JUMP: u64 = 60;

/// Most by which the clocks of the API servers of one cluster differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(1);

/// Seconds since 1970-01-01T00:00:00Z, negative before; printed and parsed as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub i64);

impl UnixTime {
    /// Later than every certificate: the instant of what never falls due.
    pub const NEVER: Self = Self(i64::MAX);

    /// The present second of the wall clock. Only outer modules call this.
    #[must_use]
    pub fn now() -> Self {
        #[cfg(any(test, feature = "testing"))]
        if let Some(simulated) = simulated::now() {
            return Self(simulated.wall);
        }
        let now = SystemTime::now();
        match now.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => Self(i64::try_from(since.as_secs()).unwrap_or(i64::MAX)),
            Err(before) => Self(-i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX)),
        }
    }

    /// Time from `earlier` to `self`; zero if `earlier` is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Whether this is after `earlier` although another API server may have stamped it: their stamps are cut to whole
    /// seconds, and the clocks of the servers of one cluster may differ by a second.
    #[must_use]
    pub fn is_certainly_after(self, earlier: Self) -> bool {
        self.since(earlier) > CLOCKS_DIFFER
    }

    /// The instant as a jiff timestamp, clamped to the years that jiff knows (-9999 to 9999).
    #[must_use]
    pub fn timestamp(self) -> Timestamp {
        let clamped = self.0.clamp(
            Timestamp::MIN.as_second(),
            Timestamp::MAX.as_second().saturating_sub(1),
        );
        Timestamp::from_second(clamped).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// Time since the machine booted, including suspension (CLOCK_BOOTTIME): for deadlines that pass even while the process
/// or the machine is stopped, and that no change of the wall clock moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub Duration);

impl BootTime {
    /// Later than every deadline.
    pub const NEVER: Self = Self(Duration::MAX);

    /// The present instant. Only outer modules call this.
    #[must_use]
    #[cfg(target_os = "linux")]
    pub fn now() -> Self {
        #[cfg(any(test, feature = "testing"))]
        if let Some(simulated) = simulated::now() {
            return Self(simulated.boot);
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or_default();
        Self(Duration::new(seconds, nanoseconds))
    }

    /// The present instant, counted from the first call: the operator runs on Linux, and no command waits for a deadline
    /// across a suspension.
    #[must_use]
    #[cfg(not(target_os = "linux"))]
    pub fn now() -> Self {
        static FIRST: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        Self(FIRST.get_or_init(std::time::Instant::now).elapsed())
    }

    /// From `earlier` to `self`; zero if `earlier` is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Seconds by which the wall clock has jumped between two instants, forward or back, if more than a minute: compared
/// with the time since boot, so a suspended machine makes no jump.
#[must_use]
pub fn jump(from: (UnixTime, BootTime), to: (UnixTime, BootTime)) -> Option<i64> {
    let passed = i64::try_from(to.1.since(from.1).as_secs()).unwrap_or(i64::MAX);
    let jump = to.0.0.saturating_sub(from.0.0).saturating_sub(passed);
    (jump.unsigned_abs() > LEAST_JUMP).then_some(jump)
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NEVER {
            return f.write_str("never");
        }
        write!(f, "{}", self.timestamp())
    }
}

impl Serialize for UnixTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnixTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for UnixTime {
    type Err = jiff::Error;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse::<Timestamp>().map(|at| Self(at.as_second()))
    }
}

impl Add<Duration> for UnixTime {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        let seconds = i64::try_from(rhs.as_secs()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(seconds))
    }
}

impl Sub<Duration> for UnixTime {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        let seconds = i64::try_from(rhs.as_secs()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_stamps_the_later_one_is_certain_by_two_seconds() {
        let after = |seconds: i64| UnixTime(1_000 + seconds).is_certainly_after(UnixTime(1_000));
        assert_eq!([-5, 0, 1, 2].map(after), [false, false, false, true]);
    }

    #[test]
    fn a_clock_that_is_set_jumps_and_a_machine_that_was_suspended_does_not() {
        let at = |wall, boot| (UnixTime(wall), BootTime(Duration::from_secs(boot)));
        for (to, expected) in [
            (at(1_030, 30), None),
            // Suspended for an hour, or set right by a minute.
            (at(4_600, 3_600), None),
            (at(1_090, 30), None),
            (at(1_091, 30), Some(61)),
            (at(1_000 + 86_400, 1), Some(86_399)),
            (at(400, 30), Some(-630)),
            (at(i64::MIN, 0), Some(i64::MIN)),
        ] {
            assert_eq!(jump(at(1_000, 0), to), expected, "{to:?}");
        }
    }

    #[test]
    fn prints_and_parses_rfc3339() {
        let at = UnixTime(1_700_000_000);
        assert_eq!(at.to_string(), "2023-11-14T22:13:20Z");
        assert_eq!("2023-11-14T22:13:20Z".parse::<UnixTime>().unwrap(), at);
        assert_eq!(UnixTime::NEVER.to_string(), "never");
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(UnixTime::NEVER + Duration::from_secs(5), UnixTime::NEVER);
        assert_eq!(UnixTime(5).since(UnixTime(9)), Duration::ZERO);
        assert_eq!(UnixTime(9).since(UnixTime(5)), Duration::from_secs(4));
    }
}
