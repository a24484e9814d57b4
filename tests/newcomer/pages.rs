//! Every block of commands in the documents: run as it is printed, or marked on the page with the reason why it cannot be.
//!
//! A cluster of the test's own has what the pages name: the operator as docs/start/quick-start.md installs it, and in
//! namespace `shop` the Secrets `shop-tls` and `api-tls`, a Deployment `web`, and what a page needs beside them. What a
//! page shows as the output of a block is compared line by line.
//!
//! Marks, in a comment on the line before a block:
//! * `<!-- not run: why -->`: it needs something that no test has; its commands are parsed all the same (`documents`);
//! * `<!-- rendered: why -->`: it is run with `--dry-run=client`;
//! * `<!-- refused: why -->`: it fails, as the page says.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::json;
use test_bench::objects::{Age, Reference, Space, pair};
use test_bench::{Bench, Context as _, Options, Result, ensure, eventually};

use super::{CA, Newcomer, ROOT, Running, printed};
use crate::command::said;
use crate::documents::{Block, blocks, documents};
use crate::install::helm_program;
use crate::quoted::commands_in_text;
use crate::renewal::SOON;
use crate::verdict::{outward, service};

/// Not due, and old enough to be renewed on request.
const AGED: Age = Age {
    since: 40,
    left: 50,
};
/// Pages of which other tests run all commands in order.
const ELSEWHERE: [&str; 1] = ["docs/start/first-certificate.md"];
/// The section of docs/install.md of which another test does.
const FIVE_STEPS: &str = "## Five steps";
/// Pages that come before all others, and after them, as they install and remove what the others use.
const FIRST: [&str; 1] = ["docs/start/quick-start.md"];
const LAST: [&str; 2] = ["docs/admission.md", "docs/install.md"];
/// Pages of which each line is a command of its own, for the same beginning.
const BY_LINE: [&str; 1] = ["docs/command.md"];

/// What the pages say that a command does, as words of its output, where they do not show it whole.
const PROMISED: [(&str, &str); 33] = [
    (
        "cert-renew renew shop/shop-tls --wait",
        "and the workloads have it",
    ),
    (
        "cert-renew renew --all -n shop",
        "shop/api-tls: asked for\nshop/shop-tls: asked for\n",
    ),
    ("cert-renew status -A --sort-by state", "api-tls"),
    ("cert-renew status -A --sort-by state", "PROBLEM"),
    (
        "cert-renew status -n shop --expiring 30d",
        "no annotated Secret in namespace shop matches",
    ),
    ("cert-renew status shop/shop-tls shop/api-tls", "api-tls "),
    ("cert-renew status shop/shop-tls shop/api-tls", "shop-tls "),
    ("for cluster in one two three", "api-tls"),
    ("cert-renew describe shop/shop-tls", "\nState: "),
    ("cert-renew describe shop/shop-tls", "\nRenews: "),
    ("cert-renew describe shop/shop-tls", "letsencrypt"),
    ("cert-renew describe shop/shop-tls", "\nLimits: "),
    ("cert-renew describe shop/shop-tls", "\nWorkloads: "),
    ("cert-renew describe shop/shop-tls", "\nEvents:"),
    ("cert-renew plan -n shop", "deployment/web(restart: volume "),
    ("cert-renew plan -n shop", "RESTARTS"),
    ("cert-renew adopt", "1 adopted"),
    ("cert-renew config check", ": ok, 1 issuer: "),
    ("rollout status", "successfully rolled out"),
    ("cert-renew create shop/", "-tls: "),
    (
        "cert-renew create gateways/",
        "gateways/shop-tls: made, for shop.example.com",
    ),
    (
        "kubectl apply -k examples/first",
        "deployment.apps/cert-renew created",
    ),
    (
        "kubectl apply -f examples/reload/app.yaml",
        "secret/shop-tls ",
    ),
    (
        "create secret generic cloudflare",
        "secret/cloudflare created",
    ),
    ("apply -k deploy/admission", "validatingadmissionpolicy"),
    (
        "apply -f rbac/addons/",
        "rbac.authorization.k8s.io/cert-renew",
    ),
    (
        "create rolebinding cert-renew-viewer",
        "rolebinding.rbac.authorization.k8s.io/cert-renew-viewer created",
    ),
    (
        "create clusterrolebinding cert-renew-viewer",
        "clusterrolebinding.rbac.authorization.k8s.io/cert-renew-viewer created",
    ),
    ("get configmaps -L state.cert-renew.io/state", "STATE"),
    ("annotate secret shop-tls", "secret/shop-tls annotated"),
    ("annotate secret nginx-tls", "secret/nginx-tls annotated"),
    ("label secret ", "labeled"),
    ("| kubectl delete -f -", "deleted"),
];
/// Commands that print nothing where there is nothing, as their page says.
const SILENT: [&str; 1] = ["cert-renew status -A --expiring 30d --no-headers"];

