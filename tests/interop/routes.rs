//! Scenes at a real ingress and Gateway controller, with Pebble as the CA: its requests arrive at Traefik.
//!
//! Traefik learns its routes from objects only. The operator answers at the address of a pod behind the shipped Service,
//! and an app of the user's does the same. There is no kube-proxy, which Traefik does not use: it reads EndpointSlices.

use futures::FutureExt as _;
use futures::future::join;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use test_bench::{Context as _, Result, ensure, eventually};

use super::edges::{CLASS, Edges, HEALTH, NAMESPACE, SECURE_CLASS, Site, apply, objects};
use super::inside::{Ground, Scene};
use crate::acme_operator::event;
use crate::install::kubectl;
use crate::renewal::SOON;

/// All of them.
pub(super) fn scenes<'a>(ground: &'a Ground, edges: &'a Edges) -> Vec<Scene<'a>> {
    let mut all = Vec::new();
    let mut add = |what, run| {
        all.push(Scene {
            ca: "Pebble",
            what,
            host: "-",
            long: false,
            run,
        });
    };
    add("Traefik: Ingress", ingress(ground, edges).boxed_local());
    add(
        "Traefik: one Ingress for all hosts",
        shared(ground, edges).boxed_local(),
    );
    add(
        "Traefik: Ingress beside the app's",
        beside(ground, edges).boxed_local(),
    );
    add(
        "Traefik: all of HTTP is sent to HTTPS",
        redirected(ground, edges).boxed_local(),
    );
    add(
        "Traefik: HTTPRoute",
        http_route(ground, edges).boxed_local(),
    );
    add(
        "Traefik: HTTPRoute beside a redirect",
        http_route_beside(ground, edges).boxed_local(),
    );
    add(
        "Traefik: HTTPRoute, not let in",
        http_route_refused(ground, edges).boxed_local(),
    );
    all
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The user's own, for the whole host, with the certificate that is asked for.
fn apps_ingress(site: &Site<'_>, class: &str) -> Value {
    let backend = json!({"service": {"name": "app", "port": {"number": 80}}});
    let path = json!({"path": "/", "pathType": "Prefix", "backend": backend});
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": "app", "namespace": site.space.name},
        "spec": {"ingressClassName": class, "tls": [{"hosts": [site.host], "secretName": "tls"}],
            "rules": [{"host": site.host, "http": {"paths": [path]}}]}})
}

async fn ingress(ground: &Ground, edges: &Edges) -> Result<String> {
    let route = "route: ingress, ingress: {class: traefik}";
    let site = Site::start(ground, &edges.plain, "alone", route).await?;
    site.ask().await?;
    site.issued().await?;
    let answered = site.answered()?;
    site.nothing_is_left("Ingress").await?;
    Ok(format!(
        "issued, {answered} requests through it to us; Ingress and route gone"
    ))
}

/// The app's own Ingress has the whole host, and goes on serving it.
async fn beside(ground: &Ground, edges: &Edges) -> Result<String> {
    let route = "route: ingress, ingress: {class: traefik}";
    let site = Site::start(ground, &edges.plain, "beside", route).await?;
    site.app().await?;
    apply(site.bench, vec![apps_ingress(&site, CLASS)])?;
    eventually(SOON, "the app is served", async || {
        site.greets("http").await
    })
    .await?;
    site.ask().await?;
    site.issued().await?;
    let answered = site.answered()?;
    site.nothing_is_left("Ingress").await?;
    site.greets("http").await?;
    Ok(format!(
        "issued, {answered} requests through it to us; the app is served as before"
    ))
}

/// The CA is sent to HTTPS, where Traefik has no certificate for the host yet.
async fn redirected(ground: &Ground, edges: &Edges) -> Result<String> {
    let route = format!("route: ingress, ingress: {{class: {SECURE_CLASS}}}");
    let site = Site::start(ground, &edges.secure, "redirected", &route).await?;
    site.app().await?;
    apply(site.bench, vec![apps_ingress(&site, SECURE_CLASS)])?;
    eventually(SOON, "the app is served", async || {
        let (status, _, location) = site.get("http", "/").await?;
        ensure!(
            location.starts_with("https://"),
            "{status}: to {location:?}"
        );
        site.greets("https").await
    })
    .await?;
    site.ask().await?;
    site.issued().await?;
    let answered = site.answered()?;
    site.nothing_is_left("Ingress").await?;
    Ok(format!(
        "issued, {answered} requests through it to us by HTTPS"
    ))
}

