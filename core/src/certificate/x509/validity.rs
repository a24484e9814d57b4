//! The time for which a certificate is valid (RFC 5280, 4.1.2.5).

use std::ops::RangeInclusive;

use der::asn1::AnyRef;
use der::{Reader, Tag};
use jiff::civil::DateTime;

use super::inside;
use crate::time::UnixTime;

/// `Validity`: two times.
pub(super) fn times(validity: &[u8]) -> Option<(UnixTime, UnixTime)> {
    let mut fields = inside(validity, Tag::Sequence)?;
    let mut next = || fields.decode::<AnyRef<'_>>().ok().and_then(time);
    Some((next()?, next()?))
}

/// `Time` (RFC 5280, 4.1.2.5): a `UTCTime` has two digits for the years 1950 to 2049.
/// Seconds may be missing, as in certificates older than that rule; an offset or a fraction of a second may follow, as
/// X.680, 46 and 47 allow.
fn time(any: AnyRef<'_>) -> Option<UnixTime> {
    let text = str::from_utf8(any.value()).ok()?;
    let (text, offset) = match text.strip_suffix('Z') {
        Some(text) => (text, 0),
        None => {
            let at = text.rfind(['+', '-'])?;
            (&text[..at], offset(&text[at..])?)
        }
    };
    let (text, fraction) = text.split_once(['.', ',']).unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(text) || !digits(fraction) {
        return None;
    }
    let (year, rest) = match any.header().tag() {
        Tag::UtcTime => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i16 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        Tag::GeneralizedTime => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let field =
        |at: RangeInclusive<usize>| rest.get(at).map_or(Some(0), |two| two.parse::<i8>().ok());
    if rest.len() != 8 && rest.len() != 10 {
        return None;
    }
    let date = DateTime::new(
        year,
        field(0..=1)?,
        field(2..=3)?,
        field(4..=5)?,
        field(6..=7)?,
        // A leap second counts as the second before it, as in POSIX time.
        field(8..=9)?.min(59),
        0,
    );
    let epoch = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
    // Civil arithmetic, since a timestamp of jiff ends a day before 9999-12-31T23:59:59Z,
    // the time that RFC 5280, 4.1.2.5 gives certificates without an end.
    Some(UnixTime(
        date.ok()?.duration_since(epoch).as_secs() - offset,
    ))
}

/// Seconds by which a local time is ahead of UTC: a sign, hours and minutes.
fn offset(text: &str) -> Option<i64> {
    let digits = text.get(1..).filter(|digits| digits.len() == 4)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (hours, minutes) = digits.split_at(2);
    let seconds = hours.parse::<i64>().ok()? * 3_600 + minutes.parse::<i64>().ok()? * 60;
    Some(if text.starts_with('-') {
        -seconds
    } else {
        seconds
    })
}