/// What a page needs beside the usual.
fn before(page: &str) -> &'static str {
    match page {
        "docs/how-to/ingress-nginx.md" | "docs/how-to/traefik.md" | "docs/how-to/reload.md" => {
            "kubectl -n shop delete secret shop-tls"
        }
        "docs/private-cas.md" => "kubectl -n shop delete secret api-tls",
        "docs/how-to/many-clusters.md" => {
            "for name in one two three; do
               kubectl config set-context $name --cluster=\"$(kubectl config view -o jsonpath='{.clusters[0].name}')\" \
                 --user=\"$(kubectl config view -o jsonpath='{.users[0].name}')\"
             done"
        }
        "docs/migrate-from-cert-manager.md" => {
            "kubectl -n shop annotate secret shop-tls api-tls cert-renew.io/issuer-
             kubectl apply -f testdata/cert-manager/crds.yaml
             kubectl wait --for=condition=established crd/certificates.cert-manager.io
             kubectl apply -f - <<'END'
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: shop, namespace: shop}
spec: {secretName: shop-tls, dnsNames: [shop.example.com], issuerRef: {name: letsencrypt-prod, kind: ClusterIssuer}}
END"
        }
        "docs/migrate-from-kcert.md" => {
            "kubectl apply -f - <<'END'
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: shop, namespace: shop, labels: {kcert.dev/ingress: managed}}
spec:
  tls: [{hosts: [shop.example.com], secretName: shop-tls}, {hosts: [shop.example.com], secretName: api-tls}]
  defaultBackend: {service: {name: web, port: {number: 80}}}
END"
        }
        "docs/migrate-from-scripts.md" => {
            "kubectl -n shop create secret generic nginx-tls --dry-run=client -o yaml | kubectl apply -f -
             kubectl -n shop create secret generic proxy-tls --dry-run=client -o yaml | kubectl apply -f -"
        }
        "docs/install.md" => {
            "kubectl apply -f - <<'END'
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: httproutes.gateway.networking.k8s.io
  annotations: {api-approved.kubernetes.io: \"https://github.com/kubernetes-sigs/gateway-api/pull/3328\"}
spec:
  group: gateway.networking.k8s.io
  scope: Namespaced
  names: {kind: HTTPRoute, plural: httproutes, singular: httproute}
  versions:
    - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
END
             kubectl wait --for=condition=established crd/httproutes.gateway.networking.k8s.io"
        }
        _ => "",
    }
}

/// The cluster that the documents are about.
struct Walk<'a> {
    newcomer: Newcomer<'a>,
    space: Space,
    operator: Option<Running<'a>>,
}

