//! The status page as a person meets it: in a real Chromium, with and without script, in light and in dark.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use test_bench::browser::Browser;
use test_bench::objects::{Age, EXPIRED, FRESH, OLD, Reference, Space, pair};
use test_bench::{Bench, Operator, OperatorOptions, Result, ensure, eventually};

/// Written by a user who may annotate a Secret.
const HOSTILE: &str = "</p></table><script>window.hacked=1</script><img src=x onerror=window.hacked=2>\u{202e}\" ' &amp;";
/// Of a phone, a tablet, a laptop, and a large screen, in pixels.
const WIDTHS: [u32; 4] = [390, 768, 1280, 1920];
/// Every piece of text with the colour that is behind it, and the least contrast (WCAG 2.1, 1.4.3).
const CONTRAST: &str = r"(() => {
  const parts = (text) => text.match(/[\d.]+/g).map(Number);
  const light = (text) => { const [r, g, b] = parts(text).map((v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (parts(c)[3] !== 0) return c; } };
  let worst = [99, ''];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.tagName === 'SCRIPT' || !e.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < worst[0]) worst = [ratio, e.tagName + ' ' + e.textContent.slice(0, 40)];
  }
  return worst;
})()";
const SHOWN: &str = "[...document.querySelectorAll('tbody tr')].filter((row) => !row.hidden).map((row) => row.cells[0].querySelector('a').textContent.split('/')[1])";

/// Secrets in many states; the CA cannot be reached.
async fn scene(space: &Space) -> Result<()> {
    let aged = |since, left| Age { since, left };
    for (kind, name, secret) in [
        ("Deployment", "web", "web-tls"),
        ("DaemonSet", "cache", "web-tls"),
        ("StatefulSet", "search", "search-tls"),
        ("Deployment", "cart", "cart-tls"),
        ("Deployment", "legacy", "legacy-tls"),
        ("DaemonSet", "gateway", "partner-tls"),
    ] {
        space
            .workload(kind, name, Reference::Volume, secret)
            .await?;
    }
    let ours: &[(&str, &str)] = &[("issuer", "pebble")];
    for (name, names, age, annotations) in [
        (
            "web-tls",
            &["shop.example", "www.shop.example"][..],
            FRESH,
            ours,
        ),
        ("api-tls", &["api.shop.example"], aged(41, 49), ours),
        ("search-tls", &["search.shop.example"], aged(22, 68), ours),
        ("edge-tls", &["edge.shop.example"], aged(2, 4), ours),
        ("cart-tls", &["cart.shop.example"], aged(55, 35), ours),
        ("checkout-tls", &["pay.shop.example"], aged(65, 25), ours),
        (
            "legacy-tls",
            &["old.shop.example"],
            EXPIRED,
            &[("issuer", "external")],
        ),
        (
            "partner-tls",
            &["partner.example"],
            OLD,
            &[("issuer", "external")],
        ),
        ("mail-tls", &["mail.elsewhere.test"], aged(30, 60), ours),
        (
            "blog-tls",
            &["blog.shop.example"],
            aged(50, 40),
            &[("issuer", "pebble"), ("paused", "true")],
        ),
    ] {
        space
            .tls_secret(name, Some(&pair(names, age)?), annotations)
            .await?;
    }
    let waiting = [
        ("issuer", "pebble"),
        ("names", "new.shop.example"),
        ("paused", "true"),
    ];
    space.tls_secret("new-tls", None, &waiting).await?;
    Ok(())
}

/// An operator whose CA cannot be reached, and the scene once its one due Secret has failed.
async fn started<'a>(bench: &'a Bench, prefix: &str) -> Result<(Operator<'a>, Space)> {
    let mut options = OperatorOptions::new(env!("CARGO_BIN_EXE_cert-renew"));
    options.directory = Some("https://127.0.0.1:1/directory".into());
    let mut operator = Operator::install(bench, options).await?;
    let space = Space::new(bench.client()?, prefix, operator.namespace()).await?;
    scene(&space).await?;
    operator.run().await?;
    eventually(
        Duration::from_secs(60),
        "the due Secret has failed",
        async || {
            let metrics = operator.metrics().await?;
            ensure!(
                metrics.contains("state=\"renewal_failing\"} 1")
                    && !metrics.contains("cert_renew_certificate_failures{namespace=\"\""),
                "not yet"
            );
            Ok(())
        },
    )
    .await?;
    Ok((operator, space))
}

