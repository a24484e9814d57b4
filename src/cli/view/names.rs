//! `cert-renew names`: which names a namespace may ask which issuer for, by the config's `allow`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use cert_renew_core::config::{Allow, Config, Labels};
use clap::Parser;
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::Api;
use serde::Serialize;

use crate::cli::connection::api_error::is_forbidden;
use crate::cli::connection::cluster_config::ConfigFlags;
use crate::cli::connection::kube_flags::NamespaceFlags;
use crate::cli::output::{Output, Screen, Table};
use crate::cli::verdicts::say;
use crate::cli::{CommandResult, Failure, block_on};

#[derive(Debug, Parser)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    place: NamespaceFlags,
    #[command(flatten)]
    config: ConfigFlags,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What a namespace may ask one issuer for.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    issuer: &'a str,
    /// Patterns, as in the config.
    names: Vec<String>,
    /// Patterns of rules that only count if the namespace's labels match; where those cannot be read.
    by_labels: Vec<String>,
    /// Whether Secrets of the namespace that name no issuer get this one.
    default: bool,
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(in crate::cli) fn run(args: Args) -> CommandResult {
    block_on(async {
        let client = args.place.client().await?;
        let namespace = args.place.namespace(&client);
        let config = args.config.read(&client).await?;
        let labels = labels(&client, namespace, &config).await?;
        let rows = rows(&config, namespace, labels.as_ref());
        if config.paused {
            say(paused(args.config.config.is_some()));
        }
        match args.output.of_program(&rows)? {
            Some(text) => print!("{text}"),
            None if !is_watched(&config, namespace) => println!(
                "Namespace {namespace} may ask for no name: it is not among watch.namespaces of the config."
            ),
            None => print!(
                "{}",
                text(namespace, &rows, args.output, Screen::of_stdout())
            ),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// That nothing is asked for by a config with `paused: true`, which is in force, or in a file.
fn paused(in_a_file: bool) -> &'static str {
    match in_a_file {
        true => "nothing would be asked for with this file: it has paused: true",
        false => "nothing is asked for at present: the config has paused: true",
    }
}

/// The namespace's labels, if the config asks for them; None also if the user may not read them.
pub(in crate::cli) async fn labels(
    client: &Client,
    namespace: &str,
    config: &Config,
) -> Result<Option<BTreeMap<String, String>>, Failure> {
    if !config.needs_namespace_labels() {
        return Ok(None);
    }
    let api: Api<Namespace> = Api::all(client.clone());
    match api.get_metadata(namespace).await {
        Ok(found) => Ok(Some(found.metadata.labels.unwrap_or_default())),
        Err(error) if is_forbidden(&error) => Ok(None),
        Err(error) => Err(Failure::new(
            &format!("reading namespace {namespace}"),
            &error,
        )),
    }
}

/// Whether the operator looks at Secrets of the namespace, if they are annotated and labelled.
fn is_watched(config: &Config, namespace: &str) -> bool {
    config.watch.misses(namespace, true, true).is_none()
}

/// What the namespace may ask each issuer for; issuers that give it nothing are left out.
fn rows<'a>(
    config: &'a Config,
    namespace: &str,
    labels: Option<&BTreeMap<String, String>>,
) -> Vec<Row<'a>> {
    let default = config.namespace(namespace).issuer.as_ref();
    let default = default.map(cert_renew_core::assess::issuer_name);
    let of = |(name, issuer): (&'a String, &'a cert_renew_core::config::Issuer)| {
        let known = labels.map_or(Labels::NotAsked, Labels::Are);
        let (mut names, mut by_labels) = (Vec::new(), Vec::new());
        for allow in &issuer.allow {
            if !allow.concerns(namespace, known) {
                continue;
            }
            let certain = allow.selector.is_none() || labels.is_some();
            let into = if certain { &mut names } else { &mut by_labels };
            add(allow, into);
        }
        Row {
            issuer: name,
            names,
            by_labels,
            default: default == Some(name),
        }
    };
    let rows = config.issuers.iter().map(of);
    let rows = rows.filter(|_| is_watched(config, namespace));
    rows.filter(|row| !row.names.is_empty() || !row.by_labels.is_empty())
        .collect()
}

/// Adds the patterns of a rule that are not there yet.
fn add(allow: &Allow, into: &mut Vec<String>) {
    for pattern in &allow.names {
        let pattern = pattern.to_string();
        if !into.contains(&pattern) {
            into.push(pattern);
        }
    }
}

fn text(namespace: &str, rows: &[Row<'_>], output: Output, screen: Screen) -> String {
    if rows.is_empty() {
        return format!(
            "Namespace {namespace} may ask for no name: no allow of the config is for it.\n"
        );
    }
    let lines: Vec<_> = rows
        .iter()
        .map(|row| {
            let default = if row.default { "yes" } else { "-" };
            let names = if row.names.is_empty() {
                "-".to_owned()
            } else {
                row.names.join(", ")
            };
            vec![row.issuer.to_owned(), default.to_owned(), names]
        })
        .collect();
    let screen = match output {
        Output::Wide => screen.uncut(),
        _ => screen,
    };
    let table = Table::new(&["ISSUER", "DEFAULT", "NAMES"], &lines, None).fit(screen, &[2]);
    let mut text = table.head();
    text.extend(lines.iter().map(|cells| table.line(cells)));
    for row in rows.iter().filter(|row| !row.by_labels.is_empty()) {
        let (issuer, names) = (row.issuer, row.by_labels.join(", "));
        text += &format!(
            "{issuer}: also {names}, if the labels of namespace {namespace} match; you may not read them\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "
issuers:
  letsencrypt:
    directory: https://a.example/
    allow:
      - {namespaces: [\"shop-*\"], names: [\"*.shop.example\", \"shop.example\"]}
      - {namespaces: [shop-eu], names: [\"shop.example\", \"**.eu.example\"]}
      - {namespaceSelector: {matchLabels: {team: web}}, names: [\"**.web.example\"]}
  internal:
    directory: https://b.example/
    allow: [{namespaces: [ops], names: [\"10.0.0.0/8\"]}]
defaults: {namespaces: {shop-eu: {issuer: letsencrypt}}}
";

    #[test]
    fn a_file_says_nothing_of_the_present() {
        assert!(paused(false).contains("at present"));
        assert!(!paused(true).contains("at present"));
    }

    #[test]
    fn a_namespace_sees_what_it_may_ask_for() {
        let config = Config::parse(CONFIG).unwrap();
        let team = |team: &str| BTreeMap::from([("team".to_owned(), team.to_owned())]);
        let said = |namespace: &str, labels: Option<&BTreeMap<String, String>>| {
            let rows = rows(&config, namespace, labels);
            text(namespace, &rows, Output::Table, Screen::default())
        };
        assert_eq!(
            said("shop-eu", Some(&team("other"))),
            "ISSUER       DEFAULT  NAMES\n\
             letsencrypt  yes      *.shop.example, shop.example, **.eu.example\n"
        );
        assert_eq!(
            said("ops", Some(&team("web"))),
            "ISSUER       DEFAULT  NAMES\n\
             internal     -        10.0.0.0/8\n\
             letsencrypt  -        **.web.example\n"
        );
        let unread = said("blog", None);
        assert!(
            unread.contains(
                "letsencrypt: also **.web.example, if the labels of namespace blog match"
            ),
            "{unread}"
        );
        assert_eq!(
            said("blog", Some(&team("other"))),
            "Namespace blog may ask for no name: no allow of the config is for it.\n"
        );
    }
}
