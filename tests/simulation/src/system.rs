//! What the libraries draw from the system comes from the seed as well: the order of hash maps, tokio's choice among
//! branches that are ready, the pauses between tries.
//!
//! The standard library asks for `getrandom` by a weak symbol, so that a program may put its own in place. Keys and
//! signatures stay random: no decision depends on their bytes.

use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use simulation::chance::mixed;

static SYSTEM: AtomicU64 = AtomicU64::new(0);

/// Seeds what the libraries draw, for the whole process.
pub(crate) fn seed(seed: u64) {
    SYSTEM.store(mixed(seed), Ordering::Relaxed);
    fastrand::seed(seed);
}

/// In place of the C library's.
#[expect(unsafe_code, reason = "it is the C library's interface")]
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    for at in 0..length {
        let number = SYSTEM.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        // SAFETY: the caller gives a buffer of this length.
        unsafe { buffer.cast::<u8>().add(at).write(mixed(number) as u8) };
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}
