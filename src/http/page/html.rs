//! The status page as HTML: everything readable without script, everything foreign escaped.
//!
//! No attribute contains a style: the bars take their ends from classes, which the page's single style sheet defines
//! for the positions in use. So the content security policy can name style and script by their hashes.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cert_renew_core::time::UnixTime;
use cert_renew_core::time::duration;
use cert_renew_core::verdict::{Rollout, State, Verdict};

use super::rows::{Answer, Query, Sort, Which};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// Rows that a browser lays out together, or skips while they are not visible.
const GROUP: usize = 100;
/// Positions on the time line: finer than a pixel on most screens.
const STEPS: i64 = 400;
const DAY: i64 = 86_400;
/// Least and greatest span that the time line shows on either side of now, in seconds.
const SPAN: (i64, i64) = (DAY, 400 * DAY);

/// A page with its content security policy.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) html: String,
    pub(super) policy: String,
}

/// The span of the time line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scale {
    from: i64,
    to: i64,
}

impl Scale {
    /// Fits nine of ten certificates, so that a root of twenty years does not flatten all others.
    fn of(now: UnixTime, rows: &[Verdict]) -> Self {
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

    fn place(self, at: UnixTime) -> i64 {
        let within = at.0.clamp(self.from, self.to) - self.from;
        within * STEPS / (self.to - self.from)
    }
}

/// The positions in use, by property: the beginning of a bar, its renewal, its end.
#[derive(Default)]
struct Places([BTreeSet<i64>; 3]);

const PROPERTIES: [char; 3] = ['a', 'b', 'c'];

impl Places {
    fn style(&self, out: &mut String) {
        for (property, places) in PROPERTIES.iter().zip(&self.0) {
            for place in places {
                let _ = write!(out, ".{property}{place}{{--{property}:{place}}}");
            }
        }
    }

    /// The classes of a bar.
    fn bar(&mut self, scale: Scale, row: &Verdict, out: &mut String) {
        let (Some(from), Some(to)) = (row.not_before, row.not_after) else {
            return;
        };
        let renews = row.renews.unwrap_or(to).clamp(from, to.max(from));
        for ((property, places), at) in PROPERTIES.iter().zip(&mut self.0).zip([from, renews, to]) {
            let place = scale.place(at);
            places.insert(place);
            let _ = write!(out, " {property}{place}");
        }
    }
}

/// Renders the page.
pub(super) fn render(answer: &Answer, query: &Query) -> Page {
    let now = answer.report.as_of;
    let scale = Scale::of(now, &answer.report.certificates);
    let mut places = Places::default();
    let mut body = String::with_capacity(answer.report.certificates.len() * 400);
    head(&mut body, answer, query);
    table(&mut body, answer, query, scale, &mut places);
    let mut style = String::from(STYLE);
    let share = (now.0 - scale.from) * 10_000 / (scale.to - scale.from);
    let _ = write!(style, ":root{{--now:.{share:04}}}");
    places.style(&mut style);
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        hash(&style),
        hash(SCRIPT)
    );
    let html = format!(
        "<!DOCTYPE html>\n<html lang=en>\n<meta charset=utf-8>\n\
         <meta name=viewport content=\"width=device-width\">\n<title>cert-renew: certificates</title>\n\
         <style>{style}</style>\n{body}<script>{SCRIPT}</script>\n"
    );
    Page { html, policy }
}

fn hash(text: &str) -> String {
    BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes()))
}

fn head(out: &mut String, answer: &Answer, query: &Query) {
    let total: usize = answer.states.iter().sum();
    out.push_str("<header><h1>Certificates</h1><p>As ");
    escape(out, answer.report.replica.as_deref().unwrap_or_default());
    let _ = write!(
        out,
        " sees them at {}, all times in UTC. <a href=api/certificates>The same as JSON</a></p></header>\n<main>\n",
        minute(answer.report.as_of)
    );
    out.push_str("<nav aria-label=States><ul>");
    link(out, Which::All, query, "all", total);
    let trouble = State::ALL.iter().zip(answer.states);
    let trouble = trouble.filter(|(state, _)| state.is_trouble());
    let trouble = trouble.map(|(_, count)| count).sum();
    link(out, Which::Trouble, query, "in trouble", trouble);
    for (state, count) in State::ALL.into_iter().zip(answer.states) {
        if count > 0 {
            link(out, Which::One(state), query, state.as_str(), count);
        }
    }
    out.push_str(
        "</ul></nav>\n<form><label for=q>Find</label> <input id=q name=q type=search value=\"",
    );
    escape(out, &query.text);
    out.push_str(
        "\" placeholder=\"namespace, name, host, issuer, workload, error\"> <label for=state>State</label> \
         <select id=state name=state><option value=\"\">all",
    );
    let states = State::ALL.into_iter().map(Which::One);
    for which in [Which::Trouble].into_iter().chain(states) {
        let selected = if which == query.which {
            " selected"
        } else {
            ""
        };
        let name = which.as_str();
        let _ = write!(out, "<option value={name}{selected}>{name}");
    }
    out.push_str(
        "</select> <button>Show</button> <output for=\"q state\" role=status></output></form>\n",
    );
}

