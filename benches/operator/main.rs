//! `make bench`: what the operator costs, on a real API server and a real CA.
//!
//! Each argument is one benchmark with a bench of its own; `target/bench/<name>.json` holds its figures. Nothing here
//! asserts a time: machines differ, so what is compared is measured in the same run.

#![expect(clippy::print_stdout, reason = "the table is for the reader")]

mod audit;
mod bare;
mod bare_rollout;
mod burst;
mod cached;
mod data;
mod failover;
mod growth;
mod page;
mod process;
mod propagation;
mod report;
mod start;
mod steady;
mod steps;
mod wave;

use std::path::PathBuf;
use std::process::ExitCode;

use report::{Report, say};
use test_bench::{Context as _, OperatorOptions, Result, bail, ensure};

/// The image's own program, which is what users run.
#[cfg(target_arch = "aarch64")]
const SHIPPED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/target/image/root-arm64/cert-renew"
);
#[cfg(not(target_arch = "aarch64"))]
const SHIPPED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/target/image/root-amd64/cert-renew"
);

/// What runs without an argument; the large ones are asked for by name.
const USUAL: [&str; 7] = [
    "start-10k",
    "steady",
    "page",
    "propagation",
    "failover",
    "wave-200",
    "wave-1000",
];

fn main() -> ExitCode {
    // `cargo bench` adds arguments for its own harness.
    let asked: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let names = if asked.is_empty() {
        USUAL.map(ToOwned::to_owned).to_vec()
    } else {
        asked
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = runtime.context("starting the runtime").and_then(|runtime| {
        for name in &names {
            say(name);
            runtime
                .block_on(run(name))
                .with_context(|| format!("bench {name}"))?;
        }
        Ok(())
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(name: &str) -> Result<()> {
    if name == "growth" {
        return growth::draw();
    }
    let program = program();
    ensure!(
        program.is_file(),
        "there is no {}: `make bench` builds it, and CERT_RENEW_PROGRAM names another build",
        program.display()
    );
    say(&format!("measuring {}", program.display()));
    let mut report = Report::new(name, &format!("make bench BENCH={name}"));
    match name {
        "start-1k" => start::thousands(&mut report, 1).await?,
        "start-10k" => start::thousands(&mut report, 10).await?,
        "start-10k-self-signed" => start::self_signed(&mut report, 10).await?,
        "start-10k-asked-about" => start::asked_about(&mut report, 10).await?,
        "start-100k-asked-about" => start::asked_about(&mut report, 100).await?,
        "start-100k" => start::hundred_thousand(&mut report).await?,
        "start-1m" => start::thousands(&mut report, 1_000).await?,
        "install-10k" => start::install(&mut report).await?,
        "steady" => steady::run(&mut report).await?,
        "page" => page::run(&mut report).await?,
        "propagation" => propagation::run(&mut report).await?,
        "burst" => burst::run(&mut report).await?,
        "cached" => cached::run(&mut report).await?,
        "cached-changes" => cached::changes(&mut report).await?,
        "cached-10k" => cached::starts(&mut report, 10).await?,
        "cached-100k" => cached::starts(&mut report, 100).await?,
        "failover" => failover::run(&mut report).await?,
        "wave-200" => wave::run(&mut report, 200).await?,
        "wave-1000" => wave::run(&mut report, 1_000).await?,
        "wave-5000" => wave::run(&mut report, 5_000).await?,
        _ => bail!(
            "there are {}, burst, cached or its parts cached-changes, cached-10k and cached-100k, start-1k, \
             start-10k-self-signed, start-10k-asked-about, start-100k, start-100k-asked-about, start-1m, install-10k, \
             wave-5000, and growth, which draws; not {name:?}",
            USUAL.join(", ")
        ),
    }
    println!("{}", report.finish()?);
    Ok(())
}

/// The operator as users run it.
fn options() -> OperatorOptions {
    let mut options = OperatorOptions::new(program());
    options.log_level = "info".into();
    options
}

/// What is measured: the image's own program, or another build that `CERT_RENEW_PROGRAM` names, for a comparison.
fn program() -> PathBuf {
    std::env::var_os("CERT_RENEW_PROGRAM").map_or_else(|| SHIPPED.into(), PathBuf::from)
}
