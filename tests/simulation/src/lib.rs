//! A cluster and a CA in memory, and a life of the operator in them.
//!
//! ```text
//! users ──► objects ◄──api──┐                 ┌──► checks (never, in the end)
//! controllers ──► objects   ├── weather ── replicas of the operator, unchanged
//! authority (the CA) ◄──────┘                 └──► story
//! ```
//! One thread, one seed, one lock; time moves on to the next timer whenever nothing else is to be done.

pub mod api;
pub mod authority;
pub mod chance;
pub mod checks;
pub mod clock;
pub mod controllers;
pub mod found;
pub mod leaks;
pub mod life;
pub mod objects;
pub mod operator;
pub mod parts;
pub mod patches;
pub mod planted;
pub mod scale;
pub mod scenes;
pub mod story;
pub mod weather;
pub mod world;
