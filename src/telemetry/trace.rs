//! Traces: one for each renewal, from due to served, made from the log's own lines.
//!
//! A log line with the field `step` reports that this step of a Secret has just ended: a span of that name lasts from
//! the end of the step before to it. So events are reported in one place, and the code of a renewal knows nothing of
//! traces.
//!
//! ```text
//! due ─ order ─ prove ─ finalize ─ write ─ roll ─┬─ deployment/web ─┬─ verify ─ done
//! └──────────────────── renewal ─────────────────┴─ statefulset/db ─┘
//! ```
//! Open traces are in memory only: if another process goes on, its part is a trace of its own.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::mpsc::Sender;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::stage::Stage;

/// Most Secrets with an open trace; further ones have none.
const OPEN: usize = 1_000;
/// Most spans of one trace, since there may be many workloads.
const SPANS: usize = 200;

/// A piece of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) id: [u8; 8],
    pub(crate) parent: Option<[u8; 8]>,
    pub(crate) name: String,
    pub(crate) start: SystemTime,
    pub(crate) end: SystemTime,
    /// The other fields of its line.
    pub(crate) attributes: Vec<(&'static str, String)>,
    /// Why it failed, if it did.
    pub(crate) error: Option<String>,
}

/// The spans of one Secret for one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) id: [u8; 16],
    /// The root comes last.
    pub(crate) spans: Vec<Span>,
}

/// The fields of a log line.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) step: Option<Stage>,
    pub(super) secret: Option<String>,
    pub(super) fields: Vec<(&'static str, String)>,
}

/// The open trace of one Secret.
struct Open {
    id: [u8; 16],
    root: [u8; 8],
    /// The parent span of the workloads.
    rollout: [u8; 8],
    began: SystemTime,
    /// When the last step ended.
    until: SystemTime,
    /// When the rollout began.
    rolling: Option<SystemTime>,
    spans: Vec<Span>,
}

/// Reads the log's lines and sends complete traces.
pub(crate) struct Traces {
    open: Mutex<HashMap<String, Open>>,
    sender: Sender<Trace>,
    random: SystemRandom,
}

impl Traces {
    pub(crate) fn new(sender: Sender<Trace>) -> Self {
        Self {
            open: Mutex::default(),
            sender,
            random: SystemRandom::new(),
        }
    }

    /// Zeros if there is no randomness, which no collector accepts: nothing else depends on it.
    fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        let _ = self.random.fill(&mut bytes);
        bytes
    }

    fn begin(&self, now: SystemTime) -> Open {
        Open {
            id: self.random(),
            root: self.random(),
            rollout: self.random(),
            began: now,
            until: now,
            rolling: None,
            spans: Vec::new(),
        }
    }

    fn on(&self, now: SystemTime, line: Line) {
        let (Some(step), Some(secret)) = (line.step, line.secret) else {
            return;
        };
        let mut all = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.remove(&secret);
        // A step that ends without a beginning here belongs to no trace.
        let mut open = match (step, known) {
            (Stage::Due, _) => self.begin(now),
            (Stage::Recorded | Stage::Failed, None) => return,
            (_, None) if all.len() >= OPEN => return,
            (_, None) => self.begin(now),
            (_, Some(open)) => open,
        };
        let fields = line.fields;
        let of = |name: &str| {
            let field = fields.iter().find(|(field, _)| *field == name);
            field.map(|(_, value)| value.clone())
        };
        let ended = match step {
            Stage::Due => None,
            Stage::Roll => {
                open.rolling = Some(now);
                open.step(self.random(), "settle", now, fields, None);
                None
            }
            Stage::Workload => {
                let took = of("took_ms").and_then(|took| took.parse().ok());
                let start = took.and_then(|took| now.checked_sub(Duration::from_millis(took)));
                let name = of("workload").unwrap_or_else(|| step.name().to_owned());
                let error = of("error");
                open.until = now;
                open.spans.push(Span {
                    id: self.random(),
                    parent: Some(open.rollout),
                    name,
                    start: start.or(open.rolling).unwrap_or(now),
                    end: now,
                    attributes: fields,
                    error,
                });
                None
            }
            Stage::Done | Stage::Recorded => Some((fields, None)),
            Stage::Failed | Stage::Halted => {
                let error = of("error").or_else(|| of("note"));
                Some((
                    fields,
                    Some(error.unwrap_or_else(|| step.name().to_owned())),
                ))
            }
            _ => {
                let span = self.random();
                open.step(span, step.name(), now, fields, None);
                None
            }
        };
        let Some((attributes, error)) = ended else {
            open.spans.truncate(SPANS);
            all.insert(secret, open);
            return;
        };
        drop(all);
        let trace = open.end(now, &secret, attributes, error);
        // A slow or missing collector costs traces, and nothing else.
        let _ = self.sender.try_send(trace);
    }
}

