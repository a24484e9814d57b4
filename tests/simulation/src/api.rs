//! The API server: requests of kube's client, answered from the objects.

use std::sync::Arc;

use axum::body::Body as Answer;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::sleep;

use self::reads::{list, watch};
use crate::objects::{Key, Kind, Objects, PODS, Refusal};
use crate::weather::Fate;
use crate::world::World;

mod reads;

/// Why a request has no answer.
pub type Lost = Box<dyn std::error::Error + Send + Sync>;

/// What a request asks for.
struct Asked {
    kind: &'static Kind,
    namespace: Option<String>,
    name: Option<String>,
    query: Vec<(String, String)>,
}

impl Asked {
    fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    fn key(&self) -> Key {
        let (namespace, name) = (self.namespace.as_deref(), self.name.as_deref());
        Key::new(
            self.kind,
            namespace.unwrap_or_default(),
            name.unwrap_or_default(),
        )
    }

    fn selects(&self, object: &Value) -> bool {
        let fields = self.parameter("fieldSelector").unwrap_or_default();
        let labels = self.parameter("labelSelector").unwrap_or_default();
        let field = |path: &str| path.split('.').fold(object, |at, name| &at[name]);
        fits(fields, |path| field(path).as_str())
            && fits(labels, |label| object["metadata"]["labels"][label].as_str())
    }
}

/// Whether a selector fits: `a=b`, `a==b`, `a!=b`, `a`, `!a`, all of them.
fn fits<'a>(selector: &str, value: impl Fn(&str) -> Option<&'a str>) -> bool {
    let mut terms = selector.split(',').filter(|term| !term.is_empty());
    terms.all(|term| {
        if let Some((name, wanted)) = term.split_once("!=") {
            value(name) != Some(wanted)
        } else if let Some((name, wanted)) = term.split_once('=') {
            value(name) == Some(wanted.trim_start_matches('='))
        } else if let Some(name) = term.strip_prefix('!') {
            value(name).is_none()
        } else {
            value(term).is_some()
        }
    })
}

/// Answers a request of a replica, as far as the weather lets it through.
///
/// # Errors
/// When the request or its answer is lost.
pub async fn answer(
    world: World,
    replica: Arc<str>,
    request: Request<Body>,
) -> Result<Response<Answer>, Lost> {
    let (parts, body) = request.into_parts();
    let body = body.collect_bytes().await?;
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let query: Vec<(String, String)> = parts.uri.query().map_or_else(Vec::new, |query| {
        form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect()
    });
    let writes = !matches!(method, Method::GET | Method::HEAD);
    let patches = method == Method::PATCH;
    let lists = !writes
        && path
            .rsplit('/')
            .next()
            .is_some_and(|last| last.ends_with('s'));
    let is_lease = path.contains("/leases");
    let (fate, there, back) = {
        let mut now = world.now();
        now.requests.api += 1;
        if patches {
            now.forget_order(&path, &body);
        }
        now.requests.writes += u64::from(writes && !is_lease);
        let fate = now.weather.of_api(writes, patches, lists);
        (fate, now.weather.way(), now.weather.way())
    };
    let named = || named(&method, &path, &query);
    if fate != Fate::Fair {
        let silent = !world.now().weather.api_up;
        if !silent {
            world.tell(&replica, format_args!("{}: {fate:?}", named()));
        }
    }
    sleep(there).await;
    match fate {
        Fate::LostBefore => return Err("the connection was reset".into()),
        Fate::DiesBefore => return world.die(&replica).await,
        Fate::Late(late) => sleep(late).await,
        Fate::Refused(code) => return Ok(refused(code)),
        Fate::Fair | Fate::LostAfter | Fate::DiesAfter => {}
    }
    let asked = Requested {
        world: &world,
        replica: &replica,
        method: &method,
        path: &path,
        query,
    };
    let answer = asked.carry_out(&parts.headers, &body);
    if writes && !is_lease {
        let status = answer.status().as_u16();
        world.tell(
            &replica,
            format_args!("{}: {status}", named_short(&method, &path)),
        );
    }
    match fate {
        Fate::LostAfter => return Err("the connection was reset".into()),
        Fate::DiesAfter => return world.die(&replica).await,
        _ => {}
    }
    sleep(back).await;
    Ok(answer)
}