fn link(out: &mut String, which: Which, query: &Query, text: &str, count: usize) {
    let current = if which == query.which {
        " aria-current=true"
    } else {
        ""
    };
    let asked = match which {
        Which::All => ".".to_owned(),
        which => format!("?state={}", which.as_str()),
    };
    let _ = write!(out, "<li><a href={asked}{current}>{text} {count}</a>");
}

fn table(out: &mut String, answer: &Answer, query: &Query, scale: Scale, places: &mut Places) {
    let shown = answer.report.certificates.len();
    let part = if query.takes_all() {
        ""
    } else {
        " data-part=1"
    };
    let cut = if answer.report.left_out > 0 {
        " data-cut=1"
    } else {
        ""
    };
    let _ = write!(
        out,
        "<table{part}{cut}><caption>{shown} of {} that match",
        answer.report.matching
    );
    if answer.report.left_out > 0 {
        let _ = write!(
            out,
            "; {} more are not shown: find fewer",
            answer.report.left_out
        );
    }
    out.push_str(
        ".<span class=key> <i></i>valid, <i class=l></i>to be renewed, <i class=b></i>in trouble, <i class=g></i>now</span></caption>\n<thead><tr>",
    );
    for sort in Sort::ALL {
        heading(out, sort, query);
        if sort == Sort::From {
            let (from, to) = (UnixTime(scale.from), UnixTime(scale.to));
            let _ = write!(
                out,
                "<th scope=col>Time line<span class=axis><span>{}</span><span>{}</span></span>",
                day(from),
                day(to)
            );
        }
    }
    out.push_str("</thead>\n");
    for group in answer.report.certificates.chunks(GROUP) {
        out.push_str("<tbody>\n");
        for row in group {
            write_row(out, answer.report.as_of, row, scale, places);
        }
    }
    out.push_str("</table>\n");
    if shown == 0 {
        out.push_str("<p>Nothing matches. Annotate a Secret with cert-renew.io/issuer, or find something else.</p>\n");
    }
    out.push_str("</main>\n");
}

fn heading(out: &mut String, sort: Sort, query: &Query) {
    let title = match sort {
        Sort::Secret => "Secret",
        Sort::State => "State",
        Sort::From => "Valid from",
        Sort::Renews => "Renews",
        Sort::Ends => "Ends",
        Sort::Issuer => "Issuer",
        Sort::Rollout => "Rollout",
    };
    let current = sort == query.sort;
    let order = match (current, query.descending) {
        (false, _) => "",
        (true, false) => " aria-sort=ascending",
        (true, true) => " aria-sort=descending",
    };
    let minus = if current && !query.descending {
        "-"
    } else {
        ""
    };
    let name = sort.as_str();
    let _ = write!(
        out,
        "<th scope=col data-sort={name}{order}><a href=\"?sort={minus}{name}&amp;state={}&amp;q=",
        query.which.as_str()
    );
    out.extend(form_urlencoded::byte_serialize(query.text.as_bytes()));
    let _ = write!(out, "\">{title}</a>");
}

fn write_row(out: &mut String, now: UnixTime, row: &Verdict, scale: Scale, places: &mut Places) {
    let class = match row.state {
        state if state.is_trouble() => " class=x",
        State::Due | State::Held | State::Paused => " class=w",
        _ => "",
    };
    let _ = write!(out, "<tr{class}><th scope=row>");
    escape(out, &row.namespace);
    out.push('/');
    escape(out, &row.name);
    if !row.names.is_empty() {
        out.push_str("<small>");
        escape(out, &row.names_in_words());
        out.push_str("</small>");
    }
    let _ = write!(out, "<td>{}<td>", row.state.as_str());
    if let Some(from) = row.not_before {
        out.push_str(&day(from));
    }
    out.push_str("<td class=\"t");
    places.bar(scale, row, out);
    out.push_str("\">");
    trouble(out, now, row);
    out.push_str("<td>");
    match row.renews {
        Some(at) if at <= now => out.push_str("now"),
        Some(at) => instant(out, now, at),
        None => {}
    }
    out.push_str("<td>");
    if let Some(at) = row.not_after {
        instant(out, now, at);
    }
    out.push_str("<td>");
    escape(out, &row.issuer);
    let _ = write!(out, "<td>{}", row.rollout.as_str());
    workloads(out, row);
    out.push('\n');
}

