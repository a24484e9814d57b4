//! Change windows: the hours in which a Secret and its workloads may change.
//!
//! Written `Mon-Fri 02:00-04:00 Europe/Berlin`, several joined by `;`.
//! A window is open whenever the wall clock of its zone shows a time inside it. Hence an hour that daylight saving
//! skips is not in the window, and one that it repeats is in it both times.
//! Pure: the zones come from the database inside the binary, `now` from the caller.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan};
use thiserror::Error;

use crate::text::shown;
use crate::time::UnixTime;

/// Most windows of one value, so that a hostile annotation costs little.
pub const MAX_WINDOWS: usize = 32;

/// Minutes of a day; also the value of `24:00`.
const DAY: u16 = 24 * 60;

/// Days in which the next opening or closing is searched. A week contains every window once, a second week covers the
/// Sunday on which daylight saving skips the whole window, the rest is reserve.
const HORIZON_DAYS: i64 = 28;

const DAY_NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const EVERY_DAY: u8 = 0b0111_1111;

/// One or more windows in which changes are allowed; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeWindow(Vec<Window>);

/// The same hours on some days of the week, in one zone.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    /// Bit 0 is Monday: the days on which it opens.
    days: u8,
    /// Minutes after midnight, below [`DAY`].
    start: u16,
    /// Minutes after midnight, up to [`DAY`]; below `start` it means the next day.
    end: u16,
    zone: TimeZone,
}

/// Why a text is not a [`ChangeWindow`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotAWindow {
    /// The window lacks a part.
    #[error(
        "expected [days] HH:MM-HH:MM ZONE, such as Mon-Fri 02:00-04:00 Europe/Berlin, found {0}"
    )]
    Form(String),
    /// A day of the week is misspelt.
    #[error(
        "expected a day Mon, Tue, Wed, Thu, Fri, Sat or Sun, or a range such as Mon-Fri, found {0}"
    )]
    Day(String),
    /// The hours are not `HH:MM-HH:MM`.
    #[error("expected hours such as 02:00-04:00, found {0}")]
    Hours(String),
    /// Start and end are equal, which could mean nothing or all day.
    #[error("expected hours that differ (00:00-24:00 is the whole day), found {0}")]
    NoLength(String),
    /// No such zone in the time zone database.
    #[error("expected a time zone such as UTC or Europe/Berlin, found {0}")]
    Zone(String),
    /// More than [`MAX_WINDOWS`].
    #[error("expected at most {MAX_WINDOWS} windows")]
    TooMany,
}

impl ChangeWindow {
    /// Whether changes are allowed at `now`.
    #[must_use]
    pub fn contains(&self, now: UnixTime) -> bool {
        self.0.iter().any(|window| window.contains(now.timestamp()))
    }

    /// The first instant from `now` on at which changes are allowed: `now` itself while open, [`UnixTime::NEVER`] if
    /// time itself ends before.
    #[must_use]
    pub fn next_open(&self, now: UnixTime) -> UnixTime {
        self.first(now, true)
    }

    /// When the window that is open at `now`, or else the next one, closes; adjacent windows count as one.
    /// [`UnixTime::NEVER`] if they leave no gap.
    #[must_use]
    pub fn closes(&self, now: UnixTime) -> UnixTime {
        self.first(self.next_open(now), false)
    }

    /// The first instant from `now` on at which [`Self::contains`] is `open`. It changes only at the start or end of a
    /// window or of the zone's offset, so only those are tried.
    fn first(&self, now: UnixTime, open: bool) -> UnixTime {
        if self.contains(now) == open {
            return now;
        }
        let edges: BTreeSet<Timestamp> = self
            .0
            .iter()
            .flat_map(|window| window.edges(now.timestamp()))
            .collect();
        edges
            .into_iter()
            .map(|edge| UnixTime(edge.as_second()))
            .find(|edge| *edge > now && self.contains(*edge) == open)
            .unwrap_or(UnixTime::NEVER)
    }
}

