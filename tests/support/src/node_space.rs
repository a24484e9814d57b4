//! The surroundings of a real node: new network, mount and pid namespaces, in which this program is started once more.
//!
//! Everything in them ends with that program, also when it is killed: the pid namespace ends its processes, the mount
//! namespace its mounts. What the kernel keeps nevertheless, cgroups and files, is removed from outside.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::group::Group;
use crate::node::Tools;
use crate::ports;

/// Address on which the node and everything of the bench listen: only pods reach it.
const ADDRESS: &str = "10.88.0.1";
/// Names the directory in which the node may write.
const DIRECTORY: &str = "CERT_RENEW_NODE_DIRECTORY";
/// Names the root of the node's cgroups.
const CGROUP: &str = "CERT_RENEW_NODE_CGROUP";

/// `setpriv` lets nothing outlive the test.
const OUTSIDE: &str = r#"
[ "$(id -u)" = 0 ] || { echo "node: it needs root, for cgroups, mounts and networks" >&2; exit 1; }
exec setpriv --pdeathsig KILL -- unshare --net --mount --pid --ipc --fork --kill-child=KILL --mount-proc -- "$@"
"#;

/// Waits for the end of its parent, then for the last process of the cgroup, which is dying by then.
const UNDERTAKER: &str = r#"
trap '' INT TERM HUP QUIT
read -r word
tries=0
while [ $tries -lt 200 ]; do
    find /sys/fs/cgroup/*/"$1" /sys/fs/cgroup/"$1" -depth -type d -exec rmdir {} + 2>/dev/null
    [ -n "$(find /sys/fs/cgroup -maxdepth 2 -name "$1")" ] || exit 0
    tries=$((tries + 1))
    sleep 0.05
done
exit 1
"#;

/// The surroundings of the program that was started again.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) directory: String,
    pub(crate) cgroup: String,
    pub(crate) address: String,
}

impl Surroundings {
    /// The surroundings of this process.
    ///
    /// # Errors
    /// When it was not started by [`run_on_a_node`].
    pub(crate) fn of_this_process() -> Result<Self> {
        let variable = |name: &str| {
            let value = env::var(name);
            value.with_context(|| format!("no {name}: `make node` starts this, and sets it"))
        };
        Ok(Self {
            directory: variable(DIRECTORY)?,
            cgroup: variable(CGROUP)?,
            address: variable(ports::ADDRESS)?,
        })
    }
}

/// Runs the ignored test `test` of this program where [`crate::Node::start`] works. Passes its output on.
///
/// # Errors
/// When the machine does not allow it (standard error says why), the test fails, or something is left over.
pub async fn run_on_a_node(test: &'static str) -> Result<()> {
    // One thread for all of it: the test is killed when the thread that started it ends.
    tokio::task::spawn_blocking(move || run(test)).await?
}

fn run(test: &str) -> Result<()> {
    // Removed when this process ends, however it ends; the node cannot, as its shells end with its namespace.
    let group = Group::new()?;
    let cgroup = format!("cert-renew-node-{}", std::process::id());
    let mut undertaker = undertaker(&cgroup)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/inside.sh");
    let status = Tools::find()?
        .with_path(Command::new("sh"))
        .args(["-c", OUTSIDE, "sh"])
        .arg(script)
        .arg(group.directory())
        .args([&cgroup, ADDRESS])
        .arg(env::current_exe()?)
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env(DIRECTORY, group.directory())
        .env(CGROUP, &cgroup)
        .env(ports::ADDRESS, ADDRESS)
        .env("TMPDIR", group.directory())
        .status()
        .context("a real node needs unshare and setpriv (util-linux) and ip (iproute2)")?;
    drop(undertaker.stdin.take());
    let removed = undertaker.wait()?;
    ensure!(
        status.success(),
        "on the node: {status}; the reason stands above"
    );
    ensure!(
        removed.success(),
        "cgroups named {cgroup} are left over: a process must have escaped"
    );
    Ok(())
}

fn undertaker(cgroup: &str) -> Result<Child> {
    Command::new("sh")
        .args(["-c", UNDERTAKER, "sh", cgroup])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting the undertaker of the cgroups")
}