/// The workloads that use the certificate, and what they serve.
fn workloads(out: &mut String, row: &Verdict) {
    if let Some(used_by) = &row.used_by {
        out.push_str("<small>");
        escape(out, &used_by.in_words());
        let _ = write!(out, "</small><small>as of {}</small>", day(used_by.at));
    }
    // The verification was of the certificate of that time.
    let proven = row.used_by.as_ref().and_then(|it| it.proven.as_ref());
    if let Some(proven) = proven.filter(|_| row.rollout == Rollout::Done) {
        out.push_str("<small>");
        escape(out, &proven.in_words());
        out.push_str("</small>");
    }
    if let Some(at) = row.served_until {
        let _ = write!(out, "<small>they serve one until {}</small>", minute(at));
    }
    if row.stale_pods > 0 {
        let s = if row.stale_pods == 1 { "" } else { "s" };
        let _ = write!(
            out,
            "<small>{} pod{s} known to serve an earlier one</small>",
            row.stale_pods
        );
    }
}

/// The errors, below the bar.
fn trouble(out: &mut String, now: UnixTime, row: &Verdict) {
    if row.last_error.is_none() && row.failures == 0 && row.problems.is_empty() {
        return;
    }
    out.push_str("<p class=e>");
    if let Some(error) = &row.last_error {
        escape(out, error);
    }
    out.push_str("<small>");
    if row.failures > 0 {
        let s = if row.failures == 1 { "" } else { "s" };
        let _ = write!(out, "{} failure{s} in a row. ", row.failures);
    }
    if let Some(at) = row.next_try {
        let _ = write!(out, "next try {}, {}. ", minute(at), relative(now, at));
    }
    out.push_str("</small>");
    for problem in &row.problems {
        out.push_str("<small>");
        escape(out, problem);
        out.push_str("</small>");
    }
}

fn instant(out: &mut String, now: UnixTime, at: UnixTime) {
    let _ = write!(out, "{}<small>{}</small>", minute(at), relative(now, at));
}

fn relative(now: UnixTime, at: UnixTime) -> String {
    if at < now {
        format!("{} ago", duration::human(now.since(at)))
    } else {
        format!("in {}", duration::human(at.since(now)))
    }
}

fn minute(at: UnixTime) -> String {
    at.timestamp().strftime("%Y-%m-%d %H:%M").to_string()
}

fn day(at: UnixTime) -> String {
    at.timestamp().strftime("%Y-%m-%d").to_string()
}

/// Escapes foreign text: no markup, no control character, nothing that changes the direction of the surrounding text.
fn escape(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' => out.push('\n'),
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' => {
                let _ = write!(out, "{}", character.escape_unicode());
            }
            '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}' => {
                let _ = write!(out, "{}", character.escape_unicode());
            }
            other if other.is_control() => {
                let _ = write!(out, "{}", character.escape_unicode());
            }
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::entries;

    use super::super::rows::tests::report;
    use super::super::rows::{answer, copy};
    use super::*;

    fn page(query: &str) -> Page {
        let query = Query::parse(query).unwrap();
        let rows = copy(entries::NOW, &entries::index(), &|_| 3);
        render(&answer(report(), rows, &query), &query)
    }

    #[test]
    fn everything_foreign_is_escaped() {
        let mut out = String::new();
        escape(&mut out, "<script>\"a\"&'b'\u{202e}\u{1b}[2J\nü");
        assert_eq!(
            out,
            "&lt;script&gt;&quot;a&quot;&amp;&#39;b&#39;\\u{202e}\\u{1b}[2J\nü"
        );
        let page = page("q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E");
        assert_eq!(page.html.matches("<script>").count(), 1);
        assert!(page.html.contains("pod-&lt;1&gt;"));
        assert!(
            page.html
                .contains("value=\"&quot;&gt;&lt;script&gt;alert(1)")
        );
        assert!(page.html.contains("q=%22%3E%3Cscript%3E"));
    }

    #[test]
    fn the_page_says_what_the_index_says() {
        let html = page("").html;
        for part in [
            "<th scope=row>shop/expired",
            "<td>renewal_failing<td>",
            "no<small>3 failures in a row. next try 2023-11-15 22:13, in 1d. </small>",
            "<small>cert-renew.io/key-type: &quot;x&quot;: expected another</small>",
            "<td>done<small>deployment/api (failed), statefulset/db and 2 more</small><small>as of 2023-11-14</small>\
             <small>2 of 3 pods behind web:443 serve it</small>",
            "<small>2 pods known to serve an earlier one</small>",
            ">in trouble 10</a>",
            "a&quot;b\\c\nd",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        // One style, one script, no attribute that a policy without 'unsafe-inline' would refuse.
        assert!(!html.contains(" style=") && !html.contains(" onc"));
    }

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
        let (mut places, mut out) = (Places::default(), String::new());
        places.bar(scale, &row, &mut out);
        assert_eq!(out, " a0 b120 c400");
        let mut style = String::new();
        places.style(&mut style);
        assert_eq!(style, ".a0{--a:0}.b120{--b:120}.c400{--c:400}");
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