async fn certificates(operator: &Operator<'_>) -> Result<Value> {
    Ok(serde_json::from_str(
        &operator.ask("/api/certificates").await?,
    )?)
}

fn names(value: &Value) -> Vec<&str> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn chromium_shows_every_certificate_with_and_without_script() -> Result<()> {
    let bench = Bench::shared().await?;
    let (operator, space) = started(bench, "shop").await?;
    let page = format!("http://{}/", operator.metrics_address());
    let mut browser = Browser::start(bench.directory())?;
    browser.open(&page)?;

    let json = certificates(&operator).await?;
    let facts = json["certificates"].as_array().expect("a list");
    ensure!(facts.len() == 11, "{json:#}");
    let rows = browser.evaluate(SHOWN)?;
    let told: Vec<&str> = facts.iter().filter_map(|it| it["name"].as_str()).collect();
    ensure!(names(&rows) == told, "page {rows}, JSON {told:?}");
    ensure!(
        told[0] == "legacy-tls" && told[1] == "checkout-tls",
        "{told:?}"
    );
    let failing = &facts[1];
    ensure!(
        failing["state"] == "renewal_failing" && failing["failures"].as_u64() >= Some(1),
        "{failing}"
    );
    let error = failing["lastError"].as_str().unwrap_or_default();
    let text = browser.evaluate("document.querySelectorAll('tbody tr')[1].textContent")?;
    let text = text.as_str().unwrap_or_default();
    ensure!(
        !error.is_empty() && text.contains(error) && text.contains("Next try"),
        "{error:?} in {text:?}"
    );
    used_by(&operator, &mut browser, &page).await?;
    // The bar of a healthy certificate begins, is renewed and ends in this order.
    let bar = "[...document.querySelectorAll('tbody tr')].find((row) => row.textContent.includes('/web-tls'))\
               .querySelector('.t')";
    let ends = browser.evaluate(&format!(
        "['--a','--b','--c'].map((it) => Number(getComputedStyle({bar}).getPropertyValue(it)))"
    ))?;
    let ends: Vec<i64> = serde_json::from_value(ends)?;
    ensure!(ends[0] < ends[1] && ends[1] < ends[2], "{ends:?}");

    widths(&mut browser, &page)?;
    one(&mut browser, &page)?;
    filters(&mut browser, operator.namespace())?;
    sorts(&mut browser)?;
    ends_soon(&mut browser, &page)?;
    without_script(&mut browser, &page)?;
    accessible(&mut browser, &page)?;
    refreshes(&mut browser, &page)?;
    ensure!(
        browser.complaints().is_empty(),
        "{:#?}",
        browser.complaints()
    );
    if let Some(directory) = env::var_os("CERT_RENEW_PICTURES").map(PathBuf::from) {
        browser.prefer("light")?;
        browser.open(&page)?;
        browser.picture(&directory.join("status-page.png"), 1280, 840)?;
        let one = format!("{page}?namespace={}&name=checkout-tls", space.name);
        for scheme in ["light", "dark"] {
            browser.prefer(scheme)?;
            for (what, page) in [("", &page), ("-one", &one)] {
                browser.open(page)?;
                for width in WIDTHS {
                    let name = format!("status-page{what}-{width}-{scheme}.png");
                    let height = if what.is_empty() { 900 } else { 1300 };
                    browser.picture(&directory.join(name), width, height)?;
                }
            }
        }
    }
    drop(space);
    Ok(())
}

/// The row and the JSON say who uses a certificate, and that can be searched for.
async fn used_by(operator: &Operator<'_>, browser: &mut Browser, page: &str) -> Result<()> {
    let row = eventually(
        Duration::from_secs(60),
        "the workloads are known",
        async || {
            let json = certificates(operator).await?;
            let rows = json["certificates"].as_array().expect("a list");
            let row = rows.iter().find(|row| row["name"] == "web-tls");
            let row = row.expect("it is there").clone();
            ensure!(row["usedBy"] != Value::Null, "{row}");
            Ok(row)
        },
    )
    .await?;
    let users = json!([
        {"workload": "deployment/web", "state": "has"},
        {"workload": "daemonset/cache", "state": "has"},
    ]);
    ensure!(row["usedBy"]["workloads"] == users, "{row}");
    browser.open(&format!("{page}?q=daemonset/cache"))?;
    ensure!(
        names(&browser.evaluate(SHOWN)?) == ["web-tls"],
        "found by a workload"
    );
    let cell = browser.evaluate("document.querySelector('tbody tr').cells[7].textContent")?;
    let cell = cell.as_str().unwrap_or_default();
    ensure!(
        cell.starts_with("donedeployment/web, daemonset/cacheas of 20"),
        "{cell}"
    );
    browser.open(page)
}

