//! The last step of each Secret that is worked on, read from the log's own lines as the traces are: so the view of one
//! Secret says how far its order is, and the code of a renewal knows nothing of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::detail::LastStep;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::stage::Stage;
use super::trace::{self, Line};

/// Most Secrets whose step is known: more than are worked on at a time. What waits for long is not worked on, and its step
/// is known for as long as there is room; the namespace that has most makes it.
const MOST: usize = 1_000;
/// Longest URL of an order that is kept, in bytes.
const LONGEST: usize = 512;
/// The last steps, by `namespace/name`. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Steps(Arc<Mutex<HashMap<String, LastStep>>>);

impl Steps {
    /// The last step of a Secret, if it is worked on.
    #[must_use]
    pub(crate) fn of(&self, secret: &str) -> Option<LastStep> {
        let steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        steps.get(secret).cloned()
    }

    fn on(&self, at: UnixTime, line: Line) {
        let (Some(step), Some(secret)) = (line.step, line.secret) else {
            return;
        };
        let mut steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = steps.remove(&secret);
        if step.is_last() {
            return;
        }
        let mut fields = line.fields.into_iter();
        let order = fields.find(|(name, value)| *name == "order" && value.len() <= LONGEST);
        // The steps between name it no more. Another renewal has another one.
        let known = before
            .filter(|_| step != Stage::Due)
            .and_then(|it| it.order);
        let order = order.map(|(_, order)| order.into()).or(known);
        let name = step.name().into();
        steps.insert(secret, LastStep { name, at, order });
        while steps.len() > MOST
            && let Some(gone) = trace::gives_way(&steps, |_| 1, |step| step.at)
        {
            steps.remove(&gone);
        }
    }
}

impl<S: Subscriber> Layer<S> for Steps {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        for line in trace::lines(event) {
            self.on(UnixTime::now(), line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: &str, secret: &str, order: Option<&str>) -> Line {
        Line {
            step: Stage::of(step),
            secret: Some(secret.into()),
            fields: order.map(|it| ("order", it.into())).into_iter().collect(),
            ..Line::default()
        }
    }

    #[test]
    fn the_last_step_is_known_until_the_work_ends() {
        let steps = Steps::default();
        steps.on(UnixTime(1), line("due", "shop/tls", None));
        steps.on(
            UnixTime(2),
            line("order", "shop/tls", Some("https://ca.example/1")),
        );
        steps.on(UnixTime(3), line("prove", "shop/tls", None));
        let step = steps.of("shop/tls").unwrap();
        assert_eq!((&*step.name, step.at), ("prove", UnixTime(3)));
        assert_eq!(step.order.as_deref(), Some("https://ca.example/1"));
        steps.on(UnixTime(4), line("failed", "shop/tls", None));
        assert_eq!(steps.of("shop/tls"), None);
        steps.on(UnixTime(4), line("due", "blog/tls", None));
        for number in 0..2 * MOST {
            steps.on(UnixTime(5), line("due", &format!("shop/{number}"), None));
        }
        assert_eq!(steps.0.lock().unwrap().len(), MOST);
        assert!(
            steps.of("blog/tls").is_some(),
            "it is older than all of the others"
        );
    }
}
