//! Commands that change Secrets, with the user's own rights.

pub(super) mod adopt;
pub(super) mod create;
mod passed_over;
pub(super) mod renew;
pub(super) mod revoke;
pub(super) mod secret;
