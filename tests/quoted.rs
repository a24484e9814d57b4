//! What pages quote of the words of cert-renew where no block of commands prints them: it is what the program says.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use cert_renew::cli::Cli;
use cert_renew_core::secret::settings::{NamespaceDefaults, Settings};
use cert_renew_core::testing::entries::{NOW, index};
use cert_renew_core::verdict::Verdict;
use clap::Parser as _;
use test_bench::{Context as _, Result, ensure};

use crate::command::said;
use crate::documents::{blocks, documents, words};

/// The block of a page that begins so, without the end of its last line.
fn quoted(page: &str, begin: &str) -> Result<String> {
    let blocks = blocks(page);
    let mut found = blocks.iter().filter(|it| it.text.starts_with(begin));
    let found = found.next().with_context(|| format!("no {begin}"))?;
    Ok(found.text.trim_end().to_owned())
}

#[test]
fn a_value_that_is_wrong_is_told_as_docs_annotations_md_says() -> Result<()> {
    let page = include_str!("../docs/annotations.md");
    let shown = quoted(page, "cert-renew.io/names: ")?;
    let written = [
        ("cert-renew.io/issuer", "letsencrypt"),
        ("cert-renew.io/names", "shop_example.com"),
    ];
    let written = written.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let written = BTreeMap::from(written);
    let (_, problems) = Settings::read(&written, false, &NamespaceDefaults::default());
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(told, [shown]);
    Ok(())
}

#[test]
fn a_fault_of_the_config_is_told_as_docs_configuration_md_says() -> Result<()> {
    let shown = quoted(include_str!("../docs/configuration.md"), "config.yaml:")?;
    let config = "issuers:
  letsencrypt:
    directory: https://acme-v02.api.letsencrypt.org/directory
    contact: ops@shop.example
    allow:
      - namespaces: [shop]
        names: [shop.example.com, \"*.*.example.com\"]
";
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("quoted");
    fs::create_dir_all(&home)?;
    fs::write(home.join("config.yaml"), config)?;
    let checked = Command::new(env!("CARGO_BIN_EXE_cert-renew"))
        .args(["config", "check", "config.yaml"])
        .current_dir(&home)
        .output()?;
    let told = said(&checked);
    ensure!(
        checked.status.code() == Some(1) && told.trim_end() == format!("cert-renew: {shown}"),
        "{told}"
    );
    Ok(())
}

/// But for when that is.
#[test]
fn what_holds_a_renewal_up_is_told_as_docs_command_md_says() -> Result<()> {
    let shown = quoted(include_str!("../docs/command.md"), "shop/shop-tls: a new")?;
    let index = index();
    let mut verdicts = index
        .iter()
        .filter_map(|(row, _)| Verdict::of_row(NOW, &index, row, 0));
    let held = verdicts.find(|it| *it.name == *"held").context("no such")?;
    let held = held.held_up(NOW).context("it is held")?;
    let (told, until) = held.rsplit_once(' ').context("an instant")?;
    ensure!(until.ends_with('Z'), "{held}");
    let (shown, _) = shown.rsplit_once(' ').context("an instant")?;
    assert_eq!(shown, format!("shop/shop-tls: {told}"));
    Ok(())
}

/// The commands that stand in a line of text: what is between backticks outside of blocks.
pub(crate) fn commands_in_text(page: &str) -> Vec<String> {
    let mut inside = false;
    let lines = page.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        inside ^= is_fence;
        !inside && !is_fence
    });
    let spans = lines.flat_map(|line| line.split('`').skip(1).step_by(2));
    let spans = spans.map(|span| span.replace("\\|", "|"));
    // Three words and more: fewer name a command, and type none.
    let is_command = |span: &String| {
        let of_ours = ["cert-renew ", "helm ", "kubectl "];
        let begins = of_ours.iter().any(|program| span.starts_with(program));
        begins && span.split(' ').count() > 2 && !span.contains('…')
    };
    spans.filter(is_command).collect()
}

