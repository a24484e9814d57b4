//! The schema of the values: it knows the keys of the config, and nothing else.

use std::fs;
use std::path::Path;

use cert_renew_core::config::{Config, SUPPORTED_PROVIDERS, UNTESTED_PROVIDERS};
use serde_json::{Value, json};
use test_bench::{Context as _, Result, ensure};

use super::{ROOT, helm, objects};
use crate::documents::documents;
use crate::gitops::Scratch;

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

/// The commands in alerts are for the operator of this installation.
#[test]
fn alerts_name_the_namespace_of_the_installation_in_their_commands() -> Result<()> {
    let of = |namespace: &str| -> Result<Vec<String>> {
        let made = objects(&helm(namespace, "monitoring.prometheusRule=true")?)?;
        let rule = &made[&format!("PrometheusRule {namespace} cert-renew")];
        let groups = rule["spec"]["groups"].as_array().into_iter().flatten();
        let rules = groups.flat_map(|it| it["rules"].as_array().into_iter().flatten());
        let texts = rules.filter_map(|it| it["annotations"]["description"].as_str());
        Ok(texts.map(str::to_owned).collect())
    };
    let (usual, other) = (of("cert-renew")?, of("elsewhere")?);
    ensure!(usual.len() > 15 && usual.len() == other.len());
    for (usual, other) in usual.iter().zip(&other) {
        let ours = usual.replace("kubectl -n cert-renew ", "");
        let asks = ["describe", "names", "plan", "renew", "resume", "status"];
        let asks = asks.map(|it| ours.matches(&format!("cert-renew {it} ")).count());
        let named = other.matches(" --operator-namespace elsewhere").count();
        ensure!(asks.iter().sum::<usize>() == named, "{other}");
        let back = other.replace(" --operator-namespace elsewhere", "");
        let back = back.replace("kubectl -n elsewhere ", "kubectl -n cert-renew ");
        ensure!(back == *usual, "{other}");
        ensure!(!other.contains("kubectl -n cert-renew "), "{other}");
    }
    Ok(())
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

/// What the reader of the config refuses for its form, Helm refuses before anything is installed.
#[test]
fn the_schema_refuses_what_the_config_would_be_refused_for() -> Result<()> {
    let issuer = |more: &Value| {
        let mut issuer = json!({"directory": "https://acme.example/directory"});
        for (key, value) in more.as_object().into_iter().flatten() {
            issuer[key] = value.clone();
        }
        json!({"issuers": {"le": issuer}})
    };
    let solver = |solver: Value| json!({"issuers": {}, "solvers": [solver]});
    let with = |key: &str, value: Value| json!({"issuers": {}, key: value});
    let dns01 = |more: Value| solver(json!({"dns01": more}));
    let refused = [
        issuer(&json!({"directory": "http://acme.example/directory"})),
        issuer(&json!({"contact": "ops"})),
        issuer(&json!({"contact": ["a@b.example,c@d.example"]})),
        issuer(&json!({"allow": [{"names": ["a.example"]}]})),
        issuer(&json!({"caBundle": "roots.pem"})),
        issuer(&json!({"eab": {"kid": "a", "hmacKey": {"secret": "A", "key": "key"}}})),
        issuer(&json!({"eab": {"kid": "a", "hmacKey": {"secret": "a", "key": "a key"}}})),
        issuer(&json!({"chain": {"root": "ISRG Root X1", "shortest": true}})),
        issuer(&json!({"concurrency": 257})),
        issuer(&json!({"fallback": "Other CA"})),
        json!({"issuers": {"external": {"directory": "https://acme.example/directory"}}}),
        json!({"issuers": {"Le": {"directory": "https://acme.example/directory"}}}),
        solver(json!({})),
        solver(json!({"http01": {"route": "shared"}, "dns01": {"provider": "route53"}})),
        solver(json!({"http01": {"route": "shared", "ingress": {}}})),
        solver(json!({"http01": {"route": "gateway"}})),
        solver(json!({"zones": ["*.example.com"], "http01": {"route": "shared"}})),
        solver(json!({"resolvers": ["dns.example"], "http01": {"route": "shared"}})),
        dns01(json!({"provider": "route-53"})),
        dns01(json!({"provider": "route53", "propagation": {"servers": ["ns.example.com"]}})),
        with("dns", json!({"nameservers": ["udp://10.0.0.10"]})),
        with("dns", json!({"nameservers": ["https://dns.example"]})),
        with("dns", json!({"caBundle": "roots.pem"})),
        with("watch", json!({"namespaces": ["Shop"]})),
        with("metrics", json!({"access": "viewers"})),
        with("rollout", json!({"concurrency": 10_001})),
        with("retry", json!({"factor": 101})),
        with("class", json!("Blue")),
        issuer(&json!({"allow": [{"namespaces": ["shop"], "names": []}]})),
        issuer(&json!({"allow": [{"namespaces": ["Shop"], "names": ["a.example"]}]})),
        issuer(
            &json!({"allow": [{"names": ["a.example"], "namespaceSelector": {
                "matchExpressions": [{"key": "team", "operator": "In"}],
            }}]}),
        ),
        solver(json!({"http01": {"route": "gateway", "gateway": {"parentRefs": []}}})),
        with("rollout", json!({"settle": "500ms"})),
        with("defaults", json!({"renewBefore": "0d"})),
        with("defaults", json!({"rolloutOn": "leaf ca"})),
        with("defaults", json!({"changeWindow": "Sat 3am-5am UTC"})),
        with("defaults", json!({"changeWindow": "Sat 03:00-05:00"})),
        with("defaults", json!({"renewBefore": "a third"})),
        with("defaults", json!({"rollout": "reload"})),
        with("defaults", json!({"rolloutOn": "root"})),
        with(
            "defaults",
            json!({"namespaces": {"shop": {"changeWindow": "never"}}}),
        ),
    ];
    let scratch = Scratch::new("values-refused")?;
    for config in refused {
        let reader = Config::parse(&config.to_string());
        let reader = reader
            .err()
            .with_context(|| format!("{config} was taken"))?;
        let said = with_config(&scratch, &config.to_string())
            .err()
            .with_context(|| format!("helm takes {config}: {reader}"))?;
        let said = format!("{said:#}");
        ensure!(said.contains("/config"), "{config}: {said}");
    }
    Ok(())
}

/// Forms of values that are rare, and that both take.
#[test]
fn the_schema_takes_what_the_reader_takes() -> Result<()> {
    let scratch = Scratch::new("values-taken")?;
    for defaults in [
        json!({"changeWindow": "Mon, Wed 02:00-04:00 UTC"}),
        json!({"changeWindow": "22:00-02:00 Etc/GMT+5; Sat-Sun 00:00-24:00 America/Port-au-Prince"}),
        json!({"renewBefore": "33 %"}),
        json!({"renewBefore": "1h30m"}),
        json!({"rolloutOn": "leaf,\nca"}),
        json!({"rollout": "post:8080/-/reload"}),
    ] {
        let config = json!({
            "issuers": {
                "ca": {
                    "directory": "http://127.0.0.1:14000/dir",
                    "contact": ["mailto:ops@example.com"],
                    "allow": [{"namespaces": ["*"], "names": ["10.0.0.0/8", "**.example.com"]}],
                },
            },
            "dns": {"nameservers": ["10.0.0.10", "[fd00::a]:53", "fd00::b", "tls://dns.example:853", "https://1.1.1.1/dns-query"]},
            "defaults": defaults,
        });
        let config = config.to_string();
        Config::parse(&config).with_context(|| config.clone())?;
        with_config(&scratch, &config)?;
    }
    Ok(())
}

/// Each provider that the reader knows, and no other.
#[test]
fn the_schema_names_the_providers_that_there_are() -> Result<()> {
    let schema = fs::read_to_string(Path::new(ROOT).join("deploy/helm/values.schema.json"))?;
    let schema: Value = serde_json::from_str(&schema)?;
    let named = schema.pointer("/definitions/solver/properties/dns01/properties/provider/enum");
    let known: Vec<&str> = { SUPPORTED_PROVIDERS.iter().chain(&UNTESTED_PROVIDERS) }
        .copied()
        .collect();
    assert_eq!(named, Some(&json!(known)));
    Ok(())
}

/// A config that the pages show, and any that the reader takes, passes the schema too.
#[test]
fn the_schema_takes_each_config_of_the_pages() -> Result<()> {
    let scratch = Scratch::new("values-of-pages")?;
    let mut taken = 0;
    for (page, text) in documents()? {
        let blocks = text.split("```yaml\n").skip(1);
        for block in blocks.filter_map(|block| block.split("```").next()) {
            if Config::parse(block).is_err() {
                continue;
            }
            with_config(&scratch, block)
                .with_context(|| format!("{}:\n{block}", page.display()))?;
            taken += 1;
        }
    }
    ensure!(taken >= 3, "only {taken}");
    Ok(())
}

/// Renders the chart with a config of one document, from a file in a directory of the caller's own.
fn with_config(scratch: &Scratch, config: &str) -> Result<String> {
    let file = scratch.0.join("values.yaml");
    let indented: String = config.lines().map(|line| format!("  {line}\n")).collect();
    fs::write(&file, format!("config:\n{indented}"))?;
    helm(
        "cert-renew",
        &format!("replicas=2 --values {}", file.display()),
    )
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
