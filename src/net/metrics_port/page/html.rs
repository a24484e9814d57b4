//! The status page as HTML: everything readable without script, everything foreign escaped by the templates.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::unmanaged::{NotManaged, Unmanaged};
use cert_renew_core::verdict::{Leader, Report, Verdict};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::cells::{class, instant, renews, trouble, workloads};
use super::narrow::{encoded, find, groups, states};
use super::rows::{Answer, Query, Sort};
use super::timeline::{Places, Scale};
use super::words::{Shown, day, minute, rollout, state};
use super::{commands, detail};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// Rows that a browser lays out together, or skips while they are not visible.
const GROUP: usize = 100;

/// A page with its content security policy.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) html: String,
    pub(super) policy: String,
}

/// Renders the page: the certificates that the query selects, or the view of the one that it names.
pub(super) fn render(answer: &Answer, query: &Query) -> Page {
    let report = &answer.report;
    let scale = Scale::of(report.as_of, &report.certificates);
    let mut places = Places::default();
    let (title, main) = match (query.one(), &*report.certificates) {
        (Some(key), rows) => {
            let place = key.to_string();
            (
                Shown(&place).to_string(),
                match report.unmanaged.text_of(&key.namespace, &key.name) {
                    Some(text) if rows.is_empty() => detail::not_managed(&place, text),
                    _ => detail::view(&place, rows.first(), report, scale, &mut places),
                },
            )
        }
        (None, _) => (
            "Certificates".into(),
            list(answer, query, scale, &mut places),
        ),
    };
    let style = format!("{STYLE}{}{}", scale.style(report.as_of), places.style());
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        hash(&style),
        hash(SCRIPT)
    );
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width";
            title { (title) " · cert-renew" }
            style { (PreEscaped(&style)) }
            (head(report, &title))
            main { (main) }
            script { (PreEscaped(SCRIPT)) }
        }
    };
    let html = page.into_string();
    Page { html, policy }
}

fn hash(text: &str) -> String {
    BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes()))
}

fn head(report: &Report, title: &str) -> Markup {
    let text = |text: &Option<Box<str>>| Shown(text.as_deref().unwrap_or("?")).to_string();
    html! {
        header {
            h1 { (title) }
            p {
                "cert-renew " (text(&report.version)) ", class " (text(&report.class)) ". As "
                (text(&report.replica)) " sees it at " time { (minute(report.as_of)) } ", all times in UTC. "
                (leader(&report.leader)) " " a href="api/certificates" { "The same as JSON" }
                label.refresh hidden { input id="refresh" type="checkbox" checked; " refresh every minute" }
            }
            @for notice in &report.notices {
                p.notice role="alert" { (Shown(notice)) }
            }
        }
    }
}

fn leader(leader: &Leader) -> Markup {
    html! {
        @match (&leader.name, leader.silent_since) {
            (Some(name), _) => { (Shown(name)) " leads." }
            (None, Some(since)) => { strong { "No replica leads: the last sign of one was at " (minute(since)) "." } }
            (None, None) => { strong { "No replica leads yet." } }
        }
    }
}

fn list(answer: &Answer, query: &Query, scale: Scale, places: &mut Places) -> Markup {
    html! {
        (unmanaged(&answer.report))
        (states(answer, query))
        (find(query))
        (groups("By namespace", &answer.namespaces, "namespace", "in this namespace"))
        (groups("By issuer", &answer.issuers, "issuer", "from this issuer"))
        (commands::of_list(&answer.report, query))
        (table(answer, query, scale, places))
    }
}

/// The Secrets that seem to be meant and are not managed: they are in no row.
fn unmanaged(report: &Report) -> Markup {
    let Unmanaged { count, named } = &report.unmanaged;
    let more = count.saturating_sub(named.len());
    let verb = if *count == 1 { " seems" } else { " seem" };
    let end = if *count == 1 { "is" } else { "are" };
    html! {
        @if *count > 0 {
            details.notice {
                summary { (super::words::count(*count, "Secret")) (verb) " to be meant for cert-renew and " (end) " not managed" }
                ul {
                    @for NotManaged { namespace, name, text, .. } in named {
                        li { strong { (Shown(namespace)) "/" (Shown(name)) } ": " (Shown(text)) }
                    }
                    @if more > 0 { li { "and " (more) " more" } }
                }
            }
        }
    }
}

fn table(answer: &Answer, query: &Query, scale: Scale, places: &mut Places) -> Markup {
    let report = &answer.report;
    let part = (!query.takes_all()).then_some("1");
    let cut = (report.left_out > 0).then_some("1");
    html! {
        table data-part=[part] data-cut=[cut] {
            caption {
                (report.certificates.len()) " of " (report.matching) " that match"
                @if report.left_out > 0 { "; " (report.left_out) " more are not shown: find fewer" }
                "."
                span.key {
                    " " i {} "valid, " i.l {} "to be renewed, " i.b {} "in trouble, " i.g {} "now"
                }
            }
            thead {
                tr {
                    @for sort in Sort::ALL {
                        (heading(sort, query))
                        @if sort == Sort::From { (axis(scale)) }
                    }
                    th.v scope="col" { "What is wrong" }
                }
            }
            @for group in report.certificates.chunks(GROUP) {
                tbody { @for verdict in group { (row(report.as_of, verdict, scale, places)) } }
            }
        }
        @if report.certificates.is_empty() {
            p { "Nothing matches. Annotate a Secret with cert-renew.io/issuer, or find something else." }
        }
    }
}

