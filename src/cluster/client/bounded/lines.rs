//! Bounds watches by bytes: a line is one event, and an event is as large as its object.
//!
//! kube reads each line as a whole, into a buffer that keeps the size of the largest as long as the watch lasts: twenty
//! rollouts of large workloads would hold twenty such buffers. Here a large line takes all permits while it is read,
//! and the watch ends after it. Its reader opens another one from the last version, with a small buffer again.
//!
//! A reader may turn to something else in the middle of a line, even to a request that needs a permit itself. So a task
//! holds the permits for it, and gives them back in time whether or not the watch is read on.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use hyper::body::{Body as HttpBody, Frame};
use memchr::memchr_iter;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tower::BoxError;

use super::{OBJECT, PLACES, SMALL};

/// Longest time for the rest of a large line, which normally follows at once: a hanging connection must not hold
/// permits.
const REST: Duration = Duration::from_secs(10);

/// The body of a watch.
pub(in crate::cluster) struct Lines<B> {
    body: B,
    places: Arc<Semaphore>,
    /// Bytes of the current line.
    length: usize,
    state: State,
}

enum State {
    Small,
    /// A large line waits for its permits; reading pauses.
    Waits(Turn),
    /// A large line is read, until this instant.
    Large {
        _reading: oneshot::Sender<()>,
        until: Pin<Box<Sleep>>,
    },
    Ended,
}

/// A large line's turn, which begins when it has its permits.
struct Turn {
    /// Says until when.
    begins: oneshot::Receiver<Instant>,
    /// Gives the permits back when it is dropped.
    reading: Option<oneshot::Sender<()>>,
}

impl Turn {
    /// Takes the permits for as long as the line is read, at most [`REST`].
    fn wait(places: Arc<Semaphore>) -> Self {
        let (begin, begins) = oneshot::channel();
        let (reading, mut read) = oneshot::channel::<()>();
        tokio::spawn(async move {
            tokio::select! {
                _ = &mut read => {}
                permits = places.acquire_many_owned(PLACES) => {
                    let until = Instant::now() + REST;
                    if begin.send(until).is_ok() {
                        let _ = timeout_at(until, read).await;
                    }
                    drop(permits);
                }
            }
        });
        Self {
            begins,
            reading: Some(reading),
        }
    }
}

impl<B> Lines<B> {
    pub(super) fn new(body: B, places: Arc<Semaphore>) -> Self {
        Self {
            body,
            places,
            length: 0,
            state: State::Small,
        }
    }
}

