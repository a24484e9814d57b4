//! Faults of the operator that the simulation has found. What it is taken to find, the planted faults and the mends that
//! are taken back, is not among them.

/// A fault that was found.
#[derive(Debug)]
pub struct Found {
    /// The seed or the scene; it stays, and has to hold.
    pub by: &'static str,
    /// What was wrong.
    pub cause: &'static str,
    /// The commit that mends it.
    pub commit: &'static str,
}

/// All of them, the first one first.
pub const ALL: &[Found] = &[];
