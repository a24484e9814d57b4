//! `cert-renew create`: an annotated Secret that waits for its first certificate.

use std::process::ExitCode;

use cert_renew_core::config::{Config, Labels};
use cert_renew_core::secret::data::data_keys::TLS_TYPE;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::settings::separator_hint;
use cert_renew_core::secret::settings::values::is_label;
use cert_renew_core::text::name::{Name, NotAName};
use cert_renew_core::text::shown;
use cert_renew_core::verdict::for_operator_in;
use clap::{Parser, ValueEnum};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

use super::secret::MANAGER;
use crate::cli::connection::cluster_config;
use crate::cli::connection::kube_flags::{NamespaceFlags, OperatorNamespace};
use crate::cli::output::Output;
use crate::cli::verdicts::say;
use crate::cli::{CommandResult, Failure, block_on};

#[derive(Debug, Parser)]
pub(in crate::cli) struct Args {
    /// The Secret to make, as NAMESPACE/NAME or NAME
    #[arg(value_name = "NAME")]
    secret: String,
    /// The issuer, as the operator's config names it
    #[arg(long)]
    issuer: String,
    /// The names to ask for, comma-separated
    #[arg(long, required_unless_present = "from")]
    names: Option<String>,
    /// Take the names from ingress/NAME of the same namespace
    #[arg(long, conflicts_with = "names", value_name = "ingress/NAME")]
    from: Option<String>,
    /// The class of the installation that renews it, where the cluster has several
    #[arg(long)]
    class: Option<String>,
    /// Its type: tls for kubernetes.io/tls, opaque for a Secret without data that its label opts in. Default: tls for a
    /// Secret that is made; opaque for a manifest that is printed, which can be applied again and again
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    kind: Option<Kind>,
    /// Make nothing: client, which may be left out, asks nobody; server has the API server check it
    #[arg(
        long,
        value_enum,
        default_value_t,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "client"
    )]
    dry_run: DryRun,
    /// Print the Secret, as json or yaml, in place of a sentence
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(flatten)]
    place: NamespaceFlags,
    #[command(flatten)]
    operator: OperatorNamespace,
}

/// As of kubectl.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum DryRun {
    #[default]
    None,
    Client,
    Server,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Opaque,
    Tls,
}

impl Args {
    /// Whether what is printed is for a file, to be applied later.
    fn is_manifest(&self) -> bool {
        self.dry_run != DryRun::None && self.output.is_some()
    }

    fn kind(&self) -> Kind {
        self.kind.unwrap_or_else(|| match self.is_manifest() {
            true => Kind::Opaque,
            false => Kind::Tls,
        })
    }
}

