//! One program of the bench: runs in the bench's process group, with its output in a file. Its death is reported with
//! the end of that file.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::time::{sleep, timeout};

use crate::group::Group;

/// Lines of a log that are shown, enough to see why a program ended.
const TAIL_LINES: usize = 25;
/// Pause between two probes: short, since a bench starts in a few seconds and waits for several programs in turn.
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// Longest time until a process has stopped that was told to.
const STOPS: Duration = Duration::from_secs(20);
/// Longest probe; one that hangs has failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// All programs that were started, for [`diagnosis`].
static ALL: Mutex<Vec<Weak<Process>>> = Mutex::new(Vec::new());

/// A running program, killed when dropped unless its group was kept.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Mutex<Child>,
    /// The thread that started it: that of the test, if a test did.
    starter: ThreadId,
    /// Set before it is ended on purpose, which is not reported.
    expected: AtomicBool,
    /// A problem that a watcher has found.
    complaint: Mutex<Option<String>>,
    kept: Arc<AtomicBool>,
}

impl Process {
    /// Starts `command` with its output appended to `<name>.log` in the directory of the bench.
    pub(crate) fn spawn(group: &Group, name: &str, mut command: Command) -> Result<Arc<Self>> {
        let log = group.directory().join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let child = command
            .process_group(group.id())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {name} ({})", command.get_program().display()))?;
        let process = Arc::new(Self {
            name: name.to_owned(),
            log,
            child: Mutex::new(child),
            starter: std::thread::current().id(),
            expected: AtomicBool::new(false),
            complaint: Mutex::default(),
            kept: group.kept(),
        });
        let mut all = lock(&ALL);
        all.retain(|process| process.strong_count() > 0);
        all.push(Arc::downgrade(&process));
        Ok(process)
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        lock(&self.child).id()
    }

    /// The file that holds standard output and standard error.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exited(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().ok().flatten()
    }

    /// Sends a signal by its name without `SIG`, for example `TERM`. After `STOP` none of its threads runs any more.
    ///
    /// # Errors
    /// When the process is gone, or does not stop.
    pub fn signal(&self, signal: &str) -> Result<()> {
        ensure!(self.exited().is_none(), "{} has ended already", self.name);
        self.expected.store(true, Ordering::Relaxed);
        // The shell's own `kill`: not every machine has the program.
        let kill = format!("kill -s {signal} {}", self.id());
        let status = Command::new("sh").args(["-c", &kill]).status()?;
        ensure!(status.success(), "`{kill}` for {} failed", self.name);
        let started = Instant::now();
        while signal == "STOP" && !self.is_stopped() {
            let name = &self.name;
            ensure!(started.elapsed() < STOPS, "{name} does not stop");
            std::thread::sleep(PROBE_PAUSE);
        }
        Ok(())
    }

    /// Its threads stop one after the other, and one that still runs may answer.
    fn is_stopped(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.id()));
        let threads = threads.into_iter().flatten().flatten();
        let mut states = threads.filter_map(|it| fs::read_to_string(it.path().join("stat")).ok());
        // The state follows the name, which is in parentheses and may have any in it.
        states.all(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, state)| state.starts_with('T'))
        })
    }

    /// Ends it with SIGKILL and waits.
    pub fn kill(&self) {
        self.expected.store(true, Ordering::Relaxed);
        let mut child = lock(&self.child);
        // Both fail only when it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it still runs at the deadline.
    pub async fn ended(&self, deadline: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                return Ok(status);
            }
            ensure!(
                started.elapsed() < deadline,
                "{} still runs after {deadline:?}\n{}",
                self.name,
                self.tail()
            );
            sleep(PROBE_PAUSE).await;
        }
    }

    /// Waits until `probe` succeeds.
    ///
    /// # Errors
    /// When the program ends before, or the deadline passes: with the probe's last error and the end of the log.
    pub async fn ready<P>(&self, deadline: Duration, probe: P) -> Result<()>
    where
        P: AsyncFn() -> Result<()>,
    {
        let started = Instant::now();
        loop {
            let Err(error) = timeout(PROBE_TIMEOUT, probe())
                .await
                .context("no answer")
                .flatten()
            else {
                return Ok(());
            };
            if let Some(death) = self.death() {
                bail!("{death}");
            }
            let name = &self.name;
            ensure!(
                started.elapsed() < deadline,
                "{name} is not ready after {deadline:?}: {error:#}\n{}",
                self.tail()
            );
            sleep(PROBE_PAUSE).await;
        }
    }

    /// A sentence and the end of the log, if it has ended.
    #[must_use]
    pub fn death(&self) -> Option<String> {
        let status = self.exited()?;
        Some(format!(
            "{} ended with {status}\n{}",
            self.name,
            self.tail()
        ))
    }

    /// The end of the log.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines
            .get(lines.len().saturating_sub(TAIL_LINES)..)
            .unwrap_or_default();
        format!(
            "the end of {}:\n  {}",
            self.log.display(),
            tail.join("\n  ")
        )
    }

    pub(crate) fn complain(&self, complaint: Option<String>) {
        *lock(&self.complaint) = complaint;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Relaxed) {
            self.kill();
        }
    }
}

/// What may explain the failure of the test on this thread: programs that ended unexpectedly or hang, and the end of
/// the logs of those that this test has started.
pub(crate) fn diagnosis() -> String {
    let mut text = String::new();
    let all: Vec<_> = lock(&ALL).iter().filter_map(Weak::upgrade).collect();
    for process in all {
        let own = process.starter == std::thread::current().id();
        let death = process
            .death()
            .filter(|_| own || !process.expected.load(Ordering::Relaxed));
        let complaint = lock(&process.complaint).clone();
        if let Some(finding) = death.or(complaint).or_else(|| own.then(|| process.tail())) {
            let _ = write!(text, "\n{finding}");
        }
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