fn axis(scale: Scale) -> Markup {
    let [from, to] = scale.ends();
    html! {
        th scope="col" { "Time line" span.axis { span { (day(from)) } span { (day(to)) } } }
    }
}

fn heading(sort: Sort, query: &Query) -> Markup {
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
        (false, _) => None,
        (true, false) => Some("ascending"),
        (true, true) => Some("descending"),
    };
    let minus = if current && !query.descending {
        "-"
    } else {
        ""
    };
    let address = query.sorted(&format!("{minus}{}", sort.as_str()));
    html! {
        th scope="col" data-sort=(sort.as_str()) aria-sort=[order] { a href={ "?" (address) } { (title) } }
    }
}

fn row(now: UnixTime, row: &Verdict, scale: Scale, places: &mut Places) -> Markup {
    let address = encoded(&[("namespace", &row.namespace), ("name", &row.name)]);
    html! {
        tr class=[class(now, row)] data-s=(row.state.as_str()) data-y[commands::is_young(now, row)] {
            th scope="row" {
                a href={ "?" (address) } { (Shown(&row.namespace)) "/" (Shown(&row.name)) }
                @if !row.names.is_empty() { small { (Shown(&row.names_in_words())) } }
            }
            td {
                (state(row.state))
                @if let Some(since) = row.since { small { "since " (day(since)) } }
            }
            td { @if let Some(from) = row.not_before { (day(from)) } }
            td class=(places.bar(scale, row)) { span.v { (passed(now, row)) } }
            td { (renews(now, row)) }
            td { @if let Some(at) = row.not_after { (instant(now, at)) } }
            td { (Shown(&row.issuer)) }
            td { (rollout(row.rollout)) (workloads(row)) }
            td.e { (trouble(now, row)) }
        }
        "\n"
    }
}

/// What the bar shows, for those who do not see it.
fn passed(now: UnixTime, row: &Verdict) -> String {
    let (Some(from), Some(to)) = (row.not_before, row.not_after) else {
        return String::new();
    };
    let life = to.since(from).as_secs().max(1);
    let share = now.since(from).as_secs().saturating_mul(100) / life;
    format!("{}% of its life is over", share.min(100))
}

#[cfg(test)]
mod tests {
    use cert_renew_core::index::Observed;
    use cert_renew_core::secret::SecretRef;
    use cert_renew_core::testing::entries;
    use cert_renew_core::text::name::Name;
    use cert_renew_core::verdict::detail::{
        LastStep, Limit, Moment, Pod, Pods, Remembered, Serves, Told,
    };

    use super::super::rows::tests::report;
    use super::super::rows::{answer, copy, detail};
    use super::*;

    fn page(query: &str) -> Page {
        let query = Query::parse(query).unwrap();
        let rows = copy(entries::NOW, &entries::index(), &|_| 3);
        render(&answer(report(), rows, &query), &query)
    }

    #[test]
    fn everything_foreign_is_escaped() {
        let page = page("q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E%E2%80%AE");
        assert_eq!(page.html.matches("<script>").count(), 1);
        assert!(page.html.contains("pod-&lt;1&gt;"));
        let value = "value=\"&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\u{202e}\"";
        assert!(page.html.contains(value), "{}", page.html);
        assert!(page.html.contains("q=%22%3E%3Cscript%3E"));
    }

