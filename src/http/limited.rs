//! A listener for ports that strangers reach: few connections at a time, each with an end.
//!
//! axum sets no deadline at all; a client that sends one byte a minute would hold a connection for ever.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

/// Accepts as long as fewer than so many connections are open; the kernel's backlog holds the others.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    places: Arc<Semaphore>,
    deadline: Duration,
}

/// A connection that fails all reads and writes after its deadline, whatever moved before.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Listener {
    /// At most `most` connections at a time, each for `deadline` from accept to its last byte.
    #[must_use]
    pub fn new(listener: TcpListener, most: usize, deadline: Duration) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(most)),
            deadline,
        }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed, so there always is a place in the end.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        // axum's own accept waits a second when the process has no descriptors left.
        let (stream, from) = axum::serve::Listener::accept(&mut self.listener).await;
        let connection = Connection {
            stream,
            end: Box::pin(sleep(self.deadline)),
            _place: place,
        };
        (connection, from)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

impl Connection {
    /// Runs `io` on the stream; an error once the deadline has passed.
    fn within<T>(
        &mut self,
        context: &mut Context<'_>,
        io: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        io(Pin::new(&mut self.stream), context)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.within(context, |stream, context| stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.within(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.within(context, TcpStream::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.within(context, TcpStream::poll_shutdown)
    }
}

#[cfg(test)]
mod tests {
    use axum::serve::Listener as _;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn bound(most: usize, deadline: Duration) -> (Listener, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Listener::new(listener, most, deadline), address)
    }

    #[tokio::test]
    async fn a_slow_client_is_cut_off_whatever_it_sends() {
        let (mut listener, address) = bound(1, Duration::from_millis(200)).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let trickle = tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        });
        let (mut connection, _) = listener.accept().await;
        let error = loop {
            if let Err(error) = connection.read_u8().await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(connection);
        trickle.await.unwrap();
    }

    #[tokio::test]
    async fn no_more_connections_than_places() {
        let (mut listener, address) = bound(1, Duration::from_secs(60)).await;
        let _clients = (
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        );
        let first = listener.accept().await;
        let early = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
        assert!(early.is_err(), "a second connection has found a place");
        drop(first);
        let later = tokio::time::timeout(Duration::from_secs(10), listener.accept()).await;
        assert!(
            later.is_ok(),
            "a place that is free again is not given away"
        );
    }
}