fn named(method: &Method, path: &str, query: &[(String, String)]) -> String {
    let watches = query.iter().any(|(name, _)| name == "watch");
    let watches = if watches { " (watch)" } else { "" };
    format!("{}{watches}", named_short(method, path))
}

fn named_short(method: &Method, path: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').skip(3).collect();
    parts.retain(|part| !matches!(*part, "namespaces" | "v1"));
    // The name of an Event holds an instant of the real clock and a hash.
    if let Some(at) = parts.iter().position(|part| *part == "events") {
        parts.truncate(at + 1);
    }
    format!("{method} {}", parts.join("/"))
}

fn refused(code: u16) -> Response<Answer> {
    let reason = match code {
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    let mut answer = status(&Refusal::new(code, reason, "as the weather is"));
    if code == 429 {
        let one = header::HeaderValue::from_static("1");
        answer.headers_mut().insert(header::RETRY_AFTER, one);
    }
    answer
}

fn status(refusal: &Refusal) -> Response<Answer> {
    let Refusal {
        code,
        reason,
        message,
    } = refusal;
    json_answer(
        *code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        }),
    )
}

fn json_answer(code: u16, body: &Value) -> Response<Answer> {
    let answer = Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, "application/json");
    let answer = answer.body(Answer::from(body.to_string()));
    answer.unwrap_or_else(|error| panic!("{error}"))
}

/// Of a group that it does not know the API server speaks in plain text.
fn unknown(path: &str) -> Response<Answer> {
    let group = path.trim_start_matches("/apis/").trim_start_matches('/');
    if Kind::has_group(group) {
        let message = "the server could not find the requested resource";
        return status(&Refusal::new(404, "NotFound", message));
    }
    let answer = Response::builder()
        .status(404)
        .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .body(Answer::from("404 page not found\n"));
    answer.unwrap_or_else(|error| panic!("{error}"))
}

/// What is said of a deletion: pods are given back, of all else it is said that it is done.
fn done(key: &Key, deleted: Arc<Value>) -> Arc<Value> {
    if key.kind == &PODS {
        return deleted;
    }
    let uid = &deleted["metadata"]["uid"];
    let details = json!({"name": key.name, "kind": key.kind.plural, "uid": uid});
    Arc::new(json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    }))
}

struct Requested<'a> {
    world: &'a World,
    replica: &'a Arc<str>,
    method: &'a Method,
    path: &'a str,
    query: Vec<(String, String)>,
}