    #[test]
    fn the_page_says_what_the_index_says() {
        let html = page("").html;
        for part in [
            "<th scope=\"row\"><a href=\"?namespace=shop&amp;name=expired\">shop/expired</a>",
            "<td>renewal fails</td>",
            "<td>never</td>",
            "<p>no</p><small>Failed 3 times in a row. Next try 2023-11-15 22:13, in 1d.</small>",
            "<p>cert-renew.io/key-type: &quot;x&quot;: expected another</p>",
            "<td>done<small>deployment/api (failed), statefulset/db and 2 more</small><small>as of 2023-11-14</small>\
             <small>2 of 3 pods behind web:443 serve it</small>",
            "<small>2 pods known to serve an earlier one</small>",
            ">in trouble 10</a>",
            "33% of its life is over",
            "No replica leads yet.",
            "a&quot;b\\c\nd",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        assert_eq!(
            html.matches("<th scope=\"row\">").count(),
            entries::index().len()
        );
        assert!(!html.contains("style=\""), "the policy forbids it");
    }

    #[test]
    fn the_view_of_one_tells_its_chain_its_order_and_its_events() {
        let now = entries::NOW;
        let ago = |seconds: i64| UnixTime(now.0 - seconds);
        let remembered = |_: &SecretRef, _: &Observed, _: &[Name]| Remembered {
            step: Some(LastStep {
                name: "prove".into(),
                at: ago(7),
                order: Some("https://ca.example/order/1".into()),
            }),
            events: Some(vec![Told {
                at: ago(90),
                kind: "Warning".into(),
                reason: "RenewalFailed".into(),
                message: "<b>no</b>".into(),
            }]),
            limits: Some(vec![
                Limit {
                    what: "certificates".into(),
                    of: "le".into(),
                    used: Some(4),
                    most: Some(4),
                    within_seconds: Some(7 * 86_400),
                    until: Some(UnixTime(now.0 + 7_200)),
                },
                Limit::of_the_ca("names under shop.example", UnixTime(now.0 + 3_600)),
            ]),
            pods: Some(Pods {
                at: ago(60),
                service: "web:443".into(),
                asked: vec![Pod {
                    name: "web-1".into(),
                    serves: Serves::Earlier,
                    why: None,
                }],
                more: 3,
            }),
            past: vec![Moment::new(
                ago(86_400),
                "a certificate was ordered that was due",
                "ledger",
            )],
        };
        let mut index = entries::index();
        index.order_open(now, &key("healthy"), true);
        let mut rows = copy(now, &index, &|_| 0);
        detail(&index, &mut rows, &key("healthy"), &remembered);
        let query = Query::parse("namespace=shop&name=healthy").unwrap();
        let html = render(&answer(report(), rows, &query), &query).html;
        for part in [
            "an order is open at the CA: prove ended 7s ago",
            "4 of 4 certificates for these names within 7d",
            "one is free again",
            "the CA takes no orders for names under shop.example",
            "<code>web-1</code> serves an earlier one",
            "and 3 more",
            "a certificate was ordered that was due",
            "a renewal failed",
            "order https://ca.example/order/1",
            "<strong>RenewalFailed</strong> &lt;b&gt;no&lt;/b&gt;",
            "<dt>Last renewed</dt>",
            "kubectl -n shop events --for secret/healthy",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
    }

    fn key(name: &str) -> SecretRef {
        SecretRef {
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    #[test]
    fn what_it_is_narrowed_to_is_seen_and_kept() {
        let html = page("namespace=shop&issuer=letsencrypt&sort=-ends&q=a").html;
        for part in [
            "<a href=\"?sort=-ends&amp;q=a&amp;issuer=letsencrypt\" aria-current=\"true\" title=\"show all\">namespace shop ×</a>",
            "<a href=\"?sort=-ends&amp;q=a&amp;namespace=shop\" aria-current=\"true\" title=\"show all\">issuer letsencrypt ×</a>",
            "<input type=\"hidden\" name=\"namespace\" value=\"shop\">",
            "<input type=\"hidden\" name=\"issuer\" value=\"letsencrypt\">",
            "<input type=\"hidden\" name=\"sort\" value=\"-ends\">",
            "href=\"?sort=-ends&amp;state=trouble&amp;namespace=shop&amp;issuer=letsencrypt\"",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        let html = page("within=5d&state=expired").html;
        for part in [
            "<a href=\"?state=expired\" aria-current=\"true\" title=\"show all\">ends within 5d ×</a>",
            "<input type=\"hidden\" name=\"within\" value=\"5d\">",
            "<a href=\"?within=5d\">all 3</a>",
            "1 of 1 that match",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        assert!(!html.contains("ends within 30 days"), "{html}");
        let whole = page("").html;
        assert!(whole.contains("<a href=\"?within=30d\">ends within 30 days 5</a>"));
        assert!(whole.contains("<a href=\".\" aria-current=\"true\">all "));
        assert!(!whole.contains("type=\"hidden\"") && !whole.contains('×'));
        assert!(!whole.contains("href=\"?issuer=\""));
    }

    #[test]
    fn one_secret_has_a_view_of_its_own() {
        let html = page("namespace=shop&name=halted").html;
        for part in [
            "<h1>shop/halted</h1>",
            "cert-renew resume shop/halted",
            "kubectl -n shop events --for secret/halted",
            "docs/runbook.md#certrenewrollouthalted",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        assert!(html.contains("2023-11-13 22:13"), "since when: {html}");
        // A command that would be refused is not named.
        for (name, named) in [
            ("healthy", true),
            ("failing", true),
            ("odd", false),
            ("expiring", false),
            ("paused", false),
            ("misread", false),
            ("held", false),
        ] {
            let html = page(&format!("namespace=shop&name={name}")).html;
            let command = format!("cert-renew renew shop/{name} --wait");
            assert_eq!(html.contains(&command), named, "{name}");
        }
        let html = page("namespace=shop&name=healthy").html;
        for part in [
            "deployment/api <span class=\"soft\">did not take it up</span>",
            "statefulset/db <span class=\"soft\">has it</span>",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        let html = page("namespace=shop&name=nosuch").html;
        assert!(html.contains("no annotated Secret shop/nosuch"), "{html}");
    }
}
