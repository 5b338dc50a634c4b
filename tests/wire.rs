//! The fence at the host's end of a workload's wires: what passes, and what does not, counted by a machine on the same
//! bridge. Privileged.
//!
//! Each proof of a refusal has its control: the same attempt, where nobody governs the workload, arrives.

#[cfg(test)]
mod common;

#[cfg(test)]
#[path = "wire/arriving.rs"]
mod arriving;
#[cfg(test)]
#[path = "wire/inbound.rs"]
mod inbound;
#[cfg(test)]
#[path = "wire/neighbours.rs"]
mod neighbours;
#[cfg(test)]
#[path = "wire/scene.rs"]
mod scene;
#[cfg(test)]
#[path = "wire/sealed.rs"]
mod sealed;
#[cfg(test)]
#[path = "wire/tap.rs"]
mod tap;
