//! The operator's wall clock jumps, as of a machine whose time was wrong, or is: a child process with a clock of its own.
//!
//! libfaketime, loaded into the operator, adds to the wall clock what a file says, at any time. Timers go on as they are.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cert_renew_core::time::UnixTime;
use test_bench::objects::{FRESH, OLD, Reference, Space, pair};
use test_bench::{Bench, Operator, Proxies, Result, ensure, eventually, throughout, tool};

use crate::acme_operator::event;
use crate::renewal::{SOON, annotation, data, leaf, options, renewed, rolled_out};
use crate::scene::answered;

/// The loop looks at the clock every half minute at least.
const BEAT: Duration = Duration::from_secs(90);
/// Longer than that, so that what should not be has had its time.
const QUIET: Duration = Duration::from_secs(35);

/// A CA that wants each new certificate replaced at once, by that clock, is given in to so often.
const AT_ONCE: usize = 3;
/// What the log says of a jump.
const JUMPED: &str = "the wall clock has jumped";

/// The operator, and the file that says how wrong its clock is.
struct Wrong<'a> {
    operator: Operator<'a>,
    proxies: Proxies,
    space: Space,
    file: PathBuf,
}

impl<'a> Wrong<'a> {
    async fn start(bench: &'a Bench, name: &str, offset: &str) -> Result<Self> {
        let proxies = Proxies::start(bench).await?;
        let file = bench.directory().join(format!("{name}.clock"));
        let mut options = options();
        options.directory = Some(proxies.directory());
        options.config += "retry: {base: 5s, factor: 1, max: 5s}\n";
        let library = tool("libfaketime").await?;
        for (key, value) in [
            ("LD_PRELOAD", library.as_path()),
            ("FAKETIME_TIMESTAMP_FILE", file.as_path()),
            ("FAKETIME_NO_CACHE", "1".as_ref()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".as_ref()),
        ] {
            let value = value.display().to_string();
            options.environment.push((key.to_owned(), value));
        }
        fs::write(&file, offset)?;
        let operator = Operator::start(bench, options).await?;
        let space = Space::new(bench.client()?, name, operator.namespace()).await?;
        Ok(Self {
            operator,
            proxies,
            space,
            file,
        })
    }

    /// At once and whole: half of it would be another time.
    fn set(&self, offset: &str) -> Result<()> {
        let unfinished = self.file.with_extension("unfinished");
        fs::write(&unfinished, offset)?;
        fs::rename(&unfinished, &self.file)?;
        Ok(())
    }

    fn issued(&self) -> usize {
        answered(&self.proxies, "/finalize-order/", 200)
    }
}

#[tokio::test]
async fn a_clock_that_jumps_renews_what_falls_due_and_nothing_over_and_over() -> Result<()> {
    let bench = Bench::shared().await?;
    let wrong = Wrong::start(bench, "jumps", "+0").await?;
    let space = &wrong.space;
    space
        .workload("Deployment", "web", Reference::Volume, "web")
        .await?;
    space.available("Deployment", "web").await?;
    let fresh = pair(&["jumps.example"], FRESH)?;
    space
        .tls_secret("web", Some(&fresh), &[("issuer", "pebble")])
        .await?;
    rolled_out(space, "web").await?;
    throughout(Duration::from_secs(2), "it is not due", async || {
        ensure!(wrong.issued() == 0, "it is renewed");
        Ok(())
    })
    .await?;

    // Within its last third by that clock, and so is whatever the CA makes of it.
    wrong.set("+70d")?;
    eventually(BEAT, "it is renewed", async || {
        let secret = space.secrets().get("web").await?;
        ensure!(data(&secret, "tls.crt") != fresh.certificate, "it is not");
        Ok(())
    })
    .await?;
    throughout(QUIET, "it is not renewed over and over", async || {
        let issued = wrong.issued();
        ensure!(issued <= 1 + AT_ONCE, "{issued} certificates");
        Ok(())
    })
    .await?;
    eventually(SOON, "an Event asks for the clock", async || {
        let events = space.events("web").await?;
        let asks = |event: &String| event.starts_with("RenewalHeld") && event.contains("clock");
        ensure!(events.iter().any(asks), "{events:?}");
        Ok(())
    })
    .await?;

    wrong.set("+0")?;
    eventually(BEAT, "it notices that the clock is another", async || {
        let noticed = wrong.operator.log()?.matches(JUMPED).count();
        ensure!(noticed == 2, "{noticed} times");
        Ok(())
    })
    .await?;
    rolled_out(space, "web").await?;
    let (issued, generation) = (wrong.issued(), space.generation("Deployment", "web").await?);
    throughout(
        QUIET,
        "nothing is done when the clock is right",
        async || {
            ensure!(wrong.issued() == issued, "it is renewed");
            let is = space.generation("Deployment", "web").await?;
            ensure!(is == generation, "the workload was rolled again");
            Ok(())
        },
    )
    .await?;
    // It works on.
    let old = pair(&["after.jumps.example"], OLD)?;
    space
        .tls_secret("after", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(space, "after", &old.certificate).await?;
    Ok(())
}

#[tokio::test]
async fn by_a_clock_that_is_behind_nothing_is_written_that_is_not_valid_yet() -> Result<()> {
    let bench = Bench::shared().await?;
    let wrong = Wrong::start(bench, "behind", "-10d").await?;
    let space = &wrong.space;
    // Due by either clock.
    let old = pair(&["behind.example"], OLD)?;
    space
        .tls_secret("web", Some(&old), &[("issuer", "pebble")])
        .await?;
    eventually(SOON, "it is told what is wrong", async || {
        let secret = space.secrets().get("web").await?;
        let error = annotation(&secret, "state.cert-renew.io/last-error").unwrap_or_default();
        ensure!(error.contains("valid"), "{error:?}");
        ensure!(data(&secret, "tls.crt") == old.certificate, "it is written");
        Ok(())
    })
    .await?;
    wrong.set("+0")?;
    let renewed = eventually(BEAT, "it is renewed by a clock that is right", async || {
        let secret = space.secrets().get("web").await?;
        ensure!(data(&secret, "tls.crt") != old.certificate, "it is not");
        Ok(secret)
    })
    .await?;
    ensure!(
        leaf(&renewed)?.not_before <= UnixTime::now(),
        "not yet valid"
    );
    Ok(())
}

#[tokio::test]
async fn by_a_clock_that_is_a_little_behind_what_was_issued_is_written_when_it_is_valid()
-> Result<()> {
    let bench = Bench::shared().await?;
    let wrong = Wrong::start(bench, "little", "-45s").await?;
    let space = &wrong.space;
    let old = pair(&["little.example"], OLD)?;
    space
        .tls_secret("web", Some(&old), &[("issuer", "pebble")])
        .await?;
    event(space, "web", "is not valid before").await?;
    eventually(BEAT, "it is written by then", async || {
        let secret = space.secrets().get("web").await?;
        ensure!(data(&secret, "tls.crt") != old.certificate, "it is not");
        Ok(())
    })
    .await?;
    assert_eq!(wrong.issued(), 1, "none is thrown away");
    Ok(())
}