impl Window {
    fn opens_on(&self, date: Date) -> bool {
        self.days & (1 << date.weekday().to_monday_zero_offset()) != 0
    }

    fn contains(&self, now: Timestamp) -> bool {
        let local = self.zone.to_datetime(now);
        let minute = u16::try_from(local.hour()).unwrap_or(0) * 60
            + u16::try_from(local.minute()).unwrap_or(0);
        let today = self.opens_on(local.date()) && minute >= self.start;
        if self.start < self.end {
            return today && minute < self.end;
        }
        let yesterday = local
            .date()
            .yesterday()
            .is_ok_and(|date| self.opens_on(date));
        today || (yesterday && minute < self.end)
    }

    /// A superset of the instants within the horizon at which [`Self::contains`] may change.
    fn edges(&self, now: Timestamp) -> impl Iterator<Item = Timestamp> {
        let today = self.zone.to_datetime(now).date();
        let end = now
            .checked_add((HORIZON_DAYS * 24).hours())
            .unwrap_or(Timestamp::MAX);
        let wall = (-1..=HORIZON_DAYS)
            .filter_map(move |day| today.checked_add(day.days()).ok())
            .flat_map(|date| [at(date, self.start), at(date, self.end)])
            .flatten()
            .flat_map(|wall| self.instants(wall));
        let shifts = self.zone.following(now).map(|shift| shift.timestamp());
        wall.chain(shifts.take_while(move |shift| *shift <= end))
    }

    /// When a clock in this zone shows `wall`: once, twice if the hour is repeated, never if it is skipped (the edge is
    /// then the shift itself).
    fn instants(&self, wall: DateTime) -> impl Iterator<Item = Timestamp> {
        let [first, second] = match self.zone.to_ambiguous_timestamp(wall).offset() {
            AmbiguousOffset::Unambiguous { offset } => [Some(offset), None],
            AmbiguousOffset::Fold { before, after } => [Some(before), Some(after)],
            AmbiguousOffset::Gap { .. } => [None, None],
        };
        [first, second]
            .into_iter()
            .flatten()
            .filter_map(move |offset| offset.to_timestamp(wall).ok())
    }
}

/// The wall clock's `minute` of `date`; minute [`DAY`] is the next midnight.
fn at(date: Date, minute: u16) -> Option<DateTime> {
    let date = if minute == DAY {
        date.tomorrow().ok()?
    } else {
        date
    };
    let (hour, minute) = (minute % DAY / 60, minute % 60);
    let time = Time::new(i8::try_from(hour).ok()?, i8::try_from(minute).ok()?, 0, 0).ok()?;
    Some(date.to_datetime(time))
}

impl FromStr for ChangeWindow {
    type Err = NotAWindow;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = s
            .split(';')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .collect();
        match parts.len() {
            0 => Err(NotAWindow::Form(shown(s))),
            1..=MAX_WINDOWS => parts
                .into_iter()
                .map(str::parse)
                .collect::<Result<_, _>>()
                .map(Self),
            _ => Err(NotAWindow::TooMany),
        }
    }
}

impl FromStr for Window {
    type Err = NotAWindow;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> = s.split_whitespace().collect();
        let [days @ .., hours, zone] = words.as_slice() else {
            return Err(NotAWindow::Form(shown(s)));
        };
        // If the zone is missing, the hours take its place: report the missing zone rather than that 02:00-04:00 is
        // none.
        if parse_hours(zone).is_ok() {
            return Err(NotAWindow::Form(shown(s)));
        }
        let days = if days.is_empty() {
            EVERY_DAY
        } else {
            parse_days(&days.concat())?
        };
        let (start, end) = parse_hours(hours)?;
        let zone = TimeZone::get(zone)
            .ok()
            .filter(|found| !found.is_unknown())
            .ok_or_else(|| NotAWindow::Zone(shown(zone)))?;
        Ok(Self {
            days,
            start,
            end,
            zone,
        })
    }
}

