//! Secrets as the API server gives them: thin from the watch, or full where a renewal or a rollout needs the data.

pub mod compact;
pub mod full;
pub mod head;
pub mod keepers;
pub mod lenient;
pub mod thin;