/// A phone, a tablet, a laptop and a large screen: nothing is wider than the window, and what is wrong can be read.
fn widths(browser: &mut Browser, page: &str) -> Result<()> {
    for width in WIDTHS {
        browser.resize(width, 800)?;
        browser.open(page)?;
        let wide = browser.evaluate("document.documentElement.scrollWidth")?;
        ensure!(wide.as_u64() <= Some(width.into()), "{width}: {wide}");
        let error = "[...document.querySelectorAll('td.e')].find((it) => it.textContent).getBoundingClientRect().width";
        let room = browser.evaluate(error)?.as_f64().unwrap_or_default();
        ensure!(
            room >= 0.7 * f64::from(width),
            "{width}: what is wrong has {room} pixels"
        );
        let link = "[...document.querySelectorAll('tbody th a')].find((it) => it.textContent.endsWith('/checkout-tls')).href";
        let link = browser.evaluate(link)?;
        browser.open(link.as_str().unwrap_or_default())?;
        let wide = browser.evaluate("document.documentElement.scrollWidth")?;
        ensure!(
            wide.as_u64() <= Some(width.into()),
            "the view of one at {width}: {wide}"
        );
    }
    browser.resize(1280, 800)?;
    browser.open(page)
}

/// A click on a Secret leads to the view of it, with commands to copy.
fn one(browser: &mut Browser, page: &str) -> Result<()> {
    let link = "[...document.querySelectorAll('tbody th a')].find((it) => it.textContent.endsWith('/checkout-tls')).href";
    let link = browser.evaluate(link)?;
    browser.open(link.as_str().unwrap_or_default())?;
    let text = browser.evaluate("document.querySelector('main').textContent")?;
    let text = text.as_str().unwrap_or_default();
    for part in [
        "renewal fails",
        "pay.shop.example",
        "cert-renew describe",
        "kubectl -n",
    ] {
        ensure!(text.contains(part), "{part}: {text}");
    }
    browser.open(page)
}

/// As somebody types; the command that renews names what is left.
fn filters(browser: &mut Browser, operator: &str) -> Result<()> {
    browser.evaluate("document.querySelector('#q').focus()")?;
    browser.ask("Input.insertText", json!({"text": "PAY.shop"}))?;
    browser.until("document.querySelector('output').value === '1 of 11 shown'")?;
    let shown = browser.evaluate(SHOWN)?;
    ensure!(
        names(&shown) == ["checkout-tls"],
        "found by a host: {shown}"
    );
    ensure!(
        browser.evaluate("location.search")? == "?q=PAY.shop",
        "the address says what is shown"
    );
    let renew = browser.evaluate("document.querySelector('#renew').textContent")?;
    let renew = renew.as_str().unwrap_or_default();
    let end = format!("/checkout-tls --wait --operator-namespace {operator}");
    let one = renew.strip_prefix("cert-renew renew ");
    ensure!(
        one.is_some_and(|it| it.ends_with(&end) && it.matches('/').count() == 1),
        "{renew}"
    );
    browser.evaluate(
        "const f = document.forms[0]; f.q.value = ''; f.state.value = 'paused'; \
         f.state.dispatchEvent(new Event('change', {bubbles: true}))",
    )?;
    browser.until("document.querySelector('output').value === '1 of 11 shown'")?;
    let shown = browser.evaluate(SHOWN)?;
    ensure!(names(&shown) == ["blog-tls"], "{shown}");
    let hidden = browser.evaluate("document.querySelector('#renew').hidden")?;
    ensure!(hidden == true, "it would name what is never renewed");
    browser.evaluate("f.state.value = ''; f.state.dispatchEvent(new Event('change'))")?;
    Ok(())
}