/// A command in a line of text or a table is as whole as one in a block: it parses, and Helm is told the namespace.
#[test]
fn every_command_in_a_line_of_text_can_be_typed() -> Result<()> {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (path, text) in documents()? {
        for command in commands_in_text(&text) {
            let first = command.split(" | ").next().unwrap_or_default();
            let words: Vec<&str> = first.split_whitespace().collect();
            let is_whole = match words[..] {
                ["helm", ..] => words.iter().any(|it| ["-n", "--namespace"].contains(it)),
                ["cert-renew", ..] => Cli::try_parse_from(&words).is_ok(),
                // As a plugin.
                ["kubectl", "cert-renew", ..] => Cli::try_parse_from(&words[1..]).is_ok(),
                _ => first.matches('\'').count() % 2 == 0 && first.matches('"').count() % 2 == 0,
            };
            if !is_whole {
                wrong.push(format!("{}: {command}", path.display()));
            }
            checked += 1;
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(checked > 100, "only {checked}");
    Ok(())
}

/// kubectl as it describes itself.
struct Kubectl {
    program: String,
    /// What it says of each command, by its words; of no words, the flags of all.
    helps: BTreeMap<String, String>,
}

impl Kubectl {
    fn find() -> Result<Self> {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools.sh");
        let found = Command::new(tools).arg("kubectl").output()?;
        ensure!(found.status.success(), "{}", said(&found));
        let program = String::from_utf8(found.stdout)?.trim().to_owned();
        let mut kubectl = Self {
            program,
            helps: BTreeMap::new(),
        };
        let options = kubectl.says(&["options"])?;
        kubectl.helps.insert(String::new(), options);
        Ok(kubectl)
    }

    fn says(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.program).args(arguments).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What it says of a command; of one that there is not, the usage is another.
    fn help(&mut self, verb: &str) -> Result<String> {
        if let Some(known) = self.helps.get(verb) {
            return Ok(known.clone());
        }
        let words: Vec<&str> = verb.split(' ').chain(["--help"]).collect();
        let help = self.says(&words)?;
        self.helps.insert(verb.to_owned(), help.clone());
        Ok(help)
    }

    /// What is wrong with a command, without its first word; `whole` where it is typed as it is.
    fn fault(&mut self, command: &[String], whole: bool) -> Result<Option<String>> {
        let typed = Typed::read(command);
        let is_group = |words: usize, groups: &[&str]| {
            let begin = typed.positional.get(..words).map(|it| it.join(" "));
            begin.is_some_and(|it| groups.contains(&&*it))
        };
        let length = if is_group(2, &["create secret"]) {
            3
        } else if is_group(1, &["create", "rollout", "auth"]) {
            2
        } else {
            1
        };
        let verb = typed.positional.iter().take(length);
        let verb = verb.copied().collect::<Vec<_>>().join(" ");
        let help = self.help(&verb)?;
        if !help.contains(&format!("\nUsage:\n  kubectl {verb} ")) {
            return Ok(Some(format!("no command {verb}")));
        }
        let flags = help + &self.helps[""];
        let is_known = |flag: &str| match flag.strip_prefix("--") {
            Some(name) => flags.contains(&format!("--{name}=")),
            None => flags.contains(&format!("    {flag}, --")),
        };
        if let Some(flag) = typed.flags.iter().find(|flag| !is_known(flag)) {
            return Ok(Some(format!("{verb} has no {flag}")));
        }
        Ok(typed.is_about(&verb, whole))
    }
}

/// Flags of kubectl whose value is the next word.
const VALUED: [&str; 10] = [
    "-n",
    "-f",
    "-k",
    "-l",
    "-o",
    "-L",
    "--for",
    "--as",
    "--namespace",
    "--field-selector",
];
/// Commands that take a kind, and then a name.
const OF_KINDS: [&str; 6] = ["annotate", "delete", "describe", "edit", "get", "label"];
/// Commands that work in a namespace, whatever kind they are about.
const IN_NAMESPACES: [&str; 14] = [
    "create quota",
    "create rolebinding",
    "create secret generic",
    "create secret tls",
    "create token",
    "debug",
    "events",
    "exec",
    "logs",
    "port-forward",
    "rollout restart",
    "rollout resume",
    "rollout status",
    "rollout undo",
];
const NAMESPACED: [&str; 22] = [
    "configmap",
    "configmaps",
    "deploy",
    "deployment",
    "deployments",
    "ds",
    "events",
    "httproute",
    "httproutes",
    "ingress",
    "ingresses",
    "lease",
    "leases",
    "networkpolicy",
    "pod",
    "pods",
    "rc",
    "secret",
    "secrets",
    "service",
    "services",
    "sts",
];
const OF_THE_CLUSTER: [&str; 3] = ["clusterrolebinding", "namespace", "namespaces"];

/// A command of kubectl, or of helm, by its words.
#[derive(Default)]
struct Typed<'a> {
    flags: Vec<&'a str>,
    positional: Vec<&'a str>,
}

impl<'a> Typed<'a> {
    fn read(words: &'a [String]) -> Self {
        let mut typed = Self::default();
        let mut words = words.iter().take_while(|word| *word != "--");
        while let Some(word) = words.next() {
            if !word.starts_with('-') || word == "-" {
                typed.positional.push(word);
                continue;
            }
            let (flag, value) = word.split_once('=').unwrap_or((word.as_str(), ""));
            typed.flags.push(flag);
            if value.is_empty() && VALUED.contains(&flag) {
                words.next();
            }
        }
        typed
    }

    fn has(&self, flags: &[&str]) -> bool {
        self.flags.iter().any(|flag| flags.contains(flag))
    }

    /// What is missing of the kinds and of the namespace of this.
    fn is_about(&self, verb: &str, whole: bool) -> Option<String> {
        let mut in_a_namespace = IN_NAMESPACES.contains(&verb);
        if OF_KINDS.contains(&verb) && !self.has(&["-f", "-k"]) {
            let kinds = self.positional.get(1).copied().unwrap_or_default();
            for kind in kinds.split(',').filter(|it| !it.is_empty()) {
                let kind = kind.split('/').next().unwrap_or_default();
                in_a_namespace |= NAMESPACED.contains(&kind);
                if !NAMESPACED.contains(&kind) && !OF_THE_CLUSTER.contains(&kind) {
                    return Some(format!("{kind} is no kind of the documents"));
                }
            }
        }
        // A line of text may name a command without typing it for an object.
        let is_named = whole
            || self.positional.len() > verb.split(' ').count() + 1
            || self.positional.iter().any(|it| it.contains('/'))
            || self.has(&["-l", "--selector", "--for"]);
        let everywhere = ["-n", "--namespace", "-A", "--all-namespaces"];
        let is_missing = in_a_namespace && is_named && !self.has(&everywhere);
        is_missing.then(|| "no namespace".to_owned())
    }
}

/// Of a line of shell, each command of this program, without its first word.
fn commands_of<'a>(program: &str, words: &'a [String]) -> Vec<&'a [String]> {
    let ends = ["|", "||", "&", "&&", ";", ">", "<"];
    let begins =
        |at: usize| at == 0 || ["|", "||", "&&", ";", "do", "sudo"].contains(&&*words[at - 1]);
    let starts = (0..words.len()).filter(|at| words[*at] == program && begins(*at));
    let command = |at: usize| {
        let rest = &words[at + 1..];
        let end = rest.iter().position(|it| ends.contains(&&**it));
        &rest[..end.unwrap_or(rest.len())]
    };
    starts.map(command).collect()
}

