//! HTTP-01 through a real data path: nginx, configured from the Ingresses and HTTPRoutes that the operator makes.

use std::net::SocketAddr;
use std::process::Command;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, ResourceExt as _};
use serde_json::json;
use test_bench::objects::Space;
use test_bench::{
    Bench, Context as _, DataPath, Operator, OperatorOptions, Pebble, PebbleOptions, Result,
    ensure, eventually, throughout,
};

use crate::acme_operator::event;
use crate::done::mark;
use crate::install::kubectl;
use crate::renewal::{SOON, options, renewed};
use crate::rolling::{make, pods_of, ready};

/// Time enough for a CA to be told too early.
const A_WHILE: std::time::Duration = std::time::Duration::from_secs(4);

/// A CA and an operator whose requests go through the data path at `address`.
async fn start<'a>(
    bench: &'a Bench,
    name: &str,
    address: SocketAddr,
    hosts: &[&str],
    route: &str,
) -> Result<(Pebble, Operator<'a>)> {
    for host in hosts {
        let ip = address.ip().to_string();
        let arguments = json!({"host": host, "addresses": [ip]});
        bench.dns().set("add-a", &arguments).await?;
    }
    let pebble = PebbleOptions {
        name: name.to_owned(),
        http_port: Some(address.port()),
        ..PebbleOptions::default()
    };
    let pebble = bench.start_pebble(&pebble).await?;
    // A self-check comes to port 80, as CAs do, which not every user may listen on.
    let check = address.port() == 80;
    let dns = bench.dns().address();
    let config = format!(
        "solvers:\n  - http01: {{{route}, selfCheck: {check}}}\ndns: {{nameservers: [\"{dns}\"]}}\n"
    );
    let options = OperatorOptions {
        config: options().config + &config,
        directory: Some(pebble.directory().to_owned()),
        addons: ["ingress", "gateway"]
            .map(|kind| format!("rbac/addons/route-{kind}.yaml"))
            .into(),
        ..options()
    };
    let operator = Operator::install(bench, options).await?;
    Ok((pebble, operator))
}

fn objects(bench: &Bench, operator: &Operator<'_>, kind: &str) -> Result<Api<DynamicObject>> {
    let (group, plural) = match kind {
        "Ingress" => ("networking.k8s.io", "ingresses"),
        _ => ("gateway.networking.k8s.io", "httproutes"),
    };
    let gvk = GroupVersionKind::gvk(group, "v1", kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    let client = bench.client()?;
    Ok(Api::namespaced_with(
        client,
        operator.namespace(),
        &resource,
    ))
}

async fn none_is_left(routes: &Api<DynamicObject>) -> Result<()> {
    eventually(SOON, "no route is left", async || {
        let left = routes.list(&ListParams::default()).await?.items.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await
}

/// A policy as the webhook of ingress-nginx has it since version 1.12: no dot in paths of the types `Prefix` and `Exact`.
/// Returns when it is in force.
pub(crate) async fn validate_paths_as_ingress_nginx(bench: &Bench, namespace: &str) -> Result<()> {
    let name = format!("paths-of-{namespace}");
    let rule = "!has(object.spec.rules) || object.spec.rules.all(r, r.http.paths.all(p, \
        p.pathType == 'ImplementationSpecific' || p.path.matches('^/[A-Za-z0-9_/-]*$')))";
    let policy = json!({
        "metadata": {"name": name},
        "spec": {"failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{"apiGroups": ["networking.k8s.io"], "apiVersions": ["v1"],
                "operations": ["CREATE", "UPDATE"], "resources": ["ingresses"]}]},
            "validations": [{"expression": rule, "message": "path cannot be used with pathType"}]},
    });
    let binding = json!({
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector":
            {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}},
    });
    let client = bench.client()?;
    for (mut object, kind, plural) in [
        (
            policy,
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies",
        ),
        (
            binding,
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        ),
    ] {
        object["apiVersion"] = json!("admissionregistration.k8s.io/v1");
        object["kind"] = json!(kind);
        let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let object: DynamicObject = serde_json::from_value(object)?;
        api.create(&PostParams::default(), &object).await?;
    }
    let backend = json!({"service": {"name": "x", "port": {"number": 1}}});
    let path =
        json!({"path": "/.well-known/acme-challenge", "pathType": "Prefix", "backend": backend});
    let refused = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "refused"},
        "spec": {"rules": [{"host": "refused.example", "http": {"paths": [path]}}]}});
    let tried = format!("-n {namespace} create --dry-run=server -f -");
    eventually(SOON, "the policy is in force", async || {
        let said = kubectl(bench, &tried, &refused.to_string()).err();
        let said = said.context("the path is taken")?.to_string();
        ensure!(said.contains("cannot be used with pathType"), "{said}");
        Ok(())
    })
    .await
}

