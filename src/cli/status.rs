//! `cert-renew status`: the annotated Secrets as a table, with the reader's own rights.
//!
//! It reads what stands on the Secrets themselves, asks no operator and needs no config file: defaults of the config
//! (an issuer or `renewBefore` for a namespace) are not known here. Private keys do not cross into this process's memory
//! beyond the answer's buffer: the Secrets are decoded by the thin type.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use kube::api::{Api, ListParams};
use serde::Serialize;

use super::{CommandResult, Failure, block_on};
use crate::certificate::{Leaf, Unreadable};
use crate::cluster;
use crate::duration;
use crate::schedule::budget::hash;
use crate::schedule::due::{self, Inputs, Never};
use crate::secret::keys;
use crate::secret::settings::{NamespaceDefaults, Settings};
use crate::secret::state::{IssuedBy, RolledOut};
use crate::secret::thin::{CertificateState, ThinSecret};
use crate::text::shown;
use crate::time::UnixTime;

/// Secrets in a page of the list.
const PAGE: u32 = 250;

#[derive(Debug, Parser)]
pub(super) struct Args {
    /// Namespace; that of the kubeconfig's context otherwise
    #[arg(short, long)]
    namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// One JSON list
    Json,
}

/// One annotated Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// In one word: ok, due, failing, expired, absent, unreadable, paused.
    pub state: &'static str,
    /// Who renews it.
    pub issuer: String,
    /// Names in the certificate.
    pub names: Vec<String>,
    /// End of the certificate.
    pub expires: Option<String>,
    /// When it is renewed, `now` where it is due; none where cert-renew does not renew it.
    pub renews: Option<String>,
    /// In one word: done, pending, halted, none yet.
    pub rollout: &'static str,
    /// What went wrong last.
    pub last_error: Option<String>,
    #[serde(skip)]
    ends: Option<UnixTime>,
    #[serde(skip)]
    due: Option<UnixTime>,
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn run(args: Args) -> CommandResult {
    let rows = block_on(async {
        let client = cluster::connect(None)
            .await
            .map_err(|error| Failure::new("finding the way to the API server", &*error))?;
        let namespace = args
            .namespace
            .clone()
            .unwrap_or_else(|| client.default_namespace().to_owned());
        let api: Api<ThinSecret> = if args.all_namespaces {
            Api::all(client)
        } else {
            Api::namespaced(client, &namespace)
        };
        list(&api).await
    })?;
    let now = UnixTime::now();
    let rows: Vec<Row> = rows.iter().filter_map(|secret| row(now, secret)).collect();
    match args.output {
        Output::Json => {
            let text = serde_json::to_string_pretty(&rows);
            println!(
                "{}",
                text.map_err(|error| Failure::new("printing", &error))?
            );
        }
        Output::Table if rows.is_empty() => {
            // Nothing on standard output: whoever pipes it on gets an empty list.
            let _ = writeln!(
                std::io::stderr(),
                "no Secret is annotated here; annotate one with {}=<issuer>, or look everywhere with -A",
                keys::ISSUER
            );
        }
        Output::Table => print!("{}", table(now, &rows, std::io::stdout().is_terminal())),
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(api: &Api<ThinSecret>) -> Result<Vec<ThinSecret>, Failure> {
    let tls = ListParams::default()
        .fields("type=kubernetes.io/tls")
        .limit(PAGE);
    let labelled = ListParams::default()
        .labels(&format!("{}=true", keys::MANAGED_LABEL))
        .fields("type!=kubernetes.io/tls")
        .limit(PAGE);
    let mut secrets = Vec::new();
    for mut params in [tls, labelled] {
        loop {
            let page = api
                .list(&params)
                .await
                .map_err(|error| Failure::new("listing Secrets", &error))?;
            secrets.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
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

/// What a Secret says of itself; None when it is not annotated.
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
    let due = due::due(&Inputs {
        leaf: leaf.as_ref(),
        settings: &settings,
        blocked: false,
        issued_by: IssuedBy::read(annotations).as_ref(),
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
        names: leaf
            .iter()
            .flat_map(|leaf| &leaf.names)
            .map(ToString::to_string)
            .collect(),
        expires: leaf.as_ref().ok().map(|leaf| leaf.not_after.to_string()),
        renews: renews.map(|at| {
            if at <= now {
                "now".into()
            } else {
                at.to_string()
            }
        }),
        rollout: rollout(&leaf, annotations),
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
) -> &'static str {
    if annotations.contains_key(keys::ROLLOUT_HALTED) {
        return "halted";
    }
    match (leaf, RolledOut::read(annotations)) {
        (_, None) => "none yet",
        (Ok(leaf), Some(had)) if had.fingerprint() == Some(leaf.fingerprint) => "done",
        (Err(_), Some(_)) => "done",
        _ => "pending",
    }
}

/// Columns as wide as they need to be; what is in trouble stands out on a terminal.
fn table(now: UnixTime, rows: &[Row], colours: bool) -> String {
    const TITLES: [&str; 8] = [
        "NAMESPACE",
        "NAME",
        "STATE",
        "EXPIRES",
        "RENEWS",
        "ISSUER",
        "ROLLOUT",
        "LAST ERROR",
    ];
    let lines: Vec<[String; 8]> = rows
        .iter()
        .map(|row| {
            [
                row.namespace.clone(),
                row.name.clone(),
                row.state.to_owned(),
                row.ends.map_or_else(|| "-".into(), |at| relative(now, at)),
                row.due.map_or_else(
                    || "-".into(),
                    |at| {
                        if at <= now {
                            "now".into()
                        } else {
                            relative(now, at)
                        }
                    },
                ),
                row.issuer.clone(),
                row.rollout.to_owned(),
                // An error may hold what somebody else wrote: it goes to a terminal only quoted.
                row.last_error.as_deref().map_or_else(|| "-".into(), shown),
            ]
        })
        .collect();
    let widths: Vec<usize> = TITLES
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = lines.iter().map(|line| line[column].chars().count());
            cells.max().unwrap_or(0).max(title.len())
        })
        .collect();
    let mut out = String::new();
    let titles = TITLES.map(str::to_owned);
    for (number, line) in std::iter::once(&titles).chain(&lines).enumerate() {
        let state = line[2].as_str();
        let colour = match state {
            "expired" | "failing" | "unreadable" => Some("31"),
            "absent" | "due" => Some("33"),
            _ => None,
        };
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                let padded = if column == TITLES.len() - 1 {
                    cell.clone()
                } else {
                    format!("{cell:width$}")
                };
                match colour {
                    Some(colour) if colours && number > 0 && column == 2 => {
                        format!("\u{1b}[{colour}m{padded}\u{1b}[0m")
                    }
                    _ => padded,
                }
            })
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
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
                }),
            ),
            secret(
                "failing",
                "good.pem",
                &json!({
                    "cert-renew.io/issuer": "letsencrypt",
                    "state.cert-renew.io/last-error": "no\u{1b}[2J way",
                    "state.cert-renew.io/rolled-out": "none",
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
        assert_eq!(table(now, &rows, false), expected);
        let json = serde_json::to_value(&rows).unwrap();
        assert_eq!(json[1]["state"], "ok");
        assert_eq!(json[1]["rollout"], "done");
        assert_eq!(json[0]["renews"], "now");
    }

    fn certificate_fingerprint() -> String {
        let path = format!(
            "{}/testdata/certificates/good.pem",
            env!("CARGO_MANIFEST_DIR")
        );
        crate::certificate::leaf(&std::fs::read(path).unwrap())
            .unwrap()
            .fingerprint
            .to_string()
    }
}