impl<'a> Walk<'a> {
    async fn begin(bench: &'a Bench) -> Result<Self> {
        let newcomer = Newcomer::arrive(bench)?;
        let home = &newcomer.home;
        std::os::unix::fs::symlink(helm_program()?, home.join("bin/helm"))?;
        fs::create_dir_all(home.join("testdata/cert-manager"))?;
        let kinds = "testdata/cert-manager/crds.yaml";
        fs::copy(Path::new(ROOT).join(kinds), home.join(kinds))?;
        fs::write(home.join("my-values.yaml"), "{}\n")?;
        // Contexts that a page names are added to a copy.
        fs::copy(bench.kubeconfig(), home.join("kubeconfig"))?;
        let ca = format!(
            "directory: {}\n    caBundle: {}\n    profile: default\n    concurrency: 1",
            bench.pebble().directory(),
            bench.ca_bundle().display()
        );
        let config = home.join("examples/first/config.yaml");
        let text = fs::read_to_string(&config)?.replace(CA, &ca);
        // The bench's edge has another port than 80, which its CA knows.
        let text = text.replace("route: shared", "route: shared, selfCheck: false");
        // One page has a namespace of its own in its config.
        let text = text.replace("namespaces: [shop]", "namespaces: [shop, gateways]");
        // Nothing leaves this machine: the names are those of the bench's own DNS.
        let more = format!(
            "dns: {{nameservers: [\"{}\"]}}\nrollout: {{settle: 0s, perWorkloadMinInterval: 0s}}\n",
            bench.dns().address()
        );
        fs::write(&config, text + &more)?;
        let space = Space {
            client: bench.client()?,
            name: "shop".into(),
            class: "default".into(),
        };
        Ok(Self {
            newcomer,
            space,
            operator: None,
        })
    }

    /// Namespace `shop` as the pages take it for granted. The quick start has made it; what other namespaces a page needs
    /// it says itself, in a line of text.
    async fn furnish(&self, page: &str) -> Result<()> {
        let newcomer = &self.newcomer;
        if FIRST.contains(&page) {
            return Ok(());
        }
        for command in commands_in_text(&fs::read_to_string(Path::new(ROOT).join(page))?) {
            let of_namespace = command.strip_prefix("kubectl create namespace ");
            let Some(name) = of_namespace.and_then(|rest| rest.split(' ').next()) else {
                continue;
            };
            newcomer.types(&format!(
                "kubectl get namespace {name} >/dev/null 2>&1 || {command}"
            ))?;
        }
        newcomer.types(
            "kubectl -n shop delete secrets,deployments,ingresses,services,configmaps --all --wait=false",
        )?;
        let aged = pair(&["shop.example.com"], AGED)?;
        for name in ["shop-tls", "api-tls"] {
            let issuer = [("issuer", "letsencrypt")];
            self.space.tls_secret(name, Some(&aged), &issuer).await?;
        }
        self.space
            .workload("Deployment", "web", Reference::Volume, "shop-tls")
            .await?;
        if self.operator.is_some() {
            eventually(SOON, "the operator has seen both", async || {
                newcomer.types("cert-renew status -n shop shop-tls api-tls")
            })
            .await?;
        }
        newcomer.types(before(page))?;
        Ok(())
    }

    /// What no kubelet does: the operator runs as the Deployment says, and answers behind its Service.
    async fn start_operator(&mut self, bench: &'a Bench) -> Result<()> {
        self.operator = None;
        // It forgets what was issued for the pages before, which would count against the budgets of a week.
        self.newcomer.types(
            "kubectl -n cert-renew scale deployment cert-renew --replicas=0
             kubectl -n cert-renew delete configmap cert-renew-ledger --ignore-not-found
             kubectl -n cert-renew delete lease cert-renew --ignore-not-found
             kubectl -n cert-renew delete service cert-renew-metrics --ignore-not-found
             kubectl -n cert-renew delete endpointslices -l kubernetes.io/service-name=cert-renew-metrics
             kubectl -n cert-renew delete pod cert-renew-0 --ignore-not-found --force",
        )?;
        let metrics = outward()?;
        service(bench, "cert-renew", metrics).await?;
        self.operator = Some(self.newcomer.start_operator(Some(metrics))?);
        eventually(SOON, "the operator leads and answers", async || {
            let said = said(&self.newcomer.types("cert-renew status -n shop -o json")?);
            ensure!(said.contains("cert-renew-0"), "{said}");
            ensure!(!said.contains("no cert-renew leads"), "{said}");
            Ok(())
        })
        .await
    }

