//! What a running task holds: its promise to say how it ended.

use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::index::{Finished, Task};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::time::UnixTime;
use tokio::sync::{mpsc, watch};

/// A task that died without a word is tried again after this.
const AFTER_PANIC: Duration = Duration::from_secs(300);

/// What the tasks of a term report.
#[derive(Debug)]
pub enum Done {
    /// What former leaders left was read.
    Opened,
    /// The workloads of a namespace were listed; the next batch may start.
    Planned(Arc<str>),
    /// The rollouts of a namespace have waited for others to join them.
    Gathered(Arc<str>),
    /// The task of a Secret ended.
    Task(Task, SecretRef, Finished),
    /// The pair of a Secret was looked at: why it is broken, if it is.
    Judged(SecretRef, Option<Box<str>>),
}

/// A running task's promise to say how it ended; a task that is dropped or panics says so by dropping it.
#[derive(Debug)]
pub struct TaskHandle {
    task: Task,
    key: SecretRef,
    sender: mpsc::UnboundedSender<Done>,
    changed: watch::Receiver<()>,
    sent: bool,
}

/// Says that a namespace's batch is planned, when dropped.
#[derive(Debug)]
pub struct Planning {
    namespace: Arc<str>,
    sender: mpsc::UnboundedSender<Done>,
}

impl TaskHandle {
    /// For a task that is about to begin; `changed` is told as [`TaskHandle::changed`] says.
    #[must_use]
    pub fn new(
        task: Task,
        key: SecretRef,
        sender: mpsc::UnboundedSender<Done>,
        changed: watch::Receiver<()>,
    ) -> Self {
        Self {
            task,
            key,
            sender,
            changed,
            sent: false,
        }
    }

    /// Hears when the Secret is gone, and for a rollout also when it holds another certificate than before.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.clone()
    }

    /// The Secret that the task is for.
    #[must_use]
    pub fn key(&self) -> &SecretRef {
        &self.key
    }

    /// The task ended.
    pub fn finish(mut self, finished: Finished) {
        self.sent = true;
        // The receiver goes only when the term does, and then nobody asks.
        let _ = self
            .sender
            .send(Done::Task(self.task, self.key.clone(), finished));
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        if !self.sent {
            let error = Some("the task ended without a result; this is a bug".into());
            let later = Finished::Later(UnixTime::now() + AFTER_PANIC, error);
            let _ = self
                .sender
                .send(Done::Task(self.task, self.key.clone(), later));
        }
    }
}

impl Planning {
    /// For a batch that is about to be planned.
    #[must_use]
    pub fn new(namespace: Arc<str>, sender: mpsc::UnboundedSender<Done>) -> Self {
        Self { namespace, sender }
    }

    /// Whose workloads are planned.
    #[must_use]
    pub fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }
}

impl Drop for Planning {
    fn drop(&mut self) {
        let _ = self.sender.send(Done::Planned(Arc::clone(&self.namespace)));
    }
}
