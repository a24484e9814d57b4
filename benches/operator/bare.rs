//! What the API server gives a client that does nothing with it: the measure for the start.

use std::time::{Duration, Instant};

use futures::AsyncBufReadExt as _;
use http::Request;
use memchr::memmem;
use test_bench::{Bench, Result};

use crate::process::usage;

/// The list that the operator takes, as a stream.
const LIST: &str = "/api/v1/secrets?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
    &allowWatchBookmarks=true&fieldSelector=type%3Dkubernetes.io%2Ftls&timeoutSeconds=600";
/// Stands in the bookmark that ends the list.
const END: &[u8] = b"k8s.io/initial-events-end";
/// Longer than that bookmark.
const TAIL: usize = 1_024;

/// What the whole list takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed {
    pub(crate) took: Duration,
    /// CPU time of this process, which does hardly anything else meanwhile, seconds.
    pub(crate) cpu: f64,
    pub(crate) bytes: usize,
}

/// Takes the whole list, and parses nothing of it.
pub(crate) async fn list(bench: &Bench) -> Result<Listed> {
    let client = bench.client()?;
    let pid = std::process::id();
    let end = memmem::Finder::new(END);
    let before = usage(pid)?;
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
        if end.find(&tail).is_some() {
            return Ok(Listed {
                took: began.elapsed(),
                cpu: usage(pid)?.cpu - before.cpu,
                bytes,
            });
        }
    }
}
