//! The binary: wires the crypto provider and the command line, nothing else.

use std::process::ExitCode;

/// musl's own keeps what it was once given: after ten minutes of a hostile tenant twice of what is alive.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Before anything is read. Where it fails nothing else does: `run` says so in its log.
    #[cfg(unix)]
    let _ = cert_renew::process::kernel::keep_memory_private();
    // Two providers in one process would make rustls refuse to choose; this one is ours.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        return ExitCode::FAILURE;
    }
    cert_renew::cli::Cli::from_command_line().run()
}
