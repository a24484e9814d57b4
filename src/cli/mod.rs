//! What the command does, apart from reading its arguments and printing.

pub mod check;
