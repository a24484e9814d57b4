//! Free ports on loopback, or on the address that pods of a real node reach.

use std::env;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result};

/// First port, below those that Linux gives to outgoing connections (32768 and up): one of those could take a port
/// between the moment that it is found free here and the moment that a program listens on it.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// The text by which Go and Rust programs report that another program was quicker.
const LOST: &str = "address already in use";
/// Most attempts: two benches that look for ports at once rarely collide, and never three times in a row.
const ATTEMPTS: usize = 3;

/// Names the address of the bench instead of loopback.
pub(crate) const ADDRESS: &str = "CERT_RENEW_BENCH_ADDRESS";

/// Address on which everything of the bench listens.
pub(crate) fn address() -> IpAddr {
    let chosen = env::var(ADDRESS).ok();
    chosen
        .and_then(|address| address.parse().ok())
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// A port on `address` that is free for TCP and UDP now, and that this process gives out only once.
///
/// # Errors
/// When none is free.
pub fn free() -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes start at different places, so that two of them do not try the same ports.
    let start = (std::process::id().wrapping_mul(7919) % u32::from(COUNT)) as u16;
    let address = address();
    (0..COUNT)
        .map(|_| {
            let offset = (u32::from(start) + u32::from(NEXT.fetch_add(1, Ordering::Relaxed)))
                % u32::from(COUNT);
            SocketAddr::from((address, FIRST + offset as u16))
        })
        .find(|address| TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok())
        .with_context(|| {
            format!(
                "no free port on {address} from {FIRST} to {}",
                FIRST + COUNT - 1
            )
        })
}

/// Runs `start` again if it failed only because a port was taken concurrently.
pub(crate) async fn retry<T>(start: impl AsyncFn() -> Result<T>) -> Result<T> {
    let mut attempt = 1;
    loop {
        match start().await {
            Err(error)
                if attempt < ATTEMPTS && format!("{error:#}").to_lowercase().contains(LOST) =>
            {
                attempt += 1;
            }
            result => return result,
        }
    }
}
