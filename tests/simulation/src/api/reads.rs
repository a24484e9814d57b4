//! What is read of many objects: lists in pages, and watches.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body as Answer;
use bytes::Bytes;
use futures::stream;
use http::{Response, header};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Asked, json_answer, status};
use crate::objects::{Change, Key, Objects, Refusal};
use crate::world::World;

/// A page of a list. A continue token is `VERSION|NAMESPACE/NAME`, after which it goes on.
pub(super) fn list(objects: &Objects, asked: &Asked) -> Response<Answer> {
    let expired = || {
        status(&Refusal::new(
            410,
            "Expired",
            "the continue token is too old",
        ))
    };
    let nonsense = || {
        status(&Refusal::new(
            400,
            "BadRequest",
            "the continue token is none",
        ))
    };
    let (mut version, mut after) = (objects.version(), None);
    if let Some(token) = asked.parameter("continue").filter(|it| !it.is_empty()) {
        let Some((of, last)) = token.split_once('|') else {
            return nonsense();
        };
        let Ok(of) = of.parse() else {
            return nonsense();
        };
        if objects.since(asked.kind, of).is_none() {
            return expired();
        }
        version = of;
        after = last
            .split_once('/')
            .map(|(namespace, name)| Key::new(asked.kind, namespace, name));
    }
    let limit = asked.parameter("limit").and_then(|it| it.parse().ok());
    let limit: usize = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let mut found = objects
        .list(asked.kind, asked.namespace.as_deref())
        .filter(|(key, object)| {
            after.as_ref().is_none_or(|after| *key > after) && asked.selects(object)
        });
    let (mut items, mut last) = (Vec::new(), None);
    for (key, object) in found.by_ref().take(limit) {
        let mut item = Value::clone(object);
        // The list says it for all of them.
        if let Some(fields) = item.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        items.push(item);
        last = Some(key);
    }
    let more = found.next().is_some();
    let token = last
        .filter(|_| more)
        .map(|last| format!("{version}|{}/{}", last.namespace, last.name));
    json_answer(
        200,
        &json!({
            "kind": format!("{}List", asked.kind.name), "apiVersion": asked.kind.api,
            "metadata": {"resourceVersion": version.to_string(), "continue": token.unwrap_or_default()},
            "items": items,
        }),
    )
}

/// Where a watch stands.
struct Watching {
    world: World,
    asked: Asked,
    version: u64,
    until: Instant,
    /// Lines that were not sent yet.
    ready: Vec<u8>,
    bookmarked: bool,
    ended: bool,
}

pub(super) fn watch(world: &World, asked: Asked) -> Response<Answer> {
    let now = world.now();
    let from = asked.parameter("resourceVersion").unwrap_or_default();
    let streams = asked.parameter("sendInitialEvents") == Some("true");
    let seconds = asked
        .parameter("timeoutSeconds")
        .and_then(|it| it.parse().ok());
    let mut ready = Vec::new();
    let version = match from {
        "" | "0" => now.objects.version(),
        from => match from.parse() {
            Ok(version) => version,
            Err(_) => {
                return status(&Refusal::new(
                    400,
                    "BadRequest",
                    "resourceVersion: a number was expected",
                ));
            }
        },
    };
    if streams || matches!(from, "" | "0") {
        let all = now.objects.list(asked.kind, asked.namespace.as_deref());
        for (_, object) in all.filter(|(_, object)| asked.selects(object)) {
            line(&mut ready, "ADDED", object);
        }
    }
    if streams {
        let end = json!({
            "kind": asked.kind.name, "apiVersion": asked.kind.api,
            "metadata": {
                "resourceVersion": version.to_string(), "creationTimestamp": null,
                "annotations": {"k8s.io/initial-events-end": "true"},
            },
        });
        line(&mut ready, "BOOKMARK", &end);
    }
    // A version that is too old is told of within the watch, as `next` does.
    drop(now);
    let watching = Watching {
        world: world.clone(),
        until: Instant::now() + Duration::from_secs(seconds.unwrap_or(290)),
        bookmarked: asked.parameter("allowWatchBookmarks") == Some("true"),
        asked,
        version,
        ready,
        ended: false,
    };
    let lines = stream::unfold(watching, |mut watching| async move {
        let next = watching.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(next)), watching))
    });
    let answer = Response::builder().header(header::CONTENT_TYPE, "application/json");
    let answer = answer.body(Answer::from_stream(lines));
    answer.unwrap_or_else(|error| panic!("{error}"))
}

fn line(lines: &mut Vec<u8>, kind: &str, object: &Value) {
    lines.extend(
        json!({"type": kind, "object": object})
            .to_string()
            .into_bytes(),
    );
    lines.push(b'\n');
}

impl Watching {
    async fn next(&mut self) -> Option<Vec<u8>> {
        let kind = self.asked.kind;
        let mut changed = self.world.now().objects.changes_of(kind);
        loop {
            if !self.ready.is_empty() {
                return Some(std::mem::take(&mut self.ready));
            }
            if self.ended {
                return None;
            }
            changed.mark_unchanged();
            let changes = self.world.now().objects.since(kind, self.version);
            let Some(changes) = changes else {
                let gone = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired",
                    "message": "too old resource version", "code": 410,
                });
                line(&mut self.ready, "ERROR", &gone);
                self.ended = true;
                continue;
            };
            for change in changes {
                self.version = change.version;
                self.tell(&change);
            }
            if !self.ready.is_empty() {
                let lag = self.world.now().weather.lag();
                if let Some(lag) = lag {
                    sleep(lag).await;
                }
                continue;
            }
            if timeout_at(self.until, changed.changed()).await.is_err() {
                self.ended = true;
                if self.bookmarked {
                    // Nothing of its kind has changed up to now.
                    self.version = self.world.now().objects.version();
                    let mark = json!({
                        "kind": self.asked.kind.name, "apiVersion": self.asked.kind.api,
                        "metadata": {"resourceVersion": self.version.to_string(), "creationTimestamp": null},
                    });
                    line(&mut self.ready, "BOOKMARK", &mark);
                }
            }
        }
    }

    fn tell(&mut self, change: &Change) {
        let asked = &self.asked;
        let elsewhere = asked
            .namespace
            .as_ref()
            .is_some_and(|it| *it != change.key.namespace);
        if elsewhere {
            return;
        }
        let before = change.before.as_ref().is_some_and(|it| asked.selects(it));
        let after = !change.deleted && asked.selects(&change.after);
        let kind = match (before, after) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return,
        };
        // What leaves a selection is told as it was while it belonged to it, with the version of the change.
        if let Some(former) = change.before.as_ref().filter(|_| kind == "DELETED") {
            let mut former = Value::clone(former);
            former["metadata"]["resourceVersion"] = json!(change.version.to_string());
            line(&mut self.ready, kind, &former);
        } else {
            line(&mut self.ready, kind, &change.after);
        }
    }
}
