//! The answer to a scrape: rendered once for all concurrent requests, with few answers in memory.
//!
//! An answer may have megabytes, and a client may request many and read them slowly. Prometheus waits for one rendering
//! and for [`READ`] at most, however many clients do so.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, Notify};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, timeout};

use crate::net::bounded::Connection;

/// Most renderings in memory: two Prometheus servers may ask one right after the other.
const HELD: usize = 2;
/// Longest time for a client to read while another rendering is requested, before its connection is closed: less than
/// Prometheus waits.
const READ: Duration = Duration::from_secs(3);

/// Renders one scrape at a time.
#[derive(Default)]
pub(super) struct Scrapes {
    /// The shared result of requests that arrive before the next rendering begins. A waiting request keeps it, however
    /// soon others have read it.
    next: std::sync::Mutex<Arc<OnceLock<Arc<Rendered>>>>,
    /// The rendered answers, oldest first. Locked during a rendering.
    held: Arc<Mutex<VecDeque<Weak<Rendered>>>>,
    /// Signals that one of them has left memory.
    gone: Arc<Notify>,
}

struct Rendered {
    at: Instant,
    text: String,
    readers: std::sync::Mutex<Vec<Connection>>,
    gone: Arc<Notify>,
}

impl Rendered {
    fn share(self: Arc<Self>, reader: Option<Connection>) -> Bytes {
        self.readers().extend(reader);
        Bytes::from_owner(Shared(self))
    }

    fn readers(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Rendered {
    fn drop(&mut self) {
        self.gone.notify_one();
    }
}

struct Shared(Arc<Rendered>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.text.as_bytes()
    }
}

impl Scrapes {
    /// The result of a `render` that began after this call, by this caller or another.
    ///
    /// # Errors
    /// When `render` panics.
    pub(super) async fn render(
        &self,
        connection: Option<Connection>,
        render: impl FnOnce() -> String + Send + 'static,
    ) -> Result<Bytes, JoinError> {
        let shared = Arc::clone(&self.next());
        let mut held = Arc::clone(&self.held).lock_owned().await;
        if let Some(rendered) = shared.get() {
            return Ok(Arc::clone(rendered).share(connection));
        }
        self.wait_for_memory(&mut held).await;
        *self.next() = Arc::default();
        let gone = Arc::clone(&self.gone);
        let rendered = spawn_blocking(move || {
            let rendered = Arc::new(Rendered {
                text: render(),
                at: Instant::now(),
                readers: std::sync::Mutex::default(),
                gone,
            });
            // Locked until here, as the rendering continues when its client is gone.
            held.push_back(Arc::downgrade(&rendered));
            let _ = shared.set(Arc::clone(&rendered));
            rendered
        });
        Ok(rendered.await?.share(connection))
    }

