//! Time against size: whether a reader takes more than linear time.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Ratio of the second input's length to the first's.
pub const FACTOR: usize = 4;
/// Largest accepted ratio of the two times: linear is 4, and quadratic 16.
const MOST: f64 = 9.0;
/// Lengths of the first input in bytes, tried in turn; the second one of the last is the maximum of a Secret.
pub const LENGTHS: [usize; 5] = [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18];
/// Shorter times are noise.
const NOTICEABLE: Duration = Duration::from_millis(2);
/// After this time longer inputs are not tried.
const HOPELESS: Duration = Duration::from_secs(1);
/// Number of lengths at which a too large ratio is no accident.
const ENOUGH: u32 = 3;

/// Why a reader is slower than linear for inputs of this shape; `None` if it is not.
#[must_use]
pub fn slower_than_linear(
    shape: impl Fn(usize) -> Vec<u8>,
    read: impl Fn(&[u8]),
) -> Option<String> {
    let (mut slow, mut times) = (None, 0);
    for length in LENGTHS {
        let (short, long) = (shape(length), shape(FACTOR * length));
        let long_took = taken(|| read(&long));
        if long_took < NOTICEABLE {
            continue;
        }
        let short_took = taken(|| read(&short));
        let ratio = long_took.as_secs_f64() / short_took.as_secs_f64().max(1e-6);
        let grown = long.len() as f64 / short.len() as f64;
        if ratio < MOST * grown / FACTOR as f64 {
            return None;
        }
        slow = Some(format!(
            "{} bytes took {short_took:?}, {} bytes {long_took:?}",
            short.len(),
            long.len()
        ));
        times += 1;
        if long_took > HOPELESS || times == ENOUGH {
            break;
        }
    }
    slow
}

/// The same for what cannot be made from bytes: `made` makes it for each length, which stands for a size. Here the largest
/// length decides, as much time for each element hides for long what grows with their square.
#[must_use]
pub fn slower_than_linear_in<T>(made: impl Fn(usize) -> T, read: impl Fn(&T)) -> Option<String> {
    let mut slow = None;
    for length in LENGTHS {
        let (short, long) = (made(length), made(FACTOR * length));
        let measured = || {
            let long_took = taken(|| read(&long));
            let short_took = taken(|| read(&short));
            let ratio = long_took.as_secs_f64() / short_took.as_secs_f64().max(1e-6);
            let is_slow = long_took >= NOTICEABLE && ratio >= MOST;
            (is_slow, long_took, short_took)
        };
        // Once may be an accident.
        let mut all = (0..ENOUGH).map(|_| measured());
        let last = all.find(|(is_slow, ..)| !is_slow);
        let (is_slow, long_took, short_took) = last.unwrap_or_else(measured);
        slow = is_slow
            .then(|| format!("{length} took {short_took:?}, {FACTOR} times as much {long_took:?}"));
        if long_took > HOPELESS {
            break;
        }
    }
    slow
}

/// Processor time of this thread, the shortest of three.
fn taken(work: impl Fn()) -> Duration {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
    };
    let once = || {
        let begun = now();
        work();
        now() - begun
    };
    let first = once();
    if first > HOPELESS {
        return first;
    }
    first.min(once()).min(once())
}
