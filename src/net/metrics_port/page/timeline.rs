//! Where certificates lie on the time line. Pure.
//!
//! No attribute contains a style: a bar takes its ends from classes, which the page's single style sheet defines for the
//! positions in use. So the content security policy can name the style by its hash.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::Verdict;

/// Positions on the time line: finer than a pixel on most screens.
const STEPS: i64 = 400;
const DAY: i64 = 86_400;
/// Least and greatest span that the time line shows on either side of now, in seconds.
const SPAN: (i64, i64) = (DAY, 400 * DAY);

/// The span of the time line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scale {
    from: i64,
    to: i64,
}

impl Scale {
    /// Fits nine of ten certificates, so that a root of twenty years does not flatten all others.
    pub(super) fn of(now: UnixTime, rows: &[Verdict]) -> Self {
        let reach = |mut seconds: Vec<i64>| {
            seconds.sort_unstable();
            let most = seconds.get(seconds.len() * 9 / 10).copied();
            most.unwrap_or(90 * DAY).clamp(SPAN.0, SPAN.1)
        };
        let from = |row: &Verdict| Some(now.0.saturating_sub(row.not_before?.0));
        let to = |row: &Verdict| Some(row.not_after?.0.saturating_sub(now.0));
        Self {
            from: now.0 - reach(rows.iter().filter_map(from).collect()),
            to: now.0 + reach(rows.iter().filter_map(to).collect()),
        }
    }

    /// Its first and its last instant.
    pub(super) fn ends(self) -> [UnixTime; 2] {
        [UnixTime(self.from), UnixTime(self.to)]
    }

    fn place(self, at: UnixTime) -> i64 {
        let within = at.0.clamp(self.from, self.to) - self.from;
        within * STEPS / (self.to - self.from)
    }

    /// The style that puts the line for `now` where it belongs.
    pub(super) fn style(self, now: UnixTime) -> String {
        let share = (now.0 - self.from) * 10_000 / (self.to - self.from);
        format!(":root{{--now:.{share:04}}}")
    }
}

/// The positions in use, by property: the beginning of a bar, its renewal, its end.
#[derive(Default)]
pub(super) struct Places([BTreeSet<i64>; 3]);

const PROPERTIES: [char; 3] = ['a', 'b', 'c'];

impl Places {
    /// The style of the positions in use.
    pub(super) fn style(&self) -> String {
        let mut out = String::new();
        for (property, places) in PROPERTIES.iter().zip(&self.0) {
            for place in places {
                let _ = write!(out, ".{property}{place}{{--{property}:{place}}}");
            }
        }
        out
    }

    /// The classes of the cell with a certificate's bar.
    pub(super) fn bar(&mut self, scale: Scale, row: &Verdict) -> String {
        let mut classes = "t".to_owned();
        let (Some(from), Some(to)) = (row.not_before, row.not_after) else {
            return classes;
        };
        let renews = row.renews.unwrap_or(to).clamp(from, to.max(from));
        for ((property, places), at) in PROPERTIES.iter().zip(&mut self.0).zip([from, renews, to]) {
            let place = scale.place(at);
            places.insert(place);
            let _ = write!(classes, " {property}{place}");
        }
        classes
    }
}

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::entries;

    use super::super::rows::copy;
    use super::*;

    #[test]
    fn a_bar_lies_where_its_instants_are() {
        let scale = Scale { from: 0, to: 400 };
        let row = copy(entries::NOW, &entries::index(), &|_| 0).remove(0);
        let row = Verdict {
            not_before: Some(UnixTime(-5)),
            renews: Some(UnixTime(120)),
            not_after: Some(UnixTime(900)),
            ..row
        };
        let mut places = Places::default();
        assert_eq!(places.bar(scale, &row), "t a0 b120 c400");
        assert_eq!(places.style(), ".a0{--a:0}.b120{--b:120}.c400{--c:400}");
        let odd = Verdict {
            not_before: Some(UnixTime(i64::MIN)),
            not_after: Some(UnixTime::NEVER),
            renews: Some(UnixTime(0)),
            ..row
        };
        let scale = Scale::of(entries::NOW, &[odd]);
        assert_eq!(scale.to - scale.from, 2 * SPAN.1);
    }
}