/// Two names, one order, through routes of this kind.
async fn routed(kind: &str, route: &str) -> Result<()> {
    let bench = Bench::shared().await?;
    bench.install_gateway_api().await?;
    let address = DataPath::address_of_its_own()?;
    let tag = kind.to_lowercase();
    let hosts = [format!("a.{tag}.example"), format!("b.{tag}.example")];
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let (_pebble, mut operator) =
        start(bench, &format!("pebble-{tag}"), address, &hosts, route).await?;
    let (namespace, backend) = (
        operator.namespace().to_owned(),
        operator.challenge_address(),
    );
    let routes = objects(bench, &operator, kind)?;
    // What a former run has left is swept; what somebody else has made is not ours.
    let api_version = match kind {
        "Ingress" => "networking.k8s.io/v1",
        _ => "gateway.networking.k8s.io/v1",
    };
    let gone = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "left", "labels": {"cert-renew.io/challenge-route": "true"}},
        "spec": {"hostnames": ["left.example"], "defaultBackend": {"service": {"name": "x", "port": {"number": 1}}}}});
    let gone: DynamicObject = serde_json::from_value(gone)?;
    routes.create(&PostParams::default(), &gone).await?;
    if kind == "Ingress" {
        validate_paths_as_ingress_nginx(bench, &namespace).await?;
    }
    operator.run().await?;
    none_is_left(&routes).await?;

    let path = DataPath::start(bench, address, &namespace, backend, "").await?;
    let space = Space::new(bench.client()?, &tag, operator.namespace()).await?;
    let names = hosts.join(", ");
    let annotations = [("issuer", "pebble"), ("names", &names)];
    space.tls_secret("routed", None, &annotations).await?;
    renewed(&space, "routed", "").await?;
    none_is_left(&routes).await?;
    let requests = path.requests()?;
    let served = requests.matches("acme-challenge/").count();
    ensure!(
        served >= hosts.len(),
        "the data path served {served}: {requests}"
    );
    Ok(())
}

/// It does so where paths are validated as ingress-nginx does, too.
#[tokio::test]
async fn an_ingress_for_each_host_leads_the_ca_to_us_and_goes() -> Result<()> {
    routed("Ingress", "route: ingress, ingress: {class: nginx}").await
}

#[tokio::test]
async fn an_http_route_for_each_host_leads_the_ca_to_us_and_goes() -> Result<()> {
    routed(
        "HTTPRoute",
        "route: gateway, gateway: {parentRefs: [{name: public}]}",
    )
    .await
}

