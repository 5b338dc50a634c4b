//! The life of what `tollgate daemon` governs: closed before it is known, served while it lives, closed when the
//! daemon dies, taken over by the next one, gone with its cgroup. Privileged.

#[cfg(test)]
#[path = "lifecycle/crowd.rs"]
mod crowd;
#[cfg(test)]
#[path = "lifecycle/identity.rs"]
mod identity;
#[cfg(test)]
#[path = "lifecycle/land.rs"]
mod land;
#[cfg(test)]
#[path = "lifecycle/others.rs"]
mod others;
#[cfg(test)]
#[path = "lifecycle/replace.rs"]
mod replace;
#[cfg(test)]
#[path = "lifecycle/restart.rs"]
mod restart;
#[cfg(test)]
#[path = "lifecycle/rights.rs"]
mod rights;
#[cfg(test)]
#[path = "lifecycle/slice.rs"]
mod slice;
#[cfg(test)]
#[path = "lifecycle/status.rs"]
mod status;
#[cfg(test)]
#[path = "lifecycle/sweep.rs"]
mod sweep;
#[cfg(test)]
#[path = "common/tollgate.rs"]
mod tollgate;
