//! Ways to prove control of a name to a CA.

pub mod http01;
