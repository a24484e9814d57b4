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
//! Open traces are in memory only: if another process goes on, its part is a trace of its own. They are bounded by bytes,
//! and where there is no room, the namespace that has most makes it.

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

/// Most Secrets with an open trace.
const OPEN: usize = 1_000;
/// Most bytes of all open traces: what lines say may be as long as a tenant or a CA makes it.
const BYTES: usize = 4 * 1024 * 1024;
/// Most spans of one trace, since there may be many workloads, and most of their bytes.
const SPANS: usize = 200;
const OF_ONE: usize = 64 * 1024;
/// Counted for a trace without spans.
const EMPTY: usize = 1_024;
/// Most bytes of a field.
const LONGEST: usize = 1_024;

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
    /// The names of several Secrets, as JSON.
    pub(super) secrets: Option<String>,
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
    /// What counts of it: [`EMPTY`] and the weight of its spans.
    bytes: usize,
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
            bytes: EMPTY,
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
            (Stage::Recorded | Stage::Failed, None) => return,
            (Stage::Due, _) | (_, None) => self.begin(now),
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
                open.push(Span {
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
            all.insert(secret, open);
            while (all.len() > OPEN || weight(&all) > BYTES)
                && let Some(gone) = gives_way(&all, |it| it.bytes, |it| it.began)
            {
                all.remove(&gone);
            }
            return;
        };
        drop(all);
        let trace = open.end(now, &secret, attributes, error);
        // A slow or missing collector costs traces, and nothing else.
        let _ = self.sender.try_send(trace);
    }
}

fn weight(all: &HashMap<String, Open>) -> usize {
    all.values().map(|open| open.bytes).sum()
}

/// Of what is kept by `namespace/name`, that which makes room: the oldest of the namespace that has most.
pub(super) fn gives_way<T, A: Ord>(
    all: &HashMap<String, T>,
    weight: impl Fn(&T) -> usize,
    age: impl Fn(&T) -> A,
) -> Option<String> {
    let mut weights: HashMap<&str, usize> = HashMap::new();
    for (secret, it) in all {
        *weights.entry(namespace_of(secret)).or_default() += weight(it);
    }
    let (most, _) = weights.into_iter().max_by_key(|(_, weight)| *weight)?;
    let own = all
        .iter()
        .filter(|(secret, _)| namespace_of(secret) == most);
    let oldest = own.min_by_key(|&(_, it)| age(it));
    oldest.map(|(secret, _)| secret.clone())
}

fn namespace_of(secret: &str) -> &str {
    secret.split('/').next().unwrap_or_default()
}

impl Span {
    fn weight(&self) -> usize {
        let values = self.attributes.iter().map(|(_, value)| value.len() + 64);
        let error = self.error.as_ref().map_or(0, String::len);
        size_of::<Self>() + self.name.len() + error + values.sum::<usize>()
    }
}

impl Open {
    /// Adds a span, if the trace has room for it.
    fn push(&mut self, span: Span) {
        let bytes = self.bytes + span.weight();
        if self.spans.len() < SPANS && bytes <= OF_ONE {
            self.bytes = bytes;
            self.spans.push(span);
        }
    }

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
        self.push(Span {
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
    let (Some((_, namespace)), Some(secrets)) = (of("namespace"), &line.secrets) else {
        return vec![line];
    };
    // A list of names is printed as JSON.
    let secrets: Vec<String> = serde_json::from_str(secrets).unwrap_or_default();
    let one = |secret: String| Line {
        step: line.step,
        secret: Some(format!("{namespace}/{secret}")),
        secrets: None,
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
            // They are whole, and not kept: each of them has a line of its own.
            "secrets" => self.secrets = Some(value),
            "message" => {}
            name => {
                let mut value = value;
                value.truncate(value.floor_char_boundary(LONGEST));
                // What is counted of it is its length.
                value.shrink_to_fit();
                self.fields.push((name, value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{Receiver, channel};
    use tracing_subscriber::layer::SubscriberExt as _;

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
                ..Line::default()
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
                ..Line::default()
            };
            traces.on(at(0), line);
        }
        assert_eq!(traces.open.lock().unwrap().len(), OPEN);
    }

    #[test]
    fn the_traces_of_a_namespace_take_no_room_of_others_and_a_bounded_number_of_bytes() {
        let (sender, _receiver) = channel(1);
        let traces = Traces::new(sender);
        let line = |step, secret: String, note: &str| Line {
            step: Some(step),
            secret: Some(secret),
            fields: vec![("note", note.to_owned())],
            ..Line::default()
        };
        traces.on(at(0), line(Stage::Due, "shop/tls".into(), ""));
        let long = "x".repeat(LONGEST);
        for number in 0..200 {
            let secret = || format!("loud/{number}");
            traces.on(at(1), line(Stage::Due, secret(), ""));
            for _ in 0..SPANS {
                traces.on(at(2), line(Stage::Workload, secret(), &long));
            }
        }
        let open = traces.open.lock().unwrap();
        assert!(weight(&open) <= BYTES && open.values().all(|it| it.bytes <= OF_ONE));
        assert!(
            open.contains_key("shop/tls"),
            "it is older than all of the others"
        );
        drop(open);
        for number in 0..2 * OPEN {
            traces.on(at(3), line(Stage::Due, format!("loud/{number}"), ""));
        }
        let open = traces.open.lock().unwrap();
        assert!(open.len() <= OPEN && open.contains_key("shop/tls"));
    }

    #[test]
    fn a_line_of_several_secrets_is_one_of_each_without_the_names_of_the_others() {
        struct Told(Mutex<Vec<Line>>);

        impl<S: Subscriber> Layer<S> for &'static Told {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                self.0.lock().unwrap().extend(lines(event));
            }
        }

        static TOLD: Told = Told(Mutex::new(Vec::new()));
        let log = tracing_subscriber::registry().with(&TOLD);
        let secrets = &["a".to_owned(), "b".to_owned()][..];
        let note = "x".repeat(2 * LONGEST);
        tracing::subscriber::with_default(log, || {
            tracing::info!(
                namespace = "shop",
                step = Stage::Workload.name(),
                ?secrets,
                note,
                "restarted"
            );
        });
        let told = TOLD.0.lock().unwrap();
        let named: Vec<_> = told.iter().map(|line| line.secret.as_deref()).collect();
        assert_eq!(named, [Some("shop/a"), Some("shop/b")]);
        for line in &*told {
            let fields: Vec<_> = line
                .fields
                .iter()
                .map(|(name, it)| (*name, it.len()))
                .collect();
            assert_eq!(fields, [("namespace", 4), ("note", LONGEST)]);
        }
    }
}