/// As somebody clicks.
fn sorts(browser: &mut Browser) -> Result<()> {
    let click = "document.querySelector('th[data-sort=ends] a').click()";
    let sorted = "document.querySelector('th[data-sort=ends]').ariaSort";
    browser.evaluate(click)?;
    ensure!(browser.evaluate(sorted)? == "ascending", "not told");
    let rows = browser.evaluate(SHOWN)?;
    ensure!(names(&rows)[..2] == ["legacy-tls", "edge-tls"], "{rows}");
    browser.evaluate(click)?;
    ensure!(browser.evaluate(sorted)? == "descending", "not told");
    let rows = browser.evaluate(SHOWN)?;
    ensure!(names(&rows).last() == Some(&"legacy-tls"), "{rows}");
    browser.evaluate("document.querySelector('th[data-sort=renews] a').click()")?;
    let when = "[...document.querySelectorAll('tbody tr')].map((row) => row.cells[4].textContent)";
    let when = browser.evaluate(when)?;
    let last = names(&when).split_off(7);
    ensure!(
        last == ["never"; 4],
        "what is never renewed is last: {when}"
    );
    let now = names(&when).iter().rposition(|it| *it == "now");
    let dated = names(&when).iter().position(|it| it.starts_with("20"));
    ensure!(now < dated || dated.is_none(), "{when}");
    Ok(())
}

/// What expires within 30 days is one click.
fn ends_soon(browser: &mut Browser, page: &str) -> Result<()> {
    browser.open(page)?;
    let link = "[...document.querySelectorAll('nav a')].find((it) => it.textContent === 'ends within 30 days 4')";
    browser.evaluate(&format!("{link}.click()"))?;
    browser.loaded()?;
    let rows = browser.evaluate(SHOWN)?;
    let expected = ["legacy-tls", "checkout-tls", "partner-tls", "edge-tls"];
    ensure!(names(&rows) == expected, "{rows}");
    let other = "[...document.querySelectorAll('nav a')].find((it) => it.textContent === 'ends within 30d ×').click()";
    browser.evaluate(other)?;
    browser.loaded()?;
    let rows = browser.evaluate(SHOWN)?;
    ensure!(names(&rows).len() == 11, "{rows}");
    Ok(())
}

/// The same by the server.
fn without_script(browser: &mut Browser, page: &str) -> Result<()> {
    let disabled = |value: bool| json!({ "value": value });
    browser.ask("Emulation.setScriptExecutionDisabled", disabled(true))?;
    browser.open(&format!("{page}?q=shop.example&state=trouble&sort=-ends"))?;
    let rows = browser.evaluate(SHOWN)?;
    ensure!(
        names(&rows) == ["new-tls", "checkout-tls", "legacy-tls"],
        "{rows}"
    );
    // The form and the headings ask on from what was asked.
    let asked = browser
        .evaluate("document.querySelector('#q').value + document.querySelector('#state').value")?;
    ensure!(asked == "shop.exampletrouble", "{asked}");
    browser.evaluate("document.querySelector('button').click()")?;
    browser.loaded()?;
    let rows = browser.evaluate(SHOWN)?;
    ensure!(
        names(&rows)[0] == "new-tls",
        "the form keeps the order that was asked for: {rows}"
    );
    browser.ask("Emulation.setScriptExecutionDisabled", disabled(false))?;
    Ok(())
}

