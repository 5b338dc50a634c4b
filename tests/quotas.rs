//! One gateway process with two workloads: what one of them takes to the limit is refused it, and the other one does
//! not notice. Privileged.

#[cfg(test)]
mod common;

#[cfg(test)]
#[path = "quotas/limits.rs"]
mod limits;
#[cfg(test)]
#[path = "quotas/memory.rs"]
mod memory;
#[cfg(test)]
#[path = "quotas/pair.rs"]
mod pair;