impl Open {
    fn step(
        &mut self,
        id: [u8; 8],
        name: &str,
        now: SystemTime,
        attributes: Vec<(&'static str, String)>,
        error: Option<String>,
    ) {
        let parent = match self.rolling {
            Some(at) if at != now => self.rollout,
            _ => self.root,
        };
        self.spans.push(Span {
            id,
            parent: Some(parent),
            name: name.to_owned(),
            start: self.until,
            end: now,
            attributes,
            error,
        });
        self.until = now;
    }

    fn end(
        mut self,
        now: SystemTime,
        secret: &str,
        mut attributes: Vec<(&'static str, String)>,
        error: Option<String>,
    ) -> Trace {
        if let Some(start) = self.rolling {
            self.spans.push(Span {
                id: self.rollout,
                parent: Some(self.root),
                name: "rollout".to_owned(),
                start,
                end: now,
                attributes: Vec::new(),
                error: error.clone(),
            });
        }
        attributes.insert(0, ("secret", secret.to_owned()));
        self.spans.push(Span {
            id: self.root,
            parent: None,
            name: "renewal".to_owned(),
            start: self.began,
            end: now,
            attributes,
            error,
        });
        Trace {
            id: self.id,
            spans: self.spans,
        }
    }
}

impl<S: Subscriber> Layer<S> for Traces {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let now = SystemTime::now();
        for line in lines(event) {
            self.on(now, line);
        }
    }
}

/// The step that a log line reports, for each of its Secrets.
pub(super) fn lines(event: &Event<'_>) -> Vec<Line> {
    let metadata = event.metadata();
    if !metadata.is_event() || metadata.fields().field("step").is_none() {
        return Vec::new();
    }
    let mut line = Line::default();
    event.record(&mut line);
    // A workload may be rolled for several Secrets of its namespace.
    let of = |name: &str| line.fields.iter().find(|(field, _)| *field == name);
    let (Some((_, namespace)), Some((_, secrets))) = (of("namespace"), of("secrets")) else {
        return vec![line];
    };
    // A list of names is printed as JSON.
    let secrets: Vec<String> = serde_json::from_str(secrets).unwrap_or_default();
    let one = |secret: String| Line {
        step: line.step,
        secret: Some(format!("{namespace}/{secret}")),
        fields: line.fields.clone(),
    };
    secrets.into_iter().map(one).collect()
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field.name(), value.to_owned());
    }
}

impl Line {
    fn take(&mut self, name: &'static str, value: String) {
        match name {
            "step" => self.step = Stage::of(&value),
            "secret" => self.secret = Some(value),
            "message" => {}
            name => self.fields.push((name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Each step a second after the one before.
    fn traced(steps: &[(&str, &[(&'static str, &str)])]) -> (Traces, Receiver<Trace>) {
        let (sender, receiver) = channel(10);
        let traces = Traces::new(sender);
        for (number, (step, fields)) in (0..).zip(steps) {
            let line = Line {
                step: Stage::of(step),
                secret: Some("shop/tls".into()),
                fields: fields
                    .iter()
                    .map(|(name, it)| (*name, (*it).into()))
                    .collect(),
            };
            traces.on(at(number), line);
        }
        (traces, receiver)
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    #[test]
    fn a_renewal_is_one_trace_from_due_to_served() {
        let (_, mut receiver) = traced(&[
            ("due", &[]),
            ("order", &[("order", "https://ca.example/1")]),
            ("prove", &[]),
            ("write", &[]),
            ("roll", &[]),
            (
                "workload",
                &[("workload", "deployment/web"), ("took_ms", "500")],
            ),
            ("verify", &[]),
            ("done", &[("leaf", "ab")]),
        ]);
        let trace = receiver.try_recv().unwrap();
        assert!(receiver.try_recv().is_err(), "one trace");
        let root = trace.spans.last().unwrap();
        assert_eq!(
            (&*root.name, root.start, root.end),
            ("renewal", at(0), at(7))
        );
        let name_of = |id: Option<[u8; 8]>| {
            let span = trace.spans.iter().find(|span| Some(span.id) == id);
            span.map_or("", |span| &span.name)
        };
        let told: Vec<_> = trace
            .spans
            .iter()
            .map(|span| (&*span.name, name_of(span.parent)))
            .collect();
        assert_eq!(
            told,
            [
                ("order", "renewal"),
                ("prove", "renewal"),
                ("write", "renewal"),
                ("settle", "renewal"),
                ("deployment/web", "rollout"),
                ("verify", "rollout"),
                ("rollout", "renewal"),
                ("renewal", ""),
            ]
        );
        // No gap, and no overlap except of concurrent spans.
        for pair in trace.spans[..4].windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
        }
        assert_eq!(trace.spans[4].start, at(5) - Duration::from_millis(500));
        assert!(trace.spans.iter().all(|span| span.error.is_none()));
    }

    #[test]
    fn what_fails_ends_with_its_reason_and_what_never_began_is_no_trace() {
        let (traces, mut receiver) = traced(&[("due", &[]), ("failed", &[("error", "no")])]);
        let trace = receiver.try_recv().unwrap();
        assert_eq!(trace.spans.len(), 1);
        assert_eq!(trace.spans[0].error.as_deref(), Some("no"));
        assert!(traces.open.lock().unwrap().is_empty());
        let (_, mut receiver) = traced(&[("recorded", &[]), ("failed", &[])]);
        assert!(receiver.try_recv().is_err());
        // A rollout of another's renewal, or one that another process began.
        let (_, mut receiver) = traced(&[("roll", &[]), ("halted", &[("note", "web failed")])]);
        let trace = receiver.try_recv().unwrap();
        assert_eq!(
            trace.spans.last().unwrap().error.as_deref(),
            Some("web failed")
        );
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let (sender, _receiver) = channel(1);
        let traces = Traces::new(sender);
        for number in 0..2 * OPEN {
            let line = Line {
                step: Some(Stage::Order),
                secret: Some(format!("shop/{number}")),
                fields: Vec::new(),
            };
            traces.on(at(0), line);
        }
        assert_eq!(traces.open.lock().unwrap().len(), OPEN);
    }
}
