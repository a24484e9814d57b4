//! What the API server gives a client that does nothing with it: the measure for the start.

use std::time::{Duration, Instant};

use futures::AsyncBufReadExt as _;
use http::Request;
use test_bench::{Bench, Result};

/// The list that the operator takes, as a stream.
const LIST: &str = "/api/v1/secrets?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
    &allowWatchBookmarks=true&fieldSelector=type%3Dkubernetes.io%2Ftls&timeoutSeconds=600";
/// Stands in the bookmark that ends the list.
const END: &[u8] = b"k8s.io/initial-events-end";
/// Longer than that bookmark.
const TAIL: usize = 1_024;

/// How long the whole list takes, and its bytes.
pub(crate) async fn list(bench: &Bench) -> Result<(Duration, usize)> {
    let client = bench.client()?;
    let began = Instant::now();
    let stream = client
        .request_stream(Request::get(LIST).body(Vec::new())?)
        .await?;
    let mut stream = std::pin::pin!(stream);
    let (mut bytes, mut tail) = (0, Vec::new());
    loop {
        let chunk = stream.fill_buf().await?;
        let length = chunk.len();
        test_bench::ensure!(length > 0, "the list ended before its end");
        tail.extend_from_slice(&chunk[length.saturating_sub(TAIL)..]);
        tail.drain(..tail.len().saturating_sub(TAIL));
        bytes += length;
        stream.consume_unpin(length);
        if tail.windows(END.len()).any(|window| window == END) {
            return Ok((began.elapsed(), bytes));
        }
    }
}