/// Creates the Secret, or prints it.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(in crate::cli) fn run(args: Args) -> CommandResult {
    if let Some(class) = args.class.as_deref().filter(|class| !is_label(class)) {
        return Err(Failure(format!(
            "--class {}: expected at most 63 lower-case letters, digits and '-'",
            shown(class)
        )));
    }
    block_on(async {
        let (named, name) = args.place.named(&args.secret)?;
        let on_paper = args.dry_run == DryRun::Client && args.from.is_none();
        let (client, namespace) = if on_paper {
            (None, named)
        } else {
            let client = args.place.client().await?;
            let namespace = named.unwrap_or_else(|| client.default_namespace().to_owned());
            (Some(client), Some(namespace))
        };
        let names = names(&args, client.as_ref(), namespace.as_deref()).await?;
        let mut secret = made(&args, namespace.clone(), name.clone(), &names);
        if let (Some(client), Some(namespace)) = (client, &namespace) {
            let operator = &args.operator.operator_namespace;
            if let Some(config) = cluster_config::read_if_allowed(&client, operator).await? {
                let labels = crate::cli::view::names::labels(&client, namespace, &config).await?;
                let labels = labels.as_ref().map_or(Labels::NotAsked, Labels::Are);
                check(&args, &config, (namespace.as_str(), labels), &names)?;
            }
            if args.dry_run != DryRun::Client {
                secret = post(&client, namespace, &secret, args.dry_run).await?;
            }
        }
        if args.is_manifest() && args.kind() == Kind::Tls {
            say(
                "its data is empty, and applying it again takes the certificate away: keep it out of Git, or use --type opaque",
            );
        }
        let place = namespace.map_or_else(|| name.clone(), |it| format!("{it}/{name}"));
        let list = names.iter().map(ToString::to_string).collect::<Vec<_>>();
        match args.output {
            Some(Format::Json) => print!("{}", printed(&secret, Output::Json)?),
            Some(Format::Yaml) => print!("{}", printed(&secret, Output::Yaml)?),
            None if args.dry_run == DryRun::None => {
                println!("{place}: made, for {}", list.join(","));
            }
            None => println!("{place}: would be made, for {} (dry run)", list.join(",")),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The names to ask for.
async fn names(
    args: &Args,
    client: Option<&Client>,
    namespace: Option<&str>,
) -> Result<Vec<Name>, Failure> {
    let text = match (&args.names, &args.from, client, namespace) {
        (None, Some(from), Some(client), Some(namespace)) => hosts(client, namespace, from).await?,
        (names, ..) => names.clone().unwrap_or_default(),
    };
    parsed(&text)
}

fn parsed(names: &str) -> Result<Vec<Name>, Failure> {
    let parse = |text: &str| {
        let text = text.trim();
        text.parse().map_err(|error: NotAName| {
            let Failure(why) = Failure::new(&format!("name {text:?}"), &error);
            Failure(why + separator_hint(text))
        })
    };
    names.split(',').map(parse).collect()
}

/// The Secret as it is made. `kubernetes.io/tls` has to have both keys, and who applies such a manifest again writes them
/// again, empty. Another type needs no data, so that nothing takes the certificate away; its label opts it in.
fn made(args: &Args, namespace: Option<String>, name: String, names: &[Name]) -> Secret {
    let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let class = args.class.clone().map(|class| (keys::CLASS, class));
    let annotations = [
        (keys::ISSUER, args.issuer.clone()),
        (keys::NAMES, names.join(",")),
    ];
    let annotations = annotations.into_iter().chain(class);
    let is_opaque = args.kind() == Kind::Opaque;
    Secret {
        metadata: ObjectMeta {
            namespace,
            name: Some(name),
            // Without it, `watch.select: label` would not see one of type TLS.
            labels: Some([(keys::MANAGED_LABEL.to_owned(), "true".to_owned())].into()),
            annotations: Some(
                annotations
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect(),
            ),
            ..ObjectMeta::default()
        },
        type_: Some(if is_opaque { "Opaque" } else { TLS_TYPE }.into()),
        data: (!is_opaque).then(|| {
            ["tls.crt", "tls.key"]
                .map(|key| (key.to_owned(), ByteString(Vec::new())))
                .into()
        }),
        ..Secret::default()
    }
}

/// Refuses what the operator would never issue.
fn check(
    args: &Args,
    config: &Config,
    (namespace, labels): (&str, Labels<'_>),
    names: &[Name],
) -> Result<(), Failure> {
    // Another installation has another config.
    if args
        .class
        .as_ref()
        .is_some_and(|class| *class != config.class)
    {
        return Ok(());
    }
    if { &config.watch }.misses(namespace, true, true).is_some() {
        return Err(Failure(format!(
            "cert-renew does not watch namespace {namespace}: it is not among watch.namespaces of the config"
        )));
    }
    let issuer = &args.issuer;
    if issuer == cert_renew_core::assess::EXTERNAL {
        return Ok(());
    }
    let Some(found) = config.issuer(issuer) else {
        return Err(Failure(cluster_config::unknown_issuer(issuer, config)));
    };
    let refused = names
        .iter()
        .find(|name| !found.allows(namespace, labels, name));
    refused.map_or(Ok(()), |name| {
        let names = format!("cert-renew names -n {namespace}");
        let names = for_operator_in(&args.operator.operator_namespace, &names);
        Err(Failure(format!(
            "issuer {issuer} does not allow namespace {namespace} to ask for {name}: {names} shows what it may ask for"
        )))
    })
}

async fn post(
    client: &Client,
    namespace: &str,
    secret: &Secret,
    dry_run: DryRun,
) -> Result<Secret, Failure> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let params = PostParams {
        field_manager: Some(MANAGER.into()),
        dry_run: dry_run == DryRun::Server,
    };
    let posted = api.create(&params, secret).await;
    posted.map_err(|error| Failure::new("making the Secret", &error))
}

fn printed(secret: &Secret, output: Output) -> Result<String, Failure> {
    // As kubectl prints it: not who manages which field.
    let mut secret = secret.clone();
    secret.metadata.managed_fields = None;
    Ok(output.of_program(&secret)?.unwrap_or_default())
}

/// The hosts of an Ingress, comma-separated.
async fn hosts(client: &Client, namespace: &str, from: &str) -> Result<String, Failure> {
    let Some(("ingress", name)) = from.split_once('/') else {
        return Err(Failure(format!(
            "expected --from ingress/NAME, found {from:?}"
        )));
    };
    let api: Api<Ingress> = Api::namespaced(client.clone(), namespace);
    let ingress = api.get(name).await;
    let ingress = ingress
        .map_err(|error| Failure::new(&format!("reading Ingress {namespace}/{name}"), &error))?;
    let spec = ingress.spec.unwrap_or_default();
    let tls = spec
        .tls
        .into_iter()
        .flatten()
        .flat_map(|tls| tls.hosts.unwrap_or_default());
    let rules = spec
        .rules
        .into_iter()
        .flatten()
        .filter_map(|rule| rule.host);
    let hosts: std::collections::BTreeSet<String> = tls.chain(rules).collect();
    if hosts.is_empty() {
        return Err(Failure(format!("Ingress {namespace}/{name} names no host")));
    }
    Ok(hosts.into_iter().collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_asks_nobody_unless_the_server_is_named() {
        let read = |flags: &[&str]| {
            let all = [
                "create",
                "shop/tls",
                "--issuer",
                "le",
                "--names",
                "a.example",
            ];
            let args = Args::try_parse_from(all.iter().chain(flags)).unwrap();
            (args.dry_run, args.is_manifest())
        };
        for (flags, expected) in [
            (&["--dry-run", "-o", "yaml"][..], (DryRun::Client, true)),
            (&["--dry-run=client", "-o", "yaml"], (DryRun::Client, true)),
            (&["-o", "json", "--dry-run=server"], (DryRun::Server, true)),
            (&["--dry-run"], (DryRun::Client, false)),
            (&[], (DryRun::None, false)),
        ] {
            assert_eq!(read(flags), expected, "{flags:?}");
        }
    }

    #[test]
    fn names_with_another_separator_are_refused_with_the_right_one() {
        let two = parsed("a.example, b.example").unwrap();
        assert_eq!(two.len(), 2);
        for wrong in ["a.example; b.example", "a.example b.example", "a.example;"] {
            let Failure(why) = parsed(wrong).unwrap_err();
            assert!(why.ends_with("; separate them by ','"), "{why}");
        }
        let Failure(why) = parsed("a..example").unwrap_err();
        assert!(!why.contains("separate"), "{why}");
    }
}