fn parse_days(text: &str) -> Result<u8, NotAWindow> {
    let fault = || NotAWindow::Day(shown(text));
    let day = |name: &str| {
        DAY_NAMES
            .iter()
            .position(|day| day.eq_ignore_ascii_case(name))
            .ok_or_else(fault)
    };
    let mut days = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        let length = (last + 7 - first) % 7;
        days |= (first..=first + length).fold(0, |days, day| days | 1 << (day % 7));
    }
    Ok(days)
}

fn parse_hours(text: &str) -> Result<(u16, u16), NotAWindow> {
    let (start, end) = text
        .split_once('-')
        .and_then(|(start, end)| Some((minutes(start)?, minutes(end)?)))
        .filter(|(start, _)| *start < DAY)
        .ok_or_else(|| NotAWindow::Hours(shown(text)))?;
    if start == end {
        return Err(NotAWindow::NoLength(shown(text)));
    }
    Ok((start, end))
}

/// Minutes after midnight of `HH:MM`, `24:00` included.
fn minutes(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |digits: &str, most: usize| {
        let plain = (1..=2).contains(&digits.len()) && digits.len() >= most;
        digits
            .parse::<u16>()
            .ok()
            .filter(|_| plain && digits.bytes().all(|b| b.is_ascii_digit()))
    };
    let (hour, minute) = (number(hour, 1)?, number(minute, 2)?);
    let total = hour * 60 + minute;
    (minute < 60 && total <= DAY).then_some(total)
}