/// Also in blocks that no test runs: kubectl has the command, with these flags, each kind is one that the pages are about,
/// and it says in which namespace; and so does every command of Helm that goes to a cluster.
#[test]
fn each_command_of_kubectl_and_helm_names_what_it_is_about() -> Result<()> {
    let mut kubectl = Kubectl::find()?;
    let mut pages = documents()?;
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/helm/README.md");
    pages.push((chart.clone(), fs::read_to_string(&chart)?));
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for (path, text) in &pages {
        let shown = blocks(text);
        let shown = shown.iter().filter(|block| block.language == "sh");
        let lines = shown.flat_map(|block| {
            let text = block.text.replace("\\\n", " ");
            text.lines()
                .map(|line| (line.to_owned(), true))
                .collect::<Vec<_>>()
        });
        let in_text = commands_in_text(text).into_iter().map(|it| (it, false));
        for (line, whole) in lines.chain(in_text) {
            let line = line.split(" #").next().unwrap_or_default();
            let words = words(line);
            for command in commands_of("kubectl", &words) {
                checked += 1;
                // As a plugin, which its own parser reads.
                if command.first().is_some_and(|it| it == "cert-renew") {
                    continue;
                }
                if let Some(fault) = kubectl.fault(command, whole)? {
                    wrong.push(format!("{}: {line}: {fault}", path.display()));
                }
            }
            for command in commands_of("helm", &words) {
                checked += 1;
                let typed = Typed::read(command);
                let is_local = ["template", "lint", "package"]
                    .contains(typed.positional.first().unwrap_or(&""));
                if !is_local && !typed.has(&["-n", "--namespace"]) {
                    wrong.push(format!("{}: {line}: no namespace", path.display()));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(checked > 120, "only {checked}");
    Ok(())
}

/// The check itself.
#[test]
fn a_command_that_leaves_out_what_it_needs_is_found() -> Result<()> {
    let mut kubectl = Kubectl::find()?;
    for (line, whole, expected) in [
        ("-n shop annotate secret shop-tls a=b", true, None),
        ("annotate secret shop-tls a=b", false, Some("no namespace")),
        ("get pods", true, Some("no namespace")),
        ("describe secret", false, None),
        (
            "-n shop anotate secret shop-tls a=b",
            true,
            Some("no command anotate"),
        ),
        (
            "-n shop get secrets --sorted",
            true,
            Some("get has no --sorted"),
        ),
        (
            "-n shop get certificate tls",
            true,
            Some("certificate is no kind of the documents"),
        ),
        ("create namespace shop", true, None),
        ("rollout status deployment/web", true, Some("no namespace")),
    ] {
        let fault = kubectl.fault(&words(line), whole)?;
        assert_eq!(fault.as_deref(), expected, "{line}");
    }
    Ok(())
}
