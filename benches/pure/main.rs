//! The pure parts by themselves: decode, parse, decide, index. A timed loop, the median of some rounds.
//! And the index with a million Secrets, whose figures end up in `target/bench/index-1m.json`.

#![expect(clippy::print_stdout, reason = "the table is for the reader")]

mod million;

use std::hint::black_box;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cert_renew_core::index::{Index, Source};
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::time::UnixTime;
use cert_renew_core::{assess, certificate};
use serde_json::json;
use test_bench::objects::{FRESH, pair};
use test_bench::report::Report;
use test_bench::{Context as _, Result};

/// Rounds of which the median counts.
const ROUNDS: usize = 11;
/// Calls in a round.
const CALLS: u32 = 2_000;

const CONFIG: &str = "issuers:\n  pebble:\n    directory: https://127.0.0.1:1/dir\n    \
    allow: [{namespaces: [\"*\"], names: [\"**.example\"]}]\n";

fn main() -> Result<()> {
    let pair = pair(&["app.shop.example"], FRESH)?;
    let text = secret(0, &pair.certificate, &pair.key);
    let thin: ThinSecret = serde_json::from_str(&text)?;
    let file = std::env::temp_dir().join(format!("cert-renew-pure-{}.yaml", std::process::id()));
    std::fs::write(&file, CONFIG)?;
    let config = cert_renew::process::config_file::load(&file);
    std::fs::remove_file(&file)?;
    let config = config.map_err(|faults| test_bench::Error::msg(faults.to_string()))?;
    let now = UnixTime::now();
    let key = Index::default().key("shop", "shop-tls-0");
    let assessment = assess::of_thin(now, &key, &thin, &config).context("it is annotated")?;
    let mut recorded = assessment.observed("0f9d6a3e-1b2c-4d5e-8f70-a1b2c3d4e5f6", "123456");
    recorded.rolled_out = recorded.leaf.ok().map(|leaf| leaf.held());
    let mut report = Report::new("index-1m", "make bench-pure");
    million::measure(&mut report, now, &recorded)?;
    println!("{}", report.finish()?);
    println!("JSON of one Secret: {} bytes", text.len());
    measure("decode: JSON to thin Secret", || {
        black_box(serde_json::from_str::<ThinSecret>(black_box(&text)).is_ok());
    });
    measure("parse: PEM to leaf", || {
        black_box(certificate::leaf(black_box(pair.certificate.as_bytes())).is_ok());
    });
    measure("decide: thin Secret to assessment (with parse)", || {
        black_box(assess::of_thin(now, &key, black_box(&thin), &config).is_some());
    });
    let (mut index, mut number) = (Index::default(), 0_u32);
    measure("index: one more Secret", || {
        let key = index.key("shop", &format!("shop-tls-{number}"));
        number += 1;
        let observed = assessment.observed("0f9d6a3e-1b2c-4d5e-8f70-a1b2c3d4e5f6", "123456");
        black_box(index.apply(now, &key, observed, Source(0), Duration::ZERO, None));
    });
    measure("index: known version", || {
        let key = index.key("shop", "shop-tls-1");
        black_box(index.touch(&key, "123456", Source(0)));
    });
    Ok(())
}

fn measure(what: &str, mut call: impl FnMut()) {
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            (0..CALLS).for_each(|_| call());
            began.elapsed() / CALLS
        })
        .collect();
    rounds.sort_unstable();
    println!(
        "{what:<50} {:>8.2} µs",
        rounds[ROUNDS / 2].as_secs_f64() * 1e6
    );
}

/// As an API server sends it.
fn secret(number: usize, certificate: &str, key: &str) -> String {
    let fields = json!({"f:data": {".": {}, "f:tls.crt": {}, "f:tls.key": {}}, "f:metadata": {"f:annotations": {".": {},
        "f:cert-renew.io/class": {}, "f:cert-renew.io/issuer": {}}, "f:labels": {".": {}, "f:app": {}}}, "f:type": {}});
    let metadata = json!({
        "name": format!("shop-tls-{number}"), "namespace": "shop", "uid": "0f9d6a3e-1b2c-4d5e-8f70-a1b2c3d4e5f6",
        "resourceVersion": "123456", "creationTimestamp": "2026-11-24T10:00:00Z", "labels": {"app": "shop"},
        "annotations": {"cert-renew.io/issuer": "pebble"},
        "managedFields": [{"manager": "helm", "operation": "Update", "apiVersion": "v1", "time": "2026-11-24T10:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": fields}],
    });
    let data = json!({"tls.crt": BASE64_STANDARD.encode(certificate), "tls.key": BASE64_STANDARD.encode(key)});
    format!(
        r#"{{"kind":"Secret","apiVersion":"v1","metadata":{metadata},"data":{data},"type":"kubernetes.io/tls"}}"#
    )
}
