//! The bench itself: it starts, and what it starts is real.

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use test_bench::{Bench, Result};

#[tokio::test]
async fn starts() -> Result<()> {
    let bench = Bench::shared().await?;
    let nodes: Api<Node> = Api::all(bench.client()?);
    assert_eq!(nodes.list(&ListParams::default()).await?.items.len(), 3);
    bench.pebble().health().await?;
    eprintln!("started in {:?}", bench.started_in());
    Ok(())
}