impl<B> Lines<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended) || self.body.is_end_stream()
    }

    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            match &mut self.state {
                State::Ended => return Poll::Ready(None),
                State::Waits(turn) => {
                    let until = ready!(turn.begins.poll_unpin(context)).ok();
                    self.state = match until.zip(turn.reading.take()) {
                        Some((until, reading)) => State::Large {
                            _reading: reading,
                            until: Box::pin(sleep_until(until)),
                        },
                        // The semaphore is never closed.
                        None => State::Ended,
                    };
                }
                State::Large { until, .. } => match until.poll_unpin(context) {
                    Poll::Ready(()) => self.state = State::Ended,
                    Poll::Pending => break,
                },
                State::Small => break,
            }
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let Some(frame) = frame.transpose().map_err(Into::into)? else {
            self.state = State::Ended;
            return Poll::Ready(None);
        };
        let frame = match frame.into_data() {
            Ok(chunk) => Frame::data(self.take(chunk)),
            Err(frame) => frame,
        };
        Poll::Ready(Some(Ok(frame)))
    }

    /// Counts the bytes of the lines of a chunk, and cuts it after a large line.
    fn take(&mut self, mut chunk: Bytes) -> Bytes {
        let mut start = 0;
        let mut ends = memchr_iter(b'\n', &chunk);
        let large = ends.find(|end| {
            let length = self.length + end - start;
            (self.length, start) = (0, end + 1);
            length > SMALL
        });
        if let Some(end) = large {
            chunk.truncate(end + 1);
            self.state = State::Ended;
            return chunk;
        }
        self.length += chunk.len() - start;
        if self.length > OBJECT {
            self.state = State::Ended;
        } else if self.length > SMALL && matches!(self.state, State::Small) {
            self.state = State::Waits(Turn::wait(Arc::clone(&self.places)));
        }
        chunk
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::task::yield_now;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::cluster::client::bounded::tests::Chunked;

    /// A watch with lines of these lengths, in chunks as from a connection.
    fn watch(lengths: &[usize], places: &Arc<Semaphore>) -> Lines<Chunked> {
        let lines = lengths.iter().map(|length| "x".repeat(*length) + "\n");
        let text = Bytes::from(lines.collect::<String>());
        let chunks = (0..text.len()).step_by(64 * 1024);
        let chunks = chunks.map(|at| text.slice(at..text.len().min(at + 64 * 1024)));
        Lines::new(Chunked(chunks.collect(), true), Arc::clone(places))
    }

    fn places() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(usize::try_from(PLACES).unwrap()))
    }

    /// All places are given back by now.
    async fn all_are_free(places: &Semaphore) {
        let all = timeout(REST / 2, places.acquire_many(PLACES)).await;
        drop(all.expect("they are held").unwrap());
        assert_eq!(places.available_permits(), usize::try_from(PLACES).unwrap());
    }

    /// The lengths of the lines until no more come, and whether the watch has ended.
    async fn read(watch: &mut Lines<Chunked>) -> (Vec<usize>, bool) {
        let (mut text, mut ended) = (Vec::new(), false);
        let mut idle = 0;
        while idle < 10 && !ended {
            match poll_fn(|context| Poll::Ready(watch.poll(context))).await {
                Poll::Ready(Some(frame)) => text.extend(frame.unwrap().into_data().unwrap()),
                Poll::Ready(None) => ended = true,
                // Others give and take places.
                Poll::Pending => {
                    idle += 1;
                    yield_now().await;
                }
            }
        }
        let lines = text.split_inclusive(|byte| *byte == b'\n');
        (lines.map(|line| line.len() - 1).collect(), ended)
    }

    #[tokio::test]
    async fn what_is_small_passes_as_it_comes() {
        let places = places();
        let lengths = [10, SMALL - 1, 0, 100_000, 100_000, 100_000, 7];
        let mut watch = watch(&lengths, &places);
        assert_eq!(read(&mut watch).await, (lengths.to_vec(), false));
        assert_eq!(places.available_permits(), usize::try_from(PLACES).unwrap());
    }

    #[tokio::test]
    async fn a_watch_ends_behind_a_large_line_and_gives_its_places_back() {
        let places = places();
        for large in [SMALL + 1, 5 * SMALL] {
            let mut watch = watch(&[10, large, 20], &places);
            assert_eq!(read(&mut watch).await, (vec![10, large], true));
            assert!(watch.is_ended());
            all_are_free(&places).await;
        }
    }

    #[tokio::test]
    async fn one_large_line_is_read_at_a_time() {
        let places = places();
        let unfinished = |length: usize| {
            let mut watch = watch(&[length], &places);
            watch.body.0.pop_back();
            watch
        };
        let mut first = unfinished(3 * SMALL);
        let (read_of_first, _) = read(&mut first).await;
        assert!(read_of_first[0] > 2 * SMALL, "{read_of_first:?}");
        let mut second = watch(&[3 * SMALL], &places);
        let (read_of_second, ended) = read(&mut second).await;
        assert!(read_of_second[0] < SMALL + 64 * 1024 && !ended);
        drop(first);
        let (rest, ended) = read(&mut second).await;
        assert_eq!((read_of_second[0] + 1 + rest[0], ended), (3 * SMALL, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_line_that_does_not_go_on_holds_no_place() {
        let places = places();
        let mut watch = watch(&[3 * SMALL], &places);
        watch.body.0.pop_back();
        assert!(!read(&mut watch).await.1);
        assert_eq!(places.available_permits(), 0);
        sleep(REST).await;
        assert!(read(&mut watch).await.1);
        all_are_free(&places).await;
    }

    /// It may wait for a place itself meanwhile.
    #[tokio::test(start_paused = true)]
    async fn a_large_line_whose_reader_does_something_else_holds_no_place() {
        let places = places();
        let unfinished = || {
            let mut watch = watch(&[3 * SMALL], &places);
            watch.body.0.pop_back();
            watch
        };
        let (mut reads, mut waits) = (unfinished(), unfinished());
        read(&mut reads).await;
        let (of_second, _) = read(&mut waits).await;
        assert!(of_second[0] < SMALL + 64 * 1024, "{of_second:?}");
        sleep(2 * REST).await;
        // The turn of the second has passed as well.
        all_are_free(&places).await;
        for watch in [&mut reads, &mut waits] {
            let (rest, ended) = read(watch).await;
            assert!(ended && rest.is_empty(), "{rest:?}");
        }
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_read_to_its_end() {
        let mut watch = watch(&[OBJECT + SMALL], &places());
        let (lines, ended) = read(&mut watch).await;
        assert!(lines[0] <= OBJECT + 64 * 1024 && ended);
    }
}
