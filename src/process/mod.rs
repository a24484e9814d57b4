//! What every task of the process stands on: the kernel, the config file, supervision, and the gate that each write
//! passes.

pub mod config_file;
pub mod kernel;
pub mod supervise;
pub mod task;
pub mod write_gate;