    fn next(&self) -> std::sync::MutexGuard<'_, Arc<OnceLock<Arc<Rendered>>>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another answer may be in memory; closes the connections of the oldest after [`READ`].
    async fn wait_for_memory(&self, held: &mut VecDeque<Weak<Rendered>>) {
        loop {
            held.retain(|rendered| rendered.strong_count() > 0);
            if held.len() < HELD {
                return;
            }
            let Some(oldest) = held.front().and_then(Weak::upgrade) else {
                continue;
            };
            let left = READ.saturating_sub(oldest.at.elapsed());
            if left.is_zero() {
                for reader in oldest.readers().iter() {
                    reader.close();
                }
                held.pop_front();
                return;
            }
            drop(oldest);
            let _ = timeout(left, self.gone.notified()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::get;
    use axum::{Extension, Router};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::oneshot;

    use super::super::tests::most_at_a_time;
    use super::*;
    use crate::net::bounded;

    #[tokio::test]
    async fn one_is_rendered_at_a_time_although_its_client_has_gone() {
        let scrapes = Arc::new(Scrapes::default());
        let render = |work| {
            let scrapes = Arc::clone(&scrapes);
            async move { drop(scrapes.render(None, work).await.unwrap()) }
        };
        assert_eq!(most_at_a_time(render).await, 1);
    }

    #[tokio::test]
    async fn who_asks_while_one_is_rendered_shares_the_next_and_never_an_older_one() {
        let scrapes = Arc::new(Scrapes::default());
        let rendered = Arc::new(AtomicUsize::new(0));
        let count = |rendered: &Arc<AtomicUsize>| {
            let rendered = Arc::clone(rendered);
            move || (rendered.fetch_add(1, Ordering::SeqCst) + 1).to_string()
        };
        let (begun, begins) = oneshot::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn({
            let (scrapes, count) = (Arc::clone(&scrapes), count(&rendered));
            async move {
                let slow = move || {
                    begun.send(()).unwrap();
                    wait.recv().unwrap();
                    count()
                };
                scrapes.render(None, slow).await.unwrap()
            }
        });
        begins.await.unwrap();
        let others: Vec<_> = (0..10)
            .map(|_| {
                let (scrapes, count) = (Arc::clone(&scrapes), count(&rendered));
                tokio::spawn(async move { scrapes.render(None, count).await.unwrap() })
            })
            .collect();
        // All of them wait.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap(), "1");
        let mut answers = Vec::new();
        for other in others {
            answers.push(other.await.unwrap());
        }
        assert_eq!(answers, ["2"; 10]);
        assert_eq!(scrapes.render(None, count(&rendered)).await.unwrap(), "3");
    }

    #[tokio::test]
    async fn who_waits_shares_it_although_others_have_read_it_or_are_gone() {
        let scrapes = Arc::new(Scrapes::default());
        let rendered = Arc::new(AtomicUsize::new(0));
        let (begun, begins) = oneshot::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn({
            let scrapes = Arc::clone(&scrapes);
            let slow = move || {
                begun.send(()).unwrap();
                wait.recv().unwrap();
                String::new()
            };
            async move { drop(scrapes.render(None, slow).await.unwrap()) }
        });
        begins.await.unwrap();
        let others: Vec<_> = (0..100)
            .map(|_| {
                let (scrapes, rendered) = (Arc::clone(&scrapes), Arc::clone(&rendered));
                tokio::spawn(async move {
                    let count = move || {
                        rendered.fetch_add(1, Ordering::SeqCst);
                        String::new()
                    };
                    // Sent at once, as a small answer is.
                    drop(scrapes.render(None, count).await.unwrap());
                })
            })
            .collect();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
        first.await.unwrap();
        // The rendering client leaves while it renders, or before.
        others[0].abort();
        for other in others.into_iter().skip(1) {
            other.await.unwrap();
        }
        assert!(rendered.load(Ordering::SeqCst) <= 2);
        assert!(scrapes.next().get().is_none());
        let held = scrapes.held.lock().await;
        assert!(held.iter().all(|it| it.strong_count() == 0));
    }

    #[tokio::test]
    async fn few_are_held_for_clients_that_read_slowly_and_the_next_waits_no_longer_than_it_must() {
        const LARGE: usize = 64 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scrapes = Arc::new(Scrapes::default());
        let large = get(async move |connection: Option<Extension<Connection>>| {
            let connection = connection.map(|Extension(it)| it);
            assert!(connection.is_some());
            scrapes
                .render(connection, || "x".repeat(LARGE))
                .await
                .unwrap()
        });
        let router = Router::new().route("/", large);
        tokio::spawn(bounded::serve(listener, router, std::future::pending()));
        let mut clients = Vec::new();
        for _ in 0..=HELD {
            let mut client = TcpStream::connect(address).await.unwrap();
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                .await
                .unwrap();
            // It reads only the first byte.
            client.read_u8().await.unwrap();
            clients.push(client);
        }
        let mut rest = Vec::new();
        let _ = clients[0].read_to_end(&mut rest).await;
        assert!(rest.len() < LARGE, "the first one is cut off");
        rest.clear();
        clients[HELD].read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() > LARGE, "the last one is not");
    }
}
