//! What every task of the process is built on: the kernel, the config file, supervision, and the write gate that each
//! write passes.

pub(crate) mod budget;
pub mod config_file;
pub mod fair;
pub mod fair_queue;
#[cfg(unix)]
pub mod kernel;
pub mod permit;
pub mod supervise;
pub mod task;
pub mod write_gate;
