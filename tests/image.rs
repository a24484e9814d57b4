//! The binary of the image, as `make image-check` takes it out of the archive.

use std::env;

use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, OperatorOptions, Result};

use crate::renewal::{renewed, rolled_out};

#[tokio::test]
#[ignore = "make image-check runs it"]
async fn the_binary_of_the_image_renews_and_rolls() -> Result<()> {
    let program = env::var("CERT_RENEW_PROGRAM").context("CERT_RENEW_PROGRAM names the binary")?;
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, OperatorOptions::new(program)).await?;
    let space = Space::new(bench.client()?, "image", operator.namespace()).await?;
    let old = pair(&["image.example"], OLD)?;
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    // A zone and a root: both are inside.
    let annotations = [
        ("issuer", "pebble"),
        ("change-window", "Mon-Sun 00:00-24:00 Europe/Berlin"),
    ];
    space.tls_secret("tls", Some(&old), &annotations).await?;
    renewed(&space, "tls", &old.certificate).await?;
    rolled_out(&space, "tls").await?;
    assert_eq!(space.generation("Deployment", "web").await?, 2);
    Ok(())
}
