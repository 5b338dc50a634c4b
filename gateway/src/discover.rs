//! container label, cgroup path → [`crate::agent::Agent`]: which workloads are governed, and which cannot be held.
//!
//! A workload that has a right with which it could undo its own government stays closed, and the objection names the
//! right and the remedy. `[discover] permit` waives named objections; that of sharing the host's network cannot be.

pub mod engine;
mod examine;
pub(crate) mod glob;
mod objection;
mod owner;

pub use examine::{ENGINE_SOCKETS, can_send_raw, examine, packet_device};
pub use objection::{Capability, Objection, Waiver};
pub use owner::{Owner, owner};
