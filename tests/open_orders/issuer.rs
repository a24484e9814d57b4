//! What an issuer is told to do may change while an order at it waits.

use test_bench::objects::Space;
use test_bench::{Bench, Context as _, Result, ensure};

use super::{LONG, base, nothing_was_spent, open, operator, stuck, unreachable};
use crate::renewal::{data, renewed};

#[tokio::test]
async fn another_chain_that_is_asked_for_while_an_order_waits_is_taken() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = operator(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "another-chain", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "another-chain.example")];
    space.tls_secret("waits", None, &annotations).await?;
    stuck(bench, &operator, &space, "waits", "HTTP-01").await?;
    // Not that of the chain which the CA gives where none is asked for.
    let root = bench.pebble().root(1).await?;
    let root = cert_renew_core::certificate::leaf(root.as_bytes())?
        .issuer
        .to_string();
    let name = root.trim_start_matches("CN=");
    let chosen = format!("    chain: {{root: \"{name}\"}}\n");
    operator.configure(&(chosen + &base() + LONG + &open(bench)))?;
    let secret = renewed(&space, "waits", "").await?;
    let chain = cert_renew_core::certificate::certificates(data(&secret, "tls.crt").as_bytes())?;
    let top = cert_renew_core::certificate::leaf(chain.last().context("an empty chain")?)?;
    let by = top.issuer.to_string();
    ensure!(by.contains(name), "{by} is not {name}");
    nothing_was_spent(&space, "waits").await?;
    Ok(())
}
