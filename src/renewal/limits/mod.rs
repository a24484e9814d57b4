//! What a renewal keeps to beside the budgets of its issuer: limits that a CA has named, and failed validations.

pub(super) mod ca;
mod told;
pub mod validations;