/// What a screen reader is told, and whether everybody can read the colours.
fn accessible(browser: &mut Browser, page: &str) -> Result<()> {
    browser.open(page)?;
    let link = "[...document.querySelectorAll('tbody th a')].find((it) => it.textContent.endsWith('/checkout-tls')).href";
    let one = browser.evaluate(link)?;
    let one = one.as_str().unwrap_or_default();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme)?;
        for width in WIDTHS {
            browser.resize(width, 800)?;
            // The list last: what follows is about it.
            for page in [one, page] {
                browser.open(page)?;
                let worst = browser.evaluate(CONTRAST)?;
                ensure!(
                    worst[0].as_f64() >= Some(4.5),
                    "{page}, {scheme}, {width}: {worst}"
                );
                named(browser, page)?;
            }
        }
    }
    browser.resize(1280, 800)?;
    browser.open(page)?;
    let background = browser.evaluate("getComputedStyle(document.body).backgroundColor")?;
    ensure!(background == "rgb(20, 24, 29)", "dark is {background}");
    let tree = browser.ask("Accessibility.getFullAXTree", json!({}))?;
    let nodes = tree["nodes"].as_array().expect("a list");
    let of = |role: &str| {
        let nodes = nodes.iter().filter(|node| node["role"]["value"] == role);
        nodes
            .map(|node| {
                node["name"]["value"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect::<Vec<_>>()
    };
    ensure!(of("rowheader").len() == 11, "{:?}", of("rowheader"));
    ensure!(of("columnheader").len() == 9, "{:?}", of("columnheader"));
    ensure!(of("searchbox") == ["Find"], "{:?}", of("searchbox"));
    ensure!(of("combobox") == ["State"], "{:?}", of("combobox"));
    for role in ["main", "navigation", "table", "heading"] {
        ensure!(of(role).len() == 1, "{role}: {:?}", of(role));
    }
    Ok(())
}

/// The page asks again by itself, unless somebody does not want that. Its minute is two seconds here.
fn refreshes(browser: &mut Browser, page: &str) -> Result<()> {
    let faster = "const real = setInterval; window.setInterval = (call, after) => \
                  real(() => { window.asked = (window.asked ?? 0) + 1; call(); }, after / 30)";
    let faster = json!({"source": faster});
    let added = browser.ask("Page.addScriptToEvaluateOnNewDocument", faster)?;
    browser.open(page)?;
    // Not under the hands of somebody who copies a command.
    let commands = "document.querySelector('#renew').closest('details').open";
    browser.evaluate(&format!("{commands} = true; window.before = true"))?;
    browser.until("window.asked >= 3")?;
    let stays = browser.evaluate("window.before === true")?;
    ensure!(stays == true, "it folds the commands up");
    browser.evaluate(&format!("{commands} = false"))?;
    browser.loaded()?;
    let gone = browser.evaluate("window.before === undefined")?;
    ensure!(gone == true, "another page was loaded");
    browser.evaluate("document.querySelector('#refresh').click(); window.before = true")?;
    browser.until("window.asked >= 3")?;
    let stays = browser.evaluate("window.before === true")?;
    ensure!(stays == true, "it refreshes although nobody wants that");
    browser.ask(
        "Page.removeScriptToEvaluateOnNewDocument",
        json!({"identifier": added["identifier"]}),
    )?;
    browser.open(page)
}

/// Whatever can be used has a name, and there is one main part with a heading.
fn named(browser: &mut Browser, page: &str) -> Result<()> {
    let tree = browser.ask("Accessibility.getFullAXTree", json!({}))?;
    let nodes = tree["nodes"].as_array().expect("a list");
    let of = |role: &'static str| {
        let nodes = nodes
            .iter()
            .filter(move |node| node["role"]["value"] == role);
        nodes.map(|node| node["name"]["value"].as_str().unwrap_or_default())
    };
    for role in ["link", "button", "searchbox", "combobox", "heading"] {
        ensure!(
            of(role).all(|name| !name.trim().is_empty()),
            "{page}: a {role} without a name"
        );
    }
    let mains = of("main").count();
    ensure!(mains == 1 && of("heading").count() >= 1, "{page}: {mains}");
    Ok(())
}

#[tokio::test]
async fn what_others_write_is_shown_and_does_nothing() -> Result<()> {
    let bench = Bench::shared().await?;
    let options = OperatorOptions::new(env!("CARGO_BIN_EXE_cert-renew"));
    let mut operator = Operator::install(bench, options).await?;
    let space = Space::new(bench.client()?, "hostile", operator.namespace()).await?;
    let waiting = [
        ("issuer", "pebble"),
        ("names", "a.example"),
        ("paused", "true"),
    ];
    space.tls_secret("hostile", None, &waiting).await?;
    let error = json!({"metadata": {"annotations": {"state.cert-renew.io/last-error": HOSTILE}}});
    space
        .secrets()
        .patch("hostile", &PatchParams::default(), &Patch::Merge(error))
        .await?;
    operator.run().await?;
    let mut browser = Browser::start(&bench.directory().join("hostile"))?;
    browser.open(&format!(
        "http://{}/?q=%22%3E%3Cscript%3Ewindow.hacked=3%3C/script%3E",
        operator.metrics_address()
    ))?;
    ensure!(
        browser.evaluate("document.querySelector('#q').value.length")? == 34,
        "the query"
    );
    browser.open(&format!("http://{}/", operator.metrics_address()))?;
    let text = browser.evaluate("document.querySelector('.e').textContent")?;
    let expected = HOSTILE.replace('\u{202e}', "\\u{202e}");
    ensure!(text == expected, "{text}");
    ensure!(
        browser.evaluate("typeof window.hacked")? == "undefined",
        "it ran"
    );
    ensure!(
        browser.evaluate("document.querySelectorAll('img').length")? == 0,
        "an image"
    );
    ensure!(
        browser.complaints().is_empty(),
        "{:?}",
        browser.complaints()
    );
    // Should markup ever come through, the policy keeps it from running.
    browser.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.hacked=4>'); \
                      const s = document.createElement('script'); s.textContent = 'window.hacked=5'; document.body.append(s)")?;
    ensure!(
        browser.evaluate("typeof window.hacked")? == "undefined",
        "the policy let it run"
    );
    Ok(())
}