impl fmt::Display for ChangeWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, window) in self.0.iter().enumerate() {
            write!(f, "{}{window}", if i > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != EVERY_DAY {
            let on = |day: usize| self.days & (1 << (day % 7)) != 0;
            let mut separator = "";
            for first in (0..7).filter(|day| on(*day) && !on(*day + 6)) {
                let length = (1..7).take_while(|next| on(first + next)).count();
                write!(f, "{separator}{}", DAY_NAMES[first])?;
                if length > 0 {
                    let dash = if length > 1 { '-' } else { ',' };
                    write!(f, "{dash}{}", DAY_NAMES[(first + length) % 7])?;
                }
                separator = ",";
            }
            f.write_str(" ")?;
        }
        let (start, end) = (self.start, self.end);
        let zone = self.zone.iana_name().unwrap_or("UTC");
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02} {zone}",
            start / 60,
            start % 60,
            end / 60,
            end % 60
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(text: &str) -> ChangeWindow {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn time(text: &str) -> UnixTime {
        text.parse().unwrap()
    }

    #[test]
    fn reads_and_prints() {
        for (text, printed) in [
            (
                "Mon-Fri 02:00-04:00 Europe/Berlin",
                "Mon-Fri 02:00-04:00 Europe/Berlin",
            ),
            (
                " mon , WED 2:00-4:00  europe/berlin ;",
                "Mon,Wed 02:00-04:00 Europe/Berlin",
            ),
            ("22:00-06:00 UTC", "22:00-06:00 UTC"),
            (
                "Fri-Mon 00:00-24:00 UTC;Tue 01:30-02:00 Asia/Tokyo",
                "Fri-Mon 00:00-24:00 UTC; Tue 01:30-02:00 Asia/Tokyo",
            ),
            ("Sat,Sun 00:00-24:00 UTC", "Sat,Sun 00:00-24:00 UTC"),
            (
                "Mon,Tue,Wed,Fri 00:00-01:00 UTC",
                "Mon-Wed,Fri 00:00-01:00 UTC",
            ),
            ("Sun,Mon 00:00-01:00 UTC", "Sun,Mon 00:00-01:00 UTC"),
            ("Mon-Sun 00:00-01:00 UTC", "00:00-01:00 UTC"),
        ] {
            assert_eq!(window(text).to_string(), printed, "{text}");
            assert_eq!(window(printed), window(text), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let many = ["01:00-02:00 UTC"; MAX_WINDOWS + 1].join(";");
        for (text, message) in [
            ("", "expected [days] HH:MM-HH:MM ZONE"),
            ("always", "expected [days] HH:MM-HH:MM ZONE"),
            ("Mon 02:00-04:00", "expected [days] HH:MM-HH:MM ZONE"),
            (
                "Mo-Fr 02:00-04:00 UTC",
                "or a range such as Mon-Fri, found \"Mo-Fr\"",
            ),
            ("Mon- 02:00-04:00 UTC", "found \"Mon-\""),
            ("Mon,,Tue 02:00-04:00 UTC", "found \"Mon,,Tue\""),
            (
                "02:00-25:00 UTC",
                "such as 02:00-04:00, found \"02:00-25:00\"",
            ),
            ("02:00-24:01 UTC", "found \"02:00-24:01\""),
            ("24:00-02:00 UTC", "found \"24:00-02:00\""),
            ("2-4 UTC", "found \"2-4\""),
            ("02:0-04:00 UTC", "found \"02:0-04:00\""),
            ("+2:00-04:00 UTC", "found \"+2:00-04:00\""),
            ("02:00-02:00 UTC", "00:00-24:00 is the whole day"),
            ("02:00-04:00 Mars/Olympus", "found \"Mars/Olympus\""),
            ("02:00-04:00 \u{7}", "found \"\\u{7}\""),
            (many.as_str(), "at most 32 windows"),
        ] {
            let error = text.parse::<ChangeWindow>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    /// Windows, now, next opening, its end; 2026-11-23 is a Monday.
    const OPENINGS: &str = "
        Mon-Fri 02:00-04:00 UTC          | 2026-11-23T01:59:59Z | 2026-11-23T02:00:00Z | 2026-11-23T04:00:00Z
        Mon-Fri 02:00-04:00 UTC          | 2026-11-23T03:00:00Z | 2026-11-23T03:00:00Z | 2026-11-23T04:00:00Z
        # The end is outside.
        Mon-Fri 02:00-04:00 UTC          | 2026-11-23T04:00:00Z | 2026-11-24T02:00:00Z | 2026-11-24T04:00:00Z
        Mon-Fri 02:00-04:00 UTC          | 2026-11-27T05:00:00Z | 2026-11-30T02:00:00Z | 2026-11-30T04:00:00Z
        # Over midnight: the day is the one on which it opens.
        Fri 22:00-06:00 UTC              | 2026-11-28T05:59:59Z | 2026-11-28T05:59:59Z | 2026-11-28T06:00:00Z
        Fri 22:00-06:00 UTC              | 2026-11-27T05:00:00Z | 2026-11-27T22:00:00Z | 2026-11-28T06:00:00Z
        # Over midnight and over the week.
        Sun 23:00-01:00 UTC              | 2026-11-30T00:30:00Z | 2026-11-30T00:30:00Z | 2026-11-30T01:00:00Z
        Sat-Mon 00:00-24:00 UTC          | 2026-11-25T00:00:00Z | 2026-11-28T00:00:00Z | 2026-12-01T00:00:00Z
        # Windows that touch are one.
        Mon 02:00-03:00 UTC; Mon 03:00-04:00 UTC | 2026-11-23T02:30:00Z | 2026-11-23T02:30:00Z | 2026-11-23T04:00:00Z
        00:00-24:00 UTC                  | 2026-11-23T02:30:00Z | 2026-11-23T02:30:00Z | never
        # A zone without daylight saving, ahead of UTC by a date.
        Mon 02:00-04:00 Asia/Tokyo       | 2026-11-22T00:00:00Z | 2026-11-22T17:00:00Z | 2026-11-22T19:00:00Z
        # Berlin skips 02:00-03:00 on 2026-03-29: an hour less, and no window wholly inside it.
        Sun 02:00-04:00 Europe/Berlin    | 2026-03-28T12:00:00Z | 2026-03-29T01:00:00Z | 2026-03-29T02:00:00Z
        Sun 01:00-02:30 Europe/Berlin    | 2026-03-28T12:00:00Z | 2026-03-29T00:00:00Z | 2026-03-29T01:00:00Z
        Sun 02:00-03:00 Europe/Berlin    | 2026-03-28T12:00:00Z | 2026-04-05T00:00:00Z | 2026-04-05T01:00:00Z
        02:15-02:45 Europe/Berlin        | 2026-03-29T00:30:00Z | 2026-03-30T00:15:00Z | 2026-03-30T00:45:00Z
        # Berlin repeats 02:00-03:00 on 2026-10-25: an hour more, or open twice.
        Sun 02:00-04:00 Europe/Berlin    | 2026-10-24T12:00:00Z | 2026-10-25T00:00:00Z | 2026-10-25T03:00:00Z
        Sun 02:15-02:45 Europe/Berlin    | 2026-10-24T12:00:00Z | 2026-10-25T00:15:00Z | 2026-10-25T00:45:00Z
        Sun 02:15-02:45 Europe/Berlin    | 2026-10-25T00:45:00Z | 2026-10-25T01:15:00Z | 2026-10-25T01:45:00Z
        Sun 01:00-02:30 Europe/Berlin    | 2026-10-25T00:30:00Z | 2026-10-25T01:00:00Z | 2026-10-25T01:30:00Z
        # The other hemisphere: Sydney goes forward on 2026-10-04 and back on 2026-04-05.
        Sun 02:00-04:00 Australia/Sydney | 2026-10-03T12:00:00Z | 2026-10-03T16:00:00Z | 2026-10-03T17:00:00Z
        Sun 02:00-04:00 Australia/Sydney | 2026-04-04T12:00:00Z | 2026-04-04T15:00:00Z | 2026-04-04T18:00:00Z
    ";

    #[test]
    fn opens_and_closes() {
        let rows = OPENINGS
            .lines()
            .map(str::trim)
            .filter(|row| !row.is_empty() && !row.starts_with('#'));
        for row in rows {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [text, now, opens, closes] = cells[..] else {
                panic!("{row}")
            };
            let found = window(text);
            assert_eq!(
                found.next_open(time(now)).to_string(),
                opens,
                "opening: {row}"
            );
            assert_eq!(
                found.closes(time(now)).to_string(),
                closes,
                "closing: {row}"
            );
            assert_eq!(found.contains(time(now)), now == opens, "open now: {row}");
        }
    }

    #[test]
    fn edges_agree_with_every_minute_of_a_shift_night() {
        for text in [
            "01:10-02:50 Europe/Berlin",
            "23:30-02:30 Europe/Berlin",
            "02:00-03:00 Europe/Berlin",
        ] {
            let found = window(text);
            for start in ["2026-03-28T20:00:00Z", "2026-10-24T20:00:00Z"] {
                let minutes: Vec<UnixTime> = (0..12 * 60)
                    .map(|minute| UnixTime(time(start).0 + minute * 60))
                    .collect();
                for (i, now) in minutes.iter().enumerate() {
                    let Some(open) = minutes[i..].iter().find(|at| found.contains(**at)) else {
                        break;
                    };
                    assert_eq!(found.next_open(*now), *open, "{text} at {now}");
                }
            }
        }
    }

    #[test]
    fn the_ends_of_time_do_not_panic() {
        for now in [UnixTime::NEVER, UnixTime(i64::MIN), UnixTime(0)] {
            let found = window("Sat 22:00-21:00 Pacific/Apia; Mon 00:00-24:00 America/St_Johns");
            let _ = found.contains(now);
            assert!(found.next_open(now) >= now);
            assert!(found.closes(now) >= now);
        }
    }
}
