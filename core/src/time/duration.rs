//! Durations as annotations and the config file write them: `30d`, `12h`, `1h30m`, `10s`.

use std::time::Duration;

use thiserror::Error;

use super::UnixTime;

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected a duration such as 30d, 12h, 90m, 10s or 1h30m")]
pub struct NotADuration;

/// Longest accepted duration: a hundred years, so that sums with it never overflow.
pub const MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Parses one or more `<number><unit>` with unit `d`, `h`, `m` or `s`, in any order of units.
///
/// # Errors
/// When the text is empty, has another form, or exceeds [`MAX`].
pub fn parse(text: &str) -> Result<Duration, NotADuration> {
    let mut rest = text.trim();
    let mut seconds: u64 = 0;
    if rest.is_empty() {
        return Err(NotADuration);
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| NotADuration)?;
        let unit = match rest.as_bytes().get(digits) {
            Some(b'd') => 86_400,
            Some(b'h') => 3_600,
            Some(b'm') => 60,
            Some(b's') => 1,
            _ => return Err(NotADuration),
        };
        seconds = number
            .checked_mul(unit)
            .and_then(|add| seconds.checked_add(add))
            .filter(|sum| *sum <= MAX.as_secs())
            .ok_or(NotADuration)?;
        rest = &rest[digits + 1..];
    }
    Ok(Duration::from_secs(seconds))
}

/// From this distance on, an instant is told in years.
const FAR: u64 = 3;
/// Days of a year, for distances of years.
const YEAR: u64 = 365;

/// How far away an instant is, for people: `in 29d 23h`, `in 12 years`, `5s ago`.
#[must_use]
pub fn relative(now: UnixTime, at: UnixTime) -> String {
    let distance = |distance: Duration| match distance.as_secs() / 86_400 / YEAR {
        years @ FAR.. => format!("{years} years"),
        _ => human(distance),
    };
    if at < now {
        format!("{} ago", distance(now.since(at)))
    } else {
        format!("in {}", distance(at.since(now)))
    }
}

/// The two biggest units of a duration, for people: `29d 23h`, `12m 5s`, `0s`.
#[must_use]
pub fn human(duration: Duration) -> String {
    let total = duration.as_secs();
    let units = [
        (total / 86_400, "d"),
        (total / 3_600 % 24, "h"),
        (total / 60 % 60, "m"),
        (total % 60, "s"),
    ];
    let first = units.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let shown: Vec<String> = units[first..]
        .iter()
        .take(2)
        .filter(|(count, unit)| *count > 0 || (*unit == "s" && first == 3))
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, seconds) in [
            ("30d", 2_592_000),
            ("12h", 43_200),
            ("1h30m", 5_400),
            (" 10s ", 10),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in [
            "",
            "5",
            "d",
            "1w",
            "-1d",
            "1.5h",
            "99999999999999999999d",
            "40000d",
            "1d 2h",
        ] {
            assert_eq!(parse(bad), Err(NotADuration), "{bad}");
        }
    }

    #[test]
    fn what_is_far_away_is_told_in_years() {
        let now = UnixTime(1_800_000_000);
        for (days, text) in [
            (0, "in 0s"),
            (29, "in 29d"),
            (3 * 365 - 1, "in 1094d"),
            (3 * 365, "in 3 years"),
            (755_718, "in 2070 years"),
            (-1, "1d ago"),
            (-20_000, "54 years ago"),
        ] {
            assert_eq!(relative(now, UnixTime(now.0 + days * 86_400)), text);
        }
    }

    #[test]
    fn prints_the_two_biggest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (5, "5s"),
            (65, "1m 5s"),
            (3_600, "1h"),
            (2_591_999, "29d 23h"),
        ] {
            assert_eq!(human(Duration::from_secs(seconds)), text);
        }
    }
}
