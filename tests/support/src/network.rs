//! A network in which pod addresses work: kwok assigns some to its pods, but no machine has them.
//!
//! In a separate network namespace all of them are local, so a test's servers answer on them and nothing leaves the
//! machine. A running process cannot be moved into one, so a test program runs some of its tests there by starting
//! itself again, with a bench of their own.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::group::Group;
use crate::ports;

/// Root needs no user namespace, which some machines forbid to other users. `setpriv` lets nothing outlive the test.
const OUTSIDE: &str = r#"
flags=--net
[ "$(id -u)" = 0 ] || flags="--map-root-user --net"
exec unshare $flags -- setpriv --pdeathsig KILL -- "$@"
"#;

/// The network that kwok takes addresses from.
const INSIDE: &str = r#"ip link set lo up && ip route add local 10.0.0.0/16 dev lo && exec "$@""#;

/// Tells this program that it runs where pods have addresses.
const HERE: &str = "CERT_RENEW_PODS_HAVE_ADDRESSES";

/// No IPv4 at all.
const ONLY_IPV6: &str = r#"ip link set lo up && ip address del 127.0.0.1/8 dev lo && exec "$@""#;

/// Address of the resolver of [`run_with_ports_of_its_own`], on port 53.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
/// As above, with a mount namespace too, for files that the machine's programs read.
const OUTSIDE_WITH_FILES: &str = r#"
flags="--net --mount"
[ "$(id -u)" = 0 ] || flags="--map-root-user $flags"
exec unshare $flags -- setpriv --pdeathsig KILL -- "$@"
"#;
const INSIDE_WITH_FILES: &str = r#"file=$1 && shift && ip link set lo up && ip route add local 10.0.0.0/16 dev lo && mount --bind "$file" /etc/resolv.conf && exec "$@""#;

/// Runs the ignored test `test` of this program where every port is free, including well-known ones, where pods have
/// addresses, and where this machine's programs ask [`RESOLVER`] for names, which the test has to start. Passes its output
/// on.
///
/// # Errors
/// When the machine does not allow it, or the test fails.
pub async fn run_with_ports_of_its_own(test: &'static str) -> Result<()> {
    let run = move || {
        let group = Group::new()?;
        let status = (with_files(&group, "", test)?.status())
            .context("it needs unshare and setpriv (util-linux) and ip (iproute2)")?;
        ensure!(status.success(), "{status}; the reason stands above");
        Ok(())
    };
    // One thread for all of it: the test is killed when the thread that started it ends.
    tokio::task::spawn_blocking(run).await?
}

/// The same, with these lines in `resolv.conf` too. Its output is in the error.
///
/// # Errors
/// As above.
pub async fn run_with_resolv_conf(lines: &'static str, test: &'static str) -> Result<()> {
    let run = move || {
        let group = Group::new()?;
        let told = passed(&mut with_files(&group, lines, test)?)?;
        ensure!(told.contains("ok. 1 passed"), "it is not found: {told}");
        Ok(())
    };
    // One thread for all of it: the test is killed when the thread that started it ends.
    tokio::task::spawn_blocking(run).await?
}

fn with_files(group: &Group, lines: &str, test: &str) -> Result<Command> {
    let file = group.directory().join("resolv.conf");
    fs::write(&file, format!("nameserver {RESOLVER}\n{lines}"))?;
    let mut command = Command::new("sh");
    command
        .args(["-c", OUTSIDE_WITH_FILES, "sh"])
        .args(["sh", "-c", INSIDE_WITH_FILES, "sh"])
        .arg(&file)
        .arg(env::current_exe()?)
        .args([test, "--exact", "--ignored", "--nocapture"]);
    Ok(command)
}

/// Runs the ignored tests of this program whose names begin with `tests`, in such a network.
///
/// # Errors
/// When one fails, or none is found: with all their output.
pub async fn run_where_pods_have_addresses(tests: &'static str) -> Result<()> {
    // One thread for all of it: the tests are killed when the thread that started them ends.
    tokio::task::spawn_blocking(move || run(tests)).await?
}

fn run(tests: &str) -> Result<()> {
    let mut command = inside(INSIDE)?;
    command.args([tests, "--ignored", "--test-threads", "2"]);
    let told = passed(&mut command)?;
    ensure!(!told.contains("ok. 0 passed"), "none is found: {told}");
    Ok(())
}

/// Runs the ignored test `test`, which calls this, once more in such a network, unless it runs there already: whether it
/// did, so that nothing is left to do. What it prints to standard error is passed on while it runs.
///
/// # Errors
/// When it fails, or is not found.
pub async fn ran_where_pods_have_addresses(test: &'static str) -> Result<bool> {
    if env::var_os(HERE).is_some() {
        return Ok(false);
    }
    let run = move || {
        let mut command = inside(INSIDE)?;
        command
            .args([test, "--exact", "--ignored", "--nocapture"])
            .env(HERE, "1")
            .stderr(Stdio::inherit());
        let told = passed(&mut command)?;
        ensure!(told.contains("ok. 1 passed"), "it is not found: {told}");
        Ok(true)
    };
    // One thread for all of it: the test is killed when the thread that started it ends.
    tokio::task::spawn_blocking(run).await?
}

/// Runs these tests of this program where loopback has no address but `::1`.
///
/// # Errors
/// When one fails, or one is not found: with all their output.
pub async fn run_where_there_is_only_ipv6(tests: &'static [&'static str]) -> Result<()> {
    let run = move || {
        let mut command = inside(ONLY_IPV6)?;
        command
            .args(tests)
            .args(["--exact", "--test-threads", "2"])
            .env(ports::ADDRESS, Ipv6Addr::LOCALHOST.to_string());
        let told = passed(&mut command)?;
        let all = format!("ok. {} passed", tests.len());
        ensure!(told.contains(&all), "not all are found: {told}");
        Ok(())
    };
    // One thread for all of it: the tests are killed when the thread that started them ends.
    tokio::task::spawn_blocking(run).await?
}

/// This program in a network namespace of its own, made by this script.
fn inside(script: &str) -> Result<Command> {
    let mut command = Command::new("sh");
    command
        .args(["-c", OUTSIDE, "sh", "sh", "-c", script, "sh"])
        .arg(env::current_exe()?);
    Ok(command)
}

/// What the command has printed.
fn passed(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .context("a network namespace needs unshare and setpriv (util-linux) and ip (iproute2)")?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (told, errors) = (said(&output.stdout), said(&output.stderr));
    ensure!(
        output.status.success(),
        "{}: {told}\n{errors}",
        output.status
    );
    Ok(told)
}