impl Requested<'_> {
    fn carry_out(self, headers: &http::HeaderMap, body: &Bytes) -> Response<Answer> {
        if self.path == "/version" {
            let minor = self.world.now().checks.minor.clone();
            return json_answer(
                200,
                &json!({
                    "major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.0"), "gitCommit": "", "gitTreeState": "",
                    "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
                }),
            );
        }
        let Some(asked) = self.asked() else {
            return unknown(self.path);
        };
        let manager = asked
            .parameter("fieldManager")
            .unwrap_or("client")
            .to_owned();
        let body: Value = match body.len() {
            0 => Value::Null,
            _ => serde_json::from_slice(body).unwrap_or_else(|error| panic!("{error}")),
        };
        let is_of = |kind: &str| {
            let found = headers.get(header::CONTENT_TYPE);
            found.is_some_and(|it| it == kind)
        };
        let merges = *self.method == Method::PATCH && is_of("application/merge-patch+json");
        if !body.is_null() && !merges {
            self.world.now().sent(asked.kind, &body);
        }
        // Events are for people: they are taken and not kept.
        if asked.kind.plural == "events" {
            return json_answer(
                if *self.method == Method::POST {
                    201
                } else {
                    200
                },
                &body,
            );
        }
        match *self.method {
            Method::GET if asked.parameter("watch").is_some_and(|it| it != "false") => {
                watch(self.world, asked)
            }
            Method::GET if asked.name.is_some() => {
                let now = self.world.now();
                let key = asked.key();
                match now.objects.get(&key) {
                    Some(object) => json_answer(200, object),
                    None => {
                        let message = format!("{} {:?} not found", key.kind.plural, key.name);
                        status(&Refusal::new(404, "NotFound", message))
                    }
                }
            }
            Method::GET => list(&self.world.now().objects, &asked),
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let key = Key::new(
                    asked.kind,
                    asked.namespace.as_deref().unwrap_or_default(),
                    name,
                );
                if self.world.now().loses(&key, &body) {
                    let mut body = body;
                    body["metadata"]["uid"] = json!("lost");
                    return json_answer(201, &body);
                }
                let mut body = body;
                self.world.now().uncount(&key, &mut body);
                self.write(&key, 201, |objects| objects.create(&key, body))
            }
            Method::PUT => {
                let key = asked.key();
                self.write(&key, 200, |objects| objects.replace(&key, body))
            }
            Method::PATCH if is_of("application/json-patch+json") => {
                let key = asked.key();
                self.write(&key, 200, |objects| objects.patch(&key, &body))
            }
            Method::PATCH => {
                assert!(
                    is_of("application/merge-patch+json"),
                    "the simulated API server takes merge patches and JSON patches only"
                );
                let (key, mut body) = (asked.key(), body);
                {
                    let mut now = self.world.now();
                    now.distort(&key, &mut body);
                    now.sent(key.kind, &body);
                    now.patches(&key, &body);
                    if let Some(object) = now.pretends(&key, &body) {
                        return json_answer(200, &object);
                    }
                }
                let patched = self.write(&key, 200, |objects| objects.merge(&key, &body, &manager));
                let again = self.world.now().second_write(&key, &body);
                if let Some(again) = again.filter(|_| patched.status().is_success()) {
                    self.write(&key, 200, |objects| objects.merge(&key, &again, &manager));
                }
                patched
            }
            Method::DELETE => {
                let key = asked.key();
                let kept = {
                    let now = self.world.now();
                    let object = now.objects.get(&key).cloned();
                    object.filter(|_| now.keeps(&key))
                };
                if let Some(object) = kept {
                    return json_answer(200, &done(&key, object));
                }
                self.write(&key, 200, |objects| {
                    let deleted = objects.delete(&key, &body["preconditions"])?;
                    Ok(done(&key, deleted))
                })
            }
            ref other => panic!("the simulated API server knows no {other}"),
        }
    }

    fn write(
        &self,
        key: &Key,
        code: u16,
        write: impl FnOnce(&mut Objects) -> Result<Arc<Value>, Refusal>,
    ) -> Response<Answer> {
        let mut now = self.world.now();
        let before = now.objects.get(key).cloned();
        let written = write(&mut now.objects);
        let after = now.objects.get(key).cloned();
        if before != after {
            now.wrote(self.replica, key, before.as_deref(), after.as_deref());
        }
        match written {
            Ok(object) => json_answer(code, &object),
            Err(refusal) => status(&refusal),
        }
    }

    fn asked(&self) -> Option<Asked> {
        let mut parts = self.path.trim_matches('/').split('/');
        let api = match parts.next()? {
            "api" => parts.next()?.to_owned(),
            "apis" => format!("{}/{}", parts.next()?, parts.next()?),
            _ => return None,
        };
        let mut plural = parts.next()?;
        let mut namespace = None;
        let rest: Vec<&str> = parts.collect();
        let mut rest = rest.into_iter();
        if plural == "namespaces" && rest.len() >= 2 {
            namespace = rest.next().map(str::to_owned);
            plural = rest.next()?;
        }
        Some(Asked {
            kind: Kind::of(&api, plural)?,
            namespace,
            name: rest.next().map(str::to_owned),
            query: self.query.clone(),
        })
    }
}