    fn log(&self) -> String {
        let log = self.operator.as_ref().map(|it| fs::read_to_string(&it.log));
        let log = log.and_then(std::result::Result::ok).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Types commands that have to work and to say what the pages promise.
    fn types(&self, text: &str) -> Result<Output> {
        let output = self.newcomer.types(text)?;
        for (command, promised) in PROMISED {
            let is_kept = !text.contains(command) || said(&output).contains(promised);
            ensure!(is_kept, "{text}: no {promised:?}: {}", said(&output));
        }
        let is_silent = output.stdout.is_empty() || !SILENT.contains(&text.trim());
        ensure!(is_silent, "{text}: {}", said(&output));
        Ok(output)
    }

    /// Runs a block as it is printed, and compares what it prints with what the page shows.
    async fn run(&self, page: &str, block: &Block<'_>, shown: Option<&Block<'_>>) -> Result<()> {
        let is_refused = block.mark("refused").is_some();
        if BY_LINE.contains(&page) {
            for line in block.text.lines() {
                self.furnish(page).await?;
                self.types(line)?;
            }
            return Ok(());
        }
        if is_refused {
            let shown = shown.context("what is said instead")?;
            // What passed before the policy was in force is no change any more.
            return eventually(SOON, "it is refused", async || {
                self.furnish(page).await?;
                let refused = self.newcomer.tries(&block.text)?;
                ensure!(!refused.status.success(), "{}", said(&refused));
                printed::shows(&shown.text, &said(&refused))
            })
            .await;
        }
        let text = match block.mark("rendered") {
            Some(_) => format!("{} --dry-run=client", block.text.trim_end()),
            None => block.text.clone(),
        };
        let output = self.types(&text)?;
        if let Some(shown) = shown {
            printed::shows(&shown.text, &String::from_utf8_lossy(&output.stdout))?;
        }
        Ok(())
    }
}

/// What was done with the blocks.
type Counts = BTreeMap<&'static str, usize>;

#[tokio::test]
async fn each_block_of_commands_is_run_as_printed_or_says_why_not() -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let mut walk = Walk::begin(&bench).await?;
    let root = Path::new(ROOT);
    let mut pages = Vec::new();
    for (path, text) in documents()? {
        let page = path.strip_prefix(root)?.display().to_string();
        pages.push((page, text));
    }
    let rank = |page: &str| {
        let last = LAST.iter().position(|it| *it == page);
        (!FIRST.contains(&page), last.map_or(0, |at| at + 1))
    };
    pages.sort_by(|(one, _), (other, _)| (rank(one), one).cmp(&(rank(other), other)));
    let (mut counts, mut wrong) = (Counts::new(), Vec::new());
    for (page, text) in &pages {
        let blocks = blocks(text);
        let mut furnished = false;
        for (at, block) in blocks.iter().enumerate() {
            let section = block.section;
            if block.language != "sh" {
                continue;
            }
            let elsewhere = ELSEWHERE.contains(&page.as_str())
                || page == "docs/install.md"
                    && section == FIVE_STEPS
                    && block.mark("rendered").is_none();
            let what = match block.mark("not run") {
                Some(_) => "marked",
                None if elsewhere => "run by a test of the page",
                None if block.mark("rendered").is_some() => "rendered",
                None => "run",
            };
            *counts.entry(what).or_default() += 1;
            if ["marked", "run by a test of the page"].contains(&what) {
                continue;
            }
            if !furnished {
                walk.furnish(page).await?;
                if walk.operator.is_some() && text.contains("cert-renew renew ") {
                    walk.start_operator(&bench).await?;
                }
                furnished = true;
            }
            let shown = blocks.get(at + 1).filter(|it| it.is_output);
            if let Err(error) = walk.run(page, block, shown).await {
                wrong.push(format!("{page}: {error:#}\n{}", walk.log()));
            }
            if block.text.contains("kubectl apply -k examples/first\n") {
                walk.start_operator(&bench).await?;
            }
        }
    }
    eprintln!("blocks of commands: {counts:?}");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let run = counts.get("run").copied().unwrap_or_default();
    ensure!(run >= 30, "only {run} blocks are run: {}", json!(counts));
    Ok(())
}
