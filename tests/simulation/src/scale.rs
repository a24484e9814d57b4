//! A million Secrets for a year, on paper: the core's own rule says when each is due, and how tries that fail are spaced. A
//! renewal is so many requests and takes so long. No operator runs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Write as _;
use std::ops::Range;

use anyhow::{Context as _, Result};
use cert_renew_core::certificate::{self, Leaf};
use cert_renew_core::schedule::due::{Inputs, due};
use cert_renew_core::schedule::rate_limits::Backoff;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::settings::{NamespaceDefaults, Settings};
use cert_renew_core::text::hash::hash;
use cert_renew_core::time::UnixTime;

use crate::authority::Authority;

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;
/// Hours of the year.
const HOURS: usize = 8_760;
/// How long a certificate lasts, and how long before it is issued it begins.
const LIFETIME: i64 = 90 * DAY;
const BACKDATED: i64 = HOUR;
/// Seconds that a renewal takes, and how many may be under way (`renewals.concurrency`).
const TAKES: i64 = 10;
const PLACES: usize = 64;
/// The certificates there are in the beginning were issued evenly over so long, so that none is overdue.
const SPREAD: i64 = 60 * DAY - 12 * HOUR;
/// When no CA can be had.
pub const OUTAGE: Range<i64> = 200 * DAY..201 * DAY;

/// What a year is like.
#[derive(Debug)]
pub struct Year {
    /// Renewals by hour.
    pub renewed: Vec<u32>,
    /// Tries that failed, by hour.
    pub failed: Vec<u32>,
    /// The least time that a certificate had left when it was replaced, in seconds.
    pub least: i64,
}

/// A certificate of the usual lifetime, and what its Secret asks for.
fn usual() -> Result<(Leaf, Settings)> {
    let name = "tls.shop.example.com";
    let mut authority = Authority::new(1);
    let (number, _) = authority.give(&[name.to_owned()], 0, LIFETIME);
    let chain = authority.issued[number].chain.as_bytes();
    let leaf = certificate::leaf(chain).ok().context("it was just made")?;
    let annotations = [(keys::ISSUER, "ca"), (keys::NAMES, name)];
    let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let annotations = BTreeMap::from(annotations);
    let (settings, _) = Settings::read(&annotations, false, &NamespaceDefaults::default());
    Ok((leaf, settings.context("it names an issuer")?))
}

/// Goes through a year with so many Secrets.
///
/// # Errors
/// None in practice: the certificate is one that can be read.
pub fn year(secrets: u32) -> Result<Year> {
    let (mut leaf, settings) = usual()?;
    let seeds = (0..secrets).map(|it| hash(&format!("shop-{}/tls-{it}", it % 1_000)));
    let seeds: Vec<u64> = seeds.collect();
    let mut due_at = |end: i64, secret: u32| {
        (leaf.not_before, leaf.not_after) = (UnixTime(end - LIFETIME), UnixTime(end));
        let due = due(&Inputs {
            leaf: Ok(&leaf),
            settings: &settings,
            blocked: false,
            staged: false,
            issued_by: None,
            renewed_for: None,
            renewal_info: None,
            seed: seeds[secret as usize],
        });
        due.map_or(i64::MAX, |due| due.at.0)
    };
    let first = |it: u32| LIFETIME - i64::from(it) * SPREAD / i64::from(secrets);
    let mut ends: Vec<i64> = (0..secrets).map(first).collect();
    let mut queue: BinaryHeap<Reverse<(i64, u32, u32)>> = BinaryHeap::new();
    queue.extend((0..secrets).map(|it| Reverse((due_at(ends[it as usize], it), it, 0))));
    let mut places = BinaryHeap::from(vec![Reverse(0); PLACES]);
    let backoff = Backoff::default();
    let mut year = Year {
        renewed: vec![0; HOURS],
        failed: vec![0; HOURS],
        least: i64::MAX,
    };
    let hour = |at: i64| usize::try_from(at / HOUR).unwrap_or(0);
    while let Some(Reverse((at, secret, failures))) = queue.pop() {
        if at >= YEAR {
            break;
        }
        let free = places.peek().map_or(0, |Reverse(free)| *free);
        let start = at.max(free);
        if OUTAGE.contains(&start) {
            year.failed[hour(start)] += 1;
            let again = UnixTime(start) + backoff.wait(failures + 1);
            queue.push(Reverse((again.0, secret, failures + 1)));
            continue;
        }
        let done = start + TAKES;
        places.pop();
        places.push(Reverse(done));
        if done >= YEAR {
            continue;
        }
        year.renewed[hour(done)] += 1;
        let end = &mut ends[secret as usize];
        year.least = year.least.min(*end - done);
        *end = done - BACKDATED + LIFETIME;
        queue.push(Reverse((due_at(*end, secret), secret, 0)));
    }
    Ok(year)
}

