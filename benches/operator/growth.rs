//! Draws how cost grows with the number of Secrets, from the figures that the other benchmarks wrote.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;
use test_bench::{Context as _, Result, ensure};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Width and height of one panel, with room for its title and labels around the plot.
const PANEL: (f64, f64) = (300.0, 230.0);
const LEFT: f64 = 58.0;
const TOP: f64 = 40.0;
const PLOT: (f64, f64) = (220.0, 140.0);

/// What a panel shows: the figure's name before the size, its unit on the axis, a factor to it, and whether it is paid
/// once for each Secret.
type Panel = (
    &'static str,
    &'static str,
    &'static str,
    f64,
    &'static [(&'static str, f64)],
);

const STARTS: &[(&str, f64)] = &[
    ("1k_annotated", 1e3),
    ("10k_annotated", 1e4),
    ("100k_annotated", 1e5),
];
const SCRAPES: &[(&str, f64)] = &[("1k", 1e3), ("10k", 1e4), ("100k", 1e5)];
const WAVES: &[(&str, f64)] = &[("200", 2e2), ("1000", 1e3), ("5000", 5e3)];

/// By Deployments: 200 Secrets with one or four each, 2,000 with one or four.
const BURSTS: &[(&str, f64)] = &[
    ("200x1", 2e2),
    ("200x4", 8e2),
    ("2000x1", 2e3),
    ("2000x4", 8e3),
];

const PANELS: &[Panel] = &[
    (
        "start.ready_seconds",
        "Start: until ready",
        "s",
        1.0,
        STARTS,
    ),
    ("start.cpu_seconds", "Start: CPU", "s", 1.0, STARTS),
    (
        "memory.rss_steady_bytes",
        "Memory, steady",
        "MiB",
        1.0 / 1_048_576.0,
        STARTS,
    ),
    (
        "metrics.scrape_ms",
        "A scrape of /metrics",
        "ms",
        1.0,
        SCRAPES,
    ),
    (
        "wave.cpu_ms_per_renewal",
        "Wave: CPU of one renewal",
        "ms",
        1.0,
        WAVES,
    ),
    (
        "wave.renewals_per_second",
        "Wave: renewals a second",
        "1/s",
        1.0,
        WAVES,
    ),
    (
        "wave.api_requests_per_renewal",
        "Wave: one renewal's requests",
        "API server",
        1.0,
        WAVES,
    ),
    (
        "burst.patched_seconds",
        "Burst: until all are patched",
        "s",
        1.0,
        BURSTS,
    ),
    (
        "burst.lists_per_change",
        "Burst: one change's requests",
        "lists",
        1.0,
        BURSTS,
    ),
];

/// Reads `target/bench/*.json` and writes `docs/growth.svg`.
pub(crate) fn draw() -> Result<()> {
    let figures = figures()?;
    let mut body = String::new();
    for (number, panel) in (0_u8..).zip(PANELS) {
        let at = (
            f64::from(number % 3) * PANEL.0,
            f64::from(number / 3) * PANEL.1,
        );
        draw_panel(&mut body, at, panel, &figures)?;
    }
    let rows = u8::try_from(PANELS.len().div_ceil(3)).unwrap_or(u8::MAX);
    let (width, height) = (PANEL.0 * 3.0, PANEL.1 * f64::from(rows));
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\" role=\"img\">\n<title>How cost grows with the number of Secrets</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n{body}</svg>\n"
    );
    let file = Path::new(ROOT).join("docs/growth.svg");
    fs::write(&file, svg).with_context(|| format!("writing {}", file.display()))?;
    println!("{} is drawn", file.display());
    Ok(())
}

fn figures() -> Result<BTreeMap<String, f64>> {
    let mut figures = BTreeMap::new();
    let directory = Path::new(ROOT).join("target/bench");
    for entry in fs::read_dir(&directory).context("no figures yet: make bench comes first")? {
        let text = fs::read_to_string(entry?.path())?;
        let list: Vec<Value> = serde_json::from_str(&text)?;
        for figure in &list {
            if let (Some(name), Some(value)) = (figure["name"].as_str(), figure["value"].as_f64()) {
                figures.insert(name.to_owned(), value);
            }
        }
    }
    Ok(figures)
}

/// Both axes are logarithmic, with the same length for a factor of ten wherever it fits: what grows with the number of
/// Secrets runs along the dashed line, what is constant runs level.
fn draw_panel(
    out: &mut String,
    (left, top): (f64, f64),
    (name, title, unit, factor, sizes): &Panel,
    figures: &BTreeMap<String, f64>,
) -> Result<()> {
    let points: Vec<(f64, f64)> = sizes
        .iter()
        .filter_map(|(suffix, size)| {
            let value = figures.get(&format!("{name}.{suffix}"))?;
            Some((*size, value * factor))
        })
        .collect();
    ensure!(
        points.len() > 1,
        "{name} has {} figures, two are needed for a line",
        points.len()
    );
    let logs = |pick: fn(&(f64, f64)) -> f64| points.iter().map(move |point| pick(point).log10());
    let (from, to) = (fold(logs(|p| p.0), f64::min), fold(logs(|p| p.0), f64::max));
    let low = fold(logs(|p| p.1), f64::min).floor();
    let high = fold(logs(|p| p.1), f64::max).ceil().max(low + 1.0);
    let x = |size: f64| left + LEFT + (size.log10() - from) / (to - from) * PLOT.0;
    let y = |value: f64| top + TOP + (high - value.log10()) / (high - low) * PLOT.1;

    writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"13\" font-weight=\"bold\">{title}, {unit}</text>",
        left + LEFT,
        top + 22.0
    )?;
    let mut power = low;
    while power <= high {
        let value = 10_f64.powf(power);
        writeln!(
            out,
            "<path d=\"M{:.1} {:.1}h{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{value}</text>",
            left + LEFT,
            y(value),
            PLOT.0,
            left + LEFT - 6.0,
            y(value) + 4.0
        )?;
        power += 1.0;
    }
    // Proportional, through the largest.
    let (size, value) = points[points.len() - 1];
    let shown = |s: f64| (value * s / size).max(10_f64.powf(low));
    let begins = (size * 10_f64.powf(low) / value).max(points[0].0);
    writeln!(
        out,
        "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#999\" stroke-dasharray=\"4 4\"/>",
        x(begins),
        y(shown(begins)),
        x(size),
        y(value)
    )?;
    let line: Vec<String> = points
        .iter()
        .map(|(size, value)| format!("{:.1} {:.1}", x(*size), y(*value)))
        .collect();
    writeln!(
        out,
        "<path d=\"M{}\" fill=\"none\" stroke=\"#0b62a4\" stroke-width=\"2\"/>",
        line.join("L")
    )?;
    for (size, value) in &points {
        writeln!(
            out,
            "<circle cx=\"{0:.1}\" cy=\"{1:.1}\" r=\"3\" fill=\"#0b62a4\"/><text x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"middle\">{3}</text>\
             <text x=\"{0:.1}\" y=\"{4:.1}\" text-anchor=\"middle\" fill=\"#555\">{size}</text>",
            x(*size),
            y(*value),
            y(*value) - 8.0,
            rounded(*value),
            top + TOP + PLOT.1 + 16.0
        )?;
    }
    Ok(())
}

fn fold(values: impl Iterator<Item = f64>, choose: fn(f64, f64) -> f64) -> f64 {
    values.reduce(choose).unwrap_or_default()
}

fn rounded(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}
