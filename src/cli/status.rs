//! `cert-renew status`: the annotated Secrets as a table, with the user's own rights.
//!
//! It reads only the Secrets themselves, without the operator and the config file: defaults of the config (an issuer or
//! `renewBefore` for a namespace) are unknown here. Private keys enter this process's memory only in the answer's
//! buffer: the Secrets are decoded by the thin type.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;

use cert_renew_core::certificate::{Leaf, Unreadable};
use cert_renew_core::rollout::HaltNote;
use cert_renew_core::schedule::due::{self, Inputs, Never};
use cert_renew_core::secret::keys;
use cert_renew_core::secret::parts::ChainAndCa;
use cert_renew_core::secret::settings::{NamespaceDefaults, Settings};
use cert_renew_core::secret::state::{IssuedBy, RolledOut};
use cert_renew_core::secret::thin::{CertificateState, ThinSecret};
use cert_renew_core::secret::used_by::UsedBy;
use cert_renew_core::text::error_chain;
use cert_renew_core::text::hash::hash;
use cert_renew_core::text::shown;
use cert_renew_core::time::UnixTime;
use cert_renew_core::time::duration;
use clap::Parser;
use futures::{StreamExt as _, stream};
use kube::api::{Api, ListParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use serde::Serialize;

use super::kube_flags::Scope;
use super::output::{Output, Paint, Screen, Table};
use super::{CommandResult, Failure, block_on};
use crate::cluster::pages::Pages;

/// Secrets in a page of the list.
const PAGE: u32 = 250;

#[derive(Debug, Parser)]
pub(super) struct Args {
    #[command(flatten)]
    scope: Scope,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Go on, and print what changes, until interrupted
    #[arg(short, long)]
    watch: bool,
}

/// One annotated Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// A word: ok, due, failing, expired, absent, unreadable, paused; in a watch also deleted.
    pub state: &'static str,
    /// The issuer that renews it.
    pub issuer: String,
    /// URL of the CA account of the order, for a CAA record with `accounturi`.
    pub account: Option<String>,
    /// Names in the certificate.
    pub names: Vec<String>,
    /// Start of validity of the certificate.
    pub valid_from: Option<String>,
    /// End of validity of the certificate.
    pub expires: Option<String>,
    /// When it is renewed, `now` if it is due; none if cert-renew does not renew it.
    pub renews: Option<String>,
    /// A word: done, pending, halted, none yet.
    pub rollout: &'static str,
    /// The workloads that use it, and what they serve, according to the last rollout.
    pub used_by: Option<UsedBy>,
    /// When a failed renewal is tried again.
    pub retry_at: Option<String>,
    /// The last error.
    pub last_error: Option<String>,
    #[serde(skip)]
    ends: Option<UnixTime>,
    #[serde(skip)]
    due: Option<UnixTime>,
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn run(args: Args) -> CommandResult {
    block_on(async {
        let client = args.scope.client().await?;
        let api: Api<ThinSecret> = args.scope.api(&client);
        let secrets = list(&api).await?;
        let now = UnixTime::now();
        let rows: Vec<Row> = secrets
            .iter()
            .filter_map(|secret| row(now, secret))
            .collect();
        if args.watch {
            return follow(&api, &args, rows).await;
        }
        match args.output.of_program(&rows)? {
            Some(text) => print!("{text}"),
            None if rows.is_empty() => nothing(),
            None => {
                print!("{}", table(now, &rows, args.output, Screen::of_stdout()));
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Prints nothing on standard output: a pipe gets an empty list.
fn nothing() {
    // There is no other output if standard error is closed.
    let _ = writeln!(
        std::io::stderr(),
        "no Secret is annotated here; annotate one with {}=<issuer>, or look everywhere with -A",
        keys::ISSUER
    );
}

/// Prints the rows, and then each changed one, as `kubectl get --watch` does.
#[expect(clippy::print_stdout, reason = "the command's answer")]
async fn follow(api: &Api<ThinSecret>, args: &Args, rows: Vec<Row>) -> CommandResult {
    let now = UnixTime::now();
    let lines: Vec<_> = rows.iter().map(|row| cells(now, row)).collect();
    let layout = Layout::new(&lines, args.output, Screen::of_stdout());
    let print = |row: &Row| {
        match args.output {
            Output::Json => println!("{}", serde_json::to_string(row).unwrap_or_default()),
            Output::Yaml => {
                let text = args.output.of_program(row);
                print!("---\n{}", text.ok().flatten().unwrap_or_default());
            }
            Output::Table | Output::Wide => {
                print!("{}", layout.line(cells(UnixTime::now(), row)));
            }
        }
        // A closed pipe ends the command at the next line.
        let _ = std::io::stdout().flush();
    };
    if matches!(args.output, Output::Table | Output::Wide) {
        print!("{}", layout.head());
    }
    rows.iter().for_each(&print);
    let mut known: BTreeMap<(String, String), Row> =
        rows.into_iter().map(|row| (row.place(), row)).collect();
    let selected = |config: watcher::Config| watch(api.clone(), config).default_backoff().boxed();
    let mut events = stream::select_all([
        selected(watcher::Config::default().fields("type=kubernetes.io/tls")),
        selected(
            watcher::Config::default()
                .labels(&format!("{}=true", keys::MANAGED_LABEL))
                .fields("type!=kubernetes.io/tls"),
        ),
    ]);
    while let Some(event) = events.next().await {
        let now = UnixTime::now();
        let (secret, deleted) = match event {
            Ok(Event::Apply(secret) | Event::InitApply(secret)) => (secret, false),
            Ok(Event::Delete(secret)) => (secret, true),
            Ok(Event::Init | Event::InitDone) => continue,
            Err(error) => {
                let _ = writeln!(
                    std::io::stderr(),
                    "watching Secrets: {}",
                    error_chain(&error)
                );
                continue;
            }
        };
        let place = (
            secret.head.namespace().to_owned(),
            secret.head.name().to_owned(),
        );
        match row(now, &secret).filter(|_| !deleted) {
            Some(row) if known.get(&place) == Some(&row) => {}
            Some(row) => {
                print(&row);
                known.insert(place, row);
            }
            None => {
                if let Some(row) = known.remove(&place) {
                    print(&Row {
                        state: "deleted",
                        ..row
                    });
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(api: &Api<ThinSecret>) -> Result<Vec<ThinSecret>, Failure> {
    let tls = ListParams::default().fields("type=kubernetes.io/tls");
    let labelled = ListParams::default()
        .labels(&format!("{}=true", keys::MANAGED_LABEL))
        .fields("type!=kubernetes.io/tls");
    let mut secrets = Vec::new();
    for params in [tls, labelled] {
        let mut pages = Pages::of(params, PAGE);
        while let Some(params) = pages.next() {
            let page = api.list(params).await;
            let page = page.map_err(|error| Failure::new("listing Secrets", &error))?;
            secrets.extend(page.items);
            pages.came(&page.metadata);
        }
    }
    secrets.sort_by(|one, other| {
        let place = |secret: &ThinSecret| {
            (
                secret.head.namespace().to_owned(),
                secret.head.name().to_owned(),
            )
        };
        place(one).cmp(&place(other))
    });
    Ok(secrets)
}

/// The status that a Secret contains; None if it is not annotated.
#[must_use]
pub fn row(now: UnixTime, secret: &ThinSecret) -> Option<Row> {
    let head = &secret.head;
    let none = BTreeMap::new();
    let annotations = head.annotations().unwrap_or(&none);
    let (settings, _) = Settings::read(annotations, head.managed, &NamespaceDefaults::default());
    let settings = settings?;
    let leaf = match secret.certificate() {
        CertificateState::Leaf(leaf) => Ok(*leaf),
        CertificateState::Absent => Err(Unreadable::Empty),
        CertificateState::Unreadable(reason) => Err(reason),
    };
    let issued_by = IssuedBy::read(annotations);
    let due = due::due(&Inputs {
        staged: false,
        leaf: leaf.as_ref(),
        settings: &settings,
        blocked: false,
        issued_by: issued_by.as_ref(),
        renewed_for: head.annotation(keys::RENEWED_FOR),
        renewal_info: None,
        seed: hash(&head.place()),
    });
    let renews = due.ok().map(|due| due.at);
    let last_error = head.annotation(keys::LAST_ERROR);
    Some(Row {
        namespace: head.namespace().to_owned(),
        name: head.name().to_owned(),
        state: state(now, &leaf, due.err(), renews, last_error),
        issuer: settings.issuer.to_string(),
        account: issued_by.and_then(|by| by.account).map(Into::into),
        names: leaf
            .iter()
            .flat_map(|leaf| &leaf.names)
            .map(ToString::to_string)
            .collect(),
        valid_from: leaf.as_ref().ok().map(|leaf| leaf.not_before.to_string()),
        expires: leaf.as_ref().ok().map(|leaf| leaf.not_after.to_string()),
        renews: renews.map(|at| {
            if at <= now {
                "now".into()
            } else {
                at.to_string()
            }
        }),
        rollout: rollout(&leaf, annotations, head.uid(), |had| {
            let chain = leaf.as_ref().map_or(0, |leaf| leaf.chain);
            ChainAndCa::counting(chain, secret.ca(), settings.rollout_on, had)
        }),
        used_by: head
            .annotation(keys::USED_BY)
            .and_then(|it| it.parse().ok()),
        retry_at: head.annotation(keys::RETRY_AT).map(ToOwned::to_owned),
        last_error: last_error.map(ToOwned::to_owned),
        ends: leaf.as_ref().ok().map(|leaf| leaf.not_after),
        due: renews,
    })
}

fn state(
    now: UnixTime,
    leaf: &Result<Leaf, Unreadable>,
    never: Option<Never>,
    renews: Option<UnixTime>,
    last_error: Option<&str>,
) -> &'static str {
    match leaf {
        Ok(leaf) if leaf.not_after < now => "expired",
        _ if last_error.is_some() => "failing",
        Err(Unreadable::Empty) => "absent",
        Err(_) => "unreadable",
        Ok(_) if never == Some(Never::Paused) => "paused",
        Ok(_) if renews.is_some_and(|at| at <= now) => "due",
        Ok(_) => "ok",
    }
}

fn rollout(
    leaf: &Result<Leaf, Unreadable>,
    annotations: &BTreeMap<String, String>,
    uid: &str,
    with: impl Fn(Option<ChainAndCa>) -> ChainAndCa,
) -> &'static str {
    let halted = annotations.get(keys::ROLLOUT_HALTED);
    if halted.is_some_and(|note| HaltNote::holds(note)) {
        return "halted";
    }
    match (leaf, RolledOut::read(annotations, uid)) {
        (_, None) => "none yet",
        (Ok(leaf), Some(had)) if had.is(leaf.fingerprint, with(had.with())) => "done",
        (Err(_), Some(_)) => "done",
        _ => "pending",
    }
}

impl Row {
    fn place(&self) -> (String, String) {
        (self.namespace.clone(), self.name.clone())
    }
}

const TITLES: [&str; 13] = [
    "NAMESPACE",
    "NAME",
    "STATE",
    "EXPIRES",
    "RENEWS",
    "ISSUER",
    "ROLLOUT",
    "VALID FROM",
    "RETRY AT",
    "NAMES",
    "WORKLOADS",
    "ACCOUNT",
    "LAST ERROR",
];
/// The columns that only the wide table has.
const WIDE: std::ops::Range<usize> = 7..12;
const NARROW: usize = TITLES.len() - 5;

/// The normal table, or the wide one.
enum Layout {
    Narrow(Table<NARROW>),
    Wide(Table<{ TITLES.len() }>),
}

impl Layout {
    fn new(lines: &[[String; TITLES.len()]], output: Output, screen: Screen) -> Self {
        let paint = screen.colours.then_some((2, colour as Paint));
        if output == Output::Wide {
            return Self::Wide(Table::new(TITLES, lines, paint));
        }
        let mut titles = TITLES.into_iter().enumerate();
        let titles = std::array::from_fn(|_| {
            let next = titles.find(|(column, _)| !WIDE.contains(column));
            next.map_or("", |(_, title)| title)
        });
        let lines: Vec<_> = lines.iter().cloned().map(narrow).collect();
        Self::Narrow(Table::new(titles, &lines, paint).fit(screen, &[NARROW - 1]))
    }

    fn head(&self) -> String {
        match self {
            Self::Narrow(table) => table.head(),
            Self::Wide(table) => table.head(),
        }
    }

    fn line(&self, cells: [String; TITLES.len()]) -> String {
        match self {
            Self::Narrow(table) => table.line(&narrow(cells)),
            Self::Wide(table) => table.line(&cells),
        }
    }
}

fn cells(now: UnixTime, row: &Row) -> [String; TITLES.len()] {
    let none = || "-".to_owned();
    let text = |text: &Option<String>| text.as_deref().map_or_else(none, shown_plain);
    [
        row.namespace.clone(),
        row.name.clone(),
        row.state.to_owned(),
        row.ends.map_or_else(none, |at| relative(now, at)),
        row.due.map_or_else(none, |at| {
            if at <= now {
                "now".into()
            } else {
                relative(now, at)
            }
        }),
        row.issuer.clone(),
        row.rollout.to_owned(),
        text(&row.valid_from),
        text(&row.retry_at),
        if row.names.is_empty() {
            none()
        } else {
            row.names.join(",")
        },
        row.used_by.as_ref().map_or_else(none, workloads),
        row.account.as_deref().map_or_else(none, shown_url),
        // An error may contain foreign text: a terminal gets it only quoted.
        row.last_error.as_deref().map_or_else(none, shown),
    ]
}

fn workloads(used_by: &UsedBy) -> String {
    let proven = used_by.proven.as_ref().map(|it| it.in_words());
    let parts = [used_by.in_words()].into_iter().chain(proven);
    parts.collect::<Vec<_>>().join("; ")
}

/// Instants and similar values, quoted only if they contain something else.
fn shown_plain(text: &str) -> String {
    let plain = text.parse::<UnixTime>().is_ok();
    if plain { text.to_owned() } else { shown(text) }
}

/// A URL as it is; anything else quoted.
fn shown_url(text: &str) -> String {
    let plain = text
        .parse::<http::Uri>()
        .is_ok_and(|url| url.scheme().is_some());
    if plain { text.to_owned() } else { shown(text) }
}

/// Removes the columns of the wide table.
fn narrow(cells: [String; TITLES.len()]) -> [String; NARROW] {
    let kept = cells.into_iter().enumerate();
    let mut kept = kept.filter_map(|(column, cell)| (!WIDE.contains(&column)).then_some(cell));
    std::array::from_fn(|_| kept.next().unwrap_or_default())
}

/// Highlights problems on a terminal.
fn colour(state: &str) -> Option<&'static str> {
    match state {
        "expired" | "failing" | "unreadable" => Some("31"),
        "absent" | "due" => Some("33"),
        _ => None,
    }
}

fn table(now: UnixTime, rows: &[Row], output: Output, screen: Screen) -> String {
    let lines: Vec<_> = rows.iter().map(|row| cells(now, row)).collect();
    let layout = Layout::new(&lines, output, screen);
    let lines = lines.into_iter().map(|cells| layout.line(cells));
    layout.head() + &lines.collect::<String>()
}

fn relative(now: UnixTime, at: UnixTime) -> String {
    if at < now {
        format!("{} ago", duration::human(now.since(at)))
    } else {
        format!("in {}", duration::human(at.since(now)))
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use serde_json::json;

    use super::super::golden;
    use super::*;

    fn secret(name: &str, certificate: &str, annotations: &serde_json::Value) -> ThinSecret {
        let path = format!(
            "{}/testdata/certificates/{certificate}",
            env!("CARGO_MANIFEST_DIR")
        );
        let bytes = std::fs::read(path).unwrap_or_default();
        let crt = base64::prelude::BASE64_STANDARD.encode(bytes);
        // In the API server's order: metadata first.
        let text = format!(
            r#"{{"metadata": {}, "type": "kubernetes.io/tls", "data": {{"tls.crt": "{crt}"}}}}"#,
            json!({"namespace": "shop", "name": name, "annotations": annotations})
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_table_says_what_stands_on_the_secrets() {
        let now: UnixTime = "2026-02-01T00:00:00Z".parse().unwrap();
        let le = json!({"cert-renew.io/issuer": "letsencrypt"});
        let good = certificate_fingerprint();
        let rows: Vec<Row> = [
            secret(
                "new",
                "none",
                &json!({"cert-renew.io/issuer": "letsencrypt", "cert-renew.io/names": "a.example"}),
            ),
            secret(
                "fine",
                "good.pem",
                &json!({
                    "cert-renew.io/issuer": "letsencrypt",
                    "state.cert-renew.io/rolled-out": format!("{good} 2026-04-01T00:00:00Z"),
                    "state.cert-renew.io/issued-by":
                        r#"{"issuer":"letsencrypt","names":[],"account":"https://ca.example/acct/7"}"#,
                    "state.cert-renew.io/used-by": "2026-01-01T00:00:10Z deployment/web statefulset/db +2 web:443=3/4",
                }),
            ),
            secret(
                "failing",
                "good.pem",
                &json!({
                    "cert-renew.io/issuer": "letsencrypt",
                    "state.cert-renew.io/last-error": "no\u{1b}[2J way",
                    "state.cert-renew.io/retry-at": "2026-02-01T00:10:00Z",
                    "state.cert-renew.io/rolled-out": "none",
                    "state.cert-renew.io/issued-by":
                        r#"{"issuer":"letsencrypt","names":[],"account":"an\u001b account"}"#,
                }),
            ),
            secret(
                "watched",
                "good.pem",
                &json!({"cert-renew.io/issuer": "external"}),
            ),
            secret("unannotated", "good.pem", &json!({})),
            secret("other", "none", &le),
        ]
        .iter()
        .filter_map(|secret| row(now, secret))
        .collect();
        let expected = "\
NAMESPACE  NAME     STATE    EXPIRES  RENEWS      ISSUER       ROLLOUT   LAST ERROR
shop       new      absent   -        now         letsencrypt  none yet  -
shop       fine     ok       in 59d   in 28d 13h  letsencrypt  done      -
shop       failing  failing  in 59d   in 28d 17h  letsencrypt  pending   \"no\\u{1b}[2J way\"
shop       watched  ok       in 59d   -           external     none yet  -
shop       other    absent   -        -           letsencrypt  none yet  -
";
        let pipe = Screen::default();
        assert_eq!(table(now, &rows, Output::Table, pipe), expected);
        let wide = table(now, &rows, Output::Wide, pipe);
        golden("status-wide.txt", &wide);
        let json = Output::Json.of_program(&rows).unwrap().unwrap();
        golden("status.json", &json);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let yaml = Output::Yaml.of_program(&rows).unwrap().unwrap();
        let yaml: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(json, yaml);
        // The same facts, in words and as named fields.
        for (line, row) in wide.lines().skip(1).zip(json.as_array().unwrap()) {
            let names = row["names"].as_array().unwrap().iter();
            let users = row["usedBy"]["workloads"].as_array().into_iter().flatten();
            let users = users.map(|it| &it["workload"]);
            let proven = &row["usedBy"]["proven"];
            let of = |field: &str| row[field].as_str();
            let facts = [
                "namespace",
                "name",
                "state",
                "issuer",
                "rollout",
                "validFrom",
                "retryAt",
            ];
            let account = of("account").map_or_else(|| "-".into(), shown_url);
            assert!(line.contains(&account), "{account}: {line}");
            let facts = facts.into_iter().filter_map(of);
            let facts = facts.chain(names.chain(users).filter_map(|it| it.as_str()));
            for fact in facts.chain(proven["service"].as_str()) {
                assert!(line.contains(fact), "{fact}: {line}");
            }
            let error = of("lastError").map_or_else(|| "-".into(), shown);
            assert!(line.ends_with(&error), "{error}: {line}");
            assert_eq!(
                of("renews") == Some("now"),
                line.contains("  now  "),
                "{line}"
            );
        }
        let terminal = Screen {
            colours: true,
            columns: Some(80),
        };
        for line in table(
            now,
            &rows,
            Output::Table,
            Screen {
                colours: false,
                ..terminal
            },
        )
        .lines()
        {
            assert!(line.chars().count() <= 80 + 8, "{line}");
        }
        assert_eq!(
            table(
                now,
                &rows,
                Output::Wide,
                Screen {
                    colours: false,
                    ..terminal
                }
            ),
            wide
        );
        let coloured = table(now, &rows, Output::Table, terminal);
        assert!(
            coloured.contains("\u{1b}[31mfailing\u{1b}[0m"),
            "{coloured}"
        );
    }

    fn certificate_fingerprint() -> String {
        let path = format!(
            "{}/testdata/certificates/good.pem",
            env!("CARGO_MANIFEST_DIR")
        );
        cert_renew_core::certificate::leaf(&std::fs::read(path).unwrap())
            .unwrap()
            .fingerprint
            .to_string()
    }
}
