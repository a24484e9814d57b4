//! The schema of the values: it knows the keys of the config, and nothing else.

use std::fs;
use std::path::Path;

use cert_renew_core::config::Config;
use serde_json::{Value, json};
use test_bench::{Context as _, Result, ensure};

use super::{ROOT, helm, objects};
use crate::documents::documents;

/// What the schema lets into `config` is what the config's reader knows: an unknown key has it say which it expects.
#[test]
fn the_schema_knows_the_keys_of_the_config() -> Result<()> {
    let schema = fs::read_to_string(Path::new(ROOT).join("deploy/helm/values.schema.json"))?;
    let schema: Value = serde_json::from_str(&schema)?;
    let mut compared = 0;
    let root = &schema["definitions"]["config"];
    compare(&schema, root, &mut Vec::new(), &mut compared)?;
    ensure!(compared > 20, "only {compared} mappings");
    Ok(())
}

/// A step from a mapping to what is below it.
#[derive(Clone)]
enum Step {
    Key(String),
    Item,
}

fn compare(schema: &Value, at: &Value, path: &mut Vec<Step>, compared: &mut usize) -> Result<()> {
    if let Some(reference) = at["$ref"].as_str() {
        let pointer = reference.trim_start_matches('#');
        let target = schema.pointer(pointer).context("no such definition")?;
        return compare(schema, target, path, compared);
    }
    if at["items"].is_object() {
        path.push(Step::Item);
        compare(schema, &at["items"], path, compared)?;
        path.pop();
    }
    if at["additionalProperties"].is_object() {
        // A name that the user chooses.
        path.push(Step::Key("a".into()));
        compare(schema, &at["additionalProperties"], path, compared)?;
        path.pop();
    }
    let Some(properties) = at["properties"].as_object() else {
        return Ok(());
    };
    let mut known: Vec<&str> = properties.keys().map(String::as_str).collect();
    known.sort_unstable();
    let config = unknown_at(path).to_string();
    let faults = Config::parse(&config).err().context("it was taken")?;
    let faults = faults.to_string();
    let expected = faults.lines().find_map(|line| {
        let (_, expected) = line.split_once("zzz: unknown, expected one of ")?;
        Some(expected)
    });
    let mut expected: Vec<&str> = expected
        .with_context(|| faults.clone())?
        .split(", ")
        .collect();
    expected.sort_unstable();
    ensure!(
        known == expected,
        "{config}: the schema has {known:?}, the reader {expected:?}"
    );
    *compared += 1;
    for (key, below) in properties {
        path.push(Step::Key(key.clone()));
        compare(schema, below, path, compared)?;
        path.pop();
    }
    Ok(())
}

/// A config with an unknown key at the end of a path.
fn unknown_at(path: &[Step]) -> Value {
    let Some((step, rest)) = path.split_first() else {
        return json!({"zzz": 1});
    };
    match step {
        Step::Item => json!([unknown_at(rest)]),
        Step::Key(key) => {
            let mut map = json!({key: unknown_at(rest)});
            // Read only where the route is theirs.
            if key == "ingress" || key == "gateway" {
                map["route"] = key.as_str().into();
            }
            map
        }
    }
}

/// The values that docs/install.md shows, and what becomes of their config.
#[test]
fn the_values_of_the_documentation_give_a_config_without_a_fault() -> Result<()> {
    let text = include_str!("../../docs/install.md");
    let values = text
        .split("```yaml\n")
        .find(|block| block.starts_with("# my-values.yaml"))
        .and_then(|block| block.split("```").next())
        .context("no values in docs/install.md")?;
    let file = Path::new(ROOT).join("target/my-values.yaml");
    fs::write(&file, values)?;
    let chart = |scope: &str| -> Result<Config> {
        let values = format!("{scope} --values target/my-values.yaml");
        let objects = objects(&helm("cert-renew", &values)?)?;
        let config = &objects["ConfigMap cert-renew cert-renew-config"]["data"]["config.yaml"];
        Ok(Config::parse(config.as_str().context("no config")?)?)
    };
    let config = chart("replicas=1")?;
    assert_eq!(config.warnings(), [""; 0]);
    assert!(config.watch.namespaces.is_empty());
    let scoped = chart("scope.namespaces={shop,blog}")?;
    assert_eq!(scoped.watch.namespaces, ["shop", "blog"]);
    fs::remove_file(file)?;
    Ok(())
}

#[test]
fn the_schema_of_the_values_refuses_what_it_does_not_know() -> Result<()> {
    for (values, part) in [
        ("replica=2", "replica"),
        ("replicas=many", "replicas"),
        ("image.digest=sha256:12", "digest"),
        ("scope.namespaces={Shop}", "namespaces"),
        (
            "addons.argo=true",
            "additional properties 'argo' not allowed",
        ),
        (
            "config.issuers.le.directry=https://acme.example",
            "additional properties 'directry' not allowed",
        ),
        ("config.rollout.settle=10", "settle"),
        (
            "monitoring.podMonitor=true,monitoring.serviceMonitor=true",
            "expected podMonitor or serviceMonitor",
        ),
    ] {
        let said = format!("{:#}", helm("cert-renew", values).expect_err(values));
        ensure!(said.contains(part), "{values}: {said}");
    }
    Ok(())
}

/// A page that gives a value as JSON gives one that ends up in what is installed, such as a port more.
#[test]
fn the_values_that_pages_print_as_json_are_installed() -> Result<()> {
    let mut values = Vec::new();
    for (page, text) in documents()? {
        for printed in text.split("--set-json '").skip(1) {
            let (value, _) = printed.split_once('\'').context("no end")?;
            let (name, json) = value.split_once('=').context("no value")?;
            let rendered = helm("cert-renew", &format!("replicas=2 --set-json {value}"))?;
            let wanted: Value = serde_json::from_str(json)?;
            let wanted = wanted.get(0).unwrap_or(&wanted);
            let is_there = objects(&rendered)?.values().any(|it| has(it, wanted));
            ensure!(is_there, "{}: {name} is nowhere", page.display());
            values.push(name.to_owned());
        }
    }
    values.sort_unstable();
    assert_eq!(values, ["dnsConfig", "networkPolicy.egress"]);
    Ok(())
}

/// Whether a value is somewhere in another.
fn has(all: &Value, wanted: &Value) -> bool {
    all == wanted
        || match all {
            Value::Array(items) => items.iter().any(|part| has(part, wanted)),
            Value::Object(fields) => fields.values().any(|part| has(part, wanted)),
            _ => false,
        }
}