impl Year {
    /// All renewals of the year.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.renewed.iter().map(|it| u64::from(*it)).sum()
    }

    /// Most renewals in an hour, before the outage and in the three days from its beginning.
    #[must_use]
    pub fn most(&self) -> [u32; 2] {
        let at = usize::try_from(OUTAGE.start / HOUR).unwrap_or(0);
        let most = |hours: &[u32]| hours.iter().copied().max().unwrap_or(0);
        [most(&self.renewed[..at]), most(&self.renewed[at..at + 72])]
    }

    /// The picture: the year by day, and the three days around the outage by hour.
    #[must_use]
    pub fn drawn(&self, secrets: u32) -> String {
        let days = self.renewed.chunks(24);
        let days: Vec<u32> = days.map(|day| day.iter().sum::<u32>()).collect();
        let at = usize::try_from(OUTAGE.start / HOUR).unwrap_or(0);
        let around = at - 24..at + 72;
        let (renewed, failed) = (&self.renewed[around.clone()], &self.failed[around]);
        let most = renewed.iter().chain(failed).copied().max().unwrap_or(1);
        let mut body = String::new();
        let of_year = days.iter().copied().max().unwrap_or(1);
        panel(&mut body, 40, "Renewals a day, for a year", of_year);
        line(&mut body, 40, &days, of_year, "#1f6feb");
        let title = "Renewals an hour, from a day before a day without a CA; grey: tries that fail";
        panel(&mut body, 240, title, most);
        line(&mut body, 240, failed, most, "#999");
        line(&mut body, 240, renewed, most, "#1f6feb");
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {W} 400\" width=\"{W}\" height=\"400\" \
             font-family=\"sans-serif\" font-size=\"11\" role=\"img\">\n<title>A year of {secrets} Secrets, on paper</title>\n\
             <rect width=\"{W}\" height=\"400\" fill=\"#fff\"/>\n{body}</svg>\n",
            W = LEFT + WIDTH + 20
        )
    }
}

/// Where the curves are, in the picture.
const LEFT: usize = 60;
const WIDTH: usize = 640;
const HEIGHT: usize = 130;

fn panel(body: &mut String, top: usize, title: &str, most: u32) {
    let (bottom, over) = (top + HEIGHT, top - 10);
    // A string takes whatever is written.
    let _ = write!(
        body,
        "<text x=\"{LEFT}\" y=\"{over}\" font-size=\"13\" font-weight=\"bold\">{title}</text>\n\
         <text x=\"52\" y=\"{}\" text-anchor=\"end\">{most}</text>\n<text x=\"52\" y=\"{bottom}\" text-anchor=\"end\">0</text>\n\
         <path d=\"M{LEFT} {top}V{bottom}h{WIDTH}\" fill=\"none\" stroke=\"#bbb\"/>\n",
        top + 8
    );
}

fn line(body: &mut String, top: usize, values: &[u32], most: u32, colour: &str) {
    let points = values.iter().enumerate().map(|(at, value)| {
        let x = LEFT + at * WIDTH / values.len().max(2).saturating_sub(1);
        let y = top + HEIGHT - *value as usize * HEIGHT / most.max(1) as usize;
        format!("{x},{y}")
    });
    let points: Vec<String> = points.collect();
    let _ = writeln!(
        body,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>",
        points.join(" ")
    );
}