#[tokio::test]
async fn a_route_that_its_gateway_refuses_is_said_and_the_ca_is_not_told() -> Result<()> {
    let bench = Bench::shared().await?;
    bench.install_gateway_api().await?;
    let address = DataPath::address_of_its_own()?;
    if address.port() != 80 {
        eprintln!("not run: a self-check comes to port 80, which this user may not listen on");
        return Ok(());
    }
    let host = "refused.httproute.example";
    let route = "route: gateway, gateway: {parentRefs: [{name: public}]}";
    let (_pebble, mut operator) = start(bench, "pebble-refuses", address, &[host], route).await?;
    operator.run().await?;
    let space = Space::new(bench.client()?, "refuses", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", host)];
    space.tls_secret("refused", None, &annotations).await?;
    let routes = objects(bench, &operator, "HTTPRoute")?;
    // Nothing answers at the address; the gateway's controller says why.
    let made = eventually(SOON, "there is a route", async || {
        let list = routes.list(&ListParams::default()).await?;
        let made = list.items.into_iter().next();
        made.context("there is none")
    })
    .await?;
    let status = json!({"status": {"parents": [{
        "parentRef": {"name": "public"}, "controllerName": "test.example/bench",
        "conditions": [{"type": "Accepted", "status": "False", "reason": "NotAllowedByListeners",
            "message": "no listener lets this namespace in", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }]}});
    let (patch, params) = (Patch::Merge(&status), PatchParams::default());
    routes
        .patch_status(&made.name_any(), &params, &patch)
        .await?;
    let said = event(&space, "refused", "NotAllowedByListeners").await?;
    ensure!(
        said.contains("Gateway public") && said.contains("lets this namespace in"),
        "{said}"
    );
    let log = operator.log()?;
    ensure!(!log.contains("\"message\":\"validated\""), "{log}");
    Ok(())
}

#[tokio::test]
async fn the_ca_is_not_told_before_a_request_would_reach_us() -> Result<()> {
    let bench = Bench::shared().await?;
    let address = DataPath::address_of_its_own()?;
    if address.port() != 80 {
        eprintln!("not run: a self-check comes to port 80, which this user may not listen on");
        return Ok(());
    }
    let host = "moved.shared.example";
    let (_pebble, mut operator) = start(
        bench,
        "pebble-shared",
        address,
        &[host, "acme.shared.example"],
        "route: shared",
    )
    .await?;
    operator.run().await?;
    let space = Space::new(bench.client()?, "shared", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", host)];
    space.tls_secret("shared", None, &annotations).await?;
    eventually(SOON, "it waits for its route", async || {
        let log = operator.log()?;
        ensure!(log.contains("\"ordered\""), "no order yet");
        Ok(())
    })
    .await?;
    throughout(A_WHILE, "the CA is not told", async || {
        ensure!(!operator.log()?.contains("validated"), "it was");
        Ok(())
    })
    .await?;
    // Paused while it waits: the CA is not told either when the way is open.
    space.annotate("shared", "paused", "true").await?;
    // The way of `route: shared` that works everywhere: a redirect at the edge to a host of the operator's.
    let backend = operator.challenge_address();
    let servers = format!(
        "server {{ listen {address}; server_name {host}; location /.well-known/acme-challenge/ {{ \
         return 302 http://acme.shared.example$request_uri; }} }}\n\
         server {{ listen {address}; server_name acme.shared.example; location /.well-known/acme-challenge/ {{ \
         proxy_pass http://{backend}; }} }}\n"
    );
    let namespace = operator.namespace().to_owned();
    let path = DataPath::start(bench, address, &namespace, backend, &servers).await?;
    eventually(SOON, "its route leads to it", async || {
        let log = operator.log()?;
        ensure!(
            log.contains("the route of each host leads to us"),
            "not yet"
        );
        Ok(())
    })
    .await?;
    throughout(A_WHILE, "the CA is not told of a paused one", async || {
        ensure!(!operator.log()?.contains("validated"), "it was");
        Ok(())
    })
    .await?;
    space.annotate("shared", "paused", "false").await?;
    renewed(&space, "shared", "").await?;
    let requests = path.requests()?;
    ensure!(
        requests.contains("self-check"),
        "no self-check came: {requests}"
    );

    let dns = bench.dns().address().to_string();
    let check = |host: &str| {
        let program = env!("CARGO_BIN_EXE_cert-renew");
        let arguments = ["check", "route", host, "--nameserver", &dns];
        Command::new(program).args(arguments).output()
    };
    let output = check(host)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success() && said.contains("reach cert-renew"),
        "{said}"
    );
    // Not killed: its workers would go on without it.
    path.process().signal("TERM")?;
    path.process().ended(SOON).await?;
    let output = check(host)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains(host), "{said}");
    Ok(())
}

/// The CA asks once: a challenge that is sent to a replica which cannot start is lost.
#[tokio::test]
async fn the_service_for_challenges_leads_to_replicas_that_are_ready_and_to_no_other() -> Result<()>
{
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "replicas", "").await?;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/services.yaml");
    let shipped = std::fs::read_to_string(file)?;
    let namespace = format!("namespace: {}", space.name);
    let here = shipped.replace("namespace: cert-renew", &namespace);
    kubectl(bench, "create -f -", &here)?;
    // In a cluster with IPv6 only, or with both, a Service without this has one family, which may not be the ingress's.
    let services: Api<Service> = Api::namespaced(space.client.clone(), &space.name);
    for service in services.list(&ListParams::default()).await?.items {
        let policy = service.spec.and_then(|spec| spec.ip_family_policy);
        ensure!(policy.as_deref() == Some("PreferDualStack"), "{policy:?}");
    }
    for name in ["runs", "stuck"] {
        let labels = json!({"app": name, "app.kubernetes.io/name": "cert-renew"});
        let ports = json!([{"name": "challenge", "containerPort": 8402}]);
        let changes = [
            ("/spec/replicas", json!(1)),
            ("/spec/template/metadata/labels", labels),
            ("/spec/template/spec/containers/0/ports", ports),
        ];
        make(&space, "Deployment", name, "tls", &changes).await?;
        ready(&space, name, 1).await?;
    }
    let stuck = pods_of(&space, "stuck").await?.remove(0).name_any();
    mark(&space, &stuck, false).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(space.client.clone(), &space.name);
    let of_it = ListParams::default().labels("kubernetes.io/service-name=cert-renew-challenge");
    eventually(SOON, "each endpoint is known by its pod", async || {
        let found = slices.list(&of_it).await?.items;
        let mut ready = Vec::new();
        for endpoint in found.into_iter().flat_map(|slice| slice.endpoints) {
            let pod = endpoint.target_ref.and_then(|pod| pod.name);
            let conditions = endpoint.conditions.unwrap_or_default();
            ready.push((pod == Some(stuck.clone()), conditions.ready));
        }
        ready.sort_unstable();
        let expected = [(false, Some(true)), (true, Some(false))];
        ensure!(ready == expected, "(is it stuck, is it ready): {ready:?}");
        Ok(())
    })
    .await
}
