//! One process group and one temporary directory that end with this process, however it ends.
//!
//! Destructors run neither in a killed process nor for a `static`, so two shells clean up. They read from pipes that
//! only this process holds: when it is gone, they read end of file. The first is the leader of the group in which every
//! program of the bench is started, and kills that group, itself included. The second is outside, kills the group once
//! more and removes the directory. Neither can be left behind by a crash between two steps.

use std::env;
use std::fs::DirBuilder;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

const LEADER: &str = r#"
trap '' INT TERM HUP QUIT
read -r word
[ "$word" = keep ] || kill -s KILL 0
"#;

/// Cleans up. A killed program may still be writing for an instant, so the directory is removed until it is gone.
const UNDERTAKER: &str = r#"
trap '' INT TERM HUP QUIT
read -r word
[ "$word" = keep ] && exit 0
tries=0
while [ $tries -lt 100 ]; do
    kill -s KILL -- "-$1" 2>/dev/null
    rm -rf -- "$2" 2>/dev/null && sleep 0.02 && [ ! -e "$2" ] && exit 0
    tries=$((tries + 1))
    sleep 0.05
done
"#;

/// The process group and the directory of one bench.
#[derive(Debug)]
pub(crate) struct Group {
    id: i32,
    directory: PathBuf,
    /// Leader and undertaker, in this order. `None` once released.
    shells: Mutex<Option<[Child; 2]>>,
    /// If true, dropping a program of the group does not kill it.
    kept: Arc<AtomicBool>,
}

impl Group {
    /// Starts both shells and makes the directory, readable by this user only.
    pub(crate) fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // The instant and the process id, which may recur while a kept directory still exists.
        let instant = SystemTime::now()
            .duration_since(UNIX_EPOCH)?
            .subsec_micros();
        let name = format!("cert-renew-bench-{}-{count}-{instant}", std::process::id());
        let directory = env::temp_dir().join(name);
        let leader = shell(LEADER, &[]).context("starting the leader of the process group")?;
        let id = i32::try_from(leader.id()).context("a process id out of range")?;
        let arguments = [id.to_string(), directory.display().to_string()];
        let undertaker = shell(UNDERTAKER, &arguments).context("starting the undertaker")?;
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        Ok(Self {
            id,
            directory,
            shells: Mutex::new(Some([leader, undertaker])),
            kept: Arc::default(),
        })
    }

    /// The process group, for `CommandExt::process_group`.
    pub(crate) fn id(&self) -> i32 {
        self.id
    }

    /// The directory that is removed with the group.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn kept(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.kept)
    }

    /// Lets the programs and the directory outlive this process, and returns the command that ends them.
    ///
    /// # Errors
    /// When the shells are gone already.
    pub(crate) fn keep(&self) -> Result<String> {
        self.kept.store(true, Ordering::Relaxed);
        for mut child in self.take().into_iter().flatten() {
            if let Some(mut stdin) = child.stdin.take() {
                writeln!(stdin, "keep").context("telling the shells to keep the bench")?;
            }
            child.wait()?;
        }
        Ok(format!(
            "kill -s KILL -- -{}; rm -rf {}",
            self.id,
            self.directory.display()
        ))
    }

    fn take(&self) -> Option<[Child; 2]> {
        self.shells.lock().ok()?.take()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for mut child in self.take().into_iter().flatten() {
            drop(child.stdin.take());
            // An error means that it has ended, which is the aim.
            let _ = child.wait();
        }
    }
}

fn shell(script: &str, arguments: &[String]) -> io::Result<Child> {
    Command::new("sh")
        .args(["-c", script, "cert-renew-bench"])
        .args(arguments)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}