/// The user routes once: an Ingress without a host, above those with one.
async fn shared(ground: &Ground, edges: &Edges) -> Result<String> {
    let site = Site::start(ground, &edges.plain, "shared", "route: shared").await?;
    site.app().await?;
    let backend = json!({"service": {"name": "cert-renew-challenge", "port": {"number": 80}}});
    let path =
        json!({"path": "/.well-known/acme-challenge/", "pathType": "Prefix", "backend": backend});
    let once = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": "challenges", "namespace": site.operator.namespace(),
            "annotations": {"traefik.ingress.kubernetes.io/router.priority": "1000"}},
        "spec": {"ingressClassName": CLASS, "rules": [{"http": {"paths": [path]}}]}});
    apply(site.bench, vec![apps_ingress(&site, CLASS), once])?;
    eventually(SOON, "both are routed", async || {
        site.greets("http").await?;
        let (status, body, _) = site.get("http", HEALTH).await?;
        ensure!(body == "OK", "{status}: {body}");
        Ok(())
    })
    .await?;
    site.ask().await?;
    site.issued().await?;
    let answered = site.answered()?;
    // It leads every host's challenges to this operator.
    let all = objects(site.bench, site.operator.namespace(), "Ingress")?;
    all.delete("challenges", &DeleteParams::default()).await?;
    Ok(format!("issued, {answered} requests through it to us"))
}

async fn http_route(ground: &Ground, edges: &Edges) -> Result<String> {
    let route = format!(
        "route: gateway, gateway: {{parentRefs: [{{name: public, namespace: {NAMESPACE}}}]}}"
    );
    let site = Site::start(ground, &edges.plain, "gateway", &route).await?;
    let routes = objects(site.bench, site.operator.namespace(), "HTTPRoute")?;
    let accepted = eventually(SOON, "Traefik accepts the route", async || {
        let list = routes.list(&ListParams::default()).await?;
        let made = list.items.into_iter().next().context("there is none")?;
        let parents = made.data["status"]["parents"].as_array().cloned();
        let parents = parents.unwrap_or_default();
        let accepted = parents.iter().find(|it| {
            let conditions = it["conditions"].as_array().into_iter().flatten();
            let mut accepted = conditions.filter(|it| it["type"] == "Accepted");
            accepted.any(|it| it["status"] == "True")
        });
        let accepted = accepted.with_context(|| format!("{parents:?}"))?;
        Ok(text(&accepted["controllerName"]))
    });
    let issued = async {
        site.ask().await?;
        site.issued().await
    };
    let (accepted, issued) = join(accepted, issued).await;
    issued?;
    let controller = accepted?;
    let answered = site.answered()?;
    site.nothing_is_left("HTTPRoute").await?;
    Ok(format!(
        "accepted by {controller}, issued, {answered} requests through it to us; HTTPRoute and route gone"
    ))
}

/// The app's HTTPRoutes: one sends all of HTTP to HTTPS, the other serves it there.
fn apps_routes(site: &Site<'_>) -> Vec<Value> {
    let route = |name: &str, listener: &str, rule: Value| {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": name, "namespace": site.space.name},
            "spec": {"hostnames": [site.host], "rules": [rule],
                "parentRefs": [{"name": "public", "namespace": NAMESPACE, "sectionName": listener}]}})
    };
    let redirect = json!({"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "statusCode": 301}});
    vec![
        route("to-https", "http", json!({"filters": [redirect]})),
        route(
            "app",
            "https",
            json!({"backendRefs": [{"name": "app", "port": 80}]}),
        ),
    ]
}

async fn http_route_beside(ground: &Ground, edges: &Edges) -> Result<String> {
    let route = format!(
        "route: gateway, gateway: {{parentRefs: [{{name: public, namespace: {NAMESPACE}}}]}}"
    );
    let site = Site::start(ground, &edges.plain, "gateway-beside", &route).await?;
    site.app().await?;
    apply(site.bench, apps_routes(&site))?;
    let as_before = async || {
        let (status, _, location) = site.get("http", "/").await?;
        ensure!(
            location.starts_with("https://"),
            "{status}: to {location:?}"
        );
        site.greets("https").await
    };
    eventually(SOON, "the app is served", &as_before).await?;
    site.ask().await?;
    site.issued().await?;
    let answered = site.answered()?;
    site.nothing_is_left("HTTPRoute").await?;
    as_before().await?;
    Ok(format!(
        "issued, {answered} requests through it to us; the redirect stands as before"
    ))
}

async fn http_route_refused(ground: &Ground, edges: &Edges) -> Result<String> {
    let route = format!(
        "route: gateway, gateway: {{parentRefs: [{{name: closed, namespace: {NAMESPACE}}}]}}"
    );
    let site = Site::start(ground, &edges.plain, "refused", &route).await?;
    site.ask().await?;
    let said = event(&site.space, "tls", "Gateway closed").await?;
    let log = site.operator.log()?;
    ensure!(!log.contains("\"message\":\"validated\""), "{log}");
    let open = r#"[{"op":"replace","path":"/spec/listeners/0/allowedRoutes/namespaces/from","value":"All"}]"#;
    let patch = format!("patch gateway closed -n {NAMESPACE} --type=json -p={open}");
    kubectl(site.bench, &patch, "")?;
    site.space.annotate("tls", "renew-now", "1").await?;
    site.issued().await?;
    site.nothing_is_left("HTTPRoute").await?;
    let said = said.split(": ").last().unwrap_or_default();
    Ok(format!(
        "its words are told ({said}); issued when it was opened"
    ))
}
